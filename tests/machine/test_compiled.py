"""Compiled programs that are kept: where, for which CPU, how long; and XLA's flags."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from genfield.machine import compiled, xla

VARIABLES = ("GENFIELD_CACHE", "XDG_CACHE_HOME")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """JAX as it starts, without a folder; $XDG_CACHE_HOME is a folder of the test."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv("GENFIELD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def test_programs_are_kept_in_the_users_cache(fresh):
    folder = compiled.keep(None)
    assert folder == fresh / "genfield" / "compiled" / compiled.kind_of_cpu()
    jax.jit(lambda x: jnp.sin(x) * 3 + 0.125).lower(jnp.zeros(7)).compile()
    assert list(folder.glob("jit_*"))


def test_a_folder_of_ones_own_none_and_one_that_jax_knows(fresh, monkeypatch):
    assert compiled.keep("") is None and jax.config.jax_compilation_cache_dir is None
    own = compiled.keep(str(fresh / "own"))
    assert own.parent == fresh / "own"
    assert compiled.keep(str(fresh / "other")) == own  # as by JAX_COMPILATION_CACHE_DIR
    monkeypatch.setenv("GENFIELD_CACHE", str(fresh / "mine"))
    assert compiled.default() == fresh / "mine" / "compiled"


def test_machines_with_other_cpus_share_nothing(fresh, monkeypatch):
    info = fresh / "cpuinfo"
    monkeypatch.setattr(compiled, "CPU", info)
    kinds = set()
    for flags, speed in (("fpu avx2", 2000), ("fpu avx2", 3000), ("fpu avx2 avx512f", 2000)):
        core = f"model name\t: a CPU\ncpu MHz\t\t: {speed}\nflags\t\t: {flags}\n\n"
        info.write_text(core + core)
        kinds.add(compiled.kind_of_cpu())
    assert len(kinds) == 2
    info.unlink()
    alone = compiled.kind_of_cpu()
    monkeypatch.setattr(compiled.platform, "node", lambda: "another machine")
    assert len({*kinds, alone, compiled.kind_of_cpu()}) == 4


def test_programs_that_nobody_reads_go(fresh):
    folder = compiled.keep(None)
    for name, age in (("old", 31), ("new", 29)):
        (folder / name).write_text("x")
        then = compiled.time.time() - age * 24 * 3600
        os.utime(folder / name, (then, then))
    jax.config.update("jax_compilation_cache_dir", None)
    compiled.keep(None)
    assert {file.name for file in folder.iterdir()} == {"new", compiled.CHECKED}


def test_a_folder_that_cannot_be_is_one_line_and_ends_nothing(fresh, capsys):
    (fresh / "file").write_text("x")
    assert compiled.keep(str(fresh / "file")) is None
    said = capsys.readouterr().out
    assert (
        said.startswith("compiled programs are not kept: cannot write in") and said.count("\n") == 1
    )


def test_flags_of_a_platform_are_added_and_the_users_stand(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    [flag] = [f.flag for f in xla.FLAGS["gpu"]]
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/nowhere")
    xla.apply()
    assert xla.told() == {"XLA_FLAGS": f"--xla_dump_to=/nowhere {flag}"}
    xla.apply()
    assert os.environ["XLA_FLAGS"].count(flag) == 1
    own = flag.replace("true", "false")
    monkeypatch.setenv("XLA_FLAGS", own)
    xla.apply()
    assert os.environ["XLA_FLAGS"] == own
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("XLA_FLAGS")
    xla.apply()
    assert xla.told().get("XLA_FLAGS", "").split() == [f.flag for f in xla.FLAGS["cpu"]]


def test_this_jax_knows_the_flags():
    """XLA ends a process that names a flag it does not know."""
    flags = " ".join(one.flag for name in ("gpu", "cpu") for one in xla.FLAGS[name])
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    assert subprocess.run(command, env=env).returncode == 0


def test_of_programs_that_a_kill_left_half_written_none_stays(fresh):
    """JAX would write no other in their place, and compile anew at every start."""
    folder = compiled.keep(None)
    jax.jit(lambda x: jnp.cos(x) * 5 + 0.375).lower(jnp.zeros(9)).compile()
    [whole] = folder.glob("jit_*lambda*-cache")
    packed = whole.read_bytes()
    for size in (0, 3, 40, len(packed) - 1):
        (folder / f"torn_{size}-cache").write_bytes(packed[:size])
    jax.config.update("jax_compilation_cache_dir", None)
    compiled.keep(None)
    assert whole.read_bytes() == packed and not list(folder.glob("torn_*"))
    assert (folder / compiled.CHECKED).exists()
