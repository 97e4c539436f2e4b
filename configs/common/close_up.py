"""Other augmentations of single images in the last part of a run, ``train.close_up`` of it."""

from omegaconf import DictConfig, ListConfig

from salience_detr.data import MixingMapper


def end_with(dataloader: DictConfig, augmentations: list[DictConfig] | ListConfig) -> None:
    """Let the training end with these augmentations in place of the mapper's, in place."""
    dataloader.train.mapper.update(
        _target_=MixingMapper,
        mixes=[],
        close_up="${train.close_up}",
        close_up_augmentations=augmentations,
        max_iter="${train.max_iter}",
    )
