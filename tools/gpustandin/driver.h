#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

struct Stream;

// Recording is a capture that a stream has begun, and that others have joined by waiting for its events.
struct Recording {
  std::vector<std::function<int()>> work;
  std::vector<Stream *> joined;
};

// Point is a point in the work of a stream.
struct Point {
  std::mutex mutex;
  std::condition_variable changed;
  bool reached = false;
  std::chrono::steady_clock::time_point at;

  void reach();
  void wait();
};

// Worker runs the work of a stream in a thread of its own.
struct Worker {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<int()>> work; // the first one runs
  bool last = false;
  std::thread thread;

  Worker();
  ~Worker();
  void add(std::function<int()>);
  void wait();
};

// Stream runs the work that it is given: at once, or in a thread of its own after parallel. While it is captured it records the work instead.
struct Stream {
  std::shared_ptr<Recording> recording;
  uint64_t queued = 0, joined = 0; // pieces of work, and how many of them the first stream of the capture that it has joined waits for
  std::unique_ptr<Worker> worker;
  std::atomic<int> wrong{0}; // an error stays
  int queue(std::function<int()>);
  void parallel();
};

// inside reports whether the n bytes at p lie in one allocation.
bool inside(const void *p, size_t n);

// count adds to the number of objects of a kind that are alive.
void count(const char *kind, int change);

// refusesAllocation reports whether an allocation is to fail.
bool refusesAllocation();

template <class T>
T *make(const char *kind) {
  count(kind, 1);
  return new T;
}

template <class T>
int destroy(const char *kind, T *object) {
  count(kind, -1);
  delete object;
  return 0;
}
