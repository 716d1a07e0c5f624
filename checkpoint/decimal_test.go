package checkpoint

import (
	"encoding/json"
	"testing"
)

// Numbers that are not integers in transformers are written with a point, since transformers refuses integers there.
func TestDecimal(t *testing.T) {
	for v, want := range map[decimal]string{1: "1.0", 0: "0.0", 0.001: "0.001", 1e-30: "1e-30", 1e300: "1e+300"} {
		if got, err := json.Marshal(v); err != nil || string(got) != want {
			t.Errorf("%v is written as %s (%v), want %s", float64(v), got, err, want)
		}
	}
	if _, err := json.Marshal(decimal(-1) / decimal(zero)); err == nil {
		t.Error("infinity is written")
	}
}

var zero float64
