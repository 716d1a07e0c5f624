// Steps with weights of bfloat16.
#include "step.cuh"

STEPS(bf16, bf16)
