"""The embedded default: a tiny language model and its SAE, speeches of two parties that it never saw, a ranking."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from gradsae_fast import render
from gradsae_fast.config import ExtractConfig, config_from_tables
from gradsae_fast.extract import extract
from gradsae_fast.progress import progress_bar
from gradsae_fast.ranking import contrast, rank_tokens
from gradsae_fast.store import ScoreStore, open_scores
from gradsae_fast.store.places.place import Place

ASSETS = Path(__file__).parent / "assets" / "demo"
GROUPS = {"Republican": "party=Republican", "Democratic": "party=Democratic"}
_LATENTS, _EXAMPLES, _CONTEXT = 5, 3, 6


def demo_config(out: Path) -> ExtractConfig:
    """The demo as a run that could have been written by hand."""
    return config_from_tables(
        {
            "model": {"path": str(ASSETS / "model")},
            "sae": {"path": str(ASSETS / "sae")},
            "corpus": {"path": str(ASSETS / "corpus.jsonl"), "context_length": 256, "overlap": 32},
            "store": {"path": str(out / "scores.gradsae")},
        }
    )


def run_demo(out: Path) -> None:
    """Extract, contrast the two parties, show what to type next. A second run finds the scores there and only shows."""
    config = demo_config(out)
    with progress_bar() as bar:
        report = extract(config, on_message=bar.message, on_progress=bar.update)
    render.show_report(report)
    store = open_scores(report.store)
    table = contrast(store, a=GROUPS["Republican"], b=GROUPS["Democratic"], by="influence", order="effect_size", k=None)
    leading = {party: _leading(table, sign) for party, sign in zip(GROUPS, (1, -1), strict=True)}
    for party, rows in leading.items():
        print(f"\nLatents whose influence sets {party} speeches apart, by effect size, and where they fire most:")
        for row in rows:
            _show_latent(store, row["latent"], row["effect_size"], GROUPS[party])
    _show_next(report.store, next(iter(leading.values()))[0]["latent"])


def _leading(table: pa.Table, sign: int) -> list[dict[str, Any]]:
    """The latents furthest on one side of the contrast that fire in most documents of that group."""
    side = "num_active_documents_a" if sign > 0 else "num_active_documents_b"
    rows = [row for row in table.to_pylist() if row["effect_size"] * sign > 0]
    common = max(row[side] for row in rows) / 2
    return [row for row in rows if row[side] >= common][:_LATENTS]


def _show_latent(store: ScoreStore, latent: int, effect_size: float, where: str) -> None:
    print(f"  latent {latent}  (effect size {abs(effect_size):.1f})")
    examples = rank_tokens(store, latent=latent, by="activation", k=_EXAMPLES, context=_CONTEXT, where=where)
    for row in examples.to_pylist():
        text = f"{row['before']}[{row['token']}]{row['after']}".replace("\n", " ")
        print(f"    {row['influence']:+8.3f} nats  …{text}…")


def _show_next(store: Place, latent: int) -> None:
    print(
        f"""
What to type next:
  gradsae rank latents {store} --where party=Republican -k 10
  gradsae rank tokens {store} --latent {latent} --context 10
  gradsae contrast {store} --a "year>=2000" --b "year<2000"
  gradsae report {store} -o audit --groups party
  gradsae info {store}
and on your own model, SAE and corpus:
  gradsae extract --model MODEL --sae SAE --corpus CORPUS.jsonl --out MINE.gradsae --dry-run"""
    )
