"""Labels of the user: a csv, or a Neuronpedia export."""

import gzip
import json
from pathlib import Path

import pytest

from gradsae_fast.errors import ConfigError
from gradsae_fast.report.labels import read_labels


def test_a_csv_names_latents(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text('label,note,latent\n"months, ""days""",x,3\nyears,,0\n,,5\n', encoding="utf-8-sig")
    assert read_labels(path, 10) == {3: 'months, "days"', 0: "years"}


@pytest.mark.parametrize("compressed", [False, True])
def test_a_neuronpedia_export_names_latents(tmp_path: Path, compressed: bool) -> None:
    records = [
        {"modelId": "m", "layer": "18-res", "index": "3", "description": "months", "typeName": "x"},
        {"modelId": "m", "layer": "18-res", "index": 4, "description": "years"},
        {"modelId": "m", "layer": "18-res", "index": "3", "description": "dates\u2028too"},
        {"modelId": "m", "layer": "18-res", "index": "3", "description": "months"},
    ]
    data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    path = tmp_path / ("batch-0.jsonl.gz" if compressed else "batch-0.jsonl")
    path.write_bytes(gzip.compress(data) if compressed else data)
    assert read_labels(path, 10) == {3: "months / dates\u2028too", 4: "years"}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "number,name\n1,x\n", "expected latent and label"),
        ("a.csv", "", "expected latent and label"),
        ("a.csv", "latent,label\n1,x\ntwo,y\n", "line 3: latent 'two'; expected 0 to 9"),
        ("a.csv", "latent,label\n10,x\n", "line 2: latent '10'; expected 0 to 9"),
        ("a.csv", "latent,label\n-1,x\n", "line 2: latent '-1'"),
        ("a.csv", "latent,label\n1\n", "line 2: the label is None"),
        ("a.csv", 'latent,label\n1,"x\n', "no csv"),
        ("a.jsonl", "{}\n", "line 1: expected an object with index and description"),
        ("a.jsonl", "[1]\n", "line 1: expected an object"),
        ("a.jsonl", '{"index": 1, "description": "x"}\n{', "line 2: no JSON"),
        ("a.jsonl", '{"index": true, "description": "x"}', "line 1: latent True"),
        ("a.jsonl", '{"index": 1, "description": 3}', "line 1: the label is 3"),
        ("a.txt", "1 x", "expected a .csv"),
        ("a.csv.gz", "latent,label\n", "cannot be read"),
    ],
)
def test_a_file_that_is_not_that_is_refused_with_its_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        read_labels(path, 10)
    assert says in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.csv cannot be read"):
        read_labels(tmp_path / "nothing.csv", 10)
