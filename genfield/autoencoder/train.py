"""The training of a small autoencoder: resume, step, look, save, write it down."""

import json
import math
from argparse import Namespace
from collections import deque
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genfield import data, rng
from genfield.autoencoder import objective
from genfield.data import to_unit
from genfield.errors import UserError
from genfield.features import autoencoder_kl, weights
from genfield.features.autoencoder_kl import Config
from genfield.features.perceptual import perceptual
from genfield.figures import run as figures
from genfield.machine import lock, logbook, preemption, processes, sharding
from genfield.machine.checkpoint import Checkpoints
from genfield.machine.logbook import say
from genfield.pretrained import autoencoders
from genfield.program import train_step
from genfield.reading import json_file

OPTIONS = "training.json"
# What may change from one start to the next.
FREE = ("out", "images", "steps", "eval_every", "save_every")
LOG_EVERY, LAG = 50, 2
WARMUP, CLIP, EMA = 0.02, 1.0, (0.999, 0.05)  # of the steps; of the gradient's norm; rate, ramp
LOOKED_AT, SHOWN = 256, 8  # held-out images that are measured, and those that are drawn
MEASURED = 2048  # training images whose latents give the scaling factor


def run(options: Namespace) -> None:
    """Trains to `steps` and writes the autoencoder; raises preemption.Preempted after saving."""
    with lock.held(options.out / lock.FILE, f"trains in {options.out}", "choose another --out"):
        training = Training(options)
        try:
            training.run()
        finally:
            training.close()


class Training:
    """One training in one process."""

    def __init__(self, options: Namespace):
        self.options = options
        self.mesh = sharding.make_mesh(SimpleNamespace(data=-1, fsdp=1))
        sharding.check_batch("--batch_size", options.batch_size, self.mesh)
        self.data = _open_images(options)
        self.config = _config(options, self.data.shape)
        options.perceptual = _perceptual(options.perceptual)  # what was found is kept, as asked for
        self.objective = self._objective()
        self._agree()
        self.tx = _optimizer(options)
        self.state, meta = self._start()
        self.step = meta.get("step", 0)
        self.metrics = logbook.Metrics(options.out, self.step, saved=meta.get("metrics"))
        self.pending: deque[tuple[int, Any]] = deque()
        self.window: list[dict] = []
        self.look = jax.jit(self._reconstructed)

    def _objective(self) -> objective.Reconstruction:
        options, name = self.options, self.options.perceptual
        distance = None if name == "none" else perceptual(name, size=None, unit_vectors=True)
        return objective.create(
            self.config,
            pixels=options.pixels,
            weights=objective.Weights(options.kl, options.perceptual_weight),
            distance=distance,
            crop=options.crop,
            dtype=options.dtype,
        )

    def _agree(self) -> None:
        """Raises UserError where the folder holds a training of other options."""
        stored = self.options.out / OPTIONS
        plain = {k: v for k, v in vars(self.options).items() if k not in FREE}
        told = json.loads(json.dumps(plain | {"data": self.data.fingerprint}))
        before = json_file(stored) if stored.exists() else told
        for name in told | before:
            if told.get(name) != before.get(name):
                raise UserError(
                    f"{self.options.out} holds a training with {name}={before.get(name)}, not "
                    f"{told.get(name)}: give the same options, or another --out"
                )
        logbook.write_json(stored, told)

    def _start(self) -> tuple[train_step.TrainState, dict]:
        """The state of the newest checkpoint and what is beside it, or that of the beginning."""
        options, everywhere = self.options, sharding.replicated(self.mesh)
        begin = lambda params: train_step.create_state({"autoencoder": params}, self.tx, True)
        params = autoencoder_kl.random(self.config, options.seed)
        state = jax.jit(begin, out_shardings=everywhere)(params)
        self.checkpoints = Checkpoints(options.out)
        abstract = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
        )
        found = self.checkpoints.restore(train_step.held(abstract))
        if found is None:
            return state, {}
        items, meta = found
        if meta["step"] > options.steps:
            raise UserError(
                f"{options.out} is at step {meta['step']}, beyond --steps={options.steps}: set at "
                "least as many, or choose another --out"
            )
        say(f"resuming at step {meta['step']}")
        step = jax.device_put(jnp.int32(meta["step"]), everywhere)
        return train_step.TrainState(step, **items), meta

    def run(self) -> None:
        """Trains, and writes what was learned."""
        options, sizes = self.options, self.data.sizes
        count = sum(a.size for a in jax.tree.leaves(self.state.params))
        say(
            f"{sizes['train']:,} images of {_sides(self.data.shape)} to train on, "
            f"{sizes['test']:,} held out; {count:,} parameters; latents of "
            f"{_sides(_latents(self.config, self.data.shape))}; {self.mesh.size} devices"
        )
        preemption.begin()
        self._train()
        self._look()
        self._save()
        self.checkpoints.wait()
        params = jax.device_get(self.state.ema["autoencoder"])
        scale = self._scale(params)
        file = autoencoders.save(options.out, params, self.config, scaling_factor=scale)
        say(f"scaling factor {scale:.5f}; {file}")

    def _train(self) -> None:
        options, key = self.options, rng.stream(self.options.seed, "train")
        step = train_step.make_train_step(
            self.objective, self.tx, key, ema_rate=EMA[0], ema_ramp_up=EMA[1]
        )
        step = jax.jit(step, out_shardings=sharding.replicated(self.mesh), donate_argnums=0)
        self.progress = logbook.Progress("step", options.steps, self.step, options.batch_size)
        batches = self.data.train(self.step)
        if self.step < options.steps:
            say("compiling the train step …")
        while self.step < options.steps:
            if preemption.reached():
                self._stop()
            batch = sharding.put_batch({"x1": next(batches)["x1"]}, self.mesh)
            self.state, metrics = step(self.state, batch | {"step": np.int32(self.step)})
            self.pending.append((self.step, metrics))
            self.step += 1
            self._settle(LAG)
            if self.step % options.eval_every == 0 and self.step < options.steps:
                self._look()
            if self.step % options.save_every == 0 and self.step < options.steps:
                self._save()
        self._settle(0)

    def _settle(self, leave: int) -> None:
        """Reads the figures of all but the last `leave` steps."""
        while len(self.pending) > leave:
            step, metrics = self.pending.popleft()
            values = {k: float(v) for k, v in jax.device_get(metrics).items()}
            try:
                train_step.check_finite(step, values)
            except FloatingPointError as error:
                processes.check_memory()  # which may be the cause
                raise UserError(
                    f"{error}: try a smaller --learning_rate, in a new --out"
                ) from error
            del values["finite"]
            self.window.append(values)
            if (step + 1) % LOG_EVERY == 0:
                means = {k: float(np.mean([v[k] for v in self.window])) for k in values}
                self.metrics.write(step + 1, "train", means)
                self.window = []
            self.progress.update(step + 1, f"loss {values['loss']:.4g}")

    def _stop(self):
        self._settle(0)
        self._save()
        self.checkpoints.wait()
        say(f"saved step {self.step} of {self.options.steps}; the same command goes on")
        raise preemption.Preempted

    def _save(self) -> None:
        self._settle(0)
        processes.check_memory()
        meta = {"data": self.data.state(self.step), "metrics": self.metrics.sum()}
        self.checkpoints.save(self.step, train_step.held(self.state), meta)

    def _reconstructed(self, params: dict, images: jax.Array) -> jax.Array:
        """Images [B, H, W, C] in [-1, 1] -> what is decoded of the mean of their latents."""
        mean, _ = autoencoder_kl.encode(params, images, self.config, dtype=self.options.dtype)
        return autoencoder_kl.decode(params, mean, self.config, dtype=self.options.dtype)

    def _look(self) -> None:
        """Measures and draws the reconstructions of held-out images."""
        self._settle(0)
        params, size = self.state.ema["autoencoder"], self.options.batch_size
        total = max(1, min(LOOKED_AT, self.data.sizes["test"]) // size)
        errors, pairs = [], []
        for index in range(total):
            if preemption.reached():
                self._stop()
            images = to_unit(self.data.heldout(index, size)["x1"])
            made = np.asarray(self.look(params, sharding.put_batch(images, self.mesh)))
            errors.append(np.square(np.clip(made, -1, 1) - images).mean((1, 2, 3)))
            pairs.append(np.stack([images, np.clip(made, -1, 1)]))
        mse = np.concatenate(errors)
        values = {"mse": float(mse.mean()), "psnr": float(np.mean(10 * np.log10(4 / mse)))}
        self.metrics.write(self.step, "eval", values)
        shown = np.concatenate(pairs, axis=1)[:, : 4 * SHOWN]
        rows = [row for i in range(0, shown.shape[1], SHOWN) for row in shown[:, i : i + SHOWN]]
        file = self.options.out / "reconstructions" / f"step_{self.step}.png"
        figures.image_grid(file, np.concatenate(rows), columns=min(SHOWN, shown.shape[1]))
        line = "\n" if self.progress.terminal else ""
        say(f"{line}held-out at step {self.step}: PSNR {values['psnr']:.2f} dB; {file}")

    def _scale(self, params: dict) -> float:
        """1 / the standard deviation of the latents of training images, posterior included."""
        options, examples = self.options, self.data.examples["train"]
        encode = jax.jit(lambda x: autoencoder_kl.encode(params, x, self.config))
        rows = np.random.default_rng(options.seed).permutation(examples.size)[:MEASURED]
        rows = rows[: max(1, len(rows) // options.batch_size) * options.batch_size]
        moments = []
        for part in np.split(rows, range(options.batch_size, len(rows), options.batch_size)):
            images = to_unit(examples.gather(part)["x1"])
            mean, std = (np.asarray(a, np.float64) for a in encode(images))
            moments.append([mean.mean(), np.mean(mean**2 + std**2)])
        first, second = np.mean(moments, axis=0)
        return float(1 / math.sqrt(second - first**2))

    def close(self) -> None:
        """Ends the files."""
        self.metrics.close()
        self.checkpoints.close()


def _open_images(options: Namespace):
    section = {
        "name": "images",
        "path": str(options.images),
        "size": options.size,
        "max_images": options.max_images,
    }
    return data.create(section, batch_size=options.batch_size, seed=options.seed, log=say)


def _config(options: Namespace, shape: tuple[int, ...]) -> Config:
    """The sizes of the autoencoder; UserError where images do not fit them."""
    config = Config(
        in_channels=shape[-1],
        out_channels=shape[-1],
        latent_channels=options.latent_channels,
        block_out_channels=options.widths,
        layers_per_block=options.layers,
        norm_num_groups=options.groups,
    )
    autoencoder_kl.check(config)
    if any(side % config.factor for side in shape[:2]):
        raise UserError(
            f"the images are {_sides(shape)}, and {len(options.widths)} --widths need sides "
            f"divisible by {config.factor}: pass --size, or fewer --widths"
        )
    if options.crop and options.crop > min(shape[:2]):
        raise UserError(f"--crop={options.crop} is larger than the images, {_sides(shape)}")
    return config


def _latents(config: Config, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*(side // config.factor for side in shape[:2]), config.latent_channels)


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _perceptual(asked: str) -> str:
    """The network of the perceptual distance, or "none"; what "auto" found is told."""
    if asked != "auto":
        return asked
    found = next((n for n in ("vgg16", "efficientnet_lite0") if weights.here(n)), "none")
    missing = "no weights of vgg16 or efficientnet_lite0 here: the loss is of pixels alone"
    say(missing if found == "none" else f"perceptual distance in features of {found}")
    return found


def _optimizer(options: Namespace) -> optax.GradientTransformation:
    warmup = min(int(WARMUP * options.steps) + 1, options.steps)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, warmup, max(options.steps, warmup + 1)
    )
    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(rate, b1=0.9, b2=0.99))
