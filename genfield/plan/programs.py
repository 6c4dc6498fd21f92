"""What a plan compiles: the train step and a step of the sampler.

Each is what the program itself runs, traced from shapes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genfield import rng
from genfield.features import autoencoder_kl
from genfield.features.weights import nested
from genfield.machine import sharding
from genfield.plan import shapes
from genfield.pretrained.autoencoders import PUBLISHED
from genfield.program import experiment, generate
from genfield.program.decoder import DECODER, Decoder, Weights, open_weights
from genfield.program.experiment import Experiment


class Traced(NamedTuple):
    """One of them.

    Attributes:
      traced: by `jax.jit(…).trace`. batch: examples of a call, over all devices.
      calls: how often it runs for a batch; None: as often as an adaptive solver wants.
      what: in words.
    """

    traced: jax.stages.Traced
    batch: int
    calls: int | None
    what: str


def train(exp: Experiment) -> Traced:
    """The train step."""
    step = experiment.jit_train_step(exp)
    size = exp.config.batch_size
    return Traced(step.trace(exp.abstract, shapes.batch(exp)), size, 1, "a train step")


def sample(exp: Experiment) -> Traced:
    """A step of the sampler's first stage; all of it, where it has no pieces."""
    size = generate.batch_size(exp, exp.config.sample.num, kept=True)
    split = sharding.batch_sharding(exp.mesh)
    at = lambda a: jax.ShapeDtypeStruct(
        a.shape,
        a.dtype,
        sharding=split if a.shape[:1] == (size,) else sharding.replicated(exp.mesh),
    )
    params = exp.abstract.ema if generate.averaged(exp) else exp.abstract.params
    x = at(jax.ShapeDtypeStruct((size, *exp.data.shape), jnp.float32))
    index = at(jax.ShapeDtypeStruct((size,), jnp.int32))
    cond = index if exp.data.num_classes else None
    key = rng.stream(0, "sampler")
    keys = lambda index: rng.per_index(key, index, lambda key: key)
    pieces = exp.sampler._replace(slots=0).pieces()
    field = lambda params, cond: exp.sampler.follow(exp.objective.field(params), cond)
    if pieces is None:

        def whole(params, index, x, cond):
            return exp.sampler(keys(index), exp.objective.field(params), x, cond).x

        traced = jax.jit(whole, out_shardings=split).trace(params, index, x, cond)
        return Traced(traced, size, 1, "the whole of the sampler")
    first = pieces[0]
    begin = lambda params, x, cond: first.begin(field(params, cond), x, cond)
    carry = jax.tree.map(at, jax.eval_shape(begin, params, x, cond))

    def step(params, index, carry, cond):
        return first.advance(keys(index), field(params, cond), carry, cond, 0, 1)

    places = jax.tree.map(lambda a: a.sharding, carry)
    traced = jax.jit(step, out_shardings=places).trace(params, index, carry, cond)
    return Traced(traced, size, first.steps, "a step of the sampler")


def decode(exp: Experiment) -> Traced | None:
    """What a device decodes at a time, where the config names an autoencoder.

    Of a published one the shapes are known; a file or a folder is opened for its own.
    """
    if exp.decoder is None:
        return None
    decoder, published = exp.decoder, autoencoder_kl.Config()
    if exp.config.autoencoder in PUBLISHED and not Path(exp.config.autoencoder).exists():
        weights = _of_shapes(published, exp.config)
    else:
        weights = open_weights(exp.config)
    decoder = Decoder(exp.config, exp.data, exp.mesh, weights)
    held = generate.batch_size(exp, exp.config.sample.num, kept=True) // exp.mesh.size
    size = decoder.at_a_time(held)
    whole, split = sharding.replicated(exp.mesh), sharding.batch_sharding(exp.mesh)
    at = lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place)
    params = jax.tree.map(lambda a: at(a, whole), weights.params)
    x = jax.ShapeDtypeStruct((held * exp.mesh.size, *exp.data.shape), jnp.float32, sharding=split)
    first = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    traced = decoder.decode(size, levels=True).trace(params, x, first)
    return Traced(traced, held * exp.mesh.size, -(-held // size), f"decoding {size} images a chip")


def _of_shapes(config: autoencoder_kl.Config, run) -> Weights:
    """A decoder without values."""
    dtype = autoencoder_kl.DTYPES[run.autoencoder_dtype]
    named = {n: s for n, s in autoencoder_kl.shapes(config).items() if n.startswith(DECODER)}
    zeros = nested({name: np.broadcast_to(np.float32(0), shape) for name, shape in named.items()})
    return Weights(
        decode=lambda params, x: autoencoder_kl.decode(
            params, x, config, dtype=run.autoencoder_dtype
        ),
        params=jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), zeros),
        factor=config.factor,
        latent_channels=config.latent_channels,
        channels=config.out_channels,
        hash="",
        source=run.autoencoder,
    )


PROGRAMS: dict[str, Callable[[Experiment], Traced | None]] = {
    "train": train,
    "sample": sample,
    "decode": decode,
}
