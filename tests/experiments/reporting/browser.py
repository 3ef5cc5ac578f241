"""A headless Chromium, driven by the Chrome DevTools protocol: to see a page as a reader's browser does."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = (
    *("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--remote-debugging-port=0", "about:blank"),
)
PATIENCE_S = 60.0
"""For the start of Chromium and for each answer of it, on a crowded machine."""


class Tab:
    """One page.

    Attributes:
        events: everything the browser said unasked: requests, console messages, exceptions.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._count = socket, 0
        self.events: list[dict[str, Any]] = []

    async def ask(self, method: str, **params: object) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self._count += 1
        await self._socket.send_json({"id": self._count, "method": method, "params": params})
        while True:
            message = await asyncio.wait_for(self._socket.receive_json(), PATIENCE_S)
            if message.get("id") == self._count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.events.append(message)

    async def value(self, expression: str) -> Any:
        """Evaluate a JavaScript expression in the page."""
        result = await self.ask(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        return result["result"].get("value")

    async def open(self, url: str, width: int, height: int, scheme: str = "light") -> None:
        """Load a page at a size in CSS pixels, in a colour scheme, and wait until it is complete."""
        phone = width < 600
        await self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        await self.ask(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self.ask(f"{domain}.enable")
        await self.ask("Page.navigate", url=url)
        while (
            await self.value("document.readyState") != "complete"
            or await self.value("location.href") == "about:blank"
        ):
            await asyncio.sleep(0.05)

    async def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key; ``text`` is what it types."""
        same = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        await self.ask("Input.dispatchKeyEvent", type="keyDown", text=text, **same)
        await self.ask("Input.dispatchKeyEvent", type="keyUp", **same)

    def requests(self) -> list[str]:
        """Return the addresses that were asked for; those inside the page (``data:``) are none."""
        urls = [
            e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """Return what the browser complained of: blocked content, errors, exceptions."""
        wanted = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [str(event["params"]) for event in self.events if event["method"] in wanted]


@contextlib.asynccontextmanager
async def chromium(profile: Path) -> AsyncIterator[Tab]:
    """Start Chromium with a fresh profile, and end it."""
    command = [*CHROMIUM[:-1], f"--user-data-dir={profile}", CHROMIUM[-1]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = await asyncio.wait_for(_port(profile / "DevToolsActivePort"), PATIENCE_S)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                pages = [target for target in await answer.json() if target["type"] == "page"]
            async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                yield Tab(socket)
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_S)


async def _port(file: Path) -> str:
    while not (file.exists() and "\n" in (text := file.read_text())):
        await asyncio.sleep(0.05)
    return text.splitlines()[0]
