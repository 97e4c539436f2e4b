"""Outputs of each stage of the model on one image, in pixels of that image.

Symbols: L levels, S tokens, n selected tokens, N queries, K classes, I decoder layers, M heads,
P sampling points per head and level.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from salience_detr.data.images import ImageLike, to_rgb
from salience_detr.detector import prepare_input
from salience_detr.layers.box_ops import box_cxcywh_to_xyxy
from salience_detr.layers.ms_deform_attn import (
    MultiScaleDeformableAttention,
    sampling_locations_from_offsets,
)
from salience_detr.modeling import SalienceDETR
from salience_detr.modeling.masks import padding_mask
from salience_detr.modeling.structures import Encoding
from salience_detr.modeling.token_pyramid import TokenPyramid, gather_tokens
from salience_detr.predictor import Predictor
from salience_detr.visualization.capture import captured_calls


@dataclass(frozen=True)
class TokenCells:
    """Tokens of an image.

    Attributes:
        levels: (n,) int64 level of each token, 0 is the finest.
        grid: (n, 2) int64 (column, row) on the level.
        cells: (n, 4) xyxy, the part of the image around the token's center, in pixels.
    """

    levels: np.ndarray
    grid: np.ndarray
    cells: np.ndarray

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def centers(self) -> np.ndarray:
        """Return (n, 2) (x, y) in pixels of the image."""
        return (self.cells[:, :2] + self.cells[:, 2:]) / 2


@dataclass(frozen=True)
class ProposedBoxes:
    """Tokens that become queries, best first, and the boxes that they propose.

    Attributes:
        tokens: the N tokens.
        boxes: (N, 4) xyxy in pixels of the image, not clipped.
    """

    tokens: TokenCells
    boxes: np.ndarray


@dataclass(frozen=True)
class SamplingPoints:
    """Points at which the queries of a decoder layer read the memory.

    Attributes:
        locations: (N, M, L, P, 2) (x, y) in pixels of the image; some may lie outside.
        weights: (N, M, L, P) attention, which sums to 1 over the levels and points of a head.
    """

    locations: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class StageOutputs:
    """Outputs of the model's stages on one image.

    Queries are numbered from 0 in the order of their selection.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        class_names: names of the K classes.
        input_size: (height, width) of the model's input in pixels, without padding.
        strides: pixels of the model's input per token, of each level.
        level_sizes: (height, width) of each level in tokens, without padding.
        salience: L maps in [0, 1], each of the (height, width) of its level.
        tokens: the n tokens that the encoder refines, most salient first.
        token_layers: (n,) int64 number of encoder layers that refine each token.
        layer_counts: number of tokens that each encoder layer refines.
        proposals: tokens and initial boxes of the N queries.
        plain_proposals: the N tokens with the best class scores, no neighbors suppressed.
        layer_boxes: (I + 1, N, 4) xyxy in pixels of the image, not clipped: the decoder's initial
            boxes, then the boxes after each of its layers.
        scores: (N, K) class scores of the last decoder layer, in [0, 1].
        sampling: sampling points of each decoder layer.
    """

    image: np.ndarray
    class_names: tuple[str, ...]
    input_size: tuple[int, int]
    strides: tuple[int, ...]
    level_sizes: tuple[tuple[int, int], ...]
    salience: tuple[np.ndarray, ...]
    tokens: TokenCells
    token_layers: np.ndarray
    layer_counts: tuple[int, ...]
    proposals: ProposedBoxes
    plain_proposals: ProposedBoxes
    layer_boxes: np.ndarray
    scores: np.ndarray
    sampling: tuple[SamplingPoints, ...]

    @property
    def level_names(self) -> tuple[str, ...]:
        return tuple(f"level {i + 1}, stride {stride}" for i, stride in enumerate(self.strides))

    def best_queries(self, count: int, *, score_threshold: float = 0.0) -> list[int]:
        """Return at most ``count`` queries, best first, see :func:`best_queries`."""
        return best_queries(self.scores, count, score_threshold)

    def describe(self, query: int) -> str:
        """Describe a query by its number, its best class and the score of that class.

        Raises:
            IndexError: there is no such query.
        """
        scores = self.scores[check_query(query, len(self.scores))]
        return describe_query(query, self.class_names[int(scores.argmax())], float(scores.max()))


def best_queries(scores: np.ndarray, count: int, score_threshold: float = 0.0) -> list[int]:
    """Return at most ``count`` queries, by the falling score of their best class.

    Args:
        scores: (N, K).
        count: at least 1.
        score_threshold: lowest score of the queries; the first is returned even if below.
    """
    best = scores.max(axis=1)
    ranking = np.argsort(-best, kind="stable")[:count]
    num_confident = int((best[ranking] >= score_threshold).sum())
    return ranking[: max(1, num_confident)].tolist()


def describe_query(query: int, class_name: str, score: float) -> str:
    return f"#{query} {class_name} {score:.0%}"


def check_query(query: int, count: int) -> int:
    """Return the query.

    Raises:
        IndexError: it is none of the ``count`` queries.
    """
    if not 0 <= query < count:
        raise IndexError(
            f"there is no query {query}: this image has {count} queries, numbered from 0"
        )
    return query


def inspect(predictor: Predictor, image: ImageLike, *, channel_order: str = "RGB") -> StageOutputs:
    """Run a predictor's model on one image, and return what each stage computed.

    The model's modules have hooks meanwhile: no other thread may use it.

    Args:
        predictor: the predictor.
        image: a path, PIL image, array or tensor, see :func:`salience_detr.data.images.to_rgb`.
        channel_order: "RGB" or "BGR", of arrays and tensors.

    Raises:
        ImageReadError: a file cannot be read.
        ValueError, TypeError: ``image`` is no image, or ``predictor`` is none.
    """
    check_predictor(predictor)
    pixels = to_rgb(image, channel_order, predictor.mapper.value_range)

    with torch.no_grad(), predictor.precision():
        return run_stages(predictor, pixels)


def check_predictor(detector: Any) -> None:
    """Raise TypeError if a detector isn't a predictor; the others run exported models."""
    if not isinstance(detector, Predictor):
        raise TypeError(
            f"only a Predictor can be looked into, not a {type(detector).__name__}: an exported "
            "model keeps nothing of what happens inside it"
        )


def run_stages(predictor: Predictor, image: np.ndarray) -> StageOutputs:
    """Run a predictor's model on an (H, W, 3) uint8 RGB image."""
    model = predictor.model
    size = image.shape[:2]
    images = model.preprocess_image([prepare_input(predictor.mapper, image)])
    encoding = model.encode(images.tensor, padding_mask(images))
    tokens = encoding.tokens
    selection = encoding.selection
    proposals = encoding.proposals

    # The cross-attention of each layer is called with its queries and their reference boxes.
    layers: list[Any] = list(model.decoder.layers)
    attentions = [layer.cross_attention for layer in layers]
    with ExitStack() as stack:
        calls = [stack.enter_context(captured_calls(attention)) for attention in attentions]
        predictions = model.decode(encoding)

    # Where each layer reads, and the boxes that it starts from.
    sampling = []
    boxes = []
    valid_ratio = tokens.valid_ratios[0, 0].repeat(2)
    for attention, layer_calls in zip(attentions, calls, strict=True):
        query, reference_points = layer_calls[-1].inputs[:2]
        sampling.append(sampling_points(attention, query, reference_points, tokens, size))

        # Normalized by the padded map of each level; those of the first are taken.
        boxes.append(reference_points[0, :, 0] / valid_ratio)
    boxes.append(predictions.pred_boxes[-1, 0])

    # Each encoder layer refines the most salient of the tokens, fewer from layer to layer.
    token_index = selection.token_index[0, : selection.counts[0]]
    layer_counts = [counts[0] for counts in selection.layer_counts]
    token_layers = (np.arange(len(token_index)) < np.array(layer_counts)[:, None]).sum(0)

    # Logits become salience, and padding is cut off.
    level_sizes = unpadded_level_sizes(tokens)
    salience = []
    for score_map, (height, width) in zip(selection.score_maps, level_sizes, strict=True):
        salience.append(to_numpy(score_map[0, :height, :width].float().sigmoid()))

    return StageOutputs(
        image=image,
        class_names=tuple(predictor.class_names),
        input_size=tuple(images.image_sizes[0]),
        # A size that every stride divides shows the strides.
        strides=tuple(2**12 // rows for rows, _ in model.spatial_shapes_list(2**12, 2**12)),
        level_sizes=tuple(level_sizes),
        salience=tuple(salience),
        tokens=token_cells(tokens, token_index, size),
        token_layers=token_layers,
        layer_counts=tuple(layer_counts),
        proposals=ProposedBoxes(
            token_cells(tokens, proposals.token_index[0], size),
            pixel_boxes(proposals.pred_boxes[0], size),
        ),
        plain_proposals=propose_plainly(model, encoding, size),
        layer_boxes=pixel_boxes(torch.stack(boxes), size),
        scores=to_numpy(predictions.pred_logits[-1, 0].float().sigmoid()),
        sampling=tuple(sampling),
    )


def sampling_points(
    attention: MultiScaleDeformableAttention,
    query: Tensor,
    reference_points: Tensor,
    tokens: TokenPyramid,
    size: tuple[int, int],
) -> SamplingPoints:
    """Compute where the queries of a decoder layer look, on an image of a size (height, width).

    Args:
        attention: cross-attention of the layer.
        query: (1, N, D) queries with their positions, as the attention gets them.
        reference_points: (1, N, L, 4) reference boxes, normalized by the padded maps.
        tokens: the memory's tokens.
        size: of the image in pixels.
    """
    samples = (attention.num_heads, attention.num_levels, attention.num_points)
    offsets = attention.sampling_offsets(query).float().unflatten(-1, (*samples, 2))

    locations = sampling_locations_from_offsets(reference_points, offsets, tokens.spatial_shapes)[0]
    # From the padded maps to the image: (L, 1, 2), as each level has its own padding.
    locations = locations / tokens.valid_ratios[0][:, None] * pixel_scale(locations, size)[:2]

    logits = attention.attention_weights(query)[0].float()
    weights = logits.unflatten(-1, (attention.num_heads, -1)).softmax(-1)
    return SamplingPoints(to_numpy(locations), to_numpy(weights.unflatten(-1, samples[1:])))


def propose_plainly(
    model: SalienceDETR, encoding: Encoding, size: tuple[int, int]
) -> ProposedBoxes:
    """Return the proposals of the tokens with the best class scores, neighbors or not.

    There are as many as the model has selected queries.
    """
    tokens = encoding.tokens
    selection = model.query_selection
    output_memory = model.token_projection(encoding.memory, tokens.output_proposals_valid)

    # As the query selection does, but without its suppression of neighbors.
    scores = selection.class_head(output_memory).amax(-1)
    index = scores.topk(encoding.proposals.token_index.shape[1], dim=1).indices
    boxes = selection.propose_boxes(gather_tokens(output_memory, index), index, tokens)
    return ProposedBoxes(token_cells(tokens, index[0], size), pixel_boxes(boxes[0], size))


def token_cells(tokens: TokenPyramid, index: Tensor, size: tuple[int, int]) -> TokenCells:
    """Return the cells of tokens (n,) of a batch's first image, of a size (height, width)."""
    level = tokens.token_level[index]
    grid = tokens.token_xy[index]

    # A level without padding covers the image: its cells divide the image evenly.
    sides = pixel_scale(tokens.valid_sizes, size)[:2] / tokens.valid_sizes[0, level]
    cells = torch.cat([grid * sides, (grid + 1) * sides], dim=1)
    return TokenCells(to_numpy(level), to_numpy(grid), to_numpy(cells))


def unpadded_level_sizes(tokens: TokenPyramid) -> list[tuple[int, int]]:
    """Return (height, width) in tokens of each level of a batch's first image."""
    return [(int(height), int(width)) for width, height in tokens.valid_sizes[0].tolist()]


def pixel_boxes(boxes: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Convert (..., 4) normalized (cx, cy, w, h) to xyxy on an image of a size (height, width)."""
    return to_numpy(box_cxcywh_to_xyxy(boxes) * pixel_scale(boxes, size))


def pixel_scale(like: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the (4,) factors from normalized xyxy to pixels, in another tensor's dtype."""
    height, width = size
    return like.new_tensor([width, height, width, height])


def to_numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()
