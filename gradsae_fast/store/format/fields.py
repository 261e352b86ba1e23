"""A JSON object out of a store, whose fields are looked at before they are believed.

A document's checksum says that its bytes are the ones that somebody wrote, not that a writer of this project was that
somebody. So each field that a reader uses is taken through here, and is of the type and in the range that `FORMAT.md`
gives it; else the error names document, field, what it is and what was expected.
"""

from collections.abc import Iterator
from reprlib import repr as shortened
from typing import Any

from gradsae_fast.errors import StoreError

MOST = 1 << 53  # the numbers up to here are whole ones in every JSON reader
MOST_SEGMENTS = 1 << 31


class Fields:
    """The fields of one JSON object.

    Args:
        value: what should be an object.
        where: the document that holds it, as errors call it.
        path: how to come to it in the document; "" for the document itself.
    """

    __slots__ = ("_path", "_values", "_where")

    def __init__(self, value: object, where: object, path: str = "") -> None:
        self._where = where
        self._path = path
        if not isinstance(value, dict):
            raise self._wrong("", value, "an object with named fields")
        self._values: dict[str, Any] = value

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str) -> str:
        """Return a text.

        Raises:
            StoreError: missing, or something else; so do the others.
        """
        value = self._taken(name)
        if not isinstance(value, str):
            raise self._wrong(name, value, "text")
        return value

    def count(self, name: str, most: int = MOST) -> int:
        """Return a whole number from 0 to `most`."""
        value = self._taken(name)
        if type(value) is not int or not 0 <= value <= most:
            raise self._wrong(name, value, f"a whole number from 0 to {most}")
        return value

    def counts(self, name: str) -> list[int]:
        """Return a list of whole numbers."""
        value = self._taken(name)
        if not isinstance(value, list) or not all(type(entry) is int and 0 <= entry <= MOST for entry in value):
            raise self._wrong(name, value, "a list of whole numbers")
        return value

    def number(self, name: str) -> float:
        """Return a number, which may be NaN."""
        value = self._taken(name)
        if type(value) not in (int, float) or abs(value) > MOST:
            raise self._wrong(name, value, "a number")
        return float(value)

    def flag(self, name: str) -> bool:
        """Return true or false."""
        value = self._taken(name)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an object as it is, whatever its fields."""
        value = self._taken(name)
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object with named fields")
        return value

    def texts(self, name: str) -> list[str]:
        """Return a list of texts, no two of them equal."""
        value = self._taken(name)
        if not isinstance(value, list | tuple) or not all(isinstance(entry, str) for entry in value):
            raise self._wrong(name, value, "a list of texts")
        if len(set(value)) != len(value):
            raise self._wrong(name, value, "a list of different texts")
        return list(value)

    def inside(self, name: str) -> "Fields":
        """Return the fields of an object that is a field of this one."""
        return Fields(self._taken(name), self._where, f"{self._path}{name}.")

    def each(self, name: str) -> "Iterator[Fields]":
        """Yield the fields of each object of a list."""
        value = self._taken(name)
        if not isinstance(value, list | tuple):
            raise self._wrong(name, value, "a list")
        for position, entry in enumerate(value):
            yield Fields(entry, self._where, f"{self._path}{name}[{position}].")

    def _taken(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError as error:
            raise StoreError(
                f"{self._where} is damaged or was not written by gradsae-fast: it has no field {self._path}{name}; run "
                "`gradsae verify` on the store, or copy it again from where it came"
            ) from error

    def _wrong(self, name: str, got: object, expected: str) -> StoreError:
        return StoreError(
            f"{self._where} is damaged or was not written by gradsae-fast: {f'{self._path}{name}'.rstrip('.') or 'it'} "
            f"is {shortened(got)}; expected {expected}: run `gradsae verify` on the store, or copy it again from where "
            "it came"
        )
