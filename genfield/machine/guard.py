"""Of several processes each runs below a guard: a small parent that tells how its process ended.

When a process dies, JAX ends the others from C++ with pages of text and an abort that no Python can
step into. The guard, which imports nothing slow and holds no device, makes of that one line with
the dead process' name and an exit code to start again on. It passes signals on, and what its
process prints it lets through.
"""

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time

from genfield.errors import tell

EXIT_CODE = 75  # "temporary failure" (sysexits.h): the same command goes on from the checkpoint
CHANNEL = "GENFIELD_GUARD"  # in the environment of the process below: where it tells the guard
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TRIGGERS = ("coordinator", "distributed")

# What comes before an abort: lines that JAX and Orbax log as errors, tracebacks of their threads.
OMEN = re.compile(
    rb"[EF]\d{4} \S+ +\d+ \S+\]|W\d{4} \S+ +\d+ (?:preemption_sync|coordination)|"
    rb"Traceback \(most recent|Exception in thread"
)
# What JAX tells of the others' end, up to the next that is told: nothing beside an end of its own.
OTHERS = re.compile(
    rb"^[EW]\d{4} \S+ +\d+ (?:preemption_sync|coordination).*?"
    rb"(?=^genfield: |^Traceback|^Exception in|^[EWF]\d{4} |\Z)",
    re.MULTILINE | re.DOTALL,
)
FATAL = re.compile(rb"^F\d{4} ", re.MULTILINE)  # of these the last: it may write for long, and ends
SILENT = re.compile(rb"\(stopped sending heartbeats\):\s+((?:\S*\d+\s)+)")
LEADER = re.compile(rb"Failed to send RPC|CoordinationService/Heartbeat|Deadline Exceeded")
RESTARTED = re.compile(rb"ABORTED: (?:\S*\D)?(\d+) unexpectedly tried to connect")
REGISTER = b"CoordinationService/RegisterTask"
HOLD = 10.0  # seconds more than the limit in which the abort comes after these, if it comes
STAND_IN = 60.0  # seconds in which the others are told of a process that never came
PR_SET_PDEATHSIG = 1


def stand() -> None:
    """Called first thing by a program: the parent of several processes does not come back.

    In the process below, or where there is but one process, nothing happens; the former dies with
    its guard.
    """
    if CHANNEL in os.environ:
        _die_with_the_parent()
        return
    names = {arg.lstrip("-").partition("=")[0] for arg in sys.argv[1:] if arg.startswith("-")}
    if names.intersection(TRIGGERS):
        os._exit(Guard(time.monotonic).run([sys.executable, *sys.orig_argv[1:]]))


def _die_with_the_parent() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def inform(**facts) -> None:
    """Tells the guard above this process, where there is one, what it cannot know."""
    channel = os.environ.get(CHANNEL)
    if channel is not None:
        with contextlib.suppress(OSError):  # the guard is gone
            os.write(int(channel), json.dumps(facts).encode() + b"\n")


class Guard:
    """One process below, its stderr, and what it told.

    Attributes:
      facts: `hosts` by number, its own `index`, the `limit` of a sign of life; `left`: another that
        has ended, with its host and code; `own`: its code, once it tells why it ends.
    """

    def __init__(self, clock):
        self.clock, self.facts, self.below = clock, {}, None
        self.partial, self.told = b"", b""
        self.held, self.since = b"", None  # lines that JAX says before it aborts, and since when

    def run(self, command: list[str]) -> int:
        """Starts the process, waits for its end, tells it; the exit code."""
        channel, writes = os.pipe()
        options = dict(pass_fds=(writes,), env=os.environ | {CHANNEL: str(writes)})
        self.below = below = subprocess.Popen(command, stderr=subprocess.PIPE, **options)
        os.close(writes)
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, _: self.below.send_signal(number))
        with selectors.DefaultSelector() as ready:
            for pipe, take in ((below.stderr.fileno(), self.take), (channel, self.hear)):
                os.set_blocking(pipe, False)
                ready.register(pipe, selectors.EVENT_READ, take)
            while below.poll() is None:  # children of the process may keep its pipes open
                self._read(ready, 0.2)
            while self._read(ready, 0):
                pass
        all_end = FATAL.search(self.held) and blame(self.held, [])  # JAX ends the others too
        code = self.end(below.returncode)
        if code and "hosts" not in self.facts and not all_end:
            self.stand_in(code, command)
        return code

    def stand_in(self, code: int, command: list[str]) -> None:
        """For a process that ended before it had joined the others, who would wait for it in vain.

        Another joins in its place, tells them, and ends.
        """
        given = [sys.executable, "-m", "genfield.machine.peers", str(code), *command[1:]]
        silent = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.below = subprocess.Popen(given, **silent)
            self.below.wait(STAND_IN)
        self.below.kill()

    def _read(self, ready, timeout: float) -> bool:
        """Reads what is there; whether there was anything."""
        found = False
        for key, _ in ready.select(timeout):
            data = os.read(key.fd, 1 << 16)
            if data:
                key.data(data)
                found = True
            else:
                ready.unregister(key.fd)
        if not found:
            self.rest()
        if not ready.get_map() and timeout:
            time.sleep(timeout)
        return found

    def hear(self, data: bytes) -> None:
        """Takes what the process tells: {"index": 1, "hosts": […]}, {"left": [2, "b", 1]}."""
        *lines, self.told = (self.told + data).split(b"\n")
        for line in lines:
            self.facts |= json.loads(line)

    def take(self, data: bytes) -> None:
        """Passes lines of the process on; those that tell of an abort wait for it."""
        *lines, self.partial = (self.partial + data).split(b"\n")
        for line in lines:
            if self.since is None and OMEN.match(line):
                self.since = self.clock()
            if self.since is None:
                _write(line + b"\n")
            else:
                self.held += line + b"\n"

    def rest(self) -> None:
        """A moment without output: what waits for its line, or for an abort, waits no longer."""
        if self.since is None:
            _write(self.partial)
            self.partial = b""
        elif self.clock() - self.since > self.facts.get("limit", 0) + HOLD:
            if not FATAL.search(self.held):
                self.release()

    def release(self) -> None:
        """Lets go of all that was held back."""
        _write(self.held + self.partial)
        self.held = self.partial = b""
        self.since = None

    def end(self, code: int) -> int:
        """Tells in one line how the process ended, where it could not itself; the exit code."""
        if code == -signal.SIGABRT:
            code = self.facts.get("own", code)
        if code >= 0:
            if FATAL.search(self.held):  # it was about to end by itself when JAX began to end it
                self.held = b"".join(re.findall(rb"^genfield: .*\n", self.held, re.MULTILINE))
                self.partial = b""
            if "own" in self.facts:
                self.held = OTHERS.sub(b"", self.held)
            self.release()
            return code
        if left := self.facts.get("left"):
            return tell_left(*left)
        reason = blame(self.held + self.partial, self.facts.get("hosts", []))
        if signal.Signals(-code) is not signal.SIGABRT or reason is None:
            self.release()
            reason = f"{self.name()} was ended by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                reason += " (too little memory, or by hand)"
        tell(f"genfield: error: {reason}; {AGAIN}", error=True)
        return EXIT_CODE

    def name(self) -> str:
        """This guard's process in words."""
        hosts = self.facts.get("hosts")
        return name(self.facts["index"], hosts) if hosts else "this process"


AGAIN = f"exit code {EXIT_CODE}: the same command goes on from the last checkpoint"


def tell_left(index: int, host: str, code: int) -> int:
    """Tells that another process has ended by its own error; the exit code, which is its."""
    text = f"process {index} on {host} ended with exit code {code}: its own lines say why"
    tell(f"genfield: error: {text}", error=True)
    return code


def name(index: int, hosts: list[str]) -> str:
    """ "process 3 on tpu-worker-3"."""
    return f"process {index}" + (f" on {hosts[index]}" if index < len(hosts) else "")


def blame(text: bytes, hosts: list[str]) -> str | None:
    """Who is dead, by what JAX's coordination service said; None if it said nothing of it."""
    if REGISTER in text:
        return "not all processes have come: one did not start, or cannot reach process 0"
    if again := RESTARTED.search(text):  # by what its guard started to tell the others
        return f"{name(int(again[1]), hosts)} ended while the job began"
    if silent := b" ".join(SILENT.findall(text)):
        numbers = {int(re.findall(rb"\d+", word)[-1]) for word in silent.split()}
        names = ", ".join(name(number, hosts) for number in sorted(numbers))
        return f"{names} gave no sign of life and counts as dead"
    if LEADER.search(text):
        return f"{name(0, hosts)} cannot be reached any more and counts as dead"
    return None


def _write(data: bytes) -> None:
    try:
        while data:
            data = data[os.write(2, data) :]
    except OSError:  # nobody reads any more
        pass
