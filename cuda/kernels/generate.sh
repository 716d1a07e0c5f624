#!/bin/sh
# Makes the PTX beside the sources with nvcc 11.8 (Debian's nvidia-cuda-toolkit, contrib and non-free), so that drivers from
# 2022 on load it. sources.sha256 has the hash of what they were made from; a test compares it. Given names of sources, it
# makes those alone: whoever changed a header makes all.
set -eu
cd "$(dirname "$0")"
command -v nvcc >/dev/null || { echo "generate.sh: no nvcc: apt-get install nvidia-cuda-toolkit" >&2; exit 1; }
export LC_ALL=C
sources=$(ls *.cu | grep -v '^bench.cu$')
for source in ${@:-$sources}; do
  ftz=$(case $source in scan*) echo true ;; *) echo false ;; esac) # the scan's decays go to zero without a detour
  nvcc -std=c++17 -O3 -ftz="$ftz" -arch=compute_70 -ptx -o - "$source" | grep -v '^//' | gzip -9n >"${source%.cu}.ptx.gz"
done
cat *.cuh $sources generate.sh | sha256sum | cut -d' ' -f1 >sources.sha256
