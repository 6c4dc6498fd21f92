"""The command line: a run is opened, a socket taken, and the page served until Ctrl-C."""

import argparse
import importlib.util
import socket
import threading
import time

from genfield import errors
from genfield.errors import UserError, local, tell
from genfield.machine import compiled, preemption

PORT = 8765
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def parse(argv: list[str]) -> argparse.Namespace:
    """The options; raises UserError for a mistake."""
    mend = "--help lists the options"
    what = "Shows a trained run in the browser, on this machine alone (docs/look.md)."
    parser = errors.Parser("genfield look", mend, description=what)
    add = parser.add_argument
    add("--workdir", required=True, help="folder of a trained run")
    add("--step", type=int, help="the checkpoint to open; left out: the newest")
    add("--best", action="store_true", help="open the best checkpoint")
    add("--autoencoder", help="weights that turn latents into pixels; left out: the run's own")
    add("--port", type=int, default=PORT, help=f"left out: {PORT}; 0: any that is free")
    add("--host", default=LOOPBACK[0], help="where to listen; left out: this machine alone")
    given = parser.parse_args(argv[1:])
    if given.step is not None and given.best:
        raise UserError("--step and --best name two checkpoints: leave one of them out")
    if not 0 <= given.port < 2**16:
        raise UserError(f"--port={given.port} must be in 0 to {2**16 - 1}")
    return given


def check_installed() -> None:
    """Raises UserError without the extra."""
    if importlib.util.find_spec("flask") is None:
        raise UserError("look needs Flask, which is not installed: pip install 'genfield[look]'")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; raises UserError where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot listen on {host}, port {port} ({reason}): pass another --port=…, or 0 for any "
            "that is free"
        ) from error


def run(argv: list[str]) -> None:
    """The command; comes back by Ctrl-C alone, as Preempted."""
    given = parse(argv)
    check_installed()
    workdir = local(given.workdir, "--workdir").resolve()
    taken = listen(given.host, given.port)
    from genfield.look.server import create_app  # slow to import
    from genfield.program import command
    from genfield.program.open_run import open_run

    command.check_devices()
    preemption.begin()
    preemption.nothing_to_save("stopped")
    opened = open_run(workdir, given.step, best=given.best, autoencoder=given.autoencoder)
    compiled.keep(opened.experiment.config.compilation_cache)
    reopen = lambda: open_run(workdir, autoencoder=given.autoencoder)
    serve(create_app(opened, workdir.name, reopen, given.host), taken)


def serve(app, taken: socket.socket) -> None:
    """Serves until a signal; raises Preempted then."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_) -> None: ...

    host, port = taken.getsockname()[:2]
    options = dict(threaded=True, request_handler=Quiet, fd=taken.fileno())
    server = make_server(host, port, app, **options)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if host not in LOOPBACK:
        tell(
            f"genfield: warning: listening on {host}: whoever reaches this machine can see the run "
            "and have it compute",
            error=True,
        )
    shown = f"[{host}]" if ":" in host else host
    tell(f"genfield: look at http://{shown}:{port}/ and end it by Ctrl-C")
    while True:
        preemption.poll()
        time.sleep(0.1)
