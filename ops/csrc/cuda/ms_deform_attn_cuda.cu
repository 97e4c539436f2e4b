// The operator on CUDA devices: number types and layouts of the inputs around the launches of launch.h.
#ifndef __CUDA_ARCH__  // nothing in here runs on a device, and PyTorch's headers take long for each architecture

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../ms_deform_attn.h"
#include "launch.h"

namespace salience_detr {
namespace {

using at::Tensor;

template <typename T>
T* data(const Tensor& tensor) {
  return tensor.defined() ? tensor.data_ptr<T>() : nullptr;
}

template <typename T>
const T* const_data(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

bool is_aligned(const Tensor& tensor, size_t bytes) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % bytes == 0;
}

// Contiguous inputs in the types that the kernels read, and the problem that points into them.
template <typename T, typename O>
struct Prepared {
  Tensor shapes, starts, value, references, offsets, weights;
  gpu::Problem<T, O> problem;
};

template <typename T, typename O>
Prepared<T, O> prepare(const Inputs& inputs) {
  using A = typename gpu::Accumulate<T>::type;
  constexpr auto type = c10::CppTypeToScalarType<O>::value;
  TORCH_CHECK(
      inputs.heads() <= gpu::kMostHeads, "on CUDA there can be ", gpu::kMostHeads, " heads, got ", inputs.heads());
  TORCH_CHECK(
      inputs.queries() <= gpu::kMostQueries, "on CUDA there can be ", gpu::kMostQueries, " queries, got ",
      inputs.queries());

  Prepared<T, O> p;
  p.shapes = inputs.spatial_shapes.to(at::kLong).contiguous();
  p.starts = inputs.level_start_index.to(at::kLong).contiguous();
  p.value = inputs.value.contiguous();
  p.offsets = inputs.offsets.to(type).contiguous();
  if (!is_aligned(p.offsets, 2 * sizeof(O))) p.offsets = p.offsets.clone();  // a slice that begins at an odd number
  p.weights = inputs.weights.to(type).contiguous();
  if (inputs.fused()) p.references = inputs.reference_points.contiguous();
  p.problem = gpu::Problem<T, O>{
      inputs.batch(),
      inputs.queries(),
      inputs.heads(),
      inputs.tokens(),
      inputs.levels(),
      inputs.points(),
      inputs.channels(),
      inputs.fused() ? p.references.size(2) : 0,
      inputs.fused() ? p.references.size(3) : 0,
      const_data<int64_t>(p.shapes),
      const_data<int64_t>(p.starts),
      const_data<T>(p.value),
      const_data<A>(p.references),
      const_data<O>(p.offsets),
      const_data<O>(p.weights),
      0};
  return p;
}

template <typename T, typename O>
Tensor forward(const Inputs& inputs) {
  const auto prepared = prepare<T, O>(inputs);
  const Tensor output =
      at::empty({inputs.batch(), inputs.queries(), inputs.heads() * inputs.channels()}, prepared.value.options());
  const gpu::Launch launch{c10::cuda::getCurrentCUDAStream(), is_aligned(prepared.value, 16)};
  gpu::launch_forward<T, O>(prepared.problem, data<T>(output), launch);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return output;
}

template <typename T, typename O>
InputGradients backward(const Tensor& grad_output, const Inputs& inputs, const Needed& needed) {
  using A = typename gpu::Accumulate<T>::type;
  const auto prepared = prepare<T, O>(inputs);
  const Tensor grad = grad_output.contiguous();
  const auto exact = prepared.value.options().dtype(inputs.accumulate_type());
  // Atomic additions come in any order.
  if (needed[0] || needed[1]) at::globalContext().alertNotDeterministic("salience_detr::ms_deform_attn_backward");
  Tensor grad_value, grad_references, grad_offsets, grad_weights;
  if (needed[0]) grad_value = at::zeros(prepared.value.sizes(), exact);
  if (needed[1]) grad_references = at::zeros(prepared.references.sizes(), exact);
  if (needed[2]) grad_offsets = at::empty(prepared.offsets.sizes(), prepared.offsets.options());
  if (needed[3]) grad_weights = at::empty(prepared.weights.sizes(), exact);
  const gpu::Gradients<T, O> grads{
      const_data<T>(grad), data<A>(grad_value), data<A>(grad_references), data<O>(grad_offsets),
      data<A>(grad_weights)};
  const gpu::Launch launch{
      c10::cuda::getCurrentCUDAStream(), is_aligned(prepared.value, 16) && is_aligned(grad, 16)};
  gpu::launch_backward<T, O>(prepared.problem, grads, launch);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  if (needed[0]) grad_value = grad_value.to(inputs.value.scalar_type());
  if (needed[2]) grad_offsets = grad_offsets.to(inputs.offsets.scalar_type());
  if (needed[3]) grad_weights = grad_weights.to(inputs.weights.scalar_type());
  return {grad_value, grad_references, grad_offsets, grad_weights};
}

// Calls run<T, O>(): O is the type of the value if offsets and weights both have it, else float32.
#define SALIENCE_DETR_DISPATCH(inputs, run, ...)                                                     \
  [&] {                                                                                              \
    const auto type = inputs.value.scalar_type();                                                    \
    const bool same = inputs.offsets.scalar_type() == type && inputs.weights.scalar_type() == type;  \
    if (type == at::kDouble) return run<double, double>(__VA_ARGS__);                                \
    if (type == at::kFloat) return run<float, float>(__VA_ARGS__);                                   \
    if (type == at::kHalf)                                                                           \
      return same ? run<at::Half, at::Half>(__VA_ARGS__) : run<at::Half, float>(__VA_ARGS__);        \
    return same ? run<at::BFloat16, at::BFloat16>(__VA_ARGS__) : run<at::BFloat16, float>(__VA_ARGS__); \
  }()

}  // namespace

at::Tensor forward_cuda(const Inputs& inputs) {
  const c10::cuda::CUDAGuard device_guard(inputs.value.device());
  if (inputs.empty())
    return at::zeros({inputs.batch(), inputs.queries(), inputs.heads() * inputs.channels()}, inputs.value.options());
  return SALIENCE_DETR_DISPATCH(inputs, forward, inputs);
}

InputGradients backward_cuda(const at::Tensor& grad_output, const Inputs& inputs, const Needed& needed) {
  const c10::cuda::CUDAGuard device_guard(inputs.value.device());
  if (inputs.empty()) return zero_gradients(inputs, needed);
  return SALIENCE_DETR_DISPATCH(inputs, backward, grad_output, inputs, needed);
}

}  // namespace salience_detr

#endif  // __CUDA_ARCH__
