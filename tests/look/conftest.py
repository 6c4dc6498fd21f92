"""The tiny runs that are looked at, and a client of the page that needs no network."""

import pytest
from programs import MOONS, TINY_DIGITS, trained

import genfield


@pytest.fixture(scope="package")
def moons(tmp_path_factory):
    """A run in the plane, opened."""
    return genfield.open_run(trained(tmp_path_factory, MOONS, train__steps=2))


@pytest.fixture(scope="package")
def digits(tmp_path_factory):
    """A run of images with classes, opened."""
    return genfield.open_run(trained(tmp_path_factory, TINY_DIGITS, small={"train.steps": 2}))


@pytest.fixture(scope="package")
def client_of():
    """run -> a client of its page."""
    pytest.importorskip("flask")
    from genfield.look.server import create_app

    def made(run, host="127.0.0.1"):
        reopen = lambda: genfield.open_run(run.experiment.workdir)
        return create_app(run, "a run", reopen, host).test_client()

    return made


@pytest.fixture(scope="package")
def page(moons, client_of):
    """The page of the run in the plane."""
    return client_of(moons)
