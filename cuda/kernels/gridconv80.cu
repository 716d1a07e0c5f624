// The kernels of gridconv.cu for compute capability 8.0, which rounds to bfloat16 in one instruction.
#include "gridconv.cu"
