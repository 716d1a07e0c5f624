package images

import (
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/gomamba/mamba/internal/size"
)

// MaxClasses is how many different values maps of labels may have. More are not classes but, for example, numbers of instances.
const MaxClasses = 256

// Classes are the values of labels in increasing order. The class of a value is its index.
type Classes []int32

// ClassesOf returns the different values of some maps of labels. The error says if there are more than MaxClasses.
func ClassesOf(labels ...*Labels) (Classes, error) {
	if len(labels) == 0 {
		return nil, errors.New("images: there are no labels, want at least one map")
	}
	var all Classes
	for _, l := range labels {
		if err := l.check(); err != nil {
			return nil, err
		}
		var err error
		if all, err = all.with(l); err != nil {
			return nil, fmt.Errorf("images: %w", err)
		}
	}
	return all, nil
}

// with returns the classes together with those of one more map.
func (c Classes) with(l *Labels) (Classes, error) {
	seen := map[int32]bool{}
	for _, v := range c {
		seen[v] = true
	}
	for start := range runs(l.Values) {
		if seen[l.Values[start]] = true; len(seen) > MaxClasses {
			return nil, fmt.Errorf("the labels have more than %d different values, want at most %d, one for each class", MaxClasses, MaxClasses)
		}
	}
	c = c[:0:0]
	for v := range seen {
		c = append(c, v)
	}
	slices.Sort(c)
	return c, nil
}

// runs goes through the runs of equal values: where each begins and where it ends. Labels have few of them, so a look into a map for each costs
// little.
func runs(values []int32) iter.Seq2[int, int] {
	return func(yield func(start, end int) bool) {
		for start, end := 0, 0; start < len(values); start = end {
			for end = start + 1; end < len(values) && values[end] == values[start]; end++ {
			}
			if !yield(start, end) {
				return
			}
		}
	}
}

// Index returns the map with the class of each value in the place of the value. The error says which value is not in c.
func (c Classes) Index(l *Labels) (*Labels, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	if !slices.IsSorted(c) {
		return nil, fmt.Errorf("images: the classes %v are not in increasing order", c)
	}
	return c.translate(l, func(v int32) (int32, error) {
		class, ok := slices.BinarySearch(c, v)
		if !ok {
			return 0, fmt.Errorf("images: a label has the value %s, want one of %v", valueString(v), c)
		}
		return int32(class), nil
	})
}

// Values returns the map with the value of each class in the place of the class: it undoes Index. The error says which class is not in c.
func (c Classes) Values(l *Labels) (*Labels, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	return c.translate(l, func(v int32) (int32, error) {
		if v < 0 || int(v) >= len(c) {
			return 0, fmt.Errorf("images: a cell has class %d, want 0 to %d", v, len(c)-1)
		}
		return c[v], nil
	})
}

func (c Classes) translate(l *Labels, f func(int32) (int32, error)) (*Labels, error) {
	if err := size.Of(4, len(l.Values)).Fits("the labels"); err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	out := *l
	out.Values = make([]int32, len(l.Values))
	var last, to int32
	for i, v := range l.Values {
		if i == 0 || v != last {
			var err error
			if to, err = f(v); err != nil {
				return nil, err
			}
			last = v
		}
		out.Values[i] = to
	}
	return &out, nil
}

// valueString returns a label's value, and its colour if it is one.
func valueString(v int32) string {
	if v >= colored {
		return fmt.Sprintf("#%06x", v&(colored-1))
	}
	return fmt.Sprint(v)
}
