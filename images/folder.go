package images

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/gomamba/mamba/internal/size"
)

// Sample is an image with its labels. For training, the values of the labels are classes (Classes.Index).
type Sample struct {
	Name   string
	Image  *Image
	Labels *Labels // nil if there are none
	Class  int     // for classification: index of the class of the whole image

	cells foreground
}

// check returns an error if image and labels do not fit each other.
func (s *Sample) check() error {
	if s == nil {
		return errors.New("images: the sample is nil")
	}
	if err := s.Image.check(); err != nil {
		return err
	}
	if size.Product(s.Image.Size...) == 1 {
		return fmt.Errorf("images: sample %q has %s cells, want more than one: nothing can be learned from it", s.Name, sizeString(s.Image.Size))
	}
	if s.Labels == nil {
		return nil
	}
	if err := s.Labels.check(); err != nil {
		return err
	}
	if err := sameSize(s.Image.Size, s.Labels.Size); err != nil {
		return fmt.Errorf("images: sample %q: %w", s.Name, err)
	}
	return nil
}

// Pair names the files of an image and of its labels.
type Pair struct {
	Name  string // the file's name without its ending
	Image string // path of the image
	Label string // path of its labels; empty if it has none
}

// Read reads both files. The values of the labels are the files' own. Sizes that differ are an error that names both files. Labels is nil if the pair has
// no label.
func (p Pair) Read() (*Sample, error) {
	im, err := Read(p.Image)
	if err != nil {
		return nil, err
	}
	s := &Sample{Name: p.Name, Image: im}
	if p.Label == "" {
		return s, nil
	}
	if s.Labels, err = ReadLabels(p.Label); err != nil {
		return nil, err
	}
	if err := sameSize(im.Size, s.Labels.Size); err != nil {
		return nil, fmt.Errorf("images: %s and %s: %w", p.Image, p.Label, err)
	}
	return s, nil
}

// Pairs returns the files of the folders image and label in dir, in the order of their names, with numbers by their value: 2 before 10. Two files belong
// together if their names without ending are equal. A file without its partner, and two files of one name in a folder, are errors that name
// them. Files whose names begin with a dot are left out.
func Pairs(dir string) ([]Pair, error) {
	images, err := files(filepath.Join(dir, "image"))
	if err != nil {
		return nil, err
	}
	labels, err := files(filepath.Join(dir, "label"))
	if err != nil {
		return nil, err
	}
	byName := map[string]string{}
	for _, l := range labels {
		byName[stem(l)] = l
	}
	var pairs []Pair
	for _, im := range images {
		label, ok := byName[stem(im)]
		if !ok {
			return nil, fmt.Errorf("images: %s has no label: want a file named %s.png, .tif or .nii.gz in %s", im, stem(im), filepath.Join(dir, "label"))
		}
		delete(byName, stem(im))
		pairs = append(pairs, Pair{stem(im), im, label})
	}
	for _, l := range labels {
		if byName[stem(l)] != "" {
			return nil, fmt.Errorf("images: the label %s has no image: want a file named %s.png, .jpg, .tif or .nii.gz in %s", l, stem(l), filepath.Join(dir, "image"))
		}
	}
	return pairs, nil
}

// ReadPairs reads all files of some pairs, and turns the values of the labels into classes: those of all labels together, or known ones if classes is not
// nil. The error of a file names it. An image of a single cell is an error, since nothing can be learned from it. So are
// files that together need more than half of the machine's memory: NewFiles is for them.
func ReadPairs(pairs []Pair, classes Classes) ([]*Sample, Classes, error) {
	if len(pairs) == 0 {
		return nil, nil, errors.New("images: there are no pairs to read")
	}
	samples := make([]*Sample, len(pairs))
	var held atomic.Uint64 // bytes
	err := parallel(len(pairs), 0, func(i int) (err error) {
		// A program needs as much again for what it makes of them.
		if err := size.Bytes(held.Load()).Times(2).Fits(fmt.Sprintf("two copies of the images and labels read so far, of %s,", plural(len(pairs), "pair"))); err != nil {
			return fmt.Errorf("images: %w: NewFiles reads files when they are needed", err)
		}
		if samples[i], err = pairs[i].Read(); err != nil {
			return err
		}
		if samples[i].Labels == nil {
			return fmt.Errorf("images: %s has no label", pairs[i].Image)
		}
		if err := samples[i].check(); err != nil {
			return fmt.Errorf("images: %s: %s", pairs[i].Image, strings.TrimPrefix(err.Error(), "images: "))
		}
		held.Add(uint64(samples[i].bytes()))
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	if classes == nil {
		for i, s := range samples {
			if classes, err = classes.with(s.Labels); err != nil {
				return nil, nil, fmt.Errorf("images: %s: %w", pairs[i].Label, err)
			}
		}
	}
	return samples, classes, parallel(len(pairs), 0, func(i int) error {
		l, err := classes.Index(samples[i].Labels)
		if err != nil {
			return fmt.Errorf("images: %s: %s", pairs[i].Label, strings.TrimPrefix(err.Error(), "images: "))
		}
		samples[i].Labels = l
		return nil
	})
}

// ByClass returns the files of the folders in dir, one folder for each class, and the classes' names, both in the order of their names. class[i]
// is the index of the folder of path[i].
func ByClass(dir string) (names []string, path []string, class []int, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("images: %w", err)
	}
	for _, e := range entries {
		if info, err := os.Stat(filepath.Join(dir, e.Name())); err == nil && info.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	slices.SortFunc(names, natural)
	if len(names) < 2 || len(names) > 1<<16 {
		return nil, nil, nil, fmt.Errorf("images: %s has %s, want one for each class, 2 to 65536", dir, plural(len(names), "folder"))
	}
	for i, name := range names {
		all, err := files(filepath.Join(dir, name))
		if err != nil {
			return nil, nil, nil, err
		}
		for _, f := range all {
			path, class = append(path, f), append(class, i)
		}
	}
	return names, path, class, nil
}

// files returns the files of a folder in the order of their names.
func files(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	var all []string
	seen := map[string]string{}
	for _, e := range entries {
		if e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if other := seen[stem(path)]; other != "" {
			return nil, fmt.Errorf("images: %s and %s have one name, want names that differ before the ending", other, path)
		}
		seen[stem(path)] = path
		all = append(all, path)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("images: %s has no files, want images", dir)
	}
	slices.SortFunc(all, natural)
	return all, nil
}

// stem returns the name of a file without folder and ending.
func stem(path string) string {
	name := filepath.Base(path)
	name = strings.TrimSuffix(name, ".gz")
	return strings.TrimSuffix(name, filepath.Ext(name))
}

// natural compares names with numbers in them by the numbers' values.
func natural(a, b string) int {
	x, y := a, b
	for x != "" && y != "" {
		m, n := digits(x), digits(y)
		if m == 0 || n == 0 {
			m, n = 1, 1
		}
		p, q := x[:m], y[:n]
		if m > 1 || n > 1 {
			p, q = strings.TrimLeft(p, "0"), strings.TrimLeft(q, "0")
		}
		if c := cmp.Or(cmp.Compare(len(p), len(q)), cmp.Compare(p, q)); c != 0 {
			return c
		}
		x, y = x[m:], y[n:]
	}
	return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(a, b))
}

func digits(s string) (n int) {
	for n < len(s) && '0' <= s[n] && s[n] <= '9' {
		n++
	}
	return n
}
