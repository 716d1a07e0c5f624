package main

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"

	"gonum.org/v1/gonum/stat"

	"github.com/gomamba/mamba/nn"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// point is what one length costs.
type point struct {
	length  int
	seconds float64
	bytes   float64
}

// pass is what is measured.
type pass struct {
	name     string
	backward bool
}

var passes = []pass{{"forward", false}, {"training", true}}

// measure runs a stack, forward alone or with the gradients of its weights, on one sequence of a length. Its graph and machine are
// made before, and it has run once: what is measured is what every further run takes. bytes is what is in memory when it ends,
// beyond what was there before the graph: its values, what is kept between the passes, and the kernels' workspace.
func measure(set settings, stack *nn.MambaStack, p pass, length int) (at point, err error) {
	before := emptied()
	g := G.NewGraph()
	x := G.NewTensor(g, tensor.Float32, 3, G.WithShape(1, length, set.dmodel), G.WithName("x"), G.WithInit(G.Gaussian(0, 1)))
	y, err := stack.Apply(x)
	if err != nil {
		return at, err
	}
	var values []G.Value
	read := func(n *G.Node) {
		values = append(values, nil)
		G.Read(n, &values[len(values)-1])
	}
	nodes := stack.Params().Nodes(g)
	if p.backward {
		dy := G.NewTensor(g, tensor.Float32, 3, G.WithShape(1, length, set.dmodel), G.WithName("dy"), G.WithInit(G.Gaussian(0, 1)))
		grads, err := G.Backpropagate(G.Nodes{y}, G.Nodes{dy}, nodes)
		if err != nil {
			return at, err
		}
		values = make([]G.Value, 0, len(grads)) // Read keeps pointers into it
		for _, n := range grads {
			read(n)
		}
	} else {
		values = make([]G.Value, 0, 1)
		read(y)
	}
	vm := G.NewTapeMachine(g)
	defer vm.Close()
	run := func() (float64, error) {
		vm.Reset()
		start := time.Now()
		err := vm.RunAll()
		return time.Since(start).Seconds(), err
	}
	first, err := run()
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
	slices.Sort(times)
	at = point{length, times[len(times)/2], inUse() - before}
	for _, v := range values {
		if v == nil {
			return at, fmt.Errorf("a value was not computed")
		}
	}
	runtime.KeepAlive(g)
	return at, nil
}

// inUse is the memory in use after a collection.
func inUse() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// emptied is inUse without what the kernels keep for the next run: workspace that is not used for 64 collections is let go.
func emptied() float64 {
	for range 80 {
		runtime.GC()
		time.Sleep(time.Millisecond) // the collections are counted beside the program
	}
	return inUse()
}

// exponent fits value = c·length^exponent, by least squares in the logarithms, from a length on. It is NaN for fewer than two points.
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
