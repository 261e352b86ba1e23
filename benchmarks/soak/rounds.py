"""One process that extracts for as long as it is told: store after store, each stopped in its middle and resumed.

    python -m benchmarks.soak.rounds FOLDER SECONDS DOCUMENTS CHARACTERS

Every round extracts the demo's first DOCUMENTS speeches (CHARACTERS of each at most) under keys of its own into a new
store, breaks off at a random moment as an error of the caller's would, runs the same extraction again, reads every byte
back, asks a question, and deletes the store before it. Whatever a round leaves behind adds up. Prints a line of JSON
about once a second, for the process that watches this one.

All rounds share one tokenizer: `tokenizers` keeps the words that it has met for as long as its threads live, for every
tokenizer that ever was (up to 10,000 words of each in each thread), which a run of one extraction never notices.
"""

import functools
import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from transformers import AutoTokenizer

from gradsae_fast.config import ExtractConfig, config_from_tables
from gradsae_fast.demo import ASSETS
from gradsae_fast.extract import Progress, extract
from gradsae_fast.ranking import rank_latents
from gradsae_fast.store import open_scores, verify

SECONDS_BETWEEN_LINES = 1.0


class StoppedError(Exception):
    """What ends an extraction from outside, in its middle."""


class Teller:
    """Says where this process is: round, tokens scored so far, blocks of memory that Python's objects take."""

    def __init__(self) -> None:
        self.round = 0
        self._tokens_before = 0
        self._last = 0.0

    def tell(self, tokens: int) -> None:
        """Print a line, if the last one is old; `tokens`: scored in this extraction."""
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            line = {"round": self.round, "tokens": self._tokens_before + tokens, "blocks": sys.getallocatedblocks()}
            print(json.dumps(line), flush=True)

    def add(self, tokens: int) -> None:
        """An extraction has ended that scored so many."""
        self._tokens_before += tokens


def soak(folder: Path, seconds: float, documents: int, characters: int) -> None:
    """Do rounds until the time is up; the last one is broken off."""
    rows = [json.loads(line) for line in (ASSETS / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    corpus = [{**row, "text": row["text"][:characters]} for row in rows[:documents]]
    deadline, teller, chance = time.monotonic() + seconds, Teller(), random.Random(0)
    try:
        while True:
            _round(folder, corpus, chance, teller, deadline)
            shutil.rmtree(_store(folder, teller.round - 1), ignore_errors=True)
            teller.round += 1
    except StoppedError:
        return


def _round(folder: Path, corpus: list[dict[str, Any]], chance: random.Random, teller: Teller, deadline: float) -> None:
    renamed = [json.dumps({**row, "id": f"{row['id']}-{teller.round}"}) for row in corpus]
    (folder / "corpus.jsonl").write_text("\n".join(renamed) + "\n", encoding="utf-8")
    config = _config(folder / "corpus.jsonl", _store(folder, teller.round))
    share = chance.uniform(0.1, 0.9)
    try:
        _extract(config, teller, lambda state: state.num_tokens >= share * state.total_tokens, deadline)
    except StoppedError:
        if time.monotonic() >= deadline:
            raise
    _extract(config, teller, lambda state: False, deadline)
    faults = verify(config.store.path)
    if faults:
        raise AssertionError(f"round {teller.round}: {faults[0]}")
    rank_latents(open_scores(config.store.path), k=10)


def _extract(config: ExtractConfig, teller: Teller, stop: Callable[[Progress], bool], deadline: float) -> None:
    """Extract until it is complete, or stop by an error out of the function that is told of progress."""
    start, last = -1, 0

    def on_progress(state: Progress) -> None:
        nonlocal start, last
        start, last = (state.num_tokens if start < 0 else start), state.num_tokens
        teller.tell(last - start)
        if time.monotonic() >= deadline or stop(state):
            raise StoppedError

    try:
        extract(config, on_progress=on_progress)
    finally:
        teller.add(0 if start < 0 else last - start)


def _config(corpus: Path, store: Path) -> ExtractConfig:
    return config_from_tables(
        {
            "model": {"path": str(ASSETS / "model")},
            "sae": {"path": str(ASSETS / "sae")},
            "corpus": {"path": str(corpus), "context_length": 256, "overlap": 32},
            "store": {"path": str(store)},
            "run": {"threads": 1, "force": True},  # a few sentences may fail the gate, which says nothing here
        }
    )


def _store(folder: Path, number: int) -> Path:
    return folder / f"round-{number}.gradsae"


if __name__ == "__main__":
    with patch.object(AutoTokenizer, "from_pretrained", functools.cache(AutoTokenizer.from_pretrained)):
        soak(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
