#!/usr/bin/env bash
# Runs a command with a stand-in for the GPU's driver, cuBLAS, cuFFT and NCCL. With it the GPU's tests run on a machine without a GPU.
#
#   tools/gpustandin.sh [-if-present] go test -short ./cuda/... ./dist ./op ./layer ./nn ./train ./checkpoint
#
# tools/gpustandin is a driver that runs the kernels of cuda/kernels on the host, compiled by g++. It tests the Go code and the logic
# of the kernels. It does not test their PTX, the last bits of the arithmetic, or speed.
#
# It sets MAMBA_TEST_DEVICE=standin: tests that need the stand-in then fail, instead of being skipped, if they do not find it.
#
# GPUSTANDIN_SEED=N   seed of the random order in which threads run
# GPUSTANDIN_IDLE=1   compute nothing: the time of a program is then that of its host code, without a real driver's
# GPUSTANDIN_GPUS=N   the number of GPUs, 1 by default
# GPUSTANDIN_LOST=N   the rank that NCCL does not connect with the others
# GPUSTANDIN_ALONE=N  the same, and the others wait for it in NCCL
#
# It needs Linux on amd64 and g++. Without them it prints what is missing and fails; with -if-present it succeeds.
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
	case $name in *80 | *90) continue ;; esac # the same kernels again
	flush=$(case $name in scan*) echo true ;; *) echo false ;; esac) # as generate.sh compiles them
	{
		echo '#include "language.h"'
		echo "#include \"$name.cu\""
		echo "static standin::Kernel kernels[] = {"
		gzip -dc "$ptx" | sed -n "s/^\.visible \.entry \([A-Za-z0-9_]*\)(.*/  {\"\1\", $flush, \1},/p"
		echo "};"
	} > "$out/$name.cpp"
done
cd "$out"
flags=(-std=c++17 -fno-extern-tls-init -mfma -ffp-contract=fast -w -fPIC -I"$root/tools/gpustandin" -I"$kernels")
compile() { xargs -0 -n 1 -P "$(nproc)" g++ "${flags[@]}" "$@"; }
printf '%s\0' "$root"/tools/gpustandin/*.cpp | compile -O2 -c
g++ "${flags[@]}" -O1 -x c++-header -o language.h.gch "$root/tools/gpustandin/language.h" # what every kernel begins with, read once
printf '%s\0' *.cpp | compile -O1 -c
g++ -shared -pthread -Wl,-z,defs -o libcuda.so.1 *.o
ln -s libcuda.so.1 libcublas.so.13
ln -s libcuda.so.1 libcufft.so.12
ln -s libcuda.so.1 libnccl.so.2
cd "$OLDPWD"
MAMBA_TEST_DEVICE=standin LD_LIBRARY_PATH=$out${LD_LIBRARY_PATH+:$LD_LIBRARY_PATH} "$@"
