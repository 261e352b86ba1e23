"""Make workloads: cut documents out of a corpus, and find with the engine's own rules what is masked.

Letters: N tokens of all documents, D width.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.peers.jumprelu import read_folder
from benchmarks.peers.random_sae import write_random_sae
from benchmarks.peers.run_engine import engine_config
from benchmarks.peers.workload import Array, Settings, Workload
from gradsae_fast.corpus.read import open_corpus
from gradsae_fast.corpus.tokens import tokenize
from gradsae_fast.model.states import hidden_states
from gradsae_fast.positions import position_masks
from gradsae_fast.prepare import Prepared, prepare, with_sink_limits
from gradsae_fast.probe import measure_medians
from gradsae_fast.records import Batch, Window


def cut_documents(corpus: str, model: str, lengths: Sequence[int], path: Path) -> None:
    """Write the first documents of a corpus, of each about so many tokens from its middle: beginnings may be alike.

    Raises ValueError where a document is too short.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = []
    for length, document in zip(lengths, open_corpus(corpus, max_documents=len(lengths)), strict=True):
        text = document.full_text
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoding["offset_mapping"]
        if len(offsets) < length:
            raise ValueError(
                f"{document.key!r} has {len(offsets)} tokens; expected {length} or more. Shorten --lengths."
            )
        first = (len(offsets) - length) // 2
        rows.append({"id": document.key, "text": text[offsets[first][0] : offsets[first + length - 1][1]]})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_workload(folder: Path, settings: Settings) -> tuple[Workload, Tensor]:
    """The workload of the folder's corpus.jsonl, saved, and the hidden states [N, D] at its site."""
    empty = np.zeros(0, np.int64)
    bare = Workload(
        folder=folder, settings=settings, token_id_N=empty, document_ptr=empty, spliced_N=empty, target_N=empty
    )
    prepared = prepare(engine_config(bare, str(folder / "none.gradsae")))
    prepared = with_sink_limits(prepared, measure_medians(prepared))
    seen = [_look(prepared, window) for window in _windows(prepared)]
    lengths = [len(one.token_ids) for one in seen]
    workload = replace(
        bare,
        token_id_N=np.concatenate([one.token_ids for one in seen]).astype(np.int64),
        document_ptr=np.cumsum([0, *lengths]),
        spliced_N=np.concatenate([one.mask == 0 for one in seen]),
        target_N=np.concatenate([~one.special for one in seen]),
    )
    workload.save()
    return workload, torch.cat([one.hidden_TD for one in seen])


def with_random_sae(workload: Workload, hidden_ND: Tensor, num_latents: int, active: float) -> Workload:
    """The same documents with a random SAE of another width; saved in a folder beside the first."""
    folder = workload.folder.with_name(f"{workload.folder.name}-{num_latents}")
    settings = workload.settings
    trained = read_folder(Path(settings.sae))[0]["metadata"]
    metadata = {name: trained.get(name) for name in ("model_name", "hook_name", "hf_hook_name", "prepend_bos")}
    masked_N = ~torch.from_numpy(workload.spliced_N)
    sae = write_random_sae(
        folder / "sae", hidden_ND, masked_N, num_latents=num_latents, active=active, metadata=metadata
    )
    other = replace(workload, folder=folder, settings=replace(settings, sae=str(sae), num_latents=num_latents))
    other.save()
    (folder / "corpus.jsonl").write_bytes((workload.folder / "corpus.jsonl").read_bytes())
    return other


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Seen:
    """One document as the engine sees it; T tokens."""

    token_ids: Array
    special: Array
    mask: Array
    hidden_TD: Tensor


def _windows(prepared: Prepared) -> list[Window]:
    """One window for each document."""
    documents = tokenize(prepared.corpus, prepared.lm.tokenizer, prepared.rules)
    return [window for slot, document in enumerate(documents) for window in prepared.cut(document, slot)]


def _look(prepared: Prepared, window: Window) -> _Seen:
    """Mask and hidden state of a document that is one window."""
    if window.num_context:
        raise ValueError(f"{window.document.document.key!r} does not fit one window; shorten --lengths")
    batch = Batch(windows=(window,), token_ids_BT=window.token_ids[None].astype(np.int64))
    (sited,) = prepared.sited
    hidden_TD = hidden_states(prepared.lm, batch, [sited.site])[sited.site.path]
    sink_T = sited.sinks(hidden_TD, hidden_TD)
    return _Seen(
        token_ids=window.token_ids,
        special=window.document.special,
        mask=position_masks(batch) | sink_T.numpy().astype(np.uint8),
        hidden_TD=hidden_TD,
    )
