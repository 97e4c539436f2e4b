"""The published backbones and their siblings.

Each ``use_`` function replaces the backbone of a model and gives its channels to the neck. The stem
and the first stage are frozen; the rates of stochastic depth are the published ones.
"""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.resnet import BasicStem

from salience_detr.modeling.backbones.resnet import ResNet
from salience_detr.modeling.backbones.swin import Swin
from salience_detr.modeling.backbones.timm_backbone import FEATURES, TimmBackbone, timm_channels

# embedding, depths, heads, drop path
SWIN = {
    "tiny": (96, [2, 2, 6, 2], [3, 6, 12, 24], 0.2),
    "small": (96, [2, 2, 18, 2], [3, 6, 12, 24], 0.3),
    "base": (128, [2, 2, 18, 2], [4, 8, 16, 32], 0.5),
    "large": (192, [2, 2, 18, 2], [6, 12, 24, 48], 0.2),
}
DROP_PATH = {
    "convnext_tiny": 0.1,
    "convnext_small": 0.4,
    "convnext_base": 0.5,
    "convnext_large": 0.5,
    "focalnet_tiny_lrf": 0.2,
    "focalnet_small_lrf": 0.3,
    "focalnet_base_lrf": 0.5,
    "focalnet_large_fl4": 0.5,
}


def resnet(depth, out_features=("res3", "res4", "res5")):
    """ResNet-18, 34, 50, 101 or 152 with frozen BatchNorm, laid out as torchvision's."""
    layout = {"stride_in_1x1": False} if depth >= 50 else {}
    return L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
        stages=L(ResNet.make_default_stages)(depth=depth, norm="FrozenBN", **layout),
        out_features=list(out_features),
        freeze_at=2,
        use_checkpoint=False,
    )


def use_resnet(model, depth, out_features=("res3", "res4", "res5")):
    """See :func:`resnet`."""
    model.backbone = resnet(depth, out_features)
    width = 256 if depth >= 50 else 64  # of the map "res2"
    model.neck.in_channels = [width * 2 ** (int(name[-1]) - 2) for name in out_features]


def use_swin(model, size):
    """Swin Transformer with windows of 7: "tiny", "small", "base" or "large"."""
    embed_dim, depths, num_heads, drop_path_rate = SWIN[size]
    model.backbone = L(Swin)(
        embed_dim=embed_dim,
        depths=depths,
        num_heads=num_heads,
        window_size=7,
        drop_path_rate=drop_path_rate,
        out_features=["p1", "p2", "p3"],
        frozen_stages=2,
        use_checkpoint=False,
    )
    model.neck.in_channels = [embed_dim * 2, embed_dim * 4, embed_dim * 8]


def use_timm(model, name, output_norms=False, **options):
    """Any feature model of timm with maps of strides 8, 16 and 32."""
    model.backbone = L(TimmBackbone)(
        name=name,
        out_features=list(FEATURES),
        freeze_at_stride=4,
        freeze_batch_norm=True,
        output_norms=output_norms,
        drop_path_rate=DROP_PATH.get(name, 0.0),
        use_checkpoint=False,
        options=options,
    )
    model.neck.in_channels = L(timm_channels)(
        name="${...backbone.name}",
        out_features="${...backbone.out_features}",
        options="${...backbone.options}",
    )


def use_convnext(model, size):
    """ConvNeXt: "tiny", "small", "base" or "large"; raw maps."""
    use_timm(model, f"convnext_{size}")


def use_focalnet(model, variant):
    """FocalNet of large receptive field: "tiny_lrf", "small_lrf", "base_lrf" or "large_fl4"."""
    modulator = {"normalize_modulator": True} if variant == "large_fl4" else {}
    use_timm(model, f"focalnet_{variant}", output_norms=True, **modulator)
