package tensorfile

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Want is a tensor that a model needs.
type Want struct {
	Name  string
	Shape []int
	Dtype Dtype // by default any type that can be read as weights
}

// Misfit lists what is wrong between a model and its files.
type Misfit struct{ Missing, Superfluous, Misshapen []string }

// Match compares tensors with what is wanted, and returns all differences in one error. Tensors that nobody wants are superfluous if
// superfluous says so.
func Match(tensors map[string]*Tensor, wants []Want, superfluous func(name string) bool) error {
	var m Misfit
	wanted := make(map[string]bool, len(wants))
	for _, w := range wants {
		wanted[w.Name] = true
		t := tensors[w.Name]
		switch {
		case t == nil:
			m.Missing = append(m.Missing, w.Name+" "+shapeString(w.Shape))
		case !slices.Equal(t.Shape, w.Shape):
			m.Misshapen = append(m.Misshapen, fmt.Sprintf("%s is %s, want %s", w.Name, shapeString(t.Shape), shapeString(w.Shape)))
		case w.Dtype != "" && t.Dtype != w.Dtype:
			m.Misshapen = append(m.Misshapen, fmt.Sprintf("%s is of %s, want %s", w.Name, t.Dtype, w.Dtype))
		case !t.Dtype.Float() && w.Dtype == "":
			m.Misshapen = append(m.Misshapen, fmt.Sprintf("%s is of %s, want F32, F16, BF16 or F64", w.Name, t.Dtype))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(tensors)) {
		if !wanted[name] && superfluous(name) {
			m.Superfluous = append(m.Superfluous, name+" "+shapeString(tensors[name].Shape))
		}
	}
	return m.Err()
}

// Err returns all that is wrong in one error, nil if nothing is.
func (m Misfit) Err() error {
	n := len(m.Missing) + len(m.Superfluous) + len(m.Misshapen)
	if n == 0 {
		return nil
	}
	var s strings.Builder
	fmt.Fprintf(&s, "%d tensors do not fit:", n)
	for _, part := range []struct {
		what  string
		lines []string
	}{{"missing", m.Missing}, {"superfluous", m.Superfluous}, {"misshapen", m.Misshapen}} {
		for _, line := range part.lines {
			fmt.Fprintf(&s, "\n\t%s: %s", part.what, line)
		}
	}
	return fmt.Errorf("%s", s.String())
}

// shapeString writes a shape as Gorgonia does: (2, 3), (2), ().
func shapeString(shape []int) string {
	return "(" + strings.Trim(strings.ReplaceAll(fmt.Sprint(shape), " ", ", "), "[]") + ")"
}
