"""The table of backends."""

import logging
import sys

import pytest
import torch

from gradsae_kernels import Backend, BackendUnavailable, choose_backend, encode_topk, kernel_configuration
from gradsae_kernels.launches import announce_tiled, why_no_triton


@pytest.mark.parametrize(
    ("device", "requested", "chosen"),
    [
        ("cpu", Backend.AUTO, Backend.TILED),
        ("cpu", Backend.TILED, Backend.TILED),
        ("cpu", Backend.REFERENCE, Backend.REFERENCE),
        ("cuda", Backend.TILED, Backend.TILED),
        ("mps", Backend.REFERENCE, Backend.REFERENCE),
        ("mps", Backend.AUTO, None),
        ("mps", Backend.TILED, None),
        ("mps", Backend.TRITON, None),
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


def test_a_gpu_runs_triton_and_without_it_the_portable_path_announced_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose_backend(gpu, Backend.AUTO) is Backend.TRITON
    configuration = kernel_configuration(gpu, torch.bfloat16, torch.bfloat16, 2304, 16384)
    assert configuration == "triton words 128x128x64 w8 s3"
    assert kernel_configuration(gpu, torch.bfloat16, torch.bfloat16, 576, 65536, k=64).startswith("triton append")
    assert kernel_configuration(gpu, torch.bfloat16, torch.bfloat16, 576, 512, k=64).endswith("tiled torch")
    monkeypatch.setitem(sys.modules, "triton", None)
    for forget in (why_no_triton, announce_tiled):
        forget.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert [choose_backend(gpu, Backend.AUTO) for _ in range(3)] == [Backend.TILED] * 3
        assert [record.message.split(":")[0] for record in caplog.records] == [
            "gradsae_kernels runs plain torch on cuda, slower than its Triton kernels"
        ]
        with pytest.raises(BackendUnavailable, match=r"gradsae-fast\[triton\]"):
            choose_backend(gpu, Backend.TRITON)
        assert kernel_configuration(gpu, torch.bfloat16, torch.bfloat16, 2304, 16384) == "tiled torch"
    finally:
        monkeypatch.undo()
        for forget in (why_no_triton, announce_tiled):
            forget.cache_clear()


def test_a_gpu_before_ampere_runs_the_portable_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose_backend(torch.device("cuda"), Backend.AUTO) is Backend.TILED


def test_a_backend_may_be_given_by_its_name() -> None:
    x, w = torch.ones(1, 2), torch.ones(3, 2)
    assert encode_topk(x, w, torch.zeros(3), 1, backend=Backend("tiled")).indices.tolist() == [0]
    with pytest.raises(ValueError, match="fastest"):
        Backend("fastest")
