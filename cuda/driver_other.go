//go:build !linux || !(amd64 || arm64)

package cuda

import (
	"fmt"
	"runtime"
)

type driver struct{}

func loadDriver() (*driver, error) {
	return nil, fmt.Errorf("cuda: not on this platform: %s/%s, want linux/amd64 or linux/arm64", runtime.GOOS, runtime.GOARCH)
}

func (*driver) call(f call, _ ...uintptr) error {
	return &Error{Call: symbols[f], Name: "not on this platform"}
}
