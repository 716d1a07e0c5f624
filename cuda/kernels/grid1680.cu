// The kernels of grid16.cu, compiled for compute capability 8.0.
#include "grid16.cu"
