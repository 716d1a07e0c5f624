package main

import (
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/gomamba/mamba/examples/internal/options"
	"github.com/gomamba/mamba/nn"
)

// settings are the values of the flags.
type settings struct {
	dmodel, layers, heads  int
	shortest, longest, fit int
	runs                   int
	limit                  float64
	out                    string
	kinds                  []nn.Kind
	images                 bool
	device                 options.Device
}

// kindNames returns the names of all kinds, with commas between them.
func kindNames() string {
	var names []string
	for _, k := range nn.Kinds() {
		names = append(names, string(k))
	}
	return strings.Join(names, ", ")
}

// parse reads the flags. Its errors name the flag, the value and what it should be.
func parse(args []string, usage io.Writer) (settings, error) {
	set := settings{dmodel: 64, layers: 1, heads: 1, shortest: 256, longest: 65536, fit: 1024, runs: 3, limit: 20}
	flags := flag.NewFlagSet("scaling", flag.ContinueOnError)
	options.Whole(flags, &set.dmodel, 1, "dmodel", "width of the layers: their channels")
	options.Whole(flags, &set.layers, 1, "layers", "number of layers")
	options.Whole(flags, &set.heads, 1, "heads", "number of heads of attention")
	options.Whole(flags, &set.shortest, 1, "shortest", "shortest length in tokens; each following length is twice the one before")
	options.Whole(flags, &set.longest, 1, "longest", "longest length in tokens")
	options.Whole(flags, &set.fit, 1, "fit", "the exponents are fitted to the lengths from this one on")
	options.Whole(flags, &set.runs, 1, "runs", "runs of each point; the median counts")
	options.Number(flags, &set.limit, options.Positive, "limit", "seconds; a kind whose run takes longer is not run at longer lengths")
	kinds := flags.String("kinds", "mamba,attention", "kinds of layers to measure, with commas between them: "+kindNames())
	flags.BoolVar(&set.images, "images", false, "measure a MambaUNet on square images, of sides -shortest to -longest, instead of sequences; kinds are mamba and attention")
	set.device.Flags(flags)
	flags.StringVar(&set.out, "out", "scaling.png", "PNG `file` for time and memory against length; empty for none")
	if err := options.Parse(flags, args, usage, "Scaling measures time and memory against the length of a sequence.", "there are only flags"); err != nil {
		return set, err
	}
	if set.longest < set.shortest {
		return set, fmt.Errorf("invalid value %q for flag -longest: should be at least -shortest, %d", fmt.Sprint(set.longest), set.shortest)
	}
	var err error
	if set.kinds, err = nn.ParseKinds(*kinds); err != nil {
		return set, fmt.Errorf("invalid value %q for flag -kinds: %s", *kinds, strings.TrimPrefix(err.Error(), "nn: "))
	}
	for i, kind := range set.kinds {
		if slices.Contains(set.kinds[:i], kind) {
			return set, fmt.Errorf("invalid value %q for flag -kinds: %s is there twice", *kinds, kind)
		}
	}
	for _, kind := range set.kinds {
		if set.images && kind != nn.Mamba && kind != nn.Attention {
			return set, fmt.Errorf("invalid value %q for flag -kinds: of -images should be mamba or attention", *kinds)
		}
	}
	if set.images && set.dmodel%4 != 0 {
		return set, fmt.Errorf("invalid value %q for flag -dmodel: of -images should be a multiple of 4", fmt.Sprint(set.dmodel))
	}
	return set, set.device.Check()
}

// steps returns the steps of a sequence of a length or, of images, the pixels of a step.
func (set settings) steps(length int) int {
	if set.images {
		n := set.longest / length
		return n * n * length * length
	}
	return length
}
