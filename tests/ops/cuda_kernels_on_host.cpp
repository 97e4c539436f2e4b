// The CUDA kernels as functions that Python can call on a CPU.
#include "warp.h"

#include "../../ops/csrc/cuda/kernels.cuh"

using namespace salience_detr::gpu;

template <typename T, int kVector, int kLanes>
void forward(const Problem<T, T>& problem, T* output) {
  const auto items = problem.batch * problem.queries * problem.heads, per_block = int64_t{kThreads / kLanes};
  warp::run((items + per_block - 1) / per_block, kThreads, [&] {
    forward_kernel<T, T, kVector, kLanes>(problem, output);
  });
}

template <typename T, int kVector, int kLanes>
void backward(const Problem<T, T>& problem, const Gradients<T, T>& grads) {
  const auto items = problem.batch * problem.queries * problem.heads, per_block = int64_t{kThreads / kLanes};
  warp::run((items + per_block - 1) / per_block, kThreads, [&] {
    backward_kernel<T, T, kVector, kLanes>(problem, grads);
  });
}

extern "C" {
void forward_vector(const Problem<double, double>* problem, double* output) { forward<double, 2, 16>(*problem, output); }
void forward_scalar(const Problem<double, double>* problem, double* output) { forward<double, 1, 32>(*problem, output); }
void forward_narrow(const Problem<double, double>* problem, double* output) { forward<double, 2, 4>(*problem, output); }
void backward_vector(const Problem<double, double>* problem, const Gradients<double, double>* grads) {
  backward<double, 2, 16>(*problem, *grads);
}
void backward_scalar(const Problem<double, double>* problem, const Gradients<double, double>* grads) {
  backward<double, 1, 32>(*problem, *grads);
}
void backward_narrow(const Problem<double, double>* problem, const Gradients<double, double>* grads) {
  backward<double, 2, 4>(*problem, *grads);
}
}
