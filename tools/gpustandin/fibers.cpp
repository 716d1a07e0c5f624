#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>
#include <xmmintrin.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

// standin_switch(from, to) keeps what a function must keep on the stack, and goes on with another one.
extern "C" void standin_switch(void **from, void *to);
#undef asm
asm(R"(
.text
.globl standin_switch
.type standin_switch, @function
standin_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size standin_switch, .-standin_switch
)");

// What kernels declare as dynamic shared memory, by its names: 48 KiB, what a block has without asking for more, and an H100's 227 KiB.
alignas(1024) thread_local float sums[12288], shared[58112];

namespace standin {
thread_local Index thread, block, blockSize, gridSize;

namespace {
constexpr int maxThreads = 1024;
constexpr size_t stackSize = 128 << 10;

enum State { ready, waits, atWarp, atBarrier, done };

struct Fiber {
  void *stack;
  Index index;
  State state;
};

struct Warp {
  int lanes, waiting, turn;
  char given[2][32][slot]; // by turns: a lane may give again before all have read
};

// Multiprocessor is a host's thread, which has one block at a time.
struct Multiprocessor {
  Fiber fibers[maxThreads];
  Warp warps[maxThreads / 32];
  char *stacks;
  void *scheduler;
  int threads, current, waiting;
  bool any, anywhere;
  const std::function<void()> *kernel;
  std::minstd_rand random;

  Multiprocessor() {
    stacks = (char *)mmap(nullptr, maxThreads * stackSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) abort();
  }
  ~Multiprocessor() { munmap(stacks, maxThreads * stackSize); }

  void pause(State s) {
    Fiber &f = fibers[current];
    f.state = s;
    standin_switch(&f.stack, scheduler);
  }

  void resume(int i) {
    current = i;
    thread = fibers[i].index;
    standin_switch(&scheduler, fibers[i].stack);
  }

  const char *runBlock(Index size);
};

thread_local Multiprocessor here;

void begin() {
  (*here.kernel)();
  here.pause(done);
  abort();
}

const char *Multiprocessor::runBlock(Index size) {
  threads = size.x * size.y * size.z;
  for (int i = 0; i < threads; i++) {
    Fiber &f = fibers[i];
    f.index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    f.state = ready;
    void **top = (void **)(stacks + (i + 1) * stackSize) - 2; // a function finds its stack eight bytes off sixteen
    *top = (void *)begin;
    f.stack = top - 6;
  }
  const int count = (threads + 31) / 32;
  for (int w = 0; w < count; w++) warps[w].lanes = std::min(32, threads - 32 * w), warps[w].waiting = warps[w].turn = 0;
  waiting = 0, any = false;
  for (int live = threads; live > 0;) {
    bool ran = false, moved = false;
    // Another order each time: what depends on it is a race.
    const int first = random() % count;
    for (int k = 0; k < count; k++) {
      const int w = (first + k) % count;
      for (bool again = true; again;) {
        again = false;
        const int flip = random() % 32;
        for (int l = 0; l < 32; l++) {
          const int lane = l ^ flip, i = 32 * w + lane;
          if (lane >= warps[w].lanes || fibers[i].state != ready) continue;
          resume(i);
          ran = true;
          if (fibers[i].state == waits)
            fibers[i].state = ready; // the other warps come first
          else
            again = moved = true;
          if (fibers[i].state == done) live--;
        }
      }
    }
    if (waiting > 0 && waiting == live) {
      waiting = 0, anywhere = any, any = false;
      for (int i = 0; i < threads; i++)
        if (fibers[i].state == atBarrier) fibers[i].state = ready;
    } else if (!ran) {
      return "threads wait for others that do not come: they have ended, or wait elsewhere";
    } else if (!moved) {
      usleep(20); // all wait for another block
    }
  }
  return nullptr;
}
}  // namespace

void yield() { here.pause(waits); }

int laneOf() { return here.current % 32; }

int barrierOr(int v) {
  here.any |= v != 0;
  here.waiting++;
  here.pause(atBarrier);
  return here.anywhere;
}

void barrier() { barrierOr(0); }

void *exchange(unsigned mask, const void *v, int bytes) {
  if (mask != ~0u) abort(); // no kernel does
  Warp &w = here.warps[here.current / 32];
  char (*given)[slot] = w.given[w.turn];
  memcpy(given[laneOf()], v, bytes);
  if (++w.waiting < w.lanes) {
    here.pause(atWarp);
    return given;
  }
  w.waiting = 0, w.turn ^= 1;
  Fiber *first = &here.fibers[here.current / 32 * 32];
  for (int i = 0; i < w.lanes; i++)
    if (first[i].state == atWarp) first[i].state = ready;
  return given;
}

namespace {
// runBlocks runs blocks of a grid on this thread of the host, count of them from first on, in one direction or the other.
const char *runBlocks(const std::function<void()> &kernel, Index grid, Index size, bool flush, unsigned seed, uint64_t first, uint64_t count) {
  here.random.seed(seed);
  here.kernel = &kernel;
  gridSize = grid, blockSize = size;
  const unsigned mode = _mm_getcsr();
  if (flush) _mm_setcsr(mode | 0x8040);
  const uint64_t turn = here.random() % count;
  const bool down = here.random() & 1;
  const char *wrong = nullptr;
  for (uint64_t k = 0; k < count && !wrong; k++) {
    const uint64_t i = first + (turn + (down ? count - k : k)) % count;
    block = {(unsigned)(i % grid.x), (unsigned)(i / grid.x % grid.y), (unsigned)(i / grid.x / grid.y)};
    wrong = here.runBlock(size);
  }
  _mm_setcsr(mode);
  return wrong;
}
}  // namespace

const char *run(const std::function<void()> &kernel, Index grid, Index size, bool flush, bool cooperative) {
  static const unsigned chosen = getenv("GPUSTANDIN_SEED") ? atoi(getenv("GPUSTANDIN_SEED")) : 1;
  static std::atomic<unsigned> launches{0};
  const unsigned seed = chosen + 7919 * launches++;
  const uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
  if (!cooperative) return runBlocks(kernel, grid, size, flush, seed, 0, blocks);
  std::vector<std::thread> threads; // of the host: each has one block, with its shared memory
  for (uint64_t i = 0; i < blocks; i++)
    threads.emplace_back([&, i] {
      if (const char *wrong = runBlocks(kernel, grid, size, flush, seed + i, i, 1)) {
        fprintf(stderr, "stand-in: a block of a cooperative launch: %s\n", wrong); // the others may wait for it
        abort();
      }
    });
  for (std::thread &t : threads) t.join();
  return nullptr;
}
}  // namespace standin
