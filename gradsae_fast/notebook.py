"""Answers as a notebook shows them: tables with their meaning, tokens in their text, a document coloured by influence.

    from gradsae_fast.notebook import show, show_document, show_tokens
    show(rank_latents(store, k=10))

Each returns a `Shown`, which Jupyter and its relatives render. It is HTML without scripts; every text is escaped, and
characters that are invisible or turn lines around are shown by signs. What lowers the objective is orange with a line
on top, and numbers carry their sign, so nothing depends on colour.

T tokens, C latents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, SupportsIndex

import numpy as np
import pyarrow as pa

from gradsae_fast.errors import QueryError
from gradsae_fast.method import influence_unit
from gradsae_fast.ranking.question import Question, check_latent, resolve
from gradsae_fast.ranking.selection import select
from gradsae_fast.records import Array
from gradsae_fast.report.entries import SegmentEntries
from gradsae_fast.report.marked import LATENT_STEPS, mark_document, strengths
from gradsae_fast.report.numbers import short
from gradsae_fast.report.palette import DARK, LIGHT, variables
from gradsae_fast.report.passages import SegmentPieces
from gradsae_fast.store import ScoreStore, StoredSegment
from gradsae_fast.visible import cut

_CELL_CHARACTERS = 200
_LEGEND = "blue raises it, orange with a line on top lowers it"
_FULL = 0.98  # quantile of the sizes in a document that has full colour: a few outliers would leave the rest pale
_TOKEN_COLUMNS = ("document", "position", "token", "influence", "activation", "before", "after")

# Fills of the audit's pages: what lowers has a line on top as well.
_FILLS = "".join(
    f".gradsae .p{strength}{{background:var(--up-{strength})}}.gradsae .n{strength}{{background:var(--down-{strength})"
    f";border-top:{line}px solid var(--down)}}"
    for strength, line in ((1, 1), (2, 1), (3, 2), (4, 2))
)
_FORCED = "@media(forced-colors:active){.gradsae :is(.p1,.p2,.p3,.p4,.n1,.n2,.n3,.n4){forced-color-adjust:none}}"
_LIGHT, _DARK = f"{{color-scheme:light;{variables(LIGHT)}}}", f"{{color-scheme:dark;{variables(DARK)}}}"
_THEMES = (
    f".gradsae{_LIGHT}@media(prefers-color-scheme:dark){{.gradsae{_DARK}}}"
    f'[data-jp-theme-light="true"] .gradsae,.vscode-light .gradsae{_LIGHT}'
    f'[data-jp-theme-light="false"] .gradsae,.vscode-dark .gradsae{_DARK}'
)
_STYLE = f"""<style>{_THEMES}
.gradsae{{background:var(--paper);color:var(--ink);padding:.6em}}
.gradsae p{{margin:.3em 0;color:var(--quiet);overflow-wrap:anywhere}}
.gradsae .s{{overflow-x:auto}}
.gradsae table{{border-collapse:collapse}}
.gradsae tr{{background:none!important}}
.gradsae th,.gradsae td{{padding:.15em .6em;color:var(--ink);text-align:left}}
.gradsae thead th{{border-bottom:1px solid var(--line)}}
.gradsae th.r,.gradsae td.r{{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}}
.gradsae .t{{white-space:pre-wrap;line-height:1.7;overflow-wrap:anywhere}}
.gradsae td.t{{min-width:20em}}
.gradsae i{{font-style:normal}}
.gradsae .v,.gradsae .nl,.gradsae .x{{color:var(--quiet)}}
.gradsae mark{{color:inherit;background:none;outline:1px solid var(--ink)}}
{_FILLS}
{_FORCED}</style>"""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Shown:
    """Something to look at in a notebook."""

    html: str
    summary: str  # one line, for where there is no HTML

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"<{self.summary}>"


def show(table: pa.Table, *, rows: int = 50) -> Shown:
    """Show an answer of this package, or any Arrow table: what its numbers mean, then its first `rows`.

    Numbers have four significant digits; the table itself has all of them.

    Raises:
        QueryError: `rows` is below 1.
    """
    shown = _first(table, rows)
    numeric = [_is_number(field.type) for field in table.schema]
    head = "".join(
        f'<th scope="col" class="{"r" if right else "w"}">{_text(name)}</th>'
        for name, right in zip(table.column_names, numeric, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="r">{_cell(value)}</td>' if right else f'<td class="w" dir="auto">{_cell(value)}</td>'
            for value, right in zip(row.values(), numeric, strict=True)
        )
        + "</tr>"
        for row in shown.to_pylist()
    )
    return _shown_table(table, len(shown), head, body)


def show_tokens(table: pa.Table, *, rows: int = 50) -> Shown:
    """Show an answer of `rank_tokens`, each token marked in its text, filled by the sign and size of its influence.

    Raises:
        QueryError: another answer, or `rows` is below 1.
    """
    missing = [name for name in _TOKEN_COLUMNS if name not in table.column_names]
    if missing:
        raise QueryError(f"the table lacks the columns {', '.join(missing)}; expected an answer of rank_tokens")
    shown = _first(table, rows)
    scale = np.abs(np.nan_to_num(shown["influence"].to_numpy())).max(initial=0.0)
    strength = strengths(shown["influence"].to_numpy(), scale, LATENT_STEPS).tolist()
    names = {"document": "w", "position": "r", "influence": "r", "activation": "r", "text": "w"}
    head = "".join(f'<th scope="col" class="{side}">{name}</th>' for name, side in names.items())
    body = "".join(_token_row(row, size) for row, size in zip(shown.to_pylist(), strength, strict=True))
    note = f"{_LEGEND}; full colour at {short(float(scale), 4)}"
    return _shown_table(table, len(shown), head, body, note)


def show_document(
    store: ScoreStore,
    key: str,
    *,
    by: str = "influence",
    latent: SupportsIndex | None = None,
    tokens: int = 2000,
    site: str | None = None,
    objective: str | None = None,
) -> Shown:
    """Show the text of a document, each token filled by what the latents do there.

    Args:
        store: an open store.
        key: the document's id; of several documents with this id all are shown.
        by: "influence"; with a latent also "activation".
        latent: this one alone; None: the influence of all, added.
        tokens: how many to show of each document.
        site, objective: needed where the store has several.

    Raises:
        QueryError: an unknown name, latent or document, a number below 1, or activations of all latents, which have
            no sum of meaning.
    """
    _at_least_one("tokens", tokens)
    question = resolve(
        store, by=by, k=None, site=site, objective=objective, include_special=None, allowed=("influence", "activation")
    )
    if latent is None and by == "activation":
        raise QueryError("activations of different latents do not add up; name one with latent=, or show the influence")
    number = None if latent is None else check_latent(latent, question)
    parts = [
        _document(store, segment, slot, question, number, tokens)
        for segment, slots in select(store, document=key)
        for slot in slots.tolist()
    ]
    caption = _caption(question, number)
    html = f'{_STYLE}<div class="gradsae"><p>{_text(caption)}</p>{"".join(parts)}</div>'
    return Shown(html=html, summary=f"document {key!r}, {caption}")


def _caption(question: Question, latent: int | None) -> str:
    what = "all latents" if latent is None else f"latent {latent}"
    if question.by == "activation":
        return f"activation of {what} at {question.site}; blue above zero, orange with a line on top below it"
    unit = influence_unit(question.objective)
    return f"influence of {what} at {question.site} on {question.objective} [{unit}]; {_LEGEND}"


def _document(
    store: ScoreStore, segment: StoredSegment, slot: int, question: Question, latent: int | None, tokens: int
) -> str:
    text = SegmentPieces(segment, store.token_strings() or ())
    first, end = int(text.edges[slot]), int(text.edges[slot + 1])
    last = min(end, first + tokens)
    entries = SegmentEntries(segment, question, _rows(latent, question.num_latents))
    run = entries.read(first, last)
    value_Z = run.influence_Z if question.by == "influence" else run.activation_Z
    value_T = np.bincount(run.token_Z - first, weights=value_Z, minlength=last - first)
    size_T = np.abs(value_T[np.isfinite(value_T) & (value_T != 0)])
    scale = float(np.quantile(size_T, _FULL)) if len(size_T) else 0.0
    marked = mark_document(text.pieces(slot, first, last), value_T, entries.counted_N[first:last], scale)
    left_out = f" of {end - first:,}; tokens={end - first} shows all" if last < end else ""
    sums = f"sum {_signed(float(value_T.sum()))}, full colour from {short(scale, 4)}; tokens that do not count are grey"
    title = f"document {text.keys[slot]}: {last - first:,} tokens{left_out}; {sums}"
    return f'<p>{_text(title)}</p><div class="t" dir="auto">{marked}</div>'


def _rows(latent: int | None, num_latents: int) -> Array:
    """Which latents are read, as `SegmentEntries` takes it: 0 for one that is, -1 for one that is not; int64 [C]."""
    rows_C = np.full(num_latents, -1)
    rows_C[slice(None) if latent is None else latent] = 0
    return rows_C


def _first(table: pa.Table, rows: int) -> pa.Table:
    _at_least_one("rows", rows)
    return table.slice(0, rows)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise QueryError(f"got {name} = {value}; expected 1 or more")


def _token_row(row: dict[str, Any], strength: int) -> str:
    side = "p" if row["influence"] > 0 else "n"
    fill = f' class="{side}{strength}"' if strength else ""
    parts = (_text(row["before"], keep_end=True), f"<mark{fill}>{_text(row['token'])}</mark>", _text(row["after"]))
    cells = [("w", _text(row["document"])), ("r", _cell(row["position"]))]
    cells += [("r", _signed(row["influence"])), ("r", _cell(row["activation"])), ("t", "".join(parts))]
    return "<tr>" + "".join(f'<td class="{name}" dir="auto">{cell}</td>' for name, cell in cells) + "</tr>"


def _shown_table(table: pa.Table, shown: int, head: str, body: str, note: str = "") -> Shown:
    facts = "; ".join([*_meaning(table), *filter(None, [note])])
    more = f"{shown:,} of {len(table):,} rows shown; rows={len(table)} shows all" if shown < len(table) else ""
    html = (
        f'{_STYLE}<div class="gradsae"><p>{_text(facts, limit=2000)}</p><div class="s"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>{f'<p>{more}</p>' if more else ''}</div>"
    )
    return Shown(html=html, summary=f"{len(table)} rows, {shown} shown: {facts}")


def _meaning(table: pa.Table) -> Iterator[str]:
    """What the table's schema metadata says of its numbers, as far as it is there."""
    raw = table.schema.metadata or {}
    facts = {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in raw.items()}
    for name in ("ranking", "latent", "where", "a", "b", "by", "unit", "site", "objective"):
        if name in facts:
            yield f"{name} {facts[name]}"
    if facts.get("influence_unit", facts.get("unit")) != facts.get("unit"):
        yield f"influence in {facts['influence_unit']}"
    if "sign" in facts:
        yield facts["sign"]


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return short(value, 4)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return " ".join(_text(repr(item) if isinstance(item, str) else _cell(item)) for item in value)
    return _text(str(value))


def _signed(value: float) -> str:
    return f"+{short(value, 4)}" if value > 0 else short(value, 4)


def _text(text: str, *, limit: int = _CELL_CHARACTERS, keep_end: bool = False) -> str:
    """Text of unknown origin: visible, of bounded length, escaped; `keep_end` cuts at its beginning."""
    if keep_end and len(text) > limit:
        return f"[{len(text) - limit:,} more characters] …{escape(cut(text[-limit:], limit))}"
    return escape(cut(text, limit))
