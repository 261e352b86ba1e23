"""Encoding by other people's packages against ours: the same weights, the same tokens, one process, taking turns.

The peers are SAELens (package `sae-lens`: JumpReLUSAE, StandardSAE and TopKSAE) and sparsify (package `eai-sparsify`:
SparseCoder.encode, which calls its fused_encoder). They are not dependencies; give them an environment of their own:

    python -m venv peers && peers/bin/pip install -e ".[peers]"
    peers/bin/python benchmarks/bench_peers.py --out benchmarks/results      # the clock on the wall, all threads
    peers/bin/python benchmarks/bench_peers.py --out benchmarks/results --one-thread      # for a busy machine

SAELens answers with a dense [N, C]; ours with the active pairs alone. So each of its encoders is timed twice: as it is,
and with the non-zeros read out of its answer, which is what one needs in order to store them. Every variant is checked
against SAELens before it is timed. The ratio is to the bare product x @ w.T with one contiguous row per latent; the
product in SAELens's own layout is in the table too.

Letters: N tokens, D model width, C latents.
"""

import argparse
import ctypes
import importlib
import json
import logging
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradsae_kernels import SparseRows, encode_threshold, encode_topk

Encode = Callable[[], Any]
Clock = Callable[[], float]

ACTIVE = 32  # wanted active latents of a token, and k
TURNS = {4096: 41, 16384: 21, 65536: 9}  # by latents; odd, so that a median is one of the times
TOLERANCE = 1e-4  # fp32 sums of a few hundred terms of size one
PACKAGES = ("torch", "numba", "sae-lens", "eai-sparsify", "gradsae-fast")
FLOOR = "bare product, x @ w.T"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sae:
    """Tokens and one random SAE of which `ACTIVE` latents fire on a token; b_dec is taken from the input."""

    x_ND: Tensor
    w_enc_CD: Tensor
    b_dec_D: Tensor
    bias_C: Tensor
    threshold_C: Tensor

    @classmethod
    def random(cls, tokens: int, width: int, latents: int) -> "Sae":
        generator = torch.Generator().manual_seed(0)
        level = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - min(0.5, ACTIVE / latents)))
        b_dec_D = torch.randn(width, generator=generator)
        return cls(
            x_ND=torch.randn(tokens, width, generator=generator) + b_dec_D,
            w_enc_CD=torch.randn(latents, width, generator=generator) / width**0.5,
            b_dec_D=b_dec_D,
            bias_C=0.1 * torch.randn(latents, generator=generator),
            threshold_C=torch.full((latents,), float(level)),
        )

    @property
    def relu_bias_C(self) -> Tensor:
        """The bias with which a ReLU fires where the JumpReLU does."""
        return self.bias_C - self.threshold_C

    def folded(self, bias_C: Tensor) -> Tensor:
        """(x - b_dec) @ w.T + bias = x @ w.T + folded(bias); done once per SAE, and not timed."""
        return bias_C - self.w_enc_CD @ self.b_dec_D


def ours(sae: Sae) -> dict[str, Encode]:
    """The operators on the folded weights; each returns SparseRows."""
    jumprelu_C, relu_C = sae.folded(sae.bias_C), sae.folded(sae.relu_bias_C)
    zero_C = torch.zeros_like(relu_C)
    return {
        "ours: encode_threshold, JumpReLU (pairs)": lambda: encode_threshold(
            sae.x_ND, sae.w_enc_CD, jumprelu_C, sae.threshold_C
        ),
        "ours: encode_threshold, ReLU (pairs)": lambda: encode_threshold(sae.x_ND, sae.w_enc_CD, relu_C, zero_C),
        "ours: encode_topk (pairs)": lambda: encode_topk(sae.x_ND, sae.w_enc_CD, jumprelu_C, ACTIVE),
    }


def saelens(sae: Sae) -> dict[str, Encode]:
    """SAELens's encoders, each returning a dense [N, C]; it keeps W_enc as [D, C]."""
    package = importlib.import_module("sae_lens")
    w_enc_DC = sae.w_enc_CD.T.contiguous()

    def build(name: str, **weights: Tensor) -> Any:
        options = {"k": ACTIVE} if name == "TopK" else {}
        config = getattr(package, f"{name}SAEConfig")(d_in=len(w_enc_DC), d_sae=len(sae.w_enc_CD), **options)
        model = getattr(package, f"{name}SAE")(config).eval()
        model.load_state_dict({"W_enc": w_enc_DC, "b_dec": sae.b_dec_D, **weights}, strict=False)
        model.W_enc.data = w_enc_DC  # one copy of the encoder for all
        return model

    jumprelu = build("JumpReLU", b_enc=sae.bias_C, threshold=sae.threshold_C)
    relu = build("Standard", b_enc=sae.relu_bias_C)
    topk = build("TopK", b_enc=sae.bias_C)
    return {
        "SAELens JumpReLUSAE.encode": lambda: jumprelu.encode(sae.x_ND),
        "SAELens StandardSAE.encode (ReLU)": lambda: relu.encode(sae.x_ND),
        "SAELens TopKSAE.encode": lambda: topk.encode(sae.x_ND),
    }


def sparsify(sae: Sae) -> Encode:
    """sparsify's TopK encoder: pairs, and the dense pre-activations, which it returns too."""
    package = importlib.import_module("sparsify")
    latents, width = sae.w_enc_CD.shape
    coder = package.SparseCoder(width, package.SparseCoderConfig(num_latents=latents, k=ACTIVE), decoder=False)
    coder.encoder.weight.data, coder.encoder.bias.data = sae.w_enc_CD, sae.bias_C
    coder.b_dec.data = sae.b_dec_D
    return lambda: coder.encode(sae.x_ND)


def variants(sae: Sae) -> dict[str, Encode]:
    """All that take turns, verified."""
    own, dense, coder = ours(sae), saelens(sae), sparsify(sae)
    for mine, peer in zip(own.values(), dense.values(), strict=True):
        verify(mine(), peer())
    verify(pairs_of_topk(coder()), dense["SAELens TopKSAE.encode"]())
    w_enc_DC = sae.w_enc_CD.T.contiguous()
    return {
        FLOOR: lambda: sae.x_ND @ sae.w_enc_CD.T,
        "bare product, x @ W_enc as SAELens keeps it": lambda: sae.x_ND @ w_enc_DC,
        **{f"{name} (dense)": call for name, call in dense.items()},
        **{f"{name}, then its non-zeros": partial(_then_pairs, call) for name, call in dense.items()},
        "sparsify SparseCoder.encode (pairs, and dense pre-activations)": coder,
        **own,
    }


def _then_pairs(encode: Encode) -> SparseRows:
    return pairs_of_dense(encode())


def pairs_of_dense(value_NC: Tensor) -> SparseRows:
    """The non-zeros of a dense answer, in plain torch."""
    row, latent = value_NC.nonzero(as_tuple=True)
    indptr = torch.zeros(len(value_NC) + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(row, minlength=len(value_NC)), dim=0, out=indptr[1:])
    return SparseRows(indptr, latent.to(torch.int32), value_NC[row, latent])


def pairs_of_topk(answer: Any) -> SparseRows:
    """sparsify's answer, whose rows are in no order."""
    latent_NK, order_NK = answer.top_indices.sort(dim=1)
    indptr = torch.arange(len(latent_NK) + 1) * latent_NK.shape[1]
    return SparseRows(indptr, latent_NK.int().flatten(), answer.top_acts.gather(1, order_NK).flatten())


def verify(rows: SparseRows, expected_NC: Tensor) -> None:
    """The same active latents and values; ValueError unless it is rounding at the edge of the set that differs."""
    found_NC = torch.zeros_like(expected_NC)
    row = torch.repeat_interleave(torch.arange(len(found_NC)), rows.indptr.diff())
    found_NC[row, rows.indices.long()] = rows.values
    differs_NC = (found_NC - expected_NC).abs() > TOLERANCE
    only_one_NC = (found_NC == 0) != (expected_NC == 0)
    wrong = int((differs_NC & ~only_one_NC).sum())
    at_edge = int(only_one_NC.sum())
    if wrong or at_edge > 1e-4 * int((expected_NC != 0).sum()) + 1:
        raise ValueError(
            f"{wrong} values and {at_edge} members of the active set differ from the peer's; expected none, or a "
            "handful at the edge of the set; a wrong answer is not timed"
        )


def take_turns(candidates: dict[str, Encode], turns: int, clock: Clock = time.perf_counter) -> dict[str, list[float]]:
    """Seconds of every call; each is called once per turn, every second turn in the opposite order."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(turns):
        for name in list(candidates)[:: -1 if turn % 2 else 1]:
            start = clock()
            candidates[name]()
            seconds[name].append(clock() - start)
    return seconds


def peak_bytes(call: Encode) -> int | None:
    """How far one call raises the process's resident memory; None where the system does not tell (not Linux)."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the allocator keeps would hide what the call takes
    reset.write_text("5", encoding="ascii")
    before = _status_bytes(status, "VmRSS")
    result = call()
    peak = _status_bytes(status, "VmHWM") - before
    del result
    return peak


def _status_bytes(status: Path, key: str) -> int:
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One variant at one size."""

    variant: str
    latents: int
    seconds: list[float]
    ratios: list[float]  # to the bare product of the same size in the same turn
    peak_bytes: int | None  # with the answer, above what was there before


def measure(sae: Sae, candidates: dict[str, Encode], turns: int, clock: Clock = time.perf_counter) -> list[Row]:
    """Warm up once, take turns, then one call each for the memory."""
    take_turns(candidates, 1)
    seconds = take_turns(candidates, turns, clock)
    return [
        Row(
            variant=name,
            latents=len(sae.w_enc_CD),
            seconds=times,
            ratios=[time / floor for time, floor in zip(times, seconds[FLOOR], strict=True)],
            peak_bytes=peak_bytes(candidates[name]),
        )
        for name, times in seconds.items()
    ]


def table(rows: Iterable[Row]) -> str:
    """Markdown, one line for each variant and size."""
    heads = ("C", "variant", "ms: median (range)", "ratio to the bare product: median (middle half)", "peak memory, MB")
    lines = [f"| {' | '.join(heads)} |", "|" + len(heads) * "---|"]
    for row in rows:
        low, middle, high = (1e3 * f(row.seconds) for f in (min, statistics.median, max))
        early, half, late = statistics.quantiles(row.ratios, n=4)
        ratio = f"{half:.2f} ({early:.2f} to {late:.2f})"
        memory = "not available" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}"
        name = f"**{row.variant}**" if row.variant.startswith("ours") else row.variant
        cells = (f"{row.latents:,}", name, f"{middle:.1f} ({low:.1f} to {high:.1f})", ratio, memory)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def describe(options: argparse.Namespace, load: tuple[float, float]) -> dict[str, Any]:
    """Without these a time means nothing."""
    return {
        "date": date.today().isoformat(),
        "device": options.device_name,
        "clock": "processor time" if options.one_thread else "wall clock",
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "load_before": load[0],
        "load_after": load[1],
        "tokens": options.tokens,
        "width": options.width,
        "active": ACTIVE,
        "dtype": "float32",
        "turns": TURNS,
    }


def text(about: dict[str, Any], rows: list[Row]) -> str:
    """The Markdown page of a result."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    turns = ", ".join(str(number) for number in about["turns"].values())
    return (
        f"# Encoding: SAELens and sparsify against gradsae_kernels, {about['date']}\n\n"
        f"{about['device']}, {about['clock']}, threads: {about['threads']}; {versions}. N = {about['tokens']}, "
        f"D = {about['width']}, fp32, about {about['active']} active latents per token, k = {about['active']}; {turns} "
        f"turns by size. Load average of the last minute {about['load_before']:.2f} before and "
        f"{about['load_after']:.2f} after (the run itself is part of it).\n\n{table(rows)}\n\n"
        "Ratio: of the times of one turn, then the median over turns. Peak memory: how far one call raises the "
        "resident memory of the process, its answer included. Dense: the answer is [N, C]; pairs: the answer is the "
        "active latents alone. Made by `benchmarks/bench_peers.py`, which checks every variant before it times it.\n"
    )


def main() -> None:
    """Measure all sizes, print the table and, with --out, write <date>-peers.json and .md."""
    parser = argparse.ArgumentParser(description="Encode with SAELens, sparsify and gradsae_kernels, taking turns.")
    parser.add_argument("--out", type=Path, help="folder for the dated result; without it the page is only printed")
    parser.add_argument("--device-name", default=f"{os.cpu_count()}-core CPU", help="how the page names the machine")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--one-thread", action="store_true", help="one thread, and its processor time")
    options = parser.parse_args()
    if options.one_thread:
        torch.set_num_threads(1)
    clock = time.thread_time if options.one_thread else time.perf_counter
    warnings.simplefilter("ignore", DeprecationWarning)
    logging.disable(logging.INFO)
    before = os.getloadavg()[0]
    rows = []
    with torch.no_grad():
        for latents, turns in TURNS.items():
            sae = Sae.random(options.tokens, options.width, latents)
            rows += measure(sae, variants(sae), turns, clock)
    about = describe(options, (before, os.getloadavg()[0]))
    page = text(about, rows)
    print(page)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        stem = options.out / f"{about['date']}-peers{'-one-thread' if options.one_thread else ''}"
        stem.with_suffix(".md").write_text(page, encoding="utf-8")
        result = json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1)
        stem.with_suffix(".json").write_text(result + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
