package train

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/nn"
)

// Close of a device while goroutines train, generate and copy on it makes them return errors that say so. Nothing is left, and nothing panics or hangs. Run it under the race detector.
func TestDeviceCloseInTheMiddle(t *testing.T) {
	for i := range 8 {
		d := gputest.Open(t, cuda.Open)
		precision := []cuda.Precision{cuda.Strict, cuda.BF16}[i%2]
		speaker := deviceLM(d, precision)
		var all sync.WaitGroup
		until := func(what string, f func() error) {
			all.Go(func() {
				for {
					if err := f(); err != nil {
						if !strings.Contains(err.Error(), "closed") {
							t.Errorf("%s: %v", what, err)
						}
						return
					}
				}
			})
		}
		until("train", func() error {
			cfg := config()
			cfg.Steps = 20
			tr, err := New(deviceLM(d, precision), cfg)
			if err != nil {
				return err
			}
			return errors.Join(tr.Run(context.Background()), tr.Close())
		})
		until("generate", func() error {
			gen, err := nn.NewGenerator(speaker, nn.GenerateConfig{MaxTokens: 4})
			if err != nil {
				return err
			}
			_, err = gen.Generate(context.Background(), [][]int{{1, 2, 3}}, nil)
			return errors.Join(err, gen.Close())
		})
		until("copy", func() error {
			speaker.Params().ValuesChanged()
			return errors.Join(speaker.Params().ToHost(), speaker.Params().Place().Do((*cuda.Stream).Synchronize))
		})
		time.Sleep(time.Duration(i) * 40 * time.Millisecond)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		ended := make(chan bool)
		go func() { all.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Fatal("after Close a goroutine hangs")
		}
		t.Run("nothing is left", func(t *testing.T) {
			if left := gputest.Alive(t); left != "" {
				t.Errorf("after Close: %s", left)
			}
		})
	}
}
