"""Every command and every piece of Python that a how-to page shows is run as it stands, and works."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import gradsae_fast
from gradsae_fast.cli import app
from gradsae_fast.config import CorpusConfig
from gradsae_fast.demo import ASSETS, demo_config

PAGES = sorted((Path(gradsae_fast.__file__).parent / "howto").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINES = 60
OF_NO_VERB = {"s3", "many-machines"}  # where a store lies is a matter of every verb, who writes it of two


SAVED = {"toml": "run.toml", "csv": "labels.csv"}  # a block of such a language is the file that commands then name


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and content."""
    return BLOCK.findall(text)


def commands(block: str) -> list[list[str]]:
    """The words of each command of a shell block."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


def run_page(text: str, folder: Path) -> int:
    """Run a page's commands and Python in their order; return how many there were."""
    names: dict[str, object] = {"__name__": "page"}
    count = 0
    for language, block in blocks(text):
        if language == "sh":
            for program, *words in commands(block):
                assert program == "gradsae", f"{program} is no command of this package"
                result = CliRunner().invoke(app, words)
                assert result.exit_code == 0, f"gradsae {shlex.join(words)}\n{result.output}\n{result.exception!r}"
                count += 1
        elif language in SAVED:
            (folder / SAVED[language]).write_text(block, encoding="utf-8")
        elif language == "python":
            exec(compile(block, folder / "page.py", "exec"), names)
            count += 1
    return count


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_shows_works(page: Path, workshop: Path) -> None:
    assert run_page(page.read_text(encoding="utf-8"), workshop) > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_short_and_has_what_a_reader_looks_for(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("\n") <= LINES
    assert max(map(len, text.splitlines())) <= 160
    assert {"sh", "python", "text"} <= {language for language, _ in blocks(text)}
    assert "## When it goes wrong" in text


def test_the_page_about_the_demo_says_with_which_options_its_model_takes_the_commands_of_the_others() -> None:
    page = next(page for page in PAGES if page.stem == "demo").read_text(encoding="utf-8")
    corpus = demo_config(Path("out")).corpus
    model = json.loads((ASSETS / "model" / "config.json").read_text(encoding="utf-8"))
    assert corpus.context_length == model["max_position_embeddings"] < CorpusConfig(path="").context_length
    for options in (
        f"--context-length {corpus.context_length} --overlap {corpus.overlap} ",
        f"context_length = {corpus.context_length}, overlap = {corpus.overlap}`",
    ):
        assert options in page


def test_pages_lead_to_each_other() -> None:
    links = {page: re.findall(r"\]\(([^)]*)\)", page.read_text(encoding="utf-8")) for page in PAGES}
    for page, targets in links.items():
        assert targets, f"{page.name} leads nowhere"
        assert page.name not in targets
        assert all((page.parent / target).is_file() for target in targets), page.name
    beginning = {"demo.md"}
    assert {target for targets in links.values() for target in targets} == {page.name for page in PAGES} - beginning


def test_every_verb_has_a_page() -> None:
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    verbs |= {str(group.name) for group in app.registered_groups}
    together = {"verify": "verify-repair", "repair": "verify-repair"}
    assert {together.get(verb, verb) for verb in verbs} | OF_NO_VERB == {page.stem for page in PAGES}


def test_the_readme_shows_commands_that_work(workshop: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    use = readme.partition("\n## Use\n")[2].partition("\n## ")[0]
    assert run_page(use, workshop) > 10
