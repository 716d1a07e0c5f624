// The forward scan over the cells of a grid with 16 states of a channel in a thread. The backward scan has eight, in two groups.
#include "grid.cuh"

GRID_FORWARD(float, float, 16, 1, 4, 3)
GRID_FORWARD(bf16, bf16, 16, 1, 4, 3)
