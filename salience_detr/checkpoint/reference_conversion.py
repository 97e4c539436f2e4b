"""Conversion of checkpoints of the published Salience DETR into the names of this project."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from salience_detr.checkpoint.backbone_conversion import RESNET, find_format
from salience_detr.checkpoint.class_names import COCO_CLASSES, name_rows, published_names
from salience_detr.checkpoint.class_transfer import CLASS_ROWS
from salience_detr.checkpoint.errors import CheckpointError
from salience_detr.checkpoint.renaming import (
    BATCH_NORM,
    LAYER,
    Rename,
    check_names,
    expand,
    inside,
    list_length,
    rename_tensors,
)
from salience_detr.data.classes import ClassList

COCO_CATEGORY_IDS: tuple[int, ...] = tuple(COCO_CLASSES)

# Constants and repetitions, which the model knows without them.
DROPPED = re.compile(
    r"_classes_"
    r"|(.*\.)?(level_filter_ratio|layer_filter_ratio|dim_tx|dim_ty)"
    r"|transformer\.encoder\.enhance_mcsp\..*"
    r"|backbone\..*(num_batches_tracked|relative_position_index)"
)


def same_names(*layers: str) -> dict[str, str]:
    """Return the names of the tensors of layers that both sides call the same."""
    names = {}
    for layer, tensor in product(layers, LAYER):
        names[f".{layer}{tensor}"] = f".{layer}{tensor}"
    return names


# Tensors of the modules that the model is made of.
ATTENTION_NAMES = (".in_proj_weight", ".in_proj_bias", ".out_proj.weight", ".out_proj.bias")
ATTENTION = {name: name for name in ATTENTION_NAMES}
DEFORMABLE_LAYERS = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
DEFORMABLE = same_names(*DEFORMABLE_LAYERS)
MLP_2 = same_names("layers.0", "layers.1")
MLP_3 = same_names("layers.0", "layers.1", "layers.2")
TRACKED_BATCH_NORM = (*BATCH_NORM, ".num_batches_tracked")
CONV_NORM = {".0.weight": ".conv.weight", **{f".1{x}": f".norm{x}" for x in TRACKED_BATCH_NORM}}

# Blocks of the feature fusion, top-down and bottom-up.
FUSION_BLOCK = (
    Rename("conv1", "main", CONV_NORM),
    Rename("conv2", "shortcut", CONV_NORM),
    Rename("bottlenecks.*.conv1", "blocks.*.conv3x3", CONV_NORM),
    Rename("bottlenecks.*.conv2", "blocks.*.conv1x1", CONV_NORM),
    Rename("bottlenecks.*.se_module.conv_mask", "blocks.*.gate.attention", LAYER),
    Rename("bottlenecks.*.se_module.se_module.0.weight", "blocks.*.gate.reduce.weight"),
    Rename("bottlenecks.*.se_module.se_module.2.weight", "blocks.*.gate.expand.weight"),
)

TRANSFORMER = (
    # Token pyramid
    Rename("transformer.level_embeds", "token_pyramid.level_embeds"),
    Rename("transformer.enc_output", "token_projection.linear", LAYER),
    Rename("transformer.enc_output_norm", "token_projection.norm", LAYER),
    # Salience filter
    Rename("transformer.alpha", "salience_filter.alpha"),
    *inside(
        "transformer.enc_mask_predictor",
        "salience_filter.head",
        Rename("layer1.0", "local.0", LAYER),
        Rename("layer1.1", "local.1", LAYER),
        Rename("layer2.0", "score.0", LAYER),
        Rename("layer2.2", "score.2", LAYER),
        Rename("layer2.4", "score.4", LAYER),
    ),
    # Encoder
    *inside(
        "transformer.encoder.background_embedding",
        "encoder.background_embedding",
        Rename("row_embed.weight", "row_embed"),
        Rename("col_embed.weight", "col_embed"),
    ),
    *inside(
        "transformer.encoder.layers.*",
        "encoder.layers.*",
        Rename("pre_attention", "important_attention", ATTENTION),
        Rename("pre_norm", "important_norm", LAYER),
        Rename("self_attn", "deformable_attention", DEFORMABLE),
        Rename("norm1", "deformable_norm", LAYER),
        Rename("linear1", "ffn.linear1", LAYER),
        Rename("linear2", "ffn.linear2", LAYER),
        Rename("norm2", "ffn.norm", LAYER),
    ),
    # Feature fusion
    Rename("transformer.neck.lateral_convs.*", "feature_fusion.lateral.*", CONV_NORM),
    Rename("transformer.neck.downsample_blocks.*", "feature_fusion.downsample.*", CONV_NORM),
    *inside("transformer.neck.layer_blocks.*", "feature_fusion.top_down.*", *FUSION_BLOCK),
    *inside("transformer.neck.pan_blocks.*", "feature_fusion.bottom_up.*", *FUSION_BLOCK),
    # Query selection
    Rename("transformer.encoder_class_head", "query_selection.class_head", LAYER),
    Rename("transformer.encoder_bbox_head", "query_selection.bbox_head", MLP_3),
    Rename("transformer.tgt_embed.weight", "query_embedding"),
    # Decoder
    Rename("transformer.decoder.ref_point_head", "decoder.query_position_head", MLP_2),
    *inside(
        "transformer.decoder.layers.*",
        "decoder.layers.*",
        Rename("self_attn", "self_attention", ATTENTION),
        Rename("norm2", "self_attention_norm", LAYER),
        Rename("cross_attn", "cross_attention", DEFORMABLE),
        Rename("norm1", "cross_attention_norm", LAYER),
        Rename("linear1", "ffn.linear1", LAYER),
        Rename("linear2", "ffn.linear2", LAYER),
        Rename("norm3", "ffn.norm", LAYER),
    ),
    Rename("transformer.decoder.norm", "decoder.norm", LAYER),
    Rename("transformer.decoder.class_head.*", "decoder.class_heads.*", LAYER),
    Rename("transformer.decoder.bbox_head.*", "decoder.bbox_heads.*", MLP_3),
    # Denoising
    Rename("denoising_generator.label_encoder.weight", "denoising.label_encoder.weight"),
)


def is_reference_checkpoint(state: Mapping[str, Tensor]) -> bool:
    """Return True if the names are those of the published implementation."""
    return "transformer.encoder_class_head.bias" in state


def convert_reference_checkpoint(
    state_dict: Mapping[str, Any], *, category_ids: Sequence[int] | None = COCO_CATEGORY_IDS
) -> dict[str, Tensor]:
    """Convert a checkpoint of the published implementation into this project's names.

    Args:
        state_dict: its tensors by name, possibly wrapped in ``{"model": ...}``.
        category_ids: rows of the class heads to keep, in the order of our contiguous classes. The
            published heads have a row for each COCO category id, used or not. None keeps all rows.

    Returns:
        The complete state dict of the model that fits the file.

    Raises:
        CheckpointError: if names are missing or unknown (all are listed), or if there are fewer
            class rows than ``category_ids`` asks for.
    """
    source: Mapping[str, Tensor] = state_dict.get("model", state_dict)
    renames = list(reference_renames(source))

    expected = {rename.theirs for rename in renames}
    left_over = source.keys() - expected - set(dropped_names(source))
    missing = expected - source.keys()
    check_names("the published Salience DETR", missing=missing, unknown=left_over)

    converted = rename_tensors(source, renames)
    if category_ids is None:
        return converted

    rows = torch.tensor(list(category_ids))
    for name in filter(CLASS_ROWS.fullmatch, converted):
        num_rows = len(converted[name])

        if num_rows <= max(category_ids):
            raise CheckpointError(
                f"{name} has {num_rows} class rows, but category_ids goes up to "
                f"{max(category_ids)}; pass category_ids=None (--all-classes) to keep the "
                f"{num_rows} rows as they are"
            )
        converted[name] = converted[name][rows]
    return converted


def convert_reference_classes(
    state_dict: Mapping[str, Tensor], *, num_classes: int | None
) -> tuple[dict[str, Tensor], ClassList | None]:
    """Convert a published checkpoint to contiguous classes, and return these as well.

    Args:
        state_dict: its tensors by name.
        num_classes: number of classes of the model. Rows that no category uses are left out, unless
            the model has as many classes as the file has rows.

    Returns:
        The state dict, and the classes of its rows; None if the file neither names them nor has as
        many as COCO.

    Raises:
        CheckpointError: see :func:`convert_reference_checkpoint`.
    """
    num_rows = state_dict["transformer.encoder_class_head.bias"].numel()
    names = published_names(state_dict)
    if not names or num_rows == num_classes:
        classes = name_rows(names, num_rows) if names else None
        return convert_reference_checkpoint(state_dict, category_ids=None), classes

    converted = convert_reference_checkpoint(state_dict, category_ids=tuple(names))
    return converted, ClassList(tuple(names.values()), tuple(names))


def dropped_names(source: Iterable[str]) -> list[str]:
    """Return the names of a published checkpoint that its conversion leaves out."""
    return sorted(name for name in source if DROPPED.fullmatch(name))


def reference_renames(source: Mapping[str, Tensor]) -> Iterator[Rename]:
    """Yield the names of all tensors that a published checkpoint with these lists must have."""
    yield from _backbone_renames(source)
    yield from expand(_neck_table(source), source)
    yield from expand(TRANSFORMER, source)


def _backbone_renames(source: Mapping[str, Tensor]) -> Iterator[Rename]:
    # Some backbones are lists there: the backbone itself, and the norms of its output.
    is_list = any(name.startswith("backbone.0.") for name in source)
    prefix = "backbone.0" if is_list else "backbone"
    names = [name for name in source if name.startswith(f"{prefix}.")]
    backbone = {name.removeprefix(f"{prefix}.") for name in names}

    backbone_format = find_format(backbone) or RESNET
    rows = backbone_format.table(backbone)
    yield from inside(prefix, "backbone", *expand(rows, backbone))

    for i in range(4):
        if f"backbone.1.norm{i}.weight" in source:
            norm = Rename(f"backbone.1.norm{i}", f"backbone.output_norms.stride{4 * 2**i}", LAYER)
            yield from expand([norm], source)


def _neck_table(source: Mapping[str, Tensor]) -> Iterator[Rename]:
    num_projections = 0
    num_extra_levels = 0

    # A 3 x 3 convolution makes a level beyond those of the backbone.
    for i in range(max(1, list_length(source, "neck.convs."))):
        weight = source.get(f"neck.convs.{i}.0.weight")
        if weight is not None and weight.shape[-1] == 3:
            ours = f"neck.extra_levels.{num_extra_levels}"
            num_extra_levels += 1
        else:
            ours = f"neck.projections.{num_projections}"
            num_projections += 1

        yield Rename(f"neck.convs.{i}.0.weight", f"{ours}.weight")
        yield Rename(f"neck.convs.{i}.1", f"{ours}.norm", LAYER)
