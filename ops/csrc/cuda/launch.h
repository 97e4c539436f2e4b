// Launches of the kernels, which the compiler of CUDA sees without PyTorch: its headers take longer than the kernels,
// for each architecture.
#pragma once

#include <cuda_runtime.h>

#include "grids.h"

namespace salience_detr {
namespace gpu {

struct Launch {
  cudaStream_t stream;
  bool aligned;  // 16 bytes at a time can be read from value and gradient
};

// For T: double, float, at::Half, at::BFloat16; O: the same, and float for the halves. Errors are left to
// cudaGetLastError.
template <typename T, typename O>
void launch_forward(const Problem<T, O>& problem, T* output, const Launch& launch);
template <typename T, typename O>
void launch_backward(const Problem<T, O>& problem, const Gradients<T, O>& grads, const Launch& launch);

}  // namespace gpu
}  // namespace salience_detr
