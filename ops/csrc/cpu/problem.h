// Inputs and outputs of the CPU kernels: plain pointers, so that they compile without PyTorch's headers.
//
// Symbols: B images, Q queries, S value tokens of L levels, M heads of C channels, P points per head and level.
#pragma once

#include <cstdint>

namespace salience_detr {

// All channels are read 64 bytes at a time.
template <typename T>
inline constexpr int64_t kLanes = 64 / sizeof(T);

// Distances from one image, head or token of the value to the next, in numbers.
struct Steps {
  int64_t image, head, token;
};

// One sample of a query, s = l * P + p, reads its level at
//   x = reference_x * W - 0.5 + scale_x * offset_x
// where the scale is 1 for a 2-d reference and w * W / (2 P) for a 4-d one. Plain sampling locations are
// offsets from no reference: x = -0.5 + W * location_x.
template <typename T>
struct Problem {
  int64_t batch, queries, heads, tokens, levels, points;
  int64_t channels;           // per head, padded to a multiple of kLanes
  int64_t reference_levels;   // L or 1
  int64_t reference_dims;     // 2 or 4; 0 = offsets are sampling locations and weights need no softmax
  const int64_t* shapes;      // (L, 2): H, W
  const int64_t* starts;      // (L,)
  const T* value;             // tokens of C channels, which lie as steps says
  Steps steps;
  const T* zeros;             // (C,): stands for all tokens outside the map
  const T* reference_points;  // (B, Q, reference_levels, reference_dims)
  const T* offsets;           // (B, Q, M, L * P, 2)
  const T* weights;           // (B, Q, M, L * P)
  const T* expanded_references;  // (B, Q, 4, padded_samples), by Kernels::expand_references

  int64_t padded_samples() const { return (levels * points + kLanes<T> - 1) / kLanes<T> * kLanes<T>; }
};

// Gradients; those that are not needed are null pointers.
template <typename T>
struct Gradients {
  const T* output;      // (B, Q, M, C), given
  T* value;             // slabs that lie like the value, zero before
  T* reference_points;  // (B, M, Q, reference_levels, reference_dims), zero before
  T* offsets;           // (B, Q, M, L * P, 2)
  T* weights;           // (B, Q, M, L * P)
};

// The kernels of one instruction set. A task is a range of queries of one image and head.
template <typename T>
struct Kernels {
  void (*expand_references)(const Problem<T>&, T* expanded, int64_t first, int64_t last);
  void (*forward)(const Problem<T>&, T* output, int64_t image, int64_t head, int64_t first, int64_t last);
  void (*backward)(
      const Problem<T>&, const Gradients<T>&, int64_t slab, int64_t image, int64_t head, int64_t first, int64_t last);
};

// The fastest kernels that this processor runs. SALIENCE_DETR_CPU=baseline|avx2|avx512 asks for less.
template <typename T>
const Kernels<T>& kernels();

}  // namespace salience_detr
