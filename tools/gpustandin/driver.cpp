// The functions of the CUDA driver that package cuda calls. Each does its work at once, in the calling thread.
#include "driver.h"

#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

#include "fibers.h"

standin::Kernel *standin::Kernel::first;

namespace {
enum {
  success = 0,
  invalidValue = 1,
  outOfMemory = 2,
  invalidDevice = 101,
  invalidContext = 201,
  unknown = 999,
  contextIsDestroyed = 709,
  illegalState = 401,
  notFound = 500,
  notReady = 600,
  launchFailed = 719,
  cooperativeLaunchTooLarge = 720,
  captureMerge = 902,
  captureUnjoined = 904,
  captureIsolation = 905,
  capturedEvent = 907,
};

constexpr int multiprocessors = 4; // few: blocks of a cooperative launch are threads of the host
constexpr unsigned usualShared = 48 << 10, mostShared = 227 << 10; // bytes of a block

constexpr size_t totalMemory = (size_t)4 << 30;

struct Memory {
  size_t size;
  bool guarded; // by pages that nobody may touch
};

// A process may have 65530 pieces of memory of different rights; one that is guarded takes two or three.
constexpr size_t mostGuarded = 15000;

std::mutex mutex; // guards the variables below, up to the counts
std::map<char *, Memory> memory;
size_t used, guarded;
int retained;

// Limit makes calls of one kind fail, after left of them have succeeded: all that follow, or only one. A negative left is no limit.
struct Limit {
  bool one;
  int64_t left = -1, refused = 0;

  bool refuses() {
    if (left != 0) return left -= left > 0, false;
    if (one) left = -1;
    return refused++, true;
  }
  int64_t set(int64_t n) {
    const int64_t before = refused;
    return left = n, refused = 0, before;
  }
};
Limit allocations{false}, copies{true}, cooperatives{false}; // an allocation is tried again before it is an error

std::mutex countsMutex;
std::map<std::string, int> counts;

const bool idle = getenv("GPUSTANDIN_IDLE"); // nothing is done: what a program then takes is the host's part

const int devices = getenv("GPUSTANDIN_GPUS") ? atoi(getenv("GPUSTANDIN_GPUS")) : 1; // all have the same memory

thread_local void *current;
char context;

size_t pages(size_t n) {
  const size_t page = sysconf(_SC_PAGESIZE);
  return (n + page - 1) / page * page;
}

char *take(size_t n) {
  const size_t all = pages(n), page = pages(1);
  const bool guard = guarded < mostGuarded;
  char *p = nullptr;
  if (!guard) {
    p = (char *)aligned_alloc(256, (n + 255) / 256 * 256);
  } else if (char *base = (char *)mmap(nullptr, all + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); base != MAP_FAILED) {
    if (mprotect(base + page, all, PROT_READ | PROT_WRITE)) munmap(base, all + 2 * page);
    else p = base + page + (all - n) / 256 * 256; // a real one begins at a multiple of 256
  }
  if (p) memory[p] = {n, guard}, used += n, guarded += guard;
  return p;
}

void giveBack(char *p, Memory m) {
  used -= m.size;
  if (!m.guarded) return free(p);
  guarded--;
  const size_t page = pages(1);
  munmap((char *)((size_t)p / page * page) - page, pages(m.size) + 2 * page);
}

// refusesCooperative reports whether a cooperative launch is to fail.
bool refusesCooperative() {
  std::lock_guard<std::mutex> lock(mutex);
  return cooperatives.refuses();
}

// refusesCopy reports whether a copy between host and device is to fail.
bool refusesCopy() {
  std::lock_guard<std::mutex> lock(mutex);
  return copies.refuses();
}

struct Event {
  std::shared_ptr<Point> point;       // null if it was not recorded yet
  std::weak_ptr<Recording> recording; // in which it was recorded last, if captured
  bool captured = false;
  Stream *of = nullptr; // the stream that it is a point of
  uint64_t after = 0;   // as many pieces of its work
};

struct Graph {
  std::vector<std::function<int()>> work;
};

struct Module {
  std::string text;
};
}  // namespace

void count(const char *kind, int change) {
  std::lock_guard<std::mutex> lock(countsMutex);
  counts[kind] += change;
}

bool refusesAllocation() {
  std::lock_guard<std::mutex> lock(mutex);
  return allocations.refuses();
}

// inside reports whether the n bytes at p lie in one allocation.
bool inside(const void *p, size_t n) {
  std::lock_guard<std::mutex> lock(mutex);
  auto next = memory.upper_bound((char *)p);
  if (next == memory.begin()) return false;
  auto &at = *--next;
  return (char *)p + n <= at.first + at.second.size;
}

void Point::reach() {
  std::lock_guard<std::mutex> lock(mutex);
  reached = true, at = std::chrono::steady_clock::now();
  changed.notify_all();
}

void Point::wait() {
  std::unique_lock<std::mutex> lock(mutex);
  changed.wait(lock, [this] { return reached; });
}

Worker::Worker() {
  thread = std::thread([this] {
    std::unique_lock<std::mutex> lock(mutex);
    for (;; changed.notify_all()) {
      changed.wait(lock, [this] { return last || !work.empty(); });
      if (work.empty()) return;
      auto f = std::move(work.front());
      lock.unlock();
      f();
      lock.lock();
      work.pop_front();
    }
  });
}

Worker::~Worker() {
  {
    std::lock_guard<std::mutex> lock(mutex);
    last = true;
    changed.notify_all();
  }
  thread.join();
}

void Worker::add(std::function<int()> f) {
  std::lock_guard<std::mutex> lock(mutex);
  work.push_back(std::move(f));
  changed.notify_all();
}

void Worker::wait() {
  std::unique_lock<std::mutex> lock(mutex);
  changed.wait(lock, [this] { return work.empty(); });
}

void Stream::parallel() {
  if (!worker) worker = std::make_unique<Worker>();
}

int Stream::queue(std::function<int()> f) {
  if (idle) return success;
  queued++;
  if (recording) recording->work.push_back(std::move(f));
  else if (worker) worker->add(std::move(f));
  else return f();
  return success;
}

extern "C" {
int cuInit(unsigned) { return success; }
int cuDriverGetVersion(int *v) { return *v = 13000, success; }

int cuGetErrorName(int code, const char **name) {
  static const std::map<int, const char *> names = {
      {invalidValue, "CUDA_ERROR_INVALID_VALUE"},     {outOfMemory, "CUDA_ERROR_OUT_OF_MEMORY"},   {invalidDevice, "CUDA_ERROR_INVALID_DEVICE"},
      {invalidContext, "CUDA_ERROR_INVALID_CONTEXT"}, {illegalState, "CUDA_ERROR_ILLEGAL_STATE"}, {notFound, "CUDA_ERROR_NOT_FOUND"},
      {launchFailed, "CUDA_ERROR_LAUNCH_FAILED"},  {cooperativeLaunchTooLarge, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE"},  {contextIsDestroyed, "CUDA_ERROR_CONTEXT_IS_DESTROYED"},
      {captureMerge, "CUDA_ERROR_STREAM_CAPTURE_MERGE"}, {captureUnjoined, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED"},
      {captureIsolation, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"}, {capturedEvent, "CUDA_ERROR_CAPTURED_EVENT"}, {unknown, "CUDA_ERROR_UNKNOWN"}};
  auto at = names.find(code);
  if (at == names.end()) return invalidValue;
  return *name = at->second, success;
}
int cuGetErrorString(int code, const char **text) {
  if (code == outOfMemory) return *text = "out of memory", success;
  return cuGetErrorName(code, text);
}

int cuDeviceGetCount(int *n) { return *n = devices, success; }
int cuDeviceGet(int *device, int ordinal) { return ordinal >= 0 && ordinal < devices ? *device = ordinal, success : invalidDevice; }
int cuDeviceGetName(char *name, int n, int) { return snprintf(name, n, "stand-in for a GPU"), success; }
int cuDeviceGetAttribute(int *v, int attribute, int) {
  static const std::map<int, int> attributes = {{16, multiprocessors}, {75, 9}, {76, 0}, {97, mostShared}};
  if (attribute == 95) {
    std::lock_guard<std::mutex> lock(mutex);
    return *v = cooperatives.left != 0, success;
  }
  auto at = attributes.find(attribute);
  if (at == attributes.end()) return invalidValue;
  return *v = at->second, success;
}

int cuDevicePrimaryCtxRetain(void **c, int) {
  std::lock_guard<std::mutex> lock(mutex);
  retained++;
  count("context", 1);
  return *c = &context, success;
}
int cuDevicePrimaryCtxRelease_v2(int) {
  std::lock_guard<std::mutex> lock(mutex);
  if (retained == 0) return invalidContext;
  retained--;
  count("context", -1);
  return success; // a real driver frees what is in the context; here standinAlive tells what is left
}
int cuCtxSetCurrent(void *c) {
  std::lock_guard<std::mutex> lock(mutex);
  if (c && retained == 0) return contextIsDestroyed;
  return current = c, success;
}
int cuCtxGetCurrent(void **c) { return *c = current, success; }
int cuCtxGetDevice(int *d) { return current ? *d = 0, success : invalidContext; }

int cuStreamCreate(Stream **s, unsigned) { return current ? *s = make<Stream>("stream"), success : invalidContext; }
int cuStreamDestroy_v2(Stream *s) { return destroy("stream", s); }
int cuStreamSynchronize(Stream *s) {
  if (s->recording) return illegalState;
  if (s->worker) s->worker->wait();
  return s->wrong;
}
int cuStreamWaitEvent(Stream *s, Event *e, unsigned) {
  if (!e->point) return success;
  if (!e->captured) {
    if (s->recording) return captureIsolation;
    return s->queue([point = e->point] { return point->wait(), success; });
  }
  const auto recording = e->recording.lock();
  if (!recording) return capturedEvent;
  if (s->recording && s->recording != recording) return captureMerge;
  if (!s->recording) s->recording = recording, recording->joined.push_back(s);
  s->queued++;
  e->of->joined = std::max(e->of->joined, e->after);
  return success;
}

int cuEventCreate(Event **e, unsigned) { return *e = make<Event>("event"), success; }
int cuEventDestroy_v2(Event *e) { return destroy("event", e); }
int cuEventRecord(Event *e, Stream *s) {
  e->point = std::make_shared<Point>(), e->captured = s->recording != nullptr, e->recording = s->recording, e->of = s;
  const int code = s->queue([point = e->point] { return point->reach(), success; });
  e->after = s->queued;
  if (idle) e->point->reach();
  return code;
}
int cuEventSynchronize(Event *e) {
  if (e->point && e->captured) return capturedEvent;
  if (e->point) e->point->wait();
  return success;
}
int cuEventQuery(Event *e) {
  if (e->point && e->captured) return capturedEvent;
  if (!e->point) return success;
  std::lock_guard<std::mutex> lock(e->point->mutex);
  return e->point->reached ? success : notReady;
}
int cuEventElapsedTime(float *ms, Event *from, Event *to) {
  *ms = from->point && to->point ? std::chrono::duration<float, std::milli>(to->point->at - from->point->at).count() : 0;
  return success;
}

int cuMemGetInfo_v2(size_t *free, size_t *total) {
  std::lock_guard<std::mutex> lock(mutex);
  return *free = totalMemory - used, *total = totalMemory, success;
}
// Pages without access lie on either side of an allocation. All of its numbers are NaN.
int cuMemAlloc_v2(char **p, size_t n) {
  std::lock_guard<std::mutex> lock(mutex);
  if (n == 0) return invalidValue;
  if (!current) return invalidContext;
  if (allocations.refuses()) return outOfMemory;
  if (n > totalMemory - used || !(*p = take(n))) return outOfMemory;
  memset(*p, 0xff, n);
  count("array", 1);
  return success;
}
int cuMemFree_v2(char *p) {
  std::lock_guard<std::mutex> lock(mutex);
  auto at = memory.find(p);
  if (at == memory.end()) return invalidValue;
  giveBack(p, at->second);
  memory.erase(at);
  count("array", -1);
  return success;
}
int cuMemAllocHost_v2(void **p, size_t n) {
  if (refusesAllocation() || !(*p = malloc(n))) return outOfMemory;
  count("pinned buffer", 1);
  return success;
}
int cuMemFreeHost(void *p) {
  count("pinned buffer", -1);
  return free(p), success;
}

int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t n, Stream *s) {
  if (!inside(to, n)) return invalidValue;
  if (refusesCopy()) return unknown;
  return s->queue([=] { return memcpy(to, from, n), success; });
}
int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t n, Stream *s) {
  if (!inside(from, n)) return invalidValue;
  if (refusesCopy()) return unknown;
  return s->queue([=] { return memcpy(to, from, n), success; });
}
int cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t n, Stream *s) {
  if (!inside(from, n) || !inside(to, n)) return invalidValue;
  return s->queue([=] { return memmove(to, from, n), success; });
}
int cuMemsetD8Async(void *to, unsigned char value, size_t n, Stream *s) {
  if (!inside(to, n)) return invalidValue;
  return s->queue([=] { return memset(to, value, n), success; });
}

// A module is the text of its PTX, which has the names of its kernels.
int cuModuleLoadData(Module **m, const char *image) { return *m = make<Module>("module"), (*m)->text = image, success; }
int cuModuleUnload(Module *m) { return destroy("module", m); }
int cuModuleGetFunction(standin::Kernel **f, Module *m, const char *name) {
  if (m->text.find(std::string(".entry ") + name + "(") == std::string::npos) return notFound;
  for (*f = standin::Kernel::first; *f; *f = (*f)->next)
    if (!strcmp((*f)->name, name)) return success;
  return notFound;
}

int cuFuncSetAttribute(standin::Kernel *f, int attribute, int v) {
  if (attribute != 8 || v < 0 || v > (int)mostShared) return invalidValue;
  return f->shared = std::max((unsigned)v, usualShared), success;
}

static int launch(standin::Kernel *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned sharedBytes, Stream *s,
                  void **arguments, bool cooperative) {
  if (!gx || !gy || !gz || gx > 0x7fffffff || gy > 0xffff || gz > 0xffff || !bx || (uint64_t)bx * by * bz - 1 >= 1024 || sharedBytes > f->shared)
    return invalidValue;
  if (cooperative && ((uint64_t)gx * gy * gz > multiprocessors || refusesCooperative())) return cooperativeLaunchTooLarge;
  return s->queue([=, kernel = f->bind(arguments)] {
    if (const char *wrong = standin::run(kernel, {gx, gy, gz}, {bx, by, bz}, f->flush, cooperative)) {
      fprintf(stderr, "stand-in: %s: %s\n", f->name, wrong);
      s->wrong = launchFailed;
    }
    return (int)s->wrong;
  });
}
int cuLaunchKernel(standin::Kernel *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned sharedBytes, Stream *s,
                   void **arguments, void **) {
  return launch(f, gx, gy, gz, bx, by, bz, sharedBytes, s, arguments, false);
}
int cuLaunchCooperativeKernel(standin::Kernel *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned sharedBytes,
                              Stream *s, void **arguments) {
  return launch(f, gx, gy, gz, bx, by, bz, sharedBytes, s, arguments, true);
}
struct LaunchConfig {
  unsigned gx, gy, gz, bx, by, bz, shared;
  Stream *stream;
  void *attributes;
  unsigned count;
};
int cuLaunchKernelEx(const LaunchConfig *c, standin::Kernel *f, void **arguments, void **) {
  return launch(f, c->gx, c->gy, c->gz, c->bx, c->by, c->bz, c->shared, c->stream, arguments, false);
}

int cuStreamBeginCapture_v2(Stream *s, int) {
  if (s->recording) return illegalState;
  s->recording = std::make_shared<Recording>();
  return success;
}
int cuStreamEndCapture(Stream *s, Graph **g) {
  if (!s->recording) return illegalState;
  const auto recording = std::move(s->recording);
  bool unjoined = false;
  for (Stream *other : recording->joined) unjoined |= other->joined < other->queued, other->recording = nullptr;
  s->recording = nullptr;
  if (unjoined) return *g = nullptr, captureUnjoined;
  *g = make<Graph>("graph");
  (*g)->work = std::move(recording->work);
  return success;
}
int cuGraphInstantiateWithFlags(Graph **exec, Graph *g, uint64_t) { return *exec = make<Graph>("graph"), **exec = *g, success; }
int cuGraphLaunch(Graph *g, Stream *s) {
  for (auto &f : g->work)
    if (int code = s->queue(f)) return code;
  return success;
}
int cuGraphDestroy(Graph *g) { return destroy("graph", g); }
int cuGraphExecDestroy(Graph *g) { return destroy("graph", g); }

// What follows is for tests: internal/gputest calls it.

// standinAllocations sets how many more allocations succeed: after them all fail, for lack of memory, until it is called again. A
// negative number is no limit. It returns how many allocations were refused since its last call.
int64_t standinAllocations(int64_t n) {
  std::lock_guard<std::mutex> lock(mutex);
  return allocations.set(n);
}
// standinCopies does the same for copies between host and device, of which only one fails, with CUDA_ERROR_UNKNOWN.
int64_t standinCopies(int64_t n) {
  std::lock_guard<std::mutex> lock(mutex);
  return copies.set(n);
}
// standinCooperative does the same for cooperative launches, which fail as too large.
int64_t standinCooperative(int64_t n) {
  std::lock_guard<std::mutex> lock(mutex);
  return cooperatives.set(n);
}
// standinAlive writes a list of the objects that were created and not yet destroyed, such as "1 context, 2 streams", into n bytes.
void standinAlive(char *to, size_t n) {
  std::lock_guard<std::mutex> lock(countsMutex);
  std::string text;
  for (auto &c : counts)
    if (c.second) text += (text.empty() ? "" : ", ") + std::to_string(c.second) + " " + c.first + (c.second == 1 ? "" : "s");
  snprintf(to, n, "%s", text.c_str());
}
}
