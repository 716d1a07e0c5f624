package checkpoint

import (
	"fmt"
	"slices"
	"strings"
)

// Limits of released files. The largest pickles have the curves of a training run as arrays of numbers, tens of megabytes in few objects.
const (
	maxReleased        = 64 << 20 // bytes of the pickle
	maxReleasedObjects = 1 << 21
)

// stateNames are the names that projects give to the state_dict in their files, in the order of preference.
var stateNames = []string{"model", "state_dict", "model_state_dict", "network_weights", "net", "module", "model_ema", "state_dict_ema"}

// hostileModules are modules whose functions attacks name. No file of weights needs them. The list does not protect us, since nothing is called whatever
// its name is. It protects the next reader of such a file, who learns what is in it.
var hostileModules = []string{
	"os", "posix", "nt", "_posixsubprocess", "operator", "pydoc", "cProfile", "profile", "platform", "sys", "subprocess", "socket", "shutil", "ctypes", "runpy", "importlib", "pty", "code", "codeop", "commands", "pickle",
	"_pickle", "marshal", "webbrowser", "asyncio", "multiprocessing", "http", "urllib", "requests", "pip", "pdb", "bdb", "timeit", "tempfile",
}

// builtinTypes are the names of the module of built-in functions that are types. All others are functions, such as eval.
var builtinTypes = []string{"set", "frozenset", "list", "dict", "tuple", "object", "int", "long", "float", "complex", "bool", "str", "unicode", "bytes",
	"bytearray", "slice", "range", "xrange", "type"}

// pushAny pushes a name of a released file. It is only a name: nothing is imported.
func (u *unpickler) pushAny(g global) error {
	parts := strings.Split(string(g), ".") // pickle looks a name up part by part, so torch.os.system is os.system
	hostile := slices.ContainsFunc(parts, func(s string) bool { return slices.Contains(hostileModules, s) }) || strings.HasPrefix(string(g), "torch.hub.") || strings.HasPrefix(string(g), "numpy.testing.")
	if module := parts[0]; module == "builtins" || module == "__builtin__" {
		hostile = !slices.Contains(builtinTypes, string(g[len(module)+1:]))
	}
	if hostile {
		return fmt.Errorf("it names %q, which a file of weights has no use for; nothing is called, but do not open this file elsewhere", string(g))
	}
	return u.push(g)
}

// reduceReleased steps over calls of functions that do not make a tensor or a dictionary.
func (u *unpickler) reduceReleased(f any, args tuple) error {
	switch f {
	case orderedDict, global("collections.defaultdict"):
		return u.push(new(dict))
	case rebuildFromType: // (function, type, arguments, state)
		if len(args) < 3 {
			break
		}
		if inner, ok := args[2].(tuple); ok {
			return u.reduceReleased(args[0], inner)
		}
	case rebuildTensor, rebuildParameter, rebuildWithState:
		if len(args) == 0 {
			break
		}
		switch args[0].(type) {
		case *other: // a storage or a tensor of integers
			return u.push(&other{"torch.Tensor"})
		case *view:
			f = rebuildParameter
		}
		return u.rebuild(f, args)
	}
	class, _ := f.(global)
	return u.push(&other{class})
}

// skip steps over n bytes of an object.
func (u *unpickler) skip(n int64, class global) error {
	if n < 0 || n > int64(len(u.text)-u.at) {
		return fmt.Errorf("an object of %d bytes, but the pickle ends after %d", uint64(n), len(u.text)-u.at)
	}
	u.at += int(n)
	return u.push(&other{class})
}

// stepReleased does the opcodes of objects, and those of later protocols than torch.save's.
func (u *unpickler) stepReleased(op byte) error {
	long := func(bytes int) (int64, error) { // the next 4 or 8 bytes
		low, err := u.number(min(bytes, 4))
		if err != nil || bytes < 8 {
			return int64(low), err
		}
		high, err := u.number(4)
		return int64(high)<<32 | int64(low), err
	}
	skip := func(bytes int, class global) error {
		n, err := long(bytes)
		if err != nil {
			return err
		}
		return u.skip(n, class)
	}
	switch op {
	case 0x81, 0x92: // NEWOBJ, NEWOBJ_EX
		n := 2
		if op == 0x92 {
			n = 3
		}
		if err := u.pushTuple(n); err != nil {
			return err
		}
		all := u.stack[len(u.stack)-1].(tuple)
		u.stack = u.stack[:len(u.stack)-1]
		class, _ := all[0].(global)
		if class == orderedDict {
			return u.push(new(dict))
		}
		return u.push(&other{class})
	case 'U', 'C': // SHORT_BINSTRING, SHORT_BINBYTES
		return skip(1, "bytes")
	case 'T', 'B': // BINSTRING, BINBYTES
		return skip(4, "bytes")
	case 0x8e, 0x96: // BINBYTES8, BYTEARRAY8
		return skip(8, "bytes")
	case 0x8d: // BINUNICODE8
		return skip(8, "str")
	case 0x8b: // LONG4
		return skip(4, "int")
	case 0x8c: // SHORT_BINUNICODE
		n, err := u.number(1)
		if err != nil {
			return err
		}
		return u.pushText(int(n))
	case 0x8f: // EMPTY_SET
		return u.push(new(list))
	case 0x90: // ADDITEMS
		return u.fill('e')
	case 0x91: // FROZENSET
		if _, err := u.popMark(); err != nil {
			return err
		}
		return u.push(&other{"frozenset"})
	case 0x93: // STACK_GLOBAL
		if err := u.pushTuple(2); err != nil {
			return err
		}
		pair := u.stack[len(u.stack)-1].(tuple)
		u.stack = u.stack[:len(u.stack)-1]
		module, ok := pair[0].(string)
		name, ok2 := pair[1].(string)
		if !ok || !ok2 {
			return fmt.Errorf("a name is (%s, %s), want two strings", describe(pair[0]), describe(pair[1]))
		}
		return u.pushAny(global(module + "." + name))
	case 0x94: // MEMOIZE
		v, err := u.pop()
		if err != nil {
			return err
		}
		u.objects--
		u.stack, u.memo = append(u.stack, v), append(u.memo, v)
		return nil
	case 0x95: // FRAME: a hint for readers of streams
		_, err := u.take(8)
		return err
	case '0': // POP
		_, err := u.pop()
		return err
	case '1': // POP_MARK
		_, err := u.popMark()
		return err
	}
	return fmt.Errorf("opcode %#02x, which torch.save does not write", op)
}

// unpickleReleased returns the tensors of the state_dict in the file of a training run: the dictionary of the given name, or with "" the first of
// stateNames that has tensors, else the whole file. Integers and all that is no tensor are left out. A prefix "module." that all names have is
// removed.
func unpickleReleased(text []byte, objects int64, from string) ([]view, error) {
	u := &unpickler{text: text, objects: min(objects, maxReleasedObjects), released: true}
	if err := u.run(); err != nil {
		return nil, err
	}
	if len(u.stack) == 1 {
		if o, ok := u.stack[0].(*other); ok {
			return nil, fmt.Errorf("it is %s, want a dictionary of tensors: save the state_dict of a model, not the model", describe(o))
		}
	}
	d, err := u.top()
	if err != nil {
		return nil, err
	}
	names := stateNames
	if from != "" {
		names = []string{from}
	}
	state := d.first(names)
	if from == "" && d.hasTensor() && (state == nil || !state.hasTensor()) {
		state = d
	}
	if state == nil {
		return nil, fmt.Errorf("it has %s, want a dictionary of tensors named %s", d.keys(), strings.Join(names, ", "))
	}
	inner := &unpickler{}
	plain := new(dict)
	for _, i := range state.items {
		if v, ok := i.value.(*view); ok {
			plain.items = append(plain.items, item{i.key, v})
		}
	}
	inner.stack = []any{plain}
	views, err := inner.result()
	if err != nil {
		return nil, err
	}
	if len(views) == 0 {
		return nil, fmt.Errorf("its dictionary has no tensors of floating-point numbers")
	}
	for _, v := range views {
		if !strings.HasPrefix(v.name, "module.") {
			return views, nil
		}
	}
	for i := range views {
		views[i].name = views[i].name[len("module."):]
	}
	return views, nil
}

// first returns the dictionary with the first of the names: the last one of that name, as in Python. One without tensors is returned only if no
// other has any.
func (d *dict) first(names []string) (empty *dict) {
	for _, name := range names {
		for _, i := range slices.Backward(d.items) {
			if in, ok := i.value.(*dict); ok && i.key == any(name) {
				if in.hasTensor() {
					return in
				}
				empty = in
				break
			}
		}
	}
	return empty
}

func (d *dict) hasTensor() bool {
	return slices.ContainsFunc(d.items, func(i item) bool { _, ok := i.value.(*view); return ok })
}

// keys lists the keys for an error.
func (d *dict) keys() string {
	var keys []string
	for _, i := range d.items {
		if len(keys) == 20 {
			keys = append(keys, "…")
			break
		}
		if key, ok := i.key.(string); ok {
			keys = append(keys, key)
		}
	}
	if keys == nil {
		return "no named entries"
	}
	return strings.Join(keys, ", ")
}
