"""What the operator tests share; letters: N tokens, D model width, C latents."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradsae_kernels import SparseRows
from gradsae_kernels.compiled import numba_is_usable
from gradsae_kernels.launches import runs_triton


@pytest.fixture(params=["compiled", "plain torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways through the tiled backend: with numba, and as if it were not installed."""
    if request.param == "plain torch":
        monkeypatch.setitem(sys.modules, "numba", None)
    numba_is_usable.cache_clear()
    yield request.param
    monkeypatch.undo()
    numba_is_usable.cache_clear()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def triton_device(request: pytest.FixtureRequest) -> str:
    """Where Triton kernels run: in the interpreter on CPU tensors, and on a GPU with `pytest -m gpu`."""
    if not runs_triton(torch.device(request.param)):
        pytest.skip(f"Triton does not run on {request.param} here")
    return request.param


@pytest.fixture
def small_integers() -> Callable[..., Tensor]:
    """Seeded fp32 tensors of small integers: every product and sum of them is exact, so that results must be equal."""
    generator = torch.Generator().manual_seed(7)
    return lambda *shape: torch.randint(-4, 5, shape, generator=generator).float()


@pytest.fixture
def same() -> Callable[[SparseRows, SparseRows], bool]:
    """Whether two results are equal bit by bit, types included."""
    return lambda a, b: all(p.dtype == q.dtype and torch.equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nobody has written holds NaN or absurd integers, as it may on a bad day."""
    torch_empty, numpy_empty = torch.empty, np.empty

    def poisoned_tensor(*args: Any, **kwargs: Any) -> Tensor:
        tensor = torch_empty(*args, **kwargs)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else 2**30)

    def poisoned_array(*args: Any, **kwargs: Any) -> Any:
        array = numpy_empty(*args, **kwargs)
        array.fill(np.nan if array.dtype.kind == "f" else min(2**30, np.iinfo(array.dtype).max))
        return array

    monkeypatch.setattr(torch, "empty", poisoned_tensor)
    monkeypatch.setattr(np, "empty", poisoned_array)
