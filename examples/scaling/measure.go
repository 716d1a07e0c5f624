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

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/work"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
	"github.com/gomamba/mamba/vision"
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

// model is what is measured.
type model struct {
	params layer.Params
	input  func(n int) []int // the shape of the input of length, or side, n
	apply  func(x *G.Node) (*G.Node, error)
}

// sequences returns a stack of layers of a kind for one sequence.
func sequences(set settings, kind nn.Kind, opts ...nn.Option) (model, error) {
	stack := nn.NewMambaStack(nn.Config{DModel: set.dmodel, NLayer: set.layers, NHead: set.heads, Pattern: []nn.Kind{kind}}, opts...)
	return model{
		params: stack.Params(), input: func(length int) []int { return []int{1, length, set.dmodel} },
		apply: func(x *G.Node) (*G.Node, error) { return stack.Apply(x) },
	}, stack.Err()
}

// images returns a MambaUNet for square images, with scans or, of the kind attention, with attention over all cells. A step has the same number of pixels
// whatever the side: those of one image of the longest.
func images(set settings, kind nn.Kind, opts ...nn.Option) (model, error) {
	unet := vision.NewMambaUNet(vision.MambaUNetConfig{
		Classes: 2, Dims: []int{set.dmodel}, Depths: slices.Repeat([]int{set.layers}, 4), DecoderDepths: slices.Repeat([]int{set.layers}, 4),
		Attention: kind == nn.Attention,
	}, opts...)
	return model{
		params: unet.Params(), apply: func(x *G.Node) (*G.Node, error) { return unet.Apply(x) },
		input: func(side int) []int { return []int{set.longest / side * (set.longest / side), side, side, 3} },
	}, unet.Err()
}

// measure runs a model on an input of a length: forward, or forward and backward with the gradients of all weights.
//
// The first run measures memory: its peak, minus what was in use before the inputs were made. So bytes is what the graph, its values, the
// values kept for the backward pass, and the workspaces of the kernels need together. The following runs measure time, and seconds is
// their median. A run that takes longer than -limit is not repeated: its time is that of the first.
func measure(set settings, m model, p pass, length int) (at point, err error) {
	g := G.NewGraph()
	weights := m.params.Nodes(g)
	place := op.PlaceOf(weights[0])
	before, err := inUse(place)
	if err != nil {
		return at, err
	}
	x, err := normal(g, place, "x", m.input(length)...)
	if err != nil {
		return at, err
	}
	y, err := m.apply(x)
	if err != nil {
		return at, err
	}
	results := G.Nodes{y}
	if p.backward {
		dy, err := normal(g, place, "dy", y.Shape()...)
		if err == nil && !place.OnHost() {
			dy, err = op.Add(dy, dy) // an operator's result, since a gradient on a device is freed when it has been read
		}
		if err != nil {
			return at, err
		}
		if results, err = G.Backpropagate(G.Nodes{y}, G.Nodes{dy}, weights); err != nil {
			return at, err
		}
	}
	var values []G.Value
	if place.OnHost() { // reading a value on a device copies it to the host
		values = make([]G.Value, len(results))
		for i, n := range results {
			G.Read(n, &values[i])
		}
	}
	op.FreeAfterUse(g)
	vm := G.NewTapeMachine(g)
	defer func() {
		err = errors.Join(err, vm.Close())
		runtime.SetFinalizer(vm, nil) // it would keep the machine until some later collection
	}()
	run := func() (float64, error) {
		vm.Reset()
		start := time.Now()
		err := vm.RunAll()
		if err == nil && !place.OnHost() {
			err = place.Do((*cuda.Stream).Synchronize)
		}
		return time.Since(start).Seconds(), err
	}
	var first float64
	peak, err := peakDuring(place, func() (err error) {
		first, err = run()
		return err
	})
	if err != nil {
		return at, err
	}
	times := make([]float64, 0, set.runs)
	if first > set.limit {
		times = append(times, first)
	}
	for len(times) < set.runs && first <= set.limit {
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
	return point{length, times[len(times)/2], peak - before}, nil
}

// normal returns an input of normal numbers at a place. They repeat after 2^20, since drawing them takes longer than a run on a GPU.
func normal(g *G.ExprGraph, place op.Place, name string, shape ...int) (*G.Node, error) {
	all := make([]float32, tensor.Shape(shape).TotalSize())
	block := G.Gaussian(0, 1)(tensor.Float32, min(len(all), 1<<20)).([]float32)
	for at := 0; at < len(all); at += copy(all[at:], block) {
	}
	value := tensor.New(tensor.WithShape(shape...), tensor.WithBacking(all))
	input := layer.Params{layer.NewParam(name, value, false)}
	if !place.OnHost() {
		if err := input.ToDevice(place); err != nil {
			return nil, err
		}
	}
	return input[0].Node(g), nil
}

// inUse collects garbage and returns the bytes that are in use on the heap, or in the memory of the place's device.
func inUse(place op.Place) (float64, error) {
	work.ReleaseWorkspaces() // otherwise those of a longer length would count as memory before, or go away during the run
	heap := live()
	if place.OnHost() {
		return float64(heap), nil
	}
	// Values on a device are freed by cleanups, which run in other goroutines after a collection.
	used, _ := place.Device().Memory()
	for same := 0; same < 5; same++ {
		time.Sleep(time.Millisecond)
		live()
		if err := place.Do((*cuda.Stream).Trim); err != nil {
			return 0, err
		}
		if now, _ := place.Device().Memory(); now < used {
			used, same = now, 0
		}
	}
	return float64(used), nil
}

// peakDuring returns the most bytes that are in use during a run. On a device these are the bytes that its stream holds after the run, since
// inUse has given back all others. On the heap they are the most that live objects had at any collection, or at the end: it lets the
// collector run whenever the heap has grown by a tenth.
func peakDuring(place op.Place, run func() error) (peak float64, err error) {
	if !place.OnHost() {
		err := run()
		_, held := place.Device().Memory()
		return float64(held), err
	}
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
	return float64(max(<-sampled, atEnd)), err
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
