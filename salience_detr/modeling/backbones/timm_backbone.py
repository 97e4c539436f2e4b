"""Any feature model of timm as a detectron2 backbone."""

from __future__ import annotations

import math
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
    """Maps of a timm model, named by their strides: "stride4", "stride8", "stride16", "stride32".

    Args:
        name: model of ``timm.list_models()``; it starts with random weights.
        out_features: names of the maps.
        freeze_at_stride: freeze everything up to the map of this stride, and the downsampling after
            it; 0 freezes nothing.
        freeze_batch_norm: freeze statistics and weights of BatchNorm, for batches of few images.
        output_norms: a LayerNorm for each map.
        drop_path_rate: stochastic depth of the last block; earlier blocks have less.
        use_checkpoint: activation checkpointing.
        size_divisibility: images are padded at the right and bottom to multiples of this, and the
            maps are cropped again.
        options: further arguments of ``timm.create_model``.

    Raises:
        ValueError: timm has no such model, or the model has no map of such a stride, takes images
            of one size only, or lacks an option.
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

        # Some models have another default rate, and some take other sizes only on request.
        options = accepted_options(name, options, {"drop_path_rate": 0.0, "strict_img_size": False})

        # Everything that can be wrong is found on a model without weights.
        model = build_without_weights(name, options)
        features = list(model.feature_info.info)
        indices = {stride: index_of_stride(name, features, stride) for stride in strides}
        check_maps(name, model, strides, size_divisibility)
        self.name = name
        self.options = options

        out_indices = sorted(indices.values())
        self.body: Any = timm.create_model(
            name, pretrained=False, features_only=True, out_indices=out_indices, **options
        )

        # What detectron2's output_shape() tells the neck.
        self._size_divisibility = size_divisibility
        self._out_features = list(out_features)
        self._out_feature_strides = dict(zip(out_features, strides, strict=True))
        self._out_feature_channels = {}

        self.output_norms = nn.ModuleDict()
        for feature, stride in self._out_feature_strides.items():
            channels = features[indices[stride]]["num_chs"]
            self._out_feature_channels[feature] = channels

            if output_norms:
                self.output_norms[feature] = LayerNorm2d(channels, eps=1e-5)

        if freeze_batch_norm:
            self.body = freeze_batch_norm_2d(self.body)

        if freeze_at_stride:
            self._freeze(features, index_of_stride(name, features, freeze_at_stride))

        if use_checkpoint:
            try:
                self.body.set_grad_checkpointing(True)
            except (AssertionError, AttributeError) as error:
                raise ValueError(
                    f"{name} has no activation checkpointing; set use_checkpoint=False"
                ) from error

    @property
    def size_divisibility(self) -> int:
        """Divisor of the sides of an image that needs no padding."""
        return self._size_divisibility

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> maps (B, C, ceil(H / stride), ceil(W / stride)) by name."""
        height, width = images.shape[-2:]
        divisor = self.size_divisibility
        padded = nn.functional.pad(images, [0, -width % divisor, 0, -height % divisor])
        maps = self.body(padded)

        # timm gives the maps by rising stride; the padding is cropped again.
        features = {}
        for feature, x in zip(sorted(self._out_features, key=stride_of), maps, strict=True):
            stride = self._out_feature_strides[feature]
            x = channels_first(self.body, x)
            x = x[..., : math.ceil(height / stride), : math.ceil(width / stride)]

            if feature in self.output_norms:
                x = self.output_norms[feature](x)

            features[feature] = x

        return features

    def _freeze(self, features: Sequence[Mapping[str, Any]], index: int) -> None:
        """Freeze all modules up to a map, and the downsampling after it.

        Modules are registered in the order of the data. Some models downsample at the start of the
        next stage, which belongs to the frozen part, too.
        """
        modules = dict(self.body.named_modules())
        stage = prefixes(features[index]["module"])
        inside = [i for i, name in enumerate(modules) if f"{name}.".startswith(stage)]
        if not inside:
            raise ValueError(
                f"{features[index]['module']} cannot be frozen; set freeze_at_stride=0"
            )

        after: tuple[str, ...] = ()
        if index + 1 < len(features):
            after = prefixes(f"{features[index + 1]['module']}.downsample")

        for i, (name, module) in enumerate(modules.items()):
            if i <= inside[-1] or f"{name}.".startswith(after):
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)


def stride_of(feature: str) -> int:
    """Return 8 for "stride8".

    Raises:
        ValueError: the name has no number after "stride".
    """
    number = feature.removeprefix("stride")
    if number == feature or not number.isdigit():
        raise ValueError(f'the map {feature!r} is not named by its stride, such as "stride8"')
    return int(number)


def build_without_weights(name: str, options: Mapping[str, Any]) -> Any:
    """Build a feature model of timm with all its maps, on the meta device if possible.

    Raises:
        ValueError: timm has no such model, or none that gives maps.
    """
    try:
        try:
            with torch.device("meta"):
                return timm.create_model(name, features_only=True, **options).eval()
        except (NotImplementedError, RuntimeError):
            # Some models compute with their weights while they are built.
            return timm.create_model(name, features_only=True, **options).eval()
    except (RuntimeError, TypeError, AttributeError) as error:
        hint = ""
        if not timm.is_model(name):
            near = timm.list_models(f"*{name.split('_')[0]}*")[:8]
            hint = f"; it has {', '.join(near)}" if near else ""

        raise ValueError(
            f"timm {timm.__version__} cannot build {name!r} for its maps: {error}{hint}"
        ) from error


def accepted_options(
    name: str, options: dict[str, Any], wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options, with those of the wanted ones that the model accepts."""
    for key, value in wanted.items():
        try:
            build_without_weights(name, {key: value, **options})
        except ValueError:
            continue
        options = {key: value, **options}
    return options


def check_maps(name: str, model: Any, strides: Sequence[int], divisor: int) -> None:
    """Try an image that is not square, of 5 x 7 times the divisor.

    Raises:
        ValueError: the model takes images of one size only, or its maps do not cover the image.
    """
    height = 5 * divisor
    width = 7 * divisor
    image = torch.zeros(1, 3, height, width, device=next(model.parameters()).device)

    try:
        with torch.no_grad():
            maps = model(image)
    except Exception as error:  # models fail in many ways
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{name} does not take images of any size ({height}x{width}: {reason}); choose another "
            "model, or set size_divisibility to what it requires"
        ) from error

    for stride, x in zip(model.feature_info.reduction(), maps, strict=True):
        size = tuple(channels_first(model, x).shape[-2:])
        if stride in strides and size != (height // stride, width // stride):
            raise ValueError(
                f"{name} has maps of {size} for images of {(height, width)}, "
                f"not of stride {stride}; choose another model"
            )


def channels_first(model: Any, x: Tensor) -> Tensor:
    """Return a map as (B, C, H, W); some models give (B, H, W, C)."""
    if str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC"):
        return x.permute(0, 3, 1, 2)
    return x


def index_of_stride(name: str, features: Sequence[Mapping[str, Any]], stride: int) -> int:
    """Return the position of the last map of this stride.

    Raises:
        ValueError: the model has no such map.
    """
    positions = [i for i, feature in enumerate(features) if feature["reduction"] == stride]
    if not positions:
        strides = sorted({feature["reduction"] for feature in features})
        raise ValueError(f"{name} has no map of stride {stride}; its strides are {strides}")
    return positions[-1]


def prefixes(module: str) -> tuple[str, ...]:
    """Return the prefixes of the names inside a module, which timm wraps in one of several ways."""
    flattened = module.replace(".", "_", 1)
    return (f"{module}.", f"{flattened}.", f"model.{module}.", f"body.{module}.")


def timm_channels(
    name: str, out_features: Sequence[str], options: Mapping[str, Any] | None = None
) -> list[int]:
    """Return the channels of the maps of :class:`TimmBackbone`, for the neck of a config."""
    features = build_without_weights(name, dict(options or {})).feature_info.info

    channels = []
    for feature in out_features:
        index = index_of_stride(name, features, stride_of(feature))
        channels.append(features[index]["num_chs"])
    return channels
