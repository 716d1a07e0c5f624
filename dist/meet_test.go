package dist_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gomamba/mamba/dist"
)

// freePort returns a port at which nobody listens.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// meet calls f for each rank of a group of goroutines that meet over TCP, and returns their errors.
func meet(ctx context.Context, port string, size int, f func(g *dist.Group) error) []error {
	errs := make([]error, size)
	var wait sync.WaitGroup
	for rank := range size {
		wait.Go(func() {
			e, err := dist.Meet(ctx, rank, size, "127.0.0.1", port)
			if err != nil {
				errs[rank] = err
				return
			}
			g, err := dist.New(e)
			if err == nil {
				err = errors.Join(g.Fail(f(g)), g.Close())
			}
			errs[rank] = err
		})
	}
	wait.Wait()
	return errs
}

func TestMesh(t *testing.T) {
	for _, size := range []int{2, 3, 5} {
		if err := errors.Join(meet(t.Context(), freePort(t), size, func(g *dist.Group) error { return collectives(g, sha256.New()) })...); err != nil {
			t.Errorf("%d ranks: %v", size, err)
		}
	}
}

// Large messages of all ranks at the same time need no order, and Send does not wait for Receive.
func TestMeshLarge(t *testing.T) {
	const n = 1 << 21
	err := errors.Join(meet(t.Context(), freePort(t), 2, func(g *dist.Group) error {
		x := make([]float32, n)
		if err := dist.Send(g, x, 1-g.Rank()); err != nil {
			return err
		}
		if err := dist.AllReduce(g, x); err != nil {
			return err
		}
		return dist.Receive(g, x, 1-g.Rank())
	})...)
	if err != nil {
		t.Error(err)
	}
}

// What connects and does not belong to the run does no harm, also where rank 0 is expected.
func TestMeetStrangers(t *testing.T) {
	port := freePort(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	first := make(chan error, 1)
	go func() { first <- meetOne(ctx, 0, port) }()
	for _, text := range []string{"", "GET / HTTP/1.1\r\n\r\n", "mamba-2\n\xff\xff\xff\xff", "mamba-2\n\x02\x00\x00\x00[]"} {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		for err != nil && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
			c, err = net.Dial("tcp", "127.0.0.1:"+port)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte(text)); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(meetOne(ctx, 1, port), <-first); err != nil {
		t.Error(err)
	}
}

// meetOne joins a group of two and leaves it.
func meetOne(ctx context.Context, rank int, port string) error {
	e, err := dist.Meet(ctx, rank, 2, "127.0.0.1", port)
	if err != nil {
		return err
	}
	return e.Close()
}

// A stranger at the address of rank 0, and a port that is taken, are errors that say so.
func TestMeetTaken(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "220 a mail server of long standing\r\n")
			defer c.Close()
		}
	}()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	for rank, want := range []string{"cannot listen at the port that the others expect", "another program answers"} {
		if _, err := dist.Meet(ctx, rank, 2, "127.0.0.1", port); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error of rank %d is %v, want %q", rank, err, want)
		}
	}
	// torchrun has taken the port for itself: the ranks meet at one of the next.
	t.Setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
	if err := errors.Join(meet(t.Context(), port, 3, (*dist.Group).Barrier)...); err != nil {
		t.Error(err)
	}
}

// What is wrong is an error on all ranks that are there, and none waits.
func TestMeetWrong(t *testing.T) {
	type process struct{ rank, size int }
	for what, test := range map[string]struct {
		processes []process
		want      string // in the error of each, or of rank 0
	}{
		"another size":   {[]process{{0, 3}, {1, 2}}, "a process at 127.0.0.1 is one of 2, and rank 0 is one of 3, want the same size in all processes"},
		"a rank twice":   {[]process{{0, 3}, {1, 3}, {1, 3}}, "a process at 127.0.0.1 is rank 1 of 3, and another process is that rank already, want each rank once"},
		"rank 0 is away": {[]process{{1, 3}, {2, 3}}, "rank 0 is not at 127.0.0.1:"},
		"rank 2 is away": {[]process{{0, 3}, {1, 3}}, "rank 2 has not come to"},
		"ranks 2 3 away": {[]process{{0, 4}, {1, 4}}, "ranks 2, 3 have not come to"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			port := freePort(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			var wait sync.WaitGroup
			for _, p := range test.processes {
				wait.Go(func() {
					want := test.want
					if p.rank > 0 && strings.Contains(want, "come to") {
						want = "other ranks have not come to rank 0"
					}
					// rank 0 says what is missing, if its answer comes before this rank's own time is over
					if _, err := dist.Meet(ctx, p.rank, p.size, "127.0.0.1", port); err == nil || !strings.Contains(err.Error(), want) && !strings.Contains(err.Error(), test.want) {
						t.Errorf("the error of rank %d is %v, want %q", p.rank, err, want)
					}
				})
			}
			wait.Wait()
		})
	}
}
