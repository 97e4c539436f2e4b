// The variants of the kernels, and which of them runs a problem.
#pragma once

#include <cstdint>
#include <type_traits>

#include "problem.h"

namespace salience_detr {
namespace gpu {

// How the threads share the work, and what the compiler knows of the shape (0: it is known when the kernel runs).
//
// A group of kLanes neighboring threads computes one item, a head of a query; each thread owns kVector neighboring
// channels (more, in steps of the group, if the head is wider). Index is the type of offsets inside the value of an
// image. It is unsigned: a corner that lies outside may come before the image, and wraps around.
template <typename IndexType, int vector, int lanes, int levels = 0, int points = 0, int channels = 0>
struct Variant {
  using Index = IndexType;
  static constexpr int kVector = vector, kLanes = lanes;
  static constexpr int kLevels = levels, kPoints = points, kChannels = channels;
  // Each thread has all of its channels at once, and so holds their gradients in registers.
  static constexpr bool kOneStep = kChannels == kVector * kLanes;
  static_assert(kChannels == 0 || kOneStep);
};

constexpr int kCommonChannels = 32;

// Threads read 16 bytes at a time where they can, one number otherwise. As many of them share an item as its usual
// channels need.
template <typename T>
inline constexpr int kWidest = 16 / sizeof(T);
template <typename T>
using Vectors = Variant<uint64_t, kWidest<T>, kCommonChannels / kWidest<T>>;
using Scalars = Variant<uint64_t, 1, kCommonChannels>;
template <typename T, int levels, int points>
using Known = Variant<uint32_t, kWidest<T>, kCommonChannels / kWidest<T>, levels, points, kCommonChannels>;

// Whether offsets inside the value of an image fit into 32 bits.
template <typename T, typename O>
bool is_small(const Problem<T, O>& p) {
  return p.tokens <= (int64_t{1} << 32) / (p.heads * p.channels);
}

// Calls run(Variant{}) with the variant for a problem. aligned: vectors can be read from value and gradient.
template <typename T, typename O, typename Run>
void with_variant(const Problem<T, O>& p, bool aligned, Run run) {
  if (!aligned || p.channels % kWidest<T> != 0) return run(Scalars{});
  if constexpr (!std::is_same_v<T, double>) {
    if (p.channels == kCommonChannels && is_small(p) && p.points == 4) {
      if (p.levels == 4) return run(Known<T, 4, 4>{});
      if (p.levels == 3) return run(Known<T, 3, 4>{});
    }
  }
  run(Vectors<T>{});
}

}  // namespace gpu
}  // namespace salience_detr
