"""Weights that someone made to do harm: no code of theirs runs, nothing unpacks to more memory than there is."""

import ast
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradsae_fast.config import ModelConfig
from gradsae_fast.errors import ConfigError, ModelError, SaeError
from gradsae_fast.model.load import load_model
from gradsae_fast.report.labels import read_labels
from gradsae_fast.sae.weights import read_npz, read_pickle, read_safetensors

ROOT = Path(__file__).parents[2]


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, sprung: Path) -> None:
        self._sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._sprung),)


@pytest.mark.parametrize("plain", [True, False])
def test_a_pickle_that_runs_code_is_refused_unread(tmp_path: Path, plain: bool) -> None:
    path, sprung = tmp_path / "sae.pt", tmp_path / "sprung"
    content = {"W_dec": torch.ones(2, 2), "trap": Trap(sprung)}
    if plain:
        path.write_bytes(pickle.dumps(Trap(sprung), protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(
        SaeError, match=r"because a pickle can run code .* save its state_dict\(\)|not a whole torch file"
    ):
        read_pickle(path)
    assert not sprung.exists()


def test_an_npz_with_a_pickle_in_it_is_refused_unread(tmp_path: Path) -> None:
    path, sprung = tmp_path / "sae.npz", tmp_path / "sprung"
    np.savez(path, W_dec=np.array([Trap(sprung)], object))
    with pytest.raises(SaeError, match="not a whole npz archive of arrays"):
        read_npz(path)
    assert not sprung.exists()


def npz(path: Path, header: dict[str, Any], data: bytes) -> Path:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_dec.npy", file.getvalue() + data)
    return path


def test_an_npz_that_claims_more_elements_than_it_has_is_refused(tmp_path: Path) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**15,)}
    with pytest.raises(SaeError, match="not a whole npz archive of arrays"):
        read_npz(npz(tmp_path / "sae.npz", header, b"1234"))


def test_an_npz_that_unpacks_to_far_more_than_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sae.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("W_dec.npy", "w", force_zip64=True) as f,
    ):
        for _ in range(130):
            f.write(bytes(10 << 20))
    with pytest.raises(SaeError, match="unpack to 1363148800, which is no weights' way"):
        read_npz(path)


@pytest.mark.parametrize(
    "header",
    [
        {"W": {"dtype": "F32", "shape": [10**9, 10**6], "data_offsets": [0, 4 * 10**15]}},
        {"W": {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**18]}},
        {"W": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}},
        {"W": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"W": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}},
        {"W": 3},
    ],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path: Path, header: Any) -> None:
    path = tmp_path / "sae.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"1234")
    with pytest.raises(SaeError, match="not a whole safetensors file"):
        read_safetensors(path)


def test_a_safetensors_header_of_any_length_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sae.safetensors"
    for length in (2**63, 2**40, 100, 0):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(SaeError, match="not a whole safetensors file"):
            read_safetensors(path)


def test_code_in_the_folder_of_a_model_is_not_run_and_nobody_is_asked(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(sprung)!r})\nclass Evil: pass\n", encoding="utf-8")
    maps = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "evil.Evil")
    config = {"model_type": "evil", "auto_map": maps, "architectures": ["Evil"], "vocab_size": 8}
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps(config | {"tokenizer_class": "EvilTokenizer"}), encoding="utf-8")
    with pytest.raises(ModelError, match="Python code of its own, and none is run from a model's folder"):
        load_model(ModelConfig(path=str(folder)))
    assert not sprung.exists()


def test_labels_that_unpack_to_more_than_labels_take_are_refused(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "labels.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"latent,label\n")
        for _ in range(26):
            file.write(bytes(10 << 20))
    with pytest.raises(ConfigError, match="more than 256 MiB"):
        read_labels(path, 10)
    (tmp_path / "labels.jsonl").write_text('{"index": ' + "[" * 100_000, encoding="utf-8")
    with pytest.raises(ConfigError, match="line 1: no JSON"):
        read_labels(tmp_path / "labels.jsonl", 10)


UNSAFE = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "from_pretrained": ("trust_remote_code", False),
}
REFUSED = {
    "eval",
    "exec",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "marshal.loads",
    "os.system",
    "shelve.open",
    "joblib.load",
}


OWN_WORKERS = "gradsae_fast/engine/on_ray.py"  # unpickles what workers of the same run send, and no file


def test_no_line_of_the_package_loads_what_could_run_code() -> None:
    """Read from the syntax tree: every loader that can run code is called with its safe setting, or not at all."""
    found = []
    for folder in ("gradsae_fast", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    found += [f"{path.relative_to(ROOT)}:{node.lineno} {what}" for what in unsafe(node)]
    assert [line for line in found if not line.startswith(OWN_WORKERS)] == []


def unsafe(call: ast.Call) -> list[str]:
    name = ast.unparse(call.func)
    if name in REFUSED:
        return [name]
    settings = {word.arg: word.value for word in call.keywords}
    if any(
        isinstance(value, ast.Constant) and value.value is True
        for key, value in settings.items()
        if key == "trust_remote_code"
    ):
        return [f"{name} with trust_remote_code"]
    for loader, (setting, safe) in UNSAFE.items():
        if (name == loader or name.endswith(f".{loader}")) and None not in settings:  # None: **source, tested above
            value = settings.get(setting)
            if not (isinstance(value, ast.Constant) and value.value is safe):
                return [f"{name} without {setting}={safe}"]
    return []
