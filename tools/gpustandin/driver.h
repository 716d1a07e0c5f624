#pragma once
#include <functional>
#include <vector>

// Stream does what it is given, or takes it down while it is being captured.
struct Stream {
  std::vector<std::function<int()>> *recording = nullptr;
  int wrong = 0; // an error stays
  int queue(std::function<int()>);
};
