"""The configs of the project by their names, and their trained weights, as detectron2's model_zoo.

The names are those of the files in configs/. ``salience_detr.Predictor.from_pretrained`` takes
them, and so do ``--config-file`` and ``--weights`` of all programs.
"""

from __future__ import annotations

from detectron2.config import LazyConfig
from omegaconf import DictConfig

from salience_detr.checkpoint.published import published_weights
from salience_detr.utils.errors import suggest
from salience_detr.utils.shipped import shipped_folder

CONFIGS = shipped_folder("configs", "model_zoo/configs", content="neu_det_r18.py")

__all__ = ["ModelZooError", "get_checkpoint_url", "get_config", "get_config_file", "list_models"]


class ModelZooError(ValueError):
    """A name that no model has, or a model without published weights."""


def list_models(*, pretrained: bool = False) -> list[str]:
    """Return the names of all configs, or of those with published weights only."""
    names = sorted(path.stem for path in CONFIGS.glob("*.py"))
    if pretrained:
        names = [name for name in names if published_weights(name)]
    return names


def get_config_file(name: str) -> str:
    """Return the path of a config by its name, such as "neu_det_r18".

    Raises:
        ModelZooError: there is none of that name; names the nearest.
    """
    names = list_models()
    if name.removesuffix(".py") not in names:
        raise ModelZooError(f"there is no model {name!r}; {suggest(name, names)}")
    return str(CONFIGS / f"{name.removesuffix('.py')}.py")


def get_config(name: str, *, trained: bool = False) -> DictConfig:
    """Return a config by its name.

    Args:
        name: such as "neu_det_r18".
        trained: set ``train.init_checkpoint`` to the published weights. Else it is what training
            starts from.

    Raises:
        ModelZooError: there is no config of that name, or it has no published weights.
    """
    config = LazyConfig.load(get_config_file(name))
    if trained:
        config.train.init_checkpoint = get_checkpoint_url(name)
    return config


def get_checkpoint_url(name: str) -> str:
    """Return the URL of the published weights of a config, or the path of shipped ones.

    Raises:
        ModelZooError: there is no config of that name, or it has no published weights.
    """
    get_config_file(name)
    url = published_weights(name.removesuffix(".py"))
    if url is None:
        trained = ", ".join(list_models(pretrained=True))
        raise ModelZooError(f"no weights of {name} are published; there are those of {trained}")
    return url
