#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "problem.h"

#if defined(__clang__) || __GNUC__ >= 12
#define SALIENCE_DETR_SHUFFLE 1
#endif

// The instruction set is chosen when the program runs; the file itself is compiled for the oldest processor.
namespace salience_detr {

namespace baseline {
constexpr int kVectorBytes = 16;
#include "registers.inc"
#include "kernels.inc"
}  // namespace baseline

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define SALIENCE_DETR_X86 1

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
constexpr int kVectorBytes = 32;
#include "registers.inc"
#include "kernels.inc"
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#endif
namespace avx512 {
constexpr int kVectorBytes = 64;
#include "registers.inc"
#include "kernels.inc"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // x86

// SALIENCE_DETR_CPU, or the most that there is.
std::string most_asked_for() {
  const char* asked = std::getenv("SALIENCE_DETR_CPU");
  const std::string most = asked && *asked ? asked : "avx512";
  if (most != "baseline" && most != "avx2" && most != "avx512")
    throw std::invalid_argument("SALIENCE_DETR_CPU must be baseline, avx2 or avx512, got '" + most + "'");
  return most;
}

template <typename T>
const Kernels<T>& kernels() {
  const std::string most = most_asked_for();
#ifdef SALIENCE_DETR_X86
  if (most != "baseline" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return wide && most == "avx512" ? avx512::kKernels<T> : avx2::kKernels<T>;
  }
#endif
  return baseline::kKernels<T>;
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

}  // namespace salience_detr
