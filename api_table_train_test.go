package mamba_test

import (
	"context"
	"errors"
	"fmt"
	"image/color"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	mblas "github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/grad"
	"github.com/gomamba/mamba/layer"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/report"
	"github.com/gomamba/mamba/tokens"
	"github.com/gomamba/mamba/train"
	"github.com/gomamba/mamba/vision"
)

func small() *nn.LM {
	return nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 4, NLayer: 1, DState: 2}, Vocab: 5})
}

func linear() *layer.Linear {
	return layer.NewLinear(layer.LinearConfig{In: 3, Out: 4}, layer.WithName("in_proj"))
}

// must returns what a call that cannot fail has returned.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func trainCalls(dir string) []call {
	docs := []train.Document{{Tokens: []int{1, 2, 3, 4}, Prompt: 1}, {Tokens: []int{2, 3, 4}}}
	curve := &train.Curve{Training: []train.Point{{Step: 1, Loss: 2}}, HeldOut: []train.Point{{Step: 1, Loss: 2}}}
	run := filepath.Join(dir, "run")
	cfg := train.Config{
		Batch: 1, Length: 3, Steps: 1, Accumulate: 1, Data: docs, HeldOut: docs, AdamW: train.AdamWConfig{LearnRate: 0.1, Clip: 1},
		EvalEvery: 1, SaveEvery: 1, Settings: map[string]string{"a": "b"}, Report: func(*train.Curve) {}, Options: []nn.CallOption{nn.WithRecompute(nn.RecomputeAll)},
	}
	trainer := func(file string) func() any {
		c := cfg
		c.File = file
		return func() any { return must(train.New(small(), c)) }
	}
	// The methods of a trainer that is not closed hold the lock of its file; so each has its own.
	saved := func() string {
		t := must(train.New(small(), func() train.Config { c := cfg; c.File = run; return c }()))
		if _, err := os.Stat(run); err != nil {
			check(t.Save())
		}
		check(t.Close())
		return run
	}
	file := 0
	anew := func() any { file++; return trainer(filepath.Join(dir, fmt.Sprint("run", file)))() }
	model := func(l *layer.Linear) []G.ValueGrad {
		g := G.NewGraph()
		x := G.NewTensor(g, tensor.Float32, 3, G.WithShape(1, 2, 3), G.WithName("x"), G.WithInit(G.Ones()))
		y := must(G.Sum(must(l.Apply(x))))
		nodes := l.Params().Nodes(g)
		must(G.Grad(y, nodes...))
		vm := G.NewTapeMachine(g, G.BindDualValues(nodes...))
		check(vm.RunAll())
		return G.NodesToValueGrads(nodes)
	}
	adamW := train.AdamWConfig{LearnRate: 0.1, Beta1: 0.9, Beta2: 0.99, Eps: 1e-8, Decay: 0.1, Clip: 1, Schedule: func(int) float64 { return 1 }}
	the := linear()
	solver := func(l *layer.Linear) *train.AdamW { return must(train.NewAdamW(l.Params(), adamW)) }
	lora := func() layer.Params {
		p := linear().Params()
		must(p.AddLoRA(layer.LoRAConfig{Rank: 2, Alpha: 1, Targets: []string{"in_proj"}}))
		return p
	}
	packer := func() any { return must(train.NewPacker(docs, 1, 3, 1)) }
	batch := func() train.Batch {
		return must(train.NewTokenBatch(3, []int{1, 2, 3}, []int{2, 3, 4}, []int{1, 0, 0}))
	}
	// Of source, Next and Go are called on a source that stands at its beginning.
	numbered := func(f func(int) (train.Batch, error)) error { return next(train.NewSource(f)) }
	shuffled := func(examples, size int, seed uint64, f func([]int) (train.Batch, error)) error {
		s, err := train.NewShuffled(examples, size, seed, f)
		if err != nil {
			return err
		}
		return next(s)
	}
	problem := func() train.Problem {
		lm := small()
		return train.Problem{Params: lm.Params(), Loss: train.LMLoss(lm), HeldOut: []train.Batch{batch()},
			Data: train.NewSource(func(int) (train.Batch, error) { return batch(), nil })}
	}
	trace := new(train.Trace)
	traced := must(train.New(small(), func() train.Config { c := cfg; c.Trace = trace; return c }()))
	check(traced.Run(context.Background()))
	check(traced.Close())
	of := func() any { return new(train.Call) }
	noPrompt := []string{"0[0].Prompt=0", "0[0]=zero: the other document is left", "0[0].Tokens[0]=*: the trainer knows the vocabulary"}
	return slices.Concat(
		methods("train.Trainer", anew, map[string]call{
			"Run":      {args: func() []any { return []any{context.Background()} }},
			"Evaluate": {args: func() []any { return []any{must(train.Pack(docs, 1, 3))} }, fine: []string{"1[0].Weight=0: the other batch is left"}},
			"Measure":  {args: func() []any { return []any{must(train.Pack(docs, 1, 3))} }, fine: []string{"1[0].Weight=0: the other batch is left"}},
		}),
		methods("train.Packer", packer, map[string]call{"Skip": {args: with(1), fine: []string{"1=0"}}, "Go": {args: func() []any { return []any{train.Position{Row: 1}} }, fine: []string{"1=zero", "1.Row=0", "1.Epoch=0", "1.Epoch=1*", "1.Epoch=4*"}}}),
		methods("train.Call", of, map[string]call{"Input": {args: with("ids")}, "Metric": {args: with("m", (*G.Node)(nil))}}),
		methods("train.Curve", func() any { return curve }, map[string]call{"Mean": {args: with(1)}}),
		methods("train.Trace", func() any { return trace }, map[string]call{"WriteJSON": {args: func() []any { return []any{io.Discard} }, fine: []string{"0=*: nothing is recorded"}}}),
		methods("train.AdamW", func() any { return solver(the) }, map[string]call{
			"LearnRate": {args: with(1)}, "SetSteps": {args: with(1)}, "Step": {args: func() []any { return []any{model(the)} }, fine: []string{"1=nil: no weight changes"}},
			"Queue": {args: func() []any { return []any{model(the)} }, fine: []string{"1=nil: no weight changes"}},
		}),
		[]call{
			{name: "train.New", f: func(lm *nn.LM, c train.Config) error {
				t, err := train.New(lm, c)
				if err != nil {
					return err
				}
				return t.Close()
			}, args: func() []any { c := cfg; c.File = filepath.Join(dir, "new"); return []any{small(), c} }, fine: []string{
				"1.Steps=1*", "1.Steps=4*", "1.Accumulate=0", "1.Data[0].Prompt=0", "1.Data[0]=zero", "1.HeldOut=nil", "1.HeldOut[0]*", "1.Data[0].Tokens[0]=0",
				"1.AdamW.*=0", "1.AdamW.Schedule=nil", "1.EvalEvery=*", "1.SaveEvery=*", `1.File=*: the error is that of the first save`, "1.Settings=nil", "1.Report=nil", "1.Trace=*", "1.Options=nil", "1.Group=*: a group of one",
			}},
			{name: "train.NewTrainer", f: func(p train.Problem, c train.RunConfig) error {
				t, err := train.NewTrainer(p, c)
				if err != nil {
					return err
				}
				return t.Close()
			}, args: func() []any {
				return []any{problem(), train.RunConfig{Steps: 1, Accumulate: 1, AdamW: cfg.AdamW, EvalEvery: 1, SaveEvery: 1,
					File: filepath.Join(dir, "problem"), Settings: cfg.Settings, Report: cfg.Report}}
			}, fine: []string{
				"0.HeldOut=nil", "0.HeldOut[0].Weight=0",
				"1.Steps=1*", "1.Steps=4*", "1.Accumulate=0", "1.AdamW.*=0", "1.AdamW.Schedule=nil", "1.EvalEvery=*", "1.SaveEvery=*", "1.File=*: the error is that of the first save", "1.Settings=nil", "1.Report=nil", "1.Trace=*", "1.Group=*: a group of one",
			}},
			{name: "train.LMLoss", f: func(lm *nn.LM, o ...nn.CallOption) error {
				p := problem()
				if p.Loss = train.LMLoss(lm, o...); lm != nil {
					p.Params = lm.Params()
				}
				_, err := train.NewTrainer(p, train.RunConfig{Steps: 1, AdamW: cfg.AdamW})
				return err
			}, args: func() []any { return []any{small()} }},
			{name: "train.NewTokenBatch", f: train.NewTokenBatch, args: with(3, []int{1, 2, 3}, []int{2, 3, 4}, []int{1, 0, 0}), fine: []string{
				"1[0]=*: the graph checks the tokens", "2[0]=*: the graph checks the tokens", "3[0]=*: the graph checks the marks", "3=nil"}},
			{name: "train.NewSource", f: numbered, args: func() []any { return []any{func(int) (train.Batch, error) { return batch(), nil }} }},
			{name: "train.NewShuffled", f: shuffled, args: func() []any { return []any{2, 1, uint64(1), func([]int) (train.Batch, error) { return batch(), nil }} }},
			{name: "train.NewAdamW", f: train.NewAdamW, args: func() []any { return []any{linear().Params(), adamW} }, fine: []string{
				"0=nil", "1.Beta1=0", "1.Beta2=0", "1.Eps=0", "1.Decay=0", "1.Clip=0", "1.Schedule=nil"}},
			{name: "train.NewPacker", f: train.NewPacker, args: func() []any { return []any{docs, 1, 3, uint64(1)} }, fine: noPrompt},
			{name: "train.Pack", f: train.Pack, args: func() []any { return []any{docs, 1, 3} }, fine: noPrompt},
			{name: "train.WarmupCosine", f: func(warmup, steps int, floor float64) error {
				c := adamW
				c.Schedule = train.WarmupCosine(warmup, steps, floor)
				l := linear()
				return must(train.NewAdamW(l.Params(), c)).Step(model(l))
			}, args: with(2, 3, 0.1), fine: []string{"0=*", "1=*", "2=0"}},
			{name: "train.Saved", f: func(file string) error { _, _, err := train.Saved(file); return err }, args: func() []any { return []any{saved()} }},
			{name: "train.SaveLoRA", f: train.SaveLoRA, args: func() []any { return []any{filepath.Join(dir, "lora"), "base", lora()} }, fine: []string{"1=*"}},
			{name: "train.LoadLoRA", f: train.LoadLoRA, args: func() []any {
				check(train.SaveLoRA(filepath.Join(dir, "adapter"), "base", lora()))
				return []any{filepath.Join(dir, "adapter"), linear().Params()}
			}},
		})
}

// next returns the error of the next batch of a source, and of going back.
func next(s train.Source) error {
	at := s.Position()
	_, err := s.Next()
	return errors.Join(err, s.Go(at))
}

func checkpointCalls(dir string) []call {
	of := func(name string) string { return filepath.Join(dir, name) }
	check(checkpoint.Save(of("lm"), small()))
	check(checkpoint.SaveParams(of("params"), linear().Params(), map[string]string{"a": "b"}))
	check(os.WriteFile(of("released.pth"), must(os.ReadFile(filepath.Join("checkpoint", "testdata", "released.pth"))), 0o666))
	smallVision := func() vision.Model {
		return vision.NewVMamba(vision.VMambaConfig{Classes: 3, Depths: []int{1}, Dims: []int{4}})
	}
	check(checkpoint.SaveVision(of("vision"), smallVision()))
	open := func(name string) func() any { return func() any { return must(checkpoint.Open(of(name))) } }
	return append(
		methods("checkpoint.Reader", open("lm"), map[string]call{
			"Close":      {fine: []string{"0=zero: it is closed"}},
			"LoadInto":   {args: func() []any { return []any{small(), ""} }, fine: []string{`2=""`}},
			"LoadParams": {args: func() []any { return []any{small().Params(), ""} }, fine: []string{`2=""`, "1=nil: nothing is missing"}},
		}),
		call{name: "checkpoint.Open", f: checkpoint.Open, args: with(of("lm"))},
		call{name: "checkpoint.OpenFile", f: checkpoint.OpenFile, args: with(of("released.pth"), "model"), fine: []string{`1=""`}},
		call{name: "checkpoint.LoadVision", f: checkpoint.LoadVision, args: func() []any { return []any{of("vision"), checkpoint.VisionConfig{Classes: 4, DropPath: 0.1}} },
			fine: []string{"1=zero", `1.From=""`, "1.Model=nil", "1.Classes=0", "1.Height=0", "1.Width=0", "1.DropPath=0"}},
		call{name: "checkpoint.SaveVision", f: checkpoint.SaveVision, args: func() []any { return []any{of("savedvision"), smallVision()} }},
		call{name: "checkpoint.Load", f: checkpoint.Load, args: with(of("lm"))},
		call{name: "checkpoint.Weights", f: func(dir, types string) (*nn.LM, error) { return checkpoint.Load(dir, checkpoint.Weights(types)) }, args: with(of("lm"), "int8")},
		call{name: "checkpoint.Save", f: checkpoint.Save, args: func() []any { return []any{of("saved"), small()} }},
		call{name: "checkpoint.SaveParams", f: checkpoint.SaveParams, args: func() []any { return []any{of("savedparams"), linear().Params(), map[string]string{"a": "b"}} }, fine: []string{"2=nil"}},
	)
}

func reportCalls(dir string) []call {
	curve := func() *train.Curve {
		return &train.Curve{Training: []train.Point{{Step: 1, Loss: 2}, {Step: 2, Loss: 1}}, HeldOut: []train.Point{{Step: 1, Loss: 2}}}
	}
	panel := report.Panel{X: "x", Y: "y", Lines: []report.Line{{Name: "a", X: []float64{1, 2}, Y: []float64{3, 4}, Color: color.Black}}, Levels: []report.Level{{Name: "l", Value: 3}}}
	progress := func() any {
		return &report.Progress{Out: io.Discard, Steps: 10, Tokens: 3, Summary: func(*train.Curve, int) string { return "summary" }, Rate: func(float64) string { return "rate" }}
	}
	return append(append(
		methods("report.Progress", progress, map[string]call{"Start": {args: with(1)}, "Update": {args: func() []any { return []any{curve()} }}}),
		methods("report.Loss", func() any { return report.Loss{Label: "loss", Scale: 2, Levels: panel.Levels} }, map[string]call{"Panel": {args: func() []any { return []any{curve()} }}})...),
		call{name: "report.Color", f: report.Color, args: with(1)},
		call{name: "report.WritePNG", f: report.WritePNG, args: func() []any { return []any{filepath.Join(dir, "picture.png"), panel} }, fine: []string{
			"1[0].X=*", "1[0].Y=*", `1[0].Lines[0].Name=""`, "1[0].Lines[0].X[0]=0", "1[0].Lines[0].X[0]=-1", "1[0].Lines[0].Y[0]=0", "1[0].Lines[0].Y[0]=-1",
			"1[0].Lines[0].Color=nil", "1[0].Levels=nil", `1[0].Levels[0].Name=""`, `1[0].*Name="\x00"`, "1[0].Levels[0].Value=0", "1[0].Levels[0].Value=-1", "1[0].Levels[0]=zero",
		}},
	)
}

func tokensCalls(t *testing.T, dir string) []call {
	t.Setenv("HF_HUB_CACHE", filepath.Join(dir, "hub"))
	t.Setenv("HF_ENDPOINT", "http://127.0.0.1:1") // nothing answers there
	check(os.Mkdir(filepath.Join(dir, "bytes"), 0o777))
	return append(append(
		methods("tokens.Tokenizer", func() any { return tokens.Bytes() }, map[string]call{
			"Encode": {args: with("text"), fine: []string{"0=zero", "1=*"}}, "Decode": {args: with([]int{65}), fine: []string{"0=zero", "1[0]=0", "1=nil"}},
			"Piece": {args: with(65), fine: []string{"0=zero", "1=0"}},
		}),
		methods("tokens.Stream", func() any { return tokens.Bytes().NewStream() }, map[string]call{"Decode": {args: with(65), fine: []string{"1=0"}}})...),
		call{name: "tokens.Bytes", f: tokens.Bytes},
		call{name: "tokens.IsRepository", f: tokens.IsRepository, args: with("a/b")},
		call{name: "tokens.Open", f: tokens.Open, args: with(filepath.Join(dir, "bytes"), 256)},
		call{name: "tokens.Download", f: tokens.Download, args: func() []any {
			return []any{context.Background(), "owner/name", tokens.DownloadConfig{CacheDir: filepath.Join(dir, "cache"), Progress: func(tokens.Progress) {}}}
		}, broken: true},
	)
}

// recorder is a test that MustCheck is called with.
type recorder struct{ err error }

func (r *recorder) Helper()                           {}
func (r *recorder) Fatalf(format string, args ...any) { r.err = fmt.Errorf(format, args...) }

func gradCalls() []call {
	square := func(in G.Nodes) (*G.Node, error) { return G.HadamardProd(in[0], in[0]) }
	inputs := func() []grad.Input {
		return []grad.Input{{Name: "x", Value: tensor.New(tensor.WithBacking([]float64{1, 2}))}}
	}
	checking := func(o ...grad.Option) error { _, err := grad.Check(grad.Single(square), inputs(), o...); return err }
	element := grad.Element{Machine: grad.Tape, Input: "x", Index: []int{1}, Gradient: 1, Numeric: 2}
	inputFine := []string{"*[0].Name=*", "*[0].Node=nil"}
	return append(append(append(
		methods("grad.Element", func() any { return element }, nil),
		methods("grad.Machine", func() any { return grad.Tape }, nil)...),
		methods("grad.Report", func() any { return grad.Report{Elements: 2, Worst: []grad.Element{element}} }, nil)...),
		call{name: "grad.Check", f: grad.Check, args: func() []any { return []any{grad.Single(square), inputs()} }, fine: inputFine},
		call{name: "grad.MustCheck", f: func(t grad.TB, f grad.Func, in []grad.Input) error {
			grad.MustCheck(t, f, in)
			r, ok := t.(*recorder)
			if !ok {
				return errors.New("no recorder")
			}
			return r.err
		}, args: func() []any { return []any{new(recorder), grad.Single(square), inputs()} }, fine: append(inputFine, "0=zero"), panics: []string{"0=nil*: the test is what would say so"}},
		call{name: "grad.Single", f: func(f func(G.Nodes) (*G.Node, error)) error {
			_, err := grad.Check(grad.Single(f), inputs())
			return err
		}, args: func() []any { return []any{square} }},
		call{name: "grad.Machines", f: func(m ...grad.Machine) error { return checking(grad.Machines(m...)) }, args: with(grad.Tape, grad.Lisp), fine: []string{"0[0]=0"}},
		call{name: "grad.Sample", f: func(n int) error { return checking(grad.Sample(n, 1)) }, args: with(1), fine: []string{"0=1*", "0=4*"}},
		call{name: "grad.Step", f: func(h float64) error { return checking(grad.Step(h)) }, args: with(1e-3)},
		call{name: "grad.Tolerance", f: func(rel, abs float64) error { return checking(grad.Tolerance(rel, abs)) }, args: with(1e-6, 1e-8), fine: []string{"0=0", "1=0"}},
	)
}

func blasCalls() []call {
	v := func(n int) []float32 { return make([]float32, n) }
	gonums := []string{"*=*: as gonum's BLAS does, which has no errors"}
	kernels := []string{"*=*: the innermost loops, as of gonum's BLAS, have no errors"}
	weights := func() any {
		w, err := mblas.Quantize(mblas.Q8_0, 2, 32, v(64))
		if err != nil {
			panic(err)
		}
		return w
	}
	prepared := func() mblas.Prepared {
		w := weights().(*mblas.Weights)
		return w.Prepare(v(32), 32, 1, v(w.Scratch(1)))
	}
	return slices.Concat(methods("blas.Weights", weights, map[string]call{
		"Hold":       {args: with(1)},
		"Row":        {args: func() []any { return []any{1, v(32)} }, panics: kernels},
		"RowBytes":   {args: with(1), panics: kernels},
		"Scratch":    {args: with(1)},
		"Prepare":    {args: func() []any { return []any{v(32), 32, 1, v(weights().(*mblas.Weights).Scratch(1))} }, panics: kernels},
		"Fetch":      {args: func() []any { return []any{0, 2, 0} }, panics: kernels},
		"FetchParts": {args: with(2)},
		"MulRange":   {args: func() []any { return []any{v(2), 2, prepared(), 0, 2, true} }, panics: kernels},
		"Mul":        {args: func() []any { return []any{v(2), 2, v(32), 32, 1, true} }, panics: kernels},
	}), methods("blas.Prepared", func() any { return prepared() }, nil), methods("blas.Type", func() any { return mblas.Q8_0 }, nil), []call{
		{name: "blas.NewWeights", f: mblas.NewWeights, args: func() []any { return []any{mblas.Float32, 1, 4, make([]byte, 16)} }},
		{name: "blas.WeightsOf", f: mblas.WeightsOf, args: func() []any { return []any{1, 4, v(4)} }, fine: []string{"2[0]=*"}},
		{name: "blas.QuantizeRows", f: mblas.QuantizeRows, args: func() []any {
			return []any{mblas.Float32, 1, 4, 1, func(int) ([]float32, error) { return v(4), nil }}
		}, fine: []string{"3=*"}},
		{name: "blas.Quantize", f: mblas.Quantize, args: func() []any { return []any{mblas.Float32, 1, 4, v(4)} }, fine: []string{"3[0]=*"}},
		{name: "blas.Implementation.Sgemm", f: mblas.Implementation.Sgemm, args: func() []any {
			return []any{mblas.Implementation{}, blas.NoTrans, blas.Trans, 2, 3, 4, float32(1), v(8), 4, v(12), 4, float32(1), v(6), 3}
		}, panics: gonums},
		{name: "blas.Implementation.Sgemv", f: mblas.Implementation.Sgemv, args: func() []any {
			return []any{mblas.Implementation{}, blas.NoTrans, 2, 3, float32(1), v(6), 3, v(3), 1, float32(math.Pi), v(2), 1}
		}, panics: gonums},
	})
}
