"""What every format's tests share: exactly representable numbers, and the comparison with a published formula.

Shapes: N tokens, D width of the site, C latents.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradsae_fast.sae.canonical import Sae, normalise_input, scale_gradient
from gradsae_fast.sae.reference import decode_dense, encode_dense

N = 9
# Where C = D, no shape tells an encoder from its transpose.
WIDTHS = [(12, 40), (16, 16)]

Numbers = Callable[..., Tensor]
Agree = Callable[..., None]


@pytest.fixture(params=WIDTHS, ids=lambda widths: f"D{widths[0]}-C{widths[1]}")
def widths(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Width D and number of latents C; once unequal, once equal."""
    found: tuple[int, int] = request.param
    return found


@pytest.fixture
def numbers() -> Numbers:
    """Multiples of 1/16 from -2 to 2: products and sums of a few hundred of them are exact in float32."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randint(-32, 33, shape, generator=generator) / 16

    return draw


@pytest.fixture
def tokens(numbers: Numbers, widths: tuple[int, int]) -> Tensor:
    """Hidden states [N, D], exactly representable."""
    return numbers(N, widths[0]) * 2 + 0.5


@pytest.fixture
def agree() -> Agree:
    """Check a loaded SAE against activations, reconstruction and effective rows computed by the published formula."""

    def check(sae: Sae, hidden_ND: Tensor, code_NC: Tensor, decoded_ND: Tensor, rows: Tensor) -> None:
        a_NC = encode_dense(sae, hidden_ND)
        x_ND, stats = normalise_input(sae, hidden_ND)
        assert 0 < (code_NC != 0).sum() < code_NC.numel()
        assert torch.equal(a_NC != 0, code_NC != 0)
        torch.testing.assert_close(a_NC, code_NC.float(), rtol=2e-6, atol=2e-5)
        torch.testing.assert_close(decode_dense(sae, a_NC, stats, x_ND), decoded_ND.float(), rtol=2e-5, atol=2e-4)
        grad_ND = torch.randn(decoded_ND.shape, generator=torch.Generator().manual_seed(3))
        rows_NCD = rows.double().expand(len(hidden_ND), *rows.shape[-2:])
        projection_NC = torch.einsum("nd,ncd->nc", grad_ND.double(), rows_NCD)
        found_NC = scale_gradient(sae, grad_ND, stats) @ sae.w_dec_CD.T
        torch.testing.assert_close(found_NC, projection_NC.float(), rtol=2e-5, atol=2e-4)

    return check


def keep_largest(values_NC: Tensor, k: int) -> Tensor:
    """The k largest of each row, zero elsewhere; ties go to the smaller latent."""
    chosen_NK = values_NC.argsort(dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(values_NC).scatter(1, chosen_NK, values_NC.gather(1, chosen_NK))


@pytest.fixture
def top_k() -> Callable[[Tensor, int], Tensor]:
    return keep_largest


class _Tripwire:
    """Unpickling it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.fixture
def tripwire(tmp_path: Path) -> Iterator[Any]:
    """An object whose unpickling would run code; the test fails where it did."""
    mark = tmp_path / "code-was-run"
    yield _Tripwire(mark)
    assert not mark.exists()
