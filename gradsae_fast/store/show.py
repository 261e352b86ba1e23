"""A store at a glance, as a notebook shows it: a small HTML table, every text escaped, no style that a theme fights.

Nothing but records and sidecars is read, so it costs milliseconds for a store of any size.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from html import escape
from typing import Any

from gradsae_fast.errors import GradsaeError
from gradsae_fast.store.reader import ScoreStore
from gradsae_fast.store.sidecars.certificate import Agreement, read_certificate

# Control characters, the marks and overrides of direction, zero width characters, lone surrogates.
_UNSEEN = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ud800-\\udfff]"
)
_LEFT = "text-align:left;vertical-align:top"
_ROW = f'<tr><th scope="row" style="{_LEFT}">%s</th><td style="{_LEFT}">%s</td></tr>'


def store_html(store: ScoreStore) -> str:
    """Return the run, model, SAEs, corpus, objectives, gate and certificate of a store, a line each, as HTML."""
    rows = "".join(_ROW % (name, _isolated(text)) for name, text in _lines(store))
    caption = f"Scores of {_isolated(str(store.path))}"
    return f'<table><caption style="text-align:left">{caption}</caption><tbody>{rows}</tbody></table>'


def _isolated(text: str) -> str:
    """Escaped; characters that no page can hold, that vanish or turn text around are shown by their numbers."""
    return f"<bdi>{escape(_UNSEEN.sub(lambda found: f'[U+{ord(found[0]):04X}]', text))}</bdi>"


def _lines(store: ScoreStore) -> Iterator[tuple[str, str]]:
    state = "complete" if store.is_complete else "incomplete: run the same extract command again"
    revised = f", in {len(store.segments):,} now" if store.num_revisions else ""
    yield "segments", f"{len(store.committed):,} of {store.num_segments:,} committed{revised}; {state}"
    yield "model", _readable(lambda: _model_line(store))
    for site in store.sites:
        yield "SAE", _readable(partial(_site_line, store, site))
    counts = f"{store.num_documents:,} documents, {store.num_tokens:,} tokens"
    yield "corpus", f"{_readable(partial(_corpus_line, store.run))}: {counts}"
    for generation in store.generations[1:]:
        yield "appended", _readable(partial(_corpus_line, generation.run))
    objectives = ", ".join(store.objectives) or "none yet"
    yield "objective", f"{objectives}; positive influence: the latent's presence raises it"
    yield "gate", _readable(lambda: _gate_line(store.facts("gate")))
    yield "certificate", _readable(lambda: _certificate_line(store))


def _model_line(store: ScoreStore) -> str:
    path = store.run.get("config", {}).get("model", {}).get("path")
    return _named(path, store.identity.get("model", {}).get("dtype"))


def _corpus_line(run: Mapping[str, Any]) -> str:
    return _named(run.get("config", {}).get("corpus", {}).get("path"))


def _named(*facts: Any) -> str:
    """What is recorded of something, without what is not."""
    return ", ".join(str(fact).removeprefix("torch.") for fact in facts if fact is not None) or "not recorded"


def _site_line(store: ScoreStore, site: str) -> str:
    """L0 is over all scored tokens, masked ones too: what commit records count."""
    facts = store.run.get("saes", {}).get(site, {})
    nonzeros = sum(segment.summary.facts["counts"]["nnz"][site] for segment in store.segments)
    l0 = f", L0 {nonzeros / store.num_tokens:.1f}" if store.num_tokens else ""
    return (
        f"{_named(facts.get('source'), facts.get('architecture'))} at {site}: {store.num_latents(site):,} latents{l0}"
    )


def _readable(line: Callable[[], str]) -> str:
    """The line, or why it cannot be read: showing a store never fails, whatever its documents hold."""
    try:
        return line()
    except (GradsaeError, AttributeError, KeyError, TypeError, ValueError) as error:
        return f"unreadable: {error}"


def _gate_line(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return "not recorded"
    checks = gate.get("checks", [])
    failed = [f"{check['name']} {check['site']}: {check['found']}" for check in checks if not check["passed"]]
    found = [check["found"] for check in checks if check["name"] in ("fvu", "l0")]
    return f"FAILED {'; '.join(failed)}" if failed else ", ".join([f"passed {len(checks)} checks", *found])


def _certificate_line(store: ScoreStore) -> str:
    certificate = read_certificate(store)
    if certificate is None:
        return "none yet: gradsae certify says how well the scores agree with exact ablation"
    lines = [_agreement(row) for row in certificate.agreements if row.latents == "all" and row.samples]
    stale = [] if certificate.is_current(store) else ["of other segments than these: run gradsae certify again"]
    return "; ".join([*lines, *stale]) or "without samples"


def _agreement(row: Agreement) -> str:
    spearman, sign = (
        f"{value:.2f}" if value is not None else "undefined" for value in (row.spearman, row.sign_agreement)
    )
    of = "latent at a token" if row.scores == "pairs" else "latent in a document"
    return f"{row.objective}, {of}: Spearman {spearman}, same sign {sign} over {row.samples} exact ablations"
