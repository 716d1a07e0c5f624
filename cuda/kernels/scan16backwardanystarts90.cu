// The kernels of scan16backwardanystartsasync.cu for compute capability 9.0, where the pass begins before the first pass over chunks has ended.
#include "scan16backwardanystartsasync.cu"
