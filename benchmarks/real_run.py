"""The main job on real input: a real model and SAE over State of the Union addresses of the two large parties.

    python benchmarks/real_run.py --model MODEL --sae SAE --corpus sotu.jsonl.gz --out sotu.gradsae

extracts the addresses from `--since` on, then prints, as markdown, speed, L0, FVU, bytes per non-zero and the latents
that set the parties apart with their tokens in context. Interrupted, it resumes; finished, it only prints.
"""

import argparse
import json
import tempfile
from pathlib import Path

from gradsae_fast import config_from_tables, contrast, open_scores, rank_tokens, render
from gradsae_fast.corpus.read import open_corpus
from gradsae_fast.extract import extract
from gradsae_fast.progress import progress_bar
from gradsae_fast.render import store_facts
from gradsae_fast.store import ScoreStore

PARTIES = ("Republican", "Democratic")


def select(corpus: str, since: int, folder: Path) -> Path:
    """Write the parties' addresses from a year on to one jsonl file."""
    path = folder / f"sotu-since-{since}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for document in open_corpus(corpus):
            if document.metadata["party"] in PARTIES and document.metadata["year"] >= since:
                row = {"id": document.key, "text": document.text, **document.metadata}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def describe(store: ScoreStore) -> None:
    """Sizes, and for each party the latents whose influence sets it apart, with the tokens on which they fire most."""
    for site, facts in store_facts(store)["sites"].items():
        print(f"\n{site}: {facts['nonzeros']} non-zeros, L0 {facts['l0']:.1f} (masked tokens included)")
        print(f"whole store {facts['bytes_per_nonzero']:.2f} bytes per non-zero; by group of arrays:")
        for group, size in bytes_by_group(store).items():
            print(f"  {group}: {size / facts['nonzeros']:.2f}")
    table = contrast(store, a="party=Republican", b="party=Democratic", order="effect_size", k=None).to_pylist()
    for sign, party in zip((1, -1), PARTIES, strict=True):
        print(f"\n**{party}**\n\n| latent | effect size | tokens in context |\n|---|---|---|")
        rows = [row for row in table if row["effect_size"] * sign > 0]
        most = max(row["num_active_documents_a" if sign > 0 else "num_active_documents_b"] for row in rows)
        common = [
            row for row in rows if row["num_active_documents_a" if sign > 0 else "num_active_documents_b"] > most / 2
        ]
        for row in common[:8]:
            tokens = rank_tokens(store, latent=row["latent"], by="activation", k=4, context=4, where=f"party={party}")
            cells = [f"{t['before']}**[{t['token']}]**{t['after']}" for t in tokens.to_pylist()]
            text = " · ".join(" ".join(cell.split()) for cell in cells).replace("|", "/")
            print(f"| {row['latent']} | {row['effect_size']:+.2f} | {text} |")


def bytes_by_group(store: ScoreStore) -> dict[str, int]:
    """Bytes of all segments by the part of the layout they belong to."""
    sizes: dict[str, int] = {}
    for segment in store.segments:
        for record in segment.commit["objects"]:
            parts = record["key"].split("/")
            group = "/".join(parts[2:3]) if parts[0] == "sites" else parts[0]
            sizes[group] = sizes.get(group, 0) + record["length"]
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def main() -> None:
    """Select, extract, describe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("model", "sae", "corpus", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--since", type=int, default=2008)
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, progress_bar() as bar:
        tables = {
            "model": {"path": options.model},
            "sae": {"path": options.sae},
            "corpus": {
                "path": str(select(options.corpus, options.since, Path(folder))),
                "context_length": options.context_length,
                "overlap": options.overlap,
            },
            "store": {"path": options.out},
        }
        report = extract(config_from_tables(tables), on_message=bar.message, on_progress=bar.update)
    render.show_report(report)
    describe(open_scores(options.out))


if __name__ == "__main__":
    main()
