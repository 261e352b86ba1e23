"""What a score measures and which way it points.

influence = activation * projection: the first-order estimate of  m - m(with this activation set to 0),  in the unit
of the objective m. Its sign means the same for every objective; its magnitude is for comparison inside one document.
"""

from typing import Any

import numpy as np

from gradsae_fast.method import influence_unit
from gradsae_fast.records import Array


def score_unit(objective: str, by: str, *, per_token: bool = False) -> str:
    """Return the unit of a table's score column.

    >>> score_unit("next-token", "absolute", per_token=True)
    'nats per scored token'
    """
    if by == "frequency":
        return "active tokens per scored token"
    unit = "SAE activation" if by == "activation" else influence_unit(objective)
    return f"{unit} per scored token" if per_token else unit


def effect_in_unit(objective: str, value: Any, drop: Any) -> Array:
    """Return exact effects m - m(without) in the unit of influences, given what a document stores of them.

    That is the drop itself. Of `continuation-prob` value and drop are stored as logarithms: there it is p - p(without),
    computed so that neither a long answer nor a strong latent overflows.

    >>> effect_in_unit("next-token", -2.0, 0.5).item()
    0.5
    >>> effect_in_unit("continuation-prob", np.log(0.4), np.log(0.4) - np.log(0.3)).round(12).item()
    0.1
    """
    drop = np.asarray(drop, np.float64)
    if objective != "continuation-prob":
        return drop
    larger = np.maximum(value, value - drop)
    return np.sign(drop) * np.exp(larger) * -np.expm1(-np.abs(drop))
