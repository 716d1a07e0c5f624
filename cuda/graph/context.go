// Package graph lets Gorgonia graphs compute on a GPU: values in the device's memory, and the operators of a Mamba model over
// them. They run under Gorgonia's ordinary tape machine, differentiated by gorgonia.Grad. Most users want nn.OnDevice, which
// builds models of these operators.
//
// A node whose value is on a device has the type and shape of a node on the host, but only operators of this package can read
// it: [Upload] and [Download], which are each other's derivative, stand at the edges.
//
// An operator writes its result where its last one was: a value is good until its operator runs again, and whoever reads it later
// gets an error. So run one machine of a graph at a time.
package graph

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/gomamba/mamba/cuda"
)

// Context is what the graphs of a device share: the stream that all their work is queued on, in order.
type Context struct {
	mu     sync.Mutex
	device *cuda.Device
	stream *cuda.Stream

	deadMu sync.Mutex
	dead   []func() // free what belonged to values that nobody can reach any more
}

var (
	contextsMu sync.Mutex
	contexts   = map[*cuda.Device]*Context{}
)

// On returns the context of a device, made at the first call.
func On(device *cuda.Device) (*Context, error) {
	if device == nil {
		return nil, fmt.Errorf("graph: the device is missing, want one that cuda.Open returned")
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

// Device is the context's device.
func (c *Context) Device() *cuda.Device { return c.device }

// Stream is the stream that the work is queued on. Use it inside Do.
func (c *Context) Stream() *cuda.Stream { return c.stream }

// check returns an error if the context is nil. That of a zero context comes from its stream, which is nil.
func (c *Context) check() error {
	if c == nil {
		return fmt.Errorf("graph: the context is missing, want one that On returned")
	}
	return nil
}

// Do calls f while no operator of the device runs.
func (c *Context) Do(f func(*cuda.Stream) error) error {
	if err := c.check(); err != nil {
		return err
	}
	if f == nil {
		return fmt.Errorf("graph: the function is missing")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bury()
	return f(c.stream)
}

// Synchronize waits until all that was queued is done, and returns what went wrong.
func (c *Context) Synchronize() error { return c.Do((*cuda.Stream).Synchronize) }

// bury frees what died.
func (c *Context) bury() {
	c.deadMu.Lock()
	dead := c.dead
	c.dead = nil
	c.deadMu.Unlock()
	for _, free := range dead {
		free()
	}
}

// own has free called when nobody can reach the owner any more, unless the cleanup is stopped: Gorgonia drops values without a
// word. What free holds must not lead to the owner.
func own[T any](c *Context, owner *T, free func()) runtime.Cleanup {
	return runtime.AddCleanup(owner, func(free func()) {
		c.deadMu.Lock()
		defer c.deadMu.Unlock()
		c.dead = append(c.dead, free)
	}, free)
}
