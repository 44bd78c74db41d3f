"""A headless Chromium for tests and for the pictures of the docs, driven through a pipe by its own DevTools protocol.

One process serves many pages: ``with Browser() as browser: page = browser.open(path)``.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
)
HIGH = 900  # of a window
PATIENCE = 60


def found() -> str | None:
    """The browser of this machine, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A Chromium with an empty profile, and the messages that go to it and come from it."""

    def __init__(self) -> None:
        program = found()
        assert program is not None, "no Chromium here (Debian: apt-get install chromium)"
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # It reads from its descriptor 3 and writes to its 4; a shell puts ours there.
        command = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$0" "$@"'
        switches = (*OPTIONS, "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}", "about:blank")
        self._process = subprocess.Popen(
            ["bash", "-c", command, program, *switches], pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._left = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        self._process.wait(timeout=30)
        self._profile.cleanup()

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; events that come in between are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._write, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            answer = self.hear()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])

    def hear(self) -> dict[str, Any]:
        """The next message; an event is kept as well."""
        while b"\0" not in self._left:
            assert select.select([self._read], [], [], PATIENCE)[0], f"the browser has said nothing for {PATIENCE} s"
            read = os.read(self._read, 1 << 20)
            assert read, "the browser has ended"
            self._left += read
        text, self._left = self._left.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        if "id" not in message:
            self.events.append(message)
        return message

    def open(self, path: Path, width: int = 1280, *, dark: bool = False, script: bool = True) -> Page:
        """A file in a page of its own, when it has loaded."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.ask(f"{domain}.enable")
        page.resize(width, HIGH)
        page.ask(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        page.ask("Emulation.setScriptExecutionDisabled", value=not script)
        page.ask("Page.navigate", url=path.resolve().as_uri())
        page.wait("Page.loadEventFired")
        return page


class Page:
    """One page of a browser."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self.browser, self.session, self.target = browser, session, target

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of this page."""
        return self.browser.ask(method, self.session, **parameters)

    def heard(self, *methods: str) -> list[dict[str, Any]]:
        """What it has told by these names so far."""
        events = self.browser.events
        return [e["params"] for e in events if e.get("sessionId") == self.session and e["method"] in methods]

    def wait(self, method: str) -> None:
        """Until it has told this."""
        while not self.heard(method):
            self.browser.hear()

    def resize(self, width: int, height: int) -> None:
        """Give it a window of so many points; up to 500 of them it is a telephone."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width <= 500
        )

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Move, press or release the left button at a point of the window: "Moved", "Pressed", "Released"."""
        held = 0 if kind == "Moved" else 1
        self.ask("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, button="left", buttons=1, clickCount=held)

    def hover(self, x: float, y: float) -> None:
        """Move there with no button held."""
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def key(self, name: str) -> None:
        """Press and release a key, such as "ArrowRight" or "+"."""
        text = {"text": name} if len(name) == 1 else {}
        self.ask("Input.dispatchKeyEvent", type="keyDown", key=name, **text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", key=name)

    @property
    def complaints(self) -> list[str]:
        """What stands in its console, and what was thrown and not caught."""
        told = self.heard("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event) for event in told]

    @property
    def requests(self) -> list[str]:
        """Addresses that it asked for, less what lies in the page itself."""
        urls = [event["request"]["url"] for event in self.heard("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith("data:")]

    def screenshot(self, out: Path, *, height: int | None = None) -> None:
        """The whole page as PNG, or its first ``height`` points."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1}
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        out.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, out: Path) -> None:
        """The page as it is printed."""
        out.write_bytes(base64.b64decode(self.ask("Page.printToPDF")["data"]))

    def close(self) -> None:
        """Close it."""
        self.browser.ask("Target.closeTarget", targetId=self.target)
