package cuda

import (
	"strconv"
	"unsafe"
)

// Products of float32 on a device of compute capability 9.0 use kernels of ours (kernels/wide.cuh) where these are faster than cuBLAS. They divide every number into three of
// bfloat16 and compute c in tiles of wideRows rows. A block of threads computes tiles one after another.
const (
	wideRows   = 128
	wideDeep   = 32 // k is divided into parts of a multiple of it
	wideStages = 3
	mostParts  = 32 // of k
	mostWide   = 1 << 30
)

// wideTile is a kernel: the columns of its tiles, and the ns that a block of 32 numbers of k takes.
type wideTile struct {
	columns int
	block   float64
}

var wideTiles = []wideTile{{192, 1930}, {96, 1320}}

// wideProduct has the fields of Product in kernels/wide.cuh.
type wideProduct struct {
	a, b, c                    uintptr
	aStep, bStep, cStep, apart int64
	m, n, k, each, parts       int32
	beta                       float32
}

// widePlan is how a product is computed: the columns of a tile, and the numbers of k of each part. With more than one part the parts are added up after.
type widePlan struct{ columns, each, parts int }

// wide queues c = a·b + beta·c if its kernels fit and are faster than cuBLAS, and reports whether they do.
func wide[A, C Activation](s *Stream, m, n, k int, alpha float32, from, by Matrix[A], beta float32, to Matrix[C]) (bool, error) {
	a, okA := any(from).(Matrix[float32])
	b, okB := any(by).(Matrix[float32])
	c, okC := any(to).(Matrix[float32])
	if !okA || !okB || !okC || alpha != 1 || !s.device.hopper || a.Transposed && b.Transposed || max(m, n, k) > mostWide {
		return false, nil
	}
	ways := "along_along"
	switch {
	case a.Transposed:
		ways = "across_across"
	case !b.Transposed:
		ways = "along_across"
	}
	quads := aligned(a.Data.address, a.Stride)&aligned(b.Data.address, b.Stride) == 1 && (!a.Transposed || m%4 == 0) && (b.Transposed || n%4 == 0)
	if !quads {
		return false, nil
	}
	plan, ok := chooseWide(s.device.multiprocessors, m, n, k, beta != 0)
	if !ok {
		return false, nil
	}
	p := wideProduct{a.Data.address, b.Data.address, c.Data.address, int64(a.Stride), int64(b.Stride), int64(c.Stride), 0,
		int32(m), int32(n), int32(k), int32(plan.each), int32(plan.parts), beta}
	var parts Array[float32]
	if plan.parts > 1 {
		var err error
		if parts, err = NewArray[float32](s, plan.parts*m*n); err != nil {
			return true, err
		}
		defer parts.Free()
		p.c, p.cStep, p.apart, p.beta = parts.address, int64(n), int64(m*n), 0
	}
	file := "wide" + strconv.Itoa(plan.columns) + "_90a"
	g := grid{x: int64(min(plan.tiles(m, n), s.device.multiprocessors)), threads: 384, shared: wideShared(plan.columns)}
	if err := s.run(file, "product_"+strconv.Itoa(plan.columns)+"_"+ways, g, unsafe.Pointer(&p)); err != nil || plan.parts == 1 {
		return true, err
	}
	return true, s.run("addparts", "add_parts", grid{x: (int64(m)*int64(n) + 1023) / 1024, threads: 256}, parts.address, plan.parts, c.Data.address, c.Stride, m, n, beta)
}

// wideShared returns the bytes of shared memory of a block of threads: the parts of three stages, numbers to divide, and barriers.
func wideShared(columns int) int {
	return (wideRows+columns)*(wideStages*3*64+128) + 2*wideStages*8
}

// tiles returns the number of tiles of all parts.
func (p widePlan) tiles(m, n int) int {
	return (m + wideRows - 1) / wideRows * ((n + p.columns - 1) / p.columns) * p.parts
}

// chooseWide returns the plan that takes the shortest time, and whether cuBLAS takes longer. adds says that beta is not 0. It is a variable for tests.
var chooseWide = func(multiprocessors, m, n, k int, adds bool) (best widePlan, ok bool) {
	if m <= wideRows/2 { // half of each tile or more would be empty: with them a step of 64 sequences of the 130M model takes 0.7% longer
		return best, false
	}
	c := float64(m) * float64(n)
	least := blasLaunch + 2*c*float64(k)/blasRate + 4*(c+float64(m+n)*float64(k))/blasBytes
	if adds {
		least += 4 * c / blasBytes
	}
	for _, t := range wideTiles {
		blocks := (k + wideDeep - 1) / wideDeep
		for parts := 1; parts <= min(mostParts, blocks); parts++ {
			each := (blocks + parts - 1) / parts
			p := widePlan{t.columns, each * wideDeep, (blocks + each - 1) / each}
			bytes := 4 * float64(p.parts) * c
			if p.parts != parts || parts > 1 && bytes > mostWideParts {
				continue
			}
			rounds := float64((p.tiles(m, n) + multiprocessors - 1) / multiprocessors)
			time := wideLaunch + rounds*(float64(each)*t.block+wideEnd)
			switch {
			case parts > 1:
				time += bytes/partsRate + partsLaunch
			case adds:
				time += rounds * wideAdds
			}
			if time < least {
				best, least, ok = p, time, true
			}
		}
	}
	return best, ok
}

// What chooseWide counts with, in ns of an H200.
const (
	blasLaunch  = 5e3
	blasRate    = 48e3 // operations in a ns
	blasBytes   = 2e3  // bytes of operands and result in a ns
	wideLaunch  = 2e3
	wideEnd     = 4e3   // of a tile, besides its products
	wideAdds    = 5.5e3 // of a tile, to add to c
	partsRate   = 2e3   // bytes of the parts in a ns, written and read
	partsLaunch = 3e3   // of the kernel that adds them

	mostWideParts = 128 << 20 // bytes
)
