"""The parts of accelerator.py: each yields rows of figures, as it has them."""

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import predicted
import rounds
import steps

from genfield import couplings
from genfield.distances import squared_distances
from genfield.features import autoencoder_kl
from genfield.machine import chips, flops
from genfield.nets import attention as nets_attention
from genfield.program import config_io, generate, speed

ROUNDS = 5
SIT = "equilibrium_matching_imagenet256.py"
TOY_SIT = [f"--config.net.{field}" for field in ("depth=2", "width=32", "num_heads=2")]
TOY_SIT += ["--config.batch_size=8", "--config.sampler.num_steps=3", "--config.sample.num=8"]
TOY_SIT += ["--config.sample.batch_size=8"]


def _started(name: str) -> dict:
    """What every row begins with; compiled programs are kept for the second call."""
    folder = os.path.join(tempfile.gettempdir(), "genfield_accelerator")
    jax.config.update("jax_compilation_cache_dir", folder)
    return {"what": name, "device": jax.devices()[0].device_kind}


def _memory() -> float | None:
    """GiB that the process has held on its device at most."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 2**30 if stats else None


def _median(run, turns: int = ROUNDS) -> float:
    """Seconds of a call, after one that is not counted."""
    run()
    return float(np.median([rounds.timed(lambda: (run(), 1)[1])[0] for _ in range(turns)]))


def _sit(size: str, shrink: bool) -> Iterator[dict]:
    row, on = _started(f"EqM, SiT-{size}"), predicted.target()
    exp = predicted.prepare(f"{SIT}:{size}", TOY_SIT if shrink else [], on)
    ready = predicted.train_step(exp, on)
    seconds = _median(lambda: ready.run(1 if shrink else 5)) / (1 if shrink else 5)
    plan, net, least = ready.predicted, exp.config.net, _at_peak(exp, on)
    row |= {"batch": ready.batch, "dtype": net.dtype, "remat": net.get("remat", "none")}
    row |= {"examples/s": ready.batch / seconds, "s": seconds}
    row |= {"predicted s": plan["seconds"]["predicted"], "GiB": _memory()}
    row |= {"predicted GiB": plan["memory_bytes"]["peak"] / 2**30, "MFU": least / seconds}
    yield row | {"predicted MFU": least / plan["seconds"]["predicted"]}


def _at_peak(exp, on) -> float:
    """Seconds of a train step that computes nothing twice, at the chip's peak."""
    plain = speed.without_remat(exp.config, exp.methods)
    exp = exp if plain is None else predicted.build(plain, exp.methods, on)
    counted = flops.count(predicted.programs.train(exp).traced.jaxpr)
    counted.pop(flops.UNKNOWN, None)
    return chips.at_peak(counted, on.chip.flops)


def sit_b(shrink: bool) -> Iterator[dict]:
    """The train step of SiT-B/2 at the paper's batch, as its config has it."""
    return _sit("B/2", shrink)


def sit_xl(shrink: bool) -> Iterator[dict]:
    """The train step of SiT-XL/2."""
    return _sit("XL/2", shrink)


def sampling(shrink: bool) -> Iterator[dict]:
    """A batch of samples by the config's sampler, with and without guidance."""
    row, on = _started("EqM, SiT-B/2"), predicted.target()
    for scale in (1.0, 1.5):
        flags = [*(TOY_SIT if shrink else []), f"--config.sample.guidance_scale={scale}"]
        exp = predicted.prepare(f"{SIT}:B/2", flags, on)
        run = generate.make_generator(exp, gather=False)
        params = generate.parameters(exp, exp.init())
        size = generate.batch_size(exp, exp.config.sample.num, kept=True)
        draw = lambda run=run, params=params, size=size: jax.block_until_ready(
            run(params, 0, np.arange(size))[0].x
        )
        draw()  # compiles
        seconds, _ = rounds.timed(lambda draw=draw: draw() is None or 1)
        made = {"guidance": scale, "steps": exp.config.sampler.num_steps, "batch": size}
        yield row | made | {"s": seconds, "samples/s": size / seconds, "GiB": _memory()}


def decoding(shrink: bool) -> Iterator[dict]:
    """Stable Diffusion's decoder with random weights, in both dtypes."""
    row = _started("decoder of 32x32x4 latents")
    config, batch, side = autoencoder_kl.Config(), 16, 32
    if shrink:
        config = config._replace(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4)
        batch, side = 2, 8
    drawn = autoencoder_kl.random(config, 0)
    x = jax.random.normal(jax.random.key(0), (batch, side, side, config.latent_channels))
    for dtype, kind in autoencoder_kl.DTYPES.items():
        params = jax.tree.map(lambda a, kind=kind: jnp.asarray(a, kind), drawn)
        decode = jax.jit(functools.partial(autoencoder_kl.decode, config=config, dtype=dtype))
        run = functools.partial(decode, params, x)
        seconds = _median(lambda run=run: run().block_until_ready())
        yield row | {"dtype": dtype, "batch": batch, "images/s": batch / seconds, "GiB": _memory()}


def _directional(attend):
    """Of Flux Matching's and EqM-E's kind: the gradient of a directional derivative."""

    def value(q, k, v):
        tangents = tuple(map(jnp.ones_like, (q, k, v)))
        return jax.jvp(attend, (q, k, v), tangents)[1].astype(jnp.float32).sum()

    return jax.grad(value, (0, 1, 2))


def attention(shrink: bool) -> Iterator[dict]:
    """Forward, gradient and the gradient of a directional derivative of each kernel there is."""
    kernels = {"xla": functools.partial(nets_attention.attend, kind="xla")}
    kernels["chunked"] = nets_attention.chunked
    fused = {"gpu": nets_attention.cudnn, "tpu": nets_attention.splash}
    if platform := fused.get(jax.devices()[0].platform):
        kernels[platform.__name__] = platform
    for tokens in (64,) if shrink else (256, 1024, 4096):
        shape = (1, tokens, 2, 8) if shrink else (2**16 // tokens, tokens, 16, 72)
        inputs = [jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i in range(3)]
        for name, kernel in kernels.items():
            total = lambda q, k, v, f=kernel: f(q, k, v).astype(jnp.float32).sum()
            row = _started("16 heads of 72, bfloat16") | {"tokens": tokens, "batch": shape[0]}
            row["kernel"] = name
            derived = {"forward s": kernel, "gradient s": jax.grad(total, (0, 1, 2))}
            if kernel not in fused.values():  # those have no other derivative
                derived["of a directional s"] = _directional(kernel)
            for what, function in derived.items():
                try:
                    compiled = jax.jit(function).lower(*inputs).compile()
                    memory = compiled.memory_analysis().temp_size_in_bytes
                    run = functools.partial(compiled, *inputs)
                    row[what] = _median(lambda run=run: jax.block_until_ready(run()))
                    row[what.replace(" s", " MiB")] = memory / 2**20
                except jax.errors.JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    row[what] = "does not fit"
            yield row


def _trunk(base, method: str, shrink: bool):
    """A change of a method's config: the network of flow matching's, the paper's batch of a GPU."""

    def change(config) -> None:
        head = config.net.get("distance_head")
        config.net = base.net.copy_and_resolve_references()
        config.net.dtype = "float32" if shrink else "bfloat16"
        if shrink:
            config.net.update(channels=8, channel_multipliers=(1, 1), num_res_blocks=1)
            config.net.attention_levels = ()
        if head is not None:
            config.net.distance_head = head
        config.batch_size = 4 if shrink else 128
        if config.loss.get("group_size"):
            config.loss.group_size = config.batch_size
        if method == "LMM, perceptual":
            config.loss.distance = dict(name="perceptual", network="vgg16", seed=0)
            config.loss.distance.size = 32 if shrink else 64

    return change


METHODS = {
    "FM": "flow_matching_cifar10.py",
    "EqM": "equilibrium_matching_cifar10.py",
    "DM": "distance_marching_cifar10.py",
    "DSM": "denoising_cifar10.py",
    "Flux": "flux_matching_cifar10.py",
    "LMM, L2": "lines_cifar10.py:l2",
    "LMM, perceptual": "lines_cifar10.py:perceptual",
}


def methods(shrink: bool) -> Iterator[dict]:
    """Each method's train step over flow matching's, same network and batch, interleaved."""
    row, on = _started("CIFAR-10, U-Net"), predicted.target()
    size = ":small" if shrink else ""
    base, _ = config_io.read(str(steps.ROOT / "configs" / (METHODS["FM"] + size)))
    first = None
    for name, file in METHODS.items():
        change = _trunk(base, name, shrink)
        side = 8 if shrink else 32
        exp = predicted.prepare(file, [], on, (side, side, 3), 0, change)
        ready = predicted.train_step(exp, on)
        first = first or ready
        count, batch = (1 if shrink else 5), ready.batch
        ready.run(1)
        timed = lambda one, count=count, batch=batch: (
            lambda: rounds.timed(lambda: one.run(count) or count * batch)
        )
        rates = rounds.interleave({"FM": timed(first), name: timed(ready)}, ROUNDS)
        over = rounds.spread(rates["FM"] / rates[name], rounds.ratio)
        memory = ready.predicted["memory_bytes"]["temporaries"] / 2**30
        yield row | {
            "method": name,
            "batch": batch,
            "examples/s": float(np.median(rates[name])),
            "time over FM's": over if name != "FM" else "1",
            "temporaries GiB": memory,
            "compiling s": ready.compiling,
        }


HUNGARIAN = """
import sys, time, numpy as np
from scipy.optimize import linear_sum_assignment
cost = np.load(sys.argv[1])
begun = time.perf_counter()
linear_sum_assignment(cost)
print(time.perf_counter() - begun)
"""


def matching(shrink: bool) -> Iterator[dict]:
    """Greedy matching of noises and uniform images on the device, SciPy's algorithm on the host."""
    n = 100 if shrink else 10_000
    row = _started("matching, 3,072 dimensions") | {"pairs": n}
    x0 = jax.random.normal(jax.random.key(0), (n, 3072))
    x1 = jax.random.uniform(jax.random.key(1), (n, 3072), minval=-1.0, maxval=1.0)
    distances = jax.jit(squared_distances)
    yield row | {
        "by": "distances alone",
        "s": _median(lambda: distances(x1, x0).block_until_ready()),
    }
    for method in ("parallel", "sequential"):
        match = jax.jit(functools.partial(couplings.greedy, method=method))
        seconds = _median(lambda match=match: match(x0, x1).block_until_ready(), 3)
        yield row | {"by": f"greedy, {method}, in all", "s": seconds}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/cost.npy"
        np.save(path, np.asarray(distances(x1, x0)))
        command = [sys.executable, "-c", HUNGARIAN, path]
        begun = time.perf_counter()
        try:
            out = subprocess.run(command, capture_output=True, text=True, timeout=75, check=True)
            found = {"s": float(out.stdout)}
        except subprocess.TimeoutExpired:
            found = {"s": f"above {time.perf_counter() - begun:.0f}"}
    yield row | {"by": "Hungarian algorithm (SciPy, host), beyond the distances"} | found
