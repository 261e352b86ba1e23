"""Hostile text in documents, keys, columns, labels, tokens and names neither breaks a page nor runs in it."""

import base64
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gradsae_fast.report import write_report
from gradsae_fast.report.marked import mark_document
from gradsae_fast.report.pages import PAGE_BYTES
from gradsae_fast.report.passages import Piece
from gradsae_fast.store import ScoreStore
from gradsae_fast.visible import cut, visible, word

TAGS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "a",
    "header",
    "nav",
    "main",
    "footer",
    "h1",
    "h2",
    "h3",
    "p",
    "ul",
    "ol",
    "li",
    "dl",
    "dt",
    "dd",
    "div",
    "section",
    "span",
    "bdi",
    "code",
    "figure",
    "figcaption",
    "details",
    "summary",
    "table",
    "caption",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "i",
    "mark",
    "svg",
    "g",
    "path",
    "rect",
    "circle",
    "polyline",
    "text",
}
VOID = {"meta"}
HIDDEN = re.compile(
    "[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\xad\\u034f\\u3164\\uffff\\u061c\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff]"
)


PILE = re.compile("[\\u0300-\\u036f]{5}")


class Outline(HTMLParser):
    """Collects elements and attributes, and checks that elements close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))


def outline(html: str) -> Outline:
    parser = Outline()
    parser.feed(html)
    parser.close()
    assert not parser.open
    return parser


def pages(*folders: Path) -> Iterator[tuple[Path, str]]:
    for folder in folders:
        found = sorted(folder.rglob("*.html"))
        assert len(found) > 8
        for path in found:
            yield path, path.read_text(encoding="utf-8")


def test_no_page_has_an_element_or_attribute_of_the_texts(audit: Path, hostile_audit: Path) -> None:
    for path, html in pages(audit, hostile_audit):
        for tag, attributes in outline(html).elements:
            assert tag in TAGS, path
            for name, value in attributes.items():
                assert not name.startswith("on"), path
                assert name not in {"style", "src", "srcset", "action", "background"}, path
                if name == "href":
                    assert re.fullmatch(r"(\.\./)?[a-z]+(/\d{6}|-\d+)?\.html|#[a-z]+|#t\d+", value or ""), path


def test_every_page_forbids_everything_but_its_own_stylesheet(audit: Path, hostile_audit: Path) -> None:
    for path, html in pages(audit, hostile_audit):
        found = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', html)
        assert found is not None, path
        style = html[html.index("<style>") + len("<style>") : html.index("</style>")]
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert found[1] == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
        assert html.index("Content-Security-Policy") < html.index("<title>") < html.index("<style>")
        assert not re.search(r"url\(|@import|https?://", html.replace("http://w3", "")), path


def test_hostile_texts_are_there_as_text(hostile_audit: Path) -> None:
    text = "".join(words for _, html in pages(hostile_audit) for _, words in outline(html).texts)
    assert "<script>alert('x')</script>" in text
    assert "[U+202E]evil[U+202C]" in text
    assert "␀␁␛[31m␡" in text
    assert "[U+D800][U+DFFF]" in text
    assert "half = x[U+D800] against half = [U+202E]y" in text
    assert "{{ 7*7 }} {% raw %} &lt;b&gt;" in text


def test_no_character_of_a_page_is_invisible_or_turns_text_around(audit: Path, hostile_audit: Path) -> None:
    for path, html in pages(audit, hostile_audit):
        assert not HIDDEN.search(html), path
        assert not PILE.search(html), path


def test_every_page_is_at_most_300_kb(audit: Path, hostile_audit: Path) -> None:
    sizes = {path: path.stat().st_size for path, _ in pages(audit, hostile_audit)}
    assert max(sizes.values()) <= PAGE_BYTES == 300_000


def test_a_token_of_a_megabyte_is_cut_and_says_by_how_much(hostile_audit: Path) -> None:
    page = (hostile_audit / "documents/000000.html").read_text(encoding="utf-8")
    assert re.search(r"… \[9\d\d,\d{3} more characters\]", page)
    assert re.search(r"… \[[\d,]+ more characters\]", (hostile_audit / "index.html").read_text(encoding="utf-8"))


def test_a_thousand_accents_do_not_cover_the_lines_above() -> None:
    assert visible("e\u0301\u0302") == "e\u0301\u0302"
    shown = visible("e" + "\u0301" * 10_000)
    assert not PILE.search(shown)
    assert shown.endswith("[9,996 more marks]")


@pytest.mark.parametrize("token", ["", " ", "\u3000", "\xa0\n", "\u3164", "\xad"])
def test_a_token_that_is_blank_has_a_name(token: str) -> None:
    assert re.search(r"\S", word(visible(token)))


def test_a_long_document_says_which_part_of_it_is_shown(
    store: ScoreStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("gradsae_fast.report.document_page._BLOCK", 4)
    monkeypatch.setattr("gradsae_fast.report.write.PAGE_BYTES", 41_000)  # a thousand bytes of text
    write_report(store, tmp_path / "short", latents=[1], documents=1, context=2)
    page = next((tmp_path / "short/documents").iterdir()).read_text(encoding="utf-8")
    found = re.search(r"The first (\d+) of (\d+) tokens are shown", page)
    assert found is not None
    shown, whole = int(found[1]), int(found[2])
    assert shown % 4 == 0
    assert 0 < shown < whole
    assert f"{whole - shown} more tokens are left out" in page
    assert re.search(rf"w\d+\.{shown - 2}\b", page)  # the first token is the BOS
    text = page[page.index('class="document"') :]
    assert not re.search(rf"w\d+\.{shown - 1}\b", text)
    assert set(re.findall(r'href="#(t\d+)"', page)) == set(
        re.findall(r'id="(t\d+)"', text)
    )  # and to nothing that is left out


def test_file_names_are_numbers(hostile_audit: Path) -> None:
    names = {path.relative_to(hostile_audit).as_posix() for path in hostile_audit.rglob("*") if path.is_file()}
    assert all(re.fullmatch(r"(latents|documents)/\d{6}\.html|index\.html|audit\.json", name) for name in names)


@given(st.text(max_size=60))
def test_visible_text_never_holds_a_hidden_character_and_loses_no_other(text: str) -> None:
    shown = visible(text)
    assert not HIDDEN.search(shown.replace("\n", "\x00"))
    shown.encode()
    assume(not PILE.search(text))
    kept = [character for character in text if visible(character) == character]
    remaining = iter(shown)
    assert all(character in remaining for character in kept)


@given(st.text(max_size=60), st.integers(1, 80))
def test_a_cut_text_says_how_much_is_gone(text: str, limit: int) -> None:
    shown = cut(text, limit)
    if len(text) <= limit:
        assert shown == visible(text)
    else:
        assert shown == f"{visible(text[:limit])}… [{len(text) - limit:,} more characters]"


@given(st.lists(st.text(max_size=12), min_size=1, max_size=6))
def test_marked_text_parses_back_into_the_text(texts: list[str]) -> None:
    pieces = [Piece(text=visible(text)) for text in texts]
    html = str(mark_document(pieces, np.linspace(-1, 1, len(texts)), np.ones(len(texts), bool), 1.0))
    parsed = "".join(words for _, words in outline(f"<p>{html}</p>").texts)
    assert parsed.replace("\n", "") == "".join(piece.text for piece in pieces)
    assert all(tag in {"p", "i", "span"} for tag, _ in outline(f"<p>{html}</p>").elements)
