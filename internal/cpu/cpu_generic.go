//go:build !amd64 || noasm

package cpu

func detect() Level { return Generic }

func detectMore() (products, bfloat16 bool) { return false, false }

func detectPairs() bool { return false }
