// The samples of an item: where they lie, and their weights. The threads of a group share out this arithmetic, one
// sample each, and tell each other.
#pragma once

#include "../levels.h"
#include "problem.h"
#include "threads.cuh"

namespace salience_detr {
namespace gpu {

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

// What a thread reads for its own sample; apart from the arithmetic, so that it is read before something else waits.
template <typename A, typename O>
struct Given {
  Vector<O, 2> offset;
  O weight;
  A reference[4];
};

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }

template <typename A>
__device__ inline Sample<A> from_lane(const Sample<A>& mine, int lane, int lanes) {
  return {
      __shfl_sync(kWholeWarp, mine.fraction_x, lane, lanes), __shfl_sync(kWholeWarp, mine.fraction_y, lane, lanes),
      __shfl_sync(kWholeWarp, mine.weight, lane, lanes), __shfl_sync(kWholeWarp, mine.token, lane, lanes),
      __shfl_sync(kWholeWarp, mine.columns_and_corners, lane, lanes)};
}

// The item of this thread's group: a head of a query. A block has queries of one head of one image.
// Groups beyond the last query repeat it without writing.
template <typename T, typename O, typename V>
struct Item {
  using A = typename Accumulate<T>::type;
  int lane;
  bool writes;
  int64_t query;       // of all images
  int64_t index;       // in (B, Q, M)
  int64_t image_head;  // offset of the first number in value
  const A* reference;
  const O *offsets, *weights;
  A largest, inverse_sum;  // of the softmax

  __device__ explicit Item(const Problem<T, O>& p) {
    lane = threadIdx.x % V::kLanes;
    const int64_t image = p.first_image + blockIdx.z, head = blockIdx.y;
    const int last = static_cast<int>(p.queries) - 1;
    const unsigned own = blockIdx.x * (blockDim.x / V::kLanes) + threadIdx.x / V::kLanes;
    writes = own <= static_cast<unsigned>(last);
    query = image * p.queries + (writes ? static_cast<int>(own) : last);
    index = query * p.heads + head;
    image_head = (image * p.tokens * p.heads + head) * p.channels;
    reference = p.reference_points + query * (p.reference_levels * p.reference_dims);
    offsets = p.offsets + index * count(p) * 2;
    weights = p.weights + index * count(p);
  }

  // A loop over all samples takes this many rounds, or an unknown number.
  static constexpr int kUnrolledRounds =
      V::kPoints ? (V::kLevels * V::kPoints + V::kLanes - 1) / V::kLanes : 1;

  // Samples of the round that begins with sample first.
  static __device__ int round(const Problem<T, O>& p, int first) {
    const int rest = count(p) - first;
    return count(p) % V::kLanes == 0 || rest > V::kLanes ? V::kLanes : rest;
  }
  static __device__ int64_t channels(const Problem<T, O>& p) { return V::kChannels ? V::kChannels : p.channels; }
  static __device__ int points(const Problem<T, O>& p) { return V::kPoints ? V::kPoints : static_cast<int>(p.points); }
  static __device__ int count(const Problem<T, O>& p) {
    return V::kPoints ? V::kLevels * V::kPoints : static_cast<int>(p.levels * p.points);
  }

  // Sample s, or the last one if there is none: there is always something to read.
  __device__ Given<A, O> given(const Problem<T, O>& p, int s) const {
    s = s < count(p) ? s : count(p) - 1;
    Given<A, O> result{};
    result.offset = read<Vector<O, 2>>(offsets + 2 * s);
    result.weight = read<Vector<O, 1>>(weights + s).lanes[0];
    if (p.reference_dims == 0) return result;
    const A* from = reference + (p.reference_levels > 1 ? s / points(p) * p.reference_dims : 0);
    result.reference[0] = from[0];
    result.reference[1] = from[1];
    if (p.reference_dims == 2) return result;
    result.reference[2] = from[2];
    result.reference[3] = from[3];
    return result;
  }

  // For weight(). The group does it together.
  __device__ void prepare_softmax(const Problem<T, O>& p) {
    largest = A(0);
    inverse_sum = A(1);
    if (p.reference_dims == 0) return;
    largest = static_cast<A>(weights[lane < count(p) ? lane : 0]);
#pragma unroll(kUnrolledRounds)
    for (int first = V::kLanes; first < count(p); first += V::kLanes) {
      if (first + lane >= count(p)) break;
      const A logit = static_cast<A>(weights[first + lane]);
      largest = logit > largest || logit != logit ? logit : largest;
    }
    largest = group_max<V::kLanes>(largest);
    A sum = 0;
#pragma unroll(kUnrolledRounds)
    for (int first = 0; first < count(p); first += V::kLanes) {
      if (first + lane >= count(p)) break;
      sum += exponential(static_cast<A>(weights[first + lane]) - largest);
    }
    inverse_sum = A(1) / group_sum<V::kLanes>(sum);
  }

  __device__ A weight(const Problem<T, O>& p, O given) const {
    const A exact = static_cast<A>(given);
    return p.reference_dims == 0 ? exact : exponential(exact - largest) * inverse_sum;
  }

  // Sample s, or one without corners if there is none.
  __device__ Sample<A> sample(const Problem<T, O>& p, const Given<A, O>& given, int s, Frame<A>& frame) const {
    Sample<A> result{A(0), A(0), A(0), 0, 0};
    if (s >= count(p)) return result;
    const int level = s / points(p);
    const int64_t given_rows = p.shapes[2 * level], given_columns = p.shapes[2 * level + 1], start = p.starts[level];
    // What registration.cpp checks on the CPU.
    SALIENCE_DETR_ASSERT(
        given_rows >= 0 && given_rows < kLongestSide && given_columns >= 0 && given_columns < kLongestSide &&
        start >= 0 && start + given_rows * given_columns <= p.tokens);
    const int rows = static_cast<int>(given_rows), columns = static_cast<int>(given_columns);
    frame.width = static_cast<A>(columns);
    frame.height = static_cast<A>(rows);
    frame.offset_x = static_cast<A>(given.offset.lanes[0]);
    frame.offset_y = static_cast<A>(given.offset.lanes[1]);
    A base_x = A(-0.5), base_y = A(-0.5);
    frame.scale_x = frame.width;
    frame.scale_y = frame.height;
    if (p.reference_dims != 0) {
      base_x = given.reference[0] * frame.width - A(0.5);
      base_y = given.reference[1] * frame.height - A(0.5);
      const A half_points = static_cast<A>(2 * points(p));
      frame.scale_x = p.reference_dims == 2 ? A(1) : given.reference[2] * frame.width / half_points;
      frame.scale_y = p.reference_dims == 2 ? A(1) : given.reference[3] * frame.height / half_points;
    }
    const A x = base_x + frame.scale_x * frame.offset_x, y = base_y + frame.scale_y * frame.offset_y;
    result.weight = weight(p, given.weight);
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

}  // namespace gpu
}  // namespace salience_detr
