#!/usr/bin/env bash
# Runs a command with a stand-in for the GPU's driver and cuBLAS: the tests of what runs on a GPU, where there is none.
#
#   tools/gpustandin.sh [-if-present] go test -short ./cuda/... ./nn ./train ./checkpoint
#
# tools/gpustandin is a driver that runs the kernels of cuda/kernels on the host, compiled by a C++ compiler: all of the Go side and
# the kernels' own logic, but neither their PTX, nor the arithmetic's last bits, nor speed. GPUSTANDIN_SEED is a number by which the
# order is drawn in which threads run; with GPUSTANDIN_IDLE=1 nothing is computed, which leaves the host's part of a program's time
# but for what a real driver takes. It needs g++ on Linux, amd64; with -if-present, a machine without is said and is no error.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

absent=1
if [ "${1-}" = -if-present ]; then
	absent=0
	shift
fi
if [ $# = 0 ]; then
	echo "usage: tools/gpustandin.sh [-if-present] COMMAND ARGUMENTS" >&2
	exit 2
fi
if [ "$(uname -s -m)" != "Linux x86_64" ] || ! grep -qw fma /proc/cpuinfo || ! command -v g++ >/dev/null; then
	echo "stand-in for a GPU: it needs Linux, an amd64 processor with FMA, and g++; this is $(uname -s -m), g++: $(command -v g++ || echo none)" >&2
	exit $absent
fi

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
kernels=$root/cuda/kernels
for ptx in "$kernels"/*.ptx.gz; do
	name=$(basename "$ptx" .ptx.gz)
	flush=$(case $name in scan*) echo true ;; *) echo false ;; esac) # as generate.sh compiles them
	{
		echo '#include "language.h"'
		echo "#include \"$name.cu\""
		echo "static standin::Kernel kernels[] = {"
		gzip -dc "$ptx" | sed -n "s/^\.visible \.entry \([A-Za-z0-9_]*\)(.*/  {\"\1\", $flush, \1},/p"
		echo "};"
	} > "$out/$name.cpp"
done
cp "$root"/tools/gpustandin/*.cpp "$out"
cd "$out"
printf '%s\0' *.cpp | xargs -0 -n 1 -P "$(nproc)" g++ -std=c++17 -fno-extern-tls-init -O2 -mfma -ffp-contract=fast -w -fPIC -I"$root/tools/gpustandin" -I"$kernels" -c
g++ -shared -Wl,-z,defs -o libcuda.so.1 *.o
ln -s libcuda.so.1 libcublas.so.13
cd "$OLDPWD"
MAMBA_TEST_DEVICE=standin LD_LIBRARY_PATH=$out${LD_LIBRARY_PATH+:$LD_LIBRARY_PATH} "$@"
