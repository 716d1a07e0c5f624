#!/usr/bin/env bash
# Runs the go command with the build tag cuda: Gorgonia's own CUDA machine, on which the scan operator then runs.
#
#   tools/cudatag.sh [-if-present] build|vet|test|... ARGUMENTS
#
# Gorgonia's module wants the headers of cuDNN 8 for operators that nothing here uses. So this prepares, in Go's cache folder, a
# copy of gorgonia.org/cu with an empty package dnn, and a go.mod that names it. It needs a C compiler, cuda.h, cublas_v2.h and
# cuBLAS: Debian's nvidia-cuda-toolkit. With -if-present, missing ones are said and are no error. CUDA_HOME is where they are, if
# not where compilers look.
set -euo pipefail
cd "$(dirname "$0")/.."

absent=1
if [ "${1-}" = -if-present ]; then
	absent=0
	shift
fi
if [ $# = 0 ]; then
	echo "usage: tools/cudatag.sh [-if-present] build|vet|test|... ARGUMENTS" >&2
	exit 2
fi

export CGO_ENABLED=1
if [ -n "${CUDA_HOME-}" ]; then
	CGO_CFLAGS="${CGO_CFLAGS--O2 -g} -I$CUDA_HOME/include"
	CGO_LDFLAGS="${CGO_LDFLAGS-} -L$CUDA_HOME/lib64 -L$CUDA_HOME/lib64/stubs"
fi
# Where there is no driver, its stub is what to link against. It comes last, lest it hide the driver.
for stubs in /usr/local/cuda/lib64/stubs /usr/lib/x86_64-linux-gnu/stubs; do
	if [ -e $stubs/libcuda.so ]; then CGO_LDFLAGS="${CGO_LDFLAGS-} -L$stubs"; fi
done
# The module is older than the headers: most of what it says would be of functions that are deprecated by now.
CGO_CFLAGS="${CGO_CFLAGS--O2 -g} -I/usr/local/cuda/include -Wno-deprecated-declarations -Wno-implicit-function-declaration"
export CGO_CFLAGS CGO_LDFLAGS="${CGO_LDFLAGS-}"

cc=$(go env CC)
missing=
if ! command -v "${cc%% *}" >/dev/null; then
	missing="no C compiler ($cc)"
elif ! printf '#include <cuda.h>\n#include <cublas_v2.h>\n' | $cc $CGO_CFLAGS -fsyntax-only -x c - 2>/dev/null; then
	missing="no cuda.h or cublas_v2.h"
fi
if [ -n "$missing" ]; then
	echo "build tag cuda: $missing; install a CUDA toolkit (Debian: nvidia-cuda-toolkit) or set CUDA_HOME" >&2
	exit $absent
fi

cu=$(go list -m -f '{{.Version}}' gorgonia.org/cu)
go mod download "gorgonia.org/cu@$cu"
from=$(go env GOMODCACHE)/gorgonia.org/cu@$cu
to=$(go env GOCACHE)/mamba-cudatag/cu@$cu
if [ ! -e "$to" ]; then
	mkdir -p "${to%/*}"
	part=$(mktemp -d "$to.XXXXXX")
	cp -R "$from/." "$part"
	chmod -R u+w "$part"
	rm -rf "$part/dnn" "$part/nvrtc" "$part/cmd"
	mkdir "$part/dnn"
	cat > "$part/dnn/dnn.go" <<-'GO'
	// Package cudnn stands in for the bindings of cuDNN: a context of nothing.
	package cudnn

	type Context struct{}

	func NewContext() *Context { return &Context{} }

	func (*Context) Close() error { return nil }
	GO
	mv -T "$part" "$to" || rm -rf "$part" # another run was faster
fi

# A file of its own for each run, since two may run at once.
mod=$(mktemp -d)
trap 'rm -rf "$mod"' EXIT
cp go.mod "$mod/go.mod"
cp go.sum "$mod/go.sum"
go mod edit -replace "gorgonia.org/cu=$to" "$mod/go.mod"

command=$1
shift
go "$command" -tags cuda -modfile="$mod/go.mod" "$@"
