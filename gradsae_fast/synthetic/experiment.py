"""The straight line: a store's latents become activations, activations become paths, paths become curves and a table.

At each drawn token of the store's texts nine paths are swept: from its real hidden state to a target of every kind, and
from a start of every other kind to the same real target. All steps have one length, so that curves compare; it is the
one that brings the longest path to its target, unless another is given.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from gradsae_fast.ablate import ScoredWindow, scored_windows
from gradsae_fast.config import ScoreConfig
from gradsae_fast.errors import ConfigError
from gradsae_fast.method import resolve_method
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.records import Window
from gradsae_fast.score import SitedSae
from gradsae_fast.store import open_scores
from gradsae_fast.synthetic import sweep as paths
from gradsae_fast.synthetic.curves import Curve, curve_table, summary_table
from gradsae_fast.synthetic.latent_sets import (
    LatentSet,
    directions,
    draw_bag,
    draw_structured,
    pair_cosines,
    read_latent_sets,
)
from gradsae_fast.synthetic.plot import to_svg
from gradsae_fast.synthetic.subject import Text, batch_of, load_subject, read_texts, real_states
from gradsae_fast.synthetic.targets import Kind, Source, compose, draw_apart

_DIAGNOSED_SETS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is swept; recorded with the results."""

    tokens: int = 24  # drawn; each gives nine paths
    num_steps: int = 100
    step: float | None = None  # length; None: the longest path / num_steps
    min_context: int = 8  # tokens before a drawn one, at least
    pool_tokens: int = 4096  # real hidden states that targets and covariance come from, at most
    steps_per_pass: int = 256
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SyntheticReport:
    """Curves of all paths, and what they rest on."""

    curves: tuple[Curve, ...]
    facts: dict[str, Any]

    @property
    def summary(self) -> pa.Table:
        """One row per kind of start and target, with the facts as metadata."""
        return summary_table(self.curves).replace_schema_metadata({k: json.dumps(v) for k, v in self.facts.items()})


def run_synthetic(
    path: str | Path,
    *,
    settings: Settings | None = None,
    site: str | None = None,
    model: str | None = None,
    sae: str | None = None,
    device: str = "auto",
    on_message: Callable[[str], None] | None = None,
) -> SyntheticReport:
    """Sweep paths between real and synthetic activations, with the latents, texts, model and SAE of a store.

    `model` and `sae` say where these lie now, if not where the store's run found them. Equal seeds give equal draws.
    Raises IdentityError where model or SAE are not those of the store, and what opening and loading raise.
    """
    settings = settings or Settings()
    _check(settings)
    tell = on_message or (lambda _: None)
    store = open_scores(path)
    lm, sited = load_subject(store, site, model, sae, device)
    texts = list(read_texts(store, settings.pool_tokens, settings.seed))
    pool_ND = real_states(lm, sited, texts, settings.pool_tokens)
    source = Source(
        sae=sited.sae,
        sets=read_latent_sets(store, sited.site.path),
        rows=directions(sited.sae.w_dec_CD.float().cpu().numpy()),
        pool_ND=pool_ND,
    )
    tell(f"{len(source.sets)} stored latent sets, {len(pool_ND)} real hidden states at {sited.site.path}")
    places = _places(texts, settings)
    plans = [_plan(lm, sited, source, text, position, settings, n) for n, (text, position) in enumerate(places)]
    lengths = [one.path.length for plan in plans for one in plan.paths]
    step = settings.step or max(lengths) / settings.num_steps
    curves: list[Curve] = []
    for number, plan in enumerate(plans):
        curves += plan.swept(lm, step, settings)
        tell(f"{number + 1} of {len(plans)} tokens swept")
    if cut := sum(curve.is_cut for curve in curves):
        tell(f"{cut} of {len(curves)} paths are longer than the sweep ({step * settings.num_steps:.4g}): raise --steps")
    facts = {"store": store.path.name, "site": sited.site.path, **asdict(settings), "step": step}
    return SyntheticReport(curves=tuple(curves), facts={**facts, **_diagnosis(source, settings)})


def write_report(report: SyntheticReport, folder: str | Path) -> list[Path]:
    """Write `curves.parquet`, `summary.csv`, `summary.json` (with the facts) and `curves.svg` into a folder."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    names = ["curves.parquet", "summary.csv", "summary.json", "curves.svg"]
    pyarrow.parquet.write_table(curve_table(report.curves), out / names[0], compression="zstd")
    pyarrow.csv.write_csv(report.summary, out / names[1])
    found = json.dumps({"facts": report.facts, "rows": report.summary.to_pylist()})
    document = json.loads(found, parse_constant=lambda _: None)  # NaN is no JSON
    (out / names[2]).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    title = f"downstream distance along paths at {report.facts['site']}"
    (out / names[3]).write_text(to_svg(report.curves, title), encoding="utf-8")
    return [out / name for name in names]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _PlannedPath:
    start: Kind
    target: Kind
    path: paths.Path


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Plan:
    """One token with its paths; the first one is real -> real."""

    scored: ScoredWindow
    paths: tuple[_PlannedPath, ...]

    def swept(self, lm: LanguageModel, step: float, settings: Settings) -> Iterator[Curve]:
        """The curves of all paths."""
        found = paths.sweep(
            lm,
            self.scored,
            [one.path for one in self.paths],
            step=step,
            num_steps=settings.num_steps,
            steps_per_pass=settings.steps_per_pass,
        )
        window = self.scored.window
        for number, one in enumerate(self.paths):
            yield Curve(
                start=str(one.start),
                target=str(one.target),
                document=window.document.document.key,
                position=len(window.token_ids) - 1,
                length=one.path.length,
                start_norm=float(one.path.start_D.norm()),
                target_norm=float(one.path.target_D.norm()),
                step=step,
                distance_S=found.distance_PS[number],
                divergence_S=found.divergence_PS[number],
            )


def _check(settings: Settings) -> None:
    least = {"tokens": 1, "num_steps": 1, "min_context": 1, "pool_tokens": 2, "steps_per_pass": 1}
    for name, number in least.items():
        if getattr(settings, name) < number:
            raise ConfigError(f"{name} is {getattr(settings, name)}; expected at least {number}.")
    if settings.step is not None and not settings.step > 0:
        raise ConfigError(f"step is {settings.step}; expected a length above 0.")


def _places(texts: list[Text], settings: Settings) -> list[tuple[Text, int]]:
    """Tokens that count and have enough context, drawn without repetition."""
    places = [
        (text, int(position))
        for text in texts
        for position in np.flatnonzero(text.counted_T)
        if position >= settings.min_context
    ]
    if len(places) < settings.tokens:
        raise ConfigError(
            f"{len(places)} tokens have {settings.min_context} tokens before them, {settings.tokens} were asked for; "
            "lower --tokens or --min-context."
        )
    random = np.random.default_rng([settings.seed, 1])
    return [places[n] for n in random.choice(len(places), settings.tokens, replace=False).tolist()]


def _plan(
    lm: LanguageModel, sited: SitedSae, source: Source, text: Text, position: int, settings: Settings, number: int
) -> _Plan:
    """Draw the starts and targets of one token."""
    ids = text.window.token_ids[: position + 1]
    window = Window(document=text.window.document, slot=0, token_ids=ids, num_context=0, first_position=0)
    method = resolve_method(ScoreConfig(preset="attribution-patching"))  # nothing is spliced
    ((scored,),) = scored_windows(lm, [sited], method, batch_of(window))
    random = np.random.default_rng([settings.seed, 2, number])
    real_D = scored.seen_TD[-1].float()
    target_D = draw_apart(source, Kind.REAL, real_D, real_D, random)
    planned = [_PlannedPath(start=Kind.REAL, target=Kind.REAL, path=paths.Path(start_D=real_D, target_D=target_D))]
    for kind in list(Kind)[1:]:
        path = paths.Path(start_D=real_D, target_D=draw_apart(source, kind, real_D, real_D, random))
        planned.append(_PlannedPath(start=Kind.REAL, target=kind, path=path))
    for kind in list(Kind)[1:]:
        path = paths.Path(start_D=draw_apart(source, kind, real_D, target_D, random), target_D=target_D)
        planned.append(_PlannedPath(start=kind, target=Kind.REAL, path=path))
    return _Plan(scored=scored, paths=tuple(planned))


def _diagnosis(source: Source, settings: Settings) -> dict[str, Any]:
    """How well drawn sets match stored ones, and what they compose real states: latents, cosines, norms, distances."""
    random = np.random.default_rng([settings.seed, 3])
    sets = source.sets
    chosen = random.choice(len(sets), min(_DIAGNOSED_SETS, len(sets)), replace=False).tolist()
    drawn = {
        "stored": [sets[token] for token in chosen],
        "bag": [draw_bag(sets, source.rows, random) for _ in chosen],
        "structured": [draw_structured(sets, source.rows, random) for _ in chosen],
    }
    far_N = (source.pool_ND - source.pool_ND.mean(0)).norm(dim=1)
    return {
        "latent_sets": {name: _described(source, group) for name, group in drawn.items()},
        "real_states": {
            "mean_norm": float(source.pool_ND.norm(dim=1).mean()),
            "mean_distance_from_mean": float(far_N.mean()),
        },
    }


def _described(source: Source, group: list[LatentSet]) -> dict[str, float | None]:
    """Means over a group of sets; None where no set has two latents."""
    pairs = np.concatenate([pair_cosines(one, source.rows) for one in group])
    composed_KD = compose(source.sae, group, source.pool_ND[0])
    return {
        "l0": float(np.mean([len(one.latent_L) for one in group])),
        "mean_pair_cosine": float(pairs.mean()) if len(pairs) else None,
        "mean_absolute_pair_cosine": float(np.abs(pairs).mean()) if len(pairs) else None,
        "mean_norm": float(composed_KD.norm(dim=1).mean()),
        "mean_distance_from_mean": float((composed_KD - source.pool_ND.mean(0)).norm(dim=1).mean()),
    }
