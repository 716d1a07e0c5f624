// Segment trains models that give each pixel of an image a class, and predicts masks.
//
//	go run ./examples/segment                                  # images like those of a microscope, which it makes
//	go run ./examples/segment -data DIR -device cuda           # images in DIR/image, their labels in DIR/label
//	go run ./examples/segment -model DIR -predict a.png b.png  # masks of other images
//	go run ./examples/segment -h                               # all flags
//
// It trains a vision.MambaUNet beside a plain convolutional U-Net of as many parameters, and prints Dice and intersection over union of each class, on
// images that are held out. Checkpoints, loss curves, pictures, metrics.json and the state for -resume are in the directory that -out names.
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
	"strings"

	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/examples/internal/loop"
	"github.com/gomamba/mamba/examples/internal/options"
	"github.com/gomamba/mamba/images"
	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/report"
	"github.com/gomamba/mamba/train"
	"github.com/gomamba/mamba/vision"
)

func main() { loop.Main(run) }

// run runs the program and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	set, err := parse(args, stdout)
	if err != nil {
		return loop.Exit("segment", err, stdout, stderr)
	}
	return loop.Work(ctx, "segment", set.distributed, stdout, stderr, func(group *dist.Group, out io.Writer) error {
		if len(set.predict) > 0 {
			return predict(ctx, set, out)
		}
		set.group = group
		return work(ctx, set, out)
	})
}

// work trains, in the order of the output.
func work(ctx context.Context, set settings, out io.Writer) (err error) {
	names, start, err := set.models()
	if err != nil {
		return err
	}
	if err := loop.SameResume(set.group, set.resume); err != nil {
		return err
	}
	if set.group.Rank() == 0 {
		lock, err := loop.Lock(set.out, "", "segment")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, lock.Release()) }()
		if err := clearStates(set, names); err != nil {
			return err
		}
	}
	if err := set.group.Barrier(); err != nil { // nobody begins in a folder that is in use
		return err
	}
	opts, device, closeDevice, err := set.device.OpenAt(set.group.GPU)
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
	set.complete(d)
	fmt.Fprintf(out, "data        %s: images: %d, held out: %d, classes: %v, channels: %d\n", d.name, d.train.Len()+d.heldOut.Len(), d.heldOut.Len(), d.classes, d.channels)
	whole := description{Axes: d.axes, Channels: d.channels, Width: set.width, Crop: set.crop, Classes: d.classes, Background: d.background, Prepare: d.prepare}
	descriptions, err := pair(whole, names)
	if err != nil {
		return err
	}
	var results []result
	for _, about := range descriptions {
		n, err := about.make(append(slices.Clone(opts), nn.WithSeed(uint64(set.seed))))
		if err == nil && start != "" {
			n, err = further(start, whole, opts)
		}
		if err != nil {
			return err
		}
		curve, err := n.train(ctx, set, d, out)
		if err != nil {
			return err
		}
		results = append(results, result{network: n, curve: curve})
	}
	if set.group.Rank() > 0 {
		return nil
	}
	for i := range results {
		if err := results[i].evaluate(ctx, set, d); err != nil {
			return err
		}
	}
	return finish(set, d, results, out)
}

// models returns the kinds of models to train, and the directory of a checkpoint to start from, or "".
func (set settings) models() (names []string, start string, err error) {
	switch {
	case set.model == "both":
		return kinds, "", nil
	case slices.Contains(kinds, set.model):
		return []string{set.model}, "", nil
	}
	n, err := load(set.model, nil)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("-model is %q, should be mambaunet, unet, both, or the directory of a checkpoint: %w", set.model, err)
	}
	if err != nil {
		return nil, "", err
	}
	return []string{n.Kind}, set.model, nil
}

// further loads a checkpoint to train further on data that a description describes.
func further(dir string, want description, opts []nn.Option) (*network, error) {
	n, err := load(dir, opts)
	if err != nil {
		return nil, err
	}
	if n.Axes != want.Axes || n.Channels != want.Channels || !slices.Equal(n.Classes, want.Classes) {
		return nil, fmt.Errorf("-model is %q, a model of %d axes, %d channels and the classes %v: should have those of the data, %d axes, %d channels and %v",
			dir, n.Axes, n.Channels, n.Classes, want.Axes, want.Channels, want.Classes)
	}
	n.Crop, n.Background, n.Prepare = want.Crop, want.Background, want.Prepare
	return n, nil
}

func folder(set settings, kind string) string { return filepath.Join(set.out, kind) }
func stateFile(set settings, kind string) string {
	return filepath.Join(folder(set, kind), "train.safetensors")
}

// clearStates removes the states of runs that have ended, unless they are to be resumed.
func clearStates(set settings, names []string) error {
	if set.resume {
		return nil
	}
	for _, name := range names {
		if _, err := loop.Unfinished(set.out, stateFile(set, name)); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := os.Remove(stateFile(set, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return options.OutDirError(set.out, err)
		}
	}
	return nil
}

// result is a trained model and what it makes of the images held out.
type result struct {
	*network
	names     []string // of the images held out
	predicted []*images.Labels
	confusion *vision.Confusion
	curve     *train.Curve
}

// train trains the model and saves it.
func (n *network) train(ctx context.Context, set settings, d *dataset, out io.Writer) (*train.Curve, error) {
	fmt.Fprintf(out, "\nmodel       %s: parameters: %d, width: %d\n", n.Kind, n.params.Count(), n.Width)
	fmt.Fprintf(out, "            steps: %d, patches: %d x %v, learn rate: %v\n", set.steps, set.batch, n.size(), set.lr)
	if err := os.MkdirAll(folder(set, n.Kind), 0o777); err != nil {
		return nil, options.OutDirError(set.out, err)
	}
	source, heldOut, err := d.batches(set)
	if err != nil {
		return nil, err
	}
	show := &report.Progress{
		Out: out, Steps: set.steps, Tokens: set.group.Size() * set.batch,
		Summary: func(c *train.Curve, last int) string {
			text := fmt.Sprintf("loss %.3f", c.Mean(last))
			if k := len(c.HeldOut); k > 0 {
				text += fmt.Sprintf("  held out %.3f", c.HeldOut[k-1].Loss)
			}
			return text
		},
		Rate: func(perSecond float64) string { return fmt.Sprintf("%.3g patches/s", perSecond) },
	}
	model := n.Kind
	if model != set.model && set.model != "both" { // a checkpoint to train further
		model += " " + loop.Fingerprint(n.params)
	}
	var trace *train.Trace
	if set.traced {
		trace = new(train.Trace)
	}
	t, err := train.NewTrainer(train.Problem{Params: n.params, Loss: n.loss, Data: source, HeldOut: heldOut}, train.RunConfig{
		Steps: set.steps,
		AdamW: train.AdamWConfig{LearnRate: set.lr, Decay: set.decay, Clip: set.clip, Schedule: train.WarmupCosine(set.warmup, set.steps, 0.01)},
		File:  stateFile(set, n.Kind), SaveEvery: set.save, EvalEvery: set.eval, Report: show.Update,
		Settings: set.saved(map[string]string{"-data": d.sum, "-model": model}),
		Group:    set.group, Trace: trace,
	})
	if err != nil {
		return nil, err
	}
	defer t.Close()
	err = loop.Run(ctx, t, show, set.resume, out)
	if err := errors.Join(err, loop.Trace(trace, filepath.Join(folder(set, n.Kind), "trace.json"), set.group, out)); err != nil {
		return nil, err
	}
	if set.group.Rank() > 0 {
		return t.Curve(), nil
	}
	return t.Curve(), n.save(folder(set, n.Kind))
}

// evaluate predicts the images held out.
func (r *result) evaluate(ctx context.Context, set settings, d *dataset) (err error) {
	if r.confusion, err = vision.NewConfusion(len(r.Classes)); err != nil {
		return err
	}
	p, err := r.predictor()
	if err != nil {
		return err
	}
	defer p.Close()
	for i := range d.original.Len() {
		if err := ctx.Err(); err != nil {
			return err
		}
		s, err := d.original.Load(i)
		if err != nil {
			return err
		}
		l, err := p.segment(ctx, s.Image, set)
		if err == nil {
			err = r.confusion.Add(integers(l), integers(s.Labels), -1)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		r.names, r.predicted = append(r.names, s.Name), append(r.predicted, l)
	}
	return nil
}

func integers(l *images.Labels) []int {
	all := make([]int, len(l.Values))
	for i, v := range l.Values {
		all[i] = int(v)
	}
	return all
}

// metrics is metrics.json.
type metrics struct {
	HeldOut []string       `json:"held_out"`
	Models  []modelMetrics `json:"models"`
}

type modelMetrics struct {
	Model      string         `json:"model"`
	Parameters int            `json:"parameters"`
	Steps      int            `json:"steps"`
	LearnRate  float64        `json:"learn_rate"`
	Seed       int            `json:"seed"`
	Accuracy   float64        `json:"accuracy"`
	Classes    []classMetrics `json:"classes"`
}

// classMetrics are those of a class. Dice and IoU are null where the class is neither predicted nor true.
type classMetrics struct {
	Label int32    `json:"label"`
	Dice  *float64 `json:"dice"`
	IoU   *float64 `json:"iou"`
}

// finish writes metrics.json and the pictures, and prints the metrics. They do not depend on the pictures: an error of a picture comes last.
func finish(set settings, d *dataset, results []result, out io.Writer) error {
	m := metrics{HeldOut: results[0].names}
	number := func(v float64) *float64 {
		if v != v {
			return nil
		}
		return &v
	}
	for _, r := range results {
		of := modelMetrics{Model: r.Kind, Parameters: r.params.Count(), Steps: set.steps, LearnRate: set.lr, Seed: set.seed, Accuracy: r.confusion.Accuracy()}
		for i, label := range d.classes {
			of.Classes = append(of.Classes, classMetrics{label, number(r.confusion.Dice(i)), number(r.confusion.IoU(i))})
		}
		m.Models = append(m.Models, of)
	}
	text, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	file := filepath.Join(set.out, "metrics.json")
	if err := tensorfile.Replace(file, func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	}); err != nil {
		return options.OutDirError(set.out, err)
	}
	fmt.Fprintln(out)
	var failed []error
	for _, r := range results {
		png := filepath.Join(folder(set, r.Kind), "loss.png")
		if err := report.WritePNG(png, report.Loss{Label: "cross-entropy + Dice loss"}.Panel(r.curve)); err != nil {
			failed = append(failed, options.OutDirError(set.out, err))
		}
		fmt.Fprintf(out, "%-11s %s\ncurve       %s\n", r.Kind, folder(set, r.Kind), png)
	}
	failed = append(failed, d.picture(set, results, out))
	fmt.Fprintf(out, "metrics     %s\n\n%s, held out:\n", file, plural(d.heldOut.Len(), "image"))
	for _, r := range results {
		fmt.Fprintf(out, "%-11s pixel accuracy %.4f\n", r.Kind, r.confusion.Accuracy())
	}
	for i, label := range d.classes {
		for _, r := range results {
			fmt.Fprintf(out, "%-11s label %-5v Dice %.4f  IoU %.4f\n", r.Kind, label, r.confusion.Dice(i), r.confusion.IoU(i))
		}
	}
	return errors.Join(failed...)
}

// picture writes the first image held out, its truth and the predictions side by side; of a volume, the slice in the middle. Each pixel of a small image
// becomes a square.
func (d *dataset) picture(set settings, results []result, out io.Writer) error {
	const height = 384
	enlarged := func(size []int) []int {
		by := max(height/size[0], 1)
		return []int{by * size[0], by * size[1]}
	}
	slice := func(l *images.Labels) (*images.Image, error) {
		l, err := middle(l)
		if err == nil {
			l, err = l.Resample(enlarged(l.Size))
		}
		if err != nil {
			return nil, err
		}
		return l.Picture(len(d.classes))
	}
	first, err := d.original.Load(0)
	if err != nil {
		return err
	}
	im, err := shown(first.Image)
	if err == nil {
		im, err = im.Resample(enlarged(im.Size))
	}
	if err != nil {
		return err
	}
	all, what := []*images.Image{im}, []string{"image", "truth"}
	truth, err := slice(first.Labels)
	if err != nil {
		return err
	}
	all = append(all, truth)
	for _, r := range results {
		p, err := slice(r.predicted[0])
		if err != nil {
			return err
		}
		all, what = append(all, p), append(what, r.Kind)
	}
	picture, err := images.Beside(8, all...)
	if err != nil {
		return err
	}
	file := filepath.Join(set.out, "segmented.png")
	if err := images.WritePNG(file, picture); err != nil {
		return options.OutDirError(set.out, err)
	}
	fmt.Fprintf(out, "picture     %s: %s of %s\n", file, strings.Join(what, ", "), first.Name)
	return nil
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
