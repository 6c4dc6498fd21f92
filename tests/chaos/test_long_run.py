"""Long runs in small hold no more at their end than when they were warm."""

import numpy as np
import pytest

from . import long_run


def rows(count=400, **growing) -> list[dict]:
    """What a watch sees of a training: noise about what grows by so much over the judged part.

    A checkpoint opens files and threads, and a compressor more is held, or one less.
    """
    noise = np.random.default_rng(0)
    told = {"rss": 2e8, "malloc": 1e8, "arrays": 50, "programs": 9, "files": 20, "threads": 30}
    told |= {"maps": 500, "blocks": 1e6}
    out = []
    for i in range(count):
        share = (i / count - long_run.WARM) / (1 - long_run.WARM)
        row = {name: value + growing.get(name, 0) * max(share, 0) for name, value in told.items()}
        row |= {name: row[name] + 4e5 * noise.standard_normal() for name in ("rss", "malloc")}
        row["malloc"] += long_run.COMPRESSOR * noise.integers(3)
        if noise.random() < 0.4:
            row |= {name: row[name] + noise.integers(20) for name in ("arrays", "files", "threads")}
        out.append({name: round(value) for name, value in row.items()} | {"step": 25 * i})
    return out


def test_what_is_constant_does_not_grow():
    assert long_run.judge(rows())[1] == []


@pytest.mark.parametrize(
    ("name", "by"),
    [
        *(("malloc", 3e6), ("malloc", 2e7), ("rss", 8e6), ("blocks", 40_000)),
        *(("arrays", 4), ("programs", 3), ("files", 2), ("threads", 2), ("maps", 20)),
    ],
)
def test_what_grows_is_found(name, by):
    [told] = long_run.judge(rows(**{name: by}))[1]
    assert told.startswith(f"{name} grew")


@pytest.mark.slow
def test_nothing_grows_in_a_long_run(tmp_path):
    """10,000 steps with evaluation and checkpoints, 400 batches of samples, 2,000 images."""
    report, grew = long_run.run(tmp_path, 10_000)
    assert not grew, (grew, report)
    told = report["bytes"]
    assert told["checkpoints kept"] <= 3 and told["metrics.jsonl a 1,000 steps"] < 10_000
