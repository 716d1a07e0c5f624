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
	rows [9]panelFunc
	most int
}

// Weights are packed into panels of panelWidth outputs. With quantized weights, a panel has blockPanel numbers of 32 bits for each 32 inputs: four q of each
// output together, eight times; then the scales; then what is added to scale·q. The q are not negative.
const (
	panelWidth = 32
	blockPanel = 8*panelWidth + 2*panelWidth
)

// mulPanels is MulRange for many rows of activations. It packs the weights once for all of them.
func (w *Weights) mulPanels(k *panelSet, dst []float32, ldDst int, x Prepared, from, to int, add bool) {
	units, size := (w.inputs+1)/2, (w.inputs+1)/2*panelWidth
	if w.typ.quantized() {
		units = (w.inputs + 63) / 64
		size = units * 2 * blockPanel
	}
	space := work.Borrow[float32](size)
	defer space.Return()
	panel := space.Data
	flag := 0
	if add {
		flag = 1
	}
	for j := from; j < to; j += panelWidth {
		n := min(panelWidth, to-j)
		w.packPanel(unsafe.Slice((*uint32)(unsafe.Pointer(&panel[0])), len(panel)), j, n)
		for i := 0; i < x.rows; i += k.most {
			rows := min(k.most, x.rows-i)
			if n == panelWidth {
				k.rows[rows](units, &x.data[i*x.ld], x.ld, &panel[0], &dst[i*ldDst+j], ldDst, flag)
				continue
			}
			var sums [8 * panelWidth]float32
			for r := range rows {
				copy(sums[r*panelWidth:][:n], dst[(i+r)*ldDst+j:])
			}
			k.rows[rows](units, &x.data[i*x.ld], x.ld, &panel[0], &sums[0], panelWidth, flag)
			for r := range rows {
				copy(dst[(i+r)*ldDst+j:][:n], sums[r*panelWidth:])
			}
		}
	}
}

// packPanel packs n rows of weights from row j on.
func (w *Weights) packPanel(to []uint32, j, n int) {
	if n < panelWidth {
		clear(to)
	}
	rowBytes := len(w.data) / w.outputs
	data := w.data[j*rowBytes : (j+n)*rowBytes]
	if !w.typ.quantized() {
		for i := range w.inputs / 2 {
			for o := range n {
				to[i*panelWidth+o] = binary.LittleEndian.Uint32(data[o*rowBytes+4*i:])
			}
		}
		if i := w.inputs / 2; w.inputs%2 == 1 {
			for o := range n {
				to[i*panelWidth+o] = uint32(binary.LittleEndian.Uint16(data[o*rowBytes+4*i:]))
			}
		}
		return
	}
	f := formats[w.typ]
	blocks := w.inputs / 32
	for i := range blocks {
		part := to[i*blockPanel : (i+1)*blockPanel]
		at := 32 * i / f.block * f.bytes
		for o := range n {
			b := data[o*rowBytes+at:][:f.bytes]
			scale, m := w.typ.words(b, 32*i%f.block/32, part[o:])
			part[8*panelWidth+o], part[9*panelWidth+o] = math.Float32bits(scale), math.Float32bits(m)
		}
	}
	if blocks%2 == 1 {
		clear(to[blocks*blockPanel:])
	}
}

// words writes the q of part i of a block, four to a word, and a word to each panelWidth elements. It returns the scale and what is added.
func (t Type) words(b []byte, i int, to []uint32) (scale, m float32) {
	to = to[:7*panelWidth+1]
	const low = 0x0f0f0f0f
	switch t {
	case Q8_0:
		q := b[2:34]
		for k := range 8 {
			to[k*panelWidth] = binary.LittleEndian.Uint32(q[4*k:]) ^ 0x80808080 // adds 128
		}
		scale = float16At(b)
		return scale, -128 * scale
	case Q4_0:
		q := b[2:18]
		for k := range 4 {
			v := binary.LittleEndian.Uint32(q[4*k:])
			to[k*panelWidth], to[(k+4)*panelWidth] = v&low, v>>4&low
		}
		scale = float16At(b)
		return scale, -8 * scale
	case Q5_0, Q5_1:
		q, fifth := b[len(b)-16:], binary.LittleEndian.Uint32(b[len(b)-20:])
		spread := func(bits uint32) uint32 { return bits & 15 * 0x00204081 & 0x01010101 << 4 } // a bit to each byte
		for k := range 4 {
			v := binary.LittleEndian.Uint32(q[4*k:])
			to[k*panelWidth] = v&low | spread(fifth>>(4*k))
			to[(k+4)*panelWidth] = v>>4&low | spread(fifth>>(4*k+16))
		}
		if scale = float16At(b); t == Q5_1 {
			return scale, float16At(b[2:])
		}
		return scale, -16 * scale
	default: // Q4_K
		q, shift := b[16+i/2*32:][:32], i%2*4
		for k := range 8 {
			to[k*panelWidth] = binary.LittleEndian.Uint32(q[4*k:]) >> shift & low
		}
		factor, minus := factors(b[4:16], i)
		return float16At(b) * float32(factor), -float16At(b[2:]) * float32(minus)
	}
}
