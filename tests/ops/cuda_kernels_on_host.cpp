// The CUDA kernels as functions that Python can call on a CPU.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "warp.h"

#include "../../ops/csrc/cuda/kernels.cuh"

using namespace salience_detr::gpu;

// What ran.
struct Used {
  int index_bits, vector, levels, points, threads;
};

// Calls run with a variant: the one that a launch chooses, or another one that computes the same.
template <typename T, typename O, typename Run>
void with_named(const char* name, const Problem<T, O>& problem, Run run) {
  const std::string_view asked = name;
  constexpr int kLanes = kCommonChannels / kWidest<T>;
  if (asked == "chosen") with_variant(problem, true, run);
  else if (asked == "unaligned") with_variant(problem, false, run);
  else if (asked == "vectors") run(Vectors<T>{});
  else if (asked == "scalars") run(Scalars{});
  else if (asked == "32 bits") run(Variant<uint32_t, kWidest<T>, kLanes>{});
  else if (asked == "narrow") run(Variant<uint64_t, kWidest<T>, 4>{});
  else std::abort();
}

template <typename T, typename O, typename Kernel>
Used run_kernel(const char* name, int64_t multiprocessors, const Problem<T, O>& problem, Kernel kernel) {
  Used used{};
  with_named(name, problem, [&](auto variant) {
    using V = decltype(variant);
    for_grids(problem, V::kLanes, multiprocessors, [&](const Problem<T, O>& part, dim3 grid, int threads) {
      used = {8 * static_cast<int>(sizeof(typename V::Index)), V::kVector, V::kLevels, V::kPoints, threads};
      warp::run(grid, threads, [&] { kernel(variant, part); });
    });
  });
  return used;
}

#define FUNCTIONS(name, T, O)                                                                              \
  extern "C" Used forward_##name(                                                                          \
      const char* variant, int64_t multiprocessors, const Problem<T, O>* problem, T* output) {             \
    return run_kernel(variant, multiprocessors, *problem, [&](auto v, const Problem<T, O>& part) {         \
      forward_kernel<T, O, decltype(v)>(part, output);                                                     \
    });                                                                                                    \
  }                                                                                                        \
  extern "C" Used backward_##name(                                                                         \
      const char* variant, int64_t multiprocessors, const Problem<T, O>* problem, const Gradients<T, O>* grads) { \
    return run_kernel(variant, multiprocessors, *problem, [&](auto v, const Problem<T, O>& part) {         \
      backward_kernel<T, O, decltype(v)>(part, *grads);                                                    \
    });                                                                                                    \
  }

FUNCTIONS(float64_float64, double, double)
FUNCTIONS(float32_float32, float, float)
FUNCTIONS(float16_float16, c10::Half, c10::Half)
FUNCTIONS(float16_float32, c10::Half, float)
FUNCTIONS(bfloat16_bfloat16, c10::BFloat16, c10::BFloat16)
FUNCTIONS(bfloat16_float32, c10::BFloat16, float)

// Images of each launch, into `images`; returns how many launches there are.
extern "C" int images_of_launches(int64_t batch, int64_t* images) {
  Problem<float, float> problem{};
  problem.batch = batch;
  problem.queries = problem.heads = 1;
  int count = 0;
  for_grids(problem, 8, 1, [&](const Problem<float, float>& part, dim3 grid, int) {
    images[2 * count] = part.first_image;
    images[2 * count++ + 1] = grid.z;
  });
  return count;
}
