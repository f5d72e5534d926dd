# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "anyio>=4.9,<5",
#     "mcp>=2.3,<3",
#     "msgspec>=0.20,<1",
#     "platformdirs>=4.3,<5",
#     "tomli-w>=1.2,<2",
# ]
# ///
"""mcpmux: one MCP server over stdio that stands for many.

A host (Claude Desktop, VS Code, Codex, ...) starts mcpmux; mcpmux starts the servers that one TOML file names, is
a client of each, and offers what they offer as if it were one server. What it need not change passes byte for byte.

                 bytes            lines             events            effects
    host  <--->  host pipes  <->  wire     ------>  core    ------->  mux  ---> host pipes, processes, timers, log
    git   <--->  process     <->  (framing,         (pure)            (performs)
    time  <--->  process     <->   envelopes)
    docs  <--->  HTTP        <->

The file is read top to bottom, and no section names anything from a later one:

     1  imports, constants, options    what a person may set, and how long mcpmux waits for what
     2  errors                         whose fault: ours, the config's, a peer's
     3  wire                           bytes <-> lines <-> envelopes; payloads stay raw
     4  eras                           the protocol's revisions and capabilities, as tables
     5  catalogue                      many servers' lists become one; names; who owns what
     6  bridge                         what happens to a question that a server asks of the host
     7  lifecycle                      a server's states as one transition table
     8  core                           the in-flight table and the routing: `handle(event, now) -> effects`
        -- above this line there is no I/O, no clock, no environment, no asyncio: a test checks it --
     9  config                         TOML -> options; the only reader of the file and of the environment
    10  pipes                          the host's two pipes, and the log
    11  processes                      spawning servers, and the ladder that stops them
    12  remote                         servers over HTTP, each made to look like a process
    13  sampler                        the child process that asks a model, through litellm
    14  mux                            the loop that feeds the core and performs its effects
    15  hosts                          servers out of hosts' own files, and mcpmux into them
    16  CLI                            the table of commands; serving is the one without a name

Invariants:

* Every request has exactly one ending on every path: an answer, an error, or, cancelled by its sender, none. The
  in-flight table is the one place where requests wait; `open` and `settle` are its only doors.
* The core cannot fail to send and cannot block: it returns effects. There is no task per request.
* Nothing but mcpmux's own lines reaches the host's pipe: fds 0 and 1 are taken over before anything else runs.
* A payload is decoded only as deep as routing needs; what is stored beyond an event is copied out of its line.
* One server's fault ends that server's requests and nothing else.

Serving uses asyncio directly rather than through anyio, for two measured reasons: anyio's asyncio backend adds 85 ms to
a start of about 200 ms, and asyncio's subprocess *protocol* tells of a process's exit even while a grandchild holds
its pipes open (`Process.wait` does not return then). Remote servers, whose HTTP client loads anyio anyway, use it for
what it is good at: task groups and scopes that can be cancelled.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import codecs
import collections
import contextlib
import difflib
import fnmatch
import functools
import hashlib
import io
import ipaddress
import json
import math
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import tomllib
import urllib.parse
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Final, Literal, NamedTuple, NoReturn, TextIO, TypeVar, get_args

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

__version__ = "0.1.0"

# ══ 1. Constants and options ═════════════════════════════════════════════════════════════════════════════════════════

# Each says what would hang, or be lost, without it. Seconds.
START_PATIENCE: Final = 4.0  # × startup_timeout_sec: lists stop waiting after 1×; a late server is given up after this
QUIET_AFTER_INITIALIZED: Final = 0.1  # some servers refuse calls until what they ask after `initialized` is answered
RELIST_QUIET: Final = 0.05  # one change often comes as a burst of list_changed
RELIST_QUIET_MOST: Final = 30.0
RELIST_CALM: Final = 10.0  # and one that announces changes that are none is read less and less often, until this calm
RELIST_AT_MOST: Final = 1.0  # a server that never stops announcing changes is still listed
DISCOVER_SILENCE: Final = 10.0  # a legacy server may never answer `server/discover`; `initialize` then follows
LISTEN_AGAIN, LISTEN_AGAIN_MOST = 1.0, 60.0  # a server that ends our subscription is not asked in a tight loop
ASK_TOGETHER: Final = 0.01  # questions of a server that come this close travel to the host together
ORPHAN_WAIT: Final = 30.0  # a question outside any call waits for the next one, and a server for its answer
STATE_ONLY_WAIT: Final = 0.1  # before a call is tried again that only gave a state
URL_WAIT: Final = 60.0  # a call that needs a page visited is tried again after this, told or not
MAX_ROUNDS: Final = 10  # a server that never has enough answers would never end its call
URI_PROBE_TIMEOUT: Final = 5.0  # a server asked for a URI that it may not know must not hold up the next
PROGRESS_CAP: Final = 10  # × tool_timeout_sec: progress keeps a call alive no longer than this
BACKOFF_FIRST, BACKOFF_MOST = 0.5, 30.0  # a server that keeps dying must not eat the machine
DEATHS_ALLOWED, DEATHS_WITHIN, FAILED_REST = 5, 60.0, 300.0
STOP_STEP: Final = 0.6  # each step of the ladder; Codex kills mcpmux itself after 2 s
STOP_LAST: Final = 0.3  # after SIGKILL only an unkillable process is still there
EXIT_DRAIN: Final = 0.25  # a dead server's last lines are read; a grandchild that holds the pipe is not waited for
HOST_FLUSH: Final = 0.3  # a host that no longer reads must not keep the process alive
SECRET_COMMAND_TIMEOUT: Final = 10.0  # `${cmd:…}` may ask for a fingerprint that nobody gives
SAMPLER_SLACK: Final = 60.0  # the sampler's own timeout ends a request; this is for one that it loses, or loads for
SAMPLER_IDLE: Final = 300.0  # litellm keeps 200 MB
BROWSER_START: Final = 5.0  # some browsers are waited for until they are closed
RETRY_WAITS: Final = (0.3, 1.2)  # before the second and the third attempt at a provider that is busy or failing
RETRY_AFTER_MOST: Final = 10.0  # a provider that asks for more is not waited for

WATCH_TICK: Final = 1.0  # between looks at the config file (a change must stand still for one) and at our parent
TRIM_AFTER: Final = 0.05  # seconds of processor time, after which memory is given back to the system
FAILURE_REMEMBERED: Final = 600.0  # lists do not wait again for a server that could not be started so recently

MAX_PAGES: Final = 1000  # a list whose cursor always advances would never end
EDGE: Final = 4096  # of a bad or over-long line, as much as is searched for an id at each end
STDERR_LINES: Final = 20  # kept for error messages
HELD_FOR_HOST: Final = 200  # notifications that a server may send before the host has initialized
KNOWN_TASKS: Final = 10_000  # task ids remembered; the oldest is forgotten first
FAIR_BITE: Final = 16 * 1024  # bytes of one server's lines written to the host before the next has its turn
USUAL_PIPE: Final = 64 * 1024  # bytes that a pipe of Linux holds
PIPE_ROOM: Final = 256 * 1024  # bytes, for long messages; all pipes of a user together may hold 64 MB
READ_AHEAD: Final = 256 * 1024  # bytes waiting for the host above which their server is not read; and the reverse
URI_MOST: Final = 8192  # characters; a longer URI or template is matched as a whole only
TEXT_MOST: Final = 500  # characters of a peer's own words in a message of ours
MB: Final = 1024 * 1024

Seconds = Annotated[float, Meta(gt=0, le=1e6)]
Megabytes = Annotated[float, Meta(gt=0, le=4096)]
Score = Annotated[float, Meta(ge=0, le=1)]
LogLevel = Literal["error", "warning", "info", "debug", "trace"]
LEVELS: Final[dict[str, int]] = {"error": 40, "warning": 30, "info": 20, "debug": 10, "trace": 5}

# What stands beside or above a key of the following structs is what the README's table says of it.


class MuxOptions(Struct, frozen=True, kw_only=True):
    """The `[mux]` table. Every key is optional."""

    separator: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,8}\Z")] = "__"  # between server and tool
    # longer names are cut and get a hash; VS Code adds 18 and allows 64
    max_name_length: Annotated[int, Meta(ge=16, le=128)] = 46
    # of mcpmux's stderr: `error`, `warning`, `info`, `debug`, or `trace` for each message's way
    log_level: LogLevel = "info"
    max_message_mb: Megabytes = 64.0  # a longer line is refused, and the call that it answers
    # a longer answer becomes an error; TypeScript hosts close the connection above 10 MiB
    host_message_mb: Megabytes = 10.0
    outbox_mb: Megabytes = 64.0  # waiting for a server that does not read; then its calls are refused
    input_timeout_sec: Seconds = 600.0  # for the host, or the person before it, to answer what a server asks
    env_file: str | None = None  # `KEY=value` lines for `${VAR}`; relative to the config file


class ToolOverride(Struct, frozen=True, kw_only=True):
    """`[mcp_servers.X.tools.NAME]`: what the host is shown instead; NAME is the server's own."""

    enabled: bool = True  # `false` hides it
    name: Annotated[str, Meta(min_length=1)] | None = None  # what the host is shown, after the prefix
    title: str | None = None  # in place of its own
    description: str | None = None  # in place of its own


class OAuthOptions(Struct, frozen=True, kw_only=True):
    """`[mcp_servers.X.oauth]`: for a server that lets nobody register by himself. Without it mcpmux does that."""

    # or the `https://` address of a client metadata document
    client_id: Annotated[str, Meta(min_length=1)] | None = None
    client_secret: Annotated[str, Meta(min_length=1)] | None = None  # if it has one
    # where the browser comes back to; `0`: any port that is free
    callback_port: Annotated[int, Meta(ge=0, le=65535)] = 0


class ServerOptions(Struct, frozen=True, kw_only=True):
    """A `[mcp_servers.NAME]` table. The keys are Codex's where Codex has them."""

    command: Annotated[str, Meta(min_length=1)] | None = None  # the program; needed, or else `url`
    # a remote server's address; see [there](#remote-servers) for its keys
    url: Annotated[str, Meta(min_length=1)] | None = None
    args: list[str] = []  # given to it
    env: dict[str, str] = {}  # variables to set
    env_vars: list[str] = []  # variables to pass on by name; `["*"]` passes all
    cwd: str | None = None  # where it runs
    transport: Literal["http", "sse"] | None = None  # `"http"` or `"sse"`, if it should not be tried out
    http_headers: dict[str, str] = {}  # sent with each request
    env_http_headers: dict[str, str] = {}  # the same, by the variables that hold the values
    bearer_token_env_var: str | None = None  # the variable that holds a token
    allow_http: bool = False  # `true` sends tokens even over plain `http://` to another machine
    scopes: list[str] = []  # what a login asks for; `[]`: what the server names
    oauth: OAuthOptions = OAuthOptions()  # for a login [with a client of your own](#a-client-of-your-own)
    enabled: bool = True  # `false` leaves it out
    startup_timeout_sec: Seconds = 30.0  # lists wait no longer for its handshake; after four times that it is stopped
    tool_timeout_sec: Seconds = 300.0  # for an answer; progress extends it, up to ten times
    enabled_tools: list[str] | None = None  # only these: names or globs of the server's own names
    disabled_tools: list[str] = []  # never these
    # in place of NAME in `NAME__tool`; `""` exposes bare names
    prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]*\Z")] | None = None
    roots: list[str] = []  # folders or `file://` URIs, told to it if the host has no roots
    # started when it is first called, if its lists are known from before; `"eager"`: with the host
    start: Literal["lazy", "eager"] = "lazy"
    # stopped when nobody has used it for so long; `0.0`: never
    idle_timeout_sec: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    # `"legacy"` or `"modern"` (2026-07-28), if it should not be tried out
    protocol: Literal["legacy", "modern"] | None = None
    # who answers when it asks for a model: `"auto"`, `"host"`, `"local"` or `"off"`, as [above](#sampling)
    sampling: Literal["auto", "host", "local", "off"] = "auto"
    elicitation: bool = True  # may it ask the person?
    tools: dict[str, ToolOverride] = {}


class ModelOptions(Struct, frozen=True, kw_only=True):
    """A `[[sampling.models]]` table. Scores are 0 to 1, and 1 is best: cheapest, fastest, cleverest."""

    model: str = ""  # `provider/model`; needed
    hints: list[str] = []  # further names that a request's hint may have for it
    cost: Score | None = None  # 0 to 1, and 1 is cheapest; else from litellm's price
    speed: Score | None = None  # 1 is fastest; else from the price
    intelligence: Score | None = None  # 1 is cleverest; else from the price
    api_key: str | None = None  # as in `[sampling]`
    api_base: str | None = None  # as in `[sampling]`
    params: dict[str, Any] = {}  # as in `[sampling]`


class SamplingLimits(Struct, frozen=True, kw_only=True):
    """`[sampling.limits]`: what servers may ask of the local models."""

    max_tokens: Annotated[int, Meta(ge=1, le=10**9)] = 4096  # of one answer; a request for more gets this many
    requests_per_minute: Annotated[int, Meta(ge=1, le=10**6)] = 30  # of one server
    max_concurrency: Annotated[int, Meta(ge=1, le=10**6)] = 4  # of one server: so many are open at once
    usd_per_day: Annotated[float, Meta(gt=0, le=1e9)] = 1.0  # of all servers, by litellm's prices; a day is one of UTC


class SamplingOptions(Struct, frozen=True, kw_only=True):
    """The `[sampling]` table: either `model`, with the keys beside it, or several `[[sampling.models]]`."""

    # `provider/model`; needed, unless there are `[[sampling.models]]`
    model: Annotated[str, Meta(min_length=1)] | None = None
    api_key: str | None = None  # else litellm reads the provider's usual variable (`OPENAI_API_KEY`…)
    api_base: str | None = None  # the provider's address, where it is not the usual one
    # more of what [litellm](https://docs.litellm.ai/docs/completion/input) takes: `{ top_p = 0.9 }`
    params: dict[str, Any] = {}
    timeout_sec: Seconds = 120.0  # for a request, with what is tried again
    models: list[ModelOptions] = []
    limits: SamplingLimits = SamplingLimits()


# ══ 2. Errors ════════════════════════════════════════════════════════════════════════════════════════════════════════
# Exceptions say whose fault it is. `RpcError` is the one that becomes a JSON-RPC error, at one place for each peer.

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
RESOURCE_NOT_FOUND: Final = -32002  # legacy era
URL_ELICITATION_REQUIRED: Final = -32042  # 2025-11-25 only
HEADER_MISMATCH: Final = -32020  # modern era, over HTTP
MISSING_CAPABILITY: Final = -32021  # modern era
UNSUPPORTED_VERSION: Final = -32022  # modern era


class McpmuxError(Exception):
    """Anything that mcpmux raises on purpose."""


class Bug(McpmuxError):
    """An invariant of ours does not hold."""


class ConfigError(McpmuxError):
    """The config file cannot be used at all: one line a problem, each with file and path."""


class BadLine(McpmuxError):
    """A line that is no JSON-RPC message; costs that line only."""


class StartError(McpmuxError):
    """A server cannot be started: what is wrong, and what to do."""


class RpcError(McpmuxError):
    """A request cannot be served; `code` is JSON-RPC's, the text is for the person at the other end."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


# ══ 3. Wire ══════════════════════════════════════════════════════════════════════════════════════════════════════════
# Knows JSON-RPC's envelope and nothing of MCP. Payloads are `Raw`: slices of the line, valid JSON, never interpreted.
# https://modelcontextprotocol.io/specification/2025-11-25/basic/index and .../basic/transports#stdio

Fields = dict[str, Raw]
Decoded = TypeVar("Decoded")


class Envelope(Struct):
    """One JSON-RPC message. Unknown top-level fields are not kept: some SDKs refuse a message that has any."""

    id: Raw | UnsetType = UNSET
    method: str | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class Reply(NamedTuple):
    """How a request ended: one of the two is set."""

    result: Raw | None
    error: Raw | bytes | None


class TooLong(NamedTuple):
    """What is kept of a line over the limit: enough to see whose it was."""

    size: int
    head: bytes
    tail: bytes


encode: Final = msgspec.json.Encoder().encode
_decode_envelope: Final = msgspec.json.Decoder(Envelope).decode
_decode_fields: Final = msgspec.json.Decoder(Fields).decode
_decode_items: Final = msgspec.json.Decoder(list[Raw]).decode
_decode_any: Final = msgspec.json.Decoder().decode
_LONE_SURROGATE: Final = re.compile(
    rb"(?<!\\)((?:\\\\)*+)"  # after an even number of backslashes, however many: none is looked at twice
    rb"(?:(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_ID_AT_HEAD: Final = re.compile(rb'^\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*"?(\d{1,18})"?\s*[,}]')
_ID_AT_TAIL: Final = re.compile(rb',\s*"id"\s*:\s*"?(\d{1,18})"?\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$')


class LineSplitter:
    """Joins chunks and cuts them at newlines, whatever the chunking; a line over `limit` bytes becomes a `TooLong`.
    Blank lines are left out."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes | TooLong]:
        first, ended, rest = chunk.partition(b"\n")  # a search; a split looks at bytes one by one
        self._add(first)
        lines: list[bytes | TooLong] = []
        for part in rest.split(b"\n") if ended else ():
            line = self._take()
            if not isinstance(line, bytes) or line.strip():
                lines.append(line)
            self._add(part)
        return lines

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        self._parts.append(part)
        if self._size > self._limit and len(self._parts) > 1:  # over the limit only the two edges are kept
            joined = b"".join(self._parts)
            self._parts = [joined[:EDGE], joined[-EDGE:]] if len(joined) > 2 * EDGE else [joined]

    def _take(self) -> bytes | TooLong:
        line, size = b"".join(self._parts), self._size
        self._parts, self._size = [], 0
        return line if size <= self._limit else TooLong(size, line[:EDGE], line[-EDGE:])


def tidy(line: bytes) -> tuple[bytes, str | None]:
    """The line as valid UTF-8 in one piece, and what had to be replaced for that, if anything."""
    line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, from some shells
    if b"\r" in line:  # white space to JSON (a string cannot hold one raw), a line's end to some readers
        line = line.replace(b"\r", b" ")
    if line.isascii():
        return line, None
    try:
        line.decode()
    except UnicodeDecodeError as bad:
        return line.decode(errors="replace").encode(), f"invalid UTF-8 ({bad.reason} at byte {bad.start}) was replaced"
    return line, None


def decode_line(line: bytes) -> Envelope:
    """Raises `BadLine` for whatever is not one JSON object with an envelope's types."""
    try:
        return _read_twice(_decode_envelope, line)
    except msgspec.ValidationError as wrong:
        raise BadLine(f"not a JSON-RPC message ({wrong})") from None


def decode_batch(line: bytes) -> list[bytes]:
    """The messages of a JSON array (2025-03-26 only), each still to be decoded. Raises `BadLine`."""
    items = [bytes(item) for item in _read_twice(_decode_items, line)]
    if not items:
        raise BadLine("an empty batch")
    return items


def _read_twice(decode: Callable[[bytes], Decoded], line: bytes) -> Decoded:
    """A lone surrogate escape is the one mistake worth a second reading: JavaScript makes it of cut emoji."""
    try:
        return decode(line)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, RecursionError, ValueError) as wrong:
        if (second := mended(line)) == line:
            raise BadLine(f"not JSON ({wrong})") from None
        return _read_twice(decode, second)


def mended(line: bytes) -> bytes:
    """Without lone surrogate escapes."""
    return _LONE_SURROGATE.sub(lambda m: m[1] + (m[2] or rb"\ufffd"), line) if b"\\u" in line else line


def id_in_bad_line(head: bytes, tail: bytes) -> int | None:
    """The id of a message that cannot be read, where its place shows beyond doubt that it is the envelope's."""
    found = _ID_AT_HEAD.search(head[:EDGE]) or _ID_AT_TAIL.search(tail[-EDGE:])
    return int(found[1]) if found else None


def number_of_id(raw: Raw | bytes) -> int | None:
    """An id that we minted, as it came back: `7`, `7.0` and `"7"` all mean 7."""
    try:
        return int(bytes(raw).strip(b'"'))
    except ValueError:
        try:
            number = float(bytes(raw))
            return int(number) if number.is_integer() else None
        except (ValueError, OverflowError):
            return None


def is_id(raw: bytes) -> bool:
    """Whether a peer may use this as a request's id: any JSON string or number (0 and "" too)."""
    return raw[:1] in b'"-0123456789' and raw != b""


def fields_of(raw: Raw | bytes | UnsetType) -> Fields:
    """A raw JSON object's members, values still raw; of a repeated key the last. Raises `RpcError` (-32602)."""
    if raw is UNSET:
        return {}
    try:
        return _decode_fields(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise RpcError(INVALID_PARAMS, "params must be an object") from None


def value_of(raw: Raw | bytes | None, default: Any = None) -> Any:
    """A raw value decoded, or `default` where there is none or it cannot be decoded."""
    return _decoded(_decode_any, raw, default)


def object_of(raw: Raw | bytes | UnsetType | None) -> Fields:
    """As `fields_of`, but empty where there is no object: for what only *may* be there."""
    return _decoded(_decode_fields, raw, None) or {}


def items_of(raw: Raw | bytes | None) -> list[Raw]:
    """The items of a raw JSON array; none where there is no array."""
    return _decoded(_decode_items, raw, None) or []


def _decoded(decode: Callable[[Any], Decoded], raw: Raw | bytes | UnsetType | None, default: Any) -> Decoded | Any:
    try:
        return default if raw is None or raw is UNSET else decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return default


def text_in(fields: Fields, key: str) -> str:
    """A member that has to be a string. Raises `RpcError` (-32602)."""
    value = value_of(fields.get(key))
    if not isinstance(value, str):
        raise RpcError(INVALID_PARAMS, f"params.{key} must be a string")
    return value


def progress_token(params: Fields) -> bytes | None:
    token = object_of(params.get("_meta")).get("progressToken")
    return bytes(token) if token is not None and is_id(bytes(token)) else None


def is_object(raw: Raw | bytes) -> bool:
    return bytes(memoryview(raw)[:1]) == b"{"


def request_line(number: int, method: str, params: Raw | bytes | UnsetType) -> bytes:
    if params is UNSET:
        return b'{"jsonrpc":"2.0","id":%d,"method":%b}\n' % (number, encode(method))
    return b'{"jsonrpc":"2.0","id":%d,"method":%b,"params":%b}\n' % (number, encode(method), params)


def notification_line(method: str, params: Raw | bytes | UnsetType = UNSET) -> bytes:
    if params is UNSET:
        return b'{"jsonrpc":"2.0","method":%b}\n' % encode(method)
    return b'{"jsonrpc":"2.0","method":%b,"params":%b}\n' % (encode(method), params)


def result_line(id: bytes, result: Raw | bytes) -> bytes:
    return b"".join((b'{"jsonrpc":"2.0","id":', id, b',"result":', result, b"}\n"))


def error_line(id: bytes | None, error: Raw | bytes) -> bytes:
    """`id` is None where the request's could not be read: the member is then absent, as MCP has it, not null."""
    if id is None:
        return b'{"jsonrpc":"2.0","error":%b}\n' % error
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}\n' % (id, error)


def label(line: bytes) -> str:
    """A line of ours without its payload, for the trace."""
    head, *_ = re.split(rb',"(?:params|result|error)":', line[17:300].rstrip(b"}\n"), maxsplit=1)
    return head.decode(errors="replace")


def error_body(error: RpcError) -> bytes:
    body = {"code": error.code, "message": str(error)}
    return encode(body if error.data is None else body | {"data": error.data})


def failure(method: str, text: str) -> Reply:
    """A request that could not be fulfilled, in the form that its method gives to the model."""
    if method == "tools/call":
        return Reply(Raw(encode({"content": [{"type": "text", "text": text}], "isError": True})), None)
    return Reply(None, error_body(RpcError(INTERNAL_ERROR, text)))


def error_is_valid(raw: Raw) -> bool:
    body = object_of(raw)
    code = value_of(body.get("code"))
    return isinstance(code, int) and not isinstance(code, bool) and isinstance(value_of(body.get("message")), str)


# ══ 4. Eras ══════════════════════════════════════════════════════════════════════════════════════════════════════════
# What the protocol's revisions say, as tables. Knows nothing of connections.
# The legacy era is every revision with an `initialize` handshake. In the modern one (2026-07-28) each request says for
# itself, in an envelope in `_meta`, which version it speaks and what its sender can do; nothing is remembered.

MODERN_REVISIONS: Final = ("2026-07-28",)
LEGACY_REVISIONS: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")  # newest first

# What a modern host subscribes to: by the notification, the key of the filter and the capability that has it.
CHANGES: Final = {
    "notifications/tools/list_changed": ("toolsListChanged", "tools"),
    "notifications/prompts/list_changed": ("promptsListChanged", "prompts"),
    "notifications/resources/list_changed": ("resourcesListChanged", "resources"),
}
BATCH_REVISIONS: Final = frozenset({"2025-03-26"})  # the one revision in which an array is a batch of messages


class ListKind(NamedTuple):
    """One of the four lists that a server may offer."""

    key: str  # the result's member that holds the entries
    identity: str  # the entry's member that names it
    capability: str  # who declares this has the list
    changed: str  # the notification that says it changed


LISTS: Final[dict[str, ListKind]] = {
    "tools/list": ListKind("tools", "name", "tools", "notifications/tools/list_changed"),
    "prompts/list": ListKind("prompts", "name", "prompts", "notifications/prompts/list_changed"),
    "resources/list": ListKind("resources", "uri", "resources", "notifications/resources/list_changed"),
    "resources/templates/list": ListKind(
        "resourceTemplates", "uriTemplate", "resources", "notifications/resources/list_changed"
    ),
}

# What the host is told whoever is up: mcpmux itself serves these, with empty lists if need be.
OWN_CAPABILITIES: Final[dict[str, Any]] = {
    "tools": {"listChanged": True},
    "prompts": {"listChanged": True},
    "resources": {"subscribe": True, "listChanged": True},
    "completions": {},
    "logging": {},
}
UNITED_CAPABILITIES: Final = ("tasks", "extensions", "experimental")
BEFORE_INITIALIZED: Final = ("initialize", "ping")
_OF_MCP: Final = "io.modelcontextprotocol/"
VERSION_KEY, INFO_KEY, CAPABILITIES_KEY, LEVEL_KEY, SERVER_KEY, SUBSCRIPTION_KEY = (
    _OF_MCP + key
    for key in ("protocolVersion", "clientInfo", "clientCapabilities", "logLevel", "serverInfo", "subscriptionId")
)
ENVELOPE_KEYS: Final = (VERSION_KEY, INFO_KEY, CAPABILITIES_KEY, LEVEL_KEY)
TASKS_EXTENSION: Final = _OF_MCP + "tasks"
_RELATED_TASK: Final = _OF_MCP + "related-task"
CARRIERS: Final = ("tools/call", "prompts/get", "resources/read")  # in the middle of these a server may ask
LEGACY_ONLY: Final = frozenset(
    {"ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe", "tasks/list", "tasks/result"}
)
MODERN_ONLY: Final = frozenset({"server/discover", "subscriptions/listen", "tasks/update"})
CACHEABLE: Final = ("tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read")
LOG_LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
TERMINAL: Final = ("completed", "failed", "cancelled")  # a task's last statuses
HOST_TASK_METHODS: Final = ("tasks/get", "tasks/result", "tasks/cancel", "tasks/list")
IMPLEMENTATION: Final = {"name": "mcpmux", "title": "mcpmux", "version": __version__}


class Caller(NamedTuple):
    """A host as one of its requests shows it: by its envelope, or as it has initialized."""

    modern: bool
    declared: bytes  # its capabilities
    info: bytes  # its `clientInfo`
    level: str | None = None  # of log messages that it wants during this request

    @property
    def capabilities(self) -> Fields:
        return object_of(self.declared)


NOBODY: Final = Caller(False, b"{}", encode(IMPLEMENTATION))


def caller_of(params: Fields) -> Caller | None:
    """The modern envelope of a request, None where there is none. Raises `RpcError` for one that is not whole.
    https://modelcontextprotocol.io/specification/2026-07-28/basic/index#meta"""
    meta = object_of(params.get("_meta"))
    if VERSION_KEY not in meta:
        return None
    version = value_of(meta[VERSION_KEY])
    if not isinstance(version, str):
        raise RpcError(INVALID_PARAMS, f"params._meta: {VERSION_KEY} must be a string")
    if version not in MODERN_REVISIONS:
        data = {"supported": [*MODERN_REVISIONS, *LEGACY_REVISIONS], "requested": version}
        raise RpcError(UNSUPPORTED_VERSION, "Unsupported protocol version", data)
    declared, info, level = (meta.get(key) for key in (CAPABILITIES_KEY, INFO_KEY, LEVEL_KEY))
    if declared is None or not is_object(declared):
        raise RpcError(INVALID_PARAMS, f"params._meta: {CAPABILITIES_KEY} is required and is an object")
    if level is not None and value_of(level) not in LOG_LEVELS:
        raise RpcError(INVALID_PARAMS, f"params._meta: {LEVEL_KEY} must be one of {', '.join(LOG_LEVELS)}")
    known = bytes(info) if info is not None and is_object(info) else NOBODY.info
    return Caller(True, bytes(declared), known, value_of(level))


def enveloped(params: Fields, caller: Caller, told: bytes, level: str | None = None) -> Fields:
    """Params for a modern server: what it is told of the host goes into `_meta`; what is there already stays."""
    meta = object_of(params.get("_meta"))
    meta[VERSION_KEY] = Raw(encode(MODERN_REVISIONS[0]))
    meta.setdefault(INFO_KEY, Raw(caller.info))
    meta[CAPABILITIES_KEY] = Raw(told)
    if level:
        meta[LEVEL_KEY] = Raw(encode(level))
    return params | {"_meta": Raw(encode(meta))}


def without_envelope(params: Fields) -> Fields:
    """Params for a legacy server: the Python SDK refuses an envelope there. All else stays."""
    kept = {key: raw for key, raw in params.items() if key not in ("inputResponses", "requestState")}
    if "_meta" in kept:
        meta = {key: raw for key, raw in object_of(kept["_meta"]).items() if key not in ENVELOPE_KEYS}
        if meta:
            kept["_meta"] = Raw(encode(meta))
        else:
            del kept["_meta"]
    return kept


def modern_result(method: str, result: Raw | bytes, server: bytes = NOBODY.info) -> bytes:
    """A result with what the modern era requires and a legacy server, or mcpmux, has not said. The merged view can
    change with the config, so nothing is to be kept."""
    body = object_of(result)
    if value_of(body.get("resultType")) != "complete":
        body["resultType"] = Raw(b'"complete"')
    if method in CACHEABLE:
        body.setdefault("ttlMs", Raw(b"0"))
        body.setdefault("cacheScope", Raw(b'"private"'))
    meta = object_of(body.get("_meta"))
    meta.setdefault(SERVER_KEY, Raw(server))
    body["_meta"] = Raw(encode(meta))
    return encode(body)


def modern_error(error: Raw | bytes, *, from_modern: bool) -> Raw | bytes:
    """Codes that a modern host may not be sent (2026-07-28, basic/index#error-codes) become those that it may."""
    code = value_of(object_of(error).get("code"))
    if from_modern or not isinstance(code, int) or not (code == RESOURCE_NOT_FOUND or -32099 <= code <= -32020):
        return error
    allowed = INVALID_PARAMS if code == RESOURCE_NOT_FOUND else INTERNAL_ERROR
    return encode(object_of(error) | {"code": Raw(encode(allowed))})


def modern_versions(reply: Reply) -> bool:
    """Whether an answer to `server/discover`, or a refusal of `initialize`, names a modern version that we speak."""
    if reply.result is not None:
        named = value_of(object_of(reply.result).get("supportedVersions"))
    else:
        error = object_of(reply.error)
        data = value_of(error.get("data")) if value_of(error.get("code")) == UNSUPPORTED_VERSION else None
        named = data.get("supported") if isinstance(data, dict) else None
    return isinstance(named, list) and any(version in MODERN_REVISIONS for version in named)


# How a server's era is found, by that of the host: what is tried in turn. Python's servers are locked into an era by
# their first request, so that what fails on both ways is tried once more, the other way round, in a fresh process.
FRESH: Final = "a fresh process"
WAYS: Final[dict[str, tuple[str, ...]]] = {
    "legacy": ("legacy", "modern", FRESH, "modern", "legacy"),
    "modern": ("modern", "legacy", FRESH, "legacy", "modern"),
}


def negotiate(asked: str) -> str:
    """The revision to answer `initialize` with."""
    return asked if asked in LEGACY_REVISIONS else LEGACY_REVISIONS[0]


def united(values: Iterable[Any]) -> Any:
    """Capability objects laid over each other, member by member; where they are no objects the last one counts."""
    merged: Any = None
    for value in values:
        if isinstance(merged, dict) and isinstance(value, dict):
            merged = merged | {key: united([merged[key], value[key]]) if key in merged else value[key] for key in value}
        else:
            merged = value
    return merged


def capabilities_for_host(servers: Iterable[Fields]) -> dict[str, Any]:
    """What `initialize` answers: our own, and what only servers can make true."""
    declared = list(servers)
    extra = {key: united(value_of(one[key]) for one in declared if key in one) for key in UNITED_CAPABILITIES}
    return OWN_CAPABILITIES | {key: value for key, value in extra.items() if isinstance(value, dict)}


def is_sampled_locally(host: Fields, options: ServerOptions, *, with_tools: bool) -> bool:
    """Which of the two answers a server's sampling, where a local model is there: `auto` prefers the host."""
    host_can = offers(host, "sampling", "tools") if with_tools else offers(host, "sampling")
    return options.sampling == "local" or (options.sampling == "auto" and not host_can)


def capabilities_for_server(host: Fields, options: ServerOptions, *, has_model: bool = False) -> Fields:
    """What a server is told: what the host declared, byte for byte, less what its table switches off, and what mcpmux
    answers itself: roots of its table, and sampling. Never more: servers act on capabilities without asking again."""
    told = dict(host)
    # What a modern task asks for inside itself is asked of the host, past us.
    in_tasks = offers(host, "extensions", TASKS_EXTENSION)
    local = has_model and not in_tasks and is_sampled_locally(host, options, with_tools=True)
    off = [] if options.elicitation else ["elicitation"]
    if options.sampling in ("local", "off"):
        off.append("sampling")
    for name in off:
        told.pop(name, None)
    tasks = value_of(told.get("tasks"))
    for name in (*off, "sampling") if local else off:  # the local model answers at once, never by a task
        if isinstance(tasks, dict) and isinstance(tasks.get("requests"), dict) and name in tasks["requests"]:
            tasks["requests"].pop(name)
            told["tasks"] = Raw(encode(tasks))
    if local:
        told["sampling"] = Raw(encode({**object_of(told.get("sampling")), "tools": {}}))
    if options.roots and not offers(told, "roots"):
        told["roots"] = Raw(b"{}")
    return told


def next_cursor(body: Fields, seen: set[bytes]) -> bytes | None:
    """Where a list goes on. Only an absent or null cursor ends it (an empty string does not); so do one that does not
    advance, and too many pages."""
    cursor = bytes(body.get("nextCursor", b"null"))
    if cursor == b"null" or cursor in seen or len(seen) >= MAX_PAGES - 1:
        return None
    seen.add(cursor)
    return cursor


def offers(capabilities: Fields, *path: str) -> bool:
    """Whether a capability, or the sub-capability at the end of `path`, was declared. `false` and null are not."""
    here: Any = {path[0]: value_of(capabilities.get(path[0]))}
    for name in path:
        here = here.get(name) if isinstance(here, dict) else None
        if here is None or here is False:
            return False
    return True


def elicitation_modes(capabilities: Fields) -> frozenset[str]:
    """The modes that may be asked for; an empty object means form (2025-11-25, client/elicitation)."""
    if not offers(capabilities, "elicitation"):
        return frozenset()
    modes = frozenset(mode for mode in ("form", "url") if offers(capabilities, "elicitation", mode))
    return modes or frozenset({"form"})


# ══ 5. Catalogue ═════════════════════════════════════════════════════════════════════════════════════════════════════
# Many servers' lists become one: filtered, made valid, named, resolved. Pure values; knows no connection.

_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_-]")
_EXPRESSION: Final = re.compile(r"\{([^{}]*)\}")
_NULLED: Final = b"null"


class Entry(NamedTuple):
    """One entry of one server's list, valid and copied out of its line: `left` + its name as JSON + `right`."""

    name: str  # the server's own name, or its URI
    shown: str  # as overridden in the config
    left: bytes
    right: bytes
    wrapped: bool = False  # a tool whose structured results legacy hosts take in an object only
    plain: bytes | None = None  # then: `right` for modern hosts


class Route(NamedTuple):
    """Who owns a name, and what it is called there."""

    server: str
    name: str
    wrapped: bool = False


class Part(NamedTuple):
    """One server's share of the catalogue."""

    server: str
    prefix: str | None
    lists: Mapping[str, list[Entry]]  # by list method


class Known(Struct, frozen=True):
    """What a server last said of itself, for the next start of mcpmux; or why it said nothing."""

    key: str  # of its table and of this mcpmux
    told: str = ""  # of the capabilities that it was told; "" where its lists do not depend on them
    era: str = ""
    revision: str = ""
    capabilities: bytes = b"{}"
    info: bytes = b"{}"
    instructions: str = ""
    lists: dict[str, list[Entry]] = {}
    failed: str = ""


def table_key(options: ServerOptions) -> str:
    return hashlib.sha256(encode([__version__, options])).hexdigest()[:16]


def told_key(told: Fields) -> str:
    return hashlib.sha256(encode(told)).hexdigest()[:16]


class Catalogue(Struct, frozen=True):
    """The merged view. `results` are the encoded list results by method; `notes` say what had to be changed."""

    results: dict[str, bytes]
    plain: dict[str, bytes]  # of these what modern hosts are shown, where that differs
    tools: dict[str, Route]
    prompts: dict[str, Route]
    resources: dict[str, str]
    templates: dict[str, str]  # URI template -> server, in config order
    notes: list[str]

    def owner_of(self, uri: str) -> str | None:
        """The server that listed this URI, else the first one with a template for it."""
        if uri in self.resources:
            return self.resources[uri]
        return next((owner for template, owner in self.templates.items() if matches(template, uri)), None)


def fit_entry(method: str, raw: Raw, options: ServerOptions) -> Entry | str | None:
    """One entry as strict hosts take it; a string says why it cannot be; None means that the config leaves it out.

    Hosts refuse a whole list for one bad entry, so each is made valid or left out.
    """
    kind = LISTS[method]
    entry = object_of(raw)
    name = value_of(entry.get(kind.identity))
    if not isinstance(name, str) or not name:
        return f"an entry of {method} without a {kind.identity}"
    entry = _fitting(entry, _ENTRY_TYPES)
    for key in ("annotations", "execution"):
        if key in entry:
            entry[key] = _edited(entry[key], _fitting(fields_of(entry[key]), {}))
    if "icons" in entry and not all(isinstance(object_of(icon).get("src"), Raw) for icon in items_of(entry["icons"])):
        del entry["icons"]
    shown, wrapped, output = name, False, None
    if method == "tools/list":
        override = options.tools.get(name, ToolOverride())
        if not override.enabled or not is_enabled(name, options):
            return None
        shown = override.name or name
        for key in ("title", "description"):
            if (text := getattr(override, key)) is not None:
                entry[key] = Raw(encode(text))
        if not value_of(entry.get("description")):  # some hosts refuse an empty one
            entry["description"] = Raw(encode(name))
        schema = entry.setdefault("inputSchema", Raw(b'{"type":"object"}'))
        if value_of(object_of(schema).get("type"), "object") != "object" or not is_object(schema):
            return f'tool {name!r}: its inputSchema is not of type "object"'
        if options.url and isinstance(wrong := parameter_headers(value_of(schema)), str):
            return f"tool {name!r}: {wrong}"
        entry["inputSchema"] = _object_schema(schema)
        if "outputSchema" in entry:
            output = entry["outputSchema"]
            fitted, wrapped = _output_schema(output)
            if wrapped:  # what follows the name is then all that differs between the eras
                del entry["outputSchema"]
            entry["outputSchema"] = fitted
    elif kind.identity != "name" and not isinstance(value_of(entry.get("name")), str):
        entry["name"] = Raw(encode(name))
    if "arguments" in entry:
        arguments = [_edited(one, _fitting(object_of(one), _ARGUMENT_TYPES)) for one in items_of(entry["arguments"])]
        if not all(object_of(one).get("name") for one in arguments):
            return f"prompt {name!r}: an argument without a name"
        entry["arguments"] = _edited(entry["arguments"], arguments)
    left, right = _render(entry, kind.identity)
    plain = _render(entry | {"outputSchema": output}, kind.identity)[1] if wrapped and output is not None else None
    return Entry(name, shown, left, right, wrapped, plain)


_ENTRY_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "title": str,
    "description": str,
    "mimeType": str,
    "arguments": list,
    "icons": list,
    "annotations": dict,
    "execution": dict,
    "outputSchema": (dict, bool),
    "_meta": dict,
}
_ARGUMENT_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "name": str,
    "title": str,
    "description": str,
    "required": bool,
}


# Where a JSON schema holds further ones; what is under other keywords is data.
_SCHEMA_IN: Final = frozenset(
    {
        *("items", "contains", "unevaluatedItems", "additionalProperties", "propertyNames", "unevaluatedProperties"),
        *("not", "if", "then", "else", "contentSchema", "allOf", "anyOf", "oneOf", "prefixItems"),
    }
)
_SCHEMAS_IN: Final = frozenset({"patternProperties", "dependentSchemas", "$defs", "definitions"})
HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def parameter_headers(schema: Any) -> dict[tuple[str, ...], str] | str:
    """Which arguments of a tool its calls repeat in headers, by their path; a string says why its schema is wrong.
    https://modelcontextprotocol.io/specification/2026-07-28/basic/transports/streamable-http#schema-extension"""
    found: dict[tuple[str, ...], str] = {}
    taken: set[str] = set()
    todo: list[tuple[tuple[str, ...] | None, Any]] = [((), schema)]
    while todo:
        path, here = todo.pop()
        if isinstance(here, list):
            todo += [(None, one) for one in here]
        if not isinstance(here, dict):
            continue
        if "x-mcp-header" in here:
            header, kind = here["x-mcp-header"], here.get("type")
            if not path:
                return "an x-mcp-header that is not at a property"
            if not isinstance(header, str) or not HEADER_NAME.fullmatch(header):
                return f"the x-mcp-header of {'.'.join(path)!r} is no name of a header"
            if kind not in ("string", "integer", "boolean"):
                return f"the x-mcp-header of {'.'.join(path)!r} is at no string, integer or boolean"
            if header.lower() in taken:
                return f"two properties have the x-mcp-header {header!r}"
            taken.add(header.lower())
            found[path] = header
        for key, inner in here.items():
            if key == "properties" and isinstance(inner, dict):
                todo += [(None if path is None else (*path, name), one) for name, one in inner.items()]
            elif key in _SCHEMAS_IN and isinstance(inner, dict):
                todo += [(None, one) for one in inner.values()]
            elif key in _SCHEMA_IN:
                todo.append((None, inner))
    return found


def _fitting(fields: Fields, types: Mapping[str, type | tuple[type, ...]]) -> Fields:
    """Without nulls, and without members of a type that is not theirs: hosts take absent ones."""
    return {
        key: raw
        for key, raw in fields.items()
        if bytes(raw) != _NULLED and (key not in types or isinstance(value_of(raw), types[key]))
    }


def _edited(raw: Raw, value: Any) -> Raw:
    """`value` as JSON, or `raw` itself where that says the same: its bytes need not change."""
    text = encode(value)
    return raw if _decode_any(text) == value_of(raw) else Raw(text)


def is_enabled(tool: str, options: ServerOptions) -> bool:
    """By the server's own name; `disabled_tools` wins."""

    def named(patterns: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(tool, pattern) for pattern in patterns)

    return (options.enabled_tools is None or named(options.enabled_tools)) and not named(options.disabled_tools)


def _object_schema(raw: Raw) -> Raw:
    """A schema of type object in the form that strict hosts take: each property's schema is an object."""
    schema = fields_of(raw)
    if "type" not in schema:
        schema = {"type": Raw(b'"object"'), **schema}
    if "properties" in schema and not is_object(schema["properties"]):
        del schema["properties"]
    if "properties" in schema:
        properties = fields_of(schema["properties"])
        for name, one in properties.items():
            if not is_object(one):
                properties[name] = Raw(b'{"not":{}}' if bytes(one) == b"false" else b"{}")
        schema["properties"] = _edited(schema["properties"], properties)
    required = value_of(schema.get("required"))
    if "required" in schema and not (isinstance(required, list) and all(isinstance(one, str) for one in required)):
        del schema["required"]
    return _edited(raw, schema)


def _output_schema(raw: Raw) -> tuple[Raw, bool]:
    """An output schema of type object, and whether it had to be wrapped (as the TypeScript SDK does)."""
    schema = value_of(raw)
    if isinstance(schema, dict) and schema.get("type") == "object":
        return _object_schema(raw), False
    inner = schema if isinstance(schema, dict) else {} if schema else {"not": {}}
    outer: dict[str, Any] = {"type": "object", "properties": {"result": inner}, "required": ["result"]}
    # References are from the root.
    outer |= {key: inner.pop(key) for key in ("$schema", "$defs", "definitions") if key in inner}
    return Raw(encode(outer)), True


def wrap_structured(result: Raw) -> bytes:
    """A tool's result for a wrapped output schema: `structuredContent` becomes `{"result": …}`."""
    body = object_of(result)
    if "structuredContent" in body:
        body["structuredContent"] = Raw(b'{"result":%b}' % body["structuredContent"])
    return encode(body)


def _render(entry: Fields, identity: str) -> tuple[bytes, bytes]:
    """Split at the name, so that a change of name copies two byte strings and decodes nothing."""
    keys = list(entry)
    at = keys.index(identity)
    left = encode({key: entry[key] for key in keys[:at]})[:-1] + (b"," if at else b"") + encode(identity) + b":"
    right = encode({key: entry[key] for key in keys[at + 1 :]})[1:]
    return left, (b"," if len(right) > 1 else b"") + right


def fit_name(text: str, limit: int) -> str:
    """`text` in the alphabet and length that every host accepts; the same text always gives the same name."""
    name = _NOT_IN_NAMES.sub("_", text)
    if len(name) <= limit:
        return name
    return f"{name[: limit - 7]}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _name_all(parts: list[Part], method: str, options: MuxOptions, notes: list[str]) -> list[tuple[str, Part, Entry]]:
    """A distinct name for each entry, in config order: prefix, then on a collision the server's own, then a number."""

    def joined(prefix: str, entry: Entry) -> str:
        text = f"{prefix}{options.separator}{entry.shown}" if prefix else entry.shown
        return fit_name(text, options.max_name_length)

    entries: list[tuple[Part, Entry]] = []
    for part in parts:
        once = {entry.name: entry for entry in reversed(part.lists.get(method, ()))}  # it knows one by each name
        entries += [(part, entry) for entry in part.lists.get(method, ()) if once[entry.name] is entry]
    names = [joined(part.server if part.prefix is None else part.prefix, entry) for part, entry in entries]
    crowd = collections.Counter(names)
    numbers: dict[str, int] = {}
    taken: set[str] = set()
    named: list[tuple[str, Part, Entry]] = []
    for name, (part, entry) in zip(names, entries, strict=True):
        chosen = base = name if crowd[name] == 1 else joined(part.server, entry)
        while chosen in taken or (chosen != name and chosen in crowd):
            numbers[base] = numbers.get(base, 1) + 1
            chosen = f"{fit_name(base, options.max_name_length - 8)}_{numbers[base]}"
        if crowd[name] > 1:
            notes.append(f"{part.server}: {entry.name!r} collides as {name!r} and is offered as {chosen!r}")
        taken.add(chosen)
        named.append((chosen, part, entry))
    return named


def merge(parts: list[Part], options: MuxOptions) -> Catalogue:
    """All parts, in config order, as one catalogue; what would make a list longer than hosts take is left out."""
    notes: list[str] = []
    results: dict[str, bytes] = {}
    plain: dict[str, bytes] = {}
    routes: dict[str, dict[str, Route]] = {}
    owners: dict[str, dict[str, str]] = {}
    for method, kind in LISTS.items():
        rendered: list[bytes] = []
        differing: dict[int, bytes] = {}
        room = int(options.host_message_mb * MB) - EDGE
        named = (
            _name_all(parts, method, options, notes)
            if kind.identity == "name"  # URIs are never rewritten: results, links and MCP Apps refer to them
            else [(entry.name, part, entry) for part in parts for entry in part.lists.get(method, ())]
        )
        routes[method], owners[method] = {}, {}
        for name, part, entry in named:
            shown = entry.left + encode(name) + entry.right
            if name in owners[method]:
                notes.append(f"{part.server}: {name} is offered by {owners[method][name]} already and left out")
            elif len(shown) >= room:
                notes.append(f"{part.server}: {name} is left out: {method} would be longer than host_message_mb")
            else:
                room -= len(shown) + 1
                if entry.plain is not None:
                    differing[len(rendered)] = entry.left + encode(name) + entry.plain
                rendered.append(shown)
                owners[method][name] = part.server
                routes[method][name] = Route(part.server, entry.name, entry.wrapped)
        results[method] = b'{"%b":[%b]}' % (kind.key.encode(), b",".join(rendered))
        if differing:
            shown_plain = [differing.get(number, shown) for number, shown in enumerate(rendered)]
            plain[method] = b'{"%b":[%b]}' % (kind.key.encode(), b",".join(shown_plain))
    return Catalogue(
        results,
        plain,
        routes["tools/list"],
        routes["prompts/list"],
        owners["resources/list"],
        owners["resources/templates/list"],
        notes,
    )


def matches(template: str, uri: str) -> bool:
    """Whether a URI can come from a URI template (RFC 6570): `{x}` stands for anything up to a slash, `{+x}` for
    anything. All ends that the pieces so far can have are carried along, so that no template takes long."""
    if len(template) > URI_MOST or len(uri) > URI_MOST:
        return False
    ends = {0}
    for number, piece in enumerate(_EXPRESSION.split(template)):
        if number % 2 == 0:
            ends = {at + len(piece) for at in ends if uri.startswith(piece, at)}
            continue
        lead, stop = _OPERATORS.get(piece[:1], ("", "/"))
        starts = {at + len(lead) for at in ends if uri.startswith(lead, at)}
        ends = ends | starts if lead else set()  # an expression with an operator of its own may be empty
        spread = 0
        for start in sorted(starts):
            if start >= spread:
                found = uri.find(stop, start) if stop else -1
                spread = found if found >= 0 else len(uri)
                ends.update(range(start + 1, spread + 1))
    return len(uri) in ends


_OPERATORS: Final = {
    "+": ("", ""),
    "#": ("#", ""),
    "?": ("?", ""),
    "&": ("&", ""),
    "/": ("/", ""),
    ".": (".", "/"),
    ";": (";", "/"),
}


# ══ 6. Bridge ════════════════════════════════════════════════════════════════════════════════════════════════════════
# A server wants something of the host in the middle of a call: a model's answer, a person's, the roots. The eras have
# opposite ways for it. A legacy server *sends a request* while its call stays open. A modern server *ends the call*
# with `input_required`, which holds the questions and a state; the host asks again, with the answers and that state.
#
# Between peers of one era nothing is translated. Across them:
#
#   legacy server, modern host   The host's request is ended with `input_required` and a state of ours; the server's
#                                call stays open, *parked*. The host's retry brings the answers, which go to the server
#                                as answers to its requests; from then on the retry stands for the call.
#   modern server, legacy host   The host's request stays open. The questions are put to the host as requests; when all
#                                are answered the call is tried again at the server, with the answers and its state.
#
# What a server's table or a model of one's own answers never reaches the host. If only some of a modern server's
# questions are answered so, the host is asked the rest under a state of ours, and its retry completes them. A refusal
# that names pages to visit (-32042, 2025-11-25) becomes questions too, and the retry a new call. `Round` is one such
# exchange, and `ROUNDS` is the table of its phases. Here is decided from values alone; the core does what is decided.


class Forward(NamedTuple):
    """Put it to the host, with these params."""

    params: Raw | bytes | UnsetType


class Answer(NamedTuple):
    """Answered here."""

    result: bytes


class Locally(NamedTuple):
    """A model of the person's own answers it."""


QUESTIONS: Final = ("sampling/createMessage", "elicitation/create", "roots/list")
DECLINE: Final = b'{"action":"decline"}'
_NO_SAMPLING: Final = {
    "auto": "the host declared none, and there is no model of your own (`mcpmux check` says more)",
    "host": 'the host declared none, and its table says sampling = "host"',
    "local": 'its table says sampling = "local", and there is no model of your own (`mcpmux check` says more)',
    "off": 'its table says sampling = "off"',
}


def judge_question(
    method: str,
    params: Raw | UnsetType,
    server: str,
    options: ServerOptions,
    host: Fields,
    told: Fields,
    *,
    has_model: bool = False,
) -> Forward | Answer | Locally:
    """What becomes of a server's question, given what the host of this call declared and what that server was told.

    Raises `RpcError` for a refusal (codes: 2025-11-25, client/elicitation, client/sampling, client/roots).
    """
    match method:
        case "roots/list" if offers(host, "roots"):
            return Forward(params)
        case "roots/list" if options.roots:
            return Answer(table_roots(options))
        case "roots/list":
            raise RpcError(METHOD_NOT_FOUND, "the host has no roots")
        case "sampling/createMessage":
            if not offers(told, "sampling"):
                why = _NO_SAMPLING[options.sampling]
                raise RpcError(METHOD_NOT_FOUND, f"sampling is not offered to {server}: {why}")
            asked = fields_of(params)
            with_tools = any(value_of(asked.get(key)) is not None for key in ("tools", "toolChoice"))
            if with_tools and not offers(told, "sampling", "tools"):
                raise RpcError(INVALID_PARAMS, "the host did not declare sampling.tools")
            if has_model and is_sampled_locally(host, options, with_tools=with_tools):
                return Locally()
            if not offers(host, *(("sampling", "tools") if with_tools else ("sampling",))):
                raise RpcError(METHOD_NOT_FOUND, "the host of this call declared no such sampling")
            return Forward(params)
        case "elicitation/create":
            asked = fields_of(params)
            mode = value_of(asked.get("mode"), "form")
            if not offers(told, "elicitation"):
                return Answer(DECLINE)
            if not isinstance(mode, str) or mode not in elicitation_modes(told):
                raise RpcError(INVALID_PARAMS, f"the host did not declare elicitation mode {mode!r}")
            if mode not in elicitation_modes(host):
                return Answer(DECLINE)
            return Forward(encode(asked | {"message": named_message(asked, server)}))
        case _:
            raise Bug(f"{method} is no question")


def named_message(asked: Fields, server: str) -> Raw:
    """The host has to show which server asks (client/elicitation)."""
    return Raw(encode(f"[{server}] {text_in(asked, 'message')}"))


def limit_reached(limit: str, text: str, wait: float | None = None) -> RpcError:
    """The refusal of a request over one of `[sampling.limits]`; `wait` is in seconds."""
    data = {"limit": limit} | ({} if wait is None else {"retryAfterSeconds": wait})
    return RpcError(INTERNAL_ERROR, f"mcpmux: sampling limit reached: {text} (sampling.limits.{limit})", data)


def named_pages(error: Raw | bytes, server: str) -> Raw | bytes:
    """A refusal that names pages to visit (-32042), with the server's name in what the person is told."""
    body = object_of(error)
    data = object_of(body.get("data"))
    pages = [object_of(one) for one in items_of(data.get("elicitations"))]
    if value_of(body.get("code")) != URL_ELICITATION_REQUIRED or not pages:
        return error
    named = [one | {"message": Raw(encode(f"[{server}] {value_of(one.get('message'), '')}"))} for one in pages]
    return encode(body | {"data": Raw(encode(data | {"elicitations": Raw(encode(named))}))})


def table_roots(options: ServerOptions) -> bytes:
    """The roots of a server's table; the config has made them `file://` URIs."""
    return encode({"roots": [{"uri": uri} for uri in options.roots]})


def embedded(method: str, params: Raw | bytes | UnsetType) -> Raw:
    """A legacy server's request as one of `inputRequests`: without what only holds between its sender and us."""
    fields = {key: raw for key, raw in object_of(params).items() if key not in ("task", "elicitationId")}
    if "_meta" in fields:
        ours = ("progressToken", _RELATED_TASK)
        meta = {key: raw for key, raw in object_of(fields["_meta"]).items() if key not in ours}
        if meta:
            fields["_meta"] = Raw(encode(meta))
        else:
            del fields["_meta"]
    return Raw(encode({"method": method, "params": fields} if fields else {"method": method}))


def identity(method: str, params: Fields) -> tuple[str, dict[str, Any]]:
    """What a retry has to have in common with the call it continues, as values: spelling does not matter."""
    apart = ("_meta", "inputResponses", "requestState")
    return method, {key: value_of(raw) for key, raw in params.items() if key not in apart}


def brought(question: Fields, answer: Raw | None, host: Fields) -> Reply | None:
    """What a retry brings for a question; None if it is to be asked again. That may be only a request which declares
    the capability itself, and `host` is what this one declares."""
    if answer is not None and is_object(answer):
        return Reply(answer, None)
    method, params = value_of(question.get("method")), object_of(question.get("params"))
    if method == "elicitation/create":
        can = value_of(params.get("mode"), "form") in elicitation_modes(host)
        return None if can else Reply(Raw(DECLINE), None)
    needed = ("roots",) if method == "roots/list" else ("sampling",)
    if needed == ("sampling",) and ("tools" in params or "toolChoice" in params):
        needed = ("sampling", "tools")
    error = RpcError(METHOD_NOT_FOUND, f"the host came back without an answer and declares no {'.'.join(needed)} now")
    return None if offers(host, *needed) else Reply(None, error_body(error))


class Phase(Enum):
    ASKING = "the host's request is open; more questions may come within moments"
    PARKED = "the host has the questions; it has to come back"
    GATHERING = "the host's request is open; answers are still to come"
    HELD = "the host's request is open; a page is being visited"
    OVER = "ended"


class Turn(Enum):
    DUE = "its time is up"
    VISIT = "the answers say that pages are being visited"
    RETRY = "the host came back with all that it was asked"
    PARTIAL = "the host came back with less"
    COMPLETE = "nothing is missing any more"
    END = "cancelled, failed, or its host request has ended"


# A missing pair is our bug.
ROUNDS: Final[dict[tuple[Phase, Turn], Phase]] = {
    (Phase.ASKING, Turn.DUE): Phase.PARKED,
    (Phase.ASKING, Turn.END): Phase.OVER,
    (Phase.PARKED, Turn.RETRY): Phase.GATHERING,
    (Phase.PARKED, Turn.PARTIAL): Phase.PARKED,
    (Phase.PARKED, Turn.DUE): Phase.OVER,  # it never came
    (Phase.PARKED, Turn.END): Phase.OVER,
    (Phase.GATHERING, Turn.COMPLETE): Phase.OVER,
    (Phase.GATHERING, Turn.DUE): Phase.OVER,  # there was nothing to ask, only to wait
    (Phase.GATHERING, Turn.VISIT): Phase.HELD,
    (Phase.GATHERING, Turn.END): Phase.OVER,
    (Phase.HELD, Turn.COMPLETE): Phase.OVER,
    (Phase.HELD, Turn.DUE): Phase.OVER,
    (Phase.HELD, Turn.END): Phase.OVER,
}


def next_phase(phase: Phase, turn: Turn) -> Phase:
    try:
        return ROUNDS[phase, turn]
    except KeyError:
        raise Bug(f"a round that is {phase.name} cannot take {turn.name}") from None


STATE_PREFIX: Final = "mcpmux:"  # of a `requestState` that is ours


def input_required(questions: Mapping[str, Raw], state: str) -> Raw:
    """The result that asks the host (2026-07-28, basic/patterns/mrtr)."""
    meta = {SERVER_KEY: IMPLEMENTATION}
    body = {"resultType": "input_required", "inputRequests": questions, "requestState": state, "_meta": meta}
    return Raw(encode(body if questions else {key: body[key] for key in body if key != "inputRequests"}))


# ══ 7. Lifecycle ═════════════════════════════════════════════════════════════════════════════════════════════════════
# A server's states. Knows nothing of processes; time is an argument.


class State(Enum):
    IDLE = "idle"  # not running; the next use starts it
    STARTING = "starting"  # the process is being started, or has not answered its handshake
    READY = "ready"
    BACKOFF = "backoff"  # it died; until the timer is due nothing starts it
    FAILED = "failed"  # given up for a while, or for good where its table is wrong
    STOPPING = "stopping"  # the stop ladder runs
    STOPPED = "stopped"  # stopped by us


class Life(Enum):
    USE = "is used"
    UP = "answered its handshake"
    ENDED = "has ended as it was told"
    GONE = "is gone"
    GAVE_UP = "is gone once too often"
    DUE = "has rested"
    STOP = "is told to stop"
    AGAIN = "is gone for a fresh process to take its place"


# A missing pair is our bug, never the server's.
TRANSITIONS: Final[dict[tuple[State, Life], State]] = {
    (State.IDLE, Life.USE): State.STARTING,
    (State.STOPPED, Life.USE): State.STARTING,
    (State.STARTING, Life.UP): State.READY,
    (State.STARTING, Life.GONE): State.BACKOFF,
    (State.STARTING, Life.GAVE_UP): State.FAILED,
    (State.STARTING, Life.STOP): State.STOPPING,
    (State.READY, Life.GONE): State.BACKOFF,
    (State.READY, Life.GAVE_UP): State.FAILED,
    (State.READY, Life.STOP): State.STOPPING,
    (State.BACKOFF, Life.DUE): State.IDLE,
    (State.FAILED, Life.DUE): State.IDLE,
    (State.STOPPING, Life.ENDED): State.STOPPED,
    (State.STOPPING, Life.GONE): State.BACKOFF,  # it was stopped because it was of no use
    (State.STOPPING, Life.GAVE_UP): State.FAILED,
    (State.STARTING, Life.AGAIN): State.IDLE,
    (State.STOPPING, Life.AGAIN): State.IDLE,
}


def next_state(state: State, event: Life) -> State:
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise Bug(f"a server that is {state.value} cannot be one that {event.value}") from None


class Deaths:
    """How often a server died lately, and so how long it rests."""

    def __init__(self) -> None:
        self._times: collections.deque[float] = collections.deque(maxlen=DEATHS_ALLOWED)
        self._streak = 0

    def count(self, now: float, chance: float) -> float | None:
        """One more death: the seconds to rest, or None when it is given up. `chance` is in [0, 1) and spreads the
        rest over half of itself, so that servers that died together do not come back together."""
        lately = bool(self._times) and now - self._times[-1] <= DEATHS_WITHIN
        self._streak = self._streak + 1 if lately else 1
        self._times.append(now)
        if len(self._times) == DEATHS_ALLOWED and now - self._times[0] <= DEATHS_WITHIN:
            self._times.clear()
            return None
        return min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** min(self._streak - 1, 10)) * (1 - chance / 2)


# ══ 8. Core ══════════════════════════════════════════════════════════════════════════════════════════════════════════
# Events in, effects out. All that is shared is owned by one `Core`; requests wait in one `InFlight` and nowhere else
# but in `_held` (host requests that wait for the lists). Nothing here can block, fail to send, or tell the time.

HOST: Final = ""  # the host among the peers; a server's name is never empty
OURSELVES: Final = "mcpmux itself"  # a server's name has no space
MODEL: Final = "the model"  # the sampler process
LATER: Final = "the host's next request"  # owes the answer to a question that a modern host has, or will have
BRIDGE: Final = "the bridge"  # owes the answer to a host's request while questions of a modern server are open
PARKED: Final = "a parked call"  # waits for a server's answer while its host request has ended
FOREVER: Final = float("inf")


class HostLines(Struct):
    """Whole lines from the host, as many as came at once."""

    lines: list[bytes | TooLong]


class HostGone(Struct):
    """The host closed its end, or mcpmux was told to stop."""

    reason: str


class ServerUp(Struct):
    """The process runs and can be written to."""

    server: str
    run: int


class ServerLines(Struct):
    server: str
    run: int
    lines: list[bytes | TooLong]


class ServerClogged(Struct):
    """A server's outbox went over its limit, or is empty again."""

    server: str
    run: int
    clogged: bool


class ServerGone(Struct):
    """The process or the connection is over, or never came to be: what happened, and what its person can do."""

    server: str
    run: int
    reason: str  # as in «git exited with code 1»
    hint: str
    stderr: list[str]
    unread: list[bytes] = []  # requests that it has certainly not taken: they are for its next run


class Sampled(Struct):
    """Whole lines from the sampler: JSON-RPC, as from a server."""

    lines: list[bytes | TooLong]


class SamplerGone(Struct):
    """The sampler is over, or could not be started; the next request starts another."""

    reason: str


class ConfigChanged(Struct):
    """The file says something else; what it says as a whole. The fields are those that `Core` is made with."""

    options: MuxOptions
    servers: dict[str, ServerOptions]
    broken: dict[str, str]
    sampling: SamplingOptions | None


class TryAgain(Struct):
    """What kept a server from serving may be over: somebody has logged in."""

    server: str


class TimerDue(Struct):
    key: tuple[str, str]


Event = (
    HostLines
    | HostGone
    | ServerUp
    | ServerLines
    | ServerClogged
    | ServerGone
    | Sampled
    | SamplerGone
    | ConfigChanged
    | TryAgain
    | TimerDue
)


class SendHost(Struct):
    source: str  # whose queue: a server's name, or HOST for mcpmux's own
    line: bytes


class SendServer(Struct):
    server: str
    line: bytes


class Start(Struct):
    server: str
    run: int


class Stop(Struct):
    server: str
    run: int


class Sample(Struct):
    """A line for the sampler, which is started if it does not run."""

    line: bytes


class SaveCatalogue(Struct):
    """What is now known of a server, for the cache."""

    server: str
    known: Known


class SetTimer(Struct):
    key: tuple[str, str]
    at: float | None  # None: forget it


class Log(Struct):
    level: str
    text: str


Effect = SendHost | SendServer | Start | Stop | Sample | SaveCatalogue | SetTimer | Log


class Pending(Struct):
    """A request that waits for its answer. `id` is ours, minted; the asker's own comes back to it as it was."""

    id: int
    peer: str  # who owes the answer
    asker: str  # who waits for it
    asker_id: bytes
    method: str
    patience: float  # seconds from one sign of life to the next
    opened: float
    deadline: float
    limit: float  # progress moves the deadline no further than this
    then: Callable[[Pending, Reply], None] | None = None  # None: the answer goes to the asker as it is
    token: bytes | None = None  # the asker's progress token; ours is `id`
    progress: float = -FOREVER  # the last value passed on
    wrapped: bool = False  # the tool's structured results are put into an object
    is_task: bool = False  # the request was augmented with a task (2025-11-25)
    calls: tuple[int, ...] = ()  # of a server's question: the host's calls in one of which it was asked
    caller: Caller = NOBODY
    asked: Fields | None = None  # of a call that may need the bridge: the host's params
    params: Fields | None = None  # and those for its server
    round: int = 0  # the open one that it takes part in
    rounds: int = 0  # how often its modern server has asked already


class InFlight:
    """The one table of open requests."""

    def __init__(self) -> None:
        self._by_id: dict[int, Pending] = {}
        self._by_asker: dict[tuple[str, bytes], int] = {}
        self._minted = 0

    def open(
        self, peer: str, asker: str, asker_id: bytes, method: str, now: float, patience: float, limit: float
    ) -> Pending:
        self._minted += 1
        number = self._minted
        pending = Pending(number, peer, asker, asker_id, method, patience, now, now + patience, now + limit)
        self._by_id[number] = pending
        if asker != OURSELVES:
            self._by_asker[asker, asker_id] = number
        return pending

    def settle(self, number: int) -> Pending:
        pending = self._by_id.pop(number)
        if pending.asker != OURSELVES:
            del self._by_asker[pending.asker, pending.asker_id]
        return pending

    def get(self, number: int | None) -> Pending | None:
        return None if number is None else self._by_id.get(number)

    def hand_over(self, pending: Pending, asker: str, asker_id: bytes) -> None:
        """Somebody else waits for the answer from now on."""
        del self._by_asker[pending.asker, pending.asker_id]
        pending.asker, pending.asker_id = asker, asker_id
        self._by_asker[asker, asker_id] = pending.id

    def asked(self, asker: str, asker_id: bytes) -> Pending | None:
        return self.get(self._by_asker.get((asker, asker_id)))

    def owed_by(self, peer: str) -> list[Pending]:
        return [pending for pending in self._by_id.values() if pending.peer == peer]

    def asked_by(self, asker: str) -> list[Pending]:
        return [pending for pending in self._by_id.values() if pending.asker == asker]

    def __iter__(self) -> Iterator[Pending]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)


class Ask(Struct):
    """A host's request while it is being routed."""

    id: bytes
    method: str
    params: Raw | UnsetType
    blamed: str | None = None  # the server whose start it waits for, if it waits for one only
    fields: Fields = {}  # its params
    caller: Caller = NOBODY


class Listing(Struct):
    """One list of one server while its pages come in."""

    entries: list[Entry]
    cursors: set[bytes]
    room: int  # bytes that it may still have


class Listen(Struct):
    """A modern host's `subscriptions/listen`, open until it cancels."""

    id: bytes
    changes: frozenset[str]  # the list notifications that it wants
    uris: list[str]
    extra: Fields  # of its filter, what only extensions know


class Question(Struct):
    """One thing that a server wants of the host."""

    shown: Raw  # as an entry of `inputRequests`; b"" if the host is not asked for it
    number: int = 0  # in the in-flight table; 0 if nothing is open for it
    is_open: bool = True


class Round(Struct):
    """One exchange in the bridge, from the first question to the answers' arrival at the server."""

    id: int
    server: str
    call: Pending  # the host's: in flight at a legacy server, ended at a modern one
    phase: Phase
    questions: dict[str, Question] = {}
    answers: dict[str, Raw] = {}  # for a modern server, by question
    state: Raw | None = None  # a modern server's `requestState`
    token: str = ""  # ours, while parked
    kept: Reply | None = None  # how the call ended while it was parked
    waiting: int = 0  # the in-flight entry under which the host's request waits for this round
    pages: dict[str, bool] = {}  # by elicitationId: whether the server said that it is complete


class TaskOwner(NamedTuple):
    server: str
    wrapped: bool  # its tool's structured results are put into an object


class Server:
    """What the core knows of one server. Written by `Core` only."""

    def __init__(self, name: str, options: ServerOptions) -> None:
        self.name = name
        self.options = options
        self.state = State.IDLE
        self.run = 0  # counts the processes, so that what a former one still says is not taken for the present one's
        self.deaths = Deaths()
        self.trouble: str | None = None  # why it does not serve, for people; None while it does or was never tried
        self.hint = ""
        self.wanted = False  # used while it rests or stops: started as soon as that is over
        self.settling = False  # started, and not yet known what it offers: lists wait, the first time
        self.tried = False  # a start has ended one way or the other: lists wait for no further one
        self.known = False  # its lists are those that it gave, in this run or a former one
        self.stale = False  # but to a host with other capabilities
        self.saved: Known | None = None  # what the cache has
        self.used_at = 0.0
        self.late = False  # has not answered its handshake in startup_timeout_sec
        self.started_at = 0.0
        self.ready_in: float | None = None  # seconds from start to its first complete lists
        # From here on: valid while READY, and kept afterwards, since its tools stay listed while it rests.
        self.open = False  # calls go out; before, they wait in `waiting`
        self.waiting: dict[int, Fields | UnsetType] = {}  # params by number
        self.clogged = False
        self.starter = NOBODY  # the host as the request showed it for which it was started
        self.told: Fields = {}
        self.told_last: tuple[bytes, bool, Fields] = (b"", False, {})  # by declaration, and whether both are legacy
        self.era = ""  # "legacy" or "modern": what worked last
        self.way: list[str] = []  # what is still to be tried to find its era
        self.trying = ""
        self.again = False  # it is being stopped for a fresh process
        self.modern = False
        self.info = NOBODY.info  # its `serverInfo`
        self.level: str | None = None  # of log messages, as last set at it
        self.revision = ""
        self.capabilities: Fields = {}
        self.instructions = ""
        self.lists: dict[str, list[Entry]] = {}
        self.listing: dict[str, Listing] = {}
        self.changed: set[str] = set()  # lists that it said have changed, to be read after some quiet
        self.changed_since = 0.0
        self.listed_at: float | None = None  # when its lists had been read once
        self.quiet = RELIST_QUIET  # grows while it announces changes that are none
        self.up_at = 0.0
        self.useless = False  # it is being stopped because its handshake failed
        self.subscriptions: dict[str, set[bytes]] = {}  # who wants a URI: listens by id, b"" a legacy host
        self.listen: Pending | None = None  # our subscription at a modern server
        self.listened: list[Pending] = []  # former ones, to be ended when the present one is acknowledged
        self.listens_for: Fields | None = None  # None: it offers no subscriptions
        self.listen_wait = LISTEN_AGAIN
        self.questions: list[int] = []  # asked outside any call: they wait for the host's next one
        self.sampled: collections.deque[float] = collections.deque()  # when it asked the local model, in a minute


def _broken_server(name: str, reason: str) -> Server:
    """One whose table is wrong: it is there to say so."""
    server = Server(name, ServerOptions())
    server.state, server.trouble, server.tried = State.FAILED, reason, True
    server.hint = "correct its table"
    return server


class Core:
    """The multiplexer without its pipes: `handle` takes an event and the time, and returns what is to be done.

    `broken` are servers whose table is wrong, with the reason; `known` is what the cache has of the others; `sampling`
    is there if a local model is; `chance` gives numbers in [0, 1), and `secret` what nobody can guess.
    """

    def __init__(
        self,
        options: MuxOptions,
        servers: Mapping[str, ServerOptions],
        *,
        sampling: SamplingOptions | None = None,
        known: Mapping[str, list[Known]] | None = None,
        broken: Mapping[str, str] | None = None,
        notice: str = "",
        chance: Callable[[], float] = lambda: 0.0,
        secret: Callable[[], str] = lambda: "",
    ) -> None:
        self.options = options
        self.servers = {name: Server(name, table) for name, table in servers.items()}
        self.servers |= {name: _broken_server(name, reason) for name, reason in (broken or {}).items()}
        self.in_flight = InFlight()
        self.revision = ""  # the host's, once it has initialized
        self._sampling = sampling
        self._known = known or {}
        self._notice = notice
        self._chance = chance
        self._secret = secret
        self._now = 0.0
        self._effects: list[Effect] = []
        self._timers: dict[tuple[str, str], float] = {}
        self._host_limit = int(options.host_message_mb * MB)
        self._tracing = options.log_level == "trace"
        self._legacy = NOBODY  # the host as it has initialized
        self._caller = NOBODY  # the host as it showed itself last
        self._ending = False
        self._reloading: set[str] = set()  # new servers of a changed config: changes are told when they are listed
        self._former_runs = 0  # no process of a server that was removed had a higher `run`
        self._begun = False  # the servers have been started for the first time
        self._listens: dict[bytes, Listen] = {}
        self._rounds: dict[int, Round] = {}
        self._round_of_token: dict[str, int] = {}
        self._minted = 0
        self._host_ready = False  # it has sent `initialized`: now it may be asked
        self._host_roots: bytes | None = None  # its last answer to roots/list
        self._log_level: str | None = None  # a legacy host's
        self._for_host: list[SendHost] = []  # waits until the host is ready
        self._held: dict[bytes, Ask] = {}  # wait until it is known what the servers offer
        self._seen_by_host: dict[str, bytes] = {}  # by list method: the list that the host has, or was told to fetch
        self._catalogue: Catalogue | None = None  # None: to be merged anew when next needed
        self._tasks: dict[str, TaskOwner] = {}  # by task id, what servers made
        self._host_tasks: dict[str, TaskOwner] = {}  # by task id, what the host made for a server
        self._task_progress: dict[int, tuple[str, Pending]] = {}  # our token -> task id and the call that made it

    # ── events ──

    def handle(self, event: Event, now: float) -> list[Effect]:
        self._now = now
        self._effects = effects = []
        match event:
            case ServerLines():
                server = self._alive(event.server, event.run)
                for line in event.lines if server else ():
                    self._survive(self._line_of_server, server, line)
            case HostLines():
                for line in event.lines:
                    self._survive(self._line_of_host, line)
            case Sampled():
                for line in event.lines:
                    self._survive(self._line_of_sampler, line)
            case _:
                self._survive(self._handle, event)
        return effects

    def _survive(self, step: Callable[..., None], *arguments: Any) -> bool:
        """The one broad `except`: a bug of ours costs the line or the event that shows it. What was done before it
        stands, and everything else is served on."""
        try:
            step(*arguments)
            return True
        except Exception as bug:
            frames: list[str] = []
            at = bug.__traceback__
            while at:
                frames.append(f"{at.tb_frame.f_code.co_name}:{at.tb_lineno}")
                at = at.tb_next
            self._log("error", f"a bug in mcpmux {__version__}, please report it: {bug!r} in {' > '.join(frames)}")
            return False

    def _handle(self, event: Event) -> None:
        match event:
            case TimerDue(key):
                at = self._timers.get(key)
                if at is not None and at <= self._now:
                    del self._timers[key]
                    self._on_timer[key[0]](self, key[1])
                elif at is not None:  # some clocks wake early
                    self._effects.append(SetTimer(key, at))
            case ServerUp(name, run):
                server = self._alive(name, run)
                if server and server.state is State.STARTING:
                    self._greet(server)
            case ServerClogged(name, run, clogged):
                server = self._alive(name, run)
                if server:
                    server.clogged = clogged
                    self._log("warning", f"{name}: {'does not read' if clogged else 'reads again'}")
            case ServerGone(name, run):
                server = self._alive(name, run)
                if server:
                    self._gone(server, event)
            case SamplerGone(reason):
                for pending in self.in_flight.owed_by(MODEL):
                    self._fail(self.in_flight.settle(pending.id), f"mcpmux: {reason}")
            case ConfigChanged():
                self._reconfigure(event)
            case TryAgain(name):
                server = self.servers.get(name)
                if server and server.trouble and server.hint != _broken_server("", "").hint:
                    server.deaths = Deaths()
                    if server.state in (State.BACKOFF, State.FAILED):
                        server.state = next_state(server.state, Life.DUE)
                        self._set_timer("rested", name, None)
                    self._use(server)
            case HostGone(reason):
                self._end(reason)
            case HostLines() | ServerLines() | Sampled():
                raise Bug("lines are handled one by one")

    @property
    def catalogue(self) -> Catalogue:
        if self._catalogue is None:
            parts = [Part(one.name, one.options.prefix, one.lists) for one in self.servers.values() if one.lists]
            self._catalogue = merge(parts, self.options)
            for note in self._catalogue.notes:
                self._log("warning", note)
        return self._catalogue

    def _alive(self, name: str, run: int) -> Server | None:
        server = self.servers.get(name)
        return server if server and server.run == run else None

    def _log(self, level: str, text: str) -> None:
        self._effects.append(Log(level, text))

    def _trace(self, arrow: str, peer: str, what: str, size: int) -> None:
        self._log("trace", f"{arrow} {peer or 'host'} {what} {size} bytes")

    def _set_timer(self, kind: str, name: str, at: float | None) -> None:
        key = (kind, name)
        if at is None:
            if self._timers.pop(key, None) is None:
                return
        else:
            self._timers[key] = at
        self._effects.append(SetTimer(key, at))

    # ── lines ──

    def _line_of_host(self, line: bytes | TooLong) -> None:
        for message in self._read(None, line):
            self._from_host(message, len(line))

    def _line_of_server(self, server: Server, line: bytes | TooLong) -> None:
        for message in self._read(server, line):
            self._from_server(server, message, len(line))

    def _read(self, server: Server | None, line: bytes | TooLong) -> Iterator[Envelope]:
        """The messages of one line (several only in a batch); a bad one costs itself, and a call that it names."""
        if isinstance(line, TooLong):
            reason = f"{line.size} bytes, over max_message_mb = {self.options.max_message_mb:g}"
            self._bad_line(server, line.head, line.tail, reason, INVALID_REQUEST)
            return
        text, note = tidy(line)
        if note:
            self._log("warning", f"{server.name if server else 'host'}: {note}")
        items = [text]
        try:
            if text.lstrip()[:1] == b"[" and (server or self).revision in BATCH_REVISIONS:
                items = decode_batch(text)
        except (BadLine, msgspec.ValidationError) as bad:
            self._bad_line(server, text, text, str(bad), INVALID_REQUEST)
            return
        for item in items:
            try:
                message = decode_line(item)
            except BadLine as bad:
                code = PARSE_ERROR if str(bad).startswith("not JSON (") else INVALID_REQUEST
                self._bad_line(server, item, item, str(bad), code)
            else:
                yield message

    def _bad_line(self, server: Server | None, head: bytes, tail: bytes, reason: str, code: int) -> None:
        peer = server.name if server else HOST
        self._log("warning", f"{peer or 'host'}: a line was not read: {reason}")
        number = id_in_bad_line(head, tail)
        pending = self.in_flight.get(number)
        is_answer = b'"method"' not in head[:EDGE] and b'"method"' not in tail[-EDGE:]
        if pending and pending.peer == peer and is_answer and not self._is_waiting(pending):
            text = f"{peer or 'the host'} sent an answer that cannot be read: {reason}"
            self._fail(self.in_flight.settle(pending.id), text)
        elif server is None:
            known = None if number is None or code == PARSE_ERROR else b"%d" % number
            if known is not None and (known in self._held or self.in_flight.asked(HOST, known)):
                known = None  # that request has its own ending
            error = RpcError(code, f"mcpmux could not read this line: {reason}")
            self._send_host(HOST, error_line(known, error_body(error)))

    def _is_waiting(self, pending: Pending) -> bool:
        """Not sent yet: its server is not ready."""
        return pending.peer in self.servers and pending.id in self.servers[pending.peer].waiting

    # ── from the host ──

    def _from_host(self, message: Envelope, size: int) -> None:
        params = UNSET if message.params is UNSET or bytes(message.params) == _NULLED else message.params
        if message.method is not UNSET:
            if message.id is UNSET:
                if self._tracing:
                    self._trace("<", HOST, message.method, size)
                handler = self._host_notifications.get(message.method)
                if handler and (self.revision or handler is Core._host_cancels):
                    handler(self, object_of(params))
                return
            id = bytes(message.id)
            if self._tracing:
                self._trace("<", HOST, f"{message.method} id={id.decode(errors='replace')}", size)
            if is_id(id):
                self._receive(Ask(id, message.method, params))
            else:
                wrong = RpcError(INVALID_REQUEST, "a request's id must be a string or a number")
                self._send_host(HOST, error_line(None, error_body(wrong)))
        elif message.id is not UNSET and (message.result is not UNSET or message.error is not UNSET):
            self._answer_of_host(message, size)
        elif message.error is not UNSET:
            self._log("warning", "host: an error without an id")
        else:
            id = b"" if message.id is UNSET else bytes(message.id)
            line = b'{"id":%b}' % id
            self._bad_line(None, line, line, "neither a request, a notification nor a response", INVALID_REQUEST)

    def _receive(self, ask: Ask) -> None:
        """A new request of the host's. Even one that shows a bug of ours has an ending."""
        if self._is_open(ask.id):
            self._refuse(ask, RpcError(INVALID_REQUEST, "a request with this id is still open"))
            return
        before = len(self._effects)
        if not self._survive(self._route, ask) and not self._is_open(ask.id):
            start = result_line(ask.id, b"")[: -len(b',"result":}\n')] + b","
            new = self._effects[before:]
            if not any(isinstance(one, SendHost) and one.line.startswith(start) for one in new):
                self._refuse(ask, RpcError(INTERNAL_ERROR, f"a bug in mcpmux: its log says more ({ask.method[:100]})"))

    def _is_open(self, id: bytes) -> bool:
        return id in self._held or id in self._listens or self.in_flight.asked(HOST, id) is not None

    def _route(self, ask: Ask) -> None:
        """The era goes with each request; `initialize` is legacy whatever it carries."""
        try:
            ask.fields = fields_of(ask.params)
            caller = None if ask.method == "initialize" else caller_of(ask.fields)
            ask.caller = caller or self._legacy
            if caller:
                if ask.method in LEGACY_ONLY:
                    raise RpcError(METHOD_NOT_FOUND, f"{ask.method} is not of {MODERN_REVISIONS[0]}")
                self._caller = caller
                if ask.method not in MODERN_ONLY:  # a host that only looks what this is starts no server
                    self._begin()
                state = value_of(ask.fields.get("requestState"))
                if ask.method in CARRIERS and isinstance(state, str) and state.startswith(STATE_PREFIX):
                    self._retry(ask, state)
                    return
            elif ask.method not in BEFORE_INITIALIZED:
                if not self.revision:
                    how = f"send `initialize`, or {VERSION_KEY} and the rest of {MODERN_REVISIONS[0]} in params._meta"
                    raise RpcError(INVALID_PARAMS, f"not initialized: {how}")
                if ask.method in MODERN_ONLY:
                    raise RpcError(METHOD_NOT_FOUND, f"{ask.method} is not of {self.revision}")
                if not self._host_ready:
                    self._host_is_ready({})  # its `initialized` never came: what it asks shows that it is
            self._host_requests.get(ask.method, Core._pass_on)(self, ask)
        except RpcError as error:
            self._refuse(ask, error)

    def _begin(self) -> None:
        """The host is really there. Started are the servers of which it is not known what they offer to it."""
        if self._begun:
            return
        self._recall()
        self._begun = True
        for server in self.servers.values():
            if server.options.start == "eager" or not server.known or server.stale:
                self._use(server)

    def _recall(self) -> None:
        """What the cache has of the servers, for a host with these capabilities if possible."""
        if self._begun:
            return
        for server in self.servers.values():
            told = told_key(self._told(server, self._caller))
            found = [one for one in self._known.get(server.name, ()) if one.key == table_key(server.options)]
            lists = sorted((one for one in found if not one.failed), key=lambda one: one.told not in ("", told))
            if lists:
                best = server.saved = lists[0]
                server.known, server.stale = True, best.told not in ("", told)
                server.era, server.revision, server.info = best.era, best.revision, best.info
                server.capabilities, server.instructions = object_of(best.capabilities), best.instructions
                server.lists = dict(best.lists)
            server.tried = server.tried or bool(found)
        self._catalogue = None

    def _remember(self, server: Server) -> None:
        """For the next start. A failure is remembered only of a server of which nothing else is known."""
        key = table_key(server.options)
        if server.known:
            told = "" if server.modern else told_key(server.told)
            known = Known(
                key,
                told,
                server.era,
                server.revision,
                encode(server.capabilities),
                server.info,
                server.instructions,
                dict(server.lists),
            )
        else:
            known = Known(key, failed=server.trouble or "unknown")
        if known != server.saved and server.name in self.servers:
            server.saved = known
            self._effects.append(SaveCatalogue(server.name, known))

    def _initialize(self, ask: Ask) -> None:
        revision = negotiate(text_in(ask.fields, "protocolVersion"))
        info = ask.fields.get("clientInfo", Raw(b""))
        declared = ask.fields.get("capabilities", Raw(b"{}"))
        fields_of(declared)  # or it is refused
        self._caller = self._legacy = Caller(False, bytes(declared), bytes(info) if is_object(info) else NOBODY.info)
        self.revision = revision
        answer = {"protocolVersion": revision, **self._about_us(), "serverInfo": IMPLEMENTATION}
        self._reply(ask, encode(answer))
        self._begin()

    def _discover(self, ask: Ask) -> None:
        about = self._about_us()
        about["capabilities"].pop("tasks", None)  # those of the legacy era are for it alone
        answer = {"supportedVersions": MODERN_REVISIONS, **about, "ttlMs": 0, "cacheScope": "private"}
        self._reply(ask, encode(answer))

    def _about_us(self) -> dict[str, Any]:
        self._recall()
        known = [server for server in self.servers.values() if server.lists]
        chapters = [f"# {server.name}\n\n{server.instructions}" for server in known if server.instructions]
        if self._notice:
            chapters.insert(0, self._notice)
        about: dict[str, Any] = {"capabilities": capabilities_for_host(server.capabilities for server in known)}
        return about | ({"instructions": "\n\n".join(chapters)} if chapters else {})

    def _ping(self, ask: Ask) -> None:
        self._reply(ask, b"{}")

    def _list(self, ask: Ask) -> None:
        if value_of(ask.fields.get("cursor")) is not None:
            raise RpcError(INVALID_PARAMS, "unknown cursor: the list has one page only")
        if not self._hold(ask):
            result = self._seen_by_host[ask.method] = self.catalogue.results[ask.method]
            self._reply(ask, self.catalogue.plain.get(ask.method, result) if ask.caller.modern else result)

    def _call_tool(self, ask: Ask) -> None:
        name = text_in(ask.fields, "name")
        route = self.catalogue.tools.get(name)
        if route is None:
            self._unknown_name(ask, name, "tool", self.catalogue.tools)
            return
        params = ask.fields | {"name": Raw(encode(route.name))}
        self._forward(ask, route.server, params, wrapped=route.wrapped and not ask.caller.modern)

    def _get_prompt(self, ask: Ask) -> None:
        name = text_in(ask.fields, "name")
        route = self.catalogue.prompts.get(name)
        if route is None:
            self._unknown_name(ask, name, "prompt", self.catalogue.prompts)
            return
        self._forward(ask, route.server, ask.fields | {"name": Raw(encode(route.name))})

    def _by_uri(self, ask: Ask) -> None:
        uri = text_in(ask.fields, "uri")
        owner = self.catalogue.owner_of(uri)
        if ask.method == "resources/unsubscribe":
            owner = next((one.name for one in self.servers.values() if b"" in one.subscriptions.get(uri, ())), owner)
        if owner and self.servers[owner].modern and ask.method != "resources/read":
            self._subscribe(self.servers[owner], uri, b"", ask.method == "resources/subscribe")
            self._reply(ask, b"{}")
        elif owner:
            self._forward(ask, owner, ask.fields, then=functools.partial(self._uri_answered, uri))
        elif not self._hold(ask):
            if ask.params is not UNSET:
                ask.params = ask.params.copy()
            ready = [one.name for one in self.servers.values() if one.open and offers(one.capabilities, "resources")]
            self._try_in_turn(ask, uri, ready, None)

    def _try_in_turn(self, ask: Ask, uri: str, names: list[str], last: tuple[Pending, bytes] | None) -> None:
        """A URI that nobody listed: each ready server is asked in turn, until one knows it."""
        is_read = ask.method == "resources/read"
        names = [name for name in names if self._is_usable(name) and (is_read or not self.servers[name].modern)]
        if not names:
            if last is None:
                raise RpcError(RESOURCE_NOT_FOUND, f"Resource not found: no server offers {uri}", {"uri": uri})
            self._deliver(last[0], Reply(None, last[1]))
            return

        def tried(pending: Pending, reply: Reply) -> None:
            if reply.error is None:
                self._uri_answered(uri, pending, reply)
            else:
                self._try_in_turn(ask, uri, names[1:], (pending, bytes(reply.error)))

        pending = self._forward(ask, names[0], fields_of(ask.params), then=tried, patience=URI_PROBE_TIMEOUT)
        if pending and last:
            pending.progress = last[0].progress  # it must rise within one token

    def _uri_answered(self, uri: str, pending: Pending, reply: Reply) -> None:
        if reply.error is None and pending.method != "resources/read":
            reply = Reply(Raw(b"{}"), None)  # exactly: TypeScript's EmptyResult refuses more
            wanted = self.servers[pending.peer].subscriptions
            if pending.method == "resources/subscribe":
                wanted.setdefault(uri, set()).add(b"")
            elif uri in wanted:
                wanted[uri].discard(b"")
                if not wanted[uri]:
                    del wanted[uri]
        self._deliver(pending, reply)

    def _subscribe(self, server: Server, uri: str, whose: bytes, wanted: bool) -> None:
        """Notes who wants to hear of a resource; its server is told when the first comes and the last goes."""
        wanting = server.subscriptions.setdefault(uri, set())
        before = bool(wanting)
        wanting.add(whose) if wanted else wanting.discard(whose)
        if not wanting:
            del server.subscriptions[uri]
        if before == bool(wanting) or not server.open:
            return
        if server.modern:
            self._listen(server)
        else:
            method = "resources/subscribe" if wanting else "resources/unsubscribe"
            self._ask(server, method, encode({"uri": uri}), lambda pending, reply: None)

    # ── subscriptions of a modern host (2026-07-28, basic/patterns/subscriptions) ──

    def _open_listen(self, ask: Ask) -> None:
        wanted = fields_of(ask.fields.get("notifications", Raw(b"null")))
        uris = value_of(wanted.get("resourceSubscriptions"), [])
        if not isinstance(uris, list) or not all(isinstance(uri, str) for uri in uris):
            raise RpcError(INVALID_PARAMS, "params.notifications.resourceSubscriptions must be a list of strings")
        if uris:
            self._begin()
            if self._hold(ask):
                return
        flags = {key: method for method, (key, _) in CHANGES.items() if value_of(wanted.get(key)) is True}
        owners = {uri: owner for uri in uris if (owner := self.catalogue.owner_of(uri))}
        is_modern = any(server.modern for server in self.servers.values())
        known = {key for key, _ in CHANGES.values()} | {"resourceSubscriptions"}
        extra = {key: raw.copy() for key, raw in wanted.items() if key not in known and is_modern}
        listen = Listen(bytes(ask.id), frozenset(flags.values()), list(owners), extra)
        self._listens[listen.id] = listen
        honoured: dict[str, Any] = dict.fromkeys(flags, True) | extra
        if "resourceSubscriptions" in wanted:
            honoured["resourceSubscriptions"] = list(owners)
        for method in LISTS:
            if LISTS[method].changed in listen.changes:
                self._seen_by_host.setdefault(method, self.catalogue.results[method])
        self._tell_listen(listen, HOST, "notifications/subscriptions/acknowledged", {"notifications": encode(honoured)})
        for uri, owner in owners.items():
            self._subscribe(self.servers[owner], uri, listen.id, True)
        if extra:
            self._listen_everywhere()

    def _tell_listen(self, listen: Listen, source: str, method: str, params: Mapping[str, Raw | bytes]) -> None:
        meta = object_of(params.get("_meta")) | {SUBSCRIPTION_KEY: Raw(listen.id)}
        body = {**{key: Raw(raw) for key, raw in params.items()}, "_meta": Raw(encode(meta))}
        self._send_host(source, notification_line(method, encode(body)))

    def _close_listen(self, listen: Listen) -> None:
        del self._listens[listen.id]
        for server in self.servers.values():
            for uri in [uri for uri, whose in server.subscriptions.items() if listen.id in whose]:
                self._subscribe(server, uri, listen.id, False)
        if listen.extra:
            self._listen_everywhere()

    # ── our own subscriptions at modern servers ──

    def _listen_everywhere(self) -> None:
        for server in self.servers.values():
            if server.modern and server.open:
                self._listen(server)

    def _listen(self, server: Server) -> None:
        """One subscription for all that anybody wants of it. A wider one is opened before the narrower ends."""
        if server.listens_for is None:
            return
        wanted: dict[str, Any] = {
            key: True for key, capability in CHANGES.values() if offers(server.capabilities, capability, "listChanged")
        }
        if server.subscriptions:
            wanted["resourceSubscriptions"] = list(server.subscriptions)
        for listen in self._listens.values():
            for key, raw in listen.extra.items():
                value = value_of(raw)
                if key == "taskIds" and isinstance(value, list):
                    own = [task for task in value if isinstance(task, str) and self._owns_task(server, task)]
                    value = [*wanted.get(key, []), *own]
                wanted[key] = value
        asked = {key: Raw(encode(value)) for key, value in wanted.items()}
        if server.listen and server.listens_for == asked:
            return
        server.listens_for = asked
        if server.listen:
            server.listened.append(server.listen)
            server.listen = None
        if asked:
            body = encode({"notifications": asked})
            server.listen = self._ask(server, "subscriptions/listen", body, self._listen_ended, patience=FOREVER)
        else:
            self._end_listened(server)

    def _owns_task(self, server: Server, task: str) -> bool:
        return task in self._tasks and self._tasks[task].server == server.name

    def _end_listened(self, server: Server) -> None:
        for pending in server.listened:
            if self.in_flight.get(pending.id):
                self._withdraw(pending, {})
        server.listened.clear()

    def _listen_ended(self, pending: Pending, reply: Reply) -> None:
        """By the server: it is listened to again, after a while; one that knows no subscriptions is left alone."""
        server = self.servers[pending.peer]
        if server.listen is not pending:
            return
        server.listen = None
        self._end_listened(server)
        if reply.error is not None and value_of(object_of(reply.error).get("code")) == METHOD_NOT_FOUND:
            server.listens_for = None
        elif server.open:
            self._set_timer("listen", server.name, self._now + server.listen_wait)
            server.listen_wait = min(LISTEN_AGAIN_MOST, server.listen_wait * 2)

    def _listen_again(self, name: str) -> None:
        if self.servers[name].open and self.servers[name].modern:
            self._listen(self.servers[name])

    def _acknowledged(self, server: Server, message: Envelope) -> None:
        meta = object_of(object_of(message.params).get("_meta"))
        if server.listen and number_of_id(meta.get(SUBSCRIPTION_KEY, Raw(b""))) == server.listen.id:
            server.listen_wait = LISTEN_AGAIN
            self._end_listened(server)

    def _is_usable(self, name: str) -> bool:
        return self.servers[name].open and not self.servers[name].clogged

    def _complete(self, ask: Ask) -> None:
        params = dict(ask.fields)
        ref = fields_of(params.get("ref", b"null"))
        if value_of(ref.get("type")) == "ref/prompt":
            name = text_in(ref, "name")
            route = self.catalogue.prompts.get(name)
            if route is None:
                self._unknown_name(ask, name, "prompt", self.catalogue.prompts)
                return
            owner, ref["name"] = route.server, Raw(encode(route.name))
            params["ref"] = Raw(encode(ref))
        else:
            uri = text_in(ref, "uri")
            found = self.catalogue.templates.get(uri) or self.catalogue.owner_of(uri)
            if found is None:
                if not self._hold(ask):
                    raise RpcError(INVALID_PARAMS, f"no server has a resource template {uri}")
                return
            owner = found
        server = self.servers[owner]  # 2024-11-05 had completion and no capability for it
        if offers(server.capabilities, "completions") or server.revision in ("", LEGACY_REVISIONS[-1]):
            self._forward(ask, owner, params)
        else:
            self._reply(ask, b'{"completion":{"values":[]}}')

    def _set_level(self, ask: Ask) -> None:
        level = text_in(ask.fields, "level")
        if level not in LOG_LEVELS:
            raise RpcError(INVALID_PARAMS, f"params.level must be one of {', '.join(LOG_LEVELS)}")
        self._log_level = level
        for server in self.servers.values():
            if server.open:
                self._tell_level(server)
        self._reply(ask, b"{}")

    def _tell_level(self, server: Server) -> None:
        """Legacy servers have one level: the most talkative that anybody wants now. What a modern host did not ask
        for is sorted out on the way back."""
        wanted = [call.caller.level for call in self.in_flight.owed_by(server.name) if call.caller.modern]
        levels = [level for level in (*wanted, self._log_level) if level]
        level = min(levels, key=LOG_LEVELS.index, default=None)
        if level and level != server.level and not server.modern and offers(server.capabilities, "logging"):
            server.level = level
            self._ask(server, "logging/setLevel", encode({"level": level}), lambda pending, reply: None)

    def _task_of_server(self, ask: Ask) -> None:
        task = text_in(ask.fields, "taskId")
        owner = self._tasks.get(task)
        if owner is None:
            raise RpcError(INVALID_PARAMS, "no server has made a task with this taskId")
        is_result = ask.method == "tasks/result"  # it blocks until the task has ended
        then = functools.partial(self._task_answered, task)
        patience = FOREVER if is_result else None
        self._forward(ask, owner.server, ask.fields, then=then, patience=patience, wrapped=is_result and owner.wrapped)

    def _task_answered(self, task: str, pending: Pending, reply: Reply) -> None:
        status = value_of(object_of(reply.result).get("status"))
        if reply.error is None and (pending.method == "tasks/result" or status in TERMINAL):
            self._end_task_progress(task)
        self._deliver(pending, reply)

    def _list_tasks(self, ask: Ask) -> None:
        if value_of(ask.fields.get("cursor")) is not None:
            raise RpcError(INVALID_PARAMS, "unknown cursor: the list has one page only")
        if not self._hold(ask):
            names = [one.name for one in self.servers.values() if offers(one.capabilities, "tasks", "list")]
            self._list_tasks_of(ask, names, None, [], set())

    def _list_tasks_of(
        self, ask: Ask, names: list[str], cursor: bytes | None, tasks: list[bytes], cursors: set[bytes]
    ) -> None:
        """Page by page, server by server; one that fails contributes nothing."""
        names = [name for name in names if self._is_usable(name)]
        if not names:
            self._reply(ask, b'{"tasks":[%b]}' % b",".join(tasks))
            return

        def page(pending: Pending, reply: Reply) -> None:
            body = object_of(reply.result)
            for raw in items_of(body.get("tasks")):
                task = value_of(object_of(raw).get("taskId"))
                if isinstance(task, str):
                    if task not in self._tasks:
                        self._know_task(self._tasks, task, TaskOwner(pending.peer, False))
                    tasks.append(bytes(raw))
            following = next_cursor(body, cursors)
            rest = names if following else names[1:]
            self._list_tasks_of(ask, rest, following, tasks, cursors if following else set())

        params = {} if cursor is None else {"cursor": Raw(cursor)}
        self._forward(ask, names[0], params, then=page, patience=URI_PROBE_TIMEOUT)

    def _pass_on(self, ask: Ask) -> None:
        """A method of the future: if its params name something that has an owner, the owner is asked."""
        params = dict(ask.fields)
        name, uri, task = (value_of(params.get(key)) for key in ("name", "uri", "taskId"))
        owner = self._tasks[task].server if isinstance(task, str) and task in self._tasks else None
        if owner is None and isinstance(uri, str):
            owner = self.catalogue.owner_of(uri)
        if owner is None and isinstance(name, str):
            route = self.catalogue.tools.get(name) or self.catalogue.prompts.get(name)
            if route:
                owner, params["name"] = route.server, Raw(encode(route.name))
        if owner is None:
            raise RpcError(METHOD_NOT_FOUND, f"Method not found: {ask.method[:TEXT_MOST]}")
        self._forward(ask, owner, params)

    def _hold(self, ask: Ask) -> bool:
        """Keeps a request back while servers that it may concern are being started for the first time."""
        if ask.blamed is None:
            waits = any(server.settling and not server.tried for server in self.servers.values())
        else:
            blamed = self.servers.get(ask.blamed)  # None: it has left the config meanwhile
            waits = blamed is not None and blamed.settling
        if waits:
            if ask.params is not UNSET:
                ask.params = ask.params.copy()
            self._held[ask.id] = ask
        return waits

    def _unknown_name(self, ask: Ask, name: str, noun: str, known: Mapping[str, Route]) -> None:
        if self._hold(ask):
            return
        owner = self._server_by_prefix(name)
        if owner and not owner.known:
            resting = owner.state in (State.IDLE, State.STOPPED, State.BACKOFF)
            if ask.blamed is None and (resting or (owner.state is State.STARTING and not owner.late)):
                ask.blamed = owner.name
                owner.settling = True
                self._use(owner)
                self._hold(ask)
            else:
                self._fail_ask(ask, self._why(owner))
            return
        near = difflib.get_close_matches(name, known, n=1)
        raise RpcError(
            INVALID_PARAMS, f"Unknown {noun}: {name[:TEXT_MOST]}" + (f" (did you mean {near[0]}?)" if near else "")
        )

    def _server_by_prefix(self, name: str) -> Server | None:
        def prefix(server: Server) -> str:
            text = server.name if server.options.prefix is None else server.options.prefix
            return text + self.options.separator if text else "\n"

        owners = [server for server in self.servers.values() if name.startswith(prefix(server))]
        return max(owners, key=lambda server: len(prefix(server)), default=None)

    def _forward(
        self,
        ask: Ask,
        name: str,
        params: Fields,
        *,
        then: Callable[[Pending, Reply], None] | None = None,
        patience: float | None = None,
        wrapped: bool = False,
    ) -> Pending | None:
        """A host's request on its way to its server, where it waits if that is not ready; None if it was refused."""
        server = self.servers[name]
        server.used_at = self._now
        if server.state is State.FAILED or server.late:
            self._fail_ask(ask, self._why(server))
            return None
        if server.clogged:
            self._fail_ask(ask, self._does_not_read(server))
            return None
        seconds = patience or server.options.tool_timeout_sec
        pending = self.in_flight.open(
            name, HOST, ask.id, ask.method, self._now, seconds, patience or seconds * PROGRESS_CAP
        )
        pending.then = then
        pending.wrapped = wrapped
        pending.is_task = "task" in params and not ask.caller.modern
        pending.caller = ask.caller
        pending.token = progress_token(params)
        if ask.method in CARRIERS and (ask.caller.modern or server.modern or not server.open):
            pending.asked, pending.params = ask.fields, params
        self._watch(pending)
        self._to_server(server, pending, params if ask.params is not UNSET or params else UNSET)
        if ask.caller.modern and server.questions and ask.method in CARRIERS:
            self._carry(server, pending)
        return pending

    def _does_not_read(self, server: Server) -> str:
        return f"{server.name} does not read its input: {self.options.outbox_mb:g} MB wait for it already"

    def _to_server(self, server: Server, pending: Pending, params: Fields | UnsetType) -> None:
        """At once, or when it is ready."""
        if server.open:
            self._dispatch(server, pending, params)
        else:
            server.waiting[pending.id] = params
            self._use(server)

    def _dispatch(self, server: Server, pending: Pending, params: Fields | UnsetType) -> None:
        """Writes a host's request in its server's era. Between legacy peers nothing changes but the token."""
        if pending.token is not None:
            assert params is not UNSET
            meta = object_of(params["_meta"]) | {"progressToken": Raw(b"%d" % pending.id)}
            params = params | {"_meta": Raw(encode(meta))}
        if server.modern:
            level = pending.caller.level or (None if pending.caller.modern else self._log_level)
            told = encode(self._told(server, pending.caller))
            params = enveloped({} if params is UNSET else params, pending.caller, told, level)
        elif pending.caller.modern and params is not UNSET:
            if "requestState" in params:
                error = RpcError(INVALID_PARAMS, f"{server.name} has given no requestState: send the call without it")
                self._deliver(self.in_flight.settle(pending.id), Reply(None, error_body(error)))
                return
            params = without_envelope(params)
            if pending.caller.level:
                self._tell_level(server)
        line = UNSET if params is UNSET else encode(params)
        self._send_server(server, request_line(pending.id, pending.method, line))

    def _told(self, server: Server, caller: Caller) -> Fields:
        """What this server is told of the host's capabilities."""
        is_legacy = not (caller.modern or server.modern)
        if server.told_last[:2] != (caller.declared, is_legacy):
            has_model = self._sampling is not None
            told = capabilities_for_server(caller.capabilities, server.options, has_model=has_model)
            if not is_legacy:
                told.pop("tasks", None)  # those of the legacy era are between its peers
            server.told_last = caller.declared, is_legacy, told
        return server.told_last[2]

    def _host_is_ready(self, params: Fields) -> None:
        self._host_ready = True
        for effect in self._for_host:
            self._send_host(effect.source, effect.line)
        self._for_host.clear()

    def _host_cancels(self, params: Fields) -> None:
        id = bytes(params.get("requestId", b""))
        if id in self._listens:
            self._close_listen(self._listens[id])
        elif self._held.pop(id, None) is None and (pending := self.in_flight.asked(HOST, id)):
            self._withdraw(pending, params)
            self._withdraw_questions(pending)
            if pending.round:
                self._end_round(self._rounds[pending.round])

    def _withdraw(self, pending: Pending, params: Fields) -> None:
        """The asker no longer wants the answer: its peer is told, and nobody is answered."""
        self.in_flight.settle(pending.id)
        self._tell_cancelled(pending, params)

    def _tell_cancelled(self, pending: Pending, params: Fields) -> None:
        params = params | {"requestId": Raw(b"%d" % pending.id)}
        line = notification_line("notifications/cancelled", encode(params))
        if pending.peer == HOST:
            self._to_ready_host(pending.asker, line)
        elif pending.peer == MODEL:
            self._effects.append(Sample(line))
        elif pending.peer == LATER:
            self._forget_question(pending)
        elif pending.peer == BRIDGE:
            pass  # its round ends with it
        elif self.servers[pending.peer].waiting.pop(pending.id, None) is None:
            self._send_server(self.servers[pending.peer], line)

    def _withdraw_questions(self, call: Pending) -> None:
        """The host has cancelled a call: what its server asks for it, and for no other, is no longer to be answered.
        Servers do not cancel their own questions when they are cancelled; a model would be paid for nothing."""
        for question in self.in_flight.asked_by(call.peer):
            if call.id in question.calls and not any(self.in_flight.get(other) for other in question.calls):
                self._withdraw(question, {"reason": Raw(b'"the call that it was for is cancelled"')})
                server = self.servers[call.peer]
                error = RpcError(INTERNAL_ERROR, "mcpmux: the host cancelled the call that this was asked for")
                self._answer_server(server, question.asker_id, Reply(None, error_body(error)))
                self._question_over(server)

    def _host_progress(self, params: Fields) -> None:
        self._progress(HOST, params)

    def _host_roots_changed(self, params: Fields) -> None:
        self._host_roots = None
        line = notification_line("notifications/roots/list_changed", encode(params) if params else UNSET)
        for server in self.servers.values():
            if server.state is State.READY and not server.modern and offers(self._legacy.capabilities, "roots"):
                self._send_server(server, line)

    def _host_task_status(self, params: Fields) -> None:
        task = value_of(params.get("taskId"))
        owner = self._host_tasks.get(task) if isinstance(task, str) else None
        if owner:
            if value_of(params.get("status")) in TERMINAL:
                self._end_task_progress(task)
            if self.servers[owner.server].state is State.READY:
                line = notification_line("notifications/tasks/status", encode(params))
                self._send_server(self.servers[owner.server], line)

    def _answer_of_host(self, message: Envelope, size: int) -> None:
        assert message.id is not UNSET
        pending = self.in_flight.get(number_of_id(message.id))
        if self._tracing:
            self._trace("<", HOST, f"answer id={bytes(message.id).decode(errors='replace')}", size)
        if pending is None or pending.peer != HOST:
            self._log("debug", "host: an answer to nothing that is open was dropped")
            return
        self.in_flight.settle(pending.id)
        server = self.servers[pending.asker]
        reply = self._checked(message, "the host")
        if reply.result is not None and pending.method == "roots/list":
            self._host_roots = bytes(reply.result)
        if pending.then:
            pending.then(pending, reply)
            return
        if reply.result is not None:
            self._task_made(self._host_tasks, pending, TaskOwner(server.name, False), reply.result)
        self._answered(pending, reply)

    # ── from the sampler ──

    def _line_of_sampler(self, line: bytes | TooLong) -> None:
        """An answer, or a line for the log."""
        if isinstance(line, TooLong):
            pending = self.in_flight.get(id_in_bad_line(line.head, line.tail))
            if pending and pending.peer == MODEL:
                text = f"mcpmux: the model's answer has {line.size} bytes, more than max_message_mb"
                self._fail(self.in_flight.settle(pending.id), text)
            return
        try:
            message = decode_line(line)
        except BadLine as bad:
            self._log("error", f"the sampler: a line was not read: {bad}")
            return
        if message.method is not UNSET:
            params = object_of(message.params)
            level = value_of(params.get("level"))
            self._log(level if level in LEVELS else "info", str(value_of(params.get("text"))))
            return
        pending = None if message.id is UNSET else self.in_flight.get(number_of_id(message.id))
        if pending and pending.peer == MODEL:  # else it was withdrawn meanwhile
            self.in_flight.settle(pending.id)
            self._answered(pending, self._checked(message, "the sampler"))

    def _answered(self, question: Pending, reply: Reply) -> None:
        """A question's answer on its way to whoever asked it."""
        if question.then:
            question.then(question, reply)
        else:
            server = self.servers[question.asker]
            self._answer_server(server, question.asker_id, reply)
            self._question_over(server)

    # ── from a server ──

    def _from_server(self, server: Server, message: Envelope, size: int) -> None:
        if message.method is UNSET:
            if message.id is UNSET:
                self._log("warning", f"{server.name}: a message that is neither request, notification nor response")
            else:
                self._answer_of_server(server, message, size)
        elif message.id is UNSET:
            if self._tracing:
                self._trace("<", server.name, message.method, size)
            handler = self._server_notifications.get(message.method, Core._pass_to_host)
            handler(self, server, message)
        else:
            if self._tracing:
                self._trace("<", server.name, f"{message.method} id={bytes(message.id).decode(errors='replace')}", size)
            self._question(server, message)

    def _checked(self, message: Envelope, who: str) -> Reply:
        """A response as one of its two kinds; what is neither becomes an error that says so."""
        if message.error is not UNSET:
            if message.result is not UNSET and bytes(message.result) != _NULLED:
                wrong = "an answer with both a result and an error"
            elif error_is_valid(message.error):
                return Reply(None, message.error)
            else:
                wrong = "an error without a code and a message"
        elif message.result is not UNSET and is_object(message.result):
            return Reply(message.result, None)
        else:
            wrong = "a result that is no object"
        return Reply(None, error_body(RpcError(INTERNAL_ERROR, f"{who} sent {wrong}")))

    def _answer_of_server(self, server: Server, message: Envelope, size: int) -> None:
        assert message.id is not UNSET
        number = number_of_id(message.id)
        pending = self.in_flight.get(number)
        if self._tracing:
            self._trace("<", server.name, f"answer id={bytes(message.id).decode(errors='replace')}", size)
        if pending is None or pending.peer != server.name or number in server.waiting:
            level = "warning" if bytes(message.id) == _NULLED else "debug"  # an error with a null id is worth a look
            self._log(level, f"{server.name}: an answer to nothing that is open was dropped")
            return
        reply = self._checked(message, server.name)
        if pending.asker == PARKED:
            self._ended_while_parked(pending, reply)
            return
        self.in_flight.settle(pending.id)
        if pending.round:  # it ended before its questions went out
            self._end_round(self._rounds[pending.round])
        if server.modern and reply.result is not None:
            body = object_of(reply.result)
            kind = value_of(body.get("resultType"), "complete")
            if kind == "input_required" and pending.asker == HOST and pending.method in CARRIERS:
                self._input_required(server, pending, body)
                return
            if "resultType" not in body and pending.caller.modern:  # we may take that for complete, and not say it
                reply = Reply(Raw(modern_result(pending.method, reply.result, server.info)), None)
            is_of_extension = isinstance(kind, str) and offers(pending.caller.capabilities, "extensions")
            if kind != "complete" and (kind == "input_required" or not is_of_extension):
                wrong = f"{server.name} sent a result of type {str(kind)[:TEXT_MOST]!r}, which nobody here knows"
                reply = Reply(None, error_body(RpcError(INTERNAL_ERROR, wrong)))
        self._pass_answer(server, pending, reply)

    def _pass_answer(self, server: Server, pending: Pending, reply: Reply) -> None:
        """What a server has answered is on its way, unless it is a question in the words of 2025-11-25."""
        error = object_of(reply.error)
        is_refusal = value_of(error.get("code")) == URL_ELICITATION_REQUIRED
        if is_refusal and pending.caller.modern and pending.method in CARRIERS and not server.modern:
            self._pages_required(server, pending, error)
        elif pending.then:
            pending.then(pending, reply)
        else:
            self._deliver(pending, reply)

    def _deliver(self, pending: Pending, reply: Reply) -> None:
        """A server's answer on its way to the host."""
        server = self.servers[pending.peer]
        if reply.result is not None:
            self._task_made(self._tasks, pending, TaskOwner(server.name, pending.wrapped), reply.result)
            if pending.wrapped:
                reply = Reply(Raw(wrap_structured(reply.result)), None)
        elif reply.error is not None and not pending.caller.modern:
            reply = Reply(None, named_pages(reply.error, server.name))
        method = "" if pending.is_task else pending.method
        self._answer_host(server.name, pending.asker_id, method, pending.caller, reply, server=server)

    def _task_made(self, tasks: dict[str, TaskOwner], pending: Pending, owner: TaskOwner, result: Raw) -> None:
        """The answer to a request with a task names it; progress goes on under the request's token until it ends."""
        task = value_of(object_of(object_of(result).get("task")).get("taskId")) if pending.is_task else None
        if offers(pending.caller.capabilities, "extensions", TASKS_EXTENSION):
            body = object_of(result)
            task = value_of(body.get("taskId")) if value_of(body.get("resultType")) == "task" else None
        if isinstance(task, str):
            self._know_task(tasks, task, owner)
            if pending.token:
                self._task_progress[pending.id] = (task, pending)
                if len(self._task_progress) > KNOWN_TASKS:
                    del self._task_progress[next(iter(self._task_progress))]

    def _question(self, server: Server, message: Envelope) -> None:
        """A request from a server. https://modelcontextprotocol.io/specification/2025-11-25/client"""
        assert message.id is not UNSET and message.method is not UNSET
        id, method, params = bytes(message.id), message.method, message.params
        if not is_id(id) or server.modern:
            why = "in the modern era servers send none" if server.modern else "its id is neither string nor number"
            self._log("warning", f"{server.name}: a request was dropped: {why}")
            return
        try:
            if method == "ping":
                self._answer_server(server, id, Reply(Raw(b"{}"), None))
                return
            if self.in_flight.asked(server.name, id):
                raise RpcError(INVALID_REQUEST, "a request with this id is still open")
            if method in HOST_TASK_METHODS:
                self._ask_host_about_task(server, id, method, params)
                return
            if method not in QUESTIONS:
                raise RpcError(METHOD_NOT_FOUND, f"Method not found: {method[:TEXT_MOST]}")
            call = self._call_of(server)
            caller = call.caller if call else self._legacy if self.revision else server.starter
            verdict, policy = self._judge(server, method, params, caller), server.options.sampling
            if isinstance(verdict, Answer):
                self._answer_server(server, id, Reply(Raw(verdict.result), None))
            elif isinstance(verdict, Locally):
                self._sample(server, id, params)
            elif self._is_listing(server) and method == QUESTIONS[0] and self._sampling and policy == "auto":
                self._sample(server, id, params)  # the host may not be asked now, but it can be done without
            elif self._is_listing(server):
                self._answer_server(server, id, self._from_memory(server, method))
            elif call and not call.caller.modern:
                self._ask_host(server, id, method, verdict.params)
            elif call or not self.revision or self._parked_at(server):
                question = self.in_flight.open(LATER, server.name, id, method, self._now, FOREVER, FOREVER)
                question.params = object_of(params)
                if call:
                    self._join(server, call, question, verdict.params)
                    self._asked(server)
                else:
                    self._leave(server, question)
            else:
                self._ask_host(server, id, method, verdict.params)
        except RpcError as error:
            self._answer_server(server, id, Reply(None, error_body(error)))

    def _judge(
        self, server: Server, method: str, params: Raw | UnsetType, caller: Caller
    ) -> Forward | Answer | Locally:
        told = self._told(server, caller) if server.modern else server.told
        has_model = self._sampling is not None and not offers(told, "extensions", TASKS_EXTENSION)
        host = caller.capabilities
        return judge_question(method, params, server.name, server.options, host, told, has_model=has_model)

    def _is_listing(self, server: Server) -> bool:
        """Whether the server may be asking before it answers what somebody waits for. A call that it has too is a
        better reason for its question, unless the host waits for lists."""
        owed = [one for one in self.in_flight.owed_by(server.name) if not self._is_waiting(one)]
        is_called = not self._held and any(one.method in CARRIERS and one.asker == HOST for one in owed)
        return any(one.method == "completion/complete" or (one.method in LISTS and not is_called) for one in owed)

    def _from_memory(self, server: Server, method: str) -> Reply:
        """For a server that may be waiting for this before it answers us, while the host waits for us: if the host
        were asked, nobody would move."""
        roots = self._host_roots or (table_roots(server.options) if server.options.roots else None)
        if method == "roots/list" and roots:
            return Reply(Raw(roots), None)
        text = f"the host cannot be asked while {server.name} is listing or completing"
        return Reply(None, error_body(RpcError(INTERNAL_ERROR, text)))

    # ── the bridge ──

    def _call_of(self, server: Server) -> Pending | None:
        """The call in which a legacy server asks: its oldest one that is not parked."""
        owed = self.in_flight.owed_by(server.name)
        return next((call for call in owed if call.asker == HOST and call.method in CARRIERS), None)

    def _parked_at(self, server: Server) -> bool:
        return any(call.asker == PARKED for call in self.in_flight.owed_by(server.name))

    def _open_round(self, server: Server, call: Pending, phase: Phase) -> Round:
        self._minted += 1
        opened = self._rounds[self._minted] = Round(self._minted, server.name, call, phase)
        return opened

    def _close_round(self, ended: Round, turn: Turn) -> None:
        ended.phase = next_phase(ended.phase, turn)
        if ended.phase is not Phase.OVER:
            raise Bug(f"a round is {ended.phase.name} and not over")
        del self._rounds[ended.id]
        self._round_of_token.pop(ended.token, None)
        self._set_timer("round", str(ended.id), None)
        ended.call.round = 0

    def _end_round(self, ended: Round) -> None:
        """Without an outcome: what is open is withdrawn; a legacy server's own questions go to another of its calls, or
        wait for the next one."""
        self._close_round(ended, Turn.END)
        self._let_go(ended)

    def _let_go(self, ended: Round) -> None:
        server = self.servers[ended.server]
        for question in ended.questions.values():
            pending = self.in_flight.get(question.number)
            if pending and pending.peer == LATER:
                self._leave(server, pending)
            elif pending:
                self._withdraw(pending, {})
        call = self._call_of(server)
        if server.questions and call and call.caller.modern:
            self._carry(server, call)

    def _join(self, server: Server, call: Pending, question: Pending, params: Raw | bytes | UnsetType) -> None:
        """A legacy server's question becomes part of what the modern host of this call is asked."""
        shown = embedded(question.method, params)
        others = self._rounds[call.round].questions.values() if call.round else ()
        if sum(len(bytes(one)) for one in (shown, *(other.shown for other in others))) > self._host_limit - EDGE:
            self.in_flight.settle(question.id)
            raise RpcError(INVALID_PARAMS, "the request is larger than hosts take")
        if call.round:
            joined = self._rounds[call.round]
        else:
            joined = self._open_round(server, call, Phase.ASKING)
            call.round = joined.id
            self._set_timer("round", str(joined.id), self._now + ASK_TOGETHER)
        joined.questions[f"{server.name}-{question.id}"] = Question(shown, question.id)
        question.round = joined.id
        question.calls = self._calls_of(server, encode(question.params)) or (call.id,)  # which of them, is a guess

    def _leave(self, server: Server, question: Pending) -> None:
        """A question outside any call, or with all calls parked: it waits for the next one."""
        question.round, question.calls = 0, ()
        server.questions.append(question.id)
        self._set_timer("orphans", server.name, self._now + ORPHAN_WAIT)

    def _carry(self, server: Server, call: Pending) -> None:
        """A call that can take along what waits for one."""
        numbers, server.questions = server.questions, []
        for question in [found for number in numbers if (found := self.in_flight.get(number))]:
            params = Raw(encode(question.params or {}))
            try:
                verdict = self._judge(server, question.method, params, call.caller)
                if isinstance(verdict, Forward):
                    self._join(server, call, question, verdict.params)
                    continue
                if isinstance(verdict, Locally):
                    self.in_flight.settle(question.id)
                    self._sample(server, question.asker_id, params)
                    continue
                reply = Reply(Raw(verdict.result), None)
            except RpcError as error:
                reply = Reply(None, error_body(error))
            if self.in_flight.get(question.id):
                self.in_flight.settle(question.id)
            self._answered(question, reply)

    def _drop_orphans(self, name: str) -> None:
        """Nobody called this server for a while. While one of its calls is parked, there is hope."""
        server = self.servers[name]
        if self._parked_at(server):
            self._set_timer("orphans", name, self._now + ORPHAN_WAIT)
            return
        numbers, server.questions = server.questions, []
        for question in [found for number in numbers if (found := self.in_flight.get(number))]:
            text = f"mcpmux: the host can be asked only while it calls {name}, and it has not called within "
            error = RpcError(INTERNAL_ERROR, text + f"{ORPHAN_WAIT:g} s")
            self._answered(self.in_flight.settle(question.id), Reply(None, error_body(error)))

    def _forget_question(self, question: Pending) -> None:
        """It was withdrawn: its answer, if it still comes, is dropped."""
        server = self.servers[question.asker]
        if question.id in server.questions:
            server.questions.remove(question.id)
        found = self._rounds.get(question.round)
        if found:
            found.questions = {key: one for key, one in found.questions.items() if one.number != question.id}
            if found.phase is Phase.ASKING and not found.questions:
                self._end_round(found)

    def _round_due(self, name: str) -> None:
        due = self._rounds[int(name)]
        match due.phase:
            case Phase.ASKING:
                call, id = due.call, due.call.asker_id
                self.in_flight.hand_over(call, PARKED, b"%d" % due.id)
                due.phase = next_phase(due.phase, Turn.DUE)
                self._put_to_host(due, id, call.caller)
            case Phase.PARKED:
                self._expire(due)
            case _:
                self._try_again(due, Turn.DUE)

    def _put_to_host(self, parked: Round, id: bytes, caller: Caller) -> None:
        """Ends a host's request with the questions that are open, and a state that only this round's retry can have."""
        self._minted += 1
        parked.token = f"{STATE_PREFIX}{parked.id}.{self._minted}.{self._secret()}"
        self._round_of_token[parked.token] = parked.id
        self._set_timer("round", str(parked.id), self._now + self.options.input_timeout_sec)
        shown = {key: one.shown for key, one in parked.questions.items() if one.is_open and bytes(one.shown)}
        result = input_required(shown, parked.token)
        self._answer_host(parked.server, id, "", caller, Reply(result, None), as_it_is=True)

    def _retry(self, ask: Ask, token: str) -> None:
        """The host came back with a state of ours."""
        found = self._rounds.get(self._round_of_token.get(token, 0))
        if found is None:
            text = "this requestState is of no use (any more): send the request again without it"
            raise RpcError(INVALID_PARAMS, text)
        call = found.call
        if identity(ask.method, ask.fields) != identity(call.method, call.asked or {}):
            raise RpcError(INVALID_PARAMS, "this requestState belongs to another request: method, name or arguments")
        server = self.servers.get(found.server)
        if server is None:
            self._close_round(found, Turn.END)
            gone = found.kept or failure(call.method, f"mcpmux: {found.server} was removed from the config")
            self._answer_host(HOST, ask.id, ask.method, ask.caller, gone)
            return
        del self._round_of_token[token]
        responses = object_of(ask.fields.get("inputResponses"))
        for key, question in list(found.questions.items()):
            if not question.is_open or not bytes(question.shown):
                continue
            reply = brought(object_of(question.shown), responses.get(key), ask.caller.capabilities)
            pending = self.in_flight.get(question.number)
            if reply is None:
                continue
            question.is_open = False
            if pending is None:
                self._gathered(found, key, call, reply)
            else:
                if pending.method == "roots/list" and reply.result is not None:
                    self._host_roots = bytes(reply.result)
                self._answered(self.in_flight.settle(pending.id), reply)
        if any(one.is_open and bytes(one.shown) for one in found.questions.values()) and not found.kept:
            found.phase = next_phase(found.phase, Turn.PARTIAL)
            self._put_to_host(found, ask.id, ask.caller)
            return
        found.phase = next_phase(found.phase, Turn.RETRY)
        self._set_timer("round", str(found.id), None)
        if found.kept or self.in_flight.get(call.id) is call:
            self._go_on(server, found, ask)
            return
        # The call has ended at its server: it is to be made again, as the host has it now.
        if call.params is not None:
            call.params = call.params | ({"_meta": ask.fields["_meta"]} if "_meta" in ask.fields else {})
        call.asked, call.progress = ask.fields, -FOREVER
        self._wait_for(found, ask.id, ask.caller)
        declined = [key for key, raw in found.answers.items() if value_of(object_of(raw).get("action")) != "accept"]
        if found.pages and declined:
            self._fail_round(found, f"mcpmux: {server.name} needs a page to be visited first, and that was declined")
        elif not all(found.pages.values()):
            found.phase = next_phase(found.phase, Turn.VISIT)
            self._set_timer("round", str(found.id), self._now + URL_WAIT)
        elif not any(one.is_open for one in found.questions.values()):
            self._try_again(found, Turn.COMPLETE)

    def _wait_for(self, opened: Round, id: bytes, caller: Caller) -> None:
        """A request of the host's stays open for this round."""
        entry = self.in_flight.open(BRIDGE, HOST, id, opened.call.method, self._now, FOREVER, FOREVER)
        entry.caller, entry.round = caller, opened.id
        opened.waiting = entry.id

    def _go_on(self, server: Server, found: Round, ask: Ask) -> None:
        """The retry stands for the parked call from now on, or gets what that has ended with."""
        self._close_round(found, Turn.COMPLETE)
        call = found.call
        call.caller, call.token, call.progress = ask.caller, progress_token(ask.fields), -FOREVER
        if found.kept:
            call.asker, call.asker_id = HOST, ask.id
            if server.modern:  # its own answers are never kept: this is a failure of ours
                self._answer_host(server.name, ask.id, ask.method, ask.caller, found.kept)
            else:
                self._let_go(found)
                self._pass_answer(server, call, found.kept)
            return
        self.in_flight.hand_over(call, HOST, ask.id)
        call.deadline = min(self._now + call.patience, call.limit)
        if server.questions:
            self._carry(server, call)

    def _ended_while_parked(self, call: Pending, reply: Reply) -> None:
        """Its server has answered, or died: the retry gets it."""
        kept = Reply(None if reply.result is None else reply.result.copy(), reply.error and bytes(reply.error))
        self._rounds[call.round].kept = kept
        self.in_flight.settle(call.id)

    def _expire(self, parked: Round) -> None:
        """The host never came back."""
        self._close_round(parked, Turn.DUE)
        text = f"mcpmux: nobody has answered within {self.options.input_timeout_sec:g} s (input_timeout_sec)"
        for question in parked.questions.values():
            pending = self.in_flight.get(question.number)
            if pending and pending.peer == LATER:
                error = error_body(RpcError(INTERNAL_ERROR, text))
                self._answered(self.in_flight.settle(pending.id), Reply(None, error))
            elif pending:
                self._withdraw(pending, {})
        if self.in_flight.get(parked.call.id) is parked.call:
            self._withdraw(parked.call, {"reason": Raw(encode(text))})
        self._log("info", f"{parked.server}: the host did not come back with what {parked.call.method} needs")

    def _input_required(self, server: Server, call: Pending, body: Fields) -> None:
        """A modern server has ended a call with questions."""
        state, requests = body.get("requestState"), object_of(body.get("inputRequests"))
        try:
            if state is None and not requests:
                raise RpcError(INTERNAL_ERROR, "input_required without inputRequests and requestState")
            if call.rounds >= MAX_ROUNDS:
                raise RpcError(INTERNAL_ERROR, f"input_required more than {MAX_ROUNDS} times")
            verdicts: dict[str, tuple[str, Fields, Forward | Answer | Locally]] = {}
            for key, raw in requests.items():
                request = object_of(raw)
                method = value_of(request.get("method"))
                if method not in QUESTIONS:
                    raise RpcError(INTERNAL_ERROR, f"an input request {str(method)[:100]!r}, which nobody knows")
                verdicts[key] = method, request, self._judge(server, method, request.get("params", UNSET), call.caller)
        except RpcError as wrong:
            text = f"mcpmux: {server.name} asked in vain: {wrong}"
            self._answer_host(server.name, call.asker_id, call.method, call.caller, failure(call.method, text))
            return
        forwarded = {key: one.params for key, (_, _, one) in verdicts.items() if isinstance(one, Forward)}
        is_ours = state is not None and str(value_of(state)).startswith(STATE_PREFIX)
        if call.caller.modern and len(forwarded) == len(verdicts) and not is_ours:
            # As it is, but for the server's name in what a person reads.
            for key, (method, request, _) in verdicts.items():
                if method == "elicitation/create":
                    requests[key] = Raw(encode(request | {"params": Raw(forwarded[key] or b"{}")}))
                    body["inputRequests"] = Raw(encode(requests))
            result = Reply(Raw(encode(body)), None)
            self._answer_host(server.name, call.asker_id, "", call.caller, result, as_it_is=True)
            return
        parks = call.caller.modern and bool(forwarded or is_ours)
        opened = self._open_round(server, call, Phase.PARKED if parks else Phase.GATHERING)
        opened.state = None if state is None else state.copy()
        if not parks:
            self._wait_for(opened, call.asker_id, call.caller)
        for key, (method, request, verdict) in verdicts.items():
            if self._rounds.get(opened.id) is None or opened.kept:
                break  # one of them has failed already
            question = opened.questions[key] = Question(Raw(b""))
            asker_id = encode([opened.id, key])  # no id of its own can be a list
            then = functools.partial(self._gathered, opened, key)
            try:
                match verdict:
                    case Answer(result):
                        opened.answers[key], question.is_open = Raw(result), False
                    case Locally():
                        question.number = self._sample(server, asker_id, request.get("params", UNSET), then).id
                    case Forward(params) if parks:
                        has_params: Fields = {} if params is UNSET else {"params": Raw(params)}
                        question.shown = Raw(encode(request | has_params))
                    case Forward(params):
                        fields = object_of(params)
                        if value_of(fields.get("mode")) == "url":  # TypeScript hosts refuse it without
                            params = encode(fields | {"elicitationId": Raw(encode(f"mcpmux-{opened.id}-{key}"))})
                        question.number = self._ask_host(server, asker_id, method, params, then).id
                pending = self.in_flight.get(question.number)
                if pending:
                    pending.round = opened.id
            except RpcError as wrong:
                self._gathered(opened, key, call, Reply(None, error_body(wrong)))
        if self._rounds.get(opened.id) is None:
            return
        if opened.kept:  # the host need not be asked the rest
            self._close_round(opened, Turn.END)
            self._answer_host(server.name, call.asker_id, call.method, call.caller, opened.kept)
        elif parks:
            self._put_to_host(opened, call.asker_id, call.caller)
        elif not verdicts:
            self._set_timer("round", str(opened.id), self._now + STATE_ONLY_WAIT)
        elif not any(one.is_open for one in opened.questions.values()):
            self._try_again(opened, Turn.COMPLETE)

    def _gathered(self, found: Round, key: str, pending: Pending, reply: Reply) -> None:
        """An answer for a modern server. It can be told of no error: then its call ends with that."""
        found.questions[key].is_open = False
        if reply.result is not None:
            found.answers[key] = reply.result.copy()
            if found.phase is Phase.GATHERING and not any(one.is_open for one in found.questions.values()):
                self._try_again(found, Turn.COMPLETE)
            return
        said = str(value_of(object_of(reply.error).get("message"), "an error"))
        text = f"mcpmux: {found.server} needs an answer that it cannot have: {said[:TEXT_MOST]}"
        if found.waiting:
            self._fail_round(found, text)
        else:
            found.kept = failure(found.call.method, text)
            self._withdraw_open(found)

    def _withdraw_open(self, found: Round) -> None:
        for question in found.questions.values():
            pending = self.in_flight.get(question.number)
            if question.is_open and pending:
                question.is_open = False
                self._withdraw(pending, {})

    def _fail_round(self, failed: Round, text: str) -> None:
        self._close_round(failed, Turn.END)
        self._withdraw_open(failed)
        entry = self.in_flight.settle(failed.waiting)
        self._answer_host(failed.server, entry.asker_id, entry.method, entry.caller, failure(entry.method, text))

    def _try_again(self, found: Round, turn: Turn) -> None:
        """All that its server wanted is there: the call is made once more."""
        self._close_round(found, turn)
        entry, call = self.in_flight.settle(found.waiting), found.call
        apart = ("inputResponses", "requestState")
        params = {key: raw for key, raw in (call.params or {}).items() if key not in apart}
        if found.answers and not found.pages:
            params["inputResponses"] = Raw(encode(found.answers))
        if found.state is not None:
            params["requestState"] = found.state
        ask = Ask(entry.asker_id, call.method, Raw(b"{}"), fields=call.asked or {}, caller=entry.caller)
        again = self._forward(ask, found.server, params, then=call.then, wrapped=call.wrapped)
        if again:
            again.rounds, again.progress = call.rounds + 1, call.progress

    def _pages_required(self, server: Server, call: Pending, error: Fields) -> None:
        """-32042: a legacy server has ended a call until the person has visited some pages (2025-11-25,
        client/elicitation). A modern host is asked to have them visited, and its retry is a new call."""
        pages = [object_of(one) for one in items_of(object_of(error.get("data")).get("elicitations"))]
        if not pages or not server.options.elicitation:
            self._deliver(call, Reply(None, encode(error)))
            return
        if "url" not in elicitation_modes(call.caller.capabilities):
            data = {"requiredCapabilities": {"elicitation": {"url": {}}}}
            missing = RpcError(MISSING_CAPABILITY, f"{server.name} needs the person to visit a page first", data)
            reply = Reply(None, error_body(missing))
            self._answer_host(server.name, call.asker_id, call.method, call.caller, reply, as_it_is=True)
            return
        opened = self._open_round(server, call, Phase.PARKED)
        opened.pages = {}
        for number, page in enumerate(pages):
            name = value_of(page.get("elicitationId"))
            if isinstance(name, str):
                opened.pages[name] = False
            message = encode(f"[{server.name}] {value_of(page.get('message'), '')}")
            shown = embedded("elicitation/create", encode(page | {"mode": Raw(b'"url"'), "message": Raw(message)}))
            opened.questions[f"{server.name}-{number}"] = Question(shown)
        opened.pages = opened.pages or {"": False}
        self._put_to_host(opened, call.asker_id, call.caller)

    def _page_visited(self, server: Server, message: Envelope) -> None:
        name = value_of(object_of(message.params).get("elicitationId"))
        for found in list(self._rounds.values()):
            if found.server == server.name and isinstance(name, str) and name in found.pages:
                found.pages[name] = True
                if found.phase is Phase.HELD and all(found.pages.values()):
                    self._try_again(found, Turn.COMPLETE)
        self._pass_to_host(server, message)

    # ── questions to a legacy host and to the model ──

    def _ask_host(
        self,
        server: Server,
        id: bytes,
        method: str,
        params: Raw | bytes | UnsetType,
        then: Callable[[Pending, Reply], None] | None = None,
    ) -> Pending:
        seconds = self.options.input_timeout_sec
        pending = self.in_flight.open(HOST, server.name, id, method, self._now, seconds, seconds)
        pending.then = then
        pending.calls = self._calls_of(server, params)
        fields = object_of(params)
        pending.is_task = "task" in fields
        pending.token = progress_token(fields)
        if pending.token is not None:
            meta = object_of(fields["_meta"]) | {"progressToken": Raw(b"%d" % pending.id)}
            params = encode(fields | {"_meta": Raw(encode(meta))})
        self._watch(pending)
        line = request_line(pending.id, method, params)
        if len(line) > self._host_limit:
            self.in_flight.settle(pending.id)
            raise RpcError(INVALID_PARAMS, f"the request has {len(line)} bytes, more than hosts take")
        self._asked(server)
        self._to_ready_host(server.name, line, is_request=True)
        return pending

    def _asked(self, server: Server) -> None:
        """Calls wait until what a server asks first is answered, but not for ever."""
        if server.state is State.READY and not server.open:
            self._set_timer("open", server.name, server.up_at + server.options.startup_timeout_sec)

    def _calls_of(self, server: Server, params: Raw | bytes | UnsetType) -> tuple[int, ...]:
        """The host's calls that this server knows: a question does not say in which of them it is asked, unless it
        is asked in a task."""
        if server.modern or _RELATED_TASK in object_of(object_of(params).get("_meta")):
            return ()  # those of a modern server end with their round
        owed = [call for call in self.in_flight.owed_by(server.name) if not self._is_waiting(call)]
        return tuple(call.id for call in owed if call.asker == HOST and call.method in CARRIERS)

    def _sample(
        self,
        server: Server,
        id: bytes,
        params: Raw | UnsetType,
        then: Callable[[Pending, Reply], None] | None = None,
    ) -> Pending:
        """A question for the local model, within the limits that are a server's own."""
        assert self._sampling
        limits, times = self._sampling.limits, server.sampled
        busy = sum(one.asker == server.name for one in self.in_flight.owed_by(MODEL))
        if busy >= limits.max_concurrency:
            text = f"{busy} requests of {server.name} are open; free again when one has ended"
            raise limit_reached("max_concurrency", text)
        while times and times[0] <= self._now - 60:
            times.popleft()
        if len(times) >= limits.requests_per_minute:
            wait = math.ceil(times[0] + 60 - self._now)
            text = f"{server.name} has made {len(times)} requests in a minute; free again in {wait} s"
            raise limit_reached("requests_per_minute", text, wait)
        times.append(self._now)
        seconds = self._sampling.timeout_sec + SAMPLER_SLACK
        pending = self.in_flight.open(MODEL, server.name, id, QUESTIONS[0], self._now, seconds, seconds)
        pending.calls = self._calls_of(server, params)
        pending.then = then
        self._watch(pending)
        self._asked(server)
        body: Fields = {"server": Raw(encode(server.name)), "params": Raw(b"{}") if params is UNSET else params}
        self._effects.append(Sample(request_line(pending.id, QUESTIONS[0], encode(body))))
        return pending

    def _ask_host_about_task(self, server: Server, id: bytes, method: str, params: Raw | UnsetType) -> None:
        """A server follows a task that the host made for it; another server's tasks are none of its business."""
        if not offers(server.told, "tasks"):
            raise RpcError(METHOD_NOT_FOUND, "the host declared no tasks")

        def is_own(task: Any) -> bool:
            return isinstance(task, str) and task in self._host_tasks and self._host_tasks[task].server == server.name

        if method == "tasks/list":

            def own_tasks(pending: Pending, reply: Reply) -> None:
                if reply.result is not None:
                    body = object_of(reply.result)
                    mine = [
                        raw for raw in items_of(body.get("tasks")) if is_own(value_of(object_of(raw).get("taskId")))
                    ]
                    body["tasks"] = Raw(encode(mine))
                    reply = Reply(Raw(encode(body)), None)
                self._answer_server(server, id, reply)
                self._question_over(server)

            self._ask_host(server, id, method, params, own_tasks)
        elif is_own(text_in(fields_of(params), "taskId")):
            self._ask_host(server, id, method, params)
        else:
            raise RpcError(INVALID_PARAMS, "the host has made no task with this taskId for this server")

    def _question_over(self, server: Server) -> None:
        """What it asked is answered: its calls' clocks start anew, and waiting ones go out after some quiet."""
        if server.state is not State.READY:
            return
        for pending in self.in_flight.owed_by(server.name):
            pending.deadline = max(pending.deadline, min(self._now + pending.patience, pending.limit))
        if not server.open and all(one.id in server.questions for one in self.in_flight.asked_by(server.name)):
            self._set_timer("open", server.name, self._now + QUIET_AFTER_INITIALIZED)

    def _server_progress(self, server: Server, message: Envelope) -> None:
        if message.params is not UNSET:
            self._progress(server.name, object_of(message.params))

    def _progress(self, peer: str, params: Fields) -> None:
        """Progress goes to whoever asked, under the token it gave, if its request is still open and the value rises:
        anything else tears down some hosts' transport."""
        number = number_of_id(params.get("progressToken", Raw(b"")))
        pending = self.in_flight.get(number)
        if pending is None and number in self._task_progress:
            pending = self._task_progress[number][1]
        value = value_of(params.get("progress"))
        if pending is None or pending.peer != peer or pending.token is None:
            self._log("debug", f"{peer or 'host'}: progress for nothing that is open was dropped")
            return
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > pending.progress:
            self._log("debug", f"{peer or 'host'}: progress that does not rise was dropped")
            return
        pending.progress = value
        pending.deadline = min(self._now + pending.patience, pending.limit)
        params["progressToken"] = Raw(pending.token)
        line = notification_line("notifications/progress", encode(params))
        if pending.asker == HOST and pending.caller.modern:
            self._send_host(peer, line)
        elif pending.asker == HOST:
            self._to_ready_host(peer, line)
        elif pending.asker == PARKED:
            pass  # that host request has ended
        elif self.servers[pending.asker].state is State.READY and not self.servers[pending.asker].modern:
            self._send_server(self.servers[pending.asker], line)

    def _server_logs(self, server: Server, message: Envelope) -> None:
        """To a modern host only while a call of its that wants such messages is at this server."""
        params = object_of(message.params)
        logger = value_of(params.get("logger"))
        params["logger"] = Raw(encode(f"{server.name}/{logger}" if isinstance(logger, str) and logger else server.name))
        line = notification_line("notifications/message", encode(params))
        level = value_of(params.get("level"))
        wanted = [call.caller.level for call in self.in_flight.owed_by(server.name) if call.asker == HOST]
        if self.revision:
            self._to_ready_host(server.name, line)
        elif any(one and level in LOG_LEVELS[LOG_LEVELS.index(one) :] for one in wanted):
            self._send_host(server.name, line)

    def _resource_updated(self, server: Server, message: Envelope) -> None:
        """To those who subscribed to it; of a sub-resource all hear who subscribed at this server."""
        params = object_of(message.params)
        uri = value_of(params.get("uri"))
        whose = server.subscriptions.get(uri) if isinstance(uri, str) else None
        if whose is None:
            whose = {one for group in server.subscriptions.values() for one in group}
        if b"" in whose:
            self._pass_to_host(server, message)
        for listen in [self._listens[one] for one in whose if one in self._listens]:
            self._tell_listen(listen, server.name, "notifications/resources/updated", params)

    def _server_cancels(self, server: Server, message: Envelope) -> None:
        params = object_of(message.params)
        id = bytes(params.get("requestId", b""))
        if server.modern:  # there it ends a subscription of ours
            number = number_of_id(id)
            if server.listen and server.listen.id == number:
                self._listen_ended(self.in_flight.settle(server.listen.id), Reply(Raw(b"{}"), None))
        elif pending := self.in_flight.asked(server.name, id):
            self._withdraw(pending, params)
            self._question_over(server)

    def _task_status(self, server: Server, message: Envelope) -> None:
        params = object_of(message.params)
        task = value_of(params.get("taskId"))
        owner = self._tasks.get(task) if isinstance(task, str) else None
        if owner and owner.server == server.name and value_of(params.get("status")) in TERMINAL:
            self._end_task_progress(task)
        self._pass_to_host(server, message)

    def _know_task(self, tasks: dict[str, TaskOwner], task: str, owner: TaskOwner) -> None:
        if tasks.get(task, owner).server != owner.server:
            self._log("warning", f"{owner.server}: its task {task!r} has the id of one of {tasks[task].server}")
        tasks[task] = owner
        if len(tasks) > KNOWN_TASKS:
            del tasks[next(iter(tasks))]

    def _end_task_progress(self, task: str) -> None:
        for number in [number for number, (of, _) in self._task_progress.items() if of == task]:
            del self._task_progress[number]

    def _pass_to_host(self, server: Server, message: Envelope) -> None:
        """What only legacy hosts, or extensions, know."""
        assert message.method is not UNSET
        params = object_of(message.params)
        meta = object_of(params.get("_meta"))
        if server.modern and meta.pop(SUBSCRIPTION_KEY, None) is not None:
            task = value_of(params.get("taskId"))
            for listen in list(self._listens.values()):
                tasks = value_of(listen.extra.get("taskIds"))
                if task in tasks if isinstance(tasks, list) else listen.extra:
                    self._tell_listen(listen, server.name, message.method, params)
            params["_meta"] = Raw(encode(meta))
            if not meta:
                del params["_meta"]
            self._to_ready_host(server.name, notification_line(message.method, encode(params)))
        else:
            self._to_ready_host(server.name, notification_line(message.method, message.params))

    def _list_changed(self, server: Server, message: Envelope) -> None:
        """Read again after some quiet. Before its first list there is nothing to read again."""
        if not server.open:
            return
        if not server.changed:
            server.changed_since = self._now
        if server.listed_at is not None and self._now - server.listed_at > RELIST_CALM:
            server.quiet = RELIST_QUIET
        server.changed |= {method for method, kind in LISTS.items() if kind.changed == message.method}
        self._relist_soon(server)

    def _relist_soon(self, server: Server) -> None:
        at_most = server.changed_since + max(RELIST_AT_MOST, server.quiet)
        self._set_timer("relist", server.name, min(self._now + server.quiet, at_most))

    # ── a server's life ──

    def _use(self, server: Server) -> None:
        if self._ending:
            return
        match server.state:
            case State.IDLE | State.STOPPED:
                server.wanted = False
                server.state = next_state(server.state, Life.USE)
                server.run += 1
                server.settling = server.settling or not server.known
                server.starter = self._caller
                server.trying = ""
                server.started_at = self._now
                server.way, server.trying = [], ""
                self._log("debug", f"= {server.name} starting")
                self._effects.append(Start(server.name, server.run))
                self._set_timer("late", server.name, self._now + server.options.startup_timeout_sec)
            case State.BACKOFF | State.STOPPING:
                server.wanted = True
            case State.STARTING | State.READY | State.FAILED:
                pass

    def _greet(self, server: Server) -> None:
        """The process runs: what was found of its era is used, or else it is looked for."""
        if not server.way and server.options.protocol:
            server.way = [server.options.protocol]
        elif not server.way:
            ways = WAYS["modern" if server.starter.modern else "legacy"]
            server.way = [server.era, FRESH, *ways] if server.era else [*ways]
        self._say_hello(server, "")

    def _say_hello(self, server: Server, trouble: str) -> None:
        """Tries the next way; `trouble` is what the former one came to."""
        if not server.way:
            self._give_up(server, trouble)
            return
        server.trying = server.way.pop(0)
        self._set_timer("silent", server.name, None)
        if server.trying == FRESH:
            server.again = True
            server.state = next_state(server.state, Life.STOP)
            self._effects.append(Stop(server.name, server.run))
        elif server.trying == "modern":
            server.modern = True
            self._ask(server, "server/discover", UNSET, self._discovered, patience=FOREVER)
            if server.way and server.way[0] == "legacy":
                self._set_timer("silent", server.name, self._now + DISCOVER_SILENCE)
        else:
            server.modern = False
            server.told = self._told(server, server.starter)
            revision = LEGACY_REVISIONS[0] if server.starter.modern else self.revision or LEGACY_REVISIONS[0]
            params = {
                "protocolVersion": Raw(encode(revision)),
                "capabilities": Raw(encode(server.told)),
                "clientInfo": Raw(server.starter.info),
            }
            self._ask(server, "initialize", encode(params), self._greeted, patience=FOREVER)

    def _silent(self, name: str) -> None:
        """No answer to `server/discover`: `initialize` follows, and its answer decides."""
        server = self.servers[name]
        if server.state is State.STARTING and server.trying == "modern":
            self._say_hello(server, "")

    def _discovered(self, pending: Pending, reply: Reply) -> None:
        server = self.servers[pending.peer]
        if server.trying != "modern":
            return  # too late
        body = object_of(reply.result)
        if reply.result is None or not modern_versions(reply):
            said = str(value_of(object_of(reply.error).get("message"), "no version that mcpmux knows"))
            self._say_hello(server, f"{server.name} refused `server/discover`: {said[:TEXT_MOST]}")
            return
        meta = object_of(body.get("_meta"))
        self._is_up(server, MODERN_REVISIONS[0], body, meta.get(SERVER_KEY))
        server.listens_for = {}
        self._open(server.name)

    def _greeted(self, pending: Pending, reply: Reply) -> None:
        server = self.servers[pending.peer]
        body = object_of(reply.result)
        revision = value_of(body.get("protocolVersion"))
        if reply.error is not None:
            if modern_versions(reply) and server.options.protocol != "legacy":
                server.way = ["modern", *server.way]
            text = value_of(object_of(reply.error).get("message"))
            self._say_hello(server, f"{server.name} refused `initialize`: {str(text)[:TEXT_MOST]}")
            return
        if revision not in LEGACY_REVISIONS:
            self._give_up(
                server,
                f"{server.name} speaks protocol revision {str(revision)[:TEXT_MOST]!r}, which mcpmux does not know",
            )
            return
        self._is_up(server, revision, body, body.get("serverInfo"))
        self._send_server(server, notification_line("notifications/initialized"))
        self._question_over(server)

    def _is_up(self, server: Server, revision: str, body: Fields, info: Raw | None) -> None:
        """It has said what it is."""
        self._set_timer("silent", server.name, None)
        server.state = next_state(server.state, Life.UP)
        server.late, server.trouble, server.hint = False, None, ""
        server.up_at = self._now
        server.era, server.revision = server.trying, revision
        server.info = bytes(info) if info is not None and is_object(info) else NOBODY.info
        server.capabilities = object_of(bytes(body.get("capabilities", b"{}")))
        instructions = value_of(body.get("instructions"))
        server.instructions = instructions if isinstance(instructions, str) else ""
        self._log("debug", f"= {server.name} ready ({revision})")

    def _open(self, name: str) -> None:
        """It has asked what it asks first, or asks nothing: now it gets what waited, and is listed."""
        server = self.servers[name]
        if server.state is not State.READY or server.open:
            return
        server.open = True
        server.level = None
        if server.options.idle_timeout_sec:
            self._set_timer("idle", name, self._now + server.options.idle_timeout_sec)
        self._tell_level(server)
        if server.modern:
            self._listen(server)
        else:
            for uri in server.subscriptions:
                self._ask(server, "resources/subscribe", encode({"uri": uri}), lambda pending, reply: None)
        waiting, server.waiting = server.waiting, {}
        for number, params in waiting.items():
            call = self.in_flight.get(number)
            if call and server.clogged:
                self._fail(self.in_flight.settle(number), self._does_not_read(server))
            elif call:
                self._dispatch(server, call, params)
        questions, server.questions = server.questions, []
        for question in [found for number in questions if (found := self.in_flight.get(number))]:
            self._answered(self.in_flight.settle(question.id), self._from_memory(server, question.method))
        offered = {method for method, kind in LISTS.items() if offers(server.capabilities, kind.capability)}
        server.lists = {method: entries for method, entries in server.lists.items() if method in offered}
        self._read_lists(server, LISTS)

    def _read_lists(self, server: Server, methods: Iterable[str]) -> None:
        for method in methods:
            if method in server.listing:
                server.changed.add(method)  # read again when this reading has ended
            elif offers(server.capabilities, LISTS[method].capability):
                server.listing[method] = Listing([], set(), int(self.options.max_message_mb * MB))
                self._read_page(server, method, None)
        self._lists_read(server)

    def _read_page(self, server: Server, method: str, cursor: bytes | None) -> None:
        params = UNSET if cursor is None else b'{"cursor":%b}' % cursor
        self._ask(server, method, params, self._page_read, patience=server.options.startup_timeout_sec * START_PATIENCE)

    def _page_read(self, pending: Pending, reply: Reply) -> None:
        server, method = self.servers[pending.peer], pending.method
        listing = server.listing[method]
        body = object_of(reply.result)
        if reply.error is None:
            key = LISTS[method].key
            if bytes(body.get(key, b""))[:1] != b"[":
                self._log("warning", f"{server.name}: {method} has no list of {key}")
            for raw in items_of(body.get(key)):
                entry = fit_entry(method, raw, server.options)
                if isinstance(entry, Entry):
                    listing.entries.append(entry)
                    listing.room -= len(entry.left) + len(entry.right)
                elif entry is not None:
                    self._log("warning", f"{server.name}: left out: {entry}")
            cursor = next_cursor(body, listing.cursors)
            if cursor is not None and listing.room > 0:
                self._read_page(server, method, cursor)
                return
            if listing.room <= 0:
                self._log("warning", f"{server.name}: {method} is longer than max_message_mb and was read no further")
            server.lists[method] = listing.entries
        else:
            error = object_of(reply.error)
            if value_of(error.get("code")) != METHOD_NOT_FOUND:
                self._log("warning", f"{server.name}: {method} failed: {value_of(error.get('message'))}")
            server.lists[method] = listing.entries or server.lists.get(method, [])
        del server.listing[method]
        self._lists_read(server)

    def _lists_read(self, server: Server) -> None:
        """Called after each list; when none is being read any more, the catalogue takes them over."""
        if server.listing:
            return
        first = server.listed_at is None
        server.listed_at = self._now
        if server.changed:
            self._relist_soon(server)
            if server.settling and self._now - server.up_at < RELIST_AT_MOST:
                server.listed_at = None
                return  # it is still making up its mind: those who wait should have it all
        before = None if first or self._catalogue is None else self._catalogue.results
        self._catalogue = None
        if before is not None:
            server.quiet = (
                min(RELIST_QUIET_MOST, server.quiet * 2) if self.catalogue.results == before else RELIST_QUIET
            )
        if server.ready_in is None:
            server.ready_in = self._now - server.started_at
        server.known, server.stale = True, False
        self._set_timer("late", server.name, None)
        self._remember(server)
        self._settle(server)
        self._tell_changes()

    def _relist(self, name: str) -> None:
        server = self.servers[name]
        if server.clogged:  # what it is asked now would be dropped
            self._set_timer("relist", name, self._now + RELIST_AT_MOST)
        elif server.open:
            changed, server.changed = server.changed, set()
            self._read_lists(server, [method for method in LISTS if method in changed])

    def _settle(self, server: Server) -> None:
        """It is known what this server offers, or that it is not to be waited for: who waited for that goes on."""
        if not server.settling:
            return
        server.settling, server.tried = False, True
        if server.name in self._reloading:
            self._reloaded()
        self._release()

    def _release(self) -> None:
        """Requests that were held go on, or are held for what is still to be known."""
        held, self._held = self._held, {}
        for ask in held.values():
            self._receive(ask)

    def _tell_changes(self) -> None:
        """Tells the host of each list that is not what it has; one that it never asked for it will ask for."""
        if self._reloading:
            return
        stale = [method for method, seen in self._seen_by_host.items() if seen != self.catalogue.results[method]]
        for notification in dict.fromkeys(LISTS[method].changed for method in stale):
            self._to_ready_host(HOST, notification_line(notification))
            for listen in self._listens.values():
                if notification in listen.changes:
                    self._tell_listen(listen, HOST, notification, {})
        for method in stale:
            self._seen_by_host[method] = self.catalogue.results[method]

    def _late(self, name: str) -> None:
        """No answer to the handshake: nobody waits for it any longer, and in the end it is stopped."""
        server = self.servers[name]
        seconds = server.options.startup_timeout_sec
        if server.state is State.READY and server.settling:
            self._log("warning", f"{name}: its lists were not complete within {seconds:g} s; they are announced later")
            self._settle(server)
        if server.state is not State.STARTING:
            return
        look = (
            "see whether its url is right"
            if server.options.url
            else "run its command in a terminal to see what it waits for"
        )
        server.hint = f"{look}, or raise startup_timeout_sec in its table"
        hello = "`server/discover`" if server.trying == "modern" else "`initialize`"
        if server.late:
            self._give_up(server, f"{name} did not answer {hello} within {seconds * START_PATIENCE:g} s")
            return
        server.late = True
        server.trouble = f"{name} has not answered {hello} within {seconds:g} s"
        self._log("warning", self._why(server))
        self._remember(server)
        self._set_timer("late", name, server.started_at + seconds * START_PATIENCE)
        for number in list(server.waiting):
            self._fail(self.in_flight.settle(number), self._why(server))
        server.waiting.clear()
        self._settle(server)

    def _give_up(self, server: Server, trouble: str) -> None:
        """Its process is of no use and is stopped; after a rest the next use tries again."""
        server.trouble, server.useless = trouble, True
        self._log("error", self._why(server))
        self._remember(server)
        server.state = next_state(server.state, Life.STOP)
        self._effects.append(Stop(server.name, server.run))
        self._fail_all(server, self._why(server))
        self._settle(server)

    def _gone(self, server: Server, event: ServerGone) -> None:
        if server.state is State.STARTING and server.trying == "modern" and not server.options.protocol:
            server.again, server.way = True, ["legacy"]  # a legacy server may not survive an unknown request
        if server.again and not self._ending:
            way, since = server.way, server.started_at
            server.again = False
            server.state = next_state(server.state, Life.AGAIN)
            self._set_timer("silent", server.name, None)
            for pending in self.in_flight.owed_by(server.name):
                if pending.asker == OURSELVES:
                    self.in_flight.settle(pending.id)
            for pending in self.in_flight.asked_by(server.name):  # the fresh one has asked nothing yet
                self._withdraw(pending, {})
            self._use(server)
            server.way, server.started_at = way, since
            self._set_timer("late", server.name, since + server.options.startup_timeout_sec)
            return
        was_stopping = server.state is State.STOPPING
        if was_stopping and not server.useless:
            server.state = next_state(server.state, Life.ENDED)
        else:
            if not server.useless:
                words = f'; its last words: "{" | ".join(event.stderr)}"' if event.stderr else ""
                server.trouble, server.hint = f"{event.reason}{words}", event.hint
                self._log("error", self._why(server))
                if not server.known:
                    self._remember(server)
            rest = server.deaths.count(self._now, self._chance())
            server.state = next_state(server.state, Life.GAVE_UP if rest is None else Life.GONE)
            self._set_timer("rested", server.name, self._now + (FAILED_REST if rest is None else rest))
        server.run += 1  # nothing that its process still says is heard
        for timer in ("late", "silent", "open", "relist", "listen", "idle"):
            self._set_timer(timer, server.name, None)
        server.open = server.clogged = server.late = server.useless = False
        server.listing.clear()
        server.changed.clear()
        server.listed_at = None
        if not server.known:
            server.lists.clear()  # it died while it was listed: what it offers is not known
        server.listen = None
        server.listened.clear()
        for pending in self.in_flight.asked_by(server.name):
            if not (server.modern and pending.round):  # the call that a modern one has ended is made again
                self._withdraw(pending, {"reason": Raw(encode(f"{server.name} is gone"))})
        for number in [
            number for number, (_, call) in self._task_progress.items() if server.name in (call.peer, call.asker)
        ]:
            del self._task_progress[number]
        # What came while a process was being stopped is for the next one, and so is what it never took.
        kept = server.waiting if was_stopping else {}
        for line in event.unread:
            message = decode_line(line)
            pending = self.in_flight.get(number_of_id(message.id)) if isinstance(message.id, Raw) else None
            if pending and pending.peer == server.name and pending.asker == HOST:
                kept[pending.id] = UNSET if message.params is UNSET else fields_of(message.params)
        kept = {} if server.state is State.FAILED or self._ending else kept
        server.waiting = kept
        for pending in self.in_flight.owed_by(server.name):
            if pending.id not in kept:
                self._fail(self.in_flight.settle(pending.id), self._why(server))
        self._settle(server)
        if kept:
            self._use(server)

    def _idle(self, name: str) -> None:
        """Nobody has used it for a while: it is stopped, until somebody does."""
        server = self.servers[name]
        wait = server.options.idle_timeout_sec
        is_busy = (
            bool(server.subscriptions)
            or bool(server.listing)
            or any(one is not server.listen for one in self.in_flight.owed_by(name))
            or bool(self.in_flight.asked_by(name))
        )
        due = self._now + wait if is_busy else server.used_at + wait
        if due > self._now:
            self._set_timer("idle", name, due)
        elif server.open:
            self._log("debug", f"= {name} is idle and is stopped")
            server.state = next_state(server.state, Life.STOP)
            server.open = False
            self._effects.append(Stop(name, server.run))

    def _rested(self, name: str) -> None:
        server = self.servers[name]
        server.state = next_state(server.state, Life.DUE)
        if server.wanted:
            self._use(server)

    def _why(self, server: Server) -> str:
        """Which server, what happened, what to do: one line, for the model and the person behind it."""
        trouble = server.trouble or f"{server.name} is {server.state.value}"
        hint = server.hint or "`mcpmux check` says more; the next call starts it again"
        text = f"mcpmux: {trouble} ({hint})".replace("\n", " ")
        return text.encode(errors="replace").decode()  # a path that is not UTF-8 is no JSON

    def _reconfigure(self, config: ConfigChanged) -> None:
        """Servers whose tables are as they were keep their process and their calls. A changed one is another server,
        that shows what the former one offered until it has been listed itself."""
        former, kept = dict(self.servers), dict[str, Server]()
        self.options, self._sampling, self._notice = config.options, config.sampling, ""
        self._host_limit = int(config.options.host_message_mb * MB)
        self._tracing = config.options.log_level == "trace"
        self._catalogue = None
        started: list[Server] = []
        for name, table in config.servers.items():
            old = former.get(name)
            if old and old.options == table and old.hint != _broken_server("", "").hint:
                server = former.pop(name)
                server.told_last = (b"", False, {})
                if server.state is State.FAILED:
                    server.state = next_state(server.state, Life.DUE)
                    self._set_timer("rested", name, None)
            else:
                server = Server(name, table)
                server.run = max(self._former_runs, old.run if old else 0)
                started.append(server)
                if old:
                    server.lists, server.known, server.stale = old.lists, old.known, True
                    server.subscriptions = old.subscriptions
            kept[name] = server
        kept |= {name: _broken_server(name, reason) for name, reason in config.broken.items()}
        for old in former.values():
            self._retire(old)
            if old.name in config.broken:
                kept[old.name].run = old.run + 1
        self.servers = kept
        for tasks in (self._tasks, self._host_tasks):
            for task in [task for task, owner in tasks.items() if owner.server not in kept]:
                del tasks[task]
        names = ", ".join(server.name for server in started) or "none"
        gone = ", ".join(name for name in former if name not in self.servers) or "none"
        self._log("info", f"the config has changed: new or changed servers: {names}; removed: {gone}")
        for server in started if self._begun else ():
            self._use(server)
            server.settling = True
        self._reloading = {server.name for server in started}
        self._reloaded()
        self._release()  # they may have waited for a server that is no more

    def _retire(self, server: Server) -> None:
        """It is no longer in the config, or not like this: it ends with all that it owes and is owed."""
        text = f"mcpmux: {server.name} was removed from the config, or its table has changed"
        self._former_runs = max(self._former_runs, server.run)
        for timer in ("late", "silent", "open", "relist", "listen", "idle", "orphans", "rested"):
            self._set_timer(timer, server.name, None)
        for question in self.in_flight.asked_by(server.name):
            if self.in_flight.get(question.id):
                self._withdraw(question, {"reason": Raw(encode(text))})
        for opened in [one for one in self._rounds.values() if one.server == server.name]:
            if opened.waiting:
                self._fail_round(opened, text)
            elif opened.phase is Phase.PARKED:
                opened.kept = failure(opened.call.method, text)
        for pending in self.in_flight.owed_by(server.name):
            self.in_flight.settle(pending.id)
            if pending.asker != OURSELVES:
                self._fail(pending, text)
        if server.state in (State.STARTING, State.READY):
            self._effects.append(Stop(server.name, server.run))

    def _reloaded(self) -> None:
        """When all new servers are listed, or not to be waited for, the host hears of changes, once."""
        if not any(self.servers[name].settling for name in self._reloading if name in self.servers):
            self._reloading = set()
            self._tell_changes()

    def _fail_all(self, server: Server, text: str) -> None:
        """Ends all that this server owes. What we asked for ourselves has nobody waiting."""
        server.waiting.clear()
        for pending in self.in_flight.owed_by(server.name):
            self._fail(self.in_flight.settle(pending.id), text)

    def _fail(self, pending: Pending, text: str) -> None:
        """The ending of a settled request that its peer will not answer."""
        error = error_body(RpcError(INTERNAL_ERROR, text))
        if pending.asker == OURSELVES:
            if self.servers[pending.peer].state in (State.STARTING, State.READY) and pending.then:
                pending.then(pending, Reply(None, error))
        elif pending.asker == PARKED:
            self._rounds[pending.round].kept = failure(pending.method, text)
        elif pending.asker != HOST:
            self._answered(pending, Reply(None, error))
        else:
            if pending.round:
                self._end_round(self._rounds[pending.round])
            if pending.then:
                pending.then(pending, Reply(None, error))
            else:
                method = "" if pending.is_task else pending.method
                source = pending.peer if pending.peer in self.servers else HOST
                self._answer_host(source, pending.asker_id, method, pending.caller, failure(method, text))

    def _fail_ask(self, ask: Ask, text: str) -> None:
        """As `_fail`, for a request that has not been sent on."""
        self._answer_host(HOST, ask.id, ask.method, ask.caller, failure(ask.method, text))

    def _watch(self, pending: Pending) -> None:
        """One timer for all requests, at the earliest deadline: a heap of cancelled timers would grow with the rate."""
        if pending.deadline < self._timers.get(("calls", ""), FOREVER):
            self._set_timer("calls", "", pending.deadline)

    def _sweep(self, _: str) -> None:
        for pending in self.in_flight:
            if pending.deadline > self._now or self.in_flight.get(pending.id) is None:
                continue  # not yet; or it has ended with another one
            if pending.asker == PARKED or (pending.peer in self.servers and self.in_flight.asked_by(pending.peer)):
                pending.deadline = self._now + pending.patience  # a person is being asked: the clock stands still
                continue
            self.in_flight.settle(pending.id)
            seconds = self._now - pending.opened
            who, took = pending.peer or "the host", f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"
            text = f"mcpmux: {who} did not answer {pending.method} within {took} s"
            self._tell_cancelled(pending, {"reason": Raw(b'"timed out"')})
            self._log("warning", text)
            self._fail(pending, text + (" (tool_timeout_sec)" if pending.asker == HOST else ""))
        earliest = min((pending.deadline for pending in self.in_flight), default=FOREVER)
        if earliest < FOREVER:
            self._set_timer("calls", "", earliest)

    def _end(self, reason: str) -> None:
        """The host is gone or we are told to go: whoever waits is told, and every server is stopped."""
        self._log("info", f"stopping: {reason}")
        self._ending = True
        for ask in self._held.values():
            self._fail_ask(ask, f"mcpmux is stopping: {reason}")
        self._held.clear()
        for listen in self._listens.values():
            meta = {SUBSCRIPTION_KEY: Raw(listen.id), SERVER_KEY: IMPLEMENTATION}
            self._send_host(HOST, result_line(listen.id, encode({"resultType": "complete", "_meta": meta})))
        self._listens.clear()
        for pending in self.in_flight.asked_by(HOST):
            pending.then = None
            self._fail(self.in_flight.settle(pending.id), f"mcpmux is stopping: {reason}")
        for server in self.servers.values():
            if server.state in (State.STARTING, State.READY):
                server.state = next_state(server.state, Life.STOP)
                server.wanted = False
                self._effects.append(Stop(server.name, server.run))

    # ── sending ──

    def _ask(
        self,
        server: Server,
        method: str,
        params: bytes | UnsetType,
        then: Callable[[Pending, Reply], None],
        patience: float | None = None,
    ) -> Pending:
        """A request of our own, with what is done with its answer."""
        seconds = patience or server.options.tool_timeout_sec
        pending = self.in_flight.open(server.name, OURSELVES, b"", method, self._now, seconds, seconds)
        pending.then = then
        self._watch(pending)
        if server.modern:
            told = encode(self._told(server, server.starter))
            params = encode(enveloped(object_of(params), server.starter, told, self._log_level))
        self._send_server(server, request_line(pending.id, method, params))
        return pending

    def _reply(self, ask: Ask, result: bytes) -> None:
        self._answer_host(HOST, ask.id, ask.method, ask.caller, Reply(Raw(result), None))

    def _refuse(self, ask: Ask, error: RpcError) -> None:
        as_it_is = error.code == UNSUPPORTED_VERSION
        reply = Reply(None, error_body(error))
        self._answer_host(HOST, ask.id, ask.method, ask.caller, reply, as_it_is=as_it_is)

    def _answer_host(
        self,
        source: str,
        id: bytes,
        method: str,
        caller: Caller,
        reply: Reply,
        *,
        server: Server | None = None,
        as_it_is: bool = False,
    ) -> None:
        """The ending of a host's request, in its era, through its server's queue so that it cannot overtake what came
        before; never more than hosts take. `server` is the one that said this itself."""
        line = self._answer_line(id, method, caller, reply, server, as_it_is)
        if len(line) > self._host_limit:
            most = f"more than the {self.options.host_message_mb:g} MB that hosts take (host_message_mb)"
            shorter = failure(method, f"{source or 'mcpmux'} answered with {len(line)} bytes, {most}")
            line = self._answer_line(id, method, caller, shorter, None, False)
        self._send_host(source, line)

    def _answer_line(
        self, id: bytes, method: str, caller: Caller, reply: Reply, server: Server | None, as_it_is: bool
    ) -> bytes:
        result, error = reply
        if error is not None:
            from_modern = as_it_is or (server is not None and server.modern)
            return error_line(id, modern_error(error, from_modern=from_modern) if caller.modern else error)
        assert result is not None
        if caller.modern and not as_it_is and not (server and server.modern):
            result = modern_result(method, result, server.info if server else NOBODY.info)
        return result_line(id, result)

    def _answer_server(self, server: Server, id: bytes, reply: Reply) -> None:
        if reply.result is not None:
            self._send_server(server, result_line(id, reply.result))
        else:
            assert reply.error is not None
            self._send_server(server, error_line(id, reply.error))

    def _to_ready_host(self, source: str, line: bytes, *, is_request: bool = False) -> None:
        """For what the host did not ask for: kept until it has initialized, and never over its limit."""
        if len(line) > self._host_limit:
            self._log(
                "warning", f"{source}: a notification of {len(line)} bytes is more than hosts take, and was dropped"
            )
        elif self._host_ready:
            self._send_host(source, line)
        elif not self.revision:
            pass  # a modern host hears what it subscribed to, and no more
        elif is_request or sum(one.source == source for one in self._for_host) < HELD_FOR_HOST:
            self._for_host.append(SendHost(source, line))

    def _send_host(self, source: str, line: bytes) -> None:
        if self._tracing:
            self._trace(">", HOST, label(line), len(line))
        self._effects.append(SendHost(source, line))

    def _send_server(self, server: Server, line: bytes) -> None:
        if server.clogged:  # it asks and does not read: what it would be told must not pile up
            self._log("debug", f"{server.name}: does not read; {label(line)} was dropped")
            return
        if self._tracing:
            self._trace(">", server.name, label(line), len(line))
        self._effects.append(SendServer(server.name, line))

    # ── tables ──

    _host_requests: Final[dict[str, Callable[[Core, Ask], None]]] = {
        "initialize": _initialize,
        "server/discover": _discover,
        "ping": _ping,
        **dict.fromkeys(LISTS, _list),
        "tools/call": _call_tool,
        "prompts/get": _get_prompt,
        "resources/read": _by_uri,
        "resources/subscribe": _by_uri,
        "resources/unsubscribe": _by_uri,
        "completion/complete": _complete,
        "logging/setLevel": _set_level,
        "tasks/list": _list_tasks,
        "tasks/get": _task_of_server,
        "tasks/result": _task_of_server,
        "tasks/cancel": _task_of_server,
        "tasks/update": _task_of_server,
        "subscriptions/listen": _open_listen,
    }
    _host_notifications: Final[dict[str, Callable[[Core, Fields], None]]] = {
        "notifications/initialized": _host_is_ready,
        "notifications/cancelled": _host_cancels,
        "notifications/progress": _host_progress,
        "notifications/roots/list_changed": _host_roots_changed,
        "notifications/tasks/status": _host_task_status,
    }
    _server_notifications: Final[dict[str, Callable[[Core, Server, Envelope], None]]] = {
        "notifications/progress": _server_progress,
        "notifications/message": _server_logs,
        "notifications/cancelled": _server_cancels,
        "notifications/resources/updated": _resource_updated,
        "notifications/tasks/status": _task_status,
        "notifications/elicitation/complete": _page_visited,
        "notifications/subscriptions/acknowledged": _acknowledged,
        **dict.fromkeys((kind.changed for kind in LISTS.values()), _list_changed),
    }
    _on_timer: Final[dict[str, Callable[[Core, str], None]]] = {
        "calls": _sweep,
        "idle": _idle,
        "late": _late,
        "silent": _silent,
        "listen": _listen_again,
        "orphans": _drop_orphans,
        "round": _round_due,
        "open": _open,
        "relist": _relist,
        "rested": _rested,
    }


# ════════════════════════════════════════════════════════════════════════════════════════════════════════════════════
# Above this line: no I/O, no clock, no environment, no asyncio.
# ════════════════════════════════════════════════════════════════════════════════════════════════════════════════════


# ══ 9. Config ════════════════════════════════════════════════════════════════════════════════════════════════════════
# The TOML file becomes options. Every problem is found in one reading and named by file and path; what is wrong inside
# a server's table fails that server alone.

CONFIG_NAME: Final = "mcpmux.toml"
PLACEHOLDER: Final = re.compile(
    r"\$(\$\{)|\$\{(?:cmd:(?P<cmd>[^{}]*)|(?P<var>[A-Za-z_]\w*)(?::-(?P<default>[^{}]*))?)\}|\$\{([^}]*)\}?"
)
_SERVER_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

# Keys of Codex's that say how Codex uses a server, not how it is run: accepted, so that its blocks paste straight in.
CODEX_KEYS: Final = frozenset(
    {"required", "supports_parallel_tool_calls", "default_tools_approval_mode", "environment_id"}
    | {"experimental_environment", "oauth_resource", "startup_timeout_ms", "approval_mode", "parallel_tool_calls"}
)
# What goes with a program, and what with an address; the rest is any server's.
LOCAL_KEYS: Final = ("args", "env", "env_vars", "cwd")
REMOTE_KEYS: Final = ("transport", "http_headers", "env_http_headers", "bearer_token_env_var", "allow_http", "oauth")
_IN_WORDS: Final = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}


Table = TypeVar("Table", bound=Struct)


class Config(Struct, frozen=True):
    """What the file says. `broken` are the servers whose tables are wrong, with all that is wrong with each."""

    path: Path
    exists: bool
    options: MuxOptions
    servers: dict[str, ServerOptions]
    broken: dict[str, str]
    disabled: list[str]
    notes: list[str]
    environment: dict[str, str]  # for `${VAR}`: mcpmux's own, over that of `env_file`
    sampling: SamplingOptions | None = None  # with its models in `models`
    mark: tuple[int, int] | None = None  # of the file: its time and size


def config_path(given: str | None) -> Path:
    """`--config`, else $MCPMUX_CONFIG, else mcpmux.toml in the user's config folder."""
    named = given or os.environ.get("MCPMUX_CONFIG")
    if named:
        return Path(os.path.expanduser(named)).absolute()
    import platformdirs  # noqa: PLC0415 - most hosts name the file, and a start is short

    return platformdirs.user_config_path("mcpmux", appauthor=False) / CONFIG_NAME


def state_folder() -> Path:
    """Where servers' stderr is kept."""
    import platformdirs  # noqa: PLC0415

    return platformdirs.user_state_path("mcpmux", appauthor=False)


def load_config(path: Path) -> Config:
    """Reads the file. Raises `ConfigError`, a line a problem, if it cannot be used; a missing one is empty."""
    mark = mark_of(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return Config(path, False, MuxOptions(), {}, {}, [], [], dict(os.environ))
    except (OSError, UnicodeDecodeError) as wrong:
        raise ConfigError(f"{path}: cannot be read: {wrong}") from None
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as wrong:  # TOMLDecodeError is a ValueError; so is an endless number
        raise ConfigError(f"{path}: not TOML: {wrong}") from None
    return msgspec.structs.replace(read_config(document, path), mark=mark)


def mark_of(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def read_config(document: dict[str, Any], path: Path) -> Config:
    """The parsed document as options. Raises `ConfigError` for problems outside the servers' tables, with all."""
    notes: list[str] = []
    known = ["mux", "sampling", "mcp_servers"]
    fatal = [_unknown("", key, known) for key in document if key not in known]
    options, wrong = _read_table(MuxOptions, document.get("mux", {}), "mux")
    fatal += wrong
    sampling = None
    if "sampling" in document:
        sampling, wrong = _read_sampling(document["sampling"])
        fatal += wrong
    tables = document.get("mcp_servers", {})
    if not isinstance(tables, dict):
        fatal.append("mcp_servers: expected tables, as in [mcp_servers.NAME]")
        tables = {}
    environment = dict(os.environ)
    if options.env_file:
        file = _absolute(options.env_file, path.parent)
        try:
            environment = parse_env_file(file.read_text(encoding="utf-8")) | environment
        except (OSError, ValueError) as error:
            fatal.append(f"mux.env_file: {file} cannot be read: {error}")
    servers: dict[str, ServerOptions] = {}
    broken: dict[str, str] = {}
    disabled: list[str] = []
    for name, table in tables.items():
        if isinstance(table, dict) and table.get("enabled") is False:
            disabled.append(name)
            continue
        server, wrong = _read_server(name, table, path.parent, notes)
        if server is None:
            broken[name] = "; ".join(f"{path.name}: {problem}" for problem in wrong)
        else:
            servers[name] = server
    if fatal:
        raise ConfigError(
            "\n".join(
                [f"{path}: {problem}" for problem in fatal] + [f"{path.parent / text}" for text in broken.values()]
            )
        )
    return Config(path, True, options, servers, broken, disabled, notes, environment, sampling)


def _read_sampling(table: Any) -> tuple[SamplingOptions, list[str]]:
    where = "sampling"
    if not isinstance(table, dict):
        return SamplingOptions(), [f"{where}: expected a table, as in [{where}]"]
    table = dict(table)
    limits, problems = _read_table(SamplingLimits, table.pop("limits", {}), f"{where}.limits")
    tables = table.pop("models", [])
    options, wrong = _read_table(SamplingOptions, table, where)
    problems += wrong
    if not isinstance(tables, list):
        return options, [*problems, f"{where}.models: expected tables, as in [[{where}.models]]"]
    own = [key for key in ("model", "api_key", "api_base", "params") if key in table]
    if own and tables:
        problems.append(f"{where}.{own[0]}: stands beside [[{where}.models]]; each of those has its own {own[0]}")
    elif "model" in table:
        tables = [{key: table[key] for key in own}]
    elif not tables:
        problems.append(f'{where}: needs a model, as in model = "anthropic/claude-sonnet-4-5"')
    models: list[ModelOptions] = []
    for number, one in enumerate(tables):
        here = where if "model" in table else f"{where}.models[{number}]"
        if not isinstance(one, dict):
            problems.append(f"{where}.models: expected tables, as in [[{where}.models]]")
            continue
        model, wrong = _read_table(ModelOptions, one, here)
        if here != where:
            problems += [*wrong, *([] if one.get("model") else [f"{here}: needs a model"])]  # else found already
        for key in ("api_key", "api_base"):
            problems += _bad_placeholders(getattr(model, key), f"{here}.{key}")
        models.append(model)
    return msgspec.structs.replace(options, models=models, limits=limits), problems


def _read_server(name: str, table: Any, folder: Path, notes: list[str]) -> tuple[ServerOptions | None, list[str]]:
    where = f"mcp_servers.{name}"
    if not isinstance(table, dict):
        return None, [f"{where}: expected a table, as in [{where}]"]
    table = dict(table)
    problems = (
        [] if _SERVER_NAME.fullmatch(name) else [f"{where}: a server's name may have A-Z a-z 0-9 _ - only (64 at most)"]
    )
    if "startup_timeout_ms" in table:
        milliseconds = table.pop("startup_timeout_ms")
        try:
            table.setdefault("startup_timeout_sec", msgspec.convert(milliseconds, Seconds) / 1000)
        except msgspec.ValidationError as wrong:
            problems.append(_in_words(f"{where}.startup_timeout_ms", str(wrong)))
    if isinstance(names := table.get("env_vars"), list):  # Codex also has { name = "…", source = "…" }
        table["env_vars"] = [one["name"] if isinstance(one, dict) and "name" in one else one for one in names]
    tools, oauth = table.pop("tools", {}), table.pop("oauth", {})
    options, wrong = _read_table(ServerOptions, table, where, notes)
    problems += wrong
    if "scopes" in table and "url" not in table:  # Codex allows that
        options = msgspec.structs.replace(options, scopes=[])
        notes.append(f"{where}.scopes: means nothing here and is ignored")
    login, wrong = _read_table(OAuthOptions, oauth, f"{where}.oauth")
    problems += wrong
    overrides: dict[str, ToolOverride] = {}
    for tool, override in tools.items() if isinstance(tools, dict) else ():
        overrides[tool], wrong = _read_table(ToolOverride, override, f"{where}.tools.{tool}", notes)
        problems += wrong
    if not isinstance(tools, dict):
        problems.append(f"{where}.tools: expected tables, as in [{where}.tools.NAME]")
    if "command" in table and "url" in table:
        problems.append(f"{where}.url: stands beside command; a server has one of the two")
    elif "command" in table or "url" in table:
        own, strange = ("command", REMOTE_KEYS) if "command" in table else ("url", LOCAL_KEYS)
        other = "url" if own == "command" else "command"
        given = {**table, **({"oauth": oauth} if oauth else {})}
        problems += [f"{where}.{key}: goes with {other}; this server has a {own}" for key in strange if key in given]
    else:
        unknown = [key for key in table if key not in {field.name for field in msgspec.structs.fields(ServerOptions)}]
        near = [key for wanted in ("command", "url") for key in difflib.get_close_matches(wanted, unknown, n=1)]
        problems.append(f"{where}: needs a command or a url" + (f' ("{near[0]}" is unknown)' if near else ""))
    if problems:
        return None, problems
    options = msgspec.structs.replace(options, oauth=login)
    for key in ("command", "args", "env", "cwd", "url", "http_headers"):
        problems += _bad_placeholders(getattr(options, key), f"{where}.{key}")
    problems += _bad_placeholders(login.client_secret, f"{where}.oauth.client_secret")
    if options.url and "${" not in options.url and not re.match(r"https?://[^/\s]", options.url):
        problems.append(f"{where}.url: expected an http:// or https:// address")
    for key in ("http_headers", "env_http_headers"):
        names = [name for name in getattr(options, key) if not HEADER_NAME.fullmatch(name)]
        problems += [f"{where}.{key}: {name[:TEXT_MOST]!r} is no name of a header" for name in names]
    for one in options.roots:
        if "://" in one and not one.startswith("file://"):  # the protocol has no others (client/roots)
            problems.append(f"{where}.roots: {one[:TEXT_MOST]!r} is neither a folder nor a file:// URI")
    if problems:
        return None, problems
    roots = [one if "://" in one else _absolute(one, folder).as_uri() for one in options.roots]
    return msgspec.structs.replace(options, tools=overrides, roots=roots), []


def _bad_placeholders(value: Any, where: str) -> Iterator[str]:
    for text, at in _texts(value, where):
        for match in PLACEHOLDER.finditer(text):
            if match[5] is not None:
                is_vs_code = match[5].startswith("env:")
                hint = f"write ${{{match[5][4:]}}}" if is_vs_code else "write $${ for a plain ${"
                yield f"{at}: {match[0]} is no placeholder that mcpmux knows; {hint}"


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every string in an option, with its path."""
    if isinstance(value, str):
        yield value, where
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _texts(item, f"{where}[{number}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, f"{where}.{key}")


def _absolute(text: str, folder: Path) -> Path:
    """Relative to the config file: a host may start mcpmux anywhere."""
    return (folder / os.path.expanduser(text)).absolute()


def _read_table(kind: type[Table], table: Any, where: str, notes: list[str] | None = None) -> tuple[Table, list[str]]:
    """A table as `kind`, with what is wrong with it; what is wrong has its default. `notes` is told of keys that mean
    nothing here; without it there are none."""
    problems: list[str] = []
    values: dict[str, Any] = {}
    known = {field.name: field.type for field in msgspec.structs.fields(kind)}
    if not isinstance(table, dict):
        return kind(), [f"{where}: expected a table, as in [{where}]"]
    for key, value in table.items():
        here = f"{where}.{key}"
        if key in known:
            parts = {here: (value, known[key])}
            if isinstance(value, dict) and known[key] == dict[str, str]:  # msgspec does not say which member is wrong
                parts = {f"{here}.{name}": (one, str) for name, one in value.items()}
            wrong = [problem for at, part in parts.items() if (problem := _problem(at, *part))]
            problems += wrong
            if not wrong:
                values[key] = msgspec.convert(value, known[key])
        elif notes is not None and key in CODEX_KEYS:
            notes.append(f"{here}: means nothing here and is ignored")
        else:
            problems.append(_unknown(where, key, known))
    return kind(**values), problems


def _problem(where: str, value: Any, kind: Any) -> str | None:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as wrong:
        literals = [one for part in get_args(kind) for one in (part, *get_args(part))]  # it may be one of a union
        choices = ", ".join(f'"{one}"' for one in literals if isinstance(one, str))
        return _in_words(where, str(wrong)) + (f"; one of {choices} is expected" if "enum" in str(wrong) else "")
    return None


def _unknown(where: str, key: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(key, names, n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"known keys: {', '.join(sorted(names))}"
    return f"{where}{'.' if where else ''}{key}: unknown key; {hint}"


def _in_words(where: str, wrong: str) -> str:
    """msgspec's message with the config's path and without its type names."""
    text, _, at = wrong.partition(" - at `$")
    text = re.sub(r"`(\w+)((?: \| null)?)`", lambda match: _IN_WORDS.get(match[1], match[0]), text)
    text = re.sub("Expected a string matching regex .*", "May have A-Z a-z 0-9 _ - only", text)
    return f"{where}{at.replace('`', '')}: {text[:1].lower()}{text[1:]}"


def parse_env_file(text: str) -> dict[str, str]:
    """`KEY=value` lines; `export`, comments, blank lines and one pair of quotes round a value are understood."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not key.startswith("#"):
            value = value.strip()
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
            found[key.strip()] = value[1:-1] if quoted else value
    return found


# The official SDK's list of what is safe to pass on, and what a server needs to speak a person's language, keep time,
# find its folders and get through a company's proxy.
_WINDOWS_VARIABLES: Final = """
    APPDATA HOMEDRIVE HOMEPATH LOCALAPPDATA PATH PATHEXT PROCESSOR_ARCHITECTURE SYSTEMDRIVE SYSTEMROOT TEMP TMP
    USERNAME USERPROFILE PROGRAMFILES PROGRAMDATA COMSPEC WINDIR
"""
_POSIX_VARIABLES: Final = "HOME LOGNAME PATH SHELL TERM USER TMPDIR"
_COMMON_VARIABLES: Final = """
    LANG LANGUAGE TZ HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY http_proxy https_proxy no_proxy all_proxy
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NODE_EXTRA_CA_CERTS
"""
_PLATFORM_VARIABLES: Final = _WINDOWS_VARIABLES if sys.platform == "win32" else _POSIX_VARIABLES
SAFE_VARIABLES: Final = frozenset(f"{_PLATFORM_VARIABLES} {_COMMON_VARIABLES}".split())
SAFE_PREFIXES: Final = ("LC_", "XDG_")
_SECRET_NAME: Final = re.compile("KEY|TOKEN|SECRET|PASS|AUTH|CREDENTIAL", re.IGNORECASE)


# What looks like a secret, by the name that it stands under and by how providers begin theirs. Patterns as text: most
# runs of mcpmux need none of them, and to compile them takes 4 ms.
HIDDEN: Final = "***"
_KEY_LIKE_NAME: Final = (
    r"(?i)"
    r"(?:key|token|secret|passw(?:or)?d|passphrase|authorization|credentials?|cookie|bearer|(?<![a-z])(?:pass|pwd|pat|auth))"
    r"(?![a-z])(?!.*(?:file|path|dir|url|mode|type|name)$)"
)
_NO_KEY: Final = r"(?i)(?:true|false|yes|no|on|off|none|null|oauth2?|basic|bearer|\d{0,5})"
_KEY_LIKE_TEXT: Final = (
    r"(?<![\w$-])(?:sk-(?=\S*\d|\S{16})|[rs]k_(?:live|test)_|gh[opusr]_|github_pat_|glpat-|xox[a-z]-|xapp-|ya29\.|pypi-Ag"
    r"|AKIA(?=[A-Z0-9]{12})|AIza(?=\S{20})|npm_(?=\w{30})|hf_(?=\w{20})|gsk_(?=\w{20})|lin_api_|ntn_|figd_|tvly-|SG\."
    r"|eyJ[\w-]+\.eyJ)[\w.~+/=-]{4,}|(?<=\bBearer )[^\s$\"']{4,}|(?<=\bBasic )[\w+/=-]{8,}"
)
_URL_WITH_USER: Final = r"(?<=://)(?P<user>[^/\s:@]*:)(?P<secret>[^@/\s$]+)(?=@)"
_URL_WITH_QUERY: Final = r"(?<=[?&])(?P<name>[\w.-]+)=(?P<secret>[^&#\s$]+)"
_ASSIGNMENT: Final = r"(?s)(?P<head>-{0,2}(?P<name>[\w.-]+)(?:=|:\s+|(?<=uthorization):))(?P<value>.+)"
_SCHEME: Final = r"(?s)(?P<scheme>(?:(?:Bearer|Basic|[Tt]oken|ApiKey)\s+)?)(?P<secret>.*)"


def hide_secrets(text: str, name: str, held: Callable[[str, str], str]) -> str:
    """The text with `held(secret, name)` in place of what in it looks like a secret; `name` is that of the variable,
    the header or the flag that the text is the value of. A `${VAR}` is no secret."""
    if re.search(_KEY_LIKE_NAME, name) and not re.fullmatch(_NO_KEY, text) and not re.search(r"(?<!\$)\$\{", text):
        found = re.fullmatch(_SCHEME, text)
        assert found
        return found["scheme"] + held(found["secret"], name.lstrip("-"))
    if found := re.fullmatch(_ASSIGNMENT, text):
        return found["head"] + hide_secrets(found["value"], found["name"], held)
    text = re.sub(_URL_WITH_QUERY, lambda one: f"{one['name']}=" + hide_secrets(one["secret"], one["name"], held), text)
    text = re.sub(_URL_WITH_USER, lambda one: one["user"] + held(one["secret"], "password"), text)
    return re.sub(_KEY_LIKE_TEXT, lambda one: held(one[0], name.lstrip("-") or "token"), text)


def is_flag(word: Any) -> bool:
    return isinstance(word, str) and re.fullmatch(r"--?[A-Za-z][\w-]*", word) is not None


def flags_before(words: list[Any]) -> list[str]:
    """For each word of a command line the flag that it is the value of, or nothing."""
    pairs = zip(["", *words], words, strict=False)
    return [flag if is_flag(flag) and not is_flag(word) else "" for flag, word in pairs]


def without_secrets(words: list[str], held: Callable[[str, str], str] = lambda secret, name: HIDDEN) -> list[str]:
    """A command line to be shown to people."""
    return [hide_secrets(word, flag, held) for word, flag in zip(words, flags_before(words), strict=True)]


def secrets_in(words: list[str]) -> list[str]:
    found: list[str] = []
    without_secrets(words, lambda secret, name: found.append(secret) or HIDDEN)
    return found


def extended_path(environment: Mapping[str, str]) -> str:
    """PATH with the usual places at its end that hosts with a window lack: only those that exist."""
    home = Path(environment.get("USERPROFILE" if sys.platform == "win32" else "HOME") or Path.home())
    if sys.platform == "win32":
        usual = [
            Path(environment.get("APPDATA", home)) / "npm",
            Path(environment.get("PROGRAMFILES", "C:/Program Files")) / "nodejs",
        ]
        usual += [home / ".local/bin", home / ".cargo/bin", home / ".bun/bin", home / ".deno/bin"]
    else:
        usual = [Path("/opt/homebrew/bin"), Path("/usr/local/bin"), home / ".local/bin", home / ".cargo/bin"]
        usual += [home / ".volta/bin", home / ".local/share/fnm/aliases/default/bin", home / ".asdf/shims"]
        usual += [home / ".local/share/mise/shims", home / ".bun/bin", home / ".deno/bin"]
        versions = (home / ".nvm/versions/node").glob("*/bin")
        usual += sorted(versions, key=lambda path: [int(n) for n in re.findall(r"\d+", path.parent.name)], reverse=True)
    present = environment.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(present + [str(path) for path in usual if str(path) not in present and path.is_dir()])


# ── files of ours ──


def write_whole(path: Path, data: bytes, *, private: bool = False, lasting: bool = True) -> None:
    """Whole or not at all, through the links that are there. A new file is its owner's; another keeps its modes, unless
    it must become `private`. `lasting`: it is on the disk before it replaces what was there. Raises `OSError`."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            if private:
                _make_private(new)
            file.write(data)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        if not private and path.exists():
            shutil.copymode(path, new)
        os.replace(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _make_private(path: Path) -> None:
    """Windows: a list of rights with one entry, ours, and nothing inherited from the folder: what 0600 is elsewhere."""
    if sys.platform == "win32":
        import ntsecuritycon  # noqa: PLC0415
        import win32api  # noqa: PLC0415
        import win32con  # noqa: PLC0415
        import win32security  # noqa: PLC0415

        token: Any = win32security.OpenProcessToken(win32api.GetCurrentProcess(), win32con.TOKEN_QUERY)
        owner: Any = win32security.GetTokenInformation(token, win32security.TokenUser)[0]
        rights: Any = win32security.ACL()
        rights.AddAccessAllowedAce(win32security.ACL_REVISION, ntsecuritycon.FILE_ALL_ACCESS, owner)
        what = win32security.DACL_SECURITY_INFORMATION | win32security.PROTECTED_DACL_SECURITY_INFORMATION
        win32security.SetNamedSecurityInfo(str(path), win32security.SE_FILE_OBJECT, what, None, None, rights, None)


# ── what servers last said of themselves, a file each ──


def cache_folder() -> Path:
    import platformdirs  # noqa: PLC0415

    return platformdirs.user_cache_path("mcpmux", appauthor=False) / "servers"


def read_known(folder: Path, servers: Mapping[str, ServerOptions]) -> tuple[dict[str, list[Known]], list[str]]:
    """What the cache has of these servers with these tables; and what could not be read, a line each."""
    found: dict[str, list[Known]] = {}
    notes: list[str] = []
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}, []
    for file in names:
        name, _, rest = file.partition(".")
        if name not in servers or not rest.endswith(f".{table_key(servers[name])}.cache"):
            continue
        try:
            path = folder / file
            known = msgspec.msgpack.decode(path.read_bytes(), type=Known)
            if not known.failed or time.time() - path.stat().st_mtime < FAILURE_REMEMBERED:
                found.setdefault(name, []).append(known)
        except (OSError, msgspec.MsgspecError, ValueError) as wrong:
            notes.append(f"{folder / file} is not used: {wrong}")
    return found, notes


def write_known(folder: Path, server: str, known: Known) -> None:
    """Whole or not at all: hosts start several mcpmux at once. What it replaces is removed. Raises `OSError`."""
    end = f".{known.key}.cache"
    path = folder / f"{server}.{'failed' if known.failed else known.told or 'any'}{end}"
    write_whole(path, msgspec.msgpack.encode(known), lasting=False)
    for file in os.listdir(folder):
        if file.partition(".")[0] == server and (not file.endswith(end) or (".failed." in file and not known.failed)):
            (folder / file).unlink(missing_ok=True)


def forget_failures(folder: Path, server: str) -> None:
    """What kept it from starting is over: lists wait for it again."""
    for path in folder.glob(f"{server}.failed.*.cache"):
        path.unlink(missing_ok=True)


# ══ 10. Pipes ════════════════════════════════════════════════════════════════════════════════════════════════════════
# The host's two pipes and the log, each with a thread that may block so that the loop never does. They know bytes and
# lines, not messages.

LOG_FILE_MOST: Final = 5 * MB  # then it is moved aside, once
CLOSED: Final = -1  # in place of a log file's descriptor: it could not be written
LOG_WAITING_MOST: Final = MB  # what the disk has not taken yet; more is dropped, and said so


class Journal:
    """mcpmux's own log (stderr) and each server's stderr (a file), written by one thread: neither a slow disk nor a
    host that does not read stderr delays anything."""

    def __init__(self, level: str, folder: Path | None) -> None:
        self.threshold = LEVELS[level]
        self.folder = folder
        self._secrets: tuple[str, ...] = ()
        self._queue: collections.deque[tuple[str | Callable[[], None], bytes]] = collections.deque()
        self._lock = threading.Lock()
        self._waiting = 0  # bytes
        self._dropped = 0
        self._wake = threading.Event()
        self._closing = False
        self._files: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._thread = threading.Thread(target=self._write_all, name="mcpmux log", daemon=True)
        self._thread.start()

    def hide(self, secrets: Iterable[str]) -> None:
        """These never appear in the log; short ones would hide half of every line."""
        known = {*self._secrets, *(secret for secret in secrets if len(secret) >= 6)}
        self._secrets = tuple(sorted(known, key=len, reverse=True))  # a short one may be part of a longer one

    def redact(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def log(self, level: str, text: str) -> None:
        if LEVELS[level] >= self.threshold:
            self._put("", f"mcpmux {level}: {self.redact(text)}\n".encode(errors="replace"))

    def keep(self, server: str, data: bytes) -> None:
        """Output of a server, for its file."""
        self._put(server, data)

    def path(self, server: str) -> Path | None:
        """Its log file."""
        return self.folder / f"{server}.log" if self.folder else None

    def rest(self, server: str) -> None:
        """Its process has ended. What the next one says opens the file anew, or tries to."""
        self.later(functools.partial(self._close_file, server))

    def later(self, job: Callable[[], None]) -> None:
        """What else may wait for the disk; an `OSError` of it is logged."""
        self._queue.append((job, b""))
        self._wake.set()

    def close(self) -> None:
        self._closing = True
        self._wake.set()
        self._thread.join(HOST_FLUSH)

    def _put(self, name: str, data: bytes) -> None:
        with self._lock:
            if self._waiting > LOG_WAITING_MOST:
                self._dropped += len(data)
                return
            self._waiting += len(data)
            self._queue.append((name, data))
        self._wake.set()

    def _write_all(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._queue:
                with self._lock:
                    name, data = self._queue.popleft()
                    self._waiting -= len(data)
                    lost, self._dropped = self._dropped, 0
                if isinstance(name, str):
                    self._write(name, data)
                else:
                    try:
                        name()
                    except OSError as wrong:
                        self._write("", f"mcpmux warning: the cache cannot be written: {wrong}\n".encode())
                if lost:
                    self._write(
                        "", b"mcpmux warning: %d bytes of the log and of servers' stderr were not kept\n" % lost
                    )
            if self._closing:
                return

    def _write(self, name: str, data: bytes) -> None:
        """A full or read-only disk, or a stderr that is closed, costs the log and nothing else."""
        try:
            if name:
                self._write_file(name, data)
            else:
                os.write(2, data)
        except OSError as wrong:
            if name and self._files.get(name) != CLOSED:
                self._close_file(name)
                self._files[name] = CLOSED
                self._write("", f"mcpmux warning: {self.path(name)} cannot be written: {wrong}\n".encode())

    def _write_file(self, name: str, data: bytes) -> None:
        path = self.path(name)
        file = self._files.get(name)
        if path is None or file == CLOSED:
            return
        if self._secrets:
            data = self.redact(data.decode(errors="replace")).encode()
        if file is not None and self._sizes[name] + len(data) > LOG_FILE_MOST:
            self._close_file(name)
            os.replace(path, path.with_suffix(".log.1"))
            file = None
        if file is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            file = self._files[name] = os.open(path, flags, 0o600)
            self._sizes[name] = os.fstat(file).st_size
        self._sizes[name] += len(data)
        while data:
            data = data[os.write(file, data) :]

    def _close_file(self, name: str) -> None:
        file = self._files.pop(name, CLOSED)
        self._sizes.pop(name, None)
        if file != CLOSED:
            os.close(file)


def take_over_stdio() -> tuple[int, int]:
    """The host's pipes under numbers that nobody else knows. 0 then reads nothing and 1 goes to stderr, so that no
    library, stray print or helper command can touch the wire."""
    reading, writing = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # started without a stderr
        os.dup2(null, 1)
        os.dup2(null, 2)
    os.close(null)
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415

        import win32api  # noqa: PLC0415

        msvcrt.setmode(reading, os.O_BINARY)
        msvcrt.setmode(writing, os.O_BINARY)
        win32api.SetStdHandle(win32api.STD_INPUT_HANDLE, msvcrt.get_osfhandle(0))
        win32api.SetStdHandle(win32api.STD_OUTPUT_HANDLE, msvcrt.get_osfhandle(1))
    else:
        os.set_blocking(reading, True)
        os.set_blocking(writing, True)
    return reading, writing


def widen(pipe: Any) -> None:
    """Linux: through the usual 64 KB a long message goes in steps, and for each the other side has to be woken. What is
    no pipe, or none any more, or may not grow since the user's pipes hold all that they may, stays as it is. Not done
    before there is a long message: what is in the host's pipe is ahead of all whose turn it would be."""
    if sys.platform == "linux":
        import fcntl  # noqa: PLC0415

        with contextlib.suppress(OSError, ValueError):
            if fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) < PIPE_ROOM:
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_ROOM)


class HostPipes:
    """The host's end: a thread that reads and one that writes, since pipes and files alike can then be blocked on, and
    a process may end while they are. Servers' lines wait in a queue each, served in turn."""

    def __init__(self, reading: int, writing: int, limit: int) -> None:
        self._reading, self._writing = reading, writing
        self._splitter = LineSplitter(limit)
        self._queues: dict[str, collections.deque[bytes]] = {}
        self._sizes: collections.Counter[str] = collections.Counter()
        self._full: set[str] = set()  # sources that are not read until their queue is empty
        self._wake = threading.Condition()
        self._gate = threading.Event()  # closed while what mcpmux itself has to say is not read
        self._gate.set()
        self._heard: list[bytes | TooLong] = []  # lines that the loop has been told of and has not taken yet
        self._heard_size = 0
        self._hearing = threading.Condition()
        self._closing = False
        self._broken = False

    def start(self, post: Callable[[Event], None], on_room: Callable[[str, bool], None]) -> None:
        """`on_room(source, False)` asks not to read from that server until `on_room(source, True)`."""
        self._loop = asyncio.get_running_loop()
        self._post, self._on_room = post, on_room
        self._written = asyncio.Event()
        self._writer = threading.Thread(target=self._write_all, name="mcpmux to host", daemon=True)
        self._writer.start()
        threading.Thread(target=self._read_all, name="mcpmux from host", daemon=True).start()

    def put(self, source: str, line: bytes) -> None:
        with self._wake:
            self._queues.setdefault(source, collections.deque()).append(line)
            self._sizes[source] += len(line)
            if self._sizes[source] <= READ_AHEAD or source in self._full:
                return
            self._full.add(source)
            if source == HOST:
                self._gate.clear()
        self._on_room(source, False)

    def is_full(self, source: str) -> bool:
        return source in self._full

    def _room_again(self, source: str) -> None:
        """In the loop's thread; by now it may be full once more."""
        if source not in self._full:
            self._on_room(source, True)

    def flush(self) -> None:
        with self._wake:
            self._wake.notify()

    async def close(self) -> None:
        """Writes what there is, for a short while."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        try:
            async with asyncio.timeout(HOST_FLUSH):
                await self._written.wait()
        except TimeoutError:
            pass  # it does not read

    def _read_all(self) -> None:
        reason = "the host closed its end"
        while True:
            self._gate.wait()
            try:
                chunk = os.read(self._reading, 65536)
            except OSError as wrong:
                chunk, reason = b"", f"the host cannot be read: {wrong}"
            self._hear(self._splitter.feed(chunk or b"\n"), len(chunk))  # a last line without its newline is a line
            if not chunk:
                self._call(self._post, HostGone(reason))
                return

    def _hear(self, lines: list[bytes | TooLong], size: int) -> None:
        """Wakes the loop once for all that comes while it is busy: each waking is a byte in the socket that signals
        come through too, and a full one would lose SIGTERM. The host waits for a loop that is far behind."""
        if not lines:
            return
        with self._hearing:
            if not self._heard:
                self._call(self._hand_over)
            self._heard += lines
            self._heard_size += size
            self._hearing.wait_for(lambda: self._heard_size <= READ_AHEAD)

    def _hand_over(self) -> None:
        with self._hearing:
            lines, self._heard, self._heard_size = self._heard, [], 0
            self._hearing.notify()
        self._post(HostLines(lines))

    def _write_all(self) -> None:
        while True:
            with self._wake:
                while not any(self._queues.values()):
                    if self._closing:
                        self._call(self._written.set)
                        return
                    self._wake.wait()
                pieces, emptied = self._take_turns()
            for source in emptied:
                self._call(self._room_again, source)
            data = memoryview(b"".join(pieces))
            if len(data) > USUAL_PIPE:
                widen(self._writing)
            try:
                while data and not self._broken:
                    data = data[os.write(self._writing, data) :]
            except OSError as wrong:
                self._broken = True  # what is still queued has nobody to go to
                self._call(self._post, HostGone(f"the host cannot be written to: {wrong}"))

    def _take_turns(self) -> tuple[list[bytes], list[str]]:
        """At least a line and at most about `FAIR_BITE` of each queue; and the sources that may be read again."""
        pieces: list[bytes] = []
        emptied: list[str] = []
        for source, queue in list(self._queues.items()):
            bite = 0
            while queue and bite < FAIR_BITE:
                bite += len(queue[0])
                pieces.append(queue.popleft())
            self._sizes[source] -= bite
            if not queue:  # nothing is kept of a server that may never come back
                del self._queues[source], self._sizes[source]
            if not queue and source in self._full:
                self._full.discard(source)
                emptied.append(source)
                if source == HOST:
                    self._gate.set()
        return pieces, emptied

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed: nobody listens
            pass


# ══ 11. Processes ════════════════════════════════════════════════════════════════════════════════════════════════════
# One process a server, in a group of its own. A process is told from its pipes: its exit is noticed even while a
# grandchild holds them open, and nothing of its group outlives it.


# How to start a process so that it and all that it starts can be ended as one; out of reach of a terminal's Ctrl-C.
OWN_GROUP: Final[dict[str, Any]] = (
    {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
    if sys.platform == "win32"
    else {"start_new_session": True}
)


class Family:
    """A process that was started with `OWN_GROUP`, and all that it has started: its group, or on Windows a job object,
    which also ends when mcpmux itself does."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._job: Any = _job_for(pid)

    def terminate(self) -> None:
        """Asks it to go. Windows has no such signal."""
        if sys.platform != "win32":
            self._signal(signal.SIGTERM)

    def kill(self, strangers: Iterable[int] = ()) -> None:
        """The group, and on Linux those `descendants` that left it for a session of their own."""
        if sys.platform != "win32":
            self._signal(signal.SIGKILL)
            kill_all(strangers)
        elif self._job is not None:
            import win32job  # noqa: PLC0415

            win32job.TerminateJobObject(self._job, 1)
            self._job.Close()
            self._job = None

    def _signal(self, number: int) -> None:
        if sys.platform != "win32":
            try:
                os.killpg(self.pid, number)
            except (ProcessLookupError, PermissionError):  # nobody is left in it, or only what is not ours
                pass


def kill_all(pids: Iterable[int]) -> None:
    """Those of them that are still there."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def _job_for(pid: int) -> Any:
    """Windows: a job object that ends, with all in it, when its handle is closed, if only by our own death."""
    if sys.platform == "win32":
        import win32api  # noqa: PLC0415
        import win32con  # noqa: PLC0415
        import win32job  # noqa: PLC0415

        job: Any = win32job.CreateJobObject(None, "")
        limits = win32job.QueryInformationJobObject(job, win32job.JobObjectExtendedLimitInformation)
        limits["BasicLimitInformation"]["LimitFlags"] |= win32job.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
        win32job.SetInformationJobObject(job, win32job.JobObjectExtendedLimitInformation, limits)
        handle = win32api.OpenProcess(win32con.PROCESS_SET_QUOTA | win32con.PROCESS_TERMINATE, False, pid)
        win32job.AssignProcessToJobObject(job, handle)
        win32api.CloseHandle(handle)
        return job
    return None


async def expand(text: str, where: str, environment: Mapping[str, str], secrets: set[str]) -> str:
    """`${VAR}`, `${VAR:-default}` and `${cmd:…}` replaced. What came from outside is added to `secrets`.

    Raises `StartError` that names the variable or the command, never a value.
    """
    pieces: list[str] = []
    at = 0
    for match in PLACEHOLDER.finditer(text):
        pieces.append(text[at : match.start()])
        at = match.end()
        if match[1]:
            pieces.append("${")
        elif match["cmd"] is not None:
            pieces.append(await _secret_from(match["cmd"], where, environment))
            secrets.add(pieces[-1])
        elif value := environment.get(match["var"]):
            pieces.append(value)
            if match["var"] not in SAFE_VARIABLES:
                secrets.add(value)
        elif match["default"] is not None:
            pieces.append(match["default"])
        elif match["var"] not in environment:
            what = f"${{{match['var']}}} is not set ({where})"
            raise StartError(what, f"set {match['var']} in the host's environment or in env_file")
    return "".join([*pieces, text[at:]])


async def _secret_from(command: str, where: str, environment: Mapping[str, str]) -> str:
    hint = f"try it in a terminal: {command}"
    try:
        words = shlex.split(command, posix=sys.platform != "win32")
        words = [word[1:-1] if word[:1] == word[-1:] == '"' else word for word in words]  # Windows' way leaves them
        program = shutil.which(words[0], path=extended_path(environment)) if words else None
        if program is None:
            raise StartError(f"the command of ${{cmd:…}} was not found ({where})", hint)
        process = await asyncio.create_subprocess_exec(
            program,
            *words[1:],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environment),
            **OWN_GROUP,
        )
    except (OSError, ValueError) as wrong:
        raise StartError(f"the command of ${{cmd:…}} cannot be run: {wrong} ({where})", hint) from None
    family = Family(process.pid)
    try:
        async with asyncio.timeout(SECRET_COMMAND_TIMEOUT):
            out, _ = await process.communicate()
    except TimeoutError:
        raise StartError(f"the command of ${{cmd:…}} took over {SECRET_COMMAND_TIMEOUT:g} s ({where})", hint) from None
    finally:
        family.kill()  # also what it left behind, or all of it when the start is given up
        await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=1.0)  # its pipes close by that
    if process.returncode:
        raise StartError(f"the command of ${{cmd:…}} exited with code {process.returncode} ({where})", hint)
    return out.decode(errors="replace").strip()


class Command(Struct, frozen=True):
    """A server's table, ready to be run."""

    program: str
    args: list[str]
    env: dict[str, str]
    cwd: str | None
    secrets: frozenset[str]


async def prepare(name: str, options: ServerOptions, config: Config) -> Command:
    """Placeholders, environment and the program's place. Raises `StartError`."""
    secrets: set[str] = set()

    async def full(text: str, key: str) -> str:
        return await expand(text, f"mcp_servers.{name}.{key}", config.environment, secrets)

    assert options.command is not None
    same = str.upper if sys.platform == "win32" else str  # names of variables compare without case there
    wanted = {same(variable) for variable in [*SAFE_VARIABLES, *options.env_vars]}
    env = {
        key: value
        for key, value in config.environment.items()
        if (same(key) in wanted or key.startswith(SAFE_PREFIXES) or "*" in options.env_vars)
        and not value.startswith("()")  # an exported shell function
        and not key.startswith("MCPMUX_")
    }
    env["PATH"] = extended_path(env)
    for key, value in options.env.items():
        env.pop(next((one for one in env if same(one) == same(key)), key), None)
        env[key] = await full(value, f"env.{key}")
        if _SECRET_NAME.search(key):
            secrets.add(env[key])

    def shown(written: str, real: str) -> str:
        return written if "${" in written else real  # what came from outside may be a secret

    command = os.path.expanduser(await full(options.command, "command"))
    args = [await full(arg, f"args[{number}]") for number, arg in enumerate(options.args)]
    secrets.update(secrets_in(args))
    cwd = str(_absolute(await full(options.cwd, "cwd"), config.path.parent)) if options.cwd else None
    if cwd and not os.path.isdir(cwd):
        raise StartError(f"its cwd {shown(options.cwd or '', cwd)} is no folder", f"correct mcp_servers.{name}.cwd")
    if os.path.dirname(command):
        command = str(_absolute(command, config.path.parent))  # never against the folder that the host chose
    program = shutil.which(command, path=env["PATH"])
    if program is None and os.path.exists(command):
        raise StartError(f"{shown(options.command, command)} may not be executed", "make it executable: chmod +x")
    if program is None and os.path.dirname(command):
        raise StartError(
            f"there is no program {shown(options.command, command)}", f"correct mcp_servers.{name}.command"
        )
    if program is None:
        comes_with = {"npx": "Node.js", "node": "Node.js", "npm": "Node.js", "uvx": "uv", "docker": "Docker"}
        todo = f"install {comes_with.get(options.command, 'it')}, or give its full path as `command`"
        raise StartError(f"{options.command!r} was not found on PATH", todo)
    return Command(program, args, env, cwd, frozenset(secrets))


class ServerProcess(asyncio.SubprocessProtocol):
    """One running server: its lines and its end become events. Everything here happens in the loop's thread."""

    def __init__(self, name: str, run: int, post: Callable[[Event], None], limit: int, journal: Journal) -> None:
        self.name, self.run = name, run
        self.outbox: list[bytes] = []  # lines of this batch; the transport has the rest
        self.exited = asyncio.Event()
        self._post = post
        self._journal = journal
        self._splitter = LineSplitter(limit)
        self._words: collections.deque[str] = collections.deque(maxlen=STDERR_LINES)
        self._word = b""  # stderr's last line, still incomplete
        self._has_log = False  # it has said something there
        self._open_pipes = {1, 2}
        self._gone = False
        self._stopping = False
        self._closing: asyncio.Future[None] | None = None
        self._transport: asyncio.SubprocessTransport | None = None

    # ── what the loop tells ──

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport
        self.pid = transport.get_pid()
        self._family = Family(self.pid)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1:
            lines = self._splitter.feed(data)
            if lines:
                self._post(ServerLines(self.name, self.run, lines))
            elif self._transport and (stdout := self._transport.get_pipe_transport(1)):
                widen(stdout.get_extra_info("pipe"))  # the end of a long one is still to come
        else:
            self._journal.keep(self.name, data)
            self._has_log = True
            *lines, self._word = (self._word + data).split(b"\n")
            self._word = self._word[-EDGE:]
            self._words.extend(
                line.decode(errors="replace").strip()[:500] for line in lines[-STDERR_LINES:] if line.strip()
            )

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open_pipes.discard(fd)
        if fd != 2 and not self._gone and not self.exited.is_set() and not self._stopping:
            self._closing = asyncio.ensure_future(self.stop())  # closing a pipe is a way to say goodbye
        if self.exited.is_set() and not self._open_pipes:
            self._end()

    def process_exited(self) -> None:
        self.exited.set()
        self.read(True)  # what it still said is heard, also by a host that is slow
        if self._open_pipes:  # its last words may still be in the pipe; a grandchild may hold it open
            asyncio.get_running_loop().call_later(EXIT_DRAIN, self._end)
        else:
            self._end()

    def pause_writing(self) -> None:
        self._post(ServerClogged(self.name, self.run, True))

    def resume_writing(self) -> None:
        self._post(ServerClogged(self.name, self.run, False))

    # ── what the mux does ──

    def allow(self, outbox: int) -> None:
        """Sets how much may wait for it."""
        self._stdin().set_write_buffer_limits(high=outbox, low=0)

    def flush(self) -> None:
        if self.outbox:
            data = b"".join(self.outbox)
            self.outbox.clear()
            if not self._stdin().is_closing():
                self._stdin().write(data)

    def read(self, wanted: bool) -> None:
        """Stops or resumes reading its stdout."""
        assert self._transport
        pipe = self._transport.get_pipe_transport(1)
        if isinstance(pipe, asyncio.ReadTransport) and not pipe.is_closing():
            pipe.resume_reading() if wanted else pipe.pause_reading()

    async def stop(self) -> None:
        """The ladder. Each step is for servers that the one before it does not end; in all at most 1.5 s."""
        self._stopping = True
        # 1. End of input: how the protocol says goodbye.
        self.read(True)  # a server that blocks on its output cannot see it
        self._stdin().close()
        if not await self._exits(STOP_STEP):
            # 2. SIGTERM to the group, for servers that do not watch stdin.
            strangers = descendants(self.pid)
            self._family.terminate()
            if sys.platform != "win32":
                await self._exits(STOP_STEP)
            # 3. Nothing is asked any more.
            self._family.kill(strangers)
            await self._exits(STOP_LAST)
        self._end()

    async def _exits(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self.exited.wait()
            return True
        except TimeoutError:
            return False

    def _end(self) -> None:
        """Once: the group is killed, the pipes are closed, and the core is told."""
        if self._gone:
            return
        self._gone = True
        assert self._transport
        code = self._transport.get_returncode()
        self._family.kill()
        last = self._splitter.feed(b"\n")
        if last:
            self._post(ServerLines(self.name, self.run, last))
        self._transport.close()
        if self._word.strip():
            self._words.append(self._word.decode(errors="replace").strip()[:500])
        how = _ended_how(code)
        log = self._journal.path(self.name) if self._has_log else None
        self._journal.rest(self.name)
        hint = (f"its log is {log}; " if log else "") + "the next call starts it again"
        words = [self._journal.redact(line) for line in list(self._words)[-5:]]
        self._post(ServerGone(self.name, self.run, f"{self.name} {how}", hint, words))

    def _stdin(self) -> asyncio.WriteTransport:
        assert self._transport
        pipe = self._transport.get_pipe_transport(0)
        assert isinstance(pipe, asyncio.WriteTransport)
        return pipe


def _ended_how(code: int | None) -> str:
    if code is None:
        return "does not end even when it is killed"
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


async def spawn(command: Command, process: ServerProcess, outbox: int) -> None:
    """Starts it in a group of its own. Raises `StartError`."""
    try:
        await asyncio.get_running_loop().subprocess_exec(
            lambda: process, command.program, *command.args, env=command.env, cwd=command.cwd, **OWN_GROUP
        )
    except (OSError, ValueError) as wrong:
        raise StartError(f"could not be started: {wrong}", "check command, args and cwd in its table") from None
    process.allow(outbox)


def become_subreaper() -> None:
    """Linux: orphans of our servers become our children, so that they can be found and killed at the end."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415

        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, linux/prctl.h


def memory_trimmer() -> Callable[[], object]:
    """Linux: gives free memory back to the system, some milliseconds' work. glibc by itself keeps what lies below any
    block that is in use: 60 MB after one long message, 150 after some minutes of middling ones, for good."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415

        libc = ctypes.CDLL(None)
        trim: Any = getattr(libc, "malloc_trim", None)  # other C libraries have none, and no such need
        if trim:
            # A long message's memory is not to go back as soon as it is freed: the next would pay for each page anew.
            libc.mallopt(-3, 32 * MB)  # M_MMAP_THRESHOLD, at its most; malloc.h
            libc.mallopt(-1, 64 * MB)  # M_TRIM_THRESHOLD
            return functools.partial(trim, 0)
    return lambda: None


def descendants(pid: int) -> list[int]:
    """All that a process has started and that still hangs on it (Linux; elsewhere none is known)."""
    found: list[int] = []
    if sys.platform == "linux":
        for task in _entries(f"/proc/{pid}/task"):
            try:
                children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
            except OSError:
                continue
            for child in children:
                found += [int(child), *descendants(int(child))]
    return found


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def parent_watch() -> Callable[[], bool]:
    """Tells whether the process that started us is gone. Some hosts kill only the launcher (`uvx`), and the pipes that
    it had from them stay open."""
    parent = os.getppid()
    if sys.platform == "win32":
        import pywintypes  # noqa: PLC0415
        import win32api  # noqa: PLC0415
        import win32con  # noqa: PLC0415
        import win32event  # noqa: PLC0415

        try:
            handle: Any = win32api.OpenProcess(win32con.SYNCHRONIZE, False, parent)
        except pywintypes.error:
            return lambda: False
        return lambda: win32event.WaitForSingleObject(handle, 0) == win32event.WAIT_OBJECT_0
    return lambda: os.getppid() != parent


def reap(known: Iterable[int]) -> None:
    """Linux: takes orphans that have ended out of the process table; the loop waits for `known` itself."""
    if sys.platform == "linux":
        for pid in set(descendants(os.getpid())) - set(known):
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass


# ══ 12. Remote ═══════════════════════════════════════════════════════════════════════════════════════════════════════
# Servers over HTTP. To the rest of mcpmux one of them is a process: lines go in, lines and an end come out, byte for
# byte. Underneath is the SDK's HTTP client alone (`httpx2`), loaded with the first such server: the SDK's transports
# would decode every message, and hide why a request failed. The tasks of a connection live in one group of anyio's,
# and each request in a scope: closing that is how it is cancelled.
# https://modelcontextprotocol.io/specification/2026-07-28/basic/transports/streamable-http and, for the legacy era,
# https://modelcontextprotocol.io/specification/2025-11-25/basic/transports

IN_ORDER: Final = 5.0  # what changes a session is waited for before the next line goes out, but not for ever
CONNECT_PATIENCE: Final = 10.0  # a host that drops packets would hold a call until its timeout
LISTEN_AFTER: Final = 1.0  # before a stream that ended, or cannot be had for a moment, is asked for again
LISTEN_AFTER_MOST: Final = 30.0
LISTEN_LEAST: Final = 0.2  # between two askings: a server may say `retry: 0`, and end each stream at once
RETRY_MOST: Final = 3600.0  # a server may also say to come back in a thousand years
RESUMES: Final = 2  # how often in a row the rest of an answer is asked for in vain
KEPT_IDLE: Final = 3.0  # many servers close an idle connection after 5 s, and a request may then be lost on it
READ_OUT: Final = 0.1  # a server that does not end an answered request's stream would keep its task
REDIRECTS: Final = 5
# Requests that change what the lines after them mean; the others run side by side.
IN_TURN: Final = frozenset({"initialize", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"})
SESSION: Final = "mcp-session-id"
VERSION: Final = "mcp-protocol-version"
EVENTS: Final = "text/event-stream"
# By the method that has one: which of its params goes into a header too.
NAMED_BY: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
_IN_A_HEADER: Final = re.compile(r"[!-~\x80-\xff](?:[ -~\x80-\xff]*[!-~\x80-\xff])?")
_SAID_TOO_MUCH: Final = ("said more at once than it may", "raise max_message_mb in [mux], or tell those who run it")
_NO_MESSAGE: Final = ("answered with something that is no message", "tell those who run it")
_FORGOTTEN: Final = (
    "has forgotten the session: it was restarted, or the session was too old",
    "the next call begins a new one",
)
PERHAPS_LOST: Final = (400, 404, 410)  # the statuses with which servers say that they do not know a session


class RemoteError(McpmuxError):
    """Something between us and a remote server: what, and what to do. `is_end`: the server is gone by it. `was_taken`:
    it may have read what it was sent. `spares`: what it is answering already may still be answered."""

    def __init__(
        self, what: str, todo: str, *, is_end: bool = False, was_taken: bool = True, spares: bool = False
    ) -> None:
        super().__init__(what)
        self.what, self.todo = what, todo
        self.is_end, self.was_taken, self.spares = is_end, was_taken, spares


class Unreadable(RemoteError):
    """What a server says is too long, or no message."""


class Address(Struct, frozen=True):
    """A remote server's table, ready to be used."""

    url: str
    headers: dict[str, str]
    secrets: frozenset[str]
    login: Path  # the file of its login, if there is one
    may_be_open: bool  # tokens may go over plain HTTP

    @property
    def shown(self) -> str:
        """Without what may be secret."""
        parts = urllib.parse.urlsplit(self.url)
        return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    @property
    def has_credentials(self) -> bool:
        return any(name.lower() == "authorization" for name in self.headers)


def refuse_open(url: str, may_be_open: bool) -> None:
    """Before a token or its like goes there. Raises `StartError` where anybody on the way could read it."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    try:
        is_here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = f".{host}".endswith(".localhost")
    if parts.scheme == "http" and not is_here and not may_be_open:
        what = f"its token would go to {host} over plain http://, which others can read"
        raise StartError(what, "use https://, or set allow_http = true in its table")


def login_path(config: Path, name: str, url: str) -> Path:
    """A login belongs to a table: two of them may have two accounts at one url."""
    key = encode([os.path.normcase(os.path.realpath(config)), name, url.encode(errors="replace").decode()])
    return state_folder() / "logins" / f"{hashlib.sha256(key).hexdigest()[:24]}.json"


def take_over(login: Path, url: str) -> bool:
    """Whether this login is there. Its file was once named by its url alone: the first table to look for it has it."""
    if not login.exists():
        with contextlib.suppress(OSError):
            former = hashlib.sha256(url.encode(errors="replace")).hexdigest()[:24]
            (login.parent / f"{former}.json").rename(login)
    return login.exists()


async def locate(name: str, options: ServerOptions, config: Config) -> Address:
    """Placeholders, and headers from the environment. Raises `StartError`."""
    secrets: set[str] = set()
    where = f"mcp_servers.{name}"
    assert options.url is not None
    url = await expand(options.url, f"{where}.url", config.environment, secrets)
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StartError("its url is no http:// or https:// address", f"correct {where}.url")
    headers: dict[str, str] = {}
    for header, value in options.http_headers.items():
        headers[header] = await expand(value, f"{where}.http_headers.{header}", config.environment, secrets)
        if _SECRET_NAME.search(header):
            secrets.add(headers[header])
    variables = {header: (variable, "env_http_headers") for header, variable in options.env_http_headers.items()}
    if options.bearer_token_env_var:
        variables["Authorization"] = (options.bearer_token_env_var, "bearer_token_env_var")
    for header, (variable, key) in variables.items():
        value = config.environment.get(variable, "")
        if not value:
            todo = f"set {variable} in the host's environment or in env_file"
            raise StartError(f"{variable} is not set ({where}.{key})", todo)
        secrets.add(value)
        headers[header] = f"Bearer {value}" if key == "bearer_token_env_var" else value
    for header, value in headers.items():
        if not value.isascii() or not value.isprintable():
            raise StartError(
                f"its header {header} has a character that no header may have", f"correct it in {where} or its variable"
            )
    login = login_path(config.path, name, url)
    named = any(_SECRET_NAME.search(text) for text in (*headers, parts.query))
    if named or parts.password or options.env_http_headers or take_over(login, url):
        refuse_open(url, options.allow_http)
    return Address(url, headers, frozenset(secrets), login, options.allow_http)


class Loaded(NamedTuple):
    """What servers over HTTP need, and nothing else does."""

    http: Any  # the SDK's HTTP client, a module
    anyio: Any
    trusted: Any  # certificates


@functools.cache
def load_http() -> Loaded:
    """Takes an eighth of a second. Raises `StartError`."""
    import logging  # noqa: PLC0415

    logging.getLogger("mcp").addHandler(logging.NullHandler())  # what the SDK's login logs it tells too
    try:
        import anyio  # noqa: PLC0415
        import httpx2  # noqa: PLC0415

        return Loaded(httpx2, anyio, httpx2.create_ssl_context())
    except (ImportError, OSError) as wrong:  # a file of certificates that is not there, or none
        todo = "look at SSL_CERT_FILE and SSL_CERT_DIR in the host's environment"
        raise StartError(f"HTTP cannot be spoken here: {wrong}", todo) from None


def new_client(url: str, **keys: Any) -> Any:
    """An HTTP client for one host, by the proxy that is for it: by itself it would make a way for each proxy of the
    environment, and fail for one that is not used. Raises `StartError`."""
    http, _, trusted = load_http()
    try:
        return http.AsyncClient(verify=trusted, proxy=proxy_for(url), trust_env=False, **keys)
    except ImportError:
        todo = "install socksio beside mcpmux (`uvx --with socksio mcpmux`), or add its host to NO_PROXY"
        raise StartError("a SOCKS proxy needs one more package, socksio", todo) from None
    except (ValueError, http.InvalidURL) as wrong:
        todo = "look at HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY in the host's environment"
        raise StartError(f"the proxy of the environment cannot be used: {wrong}", todo) from None


def proxy_for(url: str) -> str | None:
    """The environment's proxy for this address. NO_PROXY is read as other programs do, with networks and ports."""
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415

    parts, proxies = urllib.parse.urlsplit(url), getproxies()
    host, port = (parts.hostname or "").lower(), parts.port or {"https": 443}.get(parts.scheme, 80)
    found = proxies.get(parts.scheme) or proxies.get("all")
    if not found or proxy_bypass(host):
        return None
    for entry in proxies.get("no", "").lower().split(","):
        name = entry.strip().rpartition("://")[2]
        name = name.removesuffix(f":{port}") if name.count(":") == 1 or "]:" in name else name
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(host) in ipaddress.ip_network(name.strip("[]"), strict=False):
                return None
        ending = name.removeprefix("*").removeprefix(".")
        if name == "*" or (ending and f".{host}".endswith(f".{ending}")):
            return None
    return re.sub(r"^socks(?=:)", "socks5", found if "://" in found else f"http://{found}")


def plain(text: str) -> str:
    """Words of a peer, for a person: one line, without what a terminal would obey."""
    return " ".join("".join(one if one.isprintable() else " " for one in text[:MB]).split())[:TEXT_MOST]


def is_stream(response: Any) -> bool:
    return response.is_success and media_type(response) == EVENTS


def media_type(response: Any) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()


def connection_trouble(wrong: BaseException, shown: str) -> tuple[str, str]:
    """What kept an HTTP client from its server, in one line, and what to do: from all that the exception stands on."""
    below: list[BaseException] = [wrong]
    for one in below:  # it grows while it is read
        inner = [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
        below += [other for other in inner if other is not None and other not in below]
    kinds = {kind.__name__ for one in below for kind in type(one).__mro__}
    if isinstance(wrong, StartError):
        return f"cannot be reached: {wrong.args[0]}", wrong.args[1]
    certificate = next((one for one in below if isinstance(one, ssl.SSLCertVerificationError)), None)
    if certificate:
        todo = "correct the host in its url, or name your company's CA file in SSL_CERT_FILE"
        return f"has a TLS certificate that is not trusted: {certificate.verify_message} ({shown})", todo
    if failed := next((one for one in below if isinstance(one, ssl.SSLError)), None):
        todo = "does its url begin with https:// where the server speaks plain http://?"
        return f"cannot be spoken to over TLS: {failed.reason or failed} ({shown})", todo
    if "ProxyError" in kinds:
        todo = "look at HTTPS_PROXY, HTTP_PROXY and NO_PROXY in the host's environment"
        return f"cannot be reached through the proxy: {wrong}", todo
    if "gaierror" in kinds:
        return f"cannot be found: no such host ({shown})", "correct its url, or look at the network"
    if "ConnectionRefusedError" in kinds:
        return f"cannot be reached: connection refused ({shown})", "is it running, and is its url right?"
    if "TimeoutException" in kinds or "TimeoutError" in kinds:
        seconds = f"{CONNECT_PATIENCE:g} s"
        return f"cannot be reached: no connection within {seconds} ({shown})", "look at the network and at its url"
    return f"cannot be reached: {str(wrong) or type(wrong).__name__} ({shown})", "look at the network and at its url"


# ── logins ──

LOGIN_SLACK: Final = 30.0  # an access token that runs out so soon is renewed before it is used
LOCK_PATIENCE: Final = 20.0  # another mcpmux that renews the same login may hang
LOCK_LOOK: Final = 0.05
LOGIN_PATIENCE: Final = 600.0  # nobody may ever come back from the browser
HTTP_PATIENCE: Final = 30.0  # of one request of a login
REFUSED: Final = (400, 401, 403)  # how an authorization server answers to a refresh token that it does not take


class Login(Struct, frozen=True):
    """What a login at one address has brought: a file that only its owner may read."""

    url: str
    access_token: str
    token_endpoint: str
    client_id: str
    client_secret: str | None = None
    auth_method: str | None = None  # how the client shows who it is
    refresh_token: str | None = None
    expires_at: float | None = None  # as `time.time` has it
    resource: str | None = None
    scope: str | None = None
    revocation_endpoint: str | None = None

    @property
    def secrets(self) -> list[str]:
        return [one for one in (self.access_token, self.refresh_token, self.client_secret) if one]


def read_login(path: Path) -> Login | None:
    """None where there is none, or none that can be read: the next login writes it anew."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Login)
    except (OSError, msgspec.MsgspecError):
        return None


def write_login(path: Path, login: Login) -> None:
    """Whole or not at all, and for nobody else's eyes. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, encode(login), private=True)


def _locks(file: int) -> bool:
    """Whether the lock on this file is ours now. It ends with the file, and so with the process."""
    try:
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl  # noqa: PLC0415

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.asynccontextmanager
async def login_lock(path: Path) -> AsyncGenerator[None]:
    """Of all mcpmux processes one at a time renews a login: a refresh token may be good for one use only. Raises
    `TimeoutError` and `OSError`."""
    path = path.with_suffix(".lock")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        async with asyncio.timeout(LOCK_PATIENCE):
            while not _locks(file):  # noqa: ASYNC110 - no event tells that another process lets go
                await asyncio.sleep(LOCK_LOOK)
        yield
    finally:
        os.close(file)


async def fetch(request: Any, may_be_open: bool, reads: bool = True) -> Any:
    """A request of a login: its response, with as much of the body as authorization servers say. Raises `StartError`,
    and what HTTP raises."""
    refuse_open(str(request.url), may_be_open)
    async with new_client(str(request.url), timeout=HTTP_PATIENCE) as client:
        response = await client.send(request, stream=True)
        body = bytearray()
        if reads:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MB:
                    break
        await response.aclose()
    headers = [pair for pair in response.headers.items() if pair[0] not in ("content-encoding", "content-length")]
    read = load_http().http.Response(response.status_code, headers=headers, content=bytes(body[:MB]), request=request)
    read.next_request = response.next_request
    return read


async def play(flow: Any, answer: Callable[[Any], Awaitable[Any]]) -> None:
    """An auth flow of the SDK's, with `answer` in the place of an HTTP client: a response for a request; None stops."""
    async with contextlib.aclosing(flow):
        request = await anext(flow)
        with contextlib.suppress(StopAsyncIteration):
            while (response := await answer(request)) is not None:
                request = await flow.asend(response)


class InMemory:
    """A storage as the SDK's provider wants one. Files are written here, by those who hold their lock."""

    def __init__(self, client: Any = None, tokens: Any = None) -> None:
        self._client, self._tokens = client, tokens

    async def get_tokens(self) -> Any:
        return self._tokens

    async def set_tokens(self, tokens: Any) -> None:
        self._tokens = tokens

    async def get_client_info(self) -> Any:
        return self._client

    async def set_client_info(self, client_info: Any) -> None:
        self._client = client_info


def provider_of(login: Login) -> Any:
    """The SDK's keeper of this login, which finds that its access token has run out."""
    from mcp.client.auth import OAuthClientProvider  # noqa: PLC0415
    from mcp.shared import auth  # noqa: PLC0415

    tokens = auth.OAuthToken(access_token=login.access_token, refresh_token=login.refresh_token, scope=login.scope)
    client = auth.OAuthClientInformationFull(
        redirect_uris=None,
        client_id=login.client_id,
        client_secret=login.client_secret,
        token_endpoint_auth_method=login.auth_method,
    )
    provider = OAuthClientProvider(login.url, auth.OAuthClientMetadata(redirect_uris=None), InMemory(client, tokens))
    context = provider.context
    context.client_info, context.token_expiry_time = client, 1.0
    context.oauth_metadata = auth.OAuthMetadata.model_construct(token_endpoint=login.token_endpoint)
    if login.resource:
        prm = auth.ProtectedResourceMetadata.model_construct(resource=login.resource)
        context.protected_resource_metadata = prm
    return provider


class LoginKeeper:
    """The login of one table while its server is used: read from its file, renewed, and written back."""

    def __init__(self, path: Path, may_be_open: bool, journal: Journal) -> None:
        self._path = path
        self._may_be_open = may_be_open
        self._journal = journal
        self._lock = asyncio.Lock()
        self._refused: str | None = None  # a refresh token that is good for nothing any more
        self._take(read_login(path))

    def _take(self, login: Login | None) -> None:
        self._login = login
        if login:
            self._journal.hide(login.secrets)

    @property
    def is_there(self) -> bool:
        return self._login is not None

    async def token(self) -> str | None:
        """One that has not run out, if that can be helped."""
        login = self._login
        if login and login.expires_at is not None and login.expires_at - LOGIN_SLACK < time.time():
            try:
                await self.renew(login.access_token)
            except RemoteError as wrong:  # perhaps it is still taken
                self._journal.log("debug", f"a login was not renewed: it {wrong.what}")
        return self._login.access_token if self._login else None

    async def renew(self, used: str | None) -> bool:
        """Whether there is another token than `used` now. Raises `RemoteError` where that could not be found out."""
        async with self._lock:
            try:
                if self._login and self._login.access_token != used:
                    return True
                if self._login is None and not self._path.exists():
                    return False
                async with login_lock(self._path):
                    self._take(read_login(self._path))  # another process may have renewed it
                    login = self._login
                    if login is None or login.access_token != used:
                        return login is not None
                    if login.refresh_token in (None, self._refused):
                        return False
                    renewed = await self._refresh(login)
                    if renewed is None:
                        self._refused = login.refresh_token
                        return False
                    self._take(renewed)
                    try:
                        write_login(self._path, renewed)
                    except OSError as wrong:  # it serves here all the same
                        self._journal.log("warning", f"a renewed login cannot be kept: {wrong}")
                    return True
            except (OSError, TimeoutError) as wrong:
                what = f"cannot be logged in to: the file of its login: {wrong or 'another mcpmux holds it'}"
                raise RemoteError(what, f"look at {self._path}") from None

    async def _refresh(self, login: Login) -> Login | None:
        """None where the authorization server does not take the refresh token."""
        http = (await asyncio.to_thread(load_http)).http
        provider = await asyncio.to_thread(provider_of, login)
        afterwards = http.Request("POST", login.url)  # never sent
        place, statuses = urllib.parse.urlsplit(login.token_endpoint).netloc, [0]

        async def answer(request: Any) -> Any:
            response = None if request is afterwards else await fetch(request, self._may_be_open)
            statuses.append(response.status_code if response else statuses[-1])
            return None if statuses[-1] in REFUSED else response

        try:
            await play(provider.async_auth_flow(afterwards), answer)
        except (http.TransportError, OSError, StartError) as wrong:
            what, todo = connection_trouble(wrong, place)
            raise RemoteError(f"cannot be logged in to: its authorization server {what}", todo) from None
        if statuses[-1] in REFUSED:
            return None
        tokens = provider.context.current_tokens
        if tokens is None:
            what = f"cannot be logged in to: {place} answered HTTP {statuses[-1]} without a token"
            raise RemoteError(what, "try again later")
        return msgspec.structs.replace(
            login,
            access_token=tokens.access_token,
            expires_at=None if tokens.expires_in is None else time.time() + tokens.expires_in,
            refresh_token=tokens.refresh_token,
            scope=tokens.scope,
        )


def one_issuer(one: str, other: str) -> bool:
    """Whether two issuers are the same: with a slash after an empty path, and without."""
    short, long = sorted((one, other), key=len)
    return short == long or (f"{short}/" == long and not urllib.parse.urlsplit(short).path)


class Browser:
    """How a person is asked: an address is opened, and a page on loopback is where the answer comes back (RFC 8252,
    7.3). `go` and `come_back` are what the SDK's provider wants for that."""

    def __init__(self, scopes: list[str], say: Callable[[str], None]) -> None:
        self._scopes = scopes
        self._say = say
        self._answer: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        self._state = ""  # what the answer must name, since any page may send a browser here; empty before it is asked
        self.context: Any = None  # of the SDK's provider

    async def open(self, port: int) -> str:
        """The page's address. Raises `OSError`."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self._host = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return f"http://{self._host}/callback"

    def close(self) -> None:
        self._server.close()

    async def go(self, url: str) -> None:
        import webbrowser  # noqa: PLC0415

        parts = urllib.parse.urlsplit(url)
        query = dict(urllib.parse.parse_qsl(parts.query))
        self._state = query.get("state", "")
        if self._scopes:  # the SDK asks for what the server names
            query["scope"] = " ".join(self._scopes)
            url = urllib.parse.urlunsplit(parts._replace(query=urllib.parse.urlencode(query)))
        self._say(f"Your browser is opened for the login. If it is not, open this address:\n\n  {url}\n")
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

    async def come_back(self) -> Any:
        """Raises `TimeoutError`, and the SDK's `OAuthFlowError` where the answer is no."""
        from mcp.client.auth import AuthorizationCodeResult, OAuthFlowError  # noqa: PLC0415

        async with asyncio.timeout(LOGIN_PATIENCE):
            answer = await self._answer
        if "error" in answer:
            said = answer.get("error_description", answer["error"])
            raise OAuthFlowError(f"the login was refused: {said[:TEXT_MOST]}")
        issuer, known = answer.get("iss"), self.context.oauth_metadata
        if issuer and known and one_issuer(issuer, str(known.issuer)):
            issuer = str(known.issuer)
        return AuthorizationCodeResult(code=answer.get("code", ""), state=answer.get("state"), iss=issuer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        import hmac  # noqa: PLC0415

        try:
            async with asyncio.timeout(CONNECT_PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
            target = urllib.parse.urlsplit(head.split(b" ", 2)[1].decode())
            query = {key: values[0] for key, values in urllib.parse.parse_qs(target.query).items()}
            # A page elsewhere may have its name lead to this machine; the browser then says that name.
            hosts = re.findall(rb"(?im)^host:[ \t]*(\S*)[ \t]*\r$", head)
            is_ours = self._state and hmac.compare_digest(query.get("state", "").encode(), self._state.encode())
            is_ours = is_ours and hosts == [self._host.encode()] and target.path == "/callback"
            is_answer = is_ours and bool({"code", "error"} & query.keys())
            text = "mcpmux has its answer; this page may be closed." if is_answer else "There is nothing here."
            status = "200 OK" if is_answer else "404 Not Found"
            kind = "Content-Type: text/plain; charset=utf-8\r\nConnection: close"
            writer.write(f"HTTP/1.1 {status}\r\n{kind}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
            await writer.drain()
            if is_answer and not self._answer.done():
                self._answer.set_result(query)
        except (OSError, ValueError, IndexError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # not a browser, or one that went
        finally:
            writer.close()


def new_provider(url: str, callback: str, oauth: OAuthOptions, scopes: list[str], browser: Browser) -> Any:
    """The SDK's provider for a new login: of a client of one's own (`oauth`, expanded), or of one that registers."""
    from mcp.client.auth import OAuthClientProvider  # noqa: PLC0415
    from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata  # noqa: PLC0415
    from pydantic import AnyUrl  # noqa: PLC0415

    client = None
    is_document = bool(oauth.client_id and re.match(r"https://[^/]+/.", oauth.client_id))
    if oauth.client_id and not is_document:
        client = OAuthClientInformationFull(
            client_id=oauth.client_id,
            client_secret=oauth.client_secret,
            redirect_uris=[AnyUrl(callback)],
            token_endpoint_auth_method="client_secret_post" if oauth.client_secret else "none",
        )
    metadata = OAuthClientMetadata(
        client_name="mcpmux",
        redirect_uris=[AnyUrl(callback)],
        scope=" ".join(scopes) or None,
        token_endpoint_auth_method="none",  # noqa: S106
    )
    # What was there before must not stand in a new login's way: the storage begins empty.
    document = oauth.client_id if is_document else None
    provider = OAuthClientProvider(url, metadata, InMemory(client), browser.go, browser.come_back, document)
    browser.context = provider.context
    return provider


async def knock(address: Address, provider: Any, method: str, insists: bool) -> int:
    """Asks the server as a client would, so that the provider is asked for a login; the last status. With `insists` the
    provider is told that the server has refused, though it did not. Raises `StartError`, `RemoteError`."""
    from mcp.client.auth import OAuthFlowError  # noqa: PLC0415

    http, status = load_http().http, 0
    hello = {"protocolVersion": LEGACY_REVISIONS[0], "capabilities": {}, "clientInfo": IMPLEMENTATION}
    body = None if method == "GET" else request_line(1, "initialize", encode(hello))
    headers = address.headers | {"Accept": f"application/json, {EVENTS}", "Content-Type": "application/json"}
    request = http.Request(method, address.url, headers=headers, content=body)

    async def answer(asked: Any) -> Any:
        nonlocal status
        if asked is not request:
            return _respelled(await fetch(asked, address.may_be_open), provider.context.auth_server_url)
        has_token = "authorization" in asked.headers
        if insists and not has_token:
            return http.Response(401, request=asked)
        may_be_open = address.may_be_open or not has_token
        response = await fetch(asked, may_be_open, reads=False)
        for _ in range(REDIRECTS):
            target = response.next_request
            if target and target.method == method and stays(response.request.url, target.url):
                response = await fetch(target, may_be_open, reads=False)
        status = response.status_code
        if session := response.headers.get(SESSION):
            same = {name: value for name, value in asked.headers.items() if not name.startswith("content-")}
            await fetch(http.Request("DELETE", address.url, headers={**same, SESSION: session}), True, reads=False)
        return response

    try:
        await play(provider.async_auth_flow(request), answer)
    except TimeoutError:
        raise RemoteError("was not logged in to: nobody came back from the browser", "try again") from None
    except (http.TransportError, OSError) as wrong:
        raise RemoteError(*connection_trouble(wrong, urllib.parse.urlsplit(address.url).netloc)) from None
    except (OAuthFlowError, ValueError) as wrong:  # of the SDK's checks, some are pydantic's
        todo = "try again; where nobody may register by himself, give a client_id in its table's oauth"
        raise RemoteError(f"cannot be logged in to: {plain(str(wrong))}", todo) from None
    return status


def _respelled(response: Any, wanted: str | None) -> Any:
    """An authorization server's metadata with its issuer as its resource spells it: the SDK compares letters."""
    body = object_of(response.content)
    issuer = value_of(body.get("issuer"))
    if not isinstance(issuer, str) or not wanted or not one_issuer(issuer, wanted):
        return response
    content = encode({**body, "issuer": wanted})
    return load_http().http.Response(response.status_code, content=content, request=response.request)


async def says_how(address: Address) -> bool:
    """Whether a server that has let us in publishes how to log in: it may ask for that in a tool call only."""
    from mcp.client.auth.utils import build_protected_resource_metadata_discovery_urls as places  # noqa: PLC0415

    http = load_http().http
    for url in places(None, address.url):
        with contextlib.suppress(http.TransportError, OSError):
            response = await fetch(http.Request("GET", url), True)
            if response.status_code == 200 and items_of(object_of(response.content).get("authorization_servers")):
                return True
    return False


def login_of(url: str, context: Any, status: int) -> Login | None:
    """What the SDK's provider was given, as it is kept; None where the server wants none. Raises `RemoteError`."""
    tokens, client, found = context.current_tokens, context.client_info, context.oauth_metadata
    is_refused = status in (401, 403)
    if tokens is None or client is None:
        if is_refused:
            what = f"refuses (HTTP {status}) and does not say how to log in"
            raise RemoteError(what, "ask those who run it for a token, and give it by bearer_token_env_var")
        return None
    if is_refused:
        what = f"does not take the login that it has just given (HTTP {status})"
        raise RemoteError(what, "try again, with `scopes` in its table if it names any")
    return Login(
        url,
        tokens.access_token,
        str(found.token_endpoint) if found else urllib.parse.urljoin(url, "/token"),
        client.client_id,
        client.client_secret,
        client.token_endpoint_auth_method,
        tokens.refresh_token,
        None if tokens.expires_in is None else time.time() + tokens.expires_in,
        context.get_resource_url() if context.should_include_resource_param(context.protocol_version) else None,
        tokens.scope,
        str(found.revocation_endpoint) if found and found.revocation_endpoint else None,
    )


async def log_in(name: str, options: ServerOptions, config: Config, say: Callable[[str], None]) -> Path | None:
    """The whole way: what protects the server is found, mcpmux registers there, a person agrees in a browser, and the
    answer becomes a login: its file. None where the server asks for none. Raises `StartError`, `RemoteError`."""
    address = await locate(name, options, config)
    if address.has_credentials:
        raise StartError("has credentials in its table already", "take them out of it to log in instead")
    where, oauth, browser = f"mcp_servers.{name}.oauth", options.oauth, Browser(options.scopes, say)
    secret = oauth.client_secret and await expand(oauth.client_secret, where, config.environment, set())
    try:
        callback = await browser.open(oauth.callback_port)
    except OSError as wrong:
        what = f"port {oauth.callback_port} cannot be used: {wrong}"
        raise StartError(what, f"change {where}.callback_port") from None
    try:
        own = msgspec.structs.replace(oauth, client_secret=secret)
        provider = new_provider(address.url, callback, own, options.scopes, browser)
        method = "GET" if options.transport == "sse" else "POST"
        status = await knock(address, provider, method, insists=False)
        if method == "POST" and status in (404, 405):  # an old server
            method, status = "GET", await knock(address, provider, "GET", insists=False)
        if not provider.context.current_tokens and status not in (401, 403) and await says_how(address):
            status = await knock(address, provider, method, insists=True)
    finally:
        browser.close()
    login = login_of(address.url, provider.context, status)
    if login:
        async with login_lock(address.login):
            write_login(address.login, login)
    return address.login if login else None


async def log_out(name: str, options: ServerOptions, config: Config) -> tuple[bool, str | None]:
    """Whether there was a login, and why it could not be revoked, if that was so. Its file is removed all the same.
    Raises `StartError`."""
    url = await expand(options.url or "", f"mcp_servers.{name}.url", config.environment, set())
    path = login_path(config.path, name, url)
    take_over(path, url)
    login = read_login(path)
    trouble: str | None = None
    if login and login.revocation_endpoint:
        http = load_http().http
        try:
            for token in [one for one in (login.refresh_token, login.access_token) if one]:
                # An empty secret is as good as none (RFC 6749, 2.3.1); the SDK's own server wants one.
                form = {"token": token, "client_id": login.client_id, "client_secret": ""}
                form, headers = provider_of(login).context.prepare_token_auth(form, {})
                request = http.Request("POST", login.revocation_endpoint, data=form, headers=headers)
                response = await fetch(request, options.allow_http)
                trouble = f"HTTP {response.status_code}" if response.status_code >= 300 else trouble
        except (http.TransportError, OSError, StartError) as wrong:
            trouble = connection_trouble(wrong, urllib.parse.urlsplit(login.revocation_endpoint).netloc)[0]
    async with login_lock(path):
        there = path.exists()
        path.unlink(missing_ok=True)
    return there, trouble


# ── a connection ──

# What a status means: what is the matter, and what to do. What is not named counts by its hundreds.
STATUS_WORDS: Final[dict[int | str, tuple[str, str]]] = {
    2: ("answered a request for events with {kind}", "correct its url"),
    3: ("redirects {shown} to {to}", "put that address into its url, if you trust it"),
    4: ("refused a message (HTTP {status}){said}", "check its url and headers"),
    5: ("failed (HTTP {status}){said}", "try again later, or tell those who run it"),
    401: ("needs a login", "run `mcpmux login {name}`"),
    "expired": ("does not take its login any more", "run `mcpmux login {name}`"),
    "credentials": (
        "refuses the credentials of its table (HTTP 401){said}",
        "correct bearer_token_env_var, http_headers or the variable",
    ),
    403: ("forbids this (HTTP 403){said}", "check what you may do there, or `mcpmux login {name}`"),
    "scope": (
        "asks for more than the login gives (HTTP 403)",
        "add scopes = [{scopes}] to its table and run `mcpmux login {name}`",
    ),
    404: ("has no MCP at {shown} (HTTP {status})", "correct its url"),
    405: ("has no MCP at {shown} (HTTP {status})", "correct its url"),
    407: ("cannot be reached: the proxy asks for a login (HTTP 407)", "correct HTTPS_PROXY"),
    429: ("is busy (HTTP {status}){said}", "try again {later}"),
    503: ("is busy (HTTP {status}){said}", "try again {later}"),
}


class Web:
    """One address: requests with its headers and its login. Whatever goes wrong comes out as a `RemoteError`."""

    def __init__(self, name: str, address: Address, journal: Journal) -> None:
        self._name = name
        self._address = address
        self._keeper = None if address.has_credentials else LoginKeeper(address.login, address.may_be_open, journal)
        self.has_answered = False  # the server has: it is one, and what goes wrong then is not the end of it

    def open(self) -> Any:
        """The client, to be used as a context. Raises `StartError`."""
        http, self._anyio, _ = load_http()
        self._http, self._errors = http, (http.HTTPError, http.StreamError, OSError)
        try:
            http.URL(self._address.url)
        except http.InvalidURL as wrong:
            raise StartError(f"its url cannot be used: {wrong}", f"correct mcp_servers.{self._name}.url") from None
        self._client = new_client(
            self._address.url,
            timeout=http.Timeout(None, connect=CONNECT_PATIENCE),
            limits=http.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=KEPT_IDLE),
            headers={"User-Agent": f"mcpmux/{__version__}", "Accept-Encoding": "identity"} | self._address.headers,
        )
        return self._client

    @contextlib.asynccontextmanager
    async def ask(
        self, method: str, headers: Mapping[str, str | bytes], body: bytes | None = None, url: str | None = None
    ) -> AsyncGenerator[Any]:
        """The response, of whatever status, its body still to be read. A redirect is followed where it stays at the
        same place and keeps the message; a login that is not taken is renewed once."""
        kinds = {"Accept": EVENTS if method == "GET" else f"application/json, {EVENTS}"}
        kinds |= {} if body is None else {"Content-Type": "application/json"}
        request = self._client.build_request(
            method, url or self._address.url, headers={**kinds, **headers}, content=body
        )
        response = await self._follow(request)
        try:
            yield response
        finally:
            await self._close(response)

    async def _follow(self, request: Any) -> Any:
        followed, renewed = 0, False
        while True:
            token = await self._keeper.token() if self._keeper else None
            if token:
                request.headers["Authorization"] = f"Bearer {token}"
            try:
                response = await self._client.send(request, stream=True)
            except self._errors as wrong:
                raise self._trouble(wrong) from None
            target = response.next_request
            if response.status_code == 401 and self._keeper and not renewed:
                await response.aclose()  # its words are not needed, and a renewal may fail or take long
                if not await self._keeper.renew(token):
                    return response
                renewed = True
            elif target and target.method == request.method and followed < REDIRECTS and stays(request.url, target.url):
                await self._close(response)
                request, followed = target, followed + 1
            else:
                return response

    async def _close(self, response: Any) -> None:
        """Read out, if that takes no time: then its connection serves the next request."""
        try:
            with self._anyio.move_on_after(READ_OUT):
                async for _ in response.aiter_raw():
                    pass
        except self._errors:  # it was read already, or is broken
            pass
        finally:
            with self._anyio.move_on_after(STOP_LAST, shield=True):
                await response.aclose()

    async def body(self, response: Any, most: int) -> bytes:
        """All of it. Raises `RemoteError`, also where that is over `most` bytes."""
        body = bytearray()
        try:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > most:
                    raise Unreadable(*_SAID_TOO_MUCH)
        except self._http.DecodingError:
            raise Unreadable(*_NO_MESSAGE) from None
        except self._errors as wrong:
            raise self.cut_off(wrong) from None
        return bytes(body)

    async def status_trouble(self, response: Any) -> tuple[RemoteError, bytes]:
        """What a status says, in words, and its body as far as it comes soon."""
        status, headers, said = response.status_code, response.headers, b""
        with self._anyio.move_on_after(CONNECT_PATIENCE), contextlib.suppress(RemoteError):
            said = await self.body(response, MB)
        scope = re.search(r'scope="([^"]*)"', asked := headers.get("www-authenticate", ""))
        kind: int | str = status if status in STATUS_WORDS else status // 100
        if status == 401 and (self._address.has_credentials or (self._keeper and self._keeper.is_there)):
            kind = "credentials" if self._address.has_credentials else "expired"
        elif status == 403 and "insufficient_scope" in asked:
            kind = "scope"
        text = "" if b"<html" in said[:EDGE].lower() else plain(said.decode(errors="replace"))[:200]
        after = headers.get("retry-after", "")
        words = {
            "name": self._name,
            "shown": self._address.shown,
            "status": status,
            "kind": media_type(response),
            "said": f': "{text}"' if text else "",
            "to": plain(headers.get("location", "nowhere").partition("?")[0]),
            "scopes": ", ".join(f'"{one}"' for one in scope[1].split()) if scope else "…",
            "later": f"in {after} s" if after.isdigit() else "later",
        }
        what, todo = STATUS_WORDS.get(kind, STATUS_WORDS[4])
        return RemoteError(what.format(**words), todo.format(**words)), said

    def place(self, response: Any, data: bytes) -> str:
        """Where messages go, as an event says it: with our headers, so it has to be at the same place."""
        try:
            place = response.url.join(data.decode())
        except (UnicodeDecodeError, self._http.InvalidURL):
            raise Unreadable(*_NO_MESSAGE) from None
        if not stays(response.url, place):
            what = f"wants its messages sent elsewhere, to {place.host}"
            raise RemoteError(what, "correct its url, if you trust that place")
        return str(place)

    def no_answer(self, response: Any) -> RemoteError:
        """What came in the place of an answer."""
        kind, todo = media_type(response), "correct its url, or tell those who run it"
        what = f"answered with something that is no answer (HTTP {response.status_code} {kind})"
        if kind == "text/html":
            what, todo = f"answered with a web page ({self._address.shown})", "correct its url"
        return RemoteError(what, todo, is_end=not self.has_answered)

    def cut_off(self, wrong: Exception | None) -> RemoteError:
        why = f" ({str(wrong) or type(wrong).__name__})" if wrong else ""
        todo = "it may have done what was asked; look before you ask again"
        return RemoteError(f"closed the connection before it answered{why}", todo, is_end=not self.has_answered)

    def _trouble(self, wrong: Exception) -> RemoteError:
        if isinstance(wrong, self._http.ConnectError | self._http.ConnectTimeout | self._http.ProxyError):
            what, todo = connection_trouble(wrong, self._address.shown)
            return RemoteError(what, todo, is_end=True, was_taken=False, spares=True)
        if isinstance(wrong, self._http.UnsupportedProtocol | self._http.LocalProtocolError):
            return RemoteError(f"cannot be asked: {wrong}", "correct its url and headers", is_end=True)
        return self.cut_off(wrong)


def stays(here: Any, there: Any) -> bool:
    """Whether an address that a server names is at the same place, or only goes over to TLS."""
    place = (there.scheme, there.host, there.port)
    is_upgrade = here.scheme == "http" and here.port is None and place == ("https", here.host, None)
    return place == (here.scheme, here.host, here.port) or is_upgrade


class Stream:
    """Events, over as many connections as it takes, and what is needed to go on with them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.headers: dict[str, bytes] = {}  # that say where to go on; none where it cannot be gone on with
        self.pause = LISTEN_AFTER  # before it is asked for again
        self._id = ""  # the last one that was looked at: a long one may stand for many events
        self.broke: Exception | None = None  # why its last connection ended, if not by itself

    async def events(self, response: Any) -> AsyncGenerator[tuple[str, bytes]]:
        """The kind and the data of each, until the connection ends. Raises `RemoteError` for what cannot be read."""
        http, self.broke = load_http().http, None
        # In Latin-1 each byte is a character: they come through as they are. Its limit counts some of them twice.
        kind = {"Content-Type": f"{EVENTS}; charset=latin-1"}
        plain = http.Response(200, headers=kind, content=_bites(response), request=response.request)
        try:
            async for event in http.EventSource(plain, max_event_size=2 * self._limit + EDGE):
                data = event.data.encode("latin-1")
                if len(data) > self._limit:
                    raise Unreadable(*_SAID_TOO_MUCH)
                if event.id is not self._id and len(event.id) <= EDGE and _IN_A_HEADER.fullmatch(event.id):
                    self.headers = {"Last-Event-ID": event.id.encode("latin-1")}
                self._id = event.id
                if event.retry is not None:
                    self.pause = min(max(event.retry, 1000 * LISTEN_LEAST), 1000 * RETRY_MOST) / 1000
                yield event.event, data
        except http.SSEError:
            raise Unreadable(*_SAID_TOO_MUCH) from None
        except http.DecodingError:
            raise Unreadable(*_NO_MESSAGE) from None
        except (http.HTTPError, http.StreamError, OSError) as wrong:
            self.broke = wrong


async def _bites(response: Any) -> AsyncGenerator[bytes]:
    """A body without the byte order mark that it may begin with, in pieces between which others have their turn."""
    held, is_begun = b"", False
    async for chunk in response.aiter_bytes():
        held += chunk
        if not is_begun and len(held) < len(codecs.BOM_UTF8):
            continue
        held, is_begun = held if is_begun else held.removeprefix(codecs.BOM_UTF8), True
        for at in range(0, len(held), FAIR_BITE):
            yield held[at : at + FAIR_BITE]
            await asyncio.sleep(0)
        held = b""


class Exchange(Struct, eq=False):
    """A message on its way over HTTP, and, if it is a request, back."""

    line: bytes
    method: str
    params: Fields
    key: int | str | None  # a request's id: the core's number, or a text where this connection itself asks
    is_early: bool  # sent before its session had answered anything
    scope: Any  # its POST, and what is done for it after that
    answered: Any  # an event: nothing more is expected for it
    over: Any  # an event: its POST has ended
    is_out: bool = False  # perhaps in the server's hands
    is_taken: bool = False  # the server has certainly got it, or it has failed
    lacks_headers: bool = False  # its server has said so: it is sent once more
    answer: bytes = b""

    @property
    def is_own(self) -> bool:
        return isinstance(self.key, str)

    @property
    def revision(self) -> Raw | None:
        """Where it is of the modern era."""
        return object_of(self.params.get("_meta")).get(VERSION_KEY)


def key_of(id: Raw | UnsetType) -> int | str | None:
    number = None if id is UNSET else number_of_id(id)
    text = value_of(None if id is UNSET else id)
    return number if number is not None else text if isinstance(text, str) else None


class HeaderBook:
    """What the modern era wants said outside of a message too; of its arguments, where its tool's schema says so.
    (`mcp.shared.inbound` could do it, but with it comes all of `mcp`: 0.3 s and 36 MB for these lines.)"""

    def __init__(self) -> None:
        self._of_tools: dict[str, dict[tuple[str, ...], str]] = {}

    def learn(self, result: Raw | UnsetType) -> None:
        """From a list of tools."""
        for tool in map(object_of, items_of(object_of(result).get("tools"))):
            wanted = parameter_headers(value_of(tool.get("inputSchema")))
            self._of_tools[str(value_of(tool.get("name")))] = wanted if isinstance(wanted, dict) else {}

    def of(self, exchange: Exchange) -> dict[str, str]:
        params, method = exchange.params, exchange.method
        name = params.get(NAMED_BY.get(method, ""))
        said = {VERSION: exchange.revision, "mcp-method": Raw(encode(method)), "mcp-name": name}

        @functools.cache  # each object is looked into once, however many headers a tool wants
        def members(path: tuple[str, ...]) -> Fields:
            return object_of(members(path[:-1]).get(path[-1]) if path else params.get("arguments"))

        for path, header in self._of_tools.get(str(value_of(name)), {}).items() if method == "tools/call" else ():
            said[f"mcp-param-{header}"] = members(path[:-1]).get(path[-1])
        return {header: header_value(raw) for header, raw in said.items() if value_of(raw) is not None}


def header_value(raw: Raw | None) -> str:
    """A string's text, or a number or boolean as it is spelled; in Base64 what a header might not bring over."""
    value = value_of(raw)
    text = value if isinstance(value, str) else bytes(raw or b"").decode()
    is_plain = text.isascii() and text.isprintable() and text == text.strip() and not text.startswith("=?base64?")
    return text if is_plain else f"=?base64?{base64.b64encode(text.encode()).decode()}?="


class Session(Struct):
    """What a legacy handshake has come to."""

    id: str | None = None
    revision: str | None = None
    has_served: bool = False  # it has answered something after the handshake
    refuses: bool = False  # what it refuses it refuses in a new session too

    @property
    def headers(self) -> dict[str, str]:
        return {name: value for name, value in ((SESSION, self.id), (VERSION, self.revision)) if value}


class RemoteServer:
    """One connection to a remote server, from its handshake to its end. Everything here happens in the loop's thread.

    Each message is a POST of its own, with a task of its own (`_ask`) until it has its one ending. Streamable HTTP
    answers on that POST; a server of 2024-11-05 answers on the one stream that `_hear_old` reads, and says on it where
    POSTs go. A legacy server's own stream is `_listen`'s.
    """

    def __init__(
        self,
        name: str,
        run: int,
        post: Callable[[Event], None],
        limit: int,
        outbox: int,
        address: Address,
        journal: Journal,
        transport: str | None = None,
    ) -> None:
        self.name, self.run = name, run
        self.outbox: list[bytes] = []  # lines of this batch
        self.exited = asyncio.Event()
        self._post = post
        self._limit = limit
        self._most = outbox
        self._journal = journal
        self._transport = transport  # None: to be found out
        self._not_http: RemoteError | None = None  # why SSE is tried
        self._place: str | None = None  # where messages go, as SSE says
        self._lines: collections.deque[bytes] = collections.deque()
        self._waiting = 0  # bytes that the server has not taken
        self._clogged = False
        self._wake = asyncio.Event()
        self._readable = asyncio.Event()
        self._readable.set()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open = asyncio.Event()  # it is known where messages go
        self._listening = asyncio.Event()  # it has been asked for its own stream
        self._lost = asyncio.Event()
        self._why: RemoteError | None = None  # not None once it is being given up
        self._gone = False
        self._exchanges: dict[int | str, Exchange] = {}
        self._unread: list[bytes] = []  # requests that it has certainly not taken
        self._own = 0  # requests of this connection itself, so far
        self._session = Session()
        self._book = HeaderBook()
        self._web = Web(name, address, journal)

    # ── what the mux does ──

    async def start(self) -> None:
        """Raises `StartError` if it cannot be spoken to at all. Whether it is there, the first line tells."""
        self._anyio = (await asyncio.to_thread(load_http)).anyio
        client = self._web.open()
        self._living = asyncio.get_running_loop().create_task(self._live(client))
        try:
            await self._ready
        except (asyncio.CancelledError, StartError):
            self._gone = True
            self._living.cancel()
            raise

    def flush(self) -> None:
        self._lines += self.outbox
        self._weigh(sum(map(len, self.outbox)))
        self.outbox.clear()
        self._wake.set()

    def _weigh(self, more: int) -> None:
        self._waiting += more
        clogged = self._waiting > (0 if self._clogged else self._most)
        if clogged != self._clogged:
            self._clogged = clogged
            self._post(ServerClogged(self.name, self.run, clogged))

    def read(self, wanted: bool) -> None:
        """Stops or resumes reading what it sends."""
        if wanted:
            self._readable.set()
        else:
            self._readable.clear()

    async def stop(self) -> None:
        """Its session is ended, if it takes that soon, and whatever is open is closed."""
        if self._why is None:
            self._why = RemoteError("was disconnected", "the next call connects it again")
            with self._anyio.move_on_after(STOP_STEP), contextlib.suppress(RemoteError):
                if self._session.id:
                    async with self._web.ask("DELETE", self._session.headers):
                        pass
        self._living.cancel()
        await asyncio.wait([self._living], timeout=STOP_LAST)
        self._end()

    # ── its life ──

    async def _live(self, client: Any) -> None:
        try:
            async with client, self._anyio.create_task_group() as self._tasks:
                if self._transport == "sse":
                    self._tasks.start_soon(self._guarded, self._hear_old)
                else:
                    self._begin()
                self._tasks.start_soon(self._guarded, self._send_all)
                await self._lost.wait()
                with self._anyio.move_on_after(EXIT_DRAIN):  # what is on its way may still tell that it was not taken
                    for one in list(self._exchanges.values()):
                        await one.answered.wait()
                self._end()  # before anything is closed: what the core sends until it knows would be lost
                self._tasks.cancel_scope.cancel()
        finally:
            self._end()

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """A part of the connection: with it goes all of it."""
        try:
            await work()
        except RemoteError as wrong:
            self._lose(wrong)
        except Exception as bug:
            self._journal.log("error", f"{self.name}: its connection met with a bug, please report it: {bug!r}")
            self._lose(RemoteError(f"was lost: {bug!r}", "the next call connects it again"))

    def _begin(self) -> None:
        self._open.set()
        if not self._ready.done():
            self._ready.set_result(None)

    def _lose(self, wrong: RemoteError) -> None:
        """It is over. Before it has begun, that is for whoever starts it to tell."""
        if self._not_http and not self._place:
            what = f"speaks neither Streamable HTTP ({self._not_http.what}) nor SSE ({wrong.what})"
            wrong = RemoteError(what, self._not_http.todo)
        if self._why is None:
            self._why = wrong
            self._lost.set()
        if not self._ready.done():
            self._gone = True
            self._ready.set_exception(StartError(wrong.what, wrong.todo))

    def _end(self) -> None:
        """Once: the core is told, and gets back what was not sent."""
        if self._gone:
            return
        self._gone = True
        why = self._why or RemoteError("was lost", "the next call connects it again")
        kept = [one.line for one in self._exchanges.values() if not one.is_out and not one.is_own]
        reason = self._journal.redact(f"{self.name} {why.what}")
        self._post(ServerGone(self.name, self.run, reason, why.todo, [], [*self._unread, *kept, *self._lines]))
        self.exited.set()

    # ── lines to the server ──

    async def _send_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._lines and self._why is None:
                await self._open.wait()
                await self._send(self._lines.popleft())

    async def _send(self, line: bytes) -> None:
        """What changes the session is taken by the server before this returns; so is all where it goes out in turn."""
        message = decode_line(line)
        exchange = self._exchange(line, message, key_of(message.id) if message.method else None)
        is_cancellation = exchange.method == "notifications/cancelled"
        if is_cancellation and (cancelled := self._exchanges.get(value_of(exchange.params.get("requestId")))):
            self._finish(cancelled, b"")
        if is_cancellation and not self._session.revision:  # a modern server is told by the end of its stream
            self._weigh(-len(line))
            return
        self._tasks.start_soon(self._ask, exchange)
        with self._anyio.move_on_after(IN_ORDER):
            if (self._place or exchange.key is None) and not is_cancellation:
                await exchange.over.wait()
            if exchange.method in IN_TURN:
                await exchange.answered.wait()
            if exchange.method == "notifications/initialized" and self._session.id:
                self._tasks.start_soon(self._guarded, self._listen)
                await self._listening.wait()  # what it says unasked from then on is heard

    def _exchange(self, line: bytes, message: Envelope, key: int | str | None) -> Exchange:
        new, method = self._anyio.Event, message.method or ""
        is_early, scope = not self._session.has_served, self._anyio.CancelScope()
        exchange = Exchange(line, method, object_of(message.params), key, is_early, scope, new(), new())
        if key is not None:
            self._exchanges[key] = exchange
        return exchange

    async def _ask(self, exchange: Exchange) -> None:
        """A message, to its ending. Whatever goes wrong ends it, or the server; a bug ends it and no more."""
        try:
            with exchange.scope:
                if not exchange.answered.is_set():  # it may have been cancelled by now
                    exchange.is_out = True
                    await self._carry(exchange)
        except RemoteError as wrong:
            self._fail(wrong, exchange)
        except Exception as bug:
            self._journal.log("error", f"{self.name}: {label(exchange.line)} met with a bug, please report it: {bug!r}")
            self._fail(RemoteError(f"cannot be asked: {bug!r}", "the log says more"), exchange)
        finally:
            self._taken(exchange)
            exchange.over.set()

    async def _carry(self, exchange: Exchange) -> None:
        """Raises `RemoteError` unless it comes to an answer, where there is to be one on this way."""
        stream = Stream(self._limit)
        await self._deliver(exchange, stream)
        if exchange.lacks_headers and not exchange.answered.is_set():
            await self._learn_all(exchange)
            await self._deliver(exchange, stream)
        if exchange.key is not None and not self._place:
            await self._go_on(exchange, stream)

    async def _deliver(self, exchange: Exchange, stream: Stream) -> None:
        if self._place and exchange.method == "server/discover":
            raise RemoteError("speaks SSE", "it knows the legacy era only")
        headers = self._book.of(exchange) if exchange.revision else self._session.headers
        async with self._web.ask("POST", headers, exchange.line.strip(), self._place) as response:
            if not 200 <= response.status_code < 300:
                await self._refused(exchange, response)
            elif exchange.key is not None and not self._place:
                self._taken(exchange)
                await self._read_answer(exchange, stream, response)

    async def _read_answer(self, exchange: Exchange, stream: Stream, response: Any) -> None:
        if exchange.method == "initialize" and (session := response.headers.get(SESSION)):
            if not re.fullmatch(r"[!-~]+", session):
                what = "gives out a session that no header can hold"
                raise RemoteError(what, "tell those who run it", is_end=True)
            self._session.id = session
        if is_stream(response):
            await self._hear(response, stream, exchange)
            return
        await self._readable.wait()
        is_page = media_type(response) == "text/html"  # all else is taken for JSON, whatever it is called
        body = b"" if is_page else await self._web.body(response, self._limit)
        is_message = body.strip() and await self._take(body, exchange)
        if not is_message or not (exchange.answered.is_set() or exchange.lacks_headers):
            raise self._web.no_answer(response)

    async def _refused(self, exchange: Exchange, response: Any) -> None:
        """Another status than 2xx. The protocol's own error counts more, if it came with one."""
        status, (wrong, said) = response.status_code, await self._web.status_trouble(response)
        message = object_of(tidy(said)[0])
        error = message.get("error")
        if error is not None and (status in (401, 403) or not error_is_valid(error)):
            error = None
        is_ours = error is not None and key_of(message.get("id", UNSET)) == exchange.key
        if status in PERHAPS_LOST and not is_ours and await self._is_lost(exchange):
            raise RemoteError(*_FORGOTTEN, is_end=True, was_taken=False)
        if exchange.key is not None and error is not None:
            await self._answered(exchange, b"", Envelope(error=error), is_refusal=True)
        elif exchange.method == "initialize" and status in (400, 404, 405) and self._transport is None:
            self._transport, self._not_http = "sse", wrong
            self._open.clear()
            self._finish(exchange, b"")
            self._lines.appendleft(exchange.line)
            self._weigh(len(exchange.line))
            self._wake.set()
            self._tasks.start_soon(self._guarded, self._hear_old)
        else:
            if exchange.method != "server/discover" or status >= 500 or status in (401, 403, 407, 429):
                wrong.is_end = not self._web.has_answered
            raise wrong

    async def _go_on(self, exchange: Exchange, stream: Stream) -> None:
        """A stream that ended before its answer: a legacy server may have the rest of it."""
        tries = RESUMES
        while tries and stream.headers and not exchange.answered.is_set() and not exchange.revision:
            await self._anyio.sleep(stream.pause)
            try:
                tries = RESUMES if await self._hear_more(stream, exchange) else tries - 1
            except Unreadable:
                raise
            except RemoteError:
                tries -= 1
        if not exchange.answered.is_set():
            raise self._web.cut_off(stream.broke)

    async def _learn_all(self, call: Exchange) -> None:
        """A call lacked headers that its tool wants: its list is read, which nobody has done yet in this run."""
        meta = {key: raw for key, raw in object_of(call.params.get("_meta")).items() if key in ENVELOPE_KEYS}
        seen: set[bytes] = set()
        params: Fields | None = {"_meta": Raw(encode(meta))}
        while params is not None:
            answer = await self._ask_itself("tools/list", params)
            cursor = next_cursor(object_of(answer.get("result")), seen)
            params = None if cursor is None else {**params, "cursor": Raw(cursor)}

    async def _ask_itself(self, method: str, params: Fields) -> Fields:
        """The answer to a request of this connection's own; nothing where there was none."""
        self._own += 1
        key = f"mcpmux-{self._own}"
        line = encode({"jsonrpc": "2.0", "id": key, "method": method, "params": params})
        exchange = self._exchange(line, decode_line(line), key)
        try:
            await self._ask(exchange)
            await exchange.answered.wait()  # over SSE that comes elsewhere
        finally:
            self._finish(exchange, b"")
        return object_of(exchange.answer)

    # ── what comes back ──

    async def _hear_old(self) -> None:
        """The one stream of a server of 2024-11-05: where messages go, and then all that it says."""
        patience = self._anyio.CancelScope(deadline=self._anyio.current_time() + CONNECT_PATIENCE)
        async with self._web.ask("GET", {}) as response:
            if not is_stream(response):
                raise (await self._web.status_trouble(response))[0]
            with patience:
                async with contextlib.aclosing(Stream(self._limit).events(response)) as events:
                    async for kind, data in events:
                        if kind == "endpoint":
                            self._place = self._web.place(response, data)
                            patience.deadline, self._web.has_answered = math.inf, True
                            self._begin()
                        elif kind == "message" and data and self._place:
                            await self._readable.wait()
                            await self._take(data, None)
        if self._place is None:
            raise RemoteError("opened an event stream and does not say where messages go", "correct its url")
        raise RemoteError("closed its event stream", "the next call opens it again")

    async def _listen(self) -> None:
        """What a legacy server says unasked, as long as it has a stream for that."""
        stream, wait = Stream(self._limit), LISTEN_AFTER
        while True:
            pause, wait = wait, min(2 * wait, LISTEN_AFTER_MOST)
            try:
                if await self._hear_more(stream, None):
                    pause, wait = stream.pause, LISTEN_AFTER
                elif stream.headers:
                    stream.headers = {}  # it cannot be gone on with: perhaps there is a new one
                else:
                    return  # it has none (405, but 404 too)
            except Unreadable:
                said = "said something unasked that cannot be read, and is passed over"
                self._journal.log("warning", f"{self.name} {said}")
                stream.headers = {}
            except RemoteError as wrong:
                if self._is_end(wrong, None):
                    raise
            self._listening.set()
            await self._anyio.sleep(pause)

    async def _hear_more(self, stream: Stream, exchange: Exchange | None) -> bool:
        """Goes on with a stream, or begins one, until it ends; whether there is one."""
        async with self._web.ask("GET", {**self._session.headers, **stream.headers}) as response:
            self._listening.set()
            if is_stream(response):
                await self._hear(response, stream, exchange)
            elif response.status_code >= 500 or response.status_code == 429:
                raise (await self._web.status_trouble(response))[0]
            return is_stream(response)

    async def _hear(self, response: Any, stream: Stream, exchange: Exchange | None) -> None:
        """Until the stream ends; an exchange's has `READ_OUT` for that once it has its answer."""
        async with contextlib.aclosing(stream.events(response)) as events:
            async for kind, data in events:
                await self._readable.wait()
                if kind == "message" and data and not await self._take(data, exchange):
                    raise Unreadable(*_NO_MESSAGE)

    async def _take(self, data: bytes, exchange: Exchange | None) -> bool:
        """Hands on a message, or in 2025-03-26 several. False for what is none, unless the core is to judge."""
        is_batch = self._session.revision == "2025-03-26" and data.lstrip()[:1] == b"["
        try:
            for line in decode_batch(tidy(data)[0]) if is_batch else (data,):
                message = decode_line(tidy(line)[0])
                if message.method is UNSET and message.result is UNSET and message.error is UNSET:
                    raise BadLine("neither a result nor an error")
                if message.method is UNSET and (answers := await self._answers(message, exchange)):
                    await self._answered(answers, line, message)
                else:
                    self._hand_on(line)
        except BadLine:
            if exchange:
                return False
            self._hand_on(data)
        return True

    async def _answers(self, message: Envelope, exchange: Exchange | None) -> Exchange | None:
        """Which request this ends. An error without its id can only be about the one on whose way it comes."""
        key = key_of(message.id)
        if key in self._exchanges or exchange is None or exchange.answered.is_set() or message.error is UNSET:
            return None if key is None else self._exchanges.get(key)
        if await self._is_lost(exchange):
            raise RemoteError(*_FORGOTTEN, is_end=True, was_taken=False)
        return exchange

    async def _answered(self, exchange: Exchange, line: bytes, message: Envelope, is_refusal: bool = False) -> None:
        code, is_modern = value_of(object_of(message.error).get("code")), exchange.revision is not None
        if code == HEADER_MISMATCH and exchange.method == "tools/call" and is_modern and not exchange.lacks_headers:
            exchange.lacks_headers = True
            return
        self._web.has_answered = True
        if exchange.method == "initialize":
            revision = value_of(object_of(message.result).get("protocolVersion"))
            self._session.revision = revision if isinstance(revision, str) else None
        elif exchange.method == "tools/list" and is_modern:
            self._book.learn(message.result)
        is_doubtful = code == INVALID_REQUEST or (is_refusal and code not in (METHOD_NOT_FOUND, INVALID_PARAMS))
        is_doubtful = is_doubtful and not exchange.is_early and not exchange.is_own and bool(self._session.id)
        is_over = is_doubtful and not await self._lives()
        if exchange.method not in IN_TURN and not exchange.is_own:
            self._session.has_served = True
        if message.error is not UNSET:  # with its id, which it may have come without
            line = error_line(encode(exchange.key), message.error)
        self._finish(exchange, line)
        if is_over:
            self._lose(RemoteError(*_FORGOTTEN))

    def _hand_on(self, line: bytes) -> None:
        if not self._gone:
            self._post(ServerLines(self.name, self.run, [line.replace(b"\n", b" ")]))

    # ── endings ──

    def _taken(self, exchange: Exchange) -> None:
        if not exchange.is_taken:
            exchange.is_taken = True
            self._weigh(0 if exchange.is_own else -len(exchange.line))

    def _finish(self, exchange: Exchange, line: bytes) -> None:
        """Nothing more is expected for it."""
        if exchange.key is None or exchange.answered.is_set():
            return
        del self._exchanges[exchange.key]
        self._taken(exchange)
        exchange.answer = line
        exchange.answered.set()
        exchange.scope.deadline = self._anyio.current_time() + READ_OUT
        if line and not exchange.is_own:
            self._hand_on(line)

    def _fail(self, wrong: RemoteError, exchange: Exchange) -> None:
        """Ends the message, or the server, if by this it is gone."""
        if exchange.answered.is_set():
            return
        if self._is_end(wrong, exchange):
            if not wrong.was_taken and exchange.key is not None and not exchange.is_own:
                self._unread.append(exchange.line)
            self._finish(exchange, b"")
            self._lose(wrong)
        elif exchange.key is None:
            if self._why is None:
                what = f"{self.name} {wrong.what} ({wrong.todo}); {label(exchange.line)} was lost"
                self._journal.log("warning", what)
        else:
            text = self._journal.redact(f"mcpmux: {self.name} {wrong.what} ({wrong.todo})")
            # What a task begins with has no way to say that a tool failed.
            result, error = failure("" if "task" in exchange.params else exchange.method, text)
            if exchange.method == "server/discover":  # as a legacy server says it: it may still know `initialize`
                error = error_body(RpcError(METHOD_NOT_FOUND, text))
            id = encode(exchange.key)
            self._finish(exchange, error_line(id, error) if error is not None else result_line(id, result or b"{}"))

    def _is_end(self, wrong: RemoteError, exchange: Exchange | None) -> bool:
        """A server that cannot be reached is gone, unless it is answering a call right now."""
        others = (one for one in self._exchanges.values() if one is not exchange and one.is_taken)
        return wrong.is_end and not (wrong.spares and any(one.method in CARRIERS for one in others))

    # ── sessions that are lost ──
    # No words tell: a new handshake does. What then comes again in the place of the answer to a first request is that
    # answer, and from then on the session itself is asked, by a ping, before it is given up. It is asked too before an
    # error counts that has our id, and may have been said of the session.

    @property
    def _has_session(self) -> bool:
        return bool(self._session.id or (self._place and self._session.revision))

    async def _is_lost(self, exchange: Exchange) -> bool:
        """Whether its server, which has just refused this, seems to have forgotten the session."""
        if not self._has_session or exchange.is_own or exchange.key is None:
            return False
        self._session.refuses |= exchange.is_early
        return not exchange.is_early and not (self._session.refuses and await self._lives())

    async def _lives(self) -> bool:
        answer: Fields = {}
        with self._anyio.move_on_after(IN_ORDER):
            answer = await self._ask_itself("ping", {})
        return "result" in answer or value_of(object_of(answer.get("error")).get("code")) == METHOD_NOT_FOUND


# ══ 13. Sampler ══════════════════════════════════════════════════════════════════════════════════════════════════════
# The child process `mcpmux _sampler`: JSON-RPC lines round litellm, which takes seconds to load, 200 MB, and half a
# second of the loop at its first call. A request is {server, params of sampling/createMessage}; the answer is what that
# server gets. What is asked and answered is never logged, kept or quoted in an error. Nobody else imports litellm.

LEDGER_NAME: Final = "usage.jsonl"
NO_LITELLM: Final = ("litellm is not installed", "start mcpmux as: uvx --from 'mcpmux[sampling]' mcpmux")
PRIORITIES: Final = {"cost": "costPriority", "speed": "speedPriority", "intelligence": "intelligencePriority"}
_STOP_REASONS: Final = {
    **dict.fromkeys(("stop", "end_turn", "eos", "eos_token", "STOP", "COMPLETE"), "endTurn"),
    **dict.fromkeys(("length", "max_tokens", "MAX_TOKENS"), "maxTokens"),
    **dict.fromkeys(("tool_calls", "tool_use", "function_call"), "toolUse"),
    "stop_sequence": "stopSequence",
}
_AUDIO_FORMATS: Final = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav", "vnd.wave": "wav"}

# By the names of litellm's exceptions, the most particular first: what happened, and whether it may pass by itself.
_PROVIDER_ERRORS: Final[dict[str, tuple[str, bool]]] = {
    "AuthenticationError": ("refused the key; correct its api_key", False),
    "PermissionDeniedError": ("does not allow this with this key", False),
    "PaymentRequiredError": ("wants to be paid first", False),
    "ContextWindowExceededError": ("says that the request is longer than the model's context window", False),
    "ContentPolicyViolationError": ("refused the request by its content filter", False),
    "UnsupportedParamsError": ("does not take one of the parameters", False),
    "NotFoundError": ("knows no such model or address", False),
    "RateLimitError": ("says that its rate limit is reached", True),
    "ServiceUnavailableError": ("is overloaded or down", True),
    "BadGatewayError": ("is overloaded or down", True),
    "Timeout": ("did not answer in time", True),
    "APIConnectionError": ("cannot be reached, or sent no answer that can be read", True),
    "InternalServerError": ("failed, or sent no answer that can be read", True),
    "BadRequestError": ("refused the request", False),
}
_PROVIDER_STATUSES: Final[dict[int, tuple[str, bool]]] = {  # where litellm has no exception of its own
    402: ("wants to be paid first", False),
    403: ("does not allow this with this key", False),
    413: ("says that the request is too long", False),
    529: ("is overloaded or down", True),
}
_LASTING_CODES: Final = {  # the provider's own code says more than the exception's name
    "insufficient_quota": "says that the account has no credit left",
    "content_filter": "refused the request by its content filter",
    "content_policy_violation": "refused the request by its content filter",
}


class SamplerSetup(Struct):
    """The sampler's first line. Keys travel here, since others can read a process's arguments."""

    models: list[ModelOptions]
    limits: SamplingLimits
    timeout_sec: float
    ledger: str


class Rated(NamedTuple):
    """A model with its scores, and where each comes from."""

    options: ModelOptions
    usd: tuple[float, float] | None  # per million tokens, in and out; None: litellm knows no price
    scores: dict[str, float]
    sources: dict[str, str]

    @property
    def names(self) -> list[str]:
        full = self.options.model
        return [name.lower() for name in (full, full.rpartition("/")[2], *self.options.hints) if name]


def has_litellm() -> bool:
    import importlib.util  # noqa: PLC0415

    return importlib.util.find_spec("litellm") is not None


def load_litellm() -> Any:
    """Imports it, with all that it would fetch, report, print or read from a `.env` file switched off."""
    for what in ("MODEL_COST_MAP", "ANTHROPIC_BETA_HEADERS", "BLOG_POSTS", "POLICY_TEMPLATES", "AUTOROUTER_PRESETS"):
        os.environ[f"LITELLM_LOCAL_{what}"] = "True"
    os.environ["LITELLM_MODE"] = "PRODUCTION"
    import logging  # noqa: PLC0415

    import litellm  # noqa: PLC0415

    logging.disable(logging.CRITICAL)
    loaded: Any = litellm
    loaded.telemetry = False
    loaded.suppress_debug_info = True
    return loaded


def rate(options: ModelOptions, prices: Mapping[str, Any]) -> Rated:
    """Scores that the config does not give are guessed from the price: dear models are clever and slow. `prices` is
    litellm's table."""
    provider, _, name = options.model.partition("/")
    row = prices.get(options.model) or {}
    if not row and (other := prices.get(name)) and str(other.get("litellm_provider", "")).startswith(provider):
        row = other
    row = row | options.params
    usd, guesses = None, dict.fromkeys(PRIORITIES, (0.5, "unknown price"))
    if (paid := row.get("input_cost_per_token")) is not None:
        usd = (float(paid) * 1e6, float(row.get("output_cost_per_token") or 0) * 1e6)
        # Free is 1, $10 about a half, $100 for a million tokens nothing; most tokens go in.
        cheap = max(0.0, round(1 - math.log10(1 + (3 * usd[0] + usd[1]) / 4) / 2, 2))
        guesses = {"cost": (cheap, "price"), "speed": (cheap, "price"), "intelligence": (round(1 - cheap, 2), "price")}
    given = {key: (score, "config") for key in PRIORITIES if (score := getattr(options, key)) is not None}
    both = guesses | given
    return Rated(options, usd, {key: both[key][0] for key in both}, {key: both[key][1] for key in both})


def choose_model(models: list[Rated], preferences: Mapping[str, Any]) -> tuple[Rated, str]:
    """The model for a request's `modelPreferences`, and why: hints in order, then the weighted priorities, then the
    order of the config. https://modelcontextprotocol.io/specification/2025-11-25/client/sampling"""
    candidates, why = models, "no hint names one"
    for hint in preferences.get("hints") or ():
        wanted = str(hint.get("name") or "").lower()
        exact = [model for model in models if wanted in model.names]
        near = exact or [model for model in models if any(wanted in name or name in wanted for name in model.names)]
        if wanted and near:
            candidates, why = near, f"the hint {hint['name']!r} names " + ("it" if len(near) == 1 else f"{len(near)}")
            break
    weights = {key: preferences.get(PRIORITIES[key]) or 0 for key in PRIORITIES}
    if len(candidates) == 1:
        return candidates[0], why
    if not any(weights.values()):
        return candidates[0], f"{why}; no priority is given; it is the first"

    def score(model: Rated) -> float:
        return sum(weights[key] * model.scores[key] for key in weights)

    best = max(candidates, key=score)  # of equals the first
    terms = " + ".join(f"{weights[key]:g} × {key} {best.scores[key]:g}" for key in weights if weights[key])
    return best, f"{why}; it scores most: {terms} = {score(best):.3g}"


def checked_params(raw: Raw) -> dict[str, Any]:
    """The params of `sampling/createMessage`, decoded. Raises `RpcError` that says what is wrong with them."""
    import mcp.types  # noqa: PLC0415
    import pydantic  # noqa: PLC0415

    params: dict[str, Any] = {}
    try:
        asked = mcp.types.CreateMessageRequestParams.model_validate(value_of(raw), by_alias=True, by_name=False)
        params = asked.model_dump(mode="json", by_alias=True, exclude_none=True)  # "5" and 5.0 are 5 from here on
        wrong = "maxTokens: must be at least 1" if asked.max_tokens < 1 else tools_out_of_balance(params["messages"])
    except pydantic.ValidationError as invalid:
        wrong = _what_is_invalid(invalid.errors(include_url=False, include_input=False, include_context=False))
    if wrong:
        raise RpcError(INVALID_PARAMS, f"mcpmux: invalid sampling request: {wrong}"[:TEXT_MOST])
    return params


def _what_is_invalid(found: Iterable[Mapping[str, Any]]) -> str:
    """pydantic's findings without those on the kinds of content that were not meant: it tells of every kind that it
    tried, by a name in the path that no field has."""

    def is_kind(part: Any) -> bool:
        return isinstance(part, str) and (part[:1].isupper() or part.startswith("list["))

    tried = [one["loc"][:-1] for one in found if one["loc"][-1:] == ("type",) and one["type"] == "literal_error"]
    tried += [one["loc"] for one in found if one["loc"] and is_kind(one["loc"][-1])]
    meant = [one for one in found if not any(one["loc"][: len(kind)] == kind for kind in tried)]
    told = {".".join(str(part) for part in one["loc"] if not is_kind(part)): one["msg"] for one in reversed(meant)}
    if not told:
        paths = [[str(part) for part in kind if not is_kind(part)] for kind in tried]
        told = {".".join(max(paths, key=len, default=[])): "is no content of a known type"}
    return "; ".join(f"{path or 'params'}: {text.partition(' or instance')[0]}" for path, text in told.items())


def blocks_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return content if isinstance(content, list) else [content]


def tools_out_of_balance(messages: list[dict[str, Any]]) -> str | None:
    """What is wrong if not each `tool_use` is answered by a `tool_result` in the next message, which then has nothing
    else (2025-11-25, client/sampling). Providers refuse such a request in worse words."""
    if not messages:
        return "messages: there is none"
    asked: set[str] = set()
    for number, message in enumerate(messages):
        blocks = blocks_of(message)
        uses = [block["id"] for block in blocks if block["type"] == "tool_use"]
        results = [block["toolUseId"] for block in blocks if block["type"] == "tool_result"]
        where = f"messages.{number}"
        if results and (len(results) < len(blocks) or message["role"] != "user"):
            return f"{where}: a message with tool_result is the user's and has nothing else"
        if uses and message["role"] != "assistant":
            return f"{where}: tool_use is the assistant's"
        if set(results) != asked or len(results) != len(asked):
            return f"{where}: its tool_result blocks do not answer the tool_use blocks before it, one each"
        if len(set(uses)) < len(uses):
            return f"{where}: two tool_use blocks have the same id"
        asked = set(uses)
    return f"messages.{len(messages) - 1}: its tool_use blocks are not answered" if asked else None


def chat_messages(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A request's messages as litellm takes them: OpenAI's."""
    system = params.get("systemPrompt")
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for message in params["messages"]:
        parts: list[dict[str, Any]] = []
        calls: list[dict[str, Any]] = []
        for block in blocks_of(message):
            match block["type"]:
                case "tool_use":
                    function = {"name": block["name"], "arguments": json.dumps(block["input"], ensure_ascii=False)}
                    calls.append({"id": block["id"], "type": "function", "function": function})
                case "tool_result":
                    text, media = _tool_result(block)
                    messages.append({"role": "tool", "tool_call_id": block["toolUseId"], "content": text})
                    parts += media
                case _:
                    parts.append(_chat_part(block))
        content = parts[0]["text"] if len(parts) == 1 and "text" in parts[0] else parts
        if calls:
            messages.append({"role": "assistant", "content": content or None, "tool_calls": calls})
        elif parts:
            messages.append({"role": message["role"], "content": content})
    return messages


def _chat_part(block: Mapping[str, Any]) -> dict[str, Any]:
    match block["type"]:
        case "image":
            return {"type": "image_url", "image_url": {"url": f"data:{block['mimeType']};base64,{block['data']}"}}
        case "audio":
            kind = block["mimeType"].partition("/")[2].partition(";")[0]
            return {
                "type": "input_audio",
                "input_audio": {"data": block["data"], "format": _AUDIO_FORMATS.get(kind, kind)},
            }
        case _:
            return {"type": "text", "text": block["text"]}


def _tool_result(block: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """A tool's result as text, and its pictures and sounds: chat APIs take those from the user only."""
    texts: list[str] = []
    media: list[dict[str, Any]] = []
    for one in block.get("content") or ():
        match one["type"]:
            case "text":
                texts.append(one["text"])
            case "image" | "audio":
                texts.append(f"({one['type']}: see the next message)")
                media += [{"type": "text", "text": f"From the result of {block['toolUseId']}:"}, _chat_part(one)]
            case "resource_link":
                texts.append(f"{one['name']}: {one['uri']}")
            case _:
                resource = one["resource"]
                texts.append(resource.get("text", f"({resource.get('mimeType', 'binary')}: {resource['uri']})"))
    if not texts and block.get("structuredContent") is not None:
        texts.append(json.dumps(block["structuredContent"], ensure_ascii=False))
    return ("Error: " if block.get("isError") else "") + "\n".join(texts), media


def chat_arguments(params: Mapping[str, Any], most: int) -> dict[str, Any]:
    """What `litellm.acompletion` is told of a request; `most` caps its tokens."""
    metadata = {key: one for key, one in (params.get("metadata") or {}).items() if isinstance(one, str)}
    arguments: dict[str, Any] = {
        "messages": chat_messages(params),
        "max_tokens": min(params["maxTokens"], most),
        "temperature": params.get("temperature"),
        "stop": params.get("stopSequences") or None,
        "metadata": metadata or None,
    }
    if params.get("tools"):
        arguments["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool["name"],
                    "description": tool.get("description") or tool.get("title") or tool["name"],
                    "parameters": tool["inputSchema"],
                },
            }
            for tool in params["tools"]
        ]
        arguments["tool_choice"] = (params.get("toolChoice") or {}).get("mode", "auto")
    return {key: value for key, value in arguments.items() if value is not None}


def sampling_result(response: Any, params: Mapping[str, Any], model: str) -> dict[str, Any]:
    """litellm's answer as that to `sampling/createMessage`. Raises `RpcError` if the model's answer is of no use."""
    if not response.choices:
        raise RpcError(INTERNAL_ERROR, f"mcpmux: {model} answered without a choice; ask again")
    choice = response.choices[0]
    parts: list[dict[str, Any]] = []
    if choice.message.content:
        parts.append({"type": "text", "text": choice.message.content})
    for image in getattr(choice.message, "images", None) or ():
        kind, _, data = image["image_url"]["url"].removeprefix("data:").partition(";base64,")
        if data:
            parts.append({"type": "image", "mimeType": kind, "data": data})
    for number, call in enumerate(choice.message.tool_calls or ()):
        name = call.function.name
        try:
            given = json.loads(call.function.arguments or "{}")
        except ValueError:
            given = None
        if not isinstance(given, dict) or not isinstance(name, str):
            text = f"mcpmux: {model} called a tool without a name or with arguments that are no JSON object; ask again"
            raise RpcError(INTERNAL_ERROR, text)
        parts.append({"type": "tool_use", "id": call.id or f"call_{number}", "name": name, "input": given})
    if not parts and choice.finish_reason == "content_filter":
        raise RpcError(INTERNAL_ERROR, f"mcpmux: the answer of {model} was withheld by its provider's content filter")
    extra = getattr(choice, "provider_specific_fields", None) or {}
    word = extra.get("native_finish_reason") or choice.finish_reason
    if extra.get("stop_reason") in (params.get("stopSequences") or ()):  # some say which of them it was
        word = "stop_sequence"
    parts = parts or [{"type": "text", "text": ""}]
    return {
        "role": "assistant",
        "content": parts[0] if len(parts) == 1 and not params.get("tools") else parts,
        "model": str(response.model or model),
        "stopReason": _STOP_REASONS.get(word, word),
    }


def provider_trouble(wrong: Exception, secrets: Iterable[str], params: Any) -> tuple[str, bool]:
    """What a provider's failure is, in a line without keys or content; and whether it may pass by itself."""
    status = getattr(wrong, "status_code", None)
    status = status if isinstance(status, int) else 0
    kinds = [kind.__name__ for kind in type(wrong).__mro__]
    known = [_PROVIDER_ERRORS[kind] for kind in kinds if kind in _PROVIDER_ERRORS]
    text, passes = known[0] if known else _PROVIDER_STATUSES.get(status, ("failed", status >= 500))
    said, codes = _words_of_provider(wrong, status)
    lasting = [_LASTING_CODES[code] for code in codes if code in _LASTING_CODES]
    if lasting:
        text, passes = lasting[0], False
    if said.startswith("Connection error"):
        text, said = "cannot be reached", ""
    for secret in sorted(secrets, key=len, reverse=True):  # a short one may be part of a longer one
        said = said.replace(secret, "***")
    said = " ".join(said.split())[:TEXT_MOST]
    said = re.sub(r"\b[\w-]*\*{3,}[\w*-]*|\b(?:sk|pk|rk)-[\w-]{4,}", "***", said)  # also keys shown in part
    if said and not quotes(said, params):
        text += f': "{said}"'
    return text + (f" (HTTP {status})" if status and "cannot be reached" not in text else ""), passes


def _words_of_provider(wrong: Exception, status: int) -> tuple[str, list[str]]:
    """What the provider itself says in an exception of litellm's, and its codes. An answer that litellm cannot read
    becomes an exception that quotes it, so only what certainly is an error's text counts as said."""
    said = str(getattr(wrong, "message", ""))
    said = re.sub(r"^(litellm\.)?(\w+: )*+(litellm\.\w+: )?(\w+: )*+(\w+(Exception|Error) - )?", "", said)
    bodies = [getattr(wrong, "body", None), value_of(said[said.find("{") :].encode(errors="replace"))]
    codes = [getattr(wrong, "code", None)]
    is_error = (status >= 400 and status != 500) or bodies[0] is not None or said.startswith("Connection error")
    for body in bodies:
        inner = body.get("error", body) if isinstance(body, dict) else None
        if isinstance(inner, dict):
            codes += [inner.get("code"), inner.get("type")]
            if body is bodies[1] and isinstance(inner.get("message"), str):
                said, is_error = inner["message"], True  # some providers' words come as the JSON that they were sent in
    return said if is_error else "", [code for code in codes if isinstance(code, str)]


def quotes(said: str, params: Any) -> bool:
    """Whether a provider's words repeat some of the request's: sixteen characters, or a whole short text. What a
    server prefers of models is not such a text."""
    asked = {key: one for key, one in params.items() if key != "modelPreferences"}
    leaves = [text for text, at in _texts(asked, "") if not at.endswith((".type", ".role", ".mimeType", ".mode"))]
    return any(
        any(said[at : at + 16] in leaf for at in range(len(said) - 15)) or (len(leaf) > 3 and leaf in said)
        for leaf in (" ".join(leaf.split()) for leaf in leaves)
    )


class Ledger:
    """What was spent: a JSON line a request, in one file for all mcpmux processes of the person. A line is written by
    one write at the file's end, so that processes do not disturb each other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_to = 0
        self._days: collections.defaultdict[str, float] = collections.defaultdict(float)
        self._unwritten: collections.defaultdict[str, float] = collections.defaultdict(float)

    def lines(self) -> list[dict[str, Any]]:
        """All of it; what is no whole line of ours is passed over."""
        return self._entries(self._whole_lines(0))

    def _whole_lines(self, start: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                data = file.read()
        except OSError:
            return b""
        return data[: data.rfind(b"\n") + 1]

    def _entries(self, data: bytes) -> list[dict[str, Any]]:
        found = [value_of(line) for line in data.splitlines()]
        return [one for one in found if isinstance(one, dict) and isinstance(one.get("time"), str)]

    def spent(self, day: str) -> float:
        """USD on that day (YYYY-MM-DD, UTC), as far as prices are known."""
        if self._size() < self._read_to:  # somebody emptied it
            self._read_to = 0
            self._days.clear()
        data = self._whole_lines(self._read_to)
        self._read_to += len(data)
        for line in self._entries(data):
            self._days[line["time"][:10]] += amount(line, "usd")
        return self._days[day] + self._unwritten[day]

    def check(self, limit: float) -> None:
        """Raises `RpcError` when the day's money is spent. What is open by then may still go over it."""
        now = time.time()
        spent = self.spent(_day(now))
        if spent >= limit:
            left = 86400 - now % 86400
            when = f"free again at 00:00 UTC, in {left // 3600:.0f} h {left % 3600 // 60:.0f} min"
            raise limit_reached("usd_per_day", f"${spent:.4g} of ${limit:.4g} are spent today; {when}", round(left))

    def add(self, **entry: Any) -> None:
        """Raises `OSError`; the day's sum knows of it even so."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        line = json.dumps({"time": stamp, **entry}, ensure_ascii=False).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _append(self.path, line if self._ends_whole() else b"\n" + line)
        except OSError:
            self._unwritten[_day(now)] += amount(entry, "usd")
            raise

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def _ends_whole(self) -> bool:
        """A disk that was full may have taken half a line: the next one must not be lost with it."""
        size = self._size()
        if size == 0:
            return True
        with self.path.open("rb") as file:
            file.seek(size - 1)
            return file.read(1) == b"\n"


def amount(line: Mapping[str, Any], key: str) -> float:
    """A number in a line of the ledger; what cannot be one counts as nothing."""
    value = line.get(key)
    return value if isinstance(value, int | float) and 0 <= value < 1e15 else 0


def _day(now: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(now))


def _append(path: Path, line: bytes) -> None:
    """One write at the end, also while others write there."""
    if sys.platform == "win32":
        import pywintypes  # noqa: PLC0415
        import win32con  # noqa: PLC0415
        import win32file  # noqa: PLC0415

        share = win32con.FILE_SHARE_READ | win32con.FILE_SHARE_WRITE
        try:  # with only this right the system finds the end by itself
            handle: Any = win32file.CreateFile(
                str(path), 4, share, None, win32con.OPEN_ALWAYS, 0, None
            )  # FILE_APPEND_DATA
            win32file.WriteFile(handle, line)
            handle.Close()
        except pywintypes.error as wrong:
            raise OSError(f"{path}: {wrong.strerror}") from None
    else:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(file, line)
        finally:
            os.close(file)


class SamplerLoop:
    """The child's loop: a task for each request, which its cancelling ends, with its connection to the provider."""

    def __init__(self, writing: int) -> None:
        self._writing = writing
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def run(self, lines: asyncio.Queue[bytes]) -> None:
        """For ever: the process ends with its input. The first line is the setup."""
        self._setup = setup = msgspec.json.decode(await lines.get(), type=SamplerSetup)
        self._litellm = load_litellm()
        self._models = [rate(model, self._litellm.model_cost) for model in setup.models]
        keys = [model.api_key or "" for model in setup.models]
        keys += [value for model in setup.models for key, value in model.params.items() if _SECRET_NAME.search(key)]
        keys += [value for key, value in os.environ.items() if _SECRET_NAME.search(key)]
        # A short one would hide half of every line.
        self._secrets = [key for key in keys if isinstance(key, str) and len(key) > 5]
        self._ledger = Ledger(Path(setup.ledger))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)  # from here on a library's words may be about what is asked
        os.dup2(null, 1)
        while True:
            message = decode_line(await lines.get())
            params = fields_of(message.params)
            if message.method == "notifications/cancelled":
                task = self._tasks.get(number_of_id(params["requestId"]) or 0)
                if task:
                    task.cancel()
            elif message.id is not UNSET and (number := number_of_id(message.id)) is not None:
                task = asyncio.create_task(self._survive(number, text_in(params, "server"), params["params"]))
                self._tasks[number] = task
                task.add_done_callback(lambda _, number=number: self._tasks.pop(number))

    async def _survive(self, number: int, server: str, raw: Raw) -> None:
        """Whatever litellm or its provider does, costs this request only; it is told in a line without content."""
        id = b"%d" % number
        try:
            line = result_line(id, encode(await self._answer(server, raw)))
        except RpcError as wrong:
            line = error_line(id, error_body(wrong))
        except Exception as bug:
            error = RpcError(INTERNAL_ERROR, f"mcpmux: a bug in its sampler, please report it: {type(bug).__name__}")
            line = error_line(id, error_body(error))
        self._write(line)

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._writing, line) :]

    def _log(self, level: str, text: str) -> None:
        self._write(notification_line("log", encode({"level": level, "text": text})))

    async def _answer(self, server: str, raw: Raw) -> dict[str, Any]:
        params = checked_params(raw)
        chosen, _ = choose_model(self._models, params.get("modelPreferences") or {})
        model, options = chosen.options.model, chosen.options
        self._ledger.check(self._setup.limits.usd_per_day)
        arguments = chat_arguments(params, self._setup.limits.max_tokens)
        arguments |= {"api_key": options.api_key, "api_base": options.api_base, "drop_params": True, **options.params}
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._setup.timeout_sec):
                response = await self._complete(model, arguments, params)
        except TimeoutError:
            text = f"mcpmux: {model} did not answer within {self._setup.timeout_sec:g} s (sampling.timeout_sec)"
            raise RpcError(INTERNAL_ERROR, text) from None
        ms = round((time.monotonic() - began) * 1000)
        usage = getattr(response, "usage", None)
        tokens = {key: getattr(usage, name, 0) for key, name in (("in", "prompt_tokens"), ("out", "completion_tokens"))}
        usd = response._hidden_params.get("response_cost") if chosen.usd else None
        try:
            self._ledger.add(server=server, model=model, **tokens, usd=usd, ms=ms)
        except OSError as wrong:
            self._log("warning", f"the ledger of sampling cannot be written: {wrong}")
        cost = "price unknown" if usd is None else f"${usd:.2g}"
        self._log("debug", f"{server}: sampled with {model}: {tokens['in']} + {tokens['out']} tokens, {cost}, {ms} ms")
        return sampling_result(response, params, model)

    async def _complete(self, model: str, arguments: dict[str, Any], params: Any) -> Any:
        """Asks the provider, again if it is busy or failing. Raises `RpcError`."""
        for wait in (*RETRY_WAITS, None):
            try:
                if "tools" in arguments and "tools" not in (self._litellm.get_supported_openai_params(model) or ()):
                    raise RpcError(INTERNAL_ERROR, f"mcpmux: {model} takes no tools; configure a model that does")
                return await self._litellm.acompletion(model=model, num_retries=0, max_retries=0, **arguments)
            except RpcError:
                raise
            except Exception as wrong:  # litellm has no base class of its own; each becomes an error of this request
                text, passes = provider_trouble(wrong, self._secrets, params)
                asked = _retry_after(wrong)
                if wait is None or not passes or asked > RETRY_AFTER_MOST:
                    later = f"; it asks to wait {asked:g} s" if asked else ""
                    raise RpcError(INTERNAL_ERROR, f"mcpmux: the provider of {model} {text}{later}") from None
            await asyncio.sleep(max(wait * (1 + _chance()) / 2, asked))
        raise Bug("the last attempt has no wait")


def _retry_after(wrong: Exception) -> float:
    """The seconds that a provider asks to be left alone; 0 if it says nothing."""
    headers = getattr(wrong, "litellm_response_headers", None) or {}
    try:
        return max(0.0, float(headers.get("retry-after", 0)))
    except ValueError:
        return 0.0


def _chance() -> float:
    return int.from_bytes(os.urandom(4)) / 2**32


def sampler_main() -> int:
    """`mcpmux _sampler`: ends with its input, and so with its parent."""
    reading, writing = take_over_stdio()

    async def serve() -> None:
        lines: asyncio.Queue[bytes] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def read() -> None:
            splitter = LineSplitter(sys.maxsize)
            while chunk := os.read(reading, 1 << 20):
                for line in splitter.feed(chunk):
                    assert isinstance(line, bytes)
                    loop.call_soon_threadsafe(lines.put_nowait, line)
            os._exit(0)  # at once, also while litellm loads: nobody is left who would hear of anything

        threading.Thread(target=read, name="sampler's input", daemon=True).start()
        await SamplerLoop(writing).run(lines)

    asyncio.run(serve())
    return 0


async def sampler_setup(config: Config, secrets: set[str]) -> bytes:
    """The sampler's first line, with keys filled in. Raises `StartError` that names the key."""
    assert config.sampling
    if not has_litellm():
        raise StartError(*NO_LITELLM)
    models: list[ModelOptions] = []
    for number, model in enumerate(config.sampling.models):
        where = "sampling" if config.sampling.model else f"sampling.models[{number}]"
        full = {
            key: await expand(text, f"{where}.{key}", config.environment, secrets)
            for key in ("api_key", "api_base")
            if (text := getattr(model, key)) is not None
        }
        secrets |= {full["api_key"]} if "api_key" in full else set()
        models.append(msgspec.structs.replace(model, **full))
    ledger = str(state_folder() / LEDGER_NAME)
    setup = SamplerSetup(models, config.sampling.limits, config.sampling.timeout_sec, ledger)
    return encode(setup) + b"\n"


# ══ 14. Mux ══════════════════════════════════════════════════════════════════════════════════════════════════════════
# Feeds the core and does what it says. The only task that lives long is the loop; a start and a stop are a task each.


def on_signal(loop: asyncio.AbstractEventLoop, number: int, heard: Callable[[int], Any]) -> None:
    """`heard` is called in the loop's thread, in place of whatever was called before."""
    if sys.platform == "win32":
        signal.signal(number, lambda number, _: loop.call_soon_threadsafe(heard, number))
    else:
        loop.add_signal_handler(number, heard, number)


SAMPLER: Final = "mcpmux sampler"  # in messages and as its log's name, which no server can have: it has a space
AT_REST: Final = "the model at rest"  # the process of an idle sampler, until it has ended


class Mux:
    """A core, its host and its processes. `host` is `HostPipes`, or anything with its methods."""

    def __init__(
        self, config: Config, host: Any, journal: Journal, *, cached: bool = True, watches: bool = True
    ) -> None:
        known, notes = read_known(cache_folder(), config.servers) if cached else ({}, [])
        for note in notes:
            journal.log("warning", note)
        notice = ""
        if not config.exists:
            notice = f"mcpmux has no config yet: put one at {config.path}, then start this host again."
        self.core = Core(
            config.options,
            config.servers,
            sampling=config.sampling if config.sampling and has_litellm() else None,
            known=known,
            broken=config.broken,
            notice=notice,
            chance=_chance,
            secret=lambda: os.urandom(16).hex(),
        )
        self._config = config
        self._host = host
        self._journal = journal
        self._inbox: collections.deque[Event] = collections.deque()
        self._wake = asyncio.Event()
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._processes: dict[str, ServerProcess | RemoteServer] = {}
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._ended = False
        self._logins: dict[str, Path] = {}  # by server: the file of its login
        self._done = threading.Event()  # ends the watch over config, logins and parent
        self._watches = watches
        self._for_sampler: list[bytes] = []  # lines that wait until it is started
        self._sampler_runs = 0

    def post(self, event: Event) -> None:
        """From the loop's thread. One wake-up serves all that comes before it is heard."""
        self._inbox.append(event)
        self._wake.set()

    async def run(self) -> None:
        """Serves until the host goes or a signal comes; returns when nothing is left."""
        self._loop = asyncio.get_running_loop()
        become_subreaper()
        self._watch_signals()
        for note in self._config.notes:
            self._journal.log("info", note)
        for problem in self._config.broken.values():
            self._journal.log("error", problem)
        if self._config.sampling and not has_litellm():
            self._journal.log("error", f"{NO_LITELLM[0]}; {NO_LITELLM[1]}; servers are told of no local model")
        self._host.start(self.post, self._make_room)
        if self._watches:
            threading.Thread(target=self._watch, args=(parent_watch(),), name="mcpmux watch", daemon=True).start()
        while not self._ended:
            await self._wake.wait()
            self._wake.clear()
            self._drain()
        await self._finish()

    def _drain(self) -> None:
        core, now = self.core, self._loop.time
        touched: dict[str, ServerProcess | RemoteServer] = {}
        while self._inbox:
            event = self._inbox.popleft()
            if isinstance(event, HostGone):
                self._ended = True
                self._done.set()
            elif isinstance(event, SamplerGone):
                self._drop_sampler()
            elif isinstance(event, ServerGone):
                process = self._processes.get(event.server)
                if process and process.run == event.run:
                    del self._processes[event.server]
            for effect in core.handle(event, now()):
                match effect:
                    case SendHost(source, line):
                        self._host.put(source, line)
                    case SendServer(server, line):
                        process = self._processes.get(server)
                        if process:
                            process.outbox.append(line)
                            touched[server] = process
                    case Log(level, text):
                        self._journal.log(level, text)
                    case SetTimer(key, at):
                        self._set_timer(key, at)
                    case Sample(line):
                        self._sample(line)
                        touched |= {MODEL: self._processes[MODEL]} if MODEL in self._processes else {}
                    case SaveCatalogue(server, known):
                        self._journal.later(functools.partial(write_known, cache_folder(), server, known))
                    case Start(server, run):
                        self._starting[server] = self._loop.create_task(self._start(server, run))
                    case Stop(server, run):
                        self._stop(server, run)
        for process in touched.values():
            process.flush()
        self._host.flush()

    def _set_timer(self, key: tuple[str, str], at: float | None) -> None:
        handle = self._timers.pop(key, None)
        if handle:
            handle.cancel()
        if at is not None:
            self._timers[key] = self._loop.call_at(at, self._timer_due, key)

    def _timer_due(self, key: tuple[str, str]) -> None:
        del self._timers[key]
        if key[0] == MODEL:
            self._rest_sampler()
        else:
            self.post(TimerDue(key))

    async def _start(self, name: str, run: int) -> None:
        try:
            table = self._config.servers.get(name)
            if table is None:
                return  # a new config is on its way to the core
            limit = int(self._config.options.max_message_mb * MB)
            outbox = int(self._config.options.outbox_mb * MB)
            if table.url:
                address = await locate(name, table, self._config)
                self._journal.hide(address.secrets)
                self._logins[name] = address.login
                process = RemoteServer(name, run, self.post, limit, outbox, address, self._journal, table.transport)
                await process.start()
            else:
                command = await prepare(name, table, self._config)
                self._journal.hide(command.secrets)
                process = ServerProcess(name, run, self.post, limit, self._journal)
                await spawn(command, process, outbox)
        except StartError as wrong:
            what, todo = wrong.args
            self.post(ServerGone(name, run, self._journal.redact(f"{name}: {what}"), todo, []))
        else:
            self._processes[name] = process
            process.read(not self._host.is_full(name))
            self.post(ServerUp(name, run))
        finally:
            if self._starting.get(name) is asyncio.current_task():
                del self._starting[name]

    def _sample(self, line: bytes) -> None:
        process = self._processes.get(MODEL)
        if process:
            process.outbox.append(line)
        else:
            self._for_sampler.append(line)
            if MODEL not in self._starting:
                self._starting[MODEL] = self._loop.create_task(self._start_sampler())
        self._set_timer((MODEL, ""), self._loop.time() + SAMPLER_IDLE)

    async def _start_sampler(self) -> None:
        secrets: set[str] = set()
        self._sampler_runs += 1
        try:
            setup = await sampler_setup(self._config, secrets)
            self._journal.hide(secrets)
            env = {key: value for key, value in self._config.environment.items() if not key.startswith("MCPMUX_")}
            command = Command(sys.executable, [os.path.abspath(__file__), "_sampler"], env, None, frozenset())
            limit = int(self._config.options.max_message_mb * MB)
            process = ServerProcess(SAMPLER, self._sampler_runs, self._hear_sampler, limit, self._journal)
            await spawn(command, process, int(self._config.options.outbox_mb * MB))
        except StartError as wrong:
            self.post(SamplerGone(f"sampling: {wrong.args[0]} ({wrong.args[1]})"))
        else:
            self._processes[MODEL] = process
            process.outbox += [setup, *self._for_sampler]
            self._for_sampler.clear()
            process.flush()
        finally:
            if self._starting.get(MODEL) is asyncio.current_task():
                del self._starting[MODEL]

    def _hear_sampler(self, event: Event) -> None:
        """What the sampler's process tells is told as the sampler's; of one that was put to rest nothing is."""
        process = self._processes.get(MODEL)
        match event:
            case ServerLines(lines=lines):
                self.post(Sampled(lines))
            case ServerGone() if process and process.run == event.run:
                words = f': "{event.stderr[-1]}"' if event.stderr else ""
                self.post(SamplerGone(f"the {event.reason} while it was asked{words}; ask again"))
            case ServerGone():
                self._processes.pop(AT_REST, None)
            case _:
                pass

    def _drop_sampler(self) -> None:
        """With all that it was to be asked: the core ends those requests."""
        self._for_sampler.clear()
        if MODEL in self._starting:
            self._starting.pop(MODEL).cancel()
        process = self._processes.pop(MODEL, None)
        if process and not process.exited.is_set():
            self._processes[AT_REST] = process
            self._ladder(process)

    def _rest_sampler(self) -> None:
        process = self._processes.get(MODEL)
        if self.core.in_flight.owed_by(MODEL):
            self._set_timer((MODEL, ""), self._loop.time() + SAMPLER_IDLE)
        elif process:
            self._journal.log("debug", "the sampler is idle and is stopped")
            self._rest(self._processes.pop(MODEL))

    def _rest(self, process: ServerProcess | RemoteServer) -> None:
        self._processes[AT_REST] = process  # still known: nobody but the loop may take it out of the process table
        self._ladder(process)

    def _ladder(self, process: ServerProcess | RemoteServer) -> None:
        self._await_end(self._loop.create_task(process.stop()))

    def _await_end(self, task: asyncio.Task[None]) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._stopping.discard(task)
            self._child_ended()

        self._stopping.add(task)
        task.add_done_callback(ended)

    def _stop(self, name: str, run: int) -> None:
        process = self._processes.get(name)
        if process and process.run == run:
            self._ladder(process)
        else:
            if name in self._starting:
                starting = self._starting.pop(name)
                starting.cancel()  # asyncio kills what it has started by then
                self._await_end(starting)
            self.post(ServerGone(name, run, f"{name} was stopped while it started", "", []))

    def _make_room(self, source: str, room: bool) -> None:
        """The host reads slowly: the server whose lines wait is not read meanwhile."""
        process = self._processes.get(source)
        if process:
            process.read(room)

    async def _finish(self) -> None:
        """All ladders at once, what the host still takes, and then whoever left his group."""
        self._drain()
        closing = self._loop.create_task(self._host.close())
        if MODEL in self._processes:
            self._rest(self._processes.pop(MODEL))
        for task in self._starting.values():
            task.cancel()
        await asyncio.gather(*self._stopping, *self._starting.values(), closing, return_exceptions=True)
        for handle in self._timers.values():
            handle.cancel()
        kill_all(descendants(os.getpid()))
        reap(())

    def _watch(self, parent_is_gone: Callable[[], bool]) -> None:
        """A thread, since a disk may be slow. Most beginnings of a config file are TOML too: it is read when it has
        stood still between two looks."""
        path = self._config.path
        seen = taken = self._config.mark
        logins: dict[str, tuple[int, int] | None] = {}
        trim, worked = memory_trimmer(), time.process_time()
        while not self._done.wait(WATCH_TICK):
            if time.process_time() - worked > TRIM_AFTER:
                trim()
                worked = time.process_time()
            if parent_is_gone():
                self._in_loop(self.post, HostGone("the process that started mcpmux is gone"))
                return
            for name, path_of_login in list(self._logins.items()):
                mark = mark_of(path_of_login)
                if mark and logins.get(name, mark) != mark:
                    self._in_loop(self.post, TryAgain(name))
                logins[name] = mark
            former, seen = seen, mark_of(path)
            if seen == taken or seen != former:
                continue
            taken = seen
            try:
                config = load_config(path)
                if not config.exists:
                    raise ConfigError(f"{path}: is gone")
            except ConfigError as wrong:
                for line in str(wrong).splitlines():
                    self._journal.log("error", f"{line} (the former configuration stands)")
            else:
                self._in_loop(self._take, config)

    def _in_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed
            pass

    def _take(self, config: Config) -> None:
        """A new configuration. Secrets are read anew when their servers start."""
        for note in [*config.notes, *config.broken.values()]:
            self._journal.log("info" if note in config.notes else "error", note)
        if config.sampling != self._config.sampling:
            self.post(SamplerGone("the models of the config have changed; ask again"))
        self._config = config
        self._journal.threshold = LEVELS[config.options.log_level]
        sampling = config.sampling if config.sampling and has_litellm() else None
        self.post(ConfigChanged(config.options, config.servers, config.broken, sampling))

    def _watch_signals(self) -> None:
        def asked_to_stop(number: int) -> None:
            self.post(HostGone(signal.Signals(number).name))

        if sys.platform == "win32":
            numbers = (signal.SIGINT, signal.SIGBREAK)
        else:
            numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            self._loop.add_signal_handler(signal.SIGCHLD, self._child_ended)
        for number in numbers:
            on_signal(self._loop, number, asked_to_stop)

    def _child_ended(self) -> None:
        # One that is being started or replaced is not among the known ones: asyncio is to hear of its end.
        if sys.platform == "linux" and not self._starting and not self._stopping:
            reap(process.pid for process in self._processes.values() if isinstance(process, ServerProcess))


# ══ 15. Hosts ════════════════════════════════════════════════════════════════════════════════════════════════════════
# Where hosts keep their servers, and what they mean by what stands there: to move servers out of a host's file, and
# mcpmux into it. Starts no server and speaks no protocol. No value that may be a secret is ever in a message.

ENTRY_NAME: Final = "mcpmux"  # what we are called in a host
BACKUP_SUFFIX: Final = ".before-mcpmux"


class Host(NamedTuple):
    """Where a host keeps its servers, and what it means by what stands there."""

    name: str
    title: str
    files: tuple[str, ...]  # in the folders of `host_folders`; those in {here} are a project's
    key: str = "mcpServers"  # of the object that has the servers
    aliases: tuple[str, ...] = ()
    dialect: str = "none"  # of its placeholders, in `DIALECTS`
    timeout_unit: float | None = None  # of its `timeout`, in seconds; None: it has none
    bare_url: Literal["http", "sse"] = "http"  # what a `url` means without a type
    edited: bool = False  # `install` writes to its file
    add: tuple[str, ...] = ()  # its own command, with the words of `own_command`
    remove: tuple[str, ...] = ()


MS: Final = 0.001
HOSTS: Final = (
    Host(
        "claude-desktop",
        "Claude Desktop",
        (
            "{local}/Packages/Claude_*/LocalCache/Roaming/Claude/claude_desktop_config.json",  # of the MSIX build
            "{data}/Claude/claude_desktop_config.json",
        ),
        aliases=("claude",),
        edited=True,
    ),
    Host(
        "claude-code",
        "Claude Code",
        ("{home}/.claude.json", "{here}/.mcp.json"),
        dialect="shell",
        timeout_unit=MS,
        add=("claude", "mcp", "add-json", "--scope", "user", ENTRY_NAME, "{entry}"),
        remove=("claude", "mcp", "remove", "--scope", "user", ENTRY_NAME),
    ),
    Host(
        "vscode",
        "VS Code",
        ("{data}/Code/User/mcp.json", "{here}/.vscode/mcp.json"),
        key="servers",
        aliases=("code", "vs-code", "copilot"),
        dialect="editor",
        add=("code", "--add-mcp", "{named entry}"),
    ),
    Host("cursor", "Cursor", ("{home}/.cursor/mcp.json", "{here}/.cursor/mcp.json"), dialect="editor", edited=True),
    Host(
        "codex",
        "Codex",
        ("{codex}/config.toml", "{here}/.codex/config.toml"),
        key="mcp_servers",
        add=("codex", "mcp", "add", ENTRY_NAME, "--", "{command}"),
        remove=("codex", "mcp", "remove", ENTRY_NAME),
    ),
    Host(
        "gemini",
        "Gemini CLI",
        ("{home}/.gemini/settings.json", "{here}/.gemini/settings.json"),
        aliases=("gemini-cli",),
        dialect="dollar",
        timeout_unit=MS,
        bare_url="sse",
    ),
    Host("zed", "Zed", ("{config}/zed/settings.json",), key="context_servers"),
    Host("windsurf", "Windsurf", ("{home}/.codeium/windsurf/mcp_config.json",), dialect="editor"),
    Host(
        "goose",
        "Goose",
        ("{roaming}/Block/goose/config/config.yaml", "{config}/goose/config.yaml"),
        key="extensions",
        dialect="shell",
        timeout_unit=1,
    ),
    Host("lm-studio", "LM Studio", ("{home}/.lmstudio/mcp.json",), aliases=("lmstudio",), dialect="editor"),
    Host(
        "amazon-q",
        "Amazon Q",
        ("{home}/.aws/amazonq/mcp.json",),
        aliases=("amazonq", "q"),
        dialect="editor",
        timeout_unit=MS,
    ),
    Host("kiro", "Kiro", ("{home}/.kiro/settings/mcp.json",), dialect="editor", timeout_unit=MS),
    Host("cline", "Cline", ("{home}/.cline/data/settings/cline_mcp_settings.json",), timeout_unit=1, bare_url="sse"),
)

# `var` and `default` are a variable's; `word` is anything else that the host would replace.
DIALECTS: Final = {
    "none": r"(?!)",
    "shell": r"\$\{(?P<var>[A-Za-z_]\w*)(?::-(?P<default>[^{}]*))?\}",
    "dollar": r"\$(?:\{(?P<var>[A-Za-z_]\w*)(?::-(?P<default>[^{}]*))?\}|(?P<bare>[A-Za-z_]\w*))",
    "editor": (
        r"\$\{(?:(?:env:)?(?P<var>(?<=env:)[A-Za-z_]\w*|[A-Z_][A-Z0-9_]*)(?::-(?P<default>[^{}]*))?|(?P<word>[^{}]+))\}"
    ),
}

# What hosts call our keys.
HOST_KEYS: Final = {
    "cmd": "command",
    "envs": "env",
    "headers": "http_headers",
    "serverUrl": "url",
    "httpUrl": "url",
    "uri": "url",
    "disabledTools": "disabled_tools",
    "excludeTools": "disabled_tools",
    "includeTools": "enabled_tools",
    "available_tools": "enabled_tools",
}
_TEXT_KEYS: Final = ("env", "http_headers", "command", "args", "cwd", "url")  # the first name their secrets
_TRANSPORTS: Final = ("sse", "http", "streamable-http", "streamable_http", "streamableHttp")  # what hosts call ours
_PARTS_OF_HOSTS: Final = ("builtin", "platform", "frontend", "inline_python")  # types of Goose's
_SAYS_NOTHING: Final = frozenset({"name", "description", "display_name", "bundled", "source", "tools"})


class Machine(NamedTuple):
    """What decides where a host's files are."""

    platform: str  # as sys.platform
    environment: Mapping[str, str]
    home: str
    here: str  # the folder whose project files are meant


def this_machine() -> Machine:
    return Machine(sys.platform, os.environ, str(Path.home()), os.getcwd())


def host_folders(machine: Machine) -> dict[str, PurePath]:
    """The folders that `Host.files` name; one that a platform has not is missing."""
    path = PureWindowsPath if machine.platform == "win32" else PurePosixPath
    home = path(machine.home)

    def named(variable: str, otherwise: str) -> PurePath:
        return path(machine.environment.get(variable) or home / otherwise)

    folders: dict[str, PurePath] = {"home": home, "here": path(machine.here), "codex": named("CODEX_HOME", ".codex")}
    if machine.platform == "win32":
        roaming, local = named("APPDATA", "AppData/Roaming"), named("LOCALAPPDATA", "AppData/Local")
        return folders | {"local": local, "roaming": roaming, "data": roaming, "config": roaming}
    config = named("XDG_CONFIG_HOME", ".config")
    data = home / "Library/Application Support" if machine.platform == "darwin" else config
    return folders | {"data": data, "config": config}


def host_files(host: Host, machine: Machine) -> list[tuple[PurePath, bool]]:
    """Where its files may be, the first before the others, each with whether it is a project's; may have a `*`."""
    folders = host_folders(machine)
    found: list[tuple[PurePath, bool]] = []
    for file in host.files:
        base, _, rest = file[1:].partition("}/")
        if base in folders:
            found.append((folders[base] / rest, base == "here"))
    return found


def real_files(host: Host, machine: Machine, projects: bool = True) -> list[Path]:
    """As `host_files`, with a `*` replaced by what is there; where nothing is, the path is left out."""
    import glob  # noqa: PLC0415

    found: list[Path] = []
    for pattern, is_projects in host_files(host, machine):
        folder, star, rest = pattern.as_posix().partition("*")
        if projects or not is_projects:
            found += (
                [Path(one + rest) for one in sorted(glob.glob(glob.escape(folder) + star))] if star else [Path(folder)]
            )
    return list(dict.fromkeys(found))


def host_named(name: str) -> Host | None:
    wanted = re.sub(r"[\s_]+", "-", name.strip().lower())
    return next((host for host in HOSTS if wanted in (host.name, host.title.lower(), *host.aliases)), None)


def host_of_file(path: Path, machine: Machine) -> tuple[Host, str | None]:
    """Whose file this is, by its place, else by its name, else by what it holds; and the project that it belongs to."""
    for host in HOSTS:
        if path in real_files(host, machine, projects=False):
            return host, None
    for host in HOSTS:
        for file in reversed(host.files):  # a project's last
            base, _, tail = file[1:].partition("}/")
            if fnmatch.fnmatch(path.as_posix(), f"*/{tail}"):
                return host, str(path.parents[tail.count("/")]) if base == "here" else None
    by_key = {host.key: host for host in reversed(HOSTS)} | {"mcpServers": HOSTS[1]}
    document = read_host_file(path)
    return next((host for key, host in by_key.items() if key in document), HOSTS[1]), None


# ── reading: JSON with comments, TOML, and Goose's YAML ──

_JSON_NOISE: Final = r'(?s)"(?:\\.|[^"\\])*"|//[^\r\n]*|/\*.*?\*/'
_TRAILING_COMMA: Final = r'"(?:\\.|[^"\\])*"|,(?=\s*[}\]])'


def bare_json(text: str) -> str:
    """Without comments and trailing commas, which become blanks: places in the text stay where they are."""
    for noise in (_JSON_NOISE, _TRAILING_COMMA):
        text = re.sub(noise, lambda found: found[0] if found[0][0] == '"' else re.sub(r"[^\r\n]", " ", found[0]), text)
    return text


def read_host_file(path: Path) -> dict[str, Any]:
    """A host's whole file. Raises `ConfigError`, one line."""
    kinds: dict[str, tuple[str, Callable[[str], Any]]] = {
        ".toml": ("TOML", tomllib.loads),
        ".yaml": ("YAML", load_yaml),
        ".yml": ("YAML", load_yaml),
    }
    kind, read = kinds.get(path.suffix, ("JSON", lambda text: json.loads(bare_json(text).strip() or "{}")))
    try:
        document = read(path.read_bytes().decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as wrong:
        raise ConfigError(f"{path}: cannot be read: {wrong}") from None
    except (ValueError, RecursionError) as wrong:
        raise ConfigError(f"{path}: not {kind}: {wrong}") from None
    except ImportError:
        how = "uvx --with pyyaml mcpmux import goose"
        raise ConfigError(f"{path}: is YAML, and to read that takes one package more: {how}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: not an object")
    return document


def load_yaml(text: str) -> Any:
    """Numbers stay text, and so does what only YAML 1.1 takes for more (`on`, `yes`). Raises `ValueError`, and
    `ImportError` where PyYAML is not there: one host in thirteen writes YAML."""
    import yaml  # noqa: PLC0415

    def words(value: Any) -> Any:
        match value:
            case dict():
                return {key: words(one) for key, one in value.items()}
            case list():
                return [words(one) for one in value]
            case _:
                return {"true": True, "false": False, "null": None, "~": None}.get(value, value)

    try:
        return words(yaml.load(text, yaml.BaseLoader))  # noqa: S506 - makes nothing but texts, lists and mappings
    except (yaml.YAMLError, TypeError) as wrong:  # a key that is a list
        raise ValueError(" ".join(str(wrong).split())) from None


# ── secrets ──
# Patterns are plain text: serving does not pay for compiling them.


def variable_name(text: str) -> str:
    """As an environment variable is called: `github-apiKey` becomes GITHUB_API_KEY."""
    name = re.sub(r"\W+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text), flags=re.ASCII).strip("_").upper()
    return name if re.match(r"[A-Z_]", name) else f"_{name}"


class Variables:
    """The variables that imported servers come to need: each secret has one, and no two share one."""

    def __init__(self, environment: Mapping[str, str], secrets: Literal["move", "keep", "hide"] = "move") -> None:
        self._environment = environment
        self._secrets = secrets
        self._values: dict[str, str] = {}
        self.needed: dict[str, str] = {}  # by name: where it is needed

    def hold(self, secret: str, name: str, server: str, where: str) -> str:
        """What to write in place of a secret that stood under a name."""
        if self._secrets != "move":
            return secret if self._secrets == "keep" else HIDDEN
        long = variable_name(f"{server}_{name}")
        names = [name] if re.fullmatch(r"[A-Z_][A-Z0-9_]*", name) else []
        for variable in (*names, long, *(f"{long}_{number}" for number in range(2, 1000))):
            if self._values.get(variable, secret) == secret == self._environment.get(variable, secret):
                self._values[variable] = secret
                self.needed.setdefault(variable, where)
                return f"${{{variable}}}"
        raise Bug("a thousand secrets of one name")

    def hide(self, text: str, name: str, server: str, where: str) -> str:
        """The text, with what in it looks like a secret held elsewhere; `name` is what the text stands under."""
        return hide_secrets(text, name, lambda secret, name: self.hold(secret, name, server, where))


# ── what a host means, in our words ──


class HostEntry(NamedTuple):
    """A server as it stands in a host's file."""

    host: Host
    file: Path
    name: str
    table: Any
    folder: str | None = None  # of the project that it is for
    inputs: Mapping[str, Mapping[str, Any]] = {}  # what VS Code asks for, by id


class Imported(NamedTuple):
    """The same as a table of ours, and what the person should know of it."""

    name: str
    table: dict[str, Any]
    notes: list[str]


def entries_of(host: Host, path: Path, folder: str | None) -> list[HostEntry]:
    """All servers in a host's file; ourselves too. Raises `ConfigError`."""
    document = read_host_file(path)
    inputs = {one["id"]: one for one in document.get("inputs") or () if isinstance(one, dict) and "id" in one}
    groups: list[tuple[str | None, Any]] = [(folder, document.get(host.key))]
    if host.name == "claude-code" and isinstance(projects := document.get("projects"), dict):
        groups += [(at, project.get(host.key)) for at, project in projects.items() if isinstance(project, dict)]
    if not all(isinstance(servers, dict | None) for _, servers in groups):
        raise ConfigError(f"{path}: {host.key} is not an object")
    return [
        HostEntry(host, path, name, table, at, inputs)
        for at, servers in groups
        for name, table in (servers or {}).items()
    ]


_OURSELVES: Final = (
    r"(?:.*[/\\](?:bin|Scripts)[/\\])?mcpmux(?:\.exe|\.cmd)?(?:\[[^]]*\])?(?:[=@<>~!].*)?|(?:.*[/\\])?mcpmux\.py"
    r"|git\+.*[/\\]mcpmux(?:\.git)?(?:@.*)?"
)


def why_not_ours(table: Any) -> str | None:
    """Why a host's entry is not for us to run: it starts mcpmux, in any of the ways to, or is a part of the host."""
    if not isinstance(table, dict):
        return None
    if table.get("type") in _PARTS_OF_HOSTS or (table.get("settings") is not None and "command" not in table):
        return "it is a part of the host"
    args = table.get("args")
    words = [table.get("command"), table.get("cmd"), *(args if isinstance(args, list) else ())]
    found = any(isinstance(word, str) and re.fullmatch(_OURSELVES, word) for word in words)
    return "it is mcpmux itself" if found else None


def server_block(name: str, table: dict[str, Any], comment: Iterable[str]) -> str:
    """A `[mcp_servers.NAME]` table under its comment."""
    import tomli_w  # noqa: PLC0415 - nothing that serves writes TOML

    lines = ["# " + re.sub(r"[^ -~\u00a0-\u2027\u202a-\ud7ff]", "?", line) + "\n" for line in comment]
    return "".join(lines) + tomli_w.dumps({"mcp_servers": {name: table}})


def import_entry(entry: HostEntry, variables: Variables, machine: Machine) -> Imported:
    """Raises `ConfigError` for an entry that cannot become a table of ours: why, in a line."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", entry.name).strip("-")[:64] or "server"
    notes = [] if name == entry.name else [f"called {entry.name!r} there"]
    table, left = _with_our_keys(entry)
    for key in left.pop("env_keys", ()):  # in the host's keyring
        table["env"] = {**table.get("env", {}), key: f"${{{key}}}"}
        variables.needed.setdefault(key, f"{name}: env.{key}; {entry.host.title} has it in its keyring")
    if isinstance(file := left.pop("envFile", None), str):
        notes += _take_env_file(translate(file, entry, machine, variables, notes), table)
    for key in _TEXT_KEYS:

        def ours(text: str, under: str, key: str = key) -> str:
            text = translate(text, entry, machine, variables, notes)
            return variables.hide(text, under, name, f"{name}: {key}")

        if key in table:
            table[key] = _each_text(table[key], ours)
    if left:
        notes.append(f"left out: {', '.join(sorted(left))}")
    _, wrong = _read_server(name, table, entry.file.parent, [])
    try:
        tomllib.loads(server_block(name, table, ()).encode().decode())
    except (TypeError, ValueError):  # half of a surrogate pair, a null in a list
        wrong.append("cannot be written as TOML")
    if wrong:
        raise ConfigError("; ".join(problem.removeprefix(f"mcp_servers.{name}.") for problem in wrong))
    return Imported(name, table, list(dict.fromkeys(notes)))


def _with_our_keys(entry: HostEntry) -> tuple[dict[str, Any], dict[str, Any]]:
    """An entry under our keys and in our units; and what of it we have no key for. Raises `ConfigError`."""
    if not isinstance(entry.table, dict):
        raise ConfigError("is not an object")
    host, source = entry.host, dict[str, Any](entry.table)
    if isinstance(program := source.get("command"), dict):  # Zed's former way
        source |= {"command": program.get("path"), **{key: program[key] for key in ("args", "env") if key in program}}
    given = {HOST_KEYS.get(key, key): value for key, value in source.items() if value not in (None, {}, [])}
    given = {key: value for key, value in given.items() if key not in _SAYS_NOTHING}
    kind = str(given.pop("type", given.pop("transport", "")))
    if "url" in given and kind != "stdio":
        if kind and kind not in _TRANSPORTS:
            raise ConfigError(f"speaks {kind!r}, which mcpmux does not")
        if "httpUrl" in source:  # stands before a `url`
            given["url"], kind = source["httpUrl"], kind or "http"
        if (kind or host.bare_url) == "sse":
            given["transport"] = "sse"
        strange = {"command", *LOCAL_KEYS}
    else:
        strange = {"url", "scopes", *REMOTE_KEYS}
        if entry.folder is not None:
            given.setdefault("cwd", entry.folder)
    if host.name != "codex":  # other hosts' are not ours
        strange |= {"oauth", "scopes"}
    own = {field.name for field in msgspec.structs.fields(ServerOptions)} - {"tools"} | {"startup_timeout_ms"}
    table = {key: value for key, value in given.items() if key in own - strange}
    left = {key: value for key, value in given.items() if key not in table}
    if source.get("enabled_tools") == []:  # none, where the others' empty lists mean all
        table["enabled_tools"] = []
    if table.pop("enabled", True) is False or left.pop("disabled", False) is True:
        table["enabled"] = False
    if host.timeout_unit is not None and (timeout := left.pop("timeout", None)):
        try:
            table["tool_timeout_sec"] = round(float(timeout) * host.timeout_unit, 3)
        except (TypeError, ValueError):
            raise ConfigError("its timeout is not a number") from None
    return table, left


def _take_env_file(file: str, table: dict[str, Any]) -> list[str]:
    """The file's variables, by name: what they hold stays where it is."""
    try:
        names = list(parse_env_file(Path(os.path.expanduser(file)).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return [f"left out: its envFile {file}, which cannot be read"]
    table["env"] = {one: f"${{{one}}}" for one in names} | table.get("env", {})
    return [f'needs env_file = "{file}" in [mux], for {", ".join(names)}']


def _each_text(value: Any, change: Callable[[str, str], str], under: str = "") -> Any:
    """Each text in a value changed; told is the key, or the flag before, that it stands under."""
    match value:
        case dict():
            return {str(key): _each_text(one, change, str(key)) for key, one in value.items() if one is not None}
        case list():
            return [_each_text(one, change, flag) for one, flag in zip(value, flags_before(value), strict=True)]
        case str():
            return change(value, under)
        case int() | float():
            return json.dumps(value)
        case _:
            return value


def translate(text: str, entry: HostEntry, machine: Machine, variables: Variables, notes: list[str]) -> str:
    """A host's placeholders as ours; what it would take as it stands, we do too."""
    fixed = {"userHome": machine.home, "/": os.sep, "pathSeparator": os.sep}
    if entry.folder is not None:
        fixed |= dict.fromkeys(("workspaceFolder", "cwd"), entry.folder)
        fixed["workspaceFolderBasename"] = re.split(r"[/\\]", entry.folder.rstrip("/\\"))[-1]

    def ours(found: re.Match[str]) -> str:
        parts = found.groupdict()
        if variable := parts.get("var") or parts.get("bare"):
            default = parts.get("default")
            return f"${{{variable}}}" if default is None else f"${{{variable}:-{default}}}"
        word: str = parts["word"]
        if word in fixed:
            notes.append(f"{found[0]} became {fixed[word]}")
            return fixed[word].replace("${", "$${")
        kind, _, id = word.partition(":")
        variable = variable_name(id or kind)
        asked = entry.inputs.get(id, {}) if kind == "input" else {}
        default = asked.get("default")
        if isinstance(default, str) and not asked.get("password") and not re.search(r"[{}]", default):
            return f"${{{variable}:-{default}}}"
        what = asked.get("description")
        variables.needed.setdefault(variable, f"{entry.name}: in place of {found[0]}" + (f", {what}" if what else ""))
        return f"${{{variable}}}"

    at, done = 0, ""
    for found in re.finditer(DIALECTS[entry.host.dialect], text):
        done += text[at : found.start()].replace("${", "$${") + ours(found)
        at = found.end()
    return done + text[at:].replace("${", "$${")


# ── our own file: what is there stays byte for byte ──


def with_servers(text: str, tables: Mapping[str, dict[str, Any]], comments: Mapping[str, list[str]]) -> str:
    """The file's text with these servers at its end, in place of what has their names. Raises `ConfigError`."""
    if not tables:
        return text
    newline = "\r\n" if "\r\n" in text else "\n"
    before = tomllib.loads(text)
    servers = before.get("mcp_servers", {})
    for name in tables:
        if name in servers:
            text = _without_server(text, name)
    blocks = [server_block(name, table, comments.get(name, ())) for name, table in tables.items()]
    new = text + ("" if not text or text.endswith("\n") else newline) + (newline if text.strip() else "")
    new += "\n".join(blocks).replace("\n", newline)
    try:
        if tomllib.loads(new) != before | {"mcp_servers": servers | tables}:
            raise ValueError
    except ValueError:
        raise ConfigError("its [mcp_servers] is written in a way that mcpmux cannot add to; do it by hand") from None
    return new


def _without_server(text: str, name: str) -> str:
    """Without the lines of a server's tables, nor the comment that `import` put above; the caller checks the result."""
    head = re.compile(rf"""\s*\[\s*mcp_servers\s*\.\s*(["']?){re.escape(name)}\1\s*[.\]]""")
    kept: list[str] = []
    dropped: list[str] | None = None  # of the table that we are in
    for line in text.splitlines(keepends=True):
        if head.match(line):
            if dropped is None:
                above = len(kept)
                while above and kept[above - 1].startswith("#"):
                    above -= 1
                if kept[above : above + 1] and kept[above].startswith("# From "):
                    del kept[above:]
            dropped = []
        elif dropped is not None and re.match(r"\s*\[", line):
            kept += dropped  # what stands above the next table belongs to that
            dropped = None
        if dropped is None:
            kept.append(line)
        else:
            dropped = [*dropped, line] if re.match(r"\s*(#|$)", line) else []
    return "".join(kept)


def append_servers(
    path: Path, tables: Mapping[str, dict[str, Any]], comments: Mapping[str, list[str]], private: bool = False
) -> None:
    """Writes servers to the end of our file, or the whole file. Raises `ConfigError` and leaves the file as it was."""
    old = read_bytes(path)
    new = new_config(path, old, tables, comments)
    write_file(path, new.encode(), old, private)


def new_config(
    path: Path, old: bytes | None, tables: Mapping[str, dict[str, Any]], comments: Mapping[str, list[str]]
) -> str:
    """What `append_servers` would write: it is known to load."""
    try:
        text = (old or b"").decode()
        mark = "\ufeff" if text.startswith("\ufeff") else ""
        new = mark + with_servers(text.removeprefix(mark), tables, comments)
        read_config(tomllib.loads(new.removeprefix(mark)), path)
    except (ValueError, ConfigError) as wrong:
        raise ConfigError(str(wrong) if str(path) in str(wrong) else f"{path}: {wrong}") from None
    return new


def read_bytes(path: Path) -> bytes | None:
    """None: there is no such file. Raises `ConfigError`."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as wrong:
        raise ConfigError(f"{path}: cannot be read: {wrong}") from None


def write_file(path: Path, new: bytes, old: bytes | None, private: bool = False) -> None:
    """As `write_whole`, where the file still is what was read. Raises `ConfigError`."""
    if read_bytes(path) != old:
        raise ConfigError(f"{path}: was changed meanwhile; try again")
    try:
        write_whole(path, new, private=private)
    except OSError as wrong:
        raise ConfigError(f"{path}: cannot be written: {wrong}") from None


# ── a host's JSON: what is not ours stays byte for byte ──


class Member(NamedTuple):
    """A member of a JSON object, and where it is in the text."""

    key: str
    start: int
    value: int
    end: int


def _members(bare: str, brace: int) -> tuple[list[Member], int]:
    """Of the object that opens at `brace`; and where it closes. The text is known to be JSON."""
    decode = json.JSONDecoder().raw_decode
    found: list[Member] = []

    def next_word(at: int) -> int:
        while bare[at] in " \t\r\n,:":
            at += 1
        return at

    at = next_word(brace + 1)
    while bare[at] != "}":
        key, after = decode(bare, at)
        value = next_word(after)
        found.append(Member(key, at, value, decode(bare, value)[1]))
        at = next_word(found[-1].end)
    return found, at


def _host_document(text: str) -> dict[str, Any]:
    document = json.loads(bare_json(text).removeprefix("\ufeff").strip() or "{}")
    if not isinstance(document, dict):
        raise ValueError("not an object")  # noqa: TRY004 - as what json says of it
    return document


def _json_of(value: Any, indent: str | None = None) -> str:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return json.dumps(value, indent=indent) if re.search(r"[\ud800-\udfff]", text) else text


def with_member(text: str, path: tuple[str, ...], value: Any) -> str:
    """JSON text with the value at that path; objects on the way are made. Raises `ValueError`."""
    _host_document(text)
    bare = bare_json(text)
    newline = "\r\n" if "\r\n" in text else "\n"
    found = re.search(r'\n([ \t]+)"', text)
    indent = found[1] if found else "  "
    brace = bare.index("{")
    for depth, key in enumerate(path, 1):
        members, close = _members(bare, brace)
        here = next((one for one in reversed(members) if one.key == key), None)
        if here and depth < len(path) and bare[here.value] == "{":
            brace = here.value
            continue
        for outer in reversed(path[depth:]):
            value = {outer: value}
        pad = newline + indent * depth
        written = _json_of(value, indent).replace("\n", pad)
        if here and depth < len(path) and bare[here.value : here.end] != "null":
            raise ValueError(f"{key} is not an object")
        if here:
            same = json.loads(bare[here.value : here.end]) == value
            return text if same else text[: here.value] + written + text[here.end :]
        member = f"{pad}{_json_of(key)}: {written}"
        if members:
            return text[: members[-1].end] + "," + member + text[members[-1].end :]
        inside = text[brace + 1 : close]
        end = inside if "\n" in inside else inside.strip() + newline + indent * (depth - 1)
        return text[: brace + 1] + member + end + text[close:]
    raise Bug("an empty path")


def without_member(text: str, path: tuple[str, ...]) -> str:
    """JSON text without what is at that path, which is there."""
    bare = bare_json(text)
    brace = bare.index("{")
    for key in path[:-1]:
        brace = next(one.value for one in reversed(_members(bare, brace)[0]) if one.key == key)
    members, close = _members(bare, brace)
    at = next(at for at, one in enumerate(members) if one.key == path[-1])
    if at:
        return text[: members[at - 1].end] + text[members[at].end :]
    if len(members) > 1:
        return text[: members[0].start] + text[members[1].start :]
    return text[: brace + 1] + text[close:]


def servers_in(text: str, key: str) -> dict[str, Any]:
    servers = _host_document(text).get(key)
    return servers if isinstance(servers, dict) else {}


def installed(text: str, key: str, entry: dict[str, Any], moved: Iterable[str] = ()) -> str:
    """A host's file with our entry, and without the servers that moved into ours. Raises `ValueError`."""
    text = text if text.strip() else "{}\n"
    for name in moved:
        text = without_member(text, (key, name))
    return with_member(text, (key, ENTRY_NAME), entry)


def uninstalled(text: str, backup: str | None, key: str) -> tuple[str | None, list[str]]:
    """The file as it was before us, and the servers that had to be put back one by one, because somebody has changed
    it since. None: there was no file. Raises `ValueError`."""
    now = servers_in(text, key)
    before = servers_in(backup, key) if backup and backup.strip() else {}
    missing = [name for name in before if name not in now]
    if ENTRY_NAME in now:
        expected = installed(backup or "", key, now[ENTRY_NAME], missing)
        if json.dumps(_host_document(expected)) == json.dumps(_host_document(text)):
            return backup, []
        text = without_member(text, (key, ENTRY_NAME))
    for name in missing:
        text = with_member(text, (key, name), before[name])
    return text, missing


_MEMBER_OF_TEXT: Final = r'("((?:\\.|[^"\\])*)"\s*[:,]\s*)"((?:\\.|[^"\\])*)"'
_OBJECT_OF_KEYS: Final = r'("(?:envs?|(?:http_)?headers)"\s*:\s*\{)((?:[^{}"]|"(?:\\.|[^"\\])*")*)'


def masked(text: str) -> str:
    """A host's file for people to look at: no secret in it, line for line the same."""
    hide = Variables({}, "hide").hide

    def member(found: re.Match[str]) -> str:
        is_pair = found[1].rstrip().endswith(":") or is_flag(found[2])  # else two neighbours in a list
        return f'{found[1]}"{hide(found[3], found[2] if is_pair else "", "", "")}"'

    text = re.sub(_OBJECT_OF_KEYS, lambda one: one[1] + re.sub(r'(:\s*)"(?:\\.|[^"\\])*"', r'\1"***"', one[2]), text)
    text = re.sub(_MEMBER_OF_TEXT, member, text)
    text = re.sub(r'"((?:\\.|[^"\\])*)"', lambda one: f'"{hide(one[1], "", "", "")}"', text)
    return re.sub(_KEY_LIKE_TEXT, "***", text)  # in a comment


def entry_for_hosts(config: Path, sampling: bool) -> dict[str, Any]:
    """How a host is to start mcpmux: with whole paths, since hosts with a window have a bare PATH and no folder."""
    here = Path(__file__).absolute()
    command, args = sys.executable, [str(here)]
    if "environments-v2" in Path(command).parts:  # `uv run mcpmux.py` made it, and may make another
        command, args = os.environ.get("UV", "uv"), ["run", *args]
    if "uv" in here.parts or ".cache" in here.parts:  # run by uvx: that place is swept now and then
        found = shutil.which("uvx", path=extended_path(os.environ))
        command = os.path.abspath(found) if found else "uvx"
        args = [f"mcpmux=={__version__}"]
        if sampling:
            args = ["--from", f"mcpmux[sampling]=={__version__}", "mcpmux"]
    if config != config_path(None) or {"MCPMUX_CONFIG", "XDG_CONFIG_HOME"} & os.environ.keys():  # the host has neither
        args += ["--config", str(config)]
    return {"command": command, "args": args}


def own_command(words: Iterable[str], entry: dict[str, Any]) -> list[str]:
    """A host's own command for this entry."""
    stands_for = {
        "{entry}": [json.dumps(entry)],
        "{named entry}": [json.dumps({"name": ENTRY_NAME, **entry})],
        "{command}": [entry["command"], *entry["args"]],
    }
    return [part for word in words for part in stands_for.get(word, [word])]


def snippet(host: Host, entry: dict[str, Any]) -> str:
    """What to paste into a host's file."""
    if host.name == "goose":
        lines = [f"cmd: {json.dumps(entry['command'])}", f"args: {json.dumps(entry['args'])}"]
        more = ["type: stdio", f"name: {ENTRY_NAME}", "enabled: true", *lines, "timeout: 300"]
        return "\n    ".join([f"extensions:\n  {ENTRY_NAME}:", *more])
    return json.dumps({host.key: {ENTRY_NAME: entry}}, indent=2)


class Outcome(NamedTuple):
    """What becomes of an entry."""

    entry: HostEntry
    said: str
    notes: list[str]
    moved: bool = False  # it is in our file now
    failed: bool = False


class Import(NamedTuple):
    """What importing does: nothing is written yet."""

    tables: dict[str, dict[str, Any]]
    comments: dict[str, list[str]]
    outcomes: list[Outcome]
    needed: dict[str, str]  # variables to set, each with what for


def plan_import(
    entries: Iterable[HostEntry],
    present: Mapping[str, Any],
    variables: Variables,
    machine: Machine,
    force: bool = False,
) -> Import:
    """Brings entries together with the servers that are present. Each is imported, or it is said why it is not."""
    plan = Import({}, {}, [], {})
    met: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if why := why_not_ours(entry.table):
            plan.outcomes.append(Outcome(entry, f"left where it is: {why}", []))
            continue
        try:
            stem, table, notes = import_entry(entry, variables, machine)
        except ConfigError as wrong:
            plan.outcomes.append(Outcome(entry, f"cannot be imported: {wrong}", [], failed=True))
            continue
        others = (f"{stem[:60]}-{number}" for number in range(2, 1000))
        name = next(name for name in (stem, *others) if met.get(name, table) == table)
        said = f"imported as {name}" if name != entry.name else "imported"
        if name in met or present.get(name) == table:
            said, notes = f"is there already, as {name}", []
        elif name in present and not force:
            plan.outcomes.append(Outcome(entry, f"not imported: there is another {name}, which --force overwrites", []))
            continue
        else:
            project = f", for {entry.folder}" if entry.folder else ""
            plan.tables[name] = table
            plan.comments[name] = [f"From {entry.host.title}: {entry.file}{project}", *notes]
        met[name] = table
        plan.outcomes.append(Outcome(entry, said, notes, moved=True))
    written = json.dumps(list(plan.tables.values()))
    plan.needed.update({name: why for name, why in variables.needed.items() if f"${{{name}}}" in written})
    return plan


# ══ 16. CLI ══════════════════════════════════════════════════════════════════════════════════════════════════════════
# Messages for people. Exit codes: 0 well, 1 a server or a tool failed, 2 the command or the config cannot be used, 130
# the person pressed Ctrl-C.

_HOST_NAMES: Final = ", ".join(host.name for host in HOSTS)
_WHICH_CONFIG: Final = "the TOML file (default: $MCPMUX_CONFIG, else mcpmux.toml in the user's config folder)"


def main(argv: list[str] | None = None) -> int:
    """The console script. While serving, stdout is the protocol's and all that people read goes to stderr."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["_demo_server"]:  # of the demo, by the demo
        return _demo_server(words[1])
    if words[:1] == ["_sampler"]:
        return sampler_main()
    arguments = parse(words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a console's alphabet lacks is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        return arguments.run(arguments)
    except ConfigError as wrong:
        print(f"mcpmux: {wrong}".replace("\n", "\nmcpmux: "), file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Interrupted):
        return 130
    except BrokenPipeError:  # as of `mcpmux tools | head`; Python flushes stdout once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


class Argument(NamedTuple):
    """What `ArgumentParser.add_argument` takes."""

    flags: tuple[str, ...]
    keys: dict[str, Any]


class Subcommand(NamedTuple):
    """A row of the table of commands. The example is run by a test."""

    name: str
    run: Callable[[argparse.Namespace], int]
    help: str  # in the list of commands
    description: str  # above its own arguments
    example: str
    arguments: tuple[Argument, ...] = ()
    rest: str = ""  # what may stand after `--`


class Parser(argparse.ArgumentParser):
    """Says of a command that is none which one is near."""

    def error(self, message: str) -> NoReturn:
        unknown = re.search("invalid choice: '([^']*)'", message)
        if unknown:
            message += nearest(unknown[1], [row.name for row in subcommands()])
        super().error(message)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _argument(*flags: str, **keys: Any) -> Argument:
    return Argument(flags, keys)


def subcommands() -> list[Subcommand]:
    """What mcpmux can be asked for besides serving."""
    for_machines = _argument("--json", action="store_true", help="for machines")
    config = _argument("--config", metavar="PATH", default=argparse.SUPPRESS, help=_WHICH_CONFIG)
    remote = _argument("server", metavar="SERVER", help="its name in the config")
    host = _argument("host", metavar="HOST", help=_HOST_NAMES)
    keep_secrets = _argument("--keep-secrets", action="store_true", help="copy them, where a variable would be put")
    dry_run = _argument("--dry-run", action="store_true", help="only show what would be written or run")
    return [
        Subcommand(
            "add",
            _add,
            "put a server into the config",
            "Appends a server's table to the config file, which stays as it is otherwise.",
            "mcpmux add gitlab -e 'GITLAB_TOKEN=${GITLAB_TOKEN}' -- npx -y @modelcontextprotocol/server-gitlab",
            (
                _argument("name", metavar="NAME", help="what it is to be called: A-Z a-z 0-9 _ -"),
                _argument("--url", metavar="URL", help="of a remote server, in place of a command"),
                _argument(
                    *("--env", "-e"),
                    metavar="KEY=VALUE",
                    action="append",
                    default=[],
                    help="a variable for it, as often as needed; a secret is better given as '${VAR}'",
                ),
                config,
            ),
            rest="COMMAND [ARGUMENT ...]",
        ),
        Subcommand(
            "list",
            _list_servers,
            "the servers of the config, and what is known of them",
            "Lists the servers and starts none. No value of a variable, a header or a secret flag is shown.",
            "mcpmux list --json",
            (config, for_machines),
        ),
        Subcommand(
            "tools",
            _tools,
            "the tools and their arguments",
            "Lists tools as a host sees them, from what servers said last; those that never said are started.",
            "mcpmux tools",
            (_argument("server", nargs="?", metavar="SERVER", help="of this server only"), config, for_machines),
        ),
        Subcommand(
            "call",
            _call,
            "call a tool",
            "Calls a tool and shows its answer. What its server asks is asked here. Exits with 1 if it failed.",
            """mcpmux call time__get_current_time '{"timezone": "Europe/London"}'""",
            (
                _argument("tool", metavar="TOOL", help="its name, as `mcpmux tools` shows it"),
                _argument("arguments", nargs="?", metavar="JSON", default="{}", help="an object; - reads stdin"),
                _argument("--output", "-o", metavar="PATH", help="a file or folder for images, audio and files"),
                config,
                _argument("--json", action="store_true", help="the result as it came"),
            ),
        ),
        Subcommand(
            "check",
            _check,
            "start every server and say how each does",
            "Starts every server, lists what it offers, stops it.",
            "mcpmux check --json",
            (config, for_machines),
        ),
        Subcommand(
            "login",
            _login,
            "log in to a remote server, in your browser",
            "Opens a browser, and keeps what comes of it for serving.",
            "mcpmux login github",
            (remote, config),
        ),
        Subcommand(
            "logout",
            _logout,
            "forget a login at a remote server",
            "Removes a login, and has it revoked where that server knows how.",
            "mcpmux logout github",
            (remote, config),
        ),
        Subcommand(
            "import",
            _import,
            "take servers over from a host's own file",
            "Writes a host's servers into the TOML file. Without a source: shows what is where.",
            "mcpmux import",
            (
                _argument("source", nargs="?", metavar="HOST|FILE", help=f"all, a file, or one of: {_HOST_NAMES}"),
                config,
                keep_secrets,
                _argument("--force", action="store_true", help="overwrite servers that have the same names"),
                dry_run,
            ),
        ),
        Subcommand(
            "install",
            _install,
            "make a host start mcpmux",
            "Edits the file of Claude Desktop and Cursor, runs the command of Claude Code, Codex and VS Code, "
            "and says for the others what to put where.",
            "mcpmux install cursor --dry-run",
            (
                host,
                config,
                _argument("--replace", action="store_true", help="move the host's other servers into the TOML file"),
                keep_secrets,
                dry_run,
            ),
        ),
        Subcommand(
            "uninstall",
            _uninstall,
            "give a host back what it had before install",
            "Takes mcpmux out of a host again. The TOML file stays as it is.",
            "mcpmux uninstall cursor --dry-run",
            (host, dry_run),
        ),
        Subcommand(
            "models",
            _models,
            "the models of [sampling], with scores and prices",
            "Shows the models that answer sampling, and where each number comes from.",
            """mcpmux models --prefer '{"hints": [{"name": "sonnet"}], "costPriority": 0.8}'""",
            (config, _argument("--prefer", metavar="JSON", help="modelPreferences of a request: which model, and why")),
        ),
        Subcommand(
            "usage",
            _usage,
            "what sampling has cost, by day, server and model",
            "Adds up the ledger of sampling. Days are those of UTC.",
            "mcpmux usage --days 7",
            (
                _argument("--days", metavar="N", type=_number_of_days, default=30, help="counted back from today (30)"),
                for_machines,
            ),
        ),
        Subcommand(
            "logs",
            _logs,
            "what a server has written to its stderr",
            "Prints the end of a server's log. Without a name: which logs there are.",
            "mcpmux logs",
            (
                _argument("server", nargs="?", metavar="SERVER", help="its name in the config"),
                _argument("-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C"),
                _argument("-n", "--lines", metavar="N", type=int, default=200, help="how many lines of the past (200)"),
            ),
        ),
        Subcommand(
            "demo",
            _demo,
            "see it work: no config, no key, no Node",
            "Runs mcpmux over two small servers and plays the host.",
            "mcpmux demo",
        ),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mcpmux",
        description="One MCP server over stdio that stands for many. Without a command it serves: a host starts it.",
        epilog="example: mcpmux --config ~/mcpmux.toml",
    )
    parser.add_argument("--config", metavar="PATH", help=_WHICH_CONFIG)
    parser.add_argument("--version", action="version", version=f"mcpmux {__version__}")
    parser.set_defaults(run=_serve)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for row in subcommands():
        command = commands.add_parser(
            row.name,
            help=row.help,
            description=row.description,
            epilog=f"example: {row.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,  # an example stays on one line
        )
        for argument in row.arguments:
            command.add_argument(*argument.flags, **argument.keys)
        if row.rest:
            command.usage = f"{command.format_usage().removeprefix('usage: ').strip()} [-- {row.rest}]"
        command.set_defaults(run=row.run)
    return parser


def parse(words: list[str]) -> argparse.Namespace:
    """The command line. What stands after `--` is taken off first: argparse would look for options in it."""
    at = words.index("--") if "--" in words else len(words)
    parser = _parser()
    arguments, unknown = parser.parse_known_args(words[:at])
    arguments.rest = words[at + 1 :]
    if unknown or arguments.rest:
        takes = next((row.rest for row in subcommands() if row.run == arguments.run), "")
        if unknown or not takes:
            hint = f"; {takes} stands after --" if takes else ""
            parser.error(f"unrecognized arguments: {shlex.join(unknown or words[at:])}{hint}")
    return arguments


def _number_of_days(text: str) -> int:
    number = int(text) if text.isdecimal() and len(text) < 6 else 0
    if number < 1 or number > 36500:
        raise argparse.ArgumentTypeError("a number from 1 to 36500 is expected")
    return number


def _serve(arguments: argparse.Namespace) -> int:
    if sys.stdin is not None and sys.stdin.isatty():
        print(
            "mcpmux speaks MCP on stdin and stdout: a host starts it. Try `mcpmux check` or `mcpmux demo`.",
            file=sys.stderr,
        )
    config = load_config(config_path(arguments.config))
    reading, writing = take_over_stdio()
    journal = Journal(config.options.log_level, state_folder() / "logs")

    async def serve() -> None:
        await Mux(config, HostPipes(reading, writing, int(config.options.max_message_mb * MB)), journal).run()

    asyncio.run(serve())
    journal.close()
    return 0


# ── looks ──

STYLES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
OF_STATES: Final = {"ready": "green", "enabled": "green", "failed": "red", "broken": "red", "starting": "yellow"}
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def moves(stream: TextIO | Any) -> bool:
    """Whether it is a terminal whose cursor can be moved."""
    if stream is None or not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    if sys.platform == "win32":  # consoles have to be asked for it; an old one refuses
        import ctypes  # noqa: PLC0415

        kernel = ctypes.windll.kernel32
        handle, mode = kernel.GetStdHandle(-12 if stream is sys.stderr else -11), ctypes.c_ulong()
        return bool(kernel.GetConsoleMode(handle, ctypes.byref(mode)) and kernel.SetConsoleMode(handle, mode.value | 4))
    return True


def painted(text: str, style: str | None, stream: TextIO | None = None) -> str:
    """https://no-color.org"""
    if style is None or os.environ.get("NO_COLOR") or not moves(stream or sys.stdout):
        return text
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def harmless(text: str) -> str:
    """A peer's words for a terminal: what would move its cursor, hide text or turn it round is made visible."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


class Waiting:
    """What a command waits for, on stderr: a line each. A terminal shows them in place, until the end; elsewhere each
    change is a line of its own."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}
        self._drawn = 0
        self._said = ""
        self._paused = False
        self._in_place = moves(sys.stderr)

    def show(self, lines: Mapping[str, str]) -> None:
        """By what is waited for, how that goes."""
        new = {name: text for name, text in lines.items() if self._lines.get(name) != text}
        self._lines |= new
        if not self._in_place:
            self._add("".join(f"{name}: {text}\n" for name, text in new.items()))
        elif new and not self._paused:
            self._erase()
            self._draw()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._add(f"{harmless(text)}\n")

    def clear(self, *, paused: bool = False) -> None:
        """Nothing is shown any more; what comes while `paused` waits, since a person is being asked."""
        self._erase()
        self._paused = paused
        if not paused:
            self._write(self._said)
            self._said = ""

    def _add(self, text: str) -> None:
        self._said += text
        if not self._paused:
            self._erase()
            self._write(self._said)
            self._said = ""
            if self._in_place:
                self._draw()

    def _draw(self) -> None:
        if not self._lines:
            return
        size = shutil.get_terminal_size()
        width = max(map(len, self._lines))
        room = max(size.columns - width - 3, 1)
        shown = [f"{name:{width}}  {self._painted(text[:room])}\n" for name, text in self._lines.items()]
        shown = shown[-(size.lines - 1) :]
        self._drawn = len(shown)
        self._write("".join(shown))

    def _erase(self) -> None:
        if self._drawn:
            self._write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0

    def _painted(self, text: str) -> str:
        return painted(text, OF_STATES.get(text.partition(",")[0]), sys.stderr)

    def _write(self, text: str) -> None:
        if text and sys.stderr is not None:
            sys.stderr.write(text)
            sys.stderr.flush()


def how_it_goes(server: Server) -> str:
    """A server's state, for those who wait for its lists."""
    tools = len(server.lists.get("tools/list", ()))
    if server.state is State.READY and not server.settling:
        return f"ready, {tools} {'tool' if tools == 1 else 'tools'}"
    if server.state is State.READY or (server.state is State.STARTING and not server.trouble):
        return "starting" if server.state is State.STARTING else "starting, reading its lists"
    return "failed" if server.trouble else server.state.value


# ── the host that commands play ──

PERSON: Final = {"elicitation": {"form": {}, "url": {}}}  # what a terminal can do; sampling and roots are the config's


class Interrupted(McpmuxError):
    """The person pressed Ctrl-C, or something else told a command to end."""


class InnerHost:
    """A host in mcpmux's own process: what a command wants of servers, it asks as any host would.

    `answers` are coroutines that answer what servers ask, by method; `hears` is given their notifications; `looks` is
    called after each batch of events, for those who show how it goes.
    """

    def __init__(
        self,
        config: Config,
        *,
        cached: bool = True,
        capabilities: Mapping[str, Any] | None = None,
        answers: Mapping[str, Callable[[Fields], Coroutine[Any, Any, Any]]] | None = None,
        hears: Callable[[str, Fields], None] | None = None,
        looks: Callable[[Iterable[Server]], None] | None = None,
    ) -> None:
        self._journal = Journal("error", state_folder() / "logs")
        self._journal.threshold = LEVELS["error"] + 1  # what is wrong is in the answers
        self.mux = Mux(config, self, self._journal, cached=cached, watches=False)
        self.about: Any = None  # the answer to `initialize`
        self._capabilities = capabilities or {}
        self._answers = answers or {}
        self._hears, self._looks = hears, looks
        self._open: dict[int, asyncio.Future[Reply]] = {}
        self._bars: dict[int, Callable[[Fields], None]] = {}  # who hears of a request's progress
        self._questions: dict[bytes, asyncio.Task[None]] = {}
        self._asked = 0
        self._trouble: Exception | None = None  # of the command's own functions: it ends the scene

    def play(self, scene: Callable[[InnerHost], Coroutine[Any, Any, Decoded]]) -> Decoded:
        """Serves itself while the scene lasts; then every server is stopped. Raises `Interrupted`."""
        try:
            return asyncio.run(self._play(scene))
        finally:
            self._journal.close()

    async def _play(self, scene: Callable[[InnerHost], Coroutine[Any, Any, Decoded]]) -> Decoded:
        self._started = asyncio.Event()
        serving = asyncio.create_task(self.mux.run())
        acting = self._acting = asyncio.create_task(self._act(scene))
        await asyncio.wait({serving, acting}, return_when=asyncio.FIRST_COMPLETED)
        acting.cancel()
        await asyncio.wait({acting})  # a call that it has open is cancelled while its server is still there
        self.mux.post(HostGone("the command is done"))
        await serving
        if self._trouble:
            raise self._trouble
        if acting.cancelled():
            raise Interrupted
        return acting.result()

    async def _act(self, scene: Callable[[InnerHost], Coroutine[Any, Any, Decoded]]) -> Decoded:
        await self._started.wait()
        hello = {
            "protocolVersion": LEGACY_REVISIONS[0],
            "capabilities": self._capabilities,
            "clientInfo": IMPLEMENTATION,
        }
        self.about = value_of((await self.ask("initialize", hello)).result)
        self._say(notification_line("notifications/initialized"))
        return await scene(self)

    async def ask(
        self, method: str, params: Mapping[str, Any] | None = None, bar: Callable[[Fields], None] | None = None
    ) -> Reply:
        """The answer to a request; who stops waiting for it cancels it. `bar` is told of its progress."""
        self._asked += 1
        number = self._asked
        body = dict(params or {})
        if bar:
            body["_meta"] = {"progressToken": number}
            self._bars[number] = bar
        answer = self._open[number] = asyncio.get_running_loop().create_future()
        self._say(request_line(number, method, encode(body) if body else UNSET))
        try:
            return await answer
        except asyncio.CancelledError:
            self._say(notification_line("notifications/cancelled", encode({"requestId": number})))
            raise
        finally:
            self._bars.pop(number, None)
            del self._open[number]

    def _say(self, line: bytes) -> None:
        self.mux.post(HostLines([line]))

    # ── what the mux does with a host ──

    def start(self, post: Callable[[Event], None], on_room: Callable[[str, bool], None]) -> None:
        on_signal(asyncio.get_running_loop(), signal.SIGINT, lambda _: self._acting.cancel())
        self._started.set()

    def put(self, source: str, line: bytes) -> None:
        message = decode_line(line)
        params = object_of(message.params)
        if message.method is UNSET:
            answer = self._open.get((message.id is not UNSET and number_of_id(message.id)) or 0)
            if answer and not answer.done():
                answer.set_result(Reply(message.result or None, message.error or None))
        elif message.id is not UNSET:
            id = bytes(message.id)
            self._questions[id] = asyncio.create_task(self._answer(id, message.method, params))
        elif message.method == "notifications/cancelled":
            question = self._questions.get(bytes(params.get("requestId", b"")))
            if question:
                question.cancel()
        elif message.method == "notifications/progress":
            bar = self._bars.get(value_of(params.get("progressToken")))
            if bar:
                self._survive(bar, params)
        elif self._hears:
            self._survive(self._hears, message.method, params)

    async def _answer(self, id: bytes, method: str, params: Fields) -> None:
        try:
            if method not in self._answers:
                raise RpcError(METHOD_NOT_FOUND, f"{method} is nothing that a terminal answers")
            line = result_line(id, encode(await self._answers[method](params)))
        except RpcError as error:
            line = error_line(id, error_body(error))
        except Exception as trouble:
            self._end_with(trouble)
            return
        finally:
            del self._questions[id]
        self._say(line)

    def _survive(self, show: Callable[..., None], *arguments: Any) -> None:
        """A stdout that is closed, and whatever else a command stumbles over, ends its scene. The mux goes on, and so
        stops its servers in order."""
        try:
            show(*arguments)
        except Exception as trouble:
            self._end_with(trouble)

    def _end_with(self, trouble: Exception) -> None:
        self._trouble = trouble
        self._acting.cancel()

    def is_full(self, source: str) -> bool:
        return False

    def flush(self) -> None:
        if self._looks:
            self._survive(self._looks, self.mux.core.servers.values())

    async def close(self) -> None:
        for question in list(self._questions.values()):
            question.cancel()


def _report(server: Server) -> dict[str, Any]:
    counts = {kind.key: len(server.lists.get(method, ())) for method, kind in LISTS.items()}
    ready = server.state is State.READY
    return {
        "server": server.name,
        "state": "ready" if ready else "failed",
        "revision": server.revision if ready else None,
        "tools": counts["tools"],
        "prompts": counts["prompts"],
        "resources": counts["resources"],
        "resourceTemplates": counts["resourceTemplates"],
        "ms": round(server.ready_in * 1000) if server.ready_in is not None else None,
        "reason": None if ready else server.trouble,
        "next": None if ready else server.hint,
    }


def _show_servers(waiting: Waiting, servers: Iterable[Server]) -> None:
    quiet = (State.IDLE, State.STOPPING, State.STOPPED)
    waiting.show({server.name: how_it_goes(server) for server in servers if server.state not in quiet})


def _check(arguments: argparse.Namespace) -> int:
    config = load_config(config_path(arguments.config))
    trouble: str | None = None

    async def look(host: InnerHost) -> tuple[list[dict[str, Any]], list[str]]:
        nonlocal trouble
        try:
            if config.sampling:
                await sampler_setup(config, set())
        except StartError as wrong:
            trouble = "; ".join(wrong.args)
        await host.ask("tools/list")  # it waits for every server
        return [_report(server) for server in host.mux.core.servers.values()], list(host.mux.core.catalogue.tools)

    waiting = Waiting()
    try:
        rows, tools = InnerHost(config, cached=False, looks=functools.partial(_show_servers, waiting)).play(look)
    finally:
        waiting.clear()
    order = list(config.servers) + list(config.broken)
    rows.sort(key=lambda row: order.index(row["server"]))
    rows += [{"server": name, "state": "disabled"} for name in config.disabled]
    failed = [row for row in rows if row["state"] == "failed"]
    models = [model.model for model in config.sampling.models] if config.sampling else []
    if arguments.json:
        report = {"config": str(config.path), "servers": rows, "tools": tools}
        sampling = {"models": models, "reason": trouble} if config.sampling else None
        print(json.dumps(report | {"sampling": sampling}, indent=2))
    elif not config.exists:
        print(f"There is no config file at {config.path}.")
        print("`mcpmux import` takes servers over from a host, and `mcpmux demo` shows what goes into one.")
    else:
        print(f"{config.path}\n")
        heads = ["SERVER", "STATE", "REVISION", "TOOLS", "PROMPTS", "RESOURCES", "MS"]
        cells = [
            [row["server"], row["state"]]
            + ["-" if row.get(key) is None else str(row[key]) for key in ("revision", "tools", "prompts")]
            + ["-" if "resources" not in row else str(row["resources"] + row["resourceTemplates"])]
            + ["-" if row.get("ms") is None else str(row["ms"])]
            for row in rows
        ]
        _print_table(heads, cells)
        if models:
            print("\nsampling: " + (f"does not work: {trouble}" if trouble else ", ".join(models)))
        if tools:
            print(f"\n{len(tools)} tools: " + textwrap.fill(", ".join(tools), 100, break_on_hyphens=False))
        for note in config.notes:
            print(f"\nnote: {note}")
        for row in failed:
            print(f"\n{row['server']}: {row['reason'].removeprefix(row['server'] + ': ')}\n  next: {row['next']}")
        if not rows:
            print(f"No servers yet: add a [mcp_servers.NAME] table to {config.path}.")
    return 1 if failed or trouble or not config.exists else 0


def _print_table(heads: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(line[column]) for line in [heads, *rows]) for column in range(len(heads))]
    for line in [heads, *rows]:
        cells = [
            painted(cell.ljust(width), "bold" if line is heads else OF_STATES.get(cell))
            for cell, width in zip(line, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())


# ── add, list, tools ──

_HOW_TO_ADD: Final = "`mcpmux add NAME -- COMMAND` adds a server"


def _add(arguments: argparse.Namespace) -> int:
    path = config_path(arguments.config)
    name, command = arguments.name, arguments.rest
    if bool(command) == bool(arguments.url):
        raise ConfigError(f"give a command or a --url, as in: mcpmux add {name} -- uvx mcp-server-time")
    if not _SERVER_NAME.fullmatch(name):
        raise ConfigError(f"{name!r}: a server's name may have A-Z a-z 0-9 _ - only (64 at most)")
    if arguments.url and arguments.env:
        raise ConfigError("--env is for a server that is started by a command; a remote one has no environment of ours")
    env: dict[str, str] = {}
    for one in arguments.env:
        key, equals, value = one.partition("=")
        if not key or not equals:
            raise ConfigError(f"--env {without_secrets([one])[0]}: KEY=VALUE is expected")
        env[key] = value
    before = load_config(path)
    if name in (*before.servers, *before.broken, *before.disabled):
        raise ConfigError(f"{path} has a server {name} already; choose another name, or edit its table")
    whole = {"url": arguments.url} if arguments.url else {"command": command[0], "args": command[1:], "env": env}
    table = {key: value for key, value in whole.items() if value}
    _, wrong = _read_server(name, table, path.parent, [])
    if wrong:
        raise ConfigError(f"{path} is left as it is: {'; '.join(wrong)}")
    append_servers(path, {name: table}, {})
    print(f"added {name} to {path}\nnext: mcpmux tools {name}")
    secret = next((key for key, value in env.items() if secrets_in([f"{key}={value}"])), None)
    if secret:
        print(f"note: {secret} looks like a secret and now stands in the file. Better: --env '{secret}=${{{secret}}}',")
        print("which is read from the environment, or from env_file, when the server is started")
    elif secrets_in(command or [arguments.url]):
        print("note: the command holds what looks like a secret; ${VAR} in its place is read from the environment")
    return 0


def last_known(config: Config) -> dict[str, Known]:
    """What the cache has of servers' lists; of several the one that depends least on the host."""
    found = read_known(cache_folder(), config.servers)[0]
    lists = {name: [one for one in those if not one.failed] for name, those in found.items()}
    return {name: min(those, key=lambda one: one.told) for name, those in lists.items() if those}


def _catalogue_of(config: Config, lists: Mapping[str, Mapping[str, list[Entry]]]) -> Catalogue:
    parts = [Part(name, table.prefix, lists[name]) for name, table in config.servers.items() if name in lists]
    return merge(parts, config.options)


def _list_servers(arguments: argparse.Namespace) -> int:
    config = load_config(config_path(arguments.config))
    tables: dict[str, Any] = {}
    if config.exists:
        tables = tomllib.loads(config.path.read_bytes().decode("utf-8-sig")).get("mcp_servers", {})
    known = last_known(config)
    routes = _catalogue_of(config, {name: one.lists for name, one in known.items()}).tools
    rows: list[dict[str, Any]] = []
    for name, table in tables.items():
        states = {"broken": name in config.broken, "disabled": name in config.disabled}
        one = known.get(name)
        rows.append(
            {
                "server": name,
                "state": next((state for state, holds in states.items() if holds), "enabled"),
                "command": _shown_command(table),
                "url": without_secrets([str(table["url"])])[0] if isinstance(table, dict) and "url" in table else None,
                "era": one.era if one else None,
                "revision": one.revision if one else None,
                "tools": [tool for tool, route in routes.items() if route.server == name] if one else None,
                "reason": config.broken.get(name),
            }
        )
    if arguments.json:
        print(json.dumps({"config": str(config.path), "servers": rows}, indent=2))
    elif not config.exists:
        print(f"There is no config file at {config.path}; {_HOW_TO_ADD}")
    elif not rows:
        print(f"No servers yet in {config.path}; {_HOW_TO_ADD}")
    else:
        cells = [
            [
                *(row["server"], row["state"], row["revision"] or "-"),
                "-" if row["tools"] is None else str(len(row["tools"])),
                row["url"] or (shlex.join(row["command"]) if row["command"] else "-"),
            ]
            for row in rows
        ]
        _print_table(["SERVER", "STATE", "REVISION", "TOOLS", "COMMAND"], cells)
        for row in rows:
            if row["reason"]:
                print(f"\n{row['server']}: {row['reason']}")
        if any(row["state"] == "enabled" and row["tools"] is None for row in rows):
            print("\n-: not known before it has run once; `mcpmux check` starts them all")
    return 0


def _shown_command(table: Any) -> list[str] | None:
    """As it is written, `${VAR}` and all, without what is secret; a table can be wrong in every way."""
    if not isinstance(table, dict) or not isinstance(table.get("command"), str):
        return None
    args = table.get("args", [])
    return without_secrets([table["command"], *map(str, args if isinstance(args, list) else [])])


def only(config: Config, names: Iterable[str]) -> Config:
    """The config with no more than these servers."""
    servers = {name: table for name, table in config.servers.items() if name in set(names)}
    return msgspec.structs.replace(config, servers=servers, broken={}, disabled=[])


def _expect_server(config: Config, name: str) -> None:
    """Raises `ConfigError` for one that cannot be used."""
    if name in config.broken:
        raise ConfigError(config.broken[name])
    if name in config.disabled:
        raise ConfigError(f"{name} is disabled: its table in {config.path} has enabled = false")
    if name not in config.servers:
        there = f"; there are: {', '.join(config.servers)}" if config.servers else f"; {_HOW_TO_ADD}"
        raise ConfigError(f"{config.path} has no server {name}{nearest(name, config.servers) or there}")


def learn(config: Config, names: Iterable[str]) -> tuple[dict[str, Mapping[str, list[Entry]]], dict[str, str]]:
    """The lists of these servers, from the cache or else from themselves; and why some cannot tell."""
    known = last_known(config)
    lists: dict[str, Mapping[str, list[Entry]]] = {name: known[name].lists for name in names if name in known}
    unknown = only(config, [name for name in names if name not in known])
    failed: dict[str, str] = {}

    async def listed(host: InnerHost) -> None:
        await host.ask("tools/list")
        for server in host.mux.core.servers.values():
            if server.known:
                lists[server.name] = dict(server.lists)
            else:
                failed[server.name] = "; ".join(filter(None, [server.trouble or server.state.value, server.hint]))

    if unknown.servers:
        waiting = Waiting()
        looks = functools.partial(_show_servers, waiting)
        try:
            InnerHost(unknown, cached=False, capabilities=PERSON, looks=looks).play(listed)
        finally:
            waiting.clear()
    return lists, failed


def _tools(arguments: argparse.Namespace) -> int:
    config = load_config(config_path(arguments.config))
    if arguments.server:
        _expect_server(config, arguments.server)
    wanted = [arguments.server] if arguments.server else list(config.servers)
    lists, failed = learn(config, wanted)
    if not arguments.server:
        failed |= config.broken
    known = {name: one.lists for name, one in last_known(config).items()}  # the others have a say in how one is named
    catalogue = _catalogue_of(config, known | lists)
    tools = [
        {"server": catalogue.tools[tool["name"]].server, **tool}
        for tool in value_of(catalogue.results["tools/list"])["tools"]
        if catalogue.tools[tool["name"]].server in wanted
    ]
    if arguments.json:
        print(json.dumps({"tools": tools, "failed": failed}, indent=2))
    else:
        for tool in tools:
            _print_tool(tool)
        if not tools and not failed:
            nothing = f"{arguments.server or config.path} has no tools."
            print(nothing if wanted else f"No servers yet in {config.path}; {_HOW_TO_ADD}")
    for name, reason in failed.items() if not arguments.json else ():
        print(f"mcpmux: {'' if reason.startswith(name) else name + ': '}{reason}", file=sys.stderr)
    return 1 if failed else 0


def _print_tool(tool: dict[str, Any]) -> None:
    """One tool as people read it: NAME(needed: type, more?: type), and in a line what it does."""
    schema = tool.get("inputSchema", {})
    properties = schema.get("properties", {})
    needed = schema.get("required", [])
    parameters = [f"{name}{'' if name in needed else '?'}: {_type_of(one)}" for name, one in properties.items()]
    line = f"{tool['name']}({', '.join(parameters)})"
    width = max(shutil.get_terminal_size().columns, 60)
    first, *rest = textwrap.wrap(harmless(line), width, subsequent_indent="        ", break_on_hyphens=False)
    print("\n".join([painted(tool["name"], "bold") + first.removeprefix(tool["name"]), *rest]))
    title = tool.get("title") or tool.get("annotations", {}).get("title")
    does = next((line.strip() for line in tool.get("description", "").splitlines() if line.strip()), "")
    says = ": ".join(harmless(one) for one in dict.fromkeys([title, does]) if one)
    print(textwrap.indent(textwrap.shorten(says, width - 4, placeholder=" …"), "    "))


def _type_of(schema: Any) -> str:
    """A JSON schema in a word or two."""
    if not isinstance(schema, dict):
        return "any"
    if isinstance(schema.get("enum"), list):
        return " | ".join(json.dumps(one, ensure_ascii=False) for one in schema["enum"])
    parts = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(parts, list):
        return " | ".join(dict.fromkeys(_type_of(one) for one in parts))
    if "const" in schema:
        return json.dumps(schema["const"], ensure_ascii=False)
    kind = schema.get("type", "any")
    if kind == "array":
        inner = _type_of(schema.get("items"))
        return f"({inner})[]" if " " in inner else f"{inner}[]"
    return " | ".join(map(str, kind)) if isinstance(kind, list) else str(kind)


# ── call ──


def _call(arguments: argparse.Namespace) -> int:
    config = load_config(config_path(arguments.config))
    text = sys.stdin.buffer.read() if arguments.arguments == "-" else arguments.arguments.encode(errors="replace")
    try:
        given = _decode_any(text)
    except (msgspec.DecodeError, RecursionError) as wrong:
        raise ConfigError(f"the arguments of {arguments.tool} are not JSON: {wrong}") from None
    if not isinstance(given, dict):
        raise ConfigError(f"""the arguments of {arguments.tool} are a JSON object, as in '{{"name": "value"}}'""")
    owner, own_name = owner_of_tool(config, arguments.tool)
    waiting = Waiting()
    person = Person(waiting)

    def hear(method: str, params: Fields) -> None:
        if method == "notifications/message":
            data = value_of(params.get("data"))
            words = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
            waiting.say(f"{value_of(params.get('logger'))}: {value_of(params.get('level'))}: {words}")

    async def scene(host: InnerHost) -> Reply:
        listed = value_of((await host.ask("tools/list")).result)["tools"]
        core = host.mux.core
        routes = core.catalogue.tools
        name = next((one for one, route in routes.items() if route.name == own_name), arguments.tool)
        tool = next((one for one in listed if one["name"] == name), None)
        if tool is None and core.servers[owner].known:
            raise ConfigError(f"there is no tool {name}{nearest(name, routes)}")
        waiting.show({arguments.tool: "called"})
        params: dict[str, Any] = {"name": name, "arguments": given}
        if tool and tool.get("execution", {}).get("taskSupport") == "required":
            params["task"] = {}
        reply = await host.ask("tools/call", params, lambda progress: waiting.show({arguments.tool: bar_of(progress)}))
        for _ in range(MAX_ROUNDS):
            if not await person.visits(reply):
                break
            reply = await host.ask("tools/call", params)
        task = object_of(object_of(reply.result).get("task"))
        return await host.ask("tasks/result", {"taskId": task["taskId"]}) if "taskId" in task else reply

    host = InnerHost(
        only(config, [owner]),
        cached=own_name is not None,
        capabilities=PERSON,
        answers={"elicitation/create": person.asked},
        hears=hear,
        looks=functools.partial(_show_servers, waiting),
    )
    try:
        reply = host.play(scene)
    finally:
        waiting.clear()
    return show_reply(reply, arguments.output, as_it_came=arguments.json)


def owner_of_tool(config: Config, tool: str) -> tuple[str, str | None]:
    """The server to be started for a tool, and what the tool is called there if that is known. Raises `ConfigError`."""
    known = last_known(config)
    routes = _catalogue_of(config, {name: one.lists for name, one in known.items()}).tools
    if tool in routes:
        return routes[tool].server, routes[tool].name
    separator = config.options.separator
    prefixes = {name: name if table.prefix is None else table.prefix for name, table in config.servers.items()}
    owners = [name for name, prefix in prefixes.items() if prefix and tool.startswith(prefix + separator)]
    if owners:  # one that is known may offer a terminal what it did not offer those who asked before
        return min(owners, key=lambda name: (name in known, -len(prefixes[name]))), None
    named = tool.partition(separator)[0]
    if separator in tool and (named in config.broken or named in config.disabled):
        _expect_server(config, named)
    bare = [name for name, prefix in prefixes.items() if not prefix and name not in known]
    if bare:
        lists, _ = learn(config, bare)
        routes = _catalogue_of(config, {name: one.lists for name, one in known.items()} | lists).tools
        if tool in routes:
            return routes[tool].server, routes[tool].name
    same = [name for name, route in routes.items() if route.name == tool]
    near = f"; did you mean {' or '.join(same)}?" if same else nearest(tool, routes)
    if not near and separator in tool:
        near = f": there is no server {named}{nearest(named, config.servers)}"
    raise ConfigError(f"there is no tool {tool}{near or '; `mcpmux tools` lists them'}")


def bar_of(progress: Fields) -> str:
    """How far a call is, in a line."""
    done, total, message = (value_of(progress.get(key)) for key in ("progress", "total", "message"))
    words = f"  {harmless(message)}" if isinstance(message, str) else ""
    if isinstance(total, int | float) and total > 0:
        filled = min(max(int(done * 20 / total), 0), 20)
        return f"[{'#' * filled:20}] {done:g}/{total:g}{words}"
    return f"{done:g}{words}"


def show_reply(reply: Reply, output: str | None, *, as_it_came: bool) -> int:
    """A call's result on stdout, a failure on stderr; the exit code."""
    result = value_of(reply.result)
    failed = reply.result is None or result.get("isError") is True
    if as_it_came:
        line = bytes(reply.result) if reply.result is not None else b'{"error":%b}' % bytes(reply.error or b"null")
        sys.stdout.flush()
        sys.stdout.buffer.write(line + b"\n")
    elif reply.result is None:
        error = value_of(reply.error)
        print(f"mcpmux: {error.get('message')} ({error.get('code')})", file=sys.stderr)
    else:
        blocks = [block for block in result.get("content", []) if isinstance(block, dict)]
        out = sys.stderr if failed else sys.stdout
        keeper = Keeper(output, sum(blob_of(block) is not None for block in blocks))
        for block in blocks:
            print(_shown(block, keeper), file=out)
        if "structuredContent" in result and not any(block.get("type") == "text" for block in blocks):
            print(json.dumps(result["structuredContent"], indent=2, ensure_ascii=False), file=out)
        if output and not keeper.count:
            print("mcpmux: nothing to save: the result has no image, audio or file", file=sys.stderr)
    return 1 if failed else 0


def _shown(block: dict[str, Any], keeper: Keeper) -> str:
    """A content block for people."""
    resource = block.get("resource", {})
    match block.get("type"):
        case "text":
            return str(block.get("text"))
        case "image" | "audio":
            return keeper.keep(block)
        case "resource" if "blob" in resource:
            return f"{resource.get('uri')}\n{keeper.keep(block)}"
        case "resource":
            return f"{resource.get('uri')}\n{resource.get('text')}"
        case "resource_link":
            words = [block.get("title") or block.get("name"), block.get("mimeType"), block.get("description")]
            return f"{block.get('uri')} ({', '.join(str(word) for word in words if word)})"
        case _:
            return json.dumps(block, ensure_ascii=False)


def blob_of(block: dict[str, Any]) -> tuple[str, str] | None:
    """The MIME type and the base64 of a block that is no text."""
    holder = block.get("resource", {}) if block.get("type") == "resource" else block
    data = holder.get("blob" if block.get("type") == "resource" else "data")
    return (str(holder.get("mimeType", "application/octet-stream")), data) if isinstance(data, str) else None


class Keeper:
    """Writes what is no text where `--output` says: into that file, or, of several, into files in that folder."""

    def __init__(self, output: str | None, expected: int) -> None:
        self._path = Path(os.path.expanduser(output)) if output else None
        ends = (os.sep, os.altsep or os.sep)
        self._in_folder = bool(output and (expected > 1 or output.endswith(ends) or os.path.isdir(output)))
        self.count = 0

    def keep(self, block: dict[str, Any]) -> str:
        """A line that says what it is, and where."""
        import base64  # noqa: PLC0415
        import mimetypes  # noqa: PLC0415

        mime, text = blob_of(block) or ("", "")
        try:
            data = base64.b64decode(text)
        except ValueError as wrong:
            return f"({mime}: not base64: {wrong})"
        self.count += 1
        if self._path is None:
            return f"({mime}, {len(data)} bytes; --output FILE keeps it)"
        path = self._path
        if self._in_folder:
            path /= f"{block['type']}-{self.count}{mimetypes.guess_extension(mime) or ''}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as wrong:
            raise ConfigError(f"{path} cannot be written: {wrong}") from None
        return f"({mime}, {len(data)} bytes: {path})"


# ── the person at the terminal ──
# https://modelcontextprotocol.io/specification/2025-11-25/client/elicitation


class Person:
    """Who is asked what servers ask, one question at a time; declines where there is nobody."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._turn = asyncio.Lock()
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()
        self._wanted = threading.Semaphore(0)
        self._reading = False  # a line is asked for and has not come
        self._thread: threading.Thread | None = None
        self._is_there = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))

    async def asked(self, params: Fields) -> dict[str, Any]:
        """An answer to `elicitation/create`."""
        question = {key: value_of(raw) for key, raw in params.items()}
        message = harmless(str(question.get("message")))
        if not self._is_there:
            self._waiting.say(f"mcpmux: declined, because stdin is no terminal: {message}")
            return {"action": "decline"}
        async with self._turn:
            self._waiting.clear(paused=True)
            try:
                if question.get("mode") == "url":
                    return await self._sent_to(message, str(question.get("url")))
                return await self._fills_in(message, question.get("requestedSchema", {}))
            except EOFError:
                self._tell("declined\n")
                return {"action": "decline"}
            except asyncio.CancelledError:
                self._tell("\n(it is no longer asked)\n")
                raise
            finally:
                self._waiting.clear()

    async def visits(self, reply: Reply) -> bool:
        """Whether a call was refused until pages are visited (-32042), and the person has been there."""
        error = value_of(reply.error)
        if not isinstance(error, dict) or error.get("code") != URL_ELICITATION_REQUIRED:
            return False
        pages = object_of(object_of(reply.error).get("data")).get("elicitations")
        for page in items_of(pages):
            if (await self.asked(object_of(page)))["action"] != "accept":
                return False
        self._waiting.clear(paused=True)
        try:
            await self._line("Enter when you are done there: ")
        except EOFError:
            return False
        self._waiting.clear()
        return True

    async def _sent_to(self, message: str, url: str) -> dict[str, Any]:
        self._tell(f"{message}\n  {harmless(url)}\n")
        if not re.match("https?://", url):
            self._tell("declined: this is no address of a page\n")
            return {"action": "decline"}
        action = await self._chooses("open it in the browser? y: yes, n: decline, c: cancel: ", _ACTIONS)
        if action == "accept":
            import webbrowser  # noqa: PLC0415

            opener = threading.Thread(target=webbrowser.open, args=(url,), daemon=True)
            opener.start()
            await asyncio.to_thread(opener.join, BROWSER_START)
        return {"action": action}

    async def _fills_in(self, message: str, schema: dict[str, Any]) -> dict[str, Any]:
        fields = schema.get("properties", {})
        needed = schema.get("required", [])
        self._tell(f"{message}\n" + ("  (Enter takes what is in brackets, Ctrl-D declines)\n" if fields else ""))
        while True:
            content: dict[str, Any] = {}
            for name, field in fields.items():
                value = await self._enters(name, field, needed=name in needed)
                if value is not None:
                    content[name] = value
            answers = _ACTIONS | ({"e": "edit"} if fields else {})
            edit = ", e: edit" if fields else ""
            action = await self._chooses(f"send this? y: yes, n: decline, c: cancel{edit}: ", answers)
            if action != "edit":
                return {"action": action, **({"content": content} if action == "accept" else {})}

    async def _enters(self, name: str, field: dict[str, Any], *, needed: bool) -> Any:
        """A valid value, or None for a field that is left out."""
        default = field.get("default")
        choices = choices_of(field)
        about = [field.get("format") or _type_of(field)]
        if choices:
            about = ["several, with commas between" if field.get("type") == "array" else "one"]
        about += ["needed"] if needed and default is None else []
        label = f"  {harmless(str(field.get('title', name)))} ({', '.join(about)})"
        if field.get("description"):
            label += f": {harmless(str(field['description']))}"
        for number, (value, shown) in enumerate(choices, 1):
            label += harmless(f"\n    {number}: {shown}" + (f" ({value})" if shown != value else ""))
        shown = (
            "" if default is None else f" [{harmless(default if isinstance(default, str) else json.dumps(default))}]"
        )
        self._tell(label + "\n")
        while True:
            text = (await self._line(f"   {shown} > ")).strip()
            if not text and (default is not None or not needed):
                return default
            try:
                return typed(text, field)
            except ValueError as wrong:
                self._tell(f"    {harmless(str(wrong))}\n")

    async def _chooses(self, prompt: str, answers: Mapping[str, str]) -> str:
        """Nothing is taken for granted: Enter alone asks again."""
        while True:
            answer = answers.get((await self._line(prompt)).strip().lower()[:1])
            if answer:
                return answer

    async def _line(self, prompt: str) -> str:
        """Raises `EOFError` at Ctrl-D. A thread reads, which Ctrl-C does not wait for."""
        self._tell(prompt)
        loop = asyncio.get_running_loop()

        def read() -> None:
            with open(0, "rb", buffering=0, closefd=False) as stdin:
                while self._wanted.acquire():
                    try:
                        line = stdin.read(65536) or b""
                    except OSError:  # its window was closed
                        line = b""
                    loop.call_soon_threadsafe(self._lines.put_nowait, line)

        if self._thread is None:
            self._thread = threading.Thread(target=read, name="mcpmux keyboard", daemon=True)
            self._thread.start()
        if not self._reading:
            self._reading = True
            self._wanted.release()
        line = await self._lines.get()
        self._reading = False
        if not line:
            raise EOFError
        return line.decode(errors="replace")

    def _tell(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


_ACTIONS: Final = {"y": "accept", "n": "decline", "c": "cancel"}
_FORMATS: Final = {
    "email": r"[^@\s]+@[^@\s]+",
    "uri": r"[A-Za-z][A-Za-z0-9+.-]*:\S+",
    "date": r"\d{4}-(0\d|1[0-2])-[0-3]\d",
    "date-time": r"\d{4}-(0\d|1[0-2])-[0-3]\dT[0-2]\d:[0-5]\d:[0-6]\d(\.\d+)?(Z|[+-]\d\d:\d\d)",
}
_YES_NO: Final = {"y": True, "yes": True, "true": True, "n": False, "no": False, "false": False}


def choices_of(field: dict[str, Any]) -> list[tuple[Any, Any]]:
    """What a field of a form lets one choose from, and how each is shown."""
    if field.get("type") == "array":
        field = field.get("items", {})
    titled = field.get("oneOf") or field.get("anyOf") or []
    if titled:
        return [(one.get("const"), one.get("title", one.get("const"))) for one in titled]
    values = field.get("enum", [])
    names = field.get("enumNames", [])
    return list(zip(values, names if len(names) == len(values) else values, strict=True))


def typed(text: str, field: dict[str, Any]) -> Any:
    """What a person has typed as the value that a field takes. Raises `ValueError` that says what is expected."""
    choices = choices_of(field)
    kind = field.get("type")
    if kind == "array":
        picked = list(dict.fromkeys(_chosen(word.strip(), choices) for word in text.split(",") if word.strip()))
        _within(len(picked), field, "minItems", "maxItems", "so many are expected")
        return picked
    if choices:
        return _chosen(text, choices)
    if kind == "boolean":
        if text.lower() not in _YES_NO:
            raise ValueError("y or n is expected")
        return _YES_NO[text.lower()]
    if kind in ("integer", "number"):
        try:
            number = int(text) if kind == "integer" or re.fullmatch(r"-?\d+", text) else float(text)
        except ValueError:
            raise ValueError(f"a{'n integer' if kind == 'integer' else ' number'} is expected") from None
        if not math.isfinite(number):
            raise ValueError("a number is expected")
        _within(number, field, "minimum", "maximum", "a number is expected")
        return number
    _within(len(text), field, "minLength", "maxLength", "so many characters are expected")
    pattern = _FORMATS.get(field.get("format", ""))
    if pattern and not re.fullmatch(pattern, text):
        raise ValueError(f"not of the form that is expected: {field['format']}")
    return text


def _chosen(text: str, choices: list[tuple[Any, Any]]) -> Any:
    for value, shown in choices:
        if text.lower() in (str(value).lower(), str(shown).lower()):
            return value
    if text.isdecimal() and 0 < int(text) <= len(choices):
        return choices[int(text) - 1][0]
    raise ValueError(f"{text!r} is none of them{nearest(text, [str(shown) for _, shown in choices])}")


def _within(number: float, field: dict[str, Any], least: str, most: str, what: str) -> None:
    low, high = field.get(least), field.get(most)
    if (low is not None and number < low) or (high is not None and number > high):
        bounds = [f"at least {low}" if low is not None else "", f"at most {high}" if high is not None else ""]
        raise ValueError(f"{what}: {', '.join(bound for bound in bounds if bound)}")


# ── models, logs, usage ──


def _models(arguments: argparse.Namespace) -> int:
    config = load_config(config_path(arguments.config))
    if config.sampling is None:
        raise ConfigError(f'{config.path}: no model is configured; add [sampling] with model = "provider/model"')
    if not has_litellm():
        raise ConfigError("; ".join(NO_LITELLM))
    preferences = _preferences(arguments.prefer or "{}")
    prices = load_litellm().model_cost
    rated = [rate(model, prices) for model in config.sampling.models]

    def score(model: Rated, key: str) -> str:
        return f"{model.scores[key]:g} ({model.sources[key]})"

    _print_table(
        ["MODEL", "COST", "SPEED", "INTELLIGENCE", "$/M IN", "$/M OUT", "HINTS"],
        [
            [one.options.model, *(score(one, key) for key in PRIORITIES)]
            + (["?", "?"] if one.usd is None else [f"{price:.4g}" for price in one.usd])
            + [", ".join(one.options.hints) or "-"]
            for one in rated
        ],
    )
    if any(one.usd is None for one in rated):
        print("\n?: litellm knows no price; such a model's requests count as free for usd_per_day")
    if arguments.prefer:
        chosen, why = choose_model(rated, preferences)
        print(f"\n{chosen.options.model}: {why}")
    return 0


def _preferences(text: str) -> dict[str, Any]:
    """`modelPreferences` as a server would send them. Raises `ConfigError` for what it could not send."""
    given = value_of(text.encode(errors="replace"))
    if not isinstance(given, dict):
        raise ConfigError("--prefer: not a JSON object")
    params = {"messages": [{"role": "user", "content": {"type": "text", "text": ""}}], "maxTokens": 1}
    try:
        checked = checked_params(Raw(encode(params | {"modelPreferences": given})))
    except RpcError as wrong:
        raise ConfigError(f"--prefer: {str(wrong).rpartition('modelPreferences.')[2]}") from None
    return checked["modelPreferences"]


def _remote_table(arguments: argparse.Namespace) -> tuple[str, ServerOptions, Config]:
    """What a login is about. Raises `ConfigError`."""
    config = load_config(config_path(arguments.config))
    name = arguments.server
    remote = [one for one, table in config.servers.items() if table.url]
    if name in config.broken:
        raise ConfigError(str(config.path.parent / config.broken[name]))
    if name not in remote:
        near = difflib.get_close_matches(name, remote, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(remote) or 'none'}"
        what = "runs on this machine and has no login" if name in config.servers else "is not in it"
        raise ConfigError(f"{config.path}: {name} {what}; of servers with a url {hint}")
    return name, config.servers[name], config


def _login(arguments: argparse.Namespace) -> int:
    name, options, config = _remote_table(arguments)
    try:
        kept = asyncio.run(log_in(name, options, config, lambda text: print(text, flush=True)))
    except (StartError, RemoteError) as wrong:
        what, todo = wrong.args if isinstance(wrong, StartError) else (wrong.what, wrong.todo)
        print(f"mcpmux: {name} {what} ({todo})", file=sys.stderr)
        return 1
    if kept is None:
        print(f"{name} asks for no login.")
    else:
        forget_failures(cache_folder(), name)
        print(f"Logged in to {name}. The login is kept in {kept}; `mcpmux logout {name}` ends it.")
    return 0


def _logout(arguments: argparse.Namespace) -> int:
    name, options, config = _remote_table(arguments)

    try:
        there, trouble = asyncio.run(log_out(name, options, config))
    except StartError as wrong:
        print(f"mcpmux: {name}: {'; '.join(wrong.args)}", file=sys.stderr)
        return 1
    print(f"The login at {name} is forgotten." if there else f"There was no login at {name}.")
    if trouble:
        print(f"mcpmux: it could not be revoked there: {trouble}", file=sys.stderr)
    return 1 if trouble else 0


def _logs(arguments: argparse.Namespace) -> int:
    folder = state_folder() / "logs"
    known = sorted(path.stem for path in folder.glob("*.log"))
    if arguments.server is None:
        print("\n".join(f"{name}  {folder / name}.log" for name in known) or f"There are no logs yet in {folder}.")
        return 0
    if arguments.server not in known:
        near = difflib.get_close_matches(arguments.server, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known) or 'none'}"
        raise ConfigError(f"{arguments.server} has written no log; {hint}")
    path = folder / f"{arguments.server}.log"
    rotated = path.with_suffix(".log.1")
    present = path.read_bytes()
    past = (rotated.read_bytes() if rotated.exists() else b"") + present
    lines = past.splitlines(keepends=True)[-arguments.lines :] if arguments.lines > 0 else []
    sys.stdout.buffer.write(b"".join(lines))
    sys.stdout.flush()
    at = len(present)
    try:
        while arguments.follow:
            time.sleep(0.2)
            size = path.stat().st_size if path.exists() else 0
            if size < at:
                at = 0  # it was moved aside, and begun anew
            if size > at:
                with path.open("rb") as file:
                    file.seek(at)
                    new = file.read()
                at += len(new)
                sys.stdout.buffer.write(new)
                sys.stdout.flush()
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    return 0


def _usage(arguments: argparse.Namespace) -> int:
    ledger = Ledger(state_folder() / LEDGER_NAME)
    since = _day(time.time() - 86400 * (arguments.days - 1))
    sums: dict[tuple[str, str, str], list[float]] = {}
    for line in ledger.lines():
        if line["time"][:10] >= since:
            key = (line["time"][:10], str(line.get("server")), str(line.get("model")))
            row = sums.setdefault(key, [0, 0, 0, 0.0])
            row[0] += 1
            for column, name in enumerate(("in", "out", "usd"), 1):
                row[column] += amount(line, name)
    names = ("day", "server", "model", "requests", "tokensIn", "tokensOut", "usd")
    rows = [dict(zip(names, [*key, *sums[key]], strict=True)) for key in sorted(sums)]
    if arguments.json:
        print(json.dumps({"ledger": str(ledger.path), "usage": rows}, indent=2))
    elif not rows:
        print(f"No sampling in {arguments.days} days ({ledger.path}).")
    else:
        total = sum(row[3] for row in sums.values())
        cells = [[*(str(row[name]) for name in names[:-1]), f"{row['usd']:.4f}"] for row in rows]
        _print_table(["DAY", "SERVER", "MODEL", "REQUESTS", "TOKENS IN", "TOKENS OUT", "USD"], cells)
        print(f"\n${total:.4f} in all ({ledger.path})")
    return 0


# ── import, install, uninstall ──


def _import(arguments: argparse.Namespace) -> int:
    machine = this_machine()
    config = load_config(config_path(arguments.config))
    source = arguments.source or _choose_source(machine)
    if source is None:
        return 0
    entries: list[HostEntry] = []
    failed = False
    for host, file, folder in _sources(source, machine):
        try:
            entries += entries_of(host, file, folder)
        except ConfigError as wrong:
            failed = True
            print(f"{host.title}: {wrong}")
    plan, shown = _plans(entries, config, machine, arguments)
    _tell(plan)
    if arguments.dry_run:
        print(f"\nThis would be added to {config.path}:\n\n{shown}" if plan.tables else "\nNothing would be added.")
        _tell_needed(plan, config.path)
    elif plan.tables:
        append_servers(config.path, plan.tables, plan.comments, private=arguments.keep_secrets)
        print(f"\n{len(plan.tables)} added to {config.path}.")
        _tell_needed(plan, config.path)
        print("Next: mcpmux check")
    return 1 if failed or any(outcome.failed for outcome in plan.outcomes) else 0


def _choose_source(machine: Machine) -> str | None:
    """Shows what is where; asks a person which of it is meant."""
    rows: list[list[str]] = []
    for host in HOSTS:
        for file in real_files(host, machine):
            if file.exists():
                try:
                    entries = entries_of(host, file, None)
                    names = _printable(", ".join(dict.fromkeys(one.name for one in entries)))
                    rows.append([host.name, names or "-", str(file)])
                except ConfigError as wrong:
                    rows.append([host.name, "?", str(wrong)])
    if not rows:
        print(f"None of these hosts has a file here: {_HOST_NAMES}.")
        return None
    _print_table(["HOST", "SERVERS", "FILE"], rows)
    if sys.stdin is None or not sys.stdin.isatty():
        print("\nTo take servers over: mcpmux import HOST, or mcpmux import all")
        return None
    try:
        return input("\nImport from which host (`all`, or Enter for none)? ").strip() or None
    except EOFError:
        return None


def _sources(named: str, machine: Machine) -> list[tuple[Host, Path, str | None]]:
    host = host_named(named)
    file = Path(os.path.expanduser(named)).absolute()
    if host is None and named != "all":
        if not file.is_file():
            raise _unknown_host(named, ", and no file")
        owner, folder = host_of_file(file, machine)
        return [(owner, file, folder)]
    places = {file: one for one in (HOSTS if host is None else [host]) for file in real_files(one, machine)}
    found = [(one, file, host_of_file(file, machine)[1]) for file, one in places.items() if file.exists()]
    if not found:
        raise ConfigError(f"there is no {' nor '.join(map(str, places))}" if host else "no host has a file here")
    return found


def _unknown_host(named: str, also: str = "") -> ConfigError:
    hint = nearest(named.lower(), [host.name for host in HOSTS]) or f"; known are: {_HOST_NAMES}"
    return ConfigError(f"{named} is no host that mcpmux knows{also}{hint}")


def _plans(
    entries: list[HostEntry], config: Config, machine: Machine, arguments: argparse.Namespace
) -> tuple[Import, str]:
    """What is to be imported, known to load; and its text for people to look at."""
    old = read_bytes(config.path)
    present = tomllib.loads(old.decode("utf-8-sig")).get("mcp_servers", {}) if old else {}
    force = getattr(arguments, "force", False)
    keep = arguments.keep_secrets
    plan = plan_import(entries, present, Variables(config.environment, "keep" if keep else "move"), machine, force)
    new_config(config.path, old, plan.tables, plan.comments)
    shown = plan
    if keep:
        shown = plan_import(entries, {}, Variables(config.environment, "hide"), machine, force)
    blocks = [server_block(name, shown.tables[name], plan.comments[name]) for name in plan.tables]
    return plan, "\n".join(blocks)


def _tell(plan: Import) -> None:
    file = None
    width = max((len(outcome.entry.name) for outcome in plan.outcomes), default=0)
    for outcome in plan.outcomes:
        if outcome.entry.file != file:
            file = outcome.entry.file
            print(f"{outcome.entry.host.title}, {file}:")
        print(_printable(f"  {outcome.entry.name:{width}}  {outcome.said}"))
        for note in outcome.notes:
            print(_printable(f"  {'':{width}}    {note}"))


def _tell_needed(plan: Import, config: Path) -> None:
    if plan.needed:
        print(
            f"Set these variables, in what starts your host or in a file that env_file in [mux] of {config.name} names:"
        )
        width = max(map(len, plan.needed))
        for name, why in plan.needed.items():
            print(_printable(f"  {name:{width}}  {why}"))


def _printable(text: str) -> str:
    """What came from a file, a stranger's perhaps, as a line that a terminal only shows."""
    return "".join(one if one.isprintable() else "?" for one in text)


def _install(arguments: argparse.Namespace) -> int:
    host = host_named(arguments.host)
    if host is None:
        raise _unknown_host(arguments.host)
    config = load_config(config_path(arguments.config))
    entry = entry_for_hosts(config.path, config.sampling is not None)
    if config.sampling and "--from" not in entry["args"] and not has_litellm():
        print(f"note: {'; '.join(NO_LITELLM)}")
    file = _own_file(host)
    if host.edited:
        return _install_in_file(host, file, entry, config, arguments)
    if arguments.replace:
        raise ConfigError(
            f"--replace is for hosts whose file mcpmux edits; for {host.title}: mcpmux import {host.name}"
        )
    if host.add:
        return _run_own_command(own_command(host.add, entry), arguments.dry_run)
    print(f"Put this into {file}:\n\n{snippet(host, entry)}")
    return 0


def _own_file(host: Host) -> Path:
    """The file that is not a project's; if there are two, the one that is there."""
    files = real_files(host, this_machine(), projects=False)
    return next((file for file in files if file.exists()), files[0])


def _run_own_command(command: list[str], dry_run: bool) -> int:
    """A host's own command, if the host is there; else what to type."""
    line = subprocess.list2cmdline(command) if sys.platform == "win32" else shlex.join(command)
    program = shutil.which(command[0], path=extended_path(os.environ))
    if dry_run or program is None:
        print(line if dry_run else f"{command[0]} was not found. Where it is, run:\n\n{line}")
        return 0
    print(f"Running: {line}", flush=True)
    return min(subprocess.run([program, *command[1:]], stdin=subprocess.DEVNULL, check=False).returncode, 1)


def _texts_of(file: Path) -> tuple[bytes | None, str, bytes | None]:
    """A host's file, as bytes and as text; and what it was before mcpmux."""
    old = read_bytes(file)
    try:
        text = (old or b"").decode()
        if text.strip():
            read_host_file(file)
    except UnicodeDecodeError as wrong:
        raise ConfigError(f"{file}: cannot be read: {wrong}") from None
    return old, text, read_bytes(file.with_name(file.name + BACKUP_SUFFIX))


def _install_in_file(
    host: Host, file: Path, entry: dict[str, Any], config: Config, arguments: argparse.Namespace
) -> int:
    old, text, backup = _texts_of(file)
    backup_file = file.with_name(file.name + BACKUP_SUFFIX)
    servers = servers_in(text, host.key)
    plan, shown, moved = None, "", list[str]()
    if arguments.replace and text.strip():
        entries = [one for one in entries_of(host, file, None) if one.name != ENTRY_NAME]
        plan, shown = _plans(entries, config, this_machine(), arguments)
        moved = [outcome.entry.name for outcome in plan.outcomes if outcome.moved]
        _tell(plan)
    try:
        before = text if old is not None else None
        if ENTRY_NAME in servers:
            before = uninstalled(text, backup.decode() if backup is not None else None, host.key)[0]
        new = installed(text, host.key, entry, moved)
    except (ValueError, UnicodeDecodeError) as wrong:
        raise ConfigError(f"{file}: {wrong}") from None
    if plan and arguments.dry_run and plan.tables:
        print(f"\nThis would be added to {config.path}:\n\n{shown}")
    if _tell_difference(file, text, new, arguments.dry_run):
        return 0
    if plan and plan.tables:
        append_servers(config.path, plan.tables, plan.comments, private=arguments.keep_secrets)
        print(f"{len(plan.tables)} added to {config.path}.")
    if backup is not None and ENTRY_NAME not in servers and backup != old:  # of another time
        os.replace(backup_file, f"{backup_file}.old")
        backup = None
    if before is not None and before.encode() != backup:
        write_file(backup_file, before.encode(), backup, private=True)
    write_file(file, new.encode(), old)
    print(f"{host.title} has mcpmux now, in {file}." + (f" As it was: {backup_file}" if before is not None else ""))
    if plan and plan.needed:
        _tell_needed(plan, config.path)
        print(f"What they held is in {backup_file}.")
    print(f"Restart {host.title}; mcpmux uninstall {host.name} takes it back.")
    return 0


def _tell_difference(file: Path, old: str, new: str, dry_run: bool) -> bool:
    """Whether there is nothing to write: no difference, or it is only to be shown."""
    if old == new:
        print(f"{file} is as it should be already.")
    elif dry_run:
        before, after = ([_printable(line) for line in masked(text).splitlines()] for text in (old, new))
        print("\n".join(difflib.unified_diff(before, after, str(file), str(file), lineterm="")))
    return dry_run or old == new


def _uninstall(arguments: argparse.Namespace) -> int:
    host = host_named(arguments.host)
    if host is None:
        raise _unknown_host(arguments.host)
    file = _own_file(host)
    if host.remove:
        return _run_own_command(list(host.remove), arguments.dry_run)
    if not host.edited:
        print(f"Remove {ENTRY_NAME} from {host.key} in {file}.")
        return 0
    old, text, backup = _texts_of(file)
    if old is None or (ENTRY_NAME not in servers_in(text, host.key) and backup is None):
        print(f"{host.title} has no mcpmux in {file}.")
        return 0
    try:
        new, restored = uninstalled(text, backup.decode() if backup is not None else None, host.key)
    except (ValueError, UnicodeDecodeError) as wrong:
        raise ConfigError(f"{file}: {wrong}") from None
    if _tell_difference(file, text, new or "", arguments.dry_run):
        return 0
    if new is None:
        file.unlink()
        print(f"{file} was there for mcpmux alone, and is gone.")
        return 0
    write_file(file, new.encode(), old)
    if backup is not None:
        file.with_name(file.name + BACKUP_SUFFIX).unlink()
    if backup is not None and new.encode() == backup:
        print(f"{file} is as it was before mcpmux.")
    else:
        back = f", and these are back: {', '.join(restored)}" if restored else ""
        print(f"{file} was changed since: mcpmux is out of it{back}.")
    return 0


# ── demo ──


def _demo_server(name: str) -> int:
    """A small MCP server for the demo: one thread, one request at a time, the standard library only."""
    tools = {
        "whoami": "Says which process this is",
        **(
            {
                "add_note": "Adds a note; asks the person for its text",
                "summarize": "Asks the host's model to sum the notes up",
            }
            if name == "notes"
            else {"countdown": "Counts down, with progress"}
        ),
    }
    notes = ["buy milk", "call Ada"]
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer

    def send(**message: Any) -> None:
        stdout.write(encode({"jsonrpc": "2.0", **message}) + b"\n")
        stdout.flush()

    def ask(method: str, params: dict[str, Any]) -> dict[str, Any]:
        send(id=f"ask-{method}", method=method, params=params)
        while message := _decode_any(stdin.readline() or b"{}"):
            if message.get("id") == f"ask-{method}":
                return message.get("result", {})
        sys.exit(0)

    def call(tool: str, arguments: dict[str, Any], token: Any) -> str:
        match tool:
            case "whoami":
                return f"{name}, process {os.getpid()}"
            case "add_note":
                schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
                answer = ask("elicitation/create", {"message": "What shall I note?", "requestedSchema": schema})
                if answer.get("action") != "accept":
                    return "Nothing was noted."
                notes.append(answer["content"]["text"])
                return f"Noted: {notes[-1]}"
            case "summarize":
                prompt = {"type": "text", "text": f"Sum up in a line: {'; '.join(notes)}"}
                answer = ask(
                    "sampling/createMessage", {"messages": [{"role": "user", "content": prompt}], "maxTokens": 50}
                )
                return f"The model says: {answer['content']['text']}"
            case _:
                steps = arguments.get("steps", 5)
                for step in range(1, steps + 1):
                    time.sleep(arguments.get("seconds", 1) / steps)
                    if token is not None:
                        send(
                            method="notifications/progress",
                            params={"progressToken": token, "progress": step, "total": steps},
                        )
                return "Lift-off!"

    for line in iter(stdin.readline, b""):
        message = _decode_any(line)
        if "id" not in message:
            continue
        params = message.get("params") or {}
        match message["method"]:
            case "initialize":
                info = {"name": name, "version": __version__}
                result = {
                    "protocolVersion": params["protocolVersion"],
                    "capabilities": {"tools": {}},
                    "serverInfo": info,
                }
            case "tools/list":
                result = {
                    "tools": [
                        {"name": tool, "description": text, "inputSchema": {"type": "object"}}
                        for tool, text in tools.items()
                    ]
                }
            case "tools/call":
                text = call(params["name"], params.get("arguments", {}), params.get("_meta", {}).get("progressToken"))
                result = {"content": [{"type": "text", "text": text}]}
            case _:
                result = {}
        send(id=message["id"], result=result)
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    me = os.path.abspath(__file__)
    servers = {name: {"command": sys.executable, "args": [me, "_demo_server", name]} for name in ("notes", "clock")}

    async def elicited(params: Fields) -> Any:
        print(f"     the host shows  {value_of(params['message'])!r}")
        print("     you answer      'water the plants'")
        return {"action": "accept", "content": {"text": "water the plants"}}

    async def sampled(params: Fields) -> Any:
        asked = value_of(params["messages"])[0]["content"]["text"]
        print(f"     the model gets  {asked!r}")
        reply = {"role": "assistant", "content": {"type": "text", "text": "Milk, Ada, plants."}}
        return {**reply, "model": "demo", "stopReason": "endTurn"}

    host = InnerHost(
        read_config({"mcp_servers": servers}, Path(CONFIG_NAME).absolute()),
        cached=False,
        capabilities={"sampling": {}, "elicitation": {}},
        answers={"elicitation/create": elicited, "sampling/createMessage": sampled},
    )
    host.play(_scenes)
    print(_next_steps())
    return 0


async def _scenes(host: InnerHost) -> None:
    tall = sys.stdout.isatty()

    async def call(tool: str, on_progress: Callable[[Fields], None] | None = None, **arguments: Any) -> str:
        reply = await host.ask("tools/call", {"name": tool, "arguments": arguments}, on_progress)
        return value_of(reply.result)["content"][0]["text"]

    def bar(progress: Fields) -> None:
        done, total = value_of(progress["progress"]), value_of(progress["total"])
        print(
            f"{chr(13) if tall else ''}     [{'#' * (done * 20 // total):20}] {done}/{total}",
            end="" if tall and done < total else "\n",
            flush=True,
        )

    print(f"1. A host starts mcpmux {host.about['serverInfo']['version']}, and two servers look like one:")
    for tool in value_of((await host.ask("tools/list")).result)["tools"]:
        print(f"     {tool['name']:18} {tool['description']}")
    print("\n2. A call to each:")
    who = {name: await call(f"{name}__whoami") for name in ("notes", "clock")}
    for name, text in who.items():
        print(f"     {name}__whoami  ->  {text}")
    print("\n3. Progress finds its way back:")
    print(f"     clock__countdown  ->  {await call('clock__countdown', bar, steps=10)}")
    print("\n4. A server asks the person (elicitation: server -> mcpmux -> host and back):")
    print(f"     notes__add_note  ->  {await call('notes__add_note')}")
    print("\n5. A server asks the host's model (sampling):")
    print(f"     notes__summarize  ->  {await call('notes__summarize')}")
    print("\n6. A server is killed in the middle of a call:")

    def kill_clock(progress: Fields) -> None:
        if value_of(progress["progress"]) == 1:
            os.kill(int(who["clock"].split()[-1]), signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)

    print(f"     clock__countdown  ->  {await call('clock__countdown', kill_clock, steps=100, seconds=30)}")
    print(f"     notes__whoami  ->  {await call('notes__whoami')}   (untouched)")
    print(f"     clock__whoami  ->  {await call('clock__whoami')}   (started again)")


def _next_steps() -> str:
    """What to do after the demo, with this machine's paths."""
    claude = HOSTS[0]
    entry = snippet(claude, entry_for_hosts(config_path(None), sampling=False)).replace("\n", "\n     ")
    return f"""
Now with your own servers:

  1. List them in {config_path(None)}:

     [mcp_servers.time]
     command = "uvx"
     args = ["mcp-server-time"]

  2. See that each starts:  mcpmux check

  3. mcpmux install {claude.name}  puts this into {_own_file(claude)}:

     {entry}
"""


if __name__ == "__main__":
    sys.exit(main())
