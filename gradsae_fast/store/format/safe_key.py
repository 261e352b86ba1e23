"""Text out of a store that becomes part of a path: checked here before it is joined to anything.

A store may come from anyone, and its checksums only say that its bytes are the ones that somebody wrote. A writer makes
keys of `component`s, so the letters that they may have are few; whatever has another one was not written by a writer.
"""

import re
from reprlib import repr as shortened

from gradsae_fast.errors import StoreError

_LONGEST_KEY = 1024  # bytes; what object stores take
_LONGEST_PART = 255  # bytes; what file systems take
_PART = rf"[A-Za-z0-9_%-][A-Za-z0-9_.%-]{{0,{_LONGEST_PART - 1}}}"
_KEY = re.compile(rf"{_PART}(?:/{_PART})*")


def checked_key(text: object, what: str, where: object) -> str:
    """Return `text` where it is a relative path that stays below the folder it is joined to.

    Its parts, between single `/`, have ASCII letters, digits and `_ - . %` only, and do not begin with a dot: so there
    is no `..`, no empty part, no root, drive or backslash, no NUL or other control character, and no temporary file.

    Args:
        text: what the store says.
        what: what it is, for the error: "a key", "the folder of its objects".
        where: the document that says it.

    Raises:
        StoreError: anything else.
    """
    if isinstance(text, str) and len(text) <= _LONGEST_KEY and _KEY.fullmatch(text):
        return text
    raise StoreError(
        f"{where} is damaged or was not written by gradsae-fast: {what} is {shortened(text)}; expected a path below "
        f"the store's folder, of letters, digits and _ - . %, in parts of 1 to {_LONGEST_PART} that do not begin with "
        f"a dot, {_LONGEST_KEY} at most: do not use this store, or copy it again from where it came"
    )


def checked_folder(text: object, room: str, where: object) -> str:
    """Return the folder of a record's objects where it lies right below `room`, where records of its kind put it.

    Args:
        text: what the store says, such as "segments/000012-1f0c".
        room: such as "segments" or "index"; in it, and nowhere else, may the folder be.
        where: the document that says it.

    Raises:
        StoreError: it lies elsewhere, or is no folder's name.
    """
    folder = checked_key(text, "the folder of its objects", where)
    above, _, name = folder.rpartition("/")
    if above != room or not name:
        raise StoreError(
            f"{where} is damaged or was not written by gradsae-fast: its objects are in {folder!r}; expected a folder "
            f"right below {room!r}: do not use this store, or copy it again from where it came"
        )
    return folder
