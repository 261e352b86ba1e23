"""Resident memory of this process, as Linux tells it."""

from pathlib import Path

_KIBIBYTE = 1024


def reset_peak() -> int | None:
    """Begin a new peak; the resident bytes that it begins with, or None where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return status_bytes("VmRSS")


def status_bytes(field: str) -> int:
    """Return VmHWM (peak) or VmRSS (now) in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * _KIBIBYTE
