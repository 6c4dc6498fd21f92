"""Figures of a run itself, which the program computes: held-out loss, likelihood of images."""

from genfield import registry
from genfield.metrics import needs


def _heldout(evaluator, params, known) -> dict[str, float]:
    """The loss on held-out data, and its terms; `known` where they were just computed."""
    return known or evaluator.heldout(params)


def _bits(evaluator, params, known) -> dict[str, float]:
    """Bits a dimension of test images."""
    return evaluator.bits_per_dim(params)


def _method(name: str, against, figure: str, compute) -> registry.Metric:
    return registry.Metric(
        name=name,
        reads="run",
        against=against,
        gaussians=(),
        features=(),
        of_reference=False,
        least=1,
        smaller=(figure,),
        compute=compute,
    )


METHODS = (
    _method("heldout_loss", needs.nothing, "loss", _heldout),
    _method("bits_per_dim", needs.likelihood, "bits_per_dim", _bits),
)
