"""The straight line over a corpus, its store and its rankings, on a tiny model."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import load_file, save_file

from gradsae_fast.config import ExtractConfig
from gradsae_fast.errors import ConfigError, GateError, IdentityError, QueryError, SaeError, StoreError
from gradsae_fast.extract import extract
from gradsae_fast.jacobian.block import DictionaryPair, Point, token_blocks
from gradsae_fast.jacobian.edges import block_edges
from gradsae_fast.jacobian.extract import extract_jacobian
from gradsae_fast.jacobian.path import find_path
from gradsae_fast.jacobian.ranking import rank_edge_tokens, rank_edges
from gradsae_fast.jacobian.store import JacobianWriter, open_jacobian
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.states import hidden_states
from gradsae_fast.records import Batch, TokenMask, Window
from gradsae_fast.sae.load import load_sae
from gradsae_fast.store.reader import open_scores
from gradsae_fast.store.records.facts import read_facts

Configure = Callable[..., ExtractConfig]
ConfigureJacobian = Callable[..., ExtractConfig]
LOWER, UPPER = "model.layers.2.post_attention_layernorm", "model.layers.2.mlp"


@pytest.fixture
def configure_jacobian(configure: Configure, write_sae: Callable[..., Path]) -> ConfigureJacobian:
    saes = [
        {"path": str(write_sae("topk", name="below", seed=5)), "site": LOWER},
        {"path": str(write_sae("jumprelu", name="above", seed=6)), "site": UPPER},
    ]

    def build(name: str = "jacobian", **tables: Any) -> ExtractConfig:
        run = {"tokens_per_batch": 256, "threads": 1, "force": True}
        return configure(name, **{"sae": saes, "store": {"precision_bits": 23}, "run": run, **tables})

    return build


def pairs_of(segment: Any) -> list[tuple[int, int, int, float]]:
    """(token, upper, lower, value) of a stored segment, written out one by one."""
    lower, upper = segment.read("lower/indptr"), segment.read("upper/indptr")
    below, above, values = segment.read("lower/indices"), segment.read("upper/indices"), segment.read("value")
    found, at = [], 0
    for n in range(len(lower) - 1):
        for j in range(upper[n], upper[n + 1]):
            for i in range(lower[n], lower[n + 1]):
                found.append((n, int(above[j]), int(below[i]), float(values[at])))
                at += 1
    assert at == len(values) == block_edges(lower, upper)[-1]
    return found


def test_every_token_has_the_block_that_it_has_alone(
    configure_jacobian: ConfigureJacobian, tiny_lm: LanguageModel
) -> None:
    config = configure_jacobian()
    report = extract_jacobian(config)
    store = open_jacobian(config.store.path)
    assert store.is_complete
    assert report.num_tokens == sum(segment.counts["tokens"] for segment in store.segments) > 500
    sites = [tiny_lm.site(LOWER), tiny_lm.site(UPPER)]
    pair = DictionaryPair(
        lower=load_sae(config.saes[0].path),
        upper=load_sae(config.saes[1].path),
        path=find_path(tiny_lm, *sites),
        point=Point.RECONSTRUCTION,
    )
    segment = max(store.segments, key=lambda each: each.counts["tokens"])
    ids = segment.read("tokens/token_id")[segment.read("tokens/document") == 0][:12].astype(np.int64)
    window: Any = Window(document=None, slot=0, token_ids=ids, num_context=0, first_position=0)  # type: ignore[arg-type]
    hidden = hidden_states(tiny_lm, Batch(windows=(window,), token_ids_BT=ids[None]), sites)
    lower, upper = segment.read("lower/indptr"), segment.read("upper/indptr")
    edges, values = block_edges(lower, upper), segment.read("value")
    for n in range(len(ids)):
        blocks = token_blocks(pair, hidden[LOWER][n : n + 1], hidden[UPPER][n : n + 1])
        stored = torch.from_numpy(values[edges[n] : edges[n + 1]])
        torch.testing.assert_close(stored, blocks.value_P, rtol=1e-3, atol=1e-5)
        assert segment.read("lower/indices")[lower[n] : lower[n + 1]].tolist() == blocks.lower.rows.indices.tolist()


def test_stored_edges_are_the_sums_of_the_tokens_that_count(configure_jacobian: ConfigureJacobian) -> None:
    config = configure_jacobian(store={"precision_bits": 10})
    extract_jacobian(config)
    store = open_jacobian(config.store.path)
    sums: dict[tuple[int, int], list[float]] = {}
    masked = 0
    for segment in store.segments:
        mask = segment.read("tokens/mask")
        masked += int(np.count_nonzero(mask))
        for n, above, below, value in pairs_of(segment):
            if mask[n] == 0:
                sums.setdefault((above, below), []).append(value)
    assert masked > 0
    table = rank_edges(config.store.path, k=None).to_pydict()
    ranked = list(zip(table["latent_out"], table["latent_in"], strict=True))
    assert sorted(ranked) == sorted(sums)
    for row, edge in enumerate(ranked):
        values = np.array(sums[edge])
        assert table["count"][row] == len(values)
        assert table["sum"][row] == pytest.approx(values.sum(), rel=1e-9, abs=1e-9)
        assert table["absolute"][row] == pytest.approx(np.abs(values).sum(), rel=1e-9)
        assert table["maximum"][row] == pytest.approx(np.abs(values).max(), rel=1e-7)
        assert table["mean"][row] == pytest.approx(values.mean(), rel=1e-9, abs=1e-9)
    assert table["absolute"] == sorted(table["absolute"], reverse=True)


def test_edges_do_not_depend_on_how_many_pairs_are_listed_at_a_time(
    configure_jacobian: ConfigureJacobian, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = []
    for name, run in (("many", 1 << 22), ("few", 7)):
        monkeypatch.setattr("gradsae_fast.jacobian.edges.PAIRS_PER_RUN", run)
        config = configure_jacobian(name)
        extract_jacobian(config)
        tables.append(rank_edges(config.store.path, k=None, by="count").to_pydict())
    assert tables[0]["latent_in"] == tables[1]["latent_in"]
    np.testing.assert_allclose(tables[0]["sum"], tables[1]["sum"], rtol=1e-9, atol=1e-12)


def test_one_latents_edges_are_those_of_the_whole_ranking(configure_jacobian: ConfigureJacobian) -> None:
    config = configure_jacobian()
    extract_jacobian(config)
    rows = rank_edges(config.store.path, k=None, by="sum").to_pylist()
    above, below = rows[0]["latent_out"], rows[0]["latent_in"]
    for name, latent in (("latent_out", above), ("latent_in", below)):
        asked: dict[str, Any] = {name: latent}
        expected = [{**row, "rank": 0} for row in rows if row[name] == latent]
        got = rank_edges(config.store.path, k=None, by="sum", **asked).to_pylist()
        assert [{**row, "rank": 0} for row in got] == expected
    smallest = rank_edges(config.store.path, k=3, by="mean", smallest=True).column("mean").to_pylist()
    assert smallest == sorted(row["mean"] for row in rows)[:3]


def test_the_tokens_of_an_edge_are_found_with_their_text(configure_jacobian: ConfigureJacobian) -> None:
    config = configure_jacobian()
    extract_jacobian(config)
    store = open_jacobian(config.store.path)
    edge = rank_edges(config.store.path, by="count", k=1).to_pylist()[0]
    table = rank_edge_tokens(
        config.store.path, latent_out=edge["latent_out"], latent_in=edge["latent_in"], k=None, context=3
    )
    expected = []
    for segment in store.segments:
        mask, keys, position = segment.read("tokens/mask"), segment.strings("key"), segment.read("tokens/position")
        document = segment.read("tokens/document")
        for n, above, below, value in pairs_of(segment):
            if mask[n] == 0 and (above, below) == (edge["latent_out"], edge["latent_in"]):
                expected.append((keys[document[n]], int(position[n]), value))
    rows = table.to_pylist()
    assert len(rows) == edge["count"] > 3
    assert sorted((row["document"], row["position"], row["value"]) for row in rows) == sorted(expected)
    assert [abs(row["value"]) for row in rows] == sorted((abs(value) for *_, value in expected), reverse=True)
    texts = {key: text for s in store.segments for key, text in zip(s.strings("key"), s.strings("text"), strict=True)}
    assert all(row["before"] + row["token"] + row["after"] in texts[row["document"]] for row in rows)


def test_a_killed_run_goes_on_to_the_same_bytes(
    configure_jacobian: ConfigureJacobian, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = configure_jacobian("whole")
    extract_jacobian(whole)
    killed = configure_jacobian("killed")
    write = JacobianWriter.write

    def write_two(self: JacobianWriter, segment: Any) -> Any:
        if len(self.committed) == 2:
            raise KeyboardInterrupt
        return write(self, segment)

    monkeypatch.setattr(JacobianWriter, "write", write_two)
    with pytest.raises(KeyboardInterrupt):
        extract_jacobian(killed)
    assert not open_jacobian(killed.store.path).is_complete
    monkeypatch.undo()
    report = extract_jacobian(killed)
    assert report.num_skipped == 2
    digests = [[segment.digest for segment in open_jacobian(c.store.path).segments] for c in (whole, killed)]
    assert digests[0] == digests[1]
    assert len(digests[0]) > 3


def test_another_point_or_site_is_another_run(configure_jacobian: ConfigureJacobian) -> None:
    config = configure_jacobian()
    extract_jacobian(config)
    with pytest.raises(IdentityError, match=r'identity\.jacobian\.point: "reconstruction" -> "hidden"'):
        extract_jacobian(config, point=Point.HIDDEN)


def test_the_arrays_open_with_zarr_alone(configure_jacobian: ConfigureJacobian) -> None:
    config = configure_jacobian(store={"profile": "portable"})
    extract_jacobian(config)
    segment = open_jacobian(config.store.path).segments[0]
    group: Any = zarr.open_group(next((Path(config.store.path) / "segments").glob("000000-*")), mode="r")
    np.testing.assert_array_equal(group["value"][:], segment.read("value"))
    np.testing.assert_array_equal(group["edges/lower"][:], segment.read("edges/lower"))
    assert group["value"].attrs["meaning"].startswith("d(upper latent)/d(lower latent)")


def test_damage_is_named_and_a_store_of_scores_is_no_jacobian_store(
    configure_jacobian: ConfigureJacobian, tmp_path: Path
) -> None:
    config = configure_jacobian()
    extract_jacobian(config)
    with pytest.raises(StoreError, match="not such a store"):
        open_scores(config.store.path)
    with pytest.raises(StoreError, match="no Jacobian store"):
        open_jacobian(tmp_path / "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    with pytest.raises(StoreError, match=r"letter\.txt"):
        extract_jacobian(configure_jacobian("full"))
    damaged = tmp_path / "damaged"
    shutil.copytree(config.store.path, damaged)
    shard = next(damaged.glob("segments/000001-*")) / "value" / "c.0"
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        open_jacobian(damaged).segments[1].read("value")
    shard.unlink()
    with pytest.raises(StoreError, match="segment 1 is damaged"):
        open_jacobian(damaged)


def fitting(write_sae: Callable[..., Path]) -> dict[str, Any]:
    """Tables of a run that passes the gate: six latents a token at both sites."""
    lower, upper = (
        write_sae("topk", name=name, seed=seed, metadata={"hf_hook_name": site, "prepend_bos": True})
        for name, seed, site in (("fits below", 5, LOWER), ("fits above", 6, UPPER))
    )
    saes = [{"path": str(lower), "site": LOWER}, {"path": str(upper), "site": UPPER}]
    return {"sae": saes, "run": {"threads": 1, "force": False}}


def test_what_the_gate_found_is_told_and_kept(
    configure_jacobian: ConfigureJacobian, write_sae: Callable[..., Path]
) -> None:
    config, told = configure_jacobian(**fitting(write_sae)), list[str]()
    extract_jacobian(config, on_message=told.append)
    facts = read_facts(Path(config.store.path), "gate")
    assert facts is not None
    assert not facts["forced"]
    assert [(c["name"], c["site"]) for c in facts["checks"]] == [
        (name, site) for site in (LOWER, UPPER) for name in ("site", "bos", "fvu", "l0")
    ]
    assert all(check["passed"] and any(check["found"] in line for line in told) for check in facts["checks"])
    assert {"L0 6.0"} == {check["found"] for check in facts["checks"] if check["name"] == "l0"}


def test_fvu_and_l0_are_those_of_the_gate_of_scores(
    configure_jacobian: ConfigureJacobian, write_sae: Callable[..., Path]
) -> None:
    """The gate of `gradsae extract` at the same sites, with the same SAEs."""
    tables = fitting(write_sae) | {"run": {"threads": 1, "force": True}}
    config, scores = configure_jacobian(**tables), configure_jacobian("scores", **tables)
    extract_jacobian(config)
    extract(scores)
    found = [read_facts(Path(each.store.path), "gate") for each in (config, scores)]
    numbers = [
        [(c["site"], c["found"], c["passed"]) for c in (facts or {})["checks"] if c["name"] in ("bos", "fvu", "l0")]
        for facts in found
    ]
    assert numbers[0] == numbers[1]
    assert len(numbers[0]) == 6
    assert (found[0] or {})["median_norms"] == (found[1] or {})["median_norms"]


@pytest.mark.parametrize("place", [0, 1])
def test_an_sae_that_does_not_fit_its_site_is_refused_before_there_is_a_store(
    configure_jacobian: ConfigureJacobian, write_sae: Callable[..., Path], place: int
) -> None:
    tables = fitting(write_sae)
    trained = {"hf_hook_name": (LOWER, UPPER)[place], "prepend_bos": True}
    sae = write_sae("topk", name="elsewhere", metadata=trained)
    weights = load_file(sae / "sae_weights.safetensors")
    save_file(weights | {"W_dec": weights["W_dec"].flip(0).contiguous()}, sae / "sae_weights.safetensors")
    tables["sae"][place]["path"] = str(sae)
    config = configure_jacobian(**tables)
    with pytest.raises(GateError, match=rf"(?s)fvu at {(LOWER, UPPER)[place]}: FVU \d.*--force"):
        extract_jacobian(config)
    assert not Path(config.store.path).exists()
    forced = configure_jacobian(**tables | {"run": {"threads": 1, "force": True}})
    extract_jacobian(forced)
    facts = read_facts(Path(forced.store.path), "gate")
    assert facts is not None
    assert facts["forced"]
    assert [check["name"] for check in facts["checks"] if not check["passed"]] == ["fvu"]


def test_another_bos_than_in_training_is_refused(
    configure_jacobian: ConfigureJacobian, write_sae: Callable[..., Path]
) -> None:
    config = configure_jacobian(**fitting(write_sae))
    with pytest.raises(GateError, match=r"bos at .*: no BOS; expected as in the SAE's training .a BOS in front"):
        extract_jacobian(dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, bos="never")))


@pytest.mark.parametrize("place", [0, 1])
def test_an_sae_of_another_width_does_not_block_the_folder(
    configure_jacobian: ConfigureJacobian, write_sae: Callable[..., Path], place: int
) -> None:
    config = configure_jacobian()
    wide = dataclasses.replace(config.saes[place], path=str(write_sae(name="wide", width=48)))
    saes = (wide, config.saes[1]) if place == 0 else (config.saes[0], wide)
    with pytest.raises(SaeError, match="width 48"):
        extract_jacobian(dataclasses.replace(config, saes=saes))
    assert extract_jacobian(config).num_segments > 0


def test_attention_sinks_at_either_site_are_masked_and_counted_in_no_edge(
    configure_jacobian: ConfigureJacobian, tiny_lm: LanguageModel
) -> None:
    """The lower site is normalised: all norms are equal there, and sinks are those of the upper one."""
    config = configure_jacobian(score={"sink_norm_ratio": 1.3})
    extract_jacobian(config)
    facts = read_facts(Path(config.store.path), "gate")
    assert facts is not None
    limit, found = 1.3 * facts["median_norms"][UPPER], 0
    for segment in open_jacobian(config.store.path).segments:
        document, mask = segment.read("tokens/document"), segment.read("tokens/mask")
        for slot in np.unique(document):
            rows = np.flatnonzero(document == slot)[:64]  # the first window
            ids = segment.read("tokens/token_id")[rows].astype(np.int64)
            window: Any = Window(document=None, slot=0, token_ids=ids, num_context=0, first_position=0)  # type: ignore[arg-type]
            batch = Batch(windows=(window,), token_ids_BT=ids[None])
            sink_T = hidden_states(tiny_lm, batch, [tiny_lm.site(UPPER)])[UPPER].norm(dim=1).numpy() > limit
            assert ((mask[rows] & TokenMask.NORM) != 0).tolist() == sink_T.tolist()
            found += int(sink_T.sum())
        counted = {(above, below) for n, above, below, _ in pairs_of(segment) if mask[n] == 0}
        assert segment.read("edges/indptr")[-1] == len(counted)
    assert found > 10
    with pytest.raises(IdentityError, match=r"identity\.jacobian\.sink_norm_ratio: 1\.3 -> 10"):
        extract_jacobian(configure_jacobian())


def test_a_folder_of_scores_is_named_with_what_to_give_instead(
    configure_jacobian: ConfigureJacobian, configure: Configure
) -> None:
    extract(configure("taken"))
    with pytest.raises(StoreError, match="or a new folder to make one"):
        extract_jacobian(configure_jacobian("taken"))


def test_questions_that_make_no_sense_are_refused(configure_jacobian: ConfigureJacobian) -> None:
    config = configure_jacobian()
    extract_jacobian(config)
    with pytest.raises(QueryError, match="did you mean 'absolute'"):
        rank_edges(config.store.path, by="absolut")
    with pytest.raises(QueryError, match="latent_in = 48; expected 0 to 47"):
        rank_edges(config.store.path, latent_in=48)
    with pytest.raises(QueryError, match="k = 0"):
        rank_edges(config.store.path, k=0)
    with pytest.raises(QueryError, match="context = -5; expected 0 or more"):
        rank_edge_tokens(config.store.path, latent_out=1, latent_in=1, context=-5)


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ({"sae": [{"path": "x", "site": LOWER}]}, "needs two SAEs"),
        ({"sae": [{"path": "x", "site": LOWER}, {"path": "y", "site": LOWER}]}, f"both SAEs are at {LOWER}"),
        ({"score": {"preset": "paper"}}, "only sink_norm_ratio and mask_token_ids have an effect"),
        ({"run": {"exact_dense": 0.2}}, "exact_dense, patch_column and append have no effect"),
        ({"corpus": {"patch_column": "patch"}}, "exact_dense, patch_column and append have no effect"),
    ],
)
def test_settings_without_effect_are_refused(
    configure_jacobian: ConfigureJacobian, tables: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        extract_jacobian(configure_jacobian(**tables))


def test_an_address_of_object_storage_is_refused_before_a_model_is_read(
    configure_jacobian: ConfigureJacobian,
) -> None:
    config = configure_jacobian(model={"path": "nowhere/at/all"}, store={"path": "s3://trials/speeches.jacobian"})
    with pytest.raises(StoreError, match="cannot lie in object storage; expected a path on a disk"):
        extract_jacobian(config)
    with pytest.raises(StoreError, match="cannot lie in object storage; expected a path on a disk"):
        rank_edges(config.store.path)
