// Steps with weights of float.
#include "step.cuh"

STEPS(float, float)
