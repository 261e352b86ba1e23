"""What a process costs: seconds, processor seconds, and how far its resident memory rises above what it has loaded."""

import ctypes
import json
import resource
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """One run of one variant."""

    seconds: float  # of the work, its results on disk included, loading left out
    cpu_seconds: float  # of the same, all threads together
    load_seconds: float  # until model and SAE are there, imports left out
    num_tokens: int  # that the seconds are about
    loaded_bytes: int | None  # resident memory with model and SAE loaded; None where the system does not tell
    peak_bytes: int | None  # highest resident memory during the work
    checks_peak_bytes: int | None  # the same of what lay between loading and the work; None where nothing did
    stored_bytes: int  # on disk, in the form in which users of the variant keep it
    num_pairs: int  # entries that are stored
    num_threads: int
    versions: dict[str, str]
    parts: dict[str, float]  # seconds of parts of the work, or of checks before it, by name

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.num_tokens / self.seconds

    @property
    def extra_bytes(self) -> int | None:
        """Peak memory above model and SAE; None where the system does not tell."""
        if self.peak_bytes is None or self.loaded_bytes is None:
            return None
        return self.peak_bytes - self.loaded_bytes

    @classmethod
    def load(cls, folder: Path) -> "Measures":
        """Read what `save` wrote."""
        return cls(**json.loads((folder / "measures.json").read_text(encoding="utf-8")))

    def save(self, folder: Path) -> None:
        """Write measures.json."""
        (folder / "measures.json").write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


class Meter:
    """Begins when it is made, just before model and SAE are loaded."""

    def __init__(self) -> None:
        self.made = time.perf_counter()
        self.load_seconds = 0.0
        self.loaded_bytes: int | None = None
        self.checks_peak_bytes: int | None = None

    def loaded(self) -> None:
        """Model and SAE are there; what loading took for a while and gave back is not counted."""
        self.load_seconds = time.perf_counter() - self.made
        self.begin()
        self.loaded_bytes = _resident("VmRSS")

    def checked(self) -> None:
        """What happened since `loaded` were checks; the work begins now."""
        self.checks_peak_bytes = max(self.checks_peak_bytes or 0, _resident("VmHWM") or 0) or None
        self.begin()

    def begin(self) -> None:
        """The work begins now."""
        if _RESET.exists():
            ctypes.CDLL(None).malloc_trim(0)  # freed memory that the allocator keeps would hide what the work takes
            _RESET.write_text("5", encoding="ascii")
        self.cpu = _cpu_seconds()
        self.started = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds since the work began."""
        return time.perf_counter() - self.started

    def end(self) -> None:
        """The results are on disk."""
        self.seconds, self.cpu_seconds = self.elapsed(), _cpu_seconds() - self.cpu
        self.peak_bytes = _resident("VmHWM")

    def measures(
        self,
        *,
        num_tokens: int,
        stored: Path,
        num_pairs: int,
        packages: tuple[str, ...] = (),
        parts: dict[str, float] | None = None,
    ) -> Measures:
        """All of it; `stored` is the folder of what was kept, `packages` are worth naming beside torch."""
        return Measures(
            seconds=self.seconds,
            cpu_seconds=self.cpu_seconds,
            load_seconds=self.load_seconds,
            num_tokens=num_tokens,
            loaded_bytes=self.loaded_bytes,
            peak_bytes=self.peak_bytes,
            checks_peak_bytes=self.checks_peak_bytes,
            stored_bytes=sum(path.stat().st_size for path in stored.rglob("*") if path.is_file()),
            num_pairs=num_pairs,
            num_threads=torch.get_num_threads(),
            versions={name: version(name) for name in ("torch", "transformers", *packages)},
            parts=parts or {},
        )


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _resident(key: str) -> int | None:
    if not _RESET.exists():
        return None
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])
