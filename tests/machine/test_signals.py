"""SIGTERM, Ctrl-C and kill -9 at chosen moments: the same command goes on as if nothing had been.

The program runs as a process of its own. Its config file strikes it from within, at a line that it
prints or a step that it takes, so that the moment never depends on the machine's speed.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from programs import ROOT, SMALL, arguments, losses, start

FLOW = ROOT / "configs" / "flow_matching_two_moons.py"
SHORT = SMALL | {"train.steps": 40, "sampler.num_steps": 2, "sample.batch_size": 16}
TIMEOUT = 300  # seconds; only a hang takes so long

# The file `armed` beside it holds "<signal>;<times>;<what the program prints at the moment>".
CONFIG = """
import os, sys
from pathlib import Path

from genfield.program import config_io

get_config = lambda: config_io.load({config!r})
armed = Path(__file__).with_name("armed")

def strike(text):
    if armed.exists():
        number, times, moment = armed.read_text().split(";")
        if text.startswith(moment):
            armed.unlink()
            for _ in range(int(times)):
                os.kill(os.getpid(), int(number))

strike("loading" if "jax" not in sys.modules else "jax is here")
if armed.exists():
    from genfield.machine import logbook
    say, update = logbook.say, logbook.Progress.update

    def watched_say(text):
        say(text)
        strike(text)

    def watched_update(self, step, note=""):
        update(self, step, note)
        strike(f"{{self.what}} {{step}}/")

    logbook.say, logbook.Progress.update = watched_say, watched_update
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("config") / "armed_moons.py"
    file.write_text(CONFIG.format(config=str(FLOW)))
    return file


@pytest.fixture
def launch(config):
    """launch(workdir, …) -> (exit code, output) of the program, struck if a moment is given."""

    def launch(workdir, *extra, number=signal.SIGTERM, moment=None, times=1):
        armed = config.with_name("armed")
        armed.unlink(missing_ok=True)
        if moment is not None:
            armed.write_text(f"{int(number)};{times};{moment}")
        return finish(workdir, config, *extra)

    return launch


def finish(workdir, config, *extra) -> tuple[int, str]:
    process = start(arguments(workdir, config, *extra, small=SHORT))
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert "Traceback" not in output, output
    return process.returncode, output


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory) -> Path:
    """The workdir of a run that nothing struck; to be copied, not changed."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    code, output = finish(workdir, config)
    assert code == 0, output
    assert len(losses(workdir)) == 40 + 2  # a line a step, the held-out loss, the samples' metrics
    return workdir


def test_struck_again_and_again_the_same_command_ends_as_if_undisturbed(
    launch, undisturbed, tmp_path
):
    code, output = launch(tmp_path, number=signal.SIGKILL, moment="step 12/")
    assert code == -signal.SIGKILL, output
    for number, moment in ((signal.SIGTERM, "step 23/"), (signal.SIGINT, "step 37/")):
        code, output = launch(tmp_path, number=number, moment=moment)
        assert code == 143 and f"{number.name}: finishing the step" in output, output
        struck, last = int(moment[5:7]), saved(tmp_path)[-1]
        assert struck <= last <= struck + 3, output  # the loop runs a few steps ahead
        assert not (tmp_path / "summary.json").exists()
    code, output = launch(tmp_path, moment="evaluating")
    assert code == 143 and f"resuming at step {last}" in output, output
    assert saved(tmp_path)[-1] == 40 and "evaluated in" not in output, output
    assert not (tmp_path / "summary.json").exists()
    code, output = launch(tmp_path)
    assert code == 0 and (tmp_path / "summary.json").exists(), output
    assert losses(tmp_path) == losses(undisturbed)


def saved(workdir: Path) -> list[int]:
    """The steps with a checkpoint, ascending."""
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, moment",
    [
        (signal.SIGTERM, "step 1/"),
        (signal.SIGINT, "step 39/"),
        (signal.SIGTERM, "compiling the train step"),
        (signal.SIGTERM, "held-out at step 40"),
    ],
)
def test_a_signal_in_training_saves_and_the_same_command_goes_on(
    number, moment, launch, undisturbed, tmp_path
):
    code, output = launch(tmp_path, number=number, moment=moment)
    assert code == 143 and f"{number.name}: finishing the step" in output, output
    last = saved(tmp_path)[-1]
    code, output = launch(tmp_path)
    assert code == 0 and (not last or f"resuming at step {last}" in output), output
    assert losses(tmp_path) == losses(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["step 1/", "step 11/", "step 31/", "held-out at step 40"])
def test_kill_9_leaves_a_checkpoint_to_go_on_from(moment, launch, undisturbed, tmp_path):
    code, output = launch(tmp_path, number=signal.SIGKILL, moment=moment)
    assert code == -signal.SIGKILL, output
    code, output = launch(tmp_path)
    assert code == 0, output
    assert losses(tmp_path) == losses(undisturbed)


@pytest.fixture
def trained(undisturbed, tmp_path) -> Path:
    """A copy of the undisturbed run that has not been evaluated."""
    workdir = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    (workdir / "summary.json").unlink()
    return workdir


EITHER = [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_final_evaluation(number, launch, undisturbed, trained):
    code, output = launch(trained, number=number, moment="evaluating")
    assert code == 143 and "evaluated in" not in output, output
    assert not (trained / "summary.json").exists()
    code, output = launch(trained)
    assert code == 0 and (trained / "summary.json").exists(), output
    assert losses(trained) == losses(undisturbed)


@pytest.mark.slow
def test_a_signal_in_an_evaluation_that_is_one_call(launch, trained):
    extra = "--mode=evaluate", "--config.sample.batch_size=64", "--config.evaluate.num_samples=64"
    code, output = launch(trained, *extra, moment="evaluating")
    assert code == 143 and "evaluated in" not in output, output


@pytest.mark.parametrize("number", EITHER)
def test_a_signal_in_sampling(number, launch, trained):
    code, output = launch(trained, "--mode=sample", number=number, moment="sample 16/")
    assert code == 143 and "samples:" not in output, output
    assert not list(trained.glob("samples/*.npz"))
    code, output = launch(trained, "--mode=sample")
    assert code == 0 and (trained / "samples" / "step_40.npz").exists(), output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_jax_is_imported_ends_at_once(number, launch, tmp_path):
    code, output = launch(tmp_path / "run", number=number, moment="loading")
    assert code == 143 and f"{number.name}: stopped before the run began" in output, output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait(launch, undisturbed, tmp_path):
    code, output = launch(tmp_path, number=signal.SIGINT, moment="step 25/", times=2)
    assert code == 143 and "stopped without saving" in output, output
    code, output = launch(tmp_path)
    assert code == 0, output
    assert losses(tmp_path) == losses(undisturbed)


def test_a_mistake_ends_the_process_with_2_and_one_line(tmp_path):
    """As in test_bad_input, but seen from outside: exit code and streams."""
    argv = [*arguments(tmp_path / "run", FLOW), "--config.train.stepz=3"]
    process = start(argv)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2, output
    assert output.splitlines()[0].startswith("genfield: error: ") and output.count("\n") == 1


def test_a_signal_within_a_batch_is_obeyed_there_and_costs_no_bit(launch, trained, tmp_path):
    """Of 16 samples in 2 steps, a piece of one step is 8: the batch is not done."""
    whole = Path(shutil.copytree(trained, tmp_path / "whole"))
    code, output = launch(trained, "--mode=sample", number=signal.SIGINT, moment="sample 8.0/")
    assert code == 143 and "the same command goes on" in output, output
    assert "sample 16/" not in output and not list(trained.glob("samples/*.npz"))
    for workdir in (trained, whole):
        code, output = launch(workdir, "--mode=sample")
        assert code == 0, output
    one, other = (np.load(folder / "samples" / "step_40.npz") for folder in (trained, whole))
    for name in one.files:
        np.testing.assert_array_equal(one[name], other[name])


# A process whose main thread is inside one compiled call, of minutes, when the signals come.
DEAF = """
import sys, threading, time, os, signal
from genfield.machine import preemption
preemption.install()
import jax, jax.numpy as jnp
preemption.begin()
if sys.argv[1] == "nothing":
    preemption.nothing_to_save("nothing is lost")
x = jax.random.normal(jax.random.key(0), (256, 256))
long = lambda x, n: jax.lax.fori_loop(0, n, lambda i, x: jnp.tanh(x @ x), x)
long = jax.jit(long).lower(x, 10_000_000).compile()

def strike():
    time.sleep(1)
    for number in map(int, sys.argv[2:]):
        os.kill(os.getpid(), number)
        time.sleep(1)

threading.Thread(target=strike, daemon=True).start()
print("begun", flush=True)
jax.block_until_ready(long(x, 10_000_000))
"""


@pytest.mark.parametrize(
    "state, numbers, says",
    [
        ("nothing", [signal.SIGTERM], "nothing is lost"),
        ("nothing", [signal.SIGINT], "nothing is lost"),
        ("something", [signal.SIGINT, signal.SIGINT], "stopped without saving"),
    ],
)
def test_a_compiled_call_of_minutes_is_left_within_seconds(state, numbers, says):
    """The call takes hours; where something is to be saved, the second Ctrl-C ends it."""
    command = [sys.executable, "-c", DEAF, state, *(str(int(n)) for n in numbers)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(command, env=env, **pipes) as process:
        try:
            assert process.stdout.readline() == "begun\n"
            begun = time.monotonic()
            output, _ = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
    assert process.returncode == 143 and says in output, output
    assert time.monotonic() - begun < 30


def test_each_signal_is_heard_once_whichever_thread_is_first(monkeypatch):
    """The thread that waits may wake long after the main thread has handled a signal."""
    from genfield.machine import preemption

    fresh = dict(_received=[], _handled=[], _late=set(), _begun=True, _last_words=None, PATIENCE=0)
    for name, value in fresh.items():
        monkeypatch.setattr(preemption, name, value)

    def watched():
        read, write = os.pipe()
        os.write(write, bytes([signal.SIGTERM]))
        os.close(write)
        preemption._watch(read)
        os.close(read)

    preemption._note(signal.SIGTERM, None)
    watched()
    assert preemption._received == ["SIGTERM"]
    watched()  # the main thread comes to this one late
    preemption._note(signal.SIGTERM, None)
    assert preemption._received == ["SIGTERM"] * 2
    watched()  # and to this one not at all
    assert preemption._received == ["SIGTERM"] * 3
