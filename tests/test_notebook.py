"""What a notebook shows is true, bounded, safe to look at, and says by more than colour what lowers the objective."""

import json
import subprocess
import sys
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gradsae_fast import contrast, open_scores, rank_documents, rank_latents, rank_tokens
from gradsae_fast.config import ExtractConfig
from gradsae_fast.errors import QueryError
from gradsae_fast.extract import extract
from gradsae_fast.notebook import Shown, show, show_document, show_tokens
from gradsae_fast.ranking.question import resolve
from gradsae_fast.report.marked import DOCUMENT_STEPS, LATENT_STEPS
from gradsae_fast.report.numbers import short
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.records.facts import facts_path
from gradsae_fast.store.sidecars.certificate import Agreement, Certificate, write_certificate

HOSTILE = "</td><script>alert(1)</script> \u202egnp.exe\u202c \x00\x07 <img src=x onerror=alert(2)> &amp; end"
TAGS = {"style", "div", "p", "table", "caption", "thead", "tbody", "tr", "th", "td", "i", "mark", "span", "bdi"}


class Page(HTMLParser):
    """Elements with their classes and texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.marked: list[tuple[str, str, str]] = []  # tag, class, text
        self.attributes: set[str] = set()
        self.text = ""
        self._open: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self._open.append((tag, dict(attrs).get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag, "elements are nested"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] != "style":
            self.text += data
            self.marked.append((*self._open[-1], data))


def page(shown: Shown) -> Page:
    return Page(shown._repr_html_())


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    filler = "The state of the union is strong, and the people are free. " * 3
    return [
        {"id": "plain", "text": filler, "party": "R"},
        {"id": "<script>key</script>", "text": HOSTILE + " " + filler, "party": "D"},
        {"id": "long", "text": filler * 4, "party": "R"},
    ]


@pytest.fixture
def store(configure: Callable[..., ExtractConfig], rows: list[dict[str, Any]], tmp_path: Path) -> ScoreStore:
    path = tmp_path / "speeches.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = configure(corpus={"path": str(path)})
    extract(config)
    return open_scores(config.store.path)


def assert_harmless(html: str) -> None:
    found = Page(html)
    assert set(found.tags) <= TAGS
    assert not {name for name in found.attributes if name.startswith("on")}
    assert not found.attributes & {"src", "href"}
    assert not set("\u202e\u202c\x00\x07") & set(html)
    assert "http" not in html
    html.encode("utf-8")


def test_a_store_shows_what_made_it_and_how_far_to_believe_it(store: ScoreStore) -> None:
    html = store._repr_html_()
    assert_harmless(html)
    text = Page(html).text
    for part in (
        "48 latents",
        "3 documents",
        "next-token",
        "jumprelu at model.layers.1",
        "complete",
        "gradsae certify",
    ):
        assert part in text
    gate = store.facts("gate")
    assert gate is not None
    failed = [check["name"] for check in gate["checks"] if not check["passed"]]
    assert all(name in text for name in failed)
    assert ("FAILED" in text) == bool(failed)


def test_a_store_shows_its_certificate_and_whether_it_is_of_these_segments(store: ScoreStore) -> None:
    numbers = {"pearson": 0.5, "spearman": 0.9171, "sign_agreement": 0.93, "slope": 1.0, "slope_low": None}
    row = Agreement(
        site=store.sites[0],
        objective="next-token",
        scores="pairs",
        latents="all",
        samples=200,
        slope_high=None,
        **numbers,
    )
    digests = {str(segment.index): segment.digest for segment in store.segments}
    for segments, stale in ((digests, False), ({"0": "f" * 64}, True)):
        certificate = Certificate(
            agreements=(row,),
            sampling={},
            documents=(),
            segments=segments,
            differences={},
            value_deviation=0,
            samples={},
        )
        write_certificate(store.path, certificate)
        text = Page(store._repr_html_()).text
        assert "latent at a token: Spearman 0.92, same sign 0.93 over 200 exact ablations" in text
        assert ("run gradsae certify again" in text) == stale


def test_a_damaged_sidecar_is_named_in_its_line_and_the_rest_is_shown(store: ScoreStore) -> None:
    Path(str(facts_path(store.path, "gate"))).write_text('{"<b>": 1}')
    html = store._repr_html_()
    assert "unreadable: " in html
    assert "48 latents" in html
    assert "<b>" not in html


def test_a_table_says_what_its_numbers_mean_and_has_four_digits(store: ScoreStore) -> None:
    table = rank_latents(store, k=5)
    found = page(show(table))
    assert "unit nats" in found.text
    assert "the latent's presence raises the objective" in found.text
    cells = [text for tag, _, text in found.marked if tag == "td"]
    first = table.to_pylist()[0]
    assert [short(value, 4) if isinstance(value, float) else str(value) for value in first.values()] == cells[
        : len(first)
    ]
    heads = [text for tag, _, text in found.marked if tag == "th"]
    assert heads == table.column_names


def test_large_numbers_are_written_out() -> None:
    assert ">10,230<" in show(pa.table({"n": [10234.5]})).html


def test_a_store_with_names_that_turn_text_around_shows_them_by_number(store: ScoreStore) -> None:
    store.run["config"]["corpus"]["path"] = "\u202egpj.x\x00\ud800"
    html = store._repr_html_()
    assert_harmless(html)
    assert "[U+202E]gpj.x[U+0000][U+D800]" in html


def test_rows_that_are_left_out_are_counted(store: ScoreStore) -> None:
    table = rank_latents(store, k=None)
    found = page(show(table, rows=3))
    assert f"3 of {len(table)} rows shown; rows={len(table)} shows all" in found.text
    assert found.tags.count("tr") == 4
    assert "rows shown" not in page(show(table, rows=len(table))).text
    with pytest.raises(QueryError, match="rows = 0"):
        show(table, rows=0)
    assert f"{len(table)} rows, 3 shown" in repr(show(table, rows=3))


def test_every_kind_of_answer_and_foreign_tables_are_shown(store: ScoreStore) -> None:
    odd = pa.table(
        {
            "list": pa.array([["a", "<b>"], None]),
            "nested": pa.array([{"x": 1.5}, {"x": None}]),
            "number": pa.array([float("nan"), None]),
            "flag": pa.array([True, False]),
        }
    )
    answers = [contrast(store, a="party=R", b="party=D"), rank_documents(store, latent=3), odd, odd.slice(0, 0)]
    for table in answers:
        assert_harmless(show(table).html)
    assert escape("'<b>'") in show(odd).html
    assert "undefined" in page(show(odd)).text  # NaN


def test_a_token_is_marked_by_sign_in_shape_too(store: ScoreStore) -> None:
    latent = rank_latents(store, by="absolute", k=1)["latent"][0].as_py()
    for smallest in (False, True):
        table = rank_tokens(store, latent=latent, k=6, smallest=smallest)
        marks = [(kind, text) for tag, kind, text in page(show_tokens(table)).marked if tag == "mark"]
        assert len(marks) == len(table)
        top = np.abs(table["influence"].to_numpy()).max()
        for (kind, _), influence in zip(marks, table["influence"].to_pylist(), strict=True):
            assert (kind[:1] == "p") == (influence > 0) or kind == ""
            assert (kind == "") == (abs(influence) < LATENT_STEPS[0] * top)
            assert f"{influence:+.4g}".replace("-", "−") in show_tokens(table).html
    assert "border-top" in show_tokens(table).html
    with pytest.raises(QueryError, match="expected an answer of rank_tokens"):
        show_tokens(rank_latents(store, k=2))


def test_a_document_is_whole_and_coloured_by_the_sum_of_its_influences(
    store: ScoreStore, rows: list[dict[str, Any]]
) -> None:
    shown = show_document(store, "plain")
    segment = next(segment for segment in store.segments if "plain" in segment.document_keys())
    slot = segment.document_keys().index("plain")
    scores = segment.site(store.sites[0]).by_token()
    influence_Z = scores.activation.astype(np.float64) * scores.projections["next-token"]
    token_Z = np.repeat(np.arange(segment.num_tokens), np.diff(scores.indptr))
    counted_N = segment.token_column("mask") == 0
    of_document_N = segment.token_column("document") == slot
    value_N = np.bincount(token_Z, weights=influence_Z, minlength=segment.num_tokens) * counted_N
    value_T = value_N[of_document_N]
    scale = np.quantile(np.abs(value_T[value_T != 0]), 0.98)
    assert f"sum {value_T.sum():+.4g}, full colour from {scale:.4g}" in page(shown).text
    text = "".join(text for tag, kind, text in page(shown).marked if kind.split()[-1:] != ["x"] and tag in ("div", "i"))
    assert text.replace("⏎", "\n") in rows[0]["text"]
    kinds = [kind[0] for tag, kind, _ in page(shown).marked if tag == "i" and kind[:1] in "pn"]
    strong_T = value_T[np.abs(value_T) >= DOCUMENT_STEPS[0] * scale]
    assert kinds == ["p" if value > 0 else "n" for value in strong_T]


def test_one_latent_can_be_looked_at_alone(store: ScoreStore) -> None:
    ranked = rank_latents(store, document="plain", k=None).to_pylist()
    latent, influence = ranked[0]["latent"], ranked[0]["influence"]
    assert f"sum {influence:+.4g}" in page(show_document(store, "plain", latent=latent)).text
    activation = page(show_document(store, "plain", latent=latent, by="activation")).text
    assert f"sum {ranked[0]['activation']:+.4g}" in activation
    assert f"activation of latent {latent}" in activation
    with pytest.raises(QueryError, match="do not add up"):
        show_document(store, "plain", by="activation")
    with pytest.raises(QueryError, match="expected 0 to 47"):
        show_document(store, "plain", latent=48)
    with pytest.raises(QueryError, match="did you mean 'plain'"):
        show_document(store, "plian")


def test_a_long_document_is_cut_in_sight(store: ScoreStore) -> None:
    segment = next(segment for segment in store.segments if "long" in segment.document_keys())
    num_tokens = int((segment.token_column("document") == segment.document_keys().index("long")).sum())
    text = page(show_document(store, "long", tokens=5)).text
    assert f"5 tokens of {num_tokens:,}; tokens={num_tokens} shows all" in text
    assert "shows all" not in page(show_document(store, "long", tokens=num_tokens)).text
    with pytest.raises(QueryError, match="tokens = 0"):
        show_document(store, "long", tokens=0)


def test_hostile_text_stays_text(store: ScoreStore) -> None:
    latent = rank_latents(store, document="<script>key</script>", by="absolute", k=1)["latent"][0].as_py()
    tokens = rank_tokens(store, latent=latent, document="<script>key</script>", context=40, k=None)
    for shown in (
        show(tokens, rows=500),
        show_tokens(tokens, rows=500),
        show_document(store, "<script>key</script>"),
        show(pa.table({"<img src=x onerror=alert(1)>": [HOSTILE, "x" * 10**6]})),
    ):
        assert_harmless(shown.html)
        assert len(shown.html) < 600_000
    assert "␀␇" in page(show_document(store, "<script>key</script>")).text.replace(" ", "")


def test_opening_a_store_and_its_repr_import_no_page_code(store: ScoreStore) -> None:
    code = (
        "import sys; from gradsae_fast import open_scores; s = open_scores(sys.argv[1]); repr(s); s._repr_html_();"
        "assert not {'jinja2', 'torch', 'IPython', 'gradsae_fast.report'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(store.path)], check=True)


def test_an_unknown_site_is_refused_as_by_every_question(store: ScoreStore) -> None:
    with pytest.raises(QueryError, match="unknown site"):
        show_document(store, "plain", site="nowhere")
    assert resolve(store, by="influence", k=1, site=None, objective=None, include_special=None).site == store.sites[0]
