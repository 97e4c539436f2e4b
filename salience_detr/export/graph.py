"""The model as one graph from tensors to tensors, for any number of images of any size.

Exporters record what a model computes for one input. A few parts of the model have shapes that
depend on the values in its tensors: they cut their results to what the images of a batch need. Here
are variants of these parts whose shapes depend on the shapes of the inputs alone: they pad to what
the size of the batch allows, and mask the padding. They replace the originals in a copy of the
model, so the model itself knows nothing of exports.

Symbols: B images, L levels, S tokens, D channels, K classes, N queries.
"""

from __future__ import annotations

import copy
import dataclasses
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from salience_detr.export import swin
from salience_detr.export.attention import SAMPLING, GridSampleAttention
from salience_detr.export.info import ExportError
from salience_detr.layers.box_ops import box_cxcywh_to_xyxy, clip_boxes
from salience_detr.layers.ms_deform_attn import MultiScaleDeformableAttention
from salience_detr.layers.operator import is_compiled_for
from salience_detr.layers.self_attention import additive_mask
from salience_detr.modeling import SalienceDETR
from salience_detr.modeling.encoder import BackgroundEmbedding, SalienceEncoderLayer
from salience_detr.modeling.postprocess import decay_scores, vote_boxes
from salience_detr.modeling.query_selection import QuerySelection
from salience_detr.modeling.salience import SalienceFilter
from salience_detr.modeling.salience_maps import merge_salience
from salience_detr.modeling.structures import Encoding
from salience_detr.modeling.token_pyramid import TokenPyramid, TokenPyramidBuilder

INPUTS = ("images", "image_sizes")
OUTPUTS = ("boxes", "scores", "labels", "salience")


class DetectionGraph(nn.Module):
    """A detector from tensors to tensors.

    Args:
        model: its structure is copied, its parameters are shared.
        sampling: how the deformable attention samples, a key of
            :data:`salience_detr.export.attention.SAMPLING`.

    Raises:
        ExportError: the operator that is to sample is not compiled.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: SalienceDETR, *, sampling: str = "grid_sample") -> None:
        super().__init__()
        if sampling == "operator" and not is_compiled_for("cpu"):
            raise ExportError(
                "--sampling operator needs the compiled operator; "
                "python ops/build.py builds it and reports errors"
            )

        self.model = exportable_copy(model, SAMPLING[sampling])
        mean = torch.tensor(model.pixel_mean)
        std = torch.tensor(model.pixel_std)
        self.register_buffer("pixel_mean", mean[:, None, None], persistent=False)
        self.register_buffer("pixel_std", std[:, None, None], persistent=False)

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect on a batch.

        Args:
            images: (B, 3, H, W) float32 in 0..255, channels in the model's ``input_format``, of any
                height and width. Smaller images are at the upper left; the rest does not matter.
            image_sizes: (B, 2) int64 (height, width) of each image in pixels, at most (H, W).

        Returns:
            ``boxes``: (B, n, 4) float32, absolute xyxy in pixels of ``images``, by falling score,
            clipped to the image;
            ``scores``: (B, n) float32. The last ones are 0 where there are fewer than n detections,
            where boxes have no area in the image, or where NMS leaves them out. A score of 0 is no
            detection;
            ``labels``: (B, n) int64;
            ``salience``: (B, ceil(H / 32) * 32 / s, ceil(W / 32) * 32 / s) float32 in [0, 1], where
            s is the stride of the finest level.
        """
        padded, padding = self.preprocess(images, image_sizes)
        encoding = self.model.encode(padded, padding)
        logits, boxes = self.decode(encoding)

        # The best (query, class) pairs, as salience_detr.modeling.postprocess selects them.
        scale = image_sizes.flip(-1).repeat(1, 2)[:, None].to(boxes.dtype)  # (w, h, w, h)
        scores, index = logits.sigmoid().flatten(1).topk(self.num_detections, dim=1)
        query = (index // self.model.num_classes)[..., None].expand(-1, -1, 4)
        absolute = clip_boxes((box_cxcywh_to_xyxy(boxes) * scale).gather(1, query), scale)
        labels = index % self.model.num_classes

        # Shapes are fixed: what is left out cannot be dropped, but comes last, with score 0.
        kept = (absolute[..., 2:] > absolute[..., :2]).all(-1)
        if self.model.nms_iou_threshold is not None:
            scores = torch.where(kept, scores, 0.0)
            threshold = self.model.nms_iou_threshold

            # A box that is NaN would spread to others.
            absolute = torch.where(kept[..., None], absolute, 0.0)

            if self.model.nms_soft:
                scores = decay_scores(absolute, scores, labels, threshold)
            else:
                kept = kept & self.suppress_duplicates(absolute, scores, labels)
            if self.model.nms_box_voting:
                absolute = vote_boxes(absolute, scores, labels, threshold)
        scores, order = torch.where(kept, scores, 0.0).sort(dim=1, descending=True, stable=True)
        absolute = absolute.gather(1, order[..., None].expand(-1, -1, 4))
        labels = labels.gather(1, order)

        salience = merge_salience(encoding.selection.score_maps)
        return absolute, scores, labels, salience

    def suppress_duplicates(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Return (B, n), True for the detections that the class-wise NMS keeps.

        Classes and images are laid so far apart that they never suppress each other.
        """
        batch, count = scores.shape
        width, height = boxes.amax((0, 1))[2:] + 1
        column = labels * width
        row = torch.arange(batch, device=boxes.device)[:, None] * height
        shift = torch.stack([column, row.expand_as(column)], dim=-1).repeat(1, 1, 2)

        kept = nms((boxes + shift).flatten(0, 1), scores.flatten(), self.model.nms_iou_threshold)
        return marked(kept, batch * count).view(batch, count)

    @property
    def num_detections(self) -> int:
        """Number n of detections per image."""
        return min(self.model.max_detections, self.model.num_queries * self.model.num_classes)

    def preprocess(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Normalize and pad to multiples of the model's divisor.

        Returns:
            (B, 3, H', W') images, 0 where padded, and (B, H', W'), True = padding.
        """
        divisor = self.model.size_divisibility
        height = (images.shape[-2] + divisor - 1) // divisor * divisor
        width = (images.shape[-1] + divisor - 1) // divisor * divisor

        missing = [0, width - images.shape[-1], 0, height - images.shape[-2]]
        normalized = F.pad((images - self.pixel_mean) / self.pixel_std, missing)

        rows = torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device)
        limits = image_sizes[:, :, None, None]
        padding = (rows[:, None] >= limits[:, 0]) | (columns >= limits[:, 1])
        return normalized.masked_fill(padding[:, None], 0.0), padding

    def decode(self, encoding: Encoding) -> tuple[Tensor, Tensor]:
        """Run the decoder.

        Returns:
            (B, N, K) logits, -inf for padded queries, and (B, N, 4) boxes of the last layer.
        """
        proposals = encoding.proposals
        valid = proposals.valid_mask

        query = self.model.query_embedding.expand(valid.shape[0], -1, -1)
        padding = ~valid[:, None].expand(-1, valid.shape[1], -1)
        predictions = self.model.decoder(
            query, proposals.pred_boxes, encoding.memory, encoding.tokens, attention_mask=padding
        )
        logits = predictions.pred_logits[-1].masked_fill(~valid[..., None], -torch.inf)
        return logits, predictions.pred_boxes[-1]


def marked(index: Tensor, length: int) -> Tensor:
    """Return (length,) bool, True at the indices."""
    marks = torch.zeros(length, dtype=torch.bool, device=index.device)
    return marks.index_fill(0, index, True)


def exportable_copy(model: SalienceDETR, attention: type[nn.Module]) -> Any:
    """Return a copy of a model with exportable parts; its parameters are the same tensors."""
    shared = {id(x): x for x in [*model.parameters(), *model.buffers()]}
    copied = copy.deepcopy(model, shared).eval()
    make_exportable(copied, attention)
    return copied


def make_exportable(model: nn.Module, attention: type[nn.Module] = GridSampleAttention) -> None:
    """Replace the classes of a model's parts, in place: the variants add no state."""
    variants = EXPORTABLE | {MultiScaleDeformableAttention: attention}
    for module in model.modules():
        module.__class__ = variants.get(type(module), type(module))


@dataclasses.dataclass(frozen=True)
class GraphTokens(TokenPyramid):
    """Tokens of maps with unknown sides: nothing is computed from the numbers of the shapes."""

    @cached_property
    def spatial_shapes(self) -> Any:
        """Shapes (H_l, W_l) as the attention takes them."""
        return self.spatial_shapes_list

    @cached_property
    def level_start_index(self) -> Any:
        """None: the attention splits the tokens by their shapes."""
        return None

    @cached_property
    def token_level(self) -> Tensor:
        levels = []
        for level, size in enumerate(self.level_sizes):
            levels.append(torch.full((size,), level, device=self.features.device))
        return torch.cat(levels)

    @cached_property
    def valid_ratios(self) -> Tensor:
        ratios = []
        for level, (height, width) in enumerate(self.spatial_shapes_list):
            valid = self.valid_sizes[:, level]
            ratios.append(torch.stack([valid[:, 0] / width, valid[:, 1] / height], dim=-1))
        return torch.stack(ratios, dim=1)


class GraphTokenPyramidBuilder(TokenPyramidBuilder):
    """A builder of :class:`GraphTokens`."""

    pyramid_class = GraphTokens


class GraphSalienceFilter(SalienceFilter):
    """A salience filter whose lengths follow from the shapes of the levels."""

    def num_kept(self, tokens: TokenPyramid) -> Tensor:
        # OpenVINO 2026.4 multiplies a reduced product by the ratios of the wrong levels.
        width, height = tokens.valid_sizes.unbind(-1)
        ratios = torch.tensor(self.level_ratios, dtype=torch.float64, device=width.device)
        return (width * height * ratios).long()

    def max_selected(self, level_counts: Tensor, tokens: TokenPyramid) -> int:
        """Return a length that holds the tokens of images without padding."""
        length = 0
        for size, ratio in zip(tokens.level_sizes, self.level_ratios, strict=True):
            length += portion(size, ratio)
        return length

    def max_refined(self, length: int, layer: int) -> int:
        return portion(length, self.layer_ratios[layer])


def portion(size: int, ratio: float) -> int:
    """Return a part of a size, rounded up, by integers only, which a graph can record."""
    exact = Fraction(ratio).limit_denominator(10_000)
    return -(-size * exact.numerator // exact.denominator)


class GraphEncoderLayer(SalienceEncoderLayer):
    """An encoder layer for unknown lengths, which masks the padding of a single image, too."""

    def count_topk(self, length: int) -> Any:
        return torch.sym_min(self.num_topk, length)

    def attention_mask(self, padding: Tensor, like: Tensor) -> Tensor:
        return additive_mask(padding[:, None], like)


class GraphBackgroundEmbedding(BackgroundEmbedding):
    """A background embedding that stretches its tables by arithmetic on unknown sizes.

    Tables that are large enough stay as they are.
    """

    @staticmethod
    def _table(table: Tensor, size: int) -> Tensor:
        entries = table.shape[0]
        number = torch.arange(size, dtype=torch.float32, device=table.device)
        position = number * ((entries - 1) / number[-1:].clamp(min=entries - 1))

        # Linear interpolation between the two nearest entries.
        before = position.floor().long().clamp(max=entries - 1)
        after = (before + 1).clamp(max=entries - 1)
        return torch.lerp(table[before], table[after], (position - before).to(table.dtype)[:, None])


class GraphQuerySelection(QuerySelection):
    """A query selection with one NMS for all images, which always gives N queries, padded."""

    def select_tokens(self, scores: Tensor, tokens: TokenPyramid) -> tuple[Tensor, Tensor]:
        """Select tokens by their (B, S) scores.

        Returns:
            (B, N) token index, best first, padded, and the (B,) number of queries of each image.
        """
        # There may be fewer tokens than candidates: the others score -inf.
        padded = F.pad(scores, [0, self.num_candidates], value=-torch.inf)
        ranking = padded.sort(dim=1, descending=True, stable=True)
        values = ranking.values[:, : self.num_candidates]
        candidates = ranking.indices[:, : self.num_candidates]
        valid = values > -torch.inf
        candidates = candidates.masked_fill(~valid, 0)

        kept = self.suppress(values, candidates, tokens) & valid

        # Kept candidates are written at their rank, the others at one more place, which is cut off.
        rank = kept.cumsum(1) - 1
        place = torch.where(kept & (rank < self.num_queries), rank, self.num_queries)
        places = torch.zeros_like(candidates[:, : self.num_queries + 1])
        token_index = places.scatter(1, place, candidates)

        num_valid = kept.sum(1).clamp(max=self.num_queries)
        return token_index[:, : self.num_queries], num_valid

    def suppress(self, scores: Tensor, candidates: Tensor, tokens: TokenPyramid) -> Tensor:
        """Return (B, n), True for the candidates that the NMS keeps.

        Images and levels are laid so far apart that they never suppress each other.
        """
        batch, count = candidates.shape
        height, width = tokens.spatial_shapes_list[0]  # the finest level, none is larger
        side = torch.sym_max(height, width) + 3

        points = (tokens.token_xy + tokens.token_level[:, None] * side)[candidates]
        number = torch.arange(batch, device=scores.device)[:, None]
        shift = number * side * len(tokens.spatial_shapes_list)
        centers = torch.stack([points[..., 0], points[..., 1] + shift], dim=-1)
        centers = centers.flatten(0, 1).float()
        boxes = torch.cat([centers - 1, centers + 1], dim=1)

        kept = nms(boxes, scores.flatten().float(), self.iou_threshold)
        return marked(kept, batch * count).view(batch, count)


EXPORTABLE: dict[type[nn.Module], type[nn.Module]] = {
    BackgroundEmbedding: GraphBackgroundEmbedding,
    TokenPyramidBuilder: GraphTokenPyramidBuilder,
    SalienceFilter: GraphSalienceFilter,
    SalienceEncoderLayer: GraphEncoderLayer,
    QuerySelection: GraphQuerySelection,
    **swin.EXPORTABLE,
}
