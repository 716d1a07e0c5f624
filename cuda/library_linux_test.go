//go:build linux && (amd64 || arm64)

package cuda

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestNoCuBLAS(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "lib64", "libcublas.so.12")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("no library"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Run("named", func(t *testing.T) {
		t.Setenv("MAMBA_CUBLAS", file)
		if _, err := cublas.find(); err == nil || !strings.HasPrefix(err.Error(), "cuda: cuBLAS: MAMBA_CUBLAS is "+file) {
			t.Errorf("the error is %v", err)
		}
	})
	t.Run("looked for", func(t *testing.T) {
		t.Setenv("MAMBA_CUBLAS", "")
		t.Setenv("CUDA_HOME", root)
		_, err := cublas.find()
		if err == nil {
			t.Skip("this machine has cuBLAS")
		}
		for _, want := range []string{"libcublas.so.13, .12 or .11", "$MAMBA_CUBLAS", file} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the error is %v, want it to name %s", err, want)
			}
		}
	})
}

// NCCL is found beside the Python that is on the path, and its file alone has its errors.
func TestFindNCCL(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "lib", "python3.99", "site-packages", "nvidia", "nccl", "lib", "libnccl.so.2")
	for name, mode := range map[string]os.FileMode{filepath.Join(root, "bin", "python3"): 0o755, file: 0o644} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte("no program"), mode); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", filepath.Join(root, "bin"))
	if folders := libraryFolders(); !slices.Contains(folders, filepath.Dir(file)) {
		t.Errorf("the folders are %q, want %s among them", folders, filepath.Dir(file))
	}
	t.Setenv("MAMBA_NCCL", "")
	_, err := nccl.find()
	if err == nil {
		t.Skip("this machine has NCCL")
	}
	for _, want := range []string{"no NCCL (libnccl.so.2)", "nvidia-nccl-cu13", "$MAMBA_NCCL", file} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want it to name %s", err, want)
		}
	}
}
