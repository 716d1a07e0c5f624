// The scan over the cells of a grid with 8 states of a channel in a thread.
#include "grid.cuh"

GRID_FORWARD(float, float, 8, 1, 4, 3)
GRID_FORWARD(bf16, bf16, 8, 1, 4, 3)
GRID_BACKWARD(float, float, 8, 1, 4, 3)
GRID_BACKWARD(bf16, bf16, 8, 1, 4, 3)
