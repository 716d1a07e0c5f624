// A kernel's blocks one after another, each of fibers that take turns.
#pragma once
#include "language.h"

namespace standin {
// run runs a kernel over a grid of blocks of threads. It returns what is wrong, or null.
const char *run(const std::function<void()> &kernel, Index grid, Index block, bool flush);
}
