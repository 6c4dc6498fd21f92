"""How many samples are drawn at a time, and the files of what several processes drew of them."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from genfield.errors import UserError
from genfield.machine import processes
from genfield.program import generate, sample_files, shards
from genfield.program.sample_files import Shards


def sizes(num: int, devices: int, batch: int = 256, shard: int = 1000, **kept) -> tuple[int, int]:
    """Samples a batch, and how many batches."""
    section = SimpleNamespace(batch_size=batch, shard_size=shard)
    exp = SimpleNamespace(
        mesh=SimpleNamespace(size=devices), config=SimpleNamespace(sample=section)
    )
    size = generate.batch_size(exp, num, **kept)
    return size, -(-num // size)


@pytest.mark.parametrize(
    ("devices", "size", "batches"),
    [(1, 256, 196), (8, 2048, 25), (16, 2944, 17), (256, 2816, 18), (1024, 2048, 25)],
)
def test_50_000_samples_are_drawn_with_little_to_spare_or_to_lose(devices, size, batches):
    assert sizes(50_000, devices, kept=True) == (size, batches)
    assert size * batches <= 50_000 * (1 + 1 / 32)
    assert size <= 50_000 / 16


def test_batches_keep_their_bounds_for_any_number():
    rng = np.random.default_rng(0)
    for _ in range(300):
        num, n, batch, shard = (int(2 ** rng.uniform(0, top)) for top in (17, 10, 9, 11))
        for kept in (True, False):
            size, count = sizes(num, n, batch, shard, kept=kept)
            assert size % n == 0 and 1 <= size // n <= batch
            assert size * count - num <= max(num / 32, n - 1)
            if kept:
                assert size <= max(num / 16, shard, n)


def drawn(num: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    levels = rng.integers(0, 256, (num, 2, 2, 1), np.uint8)
    return {"arr_0": levels, "nfe": rng.integers(0, 9, num), "arr_1": np.arange(num) % 3}


def files(folder, num: int = 50) -> Shards:
    return Shards(folder, "some", {"num": num, "shard_size": 8}, ("npz",), ("a", "b", "c"))


def write(made: Shards, values: dict, index: np.ndarray, owner: np.ndarray, size: int, stop: int):
    """What processes do that own these rows of batches; all are killed before batch `stop`."""
    for process in range(owner.max() + 1):
        mine, waiting = index[owner[index % size] == process], []
        for first in range(0, stop * size, size):
            part = mine[(mine >= first) & (mine < first + size)]
            if len(part):
                arrays = {"index": part} | {name: v[part] for name, v in values.items()}
                awaited = mine if size < made.size else part
                waiting = shards.write_whole(made, [*waiting, arrays], awaited)


@pytest.mark.parametrize("size", [4, 12])
def test_parts_of_shards_by_any_processes_become_the_samples(size, tmp_path):
    """Killed after two batches of four processes, and finished by three with other rows."""
    values, made = drawn(50), files(tmp_path)
    made.begin()
    rng = np.random.default_rng(size)
    write(made, values, made.missing(), rng.permutation(np.arange(size) % 4), size, 2)
    left = made.missing()
    assert 50 - 2 * size <= len(left) < 50
    if size > made.size:  # nothing waits for another batch
        np.testing.assert_array_equal(left, np.arange(2 * size, 50))
    write(made, values, left, rng.permutation(np.arange(size) % 3), size, 50 // size + 1)
    assert not len(made.missing())
    with np.load(made.finish()[0]) as file:
        for name, expected in values.items():
            np.testing.assert_array_equal(file[name], expected)
    assert not made.shards.exists()


def test_one_process_writes_whole_shards_alone(tmp_path):
    made = files(tmp_path)
    made.begin()
    write(made, drawn(50), made.missing(), np.zeros(4, int), 4, 13)
    names = sorted(path.name for path in made.shards.iterdir())
    assert names == [f"{number:06}.npz" for number in range(7)]


def test_shards_that_a_kill_left_beside_finished_samples_go(tmp_path, monkeypatch):
    made, values = files(tmp_path, 8), drawn(8)
    made.begin()
    made.write(0, values)
    with monkeypatch.context() as killed:
        killed.setattr(sample_files.shutil, "rmtree", lambda *_, **__: None)
        made.finish()
    assert made.shards.exists()
    assert files(tmp_path, 8).finished() and not made.shards.exists()


def test_samples_that_were_damaged_since_are_drawn_again(tmp_path, capsys):
    made, values = files(tmp_path, 8), drawn(8)
    made.begin()
    made.write(0, values)
    [path] = made.finish()
    whole = path.read_bytes()
    assert files(tmp_path, 8).finished()
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    again = files(tmp_path, 8)
    assert not again.finished() and "is damaged, or was changed" in capsys.readouterr().out
    again.begin()
    assert list(again.missing()) == list(range(8))


def test_a_damaged_part_is_drawn_again(tmp_path):
    values, made = drawn(50), files(tmp_path)
    made.begin()
    owner = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 1])
    write(made, values, made.missing(), owner, 10, 5)
    part = made.shards / "000001_000000010.npz"
    part.write_bytes(part.read_bytes()[:-100] + bytes(100))
    np.testing.assert_array_equal(made.missing(), [10, 11, 12])
    assert not part.exists()


def test_what_fails_is_told_by_the_names_of_its_processes(monkeypatch):
    told = [["0", "a", ""], *([str(n), "b", f"no {n}"] for n in range(1, 6))]
    monkeypatch.setattr(jax, "process_count", lambda: 6)
    monkeypatch.setattr(processes.sharding, "agreed", lambda ok: False)
    monkeypatch.setattr(processes, "_exchanged", lambda text: told)
    with pytest.raises(UserError, match=r"^process 1 on b: no 1; .* no 3; and 2 processes more$"):
        with processes.together():
            pass
    told[:] = [[str(n), "b", "no disk"] for n in range(6)]
    with pytest.raises(UserError, match=r"^no disk$"):
        with processes.together():
            raise UserError("no disk")
    told[:] = [["0", "a", ""], ["1", "b", "KeyError: 'x'"]]
    with pytest.raises(KeyError):  # a bug stays what it is where it is
        with processes.together():
            {}["x"]


def test_a_record_whose_formats_are_no_names_is_damaged(tmp_path):
    settings = {"num": 4, "shard_size": 4}
    record = {"settings": settings, "finished": [["npz"]]}
    (tmp_path / "s.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"s\.json is damaged: delete it"):
        Shards(tmp_path, "s", settings, ("npz",))
