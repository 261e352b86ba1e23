"""One driver of a Ray run, as a process of its own.

    python -m benchmarks.many_machines.drive FOLDER SCORER ADDRESS MINUTES

FOLDER has the corpus, and gets the store. Prints `error:` and the message where the run fails, with exit status 1.
"""

import sys
from pathlib import Path

from benchmarks.many_machines.faults import SCORERS
from gradsae_fast.config import ExtractConfig, config_from_tables
from gradsae_fast.demo import ASSETS
from gradsae_fast.engine.on_ray import extract_on_ray
from gradsae_fast.errors import GradsaeError

WORKERS = 2


def configuration(folder: Path, name: str = "scores", **run: object) -> ExtractConfig:
    """The run of every trial: the demo's model and SAE, a corpus of some short speeches."""
    return config_from_tables(
        {
            "model": {"path": str(ASSETS / "model")},
            "sae": {"path": str(ASSETS / "sae")},
            "corpus": {"path": str(folder / "speeches.jsonl"), "context_length": 128, "overlap": 16},
            "store": {"path": str(folder / name)},
            "run": {"threads": 1, "force": True, **run},
        }
    )


def main() -> None:
    """Drive one run to its end."""
    folder, scorer, address, minutes = Path(sys.argv[1]), SCORERS[sys.argv[2]], sys.argv[3], float(sys.argv[4])
    config = configuration(folder, engine="ray", workers=WORKERS, ray_address=address, stall_minutes=minutes)
    try:
        report = extract_on_ray(
            config, tell=lambda text: print(text, flush=True), on_progress=lambda _: None, scorer=scorer
        )
    except GradsaeError as error:
        print(f"error: {error}", flush=True)
        raise SystemExit(1) from error
    print(f"{report.num_segments} segments written, {report.num_skipped} were there", flush=True)


if __name__ == "__main__":
    main()
