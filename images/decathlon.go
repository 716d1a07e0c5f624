package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/gomamba/mamba/internal/tensorfile"
)

// Dataset is a data set in the layout of the Medical Segmentation Decathlon (http://medicaldecathlon.com).
type Dataset struct {
	Name     string
	Modality []string // of each channel: "CT", "MRI", "FLAIR"…
	Classes  Classes  // the labels' values
	Labels   []string // their names
	Training []Pair
	Test     []string // paths of images without labels
}

// Decathlon reads dataset.json in a folder, which names the images in imagesTr, their labels in labelsTr, and the images in imagesTs. A file that
// is missing, or that lies outside of the folder, is an error that names it. Test leaves out images that are missing: training needs none of them.
func Decathlon(dir string) (*Dataset, error) {
	path := filepath.Join(dir, "dataset.json")
	text, err := tensorfile.ReadFile(path, 1<<26)
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	d, err := decathlon(dir, text)
	if err != nil {
		return nil, fmt.Errorf("images: %s: %w", path, err)
	}
	return d, nil
}

func decathlon(dir string, text []byte) (*Dataset, error) {
	var file struct {
		Name     string
		Modality map[string]string
		Labels   map[string]string
		Training []struct{ Image, Label string }
		Test     []string
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, err
	}
	if len(file.Training) == 0 {
		return nil, errors.New(`"training" has no images`)
	}
	d := &Dataset{Name: file.Name}
	for c := range len(file.Modality) {
		m, ok := file.Modality[strconv.Itoa(c)]
		if !ok {
			return nil, fmt.Errorf(`"modality" has %d entries, but none for channel %d`, len(file.Modality), c)
		}
		d.Modality = append(d.Modality, m)
	}
	if len(file.Labels) < 2 || len(file.Labels) > MaxClasses {
		return nil, fmt.Errorf(`"labels" has %d entries, want 2 to %d`, len(file.Labels), MaxClasses)
	}
	names := map[int32]string{}
	for key, name := range file.Labels {
		v, err := strconv.ParseInt(key, 10, 32)
		if err != nil {
			return nil, fmt.Errorf(`"labels" has the value %q, want an integer`, key)
		}
		d.Classes, names[int32(v)] = append(d.Classes, int32(v)), name
	}
	slices.Sort(d.Classes)
	if d.Classes = slices.Compact(d.Classes); len(d.Classes) != len(file.Labels) {
		return nil, errors.New(`"labels" has a value twice`)
	}
	for _, v := range d.Classes {
		d.Labels = append(d.Labels, names[v])
	}
	in := func(name string) (string, error) {
		if !filepath.IsLocal(filepath.FromSlash(name)) {
			return "", fmt.Errorf("names the file %q, want a path inside of the folder", name)
		}
		path := filepath.Join(dir, filepath.FromSlash(name))
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("names the file %s, which cannot be read: %w", path, err)
		}
		return path, nil
	}
	for _, t := range file.Training {
		image, err := in(t.Image)
		if err != nil {
			return nil, err
		}
		label, err := in(t.Label)
		if err != nil {
			return nil, err
		}
		d.Training = append(d.Training, Pair{stem(image), image, label})
	}
	for _, t := range file.Test {
		path, err := in(t)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		d.Test = append(d.Test, path)
	}
	return d, nil
}
