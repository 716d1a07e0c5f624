// The scan over the cells of a grid with 4 states of a channel in a thread.
#include "grid.cuh"

GRID_FORWARD(float, float, 4, 1, 8, 3)
GRID_FORWARD(bf16, bf16, 4, 1, 8, 3)
GRID_BACKWARD(float, float, 4, 1, 8, 3)
GRID_BACKWARD(bf16, bf16, 4, 1, 8, 3)
