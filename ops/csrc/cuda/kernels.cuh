// The forward and the backward kernel, each compiled in the variants of variants.h.
//
// Both are bound by the latency of the rows of value that they gather. So the rows of all four corners are read
// before the first is used, without branches: a load is predicated on its corner.
#pragma once

#include <cstdint>
#include <cstring>

#include "grids.h"
#include "samples.cuh"
#include "variants.h"

namespace salience_detr {
namespace gpu {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kIsTuring = true;
#else
constexpr bool kIsTuring = false;
#endif

// Blocks of kMostThreads on a multiprocessor, at least, which limits the registers. With more, kernels spill, or use a
// row before the last one is on its way.
template <typename T, typename V>
inline constexpr int kForwardBlocks = V::kOneStep ? (kIsTuring ? 6 : sizeof(T) == 4 ? 8 : 7) : 4;
template <typename T, typename V>
inline constexpr int kBackwardBlocks = V::kOneStep ? (kIsTuring ? 4 : 5) : sizeof(T) == 8 ? 3 : 4;

constexpr int kCorners = 4;   // upper left, upper right, lower left, lower right
constexpr int kTogether = 4;  // samples whose gradients are summed over the group together

// The gradient of what falls outside is 0, even where an offset or a box that it is multiplied by is not finite.
template <typename A>
__device__ inline A scaled(A grad, A factor) {
  return grad == A(0) ? A(0) : grad * factor;
}

__device__ inline bool has_corner(int corners, int k) { return (corners & 1 << k) != 0; }

template <typename A>
__device__ inline A corner_weight(const Sample<A>& sample, int k) {
  return (k & 1 ? sample.fraction_x : A(1) - sample.fraction_x) *
         (k & 2 ? sample.fraction_y : A(1) - sample.fraction_y);
}

// Where the rows of the corners begin in the value of a head of an image. A corner outside has any offset.
template <typename V, typename A>
__device__ inline void corner_offsets(
    const Sample<A>& sample, typename V::Index token_step, typename V::Index (&offsets)[kCorners]) {
  using Index = typename V::Index;
  const Index down = static_cast<Index>(sample.columns_and_corners >> 4) * token_step;
  offsets[0] = static_cast<Index>(sample.token) * token_step;
  offsets[1] = offsets[0] + token_step;
  offsets[2] = offsets[0] + down;
  offsets[3] = offsets[1] + down;
}

// This thread's part of the rows of the corners; zeros for corners outside.
template <typename T, int kVector, typename Index>
__device__ inline void read_corners(
    const T* value, const Index (&offsets)[kCorners], int corners, Vector<T, kVector> (&rows)[kCorners]) {
#pragma unroll
  for (int k = 0; k < kCorners; ++k) {
    rows[k] = read_if<Vector<T, kVector>>(corners & 1 << k, value + offsets[k]);
  }
}

template <typename T, typename O, typename V>
__global__ void __launch_bounds__(kMostThreads, (kForwardBlocks<T, V>))
forward_kernel(const Problem<T, O> p, T* __restrict__ output) {
  using A = typename Accumulate<T>::type;
  using Index = typename V::Index;
  constexpr int kLanes = V::kLanes, kVector = V::kVector;
  Item<T, O, V> item(p);
  const int count = item.count(p);
  const Index token_step = static_cast<Index>(p.heads * item.channels(p));
  auto given = item.given(p, item.lane);
  item.prepare_softmax(p);
  for (int64_t step = 0; step < item.channels(p); step += kLanes * kVector) {
    const int64_t channel = step + item.lane * kVector;
    const bool has_channel = V::kOneStep || channel < item.channels(p);
    const T* value = settled(p.value + item.image_head + channel);
    A sums[kVector] = {};
    for (int first = 0; first < count; first += kLanes) {
      Frame<A> frame;
      const Sample<A> mine = item.sample(p, given, first + item.lane, frame);
      // Of the next round, or of the first round of the next channels, on its way while the samples are summed.
      given = item.given(p, (first + kLanes < count ? first + kLanes : 0) + item.lane);
#pragma unroll 1
      for (int j = 0; j < item.round(p, first); ++j) {
        const Sample<A> sample = from_lane(mine, j, kLanes);
        const int corners = has_channel ? sample.columns_and_corners : 0;
        Index offsets[kCorners];
        Vector<T, kVector> rows[kCorners];
        corner_offsets<V>(sample, token_step, offsets);
        read_corners(value, offsets, corners, rows);
#pragma unroll
        for (int k = 0; k < kCorners; ++k) {
          // The row is 0 outside, but the weight need not be finite.
          const A factor = has_corner(corners, k) ? sample.weight * corner_weight(sample, k) : A(0);
#pragma unroll
          for (int i = 0; i < kVector; ++i) sums[i] += factor * static_cast<A>(rows[k].lanes[i]);
        }
      }
    }
    if (!item.writes || !has_channel) continue;
    Vector<T, kVector> result;
#pragma unroll
    for (int i = 0; i < kVector; ++i) result.lanes[i] = static_cast<T>(sums[i]);
    *reinterpret_cast<Vector<T, kVector>*>(output + item.index * item.channels(p) + channel) = result;
  }
}

// The gradients of one sample for its position between the corners and for its weight: this thread's part of the
// sums over the channels.
template <typename A>
struct SampleGradient {
  A x, y, weight;
};

template <typename A>
__device__ inline SampleGradient<A> sample_gradient(const Sample<A>& sample, const A (&dots)[kCorners]) {
  const A fx = sample.fraction_x, fy = sample.fraction_y;
  return {
      (A(1) - fy) * (dots[1] - dots[0]) + fy * (dots[3] - dots[2]),
      (A(1) - fx) * (dots[2] - dots[0]) + fx * (dots[3] - dots[1]),
      (A(1) - fx) * (A(1) - fy) * dots[0] + fx * (A(1) - fy) * dots[1] + (A(1) - fx) * fy * dots[2] +
          fx * fy * dots[3]};
}

// Adds to dots the products of the gradient of the output with the corners, for the channels of a vector; adds the
// gradient of the corners to grad_value, unless it is null.
template <typename V, typename T, typename A>
__device__ inline void add_channels(
    const Sample<A>& sample, typename V::Index token_step, const A (&grad_output)[V::kVector], const T* value,
    A* grad_value, A (&dots)[kCorners]) {
  constexpr int kVector = V::kVector;
  typename V::Index offsets[kCorners];
  Vector<T, kVector> rows[kCorners];
  corner_offsets<V>(sample, token_step, offsets);
  read_corners(value, offsets, sample.columns_and_corners, rows);
#pragma unroll
  for (int k = 0; k < kCorners; ++k) {
    A dot = 0;
#pragma unroll
    for (int i = 0; i < kVector; ++i) dot += grad_output[i] * static_cast<A>(rows[k].lanes[i]);
    // The row is 0 outside, but the gradient need not be finite.
    dots[k] += has_corner(sample.columns_and_corners, k) ? dot : A(0);
  }
  if (grad_value == nullptr) return;
#pragma unroll
  for (int k = 0; k < kCorners; ++k) {
    const A factor = sample.weight * corner_weight(sample, k);
    A added[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) added[i] = grad_output[i] * factor;
    if (has_corner(sample.columns_and_corners, k)) add_atomically(grad_value + offsets[k], added);
  }
}

template <int kVector, typename A, typename T>
__device__ inline void read_exact(const T* from, A (&to)[kVector]) {
  const auto given = read<Vector<T, kVector>>(from);
#pragma unroll
  for (int i = 0; i < kVector; ++i) to[i] = static_cast<A>(given.lanes[i]);
}

// Writes the gradients of sample s of an item, given those for its position in pixels and for its weight.
template <typename T, typename O, typename V, typename A>
__device__ inline void write_gradients(
    const Problem<T, O>& p, const Gradients<T, O>& grads, const Item<T, O, V>& item, int s, const Frame<A>& frame,
    const SampleGradient<A>& grad) {
  const int64_t at = item.index * item.count(p) + s;
  if (grads.weights != nullptr) grads.weights[at] = grad.weight;
  if (grads.offsets != nullptr) {
    const Vector<O, 2> offset{
        {static_cast<O>(scaled(grad.x, frame.scale_x)), static_cast<O>(scaled(grad.y, frame.scale_y))}};
    *reinterpret_cast<Vector<O, 2>*>(grads.offsets + at * 2) = offset;
  }
  if (grads.reference_points == nullptr) return;
  const int64_t level = p.reference_levels > 1 ? s / item.points(p) : 0;
  A* to = grads.reference_points + (item.query * p.reference_levels + level) * p.reference_dims;
  atomicAdd(to, grad.x * frame.width);
  atomicAdd(to + 1, grad.y * frame.height);
  if (p.reference_dims == 2) return;
  const A half_points = static_cast<A>(2 * item.points(p));
  atomicAdd(to + 2, scaled(grad.x, frame.width * frame.offset_x / half_points));
  atomicAdd(to + 3, scaled(grad.y, frame.height * frame.offset_y / half_points));
}

template <typename T, typename O, typename V>
__global__ void __launch_bounds__(kMostThreads, (kBackwardBlocks<T, V>))
backward_kernel(const Problem<T, O> p, const Gradients<T, O> grads) {
  using A = typename Accumulate<T>::type;
  using Index = typename V::Index;
  constexpr int kLanes = V::kLanes, kVector = V::kVector;
  static_assert(kLanes % kTogether == 0);
  Item<T, O, V> item(p);
  const int count = item.count(p);
  const Index token_step = static_cast<Index>(p.heads * item.channels(p));
  // From this thread's first channel on.
  const int own = item.lane * kVector;
  const T* value = settled(p.value + item.image_head + own);
  const T* grad_output = settled(grads.output + item.index * item.channels(p) + own);
  A* grad_value = grads.value != nullptr && item.writes ? grads.value + item.image_head + own : nullptr;
  A own_grad_output[kVector];
  if constexpr (V::kOneStep) read_exact(grad_output, own_grad_output);
  item.prepare_softmax(p);
  A mean = 0;  // of the gradients of the weights, weighted by them
  for (int first = 0; first < count; first += kLanes) {
    const int s = first + item.lane;
    Frame<A> frame;
    const Sample<A> mine = item.sample(p, item.given(p, s), s, frame);
    SampleGradient<A> grad{};  // of this thread's own sample
#pragma unroll 1
    for (int batch = 0; batch < kLanes && first + batch < count; batch += kTogether) {
      A x[kTogether], y[kTogether], weight[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const Sample<A> sample = from_lane(mine, batch + j, kLanes);
        A dots[kCorners] = {};
        for (int64_t step = 0; own + step < item.channels(p); step += kLanes * kVector) {
          if constexpr (!V::kOneStep) read_exact(grad_output + step, own_grad_output);
          add_channels<V>(
              sample, token_step, own_grad_output, value + step, grad_value == nullptr ? nullptr : grad_value + step,
              dots);
        }
        const auto part = sample_gradient(sample, dots);
        x[j] = part.x;
        y[j] = part.y;
        weight[j] = part.weight;
      }
      const SampleGradient<A> sums{
          transposed_sum<kLanes>(x, item.lane), transposed_sum<kLanes>(y, item.lane),
          transposed_sum<kLanes>(weight, item.lane)};
      if (item.lane / kTogether == batch / kTogether) grad = sums;
    }
    if (s >= count || !item.writes) continue;  // no shuffle follows in this round
    mean += mine.weight * grad.weight;
    grad.x = scaled(grad.x, mine.weight);
    grad.y = scaled(grad.y, mine.weight);
    write_gradients(p, grads, item, s, frame, grad);
  }
  if (p.reference_dims == 0 || grads.weights == nullptr) return;
  mean = group_sum<kLanes>(mean);
  if (!item.writes) return;
  for (int s = item.lane; s < count; s += kLanes) {
    A* at = grads.weights + item.index * count + s;
    *at = item.weight(p, item.weights[s]) * (*at - mean);
  }
}

}  // namespace gpu
}  // namespace salience_detr
