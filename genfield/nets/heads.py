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

    input_scale = 1.0  # of what it reads, where v does not see u
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
FIELDS = (
    "direction_scale",
    "distance_time_scale",
    "distance_time_gradient",
    "distance_input_scale",
)


class Distance(nnx.Module):
    """A head that predicts u(x) beside a network's direction v(x), always in float32.

    Fields:
      input_scale: on the image that the head reads.
      time_scale: the network takes u(x) times this as its time; None: it does not see u.
      time_gradient: whether v's losses train u on that way.
      direction_scale: on the network's output.
    """

    def __init__(self, head, *, input_scale, time_scale, time_gradient, direction_scale):
        self.head = head
        self.input_scale, self.direction_scale = input_scale, direction_scale
        self.time_scale, self.time_gradient = time_scale, time_gradient

    def __call__(self, x, t, cond):
        """[B, H, W, C], [B], labels or None -> the distance [B], and the network's time [B]."""
        distance = self.head(x * self.input_scale, cond)
        if self.time_scale is None:
            return distance, t
        seen = distance if self.time_gradient else jax.lax.stop_gradient(distance)
        return distance, self.time_scale * seen

    def prediction(self, output, distance) -> Prediction:
        """[B, H, W, C] of the network, [B] -> both."""
        return Prediction(output * self.direction_scale, distance)


def create(name, fields: tuple, channels, num_classes, rngs) -> Distance | None:
    """The head of a config's `distance_head`, with those of FIELDS that are not None.

    direction_scale, on the network's output, is by itself the paper's 1/120. With
    distance_time_scale, "distance input rescaling" of Tables 6 and 7, the network takes u(x) times
    it as the time that the method leaves free: the tables list it under v's network, beside the
    output's. Without it v does not see u. distance_time_gradient: whether v's losses train u on
    that way, which the paper does not say; by itself they do not. distance_input_scale, on the
    image that the head reads, is by itself 1, or 0.01 for "imagenet" where v does not see u, as
    earlier versions had it.

    Args:
      name: None (no head), "cifar", "cifar_narrow" or "imagenet".
      fields: of FIELDS, in their order.
    Raises:
      UserError: an unknown head, one of the fields without a head, a gradient without a way.
    """
    given = dict(zip(FIELDS, fields, strict=True))
    given = {field: value for field, value in given.items() if value is not None}
    if name is None:
        if given:
            raise errors.UserError(
                f"{next(iter(given))} has no effect without a distance head: set distance_head to "
                f"one of {', '.join(HEADS)}, or drop {next(iter(given))}"
            )
        return None
    kind = registry.choose("distance head", name, HEADS)
    time_scale = given.get("distance_time_scale")
    if "distance_time_gradient" in given and time_scale is None:
        raise errors.UserError(
            "distance_time_gradient has no effect where the direction does not see the distance: "
            "set distance_time_scale (1 on images, 0.01 on latents), or drop it"
        )
    plain = kind.input_scale if time_scale is None else 1.0
    return Distance(
        kind(channels=channels, num_classes=num_classes, rngs=rngs),
        input_scale=given.get("distance_input_scale", plain),
        time_scale=time_scale,
        time_gradient=given.get("distance_time_gradient", False),
        direction_scale=given.get("direction_scale", DIRECTION_SCALE),
    )
