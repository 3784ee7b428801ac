"""A browser for tests of pages: Debian's Chromium, driven by Playwright, which brings none here."""

import shutil
import threading
import time
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def needed():
    """Skips a test, with the reason, where there is no browser to drive."""
    pytest.importorskip("playwright", reason="pages are driven by playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")


@contextmanager
def serving(app):
    """The address of an application, served from a thread."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@contextmanager
def browser():
    """Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Page:
    """A page in a fresh profile, which writes down what goes wrong and what it asks others for."""

    def __init__(self, browser, address, **settings):
        self.page = browser.new_context(**settings).new_page()
        self.page.set_default_timeout(15_000)
        self.wrong = []
        self.page.on("console", lambda said: self.wrong.append(said.text)
                     if said.type in ("error", "warning") else None)  # fmt: skip
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda asked: None if asked.url.startswith((address, "blob:"))
                     else self.wrong.append(f"asks {asked.url}"))  # fmt: skip

    def until(self, expression, seconds=15.0):
        """Waits for JavaScript to be true. (wait_for_function evaluates text in the page, which its
        Content-Security-Policy refuses.)"""
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"{expression} is not so; {self.wrong}"
            self.page.wait_for_timeout(20)

    def faults(self):
        """Accessibility faults that axe calls serious or critical."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [(one["id"], [node["html"] for node in one["nodes"]]) for one in found
                if one["impact"] in ("serious", "critical")]  # fmt: skip
