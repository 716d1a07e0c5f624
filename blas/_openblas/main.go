// Command _openblas compares package blas with OpenBLAS, in one process and in turn, on the products of a Mamba block.
//
//	go run -C blas/_openblas .
//
// It needs cgo and OpenBLAS's library. OpenBLAS takes many new processors for old ones, and a comparison with that would
// flatter us: the program starts itself again with the core type set, and the first line prints what OpenBLAS says it runs.
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"time"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/netlib/blas/netlib"

	ours "github.com/gomamba/mamba/blas"
)

// product is one call of Sgemm; copies is how many matrices B take turns, so that none is in a cache.
type product struct {
	name    string
	tA, tB  blas.Transpose
	m, n, k int
	copies  int
}

const (
	no  = blas.NoTrans
	yes = blas.Trans
)

// linear is a layer's three products: forward, the gradient of x, the gradient of the weight.
func linear(name string, rows, out, in int) []product {
	return []product{
		{name, no, yes, rows, out, in, 1},
		{name + " dx", no, no, rows, in, out, 1},
		{name + " dW", yes, no, out, in, rows, 1},
	}
}

func products() []product {
	all := []product{{"square", no, no, 1024, 1024, 1024, 1}}
	all = append(all, linear("in_proj", 512, 3072, 768)...)
	all = append(all, linear("out_proj", 512, 768, 1536)...)
	all = append(all, linear("x_proj", 512, 80, 1536)...)
	all = append(all, linear("dt_proj", 512, 1536, 48)...)
	for _, m := range []int{1, 2, 4, 8, 16} {
		all = append(all, product{"step in_proj", no, yes, m, 3072, 768, 24})
	}
	all = append(all, product{"step head", no, yes, 1, 50280, 768, 2})
	all = append(all, product{"row·matrix", no, no, 1, 3072, 768, 24})
	for _, n := range []int{16, 32, 64, 128, 256, 512} {
		all = append(all, product{"small", no, no, n, n, n, 1}, product{"small", no, yes, n, n, n, 1})
	}
	return all
}

func main() {
	core := flag.String("core", "SkylakeX", "the core type that OpenBLAS is told")
	rounds := flag.Int("rounds", 15, "measurements of each, in turn")
	only := flag.String("only", "", "products whose name matches")
	flag.Parse()
	if os.Getenv("OPENBLAS_CORETYPE") != *core || os.Getenv("OPENBLAS_L2_SIZE") != "" {
		// OpenBLAS has read its environment before main. The size of the second cache, if set, would change its blocks.
		os.Setenv("OPENBLAS_CORETYPE", *core)
		os.Unsetenv("OPENBLAS_L2_SIZE")
		program, err := os.Executable()
		if err == nil {
			err = syscall.Exec(program, os.Args, os.Environ())
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	filter := regexp.MustCompile(*only)
	fmt.Printf("OpenBLAS core type %s, %d threads; GOMAXPROCS %d; medians of %d\n", coreName(), threads(), runtime.GOMAXPROCS(0), *rounds)
	fmt.Printf("%-14s %-22s %9s %9s %9s %12s\n", "", "", "ours", "OpenBLAS", "ratio", "of the best")
	for _, p := range products() {
		if filter.MatchString(p.name) {
			p.compare(*rounds)
		}
	}
}

func random(n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(rand.NormFloat64())
	}
	return v
}

func (p product) compare(rounds int) {
	a, b, c := random(p.m*p.k), random(p.copies*p.k*p.n), make([]float32, p.m*p.n)
	lda, ldb := p.k, p.n
	if p.tA == yes {
		lda = p.m
	}
	if p.tB == yes {
		ldb = p.k
	}
	at := 0
	call := func(gemm func(tA, tB blas.Transpose, m, n, k int, alpha float32, a []float32, lda int, b []float32, ldb int, beta float32, c []float32, ldc int)) func() {
		return func() {
			gemm(p.tA, p.tB, p.m, p.n, p.k, 1, a, lda, b[at*p.k*p.n:][:p.k*p.n], ldb, 0, c, p.n)
			at = (at + 1) % p.copies
		}
	}
	run := []func(){call(ours.Implementation{}.Sgemm), call(netlib.Implementation{}.Sgemm)}
	if p.copies > 1 {
		for _, n := range []int{1, 2} {
			run = append(run, func() {
				read(b[at*p.k*p.n:][:p.k*p.n], n)
				at = (at + 1) % p.copies
			})
		}
	}
	// Enough calls for 20 ms, so that the clock does not matter.
	calls := make([]int, len(run))
	for i, f := range run {
		f()
		begin := time.Now()
		f()
		calls[i] = max(p.copies, int(20*time.Millisecond/max(time.Since(begin), 1)))
	}
	times := make([][]float64, len(run))
	for range rounds {
		for i, f := range run {
			time.Sleep(150 * time.Millisecond) // OpenBLAS's threads look for work for longer than 40, on the processors that we need
			// As many calls again to warm up: after a sleep the system may take some milliseconds to see that two threads on
			// one processor are better on two.
			for range calls[i] {
				f()
			}
			begin := time.Now()
			for range calls[i] {
				f()
			}
			times[i] = append(times[i], time.Since(begin).Seconds()/float64(calls[i]))
		}
	}
	median := make([]float64, len(run))
	for i, t := range times {
		slices.Sort(t)
		median[i] = t[len(t)/2]
	}
	shape := fmt.Sprintf("%c%c %d×%d×%d", p.tA, p.tB, p.m, p.n, p.k)
	work, unit := 2e-9*float64(p.m)*float64(p.n)*float64(p.k), "GFLOP/s"
	if p.copies > 1 {
		work, unit = 4e-9*float64(p.n)*float64(p.k), "GB/s of B"
	}
	fmt.Printf("%-14s %-22s %9.1f %9.1f %9.2f %12.2f  %s", p.name, shape, work/median[0], work/median[1], median[1]/median[0], times[1][0]/times[0][0], unit)
	if p.copies > 1 {
		fmt.Printf("; plain read %.1f with one thread, %.1f with two", work/median[2], work/median[3])
	}
	fmt.Println()
}
