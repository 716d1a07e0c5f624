package operator

import (
	"fmt"
	"math"
	"runtime"
	"sync"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/size"
)

// Place is where a value is: on the host, which is the zero Place, or on a device. Operators on a device compute their matrix products in
// the place's precision.
type Place struct {
	context   *Context
	precision cuda.Precision
}

// On returns the place of a device with a precision. Errors: a nil or closed device; an unknown precision.
func On(device *cuda.Device, p cuda.Precision) (Place, error) {
	if err := p.Err(); err != nil {
		return Place{}, err
	}
	c, err := contextOf(device)
	return Place{c, p}, err
}

// OnHost reports whether the place is the host.
func (p Place) OnHost() bool { return p.context == nil }

// Precision returns the precision of matrix products.
func (p Place) Precision() cuda.Precision { return p.precision }

// Device returns the place's device, nil for the host.
func (p Place) Device() *cuda.Device {
	if p.OnHost() {
		return nil
	}
	return p.context.device
}

// Do calls f with the stream on which the device's work is queued, in order. Meanwhile no operator of the device runs. It returns f's error, or
// an error if the place is the host.
func (p Place) Do(f func(*cuda.Stream) error) error {
	if f == nil {
		return p.context.Do(nil)
	}
	return p.context.Do(func(s *cuda.Stream) error {
		if err := s.Settle(); err != nil {
			return err
		}
		return f(s)
	})
}

func (p Place) String() string {
	switch {
	case p.OnHost():
		return "the host"
	case p.precision == cuda.Strict:
		return p.context.name()
	}
	return fmt.Sprintf("%s with precision %v", p.context.name(), p.precision)
}

// placed is an operator or a value on a device.
type placed interface{ Place() Place }

// PlaceOf returns the place of a node's value. The value of a node that no operator of ours computes is on the host, unless it is an input with
// a value on a device.
func PlaceOf(n *G.Node) Place {
	if n == nil {
		return Place{}
	}
	if o := n.Op(); o != nil {
		if f := Of(o); f != nil {
			return f.place
		}
		if o, ok := o.(placed); ok {
			return o.Place()
		}
		return Place{}
	}
	if v, ok := n.Value().(placed); ok {
		return v.Place()
	}
	return Place{}
}

// Context is what all values on a device share. It holds the stream on which their work is queued, in order.
type Context struct {
	mu     sync.Mutex
	device *cuda.Device
	stream *cuda.Stream

	halves  int64  // elements of all weights' copies in bfloat16; guarded by mu
	changes uint64 // how often a weight got new numbers, or memory elsewhere; guarded by mu

	deadMu sync.Mutex
	dead   []func() // pending frees of values that the garbage collector has found
}

var (
	contextsMu sync.Mutex
	contexts   = map[*cuda.Device]*Context{}
)

// contextOf returns the context of a device. The first call for a device creates it.
func contextOf(device *cuda.Device) (*Context, error) {
	if device == nil {
		return nil, fmt.Errorf("op: the device is missing, want one that cuda.Open returned")
	}
	contextsMu.Lock()
	defer contextsMu.Unlock()
	if c := contexts[device]; c != nil {
		return c, nil
	}
	s, err := device.NewStream()
	if err != nil {
		return nil, err
	}
	c := &Context{device: device, stream: s}
	contexts[device] = c
	device.OnClose(func() {
		contextsMu.Lock()
		defer contextsMu.Unlock()
		delete(contexts, device)
	})
	return c, nil
}

// check returns an error if the context is not that of a device.
func (c *Context) check() error {
	if c == nil || c.device == nil {
		return fmt.Errorf("op: the device is missing, want a place that On returned")
	}
	return nil
}

// Do locks the context, so that no operator of the device runs, and calls f. It returns f's error.
func (c *Context) Do(f func(*cuda.Stream) error) error {
	if err := c.check(); err != nil {
		return err
	}
	if f == nil {
		return fmt.Errorf("op: the function is missing, want one that queues work on the device")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bury()
	return f(c.stream)
}

// bury runs the pending frees of collected values.
func (c *Context) bury() {
	c.deadMu.Lock()
	dead := c.dead
	c.dead = nil
	c.deadMu.Unlock()
	for _, free := range dead {
		free()
	}
}

// own registers free to run, with the context locked, after the garbage collector has found that owner is unreachable. It is needed because
// Gorgonia drops values without notice. The returned cleanup can be stopped. free must not reference owner.
func own[T any](c *Context, owner *T, free func()) runtime.Cleanup {
	return runtime.AddCleanup(owner, func(free func()) {
		c.deadMu.Lock()
		defer c.deadMu.Unlock()
		c.dead = append(c.dead, free)
	}, free)
}

// name returns the device's name, for messages.
func (c *Context) name() string {
	if c.check() != nil {
		return "no device"
	}
	return c.device.Name()
}

// countable returns an error if no memory can hold the elements of a shape. Whether the device's can shows when the graph runs.
func countable(s tensor.Shape) error {
	if size.Of(8, s...) > math.MaxInt64 {
		return fmt.Errorf("has shape %v, want one of less than 2^60 elements", s)
	}
	return nil
}
