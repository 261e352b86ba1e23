"""The cache as safetensors reads it, and, where GRADSAE_DELPHI names an interpreter with eai-delphi, as delphi does."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from gradsae_fast.errors import QueryError
from gradsae_fast.export import write_delphi
from gradsae_fast.export.delphi import ranges
from gradsae_fast.records import Array
from gradsae_fast.store import ScoreStore
from tests.export.conftest import ASKED, OBJECTIVE, SIGNED_SITE, SITE
from tests.ranking.conftest import NUM_LATENTS, World

DELPHI = os.environ.get("GRADSAE_DELPHI")
CONTEXT = 8
FILES = ["0_3.safetensors", "4_7.safetensors", "8_11.safetensors"]


def entries(world: World, site: str) -> tuple[Array, Array, Array]:
    """Place in the stream, latent and activation of every non-zero of a counted token, by place and latent."""
    a_NC = np.where(world.counted()[:, None], world.activation[site], 0)
    token, latent = np.nonzero(a_NC)
    return token, latent, a_NC[token, latent]


@pytest.mark.parametrize("run", [3, 1 << 19])
def test_safetensors_reads_the_non_zeros_of_every_range_of_latents(
    store: ScoreStore, world: World, tmp_path: Path, run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsae_fast.export.nonzeros.RUN_NONZEROS", run)
    done = write_delphi(store, tmp_path / "latents", splits=3, context=CONTEXT, **ASKED)
    assert done.path == tmp_path / "latents" / "layers.3"
    assert sorted(path.name for path in done.path.glob("*.safetensors")) == FILES
    place, latent, activation = entries(world, SITE)
    for first, last in ranges(NUM_LATENTS, 3):
        split = load_file(done.path / f"{first}_{last}.safetensors")
        mine = (latent >= first) & (latent <= last)
        expected = np.stack([place // CONTEXT, place % CONTEXT, latent - first], axis=1)[mine]
        assert np.array_equal(split["locations"], expected)
        assert np.array_equal(split["activations"], activation[mine])
        assert [split[name].dtype.name for name in ("locations", "activations")] == ["uint16", "float32"]
        tokens = split["tokens"]
        assert tokens.dtype == np.int64
        assert tokens.shape[1] == CONTEXT
        assert np.array_equal(tokens.ravel()[: len(world.document_N)], token_ids(world))
        assert not tokens.ravel()[len(world.document_N) :].any()
    assert done.count == len(activation)


def token_ids(world: World) -> Array:
    """The ids of the store's tokens: `make_segments` counts rows from 0 to 49 over the corpus."""
    return np.arange(len(world.document_N)) % 50


def test_the_configuration_says_what_delphi_and_people_ask_for(store: ScoreStore, world: World, tmp_path: Path) -> None:
    done = write_delphi(store, tmp_path / "latents", splits=3, context=CONTEXT, **ASKED)
    config = json.loads((done.path / "config.json").read_text())
    assert config["model_name"] == "tiny/model-1"
    assert config["cache_ctx_len"] == config["ctx_len"] == CONTEXT
    assert config["n_tokens"] == len(world.document_N)
    assert config["provenance"]["site"] == SITE
    starts = {key: int(np.flatnonzero(world.document_N == m)[0]) for m, key in enumerate(world.keys) if m != 2}
    assert dict(config["documents"]) == starts
    with safe_open(done.path / FILES[0], framework="numpy") as file:
        assert json.loads(file.metadata()["provenance"]) == config["provenance"]


def test_sites_lie_side_by_side_and_are_replaced_one_by_one(store: ScoreStore, tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    first = write_delphi(store, folder, context=CONTEXT, **ASKED).path
    write_delphi(store, folder, context=CONTEXT, site=SIGNED_SITE, objective=OBJECTIVE)
    with pytest.raises(QueryError, match=r"layers\.3 exists"):
        write_delphi(store, folder, context=CONTEXT, **ASKED)
    write_delphi(store, folder, context=4, splits=2, overwrite=True, **ASKED)
    assert sorted(path.name for path in folder.iterdir()) == ["layers.3", "layers.5"]
    assert json.loads((first / "config.json").read_text())["ctx_len"] == 4
    assert len(list(first.glob("*.safetensors"))) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["latents"]


def test_a_selection_has_the_tokens_of_its_documents_only(store: ScoreStore, world: World, tmp_path: Path) -> None:
    done = write_delphi(store, tmp_path / "some", context=CONTEXT, splits=1, document=["doc-01", "doc-09"], **ASKED)
    split = load_file(done.path / "0_11.safetensors")
    chosen = np.isin(world.document_N, [1, 9])
    assert np.array_equal(split["tokens"].ravel()[: chosen.sum()], token_ids(world)[chosen])
    place, latent, activation = entries(world, SITE)
    kept = chosen[place]
    renumbered = (np.cumsum(chosen) - 1)[place[kept]]
    assert np.array_equal(split["locations"][:, 0].astype(int) * CONTEXT + split["locations"][:, 1], renumbered)
    assert np.array_equal(split["locations"][:, 2], latent[kept])
    assert np.array_equal(split["activations"], activation[kept])


def test_what_cannot_be_exported_is_refused(store: ScoreStore, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match=r"got context = 8 and splits = 13; expected .* 1 to 12 splits"):
        write_delphi(store, tmp_path / "latents", context=CONTEXT, splits=13, **ASKED)
    with pytest.raises(QueryError, match=r"folder .*absent does not exist; make it first"):
        write_delphi(store, tmp_path / "absent" / "latents", **ASKED)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(QueryError, match="is a file; expected a folder"):
        write_delphi(store, tmp_path / "file", **ASKED)
    with pytest.raises(QueryError, match="nothing to export"):
        write_delphi(store, tmp_path / "latents", latent=7, **ASKED)
    assert not list((tmp_path / "latents").iterdir())


def test_a_folder_of_something_else_is_never_replaced(store: ScoreStore, tmp_path: Path) -> None:
    notes = tmp_path / "latents" / "layers.3" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    with pytest.raises(QueryError, match=r"layers\.3 is no cache of delphi .* choose another one"):
        write_delphi(store, tmp_path / "latents", overwrite=True, **ASKED)
    assert notes.read_text() == "mine"


def test_a_link_to_a_folder_is_written_on_the_disk_of_that_folder(
    store: ScoreStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    monkeypatch.setattr("gradsae_fast.export.target._settle", seen.append)
    (tmp_path / "disk" / "latents").mkdir(parents=True)
    (tmp_path / "latents").symlink_to(tmp_path / "disk" / "latents")
    write_delphi(store, tmp_path / "latents", **ASKED)
    assert seen[0].parents[1] == tmp_path / "disk"
    assert (tmp_path / "disk" / "latents" / "layers.3" / "config.json").is_file()


@pytest.fixture(scope="module")
def answer(store: ScoreStore, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What delphi's loader finds in a cache of both sites, with an empty file among those of the first."""
    folder = tmp_path_factory.mktemp("delphi")
    write_delphi(store, folder / "latents", context=CONTEXT, splits=12, **ASKED)
    write_delphi(store, folder / "latents", context=CONTEXT, splits=3, site=SIGNED_SITE, objective=OBJECTIVE)
    script = Path(__file__).parents[1] / "peers" / "read_delphi.py"
    subprocess.run([str(DELPHI), str(script), str(folder / "latents"), str(folder / "answer.json")], check=True)
    return json.loads((folder / "answer.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(not DELPHI, reason="GRADSAE_DELPHI names no interpreter with eai-delphi")
@pytest.mark.parametrize("site", [SITE, SIGNED_SITE])
def test_delphis_own_loader_finds_the_same_activations(answer: Any, world: World, site: str) -> None:
    place, latent, activation = entries(world, site)
    found = answer["latents"][site.removeprefix("model.")]
    assert sorted(map(int, found)) == sorted(set(latent.tolist()))
    for number, data in found.items():
        mine = latent == int(number)
        assert [row * CONTEXT + column for row, column in data["places"]] == place[mine].tolist()
        assert data["activations"] == activation[mine].tolist()
        assert data["tokens"] == token_ids(world)[place[mine]].tolist()
    assert answer["shape"] == [-(-len(world.document_N) // CONTEXT), CONTEXT]


@pytest.mark.slow
@pytest.mark.skipif(not DELPHI, reason="GRADSAE_DELPHI names no interpreter with eai-delphi")
def test_delphi_constructs_examples_from_the_cache(answer: Any) -> None:
    assert list(answer["examples"]) == [str(answer["alone"])]
    assert answer["examples"][str(answer["alone"])] > 0
