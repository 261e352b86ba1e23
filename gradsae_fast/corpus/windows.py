"""Documents become windows of bounded length, windows become right-padded batches.

Every token is new in exactly one window. Later windows begin with context that another window scores: the repeated
BOS, then the last `overlap` tokens before the new ones. Padding stands on the right, where no causal model looks.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from gradsae_fast.errors import ConfigError
from gradsae_fast.records import Batch, TokenDocument, Window


def cut_windows(document: TokenDocument, slot: int, *, context_length: int, overlap: int) -> list[Window]:
    """The windows of a document, at most `context_length` tokens each, the repeated BOS included.

    slot: position of the document in its segment. A document of length 0 has no windows.
    Raises ConfigError where BOS and overlap leave no room for a new token.
    """
    num_context = overlap + document.num_bos
    if overlap < 0 or num_context >= context_length:
        raise ConfigError(
            f"got overlap {overlap} and context length {context_length} with {document.num_bos} BOS, expected "
            "0 <= overlap and overlap + BOS < context length; lower the overlap or raise the context length"
        )
    bos = np.arange(document.num_bos)
    positions = [np.arange(min(context_length, document.num_tokens))]
    firsts = range(context_length, document.num_tokens, context_length - num_context)
    for first in firsts:
        stop = min(first + context_length - num_context, document.num_tokens)
        positions.append(np.concatenate([bos, np.arange(first - overlap, stop)]))
    windows = [
        Window(
            document=document,
            slot=slot,
            token_ids=document.token_ids[position_T],
            num_context=num_context if first else 0,
            first_position=first,
            patch_ids=None if document.patch_ids is None else document.patch_ids[position_T],
        )
        for first, position_T in zip((0, *firsts), positions, strict=True)
    ]
    return windows if document.num_tokens else []


def batch_windows(windows: Iterable[Window], *, tokens_per_batch: int, pad_id: int = 0) -> list[Batch]:
    """Batches of similar length: rows x longest row <= `tokens_per_batch`; a longer window is a batch of its own.

    Windows are sorted by length, longest first, equal lengths in the order given: the same windows always give the
    same batches, and the first batches need the most memory.
    """
    if tokens_per_batch < 1:
        raise ConfigError(f"got tokens_per_batch {tokens_per_batch}, expected at least 1")
    ordered = sorted(windows, key=lambda window: -len(window.token_ids))
    batches = []
    first = 0
    while first < len(ordered):
        rows = max(1, tokens_per_batch // len(ordered[first].token_ids))
        batches.append(_padded(ordered[first : first + rows], pad_id))
        first += rows
    return batches


def _padded(windows: Sequence[Window], pad_id: int) -> Batch:
    token_ids_BT = np.full((len(windows), len(windows[0].token_ids)), pad_id, np.int64)
    for row, window in enumerate(windows):
        token_ids_BT[row, : len(window.token_ids)] = window.token_ids
    return Batch(windows=tuple(windows), token_ids_BT=token_ids_BT)
