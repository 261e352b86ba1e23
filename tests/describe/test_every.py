"""All latents are described by the same numbers as single ones, and neighbours are those of a dense cosine matrix."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from gradsae_fast import open_scores, verify
from gradsae_fast.cli_describe import describe as verb
from gradsae_fast.config import ExtractConfig
from gradsae_fast.describe import describe, describe_every, logits, neighbours
from gradsae_fast.describe.logits import token_text
from gradsae_fast.describe.neighbours import nearest_rows
from gradsae_fast.describe.origin import load_origin
from gradsae_fast.errors import BusyError, QueryError
from gradsae_fast.extract import extract
from gradsae_fast.store.places.lock import locked

SITE = "model.layers.1"


@pytest.fixture
def store(scored: Path, tmp_path: Path) -> Path:
    """A copy to write to."""
    return Path(shutil.copytree(scored, tmp_path / "speeches.gradsae"))


def test_every_latent_promotes_what_a_single_description_says(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "LOGITS_PER_TILE", 321 * 5)  # five latents at a time, the last tile shorter
    describe_every(store, tokens=4)
    described = open_scores(store).described(SITE)
    assert described is not None
    monkeypatch.undo()
    lm = load_origin(open_scores(store), SITE).lm
    for row in describe(store, range(48), tokens=4, output_score=False).to_pylist():
        latent = row["latent"]
        assert [token_text(lm, int(token)) for token in described.promoted_CT[latent]] == row["promoted"]
        assert [token_text(lm, int(token)) for token in described.suppressed_CT[latent]] == row["suppressed"]
        np.testing.assert_allclose(described.promoted_effect_CT[latent], row["promoted_effect"], rtol=1e-4)
        np.testing.assert_allclose(described.suppressed_effect_CT[latent], row["suppressed_effect"], rtol=1e-4)


def test_neighbours_are_those_of_the_whole_cosine_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    row_CD = torch.randn(37, 6, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 9, 37)[:, None]
    cosine_CC = torch.nn.functional.cosine_similarity(row_CD[:, None], row_CD[None], dim=2).numpy()
    np.fill_diagonal(cosine_CC, -np.inf)
    expected_CK = np.argsort(-cosine_CC, axis=1, kind="stable")[:, :5]
    for tile, block in ((2048, 8192), (5, 7), (3, 2)):  # a block may hold fewer than K others
        monkeypatch.setattr(neighbours, "TILE", tile)
        monkeypatch.setattr(neighbours, "BLOCK", block)
        latent_CK, cosine_CK = nearest_rows(row_CD, 5)
        np.testing.assert_array_equal(latent_CK, expected_CK)
        np.testing.assert_allclose(cosine_CK, np.take_along_axis(cosine_CC, expected_CK, 1), atol=1e-6)


def test_equal_rows_come_in_order_of_number_and_rows_of_zeros_are_near_to_none() -> None:
    row_CD = torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0], [3.0, 0.0], [-1.0, 0.0]])
    latent_CK, cosine_CK = nearest_rows(row_CD, 10)
    assert latent_CK.tolist()[0] == [2, 3, 1, 4]
    np.testing.assert_allclose(cosine_CK[0], [1, 1, 0, -1], atol=1e-6)
    assert latent_CK.tolist()[1] == [0, 2, 3, 4]
    assert cosine_CK[1].tolist() == [0, 0, 0, 0]


def test_a_site_off_the_residual_stream_keeps_neighbours_and_says_so(
    configure: Callable[..., ExtractConfig], tmp_path: Path, tiny_sae_folder: Path
) -> None:
    config = configure(sae={"path": str(tiny_sae_folder), "site": "model.layers.1.mlp.input"})
    extract(config)
    told: list[str] = []
    found = describe_every(config.store.path, neighbours=3, on_message=told.append)
    (described,) = found.values()
    assert described.promoted_CT.shape == described.suppressed_effect_CT.shape == (48, 0)
    assert described.neighbours_CK.shape == (48, 3)
    assert len(told) == 1
    assert "nearest decoder rows only" in told[0]
    kept = open_scores(config.store.path).described("model.layers.1.mlp.input")
    assert kept is not None
    np.testing.assert_array_equal(kept.neighbours_CK, described.neighbours_CK)


def test_describing_again_replaces_what_was_kept(store: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    describe_every(store, tokens=2)
    describe_every(store, tokens=5, neighbours=99, on_progress=lambda *step: steps.append(step))
    kept = open_scores(store).described(SITE)
    assert kept is not None
    assert kept.promoted_CT.shape == (48, 5)
    assert kept.neighbours_CK.shape == (48, 47)
    assert {(done, total) for _, done, total in steps} == {(48, 48)}
    assert verify(store) == []


def test_a_store_that_is_being_written_is_left_alone(store: Path) -> None:
    with locked(store), pytest.raises(BusyError):
        describe_every(store)
    with pytest.raises(QueryError, match="tokens = 0; expected 1 or more"):
        describe_every(store, tokens=0)
    with pytest.raises(QueryError, match="neighbours = 0; expected 1 or more"):
        describe_every(store, neighbours=0)


def test_the_verb_says_what_it_kept_and_refuses_what_makes_no_sense_beside_all(store: Path) -> None:
    app = typer.Typer()
    app.command()(verb)
    result = CliRunner().invoke(app, [str(store), "--all", "--tokens", "3"])
    assert result.exit_code == 0, result.output
    assert "model.layers.1: 48 latents, 3 promoted and 3 suppressed tokens of each, 10 nearest" in result.stdout
    for words in (["--latent", "3"], ["-k", "20"], ["--examples", "100"], ["--no-error-term"], ["--format", "json"]):
        refused = CliRunner().invoke(app, [str(store), "--all", *words])
        assert isinstance(refused.exception, QueryError)
        assert words[0] in str(refused.exception) or words[0] == "--no-error-term"
        assert "no effect beside --all" in str(refused.exception)
