"""Conversion of published backbones: classifiers of torchvision, timm, and of their authors."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import filterfalse
from typing import NamedTuple

from torch import Tensor

from salience_detr.checkpoint.errors import CheckpointError
from salience_detr.checkpoint.renaming import (
    BATCH_NORM,
    LAYER,
    TENSOR,
    Rename,
    check_names,
    expand,
    inside,
    rename_tensors,
    unchanged,
)
from salience_detr.utils.errors import shorten


class Format(NamedTuple):
    """The names of a family of files.

    Attributes:
        label: name of the family in messages, with an article.
        signature: name of a tensor that distinguishes these files from others.
        table: returns the table of names that translates a file.
    """

    label: str
    signature: str
    table: Callable[[Collection[str]], Iterable[Rename]]


def resnet_table(source: Collection[str]) -> Iterator[Rename]:
    """Yield the table from torchvision's ResNet to detectron2's."""
    yield Rename("conv1.weight", "stem.conv1.weight")
    yield Rename("bn1", "stem.conv1.norm", BATCH_NORM)

    # Bottleneck blocks have three convolutions, basic blocks two.
    num_convs = 3 if "layer1.0.conv3.weight" in source else 2
    for stage in range(1, 5):
        theirs = f"layer{stage}"
        ours = f"res{stage + 1}"
        for i in range(1, num_convs + 1):
            yield Rename(f"{theirs}.*.conv{i}.weight", f"{ours}.*.conv{i}.weight")
            yield Rename(f"{theirs}.*.bn{i}", f"{ours}.*.conv{i}.norm", BATCH_NORM)

        # The first stage of basic blocks starts without a projection.
        if stage > 1 or num_convs == 3:
            yield Rename(f"{theirs}.0.downsample.0.weight", f"{ours}.0.shortcut.weight")
            yield Rename(f"{theirs}.0.downsample.1", f"{ours}.0.shortcut.norm", BATCH_NORM)


def torchvision_convnext_table(source: Collection[str]) -> Iterator[Rename]:
    """Yield the table from torchvision's ConvNeXt to timm's.

    Odd indices of ``features`` are stages, even ones the stem and the downsampling between them.
    """
    yield Rename("features.0.0", "body.stem_0", LAYER)
    yield Rename("features.0.1", "body.stem_1", LAYER)

    for stage in range(4):
        yield from inside(
            f"features.{2 * stage + 1}.*",
            f"body.stages_{stage}.blocks.*",
            Rename("block.0", "conv_dw", LAYER),
            Rename("block.2", "norm", LAYER),
            Rename("block.3", "mlp.fc1", LAYER),
            Rename("block.5", "mlp.fc2", LAYER),
            Rename("layer_scale", "gamma", change=Tensor.flatten),
        )

    for stage in range(1, 4):
        yield Rename(f"features.{2 * stage}.*", f"body.stages_{stage}.downsample.*", LAYER)


def torchvision_swin_table(source: Collection[str]) -> Iterator[Rename]:
    """Yield the table from torchvision's Swin Transformer, laid out as its ConvNeXt, to ours."""
    yield Rename("features.0.0", "patch_embed.proj", LAYER)
    yield Rename("features.0.2", "patch_embed.norm", LAYER)

    for stage in range(4):
        yield from inside(
            f"features.{2 * stage + 1}.*",
            f"layers.{stage}.blocks.*",
            *SWIN_ATTENTION,
            Rename("mlp.0", "mlp.fc1", LAYER),
            Rename("mlp.3", "mlp.fc2", LAYER),
        )

    for stage in range(3):
        theirs = f"features.{2 * stage + 2}"
        yield from inside(theirs, f"layers.{stage}.downsample", *SWIN_DOWNSAMPLE)


def swin_table(source: Collection[str]) -> Iterator[Rename]:
    """Yield the table of the Swin Transformer of its authors, whose names detectron2 uses."""
    yield from SWIN
    for stage in range(3):
        name = f"layers.{stage}.downsample"
        yield from inside(name, name, *SWIN_DOWNSAMPLE)


def timm_swin_table(source: Collection[str]) -> Iterator[Rename]:
    """Yield the table from timm's Swin Transformer, whose stages downsample first, to ours."""
    yield from SWIN
    for stage in range(3):
        theirs = f"layers.{stage + 1}.downsample"
        yield from inside(theirs, f"layers.{stage}.downsample", *SWIN_DOWNSAMPLE)


def focalnet_table(source: Collection[str]) -> Iterator[Rename]:
    """Yield the table from the FocalNet of its authors to timm's.

    The authors' linear layers are 1 x 1 convolutions in timm, whose stages downsample first.
    """
    yield Rename("patch_embed.proj", "body.stem.proj", LAYER)
    yield Rename("patch_embed.norm", "body.stem.norm", LAYER)

    for stage in range(4):
        theirs = f"layers.{stage}.blocks.*"
        ours = f"body.layers_{stage}.blocks.*"
        yield from inside(
            theirs,
            ours,
            *unchanged(LAYER, "modulation.f", "modulation.proj", change=as_convolution),
            *unchanged(LAYER, "mlp.fc1", "mlp.fc2", change=as_convolution),
            *unchanged(LAYER, "modulation.h"),
            *unchanged(TENSOR, "modulation.focal_layers.*.0.weight"),
        )

        # Large models normalize after the layers, and scale their output.
        is_scaled = "layers.0.blocks.0.gamma_1" in source
        norm = "norm{}_post" if is_scaled else "norm{}"
        for i in (1, 2):
            yield Rename(f"{theirs}.norm{i}", f"{ours}.{norm.format(i)}", LAYER)
            if is_scaled:
                yield Rename(f"{theirs}.gamma_{i}", f"{ours}.ls{i}.gamma")

        # Some also normalize inside of the modulation.
        if "layers.0.blocks.0.modulation.ln.weight" in source:
            yield Rename(f"{theirs}.modulation.ln", f"{ours}.modulation.norm", LAYER)

    for stage in range(3):
        parts = unchanged(LAYER, "proj", "norm")
        yield from inside(
            f"layers.{stage}.downsample", f"body.layers_{stage + 1}.downsample", *parts
        )


def as_convolution(tensor: Tensor) -> Tensor:
    """Return the (out, in) weight of a linear layer as (out, in, 1, 1); biases stay."""
    return tensor[:, :, None, None] if tensor.dim() == 2 else tensor


# What Swin Transformers have in common.
SWIN_ATTENTION = (
    *unchanged(LAYER, "norm1", "attn.qkv", "attn.proj", "norm2"),
    *unchanged(TENSOR, "attn.relative_position_bias_table"),
)
SWIN_BLOCK = (*SWIN_ATTENTION, *unchanged(LAYER, "mlp.fc1", "mlp.fc2"))
SWIN_DOWNSAMPLE = (*unchanged(TENSOR, "reduction.weight"), *unchanged(LAYER, "norm"))
SWIN = (
    *unchanged(LAYER, "patch_embed.proj", "patch_embed.norm"),
    *inside("layers.*.blocks.*", "layers.*.blocks.*", *SWIN_BLOCK),
)

RESNET = Format("a ResNet in torchvision's names", "layer1.0.conv1.weight", resnet_table)

# The most specific signatures come first.
FORMATS = (
    Format("a torchvision ConvNeXt", "features.1.0.layer_scale", torchvision_convnext_table),
    Format("a torchvision Swin Transformer", "features.1.0.norm1.weight", torchvision_swin_table),
    Format("a FocalNet of its authors", "layers.0.downsample.proj.weight", focalnet_table),
    Format("a Swin Transformer of timm", "layers.3.downsample.reduction.weight", timm_swin_table),
    Format("a Swin Transformer of its authors", "layers.0.blocks.0.attn.qkv.weight", swin_table),
    RESNET,
)

# Other files that people try, by one of their names.
OTHERS = {
    "query_selection.class_head.bias": "Salience DETR in this project's names",
    "transformer.encoder_class_head.bias": "the published Salience DETR",
    "backbone.bottom_up.res2.0.conv1.weight": "a detector of detectron2's model zoo",
    "stem.conv1.weight": "a ResNet in detectron2's names",
    "res2_0_branch2a_w": "a Caffe2 ResNet of detectron2's model zoo",
    "transformer.level_embed": "a Deformable DETR or DINO",
    "transformer.decoder.layers.0.multihead_attn.in_proj_weight": "a DETR",
    "bbox_head.cls_branches.0.weight": "a DETR of MMDetection",
    "model.0.conv.weight": "a YOLO of ultralytics",
    "downsample_layers.0.0.weight": "a ConvNeXt of its authors",
    "stages.0.blocks.0.conv_dw.weight": "a ConvNeXt of timm",
    "layers.0.blocks.0.modulation.f.bias": "a FocalNet of timm",
    "blocks.0.attn.qkv.weight": "a vision transformer (ViT)",
}

# What no detector needs: tensors that a backbone computes for itself, and what follows the last
# stage of a classifier.
CONSTANTS = re.compile(r".*(num_batches_tracked|relative_position_index|attn_mask)")
CLASSIFIER = re.compile(r"(classifier|fc|head|norm)\..*")


def find_format(source: Collection[str]) -> Format | None:
    """Return the format of a file with these names, or None."""
    return next((known for known in FORMATS if known.signature in source), None)


def describe(source: Collection[str]) -> str:
    """Return what a file with these names looks like."""
    known = find_format(source)
    if known:
        return known.label

    plain_names = {name.removeprefix("module.") for name in source}
    for name, label in OTHERS.items():
        if name in plain_names:
            return label
    return f"something unknown ({shorten(sorted(source), 3)})"


def convert_backbone(
    source: Mapping[str, Tensor], own: Collection[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Translate a published classifier into the names of a backbone.

    Args:
        source: tensors of the classifier by name.
        own: names of the backbone's tensors.

    Returns:
        The tensors by the backbone's names, and the names that were left out.

    Raises:
        CheckpointError: if the file is of another family (the message says which), or if it lacks
            tensors of its family or has others.
    """
    known = find_format(source)
    renames = list(expand(known.table(source), source)) if known else []

    # A TimmBackbone of the same family keeps timm's names.
    if not any(rename.ours in own for rename in renames):
        known = None
        renames = list(timm_renames(source, own))

    if not renames:
        raise CheckpointError(
            f"the file looks like {describe(source)}, which are no weights of this model or of "
            "its backbone"
        )

    expected = {rename.theirs for rename in renames}
    left_out = sorted(source.keys() - expected)
    unknown = foreign_names(left_out)
    if known is None:
        unknown = names_of_deeper_stages(left_out, expected)
    check_names(describe(source), missing=expected - source.keys(), unknown=unknown)
    return rename_tensors(source, renames), left_out


def timm_renames(source: Iterable[str], own: Collection[str]) -> Iterator[Rename]:
    """Yield the names of timm's whole models in a :class:`TimmBackbone`.

    timm wraps its models in several ways when it extracts features.
    """
    for name in source:
        for wrapped in (name, name.replace(".", "_", 1), f"model.{name}", f"body.{name}"):
            if f"body.{wrapped}" in own:
                yield Rename(name, f"body.{wrapped}")


def foreign_names(left_out: Iterable[str]) -> list[str]:
    """Return the names left out of a file of a known family that do not belong to the family."""
    names = filterfalse(CLASSIFIER.fullmatch, left_out)
    return list(filterfalse(CONSTANTS.fullmatch, names))


def names_of_deeper_stages(left_out: Iterable[str], translated: Iterable[str]) -> list[str]:
    """Return the names left out of stages of timm that were translated, as of a deeper model.

    Other names are those of a classifier's head, or of stages that the backbone does not have.
    """
    stages = {stage_of(name) for name in translated}
    in_stages = (name for name in left_out if stage_of(name) in stages)
    return list(filterfalse(CONSTANTS.fullmatch, in_stages))


def stage_of(name: str) -> tuple[str, ...]:
    """Return the first two parts of a tensor's name, such as ("layers", "0")."""
    return tuple(name.split(".")[:2])
