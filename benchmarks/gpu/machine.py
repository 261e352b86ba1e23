"""What the numbers were taken on, and the two rates that they are held against."""

import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.stopwatch import Stopwatch, quantile

PACKAGES = ("torch", "triton", "numba", "transformers", "gradsae-fast")
FIELDS = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu,memory.total"
LOAD_SECONDS = 10.0  # at most this long under load, should nvidia-smi hang


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Measured here and now."""

    copy_bytes_per_second: float  # read and write counted
    product_flops_per_second: float  # bf16 on a GPU, fp32 on a CPU


def measure_rates(device: torch.device, *, small: bool) -> Rates:
    """A large copy and a square product of random numbers; ten turns, median."""
    elements = 2**20 if small else 2**30
    side = 256 if small else 8192
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    source = torch.ones(elements, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    calls: dict[str, Callable[[], Any]] = {"copy": lambda: target.copy_(source), "product": lambda: a @ b}
    watch = Stopwatch(device)
    watch.turns(calls, 3)
    seconds = {name: quantile(times, 0.5) / 1e3 for name, times in watch.turns(calls, 10).items()}
    return Rates(
        copy_bytes_per_second=2 * elements / seconds["copy"],
        product_flops_per_second=2.0 * side**3 / seconds["product"],
    )


def describe(device: torch.device) -> dict[str, Any]:
    """Names and versions; clocks are read while products run."""
    return {
        "device": device_name(device),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda or "none",
        "is_trial": device.type == "cpu",
        "under_load": clocks_under_load(device),
    }


def device_name(device: torch.device) -> str:
    """As the driver, or the kernel, calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"CPU: {names[0] if names else platform.processor() or 'unknown'}, {torch.get_num_threads()} threads"


def device_slug(device: torch.device) -> str:
    """The name of the device as a part of a file's name."""
    return slug(device_name(device))


def slug(name: str) -> str:
    """A name in small letters and hyphens.

    >>> slug("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def free_bytes(device: torch.device) -> float:
    """Device memory that torch could still allocate; without end on a CPU, where it is not counted."""
    if device.type == "cpu":
        return float("inf")
    free, _ = torch.cuda.mem_get_info(device)
    return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def clocks_under_load(device: torch.device) -> dict[str, str]:
    """What nvidia-smi says while a product runs, or why it says nothing."""
    if device.type != "cuda":
        return {"not available": "no CUDA device"}
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"not available": "nvidia-smi is not on this machine"}
    command = [program, f"--query-gpu={FIELDS}", "--format=csv,noheader"]
    a_ND = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    torch.cuda.synchronize()
    begin = time.monotonic()
    while time.monotonic() - begin < 0.5:  # clocks follow the load after some time
        _multiply(a_ND)
    asked = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while asked.poll() is None and time.monotonic() - begin < LOAD_SECONDS:
        _multiply(a_ND)
    if asked.poll() is None:
        asked.kill()
    lines = (asked.communicate()[0] or "").splitlines()
    if asked.returncode or not lines:
        return {"not available": f"nvidia-smi ended with status {asked.returncode} and said {' '.join(lines)!r}"}
    index = torch.cuda.current_device() if len(lines) > 1 else 0
    return dict(zip(FIELDS.split(","), (field.strip() for field in lines[index].split(",")), strict=False))


def _multiply(a_ND: torch.Tensor) -> None:
    for _ in range(20):
        a_ND @ a_ND
    torch.cuda.synchronize()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
