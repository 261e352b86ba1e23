"""Text of unknown origin as a page or a terminal may show it: whole characters, nothing invisible, of bounded length.

HTML escaping keeps text from being markup. It does not keep a right-to-left override from turning a line around, a NUL
from vanishing, or a megabyte from filling a page, and a terminal obeys what follows an ESC: that is mended here, before
escaping, by characters that can be seen.
"""

import re

# C0 and DEL, C1, soft hyphen, grapheme joiner, Arabic letter mark, fillers, vowel separator, zero width space,
# directional marks, separators and overrides, word joiner and invisible operators, isolates and deprecated formats,
# byte order mark, noncharacters, interlinear annotation, surrogates, tags. Zero width joiner and non-joiner and
# variation selectors stay: scripts and emoji need them, and they move nothing. Of marks that pile up, four stay.
_MARKS = (
    "[\\u0300-\\u036f\\u0591-\\u05bd\\u064b-\\u065f\\u0e31\\u0e34-\\u0e3a\\u0e47-\\u0e4e\\u1ab0-\\u1aff"
    "\\u1dc0-\\u1dff\\u20d0-\\u20ff\\ufe20-\\ufe2f]"
)
_HIDDEN = re.compile(
    f"(?<={_MARKS}{{4}})(?P<pile>{_MARKS}+)|"
    "[\\x00-\\x1f\\x7f-\\x9f\\xad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180e\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f"
    "\\u3164\\ufdd0-\\ufdef\\ufeff\\uffa0\\ufff9-\\ufffb\\ufffe\\uffff\\ud800-\\udfff\\U000e0000-\\U000e0fff]"
)
_PICTURES = {"\n": "⏎", "\t": "⇥", "\x7f": "␡"}


def visible(text: str) -> str:
    r"""Return the text with signs in the place of characters that are invisible, move others or pile up.

    >>> visible("a\nb\x00\u202ec")
    'a⏎b␀[U+202E]c'
    >>> visible("e" + 9 * "\u0301").removeprefix("e" + 4 * "\u0301")
    '[5 more marks]'
    """
    return _HIDDEN.sub(_sign, text)


def visible_lines(text: str) -> str:
    r"""Return a text of several lines made visible, line by line.

    >>> visible_lines("a\x1b[2J\nb\n")
    'a␛[2J\nb\n'
    """
    return "\n".join(map(visible, text.split("\n")))


def cut(text: str, limit: int) -> str:
    """Return at most `limit` characters of the text, made visible, and how many were left out.

    >>> cut("abcdef", 4)
    'abcd… [2 more characters]'
    """
    left_out = len(text) - limit
    return visible(text) if left_out <= 0 else f"{visible(text[:limit])}… [{left_out:,} more characters]"


def word(text: str) -> str:
    r"""Return a token's text, made visible before, as a name: without spaces around it, and never empty.

    >>> word(" only"), word(" "), word("\u3000"), word("")
    ('only', '␣', '[U+3000]', '(empty)')
    """
    return text.strip() or "".join("␣" if c == " " else f"[U+{ord(c):04X}]" for c in text) or "(empty)"


def _sign(found: re.Match[str]) -> str:
    if found["pile"]:
        return f"[{len(found[0]):,} more marks]"
    character = found[0]
    if character in _PICTURES:
        return _PICTURES[character]
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else f"[U+{code:04X}]"
