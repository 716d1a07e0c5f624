// Steps of generation through a chain of blocks, with weights of float.
#include "chain.cuh"

CHAIN(float, float, 1)
CHAIN(float, float, 8)
