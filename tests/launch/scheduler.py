"""Stand-ins for schedulers: an srun, and the hosts of TPU slices, as processes of this machine."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from programs import ROOT

# What Slurm's srun does: a process a task, told its place; signals go to all; the highest code.
SRUN = """#!{python}
import os, signal, subprocess, sys
tasks = int(os.environ["SLURM_NTASKS"])
command = [word for word in sys.argv[1:] if not word.startswith(("--kill-on", "--wait"))]
started = []
for task in range(tasks):
    place = {{
        "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task), "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_TASKS_PER_NODE": str(tasks),
    }}
    log = open(os.environ["LOGS"] + f"/{{task}}.log", "a")
    pipes = dict(stdout=log, stderr=subprocess.STDOUT)
    started.append(subprocess.Popen(command, env=os.environ | place, **pipes))
    with open(os.environ["LOGS"] + f"/{{task}}.pid", "w") as file:
        file.write(str(started[-1].pid))
signal.signal(signal.SIGTERM, lambda *_: [process.send_signal(15) for process in started])
codes = [process.wait() for process in started]
with open(os.environ["LOGS"] + "/codes", "w") as file:
    file.write(" ".join(map(str, codes)))
sys.exit(max(128 - code if code < 0 else code for code in codes))
"""


def environment(devices: int = 1) -> dict[str, str]:
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


def slurm_job(tmp_path: Path, argv: list[str], tasks: int) -> subprocess.Popen:
    """launch/slurm.sh as it runs in a job of so many tasks; LOGS is tmp_path."""
    commands = tmp_path / "bin"
    commands.mkdir(exist_ok=True)
    for name, text in (
        ("srun", SRUN.format(python=sys.executable)),
        ("scontrol", f'#!/usr/bin/env bash\necho "$@" >> {tmp_path}/scontrol\n'),
    ):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    env = environment()
    env |= {
        "PATH": f"{commands}:{env['PATH']}",
        "LOGS": str(tmp_path),
        "SLURM_JOB_ID": str(free_job()),
        "SLURM_NTASKS": str(tasks),
    }
    command = [str(ROOT / "launch" / "slurm.sh"), "--in-job", *argv[1:]]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, env=env, cwd=ROOT, **pipes)


def free_job() -> int:
    """A job's number whose port, of those that JAX makes of it, is free."""
    for job in range(os.getpid() % 4096, 8192):
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", job % 4096 + 61440))
                return job
            except OSError:
                continue
    raise AssertionError("no port is free")


def tpu_hosts(tmp_path: Path, argv: list[str], slices: int, hosts: int) -> list[subprocess.Popen]:
    """A process for each host of so many slices, told its place as GKE does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for number in range(slices * hosts):
        place = {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_ID": str(number % hosts),
            "TPU_WORKER_HOSTNAMES": ",".join(["127.0.0.1"] * hosts),
            "JAX_COORDINATOR_PORT": str(port),
        }
        if slices > 1:
            place |= {
                "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1:8080",
                "MEGASCALE_NUM_SLICES": str(slices),
                "MEGASCALE_SLICE_ID": str(number // hosts),
            }
        command = [sys.executable, "-m", "genfield.main", "--distributed", *argv[1:]]
        log = (tmp_path / f"{number}.log").open("a")
        options = dict(env=environment() | place, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        started.append(subprocess.Popen(command, **options))
        (tmp_path / f"{number}.pid").write_text(str(started[-1].pid))
    return started


def below(tmp_path: Path, number: int) -> int:
    """The process that computes, below the guard that the scheduler started."""
    above = int((tmp_path / f"{number}.pid").read_text())
    children = Path(f"/proc/{above}/task/{above}/children").read_text().split()
    return int(children[0])


def strike(tmp_path: Path, number: int, what: signal.Signals) -> int:
    """Sends a signal to the process that computes; its number."""
    process = below(tmp_path, number)
    os.kill(process, what)
    return process
