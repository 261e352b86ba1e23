"""What every variant is given: documents as token ids, what is spliced, what is predicted, and how to batch them.

A folder: workload.json (settings), tokens.npz, and corpus.jsonl (the same documents as text, for the engine). Reading
it takes numpy and torch alone, so that the environment of any peer can.

Letters: M documents, N tokens of all documents, B documents of a batch, T positions of a batch, padding included.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
NO_TARGET = -100  # the label that cross_entropy passes over


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything about a workload that is not a token."""

    model: str  # a transformers folder
    sae: str  # a SAELens folder of the architecture jumprelu
    site: str  # module path in the transformers model
    num_latents: int
    context_length: int  # no document is longer
    documents_per_batch: int  # of the usual scripts and of delphi
    tokens_per_batch: int  # padding included; of the tuned scripts and of the engine
    authors_documents: tuple[int, ...]  # those that the authors' procedure is run on
    decode_steps: int  # tokens that it generates for each of them
    threads: int | None  # None: as torch chooses


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Documents padded on the right."""

    token_ids_BT: Tensor  # int64; 0 in padding
    real_BT: Tensor  # bool
    spliced_BT: Tensor  # bool
    label_BT: Tensor  # int64: the token itself where it is to be predicted, else NO_TARGET
    token_BT: Tensor  # int64: position among the N tokens, -1 in padding


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """Documents, in corpus order."""

    folder: Path
    settings: Settings
    token_id_N: Array  # int64
    document_ptr: Array  # int64 [M+1], where documents begin
    spliced_N: Array  # bool: where the reconstruction replaces the hidden state; the other tokens do not count
    target_N: Array  # bool: tokens whose log-probability is part of the objective, unless they are a document's first

    @classmethod
    def load(cls, folder: Path) -> "Workload":
        """Read what `save` wrote."""
        values = json.loads((folder / "workload.json").read_text(encoding="utf-8"))
        values["authors_documents"] = tuple(values["authors_documents"])
        with np.load(folder / "tokens.npz") as arrays:
            return cls(folder=folder, settings=Settings(**values), **arrays)

    def save(self) -> None:
        """Write settings and tokens."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self.settings), indent=1)
        (self.folder / "workload.json").write_text(text + "\n", encoding="utf-8")
        names = ("token_id_N", "document_ptr", "spliced_N", "target_N")
        np.savez(self.folder / "tokens.npz", **{name: getattr(self, name) for name in names})

    @property
    def lengths(self) -> list[int]:
        return np.diff(self.document_ptr).tolist()

    @property
    def document_N(self) -> Array:
        """The document of each token, int64 [N]."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def tokens_of(self, documents: Sequence[int]) -> Array:
        """Positions among the N tokens of some documents, int64."""
        return np.concatenate([np.arange(*self.document_ptr[index : index + 2]) for index in documents])

    def batch(self, documents: Sequence[int], width: int | None = None) -> Batch:
        """Some documents, padded to the longest of them or to `width`."""
        width = width or max(self.lengths[index] for index in documents)
        token_BT = np.full((len(documents), width), -1)
        for row, index in enumerate(documents):
            token_BT[row, : self.lengths[index]] = self.tokens_of([index])
        real_BT = token_BT >= 0
        ids_BT = np.where(real_BT, self.token_id_N[token_BT], 0)
        return Batch(
            token_ids_BT=torch.from_numpy(ids_BT),
            real_BT=torch.from_numpy(real_BT),
            spliced_BT=torch.from_numpy(real_BT & self.spliced_N[token_BT]),
            label_BT=torch.from_numpy(np.where(real_BT & self.target_N[token_BT], ids_BT, NO_TARGET)),
            token_BT=torch.from_numpy(token_BT),
        )

    def batches(self, *, bucketed: bool) -> Iterator[Batch]:
        """All documents: as they come, a fixed number at a time; or by length, within a budget of padded tokens."""
        for documents in self._bucketed() if bucketed else self._in_order():
            yield self.batch(documents)

    def _in_order(self) -> Iterator[Sequence[int]]:
        count, size = len(self.lengths), self.settings.documents_per_batch
        return (range(first, min(first + size, count)) for first in range(0, count, size))

    def _bucketed(self) -> Iterator[Sequence[int]]:
        order = sorted(range(len(self.lengths)), key=lambda index: -self.lengths[index])
        while order:
            rows = max(1, self.settings.tokens_per_batch // self.lengths[order[0]])
            yield order[:rows]
            del order[:rows]
