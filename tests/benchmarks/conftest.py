"""Benchmarks are run from the root of the repository and are not installed: tests find them as `benchmarks.*` there."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
