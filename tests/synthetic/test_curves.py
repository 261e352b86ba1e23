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


def test_a_curve_that_is_not_finite_has_no_blow_up_and_spoils_no_mean() -> None:
    overflown = curve(np.where(N_S > 60, np.inf, logistic(20.5)))
    for bad in (overflown, curve(N_S * np.nan), curve(0.0 * N_S)):
        assert np.isnan(blow_up(bad))
        assert np.isnan(flatness(bad))
        both = summary_table([bad, curve(logistic(40.5))]).to_pylist()[0]
        assert (both["paths"], both["blow_up"], both["median_blow_up"]) == (2, 20.25, 20.25)
        alone = summary_table([bad]).to_pylist()[0]
        assert np.isnan([alone["blow_up"], alone["blow_up_error"], alone["median_blow_up"]]).all()
        svg = to_svg([bad, curve(logistic(40.5), target="bag")], "distance")
        assert "nan" not in svg
        assert "nan" not in to_svg([bad], "distance")


def test_paths_that_are_longer_than_the_sweep_are_counted() -> None:
    curves = [curve(logistic(20.5), length=length) for length in (49.0, 50.0, 50.1)]
    assert [each.is_cut for each in curves] == [False, False, True]
    assert summary_table(curves).to_pylist()[0]["cut"] == 1
    lengths = curve_table(curves).column("path_length").to_pylist()
    assert lengths == [49.0] * 101 + [50.0] * 101 + [50.1] * 101


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
