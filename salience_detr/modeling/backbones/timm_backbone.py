"""Any feature model of timm as a detectron2 backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from detectron2.modeling import Backbone
from timm.layers import LayerNorm2d
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn

FEATURES = ("stride8", "stride16", "stride32")


class TimmBackbone(Backbone):
    """Maps of a timm model, called by their strides: "stride4", "stride8", "stride16", "stride32".

    Args:
        name: of the model, as in ``timm.list_models()``; it starts with random weights.
        out_features: names of the wanted maps.
        freeze_at_stride: all that computes the map of this stride, and the downsampling after it, keeps its weights;
            0 = nothing.
        freeze_batch_norm: BatchNorm keeps its statistics and its weights, which batches of few images ask for.
        output_norms: a LayerNorm for each map.
        drop_path_rate: stochastic depth of the last block; earlier ones have less.
        use_checkpoint: compute activations again in the backward pass instead of keeping them.
        size_divisibility: images are padded, at the right and at the bottom, to multiples of this, and maps are cut.
        options: further arguments of ``timm.create_model``.

    Raises:
        ValueError: timm has no such model, it has no map of such a stride, it takes images of one size only, or it
            lacks what is asked for.
    """

    def __init__(
        self,
        *,
        name: str,
        out_features: Sequence[str] = FEATURES,
        freeze_at_stride: int = 0,
        freeze_batch_norm: bool = True,
        output_norms: bool = False,
        drop_path_rate: float = 0.0,
        use_checkpoint: bool = False,
        size_divisibility: int = 32,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        strides = [stride_of(feature) for feature in out_features]
        options = dict(options or {})
        if drop_path_rate:
            options["drop_path_rate"] = drop_path_rate
        # Of some models the default rate is not 0, and some take images of other sizes on request.
        options = accepted_options(name, options, {"drop_path_rate": 0.0, "strict_img_size": False})
        model = build_without_weights(name, options)
        features = list(model.feature_info.info)
        indices = {stride: index_of_stride(name, features, stride) for stride in strides}
        check_maps(name, model, strides, size_divisibility)
        self.body: Any = timm.create_model(
            name,
            pretrained=False,
            features_only=True,
            out_indices=sorted(indices.values()),
            **options,
        )
        self._size_divisibility = size_divisibility
        self._out_features = list(out_features)
        self._out_feature_strides = dict(zip(out_features, strides, strict=True))
        self._out_feature_channels = {
            feature: features[indices[stride]]["num_chs"]
            for feature, stride in self._out_feature_strides.items()
        }
        self.output_norms = nn.ModuleDict(
            {
                feature: LayerNorm2d(channels, eps=1e-5)
                for feature, channels in self._out_feature_channels.items()
            }
            if output_norms
            else {}
        )
        if freeze_batch_norm:
            self.body = freeze_batch_norm_2d(self.body)
        if freeze_at_stride:
            self._freeze(features, index_of_stride(name, features, freeze_at_stride))
        if use_checkpoint:
            try:
                self.body.set_grad_checkpointing(True)
            except (AssertionError, AttributeError) as error:
                raise ValueError(
                    f"{name} cannot compute activations again; set use_checkpoint=False"
                ) from error

    @property
    def size_divisibility(self) -> int:
        """Sides that are no multiple of this are padded, at the right and at the bottom."""
        return self._size_divisibility

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> maps (B, C, ceil(H / stride), ceil(W / stride)) by name"""
        height, width = images.shape[-2:]
        divisor = self.size_divisibility
        maps = self.body(nn.functional.pad(images, [0, -width % divisor, 0, -height % divisor]))
        features = {}
        for feature, x in zip(sorted(self._out_features, key=stride_of), maps, strict=True):
            stride = self._out_feature_strides[feature]
            x = channels_first(self.body, x)[..., : -(-height // stride), : -(-width // stride)]
            features[feature] = self.output_norms[feature](x) if feature in self.output_norms else x
        return features

    def _freeze(self, features: Sequence[Mapping[str, Any]], index: int) -> None:
        """Modules are registered in the order of the data; some models downsample at the start of the next stage."""
        modules = dict(self.body.named_modules())
        inside = [
            i
            for i, name in enumerate(modules)
            if f"{name}.".startswith(prefixes(features[index]["module"]))
        ]
        if not inside:
            raise ValueError(
                f"{features[index]['module']} cannot be frozen; set freeze_at_stride=0"
            )
        after = (
            prefixes(f"{features[index + 1]['module']}.downsample")
            if index + 1 < len(features)
            else ()
        )
        for i, (name, module) in enumerate(modules.items()):
            if i <= inside[-1] or f"{name}.".startswith(after):
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)


def stride_of(feature: str) -> int:
    """ "stride8" -> 8"""
    number = feature.removeprefix("stride")
    if number == feature or not number.isdigit():
        raise ValueError(f'the map {feature!r} is not called by its stride, such as "stride8"')
    return int(number)


def build_without_weights(name: str, options: Mapping[str, Any]) -> Any:
    """A feature model of timm with all its maps, on the meta device if it can be built there.

    Raises:
        ValueError: timm has no such model, or none that gives maps.
    """
    try:
        try:
            with torch.device("meta"):
                return timm.create_model(name, features_only=True, **options).eval()
        except (
            NotImplementedError,
            RuntimeError,
        ):  # some compute with their weights while they are built
            return timm.create_model(name, features_only=True, **options).eval()
    except (RuntimeError, TypeError, AttributeError) as error:
        near = [] if timm.is_model(name) else timm.list_models(f"*{name.split('_')[0]}*")[:8]
        hint = f"; it has {', '.join(near)}" if near else ""
        raise ValueError(
            f"timm {timm.__version__} cannot build {name!r} for its maps: {error}{hint}"
        ) from error


def accepted_options(
    name: str, options: dict[str, Any], wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """The options, and those of the wanted ones that the model knows."""
    for key, value in wanted.items():
        try:
            build_without_weights(name, {key: value, **options})
        except ValueError:
            continue
        options = {key: value, **options}
    return options


def check_maps(name: str, model: Any, strides: Sequence[int], divisor: int) -> None:
    """Try an image that is not square.

    Raises:
        ValueError: the model takes images of one size only, or its maps do not cover the image.
    """
    height, width = 5 * divisor, 7 * divisor
    image = torch.zeros(1, 3, height, width, device=next(model.parameters()).device)
    try:
        with torch.no_grad():
            maps = model(image)
    except Exception as error:  # whatever is in its way
        raise ValueError(
            f"{name} does not take images of any size ({height}x{width}: {str(error) or type(error).__name__}); "
            "choose another model, or set size_divisibility if it asks for multiples of more"
        ) from error
    for stride, x in zip(model.feature_info.reduction(), maps, strict=True):
        size = tuple(channels_first(model, x).shape[-2:])
        if stride in strides and size != (height // stride, width // stride):
            raise ValueError(
                f"{name} has maps of {size} for images of {(height, width)}, which is no stride {stride}"
            )


def channels_first(model: Any, x: Tensor) -> Tensor:
    """(B, H, W, C), which some models give, -> (B, C, H, W)"""
    return (
        x.permute(0, 3, 1, 2) if str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC") else x
    )


def index_of_stride(name: str, features: Sequence[Mapping[str, Any]], stride: int) -> int:
    """Position of the last map of this stride."""
    found = [i for i, feature in enumerate(features) if feature["reduction"] == stride]
    if not found:
        strides = sorted({feature["reduction"] for feature in features})
        raise ValueError(f"{name} has no map of stride {stride}; its strides are {strides}")
    return found[-1]


def prefixes(module: str) -> tuple[str, ...]:
    """How names inside a module may start in timm's feature models, which wrap the whole model in several ways."""
    return tuple(
        f"{name}."
        for name in (module, module.replace(".", "_", 1), f"model.{module}", f"body.{module}")
    )


def timm_channels(
    name: str, out_features: Sequence[str], options: Mapping[str, Any] | None = None
) -> list[int]:
    """Channels of the maps that :class:`TimmBackbone` gives, for the neck of a config."""
    features = build_without_weights(name, dict(options or {})).feature_info.info
    return [
        features[index_of_stride(name, features, stride_of(feature))]["num_chs"]
        for feature in out_features
    ]
