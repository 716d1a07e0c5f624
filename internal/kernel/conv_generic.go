//go:build !amd64 || noasm

package kernel

func convFilter32(*convArgs, int) { panic(noAssembly) }

func convSum32(*convArgs, int) { panic(noAssembly) }
