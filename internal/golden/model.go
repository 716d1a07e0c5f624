package golden

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Input is one input of a language model with the expected results, from an expected.safetensors.
type Input struct {
	Batch, Length int
	IDs           []int
	Logits        []float64
	Loss          float64 // NaN if Length is 1
}

// Input returns input number i, if there is one.
func (f *File) Input(i int) (in Input, ok bool) {
	ids, ok := f.Tensors[fmt.Sprintf("ids%d", i)]
	if !ok || len(ids.Shape) != 2 {
		return in, false
	}
	in.Batch, in.Length = ids.Shape[0], ids.Shape[1]
	in.IDs = Ints(ids)
	in.Logits = f.Tensors[fmt.Sprintf("logits%d", i)].Data
	loss := f.Tensors[fmt.Sprintf("loss%d", i)].Data
	if len(loss) != 1 {
		return in, false
	}
	in.Loss = loss[0]
	return in, true
}

// Ints returns the elements of a tensor of integers.
func Ints(t Tensor) []int {
	s := make([]int, len(t.Data))
	for i, x := range t.Data {
		s[i] = int(x)
	}
	return s
}

// Targets returns the targets that the loss of Hugging Face transformers has: the next token, and ignore at the end of each sequence.
func (in Input) Targets(ignore int) []int {
	targets := make([]int, len(in.IDs))
	for i := range targets {
		targets[i] = ignore
		if i%in.Length < in.Length-1 {
			targets[i] = in.IDs[i+1]
		}
	}
	return targets
}

// Given lists the files in the directory that MAMBA_GOLDEN names.
type Given struct {
	Dir         string   // empty if the variable is not set
	Scans       []string // its *_scan.safetensors
	Checkpoints []string // its subdirectories with an expected.safetensors
	Vision      []string // its subdirectories with one of VisionFiles
	GGUF        []string // its subdirectories with files of that format
}

// VisionFiles are the names of the files with expected numbers of vision models, of SS2D, and of mixers and blocks.
var VisionFiles = []string{"expected_vision.safetensors", "golden_ss2d.safetensors", "golden_blocks.safetensors"}

// String says what was found, for a test that finds nothing of its own kind.
func (g Given) String() string {
	return fmt.Sprintf("%s has %d *_scan.safetensors for TestGoldenScan, %d checkpoints for TestGoldenCheckpoint, %d folders for TestGoldenVision and %d for TestGoldenGGUF",
		g.Dir, len(g.Scans), len(g.Checkpoints), len(g.Vision), len(g.GGUF))
}

// FromEnvironment returns the files in the directory that MAMBA_GOLDEN names. It returns an error if there are none. A relative name is
// relative to the root of the module, one folder above the packages whose tests use it.
func FromEnvironment() (Given, error) {
	g := Given{Dir: os.Getenv("MAMBA_GOLDEN")}
	if g.Dir == "" {
		return g, nil
	}
	if !filepath.IsAbs(g.Dir) {
		g.Dir = filepath.Join("..", g.Dir)
	}
	entries, err := os.ReadDir(g.Dir)
	if err != nil {
		return g, fmt.Errorf("MAMBA_GOLDEN: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(g.Dir, e.Name())
		if _, err := os.Stat(filepath.Join(path, "expected.safetensors")); err == nil {
			g.Checkpoints = append(g.Checkpoints, path)
		} else if ok, _ := filepath.Match("*_scan.safetensors", e.Name()); ok {
			g.Scans = append(g.Scans, path)
		} else if files, _ := filepath.Glob(filepath.Join(path, "*.gguf")); len(files) > 0 {
			g.GGUF = append(g.GGUF, path)
		} else if slices.ContainsFunc(VisionFiles, func(name string) bool {
			_, err := os.Stat(filepath.Join(path, name))
			return err == nil
		}) {
			g.Vision = append(g.Vision, path)
		}
	}
	if len(g.Scans)+len(g.Checkpoints)+len(g.Vision)+len(g.GGUF) == 0 {
		return g, fmt.Errorf("MAMBA_GOLDEN names %s, which has no *_scan.safetensors and no folder with an expected.safetensors, a *.gguf or one of %v", g.Dir, VisionFiles)
	}
	return g, nil
}
