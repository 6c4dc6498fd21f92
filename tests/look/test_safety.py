"""What the page may not do: leave the run, answer others, run its text, compute without end."""

import json
import os
import re
import socket
from importlib import resources

import pytest

from genfield.look import cli, subject
from genfield.look import server as served
from genfield.look.__main__ import main
from genfield.look.folder import Folder
from genfield.machine import preemption

SECRET = b"a secret outside the run"
SCRIPT = "<script>document.title='run'</script>"
POINT = {"points": [[0, 0]]}


def refused(response, code: int) -> str:
    """One line of JSON, with the page's headers."""
    assert response.status_code == code, response.get_data()[:200]
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    [(name, line)] = response.get_json().items()
    assert name == "error" and line and "\n" not in line
    return line


@pytest.mark.parametrize(
    "path",
    [
        "/picture/../config.json",
        "/picture/..%2f..%2fetc%2fpasswd",
        "/picture/-1",
        "/picture/999999",
        "/page/../server.py",
        "/page/..%2fserver.py",
        "/page//etc/passwd",
        "/config.json",
        "//etc/passwd",
    ],
)
def test_no_path_of_a_request_leads_anywhere(page, path):
    assert page.get(path).status_code in (308, 400, 403, 404)
    assert b"root:" not in page.get(path, follow_redirects=True).get_data()


def test_links_out_of_the_run_are_not_there(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(SECRET)
    (tmp_path / "outside" / "config.json").write_text('{"secret": 1}')
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    (run / "samples" / "own.png").write_bytes(b"own")
    (run / "samples" / "link.png").symlink_to(tmp_path / "outside" / "secret.png")
    (run / "samples" / "up.png").symlink_to("../../outside/secret.png")
    (run / "samples" / "round.png").symlink_to("round.png")
    (run / "figures").symlink_to(tmp_path / "outside")
    (run / "config.json").symlink_to(tmp_path / "outside" / "config.json")
    (run / "metrics.jsonl").symlink_to(tmp_path / "outside" / "config.json")
    folder = Folder(run)
    [picture] = folder.pictures()
    assert picture["name"] == "own.png" and folder.picture(picture["id"])[0] == b"own"
    assert folder.records() == {} and folder.curves() == ("", {})
    (run / "samples" / "own.png").unlink()  # after the scan
    (run / "samples" / "own.png").symlink_to(tmp_path / "outside" / "secret.png")
    with pytest.raises(ValueError, match="no such picture"):
        folder.picture(picture["id"])


def test_pictures_have_numbers(page, moons):
    known = moons.experiment.workdir / "studies" / "a <b> & c.PNG"
    known.parent.mkdir(exist_ok=True)
    known.write_bytes(b"drawn")
    [drawn] = page.get("/api/pictures").get_json()["pictures"]
    assert (drawn["folder"], drawn["name"]) == ("studies", known.name)
    answer = page.get(f"/picture/{drawn['id']}")
    assert answer.get_data() == b"drawn" and answer.mimetype == "image/png"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_file_keeps_its_number(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.png").write_bytes(b"a")
    folder = Folder(tmp_path)
    [first] = folder.pictures()
    (tmp_path / "figures" / "0.png").write_bytes(b"0")
    numbers = {one["name"]: one["id"] for one in folder.pictures()}
    assert numbers["a.png"] == first["id"] != numbers["0.png"]


def test_only_this_server_s_names_are_answered(page, moons, client_of):
    for host in ("127.0.0.1:8765", "localhost", "[::1]:9000", "LOCALHOST:1"):
        assert page.get("/api/status", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "10.0.0.1", "evil@127.0.0.2", "[::1"):
        assert page.get("/api/status", headers={"Host": host}).status_code in (400, 403), host
    wide = client_of(moons, "0.0.0.0")
    for host, code in (("192.168.1.5:80", 200), ("evil.example", 403)):
        assert wide.get("/api/status", headers={"Host": host}).status_code == code, host


def test_other_pages_cannot_post(page):
    post = lambda **headers: page.post("/api/field", json=POINT, headers=headers)
    assert post(Origin="http://localhost").status_code == 200
    assert post(**{"Sec-Fetch-Site": "same-origin"}).status_code == 200
    for origin in ("http://evil.example", "null", "http://localhost:81", "http://localhost.evil"):
        refused(post(Origin=origin), 403)
    refused(post(**{"Sec-Fetch-Site": "cross-site"}), 403)
    plain = dict(data=json.dumps(POINT), content_type="text/plain")
    refused(page.post("/api/field", **plain), 403)  # what a form can send without asking
    assert page.get("/api/load").status_code == 405


STAGE = {"step_size": 0.1, "num_steps": 5}
LARGE = "9" * 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("field", '{"points": [[0, NaN]]}'),
        ("field", '{"points": [[0, Infinity]]}'),
        ("field", '{"points": [[0, 1e999]]}'),
        ("field", f'{{"points": [[0, {LARGE}]]}}'),
        ("field", '{"points": [[0, 1e5]]}'),
        ("field", '{"points": [[0, true]]}'),
        ("field", '{"points": [[0, "1"]]}'),
        ("field", '{"points": [[0, 1, 2]]}'),
        ("field", '{"points": []}'),
        ("field", '{"points": {"0": 1}}'),
        ("field", json.dumps({"points": [[0, 0]] * (subject.POINTS + 1)})),
        ("field", '{"points": [[0, 0]], "path": "/etc/passwd"}'),
        ("field", "[]"),
        ("field", "{"),
        ("field", "[" * 100_000),
        ("levels", '{"t": 1, "grid": 100000}'),
        ("samples", '{"num": 100000}'),
        ("samples", '{"num": 2.5}'),
        ("samples", '{"num": 0}'),
        ("samples", '{"seed": -1}'),
        ("samples", '{"sampler": "../euler"}'),
        ("samples", '{"sampler": ["euler"]}'),
        ("samples", '{"stages": []}'),
        ("samples", '{"stages": [{}, {"num_steps": 2001}]}'),
        ("samples", '{"stages": [{}, {"num_steps": 1e9}]}'),
        ("samples", '{"stages": [{}, {"step_size": 0}]}'),
        ("samples", '{"stages": [{}, {"step_size": 1e300}]}'),
        ("samples", '{"stages": [{}, {"mass": 2}]}'),
        ("samples", json.dumps({"stages": [{}] * 1_000})),
        ("images", '{"num": 1}'),
    ],
)
def test_what_is_out_of_bounds_is_refused(page, path, body):
    refused(page.post(f"/api/{path}", data=body, content_type="application/json"), 400)


def test_long_requests_are_refused(page):
    body = '{"points": [' + "[0, 0]," * served.LARGEST + "[0, 0]]}"
    refused(page.post("/api/field", data=body, content_type="application/json"), 413)


def test_one_computation_at_a_time(page, monkeypatch, moons):
    monkeypatch.setattr(subject, "WAITING", 0.01)
    asked = subject.Subject(moons)
    with asked.computing(), pytest.raises(subject.Busy, match="another computation is running"):
        asked.field(POINT)
    assert asked.field(POINT)["field"]


def test_a_computation_ends_in_time(page, monkeypatch):
    monkeypatch.setattr(subject, "SECONDS", 0.0)
    assert "took too long" in refused(page.post("/api/samples", json={"num": 5}), 503)
    monkeypatch.undo()
    assert page.post("/api/samples", json={"num": 5}).status_code == 200


def test_an_error_of_the_program_is_one_line(page, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(Folder, "pictures", broken)
    assert refused(page.get("/api/pictures"), 500) == "RuntimeError: first second"
    assert "RuntimeError" in capsys.readouterr().err


def test_text_of_the_run_is_never_markup(page):
    """Names reach the page as JSON, and its scripts put them in as text."""
    answer = page.get("/")
    assert answer.mimetype == "text/html" and "script-src 'self'" in str(answer.headers)
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", answer.get_data(as_text=True))
    files = list((resources.files("genfield.look") / "page").iterdir())
    assert len(files) > 5
    for file in files:
        text = file.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
        assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg"}, file


# The command


def line_of(capsys) -> str:
    [line] = [line for line in capsys.readouterr().err.splitlines() if line]
    assert line.startswith("genfield: error: ")
    return line


def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch, moons):
    look = lambda *flags: main(["look", *flags, "--port=0"])
    (tmp_path / "file").write_text("")
    run = f"--workdir={moons.experiment.workdir}"
    mistakes = {
        (f"--workdir={tmp_path}",): "holds no checkpoints",
        (f"--workdir={tmp_path / 'none'}",): "holds no checkpoints",
        (f"--workdir={tmp_path / 'file'}",): "holds no checkpoints",
        ("--workdir=gs://bucket/run",): "not on this machine's disk",
        (): "--workdir",
        (run, "--step=7"): "7",
        (run, "--step=1", "--best"): "leave one of them out",
        (run, "--stop=1"): "--stop",
        (run, "--host=no.such.host.invalid"): "cannot listen",
    }
    for flags, known in mistakes.items():
        assert look(*flags) == 2
        assert known in line_of(capsys)
    (tmp_path / "config.json").write_text((moons.experiment.workdir / "config.json").read_text())
    (tmp_path / "checkpoints").mkdir()
    assert look(f"--workdir={tmp_path}") == 2 and "train first" in line_of(capsys)
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert look(run) == 2 and "genfield[look]" in line_of(capsys)


def test_a_taken_port_is_one_line(capsys, moons):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = [f"--workdir={moons.experiment.workdir}", f"--port={taken.getsockname()[1]}"]
        assert main(["look", *flags]) == 2
    assert "pass another --port" in line_of(capsys)
    assert main(["look", *flags[:1], "--port=70000"]) == 2 and "65535" in line_of(capsys)


@pytest.mark.parametrize(("host", "warns"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_it_listens_here_alone_unless_told(moons, client_of, capsys, monkeypatch, host, warns):
    def once():
        raise preemption.Preempted

    monkeypatch.setattr(preemption, "poll", once)
    assert cli.parse(["look", "--workdir=x"]).host == "127.0.0.1"
    with pytest.raises(preemption.Preempted), cli.listen(host, 0) as taken:
        cli.serve(client_of(moons, host).application, taken)
    told = capsys.readouterr()
    assert ("warning: listening on 0.0.0.0" in told.err) == warns
    assert f"http://{host}:" in told.out and os.linesep in told.out
