"""The table beside the peers: a row whose peer is SciPy, and one whose peer is missing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.process
def test_rows_are_measured_and_missing_peers_are_named(tmp_path):
    """Both sides of the matching are timed; the line of EDM's row says what is not there."""
    out = tmp_path / "table.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "side_by_side.py"), "--rounds=1"]
    flags = ["--rows", "ddpmpp", "greedy", f"--json={out}", f"--peers={tmp_path}"]
    made = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
    rows = json.loads(out.read_text())["rows"]
    assert set(rows) == {"greedy"} and "peer: ddpmpp is not there: " in made.stdout
    for side in ("peer: greedy", "genfield"):
        figures = rows["greedy"][side]
        assert figures["seconds"]["median"] > 0 and figures["peak"] > 0
    over = rows["greedy"]["genfield"]["seconds"], rows["greedy"]["peer: greedy"]["seconds"]
    expected = over[0]["median"] / over[1]["median"]
    assert rows["greedy"]["genfield"]["over"]["median"] == pytest.approx(expected)
