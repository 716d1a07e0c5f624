#!/bin/sh
# Compiles each source in this folder to PTX with nvcc 11.8 (Debian's nvidia-cuda-toolkit, contrib and non-free), which drivers from 2022 on
# can load. With names of sources as arguments, it compiles only these. After a change in a header, compile all. It writes the hash of the
# sources to sources.sha256, which a test compares with the sources.
set -eu
cd "$(dirname "$0")"
command -v nvcc >/dev/null || { echo "generate.sh: no nvcc: apt-get install nvidia-cuda-toolkit" >&2; exit 1; }
export LC_ALL=C
sources=$(ls *.cu | grep -v '^bench.cu$')
for source in ${@:-$sources}; do
  ftz=$(case $source in scan*) echo true ;; *) echo false ;; esac) # scans flush denormal decays to zero, which saves instructions
  # Kernels that begin early need compute capability 9.0. Tensor cores for bfloat16 and tf32, copies to shared memory that do not wait, and rounding to bfloat16 need compute capability 8.0.
  # Products by groups of warps exist for compute capability 9.0 alone, as sm_90a of PTX 8.0 (CUDA 12.0), which this nvcc does not know: it passes their instructions on.
  arch=$(case $source in *90.cu | *90a.cu) echo 90 ;; *mma.cu | *async.cu | *80.cu) echo 80 ;; *) echo 70 ;; esac)
  header=$(case $source in *90a.cu) echo 's/^\.version .*/.version 8.0/; s/^\.target .*/.target sm_90a/' ;; esac)
  nvcc -std=c++17 -O3 -ftz="$ftz" -arch=compute_$arch -ptx -o - "$source" | grep -v '^//' | sed "$header" | gzip -9n >"${source%.cu}.ptx.gz"
done
cat *.cuh $sources generate.sh | sha256sum | cut -d' ' -f1 >sources.sha256
