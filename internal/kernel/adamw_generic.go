//go:build !amd64 || noasm

package kernel

func adamW32(*AdamW[float32], []float32, []float32, []float32, []float32) { panic(noAssembly) }
