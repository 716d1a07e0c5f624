// Package asm is a thin layer over avo that writes a kernel once for AVX-512 and AVX2. A vector is a ZMM register of 16 float32, or a YMM
// register of 8.
//
// A kernel that needs an instruction of only one set checks File.ISA and uses avo's own instructions, which File embeds. Operands are in the
// order of avo and Go: the destination last.
package asm

import (
	"fmt"
	"go/types"
	"log"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/gotypes"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/pass"
	"github.com/mmcloughlin/avo/printer"
	"github.com/mmcloughlin/avo/reg"
)

// ISA is a set of instructions.
type ISA int

// The instruction sets.
const (
	AVX2 ISA = iota
	AVX512
)

func (i ISA) String() string { return [...]string{"AVX2", "AVX512"}[i] }

// File is an assembly file for one ISA, with the Go file that declares its functions.
type File struct {
	*build.Context
	ISA     ISA
	folder  string
	pkg     *types.Package
	consts  map[uint32]operand.Mem
	vectors map[string]operand.Mem
}

// NewFile returns an empty file of the package in a folder.
func NewFile(folder string, isa ISA) *File {
	f := &File{Context: build.NewContext(), ISA: isa, folder: folder, pkg: typesOf(folder),
		consts: map[uint32]operand.Mem{}, vectors: map[string]operand.Mem{}}
	f.ConstraintExpr("amd64,!noasm")
	return f
}

// Lanes returns the number of float32 in a vector.
func (f *File) Lanes() int { return f.Bytes() / 4 }

// Bytes returns the size of a vector in bytes.
func (f *File) Bytes() int {
	if f.ISA == AVX512 {
		return 64
	}
	return 32
}

// Write assembles the file and writes name_avx512_amd64.s and name_avx512_amd64.go (or avx2).
func (f *File) Write(name string) {
	file, err := f.Result()
	if err != nil {
		log.Fatalf("%s: %v", name, err)
	}
	if err := pass.Compile.Execute(file); err != nil {
		log.Fatalf("%s: %v", name, err)
	}
	base := filepath.Join(f.folder, name+"_"+strings.ToLower(f.ISA.String())+"_amd64")
	cfg := printer.Config{Name: "internal/kernel/_gen", Pkg: f.pkg.Name(), Argv: []string{"internal/kernel/_gen"}}
	for ext, p := range map[string]printer.Printer{".s": printer.NewGoAsm(cfg), ".go": printer.NewStubs(cfg)} {
		text, err := p.Print(file)
		if err != nil {
			log.Fatalf("%s: %v", name, err)
		}
		if ext == ".s" {
			text = bfloat16s(text)
		}
		if err := os.WriteFile(base+ext, text, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}

var wordProduct = regexp.MustCompile(`VPDPWSSD +Z(\d+), Z(\d+), Z(\d+)`)

// bfloat16s replaces VPDPWSSD, which no kernel needs, by VDPBF16PS, which neither avo nor Go's assembler knows. Their encodings differ in the prefix
// only: 62, three bytes of EVEX, 52, and the registers.
func bfloat16s(text []byte) []byte {
	return wordProduct.ReplaceAllFunc(text, func(line []byte) []byte {
		var r [3]int // the second factor, the first, and the sum
		for i, number := range wordProduct.FindSubmatch(line)[1:] {
			r[i], _ = strconv.Atoi(string(number))
		}
		not := func(register, bit, at int) int { return (^register >> bit & 1) << at }
		p0 := not(r[2], 3, 7) | not(r[0], 4, 6) | not(r[0], 3, 5) | not(r[2], 4, 4) | 2 // the map 0F 38
		p1 := (^r[1]&15)<<3 | 4 | 2                                                     // the prefix F3
		p2 := 2<<5 | not(r[1], 4, 3)                                                    // 512 bits
		bytes := []int{0x62, p0, p1, p2, 0x52, 0xc0 | r[2]&7<<3 | r[0]&7}
		var s strings.Builder
		for i, b := range bytes {
			if i > 0 {
				s.WriteString("\n\t")
			}
			fmt.Fprintf(&s, "BYTE $0x%02x", b)
		}
		fmt.Fprintf(&s, " // VDPBF16PS Z%d, Z%d, Z%d", r[0], r[1], r[2])
		return []byte(s.String())
	})
}

// Func begins a function. The name of the ISA is appended to its name. The function must not keep a pointer, since it is declared as
// noescape.
//
// If a function has one argument with the name args, a pointer to a struct of the package, then the struct's fields are the arguments.
func (f *File) Func(name, signature, doc string) *Func {
	sig, err := gotypes.ParseSignatureInPackage(f.pkg, signature)
	if err != nil {
		log.Fatalf("%s: %v", name, err)
	}
	f.Function(name + f.ISA.String())
	f.Attributes(attr.NOSPLIT | attr.NOFRAME)
	f.Signature(sig)
	f.Doc(strings.Split(name+f.ISA.String()+strings.TrimPrefix(doc, name), "\n")...)
	f.Pragma("noescape")
	k := &Func{File: f}
	if args := sig.Params().Lookup("args"); sig.Params().Bytes() == 8 {
		k.args = f.Dereference(args)
	}
	return k
}

// Func is a function that is being written.
type Func struct {
	*File
	args gotypes.Component // the struct of arguments, or nil
}

// Ptr loads a pointer argument.
func (k *Func) Ptr(name string) reg.GPVirtual { return k.arg(name) }

// Int loads an int argument.
func (k *Func) Int(name string) reg.GPVirtual { return k.arg(name) }

func (k *Func) arg(name string) reg.GPVirtual {
	r := k.GP64()
	k.Load64(name, r)
	return r
}

// Load64 loads an argument of eight bytes into a register.
func (k *Func) Load64(name string, to reg.Register) { k.Context.Load(k.Param(name), to) }

// Param returns an argument as avo describes it.
func (k *Func) Param(name string) gotypes.Component {
	if k.args != nil {
		return k.args.Field(name)
	}
	return k.Context.Param(name)
}

// Addr returns the address of an argument.
func (k *Func) Addr(name string) operand.Mem { return k.AddrOf(k.Param(name)) }

// AddrOf returns the address of a component.
func (k *Func) AddrOf(c gotypes.Component) operand.Mem {
	b, err := c.Resolve()
	if err != nil {
		log.Fatal(err)
	}
	return b.Addr
}

// Return ends the function. It first executes VZEROUPPER. Without it, each SSE instruction of Go's own code would wait for the upper half of
// its register: math.Exp was up to 190 times slower.
func (k *Func) Return() {
	k.VZEROUPPER()
	k.RET()
}

// Vec returns a new vector register.
func (f *File) Vec() reg.VecVirtual {
	if f.ISA == AVX512 {
		return f.ZMM()
	}
	return f.YMM()
}

// Vecs returns n new vector registers.
func (f *File) Vecs(n int) []reg.VecVirtual {
	v := make([]reg.VecVirtual, n)
	for i := range v {
		v[i] = f.Vec()
	}
	return v
}

// Imm returns a constant operand of 32 bits, for instructions such as ADDQ.
func (f *File) Imm(n int) operand.Op { return operand.I32(int32(n)) }

// Label returns a reference to a label.
func Label(name string) operand.LabelRef { return operand.LabelRef(name) }

// At returns the memory operand at base + offset bytes.
func At(base reg.Register, offset int) operand.Mem { return operand.Mem{Base: base, Disp: offset} }

// AtIndex returns the memory operand at base + index·scale + offset bytes.
func AtIndex(base, index reg.Register, scale uint8, offset int) operand.Mem {
	return operand.Mem{Base: base, Index: index, Scale: scale, Disp: offset}
}

// Const returns the address of a float32 in read-only memory. A file has each value once.
func (f *File) Const(v float32) operand.Mem { return f.Bits(math.Float32bits(v)) }

// Float64 returns the address of a float64 in read-only memory.
func (f *File) Float64(v float64) operand.Mem {
	bits := math.Float64bits(v)
	return f.TableBits(fmt.Sprintf("d%016x", bits), []uint32{uint32(bits), uint32(bits >> 32)})
}

// Bits is Const for the bits of any 32-bit value.
func (f *File) Bits(b uint32) operand.Mem {
	m, ok := f.consts[b]
	if !ok {
		m = f.ConstData(fmt.Sprintf("c%s_%08x", f.ISA, b), operand.U32(b))
		f.consts[b] = m
	}
	return m
}

// Table returns the address of an array of float32 in read-only memory. A file has one array for each name.
func (f *File) Table(name string, v []float32) operand.Mem {
	bits := make([]uint32, len(v))
	for i, x := range v {
		bits[i] = math.Float32bits(x)
	}
	return f.TableBits(name, bits)
}

// TableBits is Table for any 32-bit values.
func (f *File) TableBits(name string, v []uint32) operand.Mem {
	m, ok := f.vectors[name]
	if !ok {
		m = f.StaticGlobal(name + f.ISA.String())
		f.DataAttributes(attr.RODATA | attr.NOPTR)
		for i, x := range v {
			f.AddDatum(4*i, operand.U32(x))
		}
		f.vectors[name] = m
	}
	return m
}

// BroadcastConst returns a new register with v in every lane.
func (f *File) BroadcastConst(v float32) reg.VecVirtual {
	r := f.Vec()
	f.VBROADCASTSS(f.Const(v), r)
	return r
}

// Load, Store and Broadcast move vectors. Addresses need not be aligned.
func (f *File) Load(from operand.Op, to reg.Register)      { f.VMOVUPS(from, to) }
func (f *File) Store(v reg.Register, to operand.Op)        { f.VMOVUPS(v, to) }
func (f *File) Broadcast(from operand.Op, to reg.Register) { f.VBROADCASTSS(from, to) }
func (f *File) Add(a, b operand.Op, to reg.Register)       { f.VADDPS(a, b, to) }
func (f *File) Mul(a, b operand.Op, to reg.Register)       { f.VMULPS(a, b, to) }
func (f *File) Max(a, b operand.Op, to reg.Register)       { f.VMAXPS(a, b, to) }
func (f *File) Min(a, b operand.Op, to reg.Register)       { f.VMINPS(a, b, to) }

// Sub computes to = b - a, in avo's order of operands.
func (f *File) Sub(a, b operand.Op, to reg.Register) { f.VSUBPS(a, b, to) }

// Zero sets a vector to zero.
func (f *File) Zero(v reg.Register) {
	if f.ISA == AVX512 {
		f.VPXORD(v, v, v)
	} else {
		f.VXORPS(v, v, v)
	}
}

// MulAdd computes acc += a·b. a may be in memory.
func (f *File) MulAdd(a operand.Op, b, acc reg.Register) { f.VFMADD231PS(a, b, acc) }

// Horner computes p = p·x + c. c may be in memory.
func (f *File) Horner(c operand.Op, x, p reg.Register) { f.VFMADD213PS(c, x, p) }

// MulAddScalar computes acc += s·b, where s is one float32 in memory. AVX2 needs a register for it.
func (f *File) MulAddScalar(s operand.Mem, b, acc reg.Register) {
	if f.ISA == AVX512 {
		f.VFMADD231PS_BCST(s, b, acc)
		return
	}
	t := f.Vec()
	f.VBROADCASTSS(s, t)
	f.VFMADD231PS(t, b, acc)
}

// HornerScalar computes p = p·x + c, where c is one float32 in memory.
func (f *File) HornerScalar(c operand.Mem, x, p reg.Register) {
	if f.ISA == AVX512 {
		f.VFMADD213PS_BCST(c, x, p)
		return
	}
	t := f.Vec()
	f.VBROADCASTSS(c, t)
	f.VFMADD213PS(t, x, p)
}

// MulScalar computes to = s·b, where s is one float32 in memory.
func (f *File) MulScalar(s operand.Mem, b, to reg.Register) {
	if f.ISA == AVX512 {
		f.VMULPS_BCST(s, b, to)
		return
	}
	t := f.Vec()
	f.VBROADCASTSS(s, t)
	f.VMULPS(t, b, to)
}
