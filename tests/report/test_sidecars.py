"""What an audit shows of a store's gate, certificate and decoder rows, and of stores that are not plain."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradsae_fast import open_scores, rank_latents, rank_tokens
from gradsae_fast.report import write_report
from gradsae_fast.report.numbers import number, signed
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.records.facts import write_facts
from gradsae_fast.store.sidecars.certificate import Agreement, Certificate, write_certificate
from gradsae_fast.store.sidecars.described import Described, publish_described


@pytest.fixture
def page(make_store: Callable[..., ScoreStore], tmp_path: Path) -> Callable[..., str]:
    """Change a store, write its audit, and read one page."""

    def write(change: Callable[[ScoreStore], None], name: str = "index.html", **settings: Any) -> str:
        store = make_store(**settings)
        change(store)
        write_report(open_scores(store.path), tmp_path / "audit", k=3)
        return (tmp_path / "audit" / name).read_text(encoding="utf-8")

    return write


def test_a_failed_check_and_a_forced_run_are_said_loudly(page: Callable[..., str]) -> None:
    checks = [
        {
            "name": "fvu",
            "site": "s",
            "passed": True,
            "found": "FVU 0.2",
            "expected": "at most 0.3 (published: None)",
            "remedy": "none",
        },
        {"name": "l0", "site": "s", "passed": False, "found": "L0 900", "expected": "6 to 40", "remedy": "none"},
    ]
    html = page(lambda store: write_facts(store.path, "gate", {"checks": checks, "forced": True}))
    assert "1 of 2 passed" in html
    assert "at most 0.3<" in html  # and no number that nobody published
    assert "forced past this gate" in html
    assert re.search(r"L0 900.*6 to 40", html)
    assert html.count("FAILED") == 1


@pytest.mark.parametrize("current", [True, False])
def test_a_certificate_is_shown_with_its_age(page: Callable[..., str], current: bool) -> None:
    def certify(store: ScoreStore) -> None:
        row = {"samples": 200, "pearson": 0.5, "spearman": 0.9, "sign_agreement": 0.91, "slope": 1.1}
        agreement = Agreement(
            site=store.sites[0],
            objective=store.objectives[0],
            scores="pairs",
            latents="all",
            slope_low=None,
            slope_high=None,
            **row,  # type: ignore[arg-type]
        )
        certificate = Certificate(
            agreements=(agreement,),
            sampling={},
            documents=(),
            segments={"0": store.segments[0].digest if current else "another"},
            differences={},
            value_deviation=0.0,
            samples={},
        )
        write_certificate(store.path, certificate)

    html = page(certify)
    assert re.search(r"one latent at one token.*200.*0\.900<.*0\.500<.*0\.910.*1\.10 \[undefined, undefined\]", html)
    assert ("of other segments" in html) is not current


def test_decoder_rows_are_shown_where_the_store_has_them(page: Callable[..., str]) -> None:
    def describe(store: ScoreStore) -> None:
        latents = store.num_latents(store.sites[0])
        ids = np.arange(latents * 2, dtype=np.uint32).reshape(latents, 2) % 2
        effects = np.full((latents, 2), 0.25, np.float32)
        described = Described(
            promoted_CT=ids,
            promoted_effect_CT=effects,
            suppressed_CT=ids,
            suppressed_effect_CT=-effects,
            neighbours_CK=(ids + 5).astype(np.uint32),
            cosine_CK=effects * 2,
        )
        publish_described(store.path, {store.sites[0]: described}, "compact")

    html = page(describe, "latents/000038.html")
    html = html[html.index('id="decoder"') :]
    assert html.count("+0.250") == html.count("−0.250") == 2
    assert "&lt;bos&gt;" in html
    assert "+0.500" in html
    assert "gradsae describe" not in html


def test_scores_of_a_probability_carry_its_factor(make_store: Callable[..., ScoreStore], tmp_path: Path) -> None:
    store = make_store(objective="continuation-prob")
    write_report(store, tmp_path / "audit", latents=[38], contexts=3, context=1)
    best = rank_tokens(store, latent=38, k=1).to_pylist()[0]
    html = (tmp_path / "audit/latents/000038.html").read_text(encoding="utf-8")
    assert f'class="pos">{signed(best["influence"])}<' in html
    total = next(row for row in rank_latents(store, by="absolute", k=None).to_pylist() if row["latent"] == 38)
    assert number(total["absolute"]) in html
    assert "[probability]" in html


def test_an_incomplete_store_says_so(page: Callable[..., str]) -> None:
    html = page(lambda store: next((store.path / "commits").glob("000001*")).unlink())
    assert "1 of 2 segments" in html


def test_a_store_in_which_nothing_fires_has_an_overview(page: Callable[..., str]) -> None:
    html = page(lambda store: None, rate=0.0)
    assert "0 of 40 latents have a page" in html
    assert "<dt>never fire</dt><dd>40</dd>" in html


def test_influences_that_are_not_finite_are_left_out_and_counted(
    make_store: Callable[..., ScoreStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    values = rank_tokens(store, latent=38, k=None)["influence"].to_numpy()
    largest = float(values.max())

    def overflow(activation_Z: Any, projection_Z: Any) -> Any:
        product = (activation_Z * projection_Z).astype(np.float64)
        return np.where(product == largest, np.inf, product)

    monkeypatch.setattr("gradsae_fast.report.entries.influence", overflow)
    write_report(store, tmp_path / "audit", latents=[38], documents=1)
    html = (tmp_path / "audit/latents/000038.html").read_text(encoding="utf-8")
    num_left_out = int((values == largest).sum())
    assert f"Left out: {num_left_out} token" in html
    assert f"{len(values) - num_left_out} counted tokens on which it is active" in html
