"""Names of published backbones translated into ours: ImageNet weights, and the backbone of a whole detector."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

AFFINE = ("weight", "bias")
BATCH_NORM = (*AFFINE, "running_mean", "running_var")
CONSTANTS = re.compile(r"(num_batches_tracked|relative_position_index|attn_mask)$")


class Name(NamedTuple):
    """A tensor of a file: its name there, its name here, and what gives it its shape here."""

    theirs: str
    ours: str
    change: Callable[[Tensor], Tensor] | None = None


class Rule(NamedTuple):
    """Names of one kind: a pattern for the whole of them, and what they become."""

    pattern: str
    ours: str | Callable[[re.Match[str]], str]
    change: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class BackboneFormat:
    """How a family of files calls its tensors.

    Attributes:
        label: what to call such a file.
        signature: names that tell such files from others.
        names: from a file's tensors, all that it must have, as far as the others tell.
        dropped: pattern of the names that no detector needs.
    """

    label: str
    signature: tuple[str, ...]
    names: Callable[[Mapping[str, Any]], Iterator[Name]]
    dropped: str


def find_format(source: Mapping[str, Any]) -> BackboneFormat | None:
    """The family of a file with these names."""
    return next(
        (known for known in FORMATS if all(name in source for name in known.signature)), None
    )


def timm_names(source: Mapping[str, Any], own: Collection[str]) -> Iterator[Name]:
    """Names of timm's whole models in a :class:`TimmBackbone`, whose feature models wrap them in several ways."""
    for name in source:
        for ours in (name, name.replace(".", "_", 1), f"model.{name}", f"body.{name}"):
            if f"body.{ours}" in own:
                yield Name(name, f"body.{ours}")


def timm_leftovers(left_out: Collection[str], translated: Collection[str]) -> list[str]:
    """Names that were not taken though others of their stage were, as those of a deeper model."""
    stages = {tuple(name.split(".")[:2]) for name in translated}
    return [
        name
        for name in left_out
        if tuple(name.split(".")[:2]) in stages and not CONSTANTS.search(name)
    ]


def names_by_rules(
    source: Mapping[str, Any], *, rules: Sequence[Rule], block: str
) -> Iterator[Name]:
    """Translate each name by the first rule that fits; what one block has, the others must have too.

    Args:
        block: pattern of how names of equal parts start.
    """
    blocks: dict[str, set[str]] = defaultdict(set)
    for name in source:
        if found := re.match(block, name):
            blocks[found[0]].add(name[found.end() :])
    leaves = set().union(*blocks.values())
    for name in [
        *source,
        *(start + leaf for start, own in blocks.items() for leaf in sorted(leaves - own)),
    ]:
        for rule in rules:
            if found := re.fullmatch(rule.pattern, name):
                yield Name(
                    name,
                    rule.ours(found) if callable(rule.ours) else found.expand(rule.ours),
                    rule.change,
                )
                break


def resnet_names(source: Mapping[str, Any]) -> Iterator[Name]:
    """torchvision's ResNet, whose blocks are not all alike, as detectron2's."""
    yield Name("conv1.weight", "stem.conv1.weight")
    yield from leaves("bn1", "stem.conv1.norm", BATCH_NORM)
    for stage in range(1, 5):
        for block in range(max(1, count(source, f"layer{stage}"))):
            theirs, ours = f"layer{stage}.{block}", f"res{stage + 1}.{block}"
            num_convs = 3 if f"{theirs}.conv3.weight" in source else 2
            for conv in range(1, num_convs + 1):
                yield Name(f"{theirs}.conv{conv}.weight", f"{ours}.conv{conv}.weight")
                yield from leaves(f"{theirs}.bn{conv}", f"{ours}.conv{conv}.norm", BATCH_NORM)
            # Only basic blocks (two convolutions) start their first stage without a projection.
            if block == 0 and (stage > 1 or num_convs == 3):
                yield Name(f"{theirs}.downsample.0.weight", f"{ours}.shortcut.weight")
                yield from leaves(f"{theirs}.downsample.1", f"{ours}.shortcut.norm", BATCH_NORM)


def torchvision_convnext_names(source: Mapping[str, Any]) -> Iterator[Name]:
    """torchvision's ConvNeXt: stages at odd places of ``features``, the stem and the downsampling at even ones."""
    layers = {"0": "conv_dw", "2": "norm", "3": "mlp.fc1", "5": "mlp.fc2"}
    rules = (
        Rule(r"features\.0\.([01])\.(weight|bias)", r"body.stem_\1.\2"),
        Rule(
            r"features\.(\d+)\.(\d+)\.block\.([0235])\.(weight|bias)",
            lambda m: f"body.stages_{int(m[1]) // 2}.blocks.{m[2]}.{layers[m[3]]}.{m[4]}",
        ),
        Rule(
            r"features\.(\d+)\.(\d+)\.layer_scale",
            lambda m: f"body.stages_{int(m[1]) // 2}.blocks.{m[2]}.gamma",
            as_vector,
        ),
        Rule(
            r"features\.([246])\.([01])\.(weight|bias)",
            lambda m: f"body.stages_{int(m[1]) // 2}.downsample.{m[2]}.{m[3]}",
        ),
    )
    return names_by_rules(source, rules=rules, block=r"features\.[1357]\.\d+\.")


def torchvision_swin_names(source: Mapping[str, Any]) -> Iterator[Name]:
    """torchvision's Swin Transformer, laid out like its ConvNeXt, as detectron2's."""
    parts = {"0": "proj", "2": "norm"}
    rules = (
        Rule(r"features\.0\.([02])\.(weight|bias)", lambda m: f"patch_embed.{parts[m[1]]}.{m[2]}"),
        Rule(
            r"features\.(\d+)\.(\d+)\.mlp\.([03])\.(weight|bias)",
            lambda m: (
                f"layers.{int(m[1]) // 2}.blocks.{m[2]}.mlp.{'fc1' if m[3] == '0' else 'fc2'}.{m[4]}"
            ),
        ),
        Rule(
            r"features\.(\d+)\.(\d+)\.((norm\d|attn)\.(?!relative_position_index).*)",
            lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}.{m[3]}",
        ),
        Rule(
            r"features\.([246])\.(reduction\.weight|norm\.(?:weight|bias))",
            lambda m: f"layers.{int(m[1]) // 2 - 1}.downsample.{m[2]}",
        ),
    )
    return names_by_rules(source, rules=rules, block=r"features\.[1357]\.\d+\.")


def swin_names(source: Mapping[str, Any]) -> Iterator[Name]:
    """The Swin Transformer of its authors, after which detectron2's is called."""
    rules = (Rule(r"(patch_embed|layers)\.(?!.*(relative_position_index|attn_mask)).*", r"\g<0>"),)
    return names_by_rules(source, rules=rules, block=r"layers\.\d+\.blocks\.\d+\.(?!attn_mask)")


def timm_swin_names(source: Mapping[str, Any]) -> Iterator[Name]:
    """timm's Swin Transformer, whose stages downsample at their start."""
    for name in swin_names(source):
        downsample = re.fullmatch(r"layers\.(\d)\.(downsample\..*)", name.theirs)
        yield (
            name._replace(ours=f"layers.{int(downsample[1]) - 1}.{downsample[2]}")
            if downsample
            else name
        )


def focalnet_names(source: Mapping[str, Any]) -> Iterator[Name]:
    """The FocalNet of its authors, as timm's: there linear layers are 1x1 convolutions, and stages downsample first."""
    # The large ones normalize after their layers, and scale them.
    norm = r"norm\3_post" if "layers.0.blocks.0.gamma_1" in source else r"norm\3"
    block = r"layers\.(\d)\.blocks\.(\d+)\."
    ours = r"body.layers_\1.blocks.\2."
    rules = (
        Rule(r"patch_embed\.(.*)", r"body.stem.\1"),
        Rule(
            r"layers\.(\d)\.downsample\.(.*)",
            lambda m: f"body.layers_{int(m[1]) + 1}.downsample.{m[2]}",
        ),
        Rule(block + r"gamma_(\d)", ours + r"ls\3.gamma"),
        Rule(block + r"norm(\d)\.(weight|bias)", ours + norm + r".\4"),
        Rule(block + r"modulation\.ln\.(weight|bias)", ours + r"modulation.norm.\3"),
        Rule(block + r"((?:modulation|mlp)\..*)", ours + r"\3", as_convolution),
        # Of the published detector, beside the backbone.
        Rule(
            r"1\.norm(\d)\.(weight|bias)",
            lambda m: f"output_norms.stride{4 * 2 ** int(m[1])}.{m[2]}",
        ),
    )
    return names_by_rules(source, rules=rules, block=block)


def as_convolution(weight: Tensor) -> Tensor:
    """(out, in) of a linear layer -> (out, in, 1, 1)"""
    return weight[:, :, None, None] if weight.dim() == 2 else weight


def as_vector(scale: Tensor) -> Tensor:
    """(C, 1, 1) -> (C,)"""
    return scale.flatten()


def count(names: Mapping[str, Any], prefix: str) -> int:
    """Length of the list of modules ``prefix.0``, ``prefix.1``, ..."""
    matches = (re.match(re.escape(prefix) + r"\.(\d+)\.", name) for name in names)
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def leaves(theirs: str, ours: str, names: Sequence[str]) -> Iterator[Name]:
    """The tensors of one layer."""
    return (Name(f"{theirs}.{name}", f"{ours}.{name}") for name in names)


RESNET = BackboneFormat(
    "a ResNet in torchvision's names",
    ("layer1.0.conv1.weight", "conv1.weight"),
    resnet_names,
    r"fc\..*|.*num_batches_tracked",
)
# The most telling signatures first.
FORMATS = (
    BackboneFormat(
        "a torchvision ConvNeXt",
        ("features.1.0.layer_scale",),
        torchvision_convnext_names,
        r"classifier\..*",
    ),
    BackboneFormat(
        "a torchvision Swin Transformer",
        ("features.1.0.attn.qkv.weight",),
        torchvision_swin_names,
        r"(norm|head)\..*|.*relative_position_index",
    ),
    BackboneFormat(
        "a FocalNet of its authors",
        ("patch_embed.proj.weight", "layers.0.blocks.0.modulation.f.weight"),
        focalnet_names,
        r"(norm|head)\..*",
    ),
    BackboneFormat(
        "a Swin Transformer of timm",
        ("layers.3.downsample.reduction.weight",),
        timm_swin_names,
        r"(norm|head)\..*",
    ),
    BackboneFormat(
        "a Swin Transformer of its authors",
        ("layers.0.blocks.0.attn.qkv.weight",),
        swin_names,
        r"(norm|head)\..*|.*(relative_position_index|attn_mask)",
    ),
    RESNET,
)

# By a name of theirs, other files that people try.
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


def describe(source: Mapping[str, Any]) -> str:
    """What a file with these names looks like."""
    known = find_format(source)
    if known is not None:
        return known.label
    plain = {name.removeprefix("module.") for name in source}
    return next(
        (label for name, label in OTHERS.items() if name in plain),
        f"something unknown ({shorten(sorted(source), 3)})",
    )


def shorten(names: Sequence[str], limit: int = 8) -> str:
    """The first names of a list and how many there are beyond them."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
