package blas

import (
	"encoding/binary"
	"math"
	"unsafe"

	"github.com/gomamba/mamba/internal/work"
)

// panelFunc multiplies a panel by one to eight rows of activations. Its declaration says what it computes.
type panelFunc func(units int, x *float32, ldx int, panel *float32, y *float32, ldy int, add int)

// panelSet has the kernels for many rows of activations, by their number.
type panelSet struct {
	rows        [9]panelFunc
	most        int
	numbers     int // of a unit
	x, panel    int // float32 of a unit, of activations and of a panel
	unitsAtOnce int // whose part of a panel stays in the first-level cache for all activations
}

// Weights are packed into panels of panelWidth outputs. With quantized weights, a panel has blockPanel numbers of 32 bits for each 32 inputs: four q of each
// output together, eight times; then the scales; then what is added to scale·q. The q are not negative.
const (
	panelWidth = 32
	blockPanel = 8*panelWidth + 2*panelWidth
)

// mulPanels is MulRange for many rows of activations. It packs the weights once for all of them.
func (w *Weights) mulPanels(k *panelSet, dst []float32, ldDst int, x Prepared, from, to int, add bool) {
	units := parts(w.inputs, k.numbers)
	size := units * k.panel
	space := work.Borrow[float32](size + packRows*packBlocks*8)
	defer space.Return()
	memory := unsafe.Slice((*uint32)(unsafe.Pointer(&space.Data[0])), len(space.Data))
	panel := space.Data[:size]
	for j := from; j < to; j += panelWidth {
		n := min(panelWidth, to-j)
		w.packPanel(memory[:size], memory[size:], j, n)
		for first := 0; first < units; first += k.unitsAtOnce {
			some, flag := min(k.unitsAtOnce, units-first), 0
			if add || first > 0 {
				flag = 1
			}
			for i := 0; i < x.rows; i += k.most {
				rows, at, part := min(k.most, x.rows-i), &x.data[i*x.ld+first*k.x], &panel[first*k.panel]
				if n == panelWidth {
					k.rows[rows](some, at, x.ld, part, &dst[i*ldDst+j], ldDst, flag)
					continue
				}
				var sums [8 * panelWidth]float32
				for r := range rows {
					copy(sums[r*panelWidth:][:n], dst[(i+r)*ldDst+j:])
				}
				k.rows[rows](some, at, x.ld, part, &sums[0], panelWidth, flag)
				for r := range rows {
					copy(dst[(i+r)*ldDst+j:][:n], sums[r*panelWidth:])
				}
			}
		}
	}
}

// packRows and packBlocks are the rows and their blocks of 32 that packPanel transposes together.
const packRows, packBlocks = 16, 8

// packPanel packs n rows of weights from row j on. It writes the words of a few blocks to rows first.
func (w *Weights) packPanel(to, rows []uint32, j, n int) {
	if n < panelWidth {
		clear(to)
	}
	rowBytes := len(w.data) / w.outputs
	data := w.data[j*rowBytes : (j+n)*rowBytes]
	if !w.typ.quantized() {
		if w.inputs%2 == 0 {
			for o := 0; o < n; o += packRows {
				transpose(w.inputs/2, &data[o*rowBytes], w.inputs/2, min(packRows, n-o), &to[o])
			}
			return
		}
		for i := range w.inputs / 2 {
			for o := range n {
				to[i*panelWidth+o] = binary.LittleEndian.Uint32(data[o*rowBytes+4*i:])
			}
		}
		i := w.inputs / 2
		for o := range n {
			to[i*panelWidth+o] = uint32(binary.LittleEndian.Uint16(data[o*rowBytes+4*i:]))
		}
		return
	}
	f := formats[w.typ]
	blocks := w.inputs / 32
	for first := 0; first < blocks; first += packBlocks {
		last := min(first+packBlocks, blocks)
		for o := 0; o < n; o += packRows {
			for r := range min(packRows, n-o) {
				row := data[(o+r)*rowBytes:]
				for i := first; i < last; i++ {
					b := row[32*i/f.block*f.bytes:][:f.bytes]
					scale, m := w.typ.words(b, 32*i%f.block/32, (*[8]uint32)(rows[8*(r*packBlocks+i-first):]))
					part := to[i*blockPanel+8*panelWidth+o+r:][:panelWidth+1]
					part[0], part[panelWidth] = math.Float32bits(scale), math.Float32bits(m)
				}
			}
			for i := first; i < last; i++ {
				transpose(8, (*byte)(unsafe.Pointer(&rows[8*(i-first)])), 8*packBlocks, min(packRows, n-o), &to[i*blockPanel+o])
			}
		}
	}
	if blocks%2 == 1 {
		clear(to[blocks*blockPanel:])
	}
}

// transpose copies rows of n words, ld words apart, into columns of a panel.
func transpose(n int, from *byte, ld, rows int, to *uint32) {
	current().transpose(n, (*float32)(unsafe.Pointer(from)), ld, rows, (*float32)(unsafe.Pointer(to)), panelWidth)
}

// words writes the q of part i of a block, four to a word. It returns the scale and what is added.
func (t Type) words(b []byte, i int, to *[8]uint32) (scale, m float32) {
	const low = 0x0f0f0f0f
	switch t {
	case Q8_0:
		q := b[2:34]
		for k := range 8 {
			to[k] = binary.LittleEndian.Uint32(q[4*k:]) ^ 0x80808080 // adds 128
		}
		scale = float16At(b)
		return scale, -128 * scale
	case Q4_0:
		q := b[2:18]
		for k := range 4 {
			v := binary.LittleEndian.Uint32(q[4*k:])
			to[k], to[k+4] = v&low, v>>4&low
		}
		scale = float16At(b)
		return scale, -8 * scale
	case Q5_0, Q5_1:
		q, fifth := b[len(b)-16:], binary.LittleEndian.Uint32(b[len(b)-20:])
		spread := func(bits uint32) uint32 { return bits & 15 * 0x00204081 & 0x01010101 << 4 } // a bit to each byte
		for k := range 4 {
			v := binary.LittleEndian.Uint32(q[4*k:])
			to[k] = v&low | spread(fifth>>(4*k))
			to[k+4] = v>>4&low | spread(fifth>>(4*k+16))
		}
		if scale = float16At(b); t == Q5_1 {
			return scale, float16At(b[2:])
		}
		return scale, -16 * scale
	default: // Q4_K
		q, shift := b[16+i/2*32:][:32], i%2*4
		for k := range 8 {
			to[k] = binary.LittleEndian.Uint32(q[4*k:]) >> shift & low
		}
		factor, minus := factors(b[4:16], i)
		return float16At(b) * float32(factor), -float16At(b[2:]) * float32(minus)
	}
}
