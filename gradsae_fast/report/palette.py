"""The colours of the pages, in light and in dark, and the arithmetic that shows that they can be read.

Influence is blue above zero and orange below: a pair that the common kinds of colour blindness tell apart. The page
never relies on it: what lowers has a line on top as well, and numbers carry their sign. Contrast is that of WCAG 2.2.
"""

LIGHT = {
    "paper": "#fcfbf8",
    "raised": "#f3f1eb",
    "ink": "#1b1d1f",
    "quiet": "#5c6064",
    "line": "#dcd8cf",
    "accent": "#0b6356",
    "up-1": "#e3eef8",
    "up-2": "#bcd9f0",
    "up-3": "#8bbde4",
    "up-4": "#5b9dd6",
    "up": "#1f6db3",
    "down-1": "#fcebd6",
    "down-2": "#fad2a4",
    "down-3": "#f3b067",
    "down-4": "#e08a2e",
    "down": "#9c4f08",
}
DARK = {
    "paper": "#141618",
    "raised": "#1d2023",
    "ink": "#e9e7e2",
    "quiet": "#a2a5a8",
    "line": "#33373b",
    "accent": "#6cc7b5",
    "up-1": "#16283a",
    "up-2": "#1b3c5b",
    "up-3": "#205180",
    "up-4": "#2767a6",
    "up": "#6fb1ea",
    "down-1": "#33230f",
    "down-2": "#4f3410",
    "down-3": "#6c4611",
    "down-4": "#8a5710",
    "down": "#f0a24a",
}
FILLS = ("up-1", "up-2", "up-3", "up-4", "down-1", "down-2", "down-3", "down-4")
READABLE = (
    *(("ink", fill) for fill in ("paper", "raised", *FILLS)),
    *((text, ground) for text in ("quiet", "accent", "up", "down") for ground in ("paper", "raised")),
)
"""Text and its ground, by name: each pair has a contrast of 4.5 or more in both schemes."""


def variables(scheme: dict[str, str]) -> str:
    """Return a scheme as CSS custom properties."""
    return "".join(f"--{name}:{colour};" for name, colour in scheme.items())


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb, 0 to 1.

    >>> luminance("#000000"), luminance("#ffffff")
    (0.0, 1.0)
    """
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return round(0.2126 * red + 0.7152 * green + 0.0722 * blue, 12)


def contrast_ratio(a: str, b: str) -> float:
    """Return the contrast of two colours, 1 to 21."""
    lighter, darker = sorted((luminance(a), luminance(b)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)
