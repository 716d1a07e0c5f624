// The kernels of mlp.cu for compute capability 8.0, which rounds to bfloat16 in one instruction.
#include "mlp.cu"
