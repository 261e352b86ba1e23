"""A folder in which every command of the pages works: the demo's model and SAE, a few short speeches, their scores."""

import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch

from gradsae_fast import demo
from gradsae_fast.config import ExtractConfig, ModelConfig, SaeConfig, config_from_tables
from gradsae_fast.demo import ASSETS
from gradsae_fast.experiment.answered import answer_ids, to_text
from gradsae_fast.experiment.intervene import Edit
from gradsae_fast.experiment.questions import read_questions
from gradsae_fast.experiment.subject import Setting, load_subject
from gradsae_fast.extract import extract
from gradsae_fast.sae.formats import saelens
from gradsae_fast.store.places import bucket
from gradsae_fast.store.places.connection import connect
from gradsae_fast.store.places.object_client import ObjectClient

CHARACTERS = 700
CONTEXTS = (
    "My fellow Americans, our Nation is strong, and our people are free.",
    "Tonight our schools are better, and more of our children go to college than ever before.",
)
QUESTIONS = (
    "What do we owe our children?",
    "God bless the United States of",
    "I ask the Congress to",
    "We want peace in the",
)


@pytest.fixture(scope="session")
def workshop_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original of `workshop`."""
    folder = tmp_path_factory.mktemp("workshop")
    make_model(folder / "model")
    (folder / "sae").symlink_to(ASSETS / "sae")
    write_corpus(folder / "speeches.jsonl.gz", slice(0, None, 4))
    write_corpus(folder / "new-speeches.jsonl.gz", slice(1, 2))
    write_corpus(folder / "others.jsonl.gz", slice(2, 3))
    write_questions(folder)
    for seed, name in enumerate(("sae-in", "sae-out")):
        write_small_sae(folder / name, seed)
    for name in ("model", "sae", "sae-in", "sae-out"):  # as the README calls them
        (folder / name.upper().replace("-", "_")).symlink_to(folder / name)
    write_store(folder)
    return folder


@pytest.fixture
def workshop(workshop_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the current folder; the demo takes the short speeches too, and buckets are in memory."""

    def shorter(out: Path) -> ExtractConfig:
        config = whole(out)
        corpus = dataclasses.replace(config.corpus, path=str(workshop_once / "speeches.jsonl.gz"))
        return dataclasses.replace(config, corpus=corpus)

    def in_memory(scheme: str, name: str) -> ObjectClient:
        found = connect("memory", f"{tmp_path}-{name}")
        found.url = f"{scheme}://{name}"
        return found

    monkeypatch.setattr(bucket, "connect", in_memory)
    whole = demo.demo_config
    monkeypatch.setattr(demo, "demo_config", shorter)
    folder = Path(shutil.copytree(workshop_once, tmp_path / "workshop", symlinks=True))
    monkeypatch.chdir(folder)
    return folder


def make_model(folder: Path) -> None:
    """The demo's model, said to be built for longer texts: its positions are rotary, and texts stay short here."""
    folder.mkdir()
    for path in (ASSETS / "model").iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}), encoding="utf-8")


def write_corpus(path: Path, which: slice) -> None:
    """The beginnings of some speeches of each party."""
    rows = [json.loads(line) for line in (ASSETS / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    parties = [[row for row in rows if row["party"] == party] for party in ("Republican", "Democratic")]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for row in [row for of_party in parties for row in of_party[which]]:
            file.write(json.dumps({**row, "text": row["text"][:CHARACTERS]}) + "\n")


def write_store(folder: Path) -> None:
    """Scores of the corpus, as the first command of the page about `extract` makes them."""
    tables = {
        "model": {"path": str(folder / "model")},
        "sae": {"path": str(folder / "sae")},
        "corpus": {"path": str(folder / "speeches.jsonl.gz")},
        "store": {"path": str(folder / "speeches.gradsae")},
    }
    extract(config_from_tables(tables))


def write_questions(folder: Path) -> None:
    """Questions on shared contexts with the answers that this model gives, so that it answers them right."""
    path = folder / "questions.jsonl"
    rows = [{"context": context, "question": question, "answer": "?"} for context in CONTEXTS for question in QUESTIONS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    setting = Setting(
        model=ModelConfig(path=str(folder / "model")), sae=SaeConfig(path=str(folder / "sae")), questions=str(path)
    )
    subject = load_subject(setting)
    prompts = [subject.prompt(document) for document in subject.tokenise(read_questions(path))]
    answers = answer_ids(subject, prompts, [Edit()] * len(prompts))
    said = [{**row, "answer": to_text(subject, ids)} for row, ids in zip(rows, answers, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in said), encoding="utf-8")


def write_small_sae(folder: Path, seed: int, width: int = 192) -> None:
    """A TopK SAE of random orthogonal directions, for places of the demo's model that no trained one is for.

    Latents 2i and 2i + 1 are the two sides of a direction, so what the largest sixteen leave out is less than all.
    """
    generator = torch.Generator().manual_seed(seed)
    basis_DD = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    directions_CD = torch.stack([basis_DD, -basis_DD], 1).reshape(-1, width)
    weights = {
        "W_enc": directions_CD.T.contiguous(),
        "W_dec": directions_CD,
        "b_enc": torch.zeros(len(directions_CD)),
        "b_dec": torch.zeros(width),
    }
    saelens.save(folder, architecture="topk", weights=weights, config={"k": 16, "metadata": {"prepend_bos": True}})
