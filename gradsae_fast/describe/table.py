"""The straight line of a description: choose latents, load what made the store, decode, score, tabulate.

Letters: K latents, D width, M tokens.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from gradsae_fast.describe.input_score import input_scores
from gradsae_fast.describe.logits import DirectEffects, direct_effects, residual_rows, token_text
from gradsae_fast.describe.origin import Origin, load_origin
from gradsae_fast.describe.output_score import PROMPT, STRENGTH, output_scores
from gradsae_fast.errors import ConfigError, QueryError
from gradsae_fast.method import SIGN, influence_unit
from gradsae_fast.ranking import rank_latents
from gradsae_fast.ranking.question import Question, check_latent, resolve
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore, open_scores
from gradsae_fast.store.places.place import Place

PROMOTED = 20  # tokens that input and output scores look at
LATENTS = 20  # described where none are named


def describe(
    store: str | Place | ScoreStore,
    latents: Sequence[int] | None = None,
    k: int | None = None,
    *,
    tokens: int = 10,
    examples: int = 100,
    output_score: bool = True,
    prompt: str | None = None,
    strength: float | None = None,
    error_term: bool | None = None,
    site: str | None = None,
    objective: str | None = None,
    device: str | None = None,
) -> pa.Table:
    """Say what latents stand for: the tokens that they promote, their input and output scores.

    Examples, promoted tokens and both scores are of single latents; nothing depends on which others are described.

    Args:
        store: an open store, or its path. Its model and SAE are loaded; its corpus is not needed.
        latents: which, in this order; None for the `k` of largest influence on the corpus.
        k: how many, only where `latents` is None; None: 20.
        tokens: how many promoted and suppressed tokens to list.
        examples: documents that an input score looks at, at most.
        output_score: whether to compute it, which takes a forward pass a latent.
        prompt, strength: what is steered ("In my experience,"), and how far: `strength` (10) largest activations.
        error_term: keep the SAE's error while steering; None: as the store's method does.
        site, objective: needed where the store has several; the objective is that of `influence`.
        device: where to compute; None: as the store's run was told.

    Returns:
        latent, influence (sum over the counted tokens of the corpus), input_score (null without examples),
        num_examples, output_score (a difference of probabilities; null where it was not asked for), promoted and
        suppressed (lists of token texts), promoted_effect and suppressed_effect (lists; logits above the vocabulary's
        mean).

    Raises:
        QueryError: a latent or name is unknown, a number is below 1, a strength is not finite and above 0, or an
            option would have no effect.
        ConfigError: an output score is asked for of a transcoder that writes several sites.
        ModelError: the site does not write into the residual stream.
        GradsaeError: what `load_origin` and `output_scores` raise.
    """
    opened = store if isinstance(store, ScoreStore) else open_scores(store)
    if latents is not None:
        _refuse("beside named latents", k=k)
    if not output_score:
        _refuse("without output scores", prompt=prompt, strength=strength, error_term=error_term)
    count = LATENTS if k is None else k
    question = resolve(opened, by="influence", k=count, site=site, objective=objective, include_special=None)
    for name, value in {"tokens": tokens, "examples": examples}.items():
        if value < 1:
            raise QueryError(f"got {name} = {value}; expected 1 or more")
    steering = {"prompt": PROMPT if prompt is None else prompt, "strength": _checked(strength)}
    chosen = _choose(opened, question, latents)
    origin = load_origin(opened, question.site, error_term=error_term, device=device)
    columns = _columns(opened, question, origin, chosen, tokens, examples, steering if output_score else None)
    stated = {**steering, "error_term": origin.method.use_error_term} if output_score else {}
    return pa.table(columns).replace_schema_metadata(_facts(question, stated))


def _columns(
    store: ScoreStore,
    question: Question,
    origin: Origin,
    chosen: Mapping[int, float],
    tokens: int,
    examples: int,
    steering: dict[str, Any] | None,
) -> dict[str, pa.Array]:
    """The columns of `describe`; `steering` are the options of the output score, None to leave it out."""
    latents = list(chosen)
    effects = direct_effects(origin.lm, residual_rows(origin.lm, origin.sited, latents), max(tokens, PROMOTED))
    promoted_KM = effects.promoted_KM[:, :PROMOTED]
    shares, counts = input_scores(store, question, latents, promoted_KM, examples)
    outputs: Any = [None] * len(latents)
    if steering is not None:
        _require_one_site(origin)
        outputs = output_scores(origin, latents, promoted_KM, **steering)
    return {
        "latent": pa.array(latents, pa.int64()),
        "influence": pa.array(chosen.values(), pa.float64()),
        "input_score": pa.array(shares, pa.float64()),
        "num_examples": pa.array(counts, pa.int64()),
        "output_score": pa.array(outputs, pa.float64()),
        **_token_columns(origin, effects, tokens),
    }


def _refuse(where: str, **options: Any) -> None:
    """QueryError for an option that was given although it has no effect there."""
    for name, value in options.items():
        if value is not None:
            raise QueryError(f"{name} = {value!r} has no effect {where}; leave it out")


def _checked(strength: float | None) -> float:
    if strength is None:
        return STRENGTH
    if not 0 < strength < float("inf"):
        raise QueryError(f"got strength = {strength}; expected a finite number above 0, like {STRENGTH:g}")
    return strength


def _choose(store: ScoreStore, question: Question, latents: Sequence[int] | None) -> dict[int, float]:
    """Latents in order, and the influence of each; 0 for one that never fires."""
    ranked = rank_latents(
        store, k=question.k if latents is None else None, site=question.site, objective=question.objective
    )
    influence = dict(zip(ranked["latent"].to_pylist(), ranked["influence"].to_pylist(), strict=True))
    if latents is None:
        return influence
    if not len(latents):
        raise QueryError("got an empty list of latents; expected at least one, or None for the most influential")
    return {number: influence.get(number, 0.0) for number in (check_latent(latent, question) for latent in latents)}


def _require_one_site(origin: Origin) -> None:
    sited = origin.sited
    if len(sited.wiring.writes) > 1:
        raise ConfigError(
            f"the transcoder of {sited.site.path} writes {len(sited.wiring.writes)} sites; an output score steers at "
            "one. Leave it out: --no-output-score, or output_score=False."
        )


def _token_columns(origin: Origin, effects: DirectEffects, count: int) -> dict[str, pa.Array]:
    """Texts and effects of the first tokens, lists."""
    sides: list[tuple[str, Array, Array]] = [
        ("promoted", effects.promoted_KM, effects.promoted_effect_KM),
        ("suppressed", effects.suppressed_KM, effects.suppressed_effect_KM),
    ]
    columns = {}
    for name, token_KM, effect_KM in sides:
        texts = [[token_text(origin.lm, token_id) for token_id in token_M] for token_M in token_KM[:, :count].tolist()]
        columns[name] = pa.array(texts, pa.list_(pa.string()))
        columns[f"{name}_effect"] = pa.array(list(effect_KM[:, :count].astype(np.float32)), pa.list_(pa.float32()))
    return columns


def _facts(question: Question, steering: dict[str, Any]) -> dict[str, str]:
    """What the table's schema metadata says; `ranking.query_of` reads it back."""
    texts = {"site": question.site, "objective": question.objective, "sign": SIGN}
    texts |= {"influence_unit": influence_unit(question.objective)}
    values = {"effect_unit": "logits above the vocabulary's mean", **steering}
    return texts | {name: json.dumps(value) for name, value in values.items()}
