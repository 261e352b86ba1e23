import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradsae_fast.errors import QueryError
from gradsae_fast.export import write_neuronpedia
from gradsae_fast.ranking import rank_latents
from gradsae_fast.store import ScoreStore
from tests.export.conftest import ASKED, HOSTILE, OBJECTIVE, SIGNED_SITE, SITE
from tests.export.test_anndata import described
from tests.ranking.conftest import World

WIDTH = 4
Stretches = dict[tuple[int, int], list[int]]


def read(store: ScoreStore, folder: Path, **asked: Any) -> dict[int, Any]:
    path = write_neuronpedia(store, folder / "latents.jsonl", context=WIDTH, **(dict(ASKED) | asked)).path
    records = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text("ascii").splitlines()]
    return {int(record["index"]): record for record in records}


def stretches(world: World) -> Stretches:
    """The tokens of every stretch, by document and first position."""
    found: Stretches = {}
    for token, (m, position) in enumerate(zip(world.document_N, world.position_N, strict=True)):
        found.setdefault((int(m), int(position) // WIDTH * WIDTH), []).append(token)
    return found


@pytest.mark.parametrize("by", ["activation", "influence", "absolute"])
@pytest.mark.parametrize("site", [SITE, SIGNED_SITE])
@pytest.mark.parametrize("run", [3, 1 << 19])
def test_contexts_are_the_stretches_with_the_largest_values(
    store: ScoreStore, world: World, tmp_path: Path, by: str, site: str, run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsae_fast.export.nonzeros.RUN_NONZEROS", run)
    monkeypatch.setattr("gradsae_fast.export.contexts._WAITING", run)
    records = read(store, tmp_path, by=by, k=3, site=site)
    counted_N1 = world.counted()[:, None]
    a_NC = np.where(counted_N1, world.activation[site], 0)
    g_NC = np.where(counted_N1, world.influence(site, OBJECTIVE), 0)
    ranked_by = {"activation": a_NC, "influence": g_NC, "absolute": np.abs(g_NC)}[by]
    for c, record in records.items():
        score = {
            place: max(ranked_by[n, c] for n in tokens if a_NC[n, c] != 0)
            for place, tokens in stretches(world).items()
            if np.any(a_NC[tokens, c] != 0)
        }
        found = [(world.keys.index(each["document"]), each["position"]) for each in record["activations"]]
        assert [score[place] for place in found] == sorted(score.values(), reverse=True)[:3]
        assert len(set(found)) == len(found)
        for place, each in zip(found, record["activations"], strict=True):
            tokens = stretches(world)[place]
            assert each["values"] == a_NC[tokens, c].tolist()
            assert each["influenceValues"] == g_NC[tokens, c].tolist()
            assert each["tokens"][0].strip() == world.words[tokens[0]] or world.words[tokens[0]] == "<bos>"
            assert [token.strip() for token in each["tokens"][1:]] == [world.words[n] for n in tokens[1:]]
            assert each["maxValue"] == max(each["values"]) == each["values"][each["maxValueTokenIndex"]]
            assert each["minValue"] == min(each["values"])


def test_tokens_of_a_context_join_to_the_text_of_the_document(store: ScoreStore, tmp_path: Path) -> None:
    texts = {
        key: text
        for segment in store.segments
        for key, text in zip(segment.document_keys(), segment.documents().text, strict=True)
    }
    seen = 0
    for record in read(store, tmp_path).values():
        for each in record["activations"]:
            names = each["tokens"][each["position"] == 0 :]  # the BOS has no characters and shows its name
            assert "".join(names) in texts[each["document"]]
            assert each["position"] or each["tokens"][0].startswith("<token ")
            seen += len(names) > 1
    assert seen > 20


def test_statistics_are_those_of_the_ranking(store: ScoreStore, tmp_path: Path) -> None:
    records = read(store, tmp_path, where="year>=1940")
    ranked = rank_latents(store, where="year>=1940", k=None, **ASKED).to_pylist()
    assert list(records) == sorted(row["latent"] for row in ranked)
    for row in ranked:
        record = records[row["latent"]]
        assert record["frac_nonzero"] == row["frequency"]
        assert record["maxActApprox"] == row["max_activation"]
        assert record["influence"]["influence"] == row["influence"]
        assert record["decoderNorm"] == pytest.approx(1 + row["latent"] / 11)


@pytest.mark.parametrize("site", [SITE, SIGNED_SITE])
def test_the_histogram_counts_every_activation_once(store: ScoreStore, world: World, tmp_path: Path, site: str) -> None:
    for c, record in read(store, tmp_path, site=site).items():
        values = world.activation[site][world.counted(), c].astype(np.float64)
        low, high = min(0.0, values.min()), max(0.0, values.max())
        heights, edges = np.histogram(values[values != 0], 50, (low, high))
        assert record["freq_hist_data_bar_heights"] == heights.tolist()
        assert np.allclose(record["freq_hist_data_bar_values"], (edges[:-1] + edges[1:]) / 2)


def test_names_are_those_of_neuronpedia(store: ScoreStore, tmp_path: Path) -> None:
    record = read(store, tmp_path, model_id="gpt2-small", source_id="6-res-jb")[3]
    neuron = {"modelId", "layer", "index", "frac_nonzero", "maxActApprox", "hookName", "activations"}
    histogram = {"freq_hist_data_bar_heights", "freq_hist_data_bar_values"}
    assert set(record) == neuron | histogram | {"influence", "decoderNorm", "provenance"}
    assert (record["modelId"], record["layer"], record["index"]) == ("gpt2-small", "6-res-jb", "3")
    assert record["hookName"] == "blocks.3.hook_resid_post"
    activation = {"modelId", "layer", "index", "tokens", "values", "maxValue", "maxValueTokenIndex", "minValue"}
    assert set(record["activations"][0]) == activation | {"influenceValues", "document", "position"}
    assert record["provenance"]["site"] == SITE
    assert read(store, tmp_path, overwrite=True)[3]["modelId"] == "model-1"


def test_decoder_rows_are_there_once_the_store_is_described(
    store: ScoreStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(store), "described", lambda self, site: described())
    record = read(store, tmp_path)[3]
    assert (record["pos_str"], record["pos_values"]) == (["<token 3>", "<token 4>"], [1.5, 2.0])
    assert (record["neg_str"], record["neg_values"]) == (["<token 13>", "<token 14>"], [-3.0, -4.0])
    assert (record["topkCosSimIndices"], record["topkCosSimValues"]) == ([4, 5], [0.5, 0.5])


def test_a_chosen_latent_that_never_fires_has_a_record_without_contexts(store: ScoreStore, tmp_path: Path) -> None:
    records = read(store, tmp_path, latent=[7, 3])
    assert list(records) == [3, 7]
    assert records[7]["activations"] == records[7]["freq_hist_data_bar_heights"] == []
    assert records[7]["frac_nonzero"] == records[7]["maxActApprox"] == 0
    whole = read(store, tmp_path, overwrite=True)[3]
    assert {**records[3], "provenance": 0} == {**whole, "provenance": 0}


def test_batches_of_latents_do_not_show_in_the_file(
    store: ScoreStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read(store, tmp_path)
    monkeypatch.setattr("gradsae_fast.export.neuronpedia._BATCH", 2)
    assert read(store, tmp_path, overwrite=True) == whole


def test_hostile_texts_survive_byte_for_byte(hostile_store: ScoreStore, tmp_path: Path) -> None:
    records = read(hostile_store, tmp_path, include_special=True)
    contexts = [each for record in records.values() for each in record["activations"]]
    assert {each["document"] for each in contexts} == {key for m, key in enumerate(HOSTILE) if m != 2}
    shown = "".join(token for each in contexts for token in each["tokens"])
    assert {"\ud800", "\0", "\u202e", "<"} <= set(shown)


def test_what_cannot_be_exported_is_refused(store: ScoreStore, scaled_store: ScoreStore, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="got k = 0; expected 1 or more"):
        read(store, tmp_path, k=0)
    with pytest.raises(QueryError, match="got context = 0; expected 1 or more tokens"):
        write_neuronpedia(store, tmp_path / "latents.jsonl", context=0, **ASKED)
    with pytest.raises(QueryError, match="unknown by 'frequency'"):
        read(store, tmp_path, by="frequency")
    with pytest.raises(QueryError, match="does not name its model; say it with model_id"):
        write_neuronpedia(scaled_store, tmp_path / "latents.jsonl")
    assert not list(tmp_path.iterdir())
