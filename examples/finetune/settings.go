package main

import (
	"flag"
	"fmt"
	"io"
	"math"

	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/examples/internal/options"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/train"
)

// settings are the values of the flags.
type settings struct {
	model, data, out                 string
	lora                             int
	alpha                            float64
	merge, resume, traced            bool
	distributed, shard, segments     bool
	recompute                        bool
	steps, batch, length, accumulate int
	lr, decay, clip                  float64
	warmup                           int
	heldout                          float64
	evaltokens, eval, save           int
	seed                             int
	basesteps, layers, dmodel        int // basesteps is 0 for the default

	device options.Device
	where  []nn.Option // of the model: that device
	group  *dist.Group // the processes that train together, nil for this one alone
	trace  *train.Trace
}

// parse reads the flags. Its errors name the flag, the value and what it should be.
func parse(args []string, usage io.Writer) (settings, error) {
	set := settings{
		out: "finetuned", steps: 300, batch: 4, length: 256, accumulate: 1, decay: 0.01, clip: 1, heldout: 0.1,
		evaltokens: 16 << 10, seed: 1, layers: 2, dmodel: 128, warmup: -1,
	}
	flags := flag.NewFlagSet("finetune", flag.ContinueOnError)
	flags.StringVar(&set.model, "model", "", "`directory` of the checkpoint to start from (default a small model of bytes, which is trained first)")
	flags.StringVar(&set.data, "data", "", "`file` to train on: one document per line; or, if its name ends in .jsonl, JSON Lines with text, or with prompt and completion (default the comments of Go's standard library)")
	flags.StringVar(&set.out, "out", set.out, "`directory` for the result, the loss curve, and the state for -resume")
	flags.BoolVar(&set.resume, "resume", false, "continue the run in -out; the other flags must be the same")
	options.Whole(flags, &set.lora, 0, "lora", "rank of LoRA on the projections; 0 trains all weights")
	options.Number(flags, &set.alpha, 0, "alpha", "alpha of LoRA, whose scale is alpha/rank (default the rank)")
	flags.BoolVar(&set.merge, "merge", false, "merge LoRA into the weights and save the whole model")
	flags.BoolVar(&set.distributed, "distributed", false, "train with all processes that mpirun, srun or torchrun has started, each on -accumulate batches of a step")
	flags.BoolVar(&set.shard, "shard", false, "with -distributed: divide the moments of AdamW among the processes")
	flags.BoolVar(&set.segments, "segments", false, "with -distributed: divide each sequence among the processes, for long ones")
	flags.BoolVar(&set.recompute, "recompute", false, "compute the values inside the blocks again for the backward pass instead of keeping them, for long sequences")
	flags.BoolVar(&set.traced, "trace", false, "print what the time of each process goes to, and write it to trace.json in -out, for ui.perfetto.dev")
	options.Whole(flags, &set.steps, 1, "steps", "training steps")
	options.Whole(flags, &set.batch, 1, "batch", "sequences of a batch")
	options.Whole(flags, &set.length, 1, "length", "tokens of a sequence")
	options.Whole(flags, &set.accumulate, 1, "accumulate", "batches of a step")
	options.Number(flags, &set.lr, 0, "lr", "peak learn rate (default 0.0002, or 0.002 with -lora; for the small model 0.003, or 0.01 with -lora)")
	options.Whole(flags, &set.warmup, 0, "warmup", "steps in which the learn rate rises to its peak; after them it falls to a tenth along half a cosine (default a tenth of the steps)")
	options.Number(flags, &set.decay, 0, "decay", "weight decay")
	options.Number(flags, &set.clip, 0, "clip", "length to which a longer gradient is scaled down; 0 for no limit")
	options.Number(flags, &set.heldout, 0, "heldout", "share of the documents that is held out for evaluation; 0 for none")
	options.Whole(flags, &set.evaltokens, 1, "evaltokens", "largest number of tokens to evaluate on")
	options.Whole(flags, &set.eval, 0, "eval", "steps between evaluations (default a tenth of the steps)")
	options.Whole(flags, &set.save, 0, "save", "steps between saves (default a tenth of the steps)")
	options.Whole(flags, &set.seed, 0, "seed", "seed of the order of the data, of LoRA and of the small model")
	options.Whole(flags, &set.basesteps, 1, "basesteps", "training steps of the small model (default 800, or four passes over a shorter text)")
	options.Whole(flags, &set.layers, 1, "layers", "number of Mamba blocks of the small model")
	options.Whole(flags, &set.dmodel, 1, "dmodel", "width of the small model: channels between the blocks")
	set.device.Flags(flags)
	err := options.Parse(flags, args, usage, "Finetune trains a Mamba language model further on text.",
		"name the checkpoint with -model and the text with -data")
	if err != nil {
		return set, err
	}
	switch {
	case set.out == "":
		err = fmt.Errorf(`invalid value "" for flag -out: should be a directory`)
	case set.heldout >= 1:
		err = fmt.Errorf("invalid value %v for flag -heldout: should be below 1", set.heldout)
	case set.lora == 0 && (set.merge || set.alpha != 0):
		err = fmt.Errorf("-merge and -alpha need -lora")
	case (set.shard || set.segments) && !set.distributed:
		err = fmt.Errorf("-shard and -segments need -distributed")
	default:
		err = set.device.Check()
	}
	if set.lr == 0 {
		switch {
		case set.model != "" && set.lora > 0:
			set.lr = 2e-3
		case set.model != "":
			set.lr = 2e-4
		case set.lora > 0:
			set.lr = 1e-2
		default:
			set.lr = 3e-3
		}
	}
	tenth := max(set.steps/10, 1)
	if set.warmup < 0 {
		set.warmup = tenth
	}
	if set.eval == 0 {
		set.eval = tenth
	}
	if set.save == 0 {
		set.save = tenth
	}
	return set, err
}

// saved returns the settings that a run depends on, by the names of their flags. A run is resumed only with the same settings.
func (set settings) saved(more map[string]string) map[string]string {
	all := map[string]string{
		"-lora": fmt.Sprint(set.lora), "-alpha": fmt.Sprint(set.alpha), "-steps": fmt.Sprint(set.steps),
		"-batch": fmt.Sprint(set.batch), "-length": fmt.Sprint(set.length), "-accumulate": fmt.Sprint(set.accumulate),
		"-lr": fmt.Sprint(set.lr), "-warmup": fmt.Sprint(set.warmup), "-decay": fmt.Sprint(set.decay), "-clip": fmt.Sprint(set.clip),
		"-seed": fmt.Sprint(set.seed), "-heldout": fmt.Sprint(set.heldout), "-evaltokens": fmt.Sprint(set.evaltokens),
	}
	if set.device.GPU() { // it rounds differently
		all["-device"] = set.device.String()
	}
	for name, value := range more {
		all[name] = value
	}
	return all
}

// perplexity returns e to the power of a loss in nats.
func perplexity(loss float64) float64 { return math.Exp(loss) }
