"""What the compiled kernels take on GPUs that are not here: no spill, shared memory within the chip, tensor cores."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
PRODUCTS = ("append", "words")


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    """Every kernel for every architecture, compiled in a process of its own: this one interprets kernels."""
    script = Path(__file__).with_name("cross_compile.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    child = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, env=environment)
    assert child.returncode == 0, child.stderr[-4000:]
    return [json.loads(line) for line in child.stdout.splitlines()]


def test_every_kernel_compiles_for_every_architecture(compiled: list[dict[str, Any]]) -> None:
    names = {arch: {one["kernel"] for one in compiled if one["arch"] == arch} for arch in SHARED_MEMORY}
    assert names[80] == names[90] == names[100]
    first_words = {name.split()[0] for name in names[90]}
    assert first_words == {
        "append",
        "words",
        "scan",
        "pack",
        "bar",
        "select",
        "lower",
        "project",
        "influence",
        "decode",
    }


def test_no_product_spills_registers_and_nothing_else_more_than_a_few(compiled: list[dict[str, Any]]) -> None:
    limit = {"append": 0, "words": 0}
    assert [one for one in compiled if one["stack"] > limit.get(one["kernel"].split()[0], 16)] == []


def test_shared_memory_fits_the_chip_twice_where_two_blocks_are_meant_to_share_it(
    compiled: list[dict[str, Any]],
) -> None:
    for one in compiled:
        blocks = 2 if one["kernel"].split()[0] in PRODUCTS else 1
        assert one["shared"] * blocks <= SHARED_MEMORY[one["arch"]], one


def test_every_element_of_a_tile_is_appended_by_one_thread(compiled: list[dict[str, Any]]) -> None:
    for one in compiled:
        if one["kernel"].startswith("append"):
            assert one["append"] == 128 * 128, one


def test_products_run_on_tensor_cores_and_fetch_in_bulk_from_hopper_on(compiled: list[dict[str, Any]]) -> None:
    for one in compiled:
        if one["kernel"].split()[0] in PRODUCTS:
            assert one["tensor core"] > 0, one
            assert (one["bulk copy"] > 0) == (one["arch"] >= 90), one
