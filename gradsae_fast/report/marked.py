"""Text as marked-up HTML: each token's fill is its influence, the line under it its activation.

Influence above zero is a blue fill, below zero an orange one with a line on top, in four strengths relative to a scale
that the page names. A token that is marked at all has its numbers in its title. T tokens.
"""

from collections.abc import Collection, Sequence

import numpy as np
from markupsafe import Markup, escape

from gradsae_fast.records import Array
from gradsae_fast.report.numbers import number, signed
from gradsae_fast.report.passages import Passage, Piece

LATENT_STEPS = (0.03, 0.12, 0.3, 0.6)
"""Shares of the scale from which on a token has strength 1, 2, 3, 4: of one latent, silent on most tokens."""
DOCUMENT_STEPS = (0.15, 0.3, 0.6, 1.0)
"""The same of all latents together, which are silent on none."""


def strengths(value_T: Array, scale: float, steps: tuple[float, ...]) -> Array:
    """Return 0 to 4 for each value, by its size relative to the scale; 0 where it is not finite."""
    if not scale > 0:
        return np.zeros(len(value_T), np.int64)
    return np.where(np.isfinite(value_T), np.searchsorted(steps, np.abs(value_T) / scale, side="right"), 0)


def mark_passage(passage: Passage, scale: float, activation_scale: float) -> Markup:
    """Return a passage of one latent, its peak as a `mark`."""
    influence_T, activation_T = passage.influence_T, passage.activation_T
    fills = _fills(influence_T, strengths(influence_T, scale, LATENT_STEPS))
    bars = strengths(activation_T, activation_scale, LATENT_STEPS).tolist()
    parts = []
    for t, piece in enumerate(passage.pieces):
        classes = [name for name in (fills[t], f"a{bars[t]}" if bars[t] else "", _kind(piece)) if name]
        if not passage.counted_T[t]:
            classes.append("x")
        title = f"influence {signed(influence_T[t])}, activation {number(activation_T[t])}" if activation_T[t] else ""
        tag = "mark" if t == passage.peak else "i" if classes else ""
        parts.append(_element(tag, piece.text, classes, title))
    return Markup("").join(parts)


def mark_document(
    pieces: Sequence[Piece],
    influence_T: Array,
    counted_T: Array,
    scale: float,
    *,
    peak: int | None = None,
    anchors: Collection[int] = (),
    first: int = 0,
) -> Markup:
    """Return a document's text, coloured by the influence of all latents together; newlines break lines.

    Args:
        pieces, influence_T, counted_T: T tokens in a row, of which the document's number `first` is the first.
        scale: the influence of full colour.
        peak: of the T, the token to frame.
        anchors: tokens of the document, counted from 0, that links may lead to.
    """
    fills = _fills(influence_T, strengths(influence_T, scale, DOCUMENT_STEPS))
    parts = []
    for t, piece in enumerate(pieces):
        classes = [name for name in (fills[t], _kind(piece), "" if counted_T[t] else "x") if name]
        name, title = f"t{first + t}" if first + t in anchors else "", signed(influence_T[t]) if fills[t] else ""
        tag = "mark" if t == peak else "i" if classes or name else ""
        element = _element(tag, piece.text, classes, title, name)
        parts.append(element.replace("⏎", Markup("<span class=nl>⏎</span>\n")))
    return Markup("").join(parts)


def _fills(influence_T: Array, strength_T: Array) -> list[str]:
    return [
        f"{'p' if value > 0 else 'n'}{strength}" if strength else ""
        for value, strength in zip(influence_T.tolist(), strength_T.tolist(), strict=True)
    ]


def _kind(piece: Piece) -> str:
    return "v" if piece.is_name else ""


def _element(tag: str, text: str, classes: Sequence[str], title: str, name: str = "") -> Markup:
    """Wrap a piece, without the spaces in front of its word: fills then stand on words."""
    if not tag:
        return escape(text)
    spaces = len(text) - len(text.lstrip(" "))
    if 0 < spaces < len(text):
        return escape(text[:spaces]) + _element(tag, text[spaces:], classes, title, name)
    of_class = f' class="{" ".join(classes)}"' if classes else ""
    of_title = f' title="{escape(title)}"' if title else ""
    of_name = f' id="{name}"' if name else ""
    return Markup(f"<{tag}{of_name}{of_class}{of_title}>{escape(text)}</{tag}>")
