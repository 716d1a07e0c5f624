//go:build !amd64 || noasm

package work

func pause() {}
