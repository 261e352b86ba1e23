"""The straight line on a tiny model: what a user would state of a finished store."""

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradsae_fast import open_scores, rank_latents, repair, verify
from gradsae_fast.assemble import SegmentBuilder
from gradsae_fast.certify import certify
from gradsae_fast.config import ExtractConfig
from gradsae_fast.corpus.segments import read_segments
from gradsae_fast.errors import ConfigError, GateError, IdentityError, StoreError
from gradsae_fast.estimate import peak_memory
from gradsae_fast.extract import extract
from gradsae_fast.prepare import prepare, with_sink_limits
from gradsae_fast.probe import measure_medians
from gradsae_fast.records import SegmentScores
from gradsae_fast.sae.formats import saelens
from gradsae_fast.score import score_batch
from gradsae_fast.store import ScoreWriter
from gradsae_fast.store.records.commits import CommitRecord

Configure = Callable[..., ExtractConfig]
WIDTH = 24  # of the tiny model
SENTENCES = [
    "The union is strong.",
    "We must build roads and schools.",
    "Peace abroad and work at home.",
    "Taxes fall.",
]


def test_every_token_of_the_corpus_is_scored_once(configure: Configure) -> None:
    config = configure()
    report = extract(config)
    store = open_scores(config.store.path)
    assert store.is_complete
    assert report.num_tokens == store.num_tokens
    for segment in store.segments:
        tokens, documents = segment.tokens(), segment.documents()
        for slot, length in enumerate(documents.num_tokens):
            assert tokens.position[tokens.document == slot].tolist() == list(range(length))
    assert rank_latents(store, where="party=R").num_rows == 20
    assert np.isfinite(list(report.fvu.values())).all()


def test_peak_memory_does_not_grow_with_tokens_times_latents(
    forkserver: Any, configure: Configure, tmp_path: Path
) -> None:
    num_latents = 65_536
    generator = torch.Generator().manual_seed(0)
    directions_CD = torch.nn.functional.normalize(torch.randn(num_latents, WIDTH, generator=generator))
    weights = {
        "W_enc": directions_CD.T.contiguous(),
        "W_dec": directions_CD,
        "b_enc": torch.zeros(num_latents),
        "b_dec": torch.zeros(WIDTH),
    }
    metadata = {"hf_hook_name": "model.layers.1", "prepend_bos": True}
    sae = saelens.save(tmp_path / "wide", architecture="topk", weights=weights, config={"k": 8, "metadata": metadata})
    sentence = "We must build roads and schools, for the children of this land. "
    peaks = []
    for num_documents in (4, 160):
        corpus = tmp_path / f"{num_documents}.jsonl"
        corpus.write_text((json.dumps({"text": sentence * 3}) + "\n") * num_documents)
        config = configure(
            f"wide-{num_documents}",
            sae={"path": str(sae)},
            corpus={"path": str(corpus)},
            run={"tokens_per_batch": 8192},
        )
        with ProcessPoolExecutor(1, mp_context=forkserver) as pool:
            num_tokens = pool.submit(extract, config).result().num_tokens
            peaks.append(pool.submit(peak_memory).result())
    dense = num_tokens * num_latents * 4
    assert num_tokens > 8000
    assert peaks[1] - peaks[0] < dense / 10


def test_work_side_by_side_gives_the_bytes_of_work_in_turns(configure: Configure) -> None:
    side_by_side, in_turns = configure("side-by-side"), configure("in-turns")
    extract(side_by_side)
    prepared = prepare(in_turns)
    prepared = with_sink_limits(prepared, measure_medians(prepared))
    writer = ScoreWriter.create_or_resume(
        in_turns.store.path, run={}, identity={}, num_segments=len(prepared.plan.segments)
    )
    with writer:
        for segment, documents in read_segments(prepared.corpus, prepared.plan, prepared.lm.tokenizer, prepared.rules):
            builder = SegmentBuilder(
                segment.index,
                documents,
                num_latents={one.site.path: one.sae.num_latents for one in prepared.sited},
                method=prepared.method,
                quarantine=False,
            )
            windows = [window for slot, document in enumerate(documents) for window in prepared.cut(document, slot)]
            for batch in prepared.batches(windows):
                builder.add(
                    batch, score_batch(prepared.lm, prepared.sited, prepared.method, prepared.objectives, batch)
                )
            writer.write(builder.finish())
    ours, theirs = open_scores(side_by_side.store.path), open_scores(in_turns.store.path)
    assert [segment.digest for segment in ours.segments] == [segment.digest for segment in theirs.segments]
    assert len(ours.segments) > 3


def test_a_profiled_run_says_where_its_time_went(configure: Configure) -> None:
    report = extract(configure(run={"trace": True}))
    assert report.profile is not None
    stages = {(stage.name, stage.thread) for stage in report.profile.breakdown()}
    on_main = {
        "forward",
        "head",
        "backward",
        "encode",
        "decode",
        "project",
        "measure",
        "wait for tokens",
        "wait for store",
    }
    assert {name for name, thread in stages if thread == "main"} == on_main
    assert ("tokenise", "tokens") in stages
    assert {"assemble", "store", "write", "wait for compress"} <= {name for name, thread in stages if thread == "store"}
    assert {("index", "index"), ("compress", "compress")} <= stages
    seconds = sum(stage.seconds for stage in report.profile.breakdown() if stage.thread == "main")
    assert 0.5 * report.profile.seconds < seconds <= report.profile.seconds


def test_the_store_does_not_hold_up_the_model(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    write = ScoreWriter.write

    def slow_write(writer: ScoreWriter, segment: SegmentScores) -> CommitRecord:
        time.sleep(0.02)
        return write(writer, segment)

    monkeypatch.setattr(ScoreWriter, "write", slow_write)
    report = extract(configure(run={"trace": True}))
    assert report.trace is not None
    events = json.loads(report.trace.read_text())["traceEvents"]
    spans = {
        name: [(event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == name]
        for name in ("store", "forward")
    }
    beside = [
        any(forward_began < ended and began < forward_ended for forward_began, forward_ended in spans["forward"])
        for began, ended in spans["store"]
    ]
    assert all(beside[:-1]), "while a segment is stored, the next one is scored"


def test_a_store_that_fails_stops_the_run_within_a_batch(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    def failing_write(_writer: ScoreWriter, segment: SegmentScores) -> CommitRecord:
        written.append(segment.index)
        raise StoreError("the disk is full")

    monkeypatch.setattr(ScoreWriter, "write", failing_write)
    with pytest.raises(StoreError, match="the disk is full"):
        extract(configure())
    assert written == [0]


def test_documents_may_come_from_any_iterable(configure: Configure) -> None:
    texts = [*SENTENCES, {"text": SENTENCES[0], "party": "R"}]
    config = configure()
    extract(config, documents=iter(texts))
    store = open_scores(config.store.path)
    assert store.num_documents == len(texts)
    assert rank_latents(store, where="party=R", k=1).num_rows == 1


def test_a_function_of_another_body_is_another_run(configure: Configure) -> None:
    config = configure(score={"objectives": ["mine"]})
    extract(config, objectives={"mine": lambda logits_BTV, _ids, mask_BT: logits_BTV.amax(-1)[mask_BT].sum()})
    with pytest.raises(IdentityError, match="functions"):
        extract(config, objectives={"mine": lambda logits_BTV, _ids, mask_BT: -logits_BTV.amax(-1)[mask_BT].sum()})


def test_a_function_that_no_objective_names_is_refused(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="the function 'mine' would have no effect"):
        extract(configure(), objectives={"mine": lambda logits_BTV, _ids, _mask: logits_BTV.sum()})


def test_a_failed_gate_leaves_no_store_and_the_corrected_command_runs(configure: Configure, tmp_path: Path) -> None:
    config = configure(run={"force": False})
    with pytest.raises(GateError, match="nothing was scored"):
        extract(config)
    assert not Path(config.store.path).exists()
    extract(configure(score={"preset": "attribution-patching"}))
    assert open_scores(config.store.path).is_complete


def test_a_run_killed_before_its_first_commit_starts_again(configure: Configure) -> None:
    config = configure()
    extract(config)
    store = Path(config.store.path)
    for folder in ("commits", "segments", "facts", "dictionary"):
        shutil.rmtree(store / folder)
    extract(config)
    assert open_scores(store).is_complete


def test_a_repaired_dictionary_is_written_again(configure: Configure) -> None:
    config = configure()
    extract(config)
    store = Path(config.store.path)
    shard = next((store / "dictionary").rglob("c.0"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert repair(store) == []
    extract(config)
    assert verify(store) == []
    assert open_scores(store).token_strings() is not None


def test_a_corpus_with_patch_texts_is_scored_against_them(configure: Configure, tmp_path: Path) -> None:
    corpus = tmp_path / "pairs.jsonl"
    split = [text.split(" ") for text in SENTENCES]
    rows = [{"text": " ".join(words), "other": " ".join([words[0], *words[:0:-1]])} for words in split]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = configure(score={"preset": "attribution-patching"}, corpus={"path": str(corpus), "patch_column": "other"})
    extract(config)
    store = open_scores(config.store.path)
    assert store.identity["method"]["patch"] is True
    scores = next(iter(store.segments)).site(store.sites[0]).by_token()
    assert (scores.activation < 0).any()
    assert (scores.activation > 0).any()
    with pytest.raises(ConfigError, match="against a patch text are not removals"):
        certify(config.store.path)


def test_sums_of_the_paper_preset_count_every_token(configure: Configure, tmp_path: Path) -> None:
    corpus = tmp_path / "questions.jsonl"
    rows = [{"q": sentence, "a": " yes"} for sentence in SENTENCES]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tables = {"corpus": {"path": str(corpus), "prompt_column": "q", "answer_column": "a"}}
    config = configure(score={"preset": "paper"}, **tables)
    extract(config)
    store = open_scores(config.store.path)
    table = rank_latents(store, k=None).to_pydict()
    expected = np.zeros(store.num_latents(store.sites[0]))
    num_tokens = 0
    for segment in store.segments:
        scores, tokens = segment.site(store.sites[0]).by_token(), segment.tokens()
        p_M = np.exp(segment.objective_values()["continuation-prob"])
        row_Z = np.repeat(np.arange(len(tokens.token_id)), np.diff(scores.indptr))
        influence_Z = scores.activation * scores.projections["continuation-prob"] * p_M[tokens.document[row_Z]]
        np.add.at(expected, scores.indices, influence_Z)
        num_tokens += len(tokens.token_id)
    np.testing.assert_allclose(table["influence"], expected[table["latent"]], rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(table["mean_score"], expected[table["latent"]] / num_tokens, rtol=1e-4, atol=1e-12)
