// Package options has what the command lines of the examples share.
package options

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Parse reads the flags of a program. Its errors are one line that names the flag, the value and what it should be. With -h, Parse
// writes the program's purpose and its flags to usage, and returns flag.ErrHelp. extra is the advice for an argument that is not a
// flag.
func Parse(flags *flag.FlagSet, args []string, usage io.Writer, purpose, extra string) error {
	// The flag package would print all flags after each error.
	flags.SetOutput(io.Discard)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			describe(usage, flags, purpose)
		}
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: %s", flags.Arg(0), extra)
	}
	return nil
}

// describe writes a purpose and flags in lines of at most 80 columns. A flag has its type's name, or the name in back quotes in its
// usage, and its default, unless the usage names a default itself.
func describe(out io.Writer, flags *flag.FlagSet, purpose string) {
	wrap(out, "", purpose)
	flags.VisitAll(func(f *flag.Flag) {
		kind, usage := flag.UnquoteUsage(f)
		switch f.Value.(type) {
		case whole:
			kind = "int"
		case number:
			kind = "float"
		}
		fmt.Fprintln(out, strings.TrimRight("  -"+f.Name+" "+kind, " "))
		if !strings.Contains(usage, "(default") && f.DefValue != "" && f.DefValue != "false" {
			usage += fmt.Sprintf(" (default %s)", f.DefValue)
		}
		wrap(out, "        ", usage)
	})
}

// wrap writes text in lines of at most 80 columns, each after an indent.
func wrap(out io.Writer, indent, text string) {
	line := indent
	for i, word := range strings.Fields(text) {
		if i > 0 {
			if utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > 80 {
				fmt.Fprintln(out, line)
				line = indent
			} else {
				line += " "
			}
		}
		line += word
	}
	fmt.Fprintln(out, line)
}

// Whole adds a flag for a whole number that is at least least. Its default is what value holds.
func Whole(flags *flag.FlagSet, value *int, least int, name, usage string) {
	flags.Var(whole{value, least}, name, usage)
}

// Number adds a flag for a finite number that is at least least. Its default is what value holds.
func Number(flags *flag.FlagSet, value *float64, least float64, name, usage string) {
	flags.Var(number{value, least}, name, usage)
}

// Positive is the least value of a Number that must be above 0.
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

// Unused returns an error if a flag was given that has no effect beside the flag with. used are those that have one.
func Unused(flags *flag.FlagSet, with string, used ...string) (err error) {
	flags.Visit(func(f *flag.Flag) {
		if err == nil && !slices.Contains(used, f.Name) {
			err = fmt.Errorf("-%s has no effect with -%s: leave it out", f.Name, with)
		}
	})
	return err
}

// Files takes the files after a flag from the arguments, up to the next flag. Without a file the flag stays, and Parse returns its error.
func Files(args []string, name string) (rest, files []string) {
	for i := 0; i < len(args); i++ {
		at := i
		if args[i] == "-"+name || args[i] == "--"+name {
			for i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
				i++
				files = append(files, args[i])
			}
		}
		if i == at {
			rest = append(rest, args[i])
		}
	}
	return rest, files
}
