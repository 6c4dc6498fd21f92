"""The accelerator benchmark, shrunk, as its command runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALL = ("sit_b", "sit_xl", "sampling", "decoding", "attention", "methods", "matching")


def report(tmp_path: Path, *flags: str) -> tuple[int, str, dict]:
    """Exit code, what was printed to both streams, and the file."""
    out = tmp_path / "accelerator.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "accelerator.py"), "--shrink"]
    run = subprocess.run([*command, f"--out={out}", *flags], capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr, json.loads(out.read_text())["parts"]


@pytest.mark.process
def test_a_part_is_measured_in_its_own_process_and_written(tmp_path):
    """Both dtypes of the decoder have a rate, in the file and in the table."""
    code, text, parts = report(tmp_path, "--only=decoding")
    rows = parts["decoding"]["rows"]
    assert code == 0 and parts["decoding"]["wrong"] == ""
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}
    assert all(row["images/s"] > 0 for row in rows)
    assert any(line.startswith("|") and "images/s" in line for line in text.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("half", [1, 2])
def test_every_part_runs_shrunk(tmp_path, half):
    """Each part of a half has figures, and those of a train step stand beside the plan's."""
    code, text, parts = report(tmp_path, f"--half={half}")
    assert code == 0, text
    assert set(parts) == set(ALL[:5] if half == 1 else ALL[5:])
    assert all(part["rows"] for part in parts.values())
    if half == 1:
        row = parts["sit_b"]["rows"][0]
        assert row["s"] > 0 and row["predicted s"] > 0 and 0 < row["MFU"] < row["predicted MFU"]
    else:
        named = {row["method"] for row in parts["methods"]["rows"]}
        assert {"FM", "EqM", "DM", "DSM", "Flux", "LMM, L2", "LMM, perceptual"} == named
