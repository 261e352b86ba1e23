"""A further corpus for a store: scored as the store's own run was, and added to it as a generation.

What the run recorded is taken over; what belongs to its corpus alone (where it is, which part of it) is not. The store
refuses documents whose keys it has, and a model, an SAE or library versions that are no longer those of its run.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gradsae_fast.config import ExtractConfig, config_from_tables
from gradsae_fast.errors import ConfigError, StoreError
from gradsae_fast.extract import ExtractReport, Progress, extract
from gradsae_fast.model.objectives import ObjectiveFunction
from gradsae_fast.store import ScoreStore, open_scores
from gradsae_fast.store.places.place import Place

_OF_ITS_CORPUS = ("path", "subset", "split", "max_documents")
_OF_ITS_RUN = ("tokens_per_batch", "head_chunk_tokens", "threads")


def append(
    store: str | Place,
    corpus: str | Mapping[str, Any] | None = None,
    *,
    documents: Iterable[Any] | None = None,
    model: str | None = None,
    saes: Sequence[str] = (),
    run: Mapping[str, Any] | None = None,
    objectives: Mapping[str, ObjectiveFunction] | None = None,
    on_message: Callable[[str], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> ExtractReport:
    """Score another corpus and add it to a store; the same call resumes, one with another corpus adds another one.

    Args:
        store: the store, complete or not; it must not be of format version 1.
        corpus: where the documents are, or settings of the table `[corpus]`; those not given are as in the store's run.
        documents: str, mappings or Documents in place of a corpus.
        model: where the language model is now, if it has moved.
        saes: where the SAEs are now, in the order of the store's run.
        run: settings of the table `[run]`, such as {"exact_dense": 0.2}; batch sizes are as in the store's run.
        objectives: the functions of your own that the store's run had.
        on_message, on_progress: as of `extract`.

    Raises:
        IdentityError: something differs from the store's run besides the documents; shown side by side.
        CorpusError: a document has the key of one that the store has; nothing was written.
        GradsaeError: what `extract` raises; what was committed before stays valid.
    """
    settings = {"path": corpus} if isinstance(corpus, str) else dict(corpus or {})
    if documents is not None:
        settings.setdefault("path", "documents")
    config = append_config(open_scores(store, use_index=False), settings, model=model, saes=saes, run=run)
    return extract(config, objectives=objectives, documents=documents, on_message=on_message, on_progress=on_progress)


def append_config(
    store: ScoreStore,
    corpus: Mapping[str, Any],
    *,
    model: str | None = None,
    saes: Sequence[str] = (),
    run: Mapping[str, Any] | None = None,
) -> ExtractConfig:
    """Return the configuration of the store's run with these settings of a further corpus; see `append`.

    Raises:
        StoreError: the store does not record its configuration.
        ConfigError: settings that make no sense.
    """
    recorded = store.run.get("config")
    if recorded is None:
        raise StoreError(
            f"{store.path} does not record the configuration of its run; expected a store made by `gradsae extract`"
        )
    if "path" not in corpus:
        raise ConfigError("no corpus to append; give --corpus, or documents.")
    tables: dict[str, Any] = copy.deepcopy(recorded)
    tables["sae"] = _moved(tables.pop("saes"), saes)
    tables["model"] |= {"dtype": store.identity["model"]["dtype"].removeprefix("torch.")}
    if model is not None:
        tables["model"] |= {"path": model, "revision": None}
    kept = {name: value for name, value in tables["corpus"].items() if name not in _OF_ITS_CORPUS}
    tables["corpus"] = kept | dict(corpus)
    tables["store"] |= {"path": str(store.path), "append": True}
    tables["run"] = {name: tables["run"][name] for name in _OF_ITS_RUN} | dict(run or {})
    return config_from_tables(tables)


def _moved(recorded: list[dict[str, Any]], saes: Sequence[str]) -> list[dict[str, Any]]:
    """The SAEs of a run at the places where they are now."""
    if not saes:
        return recorded
    if len(saes) != len(recorded):
        raise ConfigError(
            f"got {len(saes)} --sae for the {len(recorded)} of the store's run; expected one for each, in its order: "
            f"{', '.join(sae['path'] for sae in recorded)}."
        )
    return [{**sae, "path": path, "revision": None} for sae, path in zip(recorded, saes, strict=True)]
