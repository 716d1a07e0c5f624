// The kernels of scan16sums.cu for compute capability 9.0, where they begin before the kernel before them has ended.
#include "scan16sums.cu"
