"""Distance heads: small networks of the input that predict Distance Marching's u(x).

Source: Distance Marching, Appendix B, Fig. 17, Tables 6 and 7.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from genfield import errors, registry
from genfield.fields import Prediction
from genfield.nets import layers

DIRECTION_SCALE = 1 / 120  # Tables 6, 7: "output rescaling"


class CifarHead(nnx.Module):
    """Two 3x3 convolutions, global mean, linear: 10,177 parameters on three channels (Table 6)."""

    input_scale = 1.0
    width = 32

    def __init__(self, *, channels, num_classes, rngs):
        self.conv1 = layers.torch_conv(channels, self.width, 3, rngs=rngs)
        self.conv2 = layers.torch_conv(self.width, self.width, 3, rngs=rngs)
        self.last = layers.torch_linear(self.width, 1, rngs=rngs)

    def __call__(self, x, cond):
        """[B, H, W, C] -> [B]."""
        h = jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(x))))
        return self.last(h.mean(axis=(1, 2)))[:, 0]


class NarrowCifarHead(CifarHead):
    """The same at width 16, for small networks: at 32 it would cost a tenth of such a step."""

    width = 16


class ImagenetHead(nnx.Module):
    """The same at width 64 and a label-modulated residual MLP: 62,801 parameters on four channels
    and 1000 classes (Table 7)."""

    input_scale = 0.01

    def __init__(self, *, channels, num_classes, rngs):
        self.conv1 = layers.torch_conv(channels, 64, 3, rngs=rngs)
        self.conv2 = layers.torch_conv(64, 64, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(
            64, use_bias=False, use_scale=False, use_fast_variance=False, rngs=rngs
        )
        self.labels = layers.label_rows(num_classes, 16, rngs=rngs)
        self.modulation = layers.torch_linear(16, 3 * 64, rngs=rngs)
        self.residual = layers.torch_linear(64, 64, rngs=rngs)
        self.last = layers.torch_linear(64, 1, rngs=rngs)

    def __call__(self, x, cond):
        """[B, H, W, C], [B] labels or None -> [B]."""
        h = jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(x)))).mean(axis=(1, 2))
        rows = jnp.zeros(len(x), jnp.int32) if cond is None else cond
        modulation = self.modulation(jax.nn.silu(self.labels(rows)))
        shift, scale, gate = jnp.split(modulation, 3, axis=-1)
        modulated = self.norm(h) * (1 + scale) + shift
        h = h + gate * self.residual(jax.nn.silu(modulated))
        return self.last(h)[:, 0]


HEADS = {"cifar": CifarHead, "cifar_narrow": NarrowCifarHead, "imagenet": ImagenetHead}


class Distance(nnx.Module):
    """Turns a network's output into a `Prediction`: direction = output x direction_scale,
    distance = head(x x distance_input_scale, labels), always in float32."""

    def __init__(self, head, direction_scale, distance_input_scale):
        self.head = head
        self.direction_scale = direction_scale
        self.distance_input_scale = distance_input_scale

    def __call__(self, x, output, cond) -> Prediction:
        distance = self.head(x * self.distance_input_scale, cond)
        return Prediction(output * self.direction_scale, distance)


def create(
    name, direction_scale, distance_input_scale, *, channels, num_classes, rngs
) -> Distance | None:
    """The head of a config's fields `distance_head`, `direction_scale`, `distance_input_scale`.

    Args:
      name: None (no head), "cifar", "cifar_narrow" or "imagenet".
      direction_scale: None for the paper's 1/120.
      distance_input_scale: None for the paper's 1.0 (cifar heads) or 0.01 (imagenet).
    Raises:
      UserError: an unknown head, or a scale without a head.
    """
    if name is None:
        scales = {"direction_scale": direction_scale, "distance_input_scale": distance_input_scale}
        for field, value in scales.items():
            if value is not None:
                raise errors.UserError(
                    f"{field} has no effect without a distance head: set distance_head to one of "
                    f"{', '.join(HEADS)}, or drop {field}"
                )
        return None
    kind = registry.choose("distance head", name, HEADS)
    return Distance(
        kind(channels=channels, num_classes=num_classes, rngs=rngs),
        DIRECTION_SCALE if direction_scale is None else direction_scale,
        kind.input_scale if distance_input_scale is None else distance_input_scale,
    )
