"""The launchers without their schedulers: what they would run, and what they do with exit codes."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from programs import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
SCHEMA = yaml.safe_load(Path(__file__).with_name("jobset.schema.yaml").read_text())
FLAGS = ("--config=configs/a.py:B/2", "--workdir=/shared/my run")
GPU = ("gpu", "--name=run", "--image=hub/genfield:1", "--nodes=4", "--gpus=8")
TPU = (
    "tpu",
    "--name=run",
    "--image=hub/genfield:1",
    "--accelerator=tpu-v5-lite-podslice",
    "--topology=4x8",
    "--hosts=8",
    "--chips=4",
    "--slices=2",
)
QUEUED = ("--name=run", "--zone=us-west4-a", "--type=v5litepod-16")


def launch(script: str, *arguments: str, **environ) -> subprocess.CompletedProcess:
    command = [str(LAUNCH / script), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=os.environ | environ
    )


def lines(script: str, *arguments: str, **environ) -> list[list[str]]:
    """The commands that a dry run prints, as words."""
    done = launch(script, "--dry-run", *arguments, **environ)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def manifest(kind: str, *arguments: str) -> dict:
    done = launch("kubernetes.sh", kind, "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize(
    "script, arguments",
    [
        ("slurm.sh", ("--nodes=2", "--", *FLAGS)),
        ("slurm.sh", ("--nodes=2", "--gpus=8", *FLAGS)),  # no --
        ("slurm.sh", ("--nodes=2", "--gpus=8")),
        ("kubernetes.sh", ("cpu", "--name=run")),
        ("kubernetes.sh", (*GPU[:-1], "--", *FLAGS)),
        ("kubernetes.sh", (*GPU, "--topology=4x4", "--", *FLAGS)),
        ("tpu.sh", (*QUEUED[1:], "--", *FLAGS)),
        ("tpu.sh", (*QUEUED, "--workdir=a", "--", *FLAGS)),
        ("local.sh", ()),
    ],
)
def test_a_mistake_is_told_before_anything_runs(script, arguments):
    done = launch(script, *arguments, PATH="/usr/bin:/bin")
    assert done.returncode in (1, 2) and f"launch/{script}" in done.stderr, done


def test_slurm_submits_itself_and_runs_one_process_a_task():
    submit, run = lines("slurm.sh", "--nodes=2", "--gpus=8", "--partition=a", "--", *FLAGS)
    assert submit[0] == "sbatch" and submit[-4:] == [submit[-4], "--in-job", *FLAGS]
    for option in ("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=a"):
        assert option in submit
    assert {"--requeue", "--signal=B:TERM@300", "--open-mode=append"} < set(submit)
    assert run[0] == "srun" and run[-5:] == ["-m", "genfield.main", "--distributed", *FLAGS]
    [submit, _] = lines("slurm.sh", "--nodes=2", "--gpus=8", "--tasks=1", "--", *FLAGS)
    assert "--ntasks-per-node=1" in submit and "--gpus-per-node=8" in submit


def stand_in(folder: Path, name: str, code: str) -> None:
    """A command of a scheduler, which notes how it is called."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    note = f'printf "%q " {name} "$@" >> "{folder}/calls"; echo >> "{folder}/calls"'
    file.write_text(f"#!/usr/bin/env bash\n{note}\n{code}\n")
    file.chmod(0o755)


@pytest.mark.parametrize(
    "code, restarts, again",
    [
        (0, 0, False),
        (1, 0, False),  # a bug
        (2, 0, False),  # a mistake
        (75, 0, True),  # another process died
        (137, 3, True),  # this one did
        (137, 5, False),  # too often
        (143, 5, True),  # saved; however often
    ],
)
def test_slurm_queues_again_what_can_go_on(code, restarts, again, tmp_path):
    stand_in(tmp_path / "bin", "srun", f"exit {code}")
    stand_in(tmp_path / "bin", "scontrol", "")
    environ = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(restarts),
        "GENFIELD_RESTARTS": "5",
    }
    done = launch("slurm.sh", "--in-job", *FLAGS, **environ)
    assert done.returncode == code
    calls = (tmp_path / "bin" / "calls").read_text().splitlines()
    assert [c.strip() for c in calls[1:]] == (["scontrol requeue 7"] if again else [])


@pytest.mark.parametrize("arguments", [GPU, TPU], ids=["gpu", "tpu"])
def test_the_manifests_are_jobsets_that_start_again_what_can_go_on(arguments):
    found = manifest(*arguments, "--restarts=9", "--", *FLAGS, '--config.a=("b\\",)', "--c=$(d) &")
    jsonschema.validate(found, SCHEMA)
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 9
    [group] = found["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [1, 2]
    [container] = job["template"]["spec"]["containers"]
    assert container["name"] == rule["onExitCodes"]["containerName"]
    # Kubernetes makes $(d) of $$(d), and leaves all else.
    assert container["args"][-4:] == [*FLAGS, '--config.a=("b\\",)', "--c=$$(d) &"]
    volumes = {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_gpu_nodes_find_the_first_and_slices_take_their_places():
    job = manifest(*GPU, "--", *FLAGS)["spec"]["replicatedJobs"][0]
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["completions"], spec["parallelism"]) == (1, 4, 4)
    [container] = spec["template"]["spec"]["containers"]
    assert container["args"][:3] == [
        "--coordinator=run-nodes-0-0.run:1234",  # <JobSet>-<job>-<number>-<pod>.<subdomain>
        "--num_processes=4",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]
    assert "JOB_COMPLETION_INDEX" in {entry["name"] for entry in container["env"]}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}

    job = manifest(*TPU, "--", *FLAGS)["spec"]["replicatedJobs"][0]
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["completions"], spec["parallelism"]) == (2, 8, 8)
    pod = spec["template"]["spec"]
    assert pod["containers"][0]["args"][0] == "--distributed"
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x8"


def test_the_probe_of_health_knows_a_run_that_stands_still(tmp_path):
    """By the file that progress touches: none yet, a new one, one of an hour ago."""
    pod = manifest(*GPU, "--", *FLAGS)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    [container] = pod["spec"]["containers"]
    [health] = [e["value"] for e in container["env"] if e["name"] == "GENFIELD_HEALTH"]
    file = tmp_path / "alive"
    command = [w.replace(health, str(file)) for w in container["livenessProbe"]["exec"]["command"]]
    well = lambda: subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    assert well()
    file.touch()
    assert well()
    os.utime(file, (file.stat().st_mtime - 3600,) * 2)
    assert not well()


def test_queued_resources_ask_for_slices_and_run_one_line_on_all_hosts():
    create, setup, run = lines("tpu.sh", *QUEUED, "--slices=2", "--spot", "--", *FLAGS)
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "run"]
    assert {"--node-count=2", "--node-prefix=run", "--spot"} < set(create)
    assert {"--node=all", "--worker=all"} < set(run) and setup[4] == run[4] == "ssh"
    assert "--node-id=run" in lines("tpu.sh", *QUEUED, "--", *FLAGS)[0]


@pytest.mark.parametrize("codes, last, runs", [((75, 75, 0), 0, 3), ((2,), 2, 1), ((143,), 143, 1)])
def test_a_host_starts_again_while_processes_die(codes, last, runs, tmp_path):
    """What tpu.sh runs on a host, with a stand-in for Python."""
    command = lines("tpu.sh", *QUEUED, "--", *FLAGS)[2][-1].removeprefix("--command=")
    (tmp_path / "genfield").mkdir()
    answers = " ".join(map(str, codes))
    count = f'n=$(grep -c "" "{tmp_path}/bin/calls"); codes=({answers}); exit "${{codes[n-1]}}"'
    stand_in(tmp_path / "bin", "python3", count)
    environ = os.environ | {
        "HOME": str(tmp_path),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    }
    assert subprocess.run(["bash", "-c", command], env=environ).returncode == last
    calls = (tmp_path / "bin" / "calls").read_text().splitlines()
    assert len(calls) == runs
    words = ["python3", "-m", "genfield.main", "--distributed", *FLAGS]
    assert all(shlex.split(call) == words for call in calls)


def test_a_slice_that_is_taken_away_is_asked_for_again(tmp_path):
    """By a stand-in for gcloud: none, waiting, active, gone in the middle of the run, active.

    What gcloud cannot tell, as without network, is waited for.
    """
    states = ["NOT_FOUND", "offline", "ACCEPTED", "ACTIVE", "SUSPENDED", "SUSPENDED"]
    states += ["NOT_FOUND", "offline", "ACTIVE"]
    (tmp_path / "states").write_text("\n".join(states) + "\n")
    code = f"""
    case "$4 $*" in
      describe*)
        now=$(head -n 1 "{tmp_path}/states")
        sed -i 1d "{tmp_path}/states"
        case "$now" in
          NOT_FOUND | offline) echo "ERROR: (gcloud) $now: no such thing" >&2; exit 1 ;;
          *) echo "$now" ;;
        esac ;;
      ssh*genfield.main*) exit $((2 - $(grep -c genfield.main "{tmp_path}/bin/calls"))) ;;
    esac"""
    stand_in(tmp_path / "bin", "gcloud", code)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = launch("tpu.sh", *QUEUED, "--", *FLAGS, PATH=path, GENFIELD_POLL="0")
    assert done.returncode == 0, done.stderr
    calls = [shlex.split(c)[4] for c in (tmp_path / "bin" / "calls").read_text().splitlines()]
    verbs = [verb for verb in calls if verb != "describe"]
    assert verbs == ["create", "ssh", "ssh", "delete", "create", "ssh", "ssh"]


def test_local_processes_are_one_line_each():
    found = lines("local.sh", "3", *FLAGS)
    assert len(found) == 3
    assert [f"--process_id={n}" in line for n, line in enumerate(found)] == [True] * 3
    assert all(line[-2:] == list(FLAGS) for line in found)
