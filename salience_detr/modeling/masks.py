"""Masks of padding: of the pixels of a batch, and of the decoder's queries.

Symbols: B images, n queries, N of them at most, T denoising queries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from torch import Tensor

from salience_detr.modeling.denoising import DenoisingQueries
from salience_detr.modeling.query_selection import Proposals


def padding_mask(images: ImageList) -> Tensor:
    """Return (B, H, W), True = padding."""
    batch, _, padded_height, padded_width = images.tensor.shape
    mask = images.tensor.new_ones(batch, padded_height, padded_width, dtype=torch.bool)
    for image_mask, (height, width) in zip(mask, images.image_sizes, strict=True):
        image_mask[:height, :width] = False
    return mask


def self_attention_mask(proposals: Proposals, denoising: DenoisingQueries | None) -> Tensor | None:
    """Return the mask of the decoder's self-attention, True = may not attend.

    Returns:
        (1, T + n, T + n); (B, T + n, T + n) where some images have padded queries, which no query
        may attend to; None where every query attends to all.
    """
    num_denoising = 0
    if denoising is not None:
        num_denoising = denoising.layout.num_queries
    total = num_denoising + proposals.token_index.shape[1]

    # The denoising mask is that of N matching queries, of which a batch may have fewer.
    mask = None
    if denoising is not None:
        mask = denoising.attention_mask[None, :total, :total]

    if bool((proposals.num_valid == proposals.token_index.shape[1]).all()):
        return mask

    padded = F.pad(~proposals.valid_mask, [num_denoising, 0])[:, None]
    if mask is None:
        return padded.expand(-1, total, -1)
    return mask | padded
