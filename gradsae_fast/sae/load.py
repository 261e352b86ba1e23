"""From a path or a hub id to the canonical SAE: each format is asked whether the files are its own."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from types import ModuleType

import torch

from gradsae_fast.errors import SaeError
from gradsae_fast.sae import hub
from gradsae_fast.sae.canonical import Sae
from gradsae_fast.sae.formats import (
    attention_gpt2,
    circuit_tracer,
    circuit_tracer_clt,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    gemma_scope_2_clt,
    goodfire,
    llama_scope,
    llama_scope_r1,
    openai,
    qresearch,
    qwen_scope,
    saelens,
    sparsify,
    temporal_saes,
)

FORMATS: tuple[ModuleType, ...] = (
    llama_scope_r1,  # before saelens: its weights have the same name, its configuration another
    saelens,
    gemma_scope,
    gemma_scope_2,
    gemma_scope_2_clt,
    sparsify,
    dictionary_learning,
    llama_scope,
    circuit_tracer,
    circuit_tracer_clt,
    goodfire,
    qwen_scope,
    qresearch,
    openai,
    attention_gpt2,
    temporal_saes,
)
NAMED_AFTER_A_LAYER: tuple[ModuleType, ...] = (circuit_tracer, circuit_tracer_clt, gemma_scope_2_clt)
SHOWN = 20  # entries of a folder that an error lists


def load_sae(
    path_or_hub_id: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    norm_factor: float | None = None,
    k: int | None = None,
) -> Sae:
    """Load an SAE from a local folder or file, or from the hub ("org/repo", "org/repo/folder" or a file in it).

    `dtype` is how the two matrices are kept: float32, bfloat16 or float16; biases and thresholds stay float32.
    `revision` is for the hub. `norm_factor` is the input factor of a SAELens SAE with `expected_average_only_in` whose
    folder does not store it; `k` is that of a Qwen Scope SAE whose path does not name it. Raises SaeError where nothing
    is found, the format or the family is not supported, or the files are damaged.
    """
    source = str(path_or_hub_id)
    path = _locate(source, revision)
    for each in FORMATS:
        if each.matches(path):
            return each.load(
                path, source=source, device=device, dtype=dtype, **_given(each, norm_factor=norm_factor, k=k)
            )
    supported = "; ".join(each.LAYOUT for each in FORMATS)
    raise SaeError(f"{path} holds no SAE of a supported format: found {_found(path)}. Supported: {supported}")


def check_sources(sources: Iterable[str]) -> None:
    """Refuse what is no local path and cannot be a hub id: a question that needs nothing loaded. Raises SaeError."""
    for source in sources:
        if not Path(source).expanduser().exists() and not hub.is_hub_id(source):
            raise SaeError(f"there is no local path {source!r}, and it is no hub id ('org/repo' or 'org/repo/folder')")


def _given(form: ModuleType, **by_hand: float | None) -> dict[str, float]:
    """The facts that were given by hand; a format that does not take one refuses it."""
    given = {name: value for name, value in by_hand.items() if value is not None}
    for name, value in given.items():
        if name not in form.BY_HAND:
            raise SaeError(f"{name}={value} would have no effect on an SAE of the format {form.LAYOUT!r}; leave it out")
    return given


def _locate(source: str, revision: str | None) -> Path:
    path = Path(source).expanduser()
    if path.exists():
        if revision is not None:
            raise SaeError(f"revision {revision!r} has no effect: {source!r} is a local path; leave it out")
        return path
    check_sources([source])
    name = PurePosixPath(source).name
    if files := [file for each in NAMED_AFTER_A_LAYER for file in each.files_of(name)]:
        path = hub.fetch(source, files=files, revision=revision) / name
        if not path.is_file():
            raise SaeError(f"the hub has no file {source!r}, only others of its folder; is there such a layer?")
        return path
    return hub.fetch(source, files=[file for each in FORMATS for file in each.FILES], revision=revision)


def _found(path: Path) -> str:
    """What lies at the path: names of a folder, and those folders and files in it that do hold an SAE."""
    if not path.is_dir():
        return f"the file {path.name}"
    names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    inside = [entry for entry in sorted(path.iterdir()) if any(each.matches(entry) for each in FORMATS)]
    kind = "folder" if inside and inside[0].is_dir() else "file"
    hint = f" (an SAE lies in {', '.join(entry.name for entry in inside[:SHOWN])}: give that {kind})" if inside else ""
    return (", ".join(names[:SHOWN]) or "an empty folder") + more + hint
