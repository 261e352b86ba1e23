"""Weight files: reading them whole, and refusing what cannot be an SAE before any arithmetic.

Every error names the file, says what it holds and what was expected.
"""

import hashlib
import pickle
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gradsae_fast.errors import SaeError

# What numpy and zipfile raise for archives that are cut short, contradictory or of something else.
_NO_ARCHIVE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    MemoryError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
_UNPACKED_FREELY = 1 << 30  # bytes
_MOST_PACKED = 100  # times; weights pack to about nine tenths


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU, in its own dtype."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise SaeError(f"{path} is not a whole safetensors file ({error}); fetch or write it again") from error


def read_npz(path: Path) -> dict[str, Tensor]:
    """Every array of an npz archive, on the CPU, in its own dtype. Pickled objects are refused."""
    try:
        _check_unpacked_size(path)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: torch.from_numpy(archive[key]) for key in archive.files}
    except _NO_ARCHIVE as error:
        raise SaeError(f"{path} is not a whole npz archive of arrays ({error}); fetch it again") from error


def _check_unpacked_size(path: Path) -> None:
    """Refuse an archive that unpacks to far more than weights do."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > max(_UNPACKED_FREELY, _MOST_PACKED * path.stat().st_size):
        raise ValueError(f"its {path.stat().st_size} bytes unpack to {size}, which is no weights' way")


def read_pickle(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote for a state dict: tensors in their own dtype, on the CPU, and plain values.

    Only tensors, numbers, strings and containers of them are read: a pickle that would run code is refused unread.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise SaeError(
            f"{path} is not a torch file of tensors and plain values alone, and nothing else is read, because a pickle "
            f"can run code ({reason}); save its state_dict() with the software that made it, or "
            "fetch it again"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise SaeError(f"{path} is not a whole torch file ({error}); fetch it again") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SaeError(f"{path} holds a {type(content).__name__}, expected a state dict: names with tensors")
    return {key: value.detach() if isinstance(value, Tensor) else value for key, value in content.items()}


def read_sizes(tensors: Mapping[str, Any], *, per_latent: str, per_width: str, path: Path) -> tuple[int, int]:
    """(C, D), read off two vectors: a matrix could be transposed, and then its sizes would be exchanged."""
    shapes = [tuple(getattr(tensors.get(key), "shape", ())) for key in (per_latent, per_width)]
    if any(len(shape) != 1 for shape in shapes):
        found = ", ".join(str(shape) if shape else "missing" for shape in shapes)
        raise SaeError(
            f"{path} holds {_listed(tensors)}; expected the vectors {per_latent} and {per_width}, which are {found}. "
            "Is the file of another family?"
        )
    return shapes[0][0], shapes[1][0]


def check_keys(found: Iterable[str], expected: Iterable[str], *, path: Path, family: str) -> None:
    """Refuse missing and unknown keys: both mean that the file is of another family than it says."""
    found, expected = set(found), set(expected)
    if found == expected:
        return
    problems = []
    if expected - found:
        problems.append(f"lacks {_listed(expected - found)}")
    if found - expected:
        problems.append(f"has the unknown {_listed(found - expected)}")
    raise SaeError(
        f"{path} {' and '.join(problems)}; it holds {_listed(found)}, an SAE of the family {family} needs "
        f"{_listed(expected)}. Check that the weights and the stated architecture belong together"
    )


def check_tensors(tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], *, path: Path) -> None:
    """Refuse wrong shapes, integer weights, NaN and Inf. Orientation is never repaired: it is a fact of the format."""
    for key, shape in shapes.items():
        tensor = tensors[key]
        if not isinstance(tensor, Tensor):
            raise SaeError(f"{key} in {path} is {tensor!r}, expected a tensor of shape {shape}")
        if tuple(tensor.shape) != shape:
            turned = " It looks transposed." if len(shape) > 1 and tuple(tensor.shape) == shape[::-1] else ""
            raise SaeError(f"{key} in {path} has shape {tuple(tensor.shape)}, expected {shape}.{turned}")
        if not tensor.is_floating_point():
            raise SaeError(f"{key} in {path} has dtype {tensor.dtype}, expected floating point")
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            raise SaeError(f"{key} in {path} holds {bad} NaN or Inf of {tensor.numel()} values; fetch the SAE again")


def check_not_negative(threshold_C: Tensor, *, path: Path) -> None:
    """Refuse negative JumpReLU thresholds: training keeps them at zero or above, so another scheme wrote them."""
    negative = int((threshold_C < 0).sum())
    if negative:
        raise SaeError(
            f"threshold in {path} is negative for {negative} of {len(threshold_C)} latents "
            f"(smallest {float(threshold_C.min()):g}), expected 0 or more; a logarithm, or a mark for 'not tracked'?"
        )


def digest_files(paths: Iterable[Path], *, extra: str = "") -> str:
    """SHA-256 over the names and contents of the files, and over `extra`."""
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda each: each.name):
        with path.open("rb") as file:
            total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    total.update(extra.encode())
    return total.hexdigest()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
