//go:build !noasm

package cpu

import "golang.org/x/sys/cpu"

func detectMore() (products, bfloat16 bool) {
	return cpu.X86.HasAVX512VNNI, cpu.X86.HasAVX512BF16
}

func detect() Level {
	x := &cpu.X86
	switch {
	case !x.HasAVX2 || !x.HasFMA || !x.HasF16C:
		return Generic
	case x.HasAVX512 && x.HasAVX512F && x.HasAVX512CD && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL:
		return AVX512
	}
	return AVX2
}

func detectPairs() bool { return maker() == 'A'|'u'<<8|'t'<<16|'h'<<24 } // AuthenticAMD

// maker returns the first four letters of the name of the processor's maker.
//
//go:noescape
func maker() uint32
