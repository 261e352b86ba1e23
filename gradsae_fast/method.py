"""Presets, objectives and what a run is not allowed to ask for: settings become a `Method`, or a ConfigError."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gradsae_fast.config import ExtractConfig, ScoreConfig, closest_hint
from gradsae_fast.errors import ConfigError

OBJECTIVE_UNITS = {
    "next-token": "nats",
    "continuation": "nats",
    "continuation-prob": "probability",
    "top-token:logit": "logits",
    "top-token:logprob": "nats",
    "top-token:prob": "probability",
    "logit-diff": "logits",
    "entropy": "nats",
}
"""Built-in objectives and the unit of their scalar m, hence of an influence."""

SIGN = "positive: the latent's presence raises the objective; negative: it lowers it"
"""What the sign of an influence says, for every objective."""

ANSWER_OBJECTIVES = ("continuation", "continuation-prob")
PRECISION_BITS = (3, 7, 10, 23)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A preset with its overrides resolved, as it is recorded with the scores."""

    preset: str
    use_error_term: bool
    splice: Literal["none", "unmasked", "all"]
    objectives: tuple[str, ...]
    include_special: bool  # whether masked tokens take part in aggregates
    path_steps: int = 0  # integrated gradients: points on the path from no latents; 0: the gradient at its end
    patch: bool = False  # attribution patching: what counts of an activation is its difference from a patch text's


_PRESETS = {
    "gradsae": Method(
        preset="gradsae", use_error_term=False, splice="unmasked", objectives=("next-token",), include_special=False
    ),
    "attribution-patching": Method(
        preset="attribution-patching",
        use_error_term=True,
        splice="none",
        objectives=("next-token",),
        include_special=False,
    ),
    "paper": Method(
        preset="paper", use_error_term=False, splice="all", objectives=("continuation-prob",), include_special=True
    ),
    "authors-code": Method(
        preset="authors-code", use_error_term=False, splice="all", objectives=("top-token:prob",), include_special=True
    ),
}


def resolve_method(score: ScoreConfig, extra_objectives: tuple[str, ...] = ()) -> Method:
    """Apply the overrides to the preset; `extra_objectives` are names of the caller's own functions.

    >>> resolve_method(ScoreConfig(preset="paper")).objectives
    ('continuation-prob',)
    """
    if score.preset not in _PRESETS:
        hint = closest_hint(score.preset, _PRESETS)
        raise ConfigError(f"preset is {score.preset!r}; expected one of {', '.join(_PRESETS)}.{hint}")
    preset = _PRESETS[score.preset]
    use_error_term = preset.use_error_term if score.use_error_term is None else score.use_error_term
    if use_error_term and score.splice is not None:
        raise ConfigError(
            f"splice = {score.splice!r} has no effect with the error term kept: nothing is spliced there. "
            "Remove splice, or set use_error_term = false."
        )
    splice = "none" if use_error_term else score.splice or (preset.splice if preset.splice != "none" else "unmasked")
    names = tuple(canonical_objective(name, extra_objectives) for name in score.objectives) or preset.objectives
    if len(set(names)) < len(names):
        raise ConfigError(f"objectives {list(names)} contain a repetition. Name each objective once.")
    if score.path_steps < 0:
        raise ConfigError(f"path_steps is {score.path_steps}; expected 1 or more points, or 0 for no path.")
    if score.path_steps and "continuation-prob" in names:
        raise ConfigError(
            "path_steps and the objective 'continuation-prob' do not go together: its log is differentiated, so the "
            "path would sum up to log p. Use 'continuation', whose influences are in nats."
        )
    return dataclasses.replace(
        preset, use_error_term=use_error_term, splice=splice, objectives=names, path_steps=score.path_steps
    )


def canonical_objective(name: str, extra: tuple[str, ...] = ()) -> str:
    """The full spelling of an objective, or a ConfigError that lists what exists.

    >>> canonical_objective("top-token")
    'top-token:prob'
    """
    full = "top-token:prob" if name == "top-token" else name
    if full in OBJECTIVE_UNITS or full in extra:
        return full
    known = [*OBJECTIVE_UNITS, *extra]
    raise ConfigError(f"unknown objective {name!r}; expected one of {', '.join(known)}.{closest_hint(name, known)}")


def influence_unit(objective: str) -> str:
    """Return the unit of an objective and of the influence on it; a user's own objective is its own unit.

    >>> influence_unit("next-token"), influence_unit("my_margin")
    ('nats', 'units of my_margin')
    """
    return OBJECTIVE_UNITS.get(objective, f"units of {objective}")


def score_scale(objective: str, value_M: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What influences are multiplied by when they are read, float64 [M], given the objective's values [M].

    For `continuation-prob` log p is differentiated and kept, so that long answers do not underflow; p times it is the
    gradient of p. For every other objective the factor is 1.
    """
    return np.exp(value_M) if objective == "continuation-prob" else np.ones(len(value_M))


def path_points(steps: int) -> tuple[list[float], list[float]]:
    """Where on a path gradients are taken, as shares of it, and the weight of each: Gauss-Legendre on [0, 1]."""
    node_S, weight_S = np.polynomial.legendre.leggauss(steps)
    return ((node_S + 1) / 2).tolist(), (weight_S / 2).tolist()


def check_config(config: ExtractConfig, extra_objectives: tuple[str, ...] = ()) -> Method:
    """Refuse settings that contradict each other or would have no effect; returns the resolved method."""
    method = resolve_method(config.score, extra_objectives)
    for name in extra_objectives:
        if name in OBJECTIVE_UNITS or name not in method.objectives:
            raise ConfigError(
                f"the function {name!r} would have no effect: name it among the objectives {list(method.objectives)}, "
                "by a name that no built-in objective has."
            )
    corpus, store, run = config.corpus, config.store, config.run
    if not config.saes:
        raise ConfigError("no SAE given. Pass --sae PATH, or a [[sae]] table with a path.")
    if (corpus.prompt_column is None) != (corpus.answer_column is None):
        raise ConfigError("prompt_column and answer_column go together; got only one of them. Give both or neither.")
    needs_answer = [name for name in method.objectives if name in ANSWER_OBJECTIVES]
    if needs_answer and corpus.answer_column is None:
        raise ConfigError(f"objective {needs_answer[0]!r} needs prompt and answer columns: set both in [corpus].")
    if (corpus.contrast_columns is not None) != ("logit-diff" in method.objectives):
        raise ConfigError("contrast_columns and the objective 'logit-diff' go together; got only one of them.")
    if run.exact_dense is not None and not 0 < run.exact_dense < 1:
        raise ConfigError(f"exact_dense is {run.exact_dense}; expected a share of the tokens, like 0.2.")
    if run.exact_dense is not None and corpus.patch_column is not None:
        raise ConfigError(
            "exact_dense and patch_column do not go together: influences against a patch text are not removals, which "
            "is what is measured exactly. Give one of them."
        )
    if corpus.patch_column is not None:
        method = dataclasses.replace(method, patch=True)
    if store.precision_bits not in PRECISION_BITS:
        raise ConfigError(f"precision_bits is {store.precision_bits}; expected one of {PRECISION_BITS} (23 is exact).")
    if not 0 <= corpus.overlap < corpus.context_length - 1:
        raise ConfigError(
            f"overlap {corpus.overlap} and context_length {corpus.context_length} leave no room for new tokens: "
            "overlap must be at least 0 and smaller than context_length - 1."
        )
    _check_positive(corpus, "max_documents", "context_length")
    _check_positive(run, "tokens_per_batch", "head_chunk_tokens", "threads")
    if not (config.score.sink_norm_ratio == 0 or config.score.sink_norm_ratio > 1):
        raise ConfigError(f"sink_norm_ratio is {config.score.sink_norm_ratio}; expected more than 1, or 0 for off.")
    return method


def _check_positive(table: Any, *names: str) -> None:
    for name in names:
        value = getattr(table, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1.")
