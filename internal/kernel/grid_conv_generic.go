//go:build !amd64 || noasm

package kernel

func gridFilter32(*gridArgs, int) { panic(noAssembly) }

func gridSum32(*gridArgs, int) { panic(noAssembly) }
