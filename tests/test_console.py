"""The console command: what it lists, how it calls the modules, and its mistakes in one line."""

import importlib.util
import os
import runpy
import subprocess
import sys
import tomllib

import pytest
from programs import ROOT

import genfield
from genfield import __main__ as console
from genfield import doctor


@pytest.fixture
def call(monkeypatch, capsys):
    """call(*words) -> (exit code, stdout, stderr, what runpy was asked for)."""

    def run(*words: str, fails: BaseException | None = None):
        asked = []

        def run_module(name, run_name, alter_sys):
            asked.append((name, run_name, alter_sys, list(sys.argv[1:])))
            if fails is not None:
                raise fails

        monkeypatch.setattr(runpy, "run_module", run_module)
        monkeypatch.setattr(sys, "argv", ["genfield", *words])
        monkeypatch.setattr(sys, "path", [*sys.path])
        capsys.readouterr()
        code = console.main()
        return (code, *capsys.readouterr(), asked)

    return run


def test_every_command_is_a_module_that_can_be_run():
    for command in console.COMMANDS.values():
        found = importlib.util.find_spec(f"genfield.{command.module}")
        if found.submodule_search_locations:  # a package runs its __main__
            assert importlib.util.find_spec(f"genfield.{command.module}.__main__")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]], ids=str)
def test_help_has_a_line_for_each_command(words, call):
    code, out, err, asked = call(*words)
    assert (code, err, asked) == (0, "", [])
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    for name, command in console.COMMANDS.items():
        assert [name, command.says] in lines


def test_the_version(call):
    assert call("--version")[:3] == (0, f"genfield {genfield.__version__}\n", "")


@pytest.mark.parametrize("name", console.COMMANDS)
def test_a_command_runs_its_module_as_python_does(name, call):
    code, out, err, asked = call(name, "--workdir=x", "--config.a=1")
    command = console.COMMANDS[name]
    mode = [f"--mode={name}"] if command.module == "main" else []
    given = [*mode, "--workdir=x", "--config.a=1"]
    assert asked == [(f"genfield.{command.module}", "__main__", True, given)]
    assert (code, out, err) == (0, "", "")


MISTAKES = [
    (["trian"], "unknown command 'trian': did you mean 'train'? Known: analyze, autoencoder,"),
    (["--workdir=x"], "unknown command '--workdir=x'"),
    (["sample", "--mode=train"], "genfield sample is a mode: leave out --mode"),
    (["train", "-mode", "train"], "genfield train is a mode"),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES, ids=[" ".join(w) for w, _ in MISTAKES])
def test_a_mistake_is_one_line(words, says, call):
    code, out, err, asked = call(*words)
    assert code == 2 and out == "" and not asked
    assert err.startswith(f"genfield: error: {says}") and err.count("\n") == 1


def test_ctrl_c_before_a_command_hears_it_is_one_line(call):
    code, _, stderr, _ = call("train", fails=KeyboardInterrupt())
    assert (code, stderr) == (143, "SIGINT: stopped before the run began\n")


def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it(call, monkeypatch):
    lookable = console.Command("main", "", extra="look")
    monkeypatch.setitem(console.COMMANDS, "look", lookable)
    missing = ModuleNotFoundError("No module named 'a_server.parts'", name="a_server.parts")
    code, out, err, _ = call("look", fails=missing)
    assert code == 2 and not out
    assert err == (
        "genfield: error: genfield look needs the package a_server, which is not installed: "
        "pip install 'genfield[look]'\n"
    )
    with pytest.raises(ModuleNotFoundError):  # a bug of the package's own is no missing package
        call("look", fails=ModuleNotFoundError("…", name="genfield.no_such"))


def process(*words: str, cwd, **options) -> subprocess.CompletedProcess:
    """The command as a process of its own, in a folder that holds no checkout."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pipes = dict(capture_output=True, text=True, timeout=300)
    return subprocess.run(words, cwd=cwd, env=env, **(pipes | options))


def test_listing_imports_nothing_slow(tmp_path):
    script = (
        "import sys; from genfield import __main__ as console; console.start(['--help']); "
        "assert not {'absl', 'numpy', 'ml_collections'} & set(sys.modules); "
        "console.start(['--version']); "
        "from genfield.shipped.__main__ import main; assert main([]) == 0; "
        "assert not {'jax', 'flax', 'optax', 'orbax', 'matplotlib'} & set(sys.modules)"
    )
    done = process(sys.executable, "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "distance_marching_two_moons" in done.stdout


def test_a_config_may_import_from_the_current_folder(tmp_path):
    """As with python -m, also where a console script runs, whose own folder is not this one."""
    (tmp_path / "in_this_folder.py").write_text("raise SystemExit(7)")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/mine.py").write_text("import in_this_folder\ndef get_config(): ...\n")
    script = (
        "import sys; sys.path[0] = '/nowhere'; sys.argv = ['genfield', 'train', "
        "'--config=sub/mine.py', '--workdir=run']; from genfield.__main__ import main; main()"
    )
    assert process(sys.executable, "-c", script, cwd=tmp_path).returncode == 7


def test_exit_codes_and_closed_pipes_are_the_modules(tmp_path):
    start = [sys.executable, "-m", "genfield"]
    done = process(*start, "compare", "a.json", "b.json", cwd=tmp_path)
    assert done.returncode == 2 and "a.json cannot be read" in done.stderr
    line = f"'{sys.executable}' -m genfield configs moons | head -1; exit ${{PIPESTATUS[0]}}"
    done = process("bash", "-c", line, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("recipe")


def test_the_guard_starts_the_same_command_again(tmp_path):
    """Of several processes the parent is a guard, which runs the command line below it."""
    words = ["train", "--config=distance_marching_two_moons", f"--workdir={tmp_path / 'run'}"]
    words += ["--coordinator=localhost:1", "--process_id=5", "--num_processes=2"]
    done = process(sys.executable, "-m", "genfield", *words, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--process_id 5 must be one of 0 to" in done.stderr
    script = tmp_path / "genfield"  # as pip writes it
    script.write_text(
        "from genfield import __main__ as console\nfrom genfield.machine import guard\n"
        "guard.Guard.run = lambda self, command: print(*command, flush=True) or 9\nconsole.main()\n"
    )
    done = process(sys.executable, script, *words, cwd=tmp_path)
    assert done.returncode == 9 and done.stdout.split() == [sys.executable, str(script), *words]


# These bring no feature of the program that could be missed: devices, tools of the checkout.
NOT_OF_THE_DOCTOR = {"browser", "cuda", "tpu", "notebooks", "docs", "test"}


def test_the_doctor_names_every_extra_that_a_feature_wants():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"]) - NOT_OF_THE_DOCTOR
    assert {extra for _, _, extra in doctor.OPTIONAL} == extras
