package mamba_test

import (
	"context"
	"errors"
	"slices"
	"time"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/nn"
)

// alone is an engine of one rank, or of any numbers that a caller can give it.
type alone struct{ Ranks, Own int }

func (a alone) Rank() int                                  { return a.Own }
func (a alone) Size() int                                  { return a.Ranks }
func (alone) Move(dist.Tag, []dist.Message) error          { return nil }
func (alone) Watch(time.Duration, func() (uint64, string)) {}
func (alone) Close() error                                 { return nil }

func init() {
	others = append(others, func(g *gpu) []call { return slices.Concat(distCalls(), devicesCalls(g)) })
}

// devicesCalls are the calls of a group of one with arrays on a GPU.
func devicesCalls(g *gpu) []call {
	group := must(dist.Join(context.Background()))
	devices := func() any {
		if g.t == nil {
			return new(dist.Devices)
		}
		return must(group.Devices(g.device))
	}
	on := func(n int, more ...any) func() []any {
		return func() []any {
			args := []any{devices()}
			for range n {
				args = append(args, g.floats(4))
			}
			return append(args, more...)
		}
	}
	return g.without(slices.Concat(
		methods("dist.Devices", devices, map[string]call{"Together": {args: with(func() error { return nil })}}),
		[]call{
			{name: "dist.Group.Devices", f: (*dist.Group).Devices, args: func() []any { return []any{group, g.device} }, fine: []string{"0=nil: a group of one", "0=zero: the same"}},
			{name: "dist.AllReduceOn", f: dist.AllReduceOn[float32], args: on(1)},
			{name: "dist.ReduceScatterOn", f: dist.ReduceScatterOn[float32], args: on(2)},
			{name: "dist.AllGatherOn", f: dist.AllGatherOn[float32], args: on(2)},
			{name: "dist.BroadcastOn", f: dist.BroadcastOn[float32], args: on(1, 0), fine: []string{"2=0"}},
			{name: "dist.SendOn", f: dist.SendOn[float32], args: on(1, 1), broken: true},
			{name: "dist.ReceiveOn", f: dist.ReceiveOn[float32], args: on(1, 1), broken: true},
		},
	))
}

// distCalls are the calls of package dist for a group of one, which needs no launcher. Without a group there is one process.
func distCalls() []call {
	group := func() any { return must(dist.Join(context.Background())) }
	option := func(o dist.Option) error { _, err := dist.Join(context.Background(), o); return err }
	none := []string{"0=nil: a group of one", "0=zero: the same"}
	and := func(more ...string) []string { return append(more, none...) }
	numbers := func(more ...any) func() []any {
		return func() []any {
			return append(append([]any{group()}, slices.Repeat([]any{[]float32{1, 2}}, 2-len(more))...), more...)
		}
	}
	return slices.Concat(
		methods("dist.Group", group, map[string]call{
			"Barrier": {fine: none}, "Close": {fine: none},
			"Beside":      {args: with(true)},
			"GatherBytes": {args: with([]byte{1}), fine: and("1=*")},
			"Fail":        {args: with(errors.New("no data")), broken: true, fine: []string{"1=nil: nothing has failed"}},
			"Observe":     {args: with(func(string) func(bool) { return func(bool) {} })},
			"Watch":       {args: with(func() (uint64, string) { return 0, "" })},
		}),
		[]call{
			{name: "nn.WithSegments", f: func(g *dist.Group) (*G.Node, error) {
				return nn.NewMambaBlock(nn.Config{DModel: 4}).Apply(nodesOf(shape{2, 3, 4})()[0].(*G.Node), nn.WithSegments(g))
			}, args: func() []any { return []any{group()} }, fine: none},
			{name: "dist.Join", f: dist.Join, args: with(context.Background())},
			{name: "dist.New", f: dist.New, args: func() []any { return []any{alone{Ranks: 1}} }},
			{name: "dist.WithTimeout", f: func(d time.Duration) error { return option(dist.WithTimeout(d)) }, args: with(time.Minute), fine: []string{"0=0: none", "0=1099511627776: 18 minutes", "0=4611686018427387904: a century"}},
			{name: "dist.WithLocalRank", f: func(rank int) error { return option(dist.WithLocalRank(rank)) }, args: with(0), fine: []string{"0=0"}},
			{name: "dist.AllReduce", f: dist.AllReduce[float32], args: func() []any { return []any{group(), []float32{1, 2}} }, fine: and("1=*", "1[0]=*")},
			{name: "dist.ReduceScatter", f: dist.ReduceScatter[float32], args: numbers(), fine: and("1[0]=*", "2[0]=*")},
			{name: "dist.AllGather", f: dist.AllGather[float32], args: numbers(), fine: and("1[0]=*", "2[0]=*")},
			{name: "dist.Broadcast", f: dist.Broadcast[float32], args: numbers(0), fine: and("1=*", "1[0]=*", "2=0")},
			{name: "dist.Send", f: dist.Send[float32], args: numbers(1), broken: true},
			{name: "dist.Receive", f: dist.Receive[float32], args: numbers(1), broken: true},
		},
	)
}
