"""A share of the damage at rest; the whole: python -m tests.chaos --kind=damage."""

import random

import pytest

from . import cases, damage
from .driver import kinds
from .problems import MODES

SEEDS = dict(train=3, sample=5, pairs=2, prepare=0)


def damaged(zygote, folder, mode: str, seed: int) -> cases.Found:
    found = cases.run(zygote, mode, kinds()["damage"], seed, folder)
    assert not found.lost + found.silent, found
    return found


@pytest.mark.parametrize("mode", SEEDS)
def test_damage_is_told_or_mended(zygote, tmp_path, mode):
    assert damaged(zygote, tmp_path, mode, SEEDS[mode]).struck


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40, 50))
def test_more_damage(zygote, tmp_path, seed):
    for mode in MODES:
        damaged(zygote, tmp_path, mode, seed)


def test_what_is_changed_is_another_file():
    draw = random.Random(0)
    raw = bytes(range(1, 200))
    seen = set()
    for _ in range(100):
        out, words = damage.changed(raw, draw)
        assert out != raw and len(out) <= len(raw)
        seen.add(words.split()[0])
    assert seen == {"flip", "cut", "zeros", "no"}


def test_kinds_of_files():
    assert damage.kind_of("checkpoints/4/params/d/0a") == "checkpoint params"
    assert damage.kind_of("figures/loss.png") == "figures .png"
    assert damage.kind_of("config.json") == "config.json"
