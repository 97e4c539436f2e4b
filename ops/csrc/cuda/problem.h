// What the CUDA kernels compute, without PyTorch, so that the tests can also run them thread by thread on a CPU.
//
// Symbols: B images, Q queries, S value tokens of L levels, M heads of C channels, P points per head and level.
#pragma once

#include <cstdint>

namespace salience_detr {
namespace gpu {

// Coordinates, softmax and sums.
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
  const O* offsets;                          // (B, Q, M, L * P, 2), where a pair can be read at once
  const O* weights;                          // (B, Q, M, L * P)
  int64_t first_image;                       // of the images of this launch
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

}  // namespace gpu
}  // namespace salience_detr
