"""The example of the page is true."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "kernels" / "README.md"


def test_the_example_runs_as_printed() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(example, {})
