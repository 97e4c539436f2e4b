// Definitions for launch.h: the kernels of one pair of number types.
#pragma once

#include <c10/macros/Macros.h>

#include "launch.h"

#define SALIENCE_DETR_ASSERT CUDA_KERNEL_ASSERT
#include "kernels.cuh"

namespace salience_detr {
namespace gpu {

inline int64_t multiprocessors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

template <typename T, typename O>
void launch_forward(const Problem<T, O>& problem, T* output, const Launch& launch) {
  with_variant(problem, launch.aligned, [&](auto variant) {
    using V = decltype(variant);
    for_grids(problem, V::kLanes, multiprocessors(), [&](const Problem<T, O>& part, dim3 grid, int threads) {
      forward_kernel<T, O, V><<<grid, threads, 0, launch.stream>>>(part, output);
    });
  });
}

template <typename T, typename O>
void launch_backward(const Problem<T, O>& problem, const Gradients<T, O>& grads, const Launch& launch) {
  with_variant(problem, launch.aligned, [&](auto variant) {
    using V = decltype(variant);
    for_grids(problem, V::kLanes, multiprocessors(), [&](const Problem<T, O>& part, dim3 grid, int threads) {
      backward_kernel<T, O, V><<<grid, threads, 0, launch.stream>>>(part, grads);
    });
  });
}

#define SALIENCE_DETR_KERNELS(T, O)                                            \
  template void launch_forward<T, O>(const Problem<T, O>&, T*, const Launch&); \
  template void launch_backward<T, O>(const Problem<T, O>&, const Gradients<T, O>&, const Launch&);

}  // namespace gpu
}  // namespace salience_detr
