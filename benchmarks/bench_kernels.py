"""Operators against the bare matrix product of the same shape, in one process and taking turns.

`python benchmarks/bench_kernels.py` prints a Markdown table for 4k, 16k and 65k latents; with `--one-thread` it counts
the processor time of one thread, which means something on a machine that is busy with other work. Under pytest the
shapes are tiny unless --benchmark-enable is given; limits are asserted only with GRADSAE_BENCH_STRICT=1 in the
environment. Every variant is checked against the oracle before it is timed.

Letters: N tokens, D model width, C latents.
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradsae_kernels import Backend, SparseRows, decode, encode_threshold, encode_topk, project

Variant = Callable[[], Any]
Clock = Callable[[], float]

ROUNDS = {4096: 25, 16384: 9, 65536: 5}  # of the table, by latents
ACTIVE = 32  # wanted active latents of a token
TOLERANCE = 1e-4  # fp32 sums of a few hundred terms of size one
LIMITS = {  # of the strict mode: generous, because a shared machine is noisy
    ("encode_threshold", 4096): 1.5,
    ("encode_threshold", 16384): 1.3,
    ("project", 4096): 1 / 4,
    ("project", 16384): 1 / 10,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """Random tokens and an SAE of which `ACTIVE` latents fire on a token, give or take."""

    x_ND: Tensor
    grad_ND: Tensor
    w_enc_CD: Tensor
    w_dec_CD: Tensor
    bias_C: Tensor
    threshold_C: Tensor
    rows: SparseRows

    @classmethod
    def random(cls, tokens: int, width: int, latents: int) -> "Case":
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        x_ND, w_enc_CD, bias_C = normal(tokens, width), normal(latents, width) / width**0.5, torch.zeros(latents)
        level = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - min(0.5, ACTIVE / latents)))
        threshold_C = torch.full((latents,), float(level))
        return cls(
            x_ND=x_ND,
            grad_ND=normal(tokens, width),
            w_enc_CD=w_enc_CD,
            w_dec_CD=normal(latents, width) / width**0.5,
            bias_C=bias_C,
            threshold_C=threshold_C,
            rows=encode_threshold(x_ND, w_enc_CD, bias_C, threshold_C),
        )


def variants(case: Case) -> dict[str, Variant]:
    """What takes turns: the product alone, the operators, and the dense torch code that they replace."""
    buffer_NC = torch.empty(len(case.x_ND), len(case.w_enc_CD))
    x_ND, grad_ND, w_enc_CD, w_dec_CD = case.x_ND, case.grad_ND, case.w_enc_CD, case.w_dec_CD

    def dense_threshold() -> Tensor:
        u_NC = torch.addmm(case.bias_C, x_ND, w_enc_CD.T)
        return torch.where(u_NC > case.threshold_C, u_NC, 0.0)

    return {
        "x @ w.T": lambda: x_ND @ w_enc_CD.T,
        "product into a buffer": lambda: torch.mm(x_ND, w_enc_CD.T, out=buffer_NC),
        "encode_threshold": lambda: encode_threshold(x_ND, w_enc_CD, case.bias_C, case.threshold_C),
        "encode_topk": lambda: encode_topk(x_ND, w_enc_CD, case.bias_C, ACTIVE),
        "project": lambda: project(case.rows, grad_ND, w_dec_CD),
        "decode": lambda: decode(case.rows, w_dec_CD),
        "dense threshold (torch, dense result)": dense_threshold,
        "dense top-k (torch)": lambda: torch.addmm(case.bias_C, x_ND, w_enc_CD.T).topk(ACTIVE, dim=1),
        "dense gradient (torch)": lambda: grad_ND @ w_dec_CD.T,
    }


def medians(candidates: dict[str, Variant], rounds: int, clock: Clock = time.perf_counter) -> dict[str, float]:
    """Median seconds of each; one call of each per round, so that a busy neighbour slows all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            start = clock()
            call()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def verify(case: Case) -> None:
    """All operators against the oracle on the first tokens; a set may differ only where u is at the edge."""
    x_ND, grad_ND = case.x_ND[:64], case.grad_ND[:64]
    u_NC = x_ND @ case.w_enc_CD.T
    edge_N1 = u_NC.topk(ACTIVE, dim=1).values[:, -1:]
    rows = encode_threshold(x_ND, case.w_enc_CD, case.bias_C, case.threshold_C)
    verify_set(rows, u_NC, case.threshold_C)
    verify_set(encode_topk(x_ND, case.w_enc_CD, case.bias_C, ACTIVE), u_NC, edge_N1 - TOLERANCE / 2)
    for call in (
        lambda backend: project(rows, grad_ND, case.w_dec_CD, backend=backend),
        lambda backend: decode(rows, case.w_dec_CD, backend=backend),
    ):
        torch.testing.assert_close(call(Backend.AUTO), call(Backend.REFERENCE), rtol=0, atol=TOLERANCE)


def verify_set(rows: SparseRows, u_NC: Tensor, edge: Tensor) -> None:
    """Everything above the edge is there with its value, and nothing below it."""
    found_NC = torch.zeros_like(u_NC)
    row = torch.repeat_interleave(torch.arange(len(u_NC)), rows.indptr.diff())
    found_NC[row, rows.indices.long()] = rows.values
    clear_NC = (u_NC - edge).abs() > TOLERANCE
    torch.testing.assert_close(found_NC[clear_NC], (u_NC * (u_NC > edge))[clear_NC], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("latents", [4096, 16384])
@pytest.mark.parametrize("operator", ["encode_threshold", "encode_topk", "project", "decode"])
def bench_operator(benchmark: Any, operator: str, latents: int) -> None:
    """One operator; its ratio to the bare product goes to the extra columns."""
    tokens, width = (1024, 576) if benchmark.enabled else (37, 24)
    case = Case.random(tokens, width, latents if benchmark.enabled else latents // 16 + 3)
    verify(case)
    candidates = variants(case)
    benchmark(candidates[operator])
    rounds = 15 if benchmark.enabled else 1
    measured = medians({name: candidates[name] for name in ("x @ w.T", operator)}, rounds)
    ratio = measured[operator] / measured["x @ w.T"]
    benchmark.extra_info["ratio to x @ w.T"] = ratio
    if os.environ.get("GRADSAE_BENCH_STRICT") == "1" and benchmark.enabled:
        assert ratio <= LIMITS.get((operator, latents), float("inf"))


def machine() -> str:
    """Processor, threads and versions: without them a time means nothing."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, numba {version('numba')}, Python {platform.python_version()}"
    )


def report(tokens: int = 1024, width: int = 576, clock: Clock = time.perf_counter) -> str:
    """The Markdown table: one column per number of latents, medians as ratios to x @ w.T."""
    table: dict[str, list[str]] = {}
    for latents, rounds in ROUNDS.items():
        case = Case.random(tokens, width, latents)
        verify(case)
        candidates = variants(case)
        medians(candidates, 1, clock)
        measured = medians(candidates, rounds, clock)
        floor = measured["x @ w.T"]
        for name, seconds in measured.items():
            table.setdefault(name, []).append(f"{seconds / floor:.3f} ({1e3 * seconds:.1f} ms)")
    return "\n".join(
        [
            f"{machine()}; fp32, N = {tokens}, D = {width}, about {ACTIVE} active latents per token; "
            f"{', '.join(map(str, ROUNDS.values()))} rounds",
            "",
            "| ratio to x @ w.T (median) | " + " | ".join(f"C = {latents}" for latents in ROUNDS) + " |",
            "|---|" + "---|" * len(ROUNDS),
            *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in table.items()),
        ]
    )


if __name__ == "__main__":
    if "--one-thread" in sys.argv[1:]:
        torch.set_num_threads(1)
        print(report(clock=time.thread_time))
    else:
        print(report())
