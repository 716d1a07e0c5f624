// Classify trains a VMamba or a Vim to tell classes of images apart.
//
//	go run ./examples/classify                                     # images of four patterns, which it makes
//	go run ./examples/classify -data DIR -model vim                # a folder of images for each class
//	go run ./examples/classify -data DIR -model vssm_tiny.pth      # a released model, tuned
//	go run ./examples/classify -predict a.jpg b.jpg                # the classes of other images
//	go run ./examples/classify -h                                  # all flags
//
// A share of each class is held out. The program prints its top-1 accuracy, and draws the confusion matrix. The model, the loss curve, metrics.json and
// the state for -resume are in the directory that -out names.
//
// A run can be stopped, by Ctrl-C or by a kill at any moment. With -resume it continues and ends with the same weights, bit for bit.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/checkpoint"
	"github.com/gomamba/mamba/examples/internal/loop"
	"github.com/gomamba/mamba/examples/internal/options"
	"github.com/gomamba/mamba/images"
	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
	"github.com/gomamba/mamba/report"
	"github.com/gomamba/mamba/train"
	"github.com/gomamba/mamba/vision"
)

func main() { loop.Main(run) }

// run runs the program and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	set, err := parse(args, stdout)
	switch {
	case err != nil:
	case len(set.predict) > 0:
		err = predict(ctx, set, stdout)
	default:
		err = work(ctx, set, stdout)
	}
	return loop.Exit("classify", err, stdout, stderr)
}

// work trains, in the order of the output.
func work(ctx context.Context, set settings, out io.Writer) (err error) {
	lock, err := loop.Lock(set.out, "", "classify")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	file := filepath.Join(set.out, "train.safetensors")
	if !set.resume {
		if _, err := loop.Unfinished(set.out, file); err != nil {
			return err
		}
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return options.OutDirError(set.out, err)
		}
	}
	opts, device, closeDevice, err := set.device.Open()
	if err != nil {
		return err
	}
	defer closeDevice()
	if device != "" {
		fmt.Fprintf(out, "device      %s\n", device)
	}
	d, err := read(set)
	if err != nil {
		return err
	}
	m, err := model(&set, len(d.classes), append(slices.Clone(opts), nn.WithSeed(uint64(set.seed))))
	if err != nil {
		return err
	}
	d.train.side, d.heldOut.side = set.size, set.size // the model may say the size of the images
	start := set.model
	if !set.fresh() {
		start = loop.Fingerprint(m.Params())
	}
	fmt.Fprintf(out, "data        %s: images: %d, held out: %d, classes: %d\n", d.name, d.train.Len()+d.heldOut.Len(), d.heldOut.Len(), len(d.classes))
	fmt.Fprintf(out, "model       %s: parameters: %d\n", set.model, m.Params().Count())
	fmt.Fprintf(out, "            steps: %d, images: %d x %d x %d, learn rate: %v\n", set.steps, set.batch, set.size, set.size, set.lr)
	batch, err := set.batches(d.train, true, set.batch)
	if err != nil {
		return err
	}
	plain, err := set.batches(d.heldOut, false, set.batch)
	if err != nil {
		return err
	}
	var heldOut []train.Batch
	for i := range max(min(d.heldOut.Len()/set.batch, 16), 1) {
		b, err := plain(i)
		if err != nil {
			return err
		}
		heldOut = append(heldOut, b)
	}
	show := &report.Progress{Out: out, Steps: set.steps, Tokens: set.batch, Rate: func(perSecond float64) string { return fmt.Sprintf("%.3g images/s", perSecond) }}
	t, err := train.NewTrainer(train.Problem{Params: m.Params(), Data: train.NewSource(batch), HeldOut: heldOut, Loss: func(c *train.Call) (*G.Node, error) {
		var opts []nn.CallOption
		if c.Training {
			opts = append(opts, nn.WithTraining(c.Step()))
		}
		logits, err := m.Apply(c.Input("image"), opts...)
		if err != nil {
			return nil, err
		}
		return op.CrossEntropy(logits, c.Input("class"), -1)
	}}, train.RunConfig{
		Steps: set.steps,
		AdamW: train.AdamWConfig{LearnRate: set.lr, Decay: set.decay, Clip: 1, Schedule: train.WarmupCosine(set.warmup, set.steps, 0.01)},
		File:  file, SaveEvery: set.save, EvalEvery: set.eval, Settings: set.saved(d.sum, start), Report: show.Update,
	})
	if err != nil {
		return err
	}
	defer t.Close()
	if err := loop.Run(ctx, t, show, set.resume, out); err != nil {
		return err
	}
	return finish(ctx, set, d, m, t.Curve(), out)
}

// model returns the model to train, and fills in the defaults that depend on it.
func model(set *settings, classes int, opts []nn.Option) (vision.Model, error) {
	switch set.model {
	case "vmamba":
		set.complete(0)
		m := vision.NewVMamba(vision.VMambaConfig{Classes: classes, Dims: []int{24}, Depths: []int{1, 1, 2}, DropPath: set.droppath}, opts...)
		return m, m.Err()
	case "vim":
		set.complete(0)
		m := vision.NewVim(vision.VimConfig{Classes: classes, Height: set.size, Patch: max(set.size/8, 1), Dim: 64, Depth: 4, State: 8, DropPath: set.droppath}, opts...)
		return m, m.Err()
	}
	return load(set, checkpoint.VisionConfig{Classes: classes, DropPath: set.droppath}, opts)
}

// load loads a classifier for images of the size that -size asks for.
func load(set *settings, cfg checkpoint.VisionConfig, opts []nn.Option) (vision.Model, error) {
	m, err := checkpoint.LoadVision(set.model, cfg, opts...)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("-model is %q, should be vmamba, vim, or a released file or a directory of one of them: %w", set.model, err)
	}
	if err != nil {
		return nil, err
	}
	switch m := m.(type) {
	case *vision.Vim: // its position embedding is for one size
		c := m.Config()
		if cfg.Height == 0 && set.size != 0 && (set.size != c.Height || set.size != c.Width) {
			cfg.Height, cfg.Width = set.size, set.size
			return load(set, cfg, opts)
		}
		if c.Height != c.Width {
			return nil, fmt.Errorf("-model is %q, a Vim for images of %d by %d: name the -size of square ones", set.model, c.Height, c.Width)
		}
		set.complete(c.Height)
		return m, nil
	case *vision.VMamba:
		about, _ := described(set.model) // of a released model there is none
		set.complete(about.Size)
		return m, nil
	}
	return nil, fmt.Errorf("-model is %q, a %T: should be a classifier, a VMamba or a Vim", set.model, m)
}

// description is classify.json, which -predict reads.
type description struct {
	Classes []string `json:"classes"`
	Size    int      `json:"size"`
}

// described reads the description in a directory.
func described(dir string) (about description, err error) {
	text, err := tensorfile.ReadFile(filepath.Join(dir, "classify.json"), 1<<24)
	if err == nil {
		err = json.Unmarshal(text, &about)
	}
	if err == nil && (len(about.Classes) < 2 || about.Size < 8 || about.Size > 1<<14) {
		err = fmt.Errorf("classify.json has %d classes and the size %d", len(about.Classes), about.Size)
	}
	if err != nil {
		return description{}, err
	}
	return about, nil
}

// metrics is metrics.json.
type metrics struct {
	Parameters int      `json:"parameters"`
	Steps      int      `json:"steps"`
	LearnRate  float64  `json:"learn_rate"`
	HeldOut    int      `json:"held_out"`
	Top1       float64  `json:"top1"`
	Classes    []string `json:"classes"`
	Confusion  [][]int  `json:"confusion"` // rows are true classes, columns predicted ones
}

// finish writes the model and the pictures, and prints the accuracy.
func finish(ctx context.Context, set settings, d *dataset, m vision.Model, curve *train.Curve, out io.Writer) error {
	if err := checkpoint.SaveVision(set.out, m); err != nil {
		return err
	}
	p, err := newPredictor(m, set.size)
	if err != nil {
		return err
	}
	defer p.Close()
	c, err := vision.NewConfusion(len(d.classes))
	if err != nil {
		return err
	}
	for i := range d.heldOut.Len() {
		if err := ctx.Err(); err != nil {
			return err
		}
		s, err := d.heldOut.Load(i)
		if err != nil {
			return err
		}
		logits, err := p.logits(s.Image)
		if err != nil {
			return err
		}
		best, err := vision.Labels(logits, len(logits))
		if err == nil {
			err = c.Add(best, []int{s.Class}, -1)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	result := metrics{m.Params().Count(), set.steps, set.lr, d.heldOut.Len(), c.Accuracy(), d.classes, nil}
	for i := range d.classes {
		row := make([]int, len(d.classes))
		for k := range row {
			row[k] = c.Count(i, k)
		}
		result.Confusion = append(result.Confusion, row)
	}
	var failed []error // a picture that fails loses nothing else
	for _, f := range []struct {
		name  string
		write func(path string) error
	}{
		{"classify.json", func(path string) error { return writeJSON(path, description{d.classes, set.size}) }},
		{"metrics.json", func(path string) error { return writeJSON(path, result) }},
		{"loss.png", func(path string) error {
			return report.WritePNG(path, report.Loss{Label: "cross-entropy, nats"}.Panel(curve))
		}},
		{"confusion.png", func(path string) error { return drawConfusion(path, d.classes, result.Confusion) }},
	} {
		if err := f.write(filepath.Join(set.out, f.name)); err != nil {
			failed = append(failed, options.OutDirError(set.out, err))
		}
	}
	fmt.Fprintf(out, "\nmodel       %s\ncurve       %s\nconfusion   %s\n", set.out, filepath.Join(set.out, "loss.png"), filepath.Join(set.out, "confusion.png"))
	fmt.Fprintf(out, "top-1       %.4f of %d images held out\n", c.Accuracy(), d.heldOut.Len())
	return errors.Join(failed...)
}

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return err
	}
	return tensorfile.Replace(path, func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	})
}

// predictor computes the logits of one image.
type predictor struct {
	input *G.Node
	y     G.Value
	vm    G.VM
}

func newPredictor(m vision.Model, side int) (*predictor, error) {
	p, g := &predictor{}, G.NewGraph()
	p.input = G.NewTensor(g, m.Params()[0].Value.Dtype(), 4, G.WithShape(1, side, side, 3), G.WithName("image"))
	y, err := m.Apply(p.input)
	if err != nil {
		return nil, err
	}
	G.Read(y, &p.y)
	op.FreeAfterUse(g)
	p.vm = G.NewTapeMachine(g)
	return p, nil
}

func (p *predictor) Close() error { return p.vm.Close() }

func (p *predictor) logits(im *images.Image) ([]float32, error) {
	if err := G.Let(p.input, denseOf(im)); err != nil {
		return nil, err
	}
	p.vm.Reset()
	if err := p.vm.RunAll(); err != nil {
		return nil, err
	}
	return slices.Clone(p.y.Data().([]float32)), nil
}

// predict prints the classes of the files of -predict.
func predict(ctx context.Context, set settings, out io.Writer) error {
	about, err := described(set.model)
	if err != nil {
		return fmt.Errorf("-model is %q, should be a directory that this program wrote: %w", set.model, err)
	}
	opts, _, closeDevice, err := set.device.Open()
	if err != nil {
		return err
	}
	defer closeDevice()
	set.size = about.Size
	m, err := load(&set, checkpoint.VisionConfig{}, opts)
	if err != nil {
		return err
	}
	p, err := newPredictor(m, about.Size)
	if err != nil {
		return err
	}
	defer p.Close()
	for _, file := range set.predict {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("stopped before %s", file)
		}
		im, err := images.Read(file)
		if err == nil {
			im, err = prepare(im, about.Size)
		}
		if err != nil {
			return fmt.Errorf("-predict: %s: %w", file, err)
		}
		logits, err := p.logits(im)
		if err != nil {
			return err
		}
		if len(logits) != len(about.Classes) {
			return fmt.Errorf("-model is %q, whose model has %d classes and classify.json %d", set.model, len(logits), len(about.Classes))
		}
		best, err := vision.Labels(logits, len(logits))
		if err != nil {
			return fmt.Errorf("-predict: %s: %w", file, err)
		}
		fmt.Fprintf(out, "%s: %s, probability %.3f\n", file, about.Classes[best[0]], probability(logits, best[0]))
	}
	return nil
}
