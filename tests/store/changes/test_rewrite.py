"""What is read back of a segment is encoded to the bytes that it came from; so are parts of it, and several joined."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gradsae_fast.records import SegmentScores, SparseScores
from gradsae_fast.store import ScoreWriter, open_scores
from gradsae_fast.store.arrays.encoding import Encoding, segment_facts, segment_objects
from gradsae_fast.store.changes.rewrite import concatenate, leave_out, read_scores
from tests.store.dropped import without
from tests.store.synthetic import IDENTITY, make_segment

METADATA: list[Any] = [
    None,
    3,
    2.5,
    float("nan"),
    "ß → \udce9",
    {"b": 1, "a": {"2": None, "10": 1}},
    [1, [2]],
    True,
    "",
]


def written(path: Path, segments: Sequence[SegmentScores], encoding: Encoding) -> list[SegmentScores]:
    """Write segments and read them back as scores."""
    settings = {name: getattr(encoding, name) for name in ("precision_bits", "profile", "aggregates_include_special")}
    with ScoreWriter.create_or_resume(
        path, run={}, identity=IDENTITY, num_segments=len(segments), **settings
    ) as writer:
        for segment in segments:
            writer.write(segment)
    return [read_scores(segment) for segment in open_scores(path).segments]


def objects(segment: SegmentScores, encoding: Encoding) -> dict[str, bytes]:
    return dict(segment_objects(segment, encoding))


def odd_values(scores: SparseScores, rng: np.random.Generator) -> SparseScores:
    """The scores with NaN, infinities, zeros and subnormal numbers among them."""
    odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, 3.4e38], np.float32)

    def some_odd(values: Any) -> Any:
        return np.where(rng.random(len(values)) < 0.3, rng.choice(odd, len(values)), values).astype(np.float32)

    projections = {name: some_odd(values) for name, values in scores.projections.items()}
    return replace(scores, activation=some_odd(scores.activation), projections=projections)


def odd_segment(index: int, seed: int, shape: tuple[int, int], columns: Sequence[str], **kinds: Any) -> SegmentScores:
    """A segment with every kind of value that the format has."""
    num_tokens, num_documents = shape
    rng = np.random.default_rng([seed, index])
    made = make_segment(index, num_tokens=num_tokens, num_documents=num_documents, num_latents=32, seed=seed, **kinds)
    values = {
        f"{name}@{site}": rng.choice([1.5, np.nan, np.inf], num_documents) for name in ("a", "b") for site in "xy"
    }
    metadata = {name: [METADATA[int(n)] for n in rng.integers(0, len(METADATA), num_documents)] for name in columns}
    keys = [f"{index}/{slot} \udce9" for slot in range(num_documents)]
    return replace(
        made,
        documents=replace(
            made.documents, key=keys, metadata=metadata, objectives={**made.documents.objectives, **values}
        ),
        sites={site: odd_values(scores, rng) for site, scores in made.sites.items()},
    )


ENCODINGS = st.builds(
    Encoding,
    precision_bits=st.sampled_from([3, 7, 10, 23]),
    profile=st.sampled_from(["compact", "portable"]),
    aggregates_include_special=st.booleans(),
)
SHAPES = st.tuples(st.integers(0, 30), st.integers(1, 5))


@settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink what writes stores takes minutes
)
@given(
    encoding=ENCODINGS,
    shapes=st.lists(SHAPES, min_size=1, max_size=3),
    seed=st.integers(0, 1000),
    signed=st.booleans(),
    chosen=st.data(),
)
def test_rewriting_dropping_and_compacting_are_as_encoding_the_same_scores(
    tmp_path_factory: pytest.TempPathFactory,
    encoding: Encoding,
    shapes: list[tuple[int, int]],
    seed: int,
    signed: bool,
    chosen: st.DataObject,
) -> None:
    columns = [["party", "year"], ["party"], ["Title", "party"]]
    made = [
        odd_segment(i, seed, shape, columns[i], signed=signed, sites=("x", "y"), objectives=("a", "b"))
        for i, shape in enumerate(shapes)
    ]
    read = written(tmp_path_factory.mktemp("store") / "scores", made, encoding)
    for original, back in zip(made, read, strict=True):
        assert objects(back, encoding) == objects(original, encoding)
        assert segment_facts(back) == segment_facts(original)
        keys = chosen.draw(st.sets(st.sampled_from(original.documents.key)))
        assert objects(leave_out(back, keys), encoding) == objects(without(original, keys), encoding)
    assert objects(concatenate(read), encoding) == objects(concatenate(made), encoding)


def test_segments_joined_are_one_segment_of_all_their_documents() -> None:
    whole = make_segment(0, num_tokens=60, num_documents=6)
    first, last = (without(whole, set(whole.documents.key[part])) for part in (slice(3, None), slice(0, 3)))
    encoding = Encoding(precision_bits=10, profile="compact", aggregates_include_special=False)
    assert objects(concatenate([first, last]), encoding) == objects(whole, encoding)


def test_a_column_that_a_segment_lacks_is_null_in_its_documents() -> None:
    made = [make_segment(index, num_documents=2) for index in range(2)]
    tables = [
        replace(made[0].documents, metadata={"year": [1, 2], "party": ["a", None]}),
        replace(made[1].documents, metadata={"party": ["b", "c"], "title": ["x", "y"]}),
    ]
    joined = concatenate([replace(one, documents=table) for one, table in zip(made, tables, strict=True)])
    assert joined.documents.metadata == {
        "party": ["a", None, "b", "c"],
        "title": [None, None, "x", "y"],
        "year": [1, 2, None, None],
    }
    assert joined.index == 0


def test_json_is_kept_as_it_was_written(tmp_path: Path) -> None:
    """A key that is a number sorts as one when it is first written, and as text ever after."""
    made = make_segment(0, num_documents=1)
    made = replace(made, documents=replace(made.documents, metadata={"counts": [{2: "a", 10: "b"}]}))
    encoding = Encoding(precision_bits=10, profile="compact", aggregates_include_special=False)
    (back,) = written(tmp_path / "scores", [made], encoding)
    assert objects(back, encoding) == objects(made, encoding)


def test_a_segment_can_lose_all_its_documents() -> None:
    made = make_segment(3)
    bare = leave_out(made, set(made.documents.key))
    assert segment_facts(bare)["counts"] == {"tokens": 0, "documents": 0, "masked": 0, "nnz": {"model.layers.3": 0}}
    assert dict(segment_objects(bare, Encoding(precision_bits=10, profile="compact", aggregates_include_special=False)))
