"""genfield's rows of the table beside its peers, with shrunk networks: each does its work."""

import sys
from pathlib import Path

import jax
import pytest

from genfield.program import experiment

SMALL = {
    "sit": dict(depth=1, width=16, num_heads=2),
    "unet": dict(channels=8, num_res_blocks=1, attention_levels=()),
    "ddpmpp": dict(channels=8, num_res_blocks=1),
    "mlp": {},
}
ROWS = ("sit", "sit_loop", "sample", "ddpmpp", "unet", "flux", "mlp", "dopri5")


@pytest.fixture
def ours(monkeypatch):
    """The rows, whose networks are as small as can be."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import ours

    prepare = experiment.prepare

    def shrunk(config, *arguments, **keywords):
        config.net.update(SMALL[config.net.name])
        return prepare(config, *arguments, **keywords)

    monkeypatch.setattr(experiment, "prepare", shrunk)
    yield ours
    jax.clear_caches()
    sys.modules.pop("ours", None)  # with its folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_row_does_its_work(ours, name):
    """run() asserts that the step changed the state; a row has parameters or a value to compare."""
    row = ours.ROWS[name]()
    spent = row.run(2)
    assert row.parameters or row.value
    assert (spent is None) == (name != "sit_loop")
    assert spent is None or spent > 0
