package train

import (
	"errors"
	"fmt"
	"slices"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/internal/operator"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/op"
)

// deviceExchange adds up gradients on GPUs. They never travel through the memory of the host.
//
// One array has all gradients in the order of the exchange. In the first pass of a step, the operators of the backward pass write most gradients to their places there. The others are
// copied or added when the backward pass has queued them, and their own memory is freed. A complete bucket is added up over the ranks on the stream of dist.Devices, while the device's stream goes on with the backward pass.
type deviceExchange struct {
	*exchange
	list
	x      *dist.Devices
	place  op.Place
	nodes  []G.ValueGrad // of the weights
	made   G.Nodes       // the gradients in the graph
	params layer.Params
	slotOf map[*layer.Param]slot
	flat   cuda.Array[float32]
	packed cuda.Array[float32] // the rows of all ranks

	first, last    bool // pass of the step
	there, buckets int  // numbers of gradients and buckets that have been queued
	err            error
}

// deviceBucketBytes is the most that a bucket on a GPU has. There each call slows the backward pass down, however small it is: between two H200, 13 buckets took 0.7 ms a step more than 6.
// But the last bucket is not hidden. So a bucket has at most three quarters of the bytes that are left, and at least a sixteenth of this. It ends between weights whose gradients are
// there at different times, so a larger weight has one of its own.
var deviceBucketBytes = 128 << 20 // a variable for tests

// connect connects the GPUs of all ranks, which call it together.
func (e *exchange) connect(at op.Place, params layer.Params, nodes []G.ValueGrad, made G.Nodes) (d *deviceExchange, err error) {
	for _, p := range params {
		if other := (layer.Params{p}).Place(); other.Device() != at.Device() {
			return nil, fmt.Errorf("%s is on %v and %s on %v, want all weights on one GPU", p.Name, other, params[0].Name, at)
		}
	}
	d = &deviceExchange{exchange: e, list: e.lists[0], place: at, params: params, nodes: nodes, made: made, slotOf: map[*layer.Param]slot{}}
	for _, s := range d.slots {
		d.slotOf[params[s.param]] = s
	}
	if d.x, err = e.group.Devices(at.Device()); err != nil {
		return nil, err
	}
	err = at.Do(func(s *cuda.Stream) error {
		if d.flat, err = cuda.NewArray[float32](s, d.length()); err != nil {
			return err
		}
		return d.flat.Fill(s, 0) // also what is between the weights
	})
	if err == nil && e.rows != nil {
		err = d.connectRows()
	}
	if err != nil {
		return nil, errors.Join(err, d.x.Close())
	}
	for _, p := range d.slots {
		if n := made[p.param]; !d.isRows(p) && slices.Index(made, n) == p.param { // two weights whose gradient is the same node: only the first takes its memory
			operator.Into(n, func() (a cuda.Array[float32]) {
				if d.first {
					a = d.placeOf(p)
				}
				return a
			})
		}
	}
	return d, nil
}

// close ends the connection, if there is one.
func (e *exchange) close() error {
	if e == nil || e.device == nil {
		return nil
	}
	err := e.device.x.Close()
	_ = e.device.place.Do(func(*cuda.Stream) error { // on a closed device there is nothing to free
		e.device.flat.Free()
		e.device.packed.Free()
		return nil
	})
	e.device.flat, e.device.packed = cuda.Array[float32]{}, cuda.Array[float32]{}
	return err
}

// at returns the memory of a bucket, and this rank's part of it.
func (d *deviceExchange) at(b span) (all, own cuda.Array[float32]) {
	all = d.flat.Slice(b.from, b.to-b.from)
	part := all.Len() / d.group.Size()
	return all, all.Slice(d.group.Rank()*part, part)
}

// placeOf returns the place of a gradient.
func (d *deviceExchange) placeOf(p slot) cuda.Array[float32] {
	return d.flat.Slice(p.from, p.to-p.from)
}

// begin begins a pass of a step.
func (d *deviceExchange) begin(first, last bool) sums {
	d.first, d.last, d.there, d.buckets, d.err = first, last, 0, 0, nil
	return d
}

func (d *deviceExchange) arrived(n int) {
	if d.err != nil {
		return
	}
	new := d.slots[d.there:n]
	d.there = n
	d.err = d.place.Do(func(s *cuda.Stream) error {
		for _, p := range new {
			if d.isRows(p) {
				continue
			}
			grad, err := d.nodes[p.param].Grad()
			if err != nil {
				return fmt.Errorf("train: %s has no gradient: %w", d.params[p.param].Name, err)
			}
			from, err := grad.(*op.DeviceTensor).Array()
			if err != nil {
				return fmt.Errorf("train: the gradient of %s %w", d.params[p.param].Name, err)
			}
			switch to := d.placeOf(p); {
			case !d.first:
				err = cuda.Add(s, to, from, to)
			case from.Address() != to.Address():
				err = to.CopyOf(s, from)
			}
			if err != nil {
				return err
			}
		}
		for d.last && d.buckets < len(d.exchange.buckets) && d.exchange.buckets[d.buckets].after <= n {
			all, own := d.at(d.exchange.buckets[d.buckets].span)
			d.buckets++
			if err := dist.ReduceScatterOn(d.x, own, all); err != nil {
				return err
			}
			if d.shard {
				continue
			}
			if err := dist.AllGatherOn(d.x, all, own); err != nil {
				return err
			}
		}
		return nil
	})
	for _, p := range new {
		if d.isRows(p) {
			continue
		}
		if grad, err := d.nodes[p.param].Grad(); err == nil {
			grad.(*op.DeviceTensor).Zero()
		}
		if made, ok := d.made[p.param].Value().(*op.DeviceTensor); ok {
			made.Discard()
		}
	}
}

func (d *deviceExchange) end(failed error) error { return errors.Join(failed, d.err) }

// grad returns the gradient of a weight.
func (d *deviceExchange) grad(p *layer.Param) cuda.Array[float32] { return d.placeOf(d.slotOf[p]) }

// ranks makes the device's stream wait for the sums of gradients, and returns this rank's parts of them for the norm.
func (d *deviceExchange) ranks() (*cuda.AdamWRanks, error) {
	r := &cuda.AdamWRanks{Rank: d.group.Rank(), Size: d.group.Size(), Gather: func(all, own cuda.Array[float64]) error {
		return errors.Join(dist.AllGatherOn(d.x, all, own), d.x.Wait())
	}}
	for _, b := range d.spans() {
		_, own := d.at(b)
		r.Own = append(r.Own, own)
	}
	return r, errors.Join(d.x.Wait(), d.addRows())
}

// gather gives all ranks the parts of the weights that the others have changed.
func (d *deviceExchange) gather(s *cuda.Stream) error {
	weights := make([]*op.DeviceWeight, len(d.params))
	arrays := make([]cuda.Array[float32], len(d.params))
	for i, p := range d.params {
		var err error
		weights[i] = p.OnDevice()
		if arrays[i], err = weights[i].Array(); err != nil {
			return err
		}
	}
	for _, b := range d.spans() {
		for _, p := range d.slots {
			for _, own := range d.mine[p.param] {
				from, n := p.from+own.from, own.to-own.from
				if from < b.from || from >= b.to {
					continue
				}
				if err := d.flat.Slice(from, n).CopyOf(s, arrays[p.param].Slice(own.from, n)); err != nil {
					return err
				}
			}
		}
		all, own := d.at(b)
		if err := dist.AllGatherOn(d.x, all, own); err != nil {
			return err
		}
	}
	if err := d.x.Wait(); err != nil {
		return err
	}
	for _, p := range d.slots {
		w, a := weights[p.param], arrays[p.param]
		if err := a.CopyOf(s, d.placeOf(p)); err != nil {
			return err
		}
		if half := w.HalfIfAny(); !half.Absent() {
			if err := cuda.Convert(s, a, half); err != nil {
				return err
			}
		}
		w.Written()
	}
	return nil
}
