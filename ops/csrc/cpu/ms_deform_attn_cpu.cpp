// The operator on the CPU: layouts, number types and threads around the kernels of kernels.inc.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "../ms_deform_attn.h"
#include "problem.h"

namespace salience_detr {
namespace {

using at::Tensor;

int64_t round_up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

template <typename T>
T* data(const Tensor& tensor) {
  return tensor.defined() ? tensor.data_ptr<T>() : nullptr;
}

// The problem and the tensors that its pointers point into.
template <typename T>
struct Prepared {
  Tensor shapes, starts, value, zeros, references, offsets, weights, expanded;
  Problem<T> problem;
};

// Samples per token from which on it pays to copy the value so that a head's tokens lie together.
constexpr int64_t kSamplesWorthCopying = 4;

// The value as (B, S, M, C) or, a view of (B, M, S, C), with channels padded to a multiple of kLanes.
template <typename T>
Tensor laid_out(const Inputs& inputs) {
  const Tensor& value = inputs.value;
  const int64_t channels = round_up(inputs.channels(), kLanes<T>);
  const int64_t samples = inputs.queries() * inputs.levels() * inputs.points();
  const bool ready = value.scalar_type() == inputs.accumulate_type() && channels == inputs.channels();
  if (ready && value.is_contiguous() && samples < kSamplesWorthCopying * inputs.tokens()) return value;

  // A head's tokens side by side: a sample then reads neighboring rows of memory.
  const auto options = value.options().dtype(inputs.accumulate_type());
  const std::vector<int64_t> sizes{inputs.batch(), inputs.heads(), inputs.tokens(), channels};
  const Tensor by_head = channels == inputs.channels() ? at::empty(sizes, options) : at::zeros(sizes, options);
  Tensor result = by_head.transpose(1, 2);
  result.narrow(3, 0, inputs.channels()).copy_(value);
  return result;
}

template <typename T>
Prepared<T> prepare(const Inputs& inputs) {
  const auto type = inputs.accumulate_type();
  Prepared<T> p;
  p.shapes = inputs.spatial_shapes.to(at::kLong).contiguous();
  p.starts = inputs.level_start_index.to(at::kLong).contiguous();
  p.value = laid_out<T>(inputs);

  p.zeros = at::zeros({p.value.size(3)}, p.value.options());
  p.offsets = inputs.offsets.to(type).contiguous();
  p.weights = inputs.weights.to(type).contiguous();
  if (inputs.fused()) p.references = inputs.reference_points.contiguous();

  p.problem = Problem<T>{
      inputs.batch(), inputs.queries(), inputs.heads(), inputs.tokens(), inputs.levels(), inputs.points(),
      p.value.size(3), inputs.fused() ? p.references.size(2) : 0, inputs.fused() ? p.references.size(3) : 0,
      data<int64_t>(p.shapes), data<int64_t>(p.starts), data<T>(p.value),
      Steps{p.value.stride(0), p.value.stride(2), p.value.stride(1)}, data<T>(p.zeros),
      data<T>(p.references), data<T>(p.offsets), data<T>(p.weights), nullptr};

  // All heads share a query's reference: it is expanded to its samples once.
  if (inputs.fused()) {
    const int64_t queries = inputs.batch() * inputs.queries();
    p.expanded = at::zeros({queries, 4, p.problem.padded_samples()}, p.value.options());
    T* expanded = data<T>(p.expanded);
    at::parallel_for(0, queries, 1024, [&](int64_t first, int64_t last) {
      kernels<T>().expand_references(p.problem, expanded, first, last);
    });
    p.problem.expanded_references = expanded;
  }
  return p;
}

template <typename T>
Tensor forward(const Inputs& inputs) {
  const Prepared<T> prepared = prepare<T>(inputs);
  const Problem<T>& problem = prepared.problem;
  const Tensor output = at::empty({problem.batch, problem.queries, problem.heads, problem.channels},
                                  prepared.value.options());

  T* out = data<T>(output);
  const Kernels<T>& run = kernels<T>();
  const int64_t queries = problem.queries;
  // Items are ordered by image, head and query, so that a thread stays with one head's tokens.
  at::parallel_for(0, problem.batch * problem.heads * queries, 64, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t image_head = begin / queries, first = begin % queries;
      const int64_t last = std::min(queries, first + end - begin);
      run.forward(problem, out, image_head / problem.heads, image_head % problem.heads, first, last);
      begin += last - first;
    }
  });

  return output.narrow(3, 0, inputs.channels()).contiguous().flatten(2).to(inputs.value.scalar_type());
}

// Few heads for many threads: each slab of queries sums into a gradient of its own.
template <typename T>
int64_t count_slabs(const Problem<T>& problem) {
  const int64_t heads = problem.batch * problem.heads, threads = at::get_num_threads();
  if (heads >= 2 * threads || threads == 1) return 1;
  return std::max<int64_t>(1, std::min((2 * threads + heads - 1) / heads, problem.queries / 64));
}

// Zeros for the gradient of the value: slabs that lie like it.
Tensor zero_slabs(const Tensor& value, int64_t slabs) {
  std::vector<int64_t> sizes{slabs}, strides{value.numel()};
  sizes.insert(sizes.end(), value.sizes().begin(), value.sizes().end());
  strides.insert(strides.end(), value.strides().begin(), value.strides().end());

  return at::empty_strided(sizes, strides, value.options()).zero_();
}

template <typename T>
InputGradients backward(const Tensor& grad_output, const Inputs& inputs, const Needed& needed) {
  const Prepared<T> prepared = prepare<T>(inputs);
  const Problem<T>& problem = prepared.problem;
  const auto options = prepared.value.options();

  // Channels are padded as those of the value are.
  Tensor grad = grad_output.to(options.dtype()).reshape({problem.batch, problem.queries, problem.heads, -1});
  if (grad.size(3) != problem.channels) grad = at::constant_pad_nd(grad, {0, problem.channels - grad.size(3)});
  grad = grad.contiguous();

  const int64_t heads = problem.batch * problem.heads, slabs = count_slabs(problem);
  Tensor grad_value, grad_references, grad_offsets, grad_weights;
  if (needed[0]) grad_value = zero_slabs(prepared.value, slabs);
  if (needed[1])
    grad_references = at::zeros({problem.batch, problem.heads, problem.queries, problem.reference_levels,
                                 problem.reference_dims}, options);
  if (needed[2]) grad_offsets = at::empty(inputs.offsets.sizes(), options);
  if (needed[3]) grad_weights = at::empty(inputs.weights.sizes(), options);
  const Gradients<T> grads{
      data<T>(grad), data<T>(grad_value), data<T>(grad_references), data<T>(grad_offsets), data<T>(grad_weights)};

  const Kernels<T>& run = kernels<T>();
  const int64_t slab_size = (problem.queries + slabs - 1) / slabs;
  at::parallel_for(0, slabs * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t slab = task / heads, image_head = task % heads;
      const int64_t first = slab * slab_size, last = std::min(problem.queries, first + slab_size);
      run.backward(problem, grads, slab, image_head / problem.heads, image_head % problem.heads, first, last);
    }
  });

  // Slabs are summed, padding is cut off, and each gradient gets the type of its input.
  if (needed[0]) {
    grad_value = slabs == 1 ? grad_value.squeeze(0) : grad_value.sum(0);
    grad_value = grad_value.narrow(3, 0, inputs.channels()).contiguous().to(inputs.value.scalar_type());
  }
  if (needed[1]) grad_references = grad_references.sum(1);
  if (needed[2]) grad_offsets = grad_offsets.to(inputs.offsets.scalar_type());
  if (needed[3]) grad_weights = grad_weights.to(inputs.weights.scalar_type());
  return {grad_value, grad_references, grad_offsets, grad_weights};
}

}  // namespace

at::Tensor forward_cpu(const Inputs& inputs) {
  if (inputs.empty())
    return at::zeros({inputs.batch(), inputs.queries(), inputs.heads() * inputs.channels()}, inputs.value.options());
  return inputs.accumulate_type() == at::kDouble ? forward<double>(inputs) : forward<float>(inputs);
}

InputGradients backward_cpu(const at::Tensor& grad_output, const Inputs& inputs, const Needed& needed) {
  if (inputs.empty()) return zero_gradients(inputs, needed);
  return inputs.accumulate_type() == at::kDouble ? backward<double>(grad_output, inputs, needed)
                                                 : backward<float>(grad_output, inputs, needed);
}

}  // namespace salience_detr
