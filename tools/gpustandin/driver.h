#pragma once
#include <functional>
#include <vector>

// Stream runs the work that it is given. While it is captured it records the work instead.
struct Stream {
  std::vector<std::function<int()>> *recording = nullptr;
  int wrong = 0; // an error stays
  int queue(std::function<int()>);
};

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
