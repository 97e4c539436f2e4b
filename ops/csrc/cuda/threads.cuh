// What neighboring threads do together: loads of neighbors at once, sums, and values handed round by shuffles.
// All threads of a warp stay together to the end of a kernel, as the shuffles need it.
#pragma once

namespace salience_detr {
namespace gpu {

constexpr unsigned kWholeWarp = 0xffffffffu;

template <typename T, int kCount>
struct alignas(kCount * sizeof(T)) Vector {
  T lanes[kCount];
};

// The bytes of a vector as a type that one instruction loads.
template <int kBytes>
struct Word;
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned int;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

// Reads what no kernel writes: the compiler then moves such loads up, also past atomic additions.
template <typename V>
__device__ inline V read(const void* at) {
  using W = typename Word<sizeof(V)>::type;
  const W word = __ldg(static_cast<const W*>(at));
  V result;
  memcpy(&result, &word, sizeof(V));
  return result;
}

// Reads a vector, or zeros. The load is predicated by hand where it is one of 16 bytes: left to itself, the compiler
// may branch around it, and then waits for each load before the next.
template <typename V>
__device__ inline V read_if(unsigned condition, const void* at) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(V) == 16) {
    uint4 word;
    asm("{\n"
        "  .reg .pred p;\n"
        "  setp.ne.u32 p, %5, 0;\n"
        "  mov.u32 %0, 0;\n"
        "  mov.u32 %1, 0;\n"
        "  mov.u32 %2, 0;\n"
        "  mov.u32 %3, 0;\n"
        "  @p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];\n"
        "}"
        : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
        : "l"(at), "r"(condition));
    V result;
    memcpy(&result, &word, sizeof(V));
    return result;
  }
#endif
  V result{};
  if (condition != 0) result = read<V>(at);
  return result;
}

// A pointer that the compiler takes for given. Else it adds the parts of the address anew at each use.
template <typename T>
__device__ inline T* settled(T* pointer) {
#ifdef __CUDA_ARCH__
  asm("" : "+l"(pointer));
#endif
  return pointer;
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

// The sum of values[lane % kCount] over the group. At each step a thread keeps the half of the values that it is
// responsible for and gives away the other: kCount - 1 shuffles for kCount sums, while each sum for itself would
// need log2(kLanes).
template <int kLanes, int kCount, typename A>
__device__ inline A transposed_sum(A (&values)[kCount], int lane) {
#pragma unroll
  for (int half = kCount / 2; half > 0; half /= 2) {
    const bool is_upper = lane & half;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const A kept = is_upper ? values[i + half] : values[i];
      const A given = is_upper ? values[i] : values[i + half];
      values[i] = kept + __shfl_xor_sync(kWholeWarp, given, half, kLanes);
    }
  }
#pragma unroll
  for (int step = kCount; step < kLanes; step *= 2)
    values[0] += __shfl_xor_sync(kWholeWarp, values[0], step, kLanes);
  return values[0];
}

}  // namespace gpu
}  // namespace salience_detr
