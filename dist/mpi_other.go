//go:build !linux || !(amd64 || arm64)

package dist

import (
	"fmt"
	"runtime"
)

type mpiLibrary struct{ file string }

var errNoMPI = fmt.Errorf("dist: join: groups of several processes are not on this platform: %s/%s, want linux/amd64 or linux/arm64", runtime.GOOS, runtime.GOARCH)

func loadMPI(launch) (*mpiLibrary, error) { return nil, errNoMPI }

func (*mpiLibrary) start() error                { return errNoMPI }
func (*mpiLibrary) place() (int, int, error)    { return 0, 0, errNoMPI }
func (*mpiLibrary) begin(*request, Tag) error   { return errNoMPI }
func (*mpiLibrary) test(*request) (bool, error) { return false, errNoMPI }
func (*mpiLibrary) finish() error               { return errNoMPI }
func (*mpiLibrary) abort()                      {}

func yield() {}
