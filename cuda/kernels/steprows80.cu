// The kernels of steprows.cu for compute capability 8.0, which rounds to bfloat16 in one instruction.
#include "steprows.cu"
