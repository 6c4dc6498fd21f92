"""The command: what it prints and writes, when it says that a training does not fit."""

import argparse
import json
import subprocess
import sys

import pytest
from programs import MOONS, ROOT

from genfield.errors import UserError
from genfield.machine import chips, flops
from genfield.plan import (
    analyse,
    devices,
    environment,
    plan,
    programs,
    shapes,
    suggest,
)
from genfield.plan.__main__ import main
from genfield.program import config_io
from genfield.program.methods import package

SMALL = ["--config.net.depth=1", "--config.net.width=32", "--config.net.num_heads=2"]
SMALL += ["--config.net.patch_size=8", "--config.batch_size=16", "--config.sample.batch_size=2"]
LATENTS = ROOT / "configs" / "equilibrium_matching_imagenet256.py"
PARTS = {"memory_bytes", "flops", "bytes", "collectives", "seconds", "warnings"}


@pytest.fixture(autouse=True)
def known_rates(monkeypatch):
    """A CPU's rates are measured on the spot; here they are given."""
    monkeypatch.setattr(devices, "_multiplied", lambda: 1e11)
    monkeypatch.setattr(devices, "_copied", lambda: 1e10)


def planned(tmp_path, *flags) -> dict:
    code = main([f"--config={LATENTS}:S/2", f"--out={tmp_path}", *SMALL, *flags])
    return json.loads((tmp_path / "plan.json").read_text()) | {"code": code}


def test_a_plan_says_what_each_program_takes(tmp_path, capsys):
    found = planned(tmp_path, "--topology=cpu:8", "--config.mesh.data=2", "--config.mesh.fsdp=4")
    assert found["code"] == 0 and found["fits"] and found["decode"] is None
    for name in ("train", "sample"):
        part = found[name]
        assert PARTS <= part.keys()
        memory, seconds = part["memory_bytes"], part["seconds"]
        assert memory.keys() == {"arguments", "temporaries", "peak", "limit"}
        assert memory["arguments"] + memory["temporaries"] <= memory["peak"] < memory["limit"]
        assert seconds["compute"] == pytest.approx(part["flops"] / (1e11 / 8))
        assert seconds["memory"] == pytest.approx(part["bytes"] / (1e10 / 8))
        each = (seconds[key] for key in ("compute", "memory", "links"))
        assert seconds["predicted"] == max(each)
        assert part["collectives"]["all-gather"]["bytes"] > 0
    assert found["sample"]["calls"] == 250
    text, shown = (tmp_path / "plan.md").read_text(), capsys.readouterr().out
    for part in ("sampler step", "temporaries", "16 chips are too many for a batch of 16"):
        assert part in text and part in shown
    assert "## Largest buffers of the train step" in text


def test_options_come_with_their_figures_where_it_does_not_fit(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(devices.os, "sysconf", lambda name: 2**8)  # 64 KiB in all
    flags = [f"--config={MOONS}", "--topology=cpu:1", f"--out={tmp_path}", "--suggest"]
    assert main([*flags, "--config.net.width=16", "--config.sample.batch_size=64"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "does not fit on cpu:1" in error
    tried = ["--config.net.dtype=bfloat16"]
    tried += [f"--config.optimizer.accumulate={n}" for n in suggest.FACTORS]
    assert f"try {' or '.join(tried)}, or more chips" in error
    found = json.loads((tmp_path / "plan.json").read_text())
    now = found["train"]["memory_bytes"]["temporaries"]
    changes = {option["change"]: option["memory_bytes"] for option in found["suggestions"]}
    assert list(changes) == tried
    assert all(changes[flag]["temporaries"] < now for flag in tried if "accumulate" in flag)


def test_what_would_take_less():
    sixteen = chips.parse("v5e:4x4")
    config = config_io.load(f"{LATENTS}:XL/2")
    config.net.update(dtype="float32", remat="none")
    found = list(suggest.options(config, sixteen, package()))
    cheaper = ["--config.net.dtype=bfloat16", "--config.net.remat=full", "--config.mesh.fsdp=16"]
    assert found[:3] == [(flag,) for flag in cheaper] and found[-1] == tuple(cheaper)
    config = config_io.override(config, cheaper)
    assert list(suggest.options(config, sixteen, package())) == [
        ("--config.optimizer.accumulate=2",),
        ("--config.optimizer.accumulate=4",),
    ]
    config.mesh.update(data=4, fsdp=4)
    wanted = ("--config.mesh.data=-1", "--config.mesh.fsdp=16")
    assert wanted in list(suggest.options(config, sixteen, package()))


def test_recomputing_adds_no_useful_work(tmp_path):
    target = plan.target(chips.parse("cpu:1"))
    options = argparse.Namespace(config=str(tmp_path / "x.py"), shape=None, classes=None)
    made = {}
    for remat in ("none", "full"):
        config = config_io.load(f"{LATENTS}:S/2")
        config = config_io.override(config, [*SMALL, f"--config.net.remat={remat}"])
        exp = plan.prepare(config, package(), target, options)
        made[remat] = sum(flops.count(programs.train(exp).traced.jaxpr).values())
    assert made["full"] > made["none"]
    assert plan._model_flops(config, package(), target, options) == made["none"]


WRONG = {
    "--topology=v9:4x4": "unknown chip 'v9'",
    "--topology=v5e:4": "a slice of v5e has 2 sides: v5e:2x2",
    "--topology=cpu:0": "write it as",
    "--topology=h100:2x2x8": "h100:8x8 (nodes x GPUs)",
    "--topology=cpu:1 --slices=2": "--slices is how many slices of TPUs",
    "--topology=cpu:64": "JAX was started with 8 CPU devices",
    "--topology=cpu:1 --nonsense": "unknown argument '--nonsense'",
    "--topology=cpu:1 --config.batch_sise=3": "batch_sise",
    "--topology=cpu:8 --config.batch_size=12": "does not split over 8 devices",
}


@pytest.mark.parametrize("flags", WRONG)
def test_mistakes_are_one_line(flags, capsys):
    assert main([f"--config={LATENTS}:S/2", *SMALL, *flags.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and WRONG[flags] in error


def known_shape(file: str, *overrides, shape=None, classes=None):
    config = config_io.override(config_io.load(str(ROOT / "configs" / file)), list(overrides))
    return shapes.dataset(config, package(), shape, classes)


def test_data_are_known_by_their_shape_alone():
    found = known_shape("edm_imagenet64.py", classes=1000)
    assert found.shape == (64, 64, 3) and found.pixels
    with pytest.raises(UserError, match="--shape="):
        known_shape("edm_cifar10.py")
    assert known_shape("edm_cifar10.py", shape=(32, 32, 3)).num_classes == 0
    with pytest.raises(UserError, match="--classes="):
        known_shape("edm_cifar10.py:cond", shape=(32, 32, 3))
    assert known_shape("edm_cifar10.py:cond", shape=(32, 32, 3), classes=10).num_classes == 10
    assert known_shape("flow_matching_imagenet256.py").num_classes == 1000
    assert known_shape("edm_two_moons.py").draw is not None


def test_machines_and_their_links():
    machine = chips.parse("v5e:16x16", slices=2)
    assert (machine.count, machine.domain) == (512, 256)
    v5e = chips.CHIPS["v5e"]
    rates = [chips.parse(f"v5e:{s}").link_rate(v5e) for s in ("16x16", "4x4", "16x1")]
    assert rates == [v5e.links, v5e.links / 2, v5e.links / 2]
    nodes = chips.parse("h100:4x8")
    assert (nodes.count, nodes.domain) == (32, 8)
    assert environment.of(chips.parse("cpu:4"))["XLA_FLAGS"].endswith("device_count=4")
    assert "TPU_SKIP_MDS_QUERY" in environment.of(machine)


def test_what_a_compiler_refuses_is_a_plan_that_does_not_fit():
    """As the TPU's says it; and other errors stay what they are."""
    for said in (
        "RESOURCE_EXHAUSTED: TPU backend error: Ran out of memory in memory space hbm. Used "
        "20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (20.50G) exceeds available HBM (15.75G).",
    ):
        memory = analyse._refused(RuntimeError(said), 15.75 * 2**30)
        assert memory["peak"] == int(20.5 * 2**30)
    with pytest.raises(RuntimeError, match="INTERNAL"):
        analyse._refused(RuntimeError("INTERNAL: something"), 1)


def test_the_effort_of_the_compiler_is_told(tmp_path):
    found = planned(tmp_path, "--topology=cpu:1", "--effort=low")
    assert found["train"]["effort"] == found["sample"]["effort"] == "low"
    assert "train step: compiled with low effort" in (tmp_path / "plan.md").read_text()
    assert planned(tmp_path, "--topology=cpu:1")["train"]["effort"] == "full"
    assert "low effort" not in (tmp_path / "plan.md").read_text()


def of_a_machine(tmp_path, *flags) -> dict:
    """The plan of a train step of SiT-XL/2 in bfloat16, where its compiler is installed."""
    pytest.importorskip("libtpu" if flags[0].startswith("--topology=v") else "jax_cuda12_plugin")
    flags = [f"--config={LATENTS}:XL/2", *flags, f"--out={tmp_path}"]
    flags += ["--config.net.dtype=bfloat16", "--config.net.remat=full"]
    command = [sys.executable, "-m", "genfield.plan", *flags]
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    return json.loads((tmp_path / "plan.json").read_text())


def sent(found: dict) -> float:
    """Bytes a parameter; what lies outside of the blocks is float32."""
    kinds = found["train"]["collectives"].values()
    return sum(kind["bytes"] for kind in kinds) / found["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize(("slices", "data"), [(1, 1), (2, 2)])
def test_xl_fits_sixteen_small_tpus(tmp_path, slices, data):
    """At batch 256, its parameters split; over two slices the shards' gradients are added up."""
    flags = ["--topology=v5e:4x4", f"--slices={slices}", "--config.mesh.fsdp=16"]
    found = of_a_machine(tmp_path, *flags, f"--config.mesh.data={data}")
    assert found["train"]["memory_bytes"]["peak"] < 2 * 2**30
    assert sent(found) < 3 * 2 * 1.01 + (0 if slices == 1 else 4 / 16)
    assert not any("global batch" in line for line in found["train"]["warnings"])


@pytest.mark.slow
def test_steps_of_two_blocks_on_other_machines(tmp_path):
    """By links; where sums are in float32; where weights are gathered at once; a chip's state."""
    two = ["--config.net.depth=2", "--config.mesh.data=1"]
    flags = ["--topology=h100:8", *two, "--config.mesh.fsdp=8"]
    assert sent(of_a_machine(tmp_path, *flags)) < 3 * 2 * 1.1
    summed = of_a_machine(tmp_path, *flags, "--config.mesh.reduce_dtype=float32")
    assert 7.5 < sent(summed) < (2 + 2 + 4) * 1.1
    flags = ["--topology=v5e:4x4", *two, "--config.mesh.fsdp=16", "--config.energy=dot"]
    assert sent(of_a_machine(tmp_path, *flags)) < 2 * 2 * 1.1
    many = of_a_machine(tmp_path, "--topology=v5e:16x16", *two, "--config.mesh.fsdp=256")
    assert sent(many) < 3 * 2 * 1.1
    # Parameters, average and two moments; the rows of labels, an odd number, are split by 16.
    assert many["train"]["memory_bytes"]["arguments"] < 1.6 * 16 * many["parameters"] / 256
