package size

import (
	"math"
	"strings"
	"testing"
)

func TestBytes(t *testing.T) {
	const huge = math.MaxInt/2 + 1 // 1<<62 if an int has 64 bits
	for _, c := range []struct {
		got, want Bytes
	}{
		{Of(4, 2, 3), 24},
		{Of(8), 8},
		{Of(8, -1, 5), 0},
		{Of(8, huge, 0), 0},
		{Of(4, huge, huge), Most},
		{Of(8, huge, 2), Most},
		{Of(1, 0).Times(huge), 0},
		{Bytes(7).Plus(8), 15},
		{Most.Plus(1), Most},
		{Bytes(Most - 1).Plus(1), Most},
	} {
		if c.got != c.want {
			t.Errorf("%d, want %d", uint64(c.got), uint64(c.want))
		}
	}
	if got := Product(3, 4, 5); got != 60 {
		t.Errorf("3·4·5 is %d", got)
	}
	if got := Product(huge, 2); got != math.MaxInt {
		t.Errorf("a product that overflows is %d, want %d", got, math.MaxInt)
	}
}

func TestString(t *testing.T) {
	for b, want := range map[Bytes]string{
		0: "0 bytes", 999: "999 bytes", 1000: "0.977 KiB", 1 << 20: "1 MiB", 3 << 29: "1.5 GiB", 1 << 62: "4 EiB", Most: "more than 16 EiB",
	} {
		if got := b.String(); got != want {
			t.Errorf("%d is %q, want %q", uint64(b), got, want)
		}
	}
}

func TestFits(t *testing.T) {
	memory := Machine()
	if memory < 1<<20 || memory > 1<<47 {
		t.Fatalf("this machine has %v of memory", memory)
	}
	for _, b := range []Bytes{0, 1, memory} {
		if err := b.Fits("the weights"); err != nil {
			t.Error(err)
		}
	}
	for _, b := range []Bytes{memory + 1, 1 << 60, Most} {
		err := b.Fits("the weights")
		if want := "the weights need " + b.String() + ", more than this machine's memory of " + memory.String(); err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

func TestAxis(t *testing.T) {
	for _, n := range []int{1, 2, 1 << 16} {
		if err := Axis(n); err != nil {
			t.Error(err)
		}
	}
	for n, want := range map[int]string{0: "is 0, want at least 1", -3: "is -3, want at least 1", math.MaxInt: "more do not fit"} {
		if err := Axis(n); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}
