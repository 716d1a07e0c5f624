package cuda

import (
	"fmt"
	"math"
)

// expect returns an error that names the first array that is too short. sizes holds triples of name, length and least length.
func expect(what string, sizes ...any) error {
	for i := 0; i < len(sizes); i += 3 {
		if err := fits(what, sizes[i].(string), sizes[i+1].(int), sizes[i+2].(int)); err != nil {
			return err
		}
	}
	return nil
}

// fits is expect for one array. It takes less time, since it makes no interfaces.
func fits(what, name string, n, want int) error {
	if n < want {
		return fmt.Errorf("cuda: %s: %s has %d elements, want %d", what, name, n, want)
	}
	return nil
}

// fitsIf is fits for an array that may be absent.
func fitsIf[T Element](what, name string, a Array[T], want int) error {
	if a.Absent() {
		return nil
	}
	return fits(what, name, a.n, want)
}

// optional is expect for arrays that may be absent. sizes holds triples of name, array and least length.
func optional(what string, sizes ...any) error {
	for i := 0; i < len(sizes); i += 3 {
		if a := sizes[i+1].(sized); !a.Absent() {
			if err := expect(what, sizes[i], a.Len(), sizes[i+2]); err != nil {
				return err
			}
		}
	}
	return nil
}

// present returns an error if a required array is absent.
func present(what, name string, a sized) error {
	if a.Absent() {
		return fmt.Errorf("cuda: %s: %s is absent, want an array", what, name)
	}
	return nil
}

// sized is an Array of any type.
type sized interface {
	Absent() bool
	Len() int
}

// atLeast returns an error that names the first size below least. sizes holds pairs of name and size.
func atLeast(least int, what string, sizes ...any) error {
	for i := 0; i < len(sizes); i += 2 {
		if n := sizes[i+1].(int); n < least {
			return fmt.Errorf("cuda: %s: %s is %d, want at least %d", what, sizes[i], n, least)
		}
	}
	return nil
}

// missing is the error for a struct of operands that is nil.
func missing(what string) error {
	return fmt.Errorf("cuda: %s: the operands are nil, want their sizes and arrays", what)
}

// checkEps reports what RMSNorm cannot add to a mean of squares.
func checkEps(what string, eps float32) error {
	if !(eps >= 0) || math.IsInf(float64(eps), 1) {
		return fmt.Errorf("cuda: %s: eps is %v, want a finite number of at least 0", what, eps)
	}
	return nil
}

// inRow returns an error if the stride between rows is less than their width.
func inRow(what, name string, stride, width int) error {
	if stride < width {
		return fmt.Errorf("cuda: %s: %s is %d, want at least the %d elements of a row", what, name, stride, width)
	}
	return nil
}

// count returns the product of sizes that are not negative, or the largest int if the product overflows. No array is that long.
func count(sizes ...int) int {
	n := 1
	for _, size := range sizes {
		switch {
		case size == 0:
			return 0
		case n > math.MaxInt/size:
			n = math.MaxInt
		default:
			n *= size
		}
	}
	return n
}

// strided returns the number of elements from the beginning of the first row to the end of the last, or the largest int if it overflows.
func strided(rows, stride, width int) int {
	if rows == 0 {
		return 0
	}
	if n := count(rows-1, stride); n <= math.MaxInt-width {
		return n + width
	}
	return math.MaxInt
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
