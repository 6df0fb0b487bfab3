"""A real headless Chromium, driven through its debugging pipe: what a page shows, logs and asks the network for.

By hand: `python tests/browser.py runs/<study>/results/report.html FOLDER` writes screenshots (desktop and narrow, light and dark) and a
printed PDF to look at.
"""

import base64
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
OPTIONS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-extensions", "about:blank",
)  # fmt: skip
PATIENCE = 60.0
SIZES = {"desktop": (1280, 900), "narrow": (390, 844)}


def find_browser() -> str | None:
    """A Chromium on the PATH."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page of a running browser; events arrive while answers are awaited."""

    def __init__(self, to_browser: int, from_browser: int):
        self._write, self._read, self._buffer, self._last = to_browser, from_browser, b"", 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._last:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            piece = os.read(self._read, 1 << 20)
            if not piece:
                raise RuntimeError("the browser went away")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def open(self, page: Path, size: str = "desktop", scheme: str = "light", media: str = "screen") -> None:
        """Load a page afresh at a size, in a colour scheme, for screen or print."""
        self.events.clear()
        width, height = SIZES[size]
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=size == "narrow")
        self.call("Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=page.resolve().as_uri())
        deadline = time.monotonic() + PATIENCE
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            assert time.monotonic() < deadline, "the page did not load"
            self.evaluate("1")

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def requests(self) -> list[str]:
        """Addresses asked for, without the page itself and inline data."""
        found = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in found[1:] if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """Everything the console got: errors, warnings, messages."""
        wanted = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(e["params"]) for e in self.events if e.get("method") in wanted]

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def printed(self, path: Path) -> None:
        """The page as PDF on A4."""
        answer = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=True, preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def browser(program: str) -> Iterator[Tab]:
    """A browser with one tab and a profile of its own, gone afterwards."""
    (child_in, ours_out), (ours_in, child_out) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        high = [os.dup(fd) for fd in (child_in, child_out)]
        while min(high) < 5:  # descriptors 3 and 4 are the child's ends of the pipes
            high = [os.dup(fd) for fd in high]
        quiet = os.open(os.devnull, os.O_WRONLY)
        moves = [(os.POSIX_SPAWN_DUP2, high[0], 3), (os.POSIX_SPAWN_DUP2, high[1], 4), (os.POSIX_SPAWN_DUP2, quiet, 2)]
        pid = os.posix_spawn(program, [program, f"--user-data-dir={profile}", *OPTIONS], {**os.environ}, file_actions=moves, setpgroup=0)
        for fd in (child_in, child_out, *high, quiet):
            os.close(fd)
        try:
            yield Tab(ours_out, ours_in)
        finally:
            os.close(ours_out)
            os.close(ours_in)
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def main(page: Path, folder: Path) -> None:
    """Screenshots and print of a page, for a person to look at."""
    program = find_browser()
    if program is None:
        sys.exit(f"no browser found; install one of {', '.join(NAMES)}")
    folder.mkdir(parents=True, exist_ok=True)
    with browser(program) as tab:
        for size in SIZES:
            for scheme in ("light", "dark"):
                tab.open(page, size, scheme)
                tab.screenshot(folder / f"{size}-{scheme}.png")
        tab.open(page, media="print")
        tab.printed(folder / "print.pdf")
    print(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
