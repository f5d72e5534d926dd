"""Questions as the core puts them to the page, and a person whose browser is opened by mcpmux."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import PATIENCE, RawHost

import mcpmux

NAME = {"type": "object", "properties": {"name": {"type": "string"}}}
FORM = {"asker": "git", "call": "git__log", "mode": "form", "message": "Your name?", "requestedSchema": NAME}
FORM |= {"waits": 300.0, "opens": True}
URL = FORM | {"mode": "url", "message": "Pay", "url": "https://pay.example/7"}
DECISIONS = {"once": "this call", "always": "this tool until mcpmux ends", "no": "deny"}


def choice(message: str = "May git run delete?", **more: Any) -> dict[str, Any]:
    form = {key: json.loads(bytes(raw)) for key, raw in mcpmux.choice_form(message, DECISIONS).items()}
    about = {"asker": "mcpmux", "call": "git__delete", "mode": "form", "waits": 300.0, "opens": True}
    return about | form | {"shown": [{"title": "Tool", "text": "delete"}]} | more


def sampling(**more: Any) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": {"type": "text", "text": "Sum up"}},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {"place": "Rome"}}],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "toolUseId": "t1", "content": [{"type": "text", "text": "rain"}]}],
        },
        {"role": "user", "content": {"type": "image", "mimeType": "image/png", "data": "aGVyb24="}},
        {"role": "user", "content": {"type": "image", "mimeType": "image/svg+xml", "data": "PHN2Zz4="}},
    ]
    params = {"systemPrompt": "Be brief", "maxTokens": 400, "messages": messages, "tools": [{"name": "weather"}]}
    told = {"server": "notes", "models": ["a/one", "b/two"], "usd": 0.0123, "params": params} | more
    return choice("May notes use your model?", mode="sampling", sampling=told) | {"call": "notes__sum"}


EVERY_KIND: dict[str, Any] = {
    "text": {"type": "string", "minLength": 2, "maxLength": 4},
    "mail": {"type": "string", "format": "email"},
    "uri": {"type": "string", "format": "uri"},
    "day": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "date-time"},
    "int": {"type": "integer", "minimum": 1, "maximum": 3},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "enum": {"type": "string", "enum": ["r", "g"], "enumNames": ["Red", "Green"]},
    "one": {"type": "string", "oneOf": [{"const": "#f00", "title": "Red"}, {"const": "#0f0", "title": "Green"}]},
    "some": {"type": "array", "minItems": 1, "items": {"anyOf": [{"const": "a", "title": "A"}, {"const": "b"}]}},
    "many": {"type": "array", "items": {"type": "string", "enum": ["x", "y"]}},
}


class Person:
    """A browser of the test's own: mcpmux opens it as `BROWSER`, and the address that it is given is in a file."""

    def __init__(self, folder: Path) -> None:
        self._told = folder / "told"
        self._program = folder / "browser.py"
        self._program.write_text(
            "import os, sys, urllib.parse, urllib.request\n"
            "page = sys.argv[1]\n"
            "if page.startswith('file:'):\n"
            "    page = open(urllib.request.url2pathname(urllib.parse.urlsplit(page).path)).read()\n"
            f"open({str(self._told) + '.new'!r}, 'w').write(page)\n"
            f"os.replace({str(self._told) + '.new'!r}, {str(self._told)!r})\n"
        )
        self.env = {"BROWSER": f"{sys.executable} {self._program}"}

    def address(self, host: RawHost) -> tuple[str, str]:
        """Host and key, once the browser is there."""
        while not self._told.exists():
            assert host.process.poll() is None and "not reached" not in host.log(), host.log()
            host.request("ping")
        where, _, key = self.address_now().removeprefix("http://").partition("/#")
        return where, key

    def address_of(self, command: subprocess.Popen[bytes]) -> str:
        """The same for a command that ends if the person is not reached."""
        while not self._told.exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise AssertionError(f"ended with {command.wait(0.05)}")
        return self.address_now()

    def address_now(self) -> str:
        """Whole, now that the browser is there."""
        found = re.search(r"http://[0-9.:]+/#[0-9a-f]+", self._told.read_text())
        assert found
        self._told.unlink()
        return found[0]

    def post(self, host: str, path: str, body: Any, **heads: str) -> tuple[int, dict[str, Any]]:
        asked = self._ask(host, path, body, **heads)
        try:
            answer = asked.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            asked.close()

    def events(self, host: str, token: str) -> Any:
        """Connection and stream."""
        asked = self._ask(host, "/events", {}, authorization=f"Bearer {token}")
        return asked, asked.getresponse()

    def _ask(self, host: str, path: str, body: Any, **heads: str) -> http.client.HTTPConnection:
        asked = http.client.HTTPConnection(host, timeout=PATIENCE)
        given = {"origin": f"http://{host}", "content-type": "application/json"} | heads
        asked.request("POST", path, json.dumps(body), given)
        return asked
