package mamba_test

import (
	"fmt"
	"go/importer"
	"go/token"
	"go/types"
	"io"
	"math"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Nothing that a caller passes may end a program, hang it, or take its memory. call describes an exported function or method, with
// arguments that are right. The test calls it with each argument, and with each field of an argument, replaced by values that are
// wrong: nil, zero values, -1, 1<<40, 1<<62, NaN and infinities, shapes that fit nothing.
//
// Such a call returns an error, in its last result or in the Err of its first one. The exceptions are in two lists of patterns
// for "argument.field=value", where * stands for anything.
type call struct {
	name string
	f    any          // a function; a method as an expression, its receiver first
	args func() []any // right arguments; nil for none

	fine   []string // values that are not wrong, such as a zero that stands for a default
	panics []string // values that have no answer: a pattern, a colon, and the reason
	broken bool     // there are no right arguments without a GPU; so the call with args returns an error

	nilReceiver bool // it is a method that has no error to return, so that a nil receiver may panic, as everywhere in Go
}

// wrong is an argument that was replaced.
type wrong struct {
	what  string
	index int
	value reflect.Value
}

const (
	hang      = 30 * time.Second // far longer than any call takes
	mostBytes = 64 << 20         // what a call may allocate; the smallest size that is too large is 1<<40
)

func TestNothingPanicsOrHangs(t *testing.T) {
	stdout, stderr := os.Stdout, os.Stderr // Describe and report.Progress write there
	defer func() { os.Stdout, os.Stderr = stdout, stderr }()
	if null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	} else {
		defer null.Close()
		os.Stdout, os.Stderr = null, null
	}
	all := calls(t)
	t.Chdir(t.TempDir()) // for relative paths
	for _, c := range all {
		t.Run(c.name, func(t *testing.T) { c.test(t) })
	}
}

func (c call) test(t *testing.T) {
	if c.args == nil {
		c.args = func() []any { return nil }
	}
	f := reflect.ValueOf(c.f)
	used := map[string]bool{}
	listed := func(list []string, what string) bool {
		for _, entry := range list {
			pattern, _, _ := strings.Cut(entry, ":")
			if matches(pattern, what) || matches(pattern, strings.Replace(what, "=empty", "=nil", 1)) {
				used[entry] = true
				return true
			}
		}
		return false
	}
	answer, err := c.run(t, f, c.values(f), "right arguments")
	if answer == panicked {
		t.Errorf("with right arguments: %v", err)
	} else if answer == answered && (err != nil) != c.broken {
		t.Errorf("with right arguments: error %v", err)
	}
	for _, name := range c.wrongs(f, nil) {
		// Each call has arguments of its own: one may have changed them.
		args := c.values(f)
		w := c.wrongs(f, args)[name.index]
		args[w.index] = w.value
		answer, err := c.run(t, f, args, w.what)
		switch {
		case answer == panicked && !listed(c.panics, w.what) && !(c.nilReceiver && w.what == "0=nil"):
			t.Errorf("%s: %v", w.what, err)
		case answer == answered && err == nil && !listed(c.fine, w.what):
			t.Errorf("%s: no error", w.what)
		case testing.Verbose():
			t.Logf("%s: %v", w.what, err)
		}
	}
	for _, entry := range slices.Concat(c.fine, c.panics) {
		if !used[entry] && !c.broken {
			t.Errorf("nothing comes of the exception %q", entry)
		}
	}
}

// matches reports whether a pattern with * fits.
func matches(pattern, s string) bool {
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	s, ok := strings.CutPrefix(s, first)
	for i := 0; ok && i <= len(s); i++ {
		if matches(rest, s[i:]) {
			return true
		}
	}
	return false
}

// values returns right arguments, one for each parameter; those of a variadic one in a slice.
func (c call) values(f reflect.Value) (values []reflect.Value) {
	args := c.args()
	for i := range f.Type().NumIn() {
		in := f.Type().In(i)
		v := reflect.New(in).Elem()
		switch {
		case f.Type().IsVariadic() && i == f.Type().NumIn()-1:
			for _, a := range args[min(i, len(args)):] {
				v = reflect.Append(v, reflect.ValueOf(a).Convert(in.Elem()))
			}
		case i >= len(args):
			panic(fmt.Sprintf("%s: argument %d is missing", c.name, i))
		case args[i] != nil:
			v.Set(reflect.ValueOf(args[i]).Convert(in))
		}
		values = append(values, v)
	}
	return values
}

// wrongs returns the replacements of all arguments; index is the place in the list if args is nil, else the argument's.
func (c call) wrongs(f reflect.Value, args []reflect.Value) (all []wrong) {
	names := args == nil
	if names {
		args = c.values(f)
	}
	for i, v := range args {
		for _, w := range wrongValues(v, fmt.Sprint(i), 0) {
			w.index = i
			if names {
				w.index = len(all)
			}
			all = append(all, w)
		}
	}
	return all
}

var huge = []int64{1 << 40, 1 << 62}

// wrongValues returns what to try in the place of v.
func wrongValues(v reflect.Value, what string, depth int) (all []wrong) {
	t := v.Type()
	add := func(name string, value reflect.Value) {
		all = append(all, wrong{what: what + "=" + name, value: value})
	}
	switch t.Kind() {
	case reflect.Int, reflect.Int64, reflect.Int32, reflect.Int8, reflect.Int16:
		for _, n := range append([]int64{0, -1}, huge...) {
			if v := reflect.New(t).Elem(); !v.OverflowInt(n) {
				v.SetInt(n)
				add(fmt.Sprint(n), v)
			}
		}
	case reflect.Float64, reflect.Float32:
		for _, x := range []float64{0, -1, math.NaN(), math.Inf(1), math.Inf(-1)} {
			v := reflect.New(t).Elem()
			v.SetFloat(x)
			add(fmt.Sprint(x), v)
		}
	case reflect.String:
		for _, s := range []string{"", "\x00"} {
			v := reflect.New(t).Elem()
			v.SetString(s)
			add(fmt.Sprintf("%q", s), v)
		}
	case reflect.Pointer:
		add("nil", reflect.Zero(t))
		add("zero", reflect.New(t.Elem()))
		// What a caller fills in is an argument; the weights of a layer are its own.
		if e := t.Elem(); e.Kind() == reflect.Struct && strings.HasPrefix(e.PkgPath(), module) && e.PkgPath() != module+"layer" &&
			e.PkgPath() != module+"internal/build" && !v.IsNil() {
			for _, w := range wrongValues(v.Elem(), what, depth) {
				if w.what != what+"=zero" {
					p := reflect.New(e)
					p.Elem().Set(w.value)
					all = append(all, wrong{what: w.what, value: p})
				}
			}
		}
		if n, ok := v.Interface().(*G.Node); ok && n != nil {
			for name, n := range wrongNodes(n) {
				add(name, reflect.ValueOf(n))
			}
		}
	case reflect.Interface:
		add("nil", reflect.Zero(t))
		if !v.IsNil() && v.Elem().Kind() == reflect.Pointer {
			if e := v.Elem().Type(); e.Elem().Kind() == reflect.Struct {
				add("nil pointer", reflect.Zero(e).Convert(t))
				add("zero", reflect.New(e.Elem()).Convert(t))
			}
			if n, ok := v.Interface().(*G.Node); ok {
				for name, n := range wrongNodes(n) {
					add(name, reflect.ValueOf(n).Convert(t))
				}
			}
		}
	case reflect.Func, reflect.Map:
		add("nil", reflect.Zero(t))
	case reflect.Slice:
		if v.Len() > 0 {
			add("nil", reflect.Zero(t))
			add("empty", reflect.MakeSlice(t, 0, 0))
			for _, w := range wrongValues(v.Index(0), what+"[0]", depth+1) {
				s := reflect.AppendSlice(reflect.Zero(t), v)
				s.Index(0).Set(w.value)
				all = append(all, wrong{what: w.what, value: s})
			}
		} else if k := t.Elem().Kind(); k == reflect.Func || k == reflect.Pointer || k == reflect.Interface {
			add("[nil]", reflect.Append(v, reflect.Zero(t.Elem())))
		}
	case reflect.Struct:
		add("zero", reflect.Zero(t))
		for i := range t.NumField() {
			if f := t.Field(i); !f.IsExported() || f.Anonymous && (f.Type.Kind() != reflect.Struct || f.Type.PkgPath() == module+"internal/build") || depth > 4 {
				continue
			}
			name := what + "." + t.Field(i).Name
			for _, w := range wrongValues(v.Field(i), name, depth+1) {
				s := reflect.New(t).Elem()
				s.Set(v)
				s.Field(i).Set(w.value)
				all = append(all, wrong{what: w.what, value: s})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b wrong) int { return strings.Compare(a.what, b.what) }) // maps have no order
	return all
}

var nodes int

// wrongNodes returns inputs of other shapes and types than n. They have no values.
func wrongNodes(n *G.Node) map[string]*G.Node {
	all := map[string]*G.Node{}
	if n.Graph() == nil {
		return all
	}
	add := func(name string, g *G.ExprGraph, dt tensor.Dtype, shape tensor.Shape) {
		nodes++
		all[name] = G.NewTensor(g, dt, len(shape), G.WithShape(shape...), G.WithName(fmt.Sprintf("wrong%d", nodes)))
	}
	shape := n.Shape()
	for axis := range shape {
		for _, size := range huge {
			s := shape.Clone()
			s[axis] = int(size)
			add(fmt.Sprintf("axis %d of %d", axis, size), n.Graph(), n.Dtype(), s)
		}
	}
	add("of more axes", n.Graph(), n.Dtype(), append(shape.Clone(), 2, 2))
	add("of bools", n.Graph(), tensor.Bool, append(shape.Clone(), 2))
	if len(shape) > 0 {
		add("of another graph", G.NewGraph(), n.Dtype(), shape.Clone())
	}
	return all
}

// What became of a call: it returned and may have an error; it returned and can have none; it panicked.
const (
	answered = iota
	mute
	panicked
)

// run calls f. It fails the test if that takes for ever, or much memory.
func (c call) run(t *testing.T, f reflect.Value, args []reflect.Value, what string) (answer int, err error) {
	t.Helper()
	done := make(chan struct{})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				answer, err = panicked, fmt.Errorf("panics: %v%s", p, origin())
			}
		}()
		if f.Type().IsVariadic() {
			answer, err = result(f.CallSlice(args))
		} else {
			answer, err = result(f.Call(args))
		}
	}()
	watchdog := time.NewTimer(hang)
	defer watchdog.Stop()
	select {
	case <-done:
	case <-watchdog.C:
		t.Fatalf("%s: hangs", what)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > mostBytes {
		t.Errorf("%s: allocates %d MiB", what, n>>20)
	}
	return answer, err
}

// origin returns the first lines of ours on the stack of a panic.
func origin() string {
	stack := make([]byte, 16<<10)
	stack = stack[:runtime.Stack(stack, false)]
	var ours []string
	for line := range strings.Lines(string(stack)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "/") && !strings.Contains(line, "api_test.go") && len(ours) < 3 &&
			!strings.Contains(line, "/src/runtime/") && !strings.Contains(line, "/src/reflect/") {
			ours = append(ours, line[strings.LastIndex(line, "/")+1:])
		}
	}
	return " at " + strings.Join(ours, ", ")
}

// result returns the error of a call: its last result, or the Err of one of them.
func result(results []reflect.Value) (answer int, err error) {
	answer = mute
	for _, r := range results {
		if !r.CanInterface() || (r.Kind() == reflect.Pointer || r.Kind() == reflect.Interface || r.Kind() == reflect.Func) && r.IsNil() {
			if r.Type() == reflect.TypeFor[error]() {
				answer = answered
			}
			continue
		}
		if t := r.Type(); t == reflect.TypeFor[*G.Node]() || t == reflect.TypeFor[G.Nodes]() {
			continue // their method Err is not about the call
		}
		switch v := r.Interface().(type) {
		case error:
			return answered, v
		case interface{ Err() error }:
			answer = answered
			if e := v.Err(); e != nil {
				err = e
			}
		}
	}
	return answer, err
}

// The table has every exported function and method of the public packages.
func TestEveryNameIsCalled(t *testing.T) {
	table := map[string]bool{}
	for _, c := range calls(t) {
		if table[c.name] {
			t.Errorf("%s is in the table twice", c.name)
		}
		table[c.name] = true
	}
	names, err := exported()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !table[name] {
			t.Errorf("%s is not in the table", name)
		}
		delete(table, name)
	}
	for name := range table {
		t.Errorf("%s is in the table, and no exported name", name)
	}
}

const module = "github.com/gomamba/mamba/"

// public are the packages that users import.
var public = []string{
	"blas", "checkpoint", "cuda", "dist", "grad", "images", "layer", "nn", "op", "report", "task", "tokens", "train", "vision",
}

// exported returns the functions and methods of the public packages: "nn.NewLM", "nn.LM.Apply". Methods that come from an embedded type
// of ours are among them; those of other modules, and those of interfaces, are not.
var exported = sync.OnceValues(func() (names []string, err error) {
	args := []string{"list", "-export", "-deps", "-f", "{{.ImportPath}}\t{{.Export}}"}
	for _, p := range public {
		args = append(args, "./"+p)
	}
	list := exec.Command("go", args...)
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), "\t")
		files[path] = file
	}
	imports := importer.ForCompiler(token.NewFileSet(), "gc", func(path string) (io.ReadCloser, error) { return os.Open(files[path]) })
	for _, path := range public {
		p, err := imports.Import(module + path)
		if err != nil {
			return nil, err
		}
		for _, name := range p.Scope().Names() {
			switch object := p.Scope().Lookup(name).(type) {
			case *types.Func:
				if object.Exported() {
					names = append(names, p.Name()+"."+name)
				}
			case *types.TypeName:
				if !object.Exported() || types.IsInterface(object.Type()) {
					continue
				}
				of, named := types.Unalias(object.Type()).(*types.Named)
				if object.IsAlias() && !(named && of.Obj().Pkg() != nil && strings.HasPrefix(of.Obj().Pkg().Path(), module+"internal/")) || name == "Base" {
					continue // a type that has its own name in another public package; a part of all layers, which have its methods
				}
				methods := types.NewMethodSet(types.NewPointer(object.Type()))
				for i := range methods.Len() {
					if m := methods.At(i).Obj(); m.Exported() && strings.HasPrefix(m.Pkg().Path(), module) {
						names = append(names, p.Name()+"."+name+"."+m.Name())
					}
				}
			}
		}
	}
	return names, nil
})
