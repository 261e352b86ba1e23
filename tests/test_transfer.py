"""Copies between host and device."""

import numpy as np
import pytest
import torch

from gradsae_fast.transfer import download, to_device


def test_a_download_gives_the_values() -> None:
    arrive = download({"a": torch.arange(3), "b": torch.ones(0)})
    assert {name: array.tolist() for name, array in arrive().items()} == {"a": [0, 1, 2], "b": []}


def test_an_upload_gives_the_values() -> None:
    assert to_device(np.arange(3), "cpu").tolist() == [0, 1, 2]


@pytest.mark.gpu
def test_values_of_a_gpu_are_those_of_the_moment_of_the_download() -> None:
    numbers_N = to_device(np.arange(1 << 22, dtype=np.float32), "cuda")
    arrive = download({"doubled": 2 * numbers_N})
    numbers_N.zero_()
    again = download({"doubled": 3 * torch.ones_like(numbers_N)})
    assert np.array_equal(arrive()["doubled"], 2 * np.arange(1 << 22, dtype=np.float32))
    assert np.all(again()["doubled"] == 3)
