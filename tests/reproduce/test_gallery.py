"""The gallery: its driver, what its page shows, and what its pictures are made of."""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from programs import ROOT

sys.path.insert(0, str(ROOT / "reproduce"))

import gallery
from gallery_pictures import images, plane
from gallery_pictures.fields import TINY

from genfield.figures import style

PAGE = (ROOT / "docs" / "gallery.md").read_text()
FOLDER = ROOT / "docs" / "images" / "gallery"
SMALLEST = "distance"


def test_a_picture_its_thumbnail_and_what_it_took(tmp_path, capsys):
    """And a second call leaves it alone, but for --again."""
    arguments = [f"--out={tmp_path}", f"--only={SMALLEST}"]
    gallery.main(arguments, TINY)
    picture, thumb = tmp_path / f"{SMALLEST}.png", tmp_path / "thumbs" / f"{SMALLEST}.png"
    first = picture.stat().st_mtime_ns
    assert Image.open(thumb).width == gallery.WIDTH
    assert json.loads((tmp_path / "gallery.json").read_text())[SMALLEST] > 0
    gallery.main(arguments, TINY)
    assert picture.stat().st_mtime_ns == first
    assert "is there" in capsys.readouterr().out
    gallery.main([*arguments, "--again"], TINY)
    assert picture.stat().st_mtime_ns > first
    gallery.main([*arguments, "--format=svg"], TINY)
    assert (tmp_path / f"{SMALLEST}.svg").read_text().startswith("<?xml")


def test_an_unknown_picture_is_told(capsys):
    with pytest.raises(SystemExit):
        gallery.main(["--only=nothing"])
    assert "there are opening, fields" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in gallery.PICTURES if n != SMALLEST])
def test_every_picture_is_drawn(name, tmp_path):
    path = gallery.draw(tmp_path, name, "png", TINY)
    assert Image.open(path).width > gallery.WIDTH
    assert Image.open(tmp_path / "thumbs" / f"{name}.png").width == gallery.WIDTH
    assert getattr(Image.open(path), "n_frames", 1) == (
        TINY.frames if name in gallery.ANIMATED else 1
    )


# The page


@pytest.mark.parametrize("name", gallery.PICTURES)
def test_the_page_shows_each_picture_with_its_command_and_its_time(name):
    file = gallery.place(FOLDER, name, "png").name
    link = re.search(rf"\(images/gallery/thumbs/{name}\.png\)\]\(images/gallery/{file}\)", PAGE)
    assert link, f"docs/gallery.md has no thumbnail of {name} that opens {file}"
    after = PAGE[link.end() :].split("\n## ")[0]
    assert f"python reproduce/gallery.py --only={name}\n" in after
    seconds = json.loads((FOLDER / "gallery.json").read_text())[name]
    said = int(re.search(r"(\d+) s of a core", after)[1])
    assert 0.5 * said <= seconds <= 2 * said


def test_the_page_and_the_folder_hold_the_same_pictures():
    named = {*re.findall(r"\(images/gallery/([\w/.]+)\)", PAGE)}
    there = {p.relative_to(FOLDER).as_posix() for p in FOLDER.rglob("*.*") if p.is_file()}
    assert there - {"gallery.json"} == named


def test_pictures_load_fast():
    for thumb in (FOLDER / "thumbs").iterdir():
        assert thumb.stat().st_size < 60_000, thumb
        assert Image.open(thumb).width == gallery.WIDTH
    for name in gallery.ANIMATED:
        assert gallery.place(FOLDER, name, "png").stat().st_size < 1_500_000
    pictures = (ROOT / "docs" / "images").rglob("*.*")
    assert sum(p.stat().st_size for p in pictures) < 6_000_000


# What is shown


def test_a_denoiser_is_shown_as_the_velocity_of_its_path(monkeypatch):
    """Of N(0, 2² I), whose velocity E[x1 - x0 | z] is known: 1.2 z at t = 0.5."""
    denoiser = lambda x, sigma: x * 4 / (4 + sigma[:, None] ** 2)
    model = SimpleNamespace(info=SimpleNamespace(teaches="denoiser", clock=True), field=denoiser)
    monkeypatch.setattr(plane, "opened", lambda name: model)
    z = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    np.testing.assert_allclose(plane.field_of("EDM")(z), 1.2 * z, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("title", plane.METHODS)
def test_walks_end_at_the_data(title):
    """In the plane of the picture, whatever the sampler moves; and they start where they should."""
    method = plane.METHODS[title]
    walk = method.march(method.model, 300)
    data = plane.target(2_000)
    far = lambda x: np.sqrt(((x[:, None] - data[None]) ** 2).sum(-1)).min(1)
    start, end = (np.median(far(walk.trace[i])) for i in (0, -1))
    assert end < 0.3 and end < 0.7 * start, (start, end)
    # Eight Gaussians lie around the moons, normal noise partly on them.
    around = np.linalg.norm(walk.trace[0], axis=1).mean() > 3
    assert start > (0.5 if around else 0.2), start
    assert walk.evaluations(len(walk.trace) - 1) == walk.nfe
    assert walk.times is None or (np.diff(walk.times) > 0).all()


def test_each_method_has_a_colour_of_its_own():
    colours = {method.colour for method in plane.METHODS.values()}
    assert len(colours) == len(plane.METHODS) and colours <= {*style.PALETTE}


def test_a_sheet_holds_its_images_row_by_row():
    x = np.linspace(-1, 1, 3).repeat(64).reshape(3, 8, 8, 1)
    found = images.sheet(np.concatenate([x, x[:1]]), 2)
    assert found.shape == (18, 17)
    assert [found[0, 0], found[0, 9], found[9, 0], found[9, 9]] == [0.0, 0.5, 1.0, 0.0]
    assert (found[[8, 17]] == 1).all() and (found[:, 8] == 1).all()
