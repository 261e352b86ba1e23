"""The series: what grows, over which sizes, and what is measured at each."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import AutoConfig

from benchmarks.growth.cost import PEAK, SECONDS, Found
from benchmarks.growth.curve import Curve
from benchmarks.growth.extraction import EXTRACTION, MODEL, Source, of_context, of_documents, of_sites
from benchmarks.growth.store_size import of_nonzeros
from benchmarks.growth.tiny import (
    DEEP,
    SHALLOW,
    WIDE,
    Shape,
    write_long_document,
    write_model,
    write_sae,
    write_short_documents,
)
from benchmarks.growth.width import ACTIVE, PRODUCT, TOKENS, WIDTH, of_width

SIZES = {
    "documents": (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000),
    "context": (128, 256, 512, 1024, 2048, 4096, 8192),
    "sites": (1, 2, 4, 8, 15, 30),
    "spliced": (1, 2, 4, 8, 15, 30),
    "width": (4_096, 16_384, 65_536, 262_144, 1_048_576),
    "store": (1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000),
}
PATIENCE = 20.0  # a size that takes longer than so many seconds is measured in one round only
_DOCUMENT_CHARACTERS = 32
SITE_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Everything that was measured as one thing grew."""

    name: str
    across: str
    setting: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """How to measure: rounds, threads, a folder for models and corpora, and how to call."""

    folder: Path
    rounds: int
    threads: int
    call: Callable[..., Found]  # (function, *arguments): here, or in a process of its own
    tell: Callable[[str], None]

    def source(self, shape: Shape, corpus: Path, model: Path | None = None) -> Source:
        """The given model or a random one of this shape, with an SAE of that many latents for it."""
        place = self.folder / f"{shape.layers}-{shape.latents}"
        used = model or write_model(place / "model", shape)
        facts = AutoConfig.from_pretrained(used)
        sae = write_sae(place / "sae", facts.hidden_size, shape.latents, shape.active)
        return Source(model=used, sae=sae, corpus=corpus, threads=self.threads, num_layers=int(facts.num_hidden_layers))

    def collect(
        self, name: str, sizes: Sequence[int], measure: Callable[[int], Found], excuses: Mapping[str, str] | None = None
    ) -> tuple[Curve, ...]:
        """Every size once in each round, and one curve for each line and unit that was found.

        `excuses`: lines whose time may grow faster than linearly, and why.
        """
        found: dict[int, list[Found]] = {size: [] for size in sizes}
        slow: set[int] = set()
        for turn in range(self.rounds):
            for size in sizes:
                if size in slow:
                    continue
                started = time.perf_counter()
                one = self.call(measure, size)
                if time.perf_counter() - started > PATIENCE:
                    slow.add(size)
                found[size].append(one)
                self.tell(f"{name} {size:,}, round {turn + 1}: {_told(one)}")
        return tuple(
            Curve(
                name=line,
                unit=unit,
                sizes=tuple(sizes),
                rounds=tuple(tuple(one[line, unit] for one in found[size]) for size in sizes),
                excuse=(excuses or {}).get(line) if unit != PEAK else None,
            )
            for line, unit in next(iter(found.values()))[0]
        )


def documents(bench: Bench, sizes: Sequence[int]) -> Series:
    """Extractions of more and more short documents, and questions to their stores."""
    corpus = write_short_documents(bench.folder / "short.jsonl", max(sizes), _DOCUMENT_CHARACTERS)
    return Series(
        name="documents",
        across=f"documents of {_DOCUMENT_CHARACTERS} characters",
        setting=f"{SHALLOW}, spliced; loading, planning and the gate included. Questions open the store anew.",
        curves=bench.collect("documents", sizes, partial(of_documents, bench.source(SHALLOW, corpus))),
    )


def context(bench: Bench, sizes: Sequence[int]) -> Series:
    """One text in longer and longer windows."""
    corpus = write_long_document(bench.folder / "long.jsonl", max(sizes))
    return Series(
        name="context",
        across="tokens of a window",
        setting=f"{WIDE}, spliced; a text of {max(sizes):,} tokens, costs divided by its windows.",
        curves=bench.collect(
            "context",
            sizes,
            partial(of_context, bench.source(WIDE, corpus)),
            {MODEL: "attention", EXTRACTION: "attention"},
        ),
    )


def sites(bench: Bench, sizes: Sequence[int], model: Path | None = None) -> Series:
    """One window at more and more sites in one pass, of the given model or a random one."""
    corpus = write_long_document(bench.folder / "window.jsonl", SITE_TOKENS)
    name = f"a random one ({DEEP})" if model is None else model.name
    return Series(
        name="sites",
        across="sites, the lowest always the same",
        setting=f"The model is {name}; {DEEP.latents:,} latents a site, attribution-patching, {SITE_TOKENS} tokens.",
        curves=bench.collect(
            "sites", sizes, partial(of_sites, bench.source(DEEP, corpus, model), "attribution-patching")
        ),
    )


def spliced(bench: Bench, sizes: Sequence[int]) -> Series:
    """The same where each site is spliced in a pass of its own."""
    corpus = write_long_document(bench.folder / "window.jsonl", SITE_TOKENS)
    return Series(
        name="spliced sites",
        across="sites, each in a pass of its own",
        setting=f"{DEEP}, preset gradsae, {SITE_TOKENS} tokens.",
        curves=bench.collect("spliced sites", sizes, partial(of_sites, bench.source(DEEP, corpus), "gradsae")),
    )


def width(bench: Bench, sizes: Sequence[int]) -> Series:
    """Encode and project alone."""
    return Series(
        name="width",
        across="latents",
        setting=f"{TOKENS} tokens of width {WIDTH}, L0 {ACTIVE}, float32.",
        curves=bench.collect("width", sizes, partial(of_width, bench.threads), {PRODUCT: "yardstick"}),
    )


def store(bench: Bench, sizes: Sequence[int]) -> Series:
    """Synthetic stores: writing, bytes, questions."""
    return Series(
        name="store",
        across="non-zeros",
        setting="16,384 latents, L0 about 65, documents of 1,000 tokens, 10 bits, compact. Questions open it anew.",
        curves=bench.collect("store", sizes, of_nonzeros),
    )


def _told(found: Found) -> str:
    return ", ".join(f"{line} {amount:.3g}" for (line, unit), amount in found.items() if unit == SECONDS)
