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

from gradsae_fast.corpora import corpora_facts, corpus_line, dropped_line
from gradsae_fast.counts import counted
from gradsae_fast.errors import QueryError, StoreError
from gradsae_fast.ranking import query_of, write_table
from gradsae_fast.ranking.export import FORMATS
from gradsae_fast.ranking.question import one_of
from gradsae_fast.remedy import commands_of, having, incomplete
from gradsae_fast.stages import MAIN
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.format.layout import component
from gradsae_fast.store.promise import promise_facts, promise_of, sentences
from gradsae_fast.store.records.generations import Generation
from gradsae_fast.store.sidecars.certificate import read_certificate
from gradsae_fast.terminal import print_file, say
from gradsae_fast.visible import visible

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
        print_file(write_table(table, output, format) or "")


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
        f"{report.store}: {counted(report.num_segments, 'segment')} written, {report.num_skipped:,} were there; "
        f"{counted(report.num_tokens, 'token')} in {report.seconds:.1f} s ({speed:.0f} tokens/s), "
        f"{human_bytes(report.bytes_written)}"
    )
    for site, l0 in report.l0.items():
        if report.num_tokens:
            print(f"  {site}: L0 {l0:.1f}, FVU {report.fvu[site]:.3f}")
    exact = report.exact
    if exact is not None:
        latents = ", ".join(f"{counted(count, 'latent')} at {site}" for site, count in exact.num_dense.items())
        print(
            f"exact: on more than {exact.share:g} of the tokens fire {latents}; "
            f"{counted(exact.num_segments, 'segment')} measured, {exact.num_skipped:,} were there; "
            f"{counted(exact.num_removals, 'removal')} in {exact.seconds:.1f} s"
        )
    if report.profile is not None:
        show_profile(report.profile)
        print(f"trace: {report.trace}, for chrome://tracing, ui.perfetto.dev or speedscope.app")
    if report.num_left:
        print(f"left: {counted(report.num_left, 'segment')}, which other workers write")
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
        f"corpus   {counted(estimate.num_documents, 'document')}, {counted(estimate.num_tokens, 'token')}, "
        f"{counted(estimate.num_segments, 'segment')}"
    )
    print(f"speed    {estimate.tokens_per_second:.0f} tokens/s on a probe of {counted(estimate.probe_tokens, 'token')}")
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
        print_file(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        return
    size = human_bytes(facts["bytes"])
    say(f"store      {facts['path']} ({size}, {facts['profile']}, {facts['precision_bits']} bits)")
    state = "complete" if facts["complete"] else f"incomplete: run {commands_of(incomplete(store))} again"
    revised = f", in {facts['segments']} now" if facts["revisions"] else ""
    say(f"segments   {facts['committed']} of {facts['planned_segments']} committed{revised}; {state}")
    if facts["dropped"]:
        say(f"dropped    {dropped_line(store)}")
    say(f"corpus     {counted(facts['documents'], 'document')}, {counted(facts['tokens'], 'token')}")
    for generation in facts["generations"] if len(facts["generations"]) > 1 else ():
        say(f"generation {corpus_line(generation)}")
    say(f"objective  {', '.join(facts['objectives'])}; positive influence: the latent's presence raises it")
    for site, numbers in facts["sites"].items():
        signed = "; activations of both signs: rank --polarity" if numbers["signed"] else ""
        say(
            f"site       {site}: {numbers['latents']} latents, L0 {numbers['l0']:.1f}, "
            f"{numbers['bytes_per_nonzero']:.2f} bytes per non-zero{signed}"
        )
    for key, value in facts["identity"].get("method", {}).items():
        say(f"method     {key} = {value}")
    say(f"tokens     {facts['run'].get('bos', 'not recorded')}")
    for check in (facts["gate"] or {}).get("checks", []):
        say(
            f"gate       {'passed' if check['passed'] else 'FAILED'}  {check['name']} {check['site']}: {check['found']}"
        )
    if facts["exact_dense"] is not None:
        say(f"exact      {_exact_line(facts['exact_dense'])}")
    for sentence in sentences(promise_of(store.path)):
        say(f"promise    {sentence}")
    show_certificate(store)


def _exact_line(facts: Mapping[str, Any]) -> str:
    if "unreadable" in facts:
        return f"unreadable: {facts['unreadable']}"
    dense = ", ".join(f"{count} at {site}" for site, count in facts["latents"].items())
    missing = f"; {counted(len(facts['missing']), 'segment')} still to measure" if facts["missing"] else ""
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
        "generations": corpora_facts(store),
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
            say(
                f"certified  {row.scores} of {row.latents} latents at {row.site}, {row.objective}: "
                f"Spearman {spearman}, Pearson {pearson}, same sign {sign}, slope {slope} [{low}, {high}] "
                f"over {counted(row.samples, 'exact ablation')}"
            )
    if not certificate.is_current(store):
        say("certified  no longer these segments: run `gradsae certify` again")


def show_repair(dropped: Sequence[int], generations: Sequence[Generation]) -> None:
    """What `repair` did to a store of these generations."""
    if not dropped:
        print("no damaged segment")
        return
    numbers = ", ".join(map(str, dropped))
    say(f"dropped segments {numbers}; to compute them again, run {commands_of(having(generations, dropped))}")


def _print_table(table: pa.Table) -> None:
    console = Console()
    grid = Table(box=None, header_style="bold", pad_edge=False)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    for name, values in columns.items():
        numeric = all(isinstance(value, (int, float)) for value in values)
        grid.add_column(Text(visible(name)), justify="right" if numeric else "left", no_wrap=name != "after")
    for row in zip(*columns.values(), strict=True):
        grid.add_row(*(Text(_cell(value)) for value in row))
    if not console.is_terminal:
        console.width = 10_000
    console.print(grid)
    console.print(Text(visible(_legend(query_of(table))), style="dim"), soft_wrap=True)


def _legend(query: Mapping[str, Any]) -> str:
    if "ranking" not in query:
        return "; ".join(f"{name} {_cell(value)}" for name, value in query.items())
    masked = "included" if query["includes_special"] else "left out"
    groups = {"": ""} if "num_documents" in query else {"_a": "a: ", "_b": "b: "}
    counts = [
        f"{label}{counted(query[f'num_documents{group}'], 'document')}, {counted(query[f'num_tokens{group}'], 'token')}"
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
        return visible(value)
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
