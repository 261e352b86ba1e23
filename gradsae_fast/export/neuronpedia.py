"""Latents as JSON lines with Neuronpedia's field names: one object for each latent, its contexts inside.

Names of the tables `Neuron` and `Activation` in Neuronpedia's database schema, which its exports and its feature API
share (there `activations` lie inside a feature, as here; its bulk exports keep them in files of their own):

    modelId, layer, index               layer is Neuronpedia's name of the source, like "6-res-jb"; index is text
    frac_nonzero                        active tokens / counted tokens
    maxActApprox                        largest activation
    freq_hist_data_bar_values, _heights     middles and counts of 50 bins of the activations, from 0 (or the most
                                        negative one) to the largest; the two are parallel
    pos_str, pos_values, neg_str, neg_values    most promoted and most suppressed tokens, effects in logits above the
                                        vocabulary's mean; where the store was described
    topkCosSimIndices, topkCosSimValues     nearest decoder rows; where the store was described
    hookName                            hook point, where the SAE's metadata names one
    activations                         tokens, values, maxValue, maxValueTokenIndex, minValue, and the three ids

Names of our own: in an activation `influenceValues` (one for each token, unit in the provenance), `document` and
`position` (of the first token); in a latent `influence` (sums and maxima over the chosen documents), `decoderNorm` and
`provenance`. Left out because a store does not have them: lossValues, logitContributions, dfa*, bin*, correlated and
aligned neurons, the histogram of logits, explanations, vectors.

Values of tokens that do not count are 0. NaN and infinities become null; a float has the fewest digits that read back
as the same number; other than ASCII is escaped, so that any text, lone surrogates and NUL included, survives.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradsae_fast.errors import QueryError
from gradsae_fast.export.contexts import Corpus, Extremes, Stretch, bin_edges, find_extremes, histograms, read_stretches
from gradsae_fast.export.nonzeros import check_latents
from gradsae_fast.export.provenance import PROVENANCE, describe_export
from gradsae_fast.export.target import Exported, check_count, refuse_folder, replacing
from gradsae_fast.ranking.latents import rank_latents
from gradsae_fast.ranking.question import Question, resolve
from gradsae_fast.ranking.selection import Selection, select
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore

VALUES = ("activation", "influence", "absolute")
NUM_BINS = 50
_BATCH = 1024  # latents whose contexts are held at once
_INFLUENCES = ("influence", "positive", "absolute", "max_influence", "num_documents")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Latents:
    """What is known of the exported latents before their contexts are read."""

    ids: Mapping[str, str]  # modelId and layer
    statistics: Mapping[int, Mapping[str, float]]  # by latent, of those that fire
    extremes: Extremes
    edge_CB: Array
    counts_CB: Array
    constant: dict[str, Any]  # what is the same in every record


def write_neuronpedia(
    store: ScoreStore,
    path: str | Path,
    *,
    by: str = "activation",
    k: int = 20,
    context: int = 64,
    model_id: str | None = None,
    source_id: str | None = None,
    site: str | None = None,
    objective: str | None = None,
    document: str | Sequence[str] | None = None,
    where: str | None = None,
    latent: int | Sequence[int] | None = None,
    include_special: bool | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the latents that fire in the chosen documents, ascending, one JSON object a line (names above).

    Args:
        store, site, objective, include_special: as in every ranking (see `ranking.question.resolve`).
        path: the file to write; its folder must exist.
        by: what the contexts of a latent are chosen by: activation, influence or absolute (influence).
        k: contexts of each latent, at most.
        context: tokens of a context.
        model_id: Neuronpedia's name of the model; default: the last part of the model's name in the run.
        source_id: Neuronpedia's name of the SAE; default: the site.
        document, where: document keys and a condition on metadata; all documents without them.
        latent: numbers of latents, also such as never fire; None for all that fire.
        overwrite: replace a file that exists.

    Raises:
        QueryError: a name or latent is unknown, nothing is selected, or the path cannot be written to.
    """
    refuse_folder(path)
    question = resolve(
        store, by=by, k=k, site=site, objective=objective, include_special=include_special, allowed=VALUES
    )
    latents = check_latents(latent, question)
    asked: dict[str, Any] = {"document": document, "where": where}
    corpus = _corpus(store, select(store, **asked), question, context)
    provenance = describe_export(
        store, corpus.selection, question, export="neuronpedia", k=k, context=context, latents=latents, **asked
    )
    constant = _hook(store, question.site) | {PROVENANCE: provenance}
    ids = _ids(store, question.site, model_id, source_id)
    with replacing(path, overwrite=overwrite) as (result, _):
        known = _survey(corpus, k, latents, ids, constant, _statistics(corpus, **asked))
        chosen = np.array(sorted(known.statistics), np.int64) if latents is None else latents
        check_count(len(chosen), "active latents")
        with result.open("w", encoding="ascii") as file:
            for record in _records(corpus, known, chosen):
                file.write(json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n")
    return Exported(path=Path(path), count=len(chosen), unit="latent")


def _corpus(store: ScoreStore, selection: Selection, question: Question, width: int) -> Corpus:
    if width < 1:
        raise QueryError(f"got context = {width}; expected 1 or more tokens")
    return Corpus(store=store, selection=selection, question=question, width=width)


def _survey(
    corpus: Corpus,
    k: int,
    latents: Array | None,
    ids: Mapping[str, str],
    constant: dict[str, Any],
    statistics: Mapping[int, Mapping[str, float]],
) -> _Latents:
    """Read the store twice: where latents are strongest, and how their activations are spread."""
    extremes = find_extremes(corpus, k, latents)
    return _Latents(
        ids=ids,
        statistics=statistics,
        extremes=extremes,
        edge_CB=bin_edges(extremes, NUM_BINS),
        counts_CB=histograms(corpus, extremes, NUM_BINS, latents),
        constant=constant,
    )


def _statistics(corpus: Corpus, document: str | Sequence[str] | None, where: str | None) -> dict[int, dict[str, float]]:
    question = corpus.question
    table = rank_latents(
        corpus.store,
        document=document,
        where=where,
        k=None,
        site=question.site,
        objective=question.objective,
        include_special=question.include_special,
    )
    return {row["latent"]: row for row in table.to_pylist()}


def _ids(store: ScoreStore, site: str, model_id: str | None, source_id: str | None) -> dict[str, str]:
    name = model_name(store, site)
    if model_id is None and name is None:
        raise QueryError("the store does not name its model; say it with model_id (--model-id)")
    return {"modelId": model_id or Path(str(name)).name, "layer": source_id or site}


def model_name(store: ScoreStore, site: str) -> str | None:
    """Return the model's name: as the SAE's metadata has it, else as the run was given it; None where neither is."""
    of_sae = store.run.get("saes", {}).get(site, {}).get("model_name")
    given = store.run.get("config", {}).get("model", {}).get("path")
    return of_sae or given


def _hook(store: ScoreStore, site: str) -> dict[str, Any]:
    name = store.run.get("saes", {}).get(site, {}).get("hook_name")
    return {"hookName": name} if name else {}


def _records(corpus: Corpus, known: _Latents, chosen: Array) -> Iterator[dict[str, Any]]:
    store, site = corpus.store, corpus.question.site
    vocabulary, norm_C = store.token_strings(), store.decoder_norms(site)
    described = store.described(site)
    for first in range(0, len(chosen), _BATCH):
        batch = chosen[first : first + _BATCH]
        hits = known.extremes.hits[np.isin(known.extremes.hits["latent"], batch)]
        stretches = read_stretches(corpus, hits, vocabulary)
        edges = np.searchsorted(hits["latent"], np.append(batch, corpus.question.num_latents)).tolist()
        for place, latent in enumerate(batch.tolist()):
            record = _record(known, latent, stretches[edges[place] : edges[place + 1]])
            if norm_C is not None:
                record["decoderNorm"] = number(norm_C[latent])
            if described is not None:
                record |= _decoder_row(described, vocabulary, latent)
            yield record | known.constant


def _record(known: _Latents, latent: int, stretches: Sequence[Stretch]) -> dict[str, Any]:
    names = {**known.ids, "index": str(latent)}
    statistics = known.statistics.get(latent, {})
    edges = known.edge_CB[latent]
    return {
        **names,
        "frac_nonzero": number(statistics.get("frequency", 0.0)),
        "maxActApprox": number(known.extremes.highest_C[latent]),
        "freq_hist_data_bar_heights": known.counts_CB[latent].tolist() if statistics else [],
        "freq_hist_data_bar_values": numbers((edges[:-1] + edges[1:]) / 2) if statistics else [],
        "activations": [names | _activation(stretch) for stretch in stretches],
        "influence": {name: number(statistics.get(name, 0.0)) for name in _INFLUENCES},
    }


def _activation(stretch: Stretch) -> dict[str, Any]:
    peak = int(np.argmax(stretch.activation))
    return {
        "tokens": stretch.tokens,
        "values": numbers(stretch.activation),
        "maxValue": number(stretch.activation[peak]),
        "maxValueTokenIndex": peak,
        "minValue": number(stretch.activation.min()),
        "influenceValues": numbers(stretch.influence),
        "document": stretch.document,
        "position": stretch.position,
    }


def _decoder_row(described: Any, vocabulary: Sequence[str] | None, latent: int) -> dict[str, Any]:
    row = {
        "topkCosSimIndices": described.neighbours_CK[latent].tolist(),
        "topkCosSimValues": numbers(described.cosine_CK[latent]),
    }
    if vocabulary is None or not described.promoted_CT.shape[1]:
        return row
    return row | {
        "pos_str": [vocabulary[token] for token in described.promoted_CT[latent]],
        "pos_values": numbers(described.promoted_effect_CT[latent]),
        "neg_str": [vocabulary[token] for token in described.suppressed_CT[latent]],
        "neg_values": numbers(described.suppressed_effect_CT[latent]),
    }


def numbers(values: Array) -> list[float | None]:
    """Return the values as JSON numbers (see `number`)."""
    return [number(value) for value in values]


def number(value: Any) -> float | None:
    """Return a number with the fewest digits that read back as the same one; null for NaN and infinities.

    >>> number(np.float32(0.1)), number(np.float32("nan")), number(3)
    (0.1, None, 3)
    """
    if isinstance(value, int):
        return value
    if not value:
        return 0.0
    return float(str(value)) if np.isfinite(value) else None
