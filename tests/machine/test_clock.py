"""Where time goes: every second in one part, in shares and in words; work beside the steps."""

import threading

import pytest

from genfield.machine import clock as clocks
from genfield.machine.background import Background
from genfield.machine.clock import Clock


@pytest.fixture
def watch(monkeypatch):
    """Sets the time."""
    now = [100.0]
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: now[0])

    def tick(seconds: float) -> None:
        now[0] += seconds

    return tick


def test_each_second_is_of_one_part(watch):
    clock = Clock(begun=97.0)
    watch(1)  # 4 s of the start
    clock.to("data")
    watch(2)
    clock.to("dispatch", "waiting_for_data")
    watch(5)
    with clock.within("evaluation"):
        watch(7)
        with clock.within("pictures"):
            watch(11)
        watch(13)
    watch(1)
    assert clock.read() == {
        **{"start": 4, "waiting_for_data": 2, "dispatch": 6},
        **{"evaluation": 20, "pictures": 11},
    }
    watch(1)
    assert sum(clock.read().values()) == 44  # 3 + 41


def test_a_part_that_fails_ends_too(watch):
    clock = Clock("loop")
    with pytest.raises(ValueError), clock.within("checkpoint"):
        watch(3)
        raise ValueError
    watch(2)
    assert clock.read() == {"loop": 2, "checkpoint": 3}


def test_goodput_is_the_share_of_time_in_steps(watch):
    clock = Clock("device")
    watch(6)
    clock.to("loop")
    watch(1)
    clock.to("compiling")
    watch(3)
    clock.to("loop")
    clock.earlier({"device": 10.0, "start": 5.0})
    told = clocks.told(clock.read())
    assert told == {"goodput": 0.68, "seconds": {"steps": 17, "compiling": 3, "start": 5}}
    assert clocks.line(told) == "68% of it in steps; start 20%, compiling 12%"
    clock.earlier({"earlier_version": 75.0})  # whose parts nobody knows
    told = clocks.told(clock.read())
    assert told["goodput"] == 0.68 and sum(told["seconds"].values()) == 100


def test_work_beside_is_taken_up_in_its_order():
    beside, may_end, taken = Background(), threading.Event(), []
    beside.start(lambda: may_end.wait(10) and threading.current_thread(), taken.append)
    assert taken == []  # it runs on, and the one who started it too
    may_end.set()
    beside.start(lambda: "second", taken.append)
    assert len(taken) == 1 and taken[0] is not threading.current_thread()
    beside.finish()
    assert taken[1] == "second"
    beside.finish()
    assert len(taken) == 2


def test_what_fails_beside_is_told_when_it_is_taken_up():
    beside = Background()
    beside.start(lambda: 1 / 0, print)
    with pytest.raises(ZeroDivisionError):
        beside.finish()
    beside.finish()
