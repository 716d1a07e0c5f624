// The functions of NCCL that package cuda calls, between processes of one machine through shared memory. What is queued on a stream runs in a thread of that stream.
//
// As in a real NCCL, the host waits for the other ranks at the first call of each kind, and at the first message between two ranks: the caller, or with a non-blocking
// communicator (blocking is 0 in its configuration) a thread of its own, while the caller gets ncclInProgress. NCCL_COMM_BLOCKING goes before the configuration.
//
// A real NCCL waits forever if the ranks make different calls. Here that is an error of the stream, with a line on standard error.
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <thread>

#include "driver.h"

namespace {
enum { success = 0, systemError = 2, internalError = 3, invalidArgument = 4, invalidUsage = 5, remoteError = 6, inProgress = 7 };
enum { bytes = 1, float32 = 7, float64 = 8, bfloat16 = 9 };
enum Kind { allReduce, reduceScatter, allGather, broadcast, kinds };
constexpr int mostRanks = 16;
constexpr size_t slotBytes = 1 << 20, ringBytes = 1 << 18;

struct Id {
  unsigned char bytes[128];
};

std::mutex errorMutex;
char lastError[1024]; // of all threads, as in a real NCCL

int fails(int code, std::string why) {
  std::lock_guard<std::mutex> lock(errorMutex);
  snprintf(lastError, sizeof lastError, "%s", why.c_str());
  return code;
}

// Call is what the ranks must agree on.
struct Call {
  const char *name; // compared as text: the ranks are processes of the same program
  size_t count;
  int type, root;
};

// Ring is the bytes on their way from one rank to another.
struct Ring {
  std::atomic<uint64_t> written, read;
  char data[ringBytes];
};

struct Shared {
  std::atomic<int> arrived, round;
  std::atomic<int> come[kinds];                // ranks that have made a call of a kind
  std::atomic<int> pairs[mostRanks][mostRanks]; // from and to: 1 if the first has sent, 2 if the second has received
  struct {
    char name[32];
    size_t count;
    int type, root;
  } calls[mostRanks];
};

// Transfer is a message of a group.
struct Transfer {
  char *at;
  size_t n;
  int peer;
  bool receive;
  size_t done = 0; // bytes, of its length first
};

struct Comm {
  Shared *shared = nullptr;
  size_t size;
  int rank, ranks;
  bool blocking;
  std::atomic<bool> aborted{false};
  std::atomic<int> wrong{0}, state{0}; // of queued work; of the last call
  std::thread job;                     // of the last call
  std::atomic<int> inside{0};          // callers that wait
  bool used[kinds] = {};
  std::shared_ptr<int> captured = std::make_shared<int>(); // shared with calls in graphs

  char *slot(int rank) { return (char *)(shared + 1) + rank * slotBytes; }
  Ring &ring(int from, int to) { return ((Ring *)slot(ranks))[from * ranks + to]; }

  template <class F>
  bool wait(F done) {
    for (int i = 0; !done(); i++) {
      if (aborted) return false;
      if (i < 1000) sched_yield();
      else usleep(50);
    }
    return true;
  }

  // barrier waits for all ranks, and reports whether they have come.
  bool barrier() {
    const int round = shared->round;
    if (shared->arrived.fetch_add(1) == ranks - 1) {
      shared->arrived = 0;
      shared->round++;
      return true;
    }
    return wait([&] { return shared->round != round; });
  }

  // begin does what may wait for other ranks.
  int begin(std::function<int()> work) {
    if (blocking) {
      inside++;
      state = work();
      return inside--, (int)state;
    }
    join();
    state = inProgress;
    job = std::thread([=] { state = work(); });
    return inProgress;
  }

  void join() {
    if (job.joinable()) job.join();
  }

  // connect waits for the other ranks if calls are the first ones, and reports whether they have come.
  bool connect(const std::vector<Kind> &calls, const std::vector<Transfer> &transfers) {
    for (Kind k : calls)
      if (!used[k]) used[k] = true, shared->come[k]++;
    auto pair = [&](const Transfer &t) -> std::atomic<int> & { return t.receive ? shared->pairs[t.peer][rank] : shared->pairs[rank][t.peer]; };
    for (auto &t : transfers) pair(t) |= 1 + t.receive;
    return wait([&] {
      for (Kind k : calls)
        if (shared->come[k] < ranks) return false;
      for (auto &t : transfers)
        if (pair(t) != 3) return false;
      return true;
    });
  }

  // agree reports whether all ranks make the same call.
  bool agree(Call c) {
    auto &own = shared->calls[rank];
    snprintf(own.name, sizeof own.name, "%s", c.name);
    own.count = c.count, own.type = c.type, own.root = c.root;
    if (!barrier()) return false;
    bool same = true;
    for (int r = 1; r < ranks && same; r++) {
      const auto &a = shared->calls[0], &b = shared->calls[r];
      same = !strcmp(a.name, b.name) && a.count == b.count && a.type == b.type && a.root == b.root;
      if (!same && rank == 0)
        fprintf(stderr, "stand-in: NCCL: rank 0 calls %s of %zu, type %d, root %d, and rank %d calls %s of %zu, type %d, root %d\n", a.name, a.count, a.type,
                a.root, r, b.name, b.count, b.type, b.root);
    }
    return barrier() && same;
  }
};

size_t sizeOf(int type) { return type == bytes ? 1 : type == bfloat16 ? 2 : type == float32 ? 4 : 8; }

float wide(uint16_t x) {
  const uint32_t u = (uint32_t)x << 16;
  float f;
  return memcpy(&f, &u, 4), f;
}

uint16_t narrow(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  if (f != f) return u >> 16 | 0x40;
  return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

void add(float &to, float x) { to += x; }
void add(double &to, double x) { to += x; }
void add(uint16_t &to, uint16_t x) { to = narrow(wide(to) + wide(x)); }

// sum writes the sum over the ranks of n elements at an offset of their slots, in the order of a ring that ends at rank last.
template <class T>
void sum(Comm *c, T *to, size_t offset, size_t n, int last) {
  for (int k = 1; k <= c->ranks; k++) {
    const T *from = (const T *)(c->slot((last + k) % c->ranks) + offset);
    for (size_t i = 0; i < n; i++)
      if (k == 1) to[i] = from[i];
      else add(to[i], from[i]);
  }
}

void sum(Comm *c, char *to, size_t offset, size_t n, int type, int last) {
  if (type == float32) sum(c, (float *)to, offset, n, last);
  else if (type == float64) sum(c, (double *)to, offset, n, last);
  else sum(c, (uint16_t *)to, offset, n, last);
}

// advance moves what it can of a message, and returns whether all is well.
bool advance(Comm *c, Transfer &t) {
  Ring &r = t.receive ? c->ring(t.peer, c->rank) : c->ring(c->rank, t.peer);
  uint64_t length = t.n;
  for (;;) {
    const size_t total = sizeof length + t.n;
    size_t can = t.receive ? r.written - r.read : ringBytes - (r.written - r.read);
    if (t.done == total || can == 0) return true;
    const bool head = t.done < sizeof length;
    const uint64_t position = t.receive ? r.read : r.written;
    char *ours = head ? (char *)&length + t.done : t.at + (t.done - sizeof length), *ring = r.data + position % ringBytes;
    can = std::min({can, head ? sizeof length - t.done : total - t.done, (size_t)(ringBytes - position % ringBytes)});
    if (head && can < sizeof length) return true; // it comes as a whole
    if (t.receive) memcpy(ours, ring, can), r.read += can;
    else memcpy(ring, ours, can), r.written += can;
    t.done += can;
    if (head && length != t.n) {
      fprintf(stderr, "stand-in: NCCL: rank %d sends %zu bytes, and rank %d receives %zu\n", t.peer, (size_t)length, c->rank, t.n);
      return false;
    }
  }
}

// exchange moves the messages of a group.
bool exchange(Comm *c, std::vector<Transfer> transfers) {
  return c->wait([&] {
    bool all = true;
    std::map<int, bool> held; // those between the same ranks keep their order
    for (auto &t : transfers) {
      bool &before = held[2 * t.peer + t.receive];
      if (!before && !advance(c, t)) return c->wrong = remoteError, true;
      if (t.done < sizeof(uint64_t) + t.n) before = true, all = false;
    }
    return all;
  }) && !c->wrong;
}

// Group is the calls of a thread between ncclGroupStart and ncclGroupEnd.
struct Group {
  int depth = 0;
  Comm *comm = nullptr;
  Stream *stream = nullptr;
  std::vector<Kind> calls;
  std::vector<std::function<bool()>> collectives; // as many
  std::vector<Transfer> transfers;
};
thread_local Group group;

int start() { return group.depth++, success; }

int end() {
  if (group.depth == 0) return fails(invalidUsage, "ncclGroupEnd without ncclGroupStart");
  if (--group.depth > 0 || !group.comm) return success;
  Group g = std::move(group);
  group = Group();
  return g.comm->begin([g] {
    if (!g.comm->connect(g.calls, g.transfers)) return fails(internalError, "the communicator was aborted");
    g.stream->parallel();
    g.stream->queue([=, c = g.comm, s = g.stream, captured = g.stream->recording ? g.comm->captured : nullptr] {
      bool right = !c->wrong;
      for (auto &f : g.collectives) right = right && f();
      if (right && !g.transfers.empty()) right = exchange(c, g.transfers);
      if (!right && !c->aborted) c->wrong = remoteError, s->wrong = 719;
      return (int)s->wrong;
    });
    return (int)success;
  });
}

// add adds a call to the group, or makes it one of its own.
int add(Comm *c, Stream *s, Kind kind, std::function<bool()> collective, Transfer *t = nullptr) {
  if (!c || !s) return fails(invalidArgument, "no communicator or no stream");
  if (c->state == inProgress) return fails(invalidArgument, "a call before the one before it has returned ncclSuccess");
  if (group.comm && (group.comm != c || group.stream != s)) return fails(invalidUsage, "calls of several communicators or streams in a group, which the stand-in has not");
  start();
  group.comm = c, group.stream = s;
  if (t) group.transfers.push_back(*t);
  else group.calls.push_back(kind), group.collectives.push_back(collective);
  return end();
}

// within reports whether memory is in one allocation of the device.
bool within(const void *p, size_t n) {
  return inside(p, n) ? true : (fprintf(stderr, "stand-in: NCCL: %zu bytes are not in one array\n", n), false);
}
}  // namespace

extern "C" {
const char *ncclGetLastError(Comm *) { return lastError; }

// Every byte of an id follows from the first 16, so that an id of which a part is lost is noticed.
static unsigned char byteOf(const Id &id, int i) { return id.bytes[i % 16] ^ (unsigned char)(31 * (i / 16)); }

int ncclGetUniqueId(Id *id) {
  FILE *f = fopen("/dev/urandom", "r");
  const bool read = f && fread(id->bytes, 16, 1, f) == 1;
  if (f) fclose(f);
  if (!read) return fails(systemError, "no /dev/urandom");
  for (int i = 16; i < 128; i++) id->bytes[i] = byteOf(*id, i);
  return success;
}

// reclaim waits for the end of graphs that have calls of the communicator. A real NCCL waits forever.
static void reclaim(Comm *c) {
  for (int i = 0; c->captured.use_count() > 1; i++) {
    if (i == 100000) fprintf(stderr, "stand-in: NCCL: a communicator ends before a graph with its calls\n"), abort();
    usleep(100);
  }
  if (c->inside) fprintf(stderr, "stand-in: NCCL: a communicator is freed while a call uses it\n"), abort();
}

int ncclCommDestroy(Comm *c) {
  if (c->state == inProgress) return fails(invalidArgument, "ncclCommDestroy before the last call has returned ncclSuccess");
  c->join();
  reclaim(c);
  return munmap(c->shared, c->size), destroy("communicator", c);
}

static int connect(Comm *c, Id id) {
  for (int i = 16; i < 128; i++)
    if (id.bytes[i] != byteOf(id, i)) return fails(invalidArgument, "byte " + std::to_string(i) + " of the id is not that of ncclGetUniqueId");
  std::string name = "/standin-nccl-";
  for (int i = 0; i < 16; i++) name += "0123456789abcdef"[id.bytes[i] >> 4], name += "0123456789abcdef"[id.bytes[i] & 15];
  if (const char *alone = getenv("GPUSTANDIN_ALONE"); alone && atoi(alone) == c->rank) return fails(systemError, "this rank is alone");
  c->size = sizeof(Shared) + c->ranks * slotBytes + c->ranks * c->ranks * sizeof(Ring);
  const int file = shm_open(name.c_str(), O_CREAT | O_RDWR, 0600);
  void *p = MAP_FAILED;
  if (file >= 0 && ftruncate(file, c->size) == 0) p = mmap(nullptr, c->size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (file >= 0) close(file);
  if (p == MAP_FAILED) return fails(systemError, "no shared memory");
  c->shared = (Shared *)p;
  const bool come = c->barrier();
  shm_unlink(name.c_str());
  if (!come) return fails(internalError, "the communicator was aborted");
  if (const char *lost = getenv("GPUSTANDIN_LOST"); lost && atoi(lost) == c->rank) return fails(systemError, "this rank is not connected");
  return success;
}

struct Config {
  size_t size;
  unsigned magic, version;
  int blocking;
};

int ncclCommInitRankConfig(Comm **to, int ranks, Id id, int rank, const Config *config) {
  if (ranks < 1 || ranks > mostRanks || rank < 0 || rank >= ranks) return fails(invalidArgument, "rank " + std::to_string(rank) + " of " + std::to_string(ranks));
  if (config->magic != 0xcafebeef || config->version < 21400 || config->size < sizeof(Config)) return fails(invalidArgument, "a wrong configuration");
  const char *blocking = getenv("NCCL_COMM_BLOCKING");
  Comm *c = *to = make<Comm>("communicator");
  c->rank = rank, c->ranks = ranks, c->blocking = blocking && (*blocking == '0' || *blocking == '1') ? *blocking == '1' : config->blocking != 0;
  return c->begin([=] { return connect(c, id); });
}

// A call on its way ends, and work on its way too. The memory stays.
int ncclCommAbort(Comm *c) {
  c->aborted = true;
  c->join();
  reclaim(c);
  count("communicator", -1);
  return success;
}

int ncclCommGetAsyncError(Comm *c, int *code) {
  *code = c->state;
  if (*code != inProgress) c->join();
  if (*code == success) *code = c->wrong;
  return success;
}

int ncclGroupStart() { return start(); }
int ncclGroupEnd() { return end(); }

int ncclReduceScatter(const char *from, char *to, size_t n, int type, int, Comm *c, Stream *s) {
  const size_t size = sizeOf(type);
  if (!c || !within(from, n * size * c->ranks) || !within(to, n * size)) return fails(invalidArgument, "ncclReduceScatter");
  return add(c, s, reduceScatter, [=] {
    if (!c->agree({"ncclReduceScatter", n, type, 0})) return false;
    const size_t piece = slotBytes / size / c->ranks;
    for (size_t at = 0; at < n; at += piece) {
      const size_t k = std::min(piece, n - at);
      for (int r = 0; r < c->ranks; r++) memcpy(c->slot(c->rank) + r * piece * size, from + (r * n + at) * size, k * size);
      if (!c->barrier()) return false;
      sum(c, to + at * size, c->rank * piece * size, k, type, c->rank);
      if (!c->barrier()) return false;
    }
    return true;
  });
}

int ncclAllGather(const char *from, char *to, size_t n, int type, Comm *c, Stream *s) {
  n *= sizeOf(type);
  if (!c || !within(to, n * c->ranks) || !within(from, n)) return fails(invalidArgument, "ncclAllGather");
  return add(c, s, allGather, [=] {
    if (!c->agree({"ncclAllGather", n, type, 0})) return false;
    for (size_t at = 0; at < n; at += slotBytes) {
      const size_t k = std::min(slotBytes, n - at);
      memcpy(c->slot(c->rank), from + at, k);
      if (!c->barrier()) return false;
      for (int r = 0; r < c->ranks; r++) memcpy(to + r * n + at, c->slot(r), k);
      if (!c->barrier()) return false;
    }
    return true;
  });
}

int ncclAllReduce(const char *from, char *to, size_t n, int type, int, Comm *c, Stream *s) {
  const size_t size = sizeOf(type);
  if (!c || !within(from, n * size) || !within(to, n * size)) return fails(invalidArgument, "ncclAllReduce");
  return add(c, s, allReduce, [=] {
    if (!c->agree({"ncclAllReduce", n, type, 0})) return false;
    const size_t piece = slotBytes / size;
    for (size_t at = 0; at < n; at += piece) {
      const size_t k = std::min(piece, n - at);
      memcpy(c->slot(c->rank), from + at * size, k * size);
      if (!c->barrier()) return false;
      sum(c, to + at * size, 0, k, type, 0);
      if (!c->barrier()) return false;
    }
    return true;
  });
}

int ncclBroadcast(const char *from, char *to, size_t n, int type, int root, Comm *c, Stream *s) {
  n *= sizeOf(type);
  if (!c || root < 0 || root >= c->ranks || !within(to, n)) return fails(invalidArgument, "ncclBroadcast");
  return add(c, s, broadcast, [=] {
    if (!c->agree({"ncclBroadcast", n, type, root})) return false;
    for (size_t at = 0; at < n; at += slotBytes) {
      const size_t k = std::min(slotBytes, n - at);
      if (c->rank == root) memcpy(c->slot(root), from + at, k);
      if (!c->barrier()) return false;
      memcpy(to + at, c->slot(root), k);
      if (!c->barrier()) return false;
    }
    return true;
  });
}

int ncclSend(char *from, size_t n, int type, int peer, Comm *c, Stream *s) {
  Transfer t = {from, n * sizeOf(type), peer, false};
  if (!c || peer < 0 || peer >= c->ranks || !within(from, t.n)) return fails(invalidArgument, "ncclSend");
  return add(c, s, kinds, nullptr, &t);
}

int ncclRecv(char *to, size_t n, int type, int peer, Comm *c, Stream *s) {
  Transfer t = {to, n * sizeOf(type), peer, true};
  if (!c || peer < 0 || peer >= c->ranks || !within(to, t.n)) return fails(invalidArgument, "ncclRecv");
  return add(c, s, kinds, nullptr, &t);
}
}
