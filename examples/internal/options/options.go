// Package options is what the examples' command lines share.
package options

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"strconv"
)

// Parse reads the flags of a program. Its errors are one line that names the flag, what it was and what it should be. With -h
// the program's purpose and its flags are written to usage, and the error is flag.ErrHelp. extra is what an argument that is no
// flag is told.
func Parse(flags *flag.FlagSet, args []string, usage io.Writer, purpose, extra string) error {
	// The flag package would print all flags after every error, where one clear line is enough.
	flags.SetOutput(io.Discard)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(usage, purpose)
			flags.SetOutput(usage)
			flags.PrintDefaults()
		}
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: %s", flags.Arg(0), extra)
	}
	return nil
}

// Whole is a flag for a whole number with a least value. Its default is the value beforehand.
func Whole(flags *flag.FlagSet, value *int, least int, name, usage string) {
	flags.Var(whole{value, least}, name, usage)
}

// Number is a flag for a finite number with a least value.
func Number(flags *flag.FlagSet, value *float64, least float64, name, usage string) {
	flags.Var(number{value, least}, name, usage)
}

// Positive is the least value of a Number that is above 0.
const Positive = math.SmallestNonzeroFloat64

type whole struct {
	value *int
	least int
}

func (w whole) String() string {
	if w.value == nil {
		return ""
	}
	return strconv.Itoa(*w.value)
}

func (w whole) Set(s string) error {
	v, err := strconv.Atoi(s)
	if err != nil || v < w.least {
		return fmt.Errorf("should be a whole number, at least %d", w.least)
	}
	*w.value = v
	return nil
}

type number struct {
	value *float64
	least float64
}

func (n number) String() string {
	if n.value == nil {
		return ""
	}
	return strconv.FormatFloat(*n.value, 'g', -1, 64)
}

func (n number) Set(s string) error {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || !(v >= n.least) || math.IsInf(v, 0) {
		if n.least > 0 {
			return fmt.Errorf("should be a number above 0")
		}
		return fmt.Errorf("should be a number, at least %v", n.least)
	}
	*n.value = v
	return nil
}
