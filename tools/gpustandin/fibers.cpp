#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>
#include <xmmintrin.h>

#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <memory>
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
namespace {
// Multiprocessor runs the blocks of a thread of the host, one at a time.
struct Multiprocessor : Block {
  void *stack[maxThreads], *scheduler;
  int current, threads, live, waiting; // the thread that runs; how many there are, have not ended, and wait at a barrier
  bool any, anywhere;
  const std::function<void()> *kernel;
  std::minstd_rand random;

  // Where the order of the threads is: rounds over all warps, each warp until none of its lanes can run.
  int warps, first, round, flip;
  unsigned turn; // lanes that still run in this turn of the warp, their numbers flipped
  bool ran, moved;
  const char *wrong;

  static Multiprocessor *make() {
    char *all = (char *)mmap(nullptr, 2 * regionBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) abort();
    char *begin = (char *)(((uintptr_t)all + regionBytes - 1) & -regionBytes);
    munmap(all, begin - all);
    munmap(begin + regionBytes, all + regionBytes - begin);
    return new (begin) Multiprocessor;
  }

  void start(Index size);
  int next();
  void beginRound();
  const char *runBlock(Index size);
};
static_assert(sizeof(Multiprocessor) <= stackBytes && (maxThreads + 1) * stackBytes <= regionBytes);

Multiprocessor &multiprocessor() { return (Multiprocessor &)here(); }

// proceed goes on with the thread whose turn is next.
void proceed() {
  Multiprocessor &m = multiprocessor();
  const int from = m.current, to = m.next();
  if (to != from) standin_switch(&m.stack[from], to < 0 ? m.scheduler : m.stack[to]);
}

void begin() {
  Multiprocessor &m = multiprocessor();
  (*m.kernel)();
  m.live--, m.moved = true;
  proceed();
  abort();
}

void Multiprocessor::start(Index size) {
  threads = live = size.x * size.y * size.z;
  for (int i = 0; i < threads; i++) {
    thread[i] = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    // The stacks begin at different places of a cache, which a multiple of a large power of two would not do.
    char *end = (char *)this + (i + 2) * stackBytes - i * (1024 + 64) % (stackBytes / 2);
    void **top = (void **)end - 2; // a function finds its stack eight bytes off sixteen
    *top = (void *)begin;
    stack[i] = top - 6;
  }
  warps = (threads + 31) / 32;
  for (int w = 0; w < warps; w++) {
    Warp &it = Block::warps[w];
    it.lanes = it.ready = ~0u >> std::max(0, 32 * (w + 1) - threads);
    it.arrived = it.yielded = it.barrier = it.turn = 0;
  }
  waiting = 0, any = false, wrong = nullptr;
}

// flipped returns the bits of v in another order: the one of number i is the one of number i ^ flip.
unsigned flipped(unsigned v, int flip) {
  constexpr unsigned masks[] = {0x55555555, 0x33333333, 0x0f0f0f0f, 0x00ff00ff, 0x0000ffff};
  for (int i = 0; i < 5; i++)
    if (flip >> i & 1) v = (v & masks[i]) << (1 << i) | (v >> (1 << i) & masks[i]);
  return v;
}

void Multiprocessor::beginRound() { first = random() % warps, round = 0, turn = 0, ran = moved = false; }

// next returns the thread whose turn is next, or -1 if all have ended or, with the reason in wrong, none can run. The order is another one
// each time: what depends on it is a race.
int Multiprocessor::next() {
  while (true) {
    const int w = (first + round) % warps;
    Warp &it = Block::warps[w];
    if (turn == 0 && it.ready != 0) {
      flip = random() % 32;
      turn = flipped(it.ready, flip);
      it.ready = 0;
    }
    if (turn != 0) {
      const int lane = __builtin_ctz(turn) ^ flip;
      turn &= turn - 1;
      ran = true;
      return current = 32 * w + lane;
    }
    it.ready = it.yielded, it.yielded = 0; // the other warps come first
    if (++round < warps) continue;
    if (live == 0) return -1;
    if (waiting == live) {
      waiting = 0, anywhere = any, any = false;
      for (int i = 0; i < warps; i++) Block::warps[i].ready |= Block::warps[i].barrier, Block::warps[i].barrier = 0;
    } else if (!ran) {
      wrong = "threads wait for others that do not come: they have ended, or wait elsewhere";
      return -1;
    } else if (!moved) {
      usleep(20); // all wait for another block
    }
    beginRound();
  }
}

const char *Multiprocessor::runBlock(Index size) {
  start(size);
  beginRound();
  standin_switch(&scheduler, stack[next()]);
  return wrong;
}

struct Own {
  Multiprocessor *m = Multiprocessor::make();
  ~Own() { munmap(m, regionBytes); }
};
}  // namespace

void yield() {
  Multiprocessor &m = multiprocessor();
  m.Block::warps[m.current / 32].yielded |= 1u << m.current % 32;
  proceed();
}

int barrierOr(int v) {
  Multiprocessor &m = multiprocessor();
  m.any |= v != 0, m.moved = true;
  m.waiting++;
  m.Block::warps[m.current / 32].barrier |= 1u << m.current % 32;
  proceed();
  return m.anywhere;
}

void barrier() { barrierOr(0); }

bool arrive() {
  Multiprocessor &m = multiprocessor();
  Warp &w = m.Block::warps[m.current / 32];
  w.arrived |= 1u << m.current % 32;
  m.moved = true;
  if (w.arrived == w.lanes) return true;
  proceed();
  return false;
}

void release() {
  Multiprocessor &m = multiprocessor();
  Warp &w = m.Block::warps[m.current / 32];
  w.ready |= w.arrived & ~(1u << m.current % 32);
  w.arrived = 0, w.turn ^= 1;
}

namespace {
float add(float c, float a, float b) { return fmaf(a, b, c); }
int add(int c, int a, int b) { return c + a * b; }

// multiplyAll computes a product of 16 rows of 8 n numbers, n in a word, and 8 columns.
template <int N, class C, class Number> void multiplyAll(const Part<C> *all, Number number) {
  C a[16][8 * N], b[8 * N][8], c[16][8];
  for (int lane = 0; lane < 32; lane++) {
    const Part<C> &of = all[lane];
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; half++)
      for (int w = 0; w < N; w++) {
        const int k = 4 * N * half + N * t + w;
        a[g][k] = number(of.x[2 * half], w), a[g + 8][k] = number(of.x[2 * half + 1], w), b[k][g] = number(of.y[half], w);
      }
    for (int i = 0; i < 4; i++) c[g + i / 2 * 8][2 * t + i % 2] = of.c[i];
  }
  for (auto &row : c)
    for (int k = 0; k < 8 * N; k++)
      for (int j = 0; j < 8; j++) row[j] = add(row[j], a[&row - c][k], b[k][j]);
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++) all[lane].c[i] = c[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
}
}  // namespace

void multiplyBF16(const Part<float> *all) {
  multiplyAll<2>(all, [](uint32_t v, int w) { return __uint_as_float(w ? v & 0xffff0000 : v << 16); });
}
void multiplyF16(const Part<float> *all) {
  multiplyAll<2>(all, [](uint32_t v, int w) { return fromHalf(v >> 16 * w); });
}
void multiplyTF32(const Part<float> *all) {
  multiplyAll<1>(all, [](uint32_t v, int) { return __uint_as_float(v & 0xffffe000); });
}
void multiplyInt8(const Part<int> *all) {
  multiplyAll<4>(all, [](uint32_t v, int w) { return (int)(int8_t)(v >> 8 * w); });
}

std::function<void()> Kernel::bind(void **arguments) const {
  struct Copy {
    std::vector<char> bytes;
    std::vector<void *> list;
  };
  constexpr size_t align = alignof(max_align_t);
  auto copy = std::make_shared<Copy>();
  size_t end = 0;
  for (unsigned n : sizes) end += (n + align - 1) / align * align;
  copy->bytes.resize(end);
  char *to = copy->bytes.data();
  for (unsigned n : sizes) {
    copy->list.push_back(memcpy(to, *arguments++, n));
    to += (n + align - 1) / align * align;
  }
  return [copy, this] { call(function, copy->list.data()); };
}

namespace {
// runBlocks runs blocks of a grid on this thread of the host, count of them from first on, in one direction or the other.
const char *runBlocks(const std::function<void()> &kernel, Index grid, Index size, bool flush, unsigned seed, uint64_t first, uint64_t count) {
  thread_local Own own;
  Multiprocessor &m = *own.m;
  m.random.seed(seed);
  m.kernel = &kernel;
  m.gridSize = grid, m.blockSize = size;
  const unsigned mode = _mm_getcsr();
  if (flush) _mm_setcsr(mode | 0x8040);
  const uint64_t turn = m.random() % count;
  const bool down = m.random() & 1;
  const char *wrong = nullptr;
  for (uint64_t k = 0; k < count && !wrong; k++) {
    const uint64_t i = first + (turn + (down ? count - k : k)) % count;
    m.block = {(unsigned)(i % grid.x), (unsigned)(i / grid.x % grid.y), (unsigned)(i / grid.x / grid.y)};
    wrong = m.runBlock(size);
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
