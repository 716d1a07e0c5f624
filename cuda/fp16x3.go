package cuda

import (
	"math"
	"math/bits"
	"unsafe"
)

// The table of FP16x3: from how many multiplications on, and from which smallest of the three sizes on, a product is faster in three products
// of float16 than in float32 (docs/cuda.md). Others, and those of two transposed operands, are computed in float32.
var fp16x3Least, fp16x3Narrow = 1 << 29, 128

// fp16x3Part is the most numbers along k that tensor cores add up. They cut sums off. The parts are added with rounding.
// fp16x3Panel is the size in bytes of the working memory for which the rows of c are divided into panels.
var fp16x3Part, fp16x3Panel = 1024, 256 << 20

// fp16x3 queues a product of float32 as three products in float16 (kernels/fp16x3.cu). It reports whether it did; it leaves other products to
// its caller.
func fp16x3[A, C Activation](s *Stream, m, n, k int, alpha float32, from, by Matrix[A], beta float32, to Matrix[C]) (bool, error) {
	a, okA := any(from).(Matrix[float32])
	b, okB := any(by).(Matrix[float32])
	c, okC := any(to).(Matrix[float32])
	if !okA || !okB || !okC || count(m, n, k) < fp16x3Least || min(m, n, k) < fp16x3Narrow ||
		k > 1<<29 || a.Transposed && b.Transposed {
		return false, nil
	}
	parts := (k + fp16x3Part - 1) / fp16x3Part
	each := multiple(k, 8*parts) / parts
	stride := multiple(n, 8)                                                       // cuBLAS computes so many columns, because it is slow where their number is odd
	rows := min(m, multiple(fp16x3Panel/(4*parts*each+(4*parts+2)*stride)+1, 256)) // of a panel
	var work temporaries
	defer work.free()
	var err error
	sa := splitOperand(s, &work, rows, k, parts*each, !a.Transposed, true, &err)
	sb := splitOperand(s, &work, stride, k, parts*each, b.Transposed, false, &err)
	mixed, high := take[BFloat16](s, &work, rows*stride, &err), take[float32](s, &work, parts*rows*stride, &err) // mixed is in float16
	if err != nil {
		return true, err
	}
	sb.set(b.Data, b.Stride, n)
	exponent := 5 + bits.Len(uint(k)) // a mixed term is at most 2^20
	sums := fp16x3Sums{
		mixed: mixed.address, high: high.address, largestA: sa.largest, largestB: sb.largest, n: int64(n), stride: int64(stride),
		strideC: int64(c.Stride), parts: int64(parts), mixedExponent: int64(exponent), alpha: alpha, beta: beta,
	}
	for first := 0; first < m; first += rows {
		if first > 0 {
			sb.blocks = 0 // b is split already
		}
		rows := min(rows, m-first)
		offset := first
		if !a.Transposed {
			offset *= a.Stride
		}
		sa.set(part(a.Data, offset), a.Stride, rows)
		if err := sa.split(s, sb); err != nil {
			return true, err
		}
		multiply := func(scale float32, x, y uintptr, depth, count int, to uintptr, typ uintptr) error {
			h, err := s.cublas()
			if err != nil {
				return err
			}
			s.words = append(s.words[:0], uint64(h), uint64(b.operation()), uint64(a.operation()), uint64(stride), uint64(rows), uint64(depth),
				uint64(math.Float32bits(scale)), uint64(y), blasFloat16, uint64(sb.to), uint64(depth)*uint64(sb.alongK()), uint64(x), blasFloat16,
				uint64(sa.to), uint64(depth)*uint64(sa.alongK()), 0, uint64(to), uint64(typ), uint64(stride), uint64(rows*stride), uint64(count),
				computeFloat, uint64(defaultAlgo))
			return s.queue(products, s.words)
		}
		if err := multiply(float32(math.Ldexp(1, -exponent)), sa.first(), sb.first(), 2*parts*each, 1, mixed.address, blasFloat16); err != nil {
			return true, err
		}
		if err := multiply(1, sa.high, sb.high, each, parts, high.address, blasFloat); err != nil {
			return true, err
		}
		sums.c, sums.m = part(c.Data, first*c.Stride).address, int64(rows)
		sums.vector = aligned(sums.c, c.Stride)
		if err := s.run("fp16x3", "fp16x3_add", blocksOf(rows*(stride/4), 256), unsafe.Pointer(&sums)); err != nil {
			return true, err
		}
	}
	return true, nil
}

// fp16x3Sums has the fields of HalfSums in kernels/fp16x3.cu.
type fp16x3Sums struct {
	mixed, high, c, largestA, largestB                  uintptr
	m, n, stride, strideC, parts, mixedExponent, vector int64
	alpha, beta                                         float32
}

// fp16x3Split is an operand that is split. It has the fields of HalfSplit in kernels/fp16x3.cu.
type fp16x3Split struct {
	x, largest, high, low                                 uintptr
	stride, rows, width, to, depth, along, vector, blocks int64
}

// splitOperand returns an operand (k, across) with room for its halves, which are padded with zeros to depth along k. along tells whether k is
// along the rows in memory. The low halves are before the high ones along k, or after them.
func splitOperand(s *Stream, work *temporaries, across, k, depth int, along, lowFirst bool, err *error) *fp16x3Split {
	p := &fp16x3Split{rows: int64(k), width: int64(across), to: int64(multiple(across, 8)), depth: int64(depth)}
	n, second := 2*depth*int(p.to), depth*int(p.to)
	if along {
		p.rows, p.width, p.to, p.along = p.width, p.rows, int64(2*depth), 1
		n, second = across*2*depth, depth
	}
	p.largest = take[float32](s, work, across, err).address // bits
	p.high = take[BFloat16](s, work, n, err).address        // 16 bits
	p.low = p.high + uintptr(2*second)
	if lowFirst {
		p.high, p.low = p.low, p.high
	}
	return p
}

// first returns the address of the halves that come first along k. alongK returns the distance of neighbours along k.
func (p *fp16x3Split) first() uintptr { return min(p.high, p.low) }
func (p *fp16x3Split) alongK() uintptr {
	if p.along == 1 {
		return 1
	}
	return uintptr(p.to)
}

// set makes x the numbers to split: across rows or columns, whichever are not along k.
func (p *fp16x3Split) set(x Array[float32], stride, across int) {
	p.x, p.stride, p.vector = x.address, int64(stride), aligned(x.address, stride)
	if p.along == 0 {
		p.width = int64(across)
		strips := (p.width + 127) / 128
		p.blocks = strips * max(1, min(1024/strips, p.depth/64))
		return
	}
	p.rows, p.blocks = int64(across), int64(across)
	if p.width <= 2048 {
		p.blocks = (p.rows + 7) / 8
	}
}

// split queues the splitting of a and b. An operand without blocks is left out.
func (a *fp16x3Split) split(s *Stream, b *fp16x3Split) error {
	byColumn := [2]fp16x3Split{*a, *b}
	for i := range byColumn {
		p := &byColumn[i]
		if p.along == 1 {
			p.blocks = 0
		}
		if p.blocks > 0 {
			if err := ArrayAt[float32](s, p.largest, int(p.width)).Fill(s, 0); err != nil {
				return err
			}
		}
	}
	if err := s.run("fp16x3", "fp16x3_largest", splitGrid(&byColumn[0], &byColumn[1]), unsafe.Pointer(&byColumn[0]), unsafe.Pointer(&byColumn[1])); err != nil {
		return err
	}
	return s.run("fp16x3", "fp16x3_split", splitGrid(a, b), unsafe.Pointer(a), unsafe.Pointer(b))
}

func splitGrid(a, b *fp16x3Split) grid { return grid{x: a.blocks + b.blocks, threads: 256} }

// multiple returns n rounded up to a multiple of m.
func multiple(n, m int) int { return (n + m - 1) / m * m }

// aligned returns 1 if all rows begin at multiples of 16 bytes, and else 0.
func aligned(address uintptr, stride int) int64 {
	if address%16 == 0 && stride%4 == 0 {
		return 1
	}
	return 0
}
