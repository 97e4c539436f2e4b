"""Names of other people's checkpoints translated into ours, strictly both ways."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# fmt: off
COCO_CATEGORY_IDS = (
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 27, 28, 31, 32, 33, 34,
    35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63,
    64, 65, 67, 70, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 84, 85, 86, 87, 88, 89, 90,
)
# fmt: on

# The tensors of each kind of layer; the first of a pair is the name there, the second the name here.
_AFFINE = ("weight", "bias")
_BATCH_NORM = (*_AFFINE, "running_mean", "running_var")
_TRACKED_BATCH_NORM = (*_BATCH_NORM, "num_batches_tracked")
_ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
_DEFORMABLE = tuple(
    f"{layer}.{leaf}"
    for layer in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    for leaf in _AFFINE
)

# Constants and repetitions: what the model knows without them.
_DROPPED = re.compile(
    r"_classes_|(.*\.)?(level_filter_ratio|layer_filter_ratio|dim_tx|dim_ty)|transformer\.encoder\.enhance_mcsp\..*"
    r"|backbone\..*num_batches_tracked"
)
_CLASS_ROWS = re.compile(r"query_selection\.class_head\..*|decoder\.class_heads\..*|denoising\.label_encoder\.weight")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or that does not fit."""


def shorten(names: Sequence[str], limit: int = 8) -> str:
    """The first names of a list and how many there are beyond them."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def is_reference_checkpoint(state: Mapping[str, Any]) -> bool:
    """Whether the names are those of the published implementation."""
    return "transformer.encoder_class_head.bias" in state


def is_torchvision_resnet(state: Mapping[str, Any]) -> bool:
    """Whether the names are those of a torchvision ResNet (with or without its classifier)."""
    return "layer1.0.conv1.weight" in state and "conv1.weight" in state


def convert_reference_checkpoint(
    state_dict: Mapping[str, Any], *, category_ids: Sequence[int] | None = COCO_CATEGORY_IDS
) -> dict[str, Tensor]:
    """Translate a checkpoint of the published implementation (ResNet backbones) into this project's names.

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
    names = dict(_reference_names(source))
    unknown = sorted(name for name in source if name not in names and not _DROPPED.fullmatch(name))
    missing = sorted(name for name in names if name not in source)
    if unknown or missing:
        parts = [f"{len(missing)} names are missing: {shorten(missing)}"] if missing else []
        parts += [f"{len(unknown)} names are unknown: {shorten(unknown)}"] if unknown else []
        raise CheckpointError("not a complete checkpoint of the published ResNet model; " + "; ".join(parts))
    converted = {ours: torch.as_tensor(source[theirs]) for theirs, ours in names.items()}
    if category_ids is not None:
        rows = torch.tensor(list(category_ids))
        for name in filter(_CLASS_ROWS.fullmatch, converted):
            num_rows = len(converted[name])
            if num_rows <= max(category_ids):
                raise CheckpointError(
                    f"{name} has {num_rows} class rows, but category_ids goes up to {max(category_ids)}; "
                    f"pass category_ids=None to keep the {num_rows} rows as they are"
                )
            converted[name] = converted[name][rows]
    return converted


def convert_torchvision_resnet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate a torchvision ResNet into detectron2's names, without its classifier.

    Raises:
        CheckpointError: names that are missing or unknown.
    """
    names = dict(_resnet_names(state_dict, "", ""))
    ignored = {name for name in state_dict if name.startswith("fc.") or name.endswith("num_batches_tracked")}
    unknown, missing = sorted(state_dict.keys() - names.keys() - ignored), sorted(names.keys() - state_dict.keys())
    if unknown or missing:
        raise CheckpointError(
            f"not a complete torchvision ResNet; missing: {shorten(missing) or 'none'}; "
            f"unknown: {shorten(unknown) or 'none'}"
        )
    return {ours: state_dict[theirs] for theirs, ours in names.items()}


def _count(names: Mapping[str, Any], prefix: str) -> int:
    """Length of the list of modules ``prefix.0``, ``prefix.1``, ..."""
    matches = (re.match(re.escape(prefix) + r"\.(\d+)\.", name) for name in names)
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def _leaves(theirs: str, ours: str, leaves: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((f"{theirs}.{leaf}", f"{ours}.{leaf}") for leaf in leaves)


def _reference_names(source: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Pairs (name there, name here) of all tensors that a file with these numbers of layers must have."""
    yield from _resnet_names(source, "backbone.", "backbone.")
    yield from _neck_names(source)
    yield "transformer.level_embeds", "token_pyramid.level_embeds"
    yield "transformer.alpha", "salience_filter.alpha"
    yield "transformer.tgt_embed.weight", "query_embedding"
    yield from _leaves("transformer.enc_output", "token_projection.linear", _AFFINE)
    yield from _leaves("transformer.enc_output_norm", "token_projection.norm", _AFFINE)
    head, ours = "transformer.enc_mask_predictor", "salience_filter.head"
    for theirs_layer, our_layer in (("layer1.0", "local.0"), ("layer1.1", "local.1")):
        yield from _leaves(f"{head}.{theirs_layer}", f"{ours}.{our_layer}", _AFFINE)
    for layer in (0, 2, 4):
        yield from _leaves(f"{head}.layer2.{layer}", f"{ours}.score.{layer}", _AFFINE)
    for table in ("row_embed", "col_embed"):
        here = f"encoder.background_embedding.{table}"
        yield f"transformer.encoder.background_embedding.{table}.weight", here
    yield from _encoder_names(source)
    yield from _fusion_names(source)
    yield from _leaves("transformer.encoder_class_head", "query_selection.class_head", _AFFINE)
    yield from _mlp_names("transformer.encoder_bbox_head", "query_selection.bbox_head", 3)
    yield from _decoder_names(source)
    yield "denoising_generator.label_encoder.weight", "denoising.label_encoder.weight"


def _resnet_names(source: Mapping[str, Any], theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield f"{theirs}conv1.weight", f"{ours}stem.conv1.weight"
    yield from _leaves(f"{theirs}bn1", f"{ours}stem.conv1.norm", _BATCH_NORM)
    for stage in range(1, 5):
        for block in range(max(1, _count(source, f"{theirs}layer{stage}"))):
            their_block, our_block = f"{theirs}layer{stage}.{block}", f"{ours}res{stage + 1}.{block}"
            num_convs = 3 if f"{their_block}.conv3.weight" in source else 2
            for conv in range(1, num_convs + 1):
                yield f"{their_block}.conv{conv}.weight", f"{our_block}.conv{conv}.weight"
                yield from _leaves(f"{their_block}.bn{conv}", f"{our_block}.conv{conv}.norm", _BATCH_NORM)
            # Only basic blocks (two convolutions) start their first stage without a projection.
            if block == 0 and (stage > 1 or num_convs == 3):
                yield f"{their_block}.downsample.0.weight", f"{our_block}.shortcut.weight"
                yield from _leaves(f"{their_block}.downsample.1", f"{our_block}.shortcut.norm", _BATCH_NORM)


def _neck_names(source: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    num_projections = 0
    for i in range(max(1, _count(source, "neck.convs"))):
        weight = source.get(f"neck.convs.{i}.0.weight")
        if weight is not None and weight.shape[-1] == 3:
            here = f"neck.extra_levels.{i - num_projections}"
        else:
            here, num_projections = f"neck.projections.{i}", num_projections + 1
        yield f"neck.convs.{i}.0.weight", f"{here}.weight"
        yield from _leaves(f"neck.convs.{i}.1", f"{here}.norm", _AFFINE)


def _encoder_names(source: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for i in range(max(1, _count(source, "transformer.encoder.layers"))):
        theirs, ours = f"transformer.encoder.layers.{i}", f"encoder.layers.{i}"
        yield from _leaves(f"{theirs}.pre_attention", f"{ours}.important_attention", _ATTENTION)
        yield from _leaves(f"{theirs}.pre_norm", f"{ours}.important_norm", _AFFINE)
        yield from _leaves(f"{theirs}.self_attn", f"{ours}.deformable_attention", _DEFORMABLE)
        yield from _leaves(f"{theirs}.norm1", f"{ours}.deformable_norm", _AFFINE)
        yield from _ffn_names(theirs, ours, "norm2")


def _decoder_names(source: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from _leaves("transformer.decoder.norm", "decoder.norm", _AFFINE)
    yield from _mlp_names("transformer.decoder.ref_point_head", "decoder.query_position_head", 2)
    for i in range(max(1, _count(source, "transformer.decoder.layers"))):
        theirs, ours = f"transformer.decoder.layers.{i}", f"decoder.layers.{i}"
        yield from _leaves(f"{theirs}.self_attn", f"{ours}.self_attention", _ATTENTION)
        yield from _leaves(f"{theirs}.norm2", f"{ours}.self_attention_norm", _AFFINE)
        yield from _leaves(f"{theirs}.cross_attn", f"{ours}.cross_attention", _DEFORMABLE)
        yield from _leaves(f"{theirs}.norm1", f"{ours}.cross_attention_norm", _AFFINE)
        yield from _ffn_names(theirs, ours, "norm3")
        yield from _leaves(f"transformer.decoder.class_head.{i}", f"decoder.class_heads.{i}", _AFFINE)
        yield from _mlp_names(f"transformer.decoder.bbox_head.{i}", f"decoder.bbox_heads.{i}", 3)


def _ffn_names(theirs: str, ours: str, norm: str) -> Iterator[tuple[str, str]]:
    for layer in ("linear1", "linear2"):
        yield from _leaves(f"{theirs}.{layer}", f"{ours}.ffn.{layer}", _AFFINE)
    yield from _leaves(f"{theirs}.{norm}", f"{ours}.ffn.norm", _AFFINE)


def _mlp_names(theirs: str, ours: str, num_layers: int) -> Iterator[tuple[str, str]]:
    for layer in range(num_layers):
        yield from _leaves(f"{theirs}.layers.{layer}", f"{ours}.layers.{layer}", _AFFINE)


def _fusion_names(source: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for theirs, ours in (("lateral_convs", "lateral"), ("downsample_blocks", "downsample")):
        for i in range(max(1, _count(source, f"transformer.neck.{theirs}"))):
            yield from _conv_bn_names(f"transformer.neck.{theirs}.{i}", f"feature_fusion.{ours}.{i}")
    for theirs, ours in (("layer_blocks", "top_down"), ("pan_blocks", "bottom_up")):
        for i in range(max(1, _count(source, f"transformer.neck.{theirs}"))):
            yield from _csp_names(source, f"transformer.neck.{theirs}.{i}", f"feature_fusion.{ours}.{i}")


def _csp_names(source: Mapping[str, Any], theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield from _conv_bn_names(f"{theirs}.conv1", f"{ours}.main")
    yield from _conv_bn_names(f"{theirs}.conv2", f"{ours}.shortcut")
    for i in range(max(1, _count(source, f"{theirs}.bottlenecks"))):
        their_block, our_block = f"{theirs}.bottlenecks.{i}", f"{ours}.blocks.{i}"
        yield from _conv_bn_names(f"{their_block}.conv1", f"{our_block}.conv3x3")
        yield from _conv_bn_names(f"{their_block}.conv2", f"{our_block}.conv1x1")
        yield from _leaves(f"{their_block}.se_module.conv_mask", f"{our_block}.gate.attention", _AFFINE)
        yield f"{their_block}.se_module.se_module.0.weight", f"{our_block}.gate.reduce.weight"
        yield f"{their_block}.se_module.se_module.2.weight", f"{our_block}.gate.expand.weight"


def _conv_bn_names(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield f"{theirs}.0.weight", f"{ours}.conv.weight"
    yield from _leaves(f"{theirs}.1", f"{ours}.norm", _TRACKED_BATCH_NORM)
