package train

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/gomamba/mamba/internal/size"
)

// Source makes the batches of a run, one after another. A resumed run goes to the saved position, so the batches from there on must be
// those that the first run would have had. NewSource and NewShuffled make one; Packer is one.
type Source interface {
	Next() (Batch, error) // the next batch
	Position() Position   // where the next batch begins
	Go(Position) error    // moves to a position that Position returned; after an error the source is where it was
}

// Skipper is a Source that can pass over batches without making them. The processes of a group read different batches of one order: each passes over those of
// the others. A Source that is no Skipper makes them and drops them. NewSource and NewShuffled return one; Packer is one.
type Skipper interface {
	Skip(batches int) error // moves to where so many calls of Next would
}

func skip(s Source, batches int) error {
	if s, ok := s.(Skipper); ok {
		return s.Skip(batches)
	}
	for range batches {
		if _, err := s.Next(); err != nil {
			return err
		}
	}
	return nil
}

// Position is a place in a Source.
type Position struct {
	Epoch int `json:"epoch"`
	Row   int `json:"row"` // number of batches, examples or sequences of the epoch before this place
}

// epochs goes through items without end. Each epoch has them in another order.
type epochs[T any] struct {
	order func(epoch int) []T
	items []T // of the epoch
	at    Position
}

func newEpochs[T any](order func(epoch int) []T) epochs[T] {
	return epochs[T]{order: order, items: order(0)}
}

func (e *epochs[T]) next() T {
	if e.at.Row == len(e.items) {
		e.at = Position{Epoch: e.at.Epoch + 1}
		e.items = e.order(e.at.Epoch)
	}
	e.at.Row++
	return e.items[e.at.Row-1]
}

// mostSkipped is far more than the batches of a step of all ranks, and few enough that passing over them ends.
const mostSkipped = 1 << 20

// skip passes over batches of rows.
func (e *epochs[T]) skip(batches, rows int) error {
	if batches < 0 || batches > mostSkipped {
		return sourceError(fmt.Errorf("it cannot pass over %d batches, want 0 to %d", batches, mostSkipped))
	}
	for range batches {
		for range rows {
			e.next()
		}
	}
	return nil
}

func (e *epochs[T]) goTo(to Position) error {
	if to.Epoch < 0 {
		return fmt.Errorf("epoch is %d, want at least 0", to.Epoch)
	}
	items := e.items
	if to.Epoch != e.at.Epoch {
		items = e.order(to.Epoch)
	}
	if to.Row < 0 || to.Row > len(items) {
		return fmt.Errorf("row is %d, want 0 to %d, the number of rows of epoch %d", to.Row, len(items), to.Epoch)
	}
	e.at, e.items = to, items
	return nil
}

// shuffled is the Source of NewShuffled.
type shuffled struct {
	epochs[int]
	chosen []int
	batch  func(examples []int) (Batch, error)
}

// NewShuffled returns a source of batches of a data set. Each epoch has all examples once, in an order that depends on the seed and the
// epoch. batch returns the batch of some examples, given by their numbers, 0 to examples-1; it must depend on them alone. The last
// batch of an epoch may have examples of the next one, so that all batches have the same size.
func NewShuffled(examples, size int, seed uint64, batch func(examples []int) (Batch, error)) (Source, error) {
	if err := checkShuffled(examples, size); err != nil {
		return nil, fmt.Errorf("train: shuffled: %w", err)
	}
	if batch == nil {
		return nil, fmt.Errorf("train: shuffled: batch is nil, want a function that returns the batch of some examples")
	}
	order := func(epoch int) []int { return rand.New(rand.NewPCG(seed, uint64(epoch))).Perm(examples) }
	return &shuffled{newEpochs(order), make([]int, size), batch}, nil
}

func checkShuffled(examples, batch int) error {
	for _, c := range []struct {
		name  string
		value int
	}{{"examples", examples}, {"size", batch}} {
		if c.value < 1 {
			return fmt.Errorf("%s is %d, want at least 1", c.name, c.value)
		}
		if err := size.Of(8, c.value).Fits("their numbers"); err != nil {
			return fmt.Errorf("%s is %d: %w", c.name, c.value, err)
		}
	}
	return nil
}

func (s *shuffled) Next() (Batch, error) {
	at := s.at
	for i := range s.chosen {
		s.chosen[i] = s.next()
	}
	b, err := s.batch(s.chosen)
	if err != nil {
		_ = s.goTo(at) // it was there
	}
	return b, err
}

// Skip implements Skipper.
func (s *shuffled) Skip(batches int) error { return s.skip(batches, len(s.chosen)) }

func (s *shuffled) Position() Position { return s.at }

func (s *shuffled) Go(to Position) error { return sourceError(s.goTo(to)) }

// numbered is the Source of NewSource.
type numbered struct {
	batch func(i int) (Batch, error)
	next  int
}

// NewSource returns a source of the batches batch(0), batch(1) and so on. batch must be a function of the number alone: a resumed run, or a
// step that is repeated after an error, asks for the same number again. Draw random batches from a generator whose seed is the number:
//
//	random := rand.New(rand.NewPCG(seed, uint64(i)))
func NewSource(batch func(i int) (Batch, error)) Source { return &numbered{batch: batch} }

func (n *numbered) Next() (Batch, error) {
	if n.batch == nil {
		return Batch{}, fmt.Errorf("train: source: batch is nil, want a function that returns a batch")
	}
	b, err := n.batch(n.next)
	if err == nil {
		n.next++
	}
	return b, err
}

// Skip implements Skipper.
func (n *numbered) Skip(batches int) error {
	if batches < 0 || batches > min(mostSkipped, math.MaxInt-n.next) {
		return sourceError(fmt.Errorf("it cannot pass over %d batches, want 0 to %d", batches, mostSkipped))
	}
	n.next += batches
	return nil
}

func (n *numbered) Position() Position { return Position{Row: n.next} }

func (n *numbered) Go(to Position) error {
	if to.Epoch != 0 || to.Row < 0 {
		return sourceError(fmt.Errorf("epoch is %d and row is %d, want 0 and at least 0", to.Epoch, to.Row))
	}
	n.next = to.Row
	return nil
}

func sourceError(err error) error {
	if err != nil {
		err = fmt.Errorf("train: source: %w", err)
	}
	return err
}
