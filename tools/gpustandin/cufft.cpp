// The functions of cuFFT that package cuda calls: transforms of many rows of complex numbers, in double.
#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>

#include "driver.h"

namespace {
enum { success = 0, invalidPlan = 1, allocFailed = 2, invalidValue = 4, invalidSize = 8, noWorkspace = 13, notImplemented = 14, Z2Z = 0x69 };

typedef std::complex<double> Complex;

struct Plan {
  int n = 0, rows = 0;
  int64_t from = 0, to = 0; // distance of the rows of the operand and of the result
  Stream *stream = nullptr;
  void *area = nullptr;
};

std::mutex mutex; // guards plans and made
std::map<int, Plan *> plans;
int made;

Plan *planOf(int handle) {
  std::lock_guard<std::mutex> lock(mutex);
  auto at = plans.find(handle);
  return at == plans.end() ? nullptr : at->second;
}

size_t workOf(const Plan &p) { return (size_t)16 * p.n * (p.n > 64 ? p.rows : 1); } // as much as the rows, if they are long

// dft returns the transform of the numbers x[0], x[step], …: Σ_t x_t e^(sign 2πi t k/n).
std::vector<Complex> dft(const Complex *x, int n, int step, int sign) {
  std::vector<Complex> y(n);
  if (n % 2) {
    for (int k = 0; k < n; k++)
      for (int t = 0; t < n; t++) y[k] += x[(int64_t)t * step] * std::polar(1., sign * 2 * M_PI * ((int64_t)t * k % n) / n);
    return y;
  }
  const auto even = dft(x, n / 2, 2 * step, sign), odd = dft(x + step, n / 2, 2 * step, sign);
  for (int k = 0; k < n / 2; k++) {
    const Complex turned = std::polar(1., sign * 2 * M_PI * k / n) * odd[k];
    y[k] = even[k] + turned, y[k + n / 2] = even[k] - turned;
  }
  return y;
}
}  // namespace

extern "C" {
int cufftCreate(int *handle) {
  std::lock_guard<std::mutex> lock(mutex);
  return plans[*handle = ++made] = make<Plan>("cuFFT plan"), success;
}
int cufftDestroy(int handle) {
  Plan *p = planOf(handle);
  if (!p) return invalidPlan;
  std::lock_guard<std::mutex> lock(mutex);
  plans.erase(handle);
  return destroy("cuFFT plan", p);
}
int cufftSetAutoAllocation(int handle, int on) { return !planOf(handle) ? invalidPlan : on ? notImplemented : success; }
int cufftMakePlanMany(int handle, int rank, const int *n, const int *fromWidth, int fromStride, int from, const int *toWidth, int toStride, int to, int type,
                      int rows, size_t *work) {
  Plan *p = planOf(handle);
  if (!p) return invalidPlan;
  if (refusesAllocation()) return allocFailed;
  if (rank != 1 || fromStride != 1 || toStride != 1 || type != Z2Z) return notImplemented;
  if (*n < 1 || rows < 1 || from < *n || to < *n || *fromWidth > from || *toWidth > to) return invalidSize;
  p->n = *n, p->rows = rows, p->from = from, p->to = to;
  return *work = workOf(*p), success;
}
int cufftSetStream(int handle, Stream *s) { return planOf(handle) ? planOf(handle)->stream = s, success : invalidPlan; }
int cufftSetWorkArea(int handle, void *area) { return planOf(handle) ? planOf(handle)->area = area, success : invalidPlan; }
int cufftExecZ2Z(int handle, const Complex *x, Complex *y, int sign) {
  Plan *found = planOf(handle);
  if (!found || (sign != 1 && sign != -1)) return !found ? invalidPlan : invalidValue;
  const Plan p = *found;
  if (!p.area) return noWorkspace;
  return p.stream->queue([=] {
    memset(p.area, 0xff, workOf(p)); // a real one computes in it
    for (int64_t r = 0; r < p.rows; r++) {
      const auto row = dft(x + r * p.from, p.n, 1, sign);
      std::copy(row.begin(), row.end(), y + r * p.to);
    }
    return success;
  });
}
}
