// The kernels of scan16carriesbf16async.cu for compute capability 9.0, where the pass begins before the first pass over chunks has ended.
#include "scan16carriesbf16async.cu"
