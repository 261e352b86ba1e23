"""The hub: which text is a hub id, what is asked for, and what a user reads when it fails."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from gradsae_fast.errors import SaeError
from gradsae_fast.sae import hub


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/repo", True),
        ("google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", True),
        ("org/repo/blocks.3.hook_resid_post/", True),
        ("repo", False),
        ("./org/repo", False),
        ("../org/repo", False),
        ("/org/repo", False),
        ("~/org/repo", False),
        ("org/repo with spaces", False),
    ],
)
def test_hub_ids_are_told_from_paths(text: str, expected: bool) -> None:
    assert hub.is_hub_id(text) is expected


def test_a_file_name_at_the_end_stands_for_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "layer_1").mkdir()
    (tmp_path / "layer_1" / "params.npz").touch()
    monkeypatch.setattr(hub, "snapshot_download", lambda repo, **_: str(tmp_path))
    assert hub.fetch("org/repo/layer_1/params.npz", files=["params.npz"]) == tmp_path / "layer_1"


def test_a_folder_without_an_sae_says_what_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "snapshot_download", lambda repo, **_: str(tmp_path))
    with pytest.raises(SaeError, match=r"holds none of layer_1/params\.npz; give the folder of one SAE"):
        hub.fetch("org/repo/layer_1", files=["params.npz"])


@pytest.mark.parametrize("failure", [ConnectionError("down"), FileNotFoundError("not cached"), ValueError("bad id")])
def test_a_failing_hub_is_a_clear_error(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(repo: str, **_: Any) -> str:
        raise failure

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(SaeError, match="no local path 'org/repo', and the hub repository 'org/repo' could not be read"):
        hub.fetch("org/repo", files=["params.npz"])


def test_the_offline_switch_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SaeError, match="HF_HUB_OFFLINE"):
        hub.fetch("org/repo-that-is-not-cached", files=["params.npz"])
