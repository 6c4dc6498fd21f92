"""Rules and layouts: both directions, to the bit, and what does not fit."""

import numpy as np
import pytest

from genfield.errors import UserError
from genfield.pretrained import mapping
from genfield.pretrained.mapping import Buffer, Rule

RNG = np.random.default_rng(0)
LAYOUTS = {
    "same": (mapping.same, (3,), lambda a: a),
    "linear": (mapping.linear, (3, 5), lambda a: a.T),
    "conv": (mapping.conv, (3, 5, 2, 4), lambda a: np.moveaxis(a, (0, 1), (3, 2))),
    "negated": (mapping.negated(mapping.linear), (3, 5), lambda a: -a.T),
    "reordered": (
        mapping.reordered(mapping.linear, np.array([2, 0, 1]), 0),
        (3, 5),
        lambda a: a[[2, 0, 1]].T,
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_what_it_says_and_comes_back_to_the_bit(name):
    layout, shape, oracle = LAYOUTS[name]
    theirs = RNG.normal(size=shape).astype(np.float32)
    theirs.flat[:2] = 0.0, -0.0  # whose signs come back too
    ours = layout.ours(theirs)
    assert np.array_equal(ours, oracle(theirs))
    assert layout.theirs(ours).tobytes() == theirs.tobytes()


RULES = [
    *mapping.affine("layers.{}.fc", "stack/fc", rows=2),
    *mapping.affine("out", "out"),
    Buffer("table", np.arange(3.0, dtype=np.float32)),
]
SHAPES = {"layers.0.fc.weight": (4, 3), "layers.0.fc.bias": (4,), "layers.1.fc.weight": (4, 3)}
SHAPES |= {"layers.1.fc.bias": (4,), "out.weight": (2, 4), "out.bias": (2,), "table": (3,)}
ARRAYS = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
ARRAYS["table"] = np.arange(3.0, dtype=np.float32)
PARAMS = {
    "stack": {"fc": {"kernel": np.zeros((2, 3, 4)), "bias": np.zeros((2, 4))}},
    "out": {"kernel": np.zeros((4, 2)), "bias": np.zeros(2)},
}


def test_stacks_and_buffers_come_back():
    assert mapping.published_shapes(RULES, PARAMS) == SHAPES
    ours = mapping.to_ours(RULES, ARRAYS, PARAMS, "file", "a network")
    assert np.array_equal(ours["stack"]["fc"]["kernel"][1], ARRAYS["layers.1.fc.weight"].T)
    back = mapping.to_theirs(RULES, ours)
    assert back.keys() == ARRAYS.keys()
    assert all(back[name].tobytes() == ARRAYS[name].tobytes() for name in ARRAYS)


def test_half_precision_becomes_float32_and_no_numbers_are_refused():
    halves = {name: array.astype(np.float16) for name, array in ARRAYS.items()}
    ours = mapping.to_ours(RULES, halves, PARAMS, "file", "a network")
    assert ours["out"]["kernel"].dtype == np.float32
    wrong = ARRAYS | {"out.bias": np.zeros(2, np.complex64)}
    with pytest.raises(UserError, match=r"file is damaged: 'out.bias' holds no real numbers"):
        mapping.to_ours(RULES, wrong, PARAMS, "file", "a network")


def test_rules_that_name_a_parameter_which_is_not_there_are_a_bug():
    rule = Rule("more", "more", mapping.same)
    with pytest.raises(KeyError, match="more"):
        mapping.published_shapes([*RULES, rule], PARAMS)
