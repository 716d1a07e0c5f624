package tensorfile

import (
	"encoding/binary"
	"math"
	"testing"
)

// All of float16, against a definition; bfloat16 is the upper half of float32.
func TestHalves(t *testing.T) {
	for i := range 1 << 16 {
		h := uint16(i)
		sign, exponent, fraction := 1-2*float64(h>>15), int(h>>10&31), float64(h&0x3ff)/1024
		want := sign * math.Ldexp(1+fraction, exponent-15)
		switch {
		case exponent == 0:
			want = sign * math.Ldexp(fraction, -14)
		case exponent == 31 && fraction == 0:
			want = sign * math.Inf(1)
		case exponent == 31:
			want = math.NaN()
		}
		from := binary.LittleEndian.AppendUint16(nil, h)
		var got [1]float32
		_, err := decode(got[:], from, Float16)
		if math.IsNaN(want) {
			if err == nil {
				t.Fatalf("%#04x is %v, want an error", h, got[0])
			}
		} else if err != nil || math.Float64bits(float64(got[0])) != math.Float64bits(want) {
			t.Fatalf("%#04x is %v (%v), want %v", h, got[0], err, want)
		}
		_, err = decode(got[:], from, BFloat16)
		if b := math.Float32frombits(uint32(h) << 16); (err == nil) != (b == b) || b == b && math.Float32bits(got[0]) != math.Float32bits(b) {
			t.Fatalf("%#04x in bfloat16 is %v (%v), want %v", h, got[0], err, b)
		}
	}
}

// A float64 on file that float32 cannot hold is an error.
func TestTooLarge(t *testing.T) {
	b := binary.LittleEndian.AppendUint64(nil, math.Float64bits(1e300))
	var single [1]float32
	if _, err := decode(single[:], b, Float64); err == nil || err.Error() != "is 1e+300, too large for float32" {
		t.Errorf("%v", err)
	}
	var double [1]float64
	if _, err := decode(double[:], b, Float64); err != nil || double[0] != 1e300 {
		t.Errorf("%v, %v", double[0], err)
	}
	inf := binary.LittleEndian.AppendUint64(nil, math.Float64bits(math.Inf(-1)))
	if _, err := decode(single[:], inf, Float64); err != nil || !math.IsInf(float64(single[0]), -1) {
		t.Errorf("%v, %v", single[0], err)
	}
}
