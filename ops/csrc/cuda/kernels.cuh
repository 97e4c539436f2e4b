// The CUDA kernels, without PyTorch, so that the tests can also run them thread by thread on a CPU.
//
// A group of kLanes neighboring threads computes one item, a head of a query; each thread owns kVector neighboring
// channels (more, in steps of the group, if the head is wider). The threads share out the arithmetic of the samples,
// one each, and hand the results round by shuffles, so all threads of a warp stay together to the end.
//
// Symbols: B images, Q queries, S value tokens of L levels, M heads of C channels, P points per head and level.
#pragma once

#include <cstdint>

#include "../levels.h"

namespace salience_detr {
namespace gpu {

constexpr int kThreads = 256;
constexpr int kBlocks = 2;  // at least, on a multiprocessor; left alone, the compiler spills registers to fit more
constexpr int kUnrolledSamples = 8;  // more of them in flight at once do not fit into the registers
constexpr unsigned kWholeWarp = 0xffffffffu;

template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

// T: value and output; O: offsets and weights; A: references and sums. The meaning of a sample is in cpu/problem.h.
template <typename T, typename O>
struct Problem {
  using A = typename Accumulate<T>::type;
  int64_t batch, queries, heads, tokens, levels, points, channels;
  int64_t reference_levels, reference_dims;  // dims 0: offsets are sampling locations, weights need no softmax
  const int64_t* shapes;                     // (L, 2)
  const int64_t* starts;                     // (L,)
  const T* value;                            // (B, S, M, C)
  const A* reference_points;                 // (B, Q, reference_levels, reference_dims)
  const O* offsets;                          // (B, Q, M, L * P, 2)
  const O* weights;                          // (B, Q, M, L * P)
};

// Null pointers are gradients that nobody asked for.
template <typename T, typename O>
struct Gradients {
  using A = typename Accumulate<T>::type;
  const T* output;      // (B, Q, M, C), given
  A* value;             // (B, S, M, C), zero before
  A* reference_points;  // (B, Q, reference_levels, reference_dims), zero before
  O* offsets;           // (B, Q, M, L * P, 2)
  A* weights;           // (B, Q, M, L * P); A, because the softmax reads it back
};

template <typename T, int kCount>
struct alignas(kCount * sizeof(T)) Vector {
  T lanes[kCount];
};

// What the threads of a group tell each other of a sample.
template <typename A>
struct Sample {
  A fraction_x, fraction_y;  // position between the corners
  A weight;                  // attention weight
  int token;                 // upper left corner, which may lie outside
  int columns_and_corners;   // width of the level * 16 + bits of the corners that lie inside
};

// What a thread keeps of its own sample for the gradients.
template <typename A>
struct Frame {
  A width, height, scale_x, scale_y, offset_x, offset_y;
};

// The gradient of what falls outside is 0, even where an offset or a box that it is multiplied by is not finite.
template <typename A>
__device__ inline A scaled(A grad, A factor) {
  return grad == A(0) ? A(0) : grad * factor;
}

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }

template <int kLanes, typename A>
__device__ inline A group_sum(A x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kWholeWarp, x, step, kLanes);
  return x;
}

// NaN stays, as in the softmax of PyTorch.
template <int kLanes, typename A>
__device__ inline A group_max(A x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const A other = __shfl_xor_sync(kWholeWarp, x, step, kLanes);
    x = other > x || other != other ? other : x;
  }
  return x;
}

template <int kLanes, typename A>
__device__ inline Sample<A> from_lane(const Sample<A>& mine, int lane) {
  return {
      __shfl_sync(kWholeWarp, mine.fraction_x, lane, kLanes), __shfl_sync(kWholeWarp, mine.fraction_y, lane, kLanes),
      __shfl_sync(kWholeWarp, mine.weight, lane, kLanes), __shfl_sync(kWholeWarp, mine.token, lane, kLanes),
      __shfl_sync(kWholeWarp, mine.columns_and_corners, lane, kLanes)};
}

// The item of this thread's group. Groups beyond the last item repeat it without writing.
template <typename T, typename O, int kLanes>
struct Item {
  using A = typename Accumulate<T>::type;
  int64_t index, image, head;
  int count;
  bool writes;
  const A* reference;
  const O *offsets, *weights;
  A largest, inverse_sum;  // of the softmax

  __device__ Item(const Problem<T, O>& p, int lane) {
    const int64_t items = p.batch * p.queries * p.heads;
    index = static_cast<int64_t>(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
    writes = index < items;
    index = writes ? index : items - 1;
    const int64_t query = index / p.heads;
    head = index % p.heads;
    image = query / p.queries;
    count = static_cast<int>(p.levels * p.points);
    reference = p.reference_points + query * p.reference_levels * p.reference_dims;
    offsets = p.offsets + index * count * 2;
    weights = p.weights + index * count;
    largest = A(0);
    inverse_sum = A(1);
    if (p.reference_dims == 0) return;
    largest = static_cast<A>(weights[lane < count ? lane : 0]);
    for (int s = lane + kLanes; s < count; s += kLanes) {
      const A logit = static_cast<A>(weights[s]);
      largest = logit > largest || logit != logit ? logit : largest;
    }
    largest = group_max<kLanes>(largest);
    A sum = 0;
    for (int s = lane; s < count; s += kLanes) sum += exponential(static_cast<A>(weights[s]) - largest);
    inverse_sum = A(1) / group_sum<kLanes>(sum);
  }

  __device__ A weight(const Problem<T, O>& p, int s) const {
    const A given = static_cast<A>(weights[s]);
    return p.reference_dims == 0 ? given : exponential(given - largest) * inverse_sum;
  }

  // Sample s, or one without corners if there is none.
  __device__ Sample<A> sample(const Problem<T, O>& p, int s, Frame<A>& frame) const {
    Sample<A> result{A(0), A(0), A(0), 0, 0};
    if (s >= count) return result;
    const int64_t level = s / p.points;
    const int64_t given_rows = p.shapes[2 * level], given_columns = p.shapes[2 * level + 1], start = p.starts[level];
    // What registration.cpp checks on the CPU.
    SALIENCE_DETR_ASSERT(given_rows >= 0 && given_rows < kLongestSide && given_columns >= 0);
    SALIENCE_DETR_ASSERT(given_columns < kLongestSide && start >= 0);
    SALIENCE_DETR_ASSERT(start + given_rows * given_columns <= p.tokens);
    const int rows = static_cast<int>(given_rows), columns = static_cast<int>(given_columns);
    frame.width = static_cast<A>(columns);
    frame.height = static_cast<A>(rows);
    frame.offset_x = static_cast<A>(offsets[2 * s]);
    frame.offset_y = static_cast<A>(offsets[2 * s + 1]);
    A base_x = A(-0.5), base_y = A(-0.5);
    frame.scale_x = frame.width;
    frame.scale_y = frame.height;
    if (p.reference_dims != 0) {
      const A* r = reference + (p.reference_levels > 1 ? level * p.reference_dims : 0);
      base_x = r[0] * frame.width - A(0.5);
      base_y = r[1] * frame.height - A(0.5);
      frame.scale_x = p.reference_dims == 2 ? A(1) : r[2] * frame.width / static_cast<A>(2 * p.points);
      frame.scale_y = p.reference_dims == 2 ? A(1) : r[3] * frame.height / static_cast<A>(2 * p.points);
    }
    const A x = base_x + frame.scale_x * frame.offset_x, y = base_y + frame.scale_y * frame.offset_y;
    result.weight = weight(p, s);
    // Comparisons are false for NaN, which so falls outside.
    if (!(x > A(-1) && x < frame.width && y > A(-1) && y < frame.height)) return result;
    const int left = static_cast<int>(floor(x)), top = static_cast<int>(floor(y));
    const bool has_left = left >= 0, has_right = left + 1 < columns, has_top = top >= 0, has_bottom = top + 1 < rows;
    result.fraction_x = x - static_cast<A>(left);
    result.fraction_y = y - static_cast<A>(top);
    result.token = static_cast<int>(start) + top * columns + left;
    result.columns_and_corners = columns * 16 + (has_left && has_top) + 2 * (has_right && has_top) +
                                 4 * (has_left && has_bottom) + 8 * (has_right && has_bottom);
    return result;
  }
};

// Token and bilinear weight of corner k: upper left, upper right, lower left, lower right.
template <typename A>
__device__ inline int64_t corner_token(const Sample<A>& sample, int k) {
  return static_cast<int64_t>(sample.token) + (k & 1) + (k & 2 ? sample.columns_and_corners >> 4 : 0);
}
template <typename A>
__device__ inline A corner_weight(const Sample<A>& sample, int k) {
  return (k & 1 ? sample.fraction_x : A(1) - sample.fraction_x) *
         (k & 2 ? sample.fraction_y : A(1) - sample.fraction_y);
}

template <typename T, typename O, int kVector, int kLanes>
__global__ void __launch_bounds__(kThreads, kBlocks) forward_kernel(const Problem<T, O> p, T* __restrict__ output) {
  using A = typename Accumulate<T>::type;
  const int lane = threadIdx.x % kLanes;
  const Item<T, O, kLanes> item(p, lane);
  const T* value = p.value + (item.image * p.tokens * p.heads + item.head) * p.channels;
  const int64_t token_step = p.heads * p.channels;
  for (int64_t first_channel = 0; first_channel < p.channels; first_channel += kLanes * kVector) {
    const int64_t channel = first_channel + lane * kVector;
    const bool has_channel = channel < p.channels;
    A sums[kVector] = {};
    for (int first = 0; first < item.count; first += kLanes) {
      Frame<A> frame;
      const Sample<A> mine = item.sample(p, first + lane, frame);
#pragma unroll(kLanes < kUnrolledSamples ? kLanes : kUnrolledSamples)
      for (int j = 0; j < kLanes; ++j) {
        const Sample<A> sample = from_lane<kLanes>(mine, j);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (!has_channel || !(sample.columns_and_corners >> k & 1)) continue;
          const auto row = *reinterpret_cast<const Vector<T, kVector>*>(
              value + corner_token(sample, k) * token_step + channel);
          const A factor = sample.weight * corner_weight(sample, k);
#pragma unroll
          for (int i = 0; i < kVector; ++i) sums[i] += factor * static_cast<A>(row.lanes[i]);
        }
      }
    }
    if (!item.writes || !has_channel) continue;
    Vector<T, kVector> result;
#pragma unroll
    for (int i = 0; i < kVector; ++i) result.lanes[i] = static_cast<T>(sums[i]);
    *reinterpret_cast<Vector<T, kVector>*>(output + item.index * p.channels + channel) = result;
  }
}

// to[i] += values[i], for neighbors that lie as a vector does.
template <int kVector, typename A>
__device__ inline void add_atomically(A* to, const A (&values)[kVector]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (sizeof(A) == 4 && kVector % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kVector; i += 4)
      atomicAdd(
          reinterpret_cast<float4*>(to + i), make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]));
    return;
  }
#endif
#pragma unroll
  for (int i = 0; i < kVector; ++i) atomicAdd(to + i, values[i]);
}

template <typename T, typename O, int kVector, int kLanes>
__global__ void __launch_bounds__(kThreads, kBlocks) backward_kernel(const Problem<T, O> p, const Gradients<T, O> grads) {
  using A = typename Accumulate<T>::type;
  const int lane = threadIdx.x % kLanes;
  const Item<T, O, kLanes> item(p, lane);
  const int64_t image_head = (item.image * p.tokens * p.heads + item.head) * p.channels;
  const T* value = p.value + image_head;
  const T* grad_output = grads.output + item.index * p.channels;
  const int64_t token_step = p.heads * p.channels;
  A mean = 0;  // of the gradients of the weights, weighted by them
  for (int first = 0; first < item.count; first += kLanes) {
    Frame<A> frame;
    const Sample<A> mine = item.sample(p, first + lane, frame);
    A grad_x = 0, grad_y = 0, grad_weight = 0;  // of this thread's own sample
#pragma unroll 1
    for (int j = 0; j < kLanes; ++j) {
      const Sample<A> sample = from_lane<kLanes>(mine, j);
      A dots[4] = {};
      for (int64_t channel = lane * kVector; channel < p.channels; channel += kLanes * kVector) {
        const auto given = *reinterpret_cast<const Vector<T, kVector>*>(grad_output + channel);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (!(sample.columns_and_corners >> k & 1)) continue;
          const int64_t at = corner_token(sample, k) * token_step + channel;
          const auto row = *reinterpret_cast<const Vector<T, kVector>*>(value + at);
          const A factor = sample.weight * corner_weight(sample, k);
          A added[kVector];
#pragma unroll
          for (int i = 0; i < kVector; ++i) {
            const A grad = static_cast<A>(given.lanes[i]);
            dots[k] += grad * static_cast<A>(row.lanes[i]);
            added[i] = grad * factor;
          }
          if (grads.value != nullptr && item.writes) add_atomically(grads.value + image_head + at, added);
        }
      }
      const A fx = sample.fraction_x, fy = sample.fraction_y;
      const A x = group_sum<kLanes>((A(1) - fy) * (dots[1] - dots[0]) + fy * (dots[3] - dots[2]));
      const A y = group_sum<kLanes>((A(1) - fx) * (dots[2] - dots[0]) + fx * (dots[3] - dots[1]));
      const A w = group_sum<kLanes>(
          (A(1) - fx) * (A(1) - fy) * dots[0] + fx * (A(1) - fy) * dots[1] + (A(1) - fx) * fy * dots[2] +
          fx * fy * dots[3]);
      if (lane == j) {
        grad_x = x;
        grad_y = y;
        grad_weight = w;
      }
    }
    const int s = first + lane;
    if (s >= item.count || !item.writes) continue;  // no shuffle follows in this round
    grad_x = scaled(grad_x, mine.weight);
    grad_y = scaled(grad_y, mine.weight);
    mean += mine.weight * grad_weight;
    if (grads.weights != nullptr) grads.weights[item.index * item.count + s] = grad_weight;
    if (grads.offsets != nullptr) {
      grads.offsets[(item.index * item.count + s) * 2] = static_cast<O>(scaled(grad_x, frame.scale_x));
      grads.offsets[(item.index * item.count + s) * 2 + 1] = static_cast<O>(scaled(grad_y, frame.scale_y));
    }
    if (grads.reference_points != nullptr) {
      const int64_t level = p.reference_levels > 1 ? s / p.points : 0;
      A* to = grads.reference_points + (item.index / p.heads * p.reference_levels + level) * p.reference_dims;
      atomicAdd(to, grad_x * frame.width);
      atomicAdd(to + 1, grad_y * frame.height);
      if (p.reference_dims == 4) {
        atomicAdd(to + 2, scaled(grad_x, frame.width * frame.offset_x / static_cast<A>(2 * p.points)));
        atomicAdd(to + 3, scaled(grad_y, frame.height * frame.offset_y / static_cast<A>(2 * p.points)));
      }
    }
  }
  if (p.reference_dims == 0 || grads.weights == nullptr) return;
  mean = group_sum<kLanes>(mean);
  if (!item.writes) return;
  for (int s = lane; s < item.count; s += kLanes) {
    A* at = grads.weights + item.index * item.count + s;
    *at = item.weight(p, s) * (*at - mean);
  }
}

}  // namespace gpu
}  // namespace salience_detr
