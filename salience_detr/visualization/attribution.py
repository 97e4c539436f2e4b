"""Attribution: what in an image speaks for the class of a detection, by gradients, as Grad-CAM.

Symbols: L levels, N queries, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from torch import Tensor

from salience_detr.data.images import ImageLike, to_rgb
from salience_detr.detector import prepare_input
from salience_detr.modeling import SalienceDETR
from salience_detr.modeling.masks import padding_mask
from salience_detr.modeling.structures import Encoding, ModelInput
from salience_detr.predictor import Predictor
from salience_detr.visualization.capture import captured_calls
from salience_detr.visualization.inside import (
    best_queries,
    check_predictor,
    check_query,
    describe_query,
    pixel_boxes,
    to_numpy,
    unpadded_level_sizes,
)
from salience_detr.visualization.panels import (
    draw_box,
    new_sheet,
    palette_color,
    render,
    resize_map,
    show_image,
)


@dataclass(frozen=True)
class Attribution:
    """Maps of what speaks for the best class of a query, in logits, to first order.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        query: number of the query, in the order of the selection.
        class_name: name of its best class.
        score: score of that class, in [0, 1].
        box: (4,) xyxy in pixels of the image, after the last decoder layer.
        memory_levels: L maps, without padding: the sum over channels of encoder memory times
            gradient at each token, 0 where negative. It is 0 where the decoder reads nothing for
            this query.
        backbone_levels: maps of the backbone, without padding, weighed as in Grad-CAM: the sum
            over channels of the map times its channel's mean gradient, 0 where negative. They
            tell the class from others better than this object from others of its class.
    """

    image: np.ndarray
    query: int
    class_name: str
    score: float
    box: np.ndarray
    memory_levels: tuple[np.ndarray, ...]
    backbone_levels: tuple[np.ndarray, ...]

    @property
    def memory(self) -> np.ndarray:
        """Return the (H, W) float32 sum of the memory's levels; its maximum is 1, or all is 0."""
        return merge_levels(self.memory_levels, self.image)

    @property
    def backbone(self) -> np.ndarray:
        """Return the (H, W) float32 sum of the backbone's maps, scaled like :attr:`memory`."""
        return merge_levels(self.backbone_levels, self.image)


def merge_levels(levels: Sequence[np.ndarray], image: np.ndarray) -> np.ndarray:
    """Sum maps over the whole image, and divide by the maximum: (H, W) float32."""
    total = np.stack([resize_map(level, image) for level in levels]).sum(axis=0, dtype=np.float32)
    return total / (total.max() or 1)


def class_activation(
    predictor: Predictor,
    image: ImageLike,
    *,
    queries: Sequence[int] | None = None,
    count: int = 3,
    score_threshold: float = 0.3,
    channel_order: str = "RGB",
) -> list[Attribution]:
    """Compute what in an image speaks for each of several detections.

    The gradient is that of the logit of a query's best class, after the last decoder layer.
    Attention reads few places, which a mean over all places would blur: so the memory is weighed
    by the gradient at each token. Only the backbone, which no query reads directly, is weighed by
    the mean.

    Args:
        predictor: the predictor.
        image: a path, PIL image, array or tensor, see :func:`salience_detr.data.images.to_rgb`.
        queries: numbers of the queries; by default those of the best detections.
        count: largest number of best detections.
        score_threshold: lowest score of best detections; the first is taken even if below.
        channel_order: "RGB" or "BGR", of arrays and tensors.

    Raises:
        ImageReadError: a file cannot be read.
        IndexError: there is no such query.
        ValueError, TypeError: ``image`` is no image, or ``predictor`` is none.
    """
    check_predictor(predictor)
    pixels = to_rgb(image, channel_order, predictor.mapper.value_range)

    with torch.inference_mode(False), torch.enable_grad(), predictor.precision():
        outputs = run_with_gradients(predictor.model, prepare_input(predictor.mapper, pixels))
        if queries is None:
            queries = best_queries(outputs.scores, count, score_threshold)

        return [attribute(outputs, pixels, query, predictor.class_names) for query in queries]


@dataclass(frozen=True)
class DifferentiableOutputs:
    """Outputs of one pass over one image that can be differentiated.

    Attributes:
        encoding: encoding of the image.
        backbone_maps: (1, D_l, H_l, W_l) each.
        backbone_sizes: (height, width) of each map without padding.
        pred_logits: (N, K) of the last decoder layer.
        pred_boxes: (N, 4) (cx, cy, w, h), normalized, detached.
    """

    encoding: Encoding
    backbone_maps: list[Tensor]
    backbone_sizes: list[tuple[int, int]]
    pred_logits: Tensor
    pred_boxes: Tensor

    @property
    def scores(self) -> np.ndarray:
        """Return the (N, K) class scores in [0, 1]."""
        return to_numpy(self.pred_logits.float().sigmoid())


def run_with_gradients(model: SalienceDETR, inputs: ModelInput) -> DifferentiableOutputs:
    """Run a model in evaluation mode on one input, with a graph for gradients."""
    images = model.preprocess_image([inputs])

    # With a frozen backbone, and parameters that need no gradients, there would be no graph.
    images.tensor.requires_grad_()

    with captured_calls(model.backbone) as calls:
        encoding = model.encode(images.tensor, padding_mask(images))
    predictions = model.decode(encoding)

    maps = list(calls[-1].output.values())
    return DifferentiableOutputs(
        encoding=encoding,
        backbone_maps=maps,
        backbone_sizes=unpadded_sizes(maps, images.image_sizes[0], images.tensor),
        pred_logits=predictions.pred_logits[-1, 0],
        pred_boxes=predictions.pred_boxes[-1, 0].detach(),
    )


def attribute(
    outputs: DifferentiableOutputs, image: np.ndarray, query: int, class_names: Sequence[str]
) -> Attribution:
    """Compute the maps of one query."""
    logits = outputs.pred_logits[check_query(query, len(outputs.pred_logits))]
    tokens = outputs.encoding.tokens
    memory = outputs.encoding.memory

    # The graph is kept for the next query.
    memory_gradient, *map_gradients = torch.autograd.grad(
        logits.max(), [memory, *outputs.backbone_maps], retain_graph=True
    )

    memory_maps = tokens.to_maps(memory.detach() * memory_gradient)
    backbone_maps = weigh_by_mean(outputs.backbone_maps, map_gradients, outputs.backbone_sizes)

    return Attribution(
        image=image,
        query=query,
        class_name=class_names[int(logits.argmax())],
        score=float(outputs.scores[query].max()),
        box=pixel_boxes(outputs.pred_boxes[query], image.shape[:2]),
        memory_levels=positive_sums(memory_maps, unpadded_level_sizes(tokens)),
        backbone_levels=positive_sums(backbone_maps, outputs.backbone_sizes),
    )


def unpadded_sizes(
    maps: Sequence[Tensor], size: tuple[int, int], padded: Tensor
) -> list[tuple[int, int]]:
    """Return (height, width) of the part of each map that an image fills.

    Args:
        maps: (1, D, H_l, W_l) maps of a padded image.
        size: (height, width) of the image.
        padded: (1, 3, H, W) the padded image.
    """
    height_part = size[0] / padded.shape[-2]
    width_part = size[1] / padded.shape[-1]

    sizes = []
    for x in maps:
        height, width = x.shape[-2:]
        sizes.append((max(1, round(height * height_part)), max(1, round(width * width_part))))
    return sizes


def weigh_by_mean(
    maps: Sequence[Tensor], gradients: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Multiply maps (1, D, H_l, W_l) by each channel's mean gradient over the unpadded part."""
    weighed = []
    for x, gradient, (height, width) in zip(maps, gradients, sizes, strict=True):
        mean = gradient[..., :height, :width].mean((2, 3), keepdim=True)
        weighed.append(x.detach() * mean)
    return weighed


def positive_sums(
    maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, ...]:
    """Sum maps (1, D, H_l, W_l) over channels, 0 where negative, without padding: (h, w) each."""
    sums = []
    for x, (height, width) in zip(maps, sizes, strict=True):
        sums.append(to_numpy(x[0, :, :height, :width].float().sum(0).relu()))
    return tuple(sums)


def draw_attribution(attributions: Sequence[Attribution]) -> np.ndarray:
    """Draw a row for each detection: its box, its memory's map and its backbone's map.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: there are no attributions.
    """
    if not attributions:
        raise ValueError(
            "there is no attribution to draw; class_activation gives one for each query"
        )

    heading = "What speaks for the class of a detection (by gradients; each map has its own scale)"
    shape = attributions[0].image.shape
    figure, axes = new_sheet(heading, 3 * len(attributions), shape, columns=3, side=420)
    for i, x in enumerate(attributions):
        name = describe_query(x.query, x.class_name, x.score)

        # A row of three panels for each detection.
        box_panel, memory_panel, backbone_panel = axes[3 * i : 3 * i + 3]
        show_image(box_panel, x.image, name)
        show_image(memory_panel, x.image, f"{name}: encoder memory", heat=x.memory)
        show_image(backbone_panel, x.image, f"{name}: backbone (Grad-CAM)", heat=x.backbone)
        for panel in (box_panel, memory_panel, backbone_panel):
            draw_box(panel, x.box, palette_color(i))

    bar = figure.colorbar(ScalarMappable(cmap="viridis"), ax=axes, location="bottom", shrink=0.4)
    bar.set_ticks([0, 1], labels=["nothing", "most"])
    return render(figure)
