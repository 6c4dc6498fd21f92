"""What the page shows is what the run computes: its field, its samples, its curves."""

import base64
import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from genfield import registry, rng, sampling
from genfield.data import to_uint8
from genfield.errors import UserError
from genfield.look import choices
from genfield.look import subject as look
from genfield.look.folder import POINTS, Folder
from genfield.study.subject import Subject, source

START = [[0.5, -1.25], [3.0, 2.0], [-4.0, 0.25]]


def told(response) -> dict:
    assert response.status_code == 200, response.get_json()
    return response.get_json()


def test_the_field_under_the_mouse_is_the_run_s_field(page, moons):
    found = told(page.post("/api/field", json={"points": START}))
    known = moons.field(np.asarray(START, np.float32))
    np.testing.assert_allclose(found["field"], known.direction, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["moves"], -known.direction, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["scalar"], known.distance, rtol=1e-5, atol=1e-6)


def test_the_plane_shows_the_run_s_field(page, moons):
    facts, found = told(page.get("/api/run")), told(page.post("/api/levels", json={}))
    left, right, below, above = facts["extent"]
    n = len(found["value"])
    i, j = 7, 50  # column, row
    x = left + (right - left) * i / (n - 1), below + (above - below) * j / (n - 1)
    distance = moons.field(np.asarray([x], np.float32)).distance[0]
    assert found["value"][j][i] == pytest.approx(float(distance), abs=2e-4)
    for level in found["levels"]:
        for line in level["lines"][:1]:
            on_it = moons.field(np.asarray(line[:5], np.float32)).distance
            np.testing.assert_allclose(on_it, level["level"], atol=0.05)
    assert found["what"] == facts["scalar"] == "distance" and found["levels"]


def test_a_click_starts_the_run_s_own_sampler(page, moons):
    """The chain of its config: a jump by the distance, then Hamiltonian Monte Carlo."""
    keys = rng.per_index(rng.stream(5, "sampler"), np.arange(16), lambda key: key)
    run = jax.jit(lambda x: moons.experiment.sampler(keys, moons.field, x, trace=1))
    asked = {"seed": 5, "starts": START}
    found, known = told(page.post("/api/samples", json=asked)), run(np.resize(START, (16, 2)))
    np.testing.assert_allclose(found["trace"], known.trace[:, :3], atol=2e-4)
    assert found["nfe"] == known.nfe[:3].tolist()
    noise = source(Subject(moons.experiment, moons.params, 0, 5, None), 16)
    found = told(page.post("/api/samples", json={"seed": 5, "num": 4}))  # starts as samples do
    np.testing.assert_allclose(found["trace"], run(noise).trace[:, :4], atol=2e-4)


@pytest.mark.parametrize(("step_size", "num_steps"), [(0.05, 12), (0.2, 12)])
def test_sliders_set_the_step_size_and_the_steps(page, moons, step_size, num_steps):
    stages = [{"step_size": step_size, "num_steps": num_steps}]
    asked = {"sampler": "gradient_descent", "stages": stages, "starts": START}
    found = told(page.post("/api/samples", json=asked))
    sampler = sampling.gradient_descent(step_size)
    x = np.asarray(START, np.float32)
    run = lambda: sampling.sample(
        jax.random.key(0), moons.field, x, sampler, num_steps=num_steps, trace=1
    )
    np.testing.assert_allclose(found["trace"], jax.jit(run)().trace, atol=1e-4)


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_steps_may_follow_from_their_number(page, moons, name):
    """Their step size is left open, and is no zero."""
    asked = {"sampler": name, "stages": [{"num_steps": 12}], "starts": START}
    found = told(page.post("/api/samples", json=asked))
    sampler, x = getattr(sampling, name)(), np.asarray(START, np.float32)
    velocity = lambda x, t=None, cond=None: -moons.field(x).direction
    run = lambda: sampling.sample(jax.random.key(0), velocity, x, sampler, num_steps=12, trace=1)
    known = jax.jit(run)().trace
    assert np.abs(known[-1] - known[0]).max() > 0.01
    np.testing.assert_allclose(found["trace"], known, atol=1e-4)


def test_a_sampler_of_one_s_own_may_ask_its_step_size(moons):
    def halving(step_size: float):
        if step_size > 1:
            raise ValueError("step_size must be at most 1")
        return sampling.gradient_descent(step_size / 2)

    known = moons.experiment.methods[registry.Sampler]["gradient_descent"]
    own = dataclasses.replace(known, name="halving", make=halving)
    methods = moons.experiment.methods.with_own([own])
    seen = look.Subject(moons._replace(experiment=moons.experiment._replace(methods=methods)))
    for size in (0.2, 0.4):
        stages = [{"step_size": size, "num_steps": 1}]
        found = seen.samples({"sampler": "halving", "stages": stages, "starts": START})
        moved = np.asarray(START) - size / 2 * moons.field(np.asarray(START, np.float32)).direction
        np.testing.assert_allclose(found["trace"][-1], moved, atol=1e-4)
    with pytest.raises(UserError, match="at most 1"):
        seen.samples({"sampler": "halving", "stages": [{"step_size": 2}], "starts": START})


def test_samplers_are_those_that_suit_the_field(page):
    names = [one["name"] for one in told(page.get("/api/run"))["samplers"]]
    assert names[0] == choices.OWN
    assert {"gradient_descent", "nesterov", "sphere_tracing", "hamiltonian", "euler"} <= set(names)
    assert not {"sde_euler", "edm_heun", "multistep"} & set(names)  # of times and noise levels


def test_images_are_drawn_as_the_run_draws_them(digits, client_of):
    page = client_of(digits)
    facts = told(page.get("/api/run"))
    assert facts["images"] and not facts["plane"] and len(facts["classes"]) == 10
    found = told(page.post("/api/images", json={"num": 3, "label": 7}))
    pictures = [Image.open(io.BytesIO(base64.b64decode(s.split(",")[1]))) for s in found["images"]]
    known = to_uint8(digits.sample(3, labels=7).x)[..., 0]
    assert np.abs(np.stack(pictures).astype(int) - known.astype(int)).max() <= 1
    assert found["labels"] == [7, 7, 7]
    assert page.post("/api/field", json={"points": START}).status_code == 400


def test_curves_follow_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    folder = Folder(tmp_path)
    assert folder.curves() == ("", {})
    rows = [{"step": i, "split": "train", "loss": 1 / (1 + i)} for i in range(5_000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5000, "spl')
    token, found = folder.curves()
    [(split, points)] = found["loss"].items()
    assert split == "train" and len(points) <= POINTS and points[-1] == [4_999, 1 / 5_000]
    assert folder.curves()[0] == token
    path.write_text('{"step": 1, "split": "eval", "w2": NaN, "what": "<script>"}\n')
    newer, found = folder.curves()
    assert newer != token and found == {"w2": {"eval": [[1, None]]}}


def test_a_newer_checkpoint_is_told_and_loaded(moons, client_of):
    page, folder = client_of(moons), moons.experiment.workdir / "checkpoints"
    (folder / "tmp.30").mkdir()  # as one that is being written
    found = told(page.get("/api/status"))
    assert found == {"step": moons.step, "newest": moons.step}
    (folder / "tmp.30").rmdir()
    (folder / str(moons.step + 1)).mkdir()
    found = told(page.get("/api/status"))
    assert found == {"step": moons.step, "newest": moons.step + 1}
    (folder / str(moons.step + 1)).rmdir()
    assert told(page.post("/api/load", json={})) == {"step": moons.step}
