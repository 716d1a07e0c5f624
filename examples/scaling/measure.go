package main

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"time"

	"gonum.org/v1/gonum/stat"

	"github.com/gomamba/mamba/internal/work"
	"github.com/gomamba/mamba/nn"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// point is the cost of one length.
type point struct {
	length  int
	seconds float64
	bytes   float64
}

// pass is the part of training that is measured.
type pass struct {
	name     string
	backward bool
}

var passes = []pass{{"forward", false}, {"training", true}}

// measure runs a stack on one sequence of a length: forward, or forward and backward with the gradients of all weights.
//
// The first run measures memory: the peak of the live heap during the run, minus the live heap before the graph was made. So bytes is
// what the graph, its values, the values kept for the backward pass, and the workspaces of the kernels need together. The following
// runs measure time, and seconds is their median.
func measure(set settings, stack *nn.MambaStack, p pass, length int) (at point, err error) {
	work.ReleaseWorkspaces() // otherwise those of a longer length would count as memory before, or go away during the run
	before := live()
	g := G.NewGraph()
	x := G.NewTensor(g, tensor.Float32, 3, G.WithShape(1, length, set.dmodel), G.WithName("x"), G.WithInit(G.Gaussian(0, 1)))
	y, err := stack.Apply(x)
	if err != nil {
		return at, err
	}
	results := G.Nodes{y}
	if p.backward {
		dy := G.NewTensor(g, tensor.Float32, 3, G.WithShape(1, length, set.dmodel), G.WithName("dy"), G.WithInit(G.Gaussian(0, 1)))
		if results, err = G.Backpropagate(G.Nodes{y}, G.Nodes{dy}, stack.Params().Nodes(g)); err != nil {
			return at, err
		}
	}
	values := make([]G.Value, len(results))
	for i, n := range results {
		G.Read(n, &values[i])
	}
	vm := G.NewTapeMachine(g)
	defer func() {
		err = errors.Join(err, vm.Close())
		runtime.SetFinalizer(vm, nil) // it would keep the machine until some later collection
	}()
	run := func() (float64, error) {
		vm.Reset()
		start := time.Now()
		err := vm.RunAll()
		return time.Since(start).Seconds(), err
	}
	var first float64
	peak, err := peakDuring(func() (err error) {
		first, err = run()
		return err
	})
	if err != nil {
		return at, err
	}
	times := make([]float64, 0, set.runs)
	for len(times) < set.runs && (len(times) == 0 || first < set.limit) {
		seconds, err := run()
		if err != nil {
			return at, err
		}
		times = append(times, seconds)
	}
	for _, v := range values {
		if v == nil {
			return at, fmt.Errorf("a value was not computed")
		}
	}
	slices.Sort(times)
	return point{length, times[len(times)/2], float64(peak) - float64(before)}, nil
}

// peakDuring returns the most bytes that live objects of the heap had at any collection during a run, or at its end. It lets the
// collector run whenever the heap has grown by a tenth.
func peakDuring(run func() error) (peak uint64, err error) {
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	done, sampled := make(chan struct{}), make(chan uint64)
	go func() {
		var most uint64
		for tick := time.NewTicker(time.Millisecond); ; {
			most = max(most, marked())
			select {
			case <-tick.C:
			case <-done:
				tick.Stop()
				sampled <- most
				return
			}
		}
	}()
	err = run()
	atEnd := live()
	close(done)
	return max(<-sampled, atEnd), err
}

// live collects garbage and returns the bytes of the objects that are left.
func live() uint64 {
	for range 3 { // a pool of the standard library lets go after two collections
		runtime.GC()
	}
	return marked()
}

// marked returns the bytes of the objects that the last collection found alive.
func marked() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// exponent returns the e of value = c·length^e, fitted by least squares of the logarithms to the points of at least the length from.
// It is NaN for fewer than two points.
func exponent(points []point, from int, value func(point) float64) float64 {
	var x, y []float64
	for _, p := range points {
		if p.length >= from && value(p) > 0 {
			x, y = append(x, math.Log(float64(p.length))), append(y, math.Log(value(p)))
		}
	}
	if len(x) < 2 {
		return math.NaN()
	}
	_, slope := stat.LinearRegression(x, y, nil, false)
	return slope
}
