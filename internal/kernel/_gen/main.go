// Command _gen writes the assembly of internal/kernel and blas: go generate ./internal/kernel.
//
// Each file of this folder writes the kernels of one subject, for both instruction sets, with package asm.
package main

import "github.com/gomamba/mamba/internal/kernel/_gen/asm"

func main() {
	writers := []func(asm.ISA){
		vector,
		adamW,
		writeScan,
		conv,
		gridConv,
		rows,
		writeGemm,
		writeWeights,
	}
	for _, isa := range []asm.ISA{asm.AVX512, asm.AVX2} {
		for _, write := range writers {
			write(isa)
		}
	}
}
