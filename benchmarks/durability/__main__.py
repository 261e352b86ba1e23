"""How much a store survives: commands killed, power cut, files damaged; trials and violations, with the date.

    python -m benchmarks.durability --out benchmarks/results
    python -m benchmarks.durability --out benchmarks/results --kills 300 --clones 500 --flips 500 --cuts 500 --heals 20
    python -m benchmarks.durability --out benchmarks/results --only kills-extract,power-protocol

from the root of the repository writes `<date>-durability.json` and `.md`, after every piece of some minutes anew; run
again on the same day, it goes on with the pieces that are not done, and begins anew where the store's sources changed.
Everything happens below --work, a folder on the disk in question (default: where temporary files go).
"""

import argparse
import hashlib
import platform
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.durability.pieces import Line, Piece, carry_out, pieces, read_lines, write_lines
from gradsae_fast import store


def page(lines: list[Line], machine: str, date: str) -> str:
    """The table as Markdown: trials of one sort added up."""
    sorts = list(dict.fromkeys(line.what for line in lines))
    rows = [_row(what, [line for line in lines if line.what == what]) for what in sorts]
    found = [f"- {violation}" for line in lines for violation in line.violations]
    codes = ", ".join(dict.fromkeys(line.code for line in lines))
    disks = ", ".join(dict.fromkeys(line.disk for line in lines))
    table = ["| | trials | violations | rate below (95 %), where none |", "|---|---|---|---|", *rows]
    head = [f"# What a store survives: {date}", "", f"{machine} On {disks}; sources of the store {codes}."]
    return "\n".join([*head, "", *table, "", *found]) + "\n"


def _row(what: str, lines: list[Line]) -> str:
    trials = sum(line.trials for line in lines)
    return f"| {what} | {trials:,} | {sum(len(line.violations) for line in lines)} | {3 / trials:.1e} |"


def main() -> None:
    """Do the trials and write the two files; exit status 1 where a promise was broken."""
    options = _options()
    date = time.strftime("%Y-%m-%d")
    path = options.out / f"{date}-durability.json"
    machine, code = _machine(), _code()
    read = (line for file in (path, *options.add) for line in read_lines(file))
    lines = list({(line.kind, line.seed, line.what): line for line in read if line.code == code}.values())
    done = {(line.kind, line.seed) for line in lines}
    for piece in pieces(options):
        if (piece.kind, piece.seed) in done or not _is_asked(piece, options):
            continue
        for line in carry_out(piece, options.work, code):
            found = f"{line.trials} trials, {len(line.violations)} violations, {line.seconds:.0f} s"
            print(f"{line.what}: {found}", flush=True)
            lines.append(line)
        _write(path, lines, machine, date)
    _write(path, lines, machine, date)
    if any(line.violations for line in lines):
        raise SystemExit(1)


def _is_asked(piece: Piece, options: argparse.Namespace) -> bool:
    number, parts = map(int, options.part.split("/"))
    return piece.seed % parts == number and (options.only is None or piece.kind in options.only.split(","))


def _write(path: Path, lines: list[Line], machine: str, date: str) -> None:
    write_lines(path, lines, machine)
    path.with_suffix(".md").write_text(page(lines, machine, date), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--work", type=Path, help="folder in which stores are written and damaged")
    parser.add_argument("--only", help="kinds of pieces, with commas between them")
    parser.add_argument(
        "--part", default="0/1", help="i/n: of the seeds the i-th of n parts, to run n commands at once"
    )
    parser.add_argument("--add", type=Path, nargs="*", default=[], help="results of other parts, to be taken in")
    parser.add_argument("--kills", type=int, default=10_000, help="random kills of the writer")
    parser.add_argument("--clones", type=int, default=2_000, help="power cuts of the writer")
    parser.add_argument("--verb-kills", type=int, default=500, help="random kills of every other command")
    parser.add_argument("--verb-clones", type=int, default=250, help="power cuts of every other command")
    parser.add_argument("--stride", type=int, default=1, help="kill other commands before every so manyth step")
    parser.add_argument("--flips", type=int, default=5_000)
    parser.add_argument("--cuts", type=int, help="lengths to cut to; default: all, of a file of every kind")
    parser.add_argument("--heals", type=int, help="kinds of files; default: all")
    return parser.parse_args()


def _machine() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numcodecs"))
    return f"{platform.platform()}, Python {platform.python_version()}, {versions}."


def _code() -> str:
    """What is tried: the start of a digest of the store's sources."""
    sources = hashlib.sha256()
    for path in sorted(Path(store.__file__).parent.rglob("*.py")):
        sources.update(path.read_bytes())
    return sources.hexdigest()[:12]


if __name__ == "__main__":
    main()
