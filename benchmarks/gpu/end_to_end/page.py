"""The end-to-end result as a Markdown page: numbers with units, goals with verdicts, gaps with reasons."""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.gpu.end_to_end.arithmetic import CALCULATED, CALCULATED_SOURCE, calculate, model_flops
from benchmarks.gpu.end_to_end.case import Outcome, State

HEAD = (
    "case",
    "tokens/s: bare",
    "engine",
    "time, engine / bare",
    "goal",
    "MFU: bare",
    "engine",
    "active latents",
    "tokens in a batch",
    "memory above the model, GB: bare",
    "engine",
    "of it SAEs",
    "calculated: tokens/s",
    "engine / bare",
)
NOTES = """\
How to read it. Real shapes, random weights, the model's in bf16; documents of random tokens, nearly as long as a
window, next-token objective. Bare: forward, head in chunks, backward to the lowest site, hidden state and gradient of
that site, no SAE. Engine: the same pass with the scores of all sites on the host, and the tallies of every run. Neither
tokenises nor writes a store. Both take turns in one process, every second turn in the opposite order, after a warm-up;
each begins when the device is idle; medians. Unless a case says spliced, the error term is kept and all sites share one
pass.

MFU: operations of the language model alone, by its definition, per second, as a share of the peak; what encoding adds
is not counted as useful. SAEs: JumpReLU, random directions, thresholds fitted to the model's own hidden states at each
site; the fewest and the most active latents of a token, by site. "One for all sites": the same encoder and decoder at
every site, where weights of their own would take more than a quarter of the memory; as many bytes are read, and only
thresholds and biases differ. Before a case was timed, the influences of 64 tokens at one site were compared with the
dense reference; the error is relative, of bf16 gradients. A batch has fewer tokens where memory ran out with more: both
passes then work on the smaller batches. Memory: torch's allocations at their highest, above the model's weights."""

STAGES_NOTE = """\
Milliseconds of one pass of the engine by stage; rest: what no stage claims. On a GPU these are times of the device, in
which it also waits for the host."""


def page(result: dict[str, Any]) -> str:
    """All of it."""
    machine = result["machine"]
    outcomes = [Outcome.from_json(values) for values in result["cases"]]
    peak, source = result["peak"]["flops_per_second"], result["peak"]["source"]
    lines = [f"# End to end, {result['date']}: {machine['device']}", ""]
    if machine["is_trial"]:
        lines += ["**A trial of the command on tiny shapes or on a CPU. It says nothing about any GPU.**", ""]
    lines += [
        f"- commit: {result['commit']}",
        f"- Python {machine['python']}, CUDA {machine['cuda']}; {_pairs(machine['versions'])}",
        f"- under load: {_pairs(machine['under_load'])}",
        f"- MFU is held against {peak / 1e12:.4g} TFLOP/s: {source}; measured here: product "
        f"{result['rates']['product_flops_per_second'] / 1e12:.4g} TFLOP/s, copy "
        f"{result['rates']['copy_bytes_per_second'] / 1e12:.3g} TB/s (read and write)",
        f"- SAE weights: {result['sae_dtype']}; attention: {_pairs(result['attention']) or 'no model was made'}",
        f"- calculated columns: {CALCULATED_SOURCE}",
        "",
        NOTES,
        "",
        *_head(HEAD),
        *(_line(outcome, peak) for outcome in outcomes),
    ]
    return "\n".join([*lines, *_checks(outcomes), *_stages(outcomes), *_calculated()]) + "\n"


def summary(result: dict[str, Any]) -> str:
    """How many cases came to what."""
    states = [values["state"] for values in result["cases"]]
    return ", ".join(f"{states.count(state)} {state}" for state in State if state in states) or "nothing was begun"


def verdict(outcome: Outcome) -> str:
    """The goal of a case and whether it was met; a dash where there is none."""
    most = outcome.case.most_time
    if most is None or outcome.bare_ms is None or outcome.engine_ms is None:
        return "–"
    met = outcome.engine_ms[1] / outcome.bare_ms[1] <= most
    return f"at most {most:.2f}: {'met' if met else 'missed'}"


def _line(outcome: Outcome, peak: float) -> str:
    case, cost = outcome.case, calculate(outcome.case)
    calculated = [f"{1e6 / cost.engine:,.0f}", f"{cost.engine / cost.bare:.3f}"]
    if outcome.bare_ms is None or outcome.engine_ms is None or outcome.active is None:
        return _row(
            [str(case), ": ".join(filter(None, [outcome.state, _cell(outcome.reason)])), *10 * ["–"], *calculated]
        )
    bare, engine = outcome.bare_ms[1] / 1e3, outcome.engine_ms[1] / 1e3
    flops = outcome.tokens * model_flops(case, outcome.context)
    sae_gb = f"{outcome.sae_bytes / 1e9:.2f}{' (one for all sites)' if outcome.shared_weights else ''}"
    return _row(
        [
            str(case),
            f"{outcome.tokens / bare:,.0f}",
            f"{outcome.tokens / engine:,.0f}",
            f"{engine / bare:.3f}",
            verdict(outcome),
            f"{flops / bare / peak:.1%}",
            f"{flops / engine / peak:.1%}",
            " to ".join(dict.fromkeys(f"{active:.1f}" for active in outcome.active)),
            f"{outcome.tokens_per_batch:,}",
            _gigabytes(outcome.bare_peak_bytes),
            _gigabytes(outcome.engine_peak_bytes, outcome.sae_bytes),
            sae_gb,
            *calculated,
        ]
    )


def _checks(outcomes: Iterable[Outcome]) -> list[str]:
    """What was verified, and how much the times vary."""
    lines = ["", *_head(["case", "error of influences", "turns", "ms: bare (0.2 to 0.8 quantile)", "engine"])]
    for outcome in outcomes:
        if outcome.bare_ms is not None and outcome.engine_ms is not None and outcome.error is not None:
            spans = [f"{mid:.1f} ({low:.1f} to {high:.1f})" for low, mid, high in (outcome.bare_ms, outcome.engine_ms)]
            lines.append(_row([str(outcome.case), f"{outcome.error:.2g}", str(outcome.turns), *spans]))
    return lines


def _stages(outcomes: Iterable[Outcome]) -> list[str]:
    """Where the time of the engine goes."""
    measured = [(outcome, outcome.stages_ms) for outcome in outcomes if outcome.stages_ms is not None]
    names = [name for name in dict.fromkeys(name for _, stages in measured for name in stages) if name != "rest"]
    if not measured:
        return []
    lines = ["", STAGES_NOTE, ""]
    lines += _head(["case", "tokens", *names, "rest"])
    for outcome, stages in measured:
        cells = [f"{stages[name]:.2f}" if name in stages else "–" for name in [*names, "rest"]]
        lines.append(_row([str(outcome.case), f"{outcome.tokens:,}", *cells]))
    return lines


def _calculated() -> list[str]:
    """The table of the design, as it was."""
    lines = ["", f"The table that the goals were set by, microseconds per token; {CALCULATED_SOURCE}.", ""]
    lines += _head(["model", "sites", "C", "forward", "backward", "encode", "project", "tokens/s"])
    for (model, sites, latents), cost in CALCULATED.items():
        times = [f"{time:.3g}" for time in (cost.forward, cost.backward, cost.encode, cost.project)]
        lines.append(_row([model, str(sites), f"{latents:,}", *times, f"{1e6 / cost.engine:,.0f}"]))
    return lines


def _gigabytes(peak: int | None, beside: int = 0) -> str:
    return "not counted" if peak is None else f"{(peak + beside) / 1e9:.2f}"


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _head(names: Sequence[str]) -> list[str]:
    return [_row(names), f"|{len(names) * '---|'}"]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
