"""Chromium without a window, driven by its DevTools protocol over a pipe: no driver and no package is needed.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PIPE = 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null'  # Chromium reads commands from descriptor 3 and answers on 4
_KEYS = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "/": 191}

_FAINT = """least => {
  const channels = colour => (colour.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const over = (top, alpha, below) => top.slice(0, 3).map((v, k) => alpha * v + (1 - alpha) * below[k]);
  const faint = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility() || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(element.tagName)) continue;
    if (element.closest("label")?.querySelector(":disabled")) continue;
    let behind = null, opacity = 1;
    for (let e = element; e; e = e.parentElement) {
      const style = getComputedStyle(e), ground = channels(style.backgroundColor);
      opacity *= Number(style.opacity);
      if (behind === null && (ground[3] ?? 1) === 1) behind = ground;
    }
    behind ??= channels(getComputedStyle(document.documentElement).backgroundColor);
    const [a, b] = [light(over(channels(getComputedStyle(element).color), opacity, behind)), light(behind)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < least) faint.push(`${text.slice(0, 40)}: ${contrast.toFixed(2)}`);
  }
  return faint;
}"""
"""All colours of the pages are opaque, but for ``opacity``."""


class Page:
    """A page in a browser.

    Attributes:
        errors: uncaught exceptions and messages that the page wrote to the console as errors.
        requests: addresses that the page asked for.
        dialogs: texts of dialogs that the page opened; they are dismissed.
    """

    def __init__(self, browser: subprocess.Popen[bytes]) -> None:
        self._browser, self._received, self._number, self._session = browser, b"", 0, ""
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result."""
        number = self._send(method, parameters)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            message = self._receive(end - time.monotonic())
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._note(message)
        raise TimeoutError(f"no answer to {method}")

    def _send(self, method: str, parameters: dict[str, Any]) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        assert self._browser.stdin is not None
        self._browser.stdin.write(json.dumps(message).encode() + b"\0")
        self._browser.stdin.flush()
        return self._number

    def _receive(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        assert self._browser.stdout is not None
        while b"\0" not in self._received:
            if not select.select([self._browser.stdout], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            part = self._browser.stdout.read1(2**16)  # type: ignore[attr-defined]
            assert part, "the browser has ended"
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)  # type: ignore[no-any-return]

    def _note(self, event: dict[str, Any]) -> None:
        name, content = event.get("method"), event.get("params", {})
        if name == "Runtime.exceptionThrown":
            self.errors.append(str(content["exceptionDetails"]))
        elif name == "Log.entryAdded" and content["entry"]["level"] == "error":
            self.errors.append(f"{content['entry']['text']} {content['entry'].get('url', '')}")
        elif name == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"])
        elif name == "Page.javascriptDialogOpening":
            self.dialogs.append(content["message"])
            self._send("Page.handleJavaScriptDialog", {"accept": False})

    def open(self, url: str, width: int = 1400, height: int = 1000, scheme: str = "light") -> None:
        """Open an address in a window of a size in CSS pixels; ``scheme`` is ``light`` or ``dark``."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 640
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        went = self.call("Page.navigate", url=url)
        assert "errorText" not in went, f"{url}: {went.get('errorText')}"
        self.wait("document.readyState === 'complete'")

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression, or that of its promise."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, f"{script}: {done.get('exceptionDetails')}"
        return done["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(condition):
            assert time.monotonic() < end, f"still not so after {seconds} s: {condition}"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Press and release a key, such as ``Tab`` or ``ArrowRight``."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        event = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Type into the element that has the focus."""
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Click with the mouse on the middle of an element."""
        box = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}}); "
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file in a file field."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def faint_texts(self, least: float = 4.5) -> list[str]:
        """Return the texts with too little contrast to what is behind them (WCAG 2.2: 4.5); disabled controls are exempt."""
        found: list[str] = self.evaluate(f"({_FAINT})({least})")
        return found

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Write a PNG of the window, or of the whole page."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


def chromium() -> str | None:
    """Return the path of Chromium or Chrome; None if it is not installed."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@contextmanager
def browsing() -> Iterator[Page]:
    """Start a browser with an empty profile and end it."""
    program = chromium()
    if program is None:
        pytest.skip(f"no browser is installed: looked for {', '.join(_NAMES)}")
    with TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        options += ("--disable-background-networking", "--disable-component-update", "--hide-scrollbars")
        command = [program, *options, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        browser = subprocess.Popen(
            ["sh", "-c", _PIPE, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            page = Page(browser)
            yield page
            page._session = ""
            page.call("Browser.close")
            browser.wait(10)
        finally:
            browser.kill()
            browser.communicate()
