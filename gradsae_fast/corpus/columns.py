"""Which column of a row is what, and how a row becomes a Document."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gradsae_fast.corpus.metadata import check_unicode, json_value
from gradsae_fast.corpus.row import Row
from gradsae_fast.errors import ConfigError, CorpusError
from gradsae_fast.records import Document

DEFAULT_TEXT = "text"
DEFAULT_ID = "id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of the columns. With `prompt` and `answer` the column `text` is not read; `metadata` None is all others."""

    text: str = DEFAULT_TEXT
    id: str | None = None  # None: the column "id" where a row has it, else the row's position
    prompt: str | None = None
    answer: str | None = None
    contrast: tuple[str, str] | None = None
    patch: str | None = None
    metadata: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) != (self.answer is None):
            given, missing = ("prompt", "answer") if self.answer is None else ("answer", "prompt")
            raise ConfigError(
                f"got the {given} column {getattr(self, given)!r} without a {missing} column, expected both or none; "
                f"name the {missing} column too"
            )
        if self.prompt is not None and self.text != DEFAULT_TEXT:
            raise ConfigError(
                f"got the text column {self.text!r} beside the prompt column {self.prompt!r}, which is read in its "
                "place; leave the text column out"
            )
        if self.patch is not None and self.patch == self.scored:
            raise ConfigError(
                f"got the patch column {self.patch!r}, which is the text itself: nothing would differ; name another one"
            )
        if self.contrast is not None and len(self.contrast) != 2:
            raise ConfigError(f"got the contrast columns {self.contrast!r}, expected the names of two columns")

    @property
    def scored(self) -> str:
        """The column that becomes `Document.text`."""
        return self.prompt if self.prompt is not None else self.text


def document_from_row(row: Row, columns: Columns, source: str) -> Document:
    """The document of one row of `source`. CorpusError says what the row lacks and which columns it has."""
    if isinstance(row.value, Document):
        if row.value.patch is not None and columns.patch is None:
            raise CorpusError(f"{row.place}: got a Document with a patch text and no patch column; set patch_column")
        return _checked(row.value, row.place)
    values = {columns.text: row.value} if isinstance(row.value, str) else row.value
    if not isinstance(values, Mapping):
        raise CorpusError(f"{row.place}: got a {type(row.value).__name__}, expected a str, a mapping or a Document")
    id_column = columns.id if columns.id is not None or DEFAULT_ID not in values else DEFAULT_ID
    contrast = columns.contrast
    return Document(
        key=f"{source}:{row.index}" if id_column is None else _key_of(values, id_column, row.place),
        text=_text_of(values, columns.scored, row.place),
        source=source,
        row=row.index,
        answer=None if columns.answer is None else _nonempty(values, columns.answer, row.place),
        contrast=None if contrast is None else _contrast_of(values, contrast, row.place),
        patch=None if columns.patch is None else _text_of(values, columns.patch, row.place),
        metadata=_metadata_of(values, columns, id_column, row.place),
    )


def _column(values: Mapping[str, object], name: str, place: str) -> object:
    if name not in values:
        has = ", ".join(repr(column) for column in values) or "none at all"
        raise CorpusError(f"{place}: got a row without the column {name!r}; its columns are: {has}; name one of them")
    return values[name]


def _text_of(values: Mapping[str, object], name: str, place: str) -> str:
    text = _column(values, name, place)
    if not isinstance(text, str):
        got = "null" if text is None else f"{type(text).__name__} {str(text)[:40]!r}"
        raise CorpusError(
            f"{place}: got {got} in the column {name!r}, expected a string; drop the row or give it a text ('' is fine)"
        )
    return check_unicode(text, place)


def _nonempty(values: Mapping[str, object], name: str, place: str) -> str:
    text = _text_of(values, name, place)
    if not text:
        raise CorpusError(f"{place}: got an empty string in the column {name!r}, expected some text; drop the row")
    return text


def _contrast_of(values: Mapping[str, object], names: tuple[str, str], place: str) -> tuple[str, str]:
    return _nonempty(values, names[0], place), _nonempty(values, names[1], place)


def _key_of(values: Mapping[str, object], name: str, place: str) -> str:
    """A key is a string or an integer: a float or a null is a sign of a damaged table."""
    key = _column(values, name, place)
    if hasattr(key, "item"):  # a numpy scalar
        key = key.item()
    if isinstance(key, bool) or not isinstance(key, (str, int)) or key == "":
        raise CorpusError(
            f"{place}: got {key!r} in the id column {name!r}, expected a non-empty string or an integer; "
            "name another id column or repair the row"
        )
    return check_unicode(str(key), place)


def _metadata_of(
    values: Mapping[str, object], columns: Columns, id_column: str | None, place: str
) -> dict[str, object]:
    if columns.metadata is not None:
        return {name: json_value(values.get(name), place) for name in columns.metadata}
    used = {columns.scored, columns.answer, id_column, *(columns.contrast or ())}
    return {str(name): json_value(value, place) for name, value in values.items() if name not in used}


def _checked(document: Document, place: str) -> Document:
    for part in (document.key, document.text, document.answer, document.patch, *(document.contrast or ())):
        if part is not None and not isinstance(part, str):
            raise CorpusError(f"{place}: got a {type(part).__name__} in a Document, expected str for key and texts")
        check_unicode(part or "", place)
    if document.answer == "" or "" in (document.contrast or ()):
        raise CorpusError(f"{place}: got an empty answer or contrast in a Document, expected some text or None")
    return replace(document, metadata=json_value(document.metadata, place))
