"""Checkpoints: exact on any mesh, readable as numpy, and damage found and survived."""

import errno
import gc
import json
import logging
import shutil
import sys
import threading
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from genfield.errors import UserError
from genfield.machine import around_orbax, checkpoint
from genfield.machine.checkpoint import Checkpoints


def make_state(scale: float = 1.0) -> dict:
    tree = {
        "field": {
            "kernel": scale * jnp.arange(64 * 32, dtype=jnp.float32).reshape(64, 32),
            "half": jnp.full((8,), scale, jnp.bfloat16),
        }
    }
    return {
        "params": tree,
        "ema": {},
        "optimizer": (tree, jnp.int32(3), {"mask": jnp.array([True, False])}),
    }


def abstract(state, sharding=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), state)


@pytest.fixture
def saved(tmp_path):
    """A workdir with checkpoints of steps 1 and 2, scaled by the step."""
    manager = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        manager.save(step, make_state(step), {"note": f"step {step}"})
    manager.close()
    return tmp_path


def test_of_several_one_whose_save_failed_does_not_wait_for_the_others(tmp_path, monkeypatch):
    """They wait for it, and learn of its end."""
    monkeypatch.setattr(checkpoint, "_several", lambda: True)
    manager, come = Checkpoints(tmp_path), threading.Event()
    orbax, full = manager._manager, OSError(errno.ENOSPC, "No space left on device")
    told = orbax._save_progress_tracker.set

    def with_all(value: bool) -> None:
        if not value:
            come.wait(60)
        told(value)

    def fails() -> None:
        if threading.current_thread() is not threading.main_thread():
            raise full

    monkeypatch.setattr(orbax._save_progress_tracker, "set", with_all)
    monkeypatch.setattr(orbax._checkpointer, "wait_until_finished", fails)
    manager.save(1, make_state(), {})
    with pytest.raises(OSError, match="No space left"):
        manager.wait()
    assert not come.is_set() and orbax.is_saving_in_progress()
    come.set()
    with pytest.raises(OSError, match="No space left"):
        orbax.wait_until_finished()


def test_restores_the_newest_with_its_meta(saved):
    manager = Checkpoints(saved)
    state, meta = manager.restore(abstract(make_state()))
    chex.assert_trees_all_equal(state, make_state(2))
    assert meta["note"] == "step 2" and meta["step"] == 2


def test_restores_a_step_by_name_and_lists_those_there(saved):
    manager = Checkpoints(saved)
    state, _ = manager.restore(abstract(make_state()), 1)
    chex.assert_trees_all_equal(state, make_state(1))
    with pytest.raises(UserError, match=r"no checkpoint of step 7; it has \[1, 2\]"):
        manager.restore(abstract(make_state()), 7)


def test_nothing_to_restore_is_none(tmp_path):
    assert Checkpoints(tmp_path).restore(abstract(make_state())) is None


def test_a_relative_workdir_keeps_its_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manager = Checkpoints("run")
    manager.save(1, make_state(), {})
    manager.close()
    assert checkpoint.load("run")["field"]["kernel"].shape == (64, 32)


def test_another_mesh_restores_the_same_bits(saved):
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    target = abstract(make_state(), NamedSharding(mesh, PartitionSpec()))
    target["params"]["field"]["kernel"] = jax.ShapeDtypeStruct(
        (64, 32), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp"))
    )
    state, _ = Checkpoints(saved).restore(target)
    assert len(state["params"]["field"]["kernel"].addressable_shards) == 8
    chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(make_state(2)))


@pytest.mark.parametrize("item", [None, "params", "optimizer"])
def test_load_reads_plain_numpy(saved, item):
    tree = checkpoint.load(saved, item=item)
    leaves = jax.tree.leaves(tree)
    assert all(isinstance(leaf, np.ndarray) for leaf in leaves)
    expected = make_state(2)[item or "params"]
    for a, b in zip(leaves, jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, np.asarray(b))


def test_load_says_what_is_missing(saved, tmp_path_factory):
    with pytest.raises(UserError, match="no item 'discriminator'"):
        checkpoint.load(saved, item="discriminator")
    with pytest.raises(UserError, match="no checkpoint of step 9"):
        checkpoint.load(saved, step=9)
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.load(tmp_path_factory.mktemp("empty"))


def data_files(workdir, step):
    """The files that hold a checkpoint's parameters, the largest first."""
    folder = workdir / checkpoint.FOLDER / str(step) / "params"
    files = [p for p in folder.rglob("*") if p.is_file() and "/d/" in p.as_posix()]
    return sorted(files, key=lambda p: -p.stat().st_size)


def remove(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [remove, truncate, flip, empty])
def test_damage_is_found_and_the_one_before_is_used(saved, damage):
    damage(data_files(saved, 2)[0])
    manager = Checkpoints(saved)
    with pytest.warns(UserWarning, match=r"checkpoints/2 is damaged .* falling back"):
        state, meta = manager.restore(abstract(make_state()))
    chex.assert_trees_all_equal(state, make_state(1))
    assert meta["step"] == 1 and (saved / checkpoint.DAMAGED / "2").exists()
    # The step can be saved anew, which orbax by itself would silently refuse.
    manager.save(2, make_state(5), {})
    manager.close()
    np.testing.assert_array_equal(checkpoint.load(saved, step=2)["field"]["half"], 5)


def test_load_refuses_a_flipped_byte(saved):
    flip(data_files(saved, 2)[0])
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load(saved)


def test_every_flipped_byte_of_the_largest_file_is_found_or_harmless(saved):
    """Values that differ from what was saved never come back, wherever the byte lies."""
    path = data_files(saved, 2)[0]
    original = path.read_bytes()
    for position in np.linspace(0, len(original) - 1, 25).astype(int):
        content = bytearray(original)
        content[position] ^= 0x01
        path.write_bytes(content)
        try:
            tree = checkpoint.load(saved)
        except UserError:
            continue
        chex.assert_trees_all_equal(tree, jax.device_get(make_state(2)["params"]))


def change_meta(saved, change):
    """Applies `change` to the text of step 2's meta; it must differ."""
    path = saved / checkpoint.FOLDER / "2" / "meta" / "metadata"
    old = path.read_text()
    path.write_text(change(old))
    assert path.read_text() != old


def one_digest_off(text):
    meta = json.loads(text)
    meta["digests"]["params"]["field/kernel"] += 1
    return json.dumps(meta)


@pytest.mark.parametrize("change", [one_digest_off, lambda text: text.replace(":", "", 1)])
def test_a_wrong_digest_or_a_broken_meta_is_damage(saved, change):
    change_meta(saved, change)
    with pytest.warns(UserWarning, match="is damaged"):
        _, meta = Checkpoints(saved).restore(abstract(make_state()))
    assert meta["step"] == 1


def test_another_digit_in_what_stands_beside_the_arrays_is_damage(saved):
    change_meta(saved, lambda text: text.replace('"note": "step 2"', '"note": "step 3"'))
    with pytest.warns(UserWarning, match="is damaged .its meta does not match its digest"):
        _, meta = Checkpoints(saved).restore(abstract(make_state()))
    assert meta["note"] == "step 1"


def test_all_damaged_is_an_error_and_nothing_is_lost(saved):
    for step in (1, 2):
        truncate(data_files(saved, step)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=r"no checkpoint asked for in .* is whole"):
            Checkpoints(saved).restore(abstract(make_state()))
    assert Checkpoints(saved).steps() == [1, 2]


def test_keeps_the_newest_and_the_best(tmp_path):
    manager = Checkpoints(tmp_path, keep=2, keep_best=1)
    for step, loss in enumerate([3.0, 1.0, 2.0, 4.0, 5.0], start=1):
        manager.save(step, make_state(step), {}, {"loss": loss})
    manager.close()
    manager = Checkpoints(tmp_path, keep=2, keep_best=1)  # a resumed run knows its best
    assert manager.steps() == [2, 4, 5] and manager.best_step() == 2
    manager.save(6, make_state(6), {}, {"loss": 6.0})
    manager.save(7, make_state(7), {})  # no held-out figures at this step
    manager.wait()
    assert manager.steps() == [2, 6, 7] and manager.best_step() == 2
    manager.close()


def test_digests_agree_between_numpy_and_devices_and_see_one_bit():
    tree = jax.device_get(make_state(3))
    on_device = checkpoint.digests(jax.tree.map(jnp.asarray, tree))
    assert checkpoint.digests(tree) == on_device
    bits = tree["params"]["field"]["kernel"].view(np.uint32).copy()
    for index, bit in [((0, 0), 0), ((63, 31), 31), ((5, 7), 13)]:
        changed = bits.copy()
        changed[index] ^= np.uint32(1 << bit)
        tree["params"]["field"]["kernel"] = changed.view(np.float32)
        assert checkpoint.digests(tree) != on_device
    swapped = bits.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    tree["params"]["field"]["kernel"] = swapped.view(np.float32)
    assert checkpoint.digests(tree) != on_device


def test_a_reader_changes_nothing_where_a_training_is_at_work(saved):
    flip(data_files(saved, 2)[0])
    half = saved / "checkpoints" / "3.orbax-checkpoint-tmp" / "metrics" / "metrics"
    half.parent.mkdir(parents=True)
    half.write_text('{"loss": 0.')  # a save that has just begun
    before = sorted(saved.rglob("*"))
    with pytest.warns(UserWarning, match="is damaged .* falling back to the one before"):
        _, meta = Checkpoints(saved, writes=False).restore(abstract(make_state()))
    assert meta["step"] == 1 and sorted(saved.rglob("*")) == before


def test_a_checkpoint_that_the_training_removes_under_a_reader_is_not_missed(saved, monkeypatch):
    reader, real = Checkpoints(saved, writes=False), Checkpoints._read

    def read(self, step, *arguments):
        if step == 2 and (self.folder / "2").exists():  # a step on, and the oldest ones go
            (self.folder / "1").rename(self.folder / "3")
            shutil.rmtree(self.folder / "2")
        return real(self, step, *arguments)

    monkeypatch.setattr(Checkpoints, "_read", read)
    state, _ = reader.restore(abstract(make_state()))
    chex.assert_trees_all_equal(state, make_state(1))
    with pytest.raises(UserError, match=r"no checkpoint of step 2; it has \[3\]"):
        reader.restore(abstract(make_state()), 2)


def test_what_this_machine_cannot_read_just_now_is_no_damage(saved, monkeypatch):
    def fails(self, step, items):
        raise ValueError("NOT_FOUND: \"/a/b\": Too many open files [os_error_code='24']")

    manager = Checkpoints(saved)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"2 now: /a/b: Too many"):
        patch.setattr(Checkpoints, "_alone", fails)
        manager.restore(abstract(make_state()))
    assert manager.steps() == [1, 2] and manager.restore(abstract(make_state()))[1]["step"] == 2


def test_a_disk_that_fails_for_a_moment_costs_no_checkpoint(saved, recwarn):
    """Orbax takes an error of `stat` for a folder that is not there."""
    whole, failures = Checkpoints._alone, [ValueError("Checkpoint directory does not exist")]

    def alone(*args):
        if failures:
            raise failures.pop()
        return whole(*args)

    checkpoints = Checkpoints(saved)
    checkpoints._alone = lambda *args: alone(checkpoints, *args)
    _, meta = checkpoints.restore(abstract(make_state()))
    checkpoints.close()
    assert meta["step"] == 2 and not recwarn.list


@pytest.mark.parametrize(
    "text",
    [
        "Checkpoint directory does not exist: /a",
        "NOT_FOUND: Error",
        "No ArrayMetadata found for process_index=0 in the checkpoint directory",
    ],
)
def test_a_save_whose_files_are_taken_away_is_one_line(tmp_path, monkeypatch, text):
    checkpoints = Checkpoints(tmp_path)

    def gone(self):
        raise ValueError(text)

    monkeypatch.setattr(type(checkpoints._manager), "check_for_errors", gone)
    with pytest.raises(UserError, match=r"a checkpoint in .* was not finished"):
        checkpoints.save(1, make_state(), {})


def test_what_is_found_out_behind_a_save_joins_it(saved):
    """As after a signal between the last step and its evaluation."""
    checkpoints = Checkpoints(saved, keep_best=1)
    checkpoints.save(2, make_state(3), {"note": "late"}, {"loss": 0.5})  # whose arrays stay
    assert checkpoints.best_step() == 2
    checkpoints.save(2, make_state(3), {"note": "later"}, {"loss": 0.1})  # it has its figures
    state, meta = checkpoints.restore(abstract(make_state()))
    checkpoints.close()
    assert meta["note"] == "late" and meta["step"] == 2
    chex.assert_trees_all_equal(state, make_state(2))
    assert not list((saved / "checkpoints").rglob("*.new"))


def test_a_checkpoint_that_came_from_elsewhere_is_not_written_over(saved):
    manager = Checkpoints(saved)
    shutil.copytree(saved / "checkpoints" / "2", saved / "checkpoints" / "3")
    with pytest.raises(UserError, match="3 was written by another process, or was not seen"):
        manager.save(3, make_state(3), {})
    manager.save(3, make_state(2), {})  # what this run came to, too
    manager.wait()
    assert manager.steps() == [1, 2, 3]


def test_what_is_counted_while_a_save_is_written_is_not_in_it(tmp_path, monkeypatch):
    """Orbax writes the meta beside the loop, which goes on."""
    manager, window, given = Checkpoints(tmp_path), {"loss": 1.0}, []
    monkeypatch.setattr(manager._manager, "save", lambda step, args, metrics: given.append(args))
    manager.save(1, make_state(), {"window": window})
    window["loss"] = 2.0
    assert given[0]["meta"].item["window"] == {"loss": 1.0}
    manager.close()


def test_parts_that_asyncio_finds_unread_are_not_told(caplog):
    around_orbax.hush_parts()
    for text, shown in ((around_orbax.UNREAD + ": (0,)", False), ("another", True)):
        caplog.clear()
        error = ValueError(text)
        logging.getLogger("asyncio").error("never retrieved", exc_info=(ValueError, error, None))
        assert bool(caplog.records) == shown


def test_a_save_keeps_no_objects(tmp_path):
    """Of Orbax as it is 600 a save stay, which TensorStore made to tell of its bytes."""
    manager, state, held = Checkpoints(tmp_path), make_state(), []
    for step in range(1, 16):
        manager.save(step, state, {})
        manager.wait()
        gc.collect()
        held.append(sys.getallocatedblocks())
    manager.close()
    assert np.median(np.diff(held[5:])) < 300, np.diff(held)
