"""The table of backends."""

import pytest
import torch

from gradsae_kernels import Backend, BackendUnavailable, choose_backend, encode_topk


@pytest.mark.parametrize(
    ("device", "requested", "chosen"),
    [
        ("cpu", Backend.AUTO, Backend.TILED),
        ("cpu", Backend.TILED, Backend.TILED),
        ("cpu", Backend.REFERENCE, Backend.REFERENCE),
        ("cuda", Backend.AUTO, Backend.TILED),
        ("cuda", Backend.TILED, Backend.TILED),
        ("mps", Backend.REFERENCE, Backend.REFERENCE),
        ("mps", Backend.AUTO, None),
        ("mps", Backend.TILED, None),
        ("meta", Backend.REFERENCE, None),
    ],
)
def test_a_backend_is_taken_or_refused_and_never_replaced(
    device: str, requested: Backend, chosen: Backend | None
) -> None:
    if chosen is None:
        with pytest.raises(BackendUnavailable, match=f"on device '{device}'"):
            choose_backend(torch.device(device), requested)
    else:
        assert choose_backend(torch.device(device), requested) is chosen


def test_a_backend_may_be_given_by_its_name() -> None:
    x, w = torch.ones(1, 2), torch.ones(3, 2)
    assert encode_topk(x, w, torch.zeros(3), 1, backend=Backend("tiled")).indices.tolist() == [0]
    with pytest.raises(ValueError, match="fastest"):
        Backend("fastest")
