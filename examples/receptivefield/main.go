// Receptivefield shows which pixels of an image one pixel of a segmentation depends on: for a small VM-UNet, whose scans pass every pixel, and for
// convolutions. It trains both and draws the gradient of the pixel in the centre over the image, before and after. It also draws the directions of the
// scans that published models use.
//
//	go run ./examples/receptivefield -out receptivefield.png    # a minute or two on two cores
//	go run ./examples/receptivefield -directions directions.png -out ""
//	go run ./examples/receptivefield -h                         # all flags
//
// In the images to segment, a bright or dark frame says the class of all discs. So a model has to look far from a disc.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/gomamba/mamba/examples/internal/options"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop) // after the first signal, the next one has its usual effect
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// settings are the values of the flags.
type settings struct {
	side, steps, batch, images, seed int
	out, directions                  string
}

// run runs the program and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	set := settings{side: 48, steps: 300, batch: 8, images: 32, seed: 1}
	flags := flag.NewFlagSet("receptivefield", flag.ContinueOnError)
	options.Whole(flags, &set.side, 16, "side", "pixels of an image along each side")
	options.Whole(flags, &set.steps, 1, "steps", "steps of training")
	options.Whole(flags, &set.batch, 1, "batch", "images in a step")
	options.Whole(flags, &set.images, 1, "images", "images over which the gradients are averaged")
	options.Whole(flags, &set.seed, 0, "seed", "seed of weights and data")
	flags.StringVar(&set.out, "out", "receptivefield.png", "PNG `file` for the gradients; empty for none")
	flags.StringVar(&set.directions, "directions", "", "PNG `file` for the directions of the scans; empty for none")
	err := options.Parse(flags, args, stdout, "Receptivefield shows which pixels of an image one pixel of a segmentation depends on.", "there are only flags")
	for _, path := range []string{set.out, set.directions} {
		if err == nil {
			err = options.CheckPNG(path)
		}
	}
	if err == nil && set.side%8 != 0 {
		err = fmt.Errorf("invalid value \"%d\" for flag -side: should be a multiple of 8", set.side)
	}
	if err == nil && set.directions != "" {
		err = drawDirections(set.directions)
	}
	if err == nil && set.out != "" {
		err = drawFields(ctx, set, stdout)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(stderr, "receptivefield:", err)
		return 1
	}
	return 0
}
