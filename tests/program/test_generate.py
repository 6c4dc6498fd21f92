"""A sample's noise and label are functions of (seed, index), whatever batch it is drawn in."""

import numpy as np
import pytest
from programs import TINY_DIGITS

from genfield.program import config_io, experiment, generate
from genfield.sampling import Samples


def told(keys, field, x, cond, trace=None):
    """A sampler that gives the noise it starts from, and the label that it was asked for."""
    count = np.ones(len(x), np.int32)
    return Samples(x, count, None, {"label": cond})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    exp = experiment.prepare(config_io.load(str(TINY_DIGITS)), tmp_path_factory.mktemp("digits"))
    generator = generate.make_generator(exp._replace(sampler=told))
    params = exp.init().params
    return lambda index, *labels: generator(params, 0, np.asarray(index), *labels)[0]


def test_a_label_is_the_index_modulo_the_classes_in_any_batch(run):
    whole, part = run(np.arange(16)), run(np.arange(8, 16))
    np.testing.assert_array_equal(whole.info["label"], np.arange(16) % 10)
    np.testing.assert_array_equal(part.info["label"], whole.info["label"][8:])
    np.testing.assert_array_equal(part.x, whole.x[8:])


def test_given_labels_count(run):
    np.testing.assert_array_equal(run(np.arange(8), np.full(8, 3)).info["label"], np.full(8, 3))
