package checkpoint

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"unicode/utf8"

	"github.com/gomamba/mamba/internal/tensorfile"
)

// view is the description of a tensor in a pickle: a part of a storage.
type view struct {
	name    string
	storage *storage
	offset  int64 // in elements, like the strides
	shape   []int
	stride  []int64
}

// storage is a file of elements inside the zip file.
type storage struct {
	key   string
	dtype tensorfile.Dtype
	n     int64 // number of elements
}

// The types of the objects of a pickle, in addition to nil, bool, int64, float64 and string.
type (
	mark   struct{}
	global string // module.name
	tuple  []any
	list   struct{}
	dict   struct{ items []item }
	item   struct{ key, value any }
	other  struct{ class global } // an object of a class that is stepped over
)

// The functions that a pickle may name. Any other name is an error. The unpickler does not call them: it does what they would do to a
// description of the tensors.
const (
	orderedDict      global = "collections.OrderedDict"
	rebuildTensor    global = "torch._utils._rebuild_tensor_v2"
	rebuildParameter global = "torch._utils._rebuild_parameter"
)

// Functions that PyTorch uses for a parameter or tensor with attributes. A released file may name them.
const (
	rebuildWithState global = "torch._utils._rebuild_parameter_with_state"
	rebuildFromType  global = "torch._tensor._rebuild_from_type_v2"
)

var storages = map[global]tensorfile.Dtype{
	"torch.FloatStorage":    tensorfile.Float32,
	"torch.HalfStorage":     tensorfile.Float16,
	"torch.BFloat16Storage": tensorfile.BFloat16,
	"torch.DoubleStorage":   tensorfile.Float64,
}

// maxStack is the largest number of objects on the stack. torch.save adds the items of a dictionary in groups of a thousand.
const maxStack = 1 << 12

// unpickler reads the pickle of a state_dict. It knows the opcodes that torch.save writes (protocol 2), and it only makes data. The
// length of the pickle bounds the memory for strings. The field objects bounds all other memory.
//
// With released it reads the file of a training run: a dictionary that has the state_dict beside objects of any class. It makes an other of each
// such object and ignores what the pickle does with it. See released.go.
type unpickler struct {
	released bool
	text     []byte
	at       int
	stack    []any
	memo     []any
	objects  int64 // number of objects that the pickle may still make
}

// unpickle returns the tensors of a pickled state_dict. It is an error if the pickle makes more than the given number of objects.
func unpickle(text []byte, objects int64) ([]view, error) {
	u := &unpickler{text: text, objects: objects}
	if err := u.run(); err != nil {
		return nil, err
	}
	return u.result()
}

// run reads up to the end of the pickle.
func (u *unpickler) run() error {
	for {
		start := u.at
		op, err := u.take(1)
		if err != nil {
			return err
		}
		if op[0] == '.' {
			return nil
		}
		if err := u.step(op[0]); err != nil {
			return fmt.Errorf("at byte %d: %w", start, err)
		}
		if len(u.stack) > maxStack {
			return fmt.Errorf("at byte %d: more than %d objects on the stack", start, maxStack)
		}
		if u.objects < 0 {
			return fmt.Errorf("at byte %d: more objects than the tensors of such a file need", start)
		}
	}
}

// top returns the dictionary that must be the only object on the stack.
func (u *unpickler) top() (*dict, error) {
	if u.at != len(u.text) {
		return nil, fmt.Errorf("%d bytes after its end", len(u.text)-u.at)
	}
	if len(u.stack) != 1 {
		return nil, fmt.Errorf("%d objects at its end, want one", len(u.stack))
	}
	d, ok := u.stack[0].(*dict)
	if !ok {
		return nil, fmt.Errorf("it is %s, want a dictionary of tensors", describe(u.stack[0]))
	}
	return d, nil
}

// result returns the tensors of the state_dict.
func (u *unpickler) result() ([]view, error) {
	d, err := u.top()
	if err != nil {
		return nil, err
	}
	views := make([]view, 0, len(d.items))
	seen := make(map[string]bool, len(d.items))
	for _, i := range d.items {
		name, ok := i.key.(string)
		if !ok {
			return nil, fmt.Errorf("a key is %s, want a name", describe(i.key))
		}
		v, ok := i.value.(*view)
		if !ok {
			return nil, fmt.Errorf("%s is %s, want a tensor", name, describe(i.value))
		}
		if seen[name] {
			return nil, fmt.Errorf("%s is there twice", name)
		}
		seen[name] = true
		named := *v // a copy, since one tensor may have two names
		named.name = name
		views = append(views, named)
	}
	return views, nil
}

// describe returns a description of an object for an error.
func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case global:
		return "the name " + string(v)
	case string:
		return "a string"
	case bool, int64, float64:
		return fmt.Sprint(v)
	case tuple:
		return "a tuple"
	case *list:
		return "a list"
	case *dict:
		return "a dictionary"
	case *view:
		return "a tensor"
	case *storage:
		return "a storage"
	case *other:
		return "an object of " + string(v.class)
	}
	return "no object"
}

// take returns the next n bytes.
func (u *unpickler) take(n int) ([]byte, error) {
	if n > len(u.text)-u.at {
		return nil, fmt.Errorf("the pickle ends too early")
	}
	u.at += n
	return u.text[u.at-n : u.at], nil
}

// line returns the bytes up to the end of the line.
func (u *unpickler) line() ([]byte, error) {
	n := bytes.IndexByte(u.text[u.at:], '\n')
	if n < 0 || n > tensorfile.MaxName {
		return nil, fmt.Errorf("a name has more than %d bytes", tensorfile.MaxName)
	}
	s, err := u.take(n + 1)
	if err != nil {
		return nil, err
	}
	return s[:n], nil
}

// number returns the next n bytes as a number, of which the first byte is the lowest.
func (u *unpickler) number(n int) (uint32, error) {
	b, err := u.take(n)
	if err != nil {
		return 0, err
	}
	var full [4]byte
	copy(full[:], b)
	return binary.LittleEndian.Uint32(full[:]), nil
}

func (u *unpickler) push(v any) error {
	u.objects--
	u.stack = append(u.stack, v)
	return nil
}

func (u *unpickler) pop() (any, error) {
	if len(u.stack) == 0 {
		return nil, fmt.Errorf("the stack is empty")
	}
	v := u.stack[len(u.stack)-1]
	if _, ok := v.(mark); ok {
		return nil, fmt.Errorf("there is no object after the mark")
	}
	u.stack = u.stack[:len(u.stack)-1]
	return v, nil
}

// popMark removes the last mark and the objects after it, and returns these objects. They are valid until the next push.
func (u *unpickler) popMark() ([]any, error) {
	for i := len(u.stack) - 1; i >= 0; i-- {
		if _, ok := u.stack[i].(mark); ok {
			items := u.stack[i+1:]
			u.stack = u.stack[:i]
			return items, nil
		}
	}
	return nil, fmt.Errorf("there is no mark")
}

// pushTuple replaces the n objects on top of the stack by a tuple of them.
func (u *unpickler) pushTuple(n int) error {
	items := make(tuple, n)
	for i := n - 1; i >= 0; i-- {
		v, err := u.pop()
		if err != nil {
			return err
		}
		items[i] = v
	}
	return u.push(items)
}

func (u *unpickler) step(op byte) error {
	switch op {
	case 0x80: // PROTO
		n, err := u.number(1)
		if err == nil && n != 2 && !(u.released && n <= 5) {
			err = fmt.Errorf("the pickle is of protocol %d, want 2, as torch.save writes", n)
		}
		return err
	case '(':
		return u.push(mark{})
	case 'N':
		return u.push(nil)
	case 0x88:
		return u.push(true)
	case 0x89:
		return u.push(false)
	case 'K': // BININT1
		return u.pushNumber(1)
	case 'M': // BININT2
		return u.pushNumber(2)
	case 'J': // BININT, signed
		n, err := u.number(4)
		if err != nil {
			return err
		}
		return u.push(int64(int32(n)))
	case 0x8a: // LONG1
		return u.pushLong()
	case 'G': // BINFLOAT
		b, err := u.take(8)
		if err != nil {
			return err
		}
		return u.push(math.Float64frombits(binary.BigEndian.Uint64(b)))
	case 'X': // BINUNICODE
		return u.pushString()
	case '}':
		return u.push(new(dict))
	case ']':
		return u.push(new(list))
	case ')':
		return u.pushTuple(0)
	case 0x85, 0x86, 0x87:
		return u.pushTuple(int(op) - 0x84)
	case 't':
		items, err := u.popMark()
		if err != nil {
			return err
		}
		return u.push(append(tuple(nil), items...))
	case 'a', 'e', 's', 'u', 'b':
		return u.fill(op)
	case 'q', 'r', 'h', 'j':
		return u.remember(op)
	case 'c': // GLOBAL
		return u.pushGlobal()
	case 'Q': // BINPERSID
		return u.pushStorage()
	case 'R': // REDUCE
		return u.reduce()
	}
	if u.released {
		return u.stepReleased(op)
	}
	return fmt.Errorf("opcode %#02x, which torch.save does not write", op)
}

func (u *unpickler) pushNumber(bytes int) error {
	n, err := u.number(bytes)
	if err != nil {
		return err
	}
	return u.push(int64(n))
}

// pushLong reads a number of any length in two's complement. Its first byte is the lowest.
func (u *unpickler) pushLong() error {
	n, err := u.number(1)
	if err != nil {
		return err
	}
	b, err := u.take(int(n))
	if err != nil {
		return err
	}
	if n > 8 && u.released {
		return u.push(&other{"int"})
	}
	if n > 8 {
		return fmt.Errorf("a number of %d bytes, want at most 8", n)
	}
	var v int64
	for i := len(b) - 1; i >= 0; i-- {
		if i == len(b)-1 {
			v = int64(int8(b[i]))
		} else {
			v = v<<8 | int64(b[i])
		}
	}
	return u.push(v)
}

func (u *unpickler) pushString() error {
	n, err := u.number(4)
	if err != nil {
		return err
	}
	if n > tensorfile.MaxName && u.released {
		return u.skip(int64(n), "str")
	}
	if n > tensorfile.MaxName {
		return fmt.Errorf("a string of %d bytes, want at most %d", n, tensorfile.MaxName)
	}
	return u.pushText(int(n))
}

func (u *unpickler) pushText(n int) error {
	b, err := u.take(n)
	if err != nil {
		return err
	}
	if !utf8.Valid(b) {
		return fmt.Errorf("a string that is not UTF-8")
	}
	return u.push(string(b))
}

// fill adds items to a list or a dictionary, or sets the attributes of an object. It keeps only the items of dictionaries, since a
// state_dict has no other data. It ignores attributes: PyTorch stores the versions of the modules there.
func (u *unpickler) fill(op byte) error {
	var items []any
	var err error
	switch op {
	case 'e', 'u':
		items, err = u.popMark()
	default:
		n := 1
		if op == 's' {
			n = 2
		}
		if len(u.stack) < n {
			return fmt.Errorf("the stack is empty")
		}
		items = u.stack[len(u.stack)-n:]
		for _, v := range items {
			if _, ok := v.(mark); ok {
				return fmt.Errorf("there is no object after the mark")
			}
		}
		u.stack = u.stack[:len(u.stack)-n]
	}
	if err != nil {
		return err
	}
	to, err := u.pop()
	if err != nil {
		return err
	}
	switch to := to.(type) {
	case *other:
	case *list:
		if op != 'a' && op != 'e' && !u.released {
			return fmt.Errorf("opcode %q adds items of another kind to a list", op)
		}
	case *dict:
		if op == 'b' || u.released && (op == 'a' || op == 'e') {
			break
		}
		if op == 'a' || op == 'e' || len(items)%2 != 0 {
			return fmt.Errorf("opcode %q adds %d items of another kind to a dictionary", op, len(items))
		}
		for i := 0; i < len(items); i += 2 {
			to.items = append(to.items, item{items[i], items[i+1]})
		}
	default:
		if op != 'b' || !u.released {
			return fmt.Errorf("%s holds no items", describe(to))
		}
	}
	u.stack = append(u.stack, to)
	return nil
}

// remember stores the object on top of the stack, or pushes a stored object. A pickle numbers its stored objects from 0 on.
func (u *unpickler) remember(op byte) error {
	width := 1
	if op == 'r' || op == 'j' {
		width = 4
	}
	n, err := u.number(width)
	if err != nil {
		return err
	}
	if op == 'h' || op == 'j' {
		if int64(n) >= int64(len(u.memo)) {
			return fmt.Errorf("object %d was never stored", n)
		}
		return u.push(u.memo[n])
	}
	v, err := u.pop()
	if err != nil {
		return err
	}
	u.stack = append(u.stack, v)
	switch {
	case int64(n) < int64(len(u.memo)):
		u.memo[n] = v
	case int64(n) == int64(len(u.memo)):
		u.objects--
		u.memo = append(u.memo, v)
	default:
		return fmt.Errorf("object %d is stored, want %d as the next number", n, len(u.memo))
	}
	return nil
}

func (u *unpickler) pushGlobal() error {
	module, err := u.line()
	if err != nil {
		return err
	}
	name, err := u.line()
	if err != nil {
		return err
	}
	g := global(string(module) + "." + string(name))
	if u.released {
		return u.pushAny(g)
	}
	if _, ok := storages[g]; !ok && g != orderedDict && g != rebuildTensor && g != rebuildParameter {
		return fmt.Errorf("it names %q, want only tensors of float32, float16, bfloat16 and float64; nothing is called", string(g))
	}
	return u.push(g)
}

// pushStorage reads ('storage', type, key, device, elements).
func (u *unpickler) pushStorage() error {
	v, err := u.pop()
	if err != nil {
		return err
	}
	id, ok := v.(tuple)
	if u.released && ok && len(id) == 5 && id[0] == "storage" {
		if class, ok := id[1].(global); ok && storages[class] == "" {
			return u.push(&other{class}) // of integers, whose tensors are no weights
		}
	}
	if !ok || len(id) != 5 || id[0] != "storage" {
		return fmt.Errorf("a persistent object is not a storage")
	}
	class, isGlobal := id[1].(global)
	key, isString := id[2].(string)
	n, isNumber := id[4].(int64)
	dt, known := storages[class]
	if !isGlobal || !isString || !isNumber || !known {
		return fmt.Errorf("a storage is not (type, key, device, elements)")
	}
	return u.push(&storage{key, dt, n})
}

// reduce does what the three functions that rebuild a state_dict would do.
func (u *unpickler) reduce() error {
	a, err := u.pop()
	if err != nil {
		return err
	}
	f, err := u.pop()
	if err != nil {
		return err
	}
	args, ok := a.(tuple)
	if !ok {
		return fmt.Errorf("a call with %s, want a tuple", describe(a))
	}
	if u.released {
		return u.reduceReleased(f, args)
	}
	return u.rebuild(f, args)
}

// rebuild pushes what a known function returns.
func (u *unpickler) rebuild(f any, args tuple) error {
	switch f {
	case orderedDict:
		if len(args) != 0 {
			return fmt.Errorf("an OrderedDict of %d arguments, want none", len(args))
		}
		return u.push(new(dict))
	case rebuildTensor:
		v, err := tensorOf(args)
		if err != nil {
			return err
		}
		u.objects -= int64(len(v.shape))
		return u.push(v)
	case rebuildParameter:
		if len(args) > 0 {
			if v, ok := args[0].(*view); ok {
				return u.push(v)
			}
		}
		return fmt.Errorf("the argument of a parameter is not a tensor")
	}
	return fmt.Errorf("it calls %s", describe(f))
}

// tensorOf returns the tensor of the arguments (storage, offset, shape, strides, …). Further arguments are for gradients.
func tensorOf(args tuple) (*view, error) {
	if len(args) < 4 {
		return nil, fmt.Errorf("a tensor of %d arguments, want at least 4", len(args))
	}
	s, isStorage := args[0].(*storage)
	offset, isNumber := args[1].(int64)
	shape, isShape := args[2].(tuple)
	stride, isStride := args[3].(tuple)
	if !isStorage || !isNumber || !isShape || !isStride || len(shape) != len(stride) || len(shape) > tensorfile.MaxRank {
		return nil, fmt.Errorf("a tensor is not (storage, offset, shape, strides)")
	}
	v := &view{storage: s, offset: offset}
	for i := range shape {
		d, ok := shape[i].(int64)
		step, ok2 := stride[i].(int64)
		if !ok || !ok2 || d < 0 || d > math.MaxInt {
			return nil, fmt.Errorf("dimension %d is %s with stride %s", i, describe(shape[i]), describe(stride[i]))
		}
		v.shape, v.stride = append(v.shape, int(d)), append(v.stride, step)
	}
	return v, nil
}
