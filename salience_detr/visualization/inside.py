"""What happens inside the model on one image, in pixels of that image.

Symbols: L levels, S tokens, n selected tokens, N queries, K classes, I decoder layers, M heads, P sampling points per
head and level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from salience_detr.data.images import ImageLike, to_rgb
from salience_detr.data.mapper import as_tensor
from salience_detr.layers.box_ops import box_cxcywh_to_xyxy
from salience_detr.layers.ms_deform_attn import sampling_locations_from_offsets
from salience_detr.modeling.salience_detr import Encoding, SalienceDETR, padding_mask
from salience_detr.modeling.token_pyramid import TokenPyramid, gather_tokens
from salience_detr.visualization.capture import captured_output

if TYPE_CHECKING:
    from salience_detr.predictor import Predictor


@dataclass(frozen=True)
class TokenCells:
    """Tokens of an image.

    Attributes:
        levels: (n,) int64, 0 is the finest.
        grid: (n, 2) int64 (column, row) on the level.
        cells: (n, 4) xyxy in pixels of the image, the part that the token stands for, around its center.
    """

    levels: np.ndarray
    grid: np.ndarray
    cells: np.ndarray

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def centers(self) -> np.ndarray:
        """(n, 2) (x, y) in pixels of the image."""
        return (self.cells[:, :2] + self.cells[:, 2:]) / 2


@dataclass(frozen=True)
class ProposedBoxes:
    """Tokens that become queries, best first, and the boxes that they propose.

    Attributes:
        tokens: (N,) of them.
        boxes: (N, 4) xyxy in pixels of the image, not clipped.
    """

    tokens: TokenCells
    boxes: np.ndarray


@dataclass(frozen=True)
class SamplingPoints:
    """Where the queries of a decoder layer read the memory.

    Attributes:
        locations: (N, M, L, P, 2) (x, y) in pixels of the image; they may lie outside.
        weights: (N, M, L, P) attention, which sums to 1 over the levels and points of a head.
    """

    locations: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Inspection:
    """What one pass over one image saw. Queries are numbered from 0 in the order of their selection.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        class_names: of the K classes.
        input_size: (height, width) in pixels that the model was given, without padding.
        strides: pixels of the model's input per token, of each level.
        level_sizes: (height, width) in tokens of each level, without padding.
        salience: L maps, each (height, width) of its level, in [0, 1].
        tokens: (n,) that the encoder refines, by falling salience.
        token_layers: (n,) int64, how many encoder layers refine each.
        layer_counts: tokens that each encoder layer refines.
        proposals: of the N queries.
        plain_proposals: what the N tokens with the best classes would propose if neighbors were not suppressed.
        layer_boxes: (I + 1, N, 4) xyxy in pixels of the image, not clipped: what the decoder starts from, then the
            boxes after each of its layers.
        scores: (N, K) of the last layer, in [0, 1].
        sampling: points of each decoder layer.
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
        """See :func:`best_queries`."""
        return best_queries(self.scores, count, score_threshold)

    def describe(self, query: int) -> str:
        """The number of a query, its best class, and that one's score.

        Raises:
            IndexError: there is no such query.
        """
        scores = self.scores[check_query(query, len(self.scores))]
        return describe_query(query, self.class_names[int(scores.argmax())], float(scores.max()))


def best_queries(scores: np.ndarray, count: int, score_threshold: float = 0.0) -> list[int]:
    """At most ``count`` queries by the falling score of their best class; the first even if it is below the threshold.

    Args:
        scores: (N, K).
        count: at least 1.
        score_threshold: that the best class of a query must reach.
    """
    best = scores.max(axis=1)
    ranking = np.argsort(-best, kind="stable")[:count].tolist()
    return [query for i, query in enumerate(ranking) if i == 0 or best[query] >= score_threshold]


def describe_query(query: int, class_name: str, score: float) -> str:
    return f"#{query} {class_name} {score:.0%}"


def check_query(query: int, count: int) -> int:
    """The query itself.

    Raises:
        IndexError: it is none of the ``count`` queries.
    """
    if not 0 <= query < count:
        raise IndexError(
            f"there is no query {query}: this image has {count} queries, numbered from 0"
        )
    return query


def inspect(
    source: Predictor | SalienceDETR, image: ImageLike, *, channel_order: str = "RGB"
) -> Inspection:
    """Run the model on one image and keep what happens on the way.

    The model's modules are watched meanwhile: no other thread may use it.

    Args:
        source: a predictor; or a model, which is given the image in the size that it has.
        image: a path, a PIL image, an array or a tensor (see :func:`salience_detr.images.to_rgb`).
        channel_order: of arrays and tensors, "RGB" or "BGR".

    Raises:
        ImageReadError: a file cannot be read.
        ValueError, TypeError: no image, or a source that is neither.
    """
    pixels = to_rgb(image, channel_order)
    opened = open_source(source)
    with torch.no_grad(), opened.evaluation():
        return inspect_input(opened.model, opened.prepare(pixels), pixels, opened.class_names)


@dataclass(frozen=True)
class Source:
    """A model with what is needed to give it an image.

    Attributes:
        model: the model.
        class_names: of its classes.
        predictor: that it belongs to, if any.
    """

    model: SalienceDETR
    class_names: tuple[str, ...]
    predictor: Predictor | None = None

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """The model's input for an (H, W, 3) uint8 RGB image."""
        if self.predictor is not None:
            from salience_detr.predictor import prepare_input  # which imports this package

            return prepare_input(self.predictor.mapper, image)
        ordered = image[..., ::-1] if self.model.input_format == "BGR" else image
        return {"image": as_tensor(ordered), "height": image.shape[0], "width": image.shape[1]}

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Evaluation mode, in the predictor's precision."""
        precision: AbstractContextManager[Any] = (
            nullcontext() if self.predictor is None else self.predictor.precision()
        )
        was_training = self.model.training
        self.model.eval()
        try:
            with precision:
                yield
        finally:
            self.model.train(was_training)


def open_source(source: Predictor | SalienceDETR) -> Source:
    """The model of a predictor, or a model itself.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(source, SalienceDETR):
        return Source(source, tuple(str(i) for i in range(source.num_classes)))
    model = getattr(source, "model", None)
    if not isinstance(model, SalienceDETR):
        raise TypeError(
            f"only a Predictor or a SalienceDETR can be looked into, not a {type(source).__name__}: an exported model "
            "keeps nothing of what happens inside it"
        )
    return Source(model, tuple(source.class_names), source)


def inspect_input(
    model: SalienceDETR, inputs: dict[str, Any], image: np.ndarray, class_names: Sequence[str]
) -> Inspection:
    """The same for a model in evaluation mode and the input that stands for an image."""
    height, width = image.shape[:2]
    images = model.preprocess_images([inputs])
    encoding = model.encode(images.tensor, padding_mask(images))
    tokens, selection, proposals = encoding.tokens, encoding.selection, encoding.proposals
    with watched_decoder(model) as watched:
        predictions = model.decode(encoding)
    references = [box / tokens.valid_ratios[:, 0].repeat(1, 2) for box in watched.references()]
    pixels = pixel_scale(proposals.boxes, width, height)
    boxes = torch.stack([x[0] for x in [*references, predictions.boxes[-1]]])
    index = selection.token_index[0, : selection.counts[0]]
    layer_counts = [counts[0] for counts in selection.layer_counts]
    level_sizes = [(int(h), int(w)) for w, h in tokens.valid_sizes[0].tolist()]
    ranks = np.arange(len(index))
    maps = zip(selection.score_maps, level_sizes, strict=True)
    return Inspection(
        image=image,
        class_names=tuple(class_names),
        input_size=tuple(images.image_sizes[0]),
        # A size that every stride divides shows the strides.
        strides=tuple(2**12 // rows for rows, _ in model.level_shapes(2**12, 2**12)),
        level_sizes=tuple(level_sizes),
        salience=tuple(to_numpy(x[0, :h, :w].float().sigmoid()) for x, (h, w) in maps),
        tokens=token_cells(tokens, index, width, height),
        token_layers=(ranks < np.array(layer_counts)[:, None]).sum(0),
        layer_counts=tuple(layer_counts),
        proposals=ProposedBoxes(
            token_cells(tokens, proposals.token_index[0], width, height),
            to_numpy(box_cxcywh_to_xyxy(proposals.boxes[0]) * pixels),
        ),
        plain_proposals=propose_plainly(model, encoding, width, height),
        layer_boxes=to_numpy(box_cxcywh_to_xyxy(boxes) * pixels),
        scores=to_numpy(predictions.logits[-1, 0].float().sigmoid()),
        sampling=tuple(watched.sampling(tokens, width, height)),
    )


def propose_plainly(
    model: SalienceDETR, encoding: Encoding, width: int, height: int
) -> ProposedBoxes:
    """The proposals of the tokens with the best classes, as many as there are queries, neighbors or not."""
    select, tokens = model.query_selection, encoding.tokens
    output_memory = model.token_projection(encoding.memory, tokens.valid_proposals)
    scores = select.class_head(output_memory).amax(-1)
    index = scores.topk(encoding.proposals.token_index.shape[1], dim=1).indices
    boxes = select.propose_boxes(gather_tokens(output_memory, index), index, tokens)
    pixels = pixel_scale(boxes, width, height)
    return ProposedBoxes(
        token_cells(tokens, index[0], width, height),
        to_numpy(box_cxcywh_to_xyxy(boxes[0]) * pixels),
    )


def token_cells(tokens: TokenPyramid, index: Tensor, width: int, height: int) -> TokenCells:
    """The cells of the tokens (n,) of the first image of a batch, which has ``width`` x ``height`` pixels."""
    level, grid = tokens.token_level[index], tokens.token_xy[index]
    side = pixel_scale(tokens.valid_sizes, width, height)[:2] / tokens.valid_sizes[0, level]
    cells = torch.cat([grid * side, (grid + 1) * side], dim=1)
    return TokenCells(to_numpy(level), to_numpy(grid), to_numpy(cells))


def pixel_scale(like: Tensor, width: int, height: int) -> Tensor:
    """(4,) of what normalized xyxy are to be multiplied by."""
    return torch.tensor([width, height, width, height], dtype=like.dtype, device=like.device)


def to_numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()


class WatchedDecoder:
    """What the cross-attention of each decoder layer was given, in one pass over one image."""

    def __init__(self, model: SalienceDETR, stack: ExitStack) -> None:
        self.attentions: list[Any] = [layer.cross_attention for layer in model.decoder.layers]
        self.inputs = [stack.enter_context(captured_inputs(x)) for x in self.attentions]
        self.offsets = [
            stack.enter_context(captured_output(x.sampling_offsets)) for x in self.attentions
        ]
        self.logits = [
            stack.enter_context(captured_output(x.attention_weights)) for x in self.attentions
        ]

    def references(self) -> list[Tensor]:
        """For each layer (1, N, 4) reference boxes (cx, cy, w, h), normalized by the padded map of the first level."""
        return [calls[-1][1][:, :, 0] for calls in self.inputs]

    def sampling(self, tokens: TokenPyramid, width: int, height: int) -> Iterator[SamplingPoints]:
        """The points of each layer on an image of ``width`` x ``height`` pixels."""
        for attention, calls, offsets, logits in zip(
            self.attentions, self.inputs, self.offsets, self.logits, strict=True
        ):
            samples = (attention.num_heads, attention.num_levels, attention.num_points)
            shift = offsets[-1].float().unflatten(-1, (*samples, 2))
            padded = sampling_locations_from_offsets(calls[-1][1], shift, tokens.spatial_shapes)[0]
            # (L, 1, 2): each level has its own padding.
            locations = (
                padded / tokens.valid_ratios[0][:, None] * pixel_scale(padded, width, height)[:2]
            )
            weights = logits[-1][0].float().unflatten(-1, (attention.num_heads, -1)).softmax(-1)
            yield SamplingPoints(to_numpy(locations), to_numpy(weights.unflatten(-1, samples[1:])))


@contextmanager
def watched_decoder(model: SalienceDETR) -> Iterator[WatchedDecoder]:
    """Watches the decoder inside the block."""
    with ExitStack() as stack:
        yield WatchedDecoder(model, stack)


@contextmanager
def captured_inputs(module: nn.Module) -> Iterator[list[tuple[Any, ...]]]:
    """Collects the positional arguments that the module is called with inside the block."""
    calls: list[tuple[Any, ...]] = []
    handle = module.register_forward_pre_hook(lambda _module, inputs: calls.append(inputs))
    try:
        yield calls
    finally:
        handle.remove()
