"""Which addresses the demo model never sees, and the cut of the corpus into a training part and a held-out part.

The held-out addresses are whole documents, eleven of each of the two parties that the demo contrasts, spread over
1951 to 2019 and over every president of that time. The corpus is a JSON Lines file (plain or gzip) with the
fields `id, text, year, president, party`.

    python -m benchmarks.demo_model.split CORPUS OUT

writes OUT/train.jsonl and OUT/held_out.jsonl and prints the largest overlap between the two.
"""

from __future__ import annotations

import argparse
import gzip
import json
from dataclasses import asdict, dataclass
from pathlib import Path

REPUBLICAN_YEARS = (1954, 1958, 1971, 1976, 1984, 1987, 1991, 2002, 2006, 2018, 2019)
DEMOCRATIC_YEARS = (1951, 1962, 1965, 1968, 1979, 1994, 1996, 1998, 2010, 2013, 2016)
HELD_OUT = frozenset(
    [(year, "Republican") for year in REPUBLICAN_YEARS] + [(year, "Democratic") for year in DEMOCRATIC_YEARS]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """One State of the Union address: a document of the corpus."""

    id: str
    text: str
    year: int
    president: str
    party: str

    @property
    def is_held_out(self) -> bool:
        return (self.year, self.party) in HELD_OUT


def read_addresses(path: Path) -> list[Address]:
    """Every address of a JSON Lines file, in file order."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    fields = ("id", "text", "year", "president", "party")
    return [Address(**{field: row[field] for field in fields}) for row in rows]


def write_addresses(path: Path, addresses: list[Address]) -> None:
    """One JSON object a line, in the order given."""
    with path.open("w", encoding="utf-8") as lines:
        for address in addresses:
            lines.write(json.dumps(asdict(address), ensure_ascii=False) + "\n")


def split(addresses: list[Address]) -> tuple[list[Address], list[Address]]:
    """The training addresses and the held-out ones."""
    train = [address for address in addresses if not address.is_held_out]
    held_out = [address for address in addresses if address.is_held_out]
    if len(held_out) != len(HELD_OUT):
        raise ValueError(f"expected {len(HELD_OUT)} held-out addresses, got {len(held_out)}: is this the whole corpus?")
    return train, held_out


def shingles(text: str, words: int = 8) -> set[tuple[str, ...]]:
    """Every run of `words` consecutive words, lower case."""
    tokens = text.lower().split()
    return {tuple(tokens[i : i + words]) for i in range(len(tokens) - words + 1)}


def largest_overlap(train: list[Address], held_out: list[Address]) -> tuple[float, str, str]:
    """The largest share of a held-out address' 8-word runs that one training address contains, with both ids."""
    known = [(shingles(address.text), address.id) for address in train]
    candidates = []
    for address in held_out:
        own = shingles(address.text)
        candidates += [(len(own & other) / len(own), address.id, other_id) for other, other_id in known]
    return max(candidates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="JSON Lines of addresses, plain or .gz")
    parser.add_argument("out", type=Path, help="folder for train.jsonl and held_out.jsonl")
    arguments = parser.parse_args()
    train, held_out = split(read_addresses(arguments.corpus))
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_addresses(arguments.out / "train.jsonl", train)
    write_addresses(arguments.out / "held_out.jsonl", held_out)
    share, own, other = largest_overlap(train, held_out)
    print(f"{len(train)} training addresses, {len(held_out)} held out")
    print(f"largest share of 8-word runs found in one training address: {share:.4f} ({own} in {other})")


if __name__ == "__main__":
    main()
