package train

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"sync/atomic"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/internal/operator"
	"github.com/gomamba/mamba/internal/tensorfile"
)

// activity is what a trainer is doing, for Group.Watch. Every new one, every operator that runs, and every piece of a file is a sign of
// life.
type activity struct {
	count atomic.Uint64
	text  atomic.Pointer[string]
}

func (t *Trainer) doing(format string, args ...any) {
	if t.exchange != nil {
		text := fmt.Sprintf(format, args...)
		t.activity.text.Store(&text)
		t.activity.count.Add(1)
	}
}

// watch lets the group watch this process, and returns a function that ends that.
func (t *Trainer) watch() func() {
	t.doing("beginning to train")
	t.cfg.Group.Watch(func() (uint64, string) {
		return t.activity.count.Load() + operator.Runs() + tensorfile.Steps(), *t.activity.text.Load()
	})
	return func() { t.cfg.Group.Watch(nil) }
}

// ended returns why to stop if the context of any rank has ended: the same decision on all ranks, so each asks its context once.
func (t *Trainer) ended(ctx context.Context) (why, err error) {
	why = ctx.Err()
	if t.exchange == nil {
		return why, nil
	}
	own, all := []byte{0}, make([]byte, t.cfg.Group.Size())
	if why != nil {
		own[0] = 1
	}
	if err := dist.AllGather(t.cfg.Group, all, own); err != nil {
		return nil, err
	}
	if rank := bytes.IndexByte(all, 1); why == nil && rank >= 0 {
		why = fmt.Errorf("train: rank %d was told to stop: %w", rank, context.Canceled)
	}
	return why, nil
}

// meet compares what the ranks train, before their first common work. The text of an error continues one of the caller.
func (t *Trainer) meet() error {
	if t.exchange == nil || t.met {
		return nil
	}
	record, err := t.record()
	if err != nil {
		return err
	}
	own := map[string]string{"Shard": fmt.Sprint(t.cfg.Shard), "Segments": fmt.Sprint(t.cfg.Segments), "File is set": fmt.Sprint(t.cfg.File != ""), "Trace is set": fmt.Sprint(t.cfg.Trace != nil), "EvalEvery": fmt.Sprint(t.cfg.EvalEvery), "SaveEvery": fmt.Sprint(t.cfg.SaveEvery)}
	for name, value := range record {
		own[name] = value
	}
	for name, value := range t.cfg.Settings {
		own["Settings."+name] = value
	}
	own["a GPU has the weights"] = fmt.Sprint(!t.params.Place().OnHost())
	own["the order of the gradients"] = fmt.Sprint(t.train.arrivals.order) // and so of the calls of the group
	own["the buckets of the gradients"] = fmt.Sprint(t.exchange.ends())
	own["the gradient that travels as rows"] = t.exchange.rows.name(t.params)
	var weights []tensorfile.Array
	for _, p := range append(t.params[:len(t.params):len(t.params)], t.all.Statistics()...) {
		weights = append(weights, array(Moment{p.Name, p.Value})) // record has copied them to the host
	}
	if own["the weights"], err = tensorfile.Hash(weights); err != nil {
		return err
	}
	text, err := json.Marshal(own)
	if err != nil {
		return err
	}
	all, err := t.cfg.Group.GatherBytes(text)
	if err != nil {
		return err
	}
	var first map[string]string
	for rank, text := range all {
		var other map[string]string
		if err := json.Unmarshal(text, &other); err != nil {
			return fmt.Errorf("what rank %d trains: %w", rank, err)
		}
		if rank == 0 {
			first = other
		}
		if names := differing(first, other); len(names) > 0 {
			return fmt.Errorf("rank %d differs from rank 0: %s is %q and not %q, want the same model, configuration and data on all ranks", rank, names[0], other[names[0]], first[names[0]])
		}
	}
	if at := t.params.Place(); !at.OnHost() {
		if t.exchange.device, err = t.exchange.connect(at, t.params, t.nodes, t.train.grads); err != nil {
			return err
		}
		t.solver.among = t.exchange.device
	}
	t.met = true
	return nil
}

// addUp runs forward and backward pass number i of a step. During the last one it adds up the gradients of all ranks.
func (t *Trainer) addUp(i int, run func() error) error {
	var s sums
	last := i == t.cfg.Accumulate-1
	switch d := t.exchange.device; {
	case d != nil:
		s = d.begin(i == 0, last)
	case last:
		s = t.exchange.begin(func(i int) (any, error) {
			grad, err := t.nodes[i].Grad()
			if err != nil {
				return nil, fmt.Errorf("train: %s has no gradient: %w", t.params[i].Name, err)
			}
			return grad.Data(), nil
		})
	default:
		return run()
	}
	t.train.arrivals.tell = s.arrived
	err := run()
	t.train.arrivals.tell = nil
	if last {
		t.doing("adding up the gradients of step %d", t.Done()+1)
		t.cfg.Trace.begin(exchanging)
	}
	if err == nil {
		s.arrived(len(t.nodes))
	}
	return s.end(err)
}

// solve makes a step of the solver with the gradients of all ranks.
func (t *Trainer) solve() error {
	t.cfg.Trace.begin(updating)
	if t.exchange == nil || t.exchange.device != nil {
		return t.solver.Step(t.nodes)
	}
	squares, err := sumOver(t.cfg.Group, t.exchange.squares)
	if err == nil {
		err = t.solver.step(t.nodes, &squares, false)
	}
	if err != nil || !t.cfg.Shard {
		return err
	}
	t.cfg.Trace.begin(exchanging)
	defer t.params.ValuesChanged()
	return t.exchange.gather(func(i int) (any, error) { return t.params[i].Value.Data(), nil })
}

// meanStatistics gives all ranks the mean of their running statistics.
func (t *Trainer) meanStatistics() error {
	statistics := t.all.Statistics()
	if t.exchange == nil || len(statistics) == 0 {
		return nil
	}
	if err := statistics.ToHost(); err != nil {
		return err
	}
	for _, p := range statistics {
		var err error
		switch v := p.Value.Data().(type) {
		case []float32:
			err = mean(t.cfg.Group, v)
		case []float64:
			err = mean(t.cfg.Group, v)
		}
		if err != nil {
			return err
		}
	}
	statistics.ValuesChanged()
	return nil
}

func mean[T float32 | float64](g *dist.Group, v []T) error {
	err := dist.AllReduce(g, v)
	for i := range v {
		v[i] /= T(g.Size())
	}
	return err
}

// resumeOthers gives the other ranks what rank 0 has read from the file.
func (t *Trainer) resumeOthers(resumed bool) (bool, error) {
	if t.exchange == nil {
		return resumed, nil
	}
	type news struct {
		Resumed  bool
		Steps    int
		Batches  int
		Position Position
		Curve    Curve
	}
	var text bytes.Buffer
	if t.cfg.Group.Rank() == 0 {
		if err := gob.NewEncoder(&text).Encode(news{resumed, t.Done(), t.batches, t.source.Position(), t.curve}); err != nil {
			return false, err
		}
	}
	all, err := t.cfg.Group.GatherBytes(text.Bytes())
	if err != nil {
		return false, err
	}
	var n news
	if err := gob.NewDecoder(bytes.NewReader(all[0])).Decode(&n); err != nil || !n.Resumed {
		return false, err
	}
	if t.cfg.Group.Rank() > 0 {
		if err := t.source.Go(n.Position); err != nil {
			return false, err
		}
		t.solver.SetSteps(n.Steps)
		t.batches = n.Batches
		t.curve = n.Curve
	}
	saved := append(t.params[:len(t.params):len(t.params)], t.all.Statistics()...)
	for _, p := range saved {
		if err := broadcast(t.cfg.Group, p.Value); err != nil {
			return false, err
		}
	}
	saved.ValuesChanged()
	if t.cfg.Shard {
		return true, t.scatterMoments()
	}
	for _, m := range t.solver.Moments() {
		if err := broadcast(t.cfg.Group, m.Value); err != nil {
			return false, err
		}
	}
	return true, t.solver.copyError()
}

// broadcast gives all ranks the elements that rank 0 has.
func broadcast(g *dist.Group, d *tensor.Dense) error {
	if x, ok := d.Data().([]float32); ok {
		return dist.Broadcast(g, x, 0)
	}
	return dist.Broadcast(g, d.Data().([]float64), 0)
}

// wholeMoments returns empty moments of all weights, for all of their elements.
func (t *Trainer) wholeMoments() (whole []Moment) {
	for _, w := range t.solver.all {
		for _, name := range []string{".exp_avg", ".exp_avg_sq"} {
			v := w.param.Value
			whole = append(whole, Moment{w.param.Name + name, tensor.New(tensor.WithShape(v.Shape().Clone()...), tensor.Of(v.Dtype()))})
		}
	}
	return whole
}

// gatherMoments returns the moments of all ranks as whole tensors on rank 0, and nil on the others.
func (t *Trainer) gatherMoments() (whole []Moment, err error) {
	t.solver.Moments() // copies those on a device to the host
	if err := t.solver.copyError(); err != nil {
		return nil, err
	}
	if t.cfg.Group.Rank() == 0 {
		whole = t.wholeMoments()
	}
	for i, w := range t.solver.all {
		for j, part := range []*tensor.Dense{w.m, w.v} {
			var own []byte
			if part != nil {
				if own, err = binary.Append(nil, binary.LittleEndian, part.Data()); err != nil {
					return nil, err
				}
			}
			all, err := t.cfg.Group.GatherBytes(own)
			if err != nil {
				return nil, err
			}
			for rank, b := range all[:len(all)*min(len(whole), 1)] {
				m := whole[2*i+j].Value
				for _, s := range t.exchange.spansOf(i, rank) {
					n, err := binary.Decode(b, binary.LittleEndian, sliceOf(m, s))
					if err != nil {
						return nil, err
					}
					b = b[n:]
				}
			}
		}
	}
	return whole, nil
}

// sliceOf returns some elements of a tensor.
func sliceOf(d *tensor.Dense, s span) any {
	if x, ok := d.Data().([]float32); ok {
		return x[s.from:s.to]
	}
	return d.Data().([]float64)[s.from:s.to]
}

// scatterMoments gives each rank its parts of the whole moments that rank 0 has in t.whole.
func (t *Trainer) scatterMoments() error {
	defer func() { t.whole = nil }()
	t.solver.Moments() // from now on those of the host count
	if err := t.solver.copyError(); err != nil {
		return err
	}
	whole := t.whole
	if t.cfg.Group.Rank() > 0 {
		whole = t.wholeMoments()
	}
	for i, w := range t.solver.all {
		for j, part := range []*tensor.Dense{w.m, w.v} {
			m := whole[2*i+j]
			if err := broadcast(t.cfg.Group, m.Value); err != nil {
				return err
			}
			at := 0
			for _, s := range t.exchange.mine[i] {
				to := at + s.to - s.from
				copyElements(sliceOf(part, span{at, to}), sliceOf(m.Value, s))
				at = to
			}
		}
	}
	return nil
}

func copyElements(to, from any) {
	if x, ok := to.([]float32); ok {
		copy(x, from.([]float32))
	} else {
		copy(to.([]float64), from.([]float64))
	}
}
