// The states of sequences of a batch, copied to those of another batch; see cuda/states.go. Block (·, y, z) copies a part of state y of sequence z. table has the
// beginning of each state in a batch of one, and then the size of each.
#include "types.cuh"

extern "C" __global__ void copy_states(const int32_t *table, const float *from, int64_t fromBatch, int64_t fromRow, float *to, int64_t toBatch, int64_t toRow) {
  const int64_t begins = table[blockIdx.y], size = table[gridDim.y + blockIdx.y];
  if (from) from += fromBatch * begins + (fromRow + blockIdx.z) * size;
  to += toBatch * begins + (toRow + blockIdx.z) * size;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += (int64_t)gridDim.x * blockDim.x) to[i] = from ? from[i] : 0;
}
