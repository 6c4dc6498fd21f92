"""The page and what it asks for, as a Flask application: for one person, on this machine.

Flask brings what is needed and no more: routes, bounds on what is sent, a test client, and a server
with threads, beside which JAX computes; no event loop has to be kept free.
"""

import base64
import io
import ipaddress
import threading
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

import flask
import numpy as np
from PIL import Image
from werkzeug.exceptions import HTTPException

from genfield.data import to_uint8
from genfield.errors import UserError, mendable, tell
from genfield.look.folder import Folder
from genfield.look.programs import TooLong
from genfield.look.subject import Busy, Subject
from genfield.program.open_run import Run

LARGEST = 2**17  # bytes of a request
LOCAL = ("localhost", "127.0.0.1", "::1")
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Forbidden(UserError):
    """A request from somewhere else than this page."""


def create_app(
    run: Run, name: str, reopen: Callable[[], Run], host: str = "127.0.0.1"
) -> flask.Flask:
    """The application.

    Args:
      run: what is shown. name: of the run, for the page's head.
      reopen: () -> the run at its newest checkpoint.
      host: where the server listens; decides which Host a request may name.
    """
    app = flask.Flask("genfield.look", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = LARGEST
    app.json.sort_keys, app.url_map.merge_slashes = False, False
    folder = Folder(run.experiment.workdir)
    lock = threading.Lock()
    again = lambda: Subject(reopen(), lock)
    shown = {"subject": Subject(run, lock)}
    app.before_request(lambda: _check_caller(host))
    app.after_request(_with_headers)
    app.register_error_handler(Exception, _told)
    _serve_page(app)
    _serve_folder(app, folder)
    _serve_run(app, folder, shown, name, again)
    return app


def _check_caller(host: str) -> None:
    """Raises Forbidden unless a request names this server, and a POST comes from its own page.

    A page elsewhere can have its own name lead to this machine (DNS rebinding); the name then
    stands in Host. It can post here as well, but says so in Origin.
    """
    request = flask.request
    if not _known(request.host, host):
        raise Forbidden("this name does not belong to this server: open the address it printed")
    if request.method not in ("GET", "HEAD"):
        origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise Forbidden("this request comes from another page")
        if site not in (None, "same-origin", "none") or not request.is_json:
            raise Forbidden("requests are JSON, from this page")


def _known(asked: str, host: str) -> bool:
    """Whether a Host header names this server; numbers cannot be made to lead elsewhere."""
    try:
        name = (urlsplit(f"//{asked}").hostname or "").lower()
    except ValueError:
        return False
    if name in LOCAL or name == host.lower():
        return True
    if host in LOCAL:
        return False
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _with_headers(response: flask.Response) -> flask.Response:
    response.headers.update(HEADERS)
    return response


def _told(error: Exception):
    """Every error is one line of JSON."""
    if isinstance(error, HTTPException):
        return flask.jsonify(error=f"{error.code} {error.name}"), error.code
    message = mendable(error)
    if message is None:
        message = f"{type(error).__name__}: {str(error)[:300]}"
        tell(f"genfield: error: {message}", error=True)
        return flask.jsonify(error=" ".join(message.split())), 500
    codes = {Forbidden: 403, Busy: 503, TooLong: 503}
    return flask.jsonify(error=" ".join(message.split())), codes.get(type(error), 400)


def _serve_page(app: flask.Flask) -> None:
    """The page's own files, read once, by their names alone."""
    files = {
        entry.name: (entry.read_bytes(), TYPES[Path(entry.name).suffix])
        for entry in (resources.files("genfield.look") / "page").iterdir()
        if Path(entry.name).suffix in TYPES
    }

    def page(name: str = "index.html"):
        if name not in files:
            flask.abort(404)
        content, kind = files[name]
        return flask.Response(content, mimetype=kind)

    app.add_url_rule("/", "page", page)
    app.add_url_rule("/page/<name>", "page", page)


def _serve_folder(app: flask.Flask, folder: Folder) -> None:
    def pictures():
        return flask.jsonify(pictures=folder.pictures())

    def picture(number: int):
        content, kind = folder.picture(number)
        return flask.Response(content, mimetype=kind)

    def records():
        return flask.jsonify(folder.records())

    def curves():
        token, found = folder.curves()
        if token and token == flask.request.args.get("since"):
            return flask.jsonify(token=token)
        return flask.jsonify(token=token, curves=found)

    app.add_url_rule("/api/pictures", view_func=pictures)
    app.add_url_rule("/picture/<int:number>", view_func=picture)
    app.add_url_rule("/api/records", view_func=records)
    app.add_url_rule("/api/curves", view_func=curves)


def _serve_run(app, folder: Folder, shown: dict, name: str, again: Callable) -> None:
    def run():
        subject: Subject = shown["subject"]
        facts = {"name": name, "step": subject.run.step, "newest": folder.newest()}
        with subject.computing():
            facts |= subject.facts
        return flask.jsonify(facts)

    def status():
        return flask.jsonify(step=shown["subject"].run.step, newest=folder.newest())

    def load():
        with shown["subject"].computing():
            shown["subject"] = again()
        return flask.jsonify(step=shown["subject"].run.step)

    def images():
        subject: Subject = shown["subject"]
        if subject.plane:
            raise UserError("samples of this run are points, not images")
        out = subject.samples(_asked())
        with subject.computing():
            x = subject.run.decode(out["x"])
        labels = None if out["labels"] is None else out["labels"][: len(x)].tolist()
        return flask.jsonify(images=[_png(image) for image in x], nfe=out["nfe"], labels=labels)

    def samples():
        subject: Subject = shown["subject"]
        subject.check_plane()
        return flask.jsonify(subject.samples(_asked()))

    field = lambda: flask.jsonify(shown["subject"].field(_asked()))
    levels = lambda: flask.jsonify(shown["subject"].levels(_asked()))
    app.add_url_rule("/api/run", view_func=run)
    app.add_url_rule("/api/status", view_func=status)
    for path, view in (("load", load), ("images", images), ("samples", samples)):
        app.add_url_rule(f"/api/{path}", view_func=view, methods=["POST"])
    app.add_url_rule("/api/field", "field", field, methods=["POST"])
    app.add_url_rule("/api/levels", "levels", levels, methods=["POST"])


def _asked():
    """The JSON of a request."""
    try:
        return flask.request.get_json()
    except RecursionError:
        raise UserError("a request is a JSON object, not a deep nest of lists") from None


def _png(image: np.ndarray) -> str:
    """An image [H, W, C] in [-1, 1] as the address of a PNG."""
    levels, held = to_uint8(image[None])[0], io.BytesIO()
    levels = levels[..., 0] if levels.shape[-1] == 1 else levels[..., :3]
    Image.fromarray(levels).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
