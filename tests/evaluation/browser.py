"""Chromium without a window, driven over its debugging pipe: pages are opened, measured, clicked and looked at."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
SECONDS = 90  # that an answer may take
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")

# Visible elements that reach past the right edge of the window, and those whose content is wider than themselves.
OVERFLOW = """(() => {
  const wide = [], plotly = ".chart *, #js-plotly-tester, #js-plotly-tester *";
  const hidden = element => element !== null && getComputedStyle(element).clipPath !== "none";
  for (const element of document.body.querySelectorAll("*")) {
    if (element.matches(plotly) || hidden(element.closest("thead"))) continue;
    const box = element.getBoundingClientRect();
    if (box.width === 0) continue;
    const cut = getComputedStyle(element).overflowX !== "visible" && element.scrollWidth > element.clientWidth + 1;
    if (box.right > document.documentElement.clientWidth + 1 || box.left < -1 || cut)
      wide.push(element.outerHTML.slice(0, 120) + " right=" + box.right);
  }
  if (document.documentElement.scrollWidth > document.documentElement.clientWidth) wide.push("the page scrolls");
  return wide;
})()"""


class Browser:
    """One Chromium with one page, to be used as a context manager."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        command = [CHROMIUM, *SWITCHES, f"--user-data-dir={profile}", "about:blank"]
        shell = f'exec "$@" 3</dev/fd/{to_browser} 4>/dev/fd/{from_browser}'
        self._process = subprocess.Popen(
            ["sh", "-c", shell, "sh", *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._number, self._session = b"", 0, ""
        (page, *_) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(timeout=SECONDS)
        os.close(self._write)
        os.close(self._read)

    def open(self, page: Path, width: int) -> None:
        """Show a page in a window of that many CSS pixels, and wait until it is loaded and its charts are drawn."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=page.as_uri())
        end = time.monotonic() + SECONDS
        ready = (
            f"location.href === {json.dumps(page.as_uri())} && document.readyState === 'complete' && "
            "[...document.querySelectorAll('.chart')].every(place => place.querySelector('svg'))"
        )
        while not self.evaluate(ready):
            assert time.monotonic() < end, "the page was not ready in time"
            time.sleep(0.1)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; an exception fails the test."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG file."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], SECONDS)
            assert ready, "Chromium does not answer"
            received = os.read(self._read, 1 << 20)
            assert received, "Chromium ended"
            self._buffer += received
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))
