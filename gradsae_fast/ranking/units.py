"""What a score measures and which way it points.

influence = activation * projection: the first-order estimate of  m - m(with this activation set to 0),  in the unit
of the objective m. Its sign means the same for every objective; its magnitude is for comparison inside one document.
"""

from gradsae_fast.method import influence_unit


def score_unit(objective: str, by: str, *, per_token: bool = False) -> str:
    """Return the unit of a table's score column.

    >>> score_unit("next-token", "absolute", per_token=True)
    'nats per scored token'
    """
    if by == "frequency":
        return "active tokens per scored token"
    unit = "SAE activation" if by == "activation" else influence_unit(objective)
    return f"{unit} per scored token" if per_token else unit
