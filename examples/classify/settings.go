package main

import (
	"flag"
	"fmt"
	"io"

	"github.com/gomamba/mamba/examples/internal/options"
)

// settings are the values of the flags.
type settings struct {
	data, out, model    string
	resume, noaugment   bool
	heldout             float64
	size, batch, steps  int
	lr, decay, droppath float64
	warmup, eval, save  int
	seed                int
	predict             []string

	device options.Device
}

// parse reads the flags. Its errors name the flag, the value and what it should be.
func parse(args []string, usage io.Writer) (settings, error) {
	set := settings{out: "classified", heldout: 0.2, decay: 0.05, seed: 1, warmup: -1}
	flags := flag.NewFlagSet("classify", flag.ContinueOnError)
	flags.StringVar(&set.data, "data", "", "`directory` to train on, with a folder of images for each class (default images of four patterns, which the program makes)")
	flags.StringVar(&set.out, "out", set.out, "`directory` for the model, the loss curve, the confusion matrix, metrics.json and the state for -resume")
	flags.StringVar(&set.model, "model", "vmamba", "vmamba or vim, a small new one; or the `path` of a model to tune: a released file of VMamba or Vim, or a directory that this program wrote (with -predict, default -out)")
	flags.String("predict", "", "`file` to classify, and others after it")
	flags.BoolVar(&set.resume, "resume", false, "continue the run in -out; the other flags must be the same")
	options.Number(flags, &set.heldout, options.Positive, "heldout", "share of the images of each class that is held out, the last by their names")
	options.Whole(flags, &set.size, 1, "size", "side to which images are cut and resized, a multiple of 8 (default 32, 64 with -data, 224 for a released model, or that of a model to tune that this program wrote)")
	options.Whole(flags, &set.batch, 1, "batch", "images of a step (default 16)")
	options.Whole(flags, &set.steps, 1, "steps", "training steps (default 400, or 1000 with -data)")
	options.Number(flags, &set.lr, options.Positive, "lr", "peak learn rate (default 0.002, or 0.0002 for a model to tune)")
	options.Whole(flags, &set.warmup, 0, "warmup", "steps in which the learn rate rises to its peak; after them it falls to a hundredth along half a cosine (default a twentieth of the steps)")
	options.Number(flags, &set.decay, 0, "decay", "weight decay")
	options.Number(flags, &set.droppath, 0, "droppath", "probability, in training, to drop a branch of the last block for an image")
	flags.BoolVar(&set.noaugment, "noaugment", false, "train on the images as they are, without random flips, scales, rotations and changes of intensity")
	options.Whole(flags, &set.eval, 1, "eval", "steps between evaluations (default a tenth of the steps)")
	options.Whole(flags, &set.save, 1, "save", "steps between saves (default a tenth of the steps)")
	options.Whole(flags, &set.seed, 0, "seed", "seed of the weights, of the order of the images and of their changes")
	set.device.Flags(flags)
	set.batch = 16
	args, set.predict = options.Files(args, "predict")
	err := options.Parse(flags, args, usage, "Classify trains a VMamba or a Vim to tell classes of images apart.",
		"name a folder to train on with -data, or images to classify with -predict")
	if err != nil {
		return set, err
	}
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if len(set.predict) > 0 && !given["model"] {
		set.model = set.out
	}
	switch {
	case set.out == "":
		err = fmt.Errorf(`invalid value "" for flag -out: should be a directory`)
	case set.heldout >= 1:
		err = fmt.Errorf("invalid value %v for flag -heldout: should be below 1", set.heldout)
	case set.droppath >= 1:
		err = fmt.Errorf("invalid value %v for flag -droppath: should be below 1", set.droppath)
	case set.size%8 != 0:
		err = fmt.Errorf("invalid value %d for flag -size: should be a multiple of 8", set.size)
	case len(set.predict) > 0 && set.resume:
		err = fmt.Errorf("-resume is for training, not for -predict")
	default:
		err = set.device.Check()
	}
	if err == nil && len(set.predict) > 0 {
		err = options.Unused(flags, "predict", "out", "model", "device", "precision")
	}
	return set, err
}

// fresh reports whether -model names a small new model.
func (set settings) fresh() bool { return set.model == "vmamba" || set.model == "vim" }

// complete fills in the defaults that depend on other flags. side is that of the images of the model to tune, or 0.
func (set *settings) complete(side int) {
	or := func(value *int, byDefault int) {
		if *value == 0 {
			*value = byDefault
		}
	}
	steps, size, lr := 400, 32, 0.002
	if set.data != "" {
		steps, size = 1000, 64
	}
	if !set.fresh() {
		size, lr = 224, 0.0002
	}
	if side > 0 {
		size = side
	}
	or(&set.size, size)
	or(&set.steps, steps)
	or(&set.eval, max(set.steps/10, 1))
	or(&set.save, max(set.steps/10, 1))
	if set.lr == 0 {
		set.lr = lr
	}
	if set.warmup < 0 {
		set.warmup = max(set.steps/20, 1)
	}
}

// saved returns the settings that a run depends on, by the names of their flags. A run is resumed only with the same settings.
func (set settings) saved(data, model string) map[string]string {
	all := map[string]string{
		"-data": data, "-model": model, "-size": fmt.Sprint(set.size), "-batch": fmt.Sprint(set.batch), "-steps": fmt.Sprint(set.steps),
		"-lr": fmt.Sprint(set.lr), "-warmup": fmt.Sprint(set.warmup), "-decay": fmt.Sprint(set.decay), "-droppath": fmt.Sprint(set.droppath),
		"-noaugment": fmt.Sprint(set.noaugment), "-heldout": fmt.Sprint(set.heldout), "-seed": fmt.Sprint(set.seed),
	}
	if set.device.GPU() { // it rounds differently
		all["-device"] = set.device.String()
	}
	return all
}
