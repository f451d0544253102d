"""Headless Chromium through its debugging pipe: no driver, no web socket. For tests of pages that a browser must show."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)


class Page:
    """One page. ``console`` holds errors and warnings, ``requested`` every address that was asked for."""

    def __init__(self, to_browser, from_browser):
        self._to, self._from = to_browser, from_browser
        self._next, self._session, self._rest = 0, None, b""
        self.console, self.requested = [], []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, url):
        self._call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def js(self, expression):
        """The value of an expression, as JSON can hold it."""
        got = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def until(self, expression, seconds=30):
        end = time.monotonic() + seconds
        while not self.js(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def type(self, text):
        self._call("Input.insertText", text=text)

    def press(self, key, code, modifiers=0):
        for kind in ("keyDown", "keyUp"):
            self._call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, modifiers=modifiers
            )

    def size(self, width, height, scheme="light"):
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method, **parameters):
        self._next += 1
        message = {"id": self._next, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            got = self._read()
            if got.get("id") == self._next:
                assert "error" not in got, got
                return got["result"]
            self._note(got.get("method"), got.get("params", {}))

    def _read(self):
        while b"\0" not in self._rest:
            part = os.read(self._from, 2**16)
            assert part, "the browser is gone"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, method, parameters):
        if method == "Network.requestWillBeSent":
            self.requested.append(parameters["request"]["url"])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.console.append(str(parameters["args"]))
        elif method == "Runtime.exceptionThrown":
            self.console.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.console.append(parameters["entry"]["text"])


@contextmanager
def browser(profile):
    """``with browser(tmp_path) as page``."""
    read_commands, write_commands = os.pipe()
    read_answers, write_answers = os.pipe()
    # the browser reads commands from descriptor 3 and writes answers to 4
    shell = f'exec 3<&{read_commands} 4>&{write_answers}; exec "$@"'
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    command = [CHROMIUM, *flags, "--no-first-run", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *command],
        pass_fds=(read_commands, write_answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_commands)
    os.close(write_answers)
    try:
        yield Page(write_commands, read_answers)
    finally:
        process.terminate()
        process.wait(30)
        os.close(write_commands)
        os.close(read_answers)
