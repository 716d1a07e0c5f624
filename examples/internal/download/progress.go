package download

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/gomlx/go-huggingface/hub"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress shows what is there of all files.
type progress struct {
	out io.Writer
	bar *progressbar.ProgressBar // on a terminal
}

func newProgress(out io.Writer, files []*hub.FileInfo) *progress {
	p := &progress{out: out}
	var size int64
	for _, f := range files {
		size += f.Size
	}
	if file, ok := out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		p.bar = progressbar.NewOptions64(size,
			progressbar.OptionSetWriter(out),
			progressbar.OptionShowBytes(true),
			progressbar.OptionFullWidth(),
			progressbar.OptionThrottle(100*time.Millisecond),
		)
	}
	return p
}

// begin shows which file comes.
func (p *progress) begin(file *hub.FileInfo) {
	if p.bar != nil {
		p.bar.Describe(file.Name)
		return
	}
	fmt.Fprintf(p.out, "downloading %s, %.1f MB\n", file.Name, float64(file.Size)/1e6)
}

// add counts bytes, or takes them back. The bar is decoration: where it cannot be drawn, the download goes on.
func (p *progress) add(bytes int64) {
	if p.bar != nil {
		_ = p.bar.Add64(bytes)
	}
}

func (p *progress) finish() {
	if p.bar != nil {
		_ = p.bar.Exit()
		fmt.Fprintln(p.out)
	}
}
