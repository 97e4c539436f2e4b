// What the check on the CPU and the asserts of the CUDA kernels, which know nothing of PyTorch, hold levels to.
#pragma once

#include <cstdint>

namespace salience_detr {

// Heights and widths stay exact in float32.
constexpr int64_t kLongestSide = int64_t{1} << 24;

}  // namespace salience_detr
