"""A first look at the corpus: a few windows on which sinks are measured, the gate is passed and costs are estimated."""

import dataclasses
from collections.abc import Iterator
from itertools import islice

from gradsae_fast.corpus.tokens import tokenize
from gradsae_fast.corpus.windows import batch_windows, cut_windows
from gradsae_fast.gate import GateReport, median_norms, run_gate
from gradsae_fast.prepare import Prepared
from gradsae_fast.records import Batch, TokenDocument, Window

_DOCUMENTS = 32  # looked at, at most
_SHORT_DOCUMENTS = 2  # scored by the gate
_SHORT_TOKENS = 128  # of a window, at most, where the objective can do with the beginning of a document
_DENSE_ELEMENTS = 1 << 23  # tokens x latents of one window that the dense oracle may hold


def measure_medians(prepared: Prepared) -> dict[str, float]:
    """Median norm of the hidden state at each site, over the corpus's first windows."""
    return median_norms(prepared.lm, prepared.sited, probe_batches(prepared))


def check_run(prepared: Prepared) -> GateReport:
    """Pass the gate with the first documents of the corpus."""
    return run_gate(
        prepared.lm,
        prepared.sited,
        prepared.method,
        prepared.objectives,
        probe_batches(prepared),
        _short_batch(prepared),
        bos=prepared.rules.prepend_bos,
        force=prepared.config.run.force,
        chunk=prepared.config.run.head_chunk_tokens,
    )


def probe_batches(prepared: Prepared) -> list[Batch]:
    """About one batch of the corpus's first windows, as the run will see them."""
    budget = prepared.config.run.tokens_per_batch
    windows: list[Window] = []
    for document in _documents(prepared):
        for window in prepared.cut(document, 0):
            if windows and len(window.token_ids) > budget:
                return prepared.batches(windows)
            windows.append(window)
            budget -= len(window.token_ids)
    return prepared.batches(windows)


def _documents(prepared: Prepared) -> Iterator[TokenDocument]:
    """The first documents that hold more than a BOS."""
    documents = tokenize(prepared.corpus, prepared.lm.tokenizer, prepared.rules)
    return islice((document for document in documents if document.num_tokens > prepared.rules.prepend_bos), _DOCUMENTS)


def _short_batch(prepared: Prepared) -> Batch:
    """A few short windows, second ones with repeated context among them.

    Beginnings of the longest documents; or the shortest documents whole, where an answer or the end matters.
    """
    documents = sorted(_documents(prepared), key=lambda document: document.num_tokens)
    if set(prepared.method.objectives) == {"next-token"}:
        widest = max(one.sae.num_latents for one in prepared.sited)
        length = min(_SHORT_TOKENS, max(16, _DENSE_ELEMENTS // widest), prepared.config.corpus.context_length)
        overlap = min(prepared.config.corpus.overlap, length // 4)
        chosen = [shortened(document, 2 * length - overlap - 1) for document in documents[-_SHORT_DOCUMENTS:]]
        windows = [w for d in chosen for w in cut_windows(d, 0, context_length=length, overlap=overlap)]
    else:
        windows = [prepared.cut(document, 0)[0] for document in documents[:_SHORT_DOCUMENTS]]
    longest = max(len(window.token_ids) for window in windows)
    return batch_windows(windows, tokens_per_batch=longest * len(windows))[0]


def shortened(document: TokenDocument, num_tokens: int) -> TokenDocument:
    """The first tokens of a document, as a document."""
    names = ["token_ids", "char_start", "char_end", "special"]
    if document.patch_ids is not None:
        names.append("patch_ids")
    return dataclasses.replace(document, **{name: getattr(document, name)[:num_tokens] for name in names})
