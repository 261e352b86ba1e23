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


def batch_windows(
    windows: Iterable[Window], *, tokens_per_batch: int, batch_cost: int | None = None, pad_id: int = 0
) -> list[Batch]:
    """Batches of similar length: rows x longest row <= `tokens_per_batch`; a longer window is a batch of its own.

    Windows are sorted by length, longest first, equal lengths in the order given: the same windows always give the
    same batches, and none is larger than the budget. `batch_cost` is what a batch costs besides its tokens,
    padding included, in tokens: the batches are those of the least cost. None: as few batches as there can be.
    """
    if tokens_per_batch < 1:
        raise ConfigError(f"got tokens_per_batch {tokens_per_batch}, expected at least 1")
    ordered = sorted(windows, key=lambda window: -len(window.token_ids))
    lengths = [len(window.token_ids) for window in ordered]
    most_rows = [max(1, tokens_per_batch // length) for length in lengths]
    rows = most_rows if batch_cost is None else _cheapest_rows(lengths, most_rows, batch_cost)
    batches = []
    first = 0
    while first < len(ordered):
        batches.append(_padded(ordered[first : first + rows[first]], pad_id))
        first += rows[first]
    return batches


def _cheapest_rows(lengths: Sequence[int], most_rows: Sequence[int], batch_cost: int) -> list[int]:
    """Rows of the batch that begins at each window, so that all windows from there on cost least.

    lengths: descending. A window alone, then two, ... are tried from the last window to the first, each with the known
    cost of what comes behind.
    """
    cost = np.zeros(len(lengths) + 1)
    rows = [0] * len(lengths)
    for first in reversed(range(len(lengths))):
        behind = cost[first + 1 : first + 1 + most_rows[first]]
        choices = behind + lengths[first] * np.arange(1, len(behind) + 1)
        rows[first] = int(choices.argmin()) + 1
        cost[first] = batch_cost + choices[rows[first] - 1]
    return rows


def _padded(windows: Sequence[Window], pad_id: int) -> Batch:
    token_ids_BT = np.full((len(windows), len(windows[0].token_ids)), pad_id, np.int64)
    for row, window in enumerate(windows):
        token_ids_BT[row, : len(window.token_ids)] = window.token_ids
    return Batch(windows=tuple(windows), token_ids_BT=token_ids_BT)
