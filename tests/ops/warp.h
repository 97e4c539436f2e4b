// Runs a CUDA kernel on the CPU, warp by warp: a fiber for each thread, which rests at every shuffle until the others
// have come there too. A thread that misses one ends the program, as it would hang a GPU.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string_view>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(...)
#define SALIENCE_DETR_ASSERT(condition) \
  if (!(condition)) { std::fprintf(stderr, "assertion failed: %s\n", #condition); std::abort(); }

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline dim3 threadIdx, blockIdx, blockDim;

struct uint2 {
  unsigned x, y;
};
struct uint4 {
  unsigned x, y, z, w;
};

namespace warp {

constexpr int kSize = 32;

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool done;
  int shuffles;
};

inline Fiber fibers[kSize];
inline ucontext_t scheduler;
inline int running;
inline double slots[2][kSize];  // of even and odd shuffles: a quick thread must not overwrite what a slow one reads
inline std::function<void()> kernel;

inline void enter() {
  kernel();
  fibers[running].done = true;
  swapcontext(&fibers[running].context, &scheduler);
}

template <typename T>
T exchange(T mine, int source) {
  static_assert(sizeof(T) <= sizeof(double));
  Fiber& fiber = fibers[running];
  double* round = slots[fiber.shuffles++ % 2];
  std::memcpy(&round[running], &mine, sizeof(T));
  swapcontext(&fiber.context, &scheduler);
  T theirs;
  std::memcpy(&theirs, &round[source], sizeof(T));
  return theirs;
}

// One warp of the block blockIdx, from thread `first` on.
inline void run_warp(int first) {
  for (Fiber& fiber : fibers) {
    fiber.stack.resize(1 << 16);
    fiber.done = false;
    fiber.shuffles = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    makecontext(&fiber.context, enter, 0);
  }
  for (bool done = false; !done;) {
    for (running = 0; running < kSize; ++running) {
      threadIdx.x = first + running;
      swapcontext(&scheduler, &fibers[running].context);
      if (running == 0) done = fibers[0].done;
      if (fibers[running].done != done || fibers[running].shuffles != fibers[0].shuffles) {
        std::fprintf(stderr, "thread %d of a warp left its shuffles\n", running);
        std::abort();
      }
    }
  }
}

inline void run(dim3 grid, int threads, std::function<void()> body) {
  kernel = std::move(body);
  blockDim.x = threads;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
        for (int first = 0; first < threads; first += kSize) run_warp(first);
}

}  // namespace warp

template <typename T>
T __shfl_sync(unsigned, T mine, int lane, int width) {
  return warp::exchange(mine, warp::running / width * width + lane % width);
}
template <typename T>
T __shfl_xor_sync(unsigned, T mine, int mask, int) {
  return warp::exchange(mine, warp::running ^ mask);
}
template <typename T>
T __ldg(const T* at) {
  return *at;
}
template <typename T>
void atomicAdd(T* to, T value) {
  *to += value;
}
