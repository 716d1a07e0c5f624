//go:build !amd64 || noasm

package work

func pause() {}

func processor() int { return 0 }
