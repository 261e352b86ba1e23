"""The overview: what the run was, whether it can be believed, and where to look first."""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from gradsae_fast.counts import counted
from gradsae_fast.method import influence_unit
from gradsae_fast.report.charts import density_chart, scatter_chart, share_chart
from gradsae_fast.report.contrasts import Contrast
from gradsae_fast.report.numbers import count, number, signed
from gradsae_fast.report.subject import DENSE, Subject
from gradsae_fast.store.records.generations import Generation
from gradsae_fast.store.sidecars.certificate import read_certificate

_SHOWN_COLUMNS = {
    "mean_a": ("mean of a", signed),
    "mean_b": ("mean of b", signed),
    "effect_size": ("effect size", signed),
    "p": ("p", number),
    "q": ("q", number),
    "auroc": ("AUROC", number),
}


def overview_values(subject: Subject, words: Mapping[int, Sequence[str]]) -> dict[str, Any]:
    """Return what the template of the overview needs, apart from the rows of its tables of latents and documents.

    `words` are the tokens on which each latent with a page fires hardest.
    """
    table, num_tokens = subject.totals, subject.facts["num_tokens"]
    unit = influence_unit(subject.question.objective)
    scatter, num_hidden = scatter_chart(table["activation"] / num_tokens, table["influence"] / num_tokens, unit)
    share, shares = share_chart(table["absolute"])
    return {
        "num_dense": int((table["frequency"] > DENSE).sum()),
        "l0": float(table["num_active"].sum() / num_tokens),
        "density": density_chart(table["frequency"]) if len(table["frequency"]) else "",
        "scatter": scatter,
        "num_hidden": num_hidden,
        "share": share,
        "shares": shares,
        "comparisons": [_comparison(found, words) for found in subject.contrasts.contrasts],
        "comparison_columns": [name for name, _ in _SHOWN_COLUMNS.values()],
        "too_small": subject.too_small,
        **_checks(subject),
        "run": _run(subject),
    }


def _comparison(found: Contrast, words: Mapping[int, Sequence[str]]) -> dict[str, Any]:
    pair, columns = found.pair, found.first.columns
    caption = (
        f"Largest effect sizes (difference over the pooled standard deviation): "
        f"{counted(pair.a.num_documents, 'document')} (a) against {count(pair.b.num_documents)} (b)."
    )
    if pair.num_both:
        caption += f" In both: {counted(pair.num_both, 'document')}; p, q and AUROC mean nothing then."
    rows = [
        {
            "latent": latent,
            "words": words.get(latent, ()),
            "difference": float(columns["difference"][at]),
            "numbers": [write(float(columns[name][at])) for name, (_, write) in _SHOWN_COLUMNS.items()],
        }
        for at, latent in enumerate(found.first.latent.tolist())
    ]
    return {"name": found.name, "caption": caption, "rows": rows}


def _checks(subject: Subject) -> dict[str, Any]:
    store, question = subject.store, subject.question
    gate = store.facts("gate") or {}
    checks = gate.get("checks", [])
    passed = sum(bool(check["passed"]) for check in checks)
    certificate = read_certificate(store)
    agreements = [
        row
        for row in (certificate.agreements if certificate else ())
        if row.samples and row.site == question.site and row.objective == question.objective
    ]
    return {
        "gate": [{**check, "expected": _expected(check)} for check in checks],
        "forced": bool(gate.get("forced")),
        "gate_word": f"{passed} of {len(checks)} passed" if checks else "none",
        "certificate": agreements,
        "certificate_current": certificate is None or certificate.is_current(store),
        "certificate_word": "measured" if agreements else "none",
    }


def _expected(check: Mapping[str, Any]) -> str:
    """What a check expected; gates write so where the SAE's authors published no number."""
    return str(check["expected"]).removesuffix(" (published: None)")


def _run(subject: Subject) -> list[tuple[str, str]]:
    """Facts of the run, as far as the store has them; of a local file its name, not the machine's path."""
    store, config, identity = subject.store, subject.store.run.get("config"), subject.store.identity
    sae = _found(store.run, "saes", subject.question.site)
    state = "complete" if store.is_complete else f"{len(store.committed)} of {counted(store.num_segments, 'segment')}"
    facts = [
        ("Store", f"{store.path.name}, {state}, {store.precision_bits} bits of significand"),
        ("Dropped", f"{counted(store.num_dropped, 'document')} since" if store.num_dropped else ""),
        ("Scores", f"{subject.facts['run']} (digest of everything that they depend on)"),
        ("Model", _place(_found(config, "model", "path"), _found(identity, "model", "digest"))),
        ("SAE", _place(_found(sae, "source"), _found(sae, "digest"))),
        ("Corpus", _place(_found(config, "corpus", "path"), _found(identity, "corpus", "plan"))),
        *(("Appended", _appended(generation)) for generation in store.generations[1:]),
        ("Method", _listed(_found(identity, "method"))),
        ("First token", str(store.run.get("bos", ""))),
        ("Versions", _listed(_found(identity, "versions"))),
    ]
    return [(name, value) for name, value in facts if value]


def _appended(generation: Generation) -> str:
    return _place(_found(generation.run, "config", "corpus", "path"), _found(generation.identity, "corpus", "plan"))


def _found(tree: Any, *names: str) -> Any:
    """Walk down nested objects, None where one has no such name: facts of a run are any JSON."""
    for name in names:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _listed(facts: Any) -> str:
    if not isinstance(facts, dict):
        return ""
    written = (value if isinstance(value, str) else json.dumps(value) for _, value in sorted(facts.items()))
    return ", ".join(f"{name} {value}" for name, value in zip(sorted(facts), written, strict=True))


def _place(path: Any, digest: Any) -> str:
    if not isinstance(path, str):
        return ""
    name = PurePath(path).name if PurePath(path).is_absolute() else path
    return f"{name}, {digest}" if digest else name
