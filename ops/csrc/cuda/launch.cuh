// Definitions for launch.h: the kernels of one pair of number types.
#pragma once

#include <c10/macros/Macros.h>

#include <algorithm>

#include "launch.h"

#define SALIENCE_DETR_ASSERT CUDA_KERNEL_ASSERT
#include "kernels.cuh"

namespace salience_detr {
namespace gpu {

constexpr int kFewestThreads = 32;  // a warp
// Blocks for each multiprocessor, below which smaller ones spread the work better.
constexpr int64_t kEnoughBlocks = 8;

inline int64_t multiprocessors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

inline int64_t blocks(int64_t queries, int threads, int lanes) {
  const int64_t items = threads / lanes;
  return (queries + items - 1) / items;
}

// Threads of a block: as many as possible, as long as all multiprocessors have enough blocks.
template <typename T, typename O>
int block_size(const Problem<T, O>& p, int lanes) {
  const int64_t slices = p.batch * p.heads, enough = kEnoughBlocks * multiprocessors();
  int threads = kMostThreads;
  while (threads > kFewestThreads && slices * blocks(p.queries, threads, lanes) < enough) threads /= 2;
  return threads;
}

// Calls run(problem, grid, threads) for the images that one grid can have at a time.
template <typename V, typename T, typename O, typename Run>
void for_grids(Problem<T, O> p, Run run) {
  const int threads = block_size(p, V::kLanes);
  for (p.first_image = 0; p.first_image < p.batch; p.first_image += kMostImages) {
    const int64_t images = std::min(p.batch - p.first_image, kMostImages);
    run(p, dim3(blocks(p.queries, threads, V::kLanes), p.heads, images), threads);
  }
}

template <typename T, typename O>
void launch_forward(const Problem<T, O>& problem, T* output, const Launch& launch) {
  with_variant(problem, launch.aligned, [&](auto variant) {
    using V = decltype(variant);
    for_grids<V>(problem, [&](const Problem<T, O>& part, dim3 grid, int threads) {
      forward_kernel<T, O, V><<<grid, threads, 0, launch.stream>>>(part, output);
    });
  });
}

template <typename T, typename O>
void launch_backward(const Problem<T, O>& problem, const Gradients<T, O>& grads, const Launch& launch) {
  with_variant(problem, launch.aligned, [&](auto variant) {
    using V = decltype(variant);
    for_grids<V>(problem, [&](const Problem<T, O>& part, dim3 grid, int threads) {
      backward_kernel<T, O, V><<<grid, threads, 0, launch.stream>>>(part, grads);
    });
  });
}

#define SALIENCE_DETR_KERNELS(T, O)                                                    \
  template void launch_forward<T, O>(const Problem<T, O>&, T*, const Launch&);         \
  template void launch_backward<T, O>(const Problem<T, O>&, const Gradients<T, O>&, const Launch&);

}  // namespace gpu
}  // namespace salience_detr
