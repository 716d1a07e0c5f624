// The kernels of scan16backwardbf16wholestartsasync.cu for compute capability 9.0, where the pass begins before the first pass over chunks has ended.
#include "scan16backwardbf16wholestartsasync.cu"
