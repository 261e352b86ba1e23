"""The result as a Markdown page: every number with its unit, and every missing number with its reason."""

from itertools import groupby
from typing import Any

from benchmarks.gpu.row import Row, Status

HEAD = (
    "| operator | variant | ms: median (0.2 to 0.8 quantile) | TFLOP/s | ratio to the bare product | moved, GB | "
    "share of copy rate | peak extra memory, MB |\n|" + 8 * "---|"
)
NOTES = """\
How to read it. All variants of a shape take turns in one process, every second turn in the opposite order, after a
warm-up, the second cache emptied before each call on a GPU; random data, firing rates log-normal (0.8 decades), one
shift of the thresholds fitted for the wanted number of active latents. Every variant was checked against fp64 on 16
tokens (`project_documents` on one document) before it was timed. Ratio: of medians. TFLOP/s: of the arithmetic that the
variant does. Moved: by formula, operands and answer once and every pass over a dense [N, C]; it is no measurement.
Peak extra memory: torch's allocations above those before the call, the answer included."""


def page(result: dict[str, Any]) -> str:
    """All of it."""
    machine, rates = result.get("machine") or {}, result.get("rates")
    lines = [f"# GPU proof, {result['date']}: {machine.get('device', result['asked_for'])}", ""]
    if machine.get("is_trial"):
        lines += ["**A run on a CPU, to try the command. It says nothing about any GPU.**", ""]
    lines += [f"- commit: {result['commit']}"]
    lines += [f"- Python {machine['python']}, CUDA {machine['cuda']}; {_pairs(machine['versions'])}"] if machine else []
    lines += [f"- under load: {_pairs(machine['under_load'])}"] if machine else []
    if rates:
        lines.append(
            f"- measured here: copy {rates[0] / 1e12:.3g} TB/s (read and write), product {rates[1] / 1e12:.4g} TFLOP/s"
        )
    lines += [f"- {name}: {text}" for name, text in result["sections"].items()]
    lines += ["", NOTES]
    rows = [Row.from_json(values) for values in result["rows"]]
    for shape, group in groupby(rows, key=lambda row: row.shape):
        lines += [
            "",
            f"## {shape}",
            f"N = {shape.tokens:,}, about {shape.active} active latents per token, k = {shape.active}.",
        ]
        lines += ["", HEAD, *map(_line, group)]
    return "\n".join(lines) + "\n"


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _line(row: Row) -> str:
    if row.status is not Status.MEASURED:
        cells = [row.operator, row.variant, f"{row.status}: {_cell(row.reason)}", *5 * ["–"]]
    else:
        cells = [
            row.operator,
            row.variant,
            f"{row.ms:.3f} ({row.ms_low:.3f} to {row.ms_high:.3f})",
            f"{row.tflops:.4g}",
            "–" if row.ratio is None else f"{row.ratio:.3f}",
            f"{(row.bytes_moved or 0) / 1e9:.3g}",
            f"{row.copy_share:.2f}",
            "not counted" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}",
        ]
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
