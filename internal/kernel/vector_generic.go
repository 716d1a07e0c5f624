//go:build !amd64 || noasm

package kernel

// This build has no assembly. The level is cpu.Generic, at which these functions are never called.

const noAssembly = "kernel: this build has no assembly for the level"

func negExp32s(y, x []float32) { panic(noAssembly) }

func sigmoid32s(y, x []float32) { panic(noAssembly) }

func silu32s(y, x []float32) { panic(noAssembly) }

func negExpBack32s(dx, dy, x []float32) { panic(noAssembly) }

func siluBack32s(dx, dy, x []float32) { panic(noAssembly) }

func sum32s(y, a, b []float32) { panic(noAssembly) }

func addProduct32s(y, w, x []float32) { panic(noAssembly) }

func axpy32s(y, x []float32, a float32) { panic(noAssembly) }

func scale32s(y, x []float32, a float32) { panic(noAssembly) }
