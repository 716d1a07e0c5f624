// The kernels of scan16forwardasync.cu for compute capability 9.0, where the second pass over chunks begins before the first has ended.
#include "scan16forwardasync.cu"
