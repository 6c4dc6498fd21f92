"""python -m genfield.compare: what is listed, in which order, and what is refused."""

import copy
import json
import math
import subprocess
import sys

import pytest

from genfield import compare
from genfield.compare import MISSING, differences

CARD = {
    "config": {"seed": 0, "net": {"name": "unet", "widths": [64, 128]}},
    "versions": {"jax": "0.10.2"},
    "device": {"kind": "H100", "count": 8},
    "notes": "first",
    "reference": {"hash": "ab" * 32},
    "features": {"network": "inception", "resize": None},
    "sampling": {"seeds": [0, 1, 2], "nfe": 50},
    "training": {"steps": 1000, "ema_rate": 0.999},
    "metrics": {"fid": {"value": 4.0, "by_seed": [3.9, 4.1]}, "kid": {"value": 0.0}},
}


def changed(**values):
    """CARD with leaves set by dotted names, written with __; MISSING takes one away."""
    card = copy.deepcopy(CARD)
    for name, value in values.items():
        *sections, leaf = name.split("__")
        place = card
        for section in sections:
            place = place[section]
        if value is MISSING:
            del place[leaf]
        else:
            place[leaf] = value
    return card


def run(tmp_path, capsys, a, b):
    """Exit code, and lines on stdout and stderr."""
    paths = []
    for name, card in (("a", a), ("b", b)):
        path = tmp_path / f"{name}.json"
        path.write_text(card if isinstance(card, str) else json.dumps(card))
        paths.append(str(path))
    code = compare.main(paths)
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()


def test_equal_cards(tmp_path, capsys):
    backwards = dict(reversed(CARD.items()))
    assert differences(CARD, backwards) == []
    assert run(tmp_path, capsys, CARD, backwards) == (0, ["no differences"], [])


def test_leaves_in_order_of_what_they_say():
    other = changed(
        config__net__name="sit",
        versions__jax="0.11",
        device__count=1,
        notes="second",
        reference__hash="cd" * 32,
        features__resize="bicubic",
        sampling__nfe=100,
        training__steps=2000,
        metrics__fid={"value": 5.0, "by_seed": [3.9, 6.1]},
    )
    assert differences(CARD, other) == [
        ("metrics.fid.value", 4.0, 5.0),
        ("metrics.fid.by_seed.1", 4.1, 6.1),
        ("training.steps", 1000, 2000),
        ("sampling.nfe", 50, 100),
        ("features.resize", None, "bicubic"),
        ("reference.hash", "ab" * 32, "cd" * 32),
        ("config.net.name", "unet", "sit"),
        ("notes", "first", "second"),
        ("versions.jax", "0.10.2", "0.11"),
        ("device.count", 8, 1),
    ]
    mirrored = [(name, b, a) for name, a, b in differences(CARD, other)]
    assert sorted(differences(other, CARD), key=str) == sorted(mirrored, key=str)


def test_missing_leaves_and_sections():
    other = changed(features=MISSING, training__steps=MISSING)
    expected = [
        ("training.steps", 1000, MISSING),
        ("features.network", "inception", MISSING),
        ("features.resize", None, MISSING),  # null there is not missing here
    ]
    assert differences(CARD, other) == expected
    assert differences(other, CARD) == [(name, b, a) for name, a, b in expected]
    assert differences({"a": {}}, {}) == [("a", {}, MISSING)]
    assert differences({"a": {"b": 1}}, {"a": 2}) == [("a", {"b": 1}, 2)]


def test_lists():
    assert differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == [("a.1.b", 2, 3)]
    assert differences({"a": [1, 2]}, {"a": [1, 2, 3]}) == [("a", [1, 2], [1, 2, 3])]
    assert differences({"a": []}, {"a": []}) == []


def test_what_counts_as_equal():
    assert differences({"a": math.nan, "b": 1}, {"a": math.nan, "b": 1.0}) == []
    for a, b in ((math.nan, 1.0), (True, 1), (False, 0), ("1", 1), (None, 0), (0, "")):
        assert [leaf[0] for leaf in differences({"a": a}, {"a": b})] == ["a"]


def test_the_table(tmp_path, capsys):
    other = changed(
        metrics__fid__value=4.5,
        metrics__kid__value=0.1,
        training__steps="1000",
        sampling__nfe=MISSING,
        features__resize="-",
        versions__jax="",
    )
    code, out, err = run(tmp_path, capsys, CARD, other)
    assert (code, err) == (0, [])
    assert out == [
        "                   A       B",
        "metrics.fid.value  4.0     4.5     +12.5%",
        "metrics.kid.value  0.0     0.1",
        'training.steps     1000    "1000"',
        "sampling.nfe       50      -",
        'features.resize    null    "-"',
        'versions.jax       0.10.2  ""',
    ]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (4.0, 3.0, "-25%"),
        (-2.0, -1.0, "+50%"),
        (3.0, 3.0000003, "+1e-05%"),
        (0, 1.0, ""),
        (1.0, math.nan, ""),
        (math.inf, 1.0, ""),
        (True, 2, ""),
        (1.0, "x", ""),
        (1.0, MISSING, ""),
    ],
)
def test_relative_differences_of_metrics(a, b, expected):
    rows = compare.table([("metrics.fid", a, b), ("training.fid", a, b)]).splitlines()
    assert rows[1].split()[3:] == ([expected] if expected else [])
    assert len(rows[2].split()) == 3


def test_long_values_show_where_they_differ():
    a, b = "x" * 500 + "left" + "y" * 500, "x" * 500 + "right" + "y" * 500
    row = compare.table([("config.a", a, b)]).splitlines()[1]
    assert "left" in row and "right" in row and len(row) < 160
    row = compare.table([("config.a", "x" * 100, "x" * 101)]).splitlines()[1].split()
    assert row[1] != row[2]
    digest = "0123456789abcdef" * 4
    assert digest in compare.table([("config.a", digest, "two\nlines")])
    assert len(compare.table([("config.a", digest, "two\nlines")]).splitlines()) == 2


def test_a_workdir_stands_for_its_card(tmp_path, capsys):
    for name, card in (("a", CARD), ("b", changed(training__steps=5))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "card.json").write_text(json.dumps(card))
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b" / "card.json")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["training.steps", "1000", "5"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no card: not JSON"),
        ("{", "no card: not JSON"),
        ("[1]", "no section 'metrics'"),
        ('{"config": {}}', "no section 'metrics'"),
        ('{"metrics": 3}', "no section 'metrics'"),
        ("[" * 100_000, "no card: not JSON"),
    ],
)
def test_what_is_no_card(tmp_path, capsys, text, message):
    code, out, err = run(tmp_path, capsys, CARD, text)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith(f"genfield: error: {tmp_path / 'b.json'} is no card")
    assert message in err[0]


def test_what_cannot_be_read(tmp_path, capsys):
    card, binary = tmp_path / "card.json", tmp_path / "weights"
    card.write_text(json.dumps(CARD))
    binary.write_bytes(b"\x80\x00\xff")
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, message in (
        ([card, tmp_path / "nothing"], "nothing cannot be read (No such file or directory)"),
        ([empty, card], "empty/card.json cannot be read (No such file"),
        ([card, binary], "weights is no card"),
        ([card], "the following arguments are required: B"),
        ([card, card, card], "unrecognized arguments"),
        ([card, card, "--verbose"], "unrecognized arguments: --verbose"),
    ):
        assert compare.main([str(a) for a in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        assert err.startswith("genfield: error: ") and message in err


def test_as_a_program_it_needs_the_standard_library_only(tmp_path):
    path = tmp_path / "card.json"
    path.write_text(json.dumps(CARD))
    script = (
        "import runpy, sys\n"
        "for name in ('jax', 'numpy', 'flax', 'absl', 'ml_collections'): sys.modules[name] = None\n"
        "runpy.run_module('genfield.compare', run_name='__main__')"
    )
    call = lambda *a: subprocess.run(
        [sys.executable, "-c", script, *map(str, a)], capture_output=True, text=True, timeout=60
    )
    done = call(path, path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "no differences\n", "")
    done = call("--help")
    assert done.returncode == 0 and "genfield compare" in done.stdout
    done = call(path, tmp_path / "other.json")
    assert done.returncode == 2 and "Traceback" not in done.stderr
