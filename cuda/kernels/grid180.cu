// The kernels of grid1.cu, compiled for compute capability 8.0.
#include "grid1.cu"
