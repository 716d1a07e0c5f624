//go:build linux && (amd64 || arm64)

package cuda

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/ebitengine/purego"
)

// blasLibrary is cuBLAS, loaded once.
type blasLibrary struct{ address [blasCalls]uintptr }

// blasMajors lists the major versions of cuBLAS whose functions have the arguments that we pass, the newest first.
var blasMajors = []string{"13", "12", "11"}

// blasFolders returns the folders where toolkits, distributions and Python packages install cuBLAS. "" stands for the loader's own search.
func blasFolders() []string {
	folders := []string{""}
	for _, variable := range []string{"CUDA_HOME", "CUDA_PATH"} {
		if root := os.Getenv(variable); root != "" {
			folders = append(folders, root, filepath.Join(root, "lib64"), filepath.Join(root, "lib"))
		}
	}
	for _, pattern := range []string{
		"/usr/local/cuda/lib64", "/usr/local/cuda-*/lib64", "/usr/local/cuda*/targets/*/lib", "/opt/cuda/lib64",
		"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64",
		"/usr/lib/python3*/*-packages/nvidia/*/lib", "/usr/local/lib/python3*/*-packages/nvidia/*/lib",
		"/opt/conda/lib", "/opt/conda/lib/python3*/site-packages/nvidia/*/lib",
	} {
		found, _ := filepath.Glob(pattern)
		slices.Sort(found)
		slices.Reverse(found) // the newest first
		folders = append(folders, found...)
	}
	return folders
}

var loadBLAS = sync.OnceValues(findBLAS)

func findBLAS() (*blasLibrary, error) {
	open := func(file string) (*blasLibrary, error) {
		// libcublas needs libcublasLt, which may be in the same folder and not on the loader's path. So load it first.
		if dir := filepath.Dir(file); dir != "." {
			if lt, _ := filepath.Glob(filepath.Join(dir, "libcublasLt.so.*")); len(lt) > 0 {
				_, _ = purego.Dlopen(lt[0], purego.RTLD_NOW|purego.RTLD_GLOBAL)
			}
		}
		handle, err := purego.Dlopen(file, purego.RTLD_NOW|purego.RTLD_GLOBAL)
		if err != nil {
			return nil, err
		}
		b := new(blasLibrary)
		for i, name := range blasSymbols {
			if b.address[i], err = purego.Dlsym(handle, name); err != nil {
				return nil, err
			}
		}
		return b, nil
	}
	if file := os.Getenv("MAMBA_CUBLAS"); file != "" {
		b, err := open(file)
		if err != nil {
			return nil, fmt.Errorf("cuda: cuBLAS: MAMBA_CUBLAS is %s: %w", file, err)
		}
		return b, nil
	}
	var wrong error
	for _, folder := range blasFolders() {
		for _, major := range blasMajors {
			file := filepath.Join(folder, "libcublas.so."+major)
			if folder != "" {
				if _, err := os.Stat(file); err != nil {
					continue
				}
			}
			b, err := open(file)
			if err == nil {
				return b, nil
			}
			if folder != "" || wrong == nil {
				wrong = err // the error of a file that exists is more useful than the loader's "not found"
			}
		}
	}
	return nil, fmt.Errorf("cuda: no cuBLAS (libcublas.so.13, .12 or .11) where the loader looks, in $CUDA_HOME, $CUDA_PATH or the usual "+
		"folders; install it, or name its file in $MAMBA_CUBLAS: %w", wrong)
}

func (b *blasLibrary) call(f blasCall, args ...uintptr) int {
	code, _, _ := purego.SyscallN(b.address[f], args...)
	return int(int32(code))
}
