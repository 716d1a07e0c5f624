//go:build !linux || !(amd64 || arm64)

package cuda

import (
	"fmt"
	"runtime"
)

type driver struct{}

var errNoDriver = fmt.Errorf("cuda: not on this platform: %s/%s, want linux/amd64 or linux/arm64", runtime.GOOS, runtime.GOARCH)

func loadDriver() (*driver, error) { return nil, errNoDriver }

func (*driver) call(f call, _ ...uintptr) error {
	return &Error{Call: symbols[f], Name: "not on this platform"}
}

func (*library) find() ([]uintptr, error) { return nil, errNoDriver }

func invoke(uintptr, ...uintptr) int { panic("unreachable: there is no driver") }

func lastError(uintptr) string { panic("unreachable: there is no driver") }

func initRank(uintptr, *uintptr, int, ConnectionID, int) int {
	panic("unreachable: there is no driver")
}
