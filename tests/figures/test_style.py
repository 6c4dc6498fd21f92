"""The style of figures: colours that stay apart, formats by the ending, others' settings kept."""

import itertools

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from genfield.fields import Prediction
from genfield.figures import run, study, style
from genfield.program import defaults

# Machado, Oliveira and Fernandes (IEEE TVCG 2009), severity 1; of linear RGB.
SEEN = {
    "full": np.eye(3),
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
}
XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
WHITE = np.array([0.9505, 1.0, 1.089])


def lab(colour, seen="full") -> np.ndarray:
    """CIE L*a*b* of a colour, as an eye sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(SEEN[seen]) @ linear, 0, 1)
    x, y, z = np.cbrt(np.maximum(np.array(XYZ) @ linear / WHITE, 1e-12))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one, other) -> float:
    """WCAG's contrast of two colours, from 1 to 21."""
    light = [((lab(c)[0] + 16) / 116) ** 3 for c in (one, other)]
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.parametrize("seen", SEEN)
def test_colours_stay_apart(seen):
    """Any two of the palette, and those that lie side by side in pictures of samples."""
    far = lambda a, b: np.linalg.norm(lab(a, seen) - lab(b, seen))
    assert min(far(*pair) for pair in itertools.combinations(style.PALETTE, 2)) > 15
    side_by_side = (style.START, style.MIDDLE, style.END, style.TARGET)
    assert min(far(*pair) for pair in itertools.combinations(side_by_side, 2)) > 25


def test_the_eye_of_the_test_confuses_red_and_green():
    """The simulation is one: a red and a green that are far apart come near each other."""
    red, green = "#b04a2f", "#6e6d1e"
    full = np.linalg.norm(lab(red) - lab(green))
    assert np.linalg.norm(lab(red, "deuteranopia") - lab(green, "deuteranopia")) < full / 2


def test_marks_are_seen_on_what_lies_below_them():
    """Black arrows and the lines of level sets on the darkest and lightest levels."""
    for level in (0.0, 1.0):
        below = style.LEVELS(level)
        assert contrast(style.LEVEL_LINE, below) > 4
        assert contrast("black", below) > 8
    assert lab(style.LEVELS(0.0))[0] < lab(style.LEVELS(0.5))[0] < lab(style.LEVELS(1.0))[0]


HEADS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.mark.parametrize("form", style.FORMATS)
def test_the_ending_says_the_format(form, tmp_path):
    """And what is drawn is the same file each time."""
    draw = lambda name: study.sweeps(
        tmp_path / f"{name}.{form}",
        [{"num_steps": 4, "step_size": s, "w2": 1 / s} for s in (0.1, 0.2)],
        "w2",
    )
    first, second = (draw(name).read_bytes() for name in ("one", "two"))
    assert first.startswith(HEADS[form])
    assert first == second
    assert not plt.get_fignums()


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"png, svg, pdf, not as 'x\.bmp'"):
        run.trajectories(tmp_path / "x.bmp", np.arange(12.0).reshape(2, 3, 2))
    plt.close("all")


def test_vectors_hold_many_points_as_pixels(tmp_path):
    """3,000 points would be a megabyte of markers."""
    points = np.random.default_rng(0).normal(size=(3_000, 2)).astype(np.float32)
    field = lambda x, t=None: Prediction(x, jnp.linalg.norm(x, axis=1))
    path = run.level_sets(tmp_path / "x.svg", field, points, points, points, descend=True)
    text = path.read_text()
    assert "<image" in text
    assert text.count("<use ") < 3_000


def test_settings_of_others_are_kept(tmp_path):
    plt.rcParams["font.size"] = 17
    try:
        run.trajectories(tmp_path / "x.png", np.arange(12.0).reshape(2, 3, 2))
        assert plt.rcParams["font.size"] == 17
    finally:
        plt.rcdefaults()


def test_the_config_knows_the_formats():
    assert style.FORMATS == defaults.FIGURES
