"""What the terminal shows: tables, progress, reports. Files are written by `ranking.export`.

On a terminal, tables; in a pipe or a log, plain lines.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradsae_fast.errors import QueryError, StoreError
from gradsae_fast.ranking import query_of, write_table
from gradsae_fast.ranking.export import FORMATS
from gradsae_fast.ranking.question import one_of
from gradsae_fast.stages import MAIN
from gradsae_fast.store import Fault, ScoreStore
from gradsae_fast.store.format.layout import component
from gradsae_fast.store.promise import promise_facts, promise_of, sentences
from gradsae_fast.store.show import generation_facts, generation_line
from gradsae_fast.store.sidecars.certificate import read_certificate

if TYPE_CHECKING:
    from gradsae_fast.estimate import Estimate
    from gradsae_fast.extract import ExtractReport
    from gradsae_fast.stages import Recording


def show_table(table: pa.Table, format: str = "table", output: Path | None = None) -> None:
    """Print a table for people, or write it as json, csv or parquet."""
    check_output(format, output)
    if format == "table":
        _print_table(table)
    else:
        print(write_table(table, output, format) or "", end="")


def check_output(format: str, output: Path | None) -> None:
    """Raise the QueryError of `show_table` for a format and a file that do not go together, before a long wait."""
    one_of("format", format, ("table", *FORMATS))
    if format == "table" and output is not None:
        raise QueryError(f"--output {output} needs a file format; add --format json, csv or parquet.")
    if format == "parquet" and output is None:
        raise QueryError("parquet is no text; add --output FILE, or --format json or csv.")
    if output is not None and not output.parent.is_dir():
        raise QueryError(f"--output {output} lies in a folder that does not exist; make {output.parent} first.")


def show_report(report: "ExtractReport") -> None:
    """The end of an extraction."""
    speed = report.num_tokens / report.seconds if report.seconds else 0.0
    print(
        f"{report.store}: {report.num_segments} segments written, {report.num_skipped} were there; "
        f"{report.num_tokens} tokens in {report.seconds:.1f} s ({speed:.0f} tokens/s), "
        f"{human_bytes(report.bytes_written)}"
    )
    for site, l0 in report.l0.items():
        if report.num_tokens:
            print(f"  {site}: L0 {l0:.1f}, FVU {report.fvu[site]:.3f}")
    exact = report.exact
    if exact is not None:
        latents = ", ".join(f"{count} latents at {site}" for site, count in exact.num_dense.items())
        print(
            f"exact: {latents} fire on more than {exact.share:g} of the tokens; {exact.num_segments} segments "
            f"measured, {exact.num_skipped} were there; {exact.num_removals} removals in {exact.seconds:.1f} s"
        )
    if report.profile is not None:
        show_profile(report.profile)
        print(f"trace: {report.trace}, for chrome://tracing, ui.perfetto.dev or speedscope.app")
    if report.num_left:
        print(f"left: {report.num_left} segments, which other workers write")
    else:
        print(f"next: gradsae rank latents {report.store}{'' if exact is None else ' --exact-dense'}")


def show_profile(profile: "Recording") -> None:
    """Where the time of a run went: seconds of each stage without the stages inside it, by thread."""
    print(f"{'stage':<16} {'thread':<8} {'seconds':>9} {'of the run':>10} {'calls':>8}")
    for stage in profile.breakdown():
        share = stage.seconds / profile.seconds
        print(f"{stage.name:<16} {stage.thread:<8} {stage.seconds:>9.2f} {share:>10.1%} {stage.calls:>8}")
    rest = profile.seconds - sum(stage.seconds for stage in profile.breakdown() if stage.thread == MAIN)
    print(f"{'(other)':<16} {MAIN:<8} {rest:>9.2f} {rest / profile.seconds:>10.1%}")


def show_estimate(estimate: "Estimate") -> None:
    """What `--dry-run` found out."""
    print(
        f"corpus   {estimate.num_documents} documents, {estimate.num_tokens} tokens, {estimate.num_segments} segments"
    )
    print(f"speed    {estimate.tokens_per_second:.0f} tokens/s on a probe of {estimate.probe_tokens} tokens")
    print(f"time     about {_duration(estimate.seconds)}")
    print(f"memory   {human_bytes(estimate.peak_memory_bytes)} at the peak of the probe, model included")
    free = "" if estimate.free_bytes is None else f"; {human_bytes(estimate.free_bytes)} are free"
    print(f"disk     about {human_bytes(estimate.store_bytes)}{free}")
    if estimate.free_bytes is not None and estimate.store_bytes > estimate.free_bytes:
        print("warning  the disk is too small for this run; choose another --out or a lower --precision-bits")


def show_info(store: ScoreStore, *, as_json: bool = False) -> None:
    """A store's identity, gate, progress and size."""
    facts = store_facts(store)
    if as_json:
        print(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    size = human_bytes(facts["bytes"])
    print(f"store      {facts['path']} ({size}, {facts['profile']}, {facts['precision_bits']} bits)")
    state = "complete" if facts["complete"] else "incomplete: run the same extract command again"
    revised = f", in {facts['segments']} now" if facts["revisions"] else ""
    print(f"segments   {facts['committed']} of {facts['planned_segments']} committed{revised}; {state}")
    if facts["dropped"]:
        print(f"dropped    {facts['dropped']} documents, for good")
    print(f"corpus     {facts['documents']} documents, {facts['tokens']} tokens")
    for generation in facts["generations"] if len(facts["generations"]) > 1 else ():
        print(f"generation {generation_line(generation)}")
    print(f"objective  {', '.join(facts['objectives'])}; positive influence: the latent's presence raises it")
    for site, numbers in facts["sites"].items():
        signed = "; activations of both signs: rank --polarity" if numbers["signed"] else ""
        print(
            f"site       {site}: {numbers['latents']} latents, L0 {numbers['l0']:.1f}, "
            f"{numbers['bytes_per_nonzero']:.2f} bytes per non-zero{signed}"
        )
    for key, value in facts["identity"].get("method", {}).items():
        print(f"method     {key} = {value}")
    print(f"tokens     {facts['run'].get('bos', 'not recorded')}")
    for check in (facts["gate"] or {}).get("checks", []):
        print(
            f"gate       {'passed' if check['passed'] else 'FAILED'}  {check['name']} {check['site']}: {check['found']}"
        )
    if facts["exact_dense"] is not None:
        print(f"exact      {_exact_line(facts['exact_dense'])}")
    for sentence in sentences(promise_of(store.path)):
        print(f"promise    {sentence}")
    show_certificate(store)


def _exact_line(facts: Mapping[str, Any]) -> str:
    if "unreadable" in facts:
        return f"unreadable: {facts['unreadable']}"
    dense = ", ".join(f"{count} at {site}" for site, count in facts["latents"].items())
    missing = f"; {len(facts['missing'])} segments still to measure" if facts["missing"] else ""
    return f"latents on more than {facts['share']:.3g} of the tokens: {dense}; rank --exact-dense{missing}"


def store_facts(store: ScoreStore) -> dict[str, Any]:
    """What `info --json` prints; the keys are stable. Raises StoreError where an object is missing."""
    store.check_objects()
    scores = sum(record["length"] for segment in store.segments for record in segment.commit["objects"])
    exact = _exact_facts(store)
    return {
        "path": str(store.path),
        "complete": store.is_complete,
        "segments": len(store.segments),
        "committed": len(store.committed),
        "planned_segments": store.num_segments,
        "revisions": store.num_revisions,
        "dropped": store.num_dropped,
        "documents": store.num_documents,
        "tokens": store.num_tokens,
        "generations": [generation_facts(store, generation) for generation in store.generations],
        "bytes": scores + (exact or {}).get("bytes", 0),
        "precision_bits": store.precision_bits,
        "profile": store.profile,
        "objectives": store.objectives,
        "sites": {site: _site_facts(store, site) for site in store.sites},
        "identity": store.identity,
        "run": store.run,
        "gate": store.facts("gate"),
        "certificate": store.facts("certificate"),
        "exact_dense": exact,
        "promise": promise_facts(promise_of(store.path)),
    }


def _exact_facts(store: ScoreStore) -> dict[str, Any] | None:
    """None where there are no exact effects; `unreadable` alone, an error's message, where they cannot be read."""
    try:
        exact = store.exact_dense()
    except StoreError as error:
        return {"unreadable": str(error)}
    if exact is None:
        return None
    return {
        "share": exact.share,
        "latents": {site: len(latents_K) for site, latents_K in exact.latents.items()},
        "missing": list(exact.missing),
        "bytes": exact.num_bytes,
    }


def _site_facts(store: ScoreStore, site: str) -> dict[str, Any]:
    """L0 is over counted tokens, as the gate and the run report it; bytes are those of the site's own arrays."""
    nonzeros = counted = active = size = 0
    prefix = f"sites/{component(site)}/"
    for segment in store.segments:
        commit = segment.commit
        nonzeros += commit["counts"]["nnz"][site]
        size += sum(record["length"] for record in commit["objects"] if record["key"].startswith(prefix))
        counted += int(segment.counted_tokens().sum())
        active += int(segment.site(site).latent_stats(["count"]).columns["count"].sum())
    return {
        "latents": store.num_latents(site),
        "nonzeros": nonzeros,
        "l0": active / counted if counted else 0.0,
        "bytes_per_nonzero": size / nonzeros if nonzeros else 0.0,
        "signed": any(segment.site(site).is_signed for segment in store.segments),
    }


def show_certificate(store: ScoreStore) -> None:
    """How far first-order influences can be believed here, as `certify` found; nothing where it never ran."""
    certificate = read_certificate(store)
    if certificate is None:
        return
    for row in certificate.agreements:
        if row.samples:
            numbers = (row.spearman, row.pearson, row.sign_agreement, row.slope, row.slope_low, row.slope_high)
            spearman, pearson, sign, slope, low, high = (_cell(v) or "undefined" for v in numbers)
            print(
                f"certified  {row.scores} of {row.latents} latents at {row.site}, {row.objective}: "
                f"Spearman {spearman}, Pearson {pearson}, same sign {sign}, slope {slope} [{low}, {high}] "
                f"over {row.samples} exact ablations"
            )
    if not certificate.is_current(store):
        print("certified  no longer these segments: run `gradsae certify` again")


def show_faults(faults: Sequence[Fault]) -> None:
    """What `verify` found."""
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults. Run `gradsae repair`, then the same extract command." if faults else "no fault found")


def show_repair(dropped: Sequence[int]) -> None:
    """What `repair` did."""
    if not dropped:
        print("no damaged segment")
        return
    numbers = ", ".join(map(str, dropped))
    print(f"dropped segments {numbers}; run the same extract command to compute them again")


def _print_table(table: pa.Table) -> None:
    console = Console()
    grid = Table(box=None, header_style="bold", pad_edge=False)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    for name, values in columns.items():
        numeric = all(isinstance(value, (int, float)) for value in values)
        grid.add_column(name, justify="right" if numeric else "left", no_wrap=name != "after")
    for row in zip(*columns.values(), strict=True):
        grid.add_row(*(Text(_cell(value)) for value in row))
    if not console.is_terminal:
        console.width = 10_000
    console.print(grid)
    console.print(Text(_legend(query_of(table)), style="dim"), soft_wrap=True)


def _legend(query: Mapping[str, Any]) -> str:
    if "ranking" not in query:
        return "; ".join(f"{name} {_cell(value)}" for name, value in query.items())
    masked = "included" if query["includes_special"] else "left out"
    groups = {"": ""} if "num_documents" in query else {"_a": "a: ", "_b": "b: "}
    counts = [
        f"{label}{query[f'num_documents{group}']} documents, {query[f'num_tokens{group}']} tokens"
        for group, label in groups.items()
    ]
    return (
        f"site {query['site']}, objective {query['objective']} [{query['influence_unit']}]; {query['sign']}; "
        f"{'; '.join(counts)}, masked tokens {masked}"
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return value.replace("\n", "⏎").replace("\t", "⇥")
    return "" if value is None else str(value)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def human_bytes(count: float) -> str:
    """A number of bytes for people, like 5 kB or 4.57 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def quiet_transformers() -> None:
    """One progress bar is enough: ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
