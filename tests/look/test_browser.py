"""The page in a headless browser: it asks nobody else, reads the field, draws, follows a run."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import MOONS, ROOT, trained

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
WAIT = 120_000  # milliseconds: the first samples are compiled


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install 'genfield[browser]'"
    )
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    run = trained(tmp_path_factory, MOONS, train__steps=2)
    card = json.loads((run / "card.json").read_text())
    card["training"][HOSTILE] = HOSTILE
    (run / "card.json").write_text(json.dumps(card))
    (run / "figures").mkdir(exist_ok=True)
    (run / "figures" / "<img src=x onerror=alert(1)>.png").write_bytes(PIXEL)
    return run


PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8"
    "ffff3f0005fe02fedccc59e70000000049454e44ae426082"
)


@pytest.fixture(scope="module")
def server(workdir):
    """The command as a process, and the address that it prints."""
    pytest.importorskip("flask")
    command = [sys.executable, "-m", "genfield.look", f"--workdir={workdir}", "--port=0"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process = subprocess.Popen(command, env=env, **pipes)
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
            break
    else:
        pytest.fail("".join(said))
    yield process, found[0]
    process.kill()


def drawn(page) -> int:
    """How many pixels of the upper canvas, that of the samples, have colour."""
    return page.evaluate(
        """() => {
          const canvas = document.querySelectorAll("#plane canvas")[1];
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return data.filter((_, i) => i % 4 === 3 && data[i] > 0).length;
        }"""
    )


def watched(page) -> tuple[list, list]:
    """What a page asks for, and what goes wrong on it."""
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    return asked, wrong


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_on_a_phone(browser, server, scheme):
    _, address = server
    size = {"width": 390, "height": 844}
    page = browser.new_page(viewport=size, color_scheme=scheme, has_touch=True)
    asked, wrong = watched(page)
    page.goto(address)
    for tab in ("Field", "Curves", "Pictures", "Card", "Config"):
        page.click(f"#tabs >> text={tab}", timeout=WAIT)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= size["width"], tab
    page.click("#tabs >> text=Field")
    page.touchscreen.tap(150, 400)
    page.locator("#told >> text=evaluations").wait_for(timeout=WAIT)
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back))) > 380) == (scheme == "light")
    assert not wrong and asked


@pytest.mark.slow
def test_the_page_in_a_browser(browser, server, workdir):
    _, address = server
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    asked, wrong = watched(page)
    page.goto(address)
    page.locator("#field").wait_for(timeout=WAIT)
    page.locator("#view >> text=the distance").wait_for(timeout=WAIT)
    box = page.locator("#plane").bounding_box()
    at = lambda x, y: (box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.mouse.move(*at(0.3, 0.3))
    page.locator("#reading >> text=samples move along").wait_for(timeout=WAIT)
    page.mouse.move(*at(0.5, 1.4))  # away: the arrow under the mouse goes
    assert drawn(page) == 0
    # A click, and a slider.
    page.select_option("#field-sampler select.which", "gradient_descent")
    page.mouse.click(*at(0.25, 0.2))
    page.locator("#told >> text=1 sample, 100 evaluations").wait_for(timeout=WAIT)
    page.mouse.move(*at(0.5, 1.4))
    page.wait_for_timeout(1_000)
    one = drawn(page)
    assert one > 100
    page.locator("#field-sampler label.slider", has_text="Steps").locator("input").press(
        "ArrowLeft"
    )
    page.locator("#told >> text=1 sample, 80 evaluations").wait_for(timeout=WAIT)
    page.click("#draw")
    page.locator("#told >> text=256 samples, 80 evaluations").wait_for(timeout=WAIT)
    page.wait_for_timeout(1_000)
    assert drawn(page) > 2 * one
    page.click("#clear")
    assert drawn(page) == 0
    _read_the_run(page, workdir)
    assert not wrong and page.locator("#problem").is_hidden()
    assert asked and all(url.startswith((address, "data:")) for url in asked)


def _read_the_run(page, workdir) -> None:
    """Its curves as they grow, its pictures, its card, whatever that says."""
    page.click("#tabs >> text=Curves")
    page.locator("#curves figure", has_text="grad norm").wait_for()
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "split": "eval", "a new figure": 0.125}\n')
    page.locator("#curves figure", has_text="a new figure").wait_for(timeout=WAIT)
    page.click("#tabs >> text=Pictures")
    page.locator("#pictures img").click()
    page.locator("dialog[open] img").click()
    page.click("#tabs >> text=Card")
    assert HOSTILE in page.locator("#card").inner_text()
    page.click("#tabs >> text=Config")
    assert "distance_marching" in page.locator("#config").inner_text()
    assert page.title().endswith("genfield look")


@pytest.mark.slow
def test_ctrl_c_ends_it(server):
    """Last in this file: the server is gone after it."""
    process, _ = server
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 143
    assert time.monotonic() - begun < 5
