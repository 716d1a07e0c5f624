package operator

import (
	"runtime"
	"testing"
	"time"

	"github.com/gomamba/mamba/cuda"
)

// freer is kept values whose Free calls the function.
type freer func()

func (f freer) Free() { f() }

// TestOwn checks that the memory of an unreachable value is freed while the context is locked, and that memory which was freed before is not
// freed again.
func TestOwn(t *testing.T) {
	c := &Context{device: new(cuda.Device)}
	freed := make([]int, 3)
	held := new(keptOnDevice)
	for i := range freed {
		k := held
		if i > 0 {
			k = new(keptOnDevice)
		}
		k.Kept = freer(func() {
			if c.mu.TryLock() {
				t.Errorf("%d is freed while the context is not locked", i)
			}
			freed[i]++
		})
		k.undo = own(c, k, k.Free)
		if i == 2 {
			if err := c.Do(func(*cuda.Stream) error { k.release(); return nil }); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 500 { // cleanups run some time after a garbage collection
		runtime.GC()
		if err := c.Do(func(*cuda.Stream) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if freed[1] > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	runtime.GC()
	if err := c.Do(func(*cuda.Stream) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if freed[0] != 0 || freed[1] != 1 || freed[2] != 1 {
		t.Errorf("freed %v times, want 0 of what is held, 1 of what nobody can reach, 1 of what was released", freed)
	}
	runtime.KeepAlive(held)
}
