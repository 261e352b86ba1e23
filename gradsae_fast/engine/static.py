"""The engine `static`: this process is one of many workers, and scores its own part of the segments.

Workers share nothing but the store. Each reads the corpus once, tokenises its own segments, and ends when they are
committed; one that was killed is started again by the same command, with any number of workers. A worker does not take
over what another has left: it could not tell a dead one from one that is slow, or that waits in a queue.

The worker that finds everything committed when it ends makes the index.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from gradsae_fast.config import ExtractConfig
from gradsae_fast.engine.finish import make_index
from gradsae_fast.engine.line import begin, score
from gradsae_fast.engine.report import ExtractReport, Progress
from gradsae_fast.engine.worker import Worker, find_worker, segments_of
from gradsae_fast.errors import ConfigError


def extract_own_part(
    config: ExtractConfig,
    environment: Mapping[str, str],
    *,
    tell: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> ExtractReport:
    """Score the segments of the worker that this process is, as the variables of its environment say.

    Raises:
        ConfigError: it does not say so, or there is no GPU for this worker.
        GradsaeError: as `begin`.
    """
    worker = find_worker(environment)
    _use_own_gpu(config, worker)
    with begin(config, tell=tell, shared=True) as begun:
        own = segments_of(worker, begun.prepared.plan.segments)
        tell(f"{worker}: {len(own)} of {len(begun.all_segments)} segments are its own")
        report = score(begun, own, on_progress=on_progress)
        left = begun.all_segments - begun.writer.refresh()
    if not left:
        make_index(report.store, tell=tell)
    else:
        tell(f"{len(left)} segments are left to other workers; a worker that died is started again by the same command")
    return replace(report, num_left=len(left))


def _use_own_gpu(config: ExtractConfig, worker: Worker) -> None:
    """Give this process the GPU of its number on this machine, where it sees several."""
    device, local = config.model.device, worker.local_rank
    if device not in ("auto", "cuda") or local is None or not torch.cuda.is_available():
        return
    visible = torch.cuda.device_count()
    if config.model.device_map is not None:
        if visible > 1 and worker.local_size > 1:
            raise ConfigError(
                f"device_map spreads a model over all {visible} GPUs that a worker sees, and several workers of this "
                "machine see the same ones. Set CUDA_VISIBLE_DEVICES for each worker, or start one a machine."
            )
        return
    if visible > 1:
        if local >= visible:
            raise ConfigError(
                f"this is worker {local} of its machine, counted from 0, which has {visible} GPUs; expected one worker "
                "a GPU. Start fewer a machine, or use --device cpu."
            )
        torch.cuda.set_device(local)
