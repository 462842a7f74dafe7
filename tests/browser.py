"""A headless Chromium that tests drive by its DevTools protocol, over two pipes.

The pipes need neither a driver nor a port nor a package: messages are JSON, each with a
zero byte behind it (`--remote-debugging-pipe`; Chromium reads from descriptor 3 and
writes to 4).
"""

import contextlib
import itertools
import json
import os
import shutil
import subprocess

from tests.conftest import miss

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = "disable-gpu no-first-run disable-background-networking hide-scrollbars"


def command(folder, *options):
    """Return the command of a headless browser that keeps its own files in a folder."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        miss(f"none of {BROWSERS} is installed")
    return [
        browser,
        "--headless",
        "--no-sandbox",  # As root; what is opened was written here.
        *(f"--{option}" for option in QUIET.split()),
        f"--user-data-dir={folder}",
        *options,
    ]


class Tab:
    """One page of a running browser."""

    def __init__(self, orders, answers):
        self.orders, self.answers = orders, answers
        self.rest, self.number, self.session = b"", 0, {}
        self.events = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        self.send("Inspector.enable")
        self.send("Page.enable")
        self.send("Page.setLifecycleEventsEnabled", enabled=True)

    def send(self, method, **parameters):
        """Give an order and return its result."""
        self.number += 1
        order = {"id": self.number, "method": method, "params": parameters}
        os.write(self.orders, json.dumps({**order, **self.session}).encode() + b"\0")
        while (answer := self.read()).get("id") != self.number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def read(self):
        """Return the next message."""
        while b"\0" not in self.rest:
            more = os.read(self.answers, 2**16)
            if not more:
                raise RuntimeError("The browser has ended.")
            self.rest += more
        line, self.rest = self.rest.split(b"\0", 1)
        message = json.loads(line)
        if message.get("method") == "Inspector.targetCrashed":
            raise RuntimeError("The page has crashed.")
        return message

    def resize(self, width, height=900):
        """Make the window this large, in CSS pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def open(self, url):
        """Load a page, its pictures and scripts included."""
        self.events.clear()
        begun = self.send("Page.navigate", url=url)
        if "errorText" in begun:
            raise RuntimeError(f"{url}: {begun['errorText']}")
        # Events of the page before may come late; each names the load it is of.
        events = itertools.chain(self.events, iter(self.read, None))
        loaded = {"name": "load", "loaderId": begun["loaderId"]}
        next(each for each in events if loaded.items() <= each["params"].items())

    def ask(self, expression):
        """Return the value of an expression of JavaScript, or of its promise."""
        answer = self.send(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")


@contextlib.contextmanager
def tab(folder):
    """Run a browser and yield its only tab."""
    hears, orders = os.pipe()
    answers, tells = os.pipe()
    ends = f'exec "$@" 3<&{hears} 4>&{tells}'
    process = subprocess.Popen(
        ["bash", "-c", ends, "bash", *command(folder, "--remote-debugging-pipe")],
        pass_fds=(hears, tells),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(hears)
    os.close(tells)
    try:
        yield Tab(orders, answers)
    finally:
        os.close(orders)  # Its end is the browser's.
        process.wait()
        os.close(answers)
