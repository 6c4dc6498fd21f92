"""What the benchmarks share: interleaved rounds, ratios within a round, generated data, tables."""

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from PIL import Image

CLASSES = 10


def interleave(
    candidates: dict[str, Callable[[], tuple[float, int]]], rounds: int
) -> dict[str, np.ndarray]:
    """Runs all candidates in each round; every second round in the opposite order.

    So a load that grows or fades over a round favours each candidate as often as it harms it.

    Args:
      candidates: by name; each returns the seconds it measured and the examples it worked off.
    Returns:
      By name, the examples/s of each round.
    """
    rates = {name: [] for name in candidates}
    for r in range(rounds):
        for name in list(candidates)[:: 1 if r % 2 == 0 else -1]:
            seconds, examples = candidates[name]()
            rates[name].append(examples / seconds)
    return {name: np.array(values) for name, values in rates.items()}


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """The seconds that some work takes, and what it returns."""
    begun = time.perf_counter()
    examples = work()
    return time.perf_counter() - begun, examples


def number(value: float) -> str:
    """Four digits, or all before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def ratio(value: float) -> str:
    """A number near one."""
    return f"{value:.3f}"


def spread(values, show: Callable[[float], str] = number) -> str:
    """The median, with the smallest and the largest value in parentheses."""
    return f"{show(np.median(values))} ({show(np.min(values))} to {show(np.max(values))})"


def summary(values) -> dict:
    """Median, extremes and all values, for a JSON file."""
    values = [float(v) for v in values]
    return dict(median=float(np.median(values)), min=min(values), max=max(values), rounds=values)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def machine() -> dict:
    """Where the figures come from; `load`: busy processes, averaged over the last minute."""
    device = jax.devices()[0]
    return dict(
        device=f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        processor=_processor(),
        load=round(os.getloadavg()[0], 2),
        jax=jax.__version__,
        python=platform.python_version(),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def describe(where: dict) -> str:
    """One line of `machine()`, with a warning where other programs seem to share it."""
    line = ", ".join(f"{name} {value}" for name, value in where.items())
    busy = "\nThe machine was busy in the last minute: trust the ratios, not the times."
    return line + (busy if where["load"] > 0.5 else "")


def write_images(path: Path, count: int, side: int = 32) -> Path:
    """An .npz of uniform uint8 images: `train_images`, and a few `test_images`."""
    rng = np.random.default_rng(0)
    draw = lambda n: rng.integers(0, 256, (n, side, side, 3), np.uint8)
    np.savez(path, train_images=draw(count), test_images=draw(max(1, count // 10)))
    return path


def write_jpegs(folder: Path, count: int, side: int) -> Path:
    """A folder `train/<class>/<number>.jpg` of smooth images, about as large as photographs are."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        fine = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(fine + rng.integers(-8, 9, fine.shape), 0, 255).astype(np.uint8)
        target = folder / "train" / str(i % CLASSES) / f"{i}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(target, quality=90)
    return folder


def write_latents(folder: Path, count: int) -> Path:
    """A folder with normal latents.npy [count, 32, 32, 4], float16, and labels.npy."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    # The source multiplies by 0.18215; these come out with unit variance.
    values = rng.standard_normal((count, 32, 32, 4), np.float32) / 0.18215
    np.save(folder / "latents.npy", values.astype(np.float16))
    np.save(folder / "labels.npy", rng.integers(0, 1000, count))
    return folder
