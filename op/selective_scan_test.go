package op

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/gomamba/mamba/grad"
)

// function returns the scan in the form that package grad takes.
func (p *scanProblem) function(withState bool) (grad.Func, []grad.Input) {
	names := slices.Sorted(maps.Keys(p.in))
	var inputs []grad.Input
	for _, name := range names {
		inputs = append(inputs, grad.Input{
			Name: name, Value: dense(tensor.Float64, p.shape(name), p.in[name]), Constant: name == "Start",
		})
	}
	return func(in G.Nodes) (G.Nodes, error) {
		nodes := map[string]*G.Node{}
		for i, name := range names {
			nodes[name] = in[i]
		}
		if !withState {
			return one(SelectiveScan(scanInputs(nodes), p.cfg))
		}
		y, final, err := SelectiveScanWithState(scanInputs(nodes), p.cfg)
		return G.Nodes{y, final}, err
	}, inputs
}

// checkGradient compares n elements of each operand's gradient with finite differences, on both machines.
func (p *scanProblem) checkGradient(t grad.TB, withState bool, n int) {
	t.Helper()
	f, in := p.function(withState)
	grad.MustCheck(t, f, in, grad.Sample(n, 1))
}

// Gradients for every combination of optional operands and options, with and without the final state. The numbers of groups of B and C, 0
// for constant ones, vary from case to case.
func TestSelectiveScanGradientOptions(t *testing.T) {
	for i := range 256 {
		if testing.Short() && i%7 != 0 {
			continue
		}
		var with []string
		for bit, name := range scanOptional {
			if i>>bit&1 == 1 {
				with = append(with, name)
			}
		}
		p := &scanProblem{batch: 2, length: 3, channels: 6, state: 2, bGroups: i / 3 % 4, cGroups: i / 11 % 4,
			cfg: ScanConfig{DeltaSoftplus: i>>5&1 == 1, Reverse: i>>6&1 == 1}}
		withState := i>>7 == 1
		t.Run(fmt.Sprintf("%v %+v groups %d %d state %t", with, p.cfg, p.bGroups, p.cGroups, withState), func(t *testing.T) {
			p.fill(uint64(i), with...).checkGradient(t, withState, 2)
		})
	}
}

func TestSelectiveScanGradientGroups(t *testing.T) {
	for bGroups := range 4 {
		for cGroups := range 4 {
			p := &scanProblem{batch: 2, length: 4, channels: 6, state: 3, bGroups: bGroups, cGroups: cGroups,
				cfg: ScanConfig{DeltaSoftplus: true, Reverse: bGroups > cGroups}}
			t.Run(fmt.Sprint(bGroups, cGroups), func(t *testing.T) {
				p.fill(uint64(bGroups), scanOptional...).checkGradient(t, true, 8)
			})
		}
	}
}

// Gradients at sizes around the kernels' block sizes: 16 lanes, 64 channels, 64 steps.
func TestSelectiveScanGradientSizes(t *testing.T) {
	for _, size := range []struct{ batch, length, channels, state int }{
		{1, 1, 1, 1}, {3, 1, 2, 17}, {1, 2, 15, 1}, {2, 3, 16, 17}, {1, 2, 17, 2}, {1, 2, 65, 3}, {9, 2, 130, 1},
		{1, 63, 1, 2}, {1, 64, 17, 1}, {2, 65, 2, 17}, {1, 130, 3, 2}, {1, 2, 1, 256},
	} {
		for _, reverse := range []bool{false, true} {
			p := &scanProblem{batch: size.batch, length: size.length, channels: size.channels, state: size.state,
				bGroups: 1, cGroups: 1, cfg: ScanConfig{DeltaSoftplus: true, Reverse: reverse}}
			t.Run(fmt.Sprintf("%+v reverse %t", size, reverse), func(t *testing.T) {
				p.fill(uint64(size.length), scanOptional...).checkGradient(t, true, 3)
			})
		}
	}
}

func TestSelectiveScanGradientRandom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		drawScan(t, 9).checkGradient(t, rapid.Bool().Draw(t, "final state"), 2)
	})
}
