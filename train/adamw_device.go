package train

import (
	"errors"
	"fmt"
	"math"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/operator"
	"github.com/gomamba/mamba/op"
)

// deviceMoments are moments on a device.
type deviceMoments struct{ m, v *op.DeviceWeight }

// toHost copies the moments to the tensors on the host. From then on the tensors count: the next step copies them to the device.
// After an error the moments on the device count, as before.
func (d *deviceMoments) toHost() error {
	_, err := d.m.ToHost()
	_, err2 := d.v.ToHost()
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	d.m.HostChanged()
	d.v.HostChanged()
	return nil
}

// deviceOf returns the place of weights on a device, the host if there are none.
func deviceOf(all []trained) (c op.Place, err error) {
	for _, p := range all {
		other := p.value.(*op.DeviceWeight).Place()
		if !c.OnHost() && other.Device() != c.Device() {
			return c, fmt.Errorf("%s is on another device than %s, want all on one", p.param.Name, all[0].param.Name)
		}
		c = other
	}
	return c, nil
}

// parts returns the elements of a weight in spans, whose moments stand one after another in M and V.
func parts(a cuda.AdamWeight, spans []span) (all []cuda.AdamWeight) {
	at := 0
	for _, s := range spans {
		n := s.to - s.from
		p := cuda.AdamWeight{Weight: a.Weight.Slice(s.from, n), Grad: a.Grad.Slice(s.from, n), M: a.M.Slice(at, n), V: a.V.Slice(at, n), Decay: a.Decay}
		if !a.Half.Absent() {
			p.Half = a.Half.Slice(s.from, n)
		}
		all, at = append(all, p), at+n
	}
	return all
}

// pending is a step on a device whose norm is not known yet.
type pending struct {
	place op.Place
	norm  *cuda.Norm
}

// settle waits for the step that Queue has queued, if there is one, and counts it. The error says that it was not made.
func (s *AdamW) settle() error {
	p := s.pending
	if p == nil {
		return nil
	}
	s.pending = nil
	var norm float64
	err := p.place.Do(func(*cuda.Stream) (err error) {
		norm, err = p.norm.Wait()
		return err
	})
	if err != nil {
		return fmt.Errorf("step %d: %w", s.steps+1, err)
	}
	return s.made(norm)
}

// deviceStep moves the weights, in one launch, and clears the gradients. It returns the length of all gradients: those of weights that are not frozen,
// and others whose squares have the given sum. If the length is not finite, nothing changes. With later the step is s.pending instead, and the length unknown.
func (s *AdamW) deviceStep(all []trained, squares float64, later bool) (norm float64, err error) {
	c, err := deviceOf(all)
	if c.OnHost() || err != nil {
		return math.Sqrt(squares), err
	}
	for _, p := range all {
		if !p.param.Trained() || p.device != nil && p.device.m.Place().Device() == c.Device() {
			continue
		}
		if p.device != nil { // the weight has moved to another device
			if err := p.device.toHost(); err != nil {
				return 0, err
			}
		}
		if p.allocate(); p.m == nil {
			continue
		}
		m, err := c.NewWeight(p.m)
		if err != nil {
			return 0, err
		}
		v, err := c.NewWeight(p.v)
		if err != nil {
			return 0, err
		}
		p.device = &deviceMoments{m, v}
	}
	err = c.Do(func(stream *cuda.Stream) (err error) {
		var list []cuda.AdamWeight
		for _, p := range all {
			if !p.param.Trained() || p.device == nil { // this rank has no part of it
				continue
			}
			w := p.value.(*op.DeviceWeight)
			a := cuda.AdamWeight{Decay: p.param.Decay, Half: w.HalfIfAny()}
			var errs [5]error
			if later && !a.Half.Absent() {
				_, errs[4] = w.Half() // it stays as it is now if the step is not made
			}
			a.Weight, errs[0] = w.Array()
			if s.among != nil {
				a.Grad = s.among.grad(p.param)
			} else if a.Grad, errs[1] = p.grad.(*op.DeviceTensor).Array(); errs[1] != nil {
				errs[1] = fmt.Errorf("the gradient of %s %w", p.param.Name, errs[1])
			}
			a.M, errs[2] = p.device.m.Array()
			a.V, errs[3] = p.device.v.Array()
			if err := errors.Join(errs[:]...); err != nil {
				return err
			}
			list = append(list, parts(a, p.own)...)
		}
		var ranks *cuda.AdamWRanks
		if s.among != nil {
			if ranks, err = s.among.ranks(); err != nil {
				return err
			}
		}
		length, err := cuda.AdamW(factors[float32](s, s.steps+1, 1)).Queue(stream, list, s.cfg.Clip, squares, ranks)
		if err != nil {
			return err
		}
		if later || s.queued != nil {
			for _, p := range all {
				operator.Clear(p.grad.(*op.DeviceTensor)) // the work that is queued next can have their memory
			}
		}
		if later {
			s.pending = &pending{c, length}
		} else {
			if s.queued != nil {
				s.queued(stream)
			}
			if norm, err = length.Wait(); err != nil || !finite(norm) {
				return err
			}
		}
		for _, p := range all {
			if !p.param.Trained() || p.device == nil {
				continue
			}
			p.value.(*op.DeviceWeight).Written()
			p.device.m.Written()
			p.device.v.Written()
		}
		if s.among != nil && s.among.shard {
			return s.among.gather(stream)
		}
		return nil
	})
	if err == nil && finite(norm) && !later {
		for _, p := range all {
			p.grad.(*op.DeviceTensor).Zero()
		}
	}
	return norm, err
}
