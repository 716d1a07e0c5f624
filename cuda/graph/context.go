// Package graph lets Gorgonia graphs compute on a GPU. It provides values in the device's memory, and the operators of a Mamba model on
// these values. The operators run under Gorgonia's ordinary tape machine, and gorgonia.Grad differentiates them. Most users want
// nn.OnDevice, which builds models of these operators.
//
// A node whose value is on a device has the type and shape of a node on the host, but only operators of this package can read its value.
// [Context.Upload] and [Context.Download] copy values to the device and back. Each is the derivative of the other.
//
// An operator overwrites the result of its last run. A value is valid until its operator runs again; reading it later is an error.
// Therefore run one machine of a graph at a time.
package graph

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/gomamba/mamba/cuda"
)

// Context is what all graphs on a device share. It holds the stream on which their work is queued, in order.
type Context struct {
	mu     sync.Mutex
	device *cuda.Device
	stream *cuda.Stream

	deadMu sync.Mutex
	dead   []func() // pending frees of values that the garbage collector has found
}

var (
	contextsMu sync.Mutex
	contexts   = map[*cuda.Device]*Context{}
)

// On returns the context of a device. The first call for a device creates it. Errors: a nil or closed device.
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

// Device returns the context's device.
func (c *Context) Device() *cuda.Device { return c.device }

// Stream returns the stream on which the context's work is queued. Use it inside Do.
func (c *Context) Stream() *cuda.Stream { return c.stream }

// check returns an error if On did not make the context.
func (c *Context) check() error {
	if c == nil || c.device == nil {
		return fmt.Errorf("graph: the context is missing, want one that On returned")
	}
	return nil
}

// Do locks the context, so that no operator of the device runs, and calls f. It returns f's error.
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

// Synchronize waits until all queued work is done, and returns its error.
func (c *Context) Synchronize() error { return c.Do((*cuda.Stream).Synchronize) }

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
