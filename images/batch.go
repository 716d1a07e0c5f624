package images

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/gomamba/mamba/internal/size"
)

// Source has samples by number. Load may be called from several goroutines at once.
type Source interface {
	Len() int
	Load(i int) (*Sample, error)
}

// Samples is a Source of samples in memory.
type Samples []*Sample

func (s Samples) Len() int { return len(s) }

// Load returns sample i.
func (s Samples) Load(i int) (*Sample, error) {
	if i < 0 || i >= len(s) {
		return nil, fmt.Errorf("images: sample %d, want 0 to %d", i, len(s)-1)
	}
	return s[i], s[i].check()
}

// NewFiles returns a Source that reads the files of pairs when they are needed. It keeps the samples that were used last, as many as memory bytes
// hold; 0 means half of the machine's memory. prepare, if it is not nil, changes a sample after it was read: it may resample or normalize it.
// Labels become classes before.
func NewFiles(pairs []Pair, classes Classes, memory uint64, prepare func(*Sample) (*Sample, error)) (Source, error) {
	if len(pairs) == 0 {
		return nil, errors.New("images: there are no pairs to read")
	}
	if len(classes) == 0 {
		return nil, errors.New("images: classes is empty, want the values of the labels: ReadPairs or ClassesOf finds them")
	}
	if memory == 0 {
		memory = uint64(size.Machine()) / 2
	}
	return &fileSource{pairs: slices.Clone(pairs), classes: classes, memory: size.Bytes(memory), prepare: prepare, kept: map[int]*Sample{}}, nil
}

type fileSource struct {
	pairs   []Pair
	classes Classes
	memory  size.Bytes
	prepare func(*Sample) (*Sample, error)

	mu   sync.Mutex
	kept map[int]*Sample
	used []int // the indices of kept, in the order of their last use
	held size.Bytes
}

func (f *fileSource) Len() int { return len(f.pairs) }

func (f *fileSource) Load(i int) (*Sample, error) {
	if i < 0 || i >= len(f.pairs) {
		return nil, fmt.Errorf("images: sample %d, want 0 to %d", i, len(f.pairs)-1)
	}
	f.mu.Lock()
	s := f.kept[i]
	if s != nil {
		f.touch(i)
	}
	f.mu.Unlock()
	if s != nil {
		return s, nil
	}
	read, _, err := ReadPairs(f.pairs[i:i+1], f.classes)
	if err != nil {
		return nil, err
	}
	if s = read[0]; f.prepare != nil {
		if s, err = f.prepare(s); err != nil {
			return nil, fmt.Errorf("%s: %w", f.pairs[i].Image, err)
		}
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if other := f.kept[i]; other != nil { // read by another goroutine at the same time
		return other, nil
	}
	f.kept[i] = s
	f.touch(i)
	for f.held = f.held.Plus(s.bytes()); f.held > f.memory && len(f.used) > 0; f.used = f.used[1:] {
		f.held -= f.kept[f.used[0]].bytes()
		delete(f.kept, f.used[0])
	}
	return s, nil
}

// touch makes a sample the one that was used last.
func (f *fileSource) touch(i int) {
	if at := slices.Index(f.used, i); at >= 0 {
		f.used = slices.Delete(f.used, at, at+1)
	}
	f.used = append(f.used, i)
}

// bytes returns the memory of a sample.
func (s *Sample) bytes() size.Bytes {
	b := size.Of(4, len(s.Image.Pix))
	if s.Labels != nil {
		b = b.Plus(size.Of(4, len(s.Labels.Values)))
	}
	return b
}

// Batches makes batches for training: patches of the samples of a source. Each epoch takes one patch of each sample, in an order of its own. Batch i
// depends on the seed and on i alone, so a resumed run goes on with the batches that it would have had.
type Batches struct {
	source  Source
	patches Patches
	batch   int
	workers int

	mu    sync.Mutex
	next  map[int]func() (*Batch, error) // batches that are being made
	epoch int                            // of order
	order []int
}

// Batch is a batch of patches.
type Batch struct {
	Pix     []float32 // (batch, the axes of a patch, channels)
	Labels  []int     // (batch, the axes of a patch): classes; nil if the samples have no labels
	Classes []int     // (batch): the samples' Class
	Names   []string  // (batch): the samples' Name
}

// NewBatches returns batches of so many patches. workers is how many goroutines make a batch; 0 means as many as there are processors. It changes
// no bit. The error says if a number is below 1, or if the source has no samples.
func NewBatches(source Source, patches Patches, batch, workers int) (*Batches, error) {
	if source == nil {
		return nil, errors.New("images: batches: the source is nil")
	}
	if n := source.Len(); n < 1 {
		return nil, fmt.Errorf("images: batches: the source has %d samples, want at least 1", n)
	}
	if err := patches.check(); err != nil {
		return nil, err
	}
	if batch < 1 || batch > 1<<20 {
		return nil, fmt.Errorf("images: batches: a batch of %d patches, want 1 to %d", batch, 1<<20)
	}
	if workers < 0 || workers > 1<<12 {
		return nil, fmt.Errorf("images: batches: %d workers, want 1 to %d, or 0 for as many as there are processors", workers, 1<<12)
	}
	patches.Size = append([]int(nil), patches.Size...)
	b := &Batches{source: source, patches: patches, batch: batch, workers: workers, next: map[int]func() (*Batch, error){}, epoch: -1}
	if err := b.fits(1, false); err != nil {
		return nil, err
	}
	return b, nil
}

// fits returns an error if two batches, one in use and one that is being made, do not fit into memory: each has its patches and, side by side, their copies.
func (b *Batches) fits(channels int, labels bool) error {
	each := uintptr(2 * 4 * channels)
	if labels {
		each += 4 + 8
	}
	if err := size.Of(2*each, append([]int{b.batch}, b.patches.Size...)...).Fits(fmt.Sprintf("two batches of %d patches of %s with %s", b.batch, sizeString(b.patches.Size), plural(channels, "channel"))); err != nil {
		return fmt.Errorf("images: batches: %w", err)
	}
	return nil
}

// At returns batch i, from 0. While the caller uses it, the batch after it is made.
func (b *Batches) At(i int) (*Batch, error) {
	if b == nil || b.source == nil {
		return nil, errors.New("images: batches: made without NewBatches")
	}
	if i < 0 || i >= math.MaxInt/b.batch-1 {
		return nil, fmt.Errorf("images: there is no batch %d, want 0 or more", i)
	}
	b.mu.Lock()
	get, ahead := b.start(i), b.start(i+1)
	b.next = map[int]func() (*Batch, error){i + 1: ahead}
	b.mu.Unlock()
	return get()
}

// start returns a function that waits for batch i, which is being made. b.mu is locked.
func (b *Batches) start(i int) func() (*Batch, error) {
	if get := b.next[i]; get != nil {
		return get
	}
	samples := make([]int, b.batch)
	for j := range samples {
		samples[j] = b.sample(i*b.batch + j)
	}
	get := sync.OnceValues(func() (*Batch, error) { return b.make(i, samples) })
	go func() { _, _ = get() }()
	return get
}

// sample returns the sample of the patch of some index: the samples of an epoch in an order drawn for it.
func (b *Batches) sample(index int) int {
	n := b.source.Len()
	if epoch := index / n; epoch != b.epoch {
		b.epoch = epoch
		b.order = rand.New(rand.NewPCG(mix(b.patches.Seed), mix(uint64(epoch)))).Perm(n)
	}
	return b.order[index%n]
}

func (b *Batches) make(i int, samples []int) (*Batch, error) {
	all := make([]*Sample, b.batch)
	err := parallel(b.batch, b.workers, func(j int) error {
		s, err := b.source.Load(samples[j])
		if err != nil {
			return err
		}
		if err := b.fits(s.Image.Channels, s.Labels != nil); err != nil {
			return err
		}
		all[j], err = b.patches.Draw(s, uint64(i*b.batch+j))
		return err
	})
	if err != nil {
		return nil, err
	}
	out := &Batch{Pix: make([]float32, 0, b.batch*len(all[0].Image.Pix)), Classes: make([]int, b.batch), Names: make([]string, b.batch)}
	for j, s := range all {
		if s.Image.Channels != all[0].Image.Channels || (s.Labels == nil) != (all[0].Labels == nil) {
			return nil, fmt.Errorf("images: the samples %s and %s differ: one has %s, the other %s, or only one has labels", all[0].Name, s.Name, plural(all[0].Image.Channels, "channel"), plural(s.Image.Channels, "channel"))
		}
		out.Pix = append(out.Pix, s.Image.Pix...)
		out.Classes[j], out.Names[j] = s.Class, s.Name
		if s.Labels != nil {
			for _, v := range s.Labels.Values {
				out.Labels = append(out.Labels, int(v))
			}
		}
	}
	return out, nil
}
