"""What the pages say is what the rankings answer."""

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from gradsae_fast import contrast, rank_documents, rank_latents, rank_tokens
from gradsae_fast.errors import QueryError
from gradsae_fast.report import ReportSummary
from gradsae_fast.report.numbers import count, number, percent, signed
from gradsae_fast.store import ScoreStore

ENDS = {
    "raising": {"by": "influence"},
    "lowering": {"by": "influence", "smallest": True},
    "activation": {"by": "activation"},
}


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def text_of(html: str) -> str:
    """The words that a reader sees, single spaces between them."""
    body = re.sub(r"</(td|th|p|li|dt|dd|h1|h2|h3)>", " ", html[html.index("<main") :])
    return " ".join(unescape(re.sub(r"<title>.*?</title>|<[^>]*>", "", body)).split())


def section(page: str, name: str) -> str:
    return page[page.index(f'<h3 id="{name}"') :].split("</section>")[0]


def test_the_overview_lists_latents_as_rank_latents_by_absolute_does(store: ScoreStore, audit: Path) -> None:
    table = rank_latents(store, by="absolute", k=None).to_pylist()
    page = read(audit / "index.html")
    rows = re.findall(r"<tr><td class=\"r\">\d+</td>.*?</tr>", page[page.index('id="latents"') :], re.DOTALL)
    assert len(rows) == len(table) == 37
    total = sum(row["absolute"] for row in table)
    for html, row in zip(rows, table, strict=True):
        words = text_of(f"<main>{html}")
        assert html.startswith(f'<tr><td class="r">{row["rank"]}</td>')
        assert f'href="latents/{row["latent"]:06d}.html">{row["latent"]}<' in html
        for expected in (
            percent(row["frequency"]),
            signed(row["influence"]),
            number(row["absolute"]),
            percent(row["absolute"] / total),
        ):
            assert expected in words


@pytest.mark.parametrize("end", ENDS)
def test_contexts_are_the_answers_of_rank_tokens(store: ScoreStore, audit: Path, end: str) -> None:
    for latent in (30, 3, 38):
        page = section(read(audit / f"latents/{latent:06d}.html"), end)
        rows = rank_tokens(store, latent=latent, k=6, **ENDS[end]).to_pylist()  # type: ignore[arg-type]
        sign = {"raising": 1, "lowering": -1, "activation": 0}[end]
        rows = [row for row in rows if not sign or sign * row["influence"] > 0]
        items = re.findall(r"<li>.*?</li>", page, re.DOTALL)
        assert len(items) == len(rows)
        for html, row in zip(items, rows, strict=True):
            words = text_of(f"<main>{html}")
            assert words.startswith(f"influence {signed(row['influence'])} activation {number(row['activation'])}")
            assert words.endswith(f"{row['document']}, position {row['position']}")
            peak = re.findall(r"<mark[^>]*>(.*?)</mark>", html)
            assert [unescape(found).strip() for found in peak] == [row["token"].strip()]
            around = f"{row['before']}{row['token']}{row['after']}".replace(" ", "")
            assert around in words.replace(" ", "")  # the page has two tokens more on either side


def test_neighbours_of_a_peak_carry_their_own_numbers(store: ScoreStore, audit: Path) -> None:
    latent = 38
    of_token = {
        (row["document"], row["token"].strip()): row for row in rank_tokens(store, latent=latent, k=None).to_pylist()
    }
    page = section(read(audit / f"latents/{latent:06d}.html"), "raising")
    checked = 0
    for item in re.findall(r"<li>.*?</li>", page, re.DOTALL):
        key = re.search(r"speech-\d\d", item)
        assert key is not None
        for classes, title, word in re.findall(r'<(?:i|mark) class="([^"]*)" title="([^"]*)">([^<]*)<', item):
            row = of_token.pop((key[0], word.strip()), None)
            if row is not None:
                assert title == f"influence {signed(row['influence'])}, activation {number(row['activation'])}"
                assert ("p" in classes) == (row["influence"] > 0)
                assert ("n" in classes) == (row["influence"] < 0)
                checked += 1
    assert checked > 20


def test_histograms_count_every_counted_token_once(store: ScoreStore, audit: Path) -> None:
    for latent in (30, 38):
        active = rank_tokens(store, latent=latent, k=None)
        page = read(audit / f"latents/{latent:06d}.html")
        for name, column in (("Influence", "influence"), ("Activation", "activation")):
            table = page[page.index(f"<summary>{name} in numbers") :].split("</details>")[0]
            rows = re.findall(r"<tr><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td></tr>", table)
            assert sum(int(n) for _, _, n in rows) == active.num_rows
            values = active[column].to_numpy()
            for low, high, n in rows:
                bounds = [float(edge.replace("−", "-").replace("+", "")) for edge in (low, high)]
                assert int(n) == np.count_nonzero((values >= bounds[0]) & (values < bounds[1]))


def test_groups_have_the_means_of_contrast_and_an_interval_around_them(store: ScoreStore, audit: Path) -> None:
    page = read(audit / "latents/000030.html")
    expected = {
        "party = Federalist": contrast(store, a="party=Federalist", b="party!=Federalist", k=None),
        "year<1806": contrast(store, a="year<1806", b="year>=1806", k=None),
    }
    for name, table in expected.items():
        row = next(row for row in table.to_pylist() if row["latent"] == 30)
        html = re.search(rf"<tr><th[^>]*><bdi[^>]*>{re.escape(name).replace('<', '&lt;')}.*?</tr>", page, re.DOTALL)
        assert html is not None
        words = text_of(f"<main>{html[0]}")
        assert signed(row["mean_a"]) in words
        low, high = (
            float(found.replace("−", "-")) for found in re.findall(r"([+−][\d.e−]+) to ([+−][\d.e−]+)", words)[0]
        )
        assert low < row["mean_a"] < high


@pytest.mark.parametrize("latent", [30, 1])  # in every document, and silent in some
def test_an_interval_is_students(store: ScoreStore, audit: Path, latent: int) -> None:
    from scipy import stats

    documents = rank_documents(store, latent=latent, where="year<1806", k=None).to_pylist()
    samples = [row["mean_score"] for row in documents]
    samples += [0.0] * (6 - len(samples))
    mean, spread = np.mean(samples), stats.sem(samples)
    low, high = stats.t.interval(0.95, len(samples) - 1, mean, spread)
    assert (len(documents) < 6) == (latent == 1)
    assert f"{signed(low)} to {signed(high)}" in read(audit / f"latents/{latent:06d}.html")


def test_comparisons_are_the_answers_of_contrast(store: ScoreStore, audit: Path) -> None:
    table = contrast(store, a="year<1806", b="year>=1806", order="effect_size", k=10).to_pylist()
    page = read(audit / "index.html")
    part = page[page.index('<bdi lang="">year&lt;1806 against') :].split("</table>")[0]
    rows = re.findall(r"<tr><th scope=\"row\".*?</tr>", part, re.DOTALL)
    assert len(rows) == 10
    for html, row in zip(rows, table, strict=True):
        words = text_of(f"<main>{html}")
        assert f">{row['latent']}</a>" in html
        assert signed(row["difference"]) in words
        assert number(row["effect_size"]) in words


def test_a_value_with_one_document_is_named_as_not_compared(audit: Path) -> None:
    assert "party = None (1 document)" in text_of(read(audit / "index.html"))


def test_a_document_page_has_its_text_its_sums_and_its_latents(store: ScoreStore, audit: Path) -> None:
    page = read(audit / "documents/000011.html")
    words = text_of(page)
    assert " ".join(f"w11.{n}" for n in range(42)) in words
    for smallest in (False, True):
        row = rank_latents(store, document="speech-11", k=1, smallest=smallest).to_pylist()[0]
        assert f">{row['latent']}</a>" in page
        assert signed(row["influence"]) in words
    table = rank_latents(store, document="speech-11", k=None)
    assert signed(float(np.sum(table["influence"].to_numpy()))) in words
    assert number(float(np.sum(table["absolute"].to_numpy()))) in words


def test_a_document_page_leads_to_the_token_on_which_each_latent_does_most(store: ScoreStore, audit: Path) -> None:
    page = read(audit / "documents/000011.html")
    drivers = page[page.index('id="drivers"') : page.index('id="peaks"')]
    text = page[page.index('class="document"') :]
    rows = re.findall(r'<tr><th scope="row".*?</tr>', drivers, re.DOTALL)
    assert len(rows) > 20
    for row in rows:
        found = re.search(r'>(\d+)</a>.*<span class="(pos|neg)">.*href="#(t\d+)"', row)
        assert found is not None
        latent, side, name = found.groups()
        best = rank_tokens(store, latent=int(latent), document="speech-11", k=1, smallest=side == "neg").to_pylist()[0]
        assert name == f"t{best['position']}"
        assert re.search(rf'<(i|mark) id="{name}"[^>]*>{re.escape(best["token"].strip())} ?<', text)


def test_a_document_page_shows_its_tokens_with_most_influence(store: ScoreStore, audit: Path) -> None:
    total: dict[int, float] = {}
    for latent in range(store.num_latents(store.sites[0])):
        for row in rank_tokens(store, latent=latent, document="speech-11", k=None).to_pylist():
            total[row["position"]] = total.get(row["position"], 0.0) + row["influence"]
    page = read(audit / "documents/000011.html")
    peaks = page[page.index('id="peaks"') : page.index('id="text"')]
    found = re.findall(r'<span class="(?:pos|neg)">(.*?)</span>.*?href="#t(\d+)".*?<mark[^>]*>(.*?)</mark>', peaks)
    order = sorted(total, key=lambda at: (-total[at], at))[:8]
    order += sorted(total, key=lambda at: (total[at], at))[:8]
    assert [int(position) for _, position, _ in found] == order
    assert [shown for shown, _, _ in found] == [signed(total[at]) for at in order]
    assert [token.strip() for _, _, token in found] == [f"w11.{at - 1}" for at in order]  # a BOS comes first


def test_a_latent_page_has_the_tests_of_contrast(store: ScoreStore, audit: Path) -> None:
    for a, b, name in (
        ("party=Whig", None, "party = Whig against the rest"),
        ("year<1806", "year>=1806", "year<1806 against year>=1806"),
    ):
        for row in contrast(store, a=a, b=b, k=None).to_pylist()[::5]:
            words = text_of(read(audit / f"latents/{row['latent']:06d}.html"))
            numbers = (
                f"{signed(row['difference'])} {signed(row['effect_size'])} {number(row['q'])} {number(row['auroc'])}"
            )
            assert f"{name} {numbers}" in words


def test_latents_that_set_groups_apart_have_a_page(report: Callable[..., ReportSummary], tmp_path: Path) -> None:
    report(k=1, groups=[("year<1806", "year>=1806")])
    page = read(tmp_path / "audit/index.html")
    part = page[page.index("against") : page.index('id="documents"')]
    rows = re.findall(r'<tr><th[^>]*>(.*?)</th><td class="words">(.*?)</td>', part)
    assert len(rows) == 10
    for latent, words in rows:
        target = re.search(r'href="([^"]*)"', latent)
        assert target is not None
        assert (tmp_path / "audit" / target[1]).exists()
        assert "w" in text_of(f"<main>{words}")
    assert "the 1 with the largest summed |influence| and those first in a group contrast" in text_of(page)


def test_text_is_coloured_by_the_influence_of_all_latents_together(store: ScoreStore, audit: Path) -> None:
    total: dict[str, float] = {}
    for latent in range(store.num_latents(store.sites[0])):
        for row in rank_tokens(store, latent=latent, document="speech-11", k=None).to_pylist():
            total[row["token"].strip()] = total.get(row["token"].strip(), 0.0) + row["influence"]
    page = read(audit / "documents/000011.html")
    marked = re.findall(r'<i class="([pn])\d" title="([^"]*)">(w11[^<]*)</i>', page)
    assert len(marked) > 20
    for kind, title, word in marked:
        assert title == signed(total[word.strip()])
        assert (kind == "p") == (total[word.strip()] > 0)


def test_documents_with_a_page_are_those_with_most_influence(store: ScoreStore, audit: Path) -> None:
    keys = [key for segment in store.segments for key in segment.document_keys()]
    absolute = [
        float(np.sum(rank_latents(store, document=key, by="absolute", k=None)["absolute"].to_numpy())) for key in keys
    ]
    expected = {f"{document:06d}.html" for document in np.argsort(absolute)[-5:].tolist()}
    assert {path.name for path in (audit / "documents").iterdir()} == expected


def test_every_link_leads_to_a_page(audit: Path) -> None:
    pages = list(audit.rglob("*.html"))
    assert len(pages) == 37 + 5 + 1
    for page in pages:
        html = read(page)
        for target in re.findall(r'href="([^"#]+)"', html):
            assert (page.parent / target).resolve() in {path.resolve() for path in pages}
        for anchor in re.findall(r'href="#([^"]+)"', html):
            assert f'id="{anchor}"' in html


def test_a_latent_that_never_fires_has_a_page_that_says_so(
    report: Callable[..., ReportSummary], tmp_path: Path
) -> None:
    assert report(latents=[7]).num_latents == 1
    assert "never fires on a counted token" in read(tmp_path / "audit/latents/000007.html")


def test_many_latents_are_listed_on_pages_of_their_own(
    report: Callable[..., ReportSummary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("LISTED", 10), ("LISTING", 15)):
        monkeypatch.setattr(f"gradsae_fast.report.tables.{name}", size)
    monkeypatch.setattr("gradsae_fast.report.write.LISTED", 10)
    report(documents=12)
    listed = [re.findall(r'href="(latents/\d+.html)"', read(tmp_path / f"audit/latents-{n}.html")) for n in (1, 2, 3)]
    assert [len(part) for part in listed] == [15, 15, 7]
    shown = re.findall(r'<th scope="row" class="t"><a href="(latents/\d+.html)"', read(tmp_path / "audit/index.html"))
    assert shown == listed[0][:10]
    assert "documents-1.html" in read(tmp_path / "audit/index.html")


def test_missing_sidecars_are_named_with_the_command_that_makes_them(audit: Path) -> None:
    assert "gradsae describe STORE --all" in text_of(read(audit / "latents/000030.html"))
    overview = text_of(read(audit / "index.html"))
    assert "This store has no gate report" in overview
    assert "gradsae certify" in overview


def test_the_label_stands_beside_the_number_everywhere(audit: Path) -> None:
    assert "Latent 30 names of months" in text_of(read(audit / "latents/000030.html"))
    assert "30 names of months" in text_of(read(audit / "index.html"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"latents": [40]}, "expected 0 to 39"),
        ({"latents": []}, "empty list"),
        ({"k": 0}, "expected 1 or more"),
        ({"documents": 0}, "documents = 0"),
        ({"contexts": 0}, "contexts = 0"),
        ({"context": -1}, "context = -1"),
        ({"groups": ["partie"]}, "did you mean 'party'"),
        ({"groups": [("year<1700", "year>1800")]}, "year<1700"),
        ({"site": "layer"}, "unknown site"),
    ],
)
def test_impossible_questions_are_refused_before_anything_is_written(
    report: Callable[..., ReportSummary], tmp_path: Path, settings: dict[str, object], says: str
) -> None:
    with pytest.raises(QueryError, match=re.escape(says)):
        report(**settings)
    assert not list(tmp_path.iterdir())


def test_numbers_are_counted_in_words_a_reader_can_check(store: ScoreStore, audit: Path) -> None:
    overview = text_of(read(audit / "index.html"))
    counted = sum(int(segment.counted_tokens().sum()) for segment in store.segments)
    assert f"over 12 documents and {count(counted)} counted tokens" in overview
    assert "nothing is subsampled" in overview
