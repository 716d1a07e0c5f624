// Package size computes how many bytes an allocation will need, and compares them with the memory of the machine.
package size

import (
	"fmt"
	"math"
	"math/bits"
	"sync"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// Bytes is a number of bytes. A sum or product that exceeds Most is Most, so that an overflow cannot give a small number.
type Bytes uint64

// Most is the largest number of bytes. Fits rejects it on every machine.
const Most Bytes = math.MaxUint64

// Of returns the bytes of an array of elements of element bytes each, whose axes have the sizes n. A negative n counts as 0.
func Of(element uintptr, n ...int) Bytes {
	b := Bytes(element)
	for _, n := range n {
		b = b.Times(n)
	}
	return b
}

// Times returns n times b. A negative n counts as 0.
func (b Bytes) Times(n int) Bytes {
	over, product := bits.Mul64(uint64(b), uint64(max(n, 0)))
	if over != 0 {
		return Most
	}
	return Bytes(product)
}

// Plus returns b + c.
func (b Bytes) Plus(c Bytes) Bytes {
	sum, over := bits.Add64(uint64(b), uint64(c), 0)
	if over != 0 {
		return Most
	}
	return Bytes(sum)
}

// Fits returns an error if the machine has less memory than b. what names the things that need b bytes, such as "the weights".
func (b Bytes) Fits(what string) error {
	if b < Most && b <= Machine() {
		return nil
	}
	return fmt.Errorf("%s need %v, more than this machine's memory of %v", what, b, Machine())
}

// String returns the number with three digits and a unit: "1.5 GiB".
func (b Bytes) String() string {
	if b == Most {
		return "more than 16 EiB"
	}
	units := []string{"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	v := float64(b)
	for v >= 1000 && len(units) > 1 {
		v, units = v/1024, units[1:]
	}
	return fmt.Sprintf("%.3g %s", v, units[0])
}

// Machine returns the memory of the machine, or of the container that the process runs in, whichever is smaller.
var Machine = sync.OnceValue(func() Bytes {
	least := Bytes(min(1<<47, math.MaxInt)) // the address space of a 64-bit system, if neither limit is known, or the longest slice of a 32-bit one
	for _, limit := range []memlimit.Provider{memlimit.FromSystem, memlimit.FromCgroup} {
		if n, err := limit(); err == nil && n > 0 {
			least = min(least, Bytes(n))
		}
	}
	return least
})

// Axis returns an error if n cannot be the size of an axis: if n is below 1, or if a single row of n float32 does not fit into memory. The
// error continues a sentence that begins with the name of the size. After this check, n times a constant of up to 64 does not overflow.
func Axis(n int) error {
	if n < 1 {
		return fmt.Errorf("is %d, want at least 1", n)
	}
	if most := int(min(Machine()/4, math.MaxInt/64)); n > most {
		return fmt.Errorf("is %d, want at most %d: more do not fit into this machine's memory of %v", n, most, Machine())
	}
	return nil
}

// Product returns the product of numbers that are not negative, or the largest int if it is larger.
func Product(n ...int) int {
	return int(min(Of(1, n...), math.MaxInt))
}
