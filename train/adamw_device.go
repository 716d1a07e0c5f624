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

// deviceStep moves the weights, in one launch, and clears the gradients. It returns the length of all gradients: those of weights that are not frozen,
// and others whose squares have the given sum. If the length is not finite, nothing changes.
func (s *AdamW) deviceStep(all []trained, squares float64) (norm float64, err error) {
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
			var errs [4]error
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
		var queued func()
		if s.queued != nil {
			queued = func() {
				for _, p := range all {
					operator.Clear(p.grad.(*op.DeviceTensor)) // the work that is queued next can have their memory
				}
				s.queued(stream)
			}
		}
		if norm, err = cuda.AdamW(factors[float32](s, s.steps+1, 1)).StepAmong(stream, list, s.cfg.Clip, squares, ranks, queued); err != nil || !finite(norm) {
			return err
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
	if err == nil && finite(norm) {
		for _, p := range all {
			p.grad.(*op.DeviceTensor).Zero()
		}
	}
	return norm, err
}
