"""The effects of dense latents are those of running the model without them, survive a kill, and change rankings."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from typer.testing import CliRunner

from gradsae_fast import contrast, open_scores, rank_documents, rank_latents, render, repair, verify
from gradsae_fast.certify.reopen import reopen
from gradsae_fast.cli_rank import rank
from gradsae_fast.config import ExtractConfig, config_from_tables
from gradsae_fast.corpus.segments import read_segments
from gradsae_fast.errors import BusyError, ConfigError, QueryError, ScoreError, StoreError
from gradsae_fast.exact import dense_latents, exact_dense
from gradsae_fast.extract import extract
from gradsae_fast.model.patching import output_hook
from gradsae_fast.positions import position_masks
from gradsae_fast.prepare import Prepared
from gradsae_fast.ranking import query_of
from gradsae_fast.records import Batch, Window
from gradsae_fast.reference import objective_value
from gradsae_fast.sae.canonical import normalise_input
from gradsae_fast.sae.reference import decode_dense, encode_dense
from gradsae_fast.score import SitedSae
from gradsae_fast.sparse_code import reconstruct
from gradsae_fast.store import ScoreStore
from gradsae_fast.store.places.durable import document_bytes, read_document
from gradsae_fast.store.places.lock import locked
from gradsae_fast.store.sidecars import exact as sidecars

Configure = Callable[..., ExtractConfig]
SHARE = 0.62


@pytest.fixture(scope="module")
def measured_once(
    tiny_model_folder: Path, tiny_sae_folder: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The original of `measured`: the tiny corpus in four segments."""
    path = tmp_path_factory.mktemp("measured") / "scores"
    tables: dict[str, Any] = {
        "model": {"path": str(tiny_model_folder)},
        "sae": {"path": str(tiny_sae_folder)},
        "corpus": {"path": str(tiny_corpus), "context_length": 64, "overlap": 16},
        "store": {"path": str(path)},
        "run": {"tokens_per_batch": 256, "threads": 1, "force": True},
    }
    extract(config_from_tables(tables))
    measure(path)
    return path


@pytest.fixture
def measured(measured_once: Path, tmp_path: Path) -> Path:
    """A store with the exact effects of its dense latents."""
    return Path(shutil.copytree(measured_once, tmp_path / "copy"))


def measure(path: Path, share: float = SHARE, **options: Any) -> Any:
    prepared, _ = reopen(open_scores(path))
    return exact_dense(prepared, share=share, **options)


def windows_by_key(prepared: Prepared) -> dict[str, list[Window]]:
    runs = read_segments(prepared.corpus, prepared.plan, prepared.lm.tokenizer, prepared.rules)
    return {document.document.key: prepared.cut(document, 0) for _, run in runs for document in run}


def value_without(prepared: Prepared, one: SitedSae, window: Window, latent: int | None, objective: int = 0) -> float:
    """m of one window by a plain hook and a dense code; the latent is 0 wherever the window scores a counted token."""
    alone = Batch(windows=(window,), token_ids_BT=window.token_ids[None].astype(np.int64))

    def change(hidden_1TD: torch.Tensor) -> torch.Tensor:
        hidden_TD = hidden_1TD[0]
        unmasked_T = (position_masks(alone) == 0) & (hidden_TD.norm(dim=1) <= one.sink_norm).numpy()
        latents_TC = encode_dense(one.sae, hidden_TD)
        _, stats = normalise_input(one.sae, hidden_TD)
        error_TD = hidden_TD - decode_dense(one.sae, latents_TC, stats)
        counted_T = unmasked_T & (np.arange(len(unmasked_T)) >= window.num_context)
        if latent is not None:
            latents_TC[torch.from_numpy(counted_T), latent] = 0.0
        spliced_T1 = torch.from_numpy(unmasked_T & (prepared.method.splice != "none"))[:, None]
        return (decode_dense(one.sae, latents_TC, stats) + torch.where(spliced_T1, 0.0, error_TD))[None]

    lm = prepared.lm
    with torch.no_grad(), output_hook(lm.model.get_submodule(one.site.path), change):
        logits_TV = lm.model(input_ids=torch.from_numpy(alone.token_ids_BT), use_cache=False).logits[0]
    return objective_value(prepared.objectives[objective], logits_TV, window).item()


def effects_by_key(store: ScoreStore, site: str, objective: str) -> dict[tuple[str, int], float]:
    exact = store.exact_dense()
    assert exact is not None
    return {
        (key, int(latent)): float(drop)
        for segment in store.segments
        for key, drop_K in zip(segment.document_keys(), exact.drops(segment.index, site, objective), strict=True)
        for latent, drop in zip(exact.latents[site], drop_K, strict=True)
    }


def check_by_hand(path: Path) -> int:
    """Compare every effect of a store with a run of the model without the latent; how many did fire."""
    store = open_scores(path)
    prepared, _ = reopen(store)
    windows, compared = windows_by_key(prepared), 0
    for one in prepared.sited:
        site = one.site.path
        for index, objective in enumerate(store.objectives):
            fires = {
                (key, latent)
                for key in windows
                if windows[key]
                for latent in rank_latents(store, document=key, k=None, site=site, objective=objective)[
                    "latent"
                ].to_pylist()
            }
            values: dict[tuple[str, None], float] = {}
            for (key, latent), effect in effects_by_key(store, site, objective).items():
                if (key, None) not in values:
                    values[key, None] = sum(value_without(prepared, one, w, None, index) for w in windows[key])
                without = sum(value_without(prepared, one, w, latent, index) for w in windows[key])
                assert effect == pytest.approx(values[key, None] - without, rel=5e-3, abs=3e-4)
                assert effect == 0 or (key, latent) in fires
                compared += (key, latent) in fires
    return compared


@pytest.mark.parametrize("preset", ["gradsae", "attribution-patching"])
def test_an_effect_is_that_of_running_the_model_without_the_latent(preset: str, configure: Configure) -> None:
    config = configure(score={"preset": preset}, corpus={"max_documents": 7})
    extract(config)
    report = measure(Path(config.store.path), tokens_per_pass=300)
    assert report.value_deviation < 1e-5
    assert check_by_hand(Path(config.store.path)) == report.num_removals > 20


def test_where_the_network_is_linear_above_the_site_exact_effects_are_the_scores(
    configure: Configure, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers above the site add nothing, norms only scale, and the objective is one logit."""

    def one_logit(logits_BTV: torch.Tensor, _ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        return logits_BTV[..., 5][mask_BT].sum()

    model = LlamaForCausalLM.from_pretrained(tiny_model_folder)
    for layer in model.model.layers[2:]:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "linear"))
    model.save_pretrained(folder)
    monkeypatch.setattr(LlamaRMSNorm, "forward", lambda norm, hidden: norm.weight * hidden)
    config = configure(
        model={"path": str(folder)},
        score={"objectives": ["one_logit"], "sink_norm_ratio": 0},
        store={"precision_bits": 23},
    )
    extract(config, objectives={"one_logit": one_logit})
    prepared, _ = reopen(open_scores(config.store.path), functions={"one_logit": one_logit})
    exact_dense(prepared, share=0.3)
    store = open_scores(config.store.path)
    plain = {row["latent"]: row["score"] for row in rank_latents(store, k=None).to_pylist()}
    hybrid = [row for row in rank_latents(store, k=None, exact_dense=True).to_pylist() if row["exact"]]
    largest = max(abs(row["score"]) for row in hybrid)
    assert len(hybrid) > 3
    for row in hybrid:
        assert row["score"] == pytest.approx(plain[row["latent"]], rel=1e-3, abs=1e-4 * largest)


def test_dense_latents_are_those_above_the_share_of_the_whole_corpus(measured: Path) -> None:
    store = open_scores(measured)
    site = store.sites[0]
    exact = store.exact_dense()
    assert exact is not None
    everywhere = rank_latents(store, by="frequency", k=None).to_pylist()
    expected = sorted(row["latent"] for row in everywhere if row["frequency"] > SHARE)
    assert exact.share == SHARE
    assert exact.latents[site].tolist() == expected == np.flatnonzero(dense_latents(store, site, SHARE)).tolist()
    assert 2 < len(expected) < len(everywhere)


def test_a_pass_that_was_killed_goes_on_and_gives_the_same_bytes(measured: Path, tmp_path: Path) -> None:
    def stop_after_first(text: str) -> None:
        if " of " in text and text.startswith("exact: 1 "):
            raise KeyboardInterrupt

    def digests(path: Path) -> dict[str, str]:
        return {p.name: json.loads(p.read_text())["digest"] for p in (path / "exact" / "commits").iterdir()}

    expected = digests(measured)
    assert len(expected) == open_scores(measured).num_segments
    fresh = Path(shutil.copytree(measured, tmp_path / "fresh"))
    shutil.rmtree(fresh / "exact")
    with pytest.raises(KeyboardInterrupt):
        measure(fresh, tell=stop_after_first)
    (fresh / "exact" / "segments" / "000001-left-by-a-kill").mkdir()
    begun = open_scores(fresh).exact_dense()
    assert begun is not None
    assert len(begun.missing) == len(expected) - 1
    report = measure(fresh)
    assert (report.num_segments, report.num_skipped) == (len(expected) - 1, 1)
    assert digests(fresh) == expected
    assert len(list((fresh / "exact" / "segments").iterdir())) == len(expected)
    assert measure(fresh).num_segments == 0
    assert verify(fresh) == []


def test_another_share_is_measured_anew(measured: Path) -> None:
    before = open_scores(measured).exact_dense()
    report = measure(measured, share=0.7)
    after = open_scores(measured).exact_dense()
    assert before is not None
    assert after is not None
    assert report.num_skipped == 0
    assert after.share == 0.7
    for site, latents_K in after.latents.items():
        assert set(latents_K.tolist()) < set(before.latents[site].tolist())


def test_damaged_effects_are_found_and_only_they_are_measured_again(measured: Path) -> None:
    shard = next((measured / "exact" / "segments").rglob("next-token/c.0"))
    shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])
    (fault,) = verify(measured)
    assert "exact/segments/" in str(fault)
    assert "crc32c" in fault.what
    told: list[str] = []
    assert repair(measured, tell=told.append) == []
    assert told == [
        f"dropped the exact effects of segments {fault.segment}; extract with --exact-dense SHARE to measure them again"
    ]
    assert verify(measured) == []
    with pytest.raises(QueryError, match=r"none for 1 of its .* segments"):
        rank_latents(open_scores(measured), exact_dense=True)
    assert measure(measured).num_segments == 1


def test_a_segment_that_is_dropped_takes_its_effects_with_it(measured: Path) -> None:
    shard = next((measured / "segments").rglob("activation/c.0"))
    number = shard.relative_to(measured / "segments").parts[0][:6]
    shard.write_bytes(shard.read_bytes()[:-5])
    told: list[str] = []
    assert repair(measured, tell=told.append) == [int(number)]
    assert len(told) == 1
    assert f"exact effects of segments {int(number)};" in told[0]
    assert not (measured / "exact" / "commits" / f"{number}.json").exists()
    with pytest.raises(StoreError, match="expected all"):
        measure(measured)


def test_effects_of_other_scores_do_not_count(measured: Path) -> None:
    """As if a segment had been written again with other numbers: the record names another digest."""
    commit = min((measured / "exact" / "commits").iterdir())
    other = max((measured / "exact" / "commits").iterdir())
    commit.unlink()
    shutil.copy(other, commit)
    assert any("record of segment" in fault.what for fault in verify(measured))
    exact = open_scores(measured).exact_dense()
    assert exact is not None
    assert int(commit.stem) in exact.missing


def test_effects_of_other_scores_alone_are_none(measured: Path) -> None:
    for record in (measured / "exact" / "commits").iterdir():
        document = read_document(record)
        document.pop("checksum", None)
        record.write_bytes(document_bytes({**document, "of": "0" * 64}))
    store = open_scores(measured)
    assert store.exact_dense() is None
    with pytest.raises(QueryError, match=r"has none; run .* --exact-dense 0\.2"):
        rank_latents(store, exact_dense=True)


def test_a_segment_in_which_dense_latents_are_silent_has_effects_of_0(configure: Configure, tmp_path: Path) -> None:
    corpus = tmp_path / "quiet.jsonl"
    texts = ("The state of the union is strong.", "Taxes fall, farms grow.", "", "", "", "", "a")
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    config = configure(corpus={"path": str(corpus)})
    extract(config)
    measure(Path(config.store.path), share=0.2)
    store = open_scores(config.store.path)
    exact = store.exact_dense()
    assert exact is not None
    drops = [exact.drops(segment.index, store.sites[0], store.objectives[0]) for segment in store.segments]
    silent = [not drop_MK.any() for drop_MK in drops]
    assert any(silent)
    assert not all(silent)
    assert check_by_hand(Path(config.store.path)) > 3


def delete_effects(path: Path, index: int = 0) -> None:
    """What a pass with another share does first."""
    record = path / "exact" / "commits" / f"{index:06d}.json"
    folder = read_document(record)["writer"]["folder"]
    record.unlink()
    shutil.rmtree(path / "exact" / folder)


def deleting(path: Path, function: Callable[..., Any], calls: int = 1) -> Callable[..., Any]:
    """The function, after whose given call the effects of the first segment are deleted."""
    counter = iter(range(1, 1_000_000))

    def call(*arguments: Any) -> Any:
        found = function(*arguments)
        if next(counter) == calls:
            delete_effects(path)
        return found

    return call


@pytest.mark.parametrize("name", ["find_records", "read_record"])
def test_effects_that_vanish_while_they_are_read_are_not_damage(
    name: str, measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its record is read, and between its record and its objects."""
    store = open_scores(measured)
    monkeypatch.setattr(f"gradsae_fast.store.sidecars.exact.{name}", deleting(measured, getattr(sidecars, name)))
    exact = store.exact_dense()
    assert exact is not None
    assert exact.missing == (0,)


def test_effects_that_vanish_after_they_were_found_are_said_to_be_measured_anew(measured: Path) -> None:
    store = open_scores(measured)
    exact = store.exact_dense()
    assert exact is not None
    delete_effects(measured)
    with pytest.raises(BusyError, match="segment 0 to measure them anew"):
        exact.drops(0, store.sites[0], store.objectives[0])
    shutil.rmtree(next((measured / "exact" / "segments").glob("000001-*")))
    with pytest.raises(StoreError, match="gradsae repair"):
        exact.drops(1, store.sites[0], store.objectives[0])


@pytest.mark.parametrize("name", ["find_records", "read_record"])
def test_verify_finds_no_fault_in_effects_that_vanish_meanwhile(
    name: str, measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the score segments there are as many calls before."""
    before = {"find_records": 1, "read_record": 1 + open_scores(measured).num_segments}[name]
    module = sys.modules["gradsae_fast.store.verify"]  # its name in the package is that of the function
    monkeypatch.setattr(module, name, deleting(measured, getattr(module, name), calls=before + 1))
    assert verify(measured) == []
    assert not (measured / "exact" / "commits" / "000000.json").exists()


def test_info_tells_of_exact_effects_and_of_damage_without_failing(
    measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def info() -> dict[str, Any]:
        render.show_info(open_scores(measured), as_json=True)
        facts: dict[str, Any] = json.loads(capsys.readouterr().out)
        return facts

    whole, site = info(), open_scores(measured).sites[0]
    size = sum(path.stat().st_size for path in (measured / "exact" / "segments").rglob("*") if path.is_file())
    num_dense = int(dense_latents(open_scores(measured), site, SHARE).sum())
    assert whole["exact_dense"] == {"share": SHARE, "latents": {site: num_dense}, "missing": [], "bytes": size}
    delete_effects(measured)
    assert info()["exact_dense"]["missing"] == [0]
    shard = next((measured / "exact" / "segments").rglob("next-token/c.0"))
    shard.write_bytes(shard.read_bytes()[:-3])
    render.show_info(open_scores(measured))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("exact")]
    assert "damaged" in line
    assert "gradsae repair" in line
    assert list(info()["exact_dense"]) == ["unreadable"]
    shutil.rmtree(measured / "exact")
    bare = info()
    assert bare["exact_dense"] is None
    assert whole["bytes"] == bare["bytes"] + size


def test_a_ranking_takes_exact_effects_for_dense_latents_and_sums_for_the_others(measured: Path) -> None:
    store = open_scores(measured)
    site, objective = store.sites[0], store.objectives[0]
    effects = effects_by_key(store, site, objective)
    plain = {row["latent"]: row for row in rank_latents(store, k=None).to_pylist()}
    table = rank_latents(store, k=None, exact_dense=True)
    hybrid = table.to_pylist()
    assert [row["score"] for row in hybrid] == sorted((row["score"] for row in hybrid), reverse=True)
    assert query_of(table)["exact_dense"] == SHARE
    dense = {latent for _, latent in effects}
    assert {row["latent"] for row in hybrid if row["exact"]} == dense
    for row in hybrid:
        total = sum(effect for (_, latent), effect in effects.items() if latent == row["latent"])
        expected = total if row["exact"] else plain[row["latent"]]["score"]
        assert row["score"] == row["influence"] == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert row["absolute"] == plain[row["latent"]]["absolute"]
    assert "exact" not in rank_latents(store).column_names


def test_the_documents_of_a_dense_latent_are_ranked_by_its_exact_effects(measured: Path) -> None:
    store = open_scores(measured)
    effects = effects_by_key(store, store.sites[0], store.objectives[0])
    dense = {latent for _, latent in effects}
    latent = min(dense)
    rows = rank_documents(store, latent=latent, k=None, exact_dense=True).to_pylist()
    assert len(rows) > 3
    for row in rows:
        assert row["exact"]
        assert row["score"] == pytest.approx(effects[row["key"], latent], rel=1e-6)
        # A document alone gives the same, though few tokens are summed from their scores and many from stored sums.
        alone = rank_latents(store, document=row["key"], k=None, exact_dense=True).to_pylist()
        assert next(one["score"] for one in alone if one["latent"] == latent) == row["score"]
    sparse = next(number for number in range(store.num_latents(store.sites[0])) if number not in dense)
    plain = rank_documents(store, latent=sparse, k=None)
    exact = rank_documents(store, latent=sparse, k=None, exact_dense=True)
    assert exact["score"].to_pylist() == plain["score"].to_pylist()
    assert not any(exact["exact"].to_pylist())


def test_groups_are_contrasted_with_exact_effects(measured: Path) -> None:
    store = open_scores(measured)
    effects = effects_by_key(store, store.sites[0], store.objectives[0])
    lengths = {
        key: int(count)
        for segment in store.segments
        for key, count in zip(segment.document_keys(), segment.counted_tokens(), strict=True)
    }
    rows = contrast(store, a="party=R", b="party=D", k=None, exact_dense=True).to_pylist()
    latent = min(latent for _, latent in effects)
    (row,) = [row for row in rows if row["latent"] == latent]
    keys = [f"doc-{index}" for index in range(0, 12, 2) if lengths[f"doc-{index}"]]
    assert row["exact"]
    assert row["mean_a"] == pytest.approx(np.mean([effects[key, latent] / lengths[key] for key in keys]), rel=1e-6)


def test_a_probability_loses_what_it_really_loses(configure: Configure, tmp_path: Path) -> None:
    corpus = tmp_path / "qa.jsonl"
    rows = [{"q": f"The state of the union is {word}", "a": " strong."} for word in ("very", "now", "not")]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    columns = {"path": str(corpus), "prompt_column": "q", "answer_column": "a"}
    config = configure(corpus=columns, score={"objectives": ["continuation-prob"]})
    extract(config)
    measure(Path(config.store.path))
    store = open_scores(config.store.path)
    prepared, _ = reopen(store)
    compared = 0
    for key, (window,) in windows_by_key(prepared).items():
        for row in rank_latents(store, document=key, k=None, exact_dense=True).to_pylist():
            if row["exact"]:
                log_p, log_p_without = (
                    value_without(prepared, prepared.sited[0], window, latent) for latent in (None, row["latent"])
                )
                p, p_without = np.exp(log_p), np.exp(log_p_without)
                assert row["score"] == pytest.approx(p - p_without, rel=2e-3, abs=1e-3 * p)
                compared += 1
    assert compared > 3


def test_each_site_has_its_own_dense_latents_and_each_objective_its_effects(
    configure: Configure, write_sae: Any, tmp_path: Path
) -> None:
    corpus = tmp_path / "short.jsonl"
    texts = ("The union is strong.", "Taxes fall, farms grow.", "Peace abroad and work at home.")
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    saes = [{"path": str(write_sae(name=f"sae{layer}", layer=layer, seed=layer))} for layer in (0, 2)]
    config = configure(sae=saes, score={"objectives": ["next-token", "entropy"]}, corpus={"path": str(corpus)})
    extract(config)
    report = measure(Path(config.store.path))
    exact = open_scores(config.store.path).exact_dense()
    assert exact is not None
    assert list(exact.latents) == list(report.num_dense) == ["model.layers.0", "model.layers.2"]
    assert exact.latents["model.layers.0"].tolist() != exact.latents["model.layers.2"].tolist()
    assert check_by_hand(Path(config.store.path)) == report.num_removals


def test_two_objectives_cost_the_passes_of_one(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, int] = {}
    for name, objectives in (("one", ["next-token"]), ("two", ["next-token", "linear"])):
        own = {"linear": lambda logits_BTV, *_: logits_BTV[..., 5].sum()} if "linear" in objectives else None
        config = configure(name=name, score={"objectives": objectives}, corpus={"max_documents": 3})
        extract(config, objectives=own)
        prepared, _ = reopen(open_scores(config.store.path), functions=own)
        passes: list[object] = []
        handle = prepared.lm.body.register_forward_pre_hook(lambda *_, passes=passes: passes.append(None))
        exact_dense(prepared, share=SHARE)
        handle.remove()
        calls[name] = len(passes)
    assert calls["one"] == calls["two"] > 0


def test_a_store_without_dense_latents_says_so_and_ranks_as_before(measured: Path) -> None:
    assert measure(measured, share=0.999).num_removals == 0
    store = open_scores(measured)
    hybrid, plain = rank_latents(store, exact_dense=True), rank_latents(store)
    assert not any(hybrid["exact"].to_pylist())
    assert hybrid.drop_columns("exact").to_pylist() == plain.to_pylist()


def test_questions_that_exact_effects_cannot_answer_are_refused(measured: Path) -> None:
    store = open_scores(measured)
    for by in ("positive", "absolute", "activation", "frequency"):
        with pytest.raises(QueryError, match="influences only"):
            rank_latents(store, by=by, exact_dense=True)
    with pytest.raises(QueryError, match="include_special"):
        rank_latents(store, include_special=True, exact_dense=True)
    shutil.rmtree(measured / "exact")
    with pytest.raises(QueryError, match=r"has none; run .* --exact-dense 0\.2"):
        rank_documents(open_scores(measured), latent=0, exact_dense=True)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float, measured: Path) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        measure(measured, share=share)


def test_an_incomplete_store_is_not_measured(measured: Path) -> None:
    max((measured / "commits").iterdir()).unlink()
    with pytest.raises(StoreError, match="expected all"):
        measure(measured)


def test_while_another_process_writes_nothing_is_measured(measured: Path) -> None:
    with locked(measured), pytest.raises(BusyError):
        measure(measured)


def test_a_run_that_gives_other_values_is_refused(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(measured / "exact")
    monkeypatch.setattr("gradsae_fast.ablate.reconstruct", lambda sae, code: reconstruct(sae, code) + 0.05)
    with pytest.raises(ScoreError, match=r"in this run, but .* in the store"):
        measure(measured)
    assert open_scores(measured).exact_dense() is None


def test_the_verbs_take_the_flag_and_info_tells_that_it_may_be_used(
    measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["latents", str(measured), "--exact-dense", "--format", "json"]
    rows = json.loads(CliRunner().invoke(rank, words).stdout)["rows"]
    assert rows == rank_latents(open_scores(measured), exact_dense=True).to_pylist()
    words = ["documents", str(measured), "--latent", "1", "--exact-dense", "--format", "csv"]
    assert "exact" in CliRunner().invoke(rank, words).stdout.splitlines()[0]
    render.show_info(open_scores(measured))
    assert "rank --exact-dense" in capsys.readouterr().out
