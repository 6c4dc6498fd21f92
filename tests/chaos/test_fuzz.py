"""A share of the files from strangers: each reader reads what is valid, and refuses the rest."""

import json
import os
import subprocess
import sys

import pytest
from programs import ROOT


def fuzz(out, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.chaos.fuzz", f"--out={out}", "--workers=1", *options]
    variables = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    options = dict(capture_output=True, text=True, cwd=ROOT, env=variables)
    return subprocess.run(command, **options)


def shares(out) -> dict[str, list[dict]]:
    rows = [json.loads(line) for line in (out / "progress.jsonl").read_text().splitlines()]
    return {name: [row for row in rows if row["job"][0] == name] for name, *_ in
            (row["job"] for row in rows)}  # fmt: skip


def check(out, done, files: int) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (out / "found").exists()
    by_name = shares(out)
    count = sum(b - a for rows in by_name.values() for row in rows for a, b in [row["job"][1:]])
    assert count > 0.9 * files
    for name, rows in by_name.items():
        assert sum(row["said"].get("read", 0) for row in rows), f"{name} read nothing"


@pytest.mark.process
def test_a_share_of_the_files(tmp_path):
    names = "weights_zip,weights_legacy,weights_pickle,weights_safetensors,pictures,folder,tar,zip"
    names += ",tables,parquet,config,records,samples,pairs,prepared,journal,latents,arrays,edits"
    done = fuzz(tmp_path, "--files=400", "--seed=100", f"--readers={names}")
    check(tmp_path, done, 400)


@pytest.mark.slow
@pytest.mark.process
def test_many_files_of_every_reader(tmp_path):
    check(tmp_path, fuzz(tmp_path, "--files=4000", "--seed=101"), 4000)
    again = fuzz(tmp_path, "--files=4000", "--seed=101")  # goes on where it stopped: at the end
    check(tmp_path, again, 4000)
    assert "files were read before" in again.stdout


@pytest.mark.process
def test_what_is_found_is_kept(tmp_path):
    """A reader that is wrong on purpose: the file is kept, and the command that reads it again."""
    code = (
        "import sys\n"
        "from tests.chaos import fuzz\n"
        "from tests.chaos.strange import readers\n"
        "def read(folder):\n"
        "    raw = (folder / 'a').read_bytes()\n"
        "    if raw[:1] != b'a':\n"
        "        open('GENFIELD_FUZZ_MARKER', 'w').close()\n"
        "        raise KeyError('x')\n"
        "    if len(raw) < 4:\n"
        "        open('/etc/hostname').close()\n"
        "    if len(raw) > 60:\n"
        "        import ctypes; ctypes.string_at(0)\n"
        "make = lambda folder: (folder / 'a').write_bytes(b'a' * 9) and None\n"
        "readers.READERS.clear()\n"
        "readers.READERS['bad'] = readers.Reader('bad', make, read)\n"
        "sys.exit(fuzz.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "--files=60", "--workers=1", f"--out={tmp_path}"]
    variables = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables)
    assert done.returncode == 1
    for kind in ("executed: bad", "traceback: bad", "path: bad", "crash: bad", "--again="):
        assert kind in done.stdout, done.stdout
    assert list((tmp_path / "found").glob("bad-*/files/a"))
    rows = shares(tmp_path)["bad"]
    assert {n for row in rows for n in range(*row["job"][1:])} == set(range(60))
