"""The deformable attention as an operator of OpenVINO, computed by this package.

OpenVINO itself would take GridSample, multiplications and sums, half of the time of a large model.
Import this module only where openvino is installed.
"""

from __future__ import annotations

from collections.abc import Sequence

import openvino
import torch
from openvino.frontend import NodeContext
from openvino.frontend.onnx import ConversionExtension

from salience_detr.export.onnx import DOMAIN, OPERATOR
from salience_detr.layers.ms_deform_attn import ms_deform_attn_fused


class DeformableAttention(openvino.Op):
    """A node that computes ``ms_deform_attn_fused``, in float32.

    Its inputs are that function's, in their order: values, shapes and starts of the levels,
    reference points, offsets and logits.
    """

    def __init__(self, inputs: Sequence[openvino.Output] | None = None) -> None:
        super().__init__(self, inputs)

    def validate_and_infer_types(self) -> None:
        """Tell OpenVINO the type of the output, and what is known of its shape, (B, Q, M * C)."""
        value = self.get_input_partial_shape(0)
        logits = self.get_input_partial_shape(5)
        heads, channels = value[2], value[3]
        width = openvino.Dimension()
        if heads.is_static and channels.is_static:
            width = openvino.Dimension(heads.get_length() * channels.get_length())
        shape = openvino.PartialShape([value[0], logits[1], width])
        self.set_output_type(0, self.get_input_element_type(0), shape)

    def clone_with_new_inputs(self, new_inputs: Sequence[openvino.Output]) -> DeformableAttention:
        return DeformableAttention(new_inputs)

    def visit_attributes(self, visitor: object) -> bool:
        """Return True: there are no attributes."""
        return True

    def has_evaluate(self) -> bool:
        return True

    def evaluate(
        self, outputs: Sequence[openvino.Tensor], inputs: Sequence[openvino.Tensor]
    ) -> bool:
        """Compute the output on the CPU."""
        with torch.inference_mode():
            attended = ms_deform_attn_fused(*(torch.from_numpy(x.data) for x in inputs))
        outputs[0].shape = list(attended.shape)
        outputs[0].data[:] = attended.numpy()
        return True


def add_operator(core: openvino.Core) -> None:
    """Let OpenVINO read files with the operator, its own and those of ONNX."""
    core.add_extension(DeformableAttention)
    core.add_extension(ConversionExtension(OPERATOR, DOMAIN, convert))


def convert(node: NodeContext) -> list[openvino.Output]:
    """Return the outputs of a node of ONNX in OpenVINO."""
    inputs = [node.get_input(i) for i in range(node.get_input_size())]
    outputs: list[openvino.Output] = DeformableAttention(inputs).outputs()
    return outputs
