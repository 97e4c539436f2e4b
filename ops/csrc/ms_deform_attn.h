// One description of the inputs of both operators, ms_deform_attn (plain) and ms_deform_attn_fused.
//
// Symbols: B images, Q queries, S value tokens of L levels, M heads of C channels, P points per head and level.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>

#include "levels.h"

namespace salience_detr {

struct Inputs {
  at::Tensor value;              // (B, S, M, C)
  at::Tensor spatial_shapes;     // (L, 2): H, W
  at::Tensor level_start_index;  // (L,)
  at::Tensor reference_points;   // (B, Q, L or 1, 2 or 4) fused; undefined in the plain operator
  at::Tensor offsets;            // (B, Q, M, L, P, 2): sampling offsets; plain: sampling locations
  at::Tensor weights;            // (B, Q, M, L, P): attention logits; plain: attention weights

  bool fused() const { return reference_points.defined(); }
  int64_t batch() const { return value.size(0); }
  int64_t tokens() const { return value.size(1); }
  int64_t heads() const { return value.size(2); }
  int64_t channels() const { return value.size(3); }
  int64_t queries() const { return offsets.size(1); }
  int64_t levels() const { return offsets.size(3); }
  int64_t points() const { return offsets.size(4); }
  bool empty() const { return value.numel() == 0 || weights.numel() == 0; }
  // Coordinates, softmax and sums: float64 with float64, else float32.
  at::ScalarType accumulate_type() const {
    return value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  }
};

// In the order value, reference points, offsets, weights. Gradients that are not needed are undefined.
using Needed = std::array<bool, 4>;
using InputGradients = std::array<at::Tensor, 4>;

// Gradients of an output that does not depend on the inputs.
InputGradients zero_gradients(const Inputs& inputs, const Needed& needed);

at::Tensor forward_cpu(const Inputs& inputs);
InputGradients backward_cpu(const at::Tensor& grad_output, const Inputs& inputs, const Needed& needed);

#ifdef SALIENCE_DETR_CUDA
at::Tensor forward_cuda(const Inputs& inputs);
InputGradients backward_cuda(const at::Tensor& grad_output, const Inputs& inputs, const Needed& needed);
#endif

}  // namespace salience_detr
