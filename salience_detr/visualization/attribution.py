"""What of an image speaks for the class of a detection, by gradients: maps in the manner of Grad-CAM.

Symbols: L levels, N queries, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from salience_detr.data.images import ImageLike, to_rgb
from salience_detr.layers.box_ops import box_cxcywh_to_xyxy
from salience_detr.modeling.salience_detr import Encoding, SalienceDETR, padding_mask
from salience_detr.utils.drawing import draw_salience
from salience_detr.visualization.capture import captured_output
from salience_detr.visualization.inside import (
    best_queries,
    check_query,
    describe_query,
    open_source,
    pixel_scale,
    to_numpy,
)
from salience_detr.visualization.panels import LONG_SIDE, PALETTE, Panel, assemble, resize_map

if TYPE_CHECKING:
    from salience_detr.predictor import Predictor


@dataclass(frozen=True)
class Attribution:
    """What speaks for the best class of a query; the numbers are logits, to first order.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        query: its number, in the order of the selection.
        class_name: of its best class.
        score: of that class, in [0, 1].
        box: (4,) xyxy in pixels of the image, of the last decoder layer.
        memory_levels: L maps, without padding: at each token the sum over channels of encoder memory times gradient, 0
            where that is negative. It is 0 where the decoder reads nothing for this query.
        backbone_levels: maps of the backbone, without padding, as Grad-CAM weighs them: the sum over channels of the
            map times the mean gradient of its channel, 0 where negative. They tell the class from others better than
            this object from others of its class.
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
        """(H, W) float32 over the image: the sum of the levels; the highest value is 1, or all are 0."""
        return merge_levels(self.memory_levels, self.image)

    @property
    def backbone(self) -> np.ndarray:
        """The same of the backbone's maps."""
        return merge_levels(self.backbone_levels, self.image)


def merge_levels(levels: Sequence[np.ndarray], image: np.ndarray) -> np.ndarray:
    """Maps without padding -> (H, W) float32, their sum over the whole image, divided by its highest value."""
    height, width = image.shape[:2]
    total = np.sum([resize_map(x, width, height) for x in levels], axis=0, dtype=np.float32)
    highest = float(total.max())
    return np.asarray(total / highest if highest > 0 else total, dtype=np.float32)


def class_activation(
    source: Predictor | SalienceDETR,
    image: ImageLike,
    *,
    queries: Sequence[int] | None = None,
    count: int = 3,
    score_threshold: float = 0.3,
    channel_order: str = "RGB",
) -> list[Attribution]:
    """What of an image speaks for each of several detections.

    The gradient is that of the logit of a query's best class, after the last decoder layer. Attention spreads over few
    places, which a mean over all places would blur: so the memory is weighed by the gradient at each token, and only
    the backbone, which no query reads by itself, by the mean.

    Args:
        source: a predictor; or a model, which is given the image in the size that it has.
        image: a path, a PIL image, an array or a tensor (see :func:`salience_detr.images.to_rgb`).
        queries: their numbers; by default those of the best detections.
        count: of the best detections, at most.
        score_threshold: detections below are left out, but for the first one.
        channel_order: of arrays and tensors, "RGB" or "BGR".

    Raises:
        ImageReadError: a file cannot be read.
        IndexError: there is no such query.
        ValueError, TypeError: no image, or a source that is neither.
    """
    pixels = to_rgb(image, channel_order)
    opened = open_source(source)
    with torch.inference_mode(False), torch.enable_grad(), opened.evaluation():
        seen = run_with_gradients(opened.model, opened.prepare(pixels))
        chosen = best_queries(seen.scores, count, score_threshold) if queries is None else queries
        return [attribute(seen, pixels, query, opened.class_names) for query in chosen]


@dataclass(frozen=True)
class DifferentiablePass:
    """What one pass over one image leaves to differentiate.

    Attributes:
        encoding: of the image.
        backbone_maps: (1, D_l, H_l, W_l) each.
        backbone_sizes: (height, width) of each without padding.
        logits: (N, K) of the last decoder layer.
        boxes: (N, 4) (cx, cy, w, h), normalized.
    """

    encoding: Encoding
    backbone_maps: list[Tensor]
    backbone_sizes: list[tuple[int, int]]
    logits: Tensor
    boxes: Tensor

    @property
    def scores(self) -> np.ndarray:
        """(N, K) in [0, 1]."""
        return to_numpy(self.logits.float().sigmoid())


def run_with_gradients(model: SalienceDETR, inputs: dict[str, Any]) -> DifferentiablePass:
    """A pass of a model in evaluation mode over one input."""
    images = model.preprocess_images([inputs])
    images.tensor.requires_grad_()  # else a frozen backbone would leave nothing to differentiate
    with captured_output(model.backbone) as outputs:
        encoding = model.encode(images.tensor, padding_mask(images))
    predictions = model.decode(encoding)
    maps = list(outputs[-1].values())
    sizes = unpadded_sizes(maps, images.image_sizes[0], images.tensor)
    return DifferentiablePass(
        encoding, maps, sizes, predictions.logits[-1, 0], predictions.boxes[-1, 0].detach()
    )


def attribute(
    seen: DifferentiablePass, image: np.ndarray, query: int, class_names: Sequence[str]
) -> Attribution:
    """The maps of one query."""
    logits = seen.logits[check_query(query, len(seen.logits))]
    tokens, memory = seen.encoding.tokens, seen.encoding.memory
    gradients = torch.autograd.grad(logits.max(), [memory, *seen.backbone_maps], retain_graph=True)
    contributions = tokens.to_maps(memory.detach() * gradients[0])
    weighed = weigh_by_mean(seen.backbone_maps, gradients[1:], seen.backbone_sizes)
    pixels = pixel_scale(seen.boxes, image.shape[1], image.shape[0])
    return Attribution(
        image=image,
        query=query,
        class_name=class_names[int(logits.argmax())],
        score=float(seen.scores[query].max()),
        box=to_numpy(box_cxcywh_to_xyxy(seen.boxes[query]) * pixels),
        memory_levels=positive_sums(
            contributions, [(int(h), int(w)) for w, h in tokens.valid_sizes[0].tolist()]
        ),
        backbone_levels=positive_sums(weighed, seen.backbone_sizes),
    )


def unpadded_sizes(
    maps: Sequence[Tensor], size: tuple[int, int], padded: Tensor
) -> list[tuple[int, int]]:
    """(height, width) of the part of each map (1, D, H_l, W_l) that an image of ``size`` fills of a padded batch."""
    parts = [side / whole for side, whole in zip(size, padded.shape[-2:], strict=True)]
    return [
        (max(1, round(x.shape[-2] * parts[0])), max(1, round(x.shape[-1] * parts[1]))) for x in maps
    ]


def weigh_by_mean(
    maps: Sequence[Tensor], gradients: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Maps (1, D, H_l, W_l) times the mean gradient of each channel over the part that is no padding."""
    return [
        x.detach() * gradient[..., :h, :w].mean((2, 3), keepdim=True)
        for x, gradient, (h, w) in zip(maps, gradients, sizes, strict=True)
    ]


def positive_sums(
    maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, ...]:
    """Maps (1, D, H_l, W_l) -> their sums over the channels, 0 where negative, each (h, w) without padding."""
    return tuple(
        to_numpy(x[0, :, :h, :w].float().sum(0).relu())
        for x, (h, w) in zip(maps, sizes, strict=True)
    )


def draw_attribution(attributions: Sequence[Attribution]) -> np.ndarray:
    """(H, W, 3) uint8 RGB: for each detection a row with its box, and what speaks for its class in the encoder memory
    and in the backbone.

    Raises:
        ValueError: there are none.
    """
    if not attributions:
        raise ValueError(
            "there is no attribution to draw; class_activation gives one for each query"
        )
    panels = []
    for i, x in enumerate(attributions):
        color = PALETTE[i % len(PALETTE)]
        name = describe_query(x.query, x.class_name, x.score)
        for title, heat in (
            (name, None),
            (f"{name}: encoder memory", x.memory),
            (f"{name}: backbone (Grad-CAM)", x.backbone),
        ):
            image = x.image if heat is None else draw_salience(x.image, heat)
            panel = Panel(image, long_side=LONG_SIDE * 3 // 4)
            panel.box(x.box, color, 2)
            panels.append((title, panel.pixels))
    heading = "What speaks for the class of a detection (by gradients; each map has its own scale)"
    return assemble(panels, heading=heading, columns=3, heat=("nothing", "most"))
