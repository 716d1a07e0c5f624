package checkpoint

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// maxSize bounds every size that a configuration may name, so that products of two fit.
const maxSize = 1 << 28

// options reads a configuration's fields. What is wrong is gathered; what was never asked for is wrong too, since it could
// change the mathematics.
type options struct {
	prefix string
	raw    map[string]json.RawMessage
	asked  map[string]bool
	wrong  *[]string
}

func newOptions(text []byte) (*options, error) {
	o := &options{asked: map[string]bool{}, wrong: new([]string)}
	if err := json.Unmarshal(text, &o.raw); err != nil {
		return nil, err
	}
	return o, nil
}

// has reports whether a field is there; null stands for its default.
func (o *options) has(name string) bool {
	o.asked[name] = true
	raw, ok := o.raw[name]
	return ok && string(raw) != "null"
}

func (o *options) fail(name, want string) {
	*o.wrong = append(*o.wrong, fmt.Sprintf("%s%s is %s, want %s", o.prefix, name, short(string(o.raw[name])), want))
}

func short(s string) string {
	if len(s) > 100 {
		s = strings.ToValidUTF8(s[:100], "") + "…"
	}
	return s
}

// read decodes a field, or returns the default.
func read[T any](o *options, name string, fallback T, want string) T {
	if !o.has(name) {
		return fallback
	}
	var v T
	if err := json.Unmarshal(o.raw[name], &v); err != nil {
		o.fail(name, want)
		return fallback
	}
	return v
}

// size reads a whole number from least up.
func (o *options) size(name string, fallback, least int) int {
	want := fmt.Sprintf("a whole number from %d to %d", least, maxSize)
	v := read(o, name, float64(fallback), want) // Python writes some of them as 2.0
	if v != math.Trunc(v) || v < float64(least) || v > maxSize {
		o.fail(name, want)
		return fallback
	}
	return int(v)
}

// rank is a size that may be "auto".
func (o *options) rank(name string, model int) int {
	auto := (model + 15) / 16
	if o.has(name) && string(o.raw[name]) == `"auto"` {
		return auto
	}
	return o.size(name, auto, 1)
}

// positive reads a positive number.
func (o *options) positive(name string, fallback float64) float64 {
	v := read(o, name, fallback, "a positive number")
	if !(v > 0) {
		o.fail(name, "a positive number")
		return fallback
	}
	return v
}

func (o *options) truth(name string, fallback bool) bool {
	return read(o, name, fallback, "true or false")
}

// only holds a field, if it is there, against the values that are supported, in JSON.
func (o *options) only(name string, values ...string) {
	if o.has(name) && !slices.Contains(values, string(o.raw[name])) {
		o.fail(name, "no other than "+strings.Join(values, " or "))
	}
}

// ignore passes over fields that change nothing about the mathematics of a trained model.
func (o *options) ignore(names string) {
	for _, name := range strings.Fields(names) {
		o.asked[name] = true
	}
}

// part returns the fields of an object within.
func (o *options) part(name string) *options {
	inner := read(o, name, map[string]json.RawMessage{}, "an object")
	return &options{o.prefix + name + ".", inner, map[string]bool{}, o.wrong}
}

// unknown adds an error for each field that nobody asked for. Names that start with an underscore are notes.
func (o *options) unknown() {
	for _, name := range slices.Sorted(maps.Keys(o.raw)) {
		if !o.asked[name] && !strings.HasPrefix(name, "_") && string(o.raw[name]) != "null" {
			*o.wrong = append(*o.wrong, fmt.Sprintf("%s%s is %s, an option that is not supported", o.prefix, short(name), short(string(o.raw[name]))))
		}
	}
}

func (o *options) err() error {
	if len(*o.wrong) == 0 {
		return nil
	}
	return fmt.Errorf("config.json: %s", strings.Join(*o.wrong, "; "))
}
