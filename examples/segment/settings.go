package main

import (
	"flag"
	"fmt"
	"io"

	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/examples/internal/options"
)

// settings are the values of the flags.
type settings struct {
	data, out, model          string
	distributed               bool
	resume, flips, noaugment  bool
	traced                    bool
	heldout                   int
	width, crop, batch, steps int
	lr, decay, clip           float64
	warmup                    int
	overlap, foreground       float64
	eval, save                int
	seed                      int
	predict                   []string

	device options.Device
	group  *dist.Group // the processes that train together, nil for this one alone
}

// kinds are the models that -model names, in the order in which both are trained.
var kinds = []string{"mambaunet", "unet"}

// parse reads the flags. Its errors name the flag, the value and what it should be.
func parse(args []string, usage io.Writer) (settings, error) {
	set := settings{out: "segmented", decay: 0.05, clip: 1, overlap: 0.5, foreground: 0.33, seed: 1, warmup: -1, lr: 0}
	flags := flag.NewFlagSet("segment", flag.ContinueOnError)
	flags.StringVar(&set.data, "data", "", "`directory` to train on: image/ and label/ with equal file names, or the layout of the Medical Segmentation Decathlon (default images like those of a microscope, which the program makes)")
	flags.StringVar(&set.out, "out", set.out, "`directory` for the checkpoints, curves, pictures, metrics.json, the state for -resume, and what -predict writes")
	flags.StringVar(&set.model, "model", "both", "mambaunet, unet, or both side by side; or the `directory` of a checkpoint of this program, to train further or for -predict (with -predict, default the first in -out)")
	flags.String("predict", "", "`file` to segment, and others after it: writes NAME_mask and NAME_overlay into -out")
	flags.BoolVar(&set.resume, "resume", false, "continue the run in -out; the other flags must be the same")
	flags.BoolVar(&set.distributed, "distributed", false, "train with all processes that mpirun, srun or torchrun has started, each on -batch patches of a step")
	flags.BoolVar(&set.traced, "trace", false, "print what the time of each process goes to, and write it to trace.json beside each checkpoint, for ui.perfetto.dev")
	options.Whole(flags, &set.heldout, 1, "heldout", "images that are held out, the last by their names (default a sixth)")
	options.Whole(flags, &set.width, 1, "width", "channels at the full resolution of the MambaUNet (default 8, or 16 with -data); the U-Net has the width that gives it as many parameters, and a checkpoint keeps its own")
	options.Whole(flags, &set.crop, 1, "crop", "side of the patches to train and predict on, a multiple of 16 (default 64, with -data 256 for images and 64 for volumes; less if the images are smaller)")
	options.Whole(flags, &set.batch, 1, "batch", "patches of a step (default 4, or 8 with -data; 2 of volumes)")
	options.Whole(flags, &set.steps, 1, "steps", "training steps (default 400, or 1500 with -data)")
	options.Number(flags, &set.lr, options.Positive, "lr", "peak learn rate (default 0.002)")
	options.Whole(flags, &set.warmup, 0, "warmup", "steps in which the learn rate rises to its peak; after them it falls to a hundredth along half a cosine (default a twentieth of the steps)")
	options.Number(flags, &set.decay, 0, "decay", "weight decay")
	options.Number(flags, &set.clip, 0, "clip", "length to which a longer gradient is scaled down; 0 for no limit")
	options.Number(flags, &set.foreground, 0, "foreground", "share of the patches that are drawn around a cell that is not of the most frequent class")
	flags.BoolVar(&set.noaugment, "noaugment", false, "train on the images as they are, without random flips, rotations, deformations and changes of intensity")
	options.Number(flags, &set.overlap, 0, "overlap", "share of a window that the next one sees again in prediction, at most 0.9")
	flags.BoolVar(&set.flips, "flips", false, "predict the mirror images too, and take the mean")
	options.Whole(flags, &set.eval, 1, "eval", "steps between evaluations (default a tenth of the steps)")
	options.Whole(flags, &set.save, 1, "save", "steps between saves (default a tenth of the steps)")
	options.Whole(flags, &set.seed, 0, "seed", "seed of the weights, the patches and the augmentation")
	set.device.Flags(flags)
	args, set.predict = options.Files(args, "predict")
	err := options.Parse(flags, args, usage, "Segment trains models that give each pixel of an image a class, and predicts masks.",
		"name a folder to train on with -data, or images to segment with -predict")
	if err != nil {
		return set, err
	}
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if len(set.predict) > 0 && !given["model"] {
		set.model = ""
	}
	if err = set.check(); err == nil && len(set.predict) > 0 {
		err = options.Unused(flags, "predict", "out", "model", "overlap", "flips", "device", "precision")
	}
	return set, err
}

func (set settings) check() error {
	switch {
	case set.out == "":
		return fmt.Errorf(`invalid value "" for flag -out: should be a directory`)
	case set.overlap > 0.9:
		return fmt.Errorf("invalid value %v for flag -overlap: should be at most 0.9", set.overlap)
	case set.foreground > 1:
		return fmt.Errorf("invalid value %v for flag -foreground: should be at most 1", set.foreground)
	case set.crop%16 != 0:
		return fmt.Errorf("invalid value %d for flag -crop: should be a multiple of 16", set.crop)
	case len(set.predict) > 0 && (set.resume || set.distributed):
		return fmt.Errorf("-resume and -distributed are for training, not for -predict")
	}
	return set.device.Check()
}

// complete fills in the defaults that depend on the data.
func (set *settings) complete(d *dataset) {
	or := func(value *int, byDefault int) {
		if *value == 0 {
			*value = byDefault
		}
	}
	width, crop, batch, steps := 8, 64, 4, 400
	if set.data != "" {
		width, crop, batch, steps = 16, 256, 8, 1500
		if d.axes == 3 {
			crop, batch = 64, 2
		}
	}
	or(&set.width, width)
	or(&set.crop, max(min(crop, d.least/16*16), 16))
	or(&set.batch, batch)
	or(&set.steps, steps)
	or(&set.eval, max(set.steps/10, 1))
	or(&set.save, max(set.steps/10, 1))
	if set.lr == 0 {
		set.lr = 2e-3
	}
	if set.warmup < 0 {
		set.warmup = max(set.steps/20, 1)
	}
}

// saved returns the settings that a run depends on, by the names of their flags. A run is resumed only with the same settings.
func (set settings) saved(more map[string]string) map[string]string {
	all := map[string]string{
		"-width": fmt.Sprint(set.width), "-crop": fmt.Sprint(set.crop), "-batch": fmt.Sprint(set.batch), "-steps": fmt.Sprint(set.steps),
		"-lr": fmt.Sprint(set.lr), "-warmup": fmt.Sprint(set.warmup), "-decay": fmt.Sprint(set.decay), "-clip": fmt.Sprint(set.clip),
		"-foreground": fmt.Sprint(set.foreground), "-noaugment": fmt.Sprint(set.noaugment), "-heldout": fmt.Sprint(set.heldout), "-seed": fmt.Sprint(set.seed),
	}
	if set.device.GPU() { // it rounds differently
		all["-device"] = set.device.String()
	}
	for name, value := range more {
		all[name] = value
	}
	return all
}
