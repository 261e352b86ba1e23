"""What is read off a curve, and the tables and the plot of many."""

import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest

from gradsae_fast.records import Array
from gradsae_fast.synthetic.curves import Curve, blow_up, curve_table, flatness, summary_table
from gradsae_fast.synthetic.plot import to_svg

N_S = np.arange(101)


def curve(distance_S: Array, **facts: Any) -> Curve:
    given: dict[str, Any] = {
        "start": "real",
        "target": "real",
        "document": "d",
        "position": 3,
        "length": 50.0,
        "start_norm": 1.0,
        "target_norm": 2.0,
        "step": 0.5,
        "distance_S": distance_S,
        "divergence_S": distance_S / 10,
    }
    return Curve(**{**given, **facts})


def logistic(middle: float) -> Array:
    distance_S = 80 / (1 + np.exp(-(N_S - middle) / 3))
    return distance_S - distance_S[0]


def test_the_blow_up_is_where_the_curve_is_steepest() -> None:
    assert blow_up(curve(logistic(40.5))) == pytest.approx(0.5 * 40.5)
    assert blow_up(curve(logistic(40.5), step=2.0)) == pytest.approx(2 * 40.5)


def test_a_plateau_is_flat_and_a_line_is_not() -> None:
    assert flatness(curve(logistic(60.5))) < 1e-3
    assert flatness(curve(3.0 * N_S)) == pytest.approx(1)
    assert np.isnan(flatness(curve(0.0 * N_S)))


def test_the_summary_has_a_row_per_kind_with_means_and_their_errors() -> None:
    curves = [
        curve(logistic(20.5)),
        curve(logistic(40.5)),
        curve(logistic(70.5), target="bag"),
        curve(logistic(30.5), start="bag"),
    ]
    rows = summary_table(curves).to_pylist()
    assert [(row["start"], row["target"], row["paths"]) for row in rows] == [
        ("real", "real", 2),
        ("real", "bag", 1),
        ("bag", "real", 1),
    ]
    assert rows[0]["blow_up"] == pytest.approx(15.25)
    assert rows[0]["blow_up_error"] == pytest.approx(np.std([10.25, 20.25], ddof=1) / 2**0.5)
    assert rows[1]["median_blow_up"] == pytest.approx(35.25)
    assert np.isnan(rows[1]["blow_up_error"])


def test_the_table_has_every_point_of_every_curve() -> None:
    table = curve_table([curve(logistic(20.5)), curve(logistic(40.5), target="bag")])
    assert table.num_rows == 202
    last = table.slice(201, 1).to_pylist()[0]
    assert (last["path"], last["target"], last["n"], last["length"]) == (1, "bag", 100, 50.0)
    assert last["distance"] == pytest.approx(logistic(40.5)[-1])


def test_the_plot_is_well_formed_and_names_every_kind() -> None:
    curves = [curve(logistic(20.5)), curve(logistic(40.5), target="bag"), curve(logistic(9.5), start="gaussian")]
    svg = to_svg(curves, "distance at model.layers.1")
    root = ElementTree.fromstring(svg)
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for kind in ("real: 1 paths, mean blow-up 10.2", "bag: 1 paths, mean blow-up 20.2", "gaussian: 1 paths"):
        assert any(text.startswith(kind) for text in texts), kind
