"""The checks before a run: most wrong numbers in this field come from an SAE on the wrong site, model or tokens.

On a few windows of the corpus: is the SAE where its metadata says; does it reconstruct this site about as well, with
about as many latents, as its authors say; is a token's score independent of its batch mates; do the sparse scores
equal autograd through the dense SAE. A failed check says what to do. The report is stored with the run.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gradsae_fast.errors import GateError, ModelError
from gradsae_fast.influences import Influences
from gradsae_fast.method import Method
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.objectives import Objective
from gradsae_fast.model.sites import Site
from gradsae_fast.model.states import hold_the_same, read_and_written
from gradsae_fast.positions import position_masks, scored_positions
from gradsae_fast.quality import Tally
from gradsae_fast.records import Array, Batch, Window, counted_tokens
from gradsae_fast.reference import dense_influence
from gradsae_fast.score import SitedSae, check_widths, score_batch
from gradsae_fast.sparse_code import encode, reconstruct

# Relative error (sum of differences over sum of magnitudes) that rounding alone may cause.
_TOLERANCE = {torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}

_COMPLETENESS = 0.1  # of the change of the objective that integrated gradients may miss


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question, what was found, what was expected, and what to do where they differ."""

    name: str
    site: str
    passed: bool
    found: str
    expected: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """All checks of one run."""

    checks: tuple[Check, ...]
    forced: bool

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    def or_raise(self) -> "GateReport":
        """The report itself; GateError with every failure, unless the run is forced."""
        if self.failures and not self.forced:
            raise GateError(
                "the checks before the run failed; nothing was scored.\n"
                + "\n".join(
                    f"  {c.name} at {c.site}: {c.found}; expected {c.expected}. {c.remedy}" for c in self.failures
                )
                + "\nIf you know better, --force runs all the same, and the store records it."
            )
        return self

    def to_json(self) -> dict[str, Any]:
        """What the store keeps."""
        return {"forced": self.forced, "checks": [dataclasses.asdict(check) for check in self.checks]}


def median_norms(lm: LanguageModel, sited: Sequence[SitedSae], batches: Sequence[Batch]) -> dict[str, float]:
    """Median norm over unmasked tokens at each site that is written or read: the measure of an attention sink."""
    norms: dict[str, list[Array]] = defaultdict(list)
    for batch in batches:
        hidden = read_and_written(lm, batch, [one.wiring for one in sited])
        read = {one.wiring.reads.path: hidden[one.site.path][0] for one in sited}
        for path, hidden_RD in (read | {path: written_RD for path, (_, written_RD) in hidden.items()}).items():
            norm_R = hidden_RD.float().norm(dim=1).cpu().numpy()
            norms[path].append(norm_R[(position_masks(batch) == 0) & np.isfinite(norm_R)])
    merged = {path: np.concatenate(parts) for path, parts in norms.items()}
    # Without a single unmasked token there is no measure, and no sink.
    return {path: float(np.median(norm_N)) if len(norm_N) else float("inf") for path, norm_N in merged.items()}


def run_gate(
    lm: LanguageModel,
    sited: Sequence[SitedSae],
    method: Method,
    objectives: Sequence[Objective],
    batches: Sequence[Batch],
    scored: Batch,
    *,
    bos: bool,
    force: bool = False,
    chunk: int = 512,
) -> GateReport:
    """Run all checks; GateError with every failure, unless `force` says to go on.

    `batches` are encoded only; the windows of `scored`, few and short, are also scored in several ways.
    """
    checks = []
    for one in sited:
        checks.extend(check_sae(lm, one, batches, bos=bos))
        checks.append(_check_batch_invariance(lm, one, method, objectives[0], scored, chunk))
        checks.extend(_check_autograd(lm, one, method, objective, scored.windows, chunk) for objective in objectives)
        if method.path_steps:
            checks.extend(_check_completeness(lm, one, method, objectives, scored, chunk))
    if len(sited) > 1:
        checks.extend(_check_sites_together(lm, sited, method, objectives[0], scored, chunk))
    return GateReport(checks=tuple(checks), forced=force).or_raise()


def check_sae(lm: LanguageModel, sited: SitedSae, batches: Sequence[Batch], *, bos: bool) -> list[Check]:
    """Whether an SAE belongs to its site: place, BOS, FVU and L0. SaeError where it reads or writes another width."""
    reconstruction = _check_reconstruction(lm, sited, batches)
    return [*_check_places(lm, sited, batches[0]), _check_bos(sited, bos), *reconstruction]


def _check_places(lm: LanguageModel, sited: SitedSae, batch: Batch) -> Iterator[Check]:
    """Where the run has an SAE against where its metadata says that it was trained."""
    facts, wiring = sited.sae.facts, sited.wiring
    if not wiring.is_cross_layer:  # its written sites are always those of its metadata
        yield _check_place("site", lm, sited, sited.site, facts.site or facts.hook_name, batch)
    if facts.reads is not None:
        yield _check_place("reads", lm, sited, wiring.reads, facts.reads, batch)


def _check_place(name: str, lm: LanguageModel, sited: SitedSae, site: Site, stated: str | None, batch: Batch) -> Check:
    found, trained = f"the SAE's metadata {f'says {stated}' if stated else 'names none'}", site
    try:
        trained = lm.site(stated) if stated else site
    except ModelError:  # a place that this architecture lacks, or that is no module in it: FVU and L0 have to tell
        found += ", which is no site of this model"
    return Check(
        name=name,
        site=sited.site.path,
        passed=hold_the_same(lm, batch, site, trained),
        found=found,
        expected=f"{site.path}, where this run has it",
        remedy=f"Leave --{name} out, or give the one that the SAE was trained with.",
    )


def _check_bos(sited: SitedSae, bos: bool) -> Check:
    """The BOS of this run against the BOS of the SAE's training."""
    words = {True: "a BOS in front", False: "no BOS", None: "not stated"}
    trained = sited.sae.facts.prepend_bos
    return Check(
        name="bos",
        site=sited.site.path,
        passed=trained in (None, bos),
        found=words[bos],
        expected=f"as in the SAE's training ({words[trained]})",
        remedy="Leave --bos at auto.",
    )


def _check_reconstruction(lm: LanguageModel, sited: SitedSae, batches: Sequence[Batch]) -> list[Check]:
    """FVU and L0 on plain hidden states (whole windows are encoded), against what the SAE's authors published."""
    tally = Tally()
    for batch in batches:
        read_RD, written_RD = read_and_written(lm, batch, [sited.wiring])[sited.site.path]
        check_widths(sited, read_RD, written_RD)
        finite_R = written_RD.isfinite().all(1) & read_RD.isfinite().all(1)
        token_R = torch.from_numpy(position_masks(batch) == 0).to(lm.device)
        keep_R = token_R & finite_R & ~sited.sinks(read_RD, written_RD)
        code = encode(sited.sae, read_RD.where(finite_R[:, None], 0.0), batch.lengths)
        tally.count(int(keep_R.sum()), int(code.rows.indptr.diff()[keep_R].sum()))
        tally.compare(written_RD[keep_R], reconstruct(sited.sae, code)[keep_R])
    facts, site = sited.sae.facts, sited.site.path
    fvu_limit = 0.9 if facts.published_fvu is None else min(0.95, 1.5 * facts.published_fvu + 0.1)
    wrong_place = (
        "Is this the model, the site and the BOS that the SAE was trained with "
        f"({facts.model_name or 'model not stated'}, {facts.hook_name or facts.site or 'site not stated'})?"
    )
    low, high = (0.5, sited.sae.num_latents / 4)
    if facts.published_l0 is not None:
        low, high = facts.published_l0 / 2.5, facts.published_l0 * 2.5
    l0 = Check(
        name="l0",
        site=site,
        passed=low <= tally.l0 <= high,
        found=f"L0 {tally.l0:.1f}",
        expected=f"{low:.1f} to {high:.1f} (published: {facts.published_l0})",
        remedy=wrong_place,
    )
    if sited.wiring.is_cross_layer:
        return [l0]  # what a cross-layer transcoder writes at a site is the sum over all layers below it
    fvu = Check(
        name="fvu",
        site=site,
        passed=tally.fvu <= fvu_limit,
        found=f"FVU {tally.fvu:.3f}",
        expected=f"at most {fvu_limit:.3f} (published: {facts.published_fvu})",
        remedy=wrong_place,
    )
    return [fvu, l0]


def _check_batch_invariance(
    lm: LanguageModel,
    sited: SitedSae,
    method: Method,
    objective: Objective,
    batch: Batch,
    chunk: int,
) -> Check:
    """Windows scored together equal windows scored alone."""
    together, alone = Influences(), Influences()
    for one_batch, influences in [(batch, together), *((_alone(window), alone) for window in batch.windows)]:
        scores = score_batch(lm, [sited], method, [objective], one_batch, chunk=chunk, nonfinite="keep")
        influences.add_sparse(scores.sites[sited.site.path], objective.name)
    return _agreement(
        "batch invariance",
        lm,
        sited,
        together.relative_difference(alone),
        "Scores depend on their batch mates: run in float32, or one window a batch (tokens_per_batch = 1).",
    )


def _check_sites_together(
    lm: LanguageModel,
    sited: Sequence[SitedSae],
    method: Method,
    objective: Objective,
    batch: Batch,
    chunk: int,
) -> Iterator[Check]:
    """All sites in one run equal one run each."""
    scores = score_batch(lm, sited, method, [objective], batch, chunk=chunk, nonfinite="keep")
    for one in sited:
        alone_scores = score_batch(lm, [one], method, [objective], batch, chunk=chunk, nonfinite="keep")
        together, alone = Influences(), Influences()
        together.add_sparse(scores.sites[one.site.path], objective.name)
        alone.add_sparse(alone_scores.sites[one.site.path], objective.name)
        yield _agreement(
            "sites together",
            lm,
            one,
            together.relative_difference(alone),
            "This architecture does not allow several sites in one run: extract them one after the other.",
        )


def _check_autograd(
    lm: LanguageModel, sited: SitedSae, method: Method, objective: Objective, windows: Sequence[Window], chunk: int
) -> Check:
    """Sparse scores equal autograd through the dense SAE."""
    sparse, dense = Influences(), Influences()
    for window in windows:
        batch = _alone(window)
        _, influence_TC = dense_influence(lm, sited, method, objective, window)
        if not influence_TC.isfinite().all():
            continue  # the run meets this document again, and deals with it as it was told to
        scores = score_batch(lm, [sited], method, [objective], batch, chunk=chunk, nonfinite="keep")
        sparse.add_sparse(scores.sites[sited.site.path], objective.name)
        dense.add_dense(influence_TC.cpu().numpy()[scored_positions(batch)])
    return _agreement(
        f"dense autograd of {objective.name}",
        lm,
        sited,
        sparse.relative_difference(dense),
        "Sparse scores and autograd disagree for this model and SAE; please report it with both names.",
    )


def _check_completeness(
    lm: LanguageModel, sited: SitedSae, method: Method, objectives: Sequence[Objective], batch: Batch, chunk: int
) -> Iterator[Check]:
    """Integrated gradients add up to what the latents change together; what is missing is the quadrature's error."""
    scores = score_batch(lm, [sited], method, objectives, batch, chunk=chunk, nonfinite="keep")
    path, sparse = sited.site.path, scores.sites[sited.site.path]
    window_N = np.repeat(np.arange(len(batch.windows)), [window.num_scored for window in batch.windows])
    for objective in objectives:
        change_B = scores.values[path][objective.name] - scores.base_values[path][objective.name]
        finite_B = np.isfinite(change_B)  # the run meets other documents again, and deals with them as it was told to
        change = float(change_B[finite_B].sum())
        counted_N = counted_tokens(scores.mask_N, method.include_special) & finite_B[window_N]
        influence_Z = sparse.activation.astype(np.float64) * sparse.projections[objective.name]
        influence_Z = influence_Z[np.repeat(counted_N, np.diff(sparse.indptr))]
        summed = float(influence_Z.sum())
        rounding = _TOLERANCE[lm.dtype] * float(np.abs(influence_Z).sum())
        yield Check(
            name=f"completeness of {objective.name}",
            site=path,
            passed=abs(summed - change) <= _COMPLETENESS * abs(change) + rounding,
            found=f"influences add up to {summed:.4g}, the latents change the objective by {change:.4g}",
            expected=f"the same within {_COMPLETENESS:.0%}",
            remedy=f"Raise path_steps, which is {method.path_steps}.",
        )


def _agreement(name: str, lm: LanguageModel, sited: SitedSae, difference: float, remedy: str) -> Check:
    limit = _TOLERANCE[lm.dtype]
    return Check(
        name=name,
        site=sited.site.path,
        passed=difference <= limit,
        found=f"relative difference {difference:.2g}",
        expected=f"at most {limit:.2g}",
        remedy=remedy,
    )


def _alone(window: Window) -> Batch:
    return Batch(windows=(window,), token_ids_BT=window.token_ids[None].astype(np.int64))
