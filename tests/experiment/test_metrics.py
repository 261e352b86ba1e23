"""Answers are compared as SQuAD compares them."""

import numpy as np
import pytest

from gradsae_fast.experiment.metrics import bootstrap_interval, exact_match, normalise_answer, token_f1


@pytest.mark.parametrize(
    ("found", "accepted", "em", "f1"),
    [
        # Expected values by the rules of the SQuAD script, worked by hand.
        ("The Denver Broncos!", ["denver  broncos"], 1, 1),
        ("Saint John’s", ["Saint Johns"], 0, 0.5),
        ("Saint John's", ["Saint Johns"], 1, 1),
        ("a cat and another cat", ["cat cat dog"], 0, 2 * 2 / (4 + 3)),
        ("Paris", ["London", "the Paris"], 1, 1),
        ("in Paris", ["Paris", "London town"], 0, 2 / 3),
        ("theatre", ["atre"], 0, 0),
        ("", ["Paris"], 0, 0),
        # An answer that normalises to nothing shares no word; the script gives F1 0 there too.
        ("the", ["a"], 1, 0),
    ],
)
def test_exact_match_and_f1_follow_the_squad_script(found: str, accepted: list[str], em: float, f1: float) -> None:
    assert exact_match(found, accepted) == em
    assert token_f1(found, accepted) == pytest.approx(f1)


def test_normalising_drops_case_punctuation_articles_and_spaces() -> None:
    assert normalise_answer("  An\tA.B-C the;  d ") == "abc d"


def test_the_interval_holds_the_mean_and_narrows_with_more_questions() -> None:
    few = bootstrap_interval(np.array([1.0, 0.0] * 10), seed=3)
    many = bootstrap_interval(np.array([1.0, 0.0] * 1000), seed=3)
    assert few.mean == many.mean == 50
    assert few.low < 50 < few.high
    assert few == bootstrap_interval(np.array([1.0, 0.0] * 10), seed=3)
    # Half the width of a normal 95 % interval of a share p over n questions is 196 · sqrt(p (1 - p) / n) points.
    assert few.high - 50 == pytest.approx(196 * np.sqrt(0.25 / 20), rel=0.15)
    assert many.high - 50 == pytest.approx(196 * np.sqrt(0.25 / 2000), rel=0.15)


def test_a_score_without_spread_has_an_interval_of_one_point() -> None:
    interval = bootstrap_interval(np.ones(7), seed=0)
    assert (interval.mean, interval.low, interval.high) == (100, 100, 100)
