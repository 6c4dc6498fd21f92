"""What is reported of several sampling seeds."""

from types import SimpleNamespace

import pytest

from genfield import configuration
from genfield.program.evaluate import Evaluator


@pytest.mark.parametrize("pixels, middle", [(False, 2.0), (True, 4.0)])
def test_medians_are_reported_of_points_and_means_of_images(pixels, middle):
    evaluator = Evaluator.__new__(Evaluator)
    evaluator.exp = SimpleNamespace(config=configuration.base(), pictures=pixels, decoder=None)
    values = iter([1.0, 2.0, 9.0])
    evaluator.of_samples, evaluator.judge = [object()], None
    evaluator._samples = lambda *arguments: {"w2": next(values)}
    out = evaluator.samples(None, 4, 3)
    assert out.results == {"w2": middle} and out.seeds == [1, 2, 3]
    assert out.spread["w2"] == pytest.approx(4.358898944)
