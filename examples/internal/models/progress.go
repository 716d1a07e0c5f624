package models

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/gomamba/mamba/tokens"
)

// progress shows a download: a bar on a terminal, and else a line for each file.
type progress struct {
	out  io.Writer
	bar  *progressbar.ProgressBar
	file string
}

// show is for tokens.DownloadConfig.Progress. The download goes on if the bar cannot be drawn.
func (p *progress) show(now tokens.Progress) {
	if p.file == "" && columns(p.out) > 0 {
		p.bar = progressbar.NewOptions64(now.Total,
			progressbar.OptionSetWriter(p.out),
			progressbar.OptionSetDescription("download"),
			progressbar.OptionShowBytes(true),
			progressbar.OptionFullWidth(),
			progressbar.OptionThrottle(100*time.Millisecond),
		)
	}
	if p.bar != nil {
		_ = p.bar.Set64(now.Done)
	} else if p.file != now.File {
		fmt.Fprintf(p.out, "download %s, %.1f MB\n", now.File, float64(now.Size)/1e6)
	}
	p.file = now.File
}

// finish ends the line of the bar.
func (p *progress) finish() {
	if p.bar != nil {
		_ = p.bar.Exit()
		fmt.Fprintln(p.out)
	}
}

// columns returns the width of the terminal that out is, or 0 if it is none or does not tell.
func columns(out io.Writer) int {
	file, ok := out.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(file.Fd()))
	if err != nil {
		return 0
	}
	return width
}
