"""Whole methods side by side: the same documents, model, SAE and objective through other people's ways and this engine.

    benchmarks/peers/environments FOLDER
    python -m benchmarks.peers --model MODEL --corpus CORPUS --sae SAE --out benchmarks/results \
        --python-saelens FOLDER/saelens/bin/python --python-delphi FOLDER/delphi/bin/python

from the root of the repository writes `<date>-peers-whole.md` and `.json`, at the width of the SAE that is given (a
JumpReLU in a SAELens folder) and at that of a random one. Nothing is timed before all numbers agree; the exit status is
1 where they do not. A variant whose interpreter is not given is left out, and the page says so.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.jumprelu import read_folder
from benchmarks.peers.make_workload import cut_documents, make_workload, with_random_sae
from benchmarks.peers.page import page, to_json
from benchmarks.peers.turns import Launch, Result, launcher, run
from benchmarks.peers.variants import VARIANTS, Variant
from benchmarks.peers.verify import WrongNumbers
from benchmarks.peers.workload import Settings, Workload

# The eight quantiles of a log-normal distribution (median 230, sigma 0.7), in an order that was drawn once: documents
# of real corpora differ that much, and so does what padding costs.
LENGTHS = (257, 79, 428, 163, 673, 124, 324, 206)
RANDOM_LATENTS, RANDOM_ACTIVE = 65536, 64.0


def main(arguments: list[str] | None = None, launch: Launch | None = None) -> int:
    """Make the workloads, verify, take turns, write the page. `launch` stands in for processes where it is given."""
    options = parse(arguments)
    interpreters = {
        name: python
        for name, python in (("saelens", options.python_saelens), ("delphi", options.python_delphi))
        if python
    }
    variants, left_out = choose(options.variants, interpreters)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        try:
            workloads = make_workloads(options, Path(folder) / "workload")
            ready = launch or launcher(interpreters)
            results = [run(ready, variants, workload, options.turns, _tell) for workload in workloads]
        except WrongNumbers as error:
            print(f"nothing was timed: {error}", file=sys.stderr)
            return 1
    write(options, {**describe(options, workloads[0], results, left_out), "load_before": before}, results)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="a transformers folder")
    parser.add_argument("--corpus", required=True, help="its first documents are used")
    parser.add_argument("--sae", required=True, help="a JumpReLU SAE in a SAELens folder")
    parser.add_argument("--out", type=Path, help="folder for the dated result; without it the page is only printed")
    parser.add_argument("--python-saelens", help="interpreter of an environment with sae-lens")
    parser.add_argument("--python-delphi", help="interpreter of an environment with eai-delphi")
    parser.add_argument("--variants", nargs="+", choices=[one.name for one in VARIANTS], help="default: all")
    parser.add_argument("--turns", type=int, default=5, help="0 verifies the numbers and times nothing")
    parser.add_argument("--widths", nargs="+", choices=["given", "random"], default=["given", "random"])
    parser.add_argument("--random-latents", type=int, default=RANDOM_LATENTS)
    parser.add_argument("--random-active", type=float, default=RANDOM_ACTIVE, help="wanted L0 of the random SAE")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, help="tokens of each document")
    parser.add_argument("--documents-per-batch", type=int, default=4, help="of the usual scripts and of delphi")
    parser.add_argument("--tokens-per-batch", type=int, default=1024, help="of the tuned scripts and of the engine")
    parser.add_argument("--authors-documents", nargs="+", type=int, default=(3,), help="counted from 0")
    parser.add_argument("--decode-steps", type=int, default=50)
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument("--device-name", default=f"{os.cpu_count()}-core CPU", help="how the page names the machine")
    return parser.parse_args(arguments)


def choose(names: Sequence[str] | None, interpreters: dict[str, str]) -> tuple[list[Variant], list[str]]:
    """The variants that can run, and a sentence for each one that was wanted and cannot."""
    wanted = [one for one in VARIANTS if names is None or one.name in names]
    ready = [one for one in wanted if one.environment in {"own", *interpreters}]
    return ready, [f"{one.name} (no --python-{one.environment} was given)" for one in wanted if one not in ready]


def make_workloads(options: argparse.Namespace, folder: Path) -> list[Workload]:
    """The documents with the SAE that is given and with a random one."""
    model, sae = str(Path(options.model).resolve()), str(Path(options.sae).resolve())
    config, _ = read_folder(Path(sae))
    cut_documents(options.corpus, model, options.lengths, folder / "corpus.jsonl")
    settings = Settings(
        model=model,
        sae=sae,
        site=config["metadata"]["hf_hook_name"],
        num_latents=config["d_sae"],
        context_length=max(options.lengths) + 4,  # a text that was cut may have another token when it is read again
        documents_per_batch=options.documents_per_batch,
        tokens_per_batch=options.tokens_per_batch,
        authors_documents=tuple(options.authors_documents),
        decode_steps=options.decode_steps,
        threads=options.threads,
    )
    given, hidden_ND = make_workload(folder, settings)
    workloads = [given] if "given" in options.widths else []
    if "random" in options.widths:
        workloads.append(with_random_sae(given, hidden_ND, options.random_latents, options.random_active))
    return workloads


def describe(
    options: argparse.Namespace, workload: Workload, results: Sequence[Result], left_out: Sequence[str]
) -> dict[str, Any]:
    """Without these a time means nothing."""
    versions = {"python": platform.python_version()}
    for runs in results[0].measures.values():
        for name, number in runs[0].versions.items():
            known = versions.setdefault(name, number)
            versions[name] = known if number in known.split(" and ") else f"{known} and {number}"
    settings = workload.settings
    return {
        "date": date.today().isoformat(),
        "device": options.device_name,
        "threads": settings.threads or torch.get_num_threads(),
        "versions": versions,
        "load_after": os.getloadavg()[0],
        "left_out": list(left_out),
        "turns": options.turns,
        "num_documents": len(workload.lengths),
        "num_tokens": len(workload.token_id_N),
        "shortest": min(workload.lengths),
        "longest": max(workload.lengths),
        "documents_per_batch": settings.documents_per_batch,
        "tokens_per_batch": settings.tokens_per_batch,
        "decode_steps": settings.decode_steps,
        "num_authors": len(settings.authors_documents),
        "usual_padding": padding(workload, bucketed=False),
        "tuned_padding": padding(workload, bucketed=True),
    }


def padding(workload: Workload, *, bucketed: bool) -> float:
    """Share of padded positions."""
    sizes = [batch.real_BT.numel() for batch in workload.batches(bucketed=bucketed)]
    return 1 - len(workload.token_id_N) / sum(sizes)


def write(options: argparse.Namespace, about: dict[str, Any], results: Sequence[Result]) -> None:
    """Print the page; with --out, keep it and its data."""
    text = page(about, results)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        stem = options.out / f"{about['date']}-peers-whole"
        stem.with_suffix(".md").write_text(text, encoding="utf-8")
        data = json.dumps(to_json(about, results), indent=1)
        stem.with_suffix(".json").write_text(data + "\n", encoding="utf-8")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
