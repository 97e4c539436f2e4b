// Schemas, checks and dispatch of torch.ops.salience_detr.*; fake and autograd kernels are registered from Python.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "ms_deform_attn.h"

namespace salience_detr {

InputGradients zero_gradients(const Inputs& inputs, const Needed& needed) {
  const at::Tensor* tensors[] = {&inputs.value, &inputs.reference_points, &inputs.offsets, &inputs.weights};
  InputGradients grads;
  for (size_t i = 0; i < grads.size(); ++i)
    if (needed[i]) grads[i] = at::zeros(tensors[i]->sizes(), tensors[i]->options());
  return grads;
}

namespace {

using at::Tensor;

// `name` has the given sizes; -1 stands for any.
void check_sizes(const char* name, const Tensor& tensor, at::IntArrayRef expected, const char* meaning) {
  TORCH_CHECK(
      tensor.dim() == static_cast<int64_t>(expected.size()), name, " must have ", expected.size(), " dimensions ",
      meaning, ", got ", tensor.dim());
  for (size_t i = 0; i < expected.size(); ++i)
    TORCH_CHECK(
        expected[i] < 0 || tensor.size(i) == expected[i], name, " must be ", meaning, " with size ", expected[i],
        " in dimension ", i, ", got ", tensor.sizes());
}

void check_same_device(const char* name, const Tensor& tensor, const Tensor& value) {
  TORCH_CHECK(
      tensor.device() == value.device(), name, " is on ", tensor.device(), " but value is on ", value.device());
}

void check_levels(const Inputs& inputs) {
  const Tensor shapes = inputs.spatial_shapes.to(at::kLong).contiguous();
  const Tensor starts = inputs.level_start_index.to(at::kLong).contiguous();

  // Levels follow each other without gaps, and together they are the value.
  int64_t sum = 0;
  for (int64_t level = 0; level < inputs.levels(); ++level) {
    const int64_t* shape = shapes.data_ptr<int64_t>() + 2 * level;
    const int64_t start = starts.data_ptr<int64_t>()[level];
    TORCH_CHECK(
        shape[0] >= 0 && shape[1] >= 0, "spatial_shapes must not be negative, got (", shape[0], ", ", shape[1],
        ") for level ", level);
    TORCH_CHECK(
        shape[0] < kLongestSide && shape[1] < kLongestSide, "spatial_shapes must be below ", kLongestSide, ", got (",
        shape[0], ", ", shape[1], ") for level ", level);
    TORCH_CHECK(
        start == sum, "level_start_index of level ", level, " must be ", sum,
        ", the number of tokens of the levels before it, got ", start);
    sum += shape[0] * shape[1];
  }

  TORCH_CHECK(
      sum == inputs.tokens(), "spatial_shapes sum to ", sum, " tokens but value has ", inputs.tokens(),
      " in dimension 1");
}

const char* offsets_name(const Inputs& inputs) { return inputs.fused() ? "sampling_offsets" : "sampling_locations"; }
const char* weights_name(const Inputs& inputs) { return inputs.fused() ? "attention_logits" : "attention_weights"; }

void check_shapes(const Inputs& inputs) {
  const Tensor& value = inputs.value;
  check_sizes("value", value, {-1, -1, -1, -1}, "(B, S, M, C)");

  TORCH_CHECK(inputs.tokens() < (int64_t{1} << 31), "value must have fewer than 2^31 tokens, got ", inputs.tokens());

  check_sizes(
      offsets_name(inputs), inputs.offsets, {value.size(0), -1, value.size(2), -1, -1, 2}, "(B, Q, M, L, P, 2)");
  const int64_t queries = inputs.queries(), levels = inputs.levels(), points = inputs.points();
  check_sizes(
      weights_name(inputs), inputs.weights, {value.size(0), queries, value.size(2), levels, points}, "(B, Q, M, L, P)");

  check_sizes("spatial_shapes", inputs.spatial_shapes, {levels, 2}, "(L, 2)");
  check_sizes("level_start_index", inputs.level_start_index, {levels}, "(L,)");
  if (!inputs.fused()) return;

  const Tensor& reference = inputs.reference_points;
  check_sizes("reference_points", reference, {value.size(0), queries, -1, -1}, "(B, Q, L or 1, 2 or 4)");
  TORCH_CHECK(
      reference.size(2) == levels || reference.size(2) == 1, "reference_points must be for ", levels,
      " levels or for 1, got ", reference.size(2));
  TORCH_CHECK(
      reference.size(3) == 2 || reference.size(3) == 4,
      "reference_points must have 2 or 4 coordinates in their last dimension, got ", reference.size(3));
}

// Coordinates need single precision at least; offsets and weights may also have the value's type.
void check_type(const char* name, const Tensor& tensor, const Inputs& inputs, bool coordinates) {
  const auto exact = inputs.accumulate_type(), type = inputs.value.scalar_type(), found = tensor.scalar_type();
  if (coordinates || type == exact) {
    TORCH_CHECK(found == exact, name, " must be ", exact, " with a value of ", type, ", got ", found);
  } else {
    TORCH_CHECK(
        found == exact || found == type, name, " must be ", type, " or ", exact, " with a value of ", type, ", got ",
        found);
  }
}

void check_integer(const char* name, const Tensor& tensor) {
  TORCH_CHECK(
      tensor.scalar_type() == at::kLong || tensor.scalar_type() == at::kInt, name, " must be int64 or int32, got ",
      tensor.scalar_type());
}

void check_types(const Inputs& inputs) {
  const auto type = inputs.value.scalar_type();
  TORCH_CHECK(
      type == at::kDouble || type == at::kFloat || type == at::kHalf || type == at::kBFloat16,
      "value must be float64, float32, float16 or bfloat16, got ", type);

  check_integer("spatial_shapes", inputs.spatial_shapes);
  check_integer("level_start_index", inputs.level_start_index);

  if (inputs.fused()) check_type("reference_points", inputs.reference_points, inputs, true);
  check_type(offsets_name(inputs), inputs.offsets, inputs, !inputs.fused());
  check_type(weights_name(inputs), inputs.weights, inputs, false);
}

void check_devices(const Inputs& inputs) {
  check_same_device("spatial_shapes", inputs.spatial_shapes, inputs.value);
  check_same_device("level_start_index", inputs.level_start_index, inputs.value);
  if (inputs.fused()) check_same_device("reference_points", inputs.reference_points, inputs.value);
  check_same_device(offsets_name(inputs), inputs.offsets, inputs.value);
  check_same_device(weights_name(inputs), inputs.weights, inputs.value);
}

void check(const Inputs& inputs) {
  check_shapes(inputs);
  check_types(inputs);
  check_devices(inputs);
  // On a GPU the sizes stay where they are: reading them would wait for all work that was queued before.
  if (inputs.value.is_cpu()) check_levels(inputs);
}

void check_grad(const Tensor& grad_output, const Inputs& inputs) {
  const auto expected = inputs.heads() * inputs.channels();
  check_sizes("grad_output", grad_output, {inputs.batch(), inputs.queries(), expected}, "(B, Q, M * C)");
  TORCH_CHECK(
      grad_output.scalar_type() == inputs.value.scalar_type(), "grad_output must be ", inputs.value.scalar_type(),
      " as value, got ", grad_output.scalar_type());
  check_same_device("grad_output", grad_output, inputs.value);
}

using Forward = Tensor (*)(const Inputs&);
using Backward = InputGradients (*)(const Tensor&, const Inputs&, const Needed&);

// What Python takes for "nobody asked" cannot be an undefined tensor.
Tensor or_empty(const Tensor& gradient, const Inputs& inputs) {
  return gradient.defined() ? gradient : at::empty({0}, inputs.value.options());
}

template <Forward run>
Tensor plain(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
    const Tensor& sampling_locations, const Tensor& attention_weights) {
  const Inputs inputs{value, spatial_shapes, level_start_index, Tensor(), sampling_locations, attention_weights};
  check(inputs);
  return run(inputs);
}

template <Backward run>
std::tuple<Tensor, Tensor, Tensor> plain_backward(
    const Tensor& grad_output, const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
    const Tensor& sampling_locations, const Tensor& attention_weights, std::array<bool, 3> needed) {
  const Inputs inputs{value, spatial_shapes, level_start_index, Tensor(), sampling_locations, attention_weights};
  check(inputs);
  check_grad(grad_output, inputs);
  const auto grads = run(grad_output, inputs, {needed[0], false, needed[1], needed[2]});
  return {or_empty(grads[0], inputs), or_empty(grads[2], inputs), or_empty(grads[3], inputs)};
}

template <Forward run>
Tensor fused(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index, const Tensor& reference_points,
    const Tensor& sampling_offsets, const Tensor& attention_logits) {
  const Inputs inputs{value, spatial_shapes, level_start_index, reference_points, sampling_offsets, attention_logits};
  check(inputs);
  return run(inputs);
}

template <Backward run>
std::tuple<Tensor, Tensor, Tensor, Tensor> fused_backward(
    const Tensor& grad_output, const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
    const Tensor& reference_points, const Tensor& sampling_offsets, const Tensor& attention_logits, Needed needed) {
  const Inputs inputs{value, spatial_shapes, level_start_index, reference_points, sampling_offsets, attention_logits};
  check(inputs);
  check_grad(grad_output, inputs);
  const auto grads = run(grad_output, inputs, needed);
  return {
      or_empty(grads[0], inputs), or_empty(grads[1], inputs), or_empty(grads[2], inputs), or_empty(grads[3], inputs)};
}

// Under autocast the value is sampled in the low precision; coordinates and sums stay in float32, and offsets and
// weights stay what they are if the operator takes them so. A float64 value stays, and with it all is float64.
template <c10::DeviceType device, c10::DispatchKey key>
struct Autocast {
  static Tensor lower(const Tensor& tensor) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device);
  }
  static Tensor exact(const Tensor& tensor, const Tensor& value) {
    return value.scalar_type() == at::kDouble ? tensor.to(at::kDouble)
                                              : at::autocast::cached_cast(at::kFloat, tensor, device);
  }
  static Tensor either(const Tensor& tensor, const Tensor& value) {
    const bool low = tensor.scalar_type() == at::autocast::get_autocast_dtype(device);
    return low && value.scalar_type() != at::kDouble ? tensor : exact(tensor, value);
  }

  static Tensor plain(
      const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
      const Tensor& sampling_locations, const Tensor& attention_weights) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("salience_detr::ms_deform_attn", "")
                               .typed<decltype(Autocast::plain)>();
    return op.call(
        lower(value), spatial_shapes, level_start_index, exact(sampling_locations, value),
        either(attention_weights, value));
  }

  static Tensor fused(
      const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
      const Tensor& reference_points, const Tensor& sampling_offsets, const Tensor& attention_logits) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("salience_detr::ms_deform_attn_fused", "")
                               .typed<decltype(Autocast::fused)>();
    return op.call(
        lower(value), spatial_shapes, level_start_index, exact(reference_points, value),
        either(sampling_offsets, value), either(attention_logits, value));
  }
};

}  // namespace

TORCH_LIBRARY(salience_detr, m) {
  m.set_python_module("salience_detr.layers.operator");
  m.def(
      "ms_deform_attn(Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_locations, "
      "Tensor attention_weights) -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor sampling_locations, Tensor attention_weights, bool[3] needed) -> (Tensor, Tensor, Tensor)");
  m.def(
      "ms_deform_attn_fused(Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor reference_points, "
      "Tensor sampling_offsets, Tensor attention_logits) -> Tensor");
  m.def(
      "ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, Tensor spatial_shapes, "
      "Tensor level_start_index, Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, "
      "bool[4] needed) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(salience_detr, CPU, m) {
  m.impl("ms_deform_attn", &plain<forward_cpu>);
  m.impl("ms_deform_attn_backward", &plain_backward<backward_cpu>);
  m.impl("ms_deform_attn_fused", &fused<forward_cpu>);
  m.impl("ms_deform_attn_fused_backward", &fused_backward<backward_cpu>);
}

#ifdef SALIENCE_DETR_CUDA
TORCH_LIBRARY_IMPL(salience_detr, CUDA, m) {
  m.impl("ms_deform_attn", &plain<forward_cuda>);
  m.impl("ms_deform_attn_backward", &plain_backward<backward_cuda>);
  m.impl("ms_deform_attn_fused", &fused<forward_cuda>);
  m.impl("ms_deform_attn_fused_backward", &fused_backward<backward_cuda>);
}
#endif

using AutocastCpu = Autocast<c10::DeviceType::CPU, c10::DispatchKey::AutocastCPU>;
using AutocastCuda = Autocast<c10::DeviceType::CUDA, c10::DispatchKey::Autocast>;

TORCH_LIBRARY_IMPL(salience_detr, AutocastCPU, m) {
  m.impl("ms_deform_attn", &AutocastCpu::plain);
  m.impl("ms_deform_attn_fused", &AutocastCpu::fused);
}

TORCH_LIBRARY_IMPL(salience_detr, Autocast, m) {
  m.impl("ms_deform_attn", &AutocastCuda::plain);
  m.impl("ms_deform_attn_fused", &AutocastCuda::fused);
}

}  // namespace salience_detr
