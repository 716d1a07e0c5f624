// Package jsonoptions reads configurations in JSON that other programs wrote. Each field must be read, or be known to change
// nothing. Any other field is an error, since it could change the mathematics.
package jsonoptions

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// MaxSize bounds every size that a configuration may name, so that the product of two sizes fits into an int64.
const MaxSize = 1 << 28

// Options are the fields of a JSON object. Methods that read a field note what is wrong with it, for Err.
type Options struct {
	file   string
	prefix string
	raw    map[string]json.RawMessage
	asked  map[string]bool
	wrong  *[]string
}

// Parse returns the fields of the object in a file, whose name is for errors.
func Parse(file string, text []byte) (*Options, error) {
	o := &Options{file: file, asked: map[string]bool{}, wrong: new([]string)}
	if err := json.Unmarshal(text, &o.raw); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return o, nil
}

// Has reports whether a field is there. A field that is null is not there.
func (o *Options) Has(name string) bool {
	o.asked[name] = true
	raw, ok := o.raw[name]
	return ok && string(raw) != "null"
}

// Text returns a field as it is written.
func (o *Options) Text(name string) string { return string(o.raw[name]) }

// Fail notes that a field is wrong, and what it should be, unless it is known already that the field is wrong.
func (o *Options) Fail(name, want string) {
	if slices.ContainsFunc(*o.wrong, func(w string) bool { return strings.HasPrefix(w, o.prefix+name+" is ") }) {
		return
	}
	was := "missing"
	if raw, ok := o.raw[name]; ok {
		was = short(string(raw))
	}
	*o.wrong = append(*o.wrong, fmt.Sprintf("%s%s is %s, want %s", o.prefix, name, was, want))
}

func short(s string) string {
	if len(s) > 100 {
		s = strings.ToValidUTF8(s[:100], "") + "…"
	}
	return s
}

// Read decodes a field. It returns fallback if the field is not there.
func Read[T any](o *Options, name string, fallback T, want string) T {
	if !o.Has(name) {
		return fallback
	}
	var v T
	if err := json.Unmarshal(o.raw[name], &v); err != nil {
		o.Fail(name, want)
		return fallback
	}
	return v
}

// Size reads a whole number from least to MaxSize.
func (o *Options) Size(name string, fallback, least int) int {
	want := fmt.Sprintf("a whole number from %d to %d", least, MaxSize)
	v := Read(o, name, float64(fallback), want) // Python writes some of them as 2.0
	if v != math.Trunc(v) || v < float64(least) || v > MaxSize {
		o.Fail(name, want)
		return fallback
	}
	return int(v)
}

// Positive reads a positive number.
func (o *Options) Positive(name string, fallback float64) float64 {
	v := Read(o, name, fallback, "a positive number")
	if !(v > 0) {
		o.Fail(name, "a positive number")
		return fallback
	}
	return v
}

// Truth reads true or false.
func (o *Options) Truth(name string, fallback bool) bool {
	return Read(o, name, fallback, "true or false")
}

// Only checks that a field, if it is there, has one of the values that are supported, in JSON.
func (o *Options) Only(name string, values ...string) {
	if o.Has(name) && !slices.Contains(values, string(o.raw[name])) {
		o.Fail(name, "no other than "+strings.Join(values, " or "))
	}
}

// Off checks that fields, separated by spaces, are not there or say that an option is off: false, 0, "", [] or {}.
func (o *Options) Off(names string) {
	for _, name := range strings.Fields(names) {
		if o.Has(name) && !off(o.raw[name]) {
			*o.wrong = append(*o.wrong, fmt.Sprintf("%s%s is %s, which is not supported", o.prefix, name, short(string(o.raw[name]))))
		}
	}
}

func off(raw json.RawMessage) bool {
	var v any
	if json.Unmarshal(raw, &v) != nil {
		return false
	}
	switch v := v.(type) {
	case map[string]any:
		return len(v) == 0
	case []any:
		return len(v) == 0
	}
	return v == nil || v == false || v == "" || v == 0.0
}

// Ignore passes over fields, separated by spaces, that do not change the mathematics of a trained model.
func (o *Options) Ignore(names string) {
	for _, name := range strings.Fields(names) {
		o.asked[name] = true
	}
}

// Part returns the fields of an object within.
func (o *Options) Part(name string) *Options {
	inner := Read(o, name, map[string]json.RawMessage{}, "an object")
	return &Options{o.file, o.prefix + name + ".", inner, map[string]bool{}, o.wrong}
}

// Unknown notes an error for each field that nobody asked for. Names that start with an underscore are comments.
func (o *Options) Unknown() {
	for _, name := range slices.Sorted(maps.Keys(o.raw)) {
		if !o.asked[name] && !strings.HasPrefix(name, "_") && string(o.raw[name]) != "null" {
			*o.wrong = append(*o.wrong, fmt.Sprintf("%s%s is %s, an option that is not supported", o.prefix, short(name), short(string(o.raw[name]))))
		}
	}
}

// UnknownOff is like Unknown, but an unknown field may say that its option is off.
func (o *Options) UnknownOff() {
	for name, raw := range o.raw {
		if off(raw) {
			o.asked[name] = true
		}
	}
	o.Unknown()
}

// Err returns all that is wrong in one error.
func (o *Options) Err() error {
	if len(*o.wrong) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %s", o.file, strings.Join(*o.wrong, "; "))
}
