"""Squared distances between sets of points."""

import jax
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from genfield import distances


@pytest.mark.parametrize("count", [distances.ROWS, 2 * distances.ROWS, 2 * distances.ROWS + 3])
@pytest.mark.parametrize("rounding", [None, distances.ROUNDING])
def test_blocks_of_rows_give_what_one_piece_gives(count, rounding):
    """Whole blocks and a rest, under jit, beside SciPy's in float64."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((count, 3, 2)), rng.standard_normal((7, 3, 2))
    b[:3] = a[-3:]
    a, b = a.astype(np.float32), b.astype(np.float32)
    found = jax.jit(lambda a, b: distances.squared_distances(a, b, rounding))(a, b)
    expected = cdist(a.reshape(count, -1), b.reshape(7, -1), "sqeuclidean")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    if rounding is not None:
        assert np.all(np.asarray(found)[-3:][np.eye(3, 7, dtype=bool)] == 0)


def test_memory_is_that_of_the_result_and_a_block():
    """At 4,000 points in 64 dimensions the temporaries stay below two copies of the result."""
    points = jax.ShapeDtypeStruct((4000, 64), np.float32)
    compiled = jax.jit(distances.squared_distances).lower(points, points).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * 4000 * 4000 * 4
