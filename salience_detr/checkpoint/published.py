"""Weights of the configs in configs/: shipped with the package, or released by the paper's authors.

Every function that reads a checkpoint takes the name of such a config for its weights.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from salience_detr.utils.shipped import shipped_folder

# Trained here, in demo/ of the project; a wheel carries them.
SHIPPED = ("neu_det_r18", "neu_det_r18_plus", "surface_defects_tiny", "surface_defects_tiny_plus")

# Files of the published implementation by config. They are converted while they are read.
RELEASES = "https://github.com/xiuqhou/Salience-DETR/releases/download/v1.0.0"
RELEASED = {
    "salience_detr_r50_4scale_12ep": "salience_detr_resnet50_800_1333_coco_1x.pth",
    "salience_detr_r50_4scale_24ep": "salience_detr_resnet50_800_1333_coco_2x.pth",
    "salience_detr_convnext_l_12ep": "salience_detr_convnext_l_800_1333_coco_1x.pth",
    "salience_detr_swin_l_12ep": "salience_detr_swin_l_800_1333_coco_1x.pth",
    "salience_detr_focalnet_l_12ep": "salience_detr_focalnet_large_lrf_800_1333_coco_1x.pth",
}


def published_weights(name: str) -> str | None:
    """Return the path or URL of the weights of a config, None if it has none."""
    if name in SHIPPED:
        folder = shipped_folder("demo", "model_zoo/weights", content="neu_det_r18.safetensors")
        return str(folder / f"{name}.safetensors")
    if name in RELEASED:
        return f"{RELEASES}/{RELEASED[name]}"
    return None


def config_of_release(path: str) -> str | None:
    """Return the name of the config of a released file, by its file name; None for other files."""
    file_name = PurePosixPath(path).name
    for name, released in RELEASED.items():
        if file_name == released:
            return name
    return None
