"""Whether each SAE belongs to its site, asked on the corpus's first windows, before there is a store.

The questions and their limits are those of `gradsae extract`: BOS, FVU and L0. What else it asks is about influences.
"""

from collections.abc import Callable
from typing import Any

from gradsae_fast.gate import GateReport, check_sae
from gradsae_fast.prepare import Prepared, with_sink_limits
from gradsae_fast.probe import measure_medians, probe_batches


def check_fit(prepared: Prepared, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure sinks and check both SAEs; what is found is told and returned for the store.

    Raises GateError with every failure, unless the run is forced, and SaeError for an SAE of another width.
    """
    medians = measure_medians(prepared)
    prepared = with_sink_limits(prepared, medians)
    batches, bos = probe_batches(prepared), prepared.rules.prepend_bos
    checks = [check for one in prepared.sited for check in check_sae(prepared.lm, one, batches, bos=bos)]
    report = GateReport(checks=tuple(checks), forced=prepared.config.run.force).or_raise()
    for check in checks:
        tell(f"gate: {check.name} at {check.site} {'passed' if check.passed else 'FAILED, forced'}: {check.found}")
    return {"median_norms": medians, **report.to_json()}
