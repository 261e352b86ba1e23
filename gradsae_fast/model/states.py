"""Hidden states of a plain forward pass, at the real positions of a batch.

Letters: B windows, T positions (padded), R real positions of a batch, D width.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.sites import Site, Wiring
from gradsae_fast.records import Batch
from gradsae_fast.stages import span
from gradsae_fast.transfer import to_device


@span("forward")
def run_body(lm: LanguageModel, batch: Batch) -> Any:
    """The body's output on a batch. Padding is on the right of a causal model: no mask is needed."""
    return lm.body(input_ids=to_device(batch.token_ids_BT, lm.device), use_cache=False)


def hidden_states(lm: LanguageModel, batch: Batch, sites: Sequence[Site]) -> dict[str, Tensor]:
    """Hidden states [R, D] of one plain forward pass, which ends at the last site; keys are site paths."""
    rows_R = real_rows(batch, lm.device)
    found: dict[str, Tensor] = {}

    def keep(path: str, hidden_BTD: Tensor) -> None:
        found[path] = take_rows(hidden_BTD, rows_R)
        if len(found) == len(sites):
            raise _AllSeen

    with ExitStack() as stack, torch.no_grad(), suppress(_AllSeen):
        for site in sites:
            stack.enter_context(site.hook(lm.model, partial(keep, site.path)))
        run_body(lm, batch)
    return found


class _AllSeen(Exception):
    """Every site has been seen: what the model would do next is not needed."""


def read_and_written(lm: LanguageModel, batch: Batch, wirings: Sequence[Wiring]) -> dict[str, tuple[Tensor, Tensor]]:
    """What every SAE reads and what it stands for [R, D], of one plain forward pass; keys are the wirings' paths."""
    hidden = hidden_states(lm, batch, list(dict.fromkeys(site for wiring in wirings for site in wiring.sites)))
    return {
        wiring.path: (hidden[wiring.reads.path], side_by_side([hidden[site.path] for site in wiring.writes]))
        for wiring in wirings
    }


def hold_the_same(lm: LanguageModel, batch: Batch, one: Site, other: Site) -> bool:
    """Whether two sites are one place under two names, as what a norm puts out and what the MLP behind it takes in."""
    if one == other:
        return True
    hidden = hidden_states(lm, batch, [one, other])
    return torch.equal(hidden[one.path], hidden[other.path])


def real_rows(batch: Batch, device: torch.device | str = "cpu") -> Tensor:
    """Rows of the flattened [B * T] batch that hold real tokens, window after window [R]."""
    width = batch.token_ids_BT.shape[1]
    rows = [np.arange(length) + index * width for index, length in enumerate(batch.lengths)]
    return to_device(np.concatenate(rows), device)


def take_rows(hidden_BTD: Tensor, rows_R: Tensor) -> Tensor:
    """The chosen rows of all windows, one after the other [R, D], on the device of `rows_R`, not that of the layer."""
    return hidden_BTD.flatten(0, 1)[rows_R.to(hidden_BTD.device)].to(rows_R.device)


def side_by_side(parts_RD: Sequence[Tensor]) -> Tensor:
    """Written sites side by side; one alone as it is."""
    return parts_RD[0] if len(parts_RD) == 1 else torch.cat(list(parts_RD), 1)
