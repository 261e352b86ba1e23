"""The pages can be read: in light, in dark, and without telling blue from orange."""

import re
from pathlib import Path

import numpy as np
import pytest

from gradsae_fast.records import Array
from gradsae_fast.report.palette import DARK, LIGHT, READABLE, contrast_ratio

SCHEMES = {"light": LIGHT, "dark": DARK}
# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
BLINDNESS = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def linear(colour: str) -> Array:
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: Array) -> Array:
    """CIELAB of linear sRGB, D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(rgb, 0, 1) / (0.9505, 1.0, 1.089)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_has_enough_contrast_on_every_ground(scheme: str) -> None:
    colours = SCHEMES[scheme]
    assert min((contrast_ratio(colours[text], colours[ground]), text, ground) for text, ground in READABLE)[0] >= 4.5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lines_that_carry_meaning_stand_out_from_the_fills(scheme: str) -> None:
    """The line on top of what lowers, which shows the sign without colour."""
    colours = SCHEMES[scheme]
    assert all(contrast_ratio(colours["down"], colours[f"{ground}"]) >= 3 for ground in ("paper", "down-1", "down-2"))
    assert all(contrast_ratio(colours["quiet"], colours["paper"]) >= 3 for _ in (0,))


@pytest.mark.parametrize("blindness", BLINDNESS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_two_colours_differ_for_colour_blind_eyes(scheme: str, blindness: str) -> None:
    matrix, colours = np.array(BLINDNESS[blindness]), SCHEMES[scheme]
    for step, least in (("-2", 8), ("-3", 15), ("-4", 20), ("", 20)):
        up, down = (lab(matrix @ linear(colours[f"{side}{step}"])) for side in ("up", "down"))
        assert np.linalg.norm(up - down) > least


@pytest.mark.parametrize("scheme", SCHEMES)
def test_stronger_fills_are_further_from_the_paper_in_lightness_alone(scheme: str) -> None:
    colours = SCHEMES[scheme]
    paper = lab(linear(colours["paper"]))[0]
    for side in ("up", "down"):
        distance = [abs(lab(linear(colours[f"{side}-{step}"]))[0] - paper) for step in (1, 2, 3, 4)]
        assert np.diff(distance).min() > 4


def test_pages_use_colours_of_the_palette_only(audit: Path) -> None:
    html = (audit / "index.html").read_text(encoding="utf-8")
    style = html[html.index("<style>") : html.index("</style>")]
    assert set(re.findall(r"#[0-9a-f]{6}\b", style)) == {*LIGHT.values(), *DARK.values()}
    assert not re.search(r"#[0-9a-fA-F]{6}\b", html[html.index("</style>") :])
    assert set(re.findall(r"var\(--([\w-]+)\)", style)) <= {*LIGHT, "text", "ui"}
    assert LIGHT.keys() == DARK.keys()
