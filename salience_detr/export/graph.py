"""The model as one graph from tensors to tensors, for any number of images of any size.

Exporters record what a model computes for one input. Here are the few parts of the model whose work depends on what
is in the tensors, in forms whose shapes depend on those of the inputs alone; they take the place of the originals in a
copy of the model. Where the model cuts its tensors to what the images of a batch need, they keep as many slots as the
size of the batch allows for, and mask the surplus.

Symbols: B images, L levels, S tokens, D channels, K classes, N queries, M heads of C channels, P points per head and
level.
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

from salience_detr.export.swin import make_swin_exportable
from salience_detr.layers.box_ops import box_cxcywh_to_xyxy
from salience_detr.layers.ms_deform_attn import MultiScaleDeformableAttention
from salience_detr.modeling import SalienceDETR
from salience_detr.modeling.encoder import BackgroundEmbedding, SalienceEncoderLayer
from salience_detr.modeling.query_selection import QuerySelection
from salience_detr.modeling.salience import SalienceFilter
from salience_detr.modeling.salience_detr import Encoding
from salience_detr.modeling.token_pyramid import TokenPyramid, TokenPyramidBuilder
from salience_detr.predictor import merge_salience

INPUTS = ("images", "image_sizes")
OUTPUTS = ("boxes", "scores", "labels", "salience")


class DetectionGraph(nn.Module):
    """A detector with tensors for input and output.

    Args:
        model: in evaluation mode; it is copied.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: SalienceDETR) -> None:
        super().__init__()
        self.model = exportable_copy(model)
        mean, std = (torch.tensor(x)[:, None, None] for x in (model.pixel_mean, model.pixel_std))
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect on a batch.

        Args:
            images: (B, 3, H, W) float32, channels as the model's ``input_format`` says, 0..255, of any height and
                width; images smaller than the batch are at its upper left, what lies beside them does not matter.
            image_sizes: (B, 2) int64 (height, width) of each image in pixels, at most (H, W).

        Returns:
            ``boxes``: (B, n, 4) float32, absolute xyxy in pixels of ``images``, by falling score, not clipped;
            ``scores``: (B, n) float32, 0 where there are fewer than n detections;
            ``labels``: (B, n) int64;
            ``salience``: (B, ceil(H / 32) * 32 / s, ceil(W / 32) * 32 / s) float32 in [0, 1], s = stride of the finest
            level.
        """
        padded, padding = self.preprocess(images, image_sizes)
        encoding = self.model.encode(padded, padding)
        logits, boxes = self.decode(encoding)
        # (width, height, width, height), which undoes the normalization
        scale = image_sizes.flip(-1).repeat(1, 2)[:, None].to(boxes.dtype)
        scores, index = logits.sigmoid().flatten(1).topk(self.num_detections, dim=1)
        query = (index // self.model.num_classes)[..., None].expand(-1, -1, 4)
        absolute = (box_cxcywh_to_xyxy(boxes) * scale).gather(1, query)
        salience = merge_salience(encoding.selection.score_maps)
        return absolute, scores, index % self.model.num_classes, salience

    @property
    def num_detections(self) -> int:
        """n, detections per image."""
        return min(self.model.max_detections, self.model.num_queries * self.model.num_classes)

    def preprocess(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized images, 0 where padded, of sides divisible by the model's divisor, and their padding mask."""
        divisor = self.model.size_divisibility
        height, width = ((side + divisor - 1) // divisor * divisor for side in images.shape[-2:])
        missing = (width - images.shape[-1], height - images.shape[-2])
        normalized = F.pad(
            (images - self.pixel_mean) / self.pixel_std, [0, missing[0], 0, missing[1]]
        )
        rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
        limits = image_sizes[:, :, None, None]
        padding = (rows[:, None] >= limits[:, 0]) | (columns >= limits[:, 1])
        return normalized.masked_fill(padding[:, None], 0.0), padding

    def decode(self, encoding: Encoding) -> tuple[Tensor, Tensor]:
        """(B, N, K) logits, -inf in surplus slots, and (B, N, 4) boxes of the last decoder layer."""
        is_query = encoding.proposals.valid_mask
        query = self.model.query_embedding.expand(is_query.shape[0], -1, -1)
        surplus = ~is_query[:, None].expand(-1, is_query.shape[1], -1)
        predictions = self.model.decoder(
            query,
            encoding.proposals.pred_boxes,
            encoding.memory,
            encoding.tokens,
            attention_mask=surplus,
        )
        return predictions.pred_logits[-1].masked_fill(
            ~is_query[..., None], -torch.inf
        ), predictions.pred_boxes[-1]


def exportable_copy(model: SalienceDETR) -> Any:
    """A copy of a model with exportable parts; its parameters are the same tensors."""
    memo = {id(x): x for x in [*model.parameters(), *model.buffers()]}
    copied = copy.deepcopy(model, memo).eval()
    make_swin_exportable(copied.backbone)
    for module in copied.modules():
        for original, exportable in EXPORTABLE.items():
            if type(module) is original:
                module.__class__ = exportable
    return copied


@dataclasses.dataclass(frozen=True)
class GraphTokens(TokenPyramid):
    """Tokens of maps whose sides are unknown: numbers of levels come from the shapes themselves."""

    @cached_property
    def spatial_shapes(self) -> Any:
        """(H_l, W_l) of each level, as the attention of a graph takes them."""
        return self.spatial_shapes_list

    @cached_property
    def level_start_index(self) -> Any:
        """Not needed: the attention of a graph splits the tokens by their shapes."""
        return None

    @cached_property
    def token_level(self) -> Tensor:
        device = self.features.device
        return torch.cat(
            [torch.full((size,), i, device=device) for i, size in enumerate(self.level_sizes)]
        )

    @cached_property
    def valid_ratios(self) -> Tensor:
        ratios = []
        for level, (height, width) in enumerate(self.spatial_shapes_list):
            valid = self.valid_sizes[:, level]
            ratios.append(torch.stack([valid[:, 0] / width, valid[:, 1] / height], dim=-1))
        return torch.stack(ratios, dim=1)


class GraphTokenPyramidBuilder(TokenPyramidBuilder):
    """Gives :class:`GraphTokens`."""

    def forward(self, maps: list[Tensor], pixel_padding: Tensor) -> GraphTokens:
        tokens = super().forward(maps, pixel_padding)
        return GraphTokens(**{x.name: getattr(tokens, x.name) for x in dataclasses.fields(tokens)})


class GraphSalienceFilter(SalienceFilter):
    """Counts slots by the shapes of the levels."""

    def max_selected(self, level_counts: Tensor, tokens: TokenPyramid) -> int:
        """Enough for images without padding."""
        return sum(
            portion(size, ratio)
            for size, ratio in zip(tokens.level_sizes, self.level_ratios, strict=True)
        )

    def max_refined(self, slots: int, layer: int) -> int:
        return portion(slots, self.layer_ratios[layer])


def portion(size: int, ratio: float) -> int:
    """A part of a number, rounded up: an integer expression, which can be recorded."""
    exact = Fraction(ratio).limit_denominator(10_000)
    return -(-size * exact.numerator // exact.denominator)


class GraphEncoderLayer(SalienceEncoderLayer):
    """Takes the minimum of a number and a side that is unknown, and masks the surplus slots of a single image, too."""

    def count_topk(self, slots: int) -> Any:
        return torch.sym_min(self.num_topk, slots)

    def key_padding_mask(self, is_token: Tensor) -> Tensor:
        return ~is_token


class GraphBackgroundEmbedding(BackgroundEmbedding):
    """Stretches tables by arithmetic; where they are large enough they come out as they are."""

    @staticmethod
    def _table(table: Tensor, size: int) -> Tensor:
        entries = table.shape[0]
        number = torch.arange(size, dtype=torch.float32, device=table.device)
        position = number * ((entries - 1) / number[-1:].clamp(min=entries - 1))
        before = position.floor().long().clamp(max=entries - 1)
        after = (before + 1).clamp(max=entries - 1)
        return torch.lerp(table[before], table[after], (position - before).to(table.dtype)[:, None])


class GraphQuerySelection(QuerySelection):
    """Suppresses the neighbors of all images at once and always gives N slots."""

    def select_tokens(self, scores: Tensor, tokens: TokenPyramid) -> tuple[Tensor, Tensor]:
        """(B, S) scores -> (B, N) tokens, best first, and (B, N) False for surplus slots."""
        # There may be fewer tokens than candidates.
        padded = F.pad(scores, [0, self.num_candidates], value=-torch.inf)
        values, candidates = (
            x[:, : self.num_candidates] for x in padded.sort(dim=1, descending=True, stable=True)
        )
        is_token = values > -torch.inf
        candidates = candidates.masked_fill(~is_token, 0)
        kept = self.suppress(values, candidates, tokens) & is_token
        rank = kept.cumsum(1) - 1
        slot = torch.where(
            kept & (rank < self.num_queries), rank, self.num_queries
        )  # the last slot is thrown away
        token_index = torch.zeros_like(candidates[:, : self.num_queries + 1]).scatter(
            1, slot, candidates
        )
        slots = torch.arange(self.num_queries, device=scores.device)
        return token_index[:, : self.num_queries], slots < kept.sum(1, keepdim=True)

    def suppress(self, scores: Tensor, candidates: Tensor, tokens: TokenPyramid) -> Tensor:
        """(B, n) True for the candidates that are left; images and levels lie apart and never suppress each other."""
        batch, count = candidates.shape
        height, width = tokens.spatial_shapes_list[0]  # the finest, no level is larger
        side = torch.sym_max(height, width) + 3
        points = (tokens.token_xy + tokens.token_level[:, None] * side)[candidates]
        image = (
            torch.arange(batch, device=scores.device)[:, None]
            * side
            * len(tokens.spatial_shapes_list)
        )
        centers = (
            torch.stack([points[..., 0], points[..., 1] + image], dim=-1).flatten(0, 1).float()
        )
        boxes = torch.cat([centers - 1, centers + 1], dim=1)
        kept = nms(boxes, scores.flatten().float(), self.iou_threshold)
        marks = torch.zeros(batch * count, dtype=torch.bool, device=scores.device)
        return marks.index_fill(0, kept, True).view(batch, count)


class GridSampleAttention(MultiScaleDeformableAttention):
    """Deformable attention by GridSample, for levels whose sides are unknown."""

    def sample(
        self,
        value: Tensor,
        spatial_shapes: Any,
        level_start_index: Any,
        reference_points: Tensor,
        sampling_offsets: Tensor,
        attention_logits: Tensor,
    ) -> Tensor:
        """See :func:`salience_detr.layers.ms_deform_attn.ms_deform_attn_fused`; ``spatial_shapes`` are numbers."""
        queries, (batch, _, heads, channels) = reference_points.shape[1], value.shape
        weights = attention_logits.flatten(-2).softmax(-1).view_as(attention_logits)
        maps = value.permute(0, 2, 3, 1).flatten(0, 1)  # (B*M, C, S)
        levels = maps.split([height * width for height, width in spatial_shapes], dim=2)
        output = value.new_zeros(batch * heads, channels, queries)
        for level, (height, width) in enumerate(spatial_shapes):
            reference, offsets = (
                reference_points[:, :, None, level, None],
                sampling_offsets[:, :, :, level],
            )
            if reference.shape[-1] == 2:
                locations = reference + torch.stack(
                    [offsets[..., 0] / width, offsets[..., 1] / height], dim=-1
                )
            else:
                locations = (
                    reference[..., :2] + offsets / self.num_points * reference[..., 2:] * 0.5
                )
            grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B*M, Q, P, 2)
            samples = F.grid_sample(
                levels[level].unflatten(2, (height, width)), grid, align_corners=False
            )
            weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B*M, Q, P)
            output = output + (samples * weight[:, None]).sum(-1)
        return output.view(batch, heads * channels, queries).transpose(1, 2)


EXPORTABLE: dict[type[nn.Module], type[nn.Module]] = {
    BackgroundEmbedding: GraphBackgroundEmbedding,
    TokenPyramidBuilder: GraphTokenPyramidBuilder,
    SalienceFilter: GraphSalienceFilter,
    SalienceEncoderLayer: GraphEncoderLayer,
    QuerySelection: GraphQuerySelection,
    MultiScaleDeformableAttention: GridSampleAttention,
}
