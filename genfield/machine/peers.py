"""The other processes of a run: who they are, and what becomes of one that dies or leaves early.

JAX's coordination service, on process 0, hears a sign of life of each process at half of a limit,
from C++, so that a process that is busy in Python is no dead one. What happens at the end of the
limit is told by `machine.guard`.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time

from genfield.errors import UserError
from genfield.machine import guard, headroom, preemption

LIMIT = 60  # seconds without a sign of life; one that stands still for half of it is waited for
COMING = 300  # seconds in which all processes must have come
HOSTS, PACES, LEFT = "genfield/host/", "genfield/pace/", "genfield/left"
GRACE = 2.0  # seconds in which a process that fails like another tells that itself
SLOW = 0.2  # of a step, by which a host holds up the others, from which on it is named
EVERY = 10.0  # seconds over which it is compared how long each host takes
MARGIN = 5.0  # seconds that the service's verdict may take
STATUS = re.compile(r"\b(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")

_limit = 0  # of the processes that were joined
_leaves = threading.Event()  # this process ends by itself
_speaks = threading.Lock()  # of why a process ends one thread tells, in one line


def host() -> str:
    """This machine's name; of a pod its node's too, where the manifest tells it."""
    node = os.environ.get("NODE_NAME")
    return socket.gethostname() + (f" ({node})" if node else "")


def find(*address, limit: int = LIMIT, coming: float = COMING) -> None:
    """Joins JAX's processes, at (host:port, how many, which) or where JAX finds them.

    Raises:
      UserError: they cannot be found.
    """
    import jax

    waits = dict(heartbeat_timeout_seconds=limit, initialization_timeout=int(coming))
    with headroom.joining():
        try:
            jax.distributed.initialize(*address, local_device_ids=own_gpus(os.environ), **waits)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"cannot join the other processes: {error}") from error


def stand_in(code: int, argv: list[str]) -> None:
    """Tells the other processes that one ended before it had joined them, by joining in its place.

    Args:
      argv: of the one that ended; of its flags those count that say where the others are.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, kind in (("coordinator", str), ("num_processes", int), ("process_id", int)):
        parser.add_argument(f"--{name}", f"-{name}", type=kind)
    parser.add_argument("--distributed", "-distributed", action="store_true")
    given = parser.parse_known_args(argv)[0]
    address = given.coordinator, given.num_processes, given.process_id
    if given.distributed:
        address = ()
    elif None in address or not 0 <= given.process_id < given.num_processes:
        return  # they name no place
    find(*address, coming=guard.STAND_IN)
    state = _state()
    state.client.key_value_set(f"{HOSTS}{state.process_id}", host(), allow_overwrite=True)
    _tell(code)
    time.sleep(2 * GRACE)  # the others end with process 0, and it may be in the place of that


def join(*address, limit: int = LIMIT) -> None:
    """Finds the other processes, learns their hosts, and ends with one that ends by an error."""
    global _limit
    find(*address, limit=limit)
    state, wait = _state(), 1000 * COMING
    _limit, client, index, count = limit, state.client, state.process_id, state.num_processes
    client.key_value_set(f"{HOSTS}{index}", host(), allow_overwrite=True)
    hosts = [client.blocking_key_value_get(f"{HOSTS}{n}", wait) for n in range(count)]
    guard.inform(index=index, hosts=hosts, limit=limit)
    threading.Thread(target=_heed, args=(client, index), daemon=True).start()


def several() -> bool:
    """Whether JAX has found other processes."""
    return "jax" in sys.modules and _state().client is not None and _state().num_processes > 1


def _state():
    """JAX's `client` of its coordination service, `process_id` and `num_processes`.

    JAX's public names for the latter two look for devices first.
    """
    from jax._src import distributed

    return distributed.global_state


def _heed(client, index: int) -> None:
    """Ends this process when another has left by its own error, whatever it waits for."""
    while True:
        try:
            left = json.loads(client.blocking_key_value_get(LEFT, 1000 * 3600))
            break
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                return  # the run has ended, or process 0 has, which its guard tells
    if left[0] != index:
        guard.inform(left=left)
        time.sleep(GRACE if index else 2 * GRACE)  # all hear it from process 0, which stays longest
        with _speaks:
            if not _leaves.is_set():
                if guard.CHANNEL in os.environ:  # which tells it: JAX may end this one in mid-line
                    os.kill(os.getpid(), signal.SIGKILL)
                os._exit(guard.tell_left(*left))


def speak(code: int) -> bool:
    """Before this process tells why it ends: from now on that is its line, and this its code.

    Returns:
      Whether no other thread had come before.
    """
    with _speaks:
        first = not _leaves.is_set()
        _leaves.set()
    if code not in (0, preemption.EXIT_CODE):
        guard.inform(own=code)
    return first


def leave(code: int) -> None:
    """Before a process of several ends: together with the others, or so that they know.

    After an error the others are told of it at once: they would wait for this one in vain.
    """
    speak(code)
    if code in (0, preemption.EXIT_CODE):
        import jax

        jax.distributed.shutdown()
        return
    if not _limit:  # they do not work together
        return
    with contextlib.suppress(Exception):  # process 0 is gone: its guard's line is all there is
        _tell(code)
        if _state().process_id == 0:
            time.sleep(2 * GRACE)  # what the others wait for ends with this process


def _tell(code: int) -> None:
    """Tells all that this process ends by itself, where none has told so before."""
    state = _state()
    state.client.key_value_set(LEFT, json.dumps([state.process_id, host(), code]))


def wait_for_the_dead(error: BaseException) -> None:
    """Where an error may come of a process that died, does not return before that is settled.

    The coordination service ends this process within the limit, and its guard says why; where all
    are alive the error is this process' own.
    """
    while _limit and error is not None and STATUS.search(str(error)) is None:
        error = error.__cause__ or error.__context__
    if _limit and error is not None:
        time.sleep(_limit + MARGIN)


class Paces:
    """How long each process takes for its part of a step, of which process 0 names the slow.

    All take equally long for a step, as each waits for all. What differs is how much of it a
    process waits for its devices: the one that the others wait for waits least. Means over the
    same EVERY seconds of the clock are compared.
    """

    def __init__(self):
        self.lines: list[tuple[float, float]] = []
        self.span, self.asked = int(time.time() // EVERY), None

    def tell(self, step: float, waits: float) -> str | None:
        """Takes this process' mean seconds of a step, and those of it spent waiting.

        Returns:
          A line about the hosts that hold up the others, once after each span, on process 0.
        """
        if not several():
            return None
        state, span = _state(), int(time.time() // EVERY)
        if span != self.span:
            if self.lines:
                means = [sum(values) / len(self.lines) for values in zip(*self.lines, strict=True)]
                mine = json.dumps([self.span, host(), *means])
                key = f"{PACES}{state.process_id}"
                state.client.key_value_set(key, mine, allow_overwrite=True)
            self.lines, self.asked, self.span = [], self.span, span
        self.lines.append((step, step - waits))
        if state.process_id or self.asked is None:
            return None
        told = {key: json.loads(text) for key, text in state.client.key_value_dir_get(PACES)}
        paces = {
            int(key.rpartition("/")[2]): pace
            for key, (of, *pace) in told.items()
            if of == self.asked
        }
        if len(paces) < state.num_processes:  # the others are about to tell theirs
            return None
        self.asked = None
        return slow(paces)


def slow(paces: dict[int, list]) -> str | None:
    """Names the processes that hold up the others by SLOW of a step or more.

    Args:
      paces: by process its host, the seconds of a step, and those of it not spent waiting.
    """
    usual = sorted(own for *_, own in paces.values())[(len(paces) - 1) // 2]  # the lower median
    step = max(step for _, step, _ in paces.values())
    late = [
        f"process {number} on {name} needs {own:.3g} s of it before its devices start"
        for number, (name, _, own) in sorted(paces.items())
        if own - usual > SLOW * step
    ]
    if not late:
        return None
    return f"slow host: of a step of {step:.3g} s {', '.join(late)}, the others {usual:.3g} s"


def own_gpus(environ) -> list[int] | None:
    """The GPUs of this process among those that it sees; None: as JAX takes it, all.

    JAX gives each Slurm task the one GPU with the task's number on its node. That is wrong of a
    task with several, and of one that sees its own GPU only, as number 0.
    """
    seen = environ.get("CUDA_VISIBLE_DEVICES", "")
    if "SLURM_LOCALID" not in environ or not seen:
        return None
    count, task = len(seen.split(",")), int(environ["SLURM_LOCALID"])
    tasks = int(re.match(r"\d+", environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))[0])
    if tasks == 1 or count < int(environ.get("SLURM_GPUS_ON_NODE", count)):  # Slurm has bound them
        return list(range(count))
    share = count // tasks
    if not share:
        raise UserError(f"{tasks} tasks on a node with {count} GPUs: start at most one task a GPU")
    return list(range(task * share, (task + 1) * share))


if __name__ == "__main__":  # below the guard of a process that never came
    stand_in(int(sys.argv[1]), sys.argv[2:])
    os._exit(0)
