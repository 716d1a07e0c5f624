// A kernel's blocks, each of fibers that take turns.
#pragma once
#include "language.h"

namespace standin {
// run runs a kernel over a grid of blocks of threads: the blocks one after another, or, of a cooperative launch, all at the same time. It
// returns what is wrong, or null.
const char *run(const std::function<void()> &kernel, Index grid, Index block, bool flush, bool cooperative);
}
