"""Names of other people's checkpoints translated into ours, strictly both ways."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from salience_detr.checkpoint.backbone_conversion import (
    AFFINE,
    BATCH_NORM,
    RESNET,
    Name,
    count,
    describe,
    find_format,
    leaves,
    shorten,
    timm_leftovers,
    timm_names,
)

# fmt: off
COCO_CATEGORY_IDS = (
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 27, 28, 31, 32, 33, 34,
    35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63,
    64, 65, 67, 70, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 84, 85, 86, 87, 88, 89, 90,
)
# fmt: on

# The tensors of each kind of layer.
_TRACKED_BATCH_NORM = (*BATCH_NORM, "num_batches_tracked")
_ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
_DEFORMABLE = tuple(
    f"{layer}.{leaf}"
    for layer in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    for leaf in AFFINE
)

# Constants and repetitions: what the model knows without them.
_DROPPED = re.compile(
    r"_classes_|(.*\.)?(level_filter_ratio|layer_filter_ratio|dim_tx|dim_ty)|transformer\.encoder\.enhance_mcsp\..*"
    r"|backbone\..*(num_batches_tracked|relative_position_index)"
)
# Tensors with a row for each class, in our names.
CLASS_ROWS = re.compile(
    r"query_selection\.class_head\..*|decoder\.class_heads\..*|denoising\.label_encoder\.weight"
)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or that does not fit."""


def is_reference_checkpoint(state: Mapping[str, Any]) -> bool:
    """Whether the names are those of the published implementation."""
    return "transformer.encoder_class_head.bias" in state


def convert_reference_checkpoint(
    state_dict: Mapping[str, Any], *, category_ids: Sequence[int] | None = COCO_CATEGORY_IDS
) -> dict[str, Tensor]:
    """Translate a checkpoint of the published implementation into this project's names.

    Args:
        state_dict: its tensors by name, possibly wrapped in ``{"model": ...}``.
        category_ids: rows of the class heads to keep, in the order of our contiguous classes: there the class index
            is the COCO category id. None keeps all rows.

    Returns:
        Our names and tensors: the complete state dict of the model that fits the file.

    Raises:
        CheckpointError: names that are missing or unknown (all are listed), or too few class rows.
    """
    source = state_dict.get("model", state_dict)
    names = {name.theirs: name for name in _reference_names(source)}
    unknown = sorted(name for name in source if name not in names and not _DROPPED.fullmatch(name))
    missing = sorted(name for name in names if name not in source)
    if unknown or missing:
        parts = [f"{len(missing)} names are missing: {shorten(missing)}"] if missing else []
        parts += [f"{len(unknown)} names are unknown: {shorten(unknown)}"] if unknown else []
        raise CheckpointError(
            "not a complete checkpoint of the published model; " + "; ".join(parts)
        )
    converted = translate(source, names.values())
    if category_ids is not None:
        rows = torch.tensor(list(category_ids))
        for name in filter(CLASS_ROWS.fullmatch, converted):
            num_rows = len(converted[name])
            if num_rows <= max(category_ids):
                raise CheckpointError(
                    f"{name} has {num_rows} class rows, but category_ids goes up to {max(category_ids)}; "
                    f"pass category_ids=None (--all-classes) to keep the {num_rows} rows as they are"
                )
            converted[name] = converted[name][rows]
    return converted


def dropped_names(source: Mapping[str, Any]) -> list[str]:
    """Names of a published checkpoint that its conversion leaves out."""
    return sorted(name for name in source if _DROPPED.fullmatch(name))


def convert_backbone(
    source: Mapping[str, Any], own: Collection[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Translate a published classifier into the names of a backbone.

    Args:
        source: its tensors by name.
        own: names of the backbone's tensors.

    Returns:
        Tensors by the backbone's names, and the names that were left out.

    Raises:
        CheckpointError: the file is of another family (it says which), or has names that its family has not.
    """
    known = find_format(source)
    names = list(known.names(source)) if known else []
    if not any(name.ours in own for name in names):
        known, names = None, list(timm_names(source, own))
    if not names:
        raise CheckpointError(
            f"looks like {describe(source)}, which are no weights of this model or of its backbone"
        )
    translated = {name.theirs for name in names}
    missing = sorted(translated - source.keys())
    left_out = sorted(source.keys() - translated)
    if known:
        unknown = [name for name in left_out if not re.fullmatch(known.dropped, name)]
    else:
        unknown = timm_leftovers(left_out, translated)
    if missing or unknown:
        raise CheckpointError(
            f"looks like {describe(source)}, but is not complete or not only that; "
            f"missing: {shorten(missing) or 'none'}; unknown: {shorten(unknown) or 'none'}"
        )
    return translate(source, names), left_out


def translate(source: Mapping[str, Any], names: Iterable[Name]) -> dict[str, Tensor]:
    """The tensors by our names, in our shapes."""
    tensors = ((name, torch.as_tensor(source[name.theirs])) for name in names)
    return {name.ours: name.change(tensor) if name.change else tensor for name, tensor in tensors}


def _reference_names(source: Mapping[str, Any]) -> Iterator[Name]:
    """Pairs (name there, name here) of all tensors that a file with these numbers of layers must have."""
    yield from _backbone_names(source)
    yield from _neck_names(source)
    yield Name("transformer.level_embeds", "token_pyramid.level_embeds")
    yield Name("transformer.alpha", "salience_filter.alpha")
    yield Name("transformer.tgt_embed.weight", "query_embedding")
    yield from leaves("transformer.enc_output", "token_projection.linear", AFFINE)
    yield from leaves("transformer.enc_output_norm", "token_projection.norm", AFFINE)
    head, ours = "transformer.enc_mask_predictor", "salience_filter.head"
    for theirs_layer, our_layer in (("layer1.0", "local.0"), ("layer1.1", "local.1")):
        yield from leaves(f"{head}.{theirs_layer}", f"{ours}.{our_layer}", AFFINE)
    for layer in (0, 2, 4):
        yield from leaves(f"{head}.layer2.{layer}", f"{ours}.score.{layer}", AFFINE)
    for table in ("row_embed", "col_embed"):
        here = f"encoder.background_embedding.{table}"
        yield Name(f"transformer.encoder.background_embedding.{table}.weight", here)
    yield from _encoder_names(source)
    yield from _fusion_names(source)
    yield from leaves("transformer.encoder_class_head", "query_selection.class_head", AFFINE)
    yield from _mlp_names("transformer.encoder_bbox_head", "query_selection.bbox_head", 3)
    yield from _decoder_names(source)
    yield Name("denoising_generator.label_encoder.weight", "denoising.label_encoder.weight")


def _backbone_names(source: Mapping[str, Any]) -> Iterator[Name]:
    """Some backbones there are pairs: of the backbone, and of what follows it."""
    theirs = {
        re.sub(r"^backbone\.(0\.)?", "", name): name
        for name in source
        if name.startswith("backbone.")
    }
    prefix = (
        "backbone.0." if any(name.startswith("backbone.0.") for name in source) else "backbone."
    )
    for name in (find_format(theirs) or RESNET).names(theirs):
        yield Name(
            theirs.get(name.theirs, prefix + name.theirs), f"backbone.{name.ours}", name.change
        )


def _neck_names(source: Mapping[str, Any]) -> Iterator[Name]:
    num_projections = 0
    for i in range(max(1, count(source, "neck.convs"))):
        weight = source.get(f"neck.convs.{i}.0.weight")
        if weight is not None and weight.shape[-1] == 3:
            here = f"neck.extra_levels.{i - num_projections}"
        else:
            here, num_projections = f"neck.projections.{i}", num_projections + 1
        yield Name(f"neck.convs.{i}.0.weight", f"{here}.weight")
        yield from leaves(f"neck.convs.{i}.1", f"{here}.norm", AFFINE)


def _encoder_names(source: Mapping[str, Any]) -> Iterator[Name]:
    for i in range(max(1, count(source, "transformer.encoder.layers"))):
        theirs, ours = f"transformer.encoder.layers.{i}", f"encoder.layers.{i}"
        yield from leaves(f"{theirs}.pre_attention", f"{ours}.important_attention", _ATTENTION)
        yield from leaves(f"{theirs}.pre_norm", f"{ours}.important_norm", AFFINE)
        yield from leaves(f"{theirs}.self_attn", f"{ours}.deformable_attention", _DEFORMABLE)
        yield from leaves(f"{theirs}.norm1", f"{ours}.deformable_norm", AFFINE)
        yield from _ffn_names(theirs, ours, "norm2")


def _decoder_names(source: Mapping[str, Any]) -> Iterator[Name]:
    yield from leaves("transformer.decoder.norm", "decoder.norm", AFFINE)
    yield from _mlp_names("transformer.decoder.ref_point_head", "decoder.query_position_head", 2)
    for i in range(max(1, count(source, "transformer.decoder.layers"))):
        theirs, ours = f"transformer.decoder.layers.{i}", f"decoder.layers.{i}"
        yield from leaves(f"{theirs}.self_attn", f"{ours}.self_attention", _ATTENTION)
        yield from leaves(f"{theirs}.norm2", f"{ours}.self_attention_norm", AFFINE)
        yield from leaves(f"{theirs}.cross_attn", f"{ours}.cross_attention", _DEFORMABLE)
        yield from leaves(f"{theirs}.norm1", f"{ours}.cross_attention_norm", AFFINE)
        yield from _ffn_names(theirs, ours, "norm3")
        yield from leaves(f"transformer.decoder.class_head.{i}", f"decoder.class_heads.{i}", AFFINE)
        yield from _mlp_names(f"transformer.decoder.bbox_head.{i}", f"decoder.bbox_heads.{i}", 3)


def _ffn_names(theirs: str, ours: str, norm: str) -> Iterator[Name]:
    for layer in ("linear1", "linear2"):
        yield from leaves(f"{theirs}.{layer}", f"{ours}.ffn.{layer}", AFFINE)
    yield from leaves(f"{theirs}.{norm}", f"{ours}.ffn.norm", AFFINE)


def _mlp_names(theirs: str, ours: str, num_layers: int) -> Iterator[Name]:
    for layer in range(num_layers):
        yield from leaves(f"{theirs}.layers.{layer}", f"{ours}.layers.{layer}", AFFINE)


def _fusion_names(source: Mapping[str, Any]) -> Iterator[Name]:
    for theirs, ours in (("lateral_convs", "lateral"), ("downsample_blocks", "downsample")):
        for i in range(max(1, count(source, f"transformer.neck.{theirs}"))):
            yield from _conv_bn_names(
                f"transformer.neck.{theirs}.{i}", f"feature_fusion.{ours}.{i}"
            )
    for theirs, ours in (("layer_blocks", "top_down"), ("pan_blocks", "bottom_up")):
        for i in range(max(1, count(source, f"transformer.neck.{theirs}"))):
            yield from _csp_names(
                source, f"transformer.neck.{theirs}.{i}", f"feature_fusion.{ours}.{i}"
            )


def _csp_names(source: Mapping[str, Any], theirs: str, ours: str) -> Iterator[Name]:
    yield from _conv_bn_names(f"{theirs}.conv1", f"{ours}.main")
    yield from _conv_bn_names(f"{theirs}.conv2", f"{ours}.shortcut")
    for i in range(max(1, count(source, f"{theirs}.bottlenecks"))):
        their_block, our_block = f"{theirs}.bottlenecks.{i}", f"{ours}.blocks.{i}"
        yield from _conv_bn_names(f"{their_block}.conv1", f"{our_block}.conv3x3")
        yield from _conv_bn_names(f"{their_block}.conv2", f"{our_block}.conv1x1")
        yield from leaves(
            f"{their_block}.se_module.conv_mask", f"{our_block}.gate.attention", AFFINE
        )
        yield Name(f"{their_block}.se_module.se_module.0.weight", f"{our_block}.gate.reduce.weight")
        yield Name(f"{their_block}.se_module.se_module.2.weight", f"{our_block}.gate.expand.weight")


def _conv_bn_names(theirs: str, ours: str) -> Iterator[Name]:
    yield Name(f"{theirs}.0.weight", f"{ours}.conv.weight")
    yield from leaves(f"{theirs}.1", f"{ours}.norm", _TRACKED_BATCH_NORM)
