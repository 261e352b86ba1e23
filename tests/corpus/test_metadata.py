import json
from datetime import date

import numpy as np

from gradsae_fast.corpus.read import open_corpus


def test_metadata_become_json_values() -> None:
    values = {
        "text": "t",
        "nan": float("nan"),
        "inf": float("inf"),
        "array": np.arange(3, dtype=np.uint8),
        "nested": {"d": [date(1999, 12, 31), (True, None)], 3: b"x"},
    }
    (document,) = open_corpus([values])
    expected = {
        "nan": None,
        "inf": "inf",
        "array": [0, 1, 2],
        "nested": {"d": ["1999-12-31", [True, None]], "3": "b'x'"},
    }
    assert document.metadata == expected
    assert json.loads(json.dumps(document.metadata, allow_nan=False)) == expected
