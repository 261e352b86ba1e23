"""Which positions of a batch are masked by their tokens, and which are scored.

Letters: R real positions of a batch, window after window.
"""

import numpy as np

from gradsae_fast.records import Array, Batch, TokenMask, Window


def position_masks(batch: Batch) -> Array:
    """TokenMask bits of every real position that follow from the tokens alone, uint8 [R]."""
    return np.concatenate([_window_mask(window) for window in batch.windows])


def scored_positions(batch: Batch) -> Array:
    """Which real positions are scored in this batch (the others are context), bool [R]."""
    return np.concatenate([np.arange(len(window.token_ids)) >= window.num_context for window in batch.windows])


def _window_mask(window: Window) -> Array:
    document = window.document
    repeated_bos = document.num_bos if window.num_context else 0
    in_document = np.arange(repeated_bos, len(window.token_ids)) - window.num_context + window.first_position
    special = np.concatenate([np.ones(repeated_bos, bool), document.special[in_document]])
    mask = np.where(special, np.uint8(TokenMask.SPECIAL), np.uint8(0))
    if document.num_bos == 0:
        mask[0] |= TokenMask.FIRST
    return mask
