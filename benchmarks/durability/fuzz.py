"""Stores that someone made to do harm: mutated at random, with every checksum made to fit again, then opened and asked.

    python -m benchmarks.durability.fuzz --trials 20000 --seed 0

A checksum keeps accidents out, not people. So each trial changes one thing in a store that has every kind of object (a
field of a JSON document, an array's metadata, its numbers, the bytes of a shard, a file put in another's place), writes
the sums anew all the way up, and then verifies the store, opens it and asks it everything. Only a `GradsaeError` may
come out, within ten seconds and one gigabyte more of memory than an untouched store takes. A trial is a function of
its number: `--only 1234` repeats one, with its traceback.
"""

import argparse
import faulthandler
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.durability.everything import write_everything
from benchmarks.durability.mutations import Victim, trial
from benchmarks.durability.outcome import Outcome
from gradsae_fast import (
    GradsaeError,
    contrast_groups,
    open_scores,
    rank_documents,
    rank_latents,
    rank_oddities,
    rank_stability,
    rank_tokens,
    verify,
)
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.sidecars.certificate import read_certificate
from tests.store.crafted import touching_only
from tests.store.synthetic import SITE

SECONDS = 10
MEMORY = 1 << 30

Question = Callable[[ScoreStore], object]


def _read_segments(store: ScoreStore) -> None:
    for segment in store.segments:
        segment.documents()
        segment.tokens()
        segment.site(SITE).by_token()


def _read_facts(store: ScoreStore) -> None:
    for name in ("gate", "plan", "certificate"):
        store.facts(name)


QUESTIONS: tuple[Question, ...] = (
    rank_latents,
    partial(rank_latents, exact_dense=True),
    partial(rank_latents, by="activation", polarity="negative"),
    partial(rank_latents, document="0a1b-0-0"),
    partial(rank_latents, where="Party=Whig"),
    partial(rank_documents, latent=0),
    partial(rank_documents, latent=3, exact_dense=True, per_token=True),
    partial(rank_tokens, latent=3, context=2),
    partial(rank_tokens, latent=3, by="activation", k=50),
    partial(rank_oddities, kind="idle"),
    partial(rank_stability, resamples=100),
    partial(contrast_groups, column="Party"),
    _read_segments,
    _read_facts,
    read_certificate,
    ScoreStore.check_objects,
    ScoreStore.token_strings,
    partial(ScoreStore.decoder_norms, site=SITE),
    partial(ScoreStore.described, site=SITE),
    ScoreStore._repr_html_,
    repr,
)


def ask(path: Path, number: int | None = None) -> None:
    """Verify a store, open it with and without its index, and ask it; GradsaeErrors are answers.

    Of a trial's number, ask a few of the questions that there are, by chance; of None, all of them.
    """
    rng = None if number is None else np.random.default_rng([number, 1])
    for step in _steps(path):
        if rng is None or rng.random() < 0.2:
            try:
                step()
            except GradsaeError:
                continue


def _steps(path: Path) -> Iterator[Callable[[], object]]:
    yield partial(verify, path)
    yield partial(verify, path, quick=True)
    for use_index in (True, False):
        try:
            store = open_scores(path, use_index=use_index)
        except GradsaeError:
            continue
        yield from (partial(question, store) for question in QUESTIONS)


def fuzz(work: Path, numbers: range, *, thorough: bool = True, loud: bool = False) -> Outcome:
    """Do these trials on a store below `work`; a violation names its trial, what was changed and what came out."""
    victim = Victim(work / "scores")
    write_everything(victim.path)
    ask(victim.path)  # compiled and imported from here on
    outcome = Outcome()
    _limit_memory()
    signal.signal(signal.SIGALRM, _too_long)
    for number in numbers:
        what = trial(victim, number)
        (work / "last").write_text(f"{number} {what}", encoding="utf-8", errors="backslashreplace")
        outcome.count(what.partition(":")[0])
        signal.alarm(SECONDS)
        try:
            with touching_only(victim.path):
                ask(victim.path, None if thorough else number)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  # a panic of Rust code is a BaseException alone
            signal.alarm(0)
            outcome.violations.append(f"trial {number}, {what}: {type(error).__name__}: {str(error)[:200]}")
            if loud:
                traceback.print_exc()
        finally:
            signal.alarm(0)
        victim.restore()
    return outcome


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds")


def main() -> None:
    """Do the trials and print what came of them; exit status 1 where anything but a GradsaeError came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first trial")
    parser.add_argument("--only", type=int, help="repeat the trial of this number, with its traceback")
    parser.add_argument("--quick", action="store_true", help="ask each store a few questions, not all")
    options = parser.parse_args()
    first, count = (options.seed, options.trials) if options.only is None else (options.only, 1)
    warnings.simplefilter("ignore")
    faulthandler.enable()
    started, work = time.perf_counter(), Path(tempfile.mkdtemp(prefix="gradsae-fuzz-"))
    try:
        outcome = fuzz(work, range(first, first + count), thorough=not options.quick, loud=options.only is not None)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for violation in outcome.violations:
        print(violation)
    print(f"{outcome.trials}: {len(outcome.violations)} violations, {time.perf_counter() - started:.0f} s")
    if outcome.violations:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
