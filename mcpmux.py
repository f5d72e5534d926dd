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
     5  catalogue, search              many servers' lists become one; names; who owns what; which tool does what
     6  policy                         who may answer what a server asks
     7  calls                          events, effects, and the doors of all parts: Out, InFlight, Exchange, Facts
     8  host's end                     how the host has shown itself; each of its requests is answered once, here
     9  dispatch                       a host's request to its server and back; deadlines, failing
    10  tasks and subscriptions        who owns which task, who listens to what
    11  questions and rounds           what servers ask, and the bridge between the eras
    12  approvals and consents         what waits until the person allows it
    13  servers                        finding the era, reading the lists, a process's life
    14  core                           the router, and `handle(event, now) -> effects`
        -- above this line there is no I/O, no clock, no environment, no asyncio: a test checks it --
    15  config                         TOML -> options, and all that is wrong with it at once
    16  places                         environment, files, secrets, PATH, cache: all of the disk but logs and pipes
    17  pipes                          the host's two pipes, and the log
    18  processes                      spawning servers, and the ladder that stops them
    19  remote                         servers over HTTP, each made to look like a process
    20  sampler                        the child process that asks a model, through litellm
    21  page                           the child process that asks the person, in the browser
    22  mux                            the loop that feeds the core and performs its effects
    23  hosts                          servers out of hosts' own files, and mcpmux into them
    24  CLI                            the table of commands; serving is the one without a name

Three walks through the parts of the core:

* A tools/call: `Router` finds its owner in the catalogue; `Calls` opens it in `InFlight` and sends it in its server's
  era; the answer is settled there and goes to its asker, `Calls`, and out through `HostEnd`.
* A sampling request of a legacy server in a modern host's call: `Questions` asks the policy; `Rounds` ends the host's
  request with what is asked and stands between the call and its asker; the retry brings the answer, which ends the
  question at its asker, `Questions`, and so reaches the server; the retry stands for the call.
* A crash: `Life` asks `Greeting` whether a fresh process is wanted, else counts the death and replaces the `Run`; the
  core tells `Questions` and `Tasks`; `Calls` keeps what the process never took and fails the rest at its askers.

Invariants:

* Every request has exactly one ending on every path: an answer, an error, or, cancelled by its sender, none. One of
  the host's stands in `HostEnd.open` from its line to its ending, wherever it waits meanwhile; one of ours stands in
  `InFlight`, which `open` and `settle` alone fill and empty, and its ending goes to its asker.
* The core cannot fail to send and cannot block: it returns effects. There is no task per request. To send never ends a
  request: that is always a later event.
* Nothing but mcpmux's own lines reaches the host's pipe: fds 0 and 1 are taken over before anything else runs.
* A payload is decoded only as deep as routing needs; what is stored beyond an event is copied out of its line.
* One server's fault ends that server's requests and nothing else. What belongs to a process is in a `Run`.

Serving uses asyncio directly rather than through anyio, for two measured reasons: anyio's asyncio backend adds 85 ms to
a start of about 200 ms, and asyncio's subprocess *protocol* tells of a process's exit even while a grandchild holds
its pipes open (`Process.wait` does not return then). Remote servers, whose HTTP client loads anyio anyway, use it for
what it is good at: task groups and scopes that can be cancelled.
"""

from __future__ import annotations

import gc

if gc.isenabled():  # what a start makes stays: looking for garbage in it is an eighteenth of a start's time
    gc.disable()

import asyncio
import base64
import codecs
import collections
import contextlib
import functools
import heapq
import io
import itertools
import math
import os
import re
import signal
import ssl
import stat
import string
import subprocess
import sys
import textwrap
import threading
import time
import tomllib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Annotated, Any, Final, Literal, NamedTuple, NoReturn, Protocol, TextIO, TypeVar, get_args, get_origin

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

TYPE_CHECKING = False  # type checkers read it as true
if TYPE_CHECKING:
    import argparse
    import bisect
    import difflib
    import fnmatch
    import hashlib
    import ipaddress
    import json
    import shlex
    import shutil
    import urllib.parse
else:

    class Later:
        """A module that is imported when first used: a start is short, and serving can begin without these."""

        def __init__(self, module: str) -> None:
            self._module = module

        def __getattr__(self, name: str) -> object:
            module = globals()[self._module.partition(".")[0]] = __import__(self._module)
            return getattr(module, name)

    argparse, bisect, difflib, fnmatch = map(Later, ("argparse", "bisect", "difflib", "fnmatch"))
    hashlib, ipaddress, json, shlex, shutil = map(Later, ("hashlib", "ipaddress", "json", "shlex", "shutil"))
    urllib = Later("urllib.parse")

__version__ = "0.1.0"

# ══ 1. Constants and options ═════════════════════════════════════════════════════════════════════════════════════════

DISTRIBUTION: Final = "mcpmux"  # what the package is called where it is published
BY_UVX: Final = "uvx mcpmux" if DISTRIBUTION == "mcpmux" else f"uvx --from {DISTRIBUTION} mcpmux"
# Each says what would hang, or be lost, without it. Seconds.
START_PATIENCE: Final = 4.0  # × startup_timeout_sec: lists stop waiting after 1×; a late server is given up after this
QUIET_AFTER_INITIALIZED: Final = 0.1  # some servers refuse calls until what they ask after `initialized` is answered
RELIST_QUIET: Final = 0.05  # one change often comes as a burst of list_changed
RELIST_QUIET_MOST: Final = 30.0
RELIST_CALM: Final = 10.0  # and one that announces changes that are none is read less and less often, until this calm
RELIST_AT_MOST: Final = 1.0  # a server that never stops announcing changes is still listed
RELIST_EACH: Final = 2e-4  # × its entries: one that has thousands and changes them all the time is read less often
CHANGES_TOGETHER: Final = 5.0  # while servers are still being listed the host reads its lists again no more often
# Of hosts that read a list once, or heed no change of it: how long they were seen to wait for the first one.
LIST_PATIENCE: Final = {"claude-ai": 30.0, "codex-mcp-client": 8.0, "mcpmux": float("inf")}
DISCOVER_SILENCE: Final = 10.0  # a legacy server may never answer `server/discover`; `initialize` then follows
LISTEN_AGAIN, LISTEN_AGAIN_MOST = 1.0, 60.0  # a server that ends our subscription is not asked in a tight loop
# Many wishes for one server's resources would each be a listen with all before it; few are heard before the next call.
LISTEN_TOGETHER, LISTEN_FEW = 0.05, 20
SWEEP_APART: Final = 0.05  # between looks at all that is open for what has had its time
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
END_MOST: Final = 1.6  # of all ladders together: what seventy processes that are still starting need does not grow
FETCH_MOST: Final = 600.0  # what npx and the like still fetch when nobody waits for it is ended after this
LEFT_SILENT: Final = 30.0  # a process has gone and its child has the pipes: is it the server, or only left behind?
STOOD_STILL: Final = 1.0  # a timer that comes so late tells that mcpmux was stopped, or the machine asleep
WOKEN: Final = 2.0  # then what lies in the pipes is read before anything is too late
HOST_FLUSH: Final = 0.3  # a host that no longer reads must not keep the process alive
SECRET_COMMAND_TIMEOUT: Final = 10.0  # `${cmd:…}` may ask for a fingerprint that nobody gives
SAMPLER_LOADS: Final = 60.0  # litellm is big, and the machine may be busy
SAMPLER_SLACK: Final = 5.0  # the sampler's own timeout ends a request; one that does not even do that is stuck
SAMPLER_IDLE: Final = 300.0  # litellm keeps 200 MB
PAGE_IDLE: Final = 600.0  # a person may want to look again at what was decided
# Of hosts that give up on a call: how long they were seen to wait. Others are taken for the least patient; one that
# gave a progress token hears that the person is asked, and so waits longer, but for Claude Desktop.
HOST_PATIENCE: Final = {"claude-ai": 55.0, "goose": 290.0, "claude-code": 1700.0, "mcpmux": float("inf")}
HOST_PATIENCE_LEAST: Final = 55.0
DECISION_KEPT: Final = 600.0  # for a call that is made again, once its host has given up on it
STILL_WAITING: Final = 10.0  # between two words of progress to a host whose call waits for the person
PAGE_OPENS: Final = 30.0  # the page's process, and then a browser, for a person who wants to see it
BROWSER_START: Final = 5.0  # some browsers are waited for until they are closed
RETRY_WAITS: Final = (0.3, 1.2)  # before the second and the third attempt at a provider that is busy or failing
RETRY_AFTER_MOST: Final = 10.0  # a provider that asks for more is not waited for
MODEL_RESTS: Final = 60.0  # one that has failed: others are asked before it
OTHER_TOKENIZERS: Final = 1.3  # × the tokens that the common one counts: none has more for usual text
MEDIA_TOKENS: Final = 2000  # of a picture or a sound
GUARD_TIMEOUT: Final = 10.0  # a person's own program that hangs must not keep what waits for it

BYTES_OF_A_TOKEN: Final = 4  # of a tool's definition, as models were seen to count them

WATCH_TICK: Final = 1.0  # between looks at the config file (a change must stand still for one) and at our parent
TRIM_AFTER: Final = 0.05  # seconds of processor time, after which memory is given back to the system
VALUES_KEPT: Final = 7 * 86400.0  # lists that other values of variables led to: another host may have those
FAILURE_REMEMBERED: Final = 600.0  # lists do not wait again for a server that could not be started so recently

MAX_PAGES: Final = 1000  # a list whose cursor always advances would never end
EDGE: Final = 4096  # of a bad or over-long line, as much as is searched for an id at each end
STDERR_LINES: Final = 60  # kept for error messages
HELD_FOR_HOST: Final = 200  # notifications that a server may send before the host has initialized
FAIR_BITE: Final = 16 * 1024  # bytes of one server's lines written to the host before the next has its turn
USUAL_PIPE: Final = 64 * 1024  # bytes that a pipe of Linux holds
PIPE_ROOM: Final = 256 * 1024  # bytes, for long messages; all pipes of a user together may hold 64 MB
READ_AHEAD: Final = 256 * 1024  # bytes waiting for the host above which their server is not read; and the reverse
URI_MOST: Final = 2048  # characters; a longer URI or template is matched as a whole only
FINDINGS_MOST: Final = 200  # in a request that is invalid
TEXT_MOST: Final = 500  # characters of a peer's own words in a message of ours
MB: Final = 1024 * 1024

# What one server may have of what is shared; beyond that *it* is refused, with a reason.
QUESTIONS_MOST: Final = 50  # open at once
TURNS_MOST: Final = 200  # requests for a model that wait their turn
ARGUMENTS_MOST: Final = 4000  # bytes of a call's, as far as hosts show them whole to the person who is to allow it
SHOWN_MOST: Final = 20  # tools that have changed, in one question
PINS_MOST: Final = 20  # definitions of one tool that are accepted
PAGE_MOST: Final = 10  # questions a minute to the person, on the page
TASKS_MOST: Final = 1000  # remembered; ended ones are forgotten first
ENTRIES_MOST: Final = 10_000  # in each of its lists
TEMPLATES_MOST, EXPRESSIONS_MOST = 1000, 20  # and in each template
LINKS_MOST: Final = 1000  # URIs that it gave out in results, the last ones
INSTRUCTIONS_MOST: Final = 64 * 1024  # characters in the merged text
CAPABILITIES_MOST: Final = 256 * 1024  # bytes
NOTES_MOST: Final = 20  # lines a second that it causes in our log
SEARCHED_MOST: Final = 1024  # characters of a tool by which it is found
CROWD: Final = (5, 2)  # of so many tools that are found, so many of one server, while others have any
ANSWER_MOST: Final = 20 * 1024  # bytes of what `find_tools` answers
JOINED_MOST: Final = 20  # tools that were found, and joined the list
SERVERS_MOST: Final = 4000  # characters that say what all the servers are for
# Legacy hosts that read the list again when they are told that it has changed, and use what is new.
JOINS: Final = frozenset({"claude-code", "cline", "visual studio code", "zed"})
VIEWS_MOST: Final = 8  # names that a host has shown itself by

Seconds = Annotated[float, Meta(gt=0, le=1e6)]
Megabytes = Annotated[float, Meta(gt=0, le=4096)]
Score = Annotated[float, Meta(ge=0, le=1)]
Expose = Literal["all", "search"]
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
    # how long a list waits for servers that are not known yet where others are; they are announced later
    first_list_sec: Annotated[float, Meta(ge=0, le=30)] = 3.0
    # mcpmux's own page in the browser asks where the host cannot: `"auto"`; `"always"`: in its place too; `"off"`
    page: Literal["auto", "always", "off"] = "auto"
    # `"search"`: not all tools are listed, but [two that find and call them](#many-tools)
    expose: Expose = "all"
    always: list[str] = []  # tools that are listed in any case: names or globs, as in `git__*`
    env_file: str | None = None  # `KEY=value` lines for `${VAR}`; relative to the config file


class HostOptions(Struct, frozen=True, kw_only=True):
    """A `[hosts.NAME]` table: what one host is shown. NAME is what it calls itself, in any case, or a glob."""

    expose: Expose | None = None  # in place of `[mux]`'s
    servers: list[str] | None = None  # only these: names or globs
    always: list[str] | None = None  # in place of `[mux]`'s


class ToolOverride(Struct, frozen=True, kw_only=True):
    """`[mcp_servers.X.tools.NAME]`: what the host is shown instead; NAME is the server's own."""

    enabled: bool = True  # `false` hides it
    name: Annotated[str, Meta(min_length=1)] | None = None  # what the host is shown, after the prefix
    title: str | None = None  # in place of its own
    description: str | None = None  # in place of its own
    always: bool = False  # `true`: it is listed in any case, and hosts that defer tools are told not to


class OAuthOptions(Struct, frozen=True, kw_only=True):
    """`[mcp_servers.X.oauth]`: for a server that lets nobody register by himself. Without it mcpmux does that."""

    # or the `https://` address of a client metadata document
    client_id: Annotated[str, Meta(min_length=1)] | None = None
    client_secret: Annotated[str, Meta(min_length=1)] | None = None  # if it has one
    # where the browser comes back to; `0`: any port that is free
    callback_port: Annotated[int, Meta(ge=0, le=65535)] = 0


class ServerOptions(Struct, frozen=True, kw_only=True):
    """A `[mcp_servers.NAME]` table. The keys are Codex's where Codex has them."""

    command: Annotated[str, Meta(min_length=1)] | None = None  # the program; required, unless there is a `url`
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
    # who asks you what it asks: `"auto"`, `"host"`, `"local"` or `"off"`, as [there](#when-a-server-asks-you-something)
    elicitation: bool | Literal["auto", "host", "local", "off"] = "auto"
    # tools whose calls wait for the person: names or globs of its own names, `"destructive"` or `true`; `false`: none,
    # not even [those that a search has found](#many-tools)
    approve: bool | Literal["destructive"] | list[str] | None = None
    pin: bool = False  # a tool that is no longer as the person accepted it is withheld; `"destructive"` implies it
    tools: dict[str, ToolOverride] = {}

    def __post_init__(self) -> None:
        if isinstance(self.elicitation, bool):
            msgspec.structs.force_setattr(self, "elicitation", "auto" if self.elicitation else "off")
        if self.approve == "destructive":  # by hints of its own, which it could change
            msgspec.structs.force_setattr(self, "pin", True)


class ModelOptions(Struct, frozen=True, kw_only=True):
    """A `[[sampling.models]]` table. Scores are 0 to 1, and 1 is best: cheapest, fastest, cleverest."""

    model: str = ""  # `provider/model`; required
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
    # what a request counts if litellm does not know its price; without it, only models on this machine may lack one
    usd_per_request: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    tool_rounds: Annotated[int, Meta(ge=1, le=10**6)] = 50  # in a row, in one conversation


class SamplingOptions(Struct, frozen=True, kw_only=True):
    """The `[sampling]` table: either `model`, with the keys beside it, or several `[[sampling.models]]`."""

    # `provider/model`; required, unless there are `[[sampling.models]]`
    model: Annotated[str, Meta(min_length=1)] | None = None
    api_key: str | None = None  # else litellm reads the provider's usual variable (`OPENAI_API_KEY`…)
    api_base: str | None = None  # the provider's address, where it is not the usual one
    # more of what [litellm](https://docs.litellm.ai/docs/completion/input) takes: `{ top_p = 0.9 }`
    params: dict[str, Any] = {}
    timeout_sec: Seconds = 120.0  # for a request, with what is tried again
    # which requests wait for the person: of each server the first, or all, with what a model answers to them, or none
    approve: Literal["first", "always", "never"] = "first"
    fallback: bool = True  # where a model cannot answer, the next best is asked
    redact: bool = False  # `true` replaces what looks like a key or a password in what servers ask
    guard: list[str] = []  # a program of yours that each request and reply passes, as [there](#a-guard-of-your-own)
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


def way_of(bug: BaseException) -> str:
    """Through which functions and lines it came."""
    frames, at = list[str](), bug.__traceback__
    while at:
        frames.append(f"{at.tb_frame.f_code.co_name}:{at.tb_lineno}")
        at = at.tb_next
    return " > ".join(frames)


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


class Misused(RpcError):
    """A tool of ours cannot be called so: for the model to read, as what a tool says."""

    def __init__(self, message: str) -> None:
        super().__init__(INVALID_PARAMS, message)


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


class Reply(Struct, frozen=True):
    result: Raw | None  # how a request ended: one of these two is set
    error: Raw | bytes | None
    failure: str = ""  # why it was not answered at all, where that is so; `error` says the same


class TooLong(NamedTuple):
    size: int  # of a line over the limit
    head: bytes  # and enough of it to see whose it was
    tail: bytes


class Unread(NamedTuple):
    head: bytes  # of a message that cannot be read: whose it was may be known by its ends
    tail: bytes
    reason: str
    code: int


JSON_NULL: Final = b"null"
_BRACE, _RETURN = b"{\r"  # to look for a byte's number takes a fifth of the time
encode: Final = msgspec.json.Encoder().encode
_decode_envelope: Final = msgspec.json.Decoder(Envelope).decode
_decode_fields: Final = msgspec.json.Decoder(Fields).decode
_decode_items: Final = msgspec.json.Decoder(list[Raw]).decode
decode_any: Final = msgspec.json.Decoder().decode
_LONE_SURROGATE: Final = (
    rb"(?<!\\)((?:\\\\)*+)"  # after an even number of backslashes, however many: none is looked at twice
    rb"(?:(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_CONTROL: Final = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
_ID_AT_HEAD: Final = rb'^\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*"?(\d{1,18})"?\s*[,}]'
_ID_AT_TAIL: Final = rb',\s*"id"\s*:\s*"?(\d{1,18})"?\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$'


class LineSplitter:
    """Joins chunks, cuts them at newlines. A line over `limit` bytes becomes a `TooLong`; blank ones are left out."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes | TooLong]:
        first, ended, rest = chunk.partition(b"\n")  # a search; a split looks at bytes one by one
        self._add(first)
        if not ended:
            return []
        *whole, last = rest.split(b"\n")
        lines = [self._take(), *(whole if len(rest) <= self._limit else map(self._cut, whole))]
        self._add(last)
        return [line for line in lines if not isinstance(line, bytes) or line.strip()]

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        self._parts.append(part)
        if self._size > self._limit and len(self._parts) > 1:  # over the limit only the two edges are kept
            joined = b"".join(self._parts)
            self._parts = [joined[:EDGE], joined[-EDGE:]] if len(joined) > 2 * EDGE else [joined]

    def _take(self) -> bytes | TooLong:
        line, size = b"".join(self._parts), self._size
        self._parts, self._size = [], 0
        return self._cut(line, size)

    def _cut(self, line: bytes, size: int | None = None) -> bytes | TooLong:
        size = len(line) if size is None else size
        return line if size <= self._limit else TooLong(size, line[:EDGE], line[-EDGE:])


def tidy(line: bytes) -> tuple[bytes, str | None]:
    """The line as valid UTF-8 in one piece, and what had to be replaced for that, if anything."""
    line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, from some shells
    if _RETURN in line:  # white space to JSON (a string cannot hold one raw), a line's end to some readers
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
    if not (items := [bytes(item) for item in _read_twice(_decode_items, line)]):
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
    return re.sub(_LONE_SURROGATE, lambda m: m[1] + (m[2] or rb"\ufffd"), line) if b"\\u" in line else line


def messages_in(
    line: bytes | TooLong, most: float, *, takes_batches: bool = False
) -> tuple[list[Envelope | Unread], str | None]:
    """What a line says, several messages only where an array is a batch; and what had to be replaced in it. `most` is
    the limit in MB that a line which is too long has broken."""
    if isinstance(line, TooLong):
        reason = f"{line.size} bytes, over max_message_mb = {most:g}"
        return [Unread(line.head, line.tail, reason, INVALID_REQUEST)], None
    try:
        if line.isascii() and _RETURN not in line:
            return [_decode_envelope(line)], None
    except (msgspec.MsgspecError, RecursionError, ValueError):
        pass  # what is wrong with it is found out in what follows
    text, note = tidy(line)
    items = [text]
    if takes_batches and text.lstrip()[:1] == b"[":
        try:
            items = decode_batch(text)
        except (BadLine, msgspec.ValidationError) as bad:
            return [Unread(text, text, str(bad), INVALID_REQUEST)], note
    messages: list[Envelope | Unread] = []
    for item in items:
        try:
            messages.append(decode_line(item))
        except BadLine as bad:
            code = PARSE_ERROR if str(bad).startswith("not JSON (") else INVALID_REQUEST
            messages.append(Unread(item, item, str(bad), code))
    return messages, note


def reply_in(message: Envelope, who: str) -> Reply:
    """A response as one of its two kinds; what is neither becomes an error that says so."""
    if message.error is not UNSET:
        if message.result is not UNSET and bytes(message.result) != JSON_NULL:
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


def what_is(message: Envelope) -> str:
    """A message of a peer's without its payload, for the trace."""
    what = "answer" if message.method is UNSET else message.method
    return what if message.id is UNSET else f"{what} id={bytes(message.id).decode(errors='replace')}"


def id_in_bad_line(head: bytes, tail: bytes) -> int | None:
    """The id of a message that cannot be read, where its place shows beyond doubt that it is the envelope's."""
    found = re.search(_ID_AT_HEAD, head[:EDGE]) or re.search(_ID_AT_TAIL, tail[-EDGE:])
    return int(found[1]) if found else None


def number_of_id(raw: Raw | bytes) -> int | None:
    """An id that we minted, as it came back: `7`, `7.0` and `"7"` all mean 7."""
    number = value_of(raw)
    if isinstance(number, str):
        number = value_of(number.encode())
    if isinstance(number, float) and number.is_integer():
        return int(number)
    return number if type(number) is int else None


def is_id(raw: bytes) -> bool:
    """Whether a peer may use this as a request's id: any JSON string or number (0 and "" too)."""
    return raw != b"" and raw[0] in b'"-0123456789'


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
    try:
        return default if raw is None else decode_any(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return default


def object_of(raw: Raw | bytes | UnsetType | None) -> Fields:
    """As `fields_of`, but empty where there is no object: for what only *may* be there."""
    try:
        return {} if raw is None or raw is UNSET else _decode_fields(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


def items_of(raw: Raw | bytes | None) -> list[Raw]:
    """The items of a raw JSON array; none where there is no array."""
    try:
        return [] if raw is None else _decode_items(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []


def text_in(fields: Fields, key: str) -> str:
    """A member that has to be a string. Raises `RpcError` (-32602)."""
    if not isinstance(value := value_of(fields.get(key)), str):
        raise RpcError(INVALID_PARAMS, f"params.{key} must be a string")
    return value


def without(fields: Fields, *keys: str) -> Fields:
    return {key: raw for key, raw in fields.items() if key not in keys}


def with_meta(params: Fields, meta: Fields) -> Fields:
    """Params with this `_meta`, or with none where it is empty."""
    return params | {"_meta": Raw(encode(meta))} if meta else without(params, "_meta")


def progress_token(params: Fields) -> bytes | None:
    token = object_of(params["_meta"]).get("progressToken") if "_meta" in params else None
    return bytes(token) if token is not None and is_id(bytes(token)) else None


def harmless(text: str) -> str:
    """A peer's words for people: what moves the cursor, hides or turns text is made visible; not new lines and tabs."""
    return re.sub(_CONTROL, lambda match: ascii(match[0])[1:-1], text)


def in_a_line(text: str) -> str:
    return harmless(text).replace("\n", "\\n")


def is_object(raw: Raw | bytes) -> bool:
    return memoryview(raw)[0] == _BRACE


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


def failed(text: str) -> Reply:
    """The ending of a request that nobody answers, whatever its method."""
    return Reply(None, error_body(RpcError(INTERNAL_ERROR, text)), text)


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

BATCH_REVISIONS: Final = frozenset({"2025-03-26"})  # the one revision in which an array is a batch of messages


class ListKind(Struct, frozen=True):
    """One of the four lists that a server may offer."""

    key: str  # the result's member that holds the entries
    identity: str  # the entry's member that names it
    capability: str  # who declares this has the list

    @property
    def changed(self) -> str:
        return f"notifications/{self.capability}/list_changed"


LISTS: Final = {
    "tools/list": ListKind("tools", "name", "tools"),
    "prompts/list": ListKind("prompts", "name", "prompts"),
    "resources/list": ListKind("resources", "uri", "resources"),
    "resources/templates/list": ListKind("resourceTemplates", "uriTemplate", "resources"),
}
# What a modern host subscribes to: by the notification, the key of the filter and the capability that has it.
CHANGES: Final = {kind.changed: (f"{kind.capability}ListChanged", kind.capability) for kind in LISTS.values()}

# What the host is told whoever is up: mcpmux itself serves these, with empty lists if need be.
OWN_CAPABILITIES: Final[dict[str, Any]] = {
    "tools": {"listChanged": True},
    "prompts": {"listChanged": True},
    "resources": {"subscribe": True, "listChanged": True},
    "completions": {},
    "logging": {},
}
CANCELLED: Final = "notifications/cancelled"
UNITED_CAPABILITIES: Final = ("tasks", "extensions", "experimental")
BEFORE_INITIALIZED: Final = ("initialize", "ping")
_OF_MCP: Final = "io.modelcontextprotocol/"
VERSION_KEY, INFO_KEY, CAPABILITIES_KEY, LEVEL_KEY, SERVER_KEY, SUBSCRIPTION_KEY = (
    _OF_MCP + key
    for key in ("protocolVersion", "clientInfo", "clientCapabilities", "logLevel", "serverInfo", "subscriptionId")
)
ENVELOPE_KEYS: Final = (VERSION_KEY, INFO_KEY, CAPABILITIES_KEY, LEVEL_KEY)
TASKS_EXTENSION: Final = _OF_MCP + "tasks"
SKILLS_EXTENSION: Final = _OF_MCP + "skills"
# Extensions whose methods mcpmux knows how to share among servers. Another one is passed on where one server has it.
EXTENSIONS: Final = (TASKS_EXTENSION, SKILLS_EXTENSION, _OF_MCP + "ui")
MERGED_METHODS: Final = {"skills/list": (SKILLS_EXTENSION, "skills")}  # whose lists become one, under this key
SUBSCRIBING: Final = ("resources/subscribe", "resources/unsubscribe")
METHODS_BY_URI: Final = ("resources/read", *SUBSCRIBING, "skills/get", "resources/directory/read")
RELATED_TASK: Final = _OF_MCP + "related-task"
OF_RETRY: Final = ("inputResponses", "requestState")  # params that a call has only when it is made again
CARRIERS: Final = ("tools/call", "prompts/get", "resources/read")  # in the middle of these a server may ask
LEGACY_ONLY: Final = frozenset({"ping", "logging/setLevel", *SUBSCRIBING, "tasks/list", "tasks/result"})
MODERN_ONLY: Final = frozenset({"server/discover", "subscriptions/listen", "tasks/update"})
CACHEABLE: Final = (*LISTS, "resources/read", "skills/list", "skills/get")
LOG_LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
TERMINAL: Final = ("completed", "failed", "cancelled")  # a task's last statuses
HOST_TASK_METHODS: Final = ("tasks/get", "tasks/result", "tasks/cancel", "tasks/list")
IMPLEMENTATION: Final = {"name": "mcpmux", "title": "mcpmux", "version": __version__}


class Caller(Struct, frozen=True):
    """A host as one of its requests shows it: by its envelope, or as it has initialized."""

    modern: bool
    declared: bytes  # its capabilities
    info: bytes  # its `clientInfo`
    level: str | None = None  # of log messages that it wants during this request

    @property
    def capabilities(self) -> Fields:
        return object_of(self.declared)

    @property
    def era(self) -> str:
        return "modern" if self.modern else "legacy"

    @property
    def name(self) -> str:
        """What it calls itself, in lower case."""
        name = value_of(object_of(self.info).get("name"))
        return name.lower() if isinstance(name, str) else ""


NOBODY: Final = Caller(False, b"{}", encode(IMPLEMENTATION))


@functools.lru_cache(maxsize=8)
def declares_tasks(declared: bytes) -> bool:
    """Whether a host, by its capabilities, knows the tasks extension."""
    return offers(object_of(declared), "extensions", TASKS_EXTENSION)


def caller_of(params: Fields) -> Caller | None:
    """The modern envelope of a request, None where there is none. Raises `RpcError` for one that is not whole.
    https://modelcontextprotocol.io/specification/2026-07-28/basic/index#meta"""
    if "_meta" not in params or VERSION_KEY not in (meta := object_of(params["_meta"])):
        return None
    if not isinstance(version := value_of(meta[VERSION_KEY]), str):
        raise RpcError(INVALID_PARAMS, f"params._meta: {VERSION_KEY} must be a string")
    if version not in MODERN_REVISIONS:
        data = {"supported": MODERN_REVISIONS, "requested": version}  # what `server/discover` lists
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
    own = {VERSION_KEY: Raw(encode(MODERN_REVISIONS[0])), INFO_KEY: Raw(caller.info), CAPABILITIES_KEY: Raw(told)}
    own |= {LEVEL_KEY: Raw(encode(level))} if level else {}
    return with_meta(params, object_of(params.get("_meta")) | own)


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
    if isinstance(extra["extensions"], dict):
        owners = collections.Counter(id for one in declared for id in object_of(one.get("extensions")))
        served = {id: value for id, value in extra["extensions"].items() if id in EXTENSIONS or owners[id] == 1}
        extra["extensions"] = served or None
    return OWN_CAPABILITIES | {key: value for key, value in extra.items() if isinstance(value, dict)}


def fit_capabilities(declared: Raw | bytes | None) -> tuple[Fields, str | None]:
    """What a server declares, copied, without what would fill every handshake with a host; and what was left out."""
    text = b"{}" if declared is None else bytes(declared)
    if len(text) <= CAPABILITIES_MOST:
        return object_of(text), None
    whole, keys = object_of(text), (*OWN_CAPABILITIES, *UNITED_CAPABILITIES)
    kept = {key: whole[key].copy() for key in keys if key in whole and len(whole[key]) <= EDGE}
    return kept, f"declares capabilities of {len(text)} bytes"


class Own(NamedTuple):
    model: bool = False  # what mcpmux itself can answer with: a local model
    page: bool = False  # and a page that asks the person if need be
    always: bool = False  # or in any case


NOTHING_OWN: Final = Own()


def is_sampled_locally(host: Fields, options: ServerOptions, own: Own, *, with_tools: bool) -> bool:
    """Who answers a server's sampling: `auto` prefers the host."""
    if not own.model:
        return False
    host_can = offers(host, "sampling", "tools") if with_tools else offers(host, "sampling")
    return options.sampling == "local" or (options.sampling == "auto" and not host_can)


def is_asked_on_page(host: Fields, options: ServerOptions, own: Own, mode: str) -> bool:
    """The same for a mode of elicitation."""
    if not own.page:
        return False
    host_can = mode in elicitation_modes(host) and not own.always
    return options.elicitation == "local" or (options.elicitation == "auto" and not host_can)


def capabilities_for_server(host: Fields, options: ServerOptions, own: Own = NOTHING_OWN) -> Fields:
    """What a server is told: what the host declared, byte for byte, less what its table switches off, and what mcpmux
    answers itself: roots of its table, sampling, elicitation. Never more: servers act on that without asking again."""
    told = dict(host)
    here = {"elicitation": [mode for mode in ("form", "url") if is_asked_on_page(host, options, own, mode)]}
    here["sampling"] = ["tools"] if is_sampled_locally(host, options, own, with_tools=True) else []
    tasks = value_of(told.get("tasks"))
    for name, parts in here.items():
        if is_off := getattr(options, name) in ("local", "off"):
            told.pop(name, None)
        has = {mode: {} for mode in elicitation_modes(told)} if name == "elicitation" else {}
        if parts:
            told[name] = Raw(encode({**has, **object_of(told.get(name)), **{part: {} for part in parts}}))
        requests = tasks.get("requests") if isinstance(tasks, dict) else None
        if (is_off or parts) and isinstance(requests, dict) and name in requests:
            requests.pop(name)  # what is answered here is answered at once, never by a task
            told["tasks"] = Raw(encode(tasks))
    if options.roots and not offers(told, "roots"):
        told["roots"] = Raw(b"{}")
    return told


def next_cursor(body: Fields, seen: set[bytes]) -> bytes | None:
    """Where a list goes on. No cursor or null ends it (an empty string does not), a repeated one, too many pages."""
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


# ══ 5. Catalogue and search ══════════════════════════════════════════════════════════════════════════════════════════
# Many servers' lists become one: filtered, made valid, named, resolved, found. Pure values; knows no connection.

ALWAYS_LOAD, SEARCH_HINT = "anthropic/alwaysLoad", "anthropic/searchHint"  # in `_meta`, for hosts that defer tools
_NOT_IN_NAMES: Final = r"[^A-Za-z0-9_-]"
_EXPRESSION: Final = r"\{([^{}]*)\}"

Whose = tuple[str, str]  # a server, and a name as it is there
Names = dict[str, dict[str, Whose]]  # by list method and exposed name
Notes = list[tuple[str, str]]  # by server


class Entry(Struct, frozen=True):
    """One entry of one server's list, valid and copied out of its line: `left` + its name as JSON + `right`."""

    name: str  # the server's own name, or its URI
    shown: str  # as overridden in the config
    left: bytes
    right: bytes
    wrapped: bool = False  # a tool whose structured results legacy hosts take in an object only
    plain: bytes | None = None  # then: `right` for modern hosts
    page: str = ""  # of a tool: the URI of its MCP App


class Route(NamedTuple):
    server: str  # that owns an exposed name
    name: str  # and what it is called there
    entry: Entry


class Part(Struct, frozen=True):
    """One server's share of the catalogue."""

    server: str
    prefix: str | None
    lists: Mapping[str, list[Entry]]  # by list method

    def space(self, options: MuxOptions) -> str:
        """What its names begin with."""
        prefix = self.server if self.prefix is None else self.prefix
        return prefix and prefix + options.separator


class Known(Struct, frozen=True):
    """What a server last said of itself, for the next start of mcpmux; or why it said nothing."""

    key: str  # of its table and of this mcpmux
    told: str = ""  # of the capabilities that it was told; "" where its lists do not depend on them
    host: str = "legacy"  # the era of the host for which it was started: some servers have both, and offer less in one
    era: str = ""
    revision: str = ""
    capabilities: bytes = b"{}"
    info: bytes = b"{}"
    instructions: str = ""
    lists: dict[str, list[Entry]] = {}
    failed: str = ""
    samples: bool = False  # it has asked for a model of ours


_HEADING: Final = r"(?m)^( {0,3})(#{1,6}(?=\s|$))"
_UNDERLINE: Final = r"(?m)^ {0,3}=+[ \t]*$"


def merged_instructions(servers: Mapping[str, tuple[str, int]], notice: str) -> str:
    """By server its instructions and how many tools it has. A line for each stands first, since hosts cut what is long;
    then a chapter for each, whose own headings are pushed below that."""
    lines, chapters = list[str](), [notice] if notice else []
    for name, (text, count) in servers.items():
        first = next((one.strip(" #*\t") for one in text.splitlines() if one.strip(" #*=-\t")), "")
        tools = f"{count} {'tool' if count == 1 else 'tools'}"
        lines.append(f"- {name} ({tools})" + (f": {first[:120]}" if first else ""))
        if text:
            below = re.sub(r"\r\n?", "\n", text)  # either ends a line, and so may begin a heading
            below = re.sub(_UNDERLINE, "---", re.sub(_HEADING, r"\1#\2", below))
            chapters.append(f"# {name}\n\n{below}")
    if len(lines) > 1:
        chapters.insert(1 if notice else 0, "Servers behind this one:\n" + "\n".join(lines))
    return "\n\n".join(chapters)


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
    bare: dict[str, Route | None]  # tools by their own names; None: several servers have one
    resources: dict[str, str]  # URI -> server
    templates: list[tuple[str, str]]  # URI template, server: the most particular first
    pages: dict[str, str]  # URIs of MCP Apps
    schemes: dict[str, list[str]]  # of all these URIs, with the servers that have any
    names: Names
    notes: Notes

    def tool(self, name: str) -> Route | None:
        """Also by its own name, where one server has it: a page of an MCP App knows no other."""
        return self.tools.get(name) or self.bare.get(name)

    def owners_of(self, uri: str) -> list[str]:
        """The server that has listed this URI; else those that may have it, by their templates, the likeliest first."""
        if owner := self.resources.get(uri) or self.pages.get(uri):
            return [owner]
        text = UriText(uri)
        return list(dict.fromkeys(server for template, server in self.templates if text.matches(template)))


class Pin(Struct):
    accepted: list[str] = []  # digests of a tool's definitions, the last one last: they may differ by what it was told
    shown: str = ""  # its definition then


Pins = dict[str, dict[str, Pin]]  # by server and its own name


class Unlike(Struct, frozen=True):
    entry: Entry  # a tool that is no longer as it was accepted
    digest: str
    pin: Pin


def what_changed(before: list[Entry], after: list[Entry]) -> str:
    """Of two lists of tools, in words; empty where they are alike."""
    old, new = {one.name: one for one in before}, {one.name: one for one in after}
    kinds = {
        "new": [name for name in new if name not in old],
        "gone": [name for name in old if name not in new],
        "different": [name for name in new if name in old and new[name] != old[name]],
    }
    return "; ".join(f"{kind}: {', '.join(names)}"[:TEXT_MOST] for kind, names in kinds.items() if names)


@functools.lru_cache(maxsize=4096)
def pin_digest(entry: Entry) -> str:
    return digest_of(definition(entry))


def definition(entry: Entry) -> Fields:
    """What of a tool makes it the one that a person has accepted."""
    fields = object_of(entry.left + encode(entry.name) + entry.right)
    told = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")
    return {key: fields[key] for key in told if key in fields}


def digest_of(value: Any) -> str:
    """The same for values that are equal, however they were spelt; what cannot be read is equal to itself only."""
    text = encode(value)
    with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
        text = msgspec.json.encode(decode_any(text), order="deterministic")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def fit_entry(method: str, raw: Raw, options: ServerOptions) -> Entry | str | None:
    """One entry as strict hosts take it, which refuse a whole list for a bad one. A string says why it cannot be made
    valid; None: the config leaves it out."""
    kind = LISTS[method]
    entry = object_of(raw)
    name = value_of(entry.get(kind.identity))
    if not isinstance(name, str) or not name:
        return f"an entry of {method} without a {kind.identity}"
    override = options.tools.get(name, ToolOverride()) if method == "tools/list" else ToolOverride()
    if method == "tools/list" and not (override.enabled and is_enabled(name, options)):
        return None
    entry = _fitting(entry, _ENTRY_TYPES)
    for key in ("annotations", "execution"):
        if key in entry:
            entry[key] = _edited(entry[key], _fitting(fields_of(entry[key]), {}))
    if "icons" in entry and not all(isinstance(object_of(icon).get("src"), Raw) for icon in items_of(entry["icons"])):
        del entry["icons"]
    # What else it needs; it is edited in place, or it is said why it cannot be made valid.
    fit = {"tools/list": _fit_tool, "prompts/list": _fit_prompt}.get(method, _fit_resource)
    if wrong := fit(entry, name, options):
        return wrong
    output, wrapped = entry.get("outputSchema"), False
    if method == "tools/list" and output is not None:
        fitted, wrapped = _output_schema(output)
        if wrapped:  # what follows the name is then all that differs between the eras
            del entry["outputSchema"]
        entry["outputSchema"] = fitted
    left, right = _render(entry, kind.identity)
    plain = _render(entry | {"outputSchema": output}, kind.identity)[1] if wrapped and output is not None else None
    page = value_of(object_of(object_of(entry.get("_meta")).get("ui")).get("resourceUri"))
    return Entry(name, override.name or name, left, right, wrapped, plain, page if isinstance(page, str) else "")


def _fit_tool(entry: Fields, name: str, options: ServerOptions) -> str | None:
    override = options.tools.get(name, ToolOverride())
    for key in ("title", "description"):
        if (text := getattr(override, key)) is not None:
            entry[key] = Raw(encode(text))
    if not value_of(entry.get("description")):  # some hosts refuse an empty one
        entry["description"] = Raw(encode(name))
    if override.always:
        entry["_meta"] = Raw(encode(object_of(entry.get("_meta")) | {ALWAYS_LOAD: True}))
    schema = entry.setdefault("inputSchema", Raw(b'{"type":"object"}'))
    if value_of(object_of(schema).get("type"), "object") != "object" or not is_object(schema):
        return f'tool {name!r}: its inputSchema is not of type "object"'
    if options.url and isinstance(wrong := parameter_headers(value_of(schema)), str):
        return f"tool {name!r}: {wrong}"
    entry["inputSchema"] = _object_schema(schema)
    return None


def _fit_prompt(entry: Fields, name: str, options: ServerOptions) -> str | None:
    if "arguments" in entry:
        arguments = [_edited(one, _fitting(object_of(one), _ARGUMENT_TYPES)) for one in items_of(entry["arguments"])]
        if not all(object_of(one).get("name") for one in arguments):
            return f"prompt {name!r}: an argument without a name"
        entry["arguments"] = _edited(entry["arguments"], arguments)
    return None


def _fit_resource(entry: Fields, uri: str, options: ServerOptions) -> str | None:
    if uri.count("{") > EXPRESSIONS_MOST:
        return f"a URI template with more than {EXPRESSIONS_MOST} expressions: {uri[:100]!r}"
    if not isinstance(value_of(entry.get("name")), str):
        entry["name"] = Raw(encode(uri))
    return None


Types = Mapping[str, type | tuple[type, ...]]
_ENTRY_TYPES: Final[Types] = {
    **dict.fromkeys(("title", "description", "mimeType"), str),
    **dict.fromkeys(("arguments", "icons"), list),
    **dict.fromkeys(("annotations", "execution", "_meta"), dict),
    "outputSchema": (dict, bool),
}
_ARGUMENT_TYPES: Final[Types] = {"name": str, "title": str, "description": str, "required": bool}

# Where a JSON schema holds further ones; what is under other keywords is data.
_SCHEMA_IN: Final = frozenset(
    {
        *("items", "contains", "unevaluatedItems", "additionalProperties", "propertyNames", "unevaluatedProperties"),
        *("not", "if", "then", "else", "contentSchema", "allOf", "anyOf", "oneOf", "prefixItems"),
    }
)
_SCHEMAS_IN: Final = frozenset({"patternProperties", "dependentSchemas", "$defs", "definitions"})
HEADER_NAME: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"


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
            if not isinstance(header, str) or not re.fullmatch(HEADER_NAME, header):
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


def _fitting(fields: Fields, types: Types) -> Fields:
    """Without nulls, and without members of a type that is not theirs: hosts take absent ones."""
    return {
        key: raw
        for key, raw in fields.items()
        if bytes(raw) != JSON_NULL and (key not in types or isinstance(value_of(raw), types[key]))
    }


def _edited(raw: Raw, value: Any) -> Raw:
    """`value` as JSON, or `raw` itself where that says the same: its bytes need not change."""
    text = encode(value)
    return raw if decode_any(text) == value_of(raw) else Raw(text)


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
    if isinstance(schema := value_of(raw), dict) and schema.get("type") == "object":
        return _object_schema(raw), False
    inner = _moved_inwards(schema) if isinstance(schema, dict) else {} if schema else {"not": {}}
    outer: dict[str, Any] = {"type": "object", "properties": {"result": inner}, "required": ["result"]}
    if "$schema" in inner:
        outer["$schema"] = inner.pop("$schema")
    return Raw(encode(outer)), True


def _moved_inwards(schema: Any) -> Any:
    """A schema that is now at `properties.result`, with its references. One with an `$id` is the root of its own."""
    if isinstance(schema, list):
        return [_moved_inwards(one) for one in schema]
    if not isinstance(schema, dict) or "$id" in schema:
        return schema
    moved = dict(schema)
    for key, inner in schema.items():
        if key in ("$ref", "$dynamicRef") and isinstance(inner, str) and (inner == "#" or inner.startswith("#/")):
            moved[key] = f"#/properties/result{inner[1:]}"
        elif key in _SCHEMA_IN:
            moved[key] = _moved_inwards(inner)
        elif (key in _SCHEMAS_IN or key == "properties") and isinstance(inner, dict):
            moved[key] = {name: _moved_inwards(one) for name, one in inner.items()}
    return moved


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
    name = re.sub(_NOT_IN_NAMES, "_", text)
    return name if len(name) <= limit else f"{name[: limit - 7]}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


_COMPARED: Final = 100  # names; to compare two letter by letter takes the product of their lengths
_NEAR_LONGEST: Final = 128  # characters; hosts take no longer names


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like a mistaken one, if any is. Of many, only those are compared that begin and end
    most like it, so that a mistake among 30,000 names costs a look at both ends of each."""

    def same_at_both_ends(one: str) -> int:
        pairs = zip(name, one, strict=False), zip(reversed(name), reversed(one), strict=False)
        return sum(next((at for at, (a, b) in enumerate(pair) if a != b), len(one)) for pair in pairs)

    if len(name) > _NEAR_LONGEST:
        return None
    # By difflib's own measure the shorter of two that are alike has three sevenths of the longer, or more.
    candidates = [one for one in known if 7 * len(one) >= 3 * len(name) and 7 * len(name) >= 3 * len(one)]
    if len(candidates) > _COMPARED:
        candidates = heapq.nlargest(_COMPARED, candidates, key=same_at_both_ends)
    return next(iter(difflib.get_close_matches(name, candidates, n=1)), None)


def _name_all(
    parts: list[Part], method: str, options: MuxOptions, owned: Mapping[str, Whose], notes: Notes
) -> dict[str, Route]:
    """A name for each entry, in config order: the one that it would have by itself, unless that is `owned` by another
    or reads as if it were another server's; then one that is free. Who has a name keeps it."""
    wanted: list[tuple[str, Part, Entry]] = []
    for part in parts:
        once = {entry.name: entry for entry in reversed(part.lists.get(method, ()))}  # it knows one by each name
        listed = [entry for entry in part.lists.get(method, ()) if once[entry.name] is entry]
        wanted += [(fit_name(part.space(options) + one.shown, options.max_name_length), part, one) for one in listed]
    spaces = [part.space(options) for part in parts]
    rivals = {own: tuple(one for one in spaces if len(one) > len(own) and one.startswith(own)) for own in spaces}
    taken = {name: (part, one) for name, part, one in wanted if owned.get(name) == (part.server, one.name)}
    given = {(part.server, one.name): name for name, (part, one) in taken.items()}
    for name, part, entry in wanted:
        me, chosen = (part.server, entry.name), name
        if me in given:
            continue
        if name in taken or name in owned or name.startswith(rivals[part.space(options)]):
            candidates = _other_names(name, part, entry, options)
            chosen = next(one for one in candidates if one not in taken and owned.get(one, me) == me)
            notes.append((part.server, f"{name!r} is taken; its {entry.name!r} is offered as {chosen!r}"))
        given[me], taken[chosen] = chosen, (part, entry)
    return {given[part.server, one.name]: Route(part.server, one.name, one) for _, part, one in wanted}


def _other_names(name: str, part: Part, entry: Entry, options: MuxOptions) -> Iterator[str]:
    """With the server's own name before it, where another prefix was chosen; then hashes, the same in every run."""
    if part.prefix is not None:
        yield fit_name(f"{part.server}{options.separator}{entry.shown}", options.max_name_length)
    for salt in range(ENTRIES_MOST):
        mark = hashlib.sha256(encode([part.server, entry.name, salt])).hexdigest()[:6]
        yield f"{name[: options.max_name_length - 7]}_{mark}"


def which_fit(entries: list[tuple[str, int]], room: int) -> list[bool]:
    """Of a list's entries, by server and size: where all are more than fits, the servers with the most give way."""
    sizes, had, fit, most = collections.Counter[str](), collections.Counter[str](), list[bool](), room
    for server, size in entries:
        sizes[server] += size
    for number, size in enumerate(sorted(sizes.values())):
        if size * (len(sizes) - number) > room:
            most = room // (len(sizes) - number)
            break
        room -= size
    for server, size in entries:
        fit.append(had[server] + size <= most)
        had[server] += size if fit[-1] else 0
    return fit


def _rendered(
    method: str, named: Mapping[str, Route], room: int, notes: Notes, own: Iterable[bytes] = ()
) -> tuple[bytes, bytes | None]:
    """A list as legacy and, where that differs, modern hosts are shown it: our `own`, and as much as they take."""
    shown = {name: entry.left + encode(name) + entry.right for name, (_, _, entry) in named.items()}
    fit = which_fit([(route.server, len(shown[name]) + 1) for name, route in named.items()], room)
    left_out = collections.Counter(route.server for route, fits in zip(named.values(), fit, strict=True) if not fits)
    shown = dict(itertools.compress(shown.items(), fit))
    for server, count in left_out.items():
        why = f"{method} would be longer than host_message_mb; they can be called all the same"
        notes.append((server, f"{count} entries are left out: {why}"))
    key = LISTS[method].key.encode()
    result = b'{"%b":[%b]}' % (key, b",".join((*own, *shown.values())))
    differing = {
        name: entry.left + encode(name) + entry.plain
        for name, (_, _, entry) in named.items()
        if entry.plain is not None and name in shown
    }
    return result, b'{"%b":[%b]}' % (key, b",".join((*own, *(shown | differing).values()))) if differing else None


def merge(parts: list[Part], options: MuxOptions, owned: Names | None = None, taken: Iterable[str] = ()) -> Catalogue:
    """All parts, in config order, as one catalogue. `owned` names were given before, and of several servers that list a
    URI that one keeps it which had it before; no tool gets a `taken` name."""
    notes, names, results, plain = Notes(), Names(), dict[str, bytes](), dict[str, bytes]()
    named: dict[str, dict[str, Route]] = {}
    servers = {part.server for part in parts}
    ours = dict.fromkeys(taken, ("", ""))
    for method, kind in LISTS.items():
        former = {name: whose for name, whose in (owned or {}).get(method, {}).items() if whose[0] in servers}
        if kind.identity == "name":
            named[method] = _name_all(parts, method, options, former | ours, notes)
            given = {name: (server, own) for name, (server, own, _) in named[method].items()}
            names[method] = _bounded(former, given)
        else:  # URIs are never rewritten: results, links and MCP Apps refer to them
            named[method] = {}
            listed = [Route(part.server, one.name, one) for part in parts for one in part.lists.get(method, ())]
            for one in sorted(listed, key=lambda one: former.get(one.name, (one.server,))[0] != one.server):
                has = named[method].setdefault(one.name, one)
                if has.server != one.server:
                    notes.append((one.server, f"{one.name} is offered by {has.server} already and left out"))
            names[method] = {uri: (route.server, uri) for uri, route in named[method].items()}
        results[method], modern = _rendered(method, named[method], _room(options), notes)
        if modern is not None:
            plain[method] = modern
    bare: dict[str, Route | None] = {}
    for route in named["tools/list"].values():
        bare[route.name] = None if route.name in bare else route
    resources = {uri: route.server for uri, route in named["resources/list"].items()}
    with_page = [(one.page, part.server) for part in parts for one in part.lists.get("tools/list", ()) if one.page]
    had = (owned or {}).get("pages", {})
    with_page.sort(key=lambda one: had.get(one[0], one[1:])[0] != one[1])
    pages = dict(reversed(with_page))  # of several servers the first
    names["pages"] = {uri: (server, uri) for uri, server in pages.items()}
    templates = [(one.name, part.server) for part in parts for one in part.lists.get("resources/templates/list", ())]
    schemes: dict[str, list[str]] = {}
    for uri, server in (*resources.items(), *pages.items(), *templates):
        there = schemes.setdefault(uri.partition(":")[0], [])
        if server not in there:
            there.append(server)
    whose = named["resources/templates/list"]
    templates.sort(key=lambda one: (-len(re.sub(_EXPRESSION, "", one[0])), whose[one[0]].server != one[1]))
    tools, prompts = named["tools/list"], named["prompts/list"]
    return Catalogue(results, plain, tools, prompts, bare, resources, templates, pages, schemes, names, notes)


def _room(options: MuxOptions) -> int:
    return int(options.host_message_mb * MB) - EDGE  # for a list


def _bounded(former: dict[str, Whose], given: dict[str, Whose]) -> dict[str, Whose]:
    """Who has which name, also of those who do not offer it now; of each server no more than it may list."""
    count = collections.Counter(server for server, _ in given.values())
    kept = dict(given)
    for name, whose in former.items():
        if name not in kept and count[whose[0]] < ENTRIES_MOST:
            count[whose[0]] += 1
            kept[name] = whose
    return kept


class UriText:
    """A URI that is held against templates. Sets of places in it are the bits of a number, so that all that a template
    can mean is followed at once, and a character of it costs the same whatever the others are."""

    def __init__(self, uri: str) -> None:
        self._text = urllib.parse.quote(uri, safe=string.printable)  # as a literal of a template is written
        self._places: dict[str, int] = {}  # of each character
        self._all = (1 << len(self._text)) - 1

    def matches(self, template: str) -> bool:
        """RFC 6570: `{x}` stands for anything up to a slash, `{+x}` and `{x*}` for anything."""
        if len(template) > URI_MOST or len(self._text) > URI_MOST:
            return False
        ends = 1
        for number, piece in enumerate(re.split(_EXPRESSION, template)):
            if number % 2 == 0:
                ends = self._after(urllib.parse.quote(piece, safe=string.printable), ends)
                continue
            lead, is_any = _OPERATORS.get(piece[:1], ("", piece.endswith("*")))
            inside = self._all if is_any else self._all & ~self._at("/")
            starts = self._after(lead, ends)
            steps = (starts & inside) << 1  # one character at least
            reached = steps | ((inside + (steps & inside)) ^ inside)  # a carry goes as far as a run of ones does
            ends = ends | starts | reached if lead else reached  # one with an operator of its own may be empty
            if not ends:
                break
        return bool(ends >> len(self._text) & 1)

    def _after(self, literal: str, ends: int) -> int:
        for one in literal:
            ends = (ends & self._at(one)) << 1
            if not ends:
                break
        return ends

    def _at(self, one: str) -> int:
        if one not in self._places:
            self._places[one] = int("0" + "".join("01"[one == other] for other in reversed(self._text)), 2)
        return self._places[one]


# By an expression's first character: what then stands before its value, and whether that may have slashes.
_OPERATORS: Final = {"+": ("", True), ".": (".", False), ";": (";", False)} | {one: (one, True) for one in "#?&/"}


# ── tools found by what they do ──

FIND_TOOLS, CALL_TOOL = "mcpmux__find_tools", "mcpmux__call_tool"
LIMIT, LIMIT_MOST = 5, 20  # tools that are found in one go


def own_tool(name: str, description: str, required: str, properties: dict[str, Any], **hints: Any) -> bytes:
    schema = {"type": "object", "properties": properties, "required": [required]}
    return encode({"name": name, "description": description, "inputSchema": schema, "annotations": hints})


_FOUND_BY: Final[dict[str, Any]] = {
    "query": {"type": "string", "description": "What is to be done, in a few words: create issue"},
    "server": {"type": "string", "description": "Only tools of this server"},
    "limit": {"type": "integer", "minimum": 1, "maximum": LIMIT_MOST, "default": LIMIT},
}
_CALLED_BY: Final[dict[str, Any]] = {
    "name": {"type": "string", "description": "As it was found"},
    "arguments": {"type": "object", "description": "As its inputSchema says"},
}


def purpose(instructions: str, info: Fields) -> str:
    """What a server is for, in a line of its own words."""
    texts = [instructions, *(value_of(info.get(key)) for key in ("description", "title"))]
    lines = [line.strip(" #*=-\t") for text in texts if isinstance(text, str) for line in text.splitlines()]
    return in_a_line(next(filter(None, lines), ""))


def deferred(catalogue: Catalogue, options: MuxOptions, listed: set[str], about: Mapping[str, str]) -> Catalogue:
    """With a list of tools that has our own two, which stand for all, and of the others but these."""
    counts = collections.Counter(route.server for route in catalogue.tools.values())
    text = (
        f"Finds tools by what they do. Those of the servers below are not listed: search here, then call what was found"
        f" with {CALL_TOOL}. Servers (how many tools):\n" + "\n".join(_server_lines(about, counts))
    )
    find = own_tool(FIND_TOOLS, text, "query", _FOUND_BY, title="Find tools", readOnlyHint=True, openWorldHint=False)
    acts = {"readOnlyHint": False, "destructiveHint": True, "openWorldHint": True}
    what = f"Calls a tool that {FIND_TOOLS} has found."
    own = [find, own_tool(CALL_TOOL, what, "name", _CALLED_BY, title="Call a tool", **acts)]
    tools = {name: route for name, route in catalogue.tools.items() if name in listed}
    result, plain = _rendered("tools/list", tools, _room(options) - sum(map(len, own)), [], own)
    plains = {key: value for key, value in catalogue.plain.items() if key != "tools/list"}
    results, plains = catalogue.results | {"tools/list": result}, plains | ({"tools/list": plain} if plain else {})
    return msgspec.structs.replace(catalogue, results=results, plain=plains)


def _server_lines(about: Mapping[str, str], counts: Mapping[str, int]) -> list[str]:
    room = max(20, SERVERS_MOST // max(1, len(counts)) - 30)
    there = {name: textwrap.shorten(text, room, placeholder="…") for name, text in about.items() if counts[name]}
    return [f"- {name} ({counts[name]})" + (f": {text}" if text else "") for name, text in there.items()]


def unwrapped(fields: Fields) -> Fields:
    """The params of a call through `call_tool` as those of the tool's own. Raises `Misused`."""
    given, inner = object_of(fields.get("arguments")), without(fields, "arguments")
    name, arguments = value_of(given.get("name")), given.get("arguments", Raw(JSON_NULL))
    strange = without(given, "name", "arguments")
    if not isinstance(name, str):
        raise Misused(f"{CALL_TOOL} needs the name of a tool, as {FIND_TOOLS} gives it")
    if name in (FIND_TOOLS, CALL_TOOL):
        raise Misused(f"{name} is called directly, not through {CALL_TOOL}")
    if bytes(arguments) == JSON_NULL and not strange:
        return inner | {"name": given["name"]}
    if not is_object(arguments):
        keys = f": {', '.join(strange)}"[:TEXT_MOST] if strange else ""
        raise Misused(f"arguments must be an object, with all that {name[:TEXT_MOST]} is given{keys}")
    return inner | {"name": given["name"], "arguments": arguments}


class Found(Struct, frozen=True):
    name: str
    route: Route
    score: float = 0.0  # how well the tool fits
    words: Iterable[tuple[str, str]] = ()  # and by which: of the query, and of its own


def answer_found(found: list[Found]) -> bytes:
    """The result of `find_tools`: of tools that are too long, what can be said in short."""
    tools, room = list[bytes](), ANSWER_MOST - 100
    for one in found:
        fields = definition(one.route.entry)
        schema, told = fields["inputSchema"], {"name": one.name, "server": one.route.server}
        names = {key: {} for key in object_of(object_of(schema).get("properties"))}
        text = str(value_of(fields["description"]))
        in_short, least = _in_short(value_of(schema)), {"type": "object", "properties": names}
        for description, shape in ((text, schema), (text[:TEXT_MOST], in_short), ("", least)):
            form = encode(told | {"description": description, "inputSchema": shape})
            size = len(form) + len(encode(form.decode()))
            if size <= room:
                tools.append(form)
                room -= size
                break
    body = b'{"tools":[%b]}' % b",".join(tools)
    return b'{"content":[{"type":"text","text":%b}],"structuredContent":%b}' % (encode(body.decode()), body)


def _in_short(schema: Any, deep: int = 32) -> Any:
    """A schema without its words for people, and no deeper than models read."""
    if deep == 0:
        return {}
    if isinstance(schema, list):
        return [_in_short(one, deep - 1) for one in schema]
    if not isinstance(schema, dict):
        return schema
    words = ("description", "title", "$comment")
    kept = {key: one for key, one in schema.items() if key not in words or not isinstance(one, str)}
    return {key: _in_short(one, deep - 1) for key, one in kept.items()}


# What people say and tools call otherwise: the words of a row stand for each other; before `>`, for those after it.
_ALIKE_ROWS: Final = """
    list show get read view fetch retrieve display see / search find lookup query / delete remove drop erase destroy
    clear discard purge / create add new make insert open generate post / update edit modify change set alter patch
    replace / rename move / copy duplicate clone / run execute invoke start launch trigger / stop kill terminate end
    cancel abort close / cancel > delete remove / upload push send put publish / download pull fetch export save /
    send post write publish message / repo repository / dir folder directory / db database sql / doc docs document
    documentation page / config configuration settings option preference / env environment / var variable / param
    parameter argument / auth authentication login credential / k8s kubernetes / image img picture photo screenshot /
    message msg text / org organization / info information detail metadata / permission access role / package pkg
    dependency library module / error err exception failure / history log logs / count number total / diff compare
    difference / web internet online / website site page url link / issue ticket bug / task todo job / user member
    person people account / comment reply note / email mail / event meeting appointment / chart graph plot diagram /
    summarize summary / convert transform / remember memory store save / name title / merge combine join / schema
    structure / collection table / row record entry item document / retry rerun restart again / put > create add
    insert upload set update append / give > set add assign / throw bin trash rid away > delete remove drop / tell say
    said > post send message comment / write > create add send append / draw > generate chart diagram create / know >
    search find / remember > create add entity observation / forget > delete memory entity / switch turn > toggle
    checkout set control / press touch tap push hit > click press tap / phone > mobile device / program app > process
    app application / problem > issue error / schedule agenda > calendar event / free busy > availability freebusy
    free / town city place address > address location geocode place / drive walk bike route far > directions route
    travel isochrone distance / high height > elevation / rain snow sunny warm cold > weather forecast temperature /
    money cost worth > price / company > ticker stock / earn earning > income earnings revenue / undo > reset revert
    rollback / former previous before back > previous back history rollback / save keep > commit write store set /
    changed change > diff update history commit / wrong fail crash broken mistake > error failure log / slow slowly
    fast faster speed > performance optimize index analyze trace / big bigger large small smaller > resize size /
    share > permission share / bold italic colour > format style / tab > sheet worksheet / line > row text paragraph /
    said spoken video film > transcript youtube caption / lamp > light / security hole > vulnerability scan security /
    who > user member author profile / where > location search / when > date time history / team colleague > member
    user channel / cluster > kubernetes node pod / copies > replica scale / answer > reply / lately recent last
    yesterday > recent history latest / accept > approve merge / propose > create pull merge request / short > summary
    / look > search find get list / choose pick > select option / box field > input fill / whole pages > crawl all /
    news > search web / several many > multiple batch / kind > type schema / fake > mock / tick > check checklist /
    done finished > complete status transition / attached connected > available / again > rerun retry / why > log
    error describe explain analyze / ask > query search / check > get status validate / clean > clear / finish >
    complete close / invite > add member / near nearby around > search place nearest / restaurant shop hotel cafe >
    place category search / way path > route directions / talk chat conversation > message channel thread history /
    code source > file repository / version > commit tag release history / computer machine > system process / note >
    file document page content / reminder remind > task event / everything > list all / column > field / field >
    column / cell > range / spreadsheet > workbook excel sheet / workbook > spreadsheet / slide deck > presentation /
    presentation > slide / wiki > page article / article > page / build > pipeline job workflow / pipeline > workflow
    build / workflow > pipeline / deploy > release rollout deployment / pr > pull request / mr > merge request /
    ticket > card task / card > task / inbox > email / alert > monitor / scrape > extract crawl fetch / crawl > scrape
    map / pdf > document paper / subtitle > transcript / container > docker pod / terminal shell > command process /
    command > process / folder > list / colleague boss > email / place > location / hours > time worklog / visit go >
    navigate open url / button > click / vulnerability > security / chart > visualize / value > key get / edit > write
    / write > edit / group > channel / picture > figure / compare > diff / install > add / person > contact / memory >
    knowledge entity / fact > observation entity / weather > forecast climate / light lamp heating door room kitchen
    bedroom > entity service state device / temperature > climate weather
"""
_PHRASES: Final = """
    how many > count / how long > duration / to-do > task / drop-down > select / thumbs up > reaction emoji / look up >
    search / log in > login / set up > create / turn into > convert / get rid of > delete / does it take > /
    another name > rename / what's in > list / what's on > list / what is in > list / what is on > list /
    working copy > status / add a line > append line
"""
_OFTEN: Final = """
    a an the of to in on at for from with by and or is are was were be been do does did have has had my me i we our us
    you your it its this that these those they their he she his her somebody someone something please can could would
    should want need how what which there here some any all into as if so about now then than too very just one ones
    thing way let will may might up out off s t m re ll old current no not only more most below above under between
"""
_STOP: Final = frozenset(_OFTEN.split())
_PIECE: Final = re.compile(r"[^\W_]+")
_CAMEL: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")
_ENDING: Final = re.compile(r"(?<=.{7})ations?$|(?<=.{4})ments?$|(?<=.{3})(?:ions?|ings?|ies|ied|ers?|ed|es|s|e|y)$")


@functools.lru_cache(maxsize=16384)
def _stems(piece: str) -> tuple[str, ...]:
    """A piece of text as it is looked for: whole, and what it is put together from; not at all if all texts have it."""
    if piece.lower() in _STOP:
        return ()
    parts = _CAMEL.findall(piece[:40])
    return tuple(dict.fromkeys(stem(one.lower()) for one in (piece[:40], *(parts if len(parts) > 1 else ()))))


def stem(word: str) -> str:
    """What words of one family have in common, in English: an ending goes, and what stood before it."""
    word = _ENDING.sub("", _ENDING.sub("", word))
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


@functools.cache
def _alike() -> dict[str, set[str]]:
    """By stem what may stand for it."""
    found: dict[str, set[str]] = {}
    for row in _ALIKE_ROWS.split("/"):
        said, _, meant = row.partition(">")
        for word in said.split():
            found.setdefault(stem(word), set()).update(stem(other) for other in (meant or said).split())
    return found


_IN_NAME: Final = 3.5  # what a word in a tool's name counts; all other weights were found by trying (test_found.py)


def _texts(name: str, route: Route) -> Iterator[tuple[float, str]]:
    """What a tool says of itself, and how much each text counts."""
    tool = value_of(route.entry.left + encode(name) + route.entry.right, {})
    meta, hints = (tool.get(key) if isinstance(tool.get(key), dict) else {} for key in ("_meta", "annotations"))
    yield _IN_NAME, route.entry.shown
    for text in (tool.get("title"), hints.get("title"), meta.get(SEARCH_HINT)):
        yield 2.0, text if isinstance(text, str) else ""
    description = str(tool.get("description"))
    yield 1.2, description[:200]
    yield 0.4, description[200:SEARCHED_MOST]
    schemas = [tool.get("inputSchema")]
    for schema in schemas:  # grows while it is read
        properties = schema.get("properties") if isinstance(schema, dict) else None
        if isinstance(properties, dict):
            below = [one for one in properties.values() if isinstance(one, dict)]
            yield 0.5, " ".join(properties)
            yield 0.2, " ".join(one["description"] for one in below if isinstance(one.get("description"), str))
            schemas += [*below, *(one.get("items") for one in below)]


class Index:
    """Tools by their words: BM25 over weighted texts, in which a name is as good however long the rest is."""

    def __init__(self, tools: Mapping[str, Route], about: Mapping[str, str]) -> None:
        self._tools = list(tools.items())
        postings = collections.defaultdict[str, list[tuple[int, float]]](list)
        self._of: dict[str, list[int]] = {}  # by server
        counted, self._names = list[dict[str, float]](), list[set[str]]()
        for at, (name, route) in enumerate(self._tools):
            self._of.setdefault(route.server, []).append(at)
            weights, left = dict[str, float](), SEARCHED_MOST
            for weight, text in _texts(name, route):
                for one in itertools.chain.from_iterable(map(_stems, set(_PIECE.findall(text[:left])))):
                    weights[one] = weights.get(one, 0.0) + weight
                left -= len(text)
                if left <= 0:
                    break
            counted.append(weights)
            self._names.append({one for one, weight in weights.items() if weight >= _IN_NAME})
        self._servers = {one: {stem for piece in _PIECE.findall(one) for stem in _stems(piece)} for one in self._of}
        self._about = {
            one: {stem for piece in _PIECE.findall(about.get(one, "")) for stem in _stems(piece)} for one in self._of
        }
        mean = sum(map(len, counted)) / max(1, len(counted))
        for at, weights in enumerate(counted):
            slow = 0.7 + 0.3 * len(weights) / mean
            for one, weight in weights.items():
                named = _IN_NAME if weight >= _IN_NAME else 0.0
                counts = (weight - named) / slow + named
                postings[one].append((at, counts / (counts + 2.0)))
        self._postings, self._sorted = dict(postings), sorted(postings)

    def find(self, query: str) -> list[Found]:
        """The best first: what has a fair part of what the best could have."""
        for row in " ".join(_PHRASES.split()).split(" / "):
            said, _, meant = row.partition(" > ")
            query = re.sub(said, meant, query, flags=re.IGNORECASE)
        scores, words, possible = dict[int, float](), dict[int, list[tuple[str, str]]](), 0.0
        asked = {one: piece for piece in _PIECE.findall(query[:TEXT_MOST]) for one in self._terms(piece)}
        for one, piece in asked.items():
            best = self._matches(one)
            possible += max(best.values())[0] if best else 0.0
            for at, (score, term) in best.items():
                scores[at] = scores.get(at, 0.0) + score
                words.setdefault(at, []).append((piece, term))
        for at in scores:
            names, server = self._names[at], self._tools[at][1].server
            names = names - self._servers[server] or names
            scores[at] *= 1 + len({term for _, term in words[at]} & names) / len(names)
            scores[at] *= 1 + 0.03 * min(5, len(self._about[server] & asked.keys()))
        order = sorted((at for at in scores if scores[at] >= 0.2 * possible), key=lambda at: (-scores[at], at))
        return [Found(*self._tools[at], scores[at], words[at]) for at in order]

    def _matches(self, one: str) -> dict[int, tuple[float, str]]:
        """By tool, how well it fits a word, and by which of its own. A word with many others for it says less."""
        near = self._near(one)
        vague = 2 * self._rarity(len({at for term in near for at, _ in self._postings[term]}))
        best: dict[int, tuple[float, str]] = {}
        for term, weight in near.items():
            rarity = self._rarity(len(self._postings[term]))
            rarity = rarity if term == one else weight * min(rarity, vague)
            for at, impact in self._postings[term]:
                if at not in best or rarity * impact > best[at][0]:
                    best[at] = rarity * impact, term
        for server, names in self._servers.items():
            if any(name == one or (len(one) > 3 and name.startswith(one)) for name in names):  # as if its tools were
                value = self._rarity(len(self._of[server])) * _IN_NAME / (_IN_NAME + 2.0)
                best |= dict.fromkeys(self._of[server], (value, one))
        return best

    def _rarity(self, having: int) -> float:
        return math.log(1 + (len(self._tools) - having + 0.5) / (having + 0.5))

    def _terms(self, piece: str) -> tuple[str, ...]:
        whole, *parts = _stems(piece) or ("",)
        return (whole,) if whole in self._postings or not parts else tuple(parts)

    def _near(self, one: str) -> dict[str, float]:
        """The terms that stand for a word of a query, and how well."""
        near = dict.fromkeys(_alike().get(one, ()), 0.65) | {one: 1.0}
        first = bisect.bisect_left(self._sorted, one)
        begun = itertools.takewhile(lambda term: term.startswith(one), self._sorted[first : first + 20])
        near |= {term: 0.4 for term in begun if term not in near and len(one) > 2}
        near = {term: weight for term, weight in near.items() if term in self._postings}
        return near or dict.fromkeys(self._spelt(one), 0.4)

    def _spelt(self, one: str) -> list[str]:
        """The term that is spelt almost so."""
        start, end = (bisect.bisect_left(self._sorted, mark) for mark in (one[:1], one[:1] + "\U0010ffff"))
        near = [term for term in self._sorted[start:end] if abs(len(term) - len(one)) < 3]
        return difflib.get_close_matches(one, near, 1, 0.8) if len(one) > 3 else []


def spread(found: Iterable[Found]) -> list[Found]:
    """So that no server crowds out another: what is too much of one comes after what others have."""
    (among, most), ordered, had = CROWD, list[Found](), collections.Counter[str]()
    waiting: list[Found] = []
    for one in found:
        had[one.route.server] += 1
        waiting += [one] if had[one.route.server] <= LIMIT_MOST else []
    while waiting and len(ordered) < LIMIT_MOST:
        lately = collections.Counter(one.route.server for one in ordered[len(ordered) - len(ordered) % among :])
        ordered.append(waiting.pop(next((at for at, one in enumerate(waiting) if lately[one.route.server] < most), 0)))
    return ordered


class ToolSearch:
    """The tools that a host does not see in its list, and what their servers are for; indexed when first asked."""

    def __init__(self, tools: Mapping[str, Route], about: Mapping[str, str]) -> None:
        self._tools, self._about = tools, about

    @functools.cached_property
    def index(self) -> Index:
        return Index(self._tools, self._about)

    def find(self, given: Mapping[str, Any], servers: Iterable[str]) -> list[Found]:
        """By what `find_tools` was given. Raises `Misused`."""
        query, server, limit = (given.get(key) for key in ("query", "server", "limit"))
        if not isinstance(query, str):
            raise Misused('find_tools needs a query, in a few words: "create issue"')
        most = min(max(limit, 1), LIMIT_MOST) if isinstance(limit, int) else LIMIT
        if not server:
            return spread(self.index.find(query))[:most]
        if server not in servers:
            near = nearest(name := str(server)[:TEXT_MOST], servers)
            hint = f" (did you mean {near}?)" if near else f"; there are: {', '.join(servers)}"
            raise Misused(f"there is no server {name!r}{hint}")
        found = self.index.find(query) if query.split() else itertools.starmap(Found, self._tools.items())
        return [one for one in found if one.route.server == server][:most]

    def nothing_found(self, given: Mapping[str, Any], lost: Iterable[str]) -> bytes:
        query, server = str(given["query"])[:TEXT_MOST], given.get("server")
        known = {piece.lower() for route in self._tools.values() for piece in _PIECE.findall(route.entry.shown)}
        like = [near for piece in _PIECE.findall(query) if (near := nearest(piece.lower(), known))]
        counts = collections.Counter(route.server for route in self._tools.values())
        lines = [
            f"No tool{f' of {server}' if server else ''} fits {query!r}."
            + (f" Tools have words like these: {', '.join(like)}." if like else ""),
            "Say in other words what is to be done (a verb and a thing), or look through one server:",
            *(_server_lines(self._about, counts)),
            *lost,
        ]
        text = encode("\n".join(lines)[: 2 * SERVERS_MOST])
        return b'{"content":[{"type":"text","text":%b}],"structuredContent":{"tools":[]}}' % text


class View(NamedTuple):
    catalogue: Catalogue  # what one host is shown of it all
    search: ToolSearch | None = None  # by which most tools are to be found


# ══ 6. Policy ════════════════════════════════════════════════════════════════════════════════════════════════════════
# Who may answer what a server asks: the host, mcpmux itself, a model of one's own, or nobody. Values in, values out.


class Forward(Struct, frozen=True):
    params: Raw | bytes | UnsetType  # with these it is put to the host


class Answer(Struct, frozen=True):
    result: bytes


class Locally(Struct, frozen=True):
    """A model of the person's own answers it."""


class OnPage(Struct, frozen=True):
    params: Fields  # for the person, who answers it on the page of mcpmux


Verdict = Forward | Answer | Locally | OnPage
QUESTIONS: Final = ("sampling/createMessage", "elicitation/create", "roots/list")
DEPRECATED: Final = ("sampling/createMessage", "roots/list")  # SEP-2577; removed from 2027-07-28 on at the earliest
DECLINE: Final = b'{"action":"decline"}'
CANCEL: Final = b'{"action":"cancel"}'
_NO_SAMPLING: Final = {
    "auto": "the host declared none, and there is no model of your own (`mcpmux check` says more)",
    "host": 'the host declared none, and its table says sampling = "host"',
    "local": 'its table says sampling = "local", and there is no model of your own (`mcpmux check` says more)',
    "off": 'its table says sampling = "off"',
    "unasked": "the host declared none, and you can be asked nowhere whether your model may be used, or have said no "
    "(`mcpmux check` says more)",
}


def judge_question(
    method: str,
    params: Raw | UnsetType,
    server: str,
    options: ServerOptions,
    host: Fields,
    told: Fields,
    own: Own = NOTHING_OWN,
) -> Verdict:
    """What becomes of a server's question, given what the host of this call declared and what that server was told.
    Raises `RpcError` for a refusal (codes: 2025-11-25, client/elicitation, client/sampling, client/roots)."""
    match method:
        case "roots/list" if offers(host, "roots"):
            return Forward(params)
        case "roots/list" if options.roots:
            return Answer(table_roots(options))
        case "roots/list":
            raise RpcError(METHOD_NOT_FOUND, "the host has no roots")
        case "sampling/createMessage":
            if not offers(told, "sampling"):
                why = _NO_SAMPLING["unasked" if own.model and options.sampling == "auto" else options.sampling]
                raise RpcError(METHOD_NOT_FOUND, f"sampling is not offered to {server}: {why}")
            asked = fields_of(params)
            with_tools = any(value_of(asked.get(key)) is not None for key in ("tools", "toolChoice"))
            if with_tools and not offers(told, "sampling", "tools"):
                raise RpcError(INVALID_PARAMS, "the host did not declare sampling.tools")
            if is_sampled_locally(host, options, own, with_tools=with_tools):
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
            if is_asked_on_page(host, options, own, mode):
                return OnPage(asked)
            if mode not in elicitation_modes(host) or options.elicitation == "local":
                return Answer(DECLINE)
            return Forward(encode(asked | {"message": named_message(asked, server)}))
        case _:
            raise Bug(f"{method} is no question")


def waits_for_approval(entry: Entry, options: ServerOptions, *, through: bool = False) -> bool:
    """Whether a call of this tool waits for the person. A host that has always allowed `call_tool` has allowed all
    tools: what comes `through` it waits unless it only reads, or its table says that nothing does."""
    hints = object_of(definition(entry).get("annotations")) if through or options.approve == "destructive" else {}
    is_read_only = value_of(hints.get("readOnlyHint")) is True
    if through and options.approve is not False and not is_read_only:
        return True
    match options.approve:
        case bool() | None:
            return bool(options.approve)
        case "destructive":
            return not is_read_only and value_of(hints.get("destructiveHint")) is not False
        case patterns:
            return any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in patterns)


OURSELVES: Final = "mcpmux"  # who asks what mcpmux asks of its own
DECISIONS: Final = {"once": "this call", "always": "this tool until mcpmux ends", "no": "deny"}
CHANGED: Final = {"yes": "use them", "no": "go on without them"}
MODELS_CHANGED: Final = "mcpmux: the models of the config have changed; ask again"
REJECTED: Final = RpcError(-1, "User rejected sampling request")  # 2025-11-25, client/sampling
CONSENTS: Final = {
    "once": "this one",
    "run": "this server until mcpmux ends",
    "always": "always this server",
    "no": "deny",
    "never": "deny this server",
}


def who_allows(options: ServerOptions, approve: str, decided: str) -> str | None:
    """That a server uses the person's model: the config or the person; "" if that is denied; None: the person is to be
    asked. `decided` is what they have said of it so far."""
    if decided == "never":
        return ""
    if approve == "never" or (approve == "first" and options.sampling == "local"):
        return "config"
    return "person" if decided and approve == "first" else None


def consents(approve: str) -> Mapping[str, str]:
    return CONSENTS if approve == "first" else {key: CONSENTS[key] for key in ("once", "no", "never")}


def only_text(params: dict[str, Any]) -> str | None:
    """The text of a request that has no other, which the person may change."""
    messages = params.get("messages")
    content = messages[0].get("content") if isinstance(messages, list) and len(messages) == 1 else None
    block = content[0] if isinstance(content, list) and len(content) == 1 else content
    return block.get("text") if isinstance(block, dict) and block.get("type") == "text" else None


def with_text(params: dict[str, Any], text: str) -> dict[str, Any]:
    """That request with another text."""
    message = params["messages"][0]
    return params | {"messages": [message | {"content": {"type": "text", "text": text}}]}


def in_words(block: Any) -> str:
    """A part of a message to or from a model, as text for a person."""
    match block:
        case list():
            return "\n".join(map(in_words, block))
        case {"type": "text", "text": str(text)}:
            return harmless(text)
        case {"type": "image" | "audio" as kind, "data": str(data), **rest}:
            return f"({kind}, {rest.get('mimeType')}, {len(data) * 3 // 4096} KB)"
        case _:
            return harmless(msgspec.json.format(encode(block)).decode())


def sampling_in_words(asked: dict[str, Any], reply: Any) -> str:
    """What would be sent to a model and what that may cost, or what it has answered, for a host to show."""
    params, usd, models = asked["params"], asked.get("usd"), asked.get("models") or ["?"]
    price = "nobody knows what it costs" if usd is None else f"it costs ${usd:.4f} at most"
    tools = [str(tool.get("name")) for tool in params.get("tools") or ()]
    lines = [f"Model: {', else '.join(models)}; {price}; at most {params.get('maxTokens')} tokens"]
    lines += [f"Tools: {', '.join(tools)}"] if tools else []
    lines += [f"System prompt: {params['systemPrompt']}"] if params.get("systemPrompt") else []
    lines += [f"{one['role']}: {in_words(one['content'])}" for one in params["messages"]]
    lines += [f"The model's answer: {in_words(reply.get('content'))}"] if reply else []
    return harmless("\n".join(lines))


def choice_form(message: str, choices: Mapping[str, str], **more: Any) -> Fields:
    """A question of ours with these answers, and with more fields, as an elicitation."""
    decision = {"type": "string", "title": "Decision", "oneOf": [{"const": k, "title": v} for k, v in choices.items()]}
    schema = {"type": "object", "properties": {"decision": decision, **more}, "required": ["decision"]}
    return object_of(encode({"message": message, "requestedSchema": schema}))


def decision_in(reply: Reply, decisions: Iterable[str], otherwise: str) -> str:
    """What the person has decided: a refusal, unless an accepted form says what is allowed."""
    said = object_of(reply.result)
    decision = value_of(object_of(said.get("content")).get("decision"))
    is_accepted = value_of(said.get("action")) == "accept" and isinstance(decision, str)
    return decision if is_accepted and decision in decisions else otherwise


def why_undecided(reply: Reply) -> str:
    """Why the person has decided nothing; "" where they have."""
    said = object_of(reply.result)
    if value_of(said.get("action")) in ("accept", "decline"):
        return ""
    why = value_of(said.get("reason")) or reply.failure.removeprefix("mcpmux: ")
    return str(why or "the question was dismissed")


def page_question(asker: str, call: str, asked: Fields, waits: float, **more: Any) -> Fields:
    """An elicitation as the page is told of it (section 21 says how)."""
    told = ("mode", "message", "requestedSchema", "url")
    about: dict[str, Any] = {"asker": asker, "call": call, "mode": "form", "waits": waits, "opens": bool(call)}
    about |= {key: asked[key] for key in told if key in asked} | more
    return {key: value if isinstance(value, Raw) else Raw(encode(value)) for key, value in about.items()}


def said_on_page(reply: Reply) -> Reply:
    """An elicitation's result. Whatever went wrong is no answer, and never accept."""
    said = object_of(reply.result)
    action = value_of(said.get("action"))
    if action == "accept":
        return Reply(Raw(encode({key: said[key] for key in ("action", "content") if key in said})), None)
    return Reply(Raw(DECLINE if action == "decline" else CANCEL), None)


def named_message(asked: Fields, server: str) -> Raw:
    """The host has to show which server asks (client/elicitation)."""
    return Raw(encode(f"[{server}] {text_in(asked, 'message')}"))


def limit_reached(limit: str, text: str, wait: float | None = None) -> RpcError:
    """The refusal of a request over one of `[sampling.limits]`; `wait` is in seconds."""
    data = {"limit": limit} | ({} if wait is None else {"retryAfterSeconds": wait})
    return RpcError(INTERNAL_ERROR, f"mcpmux: sampling limit reached: {text} (sampling.limits.{limit})", data)


def pages_in(error: Raw | bytes | None) -> list[Fields]:
    """Those that a refusal (-32042) wants visited."""
    body = object_of(error)
    if value_of(body.get("code")) != URL_ELICITATION_REQUIRED:
        return []
    return [object_of(one) for one in items_of(object_of(body.get("data")).get("elicitations"))]


def fit_refusal(error: Raw | bytes, server: str, options: ServerOptions) -> Reply:
    """A server's error as a legacy host may see it: one that names pages to visit with the server's name in what the
    person is told, and not at all where the table has switched that off."""
    if not (pages := pages_in(error)):
        return Reply(None, error)
    if options.elicitation == "off":
        return failed(f'mcpmux: {server} needs a page to be visited first, and its table says elicitation = "off"')
    named = [one | {"message": Raw(encode(f"[{server}] {value_of(one.get('message'), '')}"))} for one in pages]
    body = object_of(error)
    data = object_of(body.get("data")) | {"elicitations": Raw(encode(named))}
    return Reply(None, encode(body | {"data": Raw(encode(data))}))


def judge_all(
    requests: Fields, server: str, options: ServerOptions, host: Fields, told: Fields, own: Own = NOTHING_OWN
) -> dict[str, Verdict]:
    """What becomes of each question that a modern server asks at once. Raises `RpcError` where it may not ask one."""
    if len(requests) > QUESTIONS_MOST:
        raise RpcError(INTERNAL_ERROR, f"{len(requests)} questions at once, more than {QUESTIONS_MOST}")
    verdicts: dict[str, Verdict] = {}
    for key, request in zip(requests, map(object_of, requests.values()), strict=True):
        method, params = value_of(request.get("method")), request.get("params", UNSET)
        if method not in QUESTIONS:
            raise RpcError(INTERNAL_ERROR, f"an input request {str(method)[:100]!r}, which nobody knows")
        verdicts[key] = judge_question(method, params, server, options, host, told, own)
    return verdicts


def judge_task(
    body: Fields, server: str, options: ServerOptions, host: Fields, told: Fields
) -> tuple[Fields, dict[str, Raw] | None]:
    """A modern server's task that asks while it runs (the tasks extension, tasks/get and notifications/tasks), as the
    host may see it; and what is answered here, by question. None: it asked for what it may not, and is to be ended."""
    shown, answered = Fields(), dict[str, Raw]()
    requests = object_of(body.get("inputRequests"))
    try:
        for key, verdict in judge_all(requests, server, options, host, told).items():
            if isinstance(verdict, Answer):
                answered[key] = Raw(verdict.result)
            elif isinstance(verdict, Forward):
                params: Fields = {} if verdict.params is UNSET else {"params": Raw(verdict.params)}
                shown[key] = Raw(encode(object_of(requests[key]) | params))
    except RpcError as wrong:
        error = error_body(RpcError(INTERNAL_ERROR, f"mcpmux: {server} asked in vain: {wrong}"))
        failed = {"status": Raw(b'"failed"'), "error": Raw(error)}
        return without(body, "inputRequests") | failed, None
    if shown:
        return body | {"inputRequests": Raw(encode(shown))}, answered
    return without(body, "inputRequests") | {"status": Raw(b'"working"')}, answered


def table_roots(options: ServerOptions) -> bytes:
    """The roots of a server's table; the config has made them `file://` URIs."""
    return encode({"roots": [{"uri": uri} for uri in options.roots]})


def embedded(method: str, params: Raw | bytes | UnsetType) -> Raw:
    """A legacy server's request as one of `inputRequests`: without what only holds between its sender and us."""
    fields = without(object_of(params), "task", "elicitationId")
    fields = with_meta(fields, without(object_of(fields.get("_meta")), "progressToken", RELATED_TASK))
    return Raw(encode({"method": method, "params": fields} if fields else {"method": method}))


def identity(method: str, params: Fields) -> tuple[str, dict[str, Any]]:
    """What a retry has to have in common with the call it continues, as values: spelling does not matter."""
    return method, {key: value_of(raw, bytes(raw)) for key, raw in without(params, "_meta", *OF_RETRY).items()}


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


STATE_PREFIX: Final = "mcpmux:"  # of a `requestState` that is ours


def input_required(questions: Mapping[str, Raw], state: str) -> Raw:
    """The result that asks the host (2026-07-28, basic/patterns/mrtr)."""
    meta = {SERVER_KEY: IMPLEMENTATION}
    body = {"resultType": "input_required", "inputRequests": questions, "requestState": state, "_meta": meta}
    return Raw(encode(body if questions else {key: body[key] for key in body if key != "inputRequests"}))


# ══ 7. Calls ═════════════════════════════════════════════════════════════════════════════════════════════════════════
# What goes into the core and comes out of it, and the doors that all parts share: `Out` for effects and timers,
# `InFlight` for requests that wait for an answer, `Exchange` for what takes several of them. `Facts` is what is known
# of a server. Knows no method of the protocol, nor which parts there are.

FOREVER: Final = float("inf")


class Peer(Enum):
    """Whom we speak with besides the servers, which go by their names in the config."""

    HOST = "host"
    TURN = "turn"  # nobody yet: a request for a model that waits while its server has as many as it may
    NEXT = "host's next request"  # owes the answer to a question that a modern host has, or will have
    SAMPLER = "sampler"  # a child process of ours, as is the
    PAGE = "page"


Name = str | Peer
TimerKey = tuple[str, Name]


def shown(name: Name) -> str:
    return name if isinstance(name, str) else name.value


def called(name: Name) -> str:
    """In a sentence."""
    return name if isinstance(name, str) else f"the {name.value}"


# ── events ──


class HostLines(Struct):
    lines: list[bytes | TooLong]  # whole ones, as many as came at once


class HostGone(Struct):
    reason: str  # it closed its end, or mcpmux was told to stop


class OfRun(Struct):
    server: Name  # or a child process of ours
    run: int


class ServerUp(OfRun):
    """The process runs and can be written to."""


class ServerLines(OfRun):
    lines: list[bytes | TooLong]


class ServerClogged(OfRun):
    clogged: bool  # its outbox went over its limit; or that is empty again


class ServerGone(OfRun):
    reason: str  # why it is over, or never came to be, as in «git exited with code 1»
    hint: str  # what its person can do
    stderr: list[str]
    unread: list[bytes] = []  # requests that it has certainly not taken: they are for its next run


class ConfigChanged(Struct):
    """The file says something else; what it says as a whole. The fields are those that `Core` is made with."""

    options: MuxOptions
    servers: dict[str, ServerOptions]
    broken: dict[str, str]
    sampling: SamplingOptions | None
    hosts: dict[str, HostOptions] = {}


class ConsentsRead(Struct):
    consents: dict[str, str]  # by server, as it was decided for what it is now: "always" or "never"


class PinsRead(Struct):
    pins: Pins  # another mcpmux, or a command, has accepted tools


class PageWanted(Struct):
    """The person wants to see it."""


class TryAgain(Struct):
    server: str  # what kept it from serving may be over: somebody has logged in


class TimerDue(Struct):
    key: TimerKey


ServerEvent = ServerUp | ServerLines | ServerClogged | ServerGone
Event = HostLines | HostGone | ServerEvent | ConfigChanged | PinsRead | ConsentsRead | PageWanted | TryAgain | TimerDue


# ── effects ──


class SendHost(Struct):
    source: Name  # whose queue: a server's, or the host's own for what mcpmux itself says
    line: bytes


class SendServer(Struct):
    server: Name
    line: bytes


class Start(OfRun): ...


class Stop(OfRun): ...


class SaveCatalogue(Struct):
    server: str
    known: Known  # now, for the cache


class SaveNames(Struct):
    names: Names  # whoever had one first keeps it, also in the next run


class SaveConsent(Struct):
    server: str
    decision: str  # of the person, on its use of their model: "always" or "never"


class SavePins(Struct):
    pins: Pins  # what was accepted besides


class SetTimer(Struct):
    key: TimerKey
    at: float | None  # None: forget it


class Log(Struct):
    level: str
    text: str


Saved = SaveCatalogue | SaveNames | SavePins | SaveConsent
Effect = SendHost | SendServer | Start | Stop | Saved | SetTimer | Log


class Out:
    """The one door for effects and timers. Knows peers by name and which do not read; reads lines for the trace."""

    def __init__(self) -> None:
        self.now = 0.0  # the time of the event that is handled
        self.is_tracing = False
        self.clogged: set[Name] = set()  # servers that are sent nothing: they ask, or are asked, and do not read
        self.effects: list[Effect] = []  # of that event
        self._timers: dict[TimerKey, float] = {}
        self._noted: dict[Name, int] = {}  # lines that a peer has caused, in this second

    def put(self, effect: Effect) -> None:
        self.effects.append(effect)

    def to_host(self, source: Name, line: bytes) -> None:
        if self.is_tracing:
            self.trace(">", Peer.HOST, label(line), len(line))
        self.effects.append(SendHost(source, line))

    def to_server(self, name: Name, line: bytes) -> bool:
        """Whether it is sent."""
        if name in self.clogged:  # what it would be told must not pile up
            self.note(name, f"does not read; {label(line)} was dropped", "debug")
            return False
        if self.is_tracing:
            self.trace(">", name, label(line), len(line))
        self.effects.append(SendServer(name, line))
        return True

    def log(self, level: str, text: str) -> None:
        self.effects.append(Log(level, text if len(text) <= EDGE else f"{text[:EDGE]}…"))  # it may quote a peer

    def note(self, peer: Name, text: str, level: str = "warning") -> None:
        """What a peer causes is told so many times a second, then counted: it could fill the log."""
        count = self._noted[peer] = self._noted.get(peer, 0) + 1
        if count == 1:
            self.timer("noted", peer, self.now + 1)
        if count <= NOTES_MOST:
            self.log(level, f"{shown(peer)}: {text}")

    def noted(self, peer: Name) -> None:
        more = self._noted.pop(peer, 0) - NOTES_MOST
        if more > 0:
            self.log("warning", f"{shown(peer)}: {more} more lines within a second are not told")

    def trace(self, arrow: str, peer: Name, what: str, size: int) -> None:
        self.log("trace", f"{arrow} {shown(peer)} {what} {size} bytes")

    def survive(self, step: Callable[..., None], *arguments: Any) -> bool:
        """A bug of ours costs what shows it. What was done before it stands, and everything else is served on."""
        try:
            step(*arguments)
            return True
        except Exception as bug:
            self.bug(bug)
            return False

    def bug(self, bug: Exception) -> None:
        self.log("error", f"a bug in mcpmux {__version__}, please report it: {bug!r} in {way_of(bug)}")

    def timer(self, kind: str, name: Name, at: float | None) -> None:
        """Sets it, in place of what it was set to; None: it is not to come."""
        key = (kind, name)
        if at is not None:
            self._timers[key] = at
        elif self._timers.pop(key, None) is None:
            return
        self.effects.append(SetTimer(key, at))

    def no_timers(self, name: Name, kinds: Iterable[str]) -> None:
        for kind in kinds:
            self.timer(kind, name, None)

    def due_at(self, kind: str, name: Name) -> float:
        return self._timers.get((kind, name), FOREVER)

    def is_due(self, key: TimerKey) -> bool:
        """Takes a timer whose time has come; one that some clock has told too early is set again."""
        if (at := self._timers.get(key)) is None:
            return False
        if at > self.now:
            self.effects.append(SetTimer(key, at))
            return False
        del self._timers[key]
        return True


# ── what is known of a server ──


class State(Enum):
    IDLE = "idle"  # not running; the next use starts it
    STARTING = "starting"  # the process is being started, or has not answered its handshake
    READY = "ready"
    BACKOFF = "backoff"  # it died; until the timer is due nothing starts it
    FAILED = "failed"  # given up for a while, or for good where its table is wrong
    STOPPING = "stopping"  # the stop ladder runs
    STOPPED = "stopped"  # stopped by us


class Stage(Enum):
    GREETING = "it has not answered its handshake"
    LATE = "nor within startup_timeout_sec: nobody waits for it any more"
    OPENING = "it has; calls wait until what it asks first is answered"
    OPEN = "calls go out"
    CLOSED = "it is being stopped, or gone"


class Ending(Enum):
    TOLD = "nobody needs it"
    USELESS = "its handshake failed"
    AGAIN = "a fresh one is to take its place"


class Run(Struct):
    """What belongs to one process of a server: replaced whole when that has ended."""

    number: int  # counts them, so that what a former one still says is not taken for the present one's
    starter: Caller = NOBODY  # the host as the request showed it for which it was started
    started_at: float = 0.0
    up_at: float = 0.0
    stage: Stage = Stage.GREETING
    ending: Ending | None = None
    told: Fields = {}  # of the host's capabilities, in a legacy handshake
    is_outdated: bool = False  # it would be told otherwise now
    level: str | None = None  # of log messages, as last set at it
    pages: dict[str, None] = {}  # by elicitationId: which it has sent a legacy host to, the last ones
    # Its lists: which are being read, which have changed since, and from when on.
    readings: set[str] = set()
    changed: set[str] = set()
    changed_since: float = 0.0
    listed_at: float | None = None  # when all had been read once
    quiet: float = RELIST_QUIET  # grows while it announces changes that are none
    fitted: dict[str, dict[bytes, Entry]] = {}  # by list and a hash of what it sent: most of it will not change
    # Our subscription at a modern one.
    listen: Pending | None = None
    former_listen: Pending | None = None  # to be ended when the present one is acknowledged
    listens_for: Fields | None = None  # None: it offers no subscriptions
    listened_at: float = 0.0
    listen_wait: float = LISTEN_AGAIN

    def remember_pages(self, pages: Iterable[Fields]) -> None:
        """The host has been asked to have them visited: it may be told when that is done."""
        for page in pages:
            if isinstance(id := value_of(page.get("elicitationId")), str):
                self.pages[id] = None
                if len(self.pages) > QUESTIONS_MOST:
                    del self.pages[next(iter(self.pages))]


class Facts:
    """What is known of one server, or child process of ours. All parts read it; section 13 alone writes it."""

    def __init__(self, peer: Name, options: ServerOptions, run: int = 0) -> None:
        self.peer = peer
        self.name = called(peer)
        self.options = options
        self.state = State.IDLE
        self.run = Run(run, stage=Stage.CLOSED)
        self.trouble: str | None = None  # why it does not serve, for people; None while it does or was never tried
        self.hint = ""
        self.is_broken = False  # its table is wrong: nothing but a new one can start it
        self.wanted = False  # used while it rests or stops: started as soon as that is over
        self.settling = False  # started, and not yet known what it offers: lists wait, the first time
        self.tried = False  # a start has ended one way or the other: lists wait for no further one
        self.known = False  # its lists are those that it gave, in this run or a former one
        self.stale = False  # but to a host with other capabilities
        self.samples = False  # it has asked for a model of ours, in this run or a former one
        self.saved: Known | None = None  # what the cache has
        self.ready_in: float | None = None  # seconds from start to its first complete lists
        # What it said of itself: kept after its end, since its tools stay listed while it rests.
        self.eras: dict[str, str] = {}  # "legacy" or "modern": what worked last, by the host's
        self.modern = False
        self.revision = ""
        self.info = NOBODY.info  # its `serverInfo`
        self.capabilities: Fields = {}
        self.instructions = ""
        self.lists: dict[str, list[Entry]] = {}
        self.unread: dict[str, str] = {}  # lists that could not be read, and why
        self.left_out: list[str] = []  # of its lists, and why

    @property
    def is_open(self) -> bool:
        return self.run.stage is Stage.OPEN

    def why(self) -> str:
        """Which server, what happened, what to do: one line, for the model and the person behind it."""
        trouble = self.trouble or f"{self.name} is {self.state.value}"
        hint = self.hint or "`mcpmux check` says more; the next call starts it again"
        text = f"mcpmux: {trouble} ({hint})".replace("\n", " ")
        return text.encode(errors="replace").decode()  # a path that is not UTF-8 is no JSON


# ── requests in flight ──


class Matter(NamedTuple):
    server: str  # what the person decides on: a call at this server
    tool: str
    definition: str  # of that; a hash, as is what stands for the
    arguments: str


class Ask(Struct, eq=False):
    """A request of the host's, from its line to its ending."""

    id: bytes
    method: str
    params: Raw | UnsetType
    fields: Fields = {}  # its params
    caller: Caller = NOBODY
    blamed: str | None = None  # the server whose start it waits for, if it waits for one only
    held_until: float | None = None  # a list that waits for servers does so no longer than this
    by: InHand | None = None  # who has it in hand; None while it is routed
    number: int = 0  # there: of what it waits for
    approved: Matter | None = None  # the person has allowed it
    through: bool = False  # it came through `call_tool`

    @property
    def what(self) -> str:
        """The tool, prompt or resource that it is about, as the host knows it."""
        return str(value_of(self.fields.get("name", self.fields.get("uri", Raw(b'""')))))

    @property
    def is_task(self) -> bool:
        """Augmented with a task (2025-11-25): what it begins with has no way to say that a tool failed."""
        return "task" in self.fields and not self.caller.modern


class InHand(Protocol):
    """Who has a request of the host's in hand until it ends, or the host cancels it with such params."""

    def dropped(self, ask: Ask, params: Fields) -> None: ...


class Asker:
    """Who waits for the answer to a request of ours; by itself it ignores it. Sending never ends a request at once."""

    def ended(self, pending: Pending, reply: Reply) -> None:
        """It is answered, or never will be: the reply then says why. It is in no table any more."""

    def withdrawn(self, pending: Pending) -> None:
        """Nobody waits for it any more."""

    def progress(self, pending: Pending, line: bytes) -> None:
        """For whoever asked, under the token that he gave."""


UNHEARD: Final = Asker()


class Pending(Struct, eq=False):
    """A request of ours that waits for its answer, under an id that we have minted."""

    id: int
    peer: Name  # who owes the answer
    asker: Asker
    method: str
    patience: float  # seconds from one sign of life to the next
    opened: float
    deadline: float
    limit: float  # progress moves the deadline no further than this
    ask: Ask | None = None  # the host's request that it carries out
    caller: Caller | None = None  # who made that, also while no request of the host's waits for it
    server: str = ""  # the server whose question it is
    server_id: bytes = b""  # and under which id it asked
    is_sent: bool = True  # else it waits for its server to be ready, or for a host to come
    token: bytes | None = None  # the progress token of whoever asked; ours is `id`
    reached: float = -FOREVER  # the last value of progress that was passed on
    wrapped: bool = False  # the tool's structured results are put into an object
    is_task: bool = False  # of a question: augmented with a task
    params: Fields | None = None  # those for its peer, of what may have to be put again
    since: float = 0.0  # of one for a model: when its turn came
    heir: Asker | None = None  # and who waits for what it comes to in the end
    again: bool = False  # it was put a second time
    allowed: str = ""  # who lets its server use the model: the config or the person
    calls: tuple[int, ...] = ()  # of a server's question: the host's calls in one of which it was asked
    within: Pending | None = None  # of one to the person: the call, open or ended, whose host waits
    round: int = 0  # the open one that it takes part in
    rounds: int = 0  # how often its modern server has asked already

    @property
    def is_ours(self) -> bool:
        """Nobody but mcpmux itself waits for it."""
        return self.ask is None and not self.server and not self.round


class InFlight:
    """The one table of requests of ours: `open` and `settle` are its only doors."""

    def __init__(self, out: Out) -> None:
        self._out = out  # for the time
        self._by_id: dict[int | None, Pending] = {}
        self._owed: dict[Name, dict[int, Pending]] = {}
        self._asked: dict[str, dict[bytes, Pending]] = {}  # servers' questions, by their own ids
        self._minted = 0
        self.get = self._by_id.get  # by number

    def open(
        self, peer: Name, asker: Asker, method: str, patience: float, *, server: str = "", server_id: bytes = b""
    ) -> Pending:
        self._minted += 1
        number, now = self._minted, self._out.now
        until = now + patience
        pending = Pending(number, peer, asker, method, patience, now, until, until)
        self._by_id[number] = self._owed.setdefault(peer, {})[number] = pending
        if server:
            pending.server, pending.server_id = server, server_id or b"%d" % number  # mcpmux's own have none
            self._asked.setdefault(server, {})[pending.server_id] = pending
        return pending

    def settle(self, pending: Pending) -> None:
        del self._by_id[pending.id]
        owed = self._owed[pending.peer]  # nothing is kept of a server that may never come back
        del owed[pending.id]
        if not owed:
            del self._owed[pending.peer]
        if pending.server:
            asked = self._asked[pending.server]
            del asked[pending.server_id]
            if not asked:
                del self._asked[pending.server]

    def hand_on(self, pending: Pending, peer: Name) -> None:
        """Another peer owes what it comes to now; also within the event that has settled it."""
        if pending.id in self._by_id:
            self.settle(pending)
        pending.peer = peer
        self._by_id[pending.id] = self._owed.setdefault(peer, {})[pending.id] = pending
        if pending.server:
            self._asked.setdefault(pending.server, {})[pending.server_id] = pending

    def asked(self, server: str, id: bytes) -> Pending | None:
        return self._asked.get(server, {}).get(id)

    def owed_by(self, peer: Name) -> list[Pending]:
        """The oldest first."""
        return list(self._owed.get(peer, {}).values())

    def asked_by(self, server: str) -> list[Pending]:
        return list(self._asked.get(server, {}).values())

    def __iter__(self) -> Iterator[Pending]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)


# ── exchanges: what takes several requests ──


class Step(Struct, frozen=True):
    """What an exchange asks next, and of which server. All that belongs to the asking travels in it."""

    server: str
    method: str
    params: Fields | UnsetType = UNSET
    patience: float | None = None  # seconds; None: as long as its table says
    wrapped: bool = False


# Yields a step and is sent how that ended; returns a peer's own reply, or a result of ours; raises `RpcError`. Between
# two steps anything may happen: it holds names, no `Facts`, and no `Raw`, which would keep its whole line.
Steps = Generator[Step, Reply, Reply | bytes]
ExchangeEnd = Reply | bytes | RpcError


class Exchange(Asker):
    """Drives a generator as the asker of what it asks. However it ends, `finish` is told once, unless nobody waits."""

    last: Pending | None = None  # what it asked last

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def step(self, step: Step) -> Pending | Reply:
        """The request that is now open with this exchange as its asker; or why there is none."""
        raise NotImplementedError

    def finish(self, outcome: ExchangeEnd) -> None:
        raise NotImplementedError

    def go_on(self, reply: Reply | None = None) -> None:
        """The first time with nothing."""
        outcome: ExchangeEnd = failed("a bug in mcpmux: its log says more")
        try:
            step = next(self._steps) if reply is None else self._steps.send(reply)
            while isinstance(sent := self.step(step), Reply):
                step = self._steps.send(sent)
            self.last = sent
            return
        except StopIteration as end:
            outcome = end.value
        except RpcError as refusal:
            outcome = refusal
        except Exception:
            self.finish(outcome)
            raise
        self.finish(outcome)

    def ended(self, pending: Pending, reply: Reply) -> None:
        self.last = pending
        self.go_on(reply)

    def withdrawn(self, pending: Pending) -> None:
        self._steps.close()


# ══ 8. Host's end ════════════════════════════════════════════════════════════════════════════════════════════════════
# The host as it has shown itself, what it has seen of what the servers offer, and all that is said to it: each request
# answered once, in its era, and never more than hosts take. Knows nothing of who answers.


class HostEnd:
    """The host's side of the core. `open` has each of its requests; `answer` and `drop` are the only ways out of it."""

    def __init__(self, out: Out, options: MuxOptions) -> None:
        self.peer: Name = Peer.HOST
        self.take_options(options, {})
        self.open: dict[bytes, Ask] = {}
        self.held: dict[bytes, Ask] = {}  # of these, what waits until it is known what the servers offer
        self.revision = ""  # once it has initialized
        self.legacy = NOBODY  # as it has initialized
        self.caller = NOBODY  # as it showed itself last
        self.is_ready = False  # it has sent `initialized`: now it may be asked
        self.level: str | None = None  # of log messages, as a legacy host has set it
        self.roots: bytes | None = None  # its last answer to roots/list
        self.seen: dict[str, bytes] = {}  # by list method: the list that it has, or was told to fetch
        self._out = out
        # What waits until it is ready, and how much of that is whose; and the questions by their number, until then.
        self._early: list[SendHost] = []
        self._early_of: collections.Counter[Name] = collections.Counter()
        self.untold: dict[int, SendHost] = {}

    def take_options(self, options: MuxOptions, hosts: Mapping[str, HostOptions]) -> None:
        self.options, self._hosts = options, hosts
        self.limit = int(options.host_message_mb * MB)  # bytes of one message
        self.may_search = any(one.expose == "search" for one in (options, *hosts.values()))
        self.may_differ = self.may_search or bool(hosts)  # in what is shown to it

    def exposure(self, caller: Caller) -> HostOptions:
        """What is shown to the host, by what it calls itself there."""
        by_name = (one for name, one in self._hosts.items() if fnmatch.fnmatchcase(caller.name, name))
        own = self._hosts.get(caller.name) or next(by_name, HostOptions())
        always = self.options.always if own.always is None else own.always
        return HostOptions(expose=own.expose or self.options.expose, servers=own.servers, always=always)

    def sees(self, caller: Caller, server: str) -> bool:
        seen = self.exposure(caller).servers if self.may_differ else None
        return seen is None or any(fnmatch.fnmatchcase(server, one) for one in seen)

    # ── its requests ──

    def take(self, ask: Ask) -> bool:
        """Whether this is a request that can be told from the others that are open."""
        if not is_id(ask.id):
            known, wrong = None, "a request's id must be a string or a number"
        elif ask.id in self.open:
            known, wrong = ask.id, "a request with this id is still open"
        else:
            self.open[ask.id] = ask
            return True
        self._out.to_host(Peer.HOST, error_line(known, error_body(RpcError(INVALID_REQUEST, wrong))))
        return False

    def answer(
        self, ask: Ask, reply: Reply, source: Name = Peer.HOST, by: Facts | None = None, *, as_it_is: bool = False
    ) -> None:
        """The ending of a request, through its server's queue, so that it cannot overtake what came before. `by` is the
        server that has said this itself; `as_it_is`: it is in the host's era already."""
        if self.open.get(ask.id) is not ask:
            raise Bug(f"a second ending of {ask.method} {ask.id!r}")
        del self.open[ask.id]
        line = self._answer_line(ask, reply, by, as_it_is)
        if len(line) > self.limit:
            most = f"more than the {self.options.host_message_mb:g} MB that hosts take (host_message_mb)"
            who = "mcpmux" if source is Peer.HOST else shown(source)
            line = self._answer_line(ask, failed(f"{who} answered with {len(line)} bytes, {most}"), None, False)
        self._out.to_host(source, line)

    def _answer_line(self, ask: Ask, reply: Reply, by: Facts | None, as_it_is: bool) -> bytes:
        if reply.failure:
            reply = failure("" if ask.is_task else ask.method, reply.failure)
        result, error = reply.result, reply.error
        is_its_era = as_it_is or (by is not None and by.modern)
        if error is not None:
            return error_line(ask.id, modern_error(error, from_modern=is_its_era) if ask.caller.modern else error)
        assert result is not None
        if ask.caller.modern and not is_its_era:
            result = modern_result(ask.method, result, by.info if by else NOBODY.info)
        return result_line(ask.id, result)

    def reply(self, ask: Ask, result: bytes) -> None:
        """With a result of our own."""
        self.answer(ask, Reply(Raw(result), None))

    def fail(self, ask: Ask, text: str, source: Name = Peer.HOST) -> None:
        self.answer(ask, failed(f"mcpmux: {text}"), source)

    def refuse(self, ask: Ask, error: RpcError) -> None:
        is_modern = error.code in (UNSUPPORTED_VERSION, MISSING_CAPABILITY)
        reply = failed(f"mcpmux: {error}") if isinstance(error, Misused) else Reply(None, error_body(error))
        self.answer(ask, reply, as_it_is=is_modern)

    def drop(self, ask: Ask, params: Fields) -> None:
        """Nobody waits for it any more: it is taken out wherever it is."""
        del self.open[ask.id]
        if ask.by:
            ask.by.dropped(ask, params)

    def hold(self, ask: Ask) -> None:
        if ask.params is not UNSET:
            ask.params = ask.params.copy()
        ask.by = self
        self.held[ask.id] = ask

    def dropped(self, ask: Ask, params: Fields) -> None:
        del self.held[ask.id]

    def end_by_bug(self, ask: Ask) -> None:
        """Nobody will answer it any more, since what was to be done with it has failed."""
        if self.open.get(ask.id) is ask:
            self.drop(ask, {})
            self.open[ask.id] = ask
            self.refuse(ask, RpcError(INTERNAL_ERROR, f"a bug in mcpmux: its log says more ({ask.method[:100]})"))

    # ── what it did not ask for ──

    def tell(self, source: Name, line: bytes, *, question: int = 0) -> None:
        """A legacy host: kept until it has initialized. A modern one hears what it subscribed to, and no more.
        `question` is the number of a request."""
        if len(line) > self.limit:
            most = "is more than hosts take, and was dropped"
            self._out.note(source, f"a notification of {len(line)} bytes {most}")
        elif self.is_ready:
            self._out.to_host(source, line)
        elif self.revision and question:
            self.untold[question] = SendHost(source, line)
        elif self.revision and self._early_of[source] < HELD_FOR_HOST:
            self._early_of[source] += 1
            self._early.append(SendHost(source, line))

    def keep_roots(self, method: str, reply: Reply) -> None:
        """What it has answered to roots/list may have to do for a server that asks while it cannot be asked."""
        if method == "roots/list" and reply.result is not None:
            self.roots = bytes(reply.result)

    def ready(self) -> None:
        self.is_ready = True
        early = [*self._early, *self.untold.values()]
        for table in (self._early, self._early_of, self.untold):
            table.clear()
        for effect in early:
            self._out.to_host(effect.source, effect.line)

    def stale_lists(self, results: Mapping[str, bytes]) -> list[str]:
        """The methods of those lists that are not what the host has; from now on it is told of them."""
        stale = [method for method, seen in self.seen.items() if seen != results[method]]
        self.seen |= {method: results[method] for method in stale}
        return stale


class Ground(NamedTuple):
    out: Out  # what all parts stand on
    in_flight: InFlight
    host: HostEnd
    servers: dict[str, Facts]


class Merged:
    """What all servers offer, as one catalogue: made anew when it is next looked at after a change."""

    def __init__(self, ground: Ground, names: Names, pins: Pins) -> None:
        self._out, _, self._host, self._servers = ground
        self._names, self.pins = names, pins  # who has which, and what was accepted, as it was last kept
        self.withheld: dict[str, dict[str, Unlike]] = {}  # by server: its tools that are not as they were accepted
        self._made: Catalogue | None = None
        self._parts: list[Part] = []  # of which it is made
        self._views: dict[tuple[str, str], View] = {}  # by how the host has shown itself
        self._joined: dict[str, None] = {}  # tools that a host has found, and has in its list since
        self._noted: set[tuple[str, str]] = set()

    @property
    def catalogue(self) -> Catalogue:
        if self._made is None:
            self.withheld, self._views = {}, {}
            self._parts = [Part(one.name, one.options.prefix, self._lists(one)) for one in self._servers.values()]
            reserved = (FIND_TOOLS, CALL_TOOL) if self._host.may_search else ()
            self._made = merge(self._parts, self._host.options, self._names, reserved)
            self._whole = View(self._made)
            for server, tools in self.withheld.items():
                text = f"withheld, since they have changed: {', '.join(tools)} (`mcpmux accept {server}` shows how)"
                self._made.notes.append((server, text))
            for note in self._made.notes:
                if note not in self._noted:
                    self._out.note(*note)
            self._noted = set(self._made.notes)
            saved = {method: self._made.names[method] for method, kind in LISTS.items() if kind.identity == "name"}
            if saved != {method: self._names.get(method) for method in saved}:
                self._out.put(SaveNames(saved))
            self._names = self._made.names
        return self._made

    def view(self, caller: Caller) -> View:
        if self._made and not self._host.may_differ:
            return self._whole
        catalogue = self.catalogue  # it is made here, if need be
        if not self._host.may_differ:
            return self._whole
        key = caller.name, caller.era
        if key not in self._views:
            if len(self._views) == VIEWS_MOST:
                self._views.clear()
            self._views[key] = self._viewed(catalogue, caller)
        return self._views[key]

    def _viewed(self, catalogue: Catalogue, caller: Caller) -> View:
        exposure = self._host.exposure(caller)
        parts = [part for part in self._parts if self._host.sees(caller, part.server)]
        if len(parts) < len(self._parts):
            catalogue = merge(parts, self._host.options, self._names)
        if exposure.expose != "search":
            return View(catalogue)
        servers = [self._servers[part.server] for part in parts]
        about = {one.name: purpose(one.instructions, object_of(one.info)) for one in servers}
        listed = {name for name, route in catalogue.tools.items() if self._is_listed(name, route, exposure)}
        listed |= set(self._joined if self.joins(caller) else ())
        return View(deferred(catalogue, self._host.options, listed, about), ToolSearch(catalogue.tools, about))

    def _is_listed(self, name: str, route: Route, exposure: HostOptions) -> bool:
        override = self._servers[route.server].options.tools.get(route.name)
        globs = exposure.always or ()
        return (override is not None and override.always) or any(fnmatch.fnmatchcase(name, one) for one in globs)

    def joins(self, caller: Caller) -> bool:
        """Whether what was found joins the list. A modern host's must not depend on its other requests."""
        return caller.name in JOINS and not caller.modern

    def join(self, names: Iterable[str]) -> None:
        for name in names:
            self._joined.pop(name, None)
            self._joined[name] = None
        for name in list(self._joined)[:-JOINED_MOST]:
            del self._joined[name]
        self._views.clear()

    def _lists(self, server: Facts) -> Mapping[str, list[Entry]]:
        """What it offers, without what its person has not accepted. What is seen first is."""
        if not server.options.pin:
            return server.lists
        pins, kept, first = self.pins.setdefault(server.name, {}), list[Entry](), list[Entry]()
        for entry in server.lists.get("tools/list", ()):
            digest, pin = pin_digest(entry), pins.get(entry.name)
            if pin is None:
                first.append(entry)
            elif digest not in pin.accepted:
                self.withheld.setdefault(server.name, {})[entry.name] = Unlike(entry, digest, pin)
                continue
            kept.append(entry)
        self.accept(server.name, first)
        return {**server.lists, "tools/list": kept}

    def accept(self, server: str, entries: Iterable[Entry]) -> None:
        pins = self.pins.setdefault(server, {})
        new = {one.name: Pin([pin_digest(one)], encode(definition(one)).decode()) for one in entries}
        for name, pin in new.items():
            former = pins[name].accepted if name in pins else []
            pins[name] = Pin([*former, *pin.accepted][-PINS_MOST:], pin.shown)
        if new:
            self._out.put(SavePins({server: new}))

    def withheld_tool(self, name: str) -> str | None:
        """The server whose tool has this exposed name, and is withheld."""
        server, own = self._names.get("tools/list", {}).get(name, ("", ""))
        return server if own in self.withheld.get(server, {}) else None

    def changed(self) -> Mapping[str, bytes] | None:
        """It is to be made anew; what it was, if it was made."""
        before, self._made = self._made, None
        return before and before.results


# ══ 9. Dispatch ══════════════════════════════════════════════════════════════════════════════════════════════════════
# A host's request on its way to its server and back, and every other way in which a request of ours ends. Knows neither
# how a server is started (that is `use`) nor what the answer to a question of a server's is.


class Links:
    """URIs that servers gave out in results, without having listed them: of each server the last ones."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, None]] = {}

    def owner(self, uri: str) -> str | None:
        return next((server for server, uris in self._of.items() if uri in uris), None)

    def note(self, server: str, result: Raw) -> None:
        """A result's `resource_link`s and embedded resources."""
        body = object_of(result)
        said = [object_of(one).get("content") for one in items_of(body.get("messages"))]
        for block in map(object_of, [*items_of(body.get("content")), *said]):
            uri = value_of((object_of(block.get("resource")) or block).get("uri"))
            if isinstance(uri, str) and len(uri) <= URI_MOST:
                uris = self._of.setdefault(server, {})
                uris[uri] = None
                if len(uris) > LINKS_MOST:
                    del uris[next(iter(uris))]

    def forget(self, server: str) -> None:
        self._of.pop(server, None)


_URI_MEMBER: Final = re.compile(rb'"uri"')
_OPEN: Final = Stage.OPEN  # Python 3.11 takes as long for a member of an Enum as for three calls


class Calls(Asker):
    """Sends requests to servers in their era, at once or when they are ready, and brings the answers to their askers.
    Asker of what the host wants of one server."""

    use: Callable[[Facts], None]  # starts a server that does not run
    may_sample: Callable[[Facts, Caller], bool]  # or be told that it may
    warm_up: Callable[[], None]  # the model takes seconds to load

    def __init__(self, ground: Ground) -> None:
        self._out, self._in_flight, self._host, self._servers = ground
        self.links = Links()
        self.own = Own()
        self.last_used: dict[Name, float] = {}
        self._waiting: dict[Name, dict[int, Fields | UnsetType]] = {}  # params by number, until their server is ready
        self._watched = FOREVER  # the deadline at which there is a sweep
        self._told: dict[Name, tuple[bytes, bool, Own, Fields]] = {}  # by declaration, and whether both are legacy

    # ── out ──

    def forward(
        self,
        ask: Ask,
        name: str,
        params: Fields,
        asker: Asker | None = None,
        *,
        patience: float | None = None,
        wrapped: bool = False,
    ) -> Pending | Reply:
        """A host's request for a server, where it waits if that is not ready; or why it cannot be sent there."""
        server = self._servers[name]
        self.last_used[name] = self._out.now
        is_open = server.run.stage is _OPEN
        if name in self._out.clogged:
            return failed(self.does_not_read(name))
        if not is_open and (server.state is State.FAILED or server.run.stage is Stage.LATE):
            return failed(server.why())
        if is_open and ask.caller.modern and (refusal := self._foreign_state(server, ask.caller, params)):
            return refusal
        seconds = patience or server.options.tool_timeout_sec
        pending = self._in_flight.open(name, asker or self, ask.method, seconds)
        pending.limit = pending.opened + (patience or seconds * PROGRESS_CAP)
        pending.ask, pending.caller = ask, ask.caller
        pending.wrapped, pending.token = wrapped, progress_token(params)
        ask.by, ask.number = self, pending.id
        if ask.method in CARRIERS and (ask.caller.modern or server.modern or self.own.page or not is_open):
            pending.params = params
        if pending.deadline < self._watched:
            self.watch(pending)
        own = self.own_for(server, ask.caller) if server.samples else NOTHING_OWN
        if is_sampled_locally(ask.caller.capabilities, server.options, own, with_tools=False):
            self.warm_up()
        body = params if ask.params is not UNSET or params else UNSET
        if is_open:
            self._dispatch(server, pending, body)
        else:
            self._wait(server, pending, body)
        return pending

    def _foreign_state(self, server: Facts, caller: Caller | None, params: Fields | UnsetType) -> Reply | None:
        """Why a call with a state that a legacy server cannot have given is not for it."""
        if server.modern or not (caller and caller.modern) or params is UNSET or "requestState" not in params:
            return None
        text = f"{server.name} has given no requestState: send the call without it"
        return Reply(None, error_body(RpcError(INVALID_PARAMS, text)))

    def put(self, server: Facts, pending: Pending, params: Fields) -> None:
        """A request of another part's for a process, where it waits if that is not ready."""
        self.watch(pending)
        self.last_used[server.peer] = self._out.now
        (self._dispatch if server.is_open else self._wait)(server, pending, params)

    def watch(self, pending: Pending) -> None:
        """One timer for all requests, at the earliest deadline: a heap of cancelled timers would grow with the rate."""
        if pending.deadline < self._watched:
            self._watched = pending.deadline
            self._out.timer("calls", "", pending.deadline)

    def _wait(self, server: Facts, pending: Pending, params: Fields | UnsetType) -> None:
        pending.is_sent = False
        self._waiting.setdefault(server.peer, {})[pending.id] = params
        self.use(server)

    def _dispatch(self, server: Facts, pending: Pending, params: Fields | UnsetType) -> None:
        """Writes it in its server's era. Between legacy peers nothing changes but the token."""
        if pending.token is not None:  # a retry's, where the call that waits has none of its own
            params = {} if params is UNSET else params
            meta = object_of(params.get("_meta")) | {"progressToken": Raw(b"%d" % pending.id)}
            params = params | {"_meta": Raw(encode(meta))}
        caller = pending.caller
        if caller and server.modern:
            level = caller.level or (None if caller.modern else self._host.level)
            params = enveloped({} if params is UNSET else params, caller, encode(self.told(server, caller)), level)
        elif caller and caller.modern and params is not UNSET:  # Python's SDK refuses an envelope in the legacy era
            meta = without(object_of(params.get("_meta")), *ENVELOPE_KEYS)
            params = with_meta(without(params, *OF_RETRY), meta)
            if caller.level:
                self.tell_level(server)
        line = UNSET if params is UNSET else encode(params)
        pending.is_sent = self._out.to_server(server.peer, request_line(pending.id, pending.method, line))

    def request(
        self, server: Facts, method: str, params: bytes | UnsetType, asker: Asker, patience: float | None = None
    ) -> Pending:
        """One of our own, for a server that runs: sent as it is, in the envelope of a modern server."""
        seconds = patience or server.options.tool_timeout_sec
        pending = self._in_flight.open(server.peer, asker, method, seconds)
        self.watch(pending)
        if server.modern:
            starter = server.run.starter
            told = encode(self.told(server, starter))
            params = encode(enveloped(object_of(params), starter, told, self._host.level))
        pending.is_sent = self._out.to_server(server.peer, request_line(pending.id, method, params))
        return pending

    def told(self, server: Facts, caller: Caller) -> Fields:
        """What this server is told of the host's capabilities."""
        is_legacy, own = not (caller.modern or server.modern), self.own_for(server, caller)
        known = self._told.get(server.peer)
        if known is None or known[:3] != (caller.declared, is_legacy, own):
            here = own._replace(model=own.model and self.may_sample(server, caller))
            told = capabilities_for_server(caller.capabilities, server.options, here)
            if not is_legacy:
                told.pop("tasks", None)  # those of the legacy era are between its peers
            known = self._told[server.peer] = caller.declared, is_legacy, own, told
        return known[3]

    def own_for(self, server: Facts, caller: Caller) -> Own:
        """What mcpmux itself can answer with. A task of the modern era asks the host, past us: where a call of this
        caller's may become one, nothing."""
        may_be_task = server.modern and declares_tasks(caller.declared)
        may_be_task = may_be_task and offers(server.capabilities, "extensions", TASKS_EXTENSION)
        return NOTHING_OWN if may_be_task else self.own

    def tell_level(self, server: Facts) -> None:
        """Legacy servers have one level: the most talkative that anybody wants now; the way back sorts out the rest."""
        callers = [one.ask.caller for one in self._in_flight.owed_by(server.peer) if one.ask]
        levels = [level for level in (*(one.level for one in callers if one.modern), self._host.level) if level]
        level = min(levels, key=LOG_LEVELS.index, default=None)
        if level and level != server.run.level and not server.modern and offers(server.capabilities, "logging"):
            server.run.level = level
            self.request(server, "logging/setLevel", encode({"level": level}), UNHEARD)

    def log_message(self, server: Facts, message: Envelope) -> None:
        """To a modern host only while a call of its that wants such messages is at this server."""
        name, params = server.name, object_of(message.params)
        logger = value_of(params.get("logger"))
        params["logger"] = Raw(encode(f"{name}/{logger}" if isinstance(logger, str) and logger else name))
        line = notification_line("notifications/message", encode(params))
        level = value_of(params.get("level"))
        wanted = [call.ask.caller.level for call in self._in_flight.owed_by(name) if call.ask]
        if self._host.revision:
            self._host.tell(name, line)
        elif any(one and level in LOG_LEVELS[LOG_LEVELS.index(one) :] for one in wanted):
            self._out.to_host(name, line)

    def does_not_read(self, name: Name) -> str:
        return f"{shown(name)} does not read its input: {self._host.options.outbox_mb:g} MB wait for it already"

    # ── back ──

    def ended(self, pending: Pending, reply: Reply) -> None:
        """A server's answer on its way to the host."""
        ask, name = pending.ask, pending.peer
        assert ask and isinstance(name, str)
        server = self._servers.get(name)  # None: it has left the config meanwhile
        source = name if server else Peer.HOST
        if reply.failure:
            server = None
        elif reply.result is not None:
            has_resources = server is not None and "resources" in server.capabilities
            if has_resources and pending.method in CARRIERS and _URI_MEMBER.search(reply.result):
                self.links.note(name, reply.result)
            if pending.wrapped:
                reply = Reply(Raw(wrap_structured(reply.result)), None)
        elif reply.error is not None and server:
            fitted = fit_refusal(reply.error, name, server.options)
            if not ask.caller.modern:
                server.run.remember_pages(pages_in(fitted.error))
            reply = fitted if fitted.failure or not ask.caller.modern else reply
        self._host.answer(ask, reply, source, server)

    def progress(self, pending: Pending, line: bytes) -> None:
        assert pending.ask
        if pending.ask.caller.modern:
            self._out.to_host(pending.peer, line)
        else:
            self._host.tell(pending.peer, line)

    def dropped(self, ask: Ask, params: Fields) -> None:
        if (pending := self._in_flight.get(ask.number)) and pending.ask is ask:
            self.withdraw(pending, params)

    def told_of_progress(self, pending: Pending | None, peer: Name, params: Fields) -> None:
        """Progress goes to whoever asked, under the token that he gave, if his request is still open and the value
        rises: anything else tears down some hosts' transport."""
        value = value_of(params.get("progress"))
        if pending is None or pending.peer != peer or pending.token is None:
            self._out.note(peer, "progress for nothing that is open was dropped", "debug")
        elif not isinstance(value, int | float) or isinstance(value, bool) or not value > pending.reached:
            self._out.note(peer, "progress that does not rise was dropped", "debug")
        else:
            pending.reached = value
            if pending.deadline < FOREVER:  # else the clock stands still, since a person is asked
                pending.deadline = min(self._out.now + pending.patience, pending.limit)
            params["progressToken"] = Raw(pending.token)
            pending.asker.progress(pending, notification_line("notifications/progress", encode(params)))

    # ── endings ──

    def end(self, pending: Pending, reply: Reply) -> None:
        """Its ending, once. A bug in what is done with it ends the host's request too, and nothing else."""
        self._in_flight.settle(pending)
        try:
            pending.asker.ended(pending, reply)
        except Exception as bug:
            self._out.bug(bug)
            if pending.ask:
                self._host.end_by_bug(pending.ask)

    def fail(self, pending: Pending, text: str) -> None:
        """Its peer will not answer it."""
        self._waiting.get(pending.peer, {}).pop(pending.id, None)
        self.end(pending, failed(text))

    def withdraw(self, pending: Pending, params: Fields) -> None:
        """The asker no longer wants the answer: its peer is told, and nobody is answered."""
        self._in_flight.settle(pending)
        self._tell_cancelled(pending, params)
        pending.asker.withdrawn(pending)

    def _tell_cancelled(self, pending: Pending, params: Fields) -> None:
        if not pending.is_sent:
            self._waiting.get(pending.peer, {}).pop(pending.id, None)
            return
        line = notification_line(CANCELLED, encode(params | {"requestId": Raw(b"%d" % pending.id)}))
        if pending.peer is not Peer.HOST:
            self._out.to_server(pending.peer, line)
        elif not self._host.untold.pop(pending.id, None):
            self._host.tell(pending.server, line)

    def fail_all(self, server: Facts, text: str, kept: Iterable[int] = ()) -> None:
        """All that it owes. What we asked for ourselves has nobody waiting."""
        for pending in self._in_flight.owed_by(server.peer):
            if pending.id in kept or self._in_flight.get(pending.id) is not pending:
                continue  # it may have ended with another one
            if pending.is_ours:
                self._in_flight.settle(pending)
                pending.asker.withdrawn(pending)
            else:
                self.fail(pending, text)

    def forget(self, server: Facts, text: str) -> None:
        """It is no longer in the config, or not like this."""
        for table in (self._waiting, self._told, self.last_used):
            table.pop(server.peer, None)
        self.links.forget(server.name)
        self.fail_all(server, text)

    def forget_told(self) -> None:
        self._told.clear()

    def process_gone(self, server: Facts, unread: list[bytes], *, keeps_waiting: bool) -> bool:
        """What its process owed fails, but not what the next one may have: unread, or waiting. Whether there is any."""
        waiting = self._waiting.pop(server.peer, {})
        kept = waiting if keeps_waiting else {}
        for line in unread:
            with contextlib.suppress(BadLine):  # so deep that it cannot be read twice
                message = decode_line(line)
                pending = self._in_flight.get(number_of_id(message.id)) if isinstance(message.id, Raw) else None
                if pending and pending.peer == server.peer and pending.ask:
                    pending.is_sent = False
                    kept[pending.id] = UNSET if message.params is UNSET else fields_of(message.params)
        if kept:
            self._waiting[server.peer] = kept
        self.fail_all(server, server.why(), kept)
        return bool(kept)

    def fail_waiting(self, server: Facts) -> None:
        """Nobody waits any longer for it to be ready."""
        for number in list(self._waiting.get(server.peer, ())):
            if pending := self._in_flight.get(number):
                self.fail(pending, server.why())

    def opened(self, server: Facts) -> None:
        """It gets what waited for it."""
        for number, params in self._waiting.pop(server.peer, {}).items():
            if (pending := self._in_flight.get(number)) and server.peer in self._out.clogged:
                self.fail(pending, self.does_not_read(server.peer))
            elif pending and (refusal := self._foreign_state(server, pending.caller, params)):
                self.end(pending, refusal)
            elif pending:
                self._dispatch(server, pending, params)

    def sweep(self) -> None:
        """What has outlived its patience. The clock stands still while a person is asked."""
        for pending in self._in_flight:
            if pending.deadline > self._out.now or self._in_flight.get(pending.id) is not pending:
                continue  # not yet; or it has ended with another one
            if isinstance(pending.peer, str) and self._in_flight.asked_by(pending.peer):
                pending.deadline = self._out.now + pending.patience
                continue
            seconds = self._out.now - pending.opened
            took = f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"
            text = f"mcpmux: {called(pending.peer)} did not answer {pending.method} within {took} s"
            self._tell_cancelled(pending, {"reason": Raw(b'"timed out"')})
            self._out.log("warning", text)
            self.fail(pending, text + (" (tool_timeout_sec)" if pending.ask else ""))
        self._watched = min((pending.deadline for pending in self._in_flight), default=FOREVER)
        self._watched = max(self._watched, self._out.now + SWEEP_APART)
        if self._watched < FOREVER:
            self._out.timer("calls", "", self._watched)

    def run(self, ask: Ask, steps: Steps) -> None:
        """A request of the host's that takes several steps."""
        ForHost(steps, self, self._host, ask).go_on()


class ForHost(Exchange):
    """One that ends with the answer to a request of the host's."""

    def __init__(self, steps: Steps, calls: Calls, host: HostEnd, ask: Ask) -> None:
        super().__init__(steps)
        self._calls, self._host, self._ask = calls, host, ask

    def step(self, step: Step) -> Pending | Reply:
        params: Fields = {} if step.params is UNSET else step.params
        sent = self._calls.forward(self._ask, step.server, params, self, patience=step.patience, wrapped=step.wrapped)
        if isinstance(sent, Pending) and self.last and self.last.token == sent.token:
            sent.reached = self.last.reached  # it must rise within one token
        return sent

    def finish(self, outcome: ExchangeEnd) -> None:
        if isinstance(outcome, bytes):
            self._host.reply(self._ask, outcome)
        elif isinstance(outcome, RpcError):
            self._host.refuse(self._ask, outcome)
        elif self.last:
            self._calls.ended(self.last, outcome)
        else:
            self._host.answer(self._ask, outcome)

    def ended(self, pending: Pending, reply: Reply) -> None:
        self._ask = pending.ask or self._ask  # a retry may stand for it by now
        super().ended(pending, reply)

    def progress(self, pending: Pending, line: bytes) -> None:
        self._calls.progress(pending, line)


# ══ 10. Tasks and subscriptions ══════════════════════════════════════════════════════════════════════════════════════
# What outlives a call: who made which task, and who wants to hear of what.


class Task(Struct, eq=False):
    server: str  # that made it, or for which the host did
    wrapped: bool = False  # its tool's structured results are put into an object
    pending: Pending | None = None  # the request whose progress goes on under its token


class TaskBook:
    """The tasks of one side. Who first names an id keeps it; what a server has beyond its quota is not remembered."""

    def __init__(self) -> None:
        self._all: dict[str, Task] = {}
        self._open: dict[str, dict[str, Task]] = {}  # by server
        self._ended: dict[str, dict[str, Task]] = {}

    def get(self, id: Any) -> Task | None:
        return self._all.get(id) if isinstance(id, str) else None

    def is_full(self, server: str) -> bool:
        """Nothing of it has ended that could be forgotten."""
        return len(self._open.get(server, ())) >= TASKS_MOST

    def add(self, id: str, task: Task) -> bool:
        """Whether it is remembered."""
        theirs, ended = self._open.setdefault(task.server, {}), self._ended.setdefault(task.server, {})
        if id not in theirs and id not in ended:
            if id in self._all or len(theirs) >= TASKS_MOST:
                return False
            if len(theirs) + len(ended) >= TASKS_MOST:
                del self._all[first := next(iter(ended))], ended[first]
        ended.pop(id, None)
        self._all[id] = theirs[id] = task
        return True

    def ends(self, id: str) -> Task:
        task = self._all[id]
        if self._open[task.server].pop(id, None):
            self._ended[task.server][id] = task
        return task

    def remove(self, server: str) -> None:
        for theirs in (self._open, self._ended):
            for id in theirs.pop(server, ()):
                del self._all[id]


class Tasks(Asker):
    """Who owns which task: those of servers, in both eras, and those of the host. Asker of the calls that begin one."""

    def __init__(self, ground: Ground, calls: Calls) -> None:
        self._out, _, self._host, self._servers = ground
        self.of_servers, self.of_host = TaskBook(), TaskBook()
        self._calls = calls
        self._listed: dict[str, dict[str, None]] = {}  # by server: what it last listed, and nobody has made here
        self._progress: dict[int, tuple[TaskBook, str]] = {}  # by our token, until the task ends

    # ── who makes one ──

    def ended(self, pending: Pending, reply: Reply) -> None:
        if reply.result is not None and isinstance(pending.peer, str):
            self.made(self.of_servers, pending, Task(pending.peer, pending.wrapped), reply.result)
        self._calls.ended(pending, reply)

    def progress(self, pending: Pending, line: bytes) -> None:
        self._calls.progress(pending, line)

    def made(self, book: TaskBook, pending: Pending, task: Task, result: Raw) -> None:
        """The answer to a request with a task names it; progress goes on under the request's token until it ends."""
        body = object_of(result)
        if pending.is_task or (pending.ask and pending.ask.is_task):
            id = value_of(object_of(body.get("task")).get("taskId"))
        else:
            id = value_of(body.get("taskId")) if value_of(body.get("resultType")) == "task" else None
        if not isinstance(id, str):
            return
        if not book.add(id, task):
            self._out.note(task.server, f"a task is not kept: its id is another's, or too many: {id[:TEXT_MOST]!r}")
        elif pending.token:
            task.pending = pending
            self._progress[pending.id] = book, id

    def refusal(self, server: str) -> Reply | None:
        """Why this server may not begin another one."""
        if self.of_servers.is_full(server):
            return failed(f"mcpmux: {server} has {TASKS_MOST} tasks that have not ended (cancel some of them first)")
        return None

    # ── who follows one ──

    def owner(self, id: Any) -> str | None:
        """The server that made it for the host; else one that has it from before."""
        if task := self.of_servers.get(id):
            return task.server
        return next((name for name, listed in self._listed.items() if isinstance(id, str) and id in listed), None)

    def is_for(self, server: str, id: Any) -> bool:
        """Whether the host made it for this server: another's is none of its business."""
        task = self.of_host.get(id)
        return task is not None and task.server == server

    def about_one(self, ask: Ask) -> Steps:
        """tasks/get, tasks/result, tasks/cancel, tasks/update."""
        id = text_in(ask.fields, "taskId")
        if (name := self.owner(id)) is None:
            raise RpcError(INVALID_PARAMS, "no server has made a task with this taskId")
        task = self.of_servers.get(id) or Task(name)
        is_result = ask.method == "tasks/result"  # it blocks until the task has ended
        patience = FOREVER if is_result else None
        reply = yield Step(name, ask.method, ask.fields, patience, is_result and task.wrapped)
        server, body = self._servers.get(name), object_of(reply.result)
        if reply.error is None and (is_result or value_of(body.get("status")) in TERMINAL):
            self._is_over(self.of_servers, id)
        if server is None or "inputRequests" not in body:
            return reply
        return Reply(Raw(encode(self.shown_to(ask.caller, server, body))), None)

    def shown_to(self, caller: Caller, server: Facts, body: Fields) -> Fields:
        """A task that waits for input, as this host may see it; what it may not be asked is answered here."""
        told = self._calls.told(server, caller)
        fit, answered = judge_task(body, server.name, server.options, caller.capabilities, told)
        id = {"taskId": body.get("taskId", Raw(b"null"))}
        if answered is None:
            self._calls.request(server, "tasks/cancel", encode(id), UNHEARD)
        elif answered:
            answers = {**id, "inputResponses": Raw(encode(answered))}
            self._calls.request(server, "tasks/update", encode(answers), UNHEARD)
        return fit

    def all(self, names: list[str]) -> Steps:
        """tasks/list: server by server, page by page; one that fails contributes nothing, and nobody another's."""
        tasks: list[tuple[str, bytes]] = []
        for name in filter(self._is_usable, names):
            listed = self._listed[name] = dict[str, None]()
            pages = self.pages(name, "tasks/list", {}, "tasks", URI_PROBE_TIMEOUT)
            for raw in (yield from pages):
                id = value_of(object_of(raw).get("taskId"))
                if isinstance(id, str) and len(listed) < TASKS_MOST and self.owner(id) in (None, name):
                    listed[id] = None
                    tasks.append((name, bytes(raw)))
        return self.joined("tasks", tasks)

    def pages(self, name: str, method: str, params: Fields, key: str, seconds: float) -> Generator[Any, Any, list[Raw]]:
        """What a server lists, page by page; all others wait for it, so it has the time of one page for them all."""
        seen, found, until, room = set[bytes](), list[Raw](), self._out.now + seconds, self._host.limit
        while name in self._servers and len(found) < ENTRIES_MOST and self._out.now < until and room > 0:
            result = (yield Step(name, method, params, seconds)).result or b"{}"
            body, room = object_of(result), room - len(result)
            found += items_of(body.get(key))
            if (cursor := next_cursor(body, seen)) is None:
                break
            params = params | {"cursor": Raw(cursor)}
        return found[:ENTRIES_MOST]

    def joined(self, key: str, entries: list[tuple[str, bytes]]) -> bytes:
        """A list of all servers' entries, as much of it as hosts take."""
        fit = which_fit([(name, len(raw) + 1) for name, raw in entries], self._host.limit - EDGE)
        kept = b",".join(raw for _, raw in itertools.compress(entries, fit))
        return b'{"%b":[%b]}' % (key.encode(), kept)

    def _is_usable(self, name: str) -> bool:
        server = self._servers.get(name)  # it may have left the config meanwhile
        return bool(server and server.is_open and name not in self._out.clogged)

    def own_of_host(self, server: str, result: Raw) -> Raw:
        """The host's answer to tasks/list, with those that it made for this server."""
        body = object_of(result)
        tasks = items_of(body.get("tasks"))
        own = [one for one in tasks if self.is_for(server, value_of(object_of(one).get("taskId")))]
        return Raw(encode(body | {"tasks": Raw(encode(own))}))

    # ── how it goes with one ──

    def progressing(self, number: int | None) -> Pending | None:
        """The request whose token goes on with its task."""
        book, id = self._progress.get(number or 0, (self.of_servers, None))
        task = book.get(id)
        return task and task.pending

    def status_from_server(self, server: Facts, message: Envelope) -> bool:
        """Whether it may be told: the task is no other server's."""
        params = object_of(message.params)
        id = value_of(params.get("taskId"))
        owner = self.owner(id)
        if owner not in (None, server.name):
            self._out.note(server.peer, f"the status of a task of {owner} was dropped")
            return False
        if owner and value_of(params.get("status")) in TERMINAL:
            self._is_over(self.of_servers, id)
        return True

    def status_from_host(self, params: Fields) -> None:
        id = value_of(params.get("taskId"))
        if task := self.of_host.get(id):
            if value_of(params.get("status")) in TERMINAL:
                self._is_over(self.of_host, id)
            if self._servers[task.server].state is State.READY:
                self._out.to_server(task.server, notification_line("notifications/tasks/status", encode(params)))

    def _is_over(self, book: TaskBook, id: str) -> None:
        if book.get(id) and (pending := book.ends(id).pending):
            self._progress.pop(pending.id, None)

    def gone(self, server: str) -> None:
        """Its process has ended: nothing that it began goes on."""
        for number, (book, id) in list(self._progress.items()):
            if (task := book.get(id)) is None or task.server == server:
                del self._progress[number]

    def removed(self, server: str) -> None:
        self.gone(server)
        self._listed.pop(server, None)
        for book in (self.of_servers, self.of_host):
            book.remove(server)


class Listen(Struct, frozen=True):
    """A modern host's `subscriptions/listen`, open until it cancels. A subscription is ours, at a server."""

    ask: Ask
    changes: frozenset[str]  # the list notifications that it wants
    extra: Fields  # of its filter, what only extensions know
    owners: dict[str, str]  # of the resources that it wants, when it was opened


LEGACY_HOST: Final = b""  # among those who want a URI: listens have ids


class Subscriptions(Asker):
    """Who wants to hear of which resource and which change, and our own subscriptions, one a server, for all of that.
    Asker of those. https://modelcontextprotocol.io/specification/2026-07-28/basic/patterns/subscriptions"""

    def __init__(self, ground: Ground, merged: Merged, calls: Calls, tasks: Tasks) -> None:
        self._out, self._in_flight, self._host, self._servers = ground
        self._merged, self._calls, self._tasks = merged, calls, tasks
        self._listens: dict[bytes, Listen] = {}
        self._wanted: dict[str, dict[str, set[bytes]]] = {}  # by server and URI: who wants it

    # ── of the host ──

    def listen(self, ask: Ask) -> None:
        """subscriptions/listen: acknowledged, and open from now on."""
        catalogue = self._merged.catalogue
        wanted = fields_of(ask.fields.get("notifications", Raw(b"null")))
        flags = {key: method for method, (key, _) in CHANGES.items() if value_of(wanted.get(key)) is True}
        owners = {uri: found[0] for uri in uris_of(ask) if (found := catalogue.owners_of(uri))}
        is_modern = any(server.modern for server in self._servers.values())
        known = {key for key, _ in CHANGES.values()} | {"resourceSubscriptions"}
        extra = {key: raw.copy() for key, raw in wanted.items() if key not in known and is_modern}
        listen = self._listens[ask.id] = Listen(ask, frozenset(flags.values()), extra, owners)
        ask.by = self
        honoured: dict[str, Any] = dict.fromkeys(flags, True) | extra
        if "resourceSubscriptions" in wanted:
            honoured["resourceSubscriptions"] = list(owners)
        for method in LISTS:
            if LISTS[method].changed in listen.changes:
                self._host.seen.setdefault(method, catalogue.results[method])
        acknowledged = {"notifications": Raw(encode(honoured))}
        self._tell(listen, Peer.HOST, "notifications/subscriptions/acknowledged", acknowledged)
        for uri, owner in owners.items():
            self.want(self._servers[owner], uri, ask.id)
        if extra:
            self._listen_everywhere()

    def dropped(self, ask: Ask, params: Fields) -> None:
        listen = self._listens.pop(ask.id)
        for uri, owner in listen.owners.items():
            if owner in self._servers:
                self.unwant(self._servers[owner], uri, ask.id)
        if listen.extra:
            self._listen_everywhere()

    def end_listens(self) -> None:
        """mcpmux ends, and with it what it was listened to for."""
        for listen in self._listens.values():
            meta = {SUBSCRIPTION_KEY: Raw(listen.ask.id), SERVER_KEY: IMPLEMENTATION}
            result = Raw(encode({"resultType": "complete", "_meta": meta}))
            self._host.answer(listen.ask, Reply(result, None), as_it_is=True)
        self._listens.clear()

    def _tell(self, listen: Listen, source: Name, method: str, params: Fields) -> None:
        meta = object_of(params.get("_meta")) | {SUBSCRIPTION_KEY: Raw(listen.ask.id)}
        self._out.to_host(source, notification_line(method, encode(with_meta(params, meta))))

    def list_changed(self, notification: str) -> None:
        """One of the merged lists has."""
        for listen in self._listens.values():
            if notification in listen.changes:
                self._tell(listen, Peer.HOST, notification, {})

    # ── resources ──

    def steps(self, ask: Ask, server: str, uri: str, patience: float | None = None) -> Steps:
        """A legacy host subscribes to a resource of a legacy server, or unsubscribes."""
        reply = yield Step(server, ask.method, ask.fields, patience)
        if reply.error is not None or server not in self._servers:
            return reply
        if ask.method == "resources/subscribe":
            self._wanted.setdefault(server, {}).setdefault(uri, set()).add(LEGACY_HOST)
        else:
            self._forget(server, uri, LEGACY_HOST)
        return b"{}"  # exactly: TypeScript's EmptyResult refuses more

    def subscribed_at(self, uri: str) -> str | None:
        """The server at which a legacy host has subscribed to it."""
        return next((name for name, wanted in self._wanted.items() if LEGACY_HOST in wanted.get(uri, ())), None)

    def want(self, server: Facts, uri: str, whose: bytes = LEGACY_HOST) -> None:
        """A server is told when the first comes."""
        whose_else = self._wanted.setdefault(server.name, {}).setdefault(uri, set())
        is_first = not whose_else
        whose_else.add(whose)
        if is_first and server.is_open:
            self._tell_server(server, "resources/subscribe", uri)

    def unwant(self, server: Facts, uri: str, whose: bytes = LEGACY_HOST) -> None:
        """And when the last goes."""
        if self._forget(server.name, uri, whose) and server.is_open:
            self._tell_server(server, "resources/unsubscribe", uri)

    def _forget(self, server: str, uri: str, whose: bytes) -> bool:
        """Whether nobody wants it any more who did."""
        wanted = self._wanted.get(server, {})
        if uri not in wanted:
            return False
        wanted[uri].discard(whose)
        if not wanted[uri]:
            del wanted[uri]
        return uri not in wanted

    def _tell_server(self, server: Facts, method: str, uri: str) -> None:
        if server.modern:
            self.listen_at(server)
        else:
            self._calls.request(server, method, encode({"uri": uri}), UNHEARD)

    def is_wanted(self, server: str) -> bool:
        """Somebody wants to hear of something there."""
        return bool(self._wanted.get(server))

    def updated(self, server: Facts, message: Envelope) -> None:
        """To those who subscribed to it; of a sub-resource all hear who subscribed at this server."""
        params, wanted = object_of(message.params), self._wanted.get(server.name, {})
        uri = value_of(params.get("uri"))
        whose = wanted.get(uri) if isinstance(uri, str) else None
        if whose is None:
            if isinstance(uri, str) and self._whose(uri, server.name) != server.name:
                self._out.note(server.peer, "an update of another server's resource was dropped")
                return
            whose = {one for group in wanted.values() for one in group}
        if LEGACY_HOST in whose:
            self.pass_on(server, message)
        for listen in [self._listens[one] for one in whose if one in self._listens]:
            self._tell(listen, server.name, "notifications/resources/updated", params)

    def _whose(self, uri: str, server: str) -> str:
        """Who has listed it; else who is subscribed at for it, or this server if nobody is."""
        others = (name for name, wanted in self._wanted.items() if uri in wanted)
        return self._merged.catalogue.resources.get(uri) or next(others, server)

    def pass_on(self, server: Facts, message: Envelope) -> None:
        """What only legacy hosts, or extensions, know. No server tells of another's task, by whatever name."""
        assert message.method is not UNSET
        params = object_of(message.params)
        if self._tasks.owner(value_of(params.get("taskId"))) not in (None, server.name):
            self._out.note(server.peer, "what it said of another server's task was dropped")
            return
        meta = object_of(params.get("_meta"))
        if server.modern and meta.pop(SUBSCRIPTION_KEY, None) is not None:
            task = value_of(params.get("taskId"))
            for listen in list(self._listens.values()):
                tasks = value_of(listen.extra.get("taskIds"))
                if task in tasks if isinstance(tasks, list) else listen.extra:
                    asks = "inputRequests" in params
                    fit = self._tasks.shown_to(listen.ask.caller, server, params) if asks else params
                    self._tell(listen, server.name, message.method, fit)
            self._host.tell(server.name, notification_line(message.method, encode(with_meta(params, meta))))
        else:
            self._host.tell(server.name, notification_line(message.method, message.params))

    # ── ours, at modern servers ──

    def _listen_everywhere(self) -> None:
        for server in self._servers.values():
            if server.modern and server.is_open:
                self.listen_at(server)

    def listen_at(self, server: Facts) -> None:
        """One subscription for all that anybody wants of it. A wider one is opened before the narrower ends, and when
        that is acknowledged: so that many wishes at once are one more, not as many."""
        run = server.run
        if run.listens_for is None or (run.listen and run.former_listen):
            return
        is_few = len(self._wanted.get(server.name, ())) <= LISTEN_FEW
        if run.listen and not is_few and self._out.now < (due := run.listened_at + LISTEN_TOGETHER):
            self._out.timer("listen", server.name, due)
            return
        asked = self._filter_for(server)
        if run.listen and run.listens_for == asked:
            return
        run.listens_for, run.listened_at = asked, self._out.now
        run.former_listen, run.listen = run.listen, None
        if asked:
            body = encode({"notifications": asked})
            run.listen = self._calls.request(server, "subscriptions/listen", body, self, FOREVER)
        else:
            self._end_former(run)

    def _filter_for(self, server: Facts) -> Fields:
        can = server.capabilities
        wanted: dict[str, Any] = {key: True for key, name in CHANGES.values() if offers(can, name, "listChanged")}
        if uris := self._wanted.get(server.name):
            wanted["resourceSubscriptions"] = list(uris)
        tasks: list[str] = []
        for listen in self._listens.values():
            for key, raw in listen.extra.items():
                value = value_of(raw)
                if key == "taskIds" and isinstance(value, list):
                    tasks += [id for id in value if self._tasks.owner(id) == server.name]
                    value = tasks
                wanted[key] = value
        return {key: Raw(encode(value)) for key, value in wanted.items()}

    def _end_former(self, run: Run) -> None:
        former, run.former_listen = run.former_listen, None
        if former and self._in_flight.get(former.id) is former:
            self._calls.withdraw(former, {})

    def ended(self, pending: Pending, reply: Reply) -> None:
        """By the server: it is listened to again, after a while; one that knows no subscriptions is left alone."""
        server = self._servers.get(shown(pending.peer))
        if server is None or server.run.listen is not pending:
            if server and server.run.former_listen is pending:
                server.run.former_listen = None
                self.listen_at(server)
            return
        run = server.run
        run.listen = None
        self._end_former(run)
        if reply.error is not None and value_of(object_of(reply.error).get("code")) == METHOD_NOT_FOUND:
            run.listens_for = None
        elif server.is_open:
            self._out.timer("listen", server.name, self._out.now + run.listen_wait)
            run.listen_wait = min(LISTEN_AGAIN_MOST, run.listen_wait * 2)

    def due(self, server: Facts) -> None:
        if server.is_open and server.modern:
            self.listen_at(server)

    def acknowledged(self, server: Facts, message: Envelope) -> None:
        meta, run = object_of(object_of(message.params).get("_meta")), server.run
        if run.listen and number_of_id(meta.get(SUBSCRIPTION_KEY, Raw(b""))) == run.listen.id:
            run.listen_wait = LISTEN_AGAIN
            self._end_former(run)
            self.listen_at(server)  # for what was wished meanwhile

    def cancelled(self, server: Facts, message: Envelope) -> None:
        """A modern server ends a subscription of ours."""
        listen, id = server.run.listen, object_of(message.params).get("requestId", b"")
        if server.modern and listen and listen.id == number_of_id(id):
            self._calls.end(listen, Reply(Raw(b"{}"), None))

    # ── hooks ──

    def opened(self, server: Facts) -> None:
        if server.modern:
            self.listen_at(server)
            return
        for uri in self._wanted.get(server.name, ()):
            self._calls.request(server, "resources/subscribe", encode({"uri": uri}), UNHEARD)

    def removed(self, server: str) -> None:
        self._wanted.pop(server, None)


def uris_of(ask: Ask) -> list[str]:
    """The resources that a `subscriptions/listen` names. Raises `RpcError`."""
    wanted = fields_of(ask.fields.get("notifications", Raw(b"null")))
    uris = value_of(wanted.get("resourceSubscriptions"), [])
    if not isinstance(uris, list) or not all(isinstance(uri, str) for uri in uris):
        raise RpcError(INVALID_PARAMS, "params.notifications.resourceSubscriptions must be a list of strings")
    return uris


# ══ 11. Questions and rounds ═════════════════════════════════════════════════════════════════════════════════════════
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
# exchange, and `ROUNDS` is the table of its phases. Who may answer is decided by section 6; here it is done.


class PerMinute(dict[str, collections.deque[float]]):
    """By server, when it did something within the last minute."""

    def wait(self, server: str, most: int, now: float) -> float:
        """Seconds until it may do that again; 0: it may now."""
        times = self.setdefault(server, collections.deque())
        while times and times[0] <= now - 60:
            times.popleft()
        if len(times) < most:
            return 0.0
        return times[len(times) - most] + 60 - now if most > 0 else 60.0

    def count(self, server: str, now: float) -> None:
        self.setdefault(server, collections.deque()).append(now)


LOADED: Final = "loaded"  # the sampler's word that it can answer from now on
PREPARE: Final = "prepare"  # a request of ours for the sampler
NOBODY_ASKS: Final = "the host asks nothing, and mcpmux has no page here (`mcpmux check` says why)"


class Gate(Protocol):
    """The person's consent, as requests for their model meet it."""

    def passes(self, pending: Pending, prepared: Fields) -> bool: ...
    def looks_at(self, pending: Pending, reply: Reply) -> bool: ...
    def forget(self, pending: Pending) -> None: ...


class Turns(Asker):
    """Requests for a model of one's own, from their servers to the model: each waits its turn, is prepared by the
    sampler (what exactly would be sent, to which models, at which price), and is then put to these models. The same
    `Pending` all the way, under one number: what it comes to is for its `heir`."""

    stuck: Callable[[], None]  # the sampler does not even say that a request took too long
    took: Callable[[str], None]  # a server's request
    gate: Gate

    def __init__(self, ground: Ground, calls: Calls, sampler: Facts) -> None:
        self._out, self._in_flight, self._host, _ = ground
        self.sampling: SamplingOptions | None = None  # where there is a model
        self._calls, self._sampler = calls, sampler
        self._lines: dict[str, dict[int, float]] = {}  # by server: who waits in it, by number, and until when
        self._asked = PerMinute()  # of a model

    def take(self, server: str, id: bytes, params: Raw | UnsetType, heir: Asker, patience: float) -> Pending:
        """Nobody waits longer for its turn than `patience`, in seconds. Raises `RpcError`, with when it would come."""
        assert self.sampling
        limits, line = self.sampling.limits, self._lines.setdefault(server, {})
        patience = min(patience, self.sampling.timeout_sec)
        if len(line) >= TURNS_MOST:
            raise limit_reached("max_concurrency", f"{len(line)} requests of {server} wait their turn already")
        ahead = len(line) + self._not_counted(server)
        wait = math.ceil(self._asked.wait(server, limits.requests_per_minute - ahead, self._out.now))
        if wait > patience:
            text = f"{server} has made {limits.requests_per_minute} requests in a minute; free again in {wait} s"
            raise limit_reached("requests_per_minute", text, wait)
        pending = self._in_flight.open(Peer.TURN, self, QUESTIONS[0], FOREVER, server=server, server_id=id)
        pending.heir, pending.is_sent = heir, False
        pending.params = {key: raw.copy() for key, raw in object_of(params).items()}
        line[pending.id] = self._out.now + patience
        self.took(server)
        self._serve(server)
        return pending

    def _in_hand(self, server: str) -> list[Pending]:
        """Whose turn has come."""
        return [one for one in self._in_flight.asked_by(server) if one.asker is self and one.peer is not Peer.TURN]

    def _not_counted(self, server: str) -> int:
        return sum(one.method == PREPARE for one in self._in_hand(server))

    def _is_full(self, server: str) -> bool:
        return self.sampling is None or len(self._in_hand(server)) >= self.sampling.limits.max_concurrency

    def _serve(self, server: str) -> None:
        """The first in the line go on, as far as the limits let them."""
        line, now = self._lines.get(server, {}), self._out.now
        wait = 0.0
        while self.sampling and line and not wait and not self._is_full(server):
            most = self.sampling.limits.requests_per_minute - self._not_counted(server)
            wait = self._asked.wait(server, most, now)
            if not wait:
                number = next(iter(line))
                del line[number]
                pending = self._in_flight.get(number)
                assert pending and pending.params is not None
                pending.since = now
                self.prepare(pending, Raw(encode(pending.params)))
        due = min(now + (wait or FOREVER), *line.values(), FOREVER)
        self._out.timer("turn", server, due if line else None)

    def due(self, name: Name) -> None:
        """Some have waited too long; or the minute of some former ones is over."""
        server = shown(name)
        for number, until in list(self._lines.get(server, {}).items()):
            pending = self._in_flight.get(number)
            if pending and until <= self._out.now:
                limit = "max_concurrency" if self._is_full(server) else "requests_per_minute"
                waited = f"a request of {server} has waited {until - pending.opened:.0f} s for its turn"
                waited += f", {len(self._in_hand(server))} are open"
                self._out.note(server, waited, "info")
                self._calls.end(pending, Reply(None, error_body(limit_reached(limit, waited))))
        self._serve(server)

    def prepare(self, pending: Pending, params: Raw) -> None:
        """Also what the person has edited: it goes through redaction and guard like what a server asks."""
        pending.method = PREPARE
        self._put(pending, {"params": params})

    def _put(self, pending: Pending, body: Fields) -> None:
        """To the sampler, with what is left of its time."""
        assert self.sampling
        self._in_flight.hand_on(pending, Peer.SAMPLER)
        pending.params = body
        pending.patience = max(1.0, self.sampling.timeout_sec - (self._out.now - pending.since))
        is_loaded = self._sampler.is_open
        pending.deadline = self._out.now + pending.patience + (SAMPLER_SLACK if is_loaded else SAMPLER_LOADS)
        told = {"server": Raw(encode(pending.server)), "seconds": Raw(b"%.3f" % pending.patience)}
        self._calls.put(self._sampler, pending, body | told)

    def ask_model(self, pending: Pending, prepared: Fields) -> None:
        """`prepared` says which `params` would be sent, to which `models` in turn, and what in `usd` that may cost."""
        pending.method = QUESTIONS[0]
        self._asked.count(pending.server, self._out.now)
        body = {key: raw.copy() for key, raw in prepared.items()}
        self._put(pending, body | {"allowed": Raw(encode(pending.allowed))})

    def hold(self, pending: Pending) -> None:
        """The person is asked; its time stands still."""
        self._in_flight.hand_on(pending, Peer.TURN)
        pending.is_sent, pending.deadline = False, FOREVER

    def conclude(self, pending: Pending, reply: Reply) -> None:
        """One that was held."""
        self._in_flight.settle(pending)
        self._end(pending, reply)

    # ── how it ends ──

    def ended(self, pending: Pending, reply: Reply) -> None:
        if pending.method == PREPARE and reply.result is not None:
            prepared = object_of(reply.result)
            if self.gate.passes(pending, prepared):
                self.ask_model(pending, prepared)
            return
        if self.gate.looks_at(pending, reply):
            return
        is_late = bool(reply.failure) and pending.peer is Peer.SAMPLER and pending.deadline <= self._out.now
        self._end(pending, reply)
        if is_late:
            self.stuck()

    def _end(self, pending: Pending, reply: Reply) -> None:
        assert pending.heir is not None
        pending.heir.ended(pending, reply)
        self._leave(pending)

    def withdrawn(self, pending: Pending) -> None:
        assert pending.heir is not None
        pending.heir.withdrawn(pending)
        self._leave(pending)

    def _leave(self, pending: Pending) -> None:
        self._lines.get(pending.server, {}).pop(pending.id, None)
        self.gate.forget(pending)
        self._serve(pending.server)

    # ── the sampler ──

    def loaded(self) -> None:
        """From here on their time runs."""
        for pending in self._in_flight.owed_by(Peer.SAMPLER):
            pending.since, pending.deadline = self._out.now, self._out.now + pending.patience + SAMPLER_SLACK
            self._calls.watch(pending)

    def put_again(self) -> None:
        """The sampler was stuck and is stopped: what others have asked is for the next one, once: one may be why."""
        for pending in self._in_flight.owed_by(Peer.SAMPLER):
            if pending.again:
                self._calls.fail(pending, "mcpmux: the sampler did not answer this twice; ask for something else")
            elif pending.is_sent and pending.params is not None:
                pending.again, pending.since = True, self._out.now
                self._put(pending, pending.params)

    def forget(self, server: str) -> None:
        """It is no longer in the config, or not like this, and all that it has asked has ended."""
        for table in (self._lines, self._asked):
            table.pop(server, None)
        self._out.timer("turn", server, None)


class Questions(Asker):
    """What servers ask, and the answers' way back to them. Asker of what legacy servers ask."""

    def __init__(self, ground: Ground, calls: Calls, tasks: Tasks, turns: Turns, own: Mapping[Name, Facts]) -> None:
        self._out, self._in_flight, self._host, self._servers = ground
        self._turns = turns
        self.rounds: Rounds  # set when there are some
        self.carried: Callable[[Facts], None]  # there is a call that can take along what waits for consent
        self._calls, self._tasks, self.own = calls, tasks, own
        self._orphans: dict[str, dict[int, Pending]] = {}  # by server: asked outside any call, or with all parked
        self._warned: set[str] = set()  # of servers that use what is deprecated
        self._on_page = PerMinute()

    # ── who is to answer ──

    def asked(self, server: Facts, message: Envelope) -> None:
        """A request from a server. https://modelcontextprotocol.io/specification/2025-11-25/client"""
        assert message.id is not UNSET and message.method is not UNSET
        id, method = bytes(message.id), message.method
        if not is_id(id) or server.modern:
            why = "in the modern era servers send none" if server.modern else "its id is neither string nor number"
            self._out.note(server.peer, f"a request was dropped: {why}")
            return
        try:
            if method == "ping":
                self.answer(server.name, id, Reply(Raw(b"{}"), None))
            elif self._in_flight.asked(server.name, id):
                raise RpcError(INVALID_REQUEST, "a request with this id is still open")
            elif len(self._in_flight.asked_by(server.name)) >= QUESTIONS_MOST:
                text = f"mcpmux: {server.name} has {QUESTIONS_MOST} questions open; ask again when one is answered"
                raise RpcError(INTERNAL_ERROR, text)
            elif method in HOST_TASK_METHODS:
                self._ask_about_task(server, id, method, message.params)
            elif method in QUESTIONS:
                self._put(server, id, method, message.params)
            else:
                raise RpcError(METHOD_NOT_FOUND, f"Method not found: {method[:TEXT_MOST]}")
        except RpcError as error:
            self.answer(server.name, id, Reply(None, error_body(error)))

    def _put(self, server: Facts, id: bytes, method: str, params: Raw | UnsetType) -> None:
        """To whoever may answer it."""
        name, call = server.name, self.call_of(server)
        caller = self.caller_of(server, call)
        verdict = self.judge(server, method, params, caller)
        if isinstance(verdict, Forward | OnPage) and self.is_listing(server):
            if method != QUESTIONS[0] or not self._turns.sampling or server.options.sampling != "auto":
                self.answer(name, id, self._from_memory(server, method))
                return
            verdict = Locally()  # the host may not be asked now, but it can be done without
        match verdict:
            case Answer(result):
                self.answer(name, id, Reply(Raw(result), None))
            case Locally():
                self.sample(server, id, params)
            case OnPage(asked):
                self.ask_page(server, id, asked, call)
            case Forward(shown_params) if call and caller.modern:
                self.rounds.join(server, call, self._for_later(server, id, method, params), shown_params)
                self._asked(server)
            case Forward() if not call and (not self._host.revision or self.rounds.has_parked(name)):
                self.leave(self._for_later(server, id, method, params))
            case Forward(shown_params):
                self.ask_host(server, id, method, shown_params)

    def caller_of(self, server: Facts, call: Pending | None) -> Caller:
        if call and call.ask:
            return call.ask.caller
        return self._host.legacy if self._host.revision else server.run.starter

    def judge(self, server: Facts, method: str, params: Raw | UnsetType, caller: Caller) -> Verdict:
        told = self._calls.told(server, caller) if server.modern else server.run.told
        if method in DEPRECATED and server.name not in self._warned:
            self._warned.add(server.name)
            note = "is deprecated since 2026-07-28; it goes on working here"
            self._out.log("info", f"{server.name} uses {method}, which {note}")
        own = self._calls.own_for(server, caller)
        return judge_question(method, params, server.name, server.options, caller.capabilities, told, own)

    def call_of(self, server: Facts) -> Pending | None:
        """The call in which a legacy server asks: its oldest one that is not parked."""
        owed = self._in_flight.owed_by(server.name)
        return next((call for call in owed if call.ask and call.method in CARRIERS), None)

    def is_listing(self, server: Facts) -> bool:
        """Whether the server may be asking before it answers what somebody waits for. A call that it has too is a
        better reason for its question, unless the host waits for lists."""
        owed = [one for one in self._in_flight.owed_by(server.name) if one.is_sent]
        is_called = not self._host.held and any(one.method in CARRIERS and one.ask for one in owed)
        return any(one.method == "completion/complete" or (one.method in LISTS and not is_called) for one in owed)

    def _from_memory(self, server: Facts, method: str) -> Reply:
        """For a server that may be waiting for this before it answers us, while the host waits for us: if the host
        were asked, nobody would move."""
        roots = self._host.roots or (table_roots(server.options) if server.options.roots else None)
        if method == "roots/list" and roots:
            return Reply(Raw(roots), None)
        return failed(f"nobody can be asked while {server.name} is listing or completing")

    def _ask_about_task(self, server: Facts, id: bytes, method: str, params: Raw | UnsetType) -> None:
        """A server follows a task that the host made for it."""
        if not offers(server.run.told, "tasks"):
            raise RpcError(METHOD_NOT_FOUND, "the host declared no tasks")
        name = server.name
        if method != "tasks/list" and not self._tasks.is_for(name, text_in(fields_of(params), "taskId")):
            raise RpcError(INVALID_PARAMS, "the host has made no task with this taskId for this server")
        self.ask_host(server, id, method, params)

    # ── to a legacy host, and to the model ──

    def ask_host(
        self, server: Facts, id: bytes, method: str, params: Raw | bytes | UnsetType, asker: Asker | None = None
    ) -> Pending:
        """Raises `RpcError` if it is more than hosts take."""
        name, seconds = server.name, self._host.options.input_timeout_sec
        pending = self._in_flight.open(Peer.HOST, asker or self, method, seconds, server=name, server_id=id)
        fields = object_of(params)
        pending.calls = () if asker else self._calls_of(server, fields)
        server.run.remember_pages([fields])
        pending.is_task = "task" in fields
        pending.token = progress_token(fields)
        if pending.token is not None:
            meta = object_of(fields["_meta"]) | {"progressToken": Raw(b"%d" % pending.id)}
            params = encode(fields | {"_meta": Raw(encode(meta))})
        line = request_line(pending.id, method, params)
        if len(line) > self._host.limit:
            self._in_flight.settle(pending)
            raise RpcError(INVALID_PARAMS, f"the request has {len(line)} bytes, more than hosts take")
        self._calls.watch(pending)
        self._asked(server)
        self._host.tell(name, line, question=pending.id)
        return pending

    def ask_for_us(self, form: Fields, asker: Asker) -> Pending:
        """A question of mcpmux's own, for a legacy host."""
        seconds = self._host.options.input_timeout_sec
        pending = self._in_flight.open(Peer.HOST, asker, QUESTIONS[1], seconds, server=OURSELVES)
        self._calls.watch(pending)
        params = encode(form | {"message": named_message(form, OURSELVES)})
        self._host.tell(OURSELVES, request_line(pending.id, pending.method, params), question=pending.id)
        return pending

    def sample(self, server: Facts, id: bytes, params: Raw | UnsetType, asker: Asker | None = None) -> Pending:
        """A question for a model of one's own. Raises `RpcError` beyond the limits that are a server's own."""
        call = self.call_of(server)
        patience = self.patience_of(call.ask) - (self._out.now - call.opened) if call else FOREVER
        calls = self._calls_of(server, object_of(params))
        try:
            pending = self._turns.take(server.name, id, params, asker or self, patience)
        except RpcError as refusal:
            self._out.note(server.peer, str(refusal), "info")
            raise
        pending.calls = () if asker else calls
        self._asked(server)
        return pending

    def ask_page(
        self, server: Facts, id: bytes, asked: Fields, call: Pending | None, asker: Asker | None = None
    ) -> Pending:
        """An elicitation for the person. Raises `RpcError` for a server that asks too often."""
        name, now, waits = server.name, self._out.now, self.patience_of(call and call.ask)
        if self._on_page.wait(name, PAGE_MOST, now):
            raise RpcError(INTERNAL_ERROR, f"mcpmux: {name} has asked the person {PAGE_MOST} times within a minute")
        self._on_page.count(name, now)
        pending = self._in_flight.open(Peer.PAGE, asker or self, "ask", waits, server=name, server_id=id)
        pending.calls = () if asker else self._calls_of(server, asked)
        self._asked(server)
        self._put_to_page(pending, asked, call)
        return pending

    def show(self, asker: Asker, asked: Fields, call: Pending | None = None, what: str = "", **more: Any) -> Pending:
        """A question of mcpmux's own, for the page. `call` is the one that waits, `what` the tool that it is about."""
        waits = self.patience_of(call and call.ask)
        pending = self._in_flight.open(Peer.PAGE, asker, "ask", waits, server=OURSELVES)
        self._put_to_page(pending, asked, call, what, **more)
        return pending

    def _put_to_page(self, pending: Pending, asked: Fields, call: Pending | None, what: str = "", **more: Any) -> None:
        pending.within = call
        what = call.ask.what if call and call.ask else what
        if self._out.due_at("still", Peer.PAGE) == FOREVER:
            self._out.timer("still", Peer.PAGE, self._out.now + STILL_WAITING)
        question = page_question(pending.server, what, asked, pending.patience, **more)
        self._calls.put(self.own[Peer.PAGE], pending, question)

    def open_page(self) -> None:
        pending = self._in_flight.open(Peer.PAGE, UNHEARD, "open", PAGE_OPENS, server=OURSELVES)
        self._calls.put(self.own[Peer.PAGE], pending, {})

    def patience_of(self, ask: Ask | None) -> float:
        """How long the person may take, since hosts give up on a call."""
        most = self._host.options.input_timeout_sec
        if ask is None or (progress_token(ask.fields) is not None and ask.caller.name != "claude-ai"):
            return most
        return min(most, HOST_PATIENCE.get(ask.caller.name, HOST_PATIENCE_LEAST))

    def still_waiting(self) -> None:
        """Hosts whose calls wait for the person hear that they do."""
        asked = self._in_flight.owed_by(Peer.PAGE)
        for pending in asked:
            call = pending.within
            if call and call.ask and call.token and self._host.open.get(call.ask.id) is call.ask:
                call.reached = max(call.reached, 0.0) + 1e-6
                told = {"progress": call.reached, "message": "waiting for you on the page of mcpmux"}
                body = encode({"progressToken": Raw(call.token), **told})
                call.asker.progress(call, notification_line("notifications/progress", body))
        if asked:
            self._out.timer("still", Peer.PAGE, self._out.now + STILL_WAITING)

    def said(self, question: Pending, reply: Reply) -> Reply:
        """What a question has come to, for whoever asked it."""
        if question.peer is not Peer.PAGE:
            return reply
        if why := value_of(object_of(reply.result).get("reason")) or reply.failure:
            self._out.log("info", f"{question.server}: the person was not reached: {why}")
        return said_on_page(reply)

    def _asked(self, server: Facts) -> None:
        """Calls wait until what a server asks first is answered, but not for ever."""
        if server.run.stage is Stage.OPENING:
            self._out.timer("open", server.name, server.run.up_at + server.options.startup_timeout_sec)

    def _calls_of(self, server: Facts, params: Fields) -> tuple[int, ...]:
        """The host's calls that this server knows: a question does not say in which of them it is asked, unless it
        is asked in a task. (One that a call has ended with is its round's.)"""
        if RELATED_TASK in object_of(params.get("_meta")):
            return ()
        owed = self._in_flight.owed_by(server.name)
        return tuple(call.id for call in owed if call.ask and call.is_sent and call.method in CARRIERS)

    # ── what waits for a modern host's next call ──

    def _for_later(self, server: Facts, id: bytes, method: str, params: Raw | UnsetType) -> Pending:
        question = self._in_flight.open(Peer.NEXT, self, method, FOREVER, server=server.name, server_id=id)
        question.is_sent, question.params = False, object_of(params)
        question.calls = self._calls_of(server, question.params)
        return question

    def leave(self, question: Pending) -> None:
        """Outside any call, or with all calls parked: it waits for the next one."""
        question.round, question.calls = 0, ()
        self._orphans.setdefault(question.server, {})[question.id] = question
        self._out.timer("orphans", question.server, self._out.now + ORPHAN_WAIT)

    def carry(self, server: Facts, call: Pending) -> None:
        """A call that can take along what waits for one."""
        self.carried(server)
        for question in self._orphans.pop(server.name, {}).values():
            assert call.ask
            params = Raw(encode(question.params or {}))
            try:
                match self.judge(server, question.method, params, call.ask.caller):
                    case Forward(shown_params):
                        self.rounds.join(server, call, question, shown_params)
                    case Answer(result):
                        self._calls.end(question, Reply(Raw(result), None))
                    case OnPage(asked):
                        self._in_flight.settle(question)
                        self.ask_page(server, question.server_id, asked, call)
                    case Locally():
                        self._in_flight.settle(question)
                        self.sample(server, question.server_id, params)
            except RpcError as error:
                if self._in_flight.get(question.id) is question:
                    self._in_flight.settle(question)
                self.ended(question, Reply(None, error_body(error)))

    def orphans_due(self, name: Name) -> None:
        """Nobody called this server for a while. While one of its calls is parked, there is hope."""
        if self.rounds.has_parked(shown(name)):
            self._out.timer("orphans", name, self._out.now + ORPHAN_WAIT)
            return
        text = f"mcpmux: the host can be asked only while it calls {shown(name)}, and it has not called within "
        for question in self._orphans.pop(shown(name), {}).values():
            self._calls.end(question, failed(text + f"{ORPHAN_WAIT:g} s"))

    # ── the answer ──

    def answer(self, server: str, id: bytes, reply: Reply) -> None:
        if reply.result is not None:
            self._out.to_server(server, result_line(id, reply.result))
        else:
            assert reply.error is not None
            self._out.to_server(server, error_line(id, reply.error))

    def ended(self, pending: Pending, reply: Reply) -> None:
        """On its way to the server that asked."""
        name, reply = pending.server, self.said(pending, reply)
        if reply.result is not None and pending.method == "tasks/list":
            reply = Reply(self._tasks.own_of_host(name, reply.result), None)
        elif reply.result is not None and pending.is_task:
            self._tasks.made(self._tasks.of_host, pending, Task(name), reply.result)
        self.answer(name, pending.server_id, reply)
        self.over(self._servers[name])

    def over(self, server: Facts) -> None:
        """What it asked is answered: its calls' clocks start anew, and waiting ones go out after some quiet."""
        if server.state is not State.READY:
            return
        for pending in self._in_flight.owed_by(server.name):
            pending.deadline = max(pending.deadline, min(self._out.now + pending.patience, pending.limit))
        waiting = self._orphans.get(server.name, {})
        is_quiet = all(one.id in waiting for one in self._in_flight.asked_by(server.name))
        if server.run.stage is Stage.OPENING and is_quiet:
            self._out.timer("open", server.name, self._out.now + QUIET_AFTER_INITIALIZED)

    def withdrawn(self, pending: Pending) -> None:
        """Its answer, if it still comes, is dropped."""
        self._orphans.get(pending.server, {}).pop(pending.id, None)
        self.rounds.forget(pending)

    def progress(self, pending: Pending, line: bytes) -> None:
        server = self._servers.get(pending.server)
        if server and server.state is State.READY and not server.modern:
            self._out.to_server(server.name, line)

    # ── hooks ──

    def cancelled(self, server: Facts, message: Envelope) -> None:
        """By the server that asked."""
        params = object_of(message.params)
        pending = self._in_flight.asked(server.name, bytes(params.get("requestId", b"")))
        if pending and not server.modern:
            self._calls.withdraw(pending, params)
            self.over(server)

    def call_dropped(self, call: Pending) -> None:
        """The host has cancelled a call: what its server asks for it, and for no other, is no longer to be answered.
        Servers do not cancel their own questions when they are cancelled; a model would be paid for nothing."""
        name = shown(call.peer)
        for question in self._in_flight.asked_by(name):
            if call.id in question.calls and not any(self._in_flight.get(other) for other in question.calls):
                self._calls.withdraw(question, {"reason": Raw(b'"the call that it was for is cancelled"')})
                error = failed("mcpmux: the host cancelled the call that this was asked for")
                self.answer(name, question.server_id, error)
                self.over(self._servers[name])

    def opened(self, server: Facts) -> None:
        """What it asked before that, and nobody could take, is answered as far as that can be."""
        for question in self._orphans.pop(server.name, {}).values():
            self._calls.end(question, self._from_memory(server, question.method))

    def gone(self, server: Facts, reason: str) -> None:
        """Its process has ended. What a call has ended with belongs to its round, and the call is made again."""
        self._withdraw_all(server, reason, lambda pending: (pending.heir or pending.asker) is self)

    def _withdraw_all(self, server: Facts, reason: str, ends: Callable[[Pending], bool]) -> None:
        for pending in reversed(self._in_flight.asked_by(server.name)):  # else the next in line would begin
            if self._in_flight.get(pending.id) is pending and ends(pending):  # it may have ended with another one
                self._calls.withdraw(pending, {"reason": Raw(encode(reason))})

    def removed(self, server: Facts, reason: str) -> None:
        self._withdraw_all(server, reason, lambda pending: True)
        for table in (self._orphans, self._on_page):
            table.pop(server.name, None)
        self._warned.discard(server.name)
        self._turns.forget(server.name)
        self._out.timer("orphans", server.name, None)


# ── rounds ──


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
    ASK = "mcpmux itself has a question"
    COMPLETE = "nothing is missing any more"
    END = "cancelled, failed, or its host request has ended"


# A missing pair is our bug.
ROUNDS: Final[dict[tuple[Phase, Turn], Phase]] = {
    (Phase.ASKING, Turn.DUE): Phase.PARKED,
    (Phase.PARKED, Turn.RETRY): Phase.GATHERING,
    (Phase.PARKED, Turn.PARTIAL): Phase.PARKED,
    (Phase.PARKED, Turn.DUE): Phase.OVER,  # it never came
    (Phase.PARKED, Turn.ASK): Phase.PARKED,
    (Phase.GATHERING, Turn.ASK): Phase.PARKED,
    (Phase.GATHERING, Turn.COMPLETE): Phase.OVER,
    (Phase.GATHERING, Turn.DUE): Phase.OVER,  # there was nothing to ask, only to wait
    (Phase.GATHERING, Turn.VISIT): Phase.HELD,
    (Phase.HELD, Turn.COMPLETE): Phase.OVER,
    (Phase.HELD, Turn.DUE): Phase.OVER,
    **{(phase, Turn.END): Phase.OVER for phase in Phase if phase is not Phase.OVER},
}


def next_phase(phase: Phase, turn: Turn) -> Phase:
    try:
        return ROUNDS[phase, turn]
    except KeyError:
        raise Bug(f"a round that is {phase.name} cannot take {turn.name}") from None


class Question(Struct):
    shown: Raw  # as an entry of `inputRequests`; b"" if the host is not asked for it
    number: int = 0  # in the in-flight table; 0 if nothing is open for it
    is_open: bool = True


class Round(Struct, eq=False):
    """One exchange with the host, from the first question to the answers' arrival at the server."""

    id: int
    server: str
    call: Pending  # in flight at a legacy server, ended at a modern one
    asker: Asker  # whose the call is; while it is in flight the round stands between
    ask: Ask  # the host's request: open, but for a round that is parked
    phase: Phase
    questions: dict[str, Question] = {}
    size: int = 0  # bytes of what is shown
    answers: dict[str, Raw] = {}  # for a modern server, by question
    state: Raw | None = None  # a modern server's `requestState`
    token: str = ""  # ours, while parked
    kept: Reply | None = None  # how the call ended while it was parked
    pages: dict[str, bool] = {}  # by elicitationId: whether the server said that it is complete
    matter: Matter | None = None  # that the person is asked to allow, before any server has the call

    @property
    def is_waited_for(self) -> bool:
        """By a request of the host's."""
        return self.phase in (Phase.GATHERING, Phase.HELD)

    @property
    def has_open(self) -> bool:
        return any(one.is_open for one in self.questions.values())


def known_result(call: Pending, reply: Reply, body: Fields, info: bytes) -> Reply:
    """A modern server's result with a type that the host knows."""
    assert call.ask and reply.result is not None
    kind = value_of(body.get("resultType"), "complete")
    if "resultType" not in body and call.ask.caller.modern:  # we may take that for complete, and not say it
        reply = Reply(Raw(modern_result(call.method, reply.result, info)), None)
    is_of_extension = isinstance(kind, str) and offers(call.ask.caller.capabilities, "extensions")
    if kind != "complete" and (kind == "input_required" or not is_of_extension):
        wrong = f"{call.peer} sent a result of type {str(kind)[:TEXT_MOST]!r}, which nobody here knows"
        reply = Reply(None, error_body(RpcError(INTERNAL_ERROR, wrong)))
    return reply


def with_named_messages(body: Fields, verdicts: Mapping[str, Verdict]) -> Raw:
    """What a modern server asks, as it is but for its name in what a person reads."""
    requests = object_of(body.get("inputRequests"))
    for key, verdict in verdicts.items():
        request = object_of(requests[key])
        if value_of(request.get("method")) == QUESTIONS[1] and isinstance(verdict, Forward):
            requests[key] = Raw(encode(request | {"params": Raw(verdict.params or b"{}")}))
            body["inputRequests"] = Raw(encode(requests))
    return Raw(encode(body))


class Rounds(Asker):
    """All open rounds. Asker of calls that wait for a person, and of what modern servers ask."""

    decided: Callable[[Ask, Matter, Reply], None]  # a retry has brought what the person says to a call
    holds: Callable[[Ask], bool]  # what the person has allowed is still what would be done

    def __init__(self, ground: Ground, calls: Calls, questions: Questions, secret: Callable[[], str]) -> None:
        self._out, self._in_flight, self._host, self._servers = ground
        self._calls, self._questions, self._secret = calls, questions, secret
        self._open: dict[int, Round] = {}
        self._minted = 0
        questions.rounds = self

    def __len__(self) -> int:
        return len(self._open)

    # ── beginning and ending ──

    def _begin(self, server: str, call: Pending, ask: Ask, phase: Phase) -> Round:
        self._minted += 1
        opened = self._open[self._minted] = Round(self._minted, server, call, call.asker, ask, phase)
        return opened

    def _close(self, ended: Round, turn: Turn) -> None:
        ended.phase = next_phase(ended.phase, turn)
        if ended.phase is not Phase.OVER:
            raise Bug(f"a round is {ended.phase.name} and not over")
        del self._open[ended.id]
        self._out.timer("round", str(ended.id), None)
        ended.call.round, ended.call.asker = 0, ended.asker

    def _end(self, ended: Round) -> None:
        """Without an outcome."""
        self._close(ended, Turn.END)
        self._let_go(ended)

    def _let_go(self, ended: Round) -> None:
        """What is open is withdrawn; a legacy server's own questions go to another of its calls, or wait for one."""
        for question in ended.questions.values():
            pending = self._in_flight.get(question.number)
            if pending and pending.peer is Peer.NEXT and pending.server != OURSELVES:
                self._questions.leave(pending)
            elif pending:
                self._calls.withdraw(pending, {})
        server = self._servers.get(ended.server)
        call = server and self._questions.call_of(server)
        if server and call and call.ask and call.ask.caller.modern:
            self._questions.carry(server, call)

    def _withdraw_open(self, found: Round) -> None:
        for question in found.questions.values():
            pending = self._in_flight.get(question.number)
            if question.is_open and pending:
                question.is_open = False
                self._calls.withdraw(pending, {})

    def _fail(self, failing: Round, text: str) -> None:
        """The host's request that waits for it ends."""
        self._close(failing, Turn.END)
        self._withdraw_open(failing)
        self._host.answer(failing.ask, failed(text), failing.server)
        failing.asker.withdrawn(failing.call)

    def approve(self, ask: Ask, matter: Matter, form: Fields) -> None:
        """A modern host is asked, before any server has the call; its retry brings the answer, and the call."""
        call = Pending(0, matter.server, self._calls, ask.method, 0.0, self._out.now, FOREVER, FOREVER, ask, ask.caller)
        opened = self._begin(matter.server, call, ask, Phase.PARKED)
        opened.matter, opened.questions[OURSELVES] = matter, Question(embedded(QUESTIONS[1], encode(form)))
        self._put_to_host(opened, ask)

    # ── a question of ours about what a modern server asks ──

    def call_of(self, pending: Pending) -> Pending:
        """The call that has ended with this question, as its host has made it last."""
        return self._open[pending.round].call

    def ask_too(self, own: Pending, pending: Pending, form: Fields) -> None:
        """The request of a modern host that waits for this ends with a question of ours; or the next one does."""
        found = self._open[pending.round]
        waited_for, found.phase = found.is_waited_for, next_phase(found.phase, Turn.ASK)
        found.questions[f"{OURSELVES}-{own.id}"] = Question(embedded(QUESTIONS[1], encode(form)), own.id)
        own.round = found.id
        if waited_for:
            self._put_to_host(found, found.ask)

    # ── a legacy server asks in a modern host's call ──

    def join(self, server: Facts, call: Pending, question: Pending, params: Raw | bytes | UnsetType) -> None:
        """Its question becomes part of what the host of this call is asked. Raises `RpcError`."""
        entry = embedded(question.method, params)
        joined = self._open.get(call.round)
        size = len(bytes(entry)) + (joined.size if joined else 0)
        if size > self._host.limit - EDGE:
            self._in_flight.settle(question)
            raise RpcError(INVALID_PARAMS, "the request is larger than hosts take")
        if joined is None:
            assert call.ask
            joined = self._begin(server.name, call, call.ask, Phase.ASKING)
            call.round, call.asker = joined.id, self
            self._out.timer("round", str(joined.id), self._out.now + ASK_TOGETHER)
        joined.questions[f"{question.server}-{question.id}"] = Question(entry, question.id)
        joined.size = size
        question.round = joined.id
        question.calls = question.calls or (call.id,)  # which of them, is a guess

    def forget(self, question: Pending) -> None:
        """It was withdrawn."""
        if found := self._open.get(question.round):
            found.questions = {key: one for key, one in found.questions.items() if one.number != question.id}
            if found.phase is Phase.ASKING and not found.questions:
                self._end(found)

    def has_parked(self, server: str) -> bool:
        """A legacy server's call whose host request has ended."""
        return any(one.server == server and self._is_parked_call(one) for one in self._open.values())

    def _is_parked_call(self, one: Round) -> bool:
        return one.phase is Phase.PARKED and self._in_flight.get(one.call.id) is one.call

    def due(self, name: Name) -> None:
        found = self._open[int(shown(name))]
        match found.phase:
            case Phase.ASKING:
                found.phase = next_phase(found.phase, Turn.DUE)
                found.call.ask, found.call.deadline = None, FOREVER
                self._put_to_host(found, found.ask)
            case Phase.PARKED:
                self._expire(found)
            case _:
                self._try_again(found, Turn.DUE)

    # ── the host is asked, and comes back ──

    def _put_to_host(self, parked: Round, ask: Ask) -> None:
        """Ends a host's request with the questions that are open, and a state that only this round's retry can have."""
        self._minted += 1
        parked.ask, parked.token = ask, f"{STATE_PREFIX}{parked.id}.{self._minted}.{self._secret()}"
        self._out.timer("round", str(parked.id), self._out.now + self._host.options.input_timeout_sec)
        entries = {key: one.shown for key, one in parked.questions.items() if one.is_open and bytes(one.shown)}
        self._host.answer(ask, Reply(input_required(entries, parked.token), None), parked.server, as_it_is=True)

    def retry(self, ask: Ask, token: str) -> None:
        """The host came back with a state of ours. Raises `RpcError`."""
        if (found := next((one for one in self._open.values() if one.token == token), None)) is None:
            text = "this requestState is of no use (any more): send the request again without it"
            raise RpcError(INVALID_PARAMS, text)
        if identity(ask.method, ask.fields) != identity(found.ask.method, found.ask.fields):
            raise RpcError(INVALID_PARAMS, "this requestState belongs to another request: method, name or arguments")
        if (server := self._servers.get(found.server)) is None:
            self._close(found, Turn.END)
            self._host.answer(ask, found.kept or failed(f"mcpmux: {found.server} was removed from the config"))
            found.asker.withdrawn(found.call)
            return
        found.token = ""  # it is good for one retry
        ask.approved = found.ask.approved
        self._take_answers(found, ask)
        if any(one.is_open and bytes(one.shown) for one in found.questions.values()) and not found.kept:
            found.phase = next_phase(found.phase, Turn.PARTIAL)
            self._put_to_host(found, ask)
            return
        if found.matter and not found.kept:
            self._close(found, Turn.END)
            self.decided(ask, found.matter, Reply(found.answers[OURSELVES], None))
            return
        found.phase = next_phase(found.phase, Turn.RETRY)
        self._out.timer("round", str(found.id), None)
        if found.kept or self._in_flight.get(found.call.id) is found.call:
            self._go_on(server, found, ask)
        else:
            self._make_again(found, ask)

    def _take_answers(self, found: Round, ask: Ask) -> None:
        responses = object_of(ask.fields.get("inputResponses"))
        for key, question in list(found.questions.items()):
            if not question.is_open or not bytes(question.shown):
                continue
            reply = brought(object_of(question.shown), responses.get(key), ask.caller.capabilities)
            if reply is None:
                continue
            question.is_open = False
            if (pending := self._in_flight.get(question.number)) is None:
                self._gathered(found, key, reply)
            else:
                self._host.keep_roots(pending.method, reply)
                self._calls.end(pending, reply)

    def _go_on(self, server: Facts, found: Round, ask: Ask) -> None:
        """The retry stands for the parked call from now on, or gets what that has ended with."""
        self._close(found, Turn.COMPLETE)
        call, kept = found.call, found.kept
        call.ask, call.caller, call.token, call.reached = ask, ask.caller, progress_token(ask.fields), -FOREVER
        ask.by, ask.number = self._calls, call.id
        if kept and server.modern:  # its own answers are never kept: this is a failure of ours
            self._host.answer(ask, kept, server.name)
        elif kept:
            self._let_go(found)
            self._conclude(server, call, kept)
        else:
            call.deadline = min(self._out.now + call.patience, call.limit)
            self._calls.watch(call)
            self._questions.carry(server, call)

    def _make_again(self, found: Round, ask: Ask) -> None:
        """The call has ended at its server: it is to be made again, as the host has it now."""
        call = found.call
        if call.params is not None and "_meta" in ask.fields:
            call.params = call.params | {"_meta": ask.fields["_meta"]}
        call.token, call.reached = progress_token(ask.fields), -FOREVER
        self._wait_for(found, ask)
        if not found.has_open:
            self._complete(found)

    def _complete(self, found: Round) -> None:
        """All that was asked is answered."""
        declined = any(value_of(object_of(raw).get("action")) != "accept" for raw in found.answers.values())
        if found.pages and declined:
            self._fail(found, f"mcpmux: {found.server} needs a page to be visited first, and that was declined")
        elif not all(found.pages.values()):
            found.phase = next_phase(found.phase, Turn.VISIT)
            self._out.timer("round", str(found.id), self._out.now + URL_WAIT)
        else:
            self._try_again(found, Turn.COMPLETE)

    def _wait_for(self, found: Round, ask: Ask) -> None:
        """A request of the host's stays open for this round."""
        found.ask = found.call.ask = ask
        found.call.caller = ask.caller
        ask.by, ask.number = self, found.id

    def _expire(self, parked: Round) -> None:
        is_open = self._is_parked_call(parked)
        self._close(parked, Turn.DUE)
        text = f"mcpmux: nobody has answered within {self._host.options.input_timeout_sec:g} s (input_timeout_sec)"
        for question in parked.questions.values():
            if (pending := self._in_flight.get(question.number)) and pending.peer is Peer.NEXT:
                self._calls.end(pending, failed(text))
            elif pending:
                self._calls.withdraw(pending, {})
        if is_open:
            self._calls.withdraw(parked.call, {"reason": Raw(encode(text))})
        else:
            parked.asker.withdrawn(parked.call)
        self._out.log("info", f"{parked.server}: the host did not come back with what {parked.call.method} needs")

    # ── a server's answer that is a question ──

    def answered(self, server: Facts, call: Pending, reply: Reply) -> None:
        """A refusal, or an answer where a side is modern: to the call's asker, unless it is a question."""
        if not server.modern and self._wants_pages(server, call, reply):
            self._in_flight.settle(call)
            if call.round:
                self._end(self._open[call.round])  # it ended before its questions went out
            self._conclude(server, call, reply)
            return
        if server.modern and reply.result is not None:
            body = object_of(reply.result)
            kind = value_of(body.get("resultType"), "complete")
            assert call.ask
            if kind == "input_required" and call.method in CARRIERS:
                self._in_flight.settle(call)
                self._input_required(server, call, call.ask, body)
                return
            reply = known_result(call, reply, body, server.info)
        self._calls.end(call, reply)

    def _conclude(self, server: Facts, call: Pending, reply: Reply) -> None:
        """A legacy server's answer to a modern host, unless it is a question in the words of 2025-11-25."""
        if self._wants_pages(server, call, reply):
            self._pages_required(server, call, reply)
        else:
            call.asker.ended(call, reply)

    def _input_required(self, server: Facts, call: Pending, ask: Ask, body: Fields) -> None:
        """A modern server has ended a call with questions."""
        state, requests = body.get("requestState"), object_of(body.get("inputRequests"))
        try:
            if state is None and not requests:
                raise RpcError(INTERNAL_ERROR, "input_required without inputRequests and requestState")
            if call.rounds >= MAX_ROUNDS:
                raise RpcError(INTERNAL_ERROR, f"input_required more than {MAX_ROUNDS} times")
            told, own = self._calls.told(server, ask.caller), self._calls.own_for(server, ask.caller)
            verdicts = judge_all(requests, server.name, server.options, ask.caller.capabilities, told, own)
        except RpcError as wrong:
            self._host.fail(ask, f"{server.name} asked in vain: {wrong}", server.name)
            call.asker.withdrawn(call)
            return
        is_ours = state is not None and str(value_of(state)).startswith(STATE_PREFIX)
        forwarded = [key for key, verdict in verdicts.items() if isinstance(verdict, Forward)]
        if ask.caller.modern and len(forwarded) == len(verdicts) and not (is_ours or ask.approved):
            self._host.answer(ask, Reply(with_named_messages(body, verdicts), None), server.name, as_it_is=True)
            call.asker.withdrawn(call)
            return
        parks = ask.caller.modern and bool(forwarded or is_ours or (ask.approved and not verdicts))
        opened = self._begin(shown(call.peer), call, ask, Phase.PARKED if parks else Phase.GATHERING)
        opened.state = None if state is None else state.copy()
        self._fulfil_all(server, opened, verdicts, requests, parks=parks)
        if opened.phase is Phase.OVER:
            return
        if opened.kept:  # the host need not be asked the rest
            self._close(opened, Turn.END)
            self._host.answer(ask, opened.kept, server.name)
            call.asker.withdrawn(call)
        elif parks:
            self._put_to_host(opened, ask)
        elif not verdicts:
            self._out.timer("round", str(opened.id), self._out.now + STATE_ONLY_WAIT)
        elif not opened.has_open:
            self._try_again(opened, Turn.COMPLETE)

    def _fulfil_all(
        self, server: Facts, opened: Round, verdicts: Mapping[str, Verdict], requests: Fields, *, parks: bool
    ) -> None:
        if not parks:
            self._wait_for(opened, opened.ask)
        for key, verdict in verdicts.items():
            if opened.phase is Phase.OVER or opened.kept:
                break  # one of them has failed already
            self._fulfil(server, opened, key, verdict, object_of(requests[key]), parks=parks)

    def _fulfil(self, server: Facts, opened: Round, key: str, verdict: Verdict, body: Fields, *, parks: bool) -> None:
        """One question of a modern server: answered, put to somebody, or to be shown to the host."""
        question = opened.questions[key] = Question(Raw(b""))
        id = encode([opened.id, key])  # no id of its own can be a list
        pending = None
        try:
            match verdict:
                case Answer(result):
                    opened.answers[key], question.is_open = Raw(result), False
                case Locally():
                    pending = self._questions.sample(server, id, body.get("params", UNSET), self)
                case OnPage(asked):
                    pending = self._questions.ask_page(server, id, asked, opened.call, self)
                case Forward(params) if parks:
                    has_params: Fields = {} if params is UNSET else {"params": Raw(params)}
                    question.shown = Raw(encode(body | has_params))
                case Forward(params):
                    fields = object_of(params)
                    if value_of(fields.get("mode")) == "url":  # TypeScript hosts refuse it without
                        params = encode(fields | {"elicitationId": Raw(encode(f"mcpmux-{opened.id}-{key}"))})
                    pending = self._questions.ask_host(server, id, str(value_of(body["method"])), params, self)
        except RpcError as wrong:
            self._gathered(opened, key, Reply(None, error_body(wrong)))
        if pending:
            question.number, pending.round = pending.id, opened.id

    def _gathered(self, found: Round, key: str, reply: Reply) -> None:
        """An answer for a modern server. It can be told of no error: then its call ends with that."""
        found.questions[key].is_open = False
        if reply.result is not None:
            found.answers[key] = reply.result.copy()
            if found.phase is Phase.GATHERING and not found.has_open:
                self._complete(found)
            return
        said = str(value_of(object_of(reply.error).get("message"), "an error"))
        text = f"mcpmux: {found.server} needs an answer that it cannot have: {said[:TEXT_MOST]}"
        if found.is_waited_for:
            self._fail(found, text)
        else:
            found.kept = failed(text)
            self._withdraw_open(found)

    def _try_again(self, found: Round, turn: Turn) -> None:
        """All that its server wanted is there: the call is made once more."""
        if found.ask.approved and not self.holds(found.ask):
            self._fail(found, f"mcpmux: {found.ask.what} has changed since it was allowed: call it again")
            return
        self._close(found, turn)
        call = found.call
        params = without(call.params or {}, *OF_RETRY)
        if found.answers and not found.pages:
            params["inputResponses"] = Raw(encode(found.answers))
        if found.state is not None:
            params["requestState"] = found.state
        sent = self._calls.forward(found.ask, found.server, params, found.asker, wrapped=call.wrapped)
        if isinstance(sent, Pending):
            sent.rounds, sent.reached = call.rounds + 1, call.reached
            if found.ask.caller.modern:
                self._questions.carry(self._servers[found.server], sent)
        else:
            call.ask = found.ask
            found.asker.ended(call, sent)

    # ── pages to visit (-32042: 2025-11-25, client/elicitation) ──

    def _wants_pages(self, server: Facts, call: Pending, reply: Reply) -> bool:
        """Whether a legacy server refuses until pages have been visited, and that is not the host's own affair."""
        is_refusal = value_of(object_of(reply.error).get("code")) == URL_ELICITATION_REQUIRED
        ask = call.ask if call.method in CARRIERS else None
        return is_refusal and ask is not None and (ask.caller.modern or self._is_on_page(server, ask))

    def _is_on_page(self, server: Facts, ask: Ask) -> bool:
        own = self._calls.own_for(server, ask.caller)
        return is_asked_on_page(ask.caller.capabilities, server.options, own, "url")

    def _pages_required(self, server: Facts, call: Pending, refusal: Reply) -> None:
        """A legacy server has ended a call until the person has visited some pages. A modern host is asked to have
        them visited, and its retry is a new call; or our own page asks, and the call is made again."""
        ask = call.ask
        assert ask
        pages, on_page = pages_in(refusal.error), self._is_on_page(server, ask)
        if not pages or server.options.elicitation == "off":
            call.asker.ended(call, refusal)
            return
        if not on_page and "url" not in elicitation_modes(ask.caller.capabilities):
            data = {"requiredCapabilities": {"elicitation": {"url": {}}}}
            missing = RpcError(MISSING_CAPABILITY, f"{server.name} needs the person to visit a page first", data)
            self._host.answer(ask, Reply(None, error_body(missing)), server.name, as_it_is=True)
            call.asker.withdrawn(call)
            return
        opened = self._begin(shown(call.peer), call, ask, Phase.GATHERING if on_page else Phase.PARKED)
        names = [value_of(page.get("elicitationId")) for page in pages]
        opened.pages = {name: False for name in names if isinstance(name, str)} or {"": False}
        verdicts: dict[str, Verdict] = {}
        for number, page in enumerate(pages):
            asked = without(page, "elicitationId") | {"mode": Raw(b'"url"'), "message": page.get("message", Raw(b'""'))}
            named = asked | {"message": named_message(asked, server.name)}
            verdicts[f"{server.name}-{number}"] = OnPage(asked) if on_page else Forward(encode(named))
        requests = dict.fromkeys(verdicts, Raw(encode({"method": QUESTIONS[1]})))
        self._fulfil_all(server, opened, verdicts, requests, parks=not on_page)
        if not on_page:
            self._put_to_host(opened, ask)

    def page_visited(self, server: Facts, message: Envelope) -> None:
        """Told only of pages that this server has named itself."""
        id = value_of(object_of(message.params).get("elicitationId"))
        for found in list(self._open.values()):
            if found.server == server.name and isinstance(id, str) and id in found.pages:
                found.pages[id] = True
                if found.phase is Phase.HELD and all(found.pages.values()):
                    self._try_again(found, Turn.COMPLETE)
        if isinstance(id, str) and id in server.run.pages:
            del server.run.pages[id]
            self._host.tell(server.name, notification_line(str(message.method), message.params))

    # ── as an asker ──

    def ended(self, pending: Pending, reply: Reply) -> None:
        found = self._open[pending.round]
        if pending.server:
            key = next(key for key, one in found.questions.items() if one.number == pending.id)
            self._gathered(found, key, self._questions.said(pending, reply))
        elif found.phase is Phase.PARKED:  # the retry gets it
            error = None if reply.error is None else bytes(reply.error)
            found.kept = Reply(None if reply.result is None else reply.result.copy(), error, reply.failure)
        else:  # it ended before its questions went out
            self._end(found)
            found.asker.ended(pending, reply)

    def withdrawn(self, pending: Pending) -> None:
        if (found := self._open.get(pending.round)) and not pending.server:
            self._end(found)
            found.asker.withdrawn(pending)

    def progress(self, pending: Pending, line: bytes) -> None:
        found = self._open[pending.round]
        if not pending.server and found.phase is Phase.ASKING:  # else that host request has ended
            found.asker.progress(pending, line)

    def dropped(self, ask: Ask, params: Fields) -> None:
        """The host has cancelled a request that waits for a round."""
        if (found := self._open.get(ask.number)) and found.ask is ask:
            self._end(found)
            found.asker.withdrawn(found.call)

    def removed(self, server: str, text: str) -> None:
        """Before its calls fail."""
        for found in [one for one in self._open.values() if one.server == server]:
            if found.is_waited_for:
                self._fail(found, text)
            elif found.phase is Phase.PARKED:
                found.kept = failed(text)


# ══ 12. Approvals and consents ═══════════════════════════════════════════════════════════════════════════════════════
# Where mcpmux itself asks the person first: before a call of a tool goes on, and before a server has the use of their
# model. Each question is put to the page, to a legacy host at once, or to a modern one by a round. Who has to be asked
# is decided by section 6; what a server asks on its own account is none of this section's business.


class Approval(Struct, eq=False):
    matter: Matter  # of one question to the person, until that is decided
    asks: dict[bytes, Ask]  # the host's calls that wait for it
    unlike: list[Entry] = []  # or tools that have changed


class Approvals(Asker):
    """Calls that wait until the person allows them: of tools that a table names, and in its server's place. Asker of
    our own questions to a legacy host and to the page; a modern host's next request brings the answer by a round."""

    again: Callable[[Ask], None]  # the router's way of a tools/call
    accepted: Callable[[], None]  # tools that had changed: the lists have, by it

    def __init__(self, ground: Ground, merged: Merged, calls: Calls, questions: Questions, rounds: Rounds) -> None:
        self._out, self._in_flight, self._host, self._servers = ground
        self._merged, self._calls, self._questions, self._rounds = merged, calls, questions, rounds
        self._open: dict[int, Approval] = {}  # by the number of its question
        self._number_of: dict[Matter, int] = {}
        self._allowed: set[tuple[str, str, str]] = set()  # until mcpmux ends
        self._decided: dict[Matter, tuple[str, float]] = {}  # after its host had given up, and until when it counts
        rounds.decided, rounds.holds = self._back, self._holds

    # ── which calls wait ──

    def may_go_on(self, ask: Ask, route: Route) -> bool:
        """Else it waits for the person, or is answered. A decision holds for server, tool, definition and arguments."""
        if not waits_for_approval(route.entry, self._servers[route.server].options, through=ask.through):
            return True
        matter = self._matter(ask, route)
        decision, until = self._decided.pop(matter, ("", 0.0))
        if ask.approved == matter or matter[:3] in self._allowed:
            ask.approved = matter
            return True
        if until > self._out.now:
            return self._settled(ask, matter, decision)
        if (waiting := self._number_of.get(matter)) is not None:
            self._wait(waiting, ask)
        else:
            self._put(ask, matter, ask.fields.get("arguments", Raw(b"{}")))
        return False

    def _matter(self, ask: Ask, route: Route) -> Matter:
        arguments = ask.fields.get("arguments", Raw(b"{}"))
        return Matter(route.server, route.name, pin_digest(route.entry), digest_of(arguments))

    def _holds(self, ask: Ask) -> bool:
        route = self._merged.catalogue.tool(ask.what)
        return route is not None and self._matter(ask, route) == ask.approved

    def _settled(self, ask: Ask, matter: Matter, decision: str, why: str = "") -> bool:
        if decision != "no":
            ask.approved = matter
            return True
        call = f"this call of {matter.tool} of {matter.server}"
        denied = f"the person did not allow {call}; do not try it again unasked"
        self._host.fail(ask, f"the person has not decided on {call}: {why}" if why else denied)
        return False

    # ── the person is asked ──

    def _put(self, ask: Ask, matter: Matter, arguments: Raw) -> None:
        """To the page, or to the host. What it would not show whole is for the page, or for nobody."""
        caller, own = ask.caller, self._calls.own
        host_can = "form" in elicitation_modes(caller.capabilities) and len(arguments) <= ARGUMENTS_MOST
        text = msgspec.json.format(bytes(arguments)).decode() if bytes(arguments) != b"{}" else ""
        on_page = own.page and (own.always or not host_can)
        message = f"May {matter.server} run {matter.tool}?"
        form = choice_form(message + (f" With these arguments:\n{text}" if text and not on_page else ""), DECISIONS)
        if on_page:
            shown = [{"title": "Server", "text": matter.server}, {"title": "Tool", "text": matter.tool}]
            shown += [{"title": "Arguments", "text": text}] if text else []
            question = self._questions.show(self, form, what=ask.what, shown=shown)
        elif host_can and caller.modern:
            self._rounds.approve(ask, matter, form)
            return
        elif host_can:
            question = self._questions.ask_for_us(form, self)
        else:
            why = "its arguments are too long for the host to show" if len(arguments) > ARGUMENTS_MOST else NOBODY_ASKS
            who = f"{matter.tool} of {matter.server} waits for the person (approve in its table)"
            self._host.fail(ask, f"{who}, and nobody can be asked: {why}")
            return
        self._opened(question, Approval(matter, {}))
        self._wait(question.id, ask)

    def compare(self, server: str) -> None:
        """Tools that have changed are shown to a person who looks at the page; it is not opened for them."""
        unlike = list(self._merged.withheld.get(server, {}).values())[:SHOWN_MOST]
        matter = Matter(server, "", "", "")
        if not unlike or matter in self._number_of or not self._calls.own.page:
            return
        texts = [(one.entry.name, one.pin.shown, encode(definition(one.entry)).decode()) for one in unlike]
        shown = [
            {"title": f"{name} {when}", "text": msgspec.json.format(text)}
            for name, before, after in texts
            for when, text in (("as you accepted it", before), ("now", after))
        ]
        form = choice_form(f"Tools of {server} have changed. Use them as they are now?", CHANGED)
        question = self._questions.show(self, form, shown=shown)
        self._opened(question, Approval(matter, {}, [one.entry for one in unlike]))

    def _opened(self, question: Pending, approval: Approval) -> None:
        self._open[question.id], self._number_of[approval.matter] = approval, question.id

    def _wait(self, number: int, ask: Ask) -> None:
        self._open[number].asks[ask.id] = ask
        ask.by, ask.number = self, number
        patience = self._questions.patience_of(ask)
        if patience < self._host.options.input_timeout_sec:
            self._out.timer("approval", str(number), self._out.now + patience)

    def due(self, name: Name) -> None:
        """The host gives up soon: the question stays, and its answer is for the call when it is made again."""
        approval = self._open.get(int(shown(name)))
        for ask in list(approval.asks.values()) if approval else ():
            self._host.fail(ask, "waiting for you on the page of mcpmux; call again when you have decided")
        if approval:
            approval.asks.clear()

    # ── and has decided ──

    def ended(self, pending: Pending, reply: Reply) -> None:
        approval = self._close(pending)
        if approval.unlike:
            if decision_in(self._questions.said(pending, reply), CHANGED, "no") == "yes":
                self._merged.accept(approval.matter.server, approval.unlike)
                self.accepted()
            return
        if (decision := decision_in(self._questions.said(pending, reply), DECISIONS, "no")) == "always":
            self._allowed.add(approval.matter[:3])
        asks = list(approval.asks.values())
        why = why_undecided(reply)
        if not asks and decision != "always" and not why:
            self._decided[approval.matter] = decision, self._out.now + DECISION_KEPT
            if len(self._decided) > QUESTIONS_MOST:
                del self._decided[next(iter(self._decided))]
        for ask in asks:
            is_meant = ask is asks[0] or decision == "no"  # *this call* is one call; the others are asked for anew
            if not is_meant or self._settled(ask, approval.matter, decision, why):
                ask.by = None
                self._out.survive(self.again, ask)

    def withdrawn(self, pending: Pending) -> None:
        self._close(pending)

    def _close(self, pending: Pending) -> Approval:
        self._out.timer("approval", str(pending.id), None)
        approval = self._open.pop(pending.id)
        del self._number_of[approval.matter]
        return approval

    def _back(self, ask: Ask, matter: Matter, reply: Reply) -> None:
        """A modern host's retry."""
        if (decision := decision_in(reply, DECISIONS, "no")) == "always":
            self._allowed.add(matter[:3])
        if self._settled(ask, matter, decision, why_undecided(reply)):
            ask.fields = without(ask.fields, *OF_RETRY)
            self.again(ask)

    def dropped(self, ask: Ask, params: Fields) -> None:
        """The host has cancelled a call. What its person is asked by it is withdrawn; the page still counts."""
        approval = self._open[ask.number]
        del approval.asks[ask.id]
        if (pending := self._in_flight.get(ask.number)) and pending.peer is Peer.HOST and not approval.asks:
            self._calls.withdraw(pending, params)

    def removed(self, server: str) -> None:
        """Its table is no longer what it was: nothing that was decided holds."""
        self._allowed = {one for one in self._allowed if one[0] != server}
        self._decided = {one: kept for one, kept in self._decided.items() if one.server != server}
        for number in [number for number, one in self._open.items() if one.matter.server == server]:
            asks, pending = list(self._open[number].asks.values()), self._in_flight.get(number)
            assert pending
            self._calls.withdraw(pending, {"reason": Raw(encode(f"the table of {server} has changed"))})
            for ask in asks:
                self._host.fail(ask, f"{server} was removed from the config, or its table has changed")


class Consent(Struct, eq=False):
    pending: Pending  # a request for the person's model, from the moment it needs them to their decision
    prepared: Fields  # what would be sent, to which models, at which price
    since: float
    reply: Reply | None = None  # what a model has answered, where that is to be looked at


class Consents(Asker):
    """Whether a server may use the person's model: as it is written, as it was decided, or they are asked, about one
    server one question at a time. Asker of these questions."""

    def __init__(
        self, ground: Ground, calls: Calls, questions: Questions, rounds: Rounds, turns: Turns, kept: Mapping[str, str]
    ) -> None:
        self._out, self._in_flight, self._host, self._servers = ground
        self._calls, self._questions, self._rounds, self._turns = calls, questions, rounds, turns
        self._kept = dict(kept)  # by server: "always" or "never"
        self._for_now: set[str] = set()  # servers that may until mcpmux ends
        self._open: dict[int, Consent] = {}  # by the number of its question
        self._lines: dict[str, list[Consent]] = {}  # by server: what waits for that, or for a call that can carry one
        turns.gate, questions.carried, calls.may_sample = self, self._serve, self.can_be_had

    # ── what is decided already ──

    def _standing(self, server: Facts) -> str | None:
        decided = self._kept.get(server.name, "run" if server.name in self._for_now else "")
        return who_allows(server.options, self._approve, decided)

    @property
    def _approve(self) -> str:
        return self._turns.sampling.approve if self._turns.sampling else "first"

    def can_be_had(self, server: Facts, caller: Caller) -> bool:
        """Whether it is any use to this server to ask for the model."""
        standing = self._standing(server)
        can_ask = self._calls.own.page or "form" in elicitation_modes(caller.capabilities)
        return can_ask if standing is None else bool(standing)

    def take(self, kept: Mapping[str, str]) -> None:
        """As it is kept now; another mcpmux, or a command, has changed it."""
        self._kept = dict(kept)
        self._calls.forget_told()
        for name in list(self._lines):
            self._serve(self._servers[name])

    def forget_all(self, why: str) -> None:
        """Other models: what was prepared for the former ones ends, and nothing that was said of them holds."""
        self._for_now.clear()
        self._kept.clear()
        for one in [*self._open.values(), *(one for line in list(self._lines.values()) for one in line)]:
            self._calls.end(one.pending, failed(why))

    def removed(self, server: str) -> None:
        """It is no longer in the config, or not like this."""
        self._for_now.discard(server)
        self._kept.pop(server, None)
        self._out.timer("consent", server, None)

    # ── requests meet it ──

    def passes(self, pending: Pending, prepared: Fields) -> bool:
        """Whether it goes on to a model at once. Else it was refused, or waits for the person."""
        pending.allowed = pending.allowed or self._standing(self._servers[pending.server]) or ""
        if not pending.allowed:
            self._wait(pending, prepared, None)
        return bool(pending.allowed)

    def looks_at(self, pending: Pending, reply: Reply) -> bool:
        """Whether the person sees what a model has answered before its server does."""
        if self._approve != "always" or reply.result is None or pending.params is None:
            return False
        self._wait(pending, pending.params, Reply(reply.result.copy(), None))
        return True

    def _wait(self, pending: Pending, prepared: Fields, reply: Reply | None) -> None:
        self._turns.hold(pending)
        one = Consent(pending, {key: raw.copy() for key, raw in prepared.items()}, self._out.now, reply)
        self._lines.setdefault(pending.server, []).append(one)
        self._serve(self._servers[pending.server])

    def _serve(self, server: Facts) -> None:
        """The first in this server's line, unless the person is asked about another one of it."""
        line, name = self._lines.get(server.name, []), server.name
        while line and all(one.pending.server != name for one in self._open.values()) and self._ask(server, line[0]):
            pass
        if not line:
            self._lines.pop(name, None)
            self._out.timer("consent", name, None)
        elif self._out.due_at("consent", name) == FOREVER:
            self._out.timer("consent", name, self._out.now + self._host.options.input_timeout_sec)

    def due(self, name: Name) -> None:
        """Nobody could be asked for long."""
        while line := self._lines.get(shown(name)):
            self._refuse(line[0], f"not within {self._host.options.input_timeout_sec:g} s (input_timeout_sec)")

    # ── the person is asked ──

    def _ask(self, server: Facts, one: Consent) -> bool:
        """Where they can be reached. Whether it has left the line."""
        standing, in_round = self._standing(server), one.pending.round != 0
        if standing == "" or (standing and not one.reply):
            self._settle(one, "once" if standing else "no", by=standing)
            return True
        call = self._rounds.call_of(one.pending) if in_round else self._questions.call_of(server)
        caller, own = self._questions.caller_of(server, call), self._calls.own
        values = {key: value_of(raw) for key, raw in one.prepared.items()}
        reply = value_of(one.reply.result) if one.reply else None
        text = sampling_in_words(values, reply)
        can_form = "form" in elicitation_modes(caller.capabilities)
        host_can = can_form and len(text) <= ARGUMENTS_MOST and not self._questions.is_listing(server)
        message = f"May {server.name} {'have this answer of' if reply else 'use'} your model?"
        choices, editable = consents(self._approve), None if reply else only_text(values["params"])
        if own.page and (own.always or not host_can):
            shows = {"server": server.name, **values} | ({"reply": reply} if reply else {})
            form = choice_form(message, choices)
            self._begin(one, self._questions.show(self, form, call, mode="sampling", sampling=shows))
            return True
        change = {} if editable is None else {"text": {"type": "string", "title": "Text", "default": editable}}
        form = choice_form(f"{message}\n{text}", choices, **change)
        if not host_can:
            self._refuse(one, "what it asks is too long for the host to show" if can_form else NOBODY_ASKS)
        elif not caller.modern:
            self._begin(one, self._questions.ask_for_us(form, self))
        elif call is None and self._rounds.has_parked(server.name):
            return False
        elif call is None:
            self._refuse(one, "the host can be asked only while it calls this server")
        else:
            self._carried_by(call, server, one, form, in_round=in_round)
        return True

    def _begin(self, one: Consent, own: Pending) -> None:
        self._lines[one.pending.server].remove(one)
        self._open[own.id] = one

    def _carried_by(self, call: Pending, server: Facts, one: Consent, form: Fields, *, in_round: bool) -> None:
        """A modern host's next request is to bring the answer."""
        own = self._in_flight.open(Peer.NEXT, self, QUESTIONS[1], FOREVER, server=OURSELVES)
        own.is_sent = False
        self._begin(one, own)
        if in_round:
            self._rounds.ask_too(own, one.pending, form)
            return
        try:
            self._rounds.join(server, call, own, encode(form))
        except RpcError as wrong:  # that has settled it
            self._lines.setdefault(server.name, []).insert(0, self._open.pop(own.id))
            self._refuse(one, str(wrong))

    # ── and has decided ──

    def ended(self, pending: Pending, reply: Reply) -> None:
        one = self._back_in_line(pending)
        name, server = one.pending.server, self._servers[one.pending.server]
        said = self._questions.said(pending, reply)
        decision = decision_in(said, consents(self._approve), "no")
        if why := why_undecided(reply):
            self._refuse(one, why)
            return
        if self._standing(server) == "":
            decision = "no"  # it was denied meanwhile, for good
        if decision in ("always", "never"):
            self._kept[name] = decision
            self._calls.forget_told()
            self._out.put(SaveConsent(name, decision))
        elif decision == "run":
            self._for_now.add(name)
        content = object_of(object_of(said.result).get("content"))
        self._settle(one, decision, content)
        self._serve(server)

    def _settle(self, one: Consent, decision: str, content: Fields | None = None, by: str = "person") -> None:
        """It leaves its line for a model, for its server, or refused. `content` may have other texts than it had."""
        self._lines[one.pending.server].remove(one)
        if decision in ("no", "never"):
            self._turns.conclude(one.pending, Reply(None, error_body(REJECTED)))
        elif one.reply:
            self._turns.conclude(one.pending, one.reply)
        else:
            one.pending.allowed = by
            one.pending.since += self._out.now - one.since
            params, content = one.prepared["params"], content or {}
            text = value_of(content.get("text"))
            if "params" in content:
                params = content["params"]
            elif isinstance(text, str) and text != only_text(value_of(params)):
                params = Raw(encode(with_text(value_of(params), text)))
            if params is one.prepared["params"]:
                self._turns.ask_model(one.pending, one.prepared)
            else:
                self._turns.prepare(one.pending, params.copy())

    def _refuse(self, one: Consent, why: str) -> None:
        name = one.pending.server
        self._lines[name].remove(one)
        todo = f'sampling = "local" in [mcp_servers.{name}], or approve = "never" in [sampling], allows it unasked'
        text = f"mcpmux: {name} may not use your model before you are asked, and nobody could be: {why}; {todo}"
        self._turns.conclude(one.pending, Reply(None, error_body(RpcError(INTERNAL_ERROR, text))))

    def _back_in_line(self, pending: Pending) -> Consent:
        one = self._open.pop(pending.id)
        self._lines.setdefault(one.pending.server, []).insert(0, one)
        return one

    def withdrawn(self, pending: Pending) -> None:
        """The call that carried it has ended."""
        self._rounds.forget(pending)
        if pending.id in self._open:
            self._serve(self._servers[self._back_in_line(pending).pending.server])

    def forget(self, pending: Pending) -> None:
        """A request for the model has ended."""
        line = self._lines.get(pending.server, [])
        line[:] = [one for one in line if one.pending is not pending]
        for number in [number for number, one in self._open.items() if one.pending is pending]:
            del self._open[number]
            if own := self._in_flight.get(number):
                self._calls.withdraw(own, {"reason": Raw(b'"it is no longer asked"')})
        if server := self._servers.get(pending.server):
            self._serve(server)


# ══ 13. Servers ══════════════════════════════════════════════════════════════════════════════════════════════════════
# The life of a server: how its era is found, how its lists are read, and what a process of its goes through. Knows
# nothing of what processes are; what follows from a change it tells to `Hooks`.


class Moment(Enum):
    USE = "is used"
    UP = "answered its handshake"
    ENDED = "has ended as it was told"
    GONE = "is gone"
    GAVE_UP = "is gone once too often"
    DUE = "has rested"
    STOP = "is told to stop"
    AGAIN = "is gone for a fresh process to take its place"


# Where each leads to, and from where. A missing pair is our bug, never the server's.
_MOMENTS: Final = {
    Moment.USE: (State.STARTING, (State.IDLE, State.STOPPED)),
    Moment.UP: (State.READY, (State.STARTING,)),
    Moment.GONE: (State.BACKOFF, (State.STARTING, State.READY, State.STOPPING)),  # stopping since it was of no use
    Moment.GAVE_UP: (State.FAILED, (State.STARTING, State.READY, State.STOPPING)),
    Moment.STOP: (State.STOPPING, (State.STARTING, State.READY)),
    Moment.ENDED: (State.STOPPED, (State.STOPPING,)),
    Moment.AGAIN: (State.IDLE, (State.STARTING, State.STOPPING)),
    Moment.DUE: (State.IDLE, (State.BACKOFF, State.FAILED)),
}
TRANSITIONS: Final = {(state, moment): to for moment, (to, states) in _MOMENTS.items() for state in states}


def next_state(state: State, moment: Moment) -> State:
    try:
        return TRANSITIONS[state, moment]
    except KeyError:
        raise Bug(f"a server that is {state.value} cannot be one that {moment.value}") from None


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


class Hooks(Protocol):
    """What the core tells the other parts of a server."""

    def opened(self, server: Facts) -> None: ...  # calls may go out
    def listed(self, server: Facts) -> None: ...  # its lists have been read, or read again
    def settled(self, server: Facts) -> None: ...  # it is known what it offers, or that it is not to be waited for
    def gone(self, server: Facts) -> None: ...  # its process has ended
    def removed(self, server: Facts, text: str) -> None: ...  # it is no longer in the config, or not like this


# ── how its era is found ──


class Hello(Struct, frozen=True):
    method: str  # what to say next to a server whose era is looked for; "" for nothing: a fresh process is wanted
    silence: float | None = None  # seconds after which it is not waited for


class Quiet(Enum):
    SILENT = "no answer within the time of its `Hello`"
    GONE = "the process has ended"


class Met(Struct, frozen=True):
    era: str  # as a server has said that it is
    revision: str
    body: Fields
    info: Raw | None


FRESH_PROCESS: Final = Hello("")
Search = Generator[Hello, "Reply | Quiet", "Met | str | None"]


def find_era(name: str, ways: Iterable[str], *, is_free: bool) -> Search:
    """Says hello in each way until one is answered; returns what it met, why it gave up, or None if the process died of
    its own. `is_free`: the table does not say which era it has. It outlives a process, and holds nothing of one."""
    left, trouble = list(ways), ""
    is_unheard = False  # `server/discover` was never answered in this process: some do not survive it (WIRE 33)
    while left:
        way = left.pop(0)
        if way == FRESH:
            if (yield FRESH_PROCESS) is Quiet.GONE:
                return None  # it could not even be started
            is_unheard = False
            continue
        method = "server/discover" if way == "modern" else "initialize"
        reply = yield Hello(method, DISCOVER_SILENCE if way == "modern" and left[:1] == ["legacy"] else None)
        if reply is Quiet.GONE:
            if not is_free or not (way == "modern" or is_unheard):
                return None
            left = [FRESH, "legacy"]
        elif reply is Quiet.SILENT:
            is_unheard = True
        elif way == "modern":
            body = object_of(reply.result)
            if reply.result is not None and modern_versions(reply):
                return Met(way, MODERN_REVISIONS[0], body, object_of(body.get("_meta")).get(SERVER_KEY))
            trouble = f"{name} refused `server/discover`: {said_in(reply, 'no version that mcpmux knows')}"
        elif reply.error is None:
            body = object_of(reply.result)
            revision = value_of(body.get("protocolVersion"))
            if revision in LEGACY_REVISIONS:
                return Met(way, revision, body, body.get("serverInfo"))
            return f"{name} speaks protocol revision {str(revision)[:TEXT_MOST]!r}, which mcpmux does not know"
        else:
            trouble = f"{name} refused `initialize`: {said_in(reply, None)}"
            if is_free and modern_versions(reply):
                left = ["modern", *left]
    return trouble


def said_in(reply: Reply, otherwise: str | None) -> str:
    return str(value_of(object_of(reply.error).get("message"), otherwise))[:TEXT_MOST]


class Greeting(Asker):
    """Finds servers' eras. Asker of the hellos."""

    def __init__(self, ground: Ground, calls: Calls) -> None:
        self.life: Life  # set when there is one
        self._out, self._in_flight, self._host, _ = ground
        self._calls = calls
        self._searches: dict[Name, Search] = {}
        self._open: dict[Name, Pending] = {}  # the hello that counts

    def up(self, server: Facts) -> None:
        """The process runs: what was found of its era is used, or else it is looked for."""
        if (found := self._searches.get(server.peer)) is None:
            ways: Iterable[str] = WAYS[server.run.starter.era]
            if server.options.protocol:
                ways = [server.options.protocol]
            elif era := server.eras.get(server.run.starter.era):
                ways = [era, FRESH, *ways]
            found = find_era(server.name, ways, is_free=server.options.protocol is None)
            self._searches[server.peer] = found
        self._go_on(server, found, None)

    def _go_on(self, server: Facts, search: Search, reply: Reply | Quiet | None) -> bool:
        """Whether it is still looked for."""
        self._open.pop(server.peer, None)
        self._out.timer("silent", server.peer, None)
        try:
            hello = next(search) if reply is None else search.send(reply)
        except StopIteration as end:
            del self._searches[server.peer]
            if isinstance(end.value, Met):
                self.life.met(server, end.value)
            elif end.value is not None:
                self.life.give_up(server, end.value)
            return False
        if hello is FRESH_PROCESS:
            if reply is not Quiet.GONE:
                self.life.stop(server, Ending.AGAIN)
        else:
            self._say(server, hello)
        return True

    def _say(self, server: Facts, hello: Hello) -> None:
        server.modern = hello.method == "server/discover"
        params: bytes | UnsetType = UNSET
        if not server.modern:
            starter = server.run.starter
            server.run.told = self._calls.told(server, starter)
            revision = LEGACY_REVISIONS[0] if starter.modern else self._host.revision or LEGACY_REVISIONS[0]
            hello_params = {"capabilities": server.run.told, "clientInfo": Raw(starter.info)}
            params = encode({"protocolVersion": revision, **hello_params})
        self._open[server.peer] = self._calls.request(server, hello.method, params, self, FOREVER)
        if hello.silence:
            self._out.timer("silent", server.peer, self._out.now + hello.silence)

    def silent(self, server: Facts) -> None:
        """No answer to `server/discover`: `initialize` follows, and its answer decides."""
        if pending := self._open.get(server.peer):
            self._in_flight.settle(pending)
            self._go_on(server, self._searches[server.peer], Quiet.SILENT)

    def ended(self, pending: Pending, reply: Reply) -> None:
        if (server := self.life.alive(pending.peer)) and self._open.get(pending.peer) is pending:
            self._go_on(server, self._searches[pending.peer], reply)

    def gone(self, server: Facts) -> bool:
        """Whether a fresh process is to take the place of the one that has ended."""
        if (search := self._searches.get(server.peer)) is None:
            return False
        if server.run.ending is Ending.AGAIN:
            return True
        return server.run.ending is None and self._go_on(server, search, Quiet.GONE)

    def hello_of(self, server: Facts) -> str:
        """What it has not answered."""
        pending = self._open.get(server.peer)
        return pending.method if pending else "initialize"

    def forget(self, name: Name) -> None:
        """It is no longer looked for."""
        self._searches.pop(name, None)
        self._open.pop(name, None)
        self._out.timer("silent", name, None)


# ── how its lists are read ──


class Reading(Exchange):
    """One list of one server while its pages come in. A failure leaves what was read, or was known before."""

    def __init__(self, lists: Lists, server: Facts, method: str, most: int) -> None:
        super().__init__(self._pages())
        self.name, self.method = server.name, method
        self.entries: list[Entry] = []
        self.problem: str | None = None  # it was not read to its end
        self.fitted: dict[bytes, Entry] = {}
        self._lists, self._options, self._former = lists, server.options, server.run.fitted.get(method, {})
        self._room = most  # bytes that it may still have

    def _pages(self) -> Steps:
        patience = self._options.startup_timeout_sec * START_PATIENCE
        seen: set[bytes] = set()
        params: Fields | UnsetType = UNSET
        while True:
            reply = yield Step(self.name, self.method, params, patience)
            body, key = object_of(reply.result), LISTS[self.method].key
            if reply.error is not None:
                error = object_of(reply.error)
                is_none = value_of(error.get("code")) == METHOD_NOT_FOUND
                self.problem = "" if is_none else f"failed: {value_of(error.get('message'))}"
                return reply
            if bytes(body.get(key, b""))[:1] != b"[":
                self._lists.note(self.name, f"{self.method} has no list of {key}")
            self._take(items_of(body.get(key)))
            cursor = next_cursor(body, seen)
            if self._room < 0:
                self._lists.note(self.name, f"{self.method} is longer than max_message_mb and was read no further")
            if cursor is None or self._room <= 0:
                return reply
            params = {"cursor": Raw(cursor)}

    def _take(self, page: list[Raw]) -> None:
        most = TEMPLATES_MOST if self.method == "resources/templates/list" else ENTRIES_MOST
        for raw in page:
            if len(self.entries) >= most:
                self._lists.note(self.name, f"{self.method} has more than {most} entries and was read no further")
                self._room = 0
                return
            digest = hashlib.blake2b(raw, digest_size=16).digest()
            if isinstance(entry := self._former.get(digest) or self._fit(raw), Entry):
                self.entries.append(entry)
                self.fitted[digest] = entry
                self._room -= len(entry.left) + len(entry.right)
            elif entry is not None:
                self._lists.leave_out(self.name, entry[:TEXT_MOST])

    def _fit(self, raw: Raw) -> Entry | str | None:
        try:
            return fit_entry(self.method, raw, self._options)
        except (msgspec.MsgspecError, ValueError, RecursionError) as wrong:  # a number that is none, say
            return f"an entry of {self.method} that cannot be read: {wrong}"

    def step(self, step: Step) -> Pending | Reply:
        return self._lists.ask(step, self)

    def finish(self, outcome: ExchangeEnd) -> None:
        if self.problem is None and (not isinstance(outcome, Reply) or outcome.error is not None):
            self.problem = "cannot be read"
        self._lists.read(self)


class Lists:
    """Reads servers' lists, after they open and whenever they change."""

    def __init__(self, ground: Ground, calls: Calls, merged: Merged) -> None:
        self.life: Life  # set when there is one
        self._out, _, self._host, self._servers = ground
        self._calls, self._merged = calls, merged
        self.note = self._out.note

    def opened(self, server: Facts) -> None:
        offered = {method for method, kind in LISTS.items() if offers(server.capabilities, kind.capability)}
        server.lists = {method: entries for method, entries in server.lists.items() if method in offered}
        self._begin(server, LISTS)

    def _begin(self, server: Facts, methods: Iterable[str]) -> None:
        run, most = server.run, int(self._host.options.max_message_mb * MB)
        for method in methods:
            if method in run.readings:
                run.changed.add(method)  # read again when this reading has ended
            elif offers(server.capabilities, LISTS[method].capability):
                run.readings.add(method)
                Reading(self, server, method, most).go_on()
        self._done(server)

    def ask(self, step: Step, exchange: Exchange) -> Pending:
        params = UNSET if step.params is UNSET else encode(step.params)
        return self._calls.request(self._servers[step.server], step.method, params, exchange, step.patience)

    def leave_out(self, server: str, what: str) -> None:
        self.note(server, f"left out: {what}")
        left_out = self._servers[server].left_out
        if what not in left_out[:NOTES_MOST] and len(left_out) < NOTES_MOST:
            left_out.append(what)

    def read(self, reading: Reading) -> None:
        server, method = self._servers[reading.name], reading.method
        server.unread.pop(method, None)
        if reading.problem:
            self.note(reading.name, f"{method} {reading.problem}")
            server.unread[method] = reading.problem
        former = server.lists.get(method, []) if reading.problem is not None else []
        server.lists[method] = reading.entries or former
        server.run.fitted[method] = reading.fitted
        server.run.readings.discard(method)
        self._done(server)

    def _done(self, server: Facts) -> None:
        """Called after each list; when none is being read any more, the catalogue takes them over."""
        run, now = server.run, self._out.now
        if run.readings:
            return
        first, run.listed_at = run.listed_at is None, now
        if run.changed:
            self._again_soon(server)
            if server.settling and now - run.up_at < RELIST_AT_MOST:
                run.listed_at = None
                return  # it is still making up its mind: those who wait should have it all
        before = self._merged.changed()
        if before is not None and not first:
            same = self._merged.catalogue.results == before
            run.quiet = min(RELIST_QUIET_MOST, run.quiet * 2) if same else RELIST_QUIET
        self.life.listed(server)

    def changed(self, server: Facts, message: Envelope) -> None:
        """Read again after some quiet. Before its first list there is nothing to read again."""
        run, now = server.run, self._out.now
        if run.stage is not Stage.OPEN:
            return
        if not run.changed:
            run.changed_since = now
        if run.listed_at is not None and now - run.listed_at > RELIST_CALM:
            run.quiet = RELIST_QUIET
        run.changed |= {method for method, kind in LISTS.items() if kind.changed == message.method}
        self._again_soon(server)

    def _again_soon(self, server: Facts) -> None:
        quiet = max(server.run.quiet, RELIST_EACH * sum(map(len, server.lists.values())))
        at_most = server.run.changed_since + max(RELIST_AT_MOST, quiet)
        self._out.timer("relist", server.name, min(self._out.now + quiet, at_most))

    def due(self, server: Facts) -> None:
        if server.name in self._out.clogged:  # what it is asked now would be dropped
            self._out.timer("relist", server.name, self._out.now + RELIST_AT_MOST)
        elif server.is_open:
            changed, server.run.changed = server.run.changed, set()
            self._begin(server, [method for method in LISTS if method in changed])


# ── what a process said before it ended ──

STILL_FETCHING: Final = "was not ready yet, and is left to finish what it fetches"

# Where the message stands among what else is written: of Python at the end of a traceback, of Node before the stack.
_ERROR: Final = r"(?:Uncaught )?[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|NotFound)(?: \[\w+\])?"
_TELLING: Final = (
    (-1, rf"(?!.*\bnode:)(?:[|+ -]*){_ERROR}(?::.*)?$", "Traceback "),
    (0, rf"{_ERROR}: ", None),
    (0, r"npm (?:error|ERR!) (?!code |errno |syscall |path )\S", None),
    (-1, r"(?i)\W*(?:error|fatal|panic|thread '.*' panicked)\b", None),
)
_NPX_COPY: Final = r"""((?:[A-Za-z]:)?[\\/][^'":|]*[\\/]_npx[\\/][0-9a-f]{8,})"""


def telling(lines: list[str]) -> str:
    """What a person should read of its stderr: the line that says what is wrong, else the last ones."""
    for at, pattern, beside in _TELLING:
        found = [line for line in lines if re.match(pattern, line)]
        if found and (beside is None or any(re.search(beside, line) for line in lines)):
            return found[at].lstrip("|+ -")
    return " | ".join(lines[-5:])


def broken_npx(lines: list[str]) -> str | None:
    """The folder of npx's that lacks a part, as it does when somebody has ended an npx that was still fetching."""
    if not any(re.search(r"MODULE_NOT_FOUND|Cannot find (?:module|package)|ENOTEMPTY", line) for line in lines):
        return None
    return next((found[1] for line in lines if (found := re.search(_NPX_COPY, line))), None)


# ── what its processes go through ──

_TIMERS_OF_A_RUN: Final = ("late", "silent", "open", "relist", "listen", "idle")


class Life:
    """Starts servers and our child processes when used, stops idle ones, counts deaths. The one writer of `Facts`."""

    def __init__(
        self, ground: Ground, calls: Calls, greeting: Greeting, lists: Lists, hooks: Hooks, chance: Callable[[], float]
    ) -> None:
        self._out, self._in_flight, self._host, self._servers = ground
        self.is_ending = False
        self.own: dict[Name, Facts] = {}  # child processes of ours
        self._calls, self._greeting, self._hooks, self._chance = calls, greeting, hooks, chance
        self._deaths: collections.defaultdict[Name, Deaths] = collections.defaultdict(Deaths)
        greeting.life, lists.life, calls.use = self, self, self.use

    def alive(self, name: Name, run: int | None = None) -> Facts | None:
        """The server whose process this is; None: it is over, or no longer in the config."""
        server = self._servers.get(name) if isinstance(name, str) else self.own.get(name)
        return server if server and (run is None or run == server.run.number) else None

    # ── starting ──

    def use(self, server: Facts) -> None:
        if self.is_ending:
            return
        if server.state in (State.BACKOFF, State.STOPPING):
            server.wanted = True
        if server.state in (State.IDLE, State.STOPPED):
            server.wanted = False
            server.state = next_state(server.state, Moment.USE)
            server.settling = server.settling or (not server.known and isinstance(server.peer, str))
            number, now = server.run.number + 1, self._out.now
            server.run = Run(number, self._host.caller, now)
            self._out.log("debug", f"= {server.name} starting")
            self._out.put(Start(server.peer, number))
            self._out.timer("late", server.peer, now + server.options.startup_timeout_sec)

    def wait_for(self, server: Facts) -> None:
        """Who asks for something of it waits until it is listed, once more."""
        server.settling = True
        self.use(server)
        if server.state is State.READY:
            self._out.timer("late", server.peer, self._out.now + server.options.startup_timeout_sec)

    def up(self, server: Facts) -> None:
        """The process runs and can be written to."""
        if server.state is not State.STARTING:
            return
        if isinstance(server.peer, str):
            self._greeting.up(server)
        else:  # one of ours needs no greeting, but the sampler has much to load
            server.state = next_state(server.state, Moment.UP)
            server.trouble, server.run.stage = None, Stage.OPENING
            if server.peer is not Peer.SAMPLER:
                self.open(server)

    def met(self, server: Facts, met: Met) -> None:
        run = server.run
        server.state = next_state(server.state, Moment.UP)
        server.trouble, server.hint = None, ""
        run.up_at, run.stage = self._out.now, Stage.OPENING
        server.settling = server.settling or not server.known  # however late it is
        server.eras[run.starter.era], server.revision = met.era, met.revision
        server.info = bytes(met.info) if met.info is not None and is_object(met.info) else NOBODY.info
        instructions = value_of(met.body.get("instructions"))
        self._describe(server, met.body.get("capabilities"), instructions if isinstance(instructions, str) else "")
        self._out.log("debug", f"= {server.name} ready ({met.revision})")
        if met.era == "modern":
            run.listens_for = {}
            self.open(server)
        else:
            self._out.to_server(server.peer, notification_line("notifications/initialized"))
            is_asking = any(one.peer is not Peer.NEXT for one in self._in_flight.asked_by(server.name))
            wait = server.options.startup_timeout_sec if is_asking else QUIET_AFTER_INITIALIZED
            self._out.timer("open", server.peer, self._out.now + wait)

    def _describe(self, server: Facts, capabilities: Raw | bytes | None, instructions: str) -> None:
        """What it says of itself, or the cache of it, within its share of the handshake with a host."""
        server.capabilities, note = fit_capabilities(capabilities)
        server.instructions = instructions[:INSTRUCTIONS_MOST]
        if len(instructions) > INSTRUCTIONS_MOST:
            note = f"has instructions of {len(instructions)} characters"
        if note:
            self._out.log("warning", f"{server.name}: {note}; the host is told a part of that")

    def open(self, server: Facts) -> None:
        """It has asked what it asks first, or asks nothing: now it gets what waited, and is listed."""
        if server.run.stage is not Stage.OPENING:
            return
        server.run.stage = Stage.OPEN
        if server.options.idle_timeout_sec:
            self._out.timer("idle", server.peer, self._out.now + server.options.idle_timeout_sec)
        self._hooks.opened(server)

    def listed(self, server: Facts) -> None:
        """It is known what it offers."""
        if server.ready_in is None:
            server.ready_in = self._out.now - server.run.started_at
        server.trouble, server.hint = None, ""
        server.known, server.stale = True, False
        self._out.timer("late", server.peer, None)
        if server.saved and not server.saved.failed and server.lists != server.saved.lists:
            text = what_changed(*(lists.get("tools/list", []) for lists in (server.saved.lists, server.lists)))
            if text:
                self._out.log("info", f"{server.name}: its tools have changed ({text})")
        self.remember(server)
        self._settle(server)
        self._hooks.listed(server)

    def _settle(self, server: Facts) -> None:
        """It is known what this server offers, or that it is not to be waited for: who waited for that goes on."""
        if server.settling:
            server.settling, server.tried = False, True
            self._hooks.settled(server)

    # ── too late, of no use, idle ──

    def late(self, server: Facts) -> None:
        """No answer to the handshake: nobody waits for it any longer, and in the end it is stopped."""
        name, seconds = server.name, server.options.startup_timeout_sec
        if server.state is State.READY and server.settling:
            server.trouble = f"{name} has not listed all that it offers within {seconds:g} s"
            server.hint = "call again in a while, or raise startup_timeout_sec in its table"
            self._out.log("warning", server.why())
            self.remember(server)  # the next start does not wait for it either
            self._settle(server)
        if server.state is not State.STARTING:
            return
        is_remote = server.options.url is not None
        look = "see whether its url is right" if is_remote else "run its command in a terminal to see what it waits for"
        server.hint = f"{look}, or raise startup_timeout_sec in its table"
        hello = f"`{self._greeting.hello_of(server)}`"
        if server.run.stage is Stage.LATE:
            self.give_up(server, f"{name} did not answer {hello} within {seconds * START_PATIENCE:g} s")
            return
        server.run.stage = Stage.LATE
        server.trouble = f"{name} has not answered {hello} within {seconds:g} s"
        self._out.log("warning", server.why())
        self.remember(server)
        self._out.timer("late", server.peer, server.run.started_at + seconds * START_PATIENCE)
        self._calls.fail_waiting(server)
        self._settle(server)

    def give_up(self, server: Facts, trouble: str) -> None:
        """Its process is of no use and is stopped; after a rest the next use tries again."""
        server.trouble = trouble
        self._out.log("error", server.why())
        self.remember(server)
        self._greeting.forget(server.peer)
        self.stop(server, Ending.USELESS)
        self._calls.fail_all(server, server.why())
        self._settle(server)

    def stop(self, server: Facts, ending: Ending) -> None:
        server.run.ending, server.run.stage = ending, Stage.CLOSED
        server.state = next_state(server.state, Moment.STOP)
        self._out.put(Stop(server.peer, server.run.number))

    def idle(self, server: Facts, is_busy: bool) -> None:
        """Nobody has used it for a while, or it was told what is no longer so: it is stopped, until somebody does."""
        most = server.options.idle_timeout_sec or FOREVER
        wait, now = 1.0 if server.run.is_outdated else most, self._out.now
        due = now + wait if is_busy else self._calls.last_used.get(server.peer, 0.0) + wait
        if due > now:
            self._out.timer("idle", server.peer, due if due < FOREVER else None)
        elif server.is_open:
            self._out.log("debug", f"= {server.name} is idle and is stopped")
            self.stop(server, Ending.TOLD)

    # ── the end of a process ──

    def gone(self, server: Facts, event: ServerGone) -> None:
        was, ending = server.state, server.run.ending
        if not self.is_ending and was in (State.STARTING, State.STOPPING) and self._greeting.gone(server):
            self._begin_anew(server)
            return
        self._greeting.forget(server.peer)
        if was is State.STOPPING and ending is not Ending.USELESS:
            server.state = next_state(was, Moment.ENDED)
        else:
            self._count_death(server, event, ending)
        self._end_run(server)
        self._hooks.gone(server)
        keeps = server.state is not State.FAILED and not self.is_ending
        keeps_waiting = keeps and was is State.STOPPING
        waits = self._calls.process_gone(server, event.unread if keeps else [], keeps_waiting=keeps_waiting)
        self._settle(server)
        if waits:
            self.use(server)

    def _begin_anew(self, server: Facts) -> None:
        """Its era is looked for in a fresh process, within the time of the first."""
        since = server.run.started_at
        server.state = next_state(server.state, Moment.AGAIN)
        for pending in self._in_flight.owed_by(server.peer):
            if pending.is_ours:
                self._in_flight.settle(pending)
        self._hooks.gone(server)  # the fresh one has asked nothing yet
        self.use(server)
        server.run.started_at = since
        self._out.timer("late", server.peer, since + server.options.startup_timeout_sec)

    def _count_death(self, server: Facts, event: ServerGone, ending: Ending | None) -> None:
        words = f'; its last words: "{telling(event.stderr)}"' if event.stderr else ""
        if ending is Ending.USELESS:  # it was silent to us, and perhaps not to people
            server.trouble = f"{server.trouble}{words}" if server.trouble else None
            server.hint = event.hint if event.reason.endswith(STILL_FETCHING) else server.hint
        else:
            server.trouble, server.hint = f"{event.reason}{words}", event.hint
            if broken := broken_npx(event.stderr):
                repair = f"`mcpmux check --repair` deletes {broken} and fetches it again"
                server.hint = f"npx has a broken copy of it: {repair}"
            self._out.log("error", server.why())
            if not server.known:
                self.remember(server)
        rest = self._deaths[server.peer].count(self._out.now, self._chance())
        if rest is None and not isinstance(server.peer, str):
            rest = BACKOFF_MOST  # one of ours is never given up: others need it
        server.state = next_state(server.state, Moment.GAVE_UP if rest is None else Moment.GONE)
        self._out.timer("rested", server.peer, self._out.now + (FAILED_REST if rest is None else rest))

    def _end_run(self, server: Facts) -> None:
        """Nothing that its process still says is heard, and nothing is left of what belonged to it."""
        self._out.no_timers(server.peer, _TIMERS_OF_A_RUN)
        self._out.clogged.discard(server.peer)
        server.run = Run(server.run.number + 1, server.run.starter, stage=Stage.CLOSED)
        if not server.known:
            server.lists.clear()  # it died while it was listed: what it offers is not known

    def rested(self, server: Facts) -> None:
        server.state = next_state(server.state, Moment.DUE)
        if server.wanted:
            self.use(server)

    def try_again(self, server: Facts) -> None:
        """What kept it from serving may be over."""
        if server.trouble and not server.is_broken:
            self._deaths.pop(server.peer, None)
            self.wake(server, State.BACKOFF, State.FAILED)
            self.use(server)

    def wake(self, server: Facts, *states: State) -> None:
        if server.state in states:
            server.state = next_state(server.state, Moment.DUE)
            self._out.timer("rested", server.peer, None)

    def retire(self, servers: Iterable[Facts]) -> None:
        """They are no longer in the config, or not like this: they end with all that they owe and are owed."""
        for server in servers:  # all of them, before anything that waited for one goes on to another
            if server.state in (State.STARTING, State.READY):
                self._out.put(Stop(server.peer, server.run.number))
            server.state, server.run.stage = State.FAILED, Stage.CLOSED
            server.trouble = f"{server.name} was removed from the config, or its table has changed"
        for server in servers:
            text = f"mcpmux: {server.trouble}"
            self._out.no_timers(server.peer, (*_TIMERS_OF_A_RUN, "rested"))
            self._out.clogged.discard(server.peer)
            self._greeting.forget(server.peer)
            self._deaths.pop(server.peer, None)
            self._hooks.removed(server, text)
            self._calls.forget(server, text)

    def end(self) -> None:
        self.is_ending = True
        for server in (*self._servers.values(), *self.own.values()):
            if server.state in (State.STARTING, State.READY):
                server.wanted = False
                self._greeting.forget(server.peer)
                self.stop(server, Ending.TOLD)

    # ── what the cache has ──

    def recall(self, known: Mapping[str, list[Known]]) -> None:
        """What the cache has of the servers: if possible for a host of this era, with these capabilities."""
        host = self._host.caller
        for server in self._servers.values():
            told = told_key(self._calls.told(server, host))
            found = [one for one in known.get(server.name, ()) if one.key == table_key(server.options)]
            lists = [one for one in found if not one.failed]
            server.eras = {one.host: one.era for one in lists}
            server.samples = any(one.samples for one in lists)
            if lists:
                best = min(lists, key=lambda one: (one.host != host.era, one.told not in ("", told)))
                server.saved, server.revision, server.info = best, best.revision, best.info
                server.known, server.stale = True, best.host != host.era or best.told not in ("", told)
                self._describe(server, best.capabilities, best.instructions)
                server.lists = {method: entries[:ENTRIES_MOST] for method, entries in best.lists.items()}
            server.tried = server.tried or bool(found)

    def remember(self, server: Facts) -> None:
        """For the next start. A failure is remembered only of a server of which nothing else is known."""
        if not isinstance(server.peer, str):
            return
        key = table_key(server.options)
        if server.known:
            told, era = ("", "modern") if server.modern else (told_key(server.run.told), "legacy")
            said = encode(server.capabilities), server.info, server.instructions, dict(server.lists)
            known = Known(key, told, server.run.starter.era, era, server.revision, *said, samples=server.samples)
        else:
            known = Known(key, failed=server.trouble or "unknown")
        if known != server.saved and server.peer in self._servers:
            server.saved = known
            self._out.put(SaveCatalogue(server.peer, known))

    def note_sampling(self, name: str) -> None:
        """From now on the model is loaded with its first call."""
        server = self._servers[name]
        if not server.samples:
            server.samples = True
            if server.known:
                self.remember(server)


# ══ 14. Core ═════════════════════════════════════════════════════════════════════════════════════════════════════════
# Events in, effects out. The router gives each message to the part that cares for it; `Core` puts the parts together
# and tells them of each other's changes. Nothing here can block, fail to send, or tell the time. What each part is
# handed of the others; upwards there are `Hooks`, and whoever asked:
#
#   Calls         Ground
#   Tasks         Calls
#   Subscriptions Calls, Tasks
#   Turns         Calls
#   Questions     Calls, Tasks, Turns, Rounds
#   Rounds        Calls, Questions
#   Approvals     Calls, Questions, Rounds
#   Consents      Calls, Questions, Rounds, Turns
#   Greeting      Calls, Life
#   Lists         Calls, Life
#   Life          Calls, Greeting, Lists
#   Parts         Calls, Tasks, Subscriptions, Questions, Rounds, Approvals, Lists, Life
#   Finder        Parts
#   Router        Parts, Finder
#   Core          Parts, Calls, Tasks, Subscriptions, Turns, Questions, Rounds, Approvals
#   Core          Consents, Greeting, Lists, Life, Router


class Parts(NamedTuple):
    """What a core consists of besides its ground."""

    merged: Merged
    calls: Calls
    tasks: Tasks
    subscriptions: Subscriptions
    questions: Questions
    rounds: Rounds
    approvals: Approvals
    lists: Lists
    life: Life


class Finder:
    """Which server a request is for that names none of its tools or prompts: by its URI, by its extension, or by what
    else its params name. `hold` keeps it back while servers are started; `sent` cares for what was sent."""

    def __init__(
        self, ground: Ground, parts: Parts, hold: Callable[[Ask], bool], sent: Callable[[Ask, Pending | Reply], None]
    ) -> None:
        self._out, _, self._host, self._servers = ground
        self._merged, self._calls, self._tasks, self._subscriptions = parts[:4]
        self._hold, self._sent = hold, sent

    def by_uri(self, ask: Ask) -> None:
        uri = text_in(ask.fields, "uri")
        owners = self._owners_of(uri)
        if ask.method == "resources/unsubscribe" and (subscribed := self._subscriptions.subscribed_at(uri)):
            owners = [subscribed]
        if not owners and self._hold(ask):
            return
        if ask.method in SUBSCRIBING:
            owners = self._subscribable(owners or self._guesses(uri), uri)
            if (server := self._servers[owners[0]]).modern:
                wanted = ask.method == "resources/subscribe"
                (self._subscriptions.want if wanted else self._subscriptions.unwant)(server, uri)
                self._host.reply(ask, b"{}")
                return
        elif len(owners) == 1:
            self._sent(ask, self._calls.forward(ask, owners[0], ask.fields))
            return
        self._calls.run(ask, self._in_turn(ask, uri, owners))

    def _owners_of(self, uri: str) -> list[str]:
        """Who has listed it; else who gave it out, and those whose templates it matches."""
        catalogue = self._merged.view(self._host.caller).catalogue
        owners = catalogue.owners_of(uri)
        linked = None if uri in catalogue.resources else self._calls.links.owner(uri)
        return list(dict.fromkeys([linked, *owners])) if linked else owners

    def _guesses(self, uri: str) -> list[str]:
        """For a URI that nobody has listed: servers that have others of its scheme; of a scheme that is nobody's those
        that list no resources at all. Those that are ready come first; the others are started."""
        catalogue = self._merged.view(self._host.caller).catalogue
        known = set(catalogue.resources.values()) | {server for _, server in catalogue.templates}
        silent = [one.name for one in self._servers.values() if offers(one.capabilities, "resources")]
        names = catalogue.schemes.get(uri.partition(":")[0]) or [name for name in silent if name not in known]
        return sorted(names, key=lambda name: not self._servers[name].is_open)

    def _subscribable(self, names: list[str], uri: str) -> list[str]:
        """Of these, the servers that offer subscriptions; of one era. Raises `RpcError` where there is none."""
        able = [name for name in names if offers(self._servers[name].capabilities, "resources", "subscribe")]
        if not able and names:
            raise RpcError(METHOD_NOT_FOUND, f"{names[0]} offers no subscriptions to its resources")
        if not able:
            raise RpcError(RESOURCE_NOT_FOUND, f"Resource not found: no server offers {uri}", {"uri": uri})
        return [name for name in able if self._servers[name].modern == self._servers[able[0]].modern]

    def _in_turn(self, ask: Ask, uri: str, owners: list[str]) -> Steps:
        """Each server that may have a URI is asked, until one knows it: by a template a match is a guess too, and one
        that is a mere guess is not waited for as long."""
        refusal = None
        for name in owners or self._guesses(uri):
            server = self._servers.get(name)  # it may have left the config meanwhile
            if server is None or name in self._out.clogged:
                continue
            start = 0.0 if server.is_open else server.options.startup_timeout_sec
            patience = None if owners else URI_PROBE_TIMEOUT + start
            if ask.method in SUBSCRIBING:
                reply = yield from self._subscriptions.steps(ask, name, uri, patience)
            else:
                reply = yield Step(name, ask.method, ask.fields, patience)
            if isinstance(reply, bytes) or reply.error is None:
                return reply
            refusal = Reply(None, bytes(reply.error), reply.failure)
            code = value_of(object_of(reply.error).get("code"))
            if owners and code not in (RESOURCE_NOT_FOUND, INVALID_PARAMS):
                return refusal
        if refusal:
            return refusal
        raise RpcError(RESOURCE_NOT_FOUND, f"Resource not found: no server offers {uri}", {"uri": uri})

    def list_merged(self, ask: Ask) -> None:
        """A list of an extension, of all servers that have it."""
        expect_no_cursor(ask)
        extension, key = MERGED_METHODS[ask.method]
        having = [one.name for one in self._servers.values() if offers(one.capabilities, "extensions", extension)]
        if not having and not self._hold(ask):
            raise RpcError(METHOD_NOT_FOUND, f"no server has the extension {extension}")
        if having:
            self._calls.run(ask, self._merge(ask, key, having))

    def _merge(self, ask: Ask, key: str, names: list[str]) -> Steps:
        entries: list[tuple[str, bytes]] = []
        for name in names:
            server = self._servers.get(name)  # it may have left the config meanwhile
            start = 0.0 if server is None or server.is_open else server.options.startup_timeout_sec
            pages = self._tasks.pages(name, ask.method, ask.fields, key, URI_PROBE_TIMEOUT + start)
            entries += [(name, bytes(raw)) for raw in (yield from pages)]
        return self._tasks.joined(key, entries)

    def pass_on(self, ask: Ask) -> None:
        """A method of the future: for the owner of what its params name; else for those with an extension of their."""
        params, catalogue = dict(ask.fields), self._merged.view(ask.caller).catalogue
        name, uri, task = (value_of(params.get(key)) for key in ("name", "uri", "taskId"))
        owner = self._tasks.owner(task)
        if owner is None and isinstance(uri, str):
            owner = next(iter(catalogue.owners_of(uri)), None)
        route = (catalogue.tools.get(name) or catalogue.prompts.get(name)) if isinstance(name, str) else None
        if owner is None and route:
            owner, params["name"] = route.server, Raw(encode(route.name))
        if owner is not None:
            self._sent(ask, self._calls.forward(ask, owner, params))
        else:
            self._calls.run(ask, self._by_extension(ask))

    def _by_extension(self, ask: Ask) -> Steps:
        having = {one.name: object_of(one.capabilities.get("extensions")) for one in self._servers.values()}
        owners = collections.Counter(id for ids in having.values() for id in ids if id not in EXTENSIONS)
        refusal: Reply | None = None
        for name in [name for name, ids in having.items() if any(owners[id] == 1 for id in ids)]:
            if name in self._servers:
                refusal = yield Step(name, ask.method, ask.fields)
                if value_of(object_of(refusal.error).get("code")) != METHOD_NOT_FOUND:
                    return refusal
        raise RpcError(METHOD_NOT_FOUND, f"Method not found: {ask.method[:TEXT_MOST]}")


class Router:
    """Which part cares for what, by method and by name."""

    joined: Callable[[], None]  # tools that were found: the host's list has changed by them

    def __init__(
        self, ground: Ground, parts: Parts, begin: Callable[[], None], about_us: Callable[[], dict[str, Any]]
    ) -> None:
        self._out, self._in_flight, self._host, self._servers = ground
        self._merged, self._calls, self._tasks, self._subscriptions = parts[:4]
        self._questions, self._rounds, self._approvals, self._lists, self._life = parts[4:]
        self._begin, self._about_us = begin, about_us
        parts.approvals.again = self._call_tool
        find = self._find = Finder(ground, parts, self._hold, self._sent)
        self.of_host: dict[str, Callable[[Ask], None]] = {
            "initialize": self._initialize,
            "server/discover": self._discover,
            "ping": lambda ask: self._host.reply(ask, b"{}"),
            **dict.fromkeys(LISTS, self._list),
            "tools/call": self._call_tool,
            "prompts/get": self._get_prompt,
            "completion/complete": self._complete,
            "logging/setLevel": self._set_level,
            **dict.fromkeys(METHODS_BY_URI, find.by_uri),
            **dict.fromkeys(MERGED_METHODS, find.list_merged),
            "tasks/list": self._list_tasks,
            **dict.fromkeys(("tasks/get", "tasks/result", "tasks/cancel", "tasks/update"), self._about_task),
            "subscriptions/listen": self._listen,
        }
        self.told_by_host: dict[str, Callable[[Fields], None]] = {
            "notifications/initialized": lambda params: self._host.ready(),
            CANCELLED: self._cancelled_by_host,
            "notifications/progress": lambda params: self._progress(Peer.HOST, params),
            "notifications/roots/list_changed": self._roots_changed,
            "notifications/tasks/status": self._tasks.status_from_host,
        }
        self.told_by_server: dict[str, list[Callable[[Facts, Envelope], bool | None]]] = {
            "notifications/progress": [lambda server, message: self._progress(server.peer, object_of(message.params))],
            "notifications/message": [self._calls.log_message],
            CANCELLED: [self._questions.cancelled, self._subscriptions.cancelled],
            "notifications/resources/updated": [self._subscriptions.updated],
            "notifications/tasks/status": [self._tasks.status_from_server, self._subscriptions.pass_on],
            "notifications/elicitation/complete": [self._rounds.page_visited],
            "notifications/subscriptions/acknowledged": [self._subscriptions.acknowledged],
            **{kind.changed: [self._lists.changed] for kind in LISTS.values()},
        }

    # ── lines ──

    def lines(self, lines: Iterable[bytes | TooLong], server: Facts | None = None) -> None:
        """Of the host, a server or a process of ours. A line that shows a bug of ours costs itself only."""
        end = server or self._host
        peer = end.peer
        for line in lines:
            try:
                takes_batches = end.revision in BATCH_REVISIONS
                messages, note = messages_in(line, self._host.options.max_message_mb, takes_batches=takes_batches)
                if note:
                    self._out.note(peer, note)
                for message in messages:
                    if isinstance(message, Unread):
                        self._unread(peer, message)
                        continue
                    if self._out.is_tracing:
                        self._out.trace("<", peer, what_is(message), len(line))
                    if server is None:
                        self._from_host(message)
                    elif isinstance(peer, str):
                        self._from_server(server, message)
                    else:
                        self._from_own(server, message)
            except Exception as bug:
                self._out.bug(bug)

    def _unread(self, peer: Name, bad: Unread) -> None:
        """It costs itself, and a request that it shows to be an answer to."""
        text = bad.head[:TEXT_MOST].decode(errors="replace").strip()
        is_text = isinstance(peer, str) and bad.code == PARSE_ERROR and text[:1] not in ("{", "[")  # no payload
        self._out.note(peer, "a line was not read: " + (f'"{text}" is not JSON' if is_text else bad.reason))
        number = id_in_bad_line(bad.head, bad.tail)
        pending = self._in_flight.get(number)
        is_answer = b'"method"' not in bad.head[:EDGE] and b'"method"' not in bad.tail[-EDGE:]
        if pending and pending.peer == peer and is_answer and pending.is_sent:
            self._calls.fail(pending, f"{called(peer)} sent an answer that cannot be read: {bad.reason}")
        elif peer is Peer.HOST:
            known = None if number is None or bad.code == PARSE_ERROR else b"%d" % number
            if known in self._host.open:
                known = None  # that request has its own ending
            error = RpcError(bad.code, f"mcpmux could not read this line: {bad.reason}")
            self._out.to_host(Peer.HOST, error_line(known, error_body(error)))

    # ── from the host ──

    def _from_host(self, message: Envelope) -> None:
        params = UNSET if message.params is UNSET or bytes(message.params) == JSON_NULL else message.params
        if message.method is not UNSET and message.id is UNSET:
            handler = self.told_by_host.get(message.method)
            if handler and (self._host.revision or message.method == CANCELLED):
                handler(object_of(params))
        elif message.method is not UNSET and message.id is not UNSET:
            ask = Ask(bytes(message.id), message.method, params)
            if self._host.take(ask):
                self._route(ask)
        elif message.id is not UNSET and (message.result is not UNSET or message.error is not UNSET):
            self._answer_of_host(message)
        elif message.error is not UNSET:
            self._out.note(Peer.HOST, "an error without an id")
        else:
            line = b'{"id":%b}' % (b"" if message.id is UNSET else bytes(message.id))
            wrong = "neither a request, a notification nor a response"
            self._unread(Peer.HOST, Unread(line, line, wrong, INVALID_REQUEST))

    def _route(self, ask: Ask) -> None:
        """The era goes with each request; `initialize` is legacy whatever it carries. A bug of ours ends it too."""
        try:
            ask.fields = fields_of(ask.params)
            caller = None if ask.method == "initialize" else caller_of(ask.fields)
            ask.caller = caller or self._host.legacy
            if caller:
                if ask.method in LEGACY_ONLY:
                    raise RpcError(METHOD_NOT_FOUND, f"{ask.method} is not of {MODERN_REVISIONS[0]}")
                self._host.caller = caller
            if self._host.may_search and ask.method == "tools/call":
                self._unwrap(ask)
            if caller:
                if ask.method not in MODERN_ONLY:  # a host that only looks what this is starts no server
                    self._begin()
                state = value_of(ask.fields.get("requestState"))
                if ask.method in CARRIERS and isinstance(state, str) and state.startswith(STATE_PREFIX):
                    self._rounds.retry(ask, state)
                    return
            elif ask.method in MODERN_ONLY or not (self._host.is_ready or ask.method in BEFORE_INITIALIZED):
                self._expect_legacy(ask)
            (self.of_host.get(ask.method) or self._find.pass_on)(ask)
        except RpcError as error:
            self._host.refuse(ask, error)
        except Exception as bug:
            self._out.bug(bug)
            self._host.end_by_bug(ask)

    def _expect_legacy(self, ask: Ask) -> None:
        if not self._host.revision:
            how = f"send `initialize`, or {VERSION_KEY} and the rest of {MODERN_REVISIONS[0]} in params._meta"
            raise RpcError(INVALID_PARAMS, f"not initialized: {how}")
        if ask.method in MODERN_ONLY:
            raise RpcError(METHOD_NOT_FOUND, f"{ask.method} is not of {self._host.revision}")
        if not self._host.is_ready:
            self._host.ready()  # its `initialized` never came: what it asks shows that it is

    def _hold(self, ask: Ask, *, as_list: bool = False) -> bool:
        """Keeps a request back while servers that it may concern are being started for the first time."""
        if ask.blamed is None:
            waits = any(server.settling and not server.tried for server in self._servers.values())
        else:
            blamed = self._servers.get(ask.blamed)  # None: it has left the config meanwhile
            waits = blamed is not None and blamed.settling
        if waits and (as_list or ask.method in LISTS):
            waits = self._has_patience(ask)
        if waits:
            self._host.hold(ask)
        return waits

    def _has_patience(self, ask: Ask) -> bool:
        """A list waits as long as its host may, but where nothing is known at all: an empty one is of no use."""
        if ask.held_until is None:
            seconds = max(self._host.options.first_list_sec, LIST_PATIENCE.get(ask.caller.name, 0.0))
            is_any_known = any(server.known for server in self._servers.values())
            ask.held_until = self._out.now + seconds if is_any_known else FOREVER
        if self._out.now < ask.held_until < self._out.due_at("lists", Peer.HOST):
            self._out.timer("lists", Peer.HOST, ask.held_until)
        return ask.held_until > self._out.now

    def release(self) -> None:
        """Requests that were held go on, or are held for what is still to be known."""
        held = list(self._host.held.values())
        self._host.held.clear()
        for ask in held:
            ask.by = None
            self._route(ask)

    # ── its requests, by method ──

    def _initialize(self, ask: Ask) -> None:
        revision = negotiate(text_in(ask.fields, "protocolVersion"))
        info = ask.fields.get("clientInfo", Raw(JSON_NULL))
        declared = ask.fields.get("capabilities", Raw(b"{}"))
        fields_of(declared)  # or it is refused
        host = self._host
        host.caller = host.legacy = Caller(False, bytes(declared), bytes(info) if is_object(info) else NOBODY.info)
        host.revision = revision
        host.reply(ask, encode({"protocolVersion": revision, **self._about_us(), "serverInfo": IMPLEMENTATION}))
        self._begin()

    def _discover(self, ask: Ask) -> None:
        about = self._about_us()
        about["capabilities"].pop("tasks", None)  # those of the legacy era are for it alone
        answer = {"supportedVersions": MODERN_REVISIONS, **about, "ttlMs": 0, "cacheScope": "private"}
        self._host.reply(ask, encode(answer))

    def _list(self, ask: Ask) -> None:
        expect_no_cursor(ask)
        if not self._hold(ask):
            catalogue = self._merged.view(ask.caller).catalogue
            result = self._host.seen[ask.method] = catalogue.results[ask.method]
            self._host.reply(ask, catalogue.plain.get(ask.method, result) if ask.caller.modern else result)

    def _call_tool(self, ask: Ask) -> None:
        name, (catalogue, search) = text_in(ask.fields, "name"), self._merged.view(ask.caller)
        if search and name == FIND_TOOLS:
            self._find_tools(ask, search)
            return
        route = catalogue.tools.get(name) or catalogue.tool(name)
        if route is None and (server := self._merged.withheld_tool(name)):
            text = f"{name} has changed and is withheld until you accept it: `mcpmux accept {server}` shows how"
            self._host.fail(ask, text)
            return
        if route is None:
            self._unknown_name(ask, name, "tool", catalogue.tools)
            return
        may_wait = ask.through or self._servers[route.server].options.approve
        if may_wait and not self._approvals.may_go_on(ask, route):
            return
        params = ask.fields | {"name": Raw(encode(route.name))}
        makes_task = "task" in ask.fields or declares_tasks(ask.caller.declared)
        wrapped = route.entry.wrapped and not ask.caller.modern
        sent = self._tasks.refusal(route.server) if makes_task else None
        if sent is None:
            asker = self._tasks if makes_task else None
            sent = self._calls.forward(ask, route.server, params, asker, wrapped=wrapped)
        if ask.approved and ask.caller.modern and isinstance(sent, Pending):
            sent.rounds = 1  # hosts count ours too
        self._sent(ask, sent)

    def _unwrap(self, ask: Ask) -> None:
        """A call through `call_tool` is the tool's own, before anything else looks at it."""
        if value_of(ask.fields.get("name")) == CALL_TOOL and self._host.exposure(ask.caller).expose == "search":
            ask.fields, ask.through = unwrapped(ask.fields), True

    def _find_tools(self, ask: Ask, search: ToolSearch) -> None:
        if self._hold(ask, as_list=True):
            return
        given = {key: value_of(raw) for key, raw in object_of(ask.fields.get("arguments")).items()}
        names = [one.name for one in self._servers.values() if self._host.sees(ask.caller, one.name)]
        found = search.find(given, names)
        lost = [one.why() for one in self._servers.values() if one.name in names and one.trouble]
        self._host.reply(ask, answer_found(found) if found else search.nothing_found(given, lost))
        if found and self._merged.joins(ask.caller):
            self._merged.join(one.name for one in found)
            self.joined()

    def _get_prompt(self, ask: Ask) -> None:
        name, prompts = text_in(ask.fields, "name"), self._merged.view(ask.caller).catalogue.prompts
        if (route := prompts.get(name)) is None:
            self._unknown_name(ask, name, "prompt", prompts)
        else:
            self._sent(ask, self._calls.forward(ask, route.server, ask.fields | {"name": Raw(encode(route.name))}))

    def _sent(self, ask: Ask, sent: Pending | Reply) -> None:
        """What the server has to ask, and had no call for, goes along with this one; or the request ends here."""
        if not isinstance(sent, Pending):
            self._host.answer(ask, sent)
        elif ask.caller.modern and ask.method in CARRIERS:
            self._questions.carry(self._servers[shown(sent.peer)], sent)

    def _listen(self, ask: Ask) -> None:
        if uris_of(ask):
            self._begin()
            if self._hold(ask):
                return
        self._subscriptions.listen(ask)

    def _complete(self, ask: Ask) -> None:
        params, catalogue = dict(ask.fields), self._merged.view(ask.caller).catalogue
        ref = fields_of(params.get("ref", b"null"))
        if value_of(ref.get("type")) == "ref/prompt":
            name = text_in(ref, "name")
            if (route := catalogue.prompts.get(name)) is None:
                self._unknown_name(ask, name, "prompt", catalogue.prompts)
                return
            owner, ref["name"] = route.server, Raw(encode(route.name))
            params["ref"] = Raw(encode(ref))
        else:
            uri = text_in(ref, "uri")
            owners = [server for template, server in catalogue.templates if template == uri]
            if not (owners := owners or catalogue.owners_of(uri)):
                if not self._hold(ask):
                    raise RpcError(INVALID_PARAMS, f"no server has a resource template {uri}")
                return
            owner = owners[0]
        server = self._servers[owner]  # 2024-11-05 had completion and no capability for it
        if offers(server.capabilities, "completions") or server.revision in ("", LEGACY_REVISIONS[-1]):
            self._sent(ask, self._calls.forward(ask, owner, params))
        else:
            self._host.reply(ask, b'{"completion":{"values":[]}}')

    def _set_level(self, ask: Ask) -> None:
        if (level := text_in(ask.fields, "level")) not in LOG_LEVELS:
            raise RpcError(INVALID_PARAMS, f"params.level must be one of {', '.join(LOG_LEVELS)}")
        self._host.level = level
        for server in self._servers.values():
            if server.is_open:
                self._calls.tell_level(server)
        self._host.reply(ask, b"{}")

    def _list_tasks(self, ask: Ask) -> None:
        expect_no_cursor(ask)
        if not self._hold(ask):
            names = [shown(one.name) for one in self._servers.values() if offers(one.capabilities, "tasks", "list")]
            self._calls.run(ask, self._tasks.all(names))

    def _about_task(self, ask: Ask) -> None:
        if ask.caller.modern and not declares_tasks(ask.caller.declared):
            data = {"requiredCapabilities": {"extensions": {TASKS_EXTENSION: {}}}}
            raise RpcError(MISSING_CAPABILITY, f"{ask.method} is of the tasks extension, which was not declared", data)
        self._calls.run(ask, self._tasks.about_one(ask))

    def _unknown_name(self, ask: Ask, name: str, noun: str, known: Mapping[str, Route]) -> None:
        if self._hold(ask):
            return
        if (owner := self._server_by_prefix(name)) and not owner.known:
            is_lost = owner.state in (State.FAILED, State.STOPPING) or owner.run.stage is Stage.LATE
            if ask.blamed is None and not is_lost:
                ask.blamed = owner.name
                self._life.wait_for(owner)
                self._hold(ask)
            else:
                self._host.answer(ask, failed(owner.why()))
            return
        near = nearest(name, known)
        hint = f" (did you mean {near}?)" if near else ""
        raise RpcError(INVALID_PARAMS, f"Unknown {noun}: {name[:TEXT_MOST]}{hint}")

    def _server_by_prefix(self, name: str) -> Facts | None:
        seen = [one for one in self._servers.values() if self._host.sees(self._host.caller, one.name)]
        spaces = {one.name: Part(one.name, one.options.prefix, {}).space(self._host.options) for one in seen}
        owners = [one for one in seen if spaces[one.name] and name.startswith(spaces[one.name])]
        return max(owners, key=lambda one: len(spaces[one.name]), default=None)

    # ── its notifications and answers ──

    def _cancelled_by_host(self, params: Fields) -> None:
        if ask := self._host.open.get(bytes(params.get("requestId", b""))):
            call = self._in_flight.get(ask.number)
            self._host.drop(ask, params)
            if call and call.ask is ask:
                self._questions.call_dropped(call)

    def _progress(self, peer: Name, params: Fields) -> None:
        number = number_of_id(params.get("progressToken", Raw(b"")))
        self._calls.told_of_progress(self._in_flight.get(number) or self._tasks.progressing(number), peer, params)

    def _roots_changed(self, params: Fields) -> None:
        self._host.roots = None
        line = notification_line("notifications/roots/list_changed", encode(params) if params else UNSET)
        for server in self._servers.values():
            if server.state is State.READY and not server.modern and offers(self._host.legacy.capabilities, "roots"):
                self._out.to_server(server.peer, line)

    def _answer_of_host(self, message: Envelope) -> None:
        pending = self._in_flight.get(number_of_id(message.id) if message.id is not UNSET else None)
        if pending is None or pending.peer is not Peer.HOST:
            self._out.note(Peer.HOST, "an answer to nothing that is open was dropped", "debug")
            return
        reply = reply_in(message, "the host")
        self._host.keep_roots(pending.method, reply)
        self._calls.end(pending, reply)

    # ── from servers ──

    def _from_server(self, server: Facts, message: Envelope) -> None:
        if message.method is UNSET and message.id is UNSET:
            harms = message.result is UNSET and message.error is UNSET  # else it has answered a notification
            text = "a message that is neither request, notification nor response"
            self._out.note(server.peer, text, "warning" if harms else "debug")
        elif message.method is UNSET:
            self._answer_of_server(server, message)
        elif message.id is UNSET:
            for take in self.told_by_server.get(message.method, [self._subscriptions.pass_on]):
                if take(server, message) is False:  # it is not for those after it
                    break
        else:
            self._questions.asked(server, message)

    def _answer_of_server(self, server: Facts, message: Envelope) -> None:
        assert message.id is not UNSET
        pending = self._in_flight.get(number_of_id(message.id))
        if pending is None or pending.peer != server.peer or not pending.is_sent:
            level = "warning" if bytes(message.id) == JSON_NULL else "debug"  # an error with a null id is worth a look
            self._out.note(server.peer, "an answer to nothing that is open was dropped", level)
            return
        reply, ask = reply_in(message, server.name), pending.ask
        if ask is None or not (server.modern or ask.caller.modern or reply.error is not None):
            self._calls.end(pending, reply)
        elif not self._out.survive(self._rounds.answered, server, pending, reply):
            self._host.end_by_bug(ask)

    # ── from child processes of ours ──

    def _from_own(self, child: Facts, message: Envelope) -> None:
        """An answer, a line for the log, or that it is ready."""
        if message.method == LOADED:
            self._life.open(child)
        elif message.method is not UNSET:
            params = object_of(message.params)
            level = value_of(params.get("level"))
            self._out.log(level if level in LEVELS else "info", str(value_of(params.get("text"))))
        pending = None if message.id is UNSET else self._in_flight.get(number_of_id(message.id))
        if pending and pending.peer is child.peer:  # else it was withdrawn meanwhile
            self._calls.end(pending, reply_in(message, child.name))


def expect_no_cursor(ask: Ask) -> None:
    if value_of(ask.fields.get("cursor")) is not None:
        raise RpcError(INVALID_PARAMS, "unknown cursor: the list has one page only")


def broken_server(name: str, reason: str, run: int = 0) -> Facts:
    """One whose table is wrong: it is there to say so."""
    server = Facts(name, ServerOptions(), run)
    server.state, server.trouble, server.tried = State.FAILED, reason, True
    server.is_broken, server.hint = True, "correct its table"
    return server


class Core:
    """The multiplexer without its pipes: `handle` takes an event and the time, and returns what is to be done.

    `hosts` says which is shown what; `broken` are servers whose table is wrong, with the reason; `known` is what the
    cache has of the others, `names` are the names that were given out so far; `sampling` is there if a local model is,
    and `has_page` says whether a browser can be had; `chance` gives numbers in [0, 1), and `secret` what nobody can
    guess.
    """

    def __init__(
        self,
        options: MuxOptions,
        servers: Mapping[str, ServerOptions],
        *,
        hosts: Mapping[str, HostOptions] | None = None,
        sampling: SamplingOptions | None = None,
        known: Mapping[str, list[Known]] | None = None,
        names: Names | None = None,
        pins: Pins | None = None,
        consents: Mapping[str, str] | None = None,
        broken: Mapping[str, str] | None = None,
        notice: str = "",
        chance: Callable[[], float] = lambda: 0.0,
        secret: Callable[[], str] = lambda: "",
        has_page: bool = False,
    ) -> None:
        self._has_page = has_page
        self.servers: dict[str, Facts] = {name: Facts(name, table) for name, table in servers.items()}
        self.servers |= {name: broken_server(name, reason) for name, reason in (broken or {}).items()}
        out = self.out = Out()
        self.in_flight, self.host = InFlight(out), HostEnd(out, options)
        ground = Ground(out, self.in_flight, self.host, self.servers)
        idle = ((Peer.SAMPLER, SAMPLER_IDLE), (Peer.PAGE, PAGE_IDLE))
        own: dict[Name, Facts] = {peer: Facts(peer, ServerOptions(idle_timeout_sec=most)) for peer, most in idle}
        self.sampler = own[Peer.SAMPLER]
        merged = self.merged = Merged(ground, names or {}, pins or {})
        calls = self.calls = Calls(ground)
        tasks = self.tasks = Tasks(ground, calls)
        subscriptions = self.subscriptions = Subscriptions(ground, merged, calls, tasks)
        turns = self.turns = Turns(ground, calls, self.sampler)
        turns.stuck = self._sampler_stuck
        questions = self.questions = Questions(ground, calls, tasks, turns, own)
        rounds = self.rounds = Rounds(ground, calls, questions, secret)
        approvals = self.approvals = Approvals(ground, merged, calls, questions, rounds)
        approvals.accepted = self._lists_changed
        self.consents = Consents(ground, calls, questions, rounds, turns, consents or {})
        greeting = self.greeting = Greeting(ground, calls)
        lists = self.lists = Lists(ground, calls, merged)
        life = self.life = Life(ground, calls, greeting, lists, self, chance)
        life.own |= own
        turns.took, calls.warm_up = life.note_sampling, functools.partial(life.use, self.sampler)
        parts = Parts(merged, calls, tasks, subscriptions, questions, rounds, approvals, lists, life)
        self.router = Router(ground, parts, self.begin, self.about_us)
        self._known, self._notice = known or {}, notice
        self._begun = False  # the servers have been started for the first time
        self._wanted: set[str] = set()  # those of them that the host sees
        self._reloading: set[str] = set()  # new servers of a changed config: changes are told when they are listed
        self._former_runs = 0  # no process of a server that was removed had a higher number
        self._set_up_timers()
        self._take_options(options, hosts or {}, sampling)
        self.router.joined = self._tell_changes

    def _set_up_timers(self) -> None:
        """What is to be done when one is due: of a server, or by itself."""
        self._timers_of_servers: dict[str, Callable[[Facts], None]] = {
            "idle": lambda server: self.life.idle(server, self._is_busy(server)),
            "late": self.life.late,
            "listen": self.subscriptions.due,
            "open": self.life.open,
            "relist": self.lists.due,
            "rested": self.life.rested,
            "silent": self.greeting.silent,
        }
        self._timers: dict[str, Callable[[Name], None]] = {
            "approval": self.approvals.due,
            "calls": lambda name: self.calls.sweep(),
            "changes": lambda name: self._tell_changes(at_once=True),
            "consent": self.consents.due,
            "lists": lambda name: self.router.release(),
            "noted": self.out.noted,
            "turn": self.turns.due,
            "still": lambda name: self.questions.still_waiting(),
            "orphans": self.questions.orphans_due,
            "round": self.rounds.due,
        }

    def _take_options(
        self, options: MuxOptions, hosts: Mapping[str, HostOptions], sampling: SamplingOptions | None
    ) -> None:
        self.host.take_options(options, hosts)
        self.out.is_tracing = options.log_level == "trace"
        self.turns.sampling = sampling
        has_page = self._has_page and options.page != "off"
        self.calls.own = Own(sampling is not None, has_page, options.page == "always")
        self.calls.forget_told()

    @property
    def catalogue(self) -> Catalogue:
        return self.merged.catalogue

    # ── events ──

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.out.now = now
        self.out.effects = effects = []
        if type(event) is ServerLines:  # of a Struct, isinstance takes several times as long for a no
            if server := self.life.alive(event.server, event.run):
                self.router.lines(event.lines, server)
        elif type(event) is HostLines:
            self.router.lines(event.lines)
        else:
            self.out.survive(self._handle, event)
        return effects

    def _handle(self, event: Event) -> None:
        match event:
            case TimerDue(key):
                if self.out.is_due(key):
                    self._timer_due(*key)
            case ServerUp(name, run):
                if server := self.life.alive(name, run):
                    self.life.up(server)
            case ServerClogged(name, run, clogged):
                if self.life.alive(name, run):
                    (self.out.clogged.add if clogged else self.out.clogged.discard)(name)
                    self.out.log("warning", f"{shown(name)}: {'does not read' if clogged else 'reads again'}")
            case ServerGone(name, run):
                if server := self.life.alive(name, run):
                    self.life.gone(server, event)
            case ConfigChanged():
                self._reconfigure(event)
            case PinsRead() | ConsentsRead() | PageWanted():
                self._of_person(event)
            case TryAgain(name):
                if server := self.life.alive(name):
                    self.life.try_again(server)
            case HostGone(reason):
                self._end(reason)
            case HostLines() | ServerLines():
                raise Bug("lines are handled one by one")

    def _of_person(self, event: PinsRead | ConsentsRead | PageWanted) -> None:
        """What they have decided, and is kept; or what they want to see."""
        match event:
            case PageWanted():
                self.questions.open_page()
            case ConsentsRead(consents):
                self.consents.take(consents)
            case PinsRead(pins):
                self.merged.pins = pins
                self._lists_changed()

    def _timer_due(self, kind: str, name: Name) -> None:
        if kind in self._timers:
            self._timers[kind](name)
        elif server := self.life.alive(name):
            self._timers_of_servers[kind](server)
        else:
            raise Bug(f"a timer of {shown(name)}, which is not there")

    def _is_busy(self, server: Facts) -> bool:
        name = server.name
        is_owing = any(one is not server.run.listen for one in self.in_flight.owed_by(server.peer))
        is_asking = bool(self.in_flight.asked_by(name))
        return is_owing or is_asking or bool(server.run.readings) or self.subscriptions.is_wanted(name)

    # ── what each era's beginning needs ──

    def begin(self) -> None:
        """The host is really there. Started are the servers of which it is not known what they offer to it."""
        if self._begun and not self.host.may_differ:
            return
        self._recall()
        self._begun = True
        seen = [one for one in self.servers.values() if self.host.sees(self.host.caller, one.name)]
        for server in [one for one in seen if one.name not in self._wanted]:
            self._wanted.add(server.name)
            if server.options.start == "eager" or not server.known or server.stale:
                self.life.use(server)

    def _recall(self) -> None:
        if not self._begun:
            self.life.recall(self._known)
            self.merged.changed()

    def about_us(self) -> dict[str, Any]:
        """What both eras' handshakes say: capabilities and instructions of all that is known."""
        self._recall()
        known = [one for one in self.servers.values() if one.lists and self.host.sees(self.host.caller, one.name)]
        texts = {one.name: (one.instructions, len(one.lists.get("tools/list", ()))) for one in known}
        about: dict[str, Any] = {"capabilities": capabilities_for_host(server.capabilities for server in known)}
        notice = "\n".join(filter(None, [self._notice, self._withheld()]))
        for text in (merged_instructions(texts, notice), notice):
            whole = about | ({"instructions": text} if text else {})
            if len(encode(whole)) < self.host.limit - EDGE:
                return whole
        return {"capabilities": OWN_CAPABILITIES}  # so many servers, each within its share

    def _withheld(self) -> str:
        assert self.merged.catalogue  # it is made here, if need be
        tools = [f"{', '.join(unlike)} of {server}" for server, unlike in self.merged.withheld.items()]
        return f"Withheld by mcpmux, since they have changed: {'; '.join(tools)}."[:TEXT_MOST] if tools else ""

    # ── hooks: what happens to a server concerns others ──

    def opened(self, server: Facts) -> None:
        if isinstance(server.peer, str):
            self.calls.tell_level(server)
            self.subscriptions.opened(server)
        elif server is self.sampler:
            self.turns.loaded()
        self.calls.opened(server)
        if isinstance(server.peer, str):
            self.questions.opened(server)
            self.lists.opened(server)

    def listed(self, server: Facts) -> None:
        self._tell_changes()
        self.approvals.compare(server.name)

    def _lists_changed(self) -> None:
        self.merged.changed()
        self._tell_changes()

    def settled(self, server: Facts) -> None:
        if server.peer in self._reloading:
            self._reloaded()
        self.router.release()

    def gone(self, server: Facts) -> None:
        self.questions.gone(server, f"{server.name} is gone")
        self.tasks.gone(server.name)

    def removed(self, server: Facts, text: str) -> None:
        self.questions.removed(server, text)
        self.rounds.removed(server.name, text)
        self.approvals.removed(server.name)
        self.consents.removed(server.name)

    def _tell_changes(self, *, at_once: bool = False) -> None:
        """Tells the host of each list that is not what it has; one that it never asked for it will ask for. While more
        is to come it is told now and then: each time it reads them whole."""
        if self._reloading or not self.host.seen:
            return
        if not at_once and any(one.state is State.STARTING or one.run.readings for one in self.servers.values()):
            if self.out.due_at("changes", Peer.HOST) == FOREVER:
                self.out.timer("changes", Peer.HOST, self.out.now + CHANGES_TOGETHER)
            return
        self.out.timer("changes", Peer.HOST, None)
        stale = self.host.stale_lists(self.merged.view(self.host.caller).catalogue.results)
        for notification in dict.fromkeys(LISTS[method].changed for method in stale):
            self.host.tell(Peer.HOST, notification_line(notification))
            self.subscriptions.list_changed(notification)

    # ── another config ──

    def _reconfigure(self, config: ConfigChanged) -> None:
        """Servers whose tables are as they were keep their process and their calls. A changed one is another server,
        that shows what the former one offered until it has been listed itself."""
        former, kept = dict(self.servers), dict[str, Facts]()
        if config.sampling != self.turns.sampling:
            self._sampling_changed()
        self._take_options(config.options, config.hosts, config.sampling)
        self._notice = ""
        self.merged.changed()
        started: list[Facts] = []
        for name, table in config.servers.items():
            old = former.get(name)
            if old and old.options == table and not old.is_broken:
                server = former.pop(name)
                self.life.wake(server, State.FAILED)
            else:
                server = Facts(name, table, max(self._former_runs, old.run.number if old else 0))
                started.append(server)
                if old:
                    server.lists, server.known, server.stale = old.lists, old.known, True
            kept[name] = server
        for name, reason in config.broken.items():
            kept[name] = broken_server(name, reason, former[name].run.number + 1 if name in former else 0)
        self._former_runs = max([self._former_runs, *(old.run.number for old in former.values())])
        self.life.retire(former.values())
        self.servers.clear()
        self.servers.update(kept)
        self._wanted &= kept.keys()
        self._renew_outdated()
        gone = [name for name in former if name not in kept]
        for name in gone:
            self.tasks.removed(name)
            self.subscriptions.removed(name)
        new = ", ".join(server.name for server in started) or "none"
        text = f"the config has changed: new or changed servers: {new}; removed: {', '.join(gone) or 'none'}"
        self.out.log("info", text)
        started = [one for one in started if self.host.sees(self.host.caller, one.name)]
        for server in started if self._begun else ():
            self._wanted.add(server.name)
            self.life.use(server)
            server.settling = True
        if self._begun:
            self.begin()  # what is seen may have changed too
        self._reloading = {server.name for server in started}
        self._reloaded()
        self.router.release()  # they may have waited for a server that is no more

    def _renew_outdated(self) -> None:
        """A legacy server is told once what can be asked here: if that has changed, its next use starts a fresh one."""
        for server in self.servers.values():
            run = server.run
            if server.state is State.READY and not server.modern:
                run.is_outdated = told_key(run.told) != told_key(self.calls.told(server, run.starter))
                if run.is_outdated:
                    self.life.idle(server, self._is_busy(server))

    def _sampling_changed(self) -> None:
        """What the models were asked, or would be, ends; the next request starts the sampler with the new ones."""
        self.consents.forget_all(MODELS_CHANGED)
        while owed := [*self.in_flight.owed_by(Peer.TURN), *self.in_flight.owed_by(Peer.SAMPLER)]:
            self.calls.fail(owed[0], MODELS_CHANGED)  # by which another one may have its turn
        if self.sampler.state in (State.STARTING, State.READY):
            self.life.stop(self.sampler, Ending.TOLD)
        self.life.wake(self.sampler, State.BACKOFF, State.FAILED)

    def _sampler_stuck(self) -> None:
        """It is replaced; what it has not answered yet is asked again."""
        if self.sampler.state in (State.STARTING, State.READY):
            self.out.log("warning", "the sampler does not answer any more; a fresh one takes its place")
            self.life.stop(self.sampler, Ending.TOLD)
            self.turns.put_again()

    def _reloaded(self) -> None:
        """When all new servers are listed, or not to be waited for, the host hears of changes, once."""
        if not any(self.servers[name].settling for name in self._reloading if name in self.servers):
            self._reloading = set()
            self._tell_changes()

    # ── the end ──

    def _end(self, reason: str) -> None:
        """The host is gone or we are told to go: whoever waits is told, and every server is stopped."""
        self.out.log("info", f"stopping: {reason}")
        self.subscriptions.end_listens()
        for pending in self.in_flight:
            if pending.ask:
                self.in_flight.settle(pending)
        for ask in list(self.host.open.values()):
            self.host.answer(ask, failed(f"mcpmux is stopping: {reason}"))
        self.host.held.clear()
        self.life.end()


# ════════════════════════════════════════════════════════════════════════════════════════════════════════════════════
# Above this line: no I/O, no clock, no environment, no asyncio.
# ════════════════════════════════════════════════════════════════════════════════════════════════════════════════════


# ══ 15. Config ════════════════════════════════════════════════════════════════════════════════════════════════════════
# The TOML document becomes options. Every problem is found in one reading and named by its path; what is wrong inside
# a server's table fails that server alone. Reads no file and no environment.

PLACEHOLDER: Final = (
    r"\$(\$\{)|\$\{(?:cmd:(?P<cmd>[^{}]*)|(?P<var>[A-Za-z_]\w*)(?::-(?P<default>[^{}]*))?)\}|\$\{([^}]*)\}?"
)
SERVER_NAME: Final = r"[A-Za-z0-9_-]{1,64}"
NAME_RULE: Final = "a server's name may have A-Z a-z 0-9 _ - only (64 at most)"

# Keys of Codex's that say how Codex uses a server, not how it is run: accepted, so that its blocks paste straight in.
CODEX_KEYS: Final = frozenset(
    {"required", "supports_parallel_tool_calls", "default_tools_approval_mode", "environment_id"}
    | {"experimental_environment", "oauth_resource", "startup_timeout_ms", "approval_mode", "parallel_tool_calls"}
)
# What goes with a program, and what with an address; the rest is any server's.
LOCAL_KEYS: Final = ("args", "env", "env_vars", "cwd")
REMOTE_KEYS: Final = ("transport", "http_headers", "env_http_headers", "bearer_token_env_var", "allow_http", "oauth")
# What a server has, what it then has not, and what goes with that.
_KINDS: Final = (("command", "url", REMOTE_KEYS), ("url", "command", LOCAL_KEYS))
_MODEL_KEYS: Final = ("model", "api_key", "api_base", "params")  # of the one model that stands in [sampling] itself
_EXPANDED: Final = ("command", "args", "env", "cwd", "url", "http_headers", "client_secret", "api_key", "api_base")
# What the texts under a key must match (those of a table: its own keys), and what is said of one that does not.
_NO_HEADER: Final = (HEADER_NAME + r"\Z", "{} is no name of a header")
_FORMS: Final = {
    "url": (r"(?s).*\$\{|https?://[^/\s]", "expected an http:// or https:// address"),
    "http_headers": _NO_HEADER,
    "env_http_headers": _NO_HEADER,
    "roots": (r"(?s)file://|(?!.*://)", "{} is neither a folder nor a file:// URI"),  # so the protocol: client/roots
}
_IN_WORDS: Final = {"str": "a string", "int": "an integer", "float": "a number", "bool": "true or false"} | {
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}
# What hosts write in their files and a person copies from there: what to write here.
_RENAMED: Final = (
    "headers http_headers|serverUrl url|httpUrl url|cmd command|envs env|workingDirectory cwd|envFile env_file in [mux]"
    "|disabledTools disabled_tools|excludeTools disabled_tools|includeTools enabled_tools"
    "|disabled enabled = false for a server that is left out"
    "|timeout tool_timeout_sec, in seconds (many hosts count milliseconds)"
)
_ASKING: Final = "leave it out: your host asks before it calls a tool; `approve` names tools that mcpmux asks about"
_OF_HOSTS: Final = {
    **{key: f"write {ours}" for key, _, ours in (row.partition(" ") for row in _RENAMED.split("|"))},
    **dict.fromkeys(("autoApprove", "alwaysAllow", "trust"), _ASKING),
    "type": 'leave it out: a server with a command is local, one with a url is remote (over SSE: transport = "sse")',
    "sandboxEnabled": "leave it out: mcpmux runs servers without a sandbox",
    "description": "leave it out, or write it as a comment after #",
    "name": "leave it out: the name is what follows mcp_servers. in the table's own line",
}
_TABLES_OF_HOSTS: Final = ("mcpServers", "servers", "context_servers", "mcp-servers", "extensions")
_NO_TABLE: Final = "{0}: expected a table, as in [{0}]"
_NO_TABLES: Final = "{0}: expected tables, as in [{0}.NAME]"
_NO_LIST: Final = "{0}: expected tables, as in [[{0}]]"

Table = TypeVar("Table", bound=Struct)


class Config(Struct, frozen=True):
    """What the file says. `broken` are the servers whose tables are wrong, with all that is wrong with each."""

    path: Path
    exists: bool = True
    options: MuxOptions = MuxOptions()
    hosts: dict[str, HostOptions] = {}  # by what they call themselves, in lower case
    profile: str = ""  # the one of these that holds, whatever the host calls itself
    servers: dict[str, ServerOptions] = {}
    broken: dict[str, str] = {}
    disabled: list[str] = []
    notes: list[str] = []
    environment: dict[str, str] = {}  # for `${VAR}`: mcpmux's own, over that of `env_file`
    inherited: dict[str, str] = {}  # mcpmux's own alone: what processes are given
    sampling: SamplingOptions | None = None  # with its models in `models`
    mark: tuple[int, int] | None = None  # of the file: its time and size
    tables: dict[str, Any] = {}  # the servers', as they stand in the file


# Programs that fetch what they are to run, if it is not there yet; and the words that make them do so.
_LAUNCHERS: Final = dict.fromkeys(("npx", "uvx", "bunx", "pnpx"), "") | {"npm": "exec x", "pnpm": "dlx", "yarn": "dlx"}
_LAUNCHERS.update({"bun": "x", "pipx": "run", "docker": "run", "podman": "run", "uv": "run tool"})


def launcher_of(program: str, args: list[str]) -> str:
    """The name of a program that may have to fetch first what it runs."""
    name = re.split(r"[\\/]", program)[-1].lower().removesuffix(".exe").removesuffix(".cmd")
    words = _LAUNCHERS.get(name)
    first = next((arg for arg in args if not arg.startswith("-")), "")
    return name if words is not None and (not words or first in words.split()) else ""


def with_profile(config: Config, name: str) -> Config:
    """As it is for one of the hosts that it names. Raises `ConfigError`."""
    if not name:
        return config
    if (table := config.hosts.get(name.lower())) is None:
        near = nearest(name.lower(), config.hosts)
        raise ConfigError(f"{config.path} has no [hosts.{name}]" + (f"; did you mean {near}?" if near else ""))
    return msgspec.structs.replace(config, hosts={"*": table}, profile=name)


def config_of(document: dict[str, Any], path: Path, absolute: Callable[[str], Path]) -> tuple[Config, list[str]]:
    """The parsed document as options, still without an environment, and what is wrong outside the servers' tables."""
    known = ["mux", "hosts", "sampling", "mcp_servers"]
    fatal = [_unknown_table(key, value, known) for key, value in document.items() if key not in known]
    options = _read_table(MuxOptions, document.get("mux", {}), "mux", fatal)
    sampling = _read_sampling(document["sampling"], fatal) if "sampling" in document else None
    tables = document.get("mcp_servers", {})
    if not isinstance(tables, dict):
        fatal.append(_NO_TABLES.format("mcp_servers"))
        tables = {}
    hosts = _read_value(dict[str, HostOptions], document.get("hosts", {}), "hosts", fatal) or {}
    hosts = {name.lower(): table for name, table in hosts.items()}
    config = Config(path, options=options, hosts=hosts, sampling=sampling, tables=tables)
    for name, table in tables.items():
        if isinstance(table, dict) and table.get("enabled") is False:
            config.disabled.append(name)
            continue
        server, wrong = read_server(name, table, config.notes)
        if server:
            roots = [one if "://" in one else absolute(one).as_uri() for one in server.roots]
            config.servers[name] = msgspec.structs.replace(server, roots=roots)
        else:
            config.broken[name] = "; ".join(f"{path.name}: {problem}" for problem in wrong)
    return config, fatal


def _unknown_table(key: str, value: Any, known: list[str]) -> str:
    """Of what stands at the top of the file: most often it is a server."""
    if key in _TABLES_OF_HOSTS:
        return f"{key}: unknown key; write [mcp_servers.NAME]"
    is_server = isinstance(value, dict) and not {"command", "url"}.isdisjoint(value)
    return f"{key}: unknown key; write [mcp_servers.{key}]" if is_server else _unknown("", key, known)


def _read_sampling(table: Any, problems: list[str]) -> SamplingOptions:
    """The models are in `models` also where there is but one, in the table itself."""
    options = _read_table(SamplingOptions, table, "sampling", problems)
    tables = table.get("models", []) if isinstance(table, dict) else None
    if not isinstance(tables, list):
        return options
    own = [key for key in _MODEL_KEYS if key in table]
    if own and tables:
        problems.append(f"sampling.{own[0]}: stands beside [[sampling.models]]; each of those has its own {own[0]}")
    elif "model" in table:
        model = ModelOptions(**{key: getattr(options, key) for key in own})
        options = msgspec.structs.replace(options, models=[model])
    elif not tables:
        problems.append('sampling: needs a model, as in model = "anthropic/claude-sonnet-4-5"')
    return options


def read_server(name: str, table: Any, notes: list[str]) -> tuple[ServerOptions | None, list[str]]:
    """A server's table as options, or all that is wrong with it; `notes` are told of keys that mean nothing here."""
    where = f"mcp_servers.{name}"
    if not isinstance(table, dict):
        return None, [_NO_TABLE.format(where)]
    problems = [] if re.fullmatch(SERVER_NAME, name) else [f"{where}: {NAME_RULE}"]
    names = {where: name, f"{where}.prefix": table.get("prefix")}
    problems += [f"{at}: {OURSELVES} is what mcpmux calls itself" for at, text in names.items() if text == OURSELVES]
    table = _without_codex(table, where, problems, notes)
    options = _read_table(ServerOptions, table, where, problems)
    for number, arg in enumerate(options.args):
        if arg.startswith("~/"):
            home = f"${{HOME}}{arg[1:]}" if len(arg) < TEXT_MOST else "${HOME}"
            notes.append(f"{where}.args[{number}]: ~ reaches the server as it is, there is no shell; write {home}")
    match [row for row in _KINDS if row[0] in table]:
        case [(own, other, strange)]:
            goes = f"goes with {other}; this server has a {own}"
            problems += [f"{where}.{key}: {goes}" for key in strange if table.get(key, {}) != {}]
        case []:
            unknown = [key for key in table if key not in keys_of(ServerOptions)]
            near = nearest("command", unknown) or nearest("url", unknown)
            problems.append(f"{where}: needs a command or a url" + (f' ("{near}" is unknown)' if near else ""))
        case _:
            problems.append(f"{where}.url: stands beside command; a server has one of the two")
    return None if problems else options, problems


def _without_codex(table: dict[str, Any], where: str, problems: list[str], notes: list[str]) -> dict[str, Any]:
    """A server's table with what Codex writes otherwise as mcpmux has it, and without what only Codex knows."""
    table = dict(table)
    if "startup_timeout_ms" in table:
        milliseconds = _read_value(Seconds, table.pop("startup_timeout_ms"), f"{where}.startup_timeout_ms", problems)
        if milliseconds is not None:
            table.setdefault("startup_timeout_sec", milliseconds / 1000)
    if isinstance(names := table.get("env_vars"), list):  # Codex also has { name = "…", source = "…" }
        table["env_vars"] = [one["name"] if isinstance(one, dict) and "name" in one else one for one in names]
    table = _without_keys(CODEX_KEYS if "url" in table else CODEX_KEYS | {"scopes"}, table, where, notes)
    if isinstance(tools := table.get("tools"), dict):
        at = f"{where}.tools"
        table["tools"] = {name: _without_keys(CODEX_KEYS, tool, f"{at}.{name}", notes) for name, tool in tools.items()}
    return table


def _without_keys(keys: frozenset[str], table: Any, where: str, notes: list[str]) -> Any:
    if not isinstance(table, dict):
        return table
    notes += [f"{where}.{key}: means nothing here and is ignored" for key in table if key in keys]
    return {key: value for key, value in table.items() if key not in keys}


def _wrong_texts(key: str, value: Any, where: str) -> Iterator[str]:
    """What is wrong with the texts under a key, which have the right type."""
    for text, at in texts_of(value, where) if key in _EXPANDED else ():
        for found in re.finditer(PLACEHOLDER, text):
            if found[5] is not None:
                is_vs_code = found[5].startswith("env:")
                hint = f"write ${{{found[5][4:]}}}" if is_vs_code else "write $${ for a plain ${"
                yield f"{at}: {found[0]} is no placeholder that mcpmux knows; {hint}"
    for text, at in texts_of(value, where) if key in ("command", "args", "cwd") else ():
        if re.match(r"[A-Za-z]:[^\\/]*[\a\b\t\n\f\r\x1b]", text):
            yield f"{at}: \\t, \\n and the like in a path become control characters; write the path in single quotes"
    if key in _FORMS:
        form, problem = _FORMS[key]
        texts = [value] if isinstance(value, str) else value or ()  # a host's JSON may have null
        strange = [text for text in texts if not re.match(form, text)]
        yield from (f"{where}: {problem.format(repr(text[:TEXT_MOST]))}" for text in strange)


def texts_of(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every string in an option, with its path."""
    if isinstance(value, str):
        yield value, where
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from texts_of(item, f"{where}[{number}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts_of(item, f"{where}.{key}")


@functools.cache
def keys_of(kind: type[Struct]) -> dict[str, Any]:
    """The keys that a table may have, and the type of each."""
    return {field.name: field.type for field in msgspec.structs.fields(kind)}


def _read_table(kind: type[Table], table: Any, where: str, problems: list[str]) -> Table:
    """A table as `kind`; what is wrong with it has its default, and is told to `problems`."""
    if not isinstance(table, dict):
        problems.append(_NO_TABLE.format(where))
        return kind()
    known = keys_of(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            problems.append(_unknown(where, key, list(known)))
            continue
        before, at = len(problems), f"{where}.{key}"
        read = _read_value(known[key], value, at, problems)
        if len(problems) == before:
            problems += _wrong_texts(key, read, at)
        if len(problems) == before:
            values[key] = read
    if kind is ModelOptions and not table.get("model"):
        problems.append(f"{where}: needs a model")
    return kind(**values)


def _read_value(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    """What stands under a key, None if it is no `kind`. Tables are read key by key: msgspec tells of one fault."""
    holder, inner = get_origin(kind), (kind, *get_args(kind))[-1]
    is_table = isinstance(inner, type) and issubclass(inner, Struct)
    if holder is dict and isinstance(value, dict):
        return {name: _read_value(inner, one, f"{where}.{name}", problems) for name, one in value.items()}
    if is_table and holder is None:
        return _read_table(inner, value, where, problems)
    if is_table and holder is list and isinstance(value, list):
        if not all(isinstance(one, dict) for one in value):
            problems.append(_NO_LIST.format(where))
        rows = [(f"{where}[{at}]", one) for at, one in enumerate(value) if isinstance(one, dict)]
        return [_read_table(inner, one, at, problems) for at, one in rows]
    if is_table:
        problems.append((_NO_LIST if holder is list else _NO_TABLES).format(where))
        return None
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as wrong:
        literals = [one for part in get_args(kind) for one in (part, *get_args(part))]  # it may be one of a union
        choices = ", ".join(f'"{one}"' for one in literals if isinstance(one, str))
        expected = f"; one of {choices} is expected" if "enum" in str(wrong) else ""
        problems.append(_in_words(where, str(wrong)) + expected)
    return None


def _unknown(where: str, key: str, known: list[str]) -> str:
    near = nearest(key, known)
    hint = f'did you mean "{near}"?' if near else f"known keys: {', '.join(sorted(known))}"
    if re.fullmatch(r"mcp_servers\.[^.]+", where):
        hint = _OF_HOSTS.get(key, hint)
    return f"{where}{'.' if where else ''}{key}: unknown key; {hint}"


def _in_words(where: str, wrong: str) -> str:
    """msgspec's message with the config's path and without its type names."""
    text, _, at = wrong.partition(" - at `$")
    for kinds in re.findall(r"`(\w+(?: \| \w+)*)`", text):
        words = (_IN_WORDS.get(kind, f"`{kind}`") for kind in kinds.removesuffix(" | null").split(" | "))
        text = text.replace(f"`{kinds}`", " or ".join(words), 1)
    text = re.sub("Expected a string matching regex .*", "May have A-Z a-z 0-9 _ - only", text)
    return f"{where}{at.replace('`', '')}: {text[:1].lower()}{text[1:]}"


# ── a file that is no TOML ──

# What a person did, and what to write: by the parser's words, and by the line with a NUL where the parser stopped. The
# caret is put there, or where the group `at` is.
_MISTAKES: Final = (
    ("", r"\0[“”„‟‘’‚«»]", 'these are curly quotes; use straight ones: "'),
    ("Unescaped|hex", r'(?P<at>)"(?:[A-Za-z]:\0?\\|\\*\0?\\[^"]*\\)', "put a Windows path in single quotes: 'C:\\…'"),
    ("Unescaped|hex", "", r"in double quotes a \ begins an escape such as \n; use single quotes"),
    ("character '.n'|Unterminated|Expected [\"']'", r"""(?:.*[\s=\[{,])?(?P<at>)["']""", "this string is never closed"),
    ("Illegal character", "", "delete this control character"),
    ("Unclosed array", r"""["'\w\]]\s*\0["'\w\[]""", "a comma or a quote is missing before this"),
    ("Unclosed array", r"(?P<at>)\[[^\]]*$", "this list is never closed; add ] after its last item"),
    ("Unclosed inline table", r"\0.", "a comma or a quote is missing before this"),
    ("initial char", r"(?P<at>),\s*\0\}", "delete the comma before }"),
    ("Unclosed inline|initial", r"(?P<at>)\{[^}]*$", "keep { … } on one line, or write a table of its own below"),
    ("end of a table declaration", r"\[[\w.-]+ *\0 *\w", NAME_RULE),
    ("end of a table declaration", "", "a ] is missing at the end of this table's name"),
    ("Expected newline", r"\0,", "delete the comma at the end of the line"),
    ("Expected newline|Invalid statement", r"\0(?://|/\*|;|--)", "comments start with #"),
    ("Expected newline", r"\d\0\s*(?:ms|s|sec|m|min)\b", "write a plain number of seconds"),
    ("Expected newline", r"= *0\0\d", "delete the 0 in front of this number"),
    ("Expected newline", "", "only a comment may follow a value"),
    ("Invalid statement", r"\0[<=>|]{7}", "this is left over from a merge; keep one of the two versions"),
    ("Expected '='", r"\0\s*:", "write = in place of :"),
    ("Expected '='", "\0[\xa0\u2007\u202f]", "this is a no-break space; type a plain one"),
    ("Expected '='", r"(?P<at>)export \0", "write NAME = value, without export"),
    ("Expected '='", "", "expected KEY = value, a [table] or a # comment"),
    ("Invalid value", r"\0(?i:true|false)\b", "write true or false in lower case"),
    ("Invalid value", r"\0(?i:yes|no|on|off)\b", "write true or false"),
    ("Invalid value", r"\0(?:null|None|nil|undefined)\b", "TOML has no null; leave the key out"),
    ("Invalid value", r"\0\s*(?:#|$)", "a value is missing here"),
    ("Invalid value", r"\0[^\s\[{\"']", 'put text in quotes: "…"'),
)
_OTHER_FORMATS: Final = (
    (
        r'\s*(?:\{|"\w+"\s*:)',
        "this is JSON, not TOML; rename it to {0}, and `mcpmux import {0}` takes its servers over",
    ),
    (r"\s*<[!?\w]", "this is a web page, not TOML"),
    (r"(?m)(?:\s|#.*\n)*[\w-]+:\s*$", "this is YAML, not TOML; write [mcp_servers.NAME] above a server's keys"),
)


def what_is_wrong(text: str, wrong: str, path: Path) -> tuple[int, int, str]:
    """Why a text is no TOML, by its parser's message: line (-1: it is not in one) and column, from 0; what to write."""
    what, _, place = wrong.rpartition(" (at ")
    for pattern, words in _OTHER_FORMATS:
        if re.match(pattern, text):
            return -1, 0, words.format(path.with_suffix(".json"))
    if not what:
        return -1, 0, f"not TOML: {wrong}"
    lines = text.split("\n")
    at, column = _place(lines, what, place)
    if re.search("twice|overwrite|Duplicate", what):
        return at, len(lines[at]) - len(lines[at].lstrip()), _twice(lines, at)
    marked = f"{lines[at][:column]}\0{lines[at][column:]}".rstrip("\r")
    for message, pattern, words in _MISTAKES if len(marked) < EDGE else ():
        if re.search(message, what) and (found := re.search(pattern, marked)):
            return at, found.start("at") if "at" in found.groupdict() else column, words
    return at, column, f"not TOML: {what[:1].lower()}{what[1:]}"


def _place(lines: list[str], what: str, place: str) -> tuple[int, int]:
    """Where the parser stopped; or, if that is where something ended that was opened before, the end of that line."""
    numbers = [int(number) - 1 for number in re.findall(r"\d+", place)]
    at, column = numbers or (len(lines) - 1, len(lines[-1]))
    if not lines[at][:column].strip() and "Unclosed" in what:
        opening, closing = "[]" if "array" in what else "{}"
        rows = ((number, lines[number]) for number in range(at, -1, -1))
        at = next((number for number, line in rows if line.count(opening) > line.count(closing)), at)
        return at, len(lines[at])
    if not numbers or "Found invalid" in what:
        quote = '"""' if "Unterminated" in what else what.strip('Expcted "')[:3] or "'"
        at = next((number for number, line in enumerate(lines) if line.count(quote) % 2), at)
        return at, len(lines[at])
    return at, column


def _twice(lines: list[str], at: int) -> str:
    """A key or a table that is there already, and where."""
    header = re.match(r"\s*\[+([^\]#]*)\]", lines[at])
    key = (header[1].rpartition(".")[2] if header else lines[at].partition("=")[0]).strip().strip("\"'")
    for number in range(at - 1, -1, -1):
        is_same = header and re.match(rf"\s*\[+\s*{re.escape(header[1].strip())}\s*\]", lines[number])
        if is_same or re.match(rf"""\s*["']?{re.escape(key)}["']?\s*=""", lines[number]):
            name = f"[{header[1]}]" if header else key
            return f"{name} is already defined in line {number + 1}; merge the two"
        if not header and re.match(r"\s*\[", lines[number]):
            break
    return "the same key is here twice; delete one"


# ══ 16. Places ════════════════════════════════════════════════════════════════════════════════════════════════════════
# The environment, files, secrets, PATH, the cache: nobody else reads or writes the disk, but for logs and pipes.

CONFIG_NAME: Final = "mcpmux.toml"
# A hint that begins with one of these is mcpmux's command line.
COMMANDS: Final = (
    "accept|add|call|check|consents|demo|disable|enable|import|install|list|login|logout|logs|models|page|prompts|read"
    "|remove|schema|setup|tools|uninstall|usage"
)


def user_folder(kind: Literal["config", "state", "cache"]) -> Path:
    """Where this person's platform keeps files of this kind."""
    import platformdirs  # noqa: PLC0415 - most hosts name the file, and a start is short

    return getattr(platformdirs, f"user_{kind}_path")("mcpmux", appauthor=False)


def config_path(given: str | None) -> Path:
    """`--config`, else $MCPMUX_CONFIG, else mcpmux.toml in the user's config folder."""
    named = given or os.environ.get("MCPMUX_CONFIG")
    return Path(os.path.expanduser(named)).absolute() if named else user_folder("config") / CONFIG_NAME


def state_folder() -> Path:
    return user_folder("state")


def load_config(path: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """Reads the file. Raises `ConfigError`, a line a problem, if it cannot be used; a missing one is empty."""
    mark, text = mark_of(path), read_text(path)
    config = read_config({} if text is None else parsed_toml(path, text), path, environment)
    return msgspec.structs.replace(config, exists=text is not None, mark=mark)


def mark_of(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_mtime_ns, status.st_size
    return None


def read_config(document: dict[str, Any], path: Path, inherited: Mapping[str, str] = os.environ) -> Config:
    """The document and the environment as options. Raises `ConfigError` for what is wrong outside servers' tables."""
    config, fatal = config_of(document, path, lambda text: absolute(text, path.parent))
    environment = dict(inherited)
    if config.options.env_file:
        file = absolute(config.options.env_file, path.parent)
        try:
            environment = parse_env_file(file.read_text(encoding="utf-8"), environment) | environment
        except (OSError, ValueError) as error:
            fatal.append(f"mux.env_file: {file} cannot be read: {error}")
    if fatal:
        problems = [f"{path}: {problem}" for problem in fatal]
        raise ConfigError("\n".join(problems + [f"{path.parent / text}" for text in config.broken.values()]))
    return msgspec.structs.replace(config, environment=environment, inherited=dict(inherited))


def command_line(words: list[str]) -> str:
    """As it is typed in this platform's shell."""
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)


def as_typed(text: str) -> str:
    """A hint with mcpmux called as the person has called it: by uvx, by `uv run`, with its --config."""
    parts, prefix = Path(sys.prefix).parts, "mcpmux"
    if "uv" in parts and {"archive-v0", "environments-v2"} & set(parts):
        prefix = BY_UVX
    elif "UV_RUN_RECURSION_DEPTH" in os.environ:
        prefix = "uv run mcpmux"
    if given := re.search(r"(?:^|\0)--config[=\0]([^\0]+)", "\0".join(sys.argv[1:])):
        prefix += f" {command_line(['--config', given[1]])}"
    return re.sub(rf"(?<![\w/.-])mcpmux (?=(?:{COMMANDS})\b)", lambda _: f"{prefix} ", text)


def find_program(name: str, path: str | None = None) -> str | None:
    """Where PATH, or this one in its place, has it. Windows would look first in the current folder, which a host may
    have chosen: a project's own npx.cmd must not be run for being there."""
    if sys.platform != "win32":
        return shutil.which(name, path=path)
    os.environ["NODEFAULTCURRENTDIRECTORYINEXEPATH"] = "1"  # heeded from Python 3.12 on; before, what is in PATH
    here = os.pathsep + os.curdir  # is not put in front of it
    found = shutil.which(name, path=(os.environ.get("PATH", "") if path is None else path) + here)
    return found if found and os.path.isabs(found) else None


def absolute(text: str, folder: Path) -> Path:
    """Relative to the config file: a host may start mcpmux anywhere."""
    return (folder / os.path.expanduser(text)).absolute()


# As python-dotenv reads a file: an assignment, a comment or an empty line, as far as it is right. It never goes back.
_BINDING: Final = r"""(?xs)
    \s*+ (?:export[^\S\r\n]++)?+
    (?:(?:'(?P<quoted_key>[^']++)' | (?P<key>(?!')[^=\#\s]++)) [^\S\r\n]*+
        (?P<equals>=[^\S\r\n]*+)?+
        (?(equals) (?: '(?P<single>(?:\\.|[^'\\])*+)' | "(?P<double>(?:\\.|[^"\\])*+)"
            | (?P<plain>(?!['"])[^\r\n]*+) )?+))?+
    (?:[^\S\r\n]*+\#[^\r\n]*+)?+ [^\S\r\n]*+ (?: (?P<end>\r\n|\n|\r|\Z) | [^\r\n]*+)"""
_DOTENV_ESCAPES: Final = {"single": r"\\[\\']", "double": r"\\[\\'\"abfnrtv]"}
_DOTENV_VARIABLE: Final = r"\$\{(?P<name>[^}:]*)(?::-(?P<default>[^}]*))?\}"


def parse_env_file(text: str, environment: dict[str, str] | None = None) -> dict[str, str]:
    """`KEY=value` lines, in the dialect of python-dotenv: a line that is none is passed over. `${VAR}` in a value is
    what `environment` has, or a line above."""
    found: dict[str, str] = {}
    for one in re.finditer(_BINDING, text.removeprefix("\ufeff")):
        key, known = one["quoted_key"] or one["key"], found | (environment or {})
        if one["end"] is None or not key:
            continue
        if not one["equals"]:
            found.pop(key, None)  # a name alone
            continue
        value = one["single"] or one["double"] or one["plain"] or ""
        if one["plain"]:
            is_comment = value.startswith("#") and len(one["equals"]) > 1
            value = "" if is_comment else re.sub(r"\s+#.*", "", value).rstrip()
        for kind, escapes in _DOTENV_ESCAPES.items():
            if one[kind]:
                value = re.sub(escapes, lambda escape: codecs.decode(escape[0], "unicode-escape"), value)
        found[key] = re.sub(_DOTENV_VARIABLE, lambda name: known.get(name["name"], name["default"] or ""), value)  # noqa: B023
    return found


def variable_line(name: str, value: str) -> str | None:
    """A line of a file of variables; None for a value that such a file cannot hold."""
    ways = (value, f"'{value}'", f'"{value}"', json.dumps(value, ensure_ascii=False))
    lines = (f"{name}={way}\n" for way in ways)
    return next((line for line in lines if parse_env_file(line) == {name: value}), None)


def without_variables(text: str, names: Mapping[str, Any]) -> str:
    """A file of variables without these."""
    lines = re.finditer(_BINDING, text)
    return "".join(one[0] for one in lines if (one["quoted_key"] or one["key"]) not in names)


# The official SDK's list of what is safe to pass on, and what a server needs to speak a person's language, keep time,
# find its folders, get through a company's proxy, and reach what the person's own tools reach: where it is, and no key
# to it.
_WINDOWS_VARIABLES: Final = """
    APPDATA HOMEDRIVE HOMEPATH LOCALAPPDATA PATH PATHEXT PROCESSOR_ARCHITECTURE SYSTEMDRIVE SYSTEMROOT TEMP TMP
    USERNAME USERPROFILE PROGRAMFILES PROGRAMDATA COMSPEC WINDIR"""
_POSIX_VARIABLES: Final = "HOME LOGNAME PATH SHELL TERM USER TMPDIR DISPLAY WAYLAND_DISPLAY XAUTHORITY"
_COMMON_VARIABLES: Final = """
    LANG LANGUAGE TZ HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY http_proxy https_proxy no_proxy all_proxy
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NODE_EXTRA_CA_CERTS
    DOCKER_HOST DOCKER_CONTEXT DOCKER_CONFIG KUBECONFIG AWS_PROFILE AWS_REGION AWS_DEFAULT_REGION JAVA_HOME
    SSH_AUTH_SOCK"""
_OF_SYSTEM: Final = _WINDOWS_VARIABLES if sys.platform == "win32" else _POSIX_VARIABLES
SAFE_VARIABLES: Final = frozenset(f"{_COMMON_VARIABLES} {_OF_SYSTEM}".split())
SAFE_PREFIXES: Final = ("LC_", "XDG_")
_PACKAGE_PREFIXES: Final = ("UV_", "npm_config_", "NPM_CONFIG_")  # where uvx and npx get packages; some hold a password
SECRET_NAME: Final = re.compile("KEY|TOKEN|SECRET|PASS|AUTH|CREDENTIAL", re.IGNORECASE)


# What looks like a secret, by the name that it stands under and by how providers begin theirs. Patterns as text: most
# runs of mcpmux need none of them, and to compile them takes 4 ms.
HIDDEN: Final = "***"
_KEY_LIKE_NAME: Final = (
    r"(?i)"
    r"(?:key|token|secret|passw(?:or)?d|passphrase|authorization|credentials?|cookie|bearer|(?<![a-z])(?:pass|pwd|pat|auth))"
    r"(?![a-z])(?!.*(?:file|path|dir|url|mode|type|name)$)"
)
_NO_KEY: Final = r"(?i)(?:true|false|yes|no|on|off|none|null|oauth2?|basic|bearer|\d{0,5})"
KEY_LIKE_TEXT: Final = (
    r"(?<![\w$-])(?:sk-(?=\S{0,15}\d|\S{16})|[rs]k_(?:live|test)_|gh[opusr]_|github_pat_|glpat-|xox[a-z]-|xapp-|ya29\.|pypi-Ag"
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
    head = ""
    while True:  # an assignment's value may be another one
        is_key = re.search(_KEY_LIKE_NAME, name[-100:])
        if is_key and not re.fullmatch(_NO_KEY, text) and not re.search(r"(?<!\$)\$\{", text):
            found = re.fullmatch(_SCHEME, text)
            assert found
            return head + found["scheme"] + held(found["secret"], name.lstrip("-"))
        if not (found := re.fullmatch(_ASSIGNMENT, text)):
            break
        head, text, name = head + found["head"], found["value"], found["name"]
    text = re.sub(_URL_WITH_QUERY, lambda one: f"{one['name']}=" + hide_secrets(one["secret"], one["name"], held), text)
    text = re.sub(_URL_WITH_USER, lambda one: one["user"] + held(one["secret"], "password"), text)
    return head + re.sub(KEY_LIKE_TEXT, lambda one: held(one[0], name.lstrip("-") or "token"), text)


def flags_before(words: list[Any]) -> list[str]:
    """For each word of a command line the flag that it is the value of, or nothing."""
    flags = [word if isinstance(word, str) and re.fullmatch(r"--?[A-Za-z][\w-]*", word) else "" for word in words]
    return ["" if flag else former for former, flag in itertools.pairwise(["", *flags])]


def without_secrets(words: list[str], held: Callable[[str, str], str] = lambda secret, name: HIDDEN) -> list[str]:
    """A command line to be shown to people."""
    return [hide_secrets(word, flag, held) for word, flag in zip(words, flags_before(words), strict=True)]


def secrets_in(words: list[str]) -> list[str]:
    found: list[str] = []
    without_secrets(words, lambda secret, name: found.append(secret) or HIDDEN)
    return found


def is_safe(variable: str, value: str) -> bool:
    """Whether any server is given it. On Windows names of variables compare without case."""
    if variable.startswith(_PACKAGE_PREFIXES):
        return hide_secrets(value, variable, lambda *_: "") == value
    known = variable.upper() if sys.platform == "win32" else variable
    return known in SAFE_VARIABLES or variable.startswith(SAFE_PREFIXES)


def line_without_secrets(line: str) -> str:
    """A line of a file that cannot be parsed, to be shown to people."""
    pairs = re.finditer(r"""(?<![\w.-])([\w.-]+)["']?\s*[=:,]\s*(["'])?(?=((?(2)(?:(?!\2).)*|[^,}\]]*)))""", line)
    for found in reversed([one for one in pairs if hide_secrets(one[3], one[1], lambda *_: HIDDEN) != one[3]]):
        line = line[: found.end()] + HIDDEN + line[found.end(3) :]
    return hide_secrets(line, "", lambda *_: HIDDEN)


# Where programs are put that hosts with a window do not find: by a variable that may name the folder, else by the usual
# folder, and the place in that; ~ is the home folder.
_UV_AND_OTHERS: Final = "- ~/.local/bin .|- ~/.cargo/bin .|- ~/.bun/bin .|- ~/.deno/bin .|PNPM_HOME - .|"
_USUAL_PLACES: Final = _UV_AND_OTHERS + (
    "APPDATA - npm|PROGRAMFILES C:/Program\xa0Files nodejs|NVM_SYMLINK - .|LOCALAPPDATA - Volta/bin|LOCALAPPDATA - pnpm"
    "|- ~/scoop/shims .|PROGRAMDATA - chocolatey/bin|PYENV - shims|- ~/.pyenv/pyenv-win/shims ."
    "|- ~/miniconda3/Scripts .|- ~/anaconda3/Scripts .|- ~/miniforge3/Scripts ."
    if sys.platform == "win32"
    else "- /opt/homebrew/bin .|- /usr/local/bin .|- /home/linuxbrew/.linuxbrew/bin .|- ~/.linuxbrew/bin ."
    "|- /opt/local/bin .|- /snap/bin .|- ~/.nix-profile/bin .|- /nix/var/nix/profiles/default/bin ."
    "|- /run/current-system/sw/bin .|VOLTA_HOME ~/.volta bin|FNM_DIR ~/.local/share/fnm aliases/default/bin"
    "|ASDF_DATA_DIR ~/.asdf shims|MISE_DATA_DIR ~/.local/share/mise shims|NVM_DIR ~/.nvm versions/node/*/bin"
    "|PYENV_ROOT ~/.pyenv shims|- ~/.local/share/pnpm .|- ~/Library/pnpm .|CONDA_PREFIX - bin|- ~/miniconda3/bin ."
    "|- ~/anaconda3/bin .|- ~/miniforge3/bin .|- /opt/miniconda3/bin .|- /opt/conda/bin ."
)


def extended_path(environment: Mapping[str, str], path: str | None = None) -> str:
    """PATH, or this one in its place, with the usual places at its end that hosts with a window lack: only those that
    exist; and with the folder of the uv that runs us."""
    home = environment.get("USERPROFILE" if sys.platform == "win32" else "HOME") or str(Path.home())
    usual = [Path(os.path.dirname(environment.get("UV", "")))]
    for place in _USUAL_PLACES.split("|"):
        variable, folder, below = place.split(" ")
        root = environment.get(variable) or folder.replace("\xa0", " ").replace("~", home, 1)
        found = [Path(root, below)] if "*" not in below else list(Path(root).glob(below))
        usual += sorted(found, key=lambda one: [int(n) for n in re.findall(r"\d+", one.parent.name)], reverse=True)
    present = (path or environment.get("PATH", os.defpath)).split(os.pathsep)
    added = dict.fromkeys(str(one) for one in usual if one.is_absolute() and one.is_dir())
    return os.pathsep.join([*present, *(one for one in added if one not in present)])


# ── what the file may hold, for editors ──

_FIELD: Final = r"(?m)((?:^    # .+\n)*)^    (\w+): .+?(?:  # (.+))?$"


def words_of(kind: type[Struct]) -> dict[str, str]:
    """What stands above and beside each field in this file. (`inspect` parses all of it to find a class.)"""
    import linecache  # noqa: PLC0415

    [body] = re.findall(rf"(?ms)^class {kind.__name__}\(.+?(?=^\S)", "".join(linecache.getlines(__file__)))
    fields = re.findall(_FIELD, body)
    return {name: " ".join([*re.findall("    # (.+)", above), beside]).strip() for above, name, beside in fields}


def schema_of_config() -> dict[str, Any]:
    """A JSON Schema of the file, made from the structs that it becomes."""
    own = MuxOptions, ServerOptions, SamplingOptions, HostOptions
    kinds = (*own, ToolOverride, OAuthOptions, ModelOptions, SamplingLimits)
    tables, parts = msgspec.json.schema_components(kinds, ref_template="#/definitions/{name}")
    for kind in kinds:
        part = parts[kind.__name__]
        part["description"] = " ".join((kind.__doc__ or "").split())
        for key, text in words_of(kind).items():
            if text:
                part["properties"][key]["description"] = re.sub(r"\[([^]]*)\]\(#[^)]*\)", r"\1", text)
        part["additionalProperties"] = False
    parts["ServerOptions"]["properties"] |= {key: {"description": "Codex's; ignored"} for key in sorted(CODEX_KEYS)}
    mux, server, sampling, host, *_ = tables
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "mcpmux.toml",
        "type": "object",
        "properties": {
            "mux": mux,
            "mcp_servers": {"type": "object", "additionalProperties": server},
            "hosts": {"type": "object", "additionalProperties": host},
            "sampling": sampling,
        },
        "additionalProperties": False,
        "definitions": json.loads(json.dumps(parts).replace(r"\\Z", "$")),  # as JavaScript writes the end of a text
    }


# ── files of ours ──


def read_text(path: Path) -> str | None:
    """None: there is no such file. Raises `ConfigError`."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ConfigError(f"{path}: is a folder; name the file in it")
        if not stat.S_ISREG(mode) and str(path) != os.devnull:  # to open one could wait for ever
            raise ConfigError(f"{path}: is a pipe or a device, which cannot be read again; save it as a file")
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as wrong:
        is_wide = wrong.object[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in wrong.object[:64]
        line = wrong.object.count(b"\n", 0, wrong.start) + 1
        what = "is UTF-16" if is_wide else f"line {line} is not UTF-8"
        raise ConfigError(f"{path}: {what}; save the file as UTF-8") from None
    except OSError as wrong:
        raise ConfigError(f"{path}: cannot be read: {wrong.strerror or wrong}") from None


def parsed_toml(path: Path, text: str) -> dict[str, Any]:
    """Raises `ConfigError`: the file with the line, what to write there, and below it that line with a caret."""
    text = text.removeprefix("\ufeff")
    if text[:64].count("\0") > 8:
        raise ConfigError(f"{path}: is UTF-16; save the file as UTF-8")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as wrong:  # TOMLDecodeError is a ValueError; so is an endless number
        why = "it is nested too deeply" if isinstance(wrong, RecursionError) else str(wrong)
        at, column, what = what_is_wrong(text, why, path)
        if at < 0:
            raise ConfigError(f"{path}: {what}") from None
        line = text.split("\n")[at].rstrip("\r")
        start = max(column - 60, 0)
        before = line_without_secrets(line[start:column])
        shown = before + line_without_secrets(line[start:])[len(before) :][:40]
        caret = re.sub(r"[^\t]", " ", before) + "^"
        raise ConfigError(f"{path}:{at + 1}: {what}\n    {harmless(shown)}\n    {caret}") from None


def parsed(path: Path, text: str, kind: str, parse: Callable[[str], Any]) -> Any:
    """What a file of this kind holds. Raises `ConfigError`, one line."""
    try:
        return parse(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as wrong:  # TOMLDecodeError is a ValueError; so is an endless number
        raise ConfigError(f"{path}: not {kind}: {wrong}") from None


def make_folder(path: Path) -> None:
    """With those above it that are missing, each its owner's alone, whatever the umask. Raises `OSError`."""
    for one in [*reversed(path.parents), path]:
        if not one.is_dir():
            one.mkdir(0o700, exist_ok=True)


def write_whole(path: Path, data: bytes, *, private: bool = False, lasting: bool = True) -> None:
    """Whole or not at all, through the links that are there. A new file is its owner's; another keeps its modes, unless
    it must become `private`. `lasting`: it is on the disk before it replaces what was there. Raises `OSError`."""
    path = Path(os.path.realpath(path))
    make_folder(path.parent)
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


def write_text(path: Path, new: str, old: str | None, private: bool = False) -> None:
    """As `write_whole`, where the file still is what was read. Raises `ConfigError`."""
    if read_text(path) != old:
        raise ConfigError(f"{path}: was changed meanwhile; try again")
    try:
        write_whole(path, new.encode(), private=private)
    except OSError as wrong:
        raise ConfigError(f"{path}: cannot be written: {wrong}") from None


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
    return user_folder("cache") / "servers"


def named_values(options: ServerOptions, environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """The variables that a server's table names, with their values."""
    texts = [text for text, _ in texts_of(msgspec.to_builtins(options), "") if "${" in text]
    named = {match["var"] for text in texts for match in re.finditer(PLACEHOLDER, text)}
    named |= {*options.env_vars, *options.env_http_headers.values(), options.bearer_token_env_var}
    return sorted((one, value) for one, value in environment.items() if one in named)


def cache_end(key: str, server: str, config: Config) -> str:
    """How the names of its files end: with what its lists may depend on, its table and the values of the variables in
    it. What is kept of those is too little to find one by."""
    values = named_values(config.servers[server], config.environment)
    return f".{key}.{hashlib.sha256(encode(values)).hexdigest()[:6]}.cache" if values else f".{key}.cache"


def read_known(folder: Path, config: Config) -> tuple[dict[str, list[Known]], list[str]]:
    """What the cache has of these servers with these tables; and what could not be read, a line each."""
    found: dict[str, list[Known]] = {}
    notes: list[str] = []
    ends = {name: cache_end(table_key(options), name, config) for name, options in config.servers.items()}
    for path in sorted(folder.glob("*.cache")):
        name = path.name.partition(".")[0]
        if name not in config.servers or not path.name.endswith(ends[name]):
            continue
        try:
            known = msgspec.msgpack.decode(path.read_bytes(), type=Known)
            if not known.failed or time.time() - path.stat().st_mtime < FAILURE_REMEMBERED:
                found.setdefault(name, []).append(known)
        except (OSError, msgspec.MsgspecError, ValueError) as wrong:
            notes.append(f"{path} is not used: {wrong}")
    return found, notes


def write_known(folder: Path, server: str, known: Known, config: Config) -> None:
    """Whole or not at all: hosts start several mcpmux at once. What it replaces is removed, but not soon what another
    host's variables led to. Raises `OSError`."""
    end = cache_end(known.key, server, config)
    path = folder / f"{server}.{'failed' if known.failed else known.host + known.told}{end}"
    write_whole(path, msgspec.msgpack.encode(known), private=True, lasting=False)
    for file in folder.glob(f"{server}.*.cache"):
        is_stale = f".{known.key}." not in file.name or time.time() - (mark_of(file) or (0, 0))[0] / 1e9 > VALUES_KEPT
        if (".failed." in file.name and not known.failed) if file.name.endswith(end) else is_stale:
            file.unlink(missing_ok=True)


# ── who has which name, a file for each config ──


# A file of ours is where we put it, no link; and has what we write, without Windows' line ends.
OWN_FILE: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
LOCK_PATIENCE: Final = 20.0  # seconds; another mcpmux that has a lock may hang
LOCK_LOOK: Final = 0.05


def is_locked(file: int) -> bool:
    """Whether the lock on this file is ours now. It ends with the file, and so with the process."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl  # noqa: PLC0415

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def open_lock(path: Path) -> int:
    """A file of which only who has it locked is looked at. Raises `OSError`."""
    make_folder(path.parent)
    return os.open(path, os.O_RDWR | os.O_CREAT | OWN_FILE, 0o600)


@contextlib.contextmanager
def locked(path: Path, patience: float = LOCK_PATIENCE) -> Generator[None]:
    """Of all mcpmux processes one at a time has what this file stands for. Blocks. Raises `OSError`."""
    file = open_lock(path)
    try:
        end = time.monotonic() + patience
        while not is_locked(file):
            if time.monotonic() > end:
                raise TimeoutError(f"{path}: another mcpmux holds it")
            time.sleep(LOCK_LOOK)
        yield
    finally:
        os.close(file)


def kept_path(what: str, config: Path | None = None) -> Path:
    """Where it is kept what belongs to one config, or to all: the names, the pins, the consents."""
    file = f"{what}/{hashlib.sha256(os.fsencode(config)).hexdigest()[:24]}" if config else what
    return state_folder() / f"{file}.json"


def read_kept(path: Path, kind: Any) -> Any:
    """Empty where there is nothing, or nothing that can be read."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(path.read_bytes(), type=kind)
    return kind()


@contextlib.contextmanager
def kept_to_change(path: Path, kind: Any, *, lasting: bool = True) -> Generator[Any]:
    """What is kept there, to be changed in place: of all mcpmux processes one at a time. Raises `OSError`."""
    with locked(path.with_suffix(".lock")):
        yield (kept := read_kept(path, kind))
        write_whole(path, msgspec.json.format(encode(kept)), private=True, lasting=lasting)


def heard_path(config: Path) -> Path:
    """Where those who run with this config say that they open their pages."""
    return kept_path("page", config).with_suffix(".heard")


def add_line(path: Path, text: str) -> None:
    """Raises `OSError`."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", encoding="utf-8") as file:
        file.write(text + "\n")


def read_pins(config: Path) -> Pins:
    return read_kept(kept_path("pins", config), Pins)


def write_pins(config: Path, new: Pins) -> None:
    """Beside what others have accepted. Raises `OSError`."""
    with kept_to_change(kept_path("pins", config), Pins) as there:
        for server, pins in new.items():
            for name, pin in pins.items():
                former = there.setdefault(server, {}).get(name, Pin()).accepted
                accepted = [*(one for one in former if one not in pin.accepted), *pin.accepted]
                there[server][name] = Pin(accepted[-PINS_MOST:], pin.shown)


def write_names(config: Config, names: Names) -> None:
    """What another mcpmux has given out meanwhile stays as it is. Raises `OSError`."""
    with kept_to_change(kept_path("names", config.path), Names, lasting=False) as there:
        for method, given in names.items():
            former = {name: whose for name, whose in there.get(method, {}).items() if whose[0] in config.servers}
            there[method] = given | former


# ── what the person has said of the use of their model, one file for all configs ──


class Given(Struct):
    """A consent that lasts, or its opposite."""

    server: str
    config: str
    decision: str  # "always" or "never"
    models: list[str]
    since: str  # a day


AllGiven = dict[str, Given]  # by what each was given to


def consent_key() -> bytes:
    """Without it nobody can tell from a digest what it is one of: there are keys and tokens in it. Raises `OSError`."""
    path = kept_path("consents").with_suffix(".key")
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            write_whole(path, os.urandom(32), private=True)
        return path.read_bytes()


def given_to(config: Config, server: str, key: bytes) -> str:
    """What a consent is bound to: the models, and the server as it is started or reached, not all of its table."""
    options, models = config.servers[server], config.sampling.models if config.sampling else []
    what = [options.command, options.args, options.cwd, options.env, sorted(options.env_vars), options.url]
    headers = sorted([*options.http_headers, *options.env_http_headers])
    values = named_values(options, config.environment)
    whole = [server, str(config.path), what, headers, values, [(one.model, one.api_base) for one in models]]
    return hashlib.blake2b(encode(whole), key=key, digest_size=16).hexdigest()


def read_consents(config: Config) -> dict[str, str]:
    """By server, what was decided of it as it is now."""
    if not config.sampling or not (given := read_kept(kept_path("consents"), AllGiven)):
        return {}
    try:
        key = consent_key()
    except OSError:
        return {}
    found = {server: given.get(given_to(config, server, key)) for server in config.servers}
    return {server: one.decision for server, one in found.items() if one}


def keep_consent(config: Config, server: str, decision: str) -> None:
    """Raises `OSError`."""
    models = [one.model for one in config.sampling.models] if config.sampling else []
    given = Given(server, str(config.path), decision, models, time.strftime("%Y-%m-%d"))
    to = given_to(config, server, consent_key())
    with kept_to_change(kept_path("consents"), AllGiven) as there:
        there[to] = given


def save(effect: Saved, config: Config) -> None:
    """What the core wants kept. Raises `OSError`."""
    match effect:
        case SaveConsent(server, decision):
            if server in config.servers:
                keep_consent(config, server, decision)
        case SaveCatalogue(server, known):
            if server in config.servers:
                write_known(cache_folder(), server, known, config)
        case SaveNames(names):
            write_names(config, names)
        case SavePins(pins):
            write_pins(config.path, pins)


def forget_failures(folder: Path, server: str) -> None:
    """What kept it from starting is over: lists wait for it again."""
    for path in folder.glob(f"{server}.failed.*.cache"):
        path.unlink(missing_ok=True)


# ══ 17. Pipes ═════════════════════════════════════════════════════════════════════════════════════════════════════════
# The host's two pipes, in the loop where they never block, and the log, which has a thread. They know bytes and lines,
# not messages.

LOG_FILE_MOST: Final = 5 * MB  # then it is moved aside, once
CLOSED: Final = -1  # in place of a log file's descriptor: it could not be written
LOG_WAITING_MOST: Final = MB  # what the disk has not taken yet; more is dropped, and said so


def write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


class Journal:
    """mcpmux's own log (stderr) and each server's stderr (a file), written by one thread: neither a slow disk nor a
    host that does not read stderr delays anything."""

    def __init__(self, level: str, folder: Path | None) -> None:
        self.threshold = LEVELS[level]
        self.folder = folder
        self._secrets: tuple[str, ...] = ()
        self._jobs: collections.deque[tuple[Callable[[], None], int]] = collections.deque()  # with the bytes of each
        self._changed = threading.Condition()
        self._waiting = 0  # bytes
        self._dropped = 0
        self._closing = False
        self._held: dict[str, bytes] = {}  # by server the beginning of a line
        self._files: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._thread = threading.Thread(target=self._write_all, name="mcpmux log", daemon=True)
        self._thread.start()

    def hide(self, secrets: Iterable[str]) -> None:
        """These never appear in the log, nor does a line of one; short ones would hide half of every line."""
        lines = {line.strip() for secret in secrets for line in secret.splitlines()}
        known = {*self._secrets, *(line for line in lines if len(line) >= 6)}
        self._secrets = tuple(sorted(known, key=len, reverse=True))  # a short one may be part of a longer one

    def redact(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def log(self, level: str, text: str) -> None:
        if LEVELS[level] >= self.threshold:
            self._put("", f"mcpmux {level}: {in_a_line(self.redact(text))}\n".encode(errors="replace"))

    def keep(self, server: str, data: bytes) -> bytes:
        """Output of a server, for its file, as it may be shown. Where there are secrets a line waits until it is whole:
        they may come in pieces."""
        data = self._held.pop(server, b"") + data
        if self._secrets and (rest := data[data.rfind(b"\n") + 1 :]):
            data = data[: -len(rest)]
            if len(rest) > EDGE + len(self._secrets[0]):  # nobody's line: what of it can be part of no secret goes on
                rest = self._redacted(rest)
                size = len(self._secrets[0].encode())
                data, rest = data + rest[:-size], rest[-size:]
            self._held[server] = rest
        return self._keep(server, data)

    def _keep(self, server: str, data: bytes) -> bytes:
        data = self._redacted(data)
        self._put(server, data)
        return data

    def _redacted(self, data: bytes) -> bytes:
        kept = "surrogateescape"  # bytes that are no UTF-8
        return self.redact(data.decode(errors=kept)).encode(errors=kept) if self._secrets else data

    def path(self, server: str) -> Path | None:
        return self.folder / f"{server}.log" if self.folder else None

    def rest(self, server: str) -> bytes:
        """Its process has ended; the last of what it said. What the next one says opens the file anew, or tries to."""
        last = self._keep(server, self._held.pop(server, b""))
        self.later(functools.partial(self._close_file, server))
        return last

    def later(self, job: Callable[[], None], size: int = 0) -> None:
        """What else may wait for the disk; an `OSError` of it is logged."""
        with self._changed:
            self._waiting += size
            self._jobs.append((job, size))
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(HOST_FLUSH)

    def _put(self, name: str, data: bytes) -> None:
        with self._changed:
            if self._waiting > LOG_WAITING_MOST:
                self._dropped += len(data)
            else:
                self.later(functools.partial(self._write, name, data), len(data))

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    return
                job, size = self._jobs.popleft()
                self._waiting -= size
                lost, self._dropped = self._dropped, 0
            try:
                job()
            except OSError as wrong:
                self._write("", f"mcpmux warning: the cache cannot be written: {wrong}\n".encode())
            if lost:
                self._write("", b"mcpmux warning: %d bytes of the log and servers' stderr were not kept\n" % lost)

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
        if file is not None and self._sizes[name] + len(data) > LOG_FILE_MOST:
            self._close_file(name)
            os.replace(path, path.with_suffix(".log.1"))
            file = None
        if file is None:
            make_folder(path.parent)
            file = self._files[name] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | OWN_FILE, 0o600)
            self._sizes[name] = os.fstat(file).st_size
        self._sizes[name] += len(data)
        write_all(file, data)

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


Post = Callable[[Event], None]  # tells the core of it


def in_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    """Called from another thread."""
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
        loop.call_soon_threadsafe(function, *arguments)


class HostPipes:
    """The host's end. Pipes and sockets are read and written in the loop; a thread each has what may block, which are
    files, consoles and all that Windows has. Servers' lines wait in a queue each, served in turn."""

    def __init__(self, reading: int, writing: int, limit: int) -> None:
        self._reading, self._writing = reading, writing
        self._splitter = LineSplitter(limit)
        self._queues: dict[Name, collections.deque[bytes]] = collections.defaultdict(collections.deque)
        self._sizes: collections.Counter[Name] = collections.Counter()
        self._full: set[Name] = set()  # sources that are not read until their queue is empty
        self._rest = memoryview(b"")  # what is still to be written of what was begun, or is for the thread
        self._is_busy = False  # the pipe is full, or the thread at work
        self._is_broken = False
        self._written = asyncio.Event()
        self._job = threading.Semaphore(0)  # for the thread that writes
        self._gate = threading.Event()  # for the one that reads: closed while what mcpmux itself has to say is not read
        self._chunks: list[tuple[bytes, str]] = []  # that it has read, and the loop not taken yet
        self._ahead = 0  # bytes of them
        self._taken = threading.Condition()

    def start(self, post: Post, on_room: Callable[[Name, bool], None]) -> None:
        """`on_room(source, False)` asks not to read from that server until `on_room(source, True)`."""
        self._loop = asyncio.get_running_loop()
        self._post, self._on_room = post, on_room
        ends = () if sys.platform == "win32" else (self._reading, self._writing)
        kinds: dict[int, int] = {end: os.fstat(end).st_mode for end in ends}
        self._in_loop = {end for end, kind in kinds.items() if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)}
        self._set_blocking(False)
        threads = {self._reading: ("from host", self._read_all), self._writing: ("to host", self._write_all)}
        for end in threads.keys() - self._in_loop:
            name, run = threads[end]
            threading.Thread(target=run, name=f"mcpmux {name}", daemon=True).start()
        self._listen(True)

    def put(self, source: Name, line: bytes) -> None:
        self._queues[source].append(line)
        self._sizes[source] += len(line)

    def is_full(self, source: Name) -> bool:
        return source in self._full

    def flush(self) -> None:
        """Writes what there is, as far as the host takes it now."""
        while self._queues and not self._is_busy:
            self._write(memoryview(self._take_turns()))
        for source in self._queues.keys() - self._full if self._queues else ():
            if self._sizes[source] > READ_AHEAD:
                self._full.add(source)
                self._make_room(source, False)

    async def close(self) -> None:
        """Writes what there is, for a short while. The host's pipes are as they were then: others may share them."""
        self.flush()
        with contextlib.suppress(TimeoutError):  # it does not read
            async with asyncio.timeout(HOST_FLUSH):
                while self._is_busy:
                    self._written.clear()
                    await self._written.wait()
        self._listen(False)
        for end in self._in_loop:
            self._loop.remove_writer(end)
        self._set_blocking(True)

    def _set_blocking(self, blocking: bool) -> None:
        for end in self._in_loop:
            if sys.platform != "win32":
                os.set_blocking(end, blocking)

    def _make_room(self, source: Name, room: bool) -> None:
        if source is Peer.HOST:
            self._listen(room)
        else:
            self._on_room(source, room)

    def _take_turns(self) -> bytes:
        """At least a line and at most about `FAIR_BITE` of each queue; a source whose queue is empty is read again."""
        pieces: list[bytes] = []
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
                self._make_room(source, True)
        return b"".join(pieces)

    # ── reading ──

    def _listen(self, wanted: bool) -> None:
        if self._reading not in self._in_loop:
            (self._gate.set if wanted else self._gate.clear)()
        elif wanted:
            self._loop.add_reader(self._reading, self._read)
        else:
            self._loop.remove_reader(self._reading)

    def _read(self) -> None:
        """One chunk in a turn of the loop."""
        try:
            self._hear(os.read(self._reading, USUAL_PIPE))
        except BlockingIOError:
            pass
        except OSError as wrong:
            self._hear(b"", f"the host cannot be read: {wrong}")

    def _hear(self, chunk: bytes, reason: str = "the host closed its end") -> None:
        lines = self._splitter.feed(chunk or b"\n")  # a last line without its newline is a line
        if lines:
            self._post(HostLines(lines))
        if not chunk:
            self._listen(False)
            self._post(HostGone(reason))

    def _read_all(self) -> None:
        """A thread's. It wakes the loop once for all that comes while it is busy: each waking is a byte in the socket
        that signals come through too, and a full one would lose SIGTERM. The host waits for a loop far behind."""
        reason = ""
        while not reason:
            self._gate.wait()
            try:
                chunk = os.read(self._reading, USUAL_PIPE)
                reason = "" if chunk else "the host closed its end"
            except OSError as wrong:
                chunk, reason = b"", f"the host cannot be read: {wrong}"
            with self._taken:
                if not self._chunks:
                    in_loop(self._loop, self._take)
                self._chunks.append((chunk, reason))
                self._ahead += len(chunk)
                self._taken.wait_for(lambda: self._ahead <= READ_AHEAD)

    def _take(self) -> None:
        with self._taken:
            chunks, self._chunks, self._ahead = self._chunks, [], 0
            self._taken.notify()
        if data := b"".join(chunk for chunk, _ in chunks):
            self._hear(data)
        if reason := chunks[-1][1]:
            self._hear(b"", reason)

    # ── writing ──

    def _write(self, data: memoryview) -> None:
        if len(data) > USUAL_PIPE:
            widen(self._writing)
        if self._writing not in self._in_loop:
            self._rest, self._is_busy = data, True
            self._job.release()
            return
        try:
            while data and not self._is_broken:
                data = data[os.write(self._writing, data) :]
        except BlockingIOError:
            self._loop.add_writer(self._writing, self._go_on)
            self._rest, self._is_busy = data, True
        except OSError as wrong:
            self._go_on(wrong)

    def _go_on(self, wrong: OSError | None = None) -> None:
        """It has been written, or can be written to again, or never more."""
        data, self._rest, self._is_busy = self._rest, memoryview(b""), False
        if self._writing in self._in_loop:
            self._loop.remove_writer(self._writing)
        if wrong and not self._is_broken:
            self._is_broken = True  # what is still queued has nobody to go to
            self._post(HostGone(f"the host cannot be written to: {wrong}"))
        if data:
            self._write(data)
        self.flush()
        if not self._is_busy:
            self._written.set()

    def _write_all(self) -> None:
        """A thread's."""
        while self._job.acquire():
            data, self._rest, failure = self._rest, memoryview(b""), None
            try:
                while data and not self._is_broken:
                    data = data[os.write(self._writing, data) :]
            except OSError as wrong:
                failure = wrong
            in_loop(self._loop, self._go_on, failure)


# ══ 18. Processes ═════════════════════════════════════════════════════════════════════════════════════════════════════
# One process a server, in a group of its own. A process is told from its pipes: its exit is noticed even while a
# grandchild holds them open, and nothing of its group outlives it.


# How to start a process so that it and all that it starts can be ended as one; out of reach of a terminal's Ctrl-C.
OWN_GROUP: Final[dict[str, Any]] = (
    {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
    if sys.platform == "win32"
    else {"start_new_session": True}
)


class Family:
    """A process in an `OWN_GROUP` and all that it started: a group, or on Windows a job object, which ends with us."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._job: Any = None  # it ends, with all in it, when its handle is closed, if only by our own death
        if sys.platform == "win32":
            import pywintypes  # noqa: PLC0415
            import win32api  # noqa: PLC0415
            import win32con  # noqa: PLC0415
            import win32job  # noqa: PLC0415

            self._job = win32job.CreateJobObject(None, "")
            limits = win32job.QueryInformationJobObject(self._job, win32job.JobObjectExtendedLimitInformation)
            limits["BasicLimitInformation"]["LimitFlags"] |= win32job.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
            win32job.SetInformationJobObject(self._job, win32job.JobObjectExtendedLimitInformation, limits)
            with contextlib.suppress(pywintypes.error):  # it has exited already
                handle = win32api.OpenProcess(win32con.PROCESS_SET_QUOTA | win32con.PROCESS_TERMINATE, False, pid)
                win32job.AssignProcessToJobObject(self._job, handle)
                win32api.CloseHandle(handle)

    def terminate(self) -> None:
        """Asks it to go. Windows has no such signal."""
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

    def leave(self) -> None:
        """It goes on without mcpmux."""
        if sys.platform == "win32" and self._job is not None:
            import win32job  # noqa: PLC0415

            limits = win32job.QueryInformationJobObject(self._job, win32job.JobObjectExtendedLimitInformation)
            limits["BasicLimitInformation"]["LimitFlags"] &= ~win32job.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
            win32job.SetInformationJobObject(self._job, win32job.JobObjectExtendedLimitInformation, limits)
            self._job.Close()
            self._job = None

    def _signal(self, number: int) -> None:
        if sys.platform != "win32":
            with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left, or only what is not ours
                os.killpg(self.pid, number)


def _own_shell(words: list[str], kept: Iterable[int] = ()) -> subprocess.Popen[bytes]:
    """A shell that may outlive mcpmux and hears from it through a pipe; `kept` are files that it has too."""
    null, command = subprocess.DEVNULL, ["/bin/sh", "-c", *words]
    keys: dict[str, Any] = {"cwd": "/", "env": {"PATH": os.defpath}, "start_new_session": True, "pass_fds": tuple(kept)}
    process: Any = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=null, stderr=null, **keys)
    return process


# Reads process groups from a pipe, added and taken out since numbers are used again, and ends those that are left at
# the pipe's end.
_GUARDIAN: Final = r"""trap "" HUP INT TERM
all=" "
while read -r one; do
    case $one in
        +*) all="$all${one#+} " ;;
        -*) case $all in *" ${one#-} "*) all="${all%%" ${one#-} "*} ${all#*" ${one#-} "}" ;; esac ;;
    esac
done
[ "$all" = " " ] && exit
for one in $all; do kill -s TERM -- "-$one"; done
sleep 1
for one in $all; do kill -s KILL -- "-$one"; done"""


class Guardian:
    """A shell that ends the servers when mcpmux is killed outright: those that do not heed the end of their input would
    live on. It comes with the first and goes with mcpmux. On Windows the job objects do that."""

    def __init__(self) -> None:
        self._shell: subprocess.Popen[bytes] | None = None
        self.left: set[int] = set()

    def start(self) -> None:
        if sys.platform != "win32" and self._shell is None:
            self._shell = _own_shell([_GUARDIAN, "mcpmux guardian"])

    def add(self, group: int) -> None:
        self._tell(f"+{group}\n")

    def remove(self, group: int) -> None:
        self._tell(f"-{group}\n")

    @property
    def pids(self) -> set[int]:
        """What outlives mcpmux: the shell, and what is left to finish."""
        left = {pid for one in self.left for pid in (one, *descendants(one))}
        return left | ({self._shell.pid} if self._shell else set())

    def close(self) -> None:
        if self._shell and self._shell.stdin:
            self._shell.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._shell.wait(0.1)  # it has nothing left to do

    def _tell(self, line: str) -> None:
        if self._shell and self._shell.stdin:
            with contextlib.suppress(OSError, ValueError):  # somebody has killed it, or it is closed
                os.write(self._shell.stdin.fileno(), line.encode())


# Waits for a line, which says that all is well. Else it reads the pipes in mcpmux's place, as long as the group $1 is
# there and at most $2 seconds.
_MINDER: Final = r"""trap "" HUP INT TERM
read -r one && exit
for pipe in "$3" "$4"; do
    while kill -s 0 -- "-$1"; do cat "/dev/fd/$pipe"; sleep 1; done &
done
n=0
while [ "$n" -lt "$2" ] && kill -s 0 -- "-$1"; do sleep 1; n=$((n + 1)); done
kill -s KILL -- "-$1"
wait"""
_MINDER_OF_WINDOWS: Final = """
import os, subprocess, sys, win32api, win32con, win32event
handle = win32api.OpenProcess(win32con.SYNCHRONIZE, False, int(sys.argv[1]))
win32event.WaitForSingleObject(handle, int(sys.argv[2]) * 1000)
taskkill = os.path.join(win32api.GetSystemDirectory(), "taskkill.exe")  # not one of the folder that the host chose
subprocess.run([taskkill, "/PID", sys.argv[1], "/T", "/F"], creationflags=subprocess.CREATE_NO_WINDOW)
"""


class Minder:
    """Beside a process that may have to fetch first what it runs: npx that is ended in the middle of that leaves a copy
    that is broken for good. If mcpmux goes before the process has said a word, the minder sees it through."""

    def __init__(self, lock: int | None, pid: int, pipes: list[int]) -> None:
        """`lock` is held as long as it is at work."""
        self.pid, self._lock = pid, lock
        self._shell: subprocess.Popen[bytes] | None = None
        if sys.platform != "win32":
            words = [_MINDER, "mcpmux minder", str(pid), str(int(FETCH_MOST)), *map(str, pipes)]
            self._shell = _own_shell(words, pipes if lock is None else [*pipes, lock])

    def dismiss(self) -> None:
        """All is fetched, or there is nothing to fetch any more."""
        if self._shell:
            assert self._shell.stdin
            with contextlib.suppress(OSError):
                os.write(self._shell.stdin.fileno(), b"\n")
            self._shell.stdin.close()
            asyncio.get_running_loop().call_later(1.0, self._shell.poll)  # it is no more then
        self._unlock()

    def take_over(self) -> int | None:
        """Its own process, if it has one."""
        self._unlock()
        if sys.platform == "win32":
            words = [sys.executable, "-c", _MINDER_OF_WINDOWS, str(self.pid), str(int(FETCH_MOST))]
            subprocess.Popen(words, **OWN_GROUP)
        elif self._shell and self._shell.stdin:
            self._shell.stdin.close()
            self._shell.returncode = 0  # nobody here waits for it
            return self._shell.pid
        return None

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


async def turn_to_fetch(command: Command) -> int | None:
    """For npx and its like, which do not stand two of them that fetch the same: a lock, of all mcpmux processes."""
    launcher = launcher_of(command.program, command.args)
    if launcher not in ("npx", "pnpx", "bunx", "npm"):
        return None
    what = next((arg for arg in command.args if not arg.startswith("-")), "")
    path = user_folder("cache") / "fetching" / hashlib.sha256(f"{launcher} {what}".encode()).hexdigest()[:24]
    try:
        lock = await asyncio.to_thread(open_lock, path)
    except OSError:
        return None  # a cache that cannot be written to is npx's trouble too
    end = time.monotonic() + FETCH_MOST
    try:
        while not is_locked(lock) and time.monotonic() < end:  # noqa: ASYNC110 - another process holds it
            await asyncio.sleep(4 * LOCK_LOOK)
    except BaseException:
        os.close(lock)
        raise
    return lock


def kill_all(pids: Iterable[int]) -> None:
    """Those of them that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)


_READ_BY_CMD: Final = r"[()\[\]%!^\"`<>&|;, *?=\t]"


def line_for_cmd(program: str, args: Iterable[str], readings: int) -> str:
    """What Windows' cmd is to be told so that a batch file's arguments arrive as they are, though it reads them so many
    times: `&` would end a command, and `%` begin a variable. Its own sign for that is a caret before each."""
    is_plain = re.compile(rf"(?!.*{_READ_BY_CMD}).+").fullmatch
    words = [arg if is_plain(arg) else '"' + subprocess.list2cmdline([f" {arg}"])[2:] for arg in args]
    for _ in range(readings):
        words = [re.sub(_READ_BY_CMD, r"^\g<0>", word) for word in words]
    return " ".join([re.sub(_READ_BY_CMD, r"^\g<0>", os.path.normpath(program)), *words])


def batch_line(program: str, args: Iterable[str]) -> str | None:
    """How Windows starts a batch file, such as npx.cmd; None: it is none. Most hand on all that they are given to a
    program, and so cmd reads it once more."""
    if sys.platform != "win32" or not program.lower().endswith((".cmd", ".bat")):
        return None
    return line_for_cmd(program, args, 1 + (b"%*" in Path(program).read_bytes()))


def as_started(program: str, args: Iterable[str]) -> dict[str, Any]:
    """What `Popen` is told of a program and its arguments."""
    line = batch_line(program, args)
    return {"args": line or [program, *args], "shell": line is not None}


async def started(program: str, args: list[str], **keys: Any) -> asyncio.subprocess.Process:
    """A program that is to be spoken with. Raises `OSError`, `ValueError`."""
    if line := batch_line(program, args):
        return await asyncio.create_subprocess_shell(line, **keys)
    return await asyncio.create_subprocess_exec(program, *args, **keys)


async def reaped(process: asyncio.subprocess.Process) -> None:
    """What was killed has ended, and its pipes are closed, if nobody has inherited them."""
    await asyncio.wait([asyncio.ensure_future(process.communicate())], timeout=STOP_LAST)


async def expand(text: str, where: str, environment: Mapping[str, str], secrets: set[str]) -> str:
    """`${VAR}`, `${VAR:-default}` and `${cmd:…}` replaced; what came from outside is added to `secrets`. Raises
    `StartError` that names the variable or the command, never a value."""
    pieces: list[str] = []
    at = 0
    for match in re.finditer(PLACEHOLDER, text):
        pieces.append(text[at : match.start()])
        at = match.end()
        if match[1]:
            pieces.append("${")
        elif match["cmd"] is not None:
            pieces.append(await _secret_from(match["cmd"], where))
            secrets.add(pieces[-1])
        elif value := environment.get(match["var"]):
            pieces.append(value)
            if match["var"] not in SAFE_VARIABLES:
                secrets.add(value)
        elif match["default"] is not None:
            pieces.append(match["default"])
        elif match["var"] not in environment:
            what = f"${{{match['var']}}} is not set ({where})"
            raise StartError(what, f"set {match['var']} in env_file, or in the host's environment if it hands that on")
    return "".join([*pieces, text[at:]])


async def _secret_from(command: str, where: str) -> str:
    hint = f"try it in a terminal: {command}"
    try:
        words = shlex.split(command, posix=sys.platform != "win32")
        words = [word[1:-1] if word[:1] == word[-1:] == '"' else word for word in words]  # Windows' way leaves them
        program = find_program(words[0], extended_path(os.environ)) if words else None
        if program is None:
            raise StartError(f"the command of ${{cmd:…}} was not found ({where})", hint)
        keys: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **OWN_GROUP}
        process = await started(program, words[1:], stdout=subprocess.PIPE, **keys)
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
        await reaped(process)
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
    wanted = {same(variable) for variable in options.env_vars}
    env = {
        key: value
        for key, value in config.environment.items()
        if (same(key) in wanted or (key in config.inherited and ("*" in wanted or is_safe(key, value))))
        and not value.startswith("()")  # an exported shell function
        and not key.startswith("MCPMUX_")
    }
    for key, value in options.env.items():
        env.pop(next((one for one in env if same(one) == same(key)), key), None)
        env[key] = await full(value, f"env.{key}")
        if SECRET_NAME.search(key):
            secrets.add(env[key])
    present = env.pop(next((one for one in env if same(one) == "PATH"), "PATH"), None)
    env["PATH"] = extended_path(config.environment, present)  # also after a PATH of the table's own

    def shown(written: str, real: str) -> str:
        return written if "${" in written else real  # what came from outside may be a secret

    command = os.path.expanduser(await full(options.command, "command"))
    args = [await full(arg, f"args[{number}]") for number, arg in enumerate(options.args)]
    secrets.update(secrets_in(args))
    cwd = str(absolute(await full(options.cwd, "cwd"), config.path.parent)) if options.cwd else None
    if cwd and not os.path.isdir(cwd):
        raise StartError(f"its cwd {shown(options.cwd or '', cwd)} is no folder", f"correct mcp_servers.{name}.cwd")
    first = _first_word(command)
    command, *args = beside_config([command, *args], config.path.parent, cwd or "")
    program = find_program(command, env["PATH"])
    if program is None and find_program(first, env["PATH"]):
        todo = f"write command = {json.dumps(shown(options.command, first))} and put the rest into args"
        raise StartError("command holds a whole command line; it is the program alone", todo)
    if program is None and os.path.exists(command):
        raise StartError(f"{shown(options.command, command)} may not be executed", "make it executable: chmod +x")
    if program is None and os.path.dirname(command):
        what = f"there is no program {shown(options.command, command)}"
        raise StartError(what, f"correct mcp_servers.{name}.command")
    if program is None:
        comes_with = {"npx": "Node.js", "node": "Node.js", "npm": "Node.js", "uvx": "uv", "docker": "Docker"}
        todo = f"install {comes_with.get(options.command, 'it')}, or give its full path as `command`"
        raise StartError(f"{options.command!r} was not found on PATH", todo)
    return Command(program, args, env, cwd, frozenset(secrets))


def beside_config(words: list[str], folder: Path, cwd: str = "") -> list[str]:
    """A program's path is relative to the config file, never to the folder that the host chose; and an argument such
    as `server.py` means the one beside it, unless the program would find one where it starts."""

    def is_meant(arg: str) -> bool:
        return os.path.isfile(folder / arg) and not os.path.exists(os.path.join(cwd, arg))

    program = str(absolute(words[0], folder)) if os.path.dirname(words[0]) else words[0]
    return [program, *(str((folder / arg).absolute()) if is_meant(arg) else arg for arg in words[1:])]


def _first_word(command: str) -> str:
    """Of what is more than one."""
    with contextlib.suppress(ValueError):
        if len(words := shlex.split(command, posix=sys.platform != "win32")) > 1:
            return words[0]
    return ""


class ServerProcess(asyncio.SubprocessProtocol):
    """One running server: its lines and its end become events. Everything here happens in the loop's thread."""

    def __init__(
        self, name: Name, run: int, post: Post, options: MuxOptions, journal: Journal, guardian: Guardian
    ) -> None:
        self.name, self.run = name, run
        self._outbox_most = int(options.outbox_mb * MB)  # bytes that may wait for it
        self._guardian = guardian
        self.outbox: list[bytes] = []  # lines of this batch; the transport has the rest
        self.exited = asyncio.Event()
        self._post = post
        self._journal = journal
        self._log_name = name if isinstance(name, str) else f"mcpmux {name.value}"  # no server's name has a space
        self._splitter = LineSplitter(int(options.max_message_mb * MB))
        self._words: collections.deque[str] = collections.deque(maxlen=STDERR_LINES)
        self._word = b""  # stderr's last line, still incomplete
        self._has_log = False  # it has said something there
        self._open_pipes = {0, 1, 2}
        self._left: asyncio.TimerHandle | None = None  # the process has gone, and perhaps its child serves the pipes
        self._gone = False
        self._stopping = False
        self._closing: asyncio.Future[None] | None = None
        self.mind: Callable[[int, list[int]], Minder] | None = None  # if it may have to fetch first what it is to run
        self._minder: Minder | None = None  # as long as it may

    # ── what the loop tells ──

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport
        self.pid = transport.get_pid()
        self._family = Family(self.pid)
        self._stdin().set_write_buffer_limits(high=self._outbox_most, low=0)
        if self.mind:
            pipes = [pipe.get_extra_info("pipe") for fd in (1, 2) if (pipe := transport.get_pipe_transport(fd))]
            still_open: list[int] = [pipe.fileno() for pipe in pipes if not getattr(pipe, "closed", False)]
            self._minder, self.mind = self.mind(self.pid, still_open), None
        else:
            self._guardian.add(self.pid)
        if isinstance(stdout := transport.get_pipe_transport(1), asyncio.ReadTransport):
            stdout.set_protocol(_Stdout(self.pipe_data_received, stdout.get_protocol()))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1:
            if self._left:
                self._left.cancel()
            self._dismiss_minder()
            if lines := self._splitter.feed(data):
                self._post(ServerLines(self.name, self.run, lines))
            elif stdout := self._transport.get_pipe_transport(1):
                widen(stdout.get_extra_info("pipe"))  # the end of a long one is still to come
        else:
            self._hear(self._journal.keep(self._log_name, data))

    def _hear(self, words: bytes) -> None:
        """What it says on stderr, without secrets."""
        self._has_log = True
        *lines, self._word = (self._word + words).split(b"\n")
        self._word = self._word[-EDGE:]
        said = [line.decode(errors="replace").strip()[:500] for line in lines[-STDERR_LINES:]]
        self._words.extend(filter(None, said))

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open_pipes.discard(fd)
        if self._left and fd == 1:
            self.exited.set()
            self._end()
        if fd != 2 and not self._gone and not self.exited.is_set() and not self._stopping:
            self._closing = asyncio.ensure_future(self.stop())  # closing a pipe is a way to say goodbye
        if self.exited.is_set() and not self._open_pipes - {0}:
            self._end()

    def process_exited(self) -> None:
        self.exited.set()
        self.read(True)  # what it still said is heard, also by a host that is slow
        if self._open_pipes - {0}:  # its last words may still be in the pipe; a grandchild may hold it open
            asyncio.get_running_loop().call_later(EXIT_DRAIN, self._drained)
        else:
            self._end()

    def _drained(self) -> None:
        if self._stopping or self._transport.get_returncode() or not {0, 1} <= self._open_pipes:
            self._end()
        else:  # as a launcher goes
            self.exited = asyncio.Event()
            self._left = asyncio.get_running_loop().call_later(LEFT_SILENT, self._end)

    def pause_writing(self) -> None:
        self._post(ServerClogged(self.name, self.run, True))

    def resume_writing(self) -> None:
        self._post(ServerClogged(self.name, self.run, False))

    # ── what the mux does ──

    def flush(self) -> None:
        if self.outbox:
            data = b"".join(self.outbox)
            self.outbox.clear()
            if not self._stdin().is_closing():
                self._stdin().write(data)

    def read(self, wanted: bool) -> None:
        """Stops or resumes reading its stdout."""
        pipe = self._transport.get_pipe_transport(1)
        if isinstance(pipe, asyncio.ReadTransport) and not pipe.is_closing():
            pipe.resume_reading() if wanted else pipe.pause_reading()

    async def stop(self) -> None:
        """The ladder. Each step is for servers that the one before it does not end; in all at most 1.5 s."""
        if self._minder and not {0, 1} <= self._open_pipes:
            await self._exits(STOP_STEP)  # what has closed one, or died, fetches nothing any more
        if self._minder and not self.exited.is_set():
            self._leave(self._minder)
            return
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

    def _dismiss_minder(self) -> None:
        if self._minder:
            self._minder.dismiss()
            self._minder = None
            self._guardian.add(self.pid)

    def _leave(self, minder: Minder) -> None:
        """Nobody waits for it any more: its minder sees to the end of what it fetches. Its input ends."""
        self._gone, self._minder = True, None
        self._guardian.left |= {self.pid, minder.take_over() or self.pid}
        self._family.leave()
        self._transport.get_extra_info("subprocess").returncode = 0  # or closing the pipes would kill it
        self._transport.close()
        self._journal.rest(self._log_name)
        reason = f"{called(self.name)} {STILL_FETCHING}"
        hint = "it may still be fetching, and goes on with that; try again in a while"
        self._post(ServerGone(self.name, self.run, reason, hint, list(self._words)))

    async def _exits(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self.exited.wait()
        return False

    def _end(self) -> None:
        """Once: the group is killed, the pipes are closed, and the core is told."""
        if self._gone:
            return
        self._gone = True
        code = self._transport.get_returncode()
        self._dismiss_minder()
        self._family.kill()
        self._guardian.remove(self.pid)
        if last := self._splitter.feed(b"\n"):
            self._post(ServerLines(self.name, self.run, last))
        self._transport.close()
        last_words = self._journal.rest(self._log_name)
        if last_words or self._word.strip():
            self._hear(last_words + b"\n")
        how = _ended_how(code)
        log = self._journal.path(self._log_name) if self._has_log else None
        hint = (f"its log is {log}; " if log else "") + "the next call starts it again"
        self._post(ServerGone(self.name, self.run, f"{called(self.name)} {how}", hint, list(self._words)))

    def _stdin(self) -> asyncio.WriteTransport:
        pipe = self._transport.get_pipe_transport(0)
        assert isinstance(pipe, asyncio.WriteTransport)
        return pipe


class _Stdout(asyncio.Protocol):
    """What comes is heard at once: asyncio's own takes a turn of the loop more."""

    def __init__(self, hear: Callable[[int, bytes], None], own: asyncio.BaseProtocol) -> None:
        self._hear, self._own = hear, own

    def data_received(self, data: bytes) -> None:
        self._hear(1, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._own.connection_lost(exc)


def _ended_how(code: int | None) -> str:
    if code is None:
        return "does not end even when it is killed"
    if code >= 0:
        return f"exited with code {code}"
    return "was killed by " + next((one.name for one in signal.Signals if one == -code), f"signal {-code}")


async def spawn(command: Command, process: ServerProcess) -> None:
    """Starts it in a group of its own. Raises `StartError`."""
    loop = asyncio.get_running_loop()
    keys: dict[str, Any] = {"env": command.env, "cwd": command.cwd, **OWN_GROUP}
    try:
        if line := batch_line(command.program, command.args):
            await loop.subprocess_shell(lambda: process, line, **keys)
        else:
            await loop.subprocess_exec(lambda: process, command.program, *command.args, **keys)
    except (OSError, ValueError) as wrong:
        raise StartError(f"could not be started: {wrong}", "check command, args and cwd in its table") from None


def become_subreaper() -> None:
    """Linux: orphans of our servers become our children, so that they can be found and killed at the end."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415

        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, linux/prctl.h


def close_memory() -> None:
    """Linux: of a person's processes any may read the environment and the memory of another, and so mcpmux's keys; but
    not of one that leaves no core. What it starts is not closed by that."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415

        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE, linux/prctl.h


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


def again(*words: str) -> list[str]:
    """mcpmux in a process of its own; as a module, since a script is compiled anew at each start: 0.2 s or more."""
    here = Path(__file__).absolute()
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); sys.exit(__import__(sys.argv.pop(1)).main())"
    return [sys.executable, "-P", "-c", code, str(here.parent), here.stem, *words]


def descendants(pid: int) -> list[int]:
    """All that a process has started and that still hangs on it (Linux; elsewhere none is known)."""
    found: list[int] = []
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                for child in map(int, _read(f"/proc/{pid}/task/{task}/children").split()):
                    is_the_persons = b"\0%b=" % OF_PERSON.encode() in b"\0" + _read(f"/proc/{child}/environ")
                    found += [] if is_the_persons else [child, *descendants(child)]
    return found


OF_PERSON: Final = "MCPMUX_BROWSER"  # stands in the environment of a browser that we have opened, which outlives us


def _read(path: str) -> bytes:
    """Of a process that may be no more."""
    with contextlib.suppress(OSError):
        return Path(path).read_bytes()
    return b""


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
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


# ══ 19. Remote ════════════════════════════════════════════════════════════════════════════════════════════════════════
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
_IN_A_HEADER: Final = r"[!-~\x80-\xff](?:[ -~\x80-\xff]*[!-~\x80-\xff])?"
_SAID_TOO_MUCH: Final = ("said more at once than it may", "raise max_message_mb in [mux], or tell those who run it")
_NO_MESSAGE: Final = ("answered with something that is no message", "tell those who run it")
_FORGOTTEN: Final = (
    "has forgotten the session: it was restarted, or the session was too old",
    "the next call begins a new one",
)


class RemoteError(McpmuxError):
    """Something between us and a remote server: what, and what to do. `is_end`: the server is gone by it. `taken`: it
    may have read what it was sent. `spares`: what it is answering already may still be answered."""

    def __init__(self, what: str, todo: str, *, is_end: bool = False, taken: bool = True, spares: bool = False) -> None:
        super().__init__(what)
        self.what, self.todo = what, todo
        self.is_end, self.taken, self.spares = is_end, taken, spares


class Unreadable(RemoteError):
    """What a server says is too long, or no message."""


class Address(Struct, frozen=True):
    """A remote server's table, ready to be used."""

    name: str
    transport: str | None  # None: to be found out
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


def is_here(url: str) -> bool:
    """Whether it is a place on this machine."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f".{host}".endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def refuse_open(url: str, may_be_open: bool, by: str = "") -> None:
    """Before a token or its like goes there. Raises `StartError` where anybody on the way could read it, and for a
    place on this machine that a server elsewhere has named (`by` its address): what is here trusts who is here."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    if by and is_here(url) and not is_here(by):
        raise StartError(f"names {parts.netloc} for its login, which is on this machine", "do not log in there")
    if parts.scheme == "http" and not is_here(url) and not may_be_open:
        what = f"its token would go to {host} over plain http://, which others can read"
        raise StartError(what, "use https://, or set allow_http = true in its table")


def login_path(config: Path, name: str, url: str) -> Path:
    """A login belongs to a table: two of them may have two accounts at one url."""
    key = encode([os.path.normcase(os.path.realpath(config)), name, url.encode(errors="replace").decode()])
    return state_folder() / "logins" / f"{hashlib.sha256(key).hexdigest()[:24]}.json"


async def locate(name: str, options: ServerOptions, config: Config) -> Address:
    """Placeholders, and headers from the environment. Raises `StartError`."""
    where, secrets = f"mcp_servers.{name}", set[str]()
    url = await expand(options.url or "", f"{where}.url", config.environment, secrets)
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StartError("its url is no http:// or https:// address", f"correct {where}.url")
    headers: dict[str, str] = {}
    for header, value in options.http_headers.items():
        headers[header] = await expand(value, f"{where}.http_headers.{header}", config.environment, secrets)
        if SECRET_NAME.search(header):
            secrets.add(headers[header])
    variables = {header: (variable, "env_http_headers") for header, variable in options.env_http_headers.items()}
    if options.bearer_token_env_var:
        variables["Authorization"] = (options.bearer_token_env_var, "bearer_token_env_var")
    for header, (variable, key) in variables.items():
        if not (value := config.environment.get(variable, "")):
            todo = f"set {variable} in env_file, or in the host's environment if it hands that on"
            raise StartError(f"{variable} is not set ({where}.{key})", todo)
        secrets.add(value)
        headers[header] = f"Bearer {value}" if key == "bearer_token_env_var" else value
    for header, value in headers.items():
        if not value.isascii() or not value.isprintable():
            todo = f"correct it in {where} or its variable"
            raise StartError(f"its header {header} has a character that no header may have", todo)
    login = login_path(config.path, name, url)
    named = any(SECRET_NAME.search(text) for text in (*headers, parts.query))
    if named or parts.password or options.env_http_headers or login.exists():
        refuse_open(url, options.allow_http)
    return Address(name, options.transport, url, headers, frozenset(secrets), login, options.allow_http)


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
    if certificate := next((one for one in below if isinstance(one, ssl.SSLCertVerificationError)), None):
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


def read_login(path: Path) -> Login | None:
    """None where there is none, or none that can be read: the next login writes it anew."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Login)
    except (OSError, msgspec.MsgspecError):
        return None


def write_login(path: Path, login: Login) -> None:
    """Whole or not at all, and for nobody else's eyes. Raises `OSError`."""
    write_whole(path, encode(login), private=True)


@contextlib.asynccontextmanager
async def login_lock(path: Path) -> AsyncGenerator[None]:
    """One mcpmux at a time renews a login: a refresh token may work once only. Raises `OSError`."""
    file = open_lock(path.with_suffix(".lock"))
    try:
        async with asyncio.timeout(LOCK_PATIENCE):
            while not is_locked(file):  # noqa: ASYNC110 - no event tells that another process lets go
                await asyncio.sleep(LOCK_LOOK)
        yield
    finally:
        os.close(file)


async def fetch(request: Any, may_be_open: bool, reads: bool = True, by: str = "") -> Any:
    """A login's request: its response, with as much body as such servers say. Raises `StartError`, HTTP's errors."""
    refuse_open(str(request.url), may_be_open, by)
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


class Beginning(Struct, frozen=True):
    """What the SDK's provider begins with, as a storage. Files are written by those who hold their lock."""

    client: Any = None
    tokens: Any = None

    async def get_tokens(self) -> Any:
        return self.tokens

    async def get_client_info(self) -> Any:
        return self.client

    async def set_tokens(self, tokens: Any) -> None: ...
    async def set_client_info(self, client_info: Any) -> None: ...


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
    provider = OAuthClientProvider(login.url, auth.OAuthClientMetadata(redirect_uris=None), Beginning(client, tokens))
    context = provider.context
    context.client_info, context.token_expiry_time = client, 1.0
    context.oauth_metadata = auth.OAuthMetadata.model_construct(token_endpoint=login.token_endpoint)
    if login.resource:
        context.protected_resource_metadata = auth.ProtectedResourceMetadata.model_construct(resource=login.resource)
    return provider


class LoginKeeper:
    """The login of one table while its server is used: read from its file, renewed, and written back."""

    def __init__(self, path: Path, may_be_open: bool, journal: Journal) -> None:
        self._path, self._may_be_open, self._journal = path, may_be_open, journal
        self._lock = asyncio.Lock()
        self._refused: str | None = None  # a refresh token that is good for nothing any more
        self._take(read_login(path))

    def _take(self, login: Login | None) -> None:
        self.login = login
        if login:
            self._journal.hide(filter(None, (login.access_token, login.refresh_token, login.client_secret)))

    async def token(self) -> str | None:
        """One that has not run out, if that can be helped."""
        login = self.login
        if login and login.expires_at is not None and login.expires_at - LOGIN_SLACK < time.time():
            try:
                await self.renew(login.access_token)
            except RemoteError as wrong:  # perhaps it is still taken
                self._journal.log("debug", f"a login was not renewed: it {wrong.what}")
        return self.login.access_token if self.login else None

    async def renew(self, used: str | None) -> bool:
        """Whether there is another token than `used` now. Raises `RemoteError` where that could not be found out."""
        async with self._lock:
            try:
                if self.login and self.login.access_token != used:
                    return True
                if self.login is None and not self._path.exists():
                    return False
                async with login_lock(self._path):
                    self._take(login := read_login(self._path))  # another process may have renewed it
                    if login is None or login.access_token != used:
                        return login is not None
                    if login.refresh_token in (None, self._refused):
                        return False
                    if (renewed := await self._refresh(login)) is None:
                        self._refused = login.refresh_token
                        return False
                    self._take(renewed)
                    try:
                        write_login(self._path, renewed)
                    except OSError as wrong:  # it serves here all the same
                        self._journal.log("warning", f"a renewed login cannot be kept: {wrong}")
                    return True
            except OSError as wrong:
                what = f"cannot be logged in to: the file of its login: {wrong or 'another mcpmux holds it'}"
                raise RemoteError(what, f"look at {self._path}") from None

    async def _refresh(self, login: Login) -> Login | None:
        """None where the authorization server does not take the refresh token."""
        http = (await asyncio.to_thread(load_http)).http
        provider = await asyncio.to_thread(provider_of, login)
        afterwards = http.Request("POST", login.url)  # never sent
        place, statuses = urllib.parse.urlsplit(login.token_endpoint).netloc, [0]

        async def answer(request: Any) -> Any:
            response = None if request is afterwards else await fetch(request, self._may_be_open, by=login.url)
            statuses.append(response.status_code if response else statuses[-1])
            return None if statuses[-1] in REFUSED else response

        try:
            await play(provider.async_auth_flow(afterwards), answer)
        except (http.RequestError, OSError, StartError) as wrong:
            what, todo = connection_trouble(wrong, place)
            raise RemoteError(f"cannot be logged in to: its authorization server {what}", todo) from None
        if statuses[-1] in REFUSED:
            return None
        new, until = provider.context.current_tokens, provider.context.token_expiry_time
        if new is None:
            what = f"cannot be logged in to: {place} answered HTTP {statuses[-1]} without a token"
            raise RemoteError(what, "try again later")
        return msgspec.structs.replace(
            login, access_token=new.access_token, expires_at=until, refresh_token=new.refresh_token, scope=new.scope
        )


class Browser:
    """How a person is asked: an address is opened, and the answer comes back to a page on loopback (RFC 8252, 7.3)."""

    def __init__(self, scopes: list[str], say: Callable[[str], None]) -> None:
        self._scopes, self._say = scopes, say
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

        refuse_open(url, True, by=self.context.server_url)
        parts = urllib.parse.urlsplit(url)
        query = dict(urllib.parse.parse_qsl(parts.query))
        self._state = query.get("state", "")
        if self._scopes:  # the SDK asks for what the server names
            query["scope"] = " ".join(self._scopes)
            url = urllib.parse.urlunsplit(parts._replace(query=urllib.parse.urlencode(query)))
        self._say(f"Opening your browser to log in. If nothing opens, visit:\n\n  {url}\n")
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

    async def come_back(self) -> Any:
        """Raises `TimeoutError`, and the SDK's `OAuthFlowError` where the answer is no."""
        from mcp.client.auth import AuthorizationCodeResult, OAuthFlowError  # noqa: PLC0415
        from mcp.client.auth.utils import issuers_match  # noqa: PLC0415

        async with asyncio.timeout(LOGIN_PATIENCE):
            answer = await self._answer
        if "error" in answer:
            said = answer.get("error_description", answer["error"])
            raise OAuthFlowError(f"the login was refused: {said[:TEXT_MOST]}")
        issuer, known = answer.get("iss"), self.context.oauth_metadata
        if issuer and known and issuers_match(issuer, str(known.issuer)):
            issuer = str(known.issuer)
        return AuthorizationCodeResult(code=answer.get("code", ""), state=answer.get("state"), iss=issuer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        import hmac  # noqa: PLC0415

        no_browser = OSError, ValueError, IndexError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
        with contextlib.closing(writer), contextlib.suppress(*no_browser):  # or one that went
            async with asyncio.timeout(CONNECT_PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
            target = urllib.parse.urlsplit(head.split(b" ", 2)[1].decode())
            query = {key: values[0] for key, values in urllib.parse.parse_qs(target.query).items()}
            # A page elsewhere may have its name lead to this machine; the browser then says that name.
            hosts = re.findall(rb"(?im)^host:[ \t]*(\S*)[ \t]*\r$", head)
            is_ours = self._state and hmac.compare_digest(query.get("state", "").encode(), self._state.encode())
            is_ours = is_ours and hosts == [self._host.encode()] and target.path == "/callback"
            is_answer = is_ours and bool({"code", "error"} & query.keys())
            text = "You are logged in. You can close this tab." if is_answer else "There is nothing here."
            status = "200 OK" if is_answer else "404 Not Found"
            kind = "Content-Type: text/plain; charset=utf-8\r\nConnection: close"
            writer.write(f"HTTP/1.1 {status}\r\n{kind}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
            await writer.drain()
            if is_answer and not self._answer.done():
                self._answer.set_result(query)


def new_provider(url: str, callback: str, oauth: OAuthOptions, scopes: list[str], browser: Browser) -> Any:
    """The SDK's provider for a new login: of a client of one's own (`oauth`, expanded), or of one that registers."""
    from mcp.client.auth import OAuthClientProvider  # noqa: PLC0415
    from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata  # noqa: PLC0415
    from pydantic import AnyUrl  # noqa: PLC0415

    client, document = None, oauth.client_id
    if oauth.client_id and not re.match(r"https://[^/]+/.", oauth.client_id):
        document = None
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
    # What was there before must not stand in a new login's way: there are no tokens to begin with.
    provider = OAuthClientProvider(url, metadata, Beginning(client), browser.go, browser.come_back, document)
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
            return _respelled(await fetch(asked, address.may_be_open, by=address.url), provider.context.auth_server_url)
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
    except (http.RequestError, OSError) as wrong:
        raise RemoteError(*connection_trouble(wrong, urllib.parse.urlsplit(address.url).netloc)) from None
    except (OAuthFlowError, ValueError) as wrong:  # of the SDK's checks, some are pydantic's
        todo = "try again; where nobody may register by himself, give a client_id in its table's oauth"
        raise RemoteError(f"cannot be logged in to: {plain(str(wrong))}", todo) from None
    return status


def _respelled(response: Any, wanted: str | None) -> Any:
    """An authorization server's metadata with its issuer as its resource spells it: the SDK compares letters."""
    from mcp.client.auth.utils import issuers_match  # noqa: PLC0415

    body = object_of(response.content)
    issuer = value_of(body.get("issuer"))
    if not isinstance(issuer, str) or not wanted or not issuers_match(issuer, wanted):
        return response
    content = encode({**body, "issuer": wanted})
    return load_http().http.Response(response.status_code, content=content, request=response.request)


async def says_how(address: Address) -> bool:
    """Whether a server that has let us in publishes how to log in: it may ask for that in a tool call only."""
    from mcp.client.auth.utils import build_protected_resource_metadata_discovery_urls as places  # noqa: PLC0415

    http = load_http().http
    for url in places(None, address.url):
        with contextlib.suppress(http.RequestError, OSError):
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
        context.token_expiry_time,
        context.get_resource_url() if context.should_include_resource_param(context.protocol_version) else None,
        tokens.scope,
        str(found.revocation_endpoint) if found and found.revocation_endpoint else None,
    )


async def log_in(name: str, options: ServerOptions, config: Config, say: Callable[[str], None]) -> Path | None:
    """The whole way to a login's file; None where the server asks for no login. Raises `StartError`, `RemoteError`."""
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
    with contextlib.closing(browser):
        own = msgspec.structs.replace(oauth, client_secret=secret)
        provider = new_provider(address.url, callback, own, options.scopes, browser)
        method = "GET" if options.transport == "sse" else "POST"
        status = await knock(address, provider, method, insists=False)
        if method == "POST" and status in (404, 405):  # an old server
            method, status = "GET", await knock(address, provider, "GET", insists=False)
        if not provider.context.current_tokens and status not in (401, 403) and await says_how(address):
            status = await knock(address, provider, method, insists=True)
    if login := login_of(address.url, provider.context, status):
        async with login_lock(address.login):
            write_login(address.login, login)
    return address.login if login else None


async def log_out(name: str, options: ServerOptions, config: Config) -> tuple[bool, str | None]:
    """Whether there was a login, which is now removed, and why it could not be revoked, if so. Raises `StartError`."""
    url = await expand(options.url or "", f"mcp_servers.{name}.url", config.environment, set())
    path = login_path(config.path, name, url)
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
                response = await fetch(request, options.allow_http, by=login.url)
                trouble = f"HTTP {response.status_code}" if response.status_code >= 300 else trouble
        except (http.RequestError, OSError, StartError) as wrong:
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
    "expired": ("no longer takes your login, which has expired or was revoked", "run `mcpmux login {name}`"),
    "credentials": (
        "refuses the credentials of its table (HTTP 401){said}",
        "correct bearer_token_env_var, http_headers or the variable",
    ),
    403: ("forbids this (HTTP 403){said}", "check what you may do there, or `mcpmux login {name}`"),
    "scope": (
        "asks for more than the login gives (HTTP 403)",
        "add scopes = [{scopes}] to its table and run `mcpmux login {name}`",
    ),
    **dict.fromkeys((404, 405), ("has no MCP at {shown} (HTTP {status})", "correct its url")),
    407: ("cannot be reached: the proxy asks for a login (HTTP 407)", "correct HTTPS_PROXY"),
    **dict.fromkeys((429, 503), ("is busy (HTTP {status}){said}", "try again {later}")),
}


class Web:
    """One address: requests with its headers and its login. Whatever goes wrong comes out as a `RemoteError`."""

    def __init__(self, address: Address, journal: Journal) -> None:
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
            todo = f"correct mcp_servers.{self._address.name}.url"
            raise StartError(f"its url cannot be used: {wrong}", todo) from None
        timeout = http.Timeout(None, connect=CONNECT_PATIENCE)
        limits = http.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=KEPT_IDLE)
        headers = {"User-Agent": f"mcpmux/{__version__}", "Accept-Encoding": "identity"} | self._address.headers
        self._client = new_client(self._address.url, timeout=timeout, limits=limits, headers=headers)
        return self._client

    @contextlib.asynccontextmanager
    async def ask(
        self, method: str, headers: Mapping[str, str | bytes], body: bytes | None = None, url: str | None = None
    ) -> AsyncGenerator[Any]:
        """The response, of whatever status, its body still to be read. A redirect is followed where it stays at the
        same place and keeps the message; a login that is not taken is renewed once."""
        kinds = {"Accept": EVENTS if method == "GET" else f"application/json, {EVENTS}"}
        kinds |= {} if body is None else {"Content-Type": "application/json"}
        place, headers = url or self._address.url, {**kinds, **headers}
        response = await self._follow(self._client.build_request(method, place, headers=headers, content=body))
        try:
            yield response
        finally:
            await self._close(response)

    async def _follow(self, request: Any) -> Any:
        followed, renewed = 0, False
        while True:
            if token := await self._keeper.token() if self._keeper else None:
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
            with self._anyio.move_on_after(READ_OUT), contextlib.suppress(*self._errors):  # read already, or broken
                async for _ in response.aiter_raw():
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
        if status == 401 and (self._address.has_credentials or (self._keeper and self._keeper.login)):
            kind = "credentials" if self._address.has_credentials else "expired"
        elif status == 403 and "insufficient_scope" in asked:
            kind = "scope"
        text = "" if b"<html" in said[:EDGE].lower() else plain(said.decode(errors="replace"))[:200]
        after = headers.get("retry-after", "")
        words = {
            "name": self._address.name,
            "shown": self._address.shown,
            "status": status,
            "kind": media_type(response),
            "said": f': "{text}"' if text else "",
            "to": plain(headers.get("location", "nowhere").partition("?")[0]),
            "scopes": ", ".join(f'"{one}"' for one in plain(scope[1]).split()) if scope else "…",
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
            return RemoteError(what, todo, is_end=True, taken=False, spares=True)
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
                if event.id is not self._id and len(event.id) <= EDGE and re.fullmatch(_IN_A_HEADER, event.id):
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


class Sent(Struct, eq=False):
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

    def of(self, exchange: Sent) -> dict[str, str]:
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
        self, run: int, post: Callable[[Event], None], limit: int, outbox: int, address: Address, journal: Journal
    ) -> None:
        self.name, self.run = address.name, run
        self.outbox: list[bytes] = []  # lines of this batch
        self._post, self._limit, self._most, self._journal = post, limit, outbox, journal
        self._transport = address.transport
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
        self._exchanges: dict[int | str, Sent] = {}
        self._unread: list[bytes] = []  # requests that it has certainly not taken
        self._numbers = itertools.count(1)  # of requests of this connection itself
        self._session, self._book, self._web = Session(), HeaderBook(), Web(address, journal)

    # ── what the mux does ──

    async def start(self) -> None:
        """Raises `StartError` if it cannot be spoken to at all. Whether it is there, the first line tells."""
        self._anyio = (await asyncio.to_thread(load_http)).anyio
        self._living = asyncio.get_running_loop().create_task(self._live(self._web.open()))
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
        (self._readable.set if wanted else self._readable.clear)()

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
        exchange = self._exchange(line)
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

    def _exchange(self, line: bytes) -> Sent:
        message, new = decode_line(line), self._anyio.Event
        method, key = message.method or "", key_of(message.id) if message.method else None
        is_early, scope = not self._session.has_served, self._anyio.CancelScope()
        exchange = Sent(line, method, object_of(message.params), key, is_early, scope, new(), new())
        if key is not None:
            self._exchanges[key] = exchange
        return exchange

    async def _ask(self, exchange: Sent) -> None:
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

    async def _carry(self, exchange: Sent) -> None:
        """Raises `RemoteError` unless it comes to an answer, where there is to be one on this way."""
        stream = Stream(self._limit)
        await self._deliver(exchange, stream)
        if exchange.lacks_headers and not exchange.answered.is_set():
            await self._learn_all(exchange)
            await self._deliver(exchange, stream)
        if exchange.key is not None and not self._place:
            await self._go_on(exchange, stream)

    async def _deliver(self, exchange: Sent, stream: Stream) -> None:
        if self._place and exchange.method == "server/discover":
            raise RemoteError("speaks SSE", "it knows the legacy era only")
        headers = self._book.of(exchange) if exchange.revision else self._session.headers
        async with self._web.ask("POST", headers, exchange.line.strip(), self._place) as response:
            if not 200 <= response.status_code < 300:
                await self._refused(exchange, response)
            elif exchange.key is not None and not self._place:
                self._taken(exchange)
                await self._read_answer(exchange, stream, response)

    async def _read_answer(self, exchange: Sent, stream: Stream, response: Any) -> None:
        if exchange.method == "initialize" and (session := response.headers.get(SESSION)):
            if not re.fullmatch(r"[!-~]+", session):
                raise RemoteError("gives out a session that no header can hold", "tell those who run it", is_end=True)
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

    async def _refused(self, exchange: Sent, response: Any) -> None:
        """Another status than 2xx. The protocol's own error counts more, if it came with one."""
        status, (wrong, said) = response.status_code, await self._web.status_trouble(response)
        message = object_of(tidy(said)[0])
        error = message.get("error")
        if error is not None and (status in (401, 403) or not error_is_valid(error)):
            error = None
        is_ours = error is not None and key_of(message.get("id", UNSET)) == exchange.key
        if status in (400, 404, 410) and not is_ours:  # with these servers say that they do not know a session
            await self._check_session(exchange)
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

    async def _go_on(self, exchange: Sent, stream: Stream) -> None:
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

    async def _learn_all(self, call: Sent) -> None:
        """A call lacked headers that its tool wants: its list is read, which nobody has done yet in this run."""
        meta = {key: raw for key, raw in object_of(call.params.get("_meta")).items() if key in ENVELOPE_KEYS}
        seen: set[bytes] = set()
        params: Fields | None = {"_meta": Raw(encode(meta))}
        while params is not None:
            answer = await self._ask_itself("tools/list", params)
            cursor = next_cursor(object_of(answer.get("result")), seen)
            params = None if cursor is None else params | {"cursor": Raw(cursor)}

    async def _ask_itself(self, method: str, params: Fields) -> Fields:
        """The answer to a request of this connection's own; nothing where there was none."""
        id = f"mcpmux-{next(self._numbers)}"
        exchange = self._exchange(encode({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
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

    async def _hear_more(self, stream: Stream, exchange: Sent | None) -> bool:
        """Goes on with a stream, or begins one, until it ends; whether there is one."""
        async with self._web.ask("GET", {**self._session.headers, **stream.headers}) as response:
            self._listening.set()
            if is_stream(response):
                await self._hear(response, stream, exchange)
            elif response.status_code >= 500 or response.status_code == 429:
                raise (await self._web.status_trouble(response))[0]
            return is_stream(response)

    async def _hear(self, response: Any, stream: Stream, exchange: Sent | None) -> None:
        """Until the stream ends; an exchange's has `READ_OUT` for that once it has its answer."""
        async with contextlib.aclosing(stream.events(response)) as events:
            async for kind, data in events:
                await self._readable.wait()
                if kind == "message" and data and not await self._take(data, exchange):
                    raise Unreadable(*_NO_MESSAGE)

    async def _take(self, data: bytes, exchange: Sent | None) -> bool:
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

    async def _answers(self, message: Envelope, exchange: Sent | None) -> Sent | None:
        """Which request this ends. An error without its id can only be about the one on whose way it comes."""
        key = key_of(message.id)
        if key in self._exchanges or exchange is None or exchange.answered.is_set() or message.error is UNSET:
            return None if key is None else self._exchanges.get(key)
        await self._check_session(exchange)
        return exchange

    async def _answered(self, exchange: Sent, line: bytes, message: Envelope, is_refusal: bool = False) -> None:
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

    def _taken(self, exchange: Sent) -> None:
        if not exchange.is_taken:
            exchange.is_taken = True
            self._weigh(0 if exchange.is_own else -len(exchange.line))

    def _finish(self, exchange: Sent, line: bytes) -> None:
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

    def _fail(self, wrong: RemoteError, exchange: Sent) -> None:
        """Ends the message, or the server, if by this it is gone."""
        if exchange.answered.is_set():
            return
        if self._is_end(wrong, exchange):
            if not wrong.taken and exchange.key is not None and not exchange.is_own:
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
            reply, id = failure("" if "task" in exchange.params else exchange.method, text), encode(exchange.key)
            if exchange.method == "server/discover":  # as a legacy server says it: it may still know `initialize`
                reply = Reply(None, error_body(RpcError(METHOD_NOT_FOUND, text)))
            line = result_line(id, reply.result) if reply.result else error_line(id, reply.error or b"")
            self._finish(exchange, line)

    def _is_end(self, wrong: RemoteError, exchange: Sent | None) -> bool:
        """A server that cannot be reached is gone, unless it is answering a call right now."""
        others = (one for one in self._exchanges.values() if one is not exchange and one.is_taken)
        return wrong.is_end and not (wrong.spares and any(one.method in CARRIERS for one in others))

    # ── sessions that are lost ──
    # No words tell: a new handshake does. What then comes again in the place of the answer to a first request is that
    # answer, and from then on the session itself is asked, by a ping, before it is given up. It is asked too before an
    # error counts that has our id, and may have been said of the session.

    async def _check_session(self, exchange: Sent) -> None:
        """Raises `RemoteError` if the server, which has just refused this, seems to have forgotten the session."""
        has_session = self._session.id or (self._place and self._session.revision)
        if has_session and exchange.key is not None and not exchange.is_own:
            self._session.refuses |= exchange.is_early
            if not exchange.is_early and not (self._session.refuses and await self._lives()):
                raise RemoteError(*_FORGOTTEN, is_end=True, taken=False)

    async def _lives(self) -> bool:
        answer: Fields = {}
        with self._anyio.move_on_after(IN_ORDER):
            answer = await self._ask_itself("ping", {})
        return "result" in answer or value_of(object_of(answer.get("error")).get("code")) == METHOD_NOT_FOUND


# ══ 20. Sampler ═══════════════════════════════════════════════════════════════════════════════════════════════════════
# The child process `mcpmux _sampler`: JSON-RPC lines round litellm, which takes seconds to load, 200 MB, and half a
# second of the loop at its first call. `prepare` says what would be sent, and to which models; what
# `sampling/createMessage` sends and answers is what that server gets. What is asked and answered is never logged, kept
# or quoted in an error. Nobody else imports litellm.

LEDGER_NAME: Final = "usage.jsonl"
NO_LITELLM: Final = ("litellm is not installed", f"start mcpmux as: uvx --from '{DISTRIBUTION}[sampling]' mcpmux")
NO_PRICE: Final = (
    "has no price that litellm knows, so usd_per_day cannot hold; set usd_per_request in [sampling.limits], or "
    "input_cost_per_token and output_cost_per_token in its params"
)
PRIORITIES: Final = {"cost": "costPriority", "speed": "speedPriority", "intelligence": "intelligencePriority"}
_STOP_REASONS: Final = {
    **dict.fromkeys(("stop", "end_turn", "eos", "eos_token", "complete", "completed", "finish"), "endTurn"),
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"), "maxTokens"),
    **dict.fromkeys(("tool_calls", "tool_use", "function_call"), "toolUse"),
    "stop_sequence": "stopSequence",
}
_AUDIO_FORMATS: Final = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav", "vnd.wave": "wav"}
# Of providers for whom litellm leaves something out without a word: what their models cannot take.
_OLLAMA: Final = ("ollama", "ollama_chat")
_DEAF: Final = (*_OLLAMA, "anthropic", "bedrock", "cohere", "cohere_chat", "deepseek")
_NOT_IN_PARAMS: Final = ("model", "messages", "num_retries", "max_retries")  # these are ours
_NOT_REDACTED: Final = ("data", "blob", "id", "toolUseId", "type", "role", "mimeType", "mode", "name")


class Kind(Enum):
    """What a failure means for what is done next."""

    PASSING = "may be over in a moment: it is asked again, then another one, and it rests"
    LASTING = "is not over soon: another one is asked, and it rests"
    REQUEST = "is about this request: another one may be able to"
    REFUSED = "is an answer to what was asked: nobody else is asked the same"


_UNWANTED: Final = ("ContentPolicyViolationError", "content_filter", "content_policy_violation")
# By the provider's own code (in small letters), the names of litellm's exception, or the status: the first says most.
_PROVIDER_ERRORS: Final[dict[str | int, tuple[str, Kind]]] = {
    "insufficient_quota": ("says that the account has no credit left", Kind.LASTING),
    "AuthenticationError": ("refused the key; correct its api_key", Kind.LASTING),
    **dict.fromkeys(("PermissionDeniedError", 403), ("does not allow this with this key", Kind.LASTING)),
    **dict.fromkeys(("PaymentRequiredError", 402), ("wants to be paid first", Kind.LASTING)),
    "ContextWindowExceededError": ("says that the request is longer than the model's context window", Kind.REQUEST),
    413: ("says that the request is too long", Kind.REQUEST),
    **dict.fromkeys(_UNWANTED, ("refused the request by its content filter", Kind.REFUSED)),
    "UnsupportedParamsError": ("does not take one of the parameters", Kind.REQUEST),
    "NotFoundError": ("knows no such model or address; correct its model or api_base", Kind.LASTING),
    "RateLimitError": ("says that its rate limit is reached", Kind.PASSING),
    **dict.fromkeys(("ServiceUnavailableError", "BadGatewayError", 529), ("is overloaded or down", Kind.PASSING)),
    "Timeout": ("did not answer in time", Kind.PASSING),
    "APIConnectionError": ("cannot be reached, or sent no answer that can be read", Kind.PASSING),
    "InternalServerError": ("failed, or sent no answer that can be read", Kind.PASSING),
    "BadRequestError": ("refused the request", Kind.REQUEST),
}


class NoAnswer(McpmuxError):
    """Of one model: in a line without content, what that means, and for how many seconds it wants to be left alone."""

    def __init__(self, text: str, kind: Kind, wait: float = 0.0) -> None:
        super().__init__(text)
        self.kind, self.wait = kind, wait


class SamplerSetup(Struct):
    """The sampler's first line. Keys travel here, since others can read a process's arguments."""

    sampling: SamplingOptions
    ledger: str


class Rated(NamedTuple):
    """A model with its scores, and where each comes from."""

    options: ModelOptions
    usd: tuple[float, float] | None  # per million tokens, in and out; None: nobody knows its price
    scores: dict[str, float]
    sources: dict[str, str]
    row: Mapping[str, Any] = {}  # what litellm knows of it
    is_local: bool = False
    number: int = 1  # of those that have the same name

    @property
    def name(self) -> str:
        return self.options.model

    @property
    def provider(self) -> str:
        return self.name.partition("/")[0]

    @property
    def label(self) -> str:
        """What people are shown of it: also where it is, if that is not the usual place, and which of several."""
        base = re.sub(r"(?<=//)[^/@]*@|[?#].*", "", self.options.api_base or "")
        return self.name + (f" ({base})" if base else "") + (f" #{self.number}" if self.number > 1 else "")

    @property
    def names(self) -> list[str]:
        names = (self.name, self.name.rpartition("/")[2], *self.options.hints)
        return [words for name in names if (words := _words(name))]

    def cost(self, tokens: int, arguments: Mapping[str, Any], usd_per_request: float | None) -> float | None:
        """USD for a request of so many tokens, at most; None: free, as far as is known. Raises `NoAnswer`."""
        if self.usd:
            most = arguments.get("max_completion_tokens") or arguments.get("max_tokens") or 0
            return (tokens * self.usd[0] + most * max(1, arguments.get("n") or 1) * self.usd[1]) / 1e6
        if usd_per_request is None and not self.is_local:
            raise NoAnswer(f"{self.name} {NO_PRICE}", Kind.REQUEST)
        return usd_per_request

    def unfit(self, params: Mapping[str, Any]) -> str | None:
        """Why it cannot take this request, if providers would leave that out without a word."""
        blocks = [block for message in params["messages"] for block in blocks_of(message)]
        kinds = {one["type"] for block in blocks for one in (block, *(block.get("content") or ()))}
        is_forced = (params.get("toolChoice") or {}).get("mode") == "required"
        is_blind = self.row.get("mode") == "chat" and not self.row.get("supports_vision")
        is_free = self.provider in _OLLAMA or self.row.get("supports_tool_choice") is False
        cannot = {
            "takes no audio": "audio" in kinds and self.provider in _DEAF,
            "takes no images": "image" in kinds and is_blind,
            "cannot be made to call a tool (toolChoice)": is_forced and is_free,
        }
        return next((why for why, is_so in cannot.items() if is_so), None)


def _words(name: str) -> str:
    """Each between spaces: a hint matches whole ones."""
    words = re.findall(r"[a-z]+|[0-9]+", name.lower())
    return f" {' '.join(words)} " if words else ""


def has_litellm() -> bool:
    import importlib.util  # noqa: PLC0415

    return importlib.util.find_spec("litellm") is not None


def load_litellm(models: Iterable[ModelOptions]) -> Any:
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
    loaded.modify_params = True  # else a thinking model's own words of a former round are missed
    free = {"litellm_provider": "ollama", "mode": "", "input_cost_per_token": 0, "output_cost_per_token": 0}
    for model in models:
        if model.model.startswith(_OLLAMA):  # else it asks /api/show, and the loop waits
            loaded.model_cost.setdefault(model.model, free)
    return loaded


def is_local(options: ModelOptions) -> bool:
    """On this machine, so that nobody is paid."""
    provider, base = options.model.partition("/")[0], options.api_base
    if base is None and provider in _OLLAMA:
        base = os.environ.get("OLLAMA_API_BASE") or "http://localhost"
    return is_here(base or "")


def config_trouble(options: ModelOptions, litellm: Any) -> str | None:
    """Why a model cannot work as it stands in the config, and what to write."""
    base = options.api_base
    if base is not None and not re.match(r"https?://[^/\s]", base):
        return f'has api_base = "{base}", which is no address; write "http://{base}" or "https://…"'
    try:
        litellm.get_llm_provider(options.model, api_base=base)
    except Exception:  # whatever it is, litellm would not know whom to ask
        provider = options.model.partition("/")[0]
        known = [str(getattr(one, "value", one)) for one in litellm.provider_list]
        near = difflib.get_close_matches(provider, known, 1)
        meant = f"did you mean {near[0]}/…?" if near else 'write model = "provider/model", as in ollama_chat/llama3.2'
        return f"names no provider that litellm knows; {meant}"
    keys = [key for key in litellm.validate_environment(options.model)["missing_keys"] if key.endswith("_API_KEY")]
    if not keys or options.api_key or is_local(options):
        return None
    return f'has no key; write api_key = "${{{keys[-1]}}}" beside it, and set {keys[-1]} where the host starts mcpmux'


def rate(options: ModelOptions, prices: Mapping[str, Any]) -> Rated:
    """Scores that the config does not give are guessed. By litellm's row in `prices`: cheap models are fast;
    clever ones are expensive, write long answers and think before. One on this machine is free and simple."""
    provider, _, name = options.model.partition("/")
    row = prices.get(options.model) or {}
    if not row and (other := prices.get(name)) and str(other.get("litellm_provider", "")).startswith(provider):
        row = other
    row = row | options.params
    usd, local = None, is_local(options)
    guesses = dict.fromkeys(PRIORITIES, (0.5, "unknown"))
    paid = row.get("input_cost_per_token"), row.get("output_cost_per_token") or 0
    if paid[0] is not None and (any(paid) or not local):
        usd = (float(paid[0]) * 1e6, float(paid[1]) * 1e6)
        guesses = _guess(row, usd)
    elif local:
        guesses = {"cost": (1.0, "local"), "speed": (0.5, "local"), "intelligence": (0.1, "local")}
    given = {key: (score, "config") for key in PRIORITIES if (score := getattr(options, key)) is not None}
    both = guesses | given
    scores = {key: score for key, (score, _) in both.items()}
    return Rated(options, usd, scores, {key: source for key, (_, source) in both.items()}, row, local)


def _guess(row: Mapping[str, Any], usd: tuple[float, float]) -> dict[str, tuple[float, str]]:
    # Free is 1, $10 about a half, $100 for a million tokens nothing; most tokens go in.
    cheap = max(0.0, round(1 - math.log10(1 + (3 * usd[0] + usd[1]) / 4) / 2, 2))
    clever, source = 1 - cheap, "price"
    if most := row.get("max_output_tokens"):
        length = min(1.0, math.log2(max(1.0, most / 1024)) / 8)
        clever = 0.4 * clever + 0.4 * length + 0.2 * bool(row.get("supports_reasoning"))
        source = "price, length, thinking"
    return {"cost": (cheap, "price"), "speed": (cheap, "price"), "intelligence": (round(clever, 2), source)}


def ranked_models(models: list[Rated], preferences: Mapping[str, Any]) -> tuple[list[Rated], str]:
    """The models in the order in which they are asked for a request's `modelPreferences`, and why the first is: hints
    in order, then the weighted priorities, then the order of the config.
    https://modelcontextprotocol.io/specification/2025-11-25/client/sampling"""
    meant, why = models, "the only model configured" if len(models) == 1 else "no hint names one"
    for hint in preferences.get("hints") or ():
        wanted = _words(str(hint.get("name") or ""))
        exact = [model for model in models if wanted in model.names]
        near = exact or [one for one in models if any(wanted in name or name in wanted for name in one.names)]
        if wanted and near:
            meant, why = near, f"the hint {hint['name']!r} names " + ("it" if len(near) == 1 else f"{len(near)}")
            break
    weights = {key: preferences.get(PRIORITIES[key]) or 0 for key in PRIORITIES}

    def score(model: Rated) -> float:
        return sum(weights[key] * model.scores[key] for key in weights)

    order = sorted(models, key=lambda model: (model not in meant, -score(model)))  # of equals the first
    best = order[0]
    if len(meant) > 1 and any(weights.values()):
        terms = " + ".join(f"{weights[key]:g} × {key} {best.scores[key]:g}" for key in weights if weights[key])
        why += f"; it scores most: {terms} = {score(best):.3g}"
    elif len(meant) > 1:
        why += "; no priority is given; it is the first"
    return order, why


def checked_params(raw: Raw | bytes) -> dict[str, Any]:
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


def _what_is_invalid(all_found: Iterable[Mapping[str, Any]]) -> str:
    """pydantic's findings, the first ones, without those on the kinds of content that were not meant: it tells of every
    kind that it tried, by a name in the path that no field has."""
    found = list(itertools.islice(all_found, FINDINGS_MOST))

    def is_kind(part: Any) -> bool:
        return isinstance(part, str) and (part[:1].isupper() or part.startswith("list["))

    tried = [one["loc"][:-1] for one in found if one["loc"][-1:] == ("type",) and one["type"] == "literal_error"]
    tried += [one["loc"] for one in found if one["loc"] and is_kind(one["loc"][-1])]
    not_meant = set(tried)
    meant = [one for one in found if not any(one["loc"][:end] in not_meant for end in range(len(one["loc"]) + 1))]
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
        parts, calls = list[dict[str, Any]](), list[dict[str, Any]]()
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
            sound = {"data": block["data"], "format": _AUDIO_FORMATS.get(kind, kind)}
            return {"type": "input_audio", "input_audio": sound}
        case _:
            return {"type": "text", "text": block["text"]}


def _tool_result(block: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """A tool's result as text, and its pictures and sounds: chat APIs take those from the user only."""
    texts, media = list[str](), list[dict[str, Any]]()
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


def redacted(params: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Without what looks like a secret in it, and how many there were. Pictures, sounds and names stay."""
    found = list[str]()

    def held(secret: str, name: str) -> str:
        return found.append(secret) or HIDDEN

    def within(value: Any, key: str) -> Any:
        match value:
            case str() if key not in _NOT_REDACTED:
                # An assignment has a line of its own; a long one is none.
                short = functools.partial(hide_secrets, name=key, held=held)
                long = functools.partial(re.sub, KEY_LIKE_TEXT, lambda found: held(found[0], ""))
                return "\n".join(short(line) if len(line) < 1000 else long(line) for line in value.split("\n"))
            case list():
                return [within(one, key) for one in value]
            case dict():
                return {one: within(inner, one) for one, inner in value.items()}
            case _:
                return value

    return {key: within(one, key) for key, one in params.items()}, len(found)


async def guarded(command: list[str], what: str, server: str, value: Any, seconds: float) -> Any:
    """What a person's own program makes of it: the same, something else, or a refusal (`RpcError`). It has JSON on
    stdin and two more arguments, and is killed when nobody waits for it any more."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await started(command[0], [*command[1:], what, server], stdin=pipe, stdout=pipe, stderr=pipe)
    except OSError as wrong:
        why = f"mcpmux: sampling.guard cannot be run: {command[0]}: {wrong.strerror}"
        raise RpcError(INTERNAL_ERROR, why) from None
    try:
        async with asyncio.timeout(min(seconds, GUARD_TIMEOUT)):
            out, err = await process.communicate(encode(value))
    except TimeoutError:
        text = f"mcpmux: sampling.guard did not answer within {min(seconds, GUARD_TIMEOUT):.2g} s"
        raise RpcError(INTERNAL_ERROR, text) from None
    finally:
        if process.returncode is None:
            process.kill()
            await reaped(process)
    if process.returncode:
        lines = err.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
        raise RpcError(-1, f"mcpmux: the guard refused this {what} of {server}: {in_a_line(lines[-1])}")
    value = value_of(out) if out.strip() else value
    if not isinstance(value, dict):
        raise RpcError(INTERNAL_ERROR, "mcpmux: sampling.guard printed something else than a JSON object")
    return value


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    about = tool.get("description") or tool.get("title") or tool["name"]
    return {"name": tool["name"], "description": about, "parameters": tool["inputSchema"]}


def chat_arguments(params: Mapping[str, Any], most: int) -> dict[str, Any]:
    """What `litellm.acompletion` is told of a request; `most` caps its tokens."""
    user = (params.get("metadata") or {}).get("user_id")
    arguments: dict[str, Any] = {
        "messages": chat_messages(params),
        "max_tokens": min(params["maxTokens"], most),
        "temperature": params.get("temperature"),
        "stop": params.get("stopSequences") or None,
        "metadata": {"user_id": user} if isinstance(user, str) else None,
    }
    if params.get("tools"):
        arguments["tools"] = [{"type": "function", "function": _function(tool)} for tool in params["tools"]]
        arguments["tool_choice"] = (params.get("toolChoice") or {}).get("mode", "auto")
    return {key: value for key, value in arguments.items() if value is not None}


def sampling_result(answer: Any, params: Mapping[str, Any], model: str, raw: Mapping[str, Any] = {}) -> dict[str, Any]:
    """litellm's answer as that to `sampling/createMessage`; `raw` is what the provider sent, where litellm's lacks
    something. Raises `RpcError` if the model's answer is of no use."""
    if not answer.choices:
        raise RpcError(INTERNAL_ERROR, f"mcpmux: {model} answered without a choice; ask again")
    choice, message = answer.choices[0], answer.choices[0].message
    spoken = getattr(getattr(message, "audio", None), "transcript", None)
    said = re.sub(r"\A\s*<think>.*?(?:</think>\s*|\Z)", "", message.content or "", flags=re.DOTALL)
    said = said or getattr(message, "refusal", None) or spoken or ""
    parts: list[dict[str, Any]] = [{"type": "text", "text": said}] if said else []
    for image in getattr(message, "images", None) or ():
        kind, _, data = image["image_url"]["url"].removeprefix("data:").partition(";base64,")
        if data:
            parts.append({"type": "image", "mimeType": kind, "data": data})
    calls = _calls_in(message, [tool["name"] for tool in params.get("tools") or ()], model)
    parts += calls
    if not parts and choice.finish_reason == "content_filter":
        raise RpcError(INTERNAL_ERROR, f"mcpmux: the answer of {model} was withheld by its provider's content filter")
    extra = getattr(choice, "provider_specific_fields", None) or {}
    word = str(extra.get("native_finish_reason") or choice.finish_reason)
    reason = _STOP_REASONS.get(word.lower(), word)
    stops = params.get("stopSequences") or ()
    stopped_by = value_of(raw.get("stop_sequence")) if value_of(raw.get("stop_reason")) == "stop_sequence" else None
    if extra.get("stop_reason") in stops or stopped_by in stops:  # some say which of them it was
        reason = "stopSequence"
    reason = "toolUse" if calls else reason
    parts = parts or [{"type": "text", "text": ""}]
    content = parts[0] if len(parts) == 1 and not params.get("tools") else parts
    return {"role": "assistant", "content": content, "model": str(answer.model or model), "stopReason": reason}


def _calls_in(message: Any, offered: list[str], model: str) -> list[dict[str, Any]]:
    """The tools that an answer wants called. Whatever the provider's own word for it is, it stopped for them."""
    found: list[dict[str, Any]] = []
    for number, call in enumerate(message.tool_calls or ()):
        name, given = call.function.name, value_of((call.function.arguments or "{}").encode(errors="replace"))
        if not isinstance(given, dict) or not isinstance(name, str):
            text = f"mcpmux: {model} called a tool without a name or with arguments that are no JSON object; ask again"
            raise RpcError(INTERNAL_ERROR, text)
        if name not in offered:
            raise RpcError(INTERNAL_ERROR, f"mcpmux: {model} called a tool that nobody offered; ask again")
        taken = call.id in (None, *(one["id"] for one in found))
        found.append({"type": "tool_use", "id": f"call_{number}" if taken else call.id, "name": name, "input": given})
    return found


def provider_trouble(wrong: Exception, secrets: Iterable[str], params: Any) -> tuple[str, Kind]:
    """What a provider's failure is, in a line without keys or content; and what that means."""
    status = getattr(wrong, "status_code", None)
    status = status if isinstance(status, int) else 0
    said, codes = _words_of_provider(wrong, status)
    signs = [*filter(str.islower, codes), *(kind.__name__ for kind in type(wrong).__mro__), status]
    otherwise = "failed", Kind.PASSING if status >= 500 else Kind.REQUEST
    text, kind = next((_PROVIDER_ERRORS[sign] for sign in signs if sign in _PROVIDER_ERRORS), otherwise)
    if was_not_reached(wrong):
        text, kind = "cannot be reached; see whether it runs there, and whether its address is right", Kind.LASTING
        said = ""
    elif said.startswith("Connection error"):
        text, said = "cannot be reached, or hung up", ""
    for secret in sorted(secrets, key=len, reverse=True):  # a short one may be part of a longer one
        said = said.replace(secret, "***")
    said = " ".join(said.split())[:TEXT_MOST]
    said = re.sub(r"\b[\w-]*\*{3,}[\w*-]*|\b(?:sk|pk|rk)-[\w-]{4,}", "***", said)  # also keys shown in part
    if said and not quotes(said, params):
        text += f': "{said}"'
    return text + (f" (HTTP {status})" if status and "cannot be reached" not in text else ""), kind


def was_not_reached(wrong: BaseException | None) -> bool:
    """Whether a connection could not even be made, as what it was caused by tells."""
    for _ in range(10):
        if wrong is None or re.search("ConnectError|ConnectorError", type(wrong).__name__):
            return wrong is not None
        wrong = wrong.__cause__ or wrong.__context__
    return False


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
    """Whether a provider's words repeat some of the request's: sixteen characters, or a whole short text."""
    no_words = r"\.modelPreferences\b|.*\.(type|role|mimeType|mode)$"
    leaves = [" ".join(text.split()) for text, at in texts_of(params, "") if not re.match(no_words, at)]
    pieces = {said[at : at + 16] for at in range(len(said) - 15)}
    return any((len(leaf) > 3 and leaf in said) or any(piece in leaf for piece in pieces) for leaf in leaves)


class Ledger:
    """What was spent, in one file for all mcpmux processes of the person. Before a model is asked, a line reserves what
    that may cost at most; when that is over, another one says what it did cost, and how it ended. What has no such line
    counts whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin()

    def _begin(self) -> None:
        self._read_to = 0
        self._open: dict[str, dict[str, Any]] = {}  # reservations
        self._days: collections.defaultdict[str, float] = collections.defaultdict(float)

    def lines(self) -> list[dict[str, Any]]:
        """A line a request, settled or not; what is no line of ours is passed over."""
        found: dict[Any, dict[str, Any]] = {}
        for number, line in enumerate(self._entries(self._whole_lines(0))):
            whole = {"usd": line["reserved"], "ended": "unknown"} if "reserved" in line else {}
            found[line.get("id", number)] = line | whole
        return list(found.values())

    def _whole_lines(self, start: int) -> bytes:
        data = b""
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            file.seek(start)
            data = file.read()
        return data[: data.rfind(b"\n") + 1]

    def _entries(self, data: bytes) -> list[dict[str, Any]]:
        found = [value_of(line) for line in data.splitlines()]
        return [one for one in found if isinstance(one, dict) and isinstance(one.get("time"), str)]

    def spent(self, day: str) -> float:
        """USD on that day (YYYY-MM-DD, UTC), with what is reserved, as far as prices are known."""
        size = 0
        with contextlib.suppress(OSError):
            size = self.path.stat().st_size
        if size < self._read_to:  # somebody emptied it
            self._begin()
        data = self._whole_lines(self._read_to)
        self._read_to += len(data)
        for line in self._entries(data):
            if "reserved" in line:
                self._open[str(line.get("id"))] = line
            else:
                self._open.pop(str(line.get("id")), None)
                self._days[str(line.get("day", line["time"]))[:10]] += amount(line, "usd")
        return self._days[day] + sum(amount(one, "reserved") for one in self._open.values() if one["time"][:10] == day)

    def check(self, limit: float, usd: float | None, now: float) -> None:
        """Raises `RpcError` if that is more than is left of the day's money."""
        spent = self.spent(day_of(now))
        if spent + (usd or 0) > limit or spent >= limit:
            left = 86400 - now % 86400
            when = f"free again at 00:00 UTC, in {left // 3600:.0f} h {left % 3600 // 60:.0f} min"
            most = f", and this may cost ${usd:.4g}" if usd else ""
            text = f"${spent:.4g} of ${limit:.4g} are spent or reserved today{most}; {when}"
            raise limit_reached("usd_per_day", text, round(left))

    def reserve(self, limit: float, usd: float | None, **entry: Any) -> dict[str, Any]:
        """What `settle` is to be given. Raises `RpcError`: no money is left, or nobody could remember that."""
        now = time.time()
        reservation = {"id": os.urandom(8).hex(), "day": day_of(now), **entry}
        try:
            with locked(self.path.with_suffix(".lock")):
                self.check(limit, usd, now)
                self._add({**reservation, "usd": 0, "reserved": usd}, now)
        except OSError as wrong:
            text = f"mcpmux: no model is asked, since the ledger of sampling cannot be written: {self.path}: "
            raise RpcError(INTERNAL_ERROR, f"{text}{wrong.strerror or wrong}") from None
        return reservation

    def settle(self, reservation: dict[str, Any], **entry: Any) -> None:
        """Raises `OSError`: the reservation then stands."""
        with locked(self.path.with_suffix(".lock")):
            self._add(reservation | entry, time.time())

    def _add(self, entry: dict[str, Any], now: float) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        line = json.dumps({"time": stamp, **entry}, ensure_ascii=False).encode() + b"\n"
        with open(self.path, "ab+", 0, opener=functools.partial(os.open, mode=0o600)) as file:
            # A disk that was full may have taken half a line: the next one must not be lost with it.
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            file.write(line if file.read() in (b"", b"\n") else b"\n" + line)


def amount(line: Mapping[str, Any], key: str) -> float:
    """A number in a line of the ledger; what cannot be one counts as nothing."""
    value = line.get(key)
    return value if isinstance(value, int | float) and 0 <= value < 1e15 else 0


def day_of(now: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(now))


class SamplerLoop:
    """The child's loop: a task for each request, which its cancelling ends, with its connection to the provider."""

    def __init__(self, writing: int) -> None:
        self._write = functools.partial(write_all, writing)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._rests: dict[str, float] = {}  # models that have failed, by label: until when others are asked before them
        self._told: set[str] = set()  # whose price nobody knows

    async def run(self, lines: asyncio.Queue[bytes]) -> None:
        """For ever: the process ends with its input. The first line is the setup."""
        began = time.monotonic()
        setup = msgspec.json.decode(await lines.get(), type=SamplerSetup)
        self.set_up(setup, load_litellm(setup.sampling.models))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)  # from here on a library's words may be about what is asked
        os.dup2(null, 1)
        self._log("debug", f"the sampler has loaded litellm in {time.monotonic() - began:.1f} s")
        self._write(notification_line(LOADED))
        while True:
            message = decode_line(await lines.get())
            params = fields_of(message.params)
            if message.method == "notifications/cancelled":
                if task := self._tasks.get(number_of_id(params["requestId"]) or 0):
                    task.cancel()
            elif message.id is not UNSET and (number := number_of_id(message.id)) is not None:
                step = self.prepare if message.method == PREPARE else self.answer
                task = asyncio.create_task(self.survive(number, text_in(params, "server"), step(params)))
                self._tasks[number] = task
                task.add_done_callback(lambda _, number=number: self._tasks.pop(number))

    def set_up(self, setup: SamplerSetup, litellm: Any) -> None:
        own = self._setup = setup.sampling
        self._litellm, self._ledger = litellm, Ledger(Path(setup.ledger))
        self._models: list[Rated] = []
        for one in (rate(model, litellm.model_cost) for model in own.models):
            self._models.append(one._replace(number=1 + sum(other.name == one.name for other in self._models)))
        self._wrong = {one.label: wrong for one in self._models if (wrong := config_trouble(one.options, litellm))}
        keys = [model.api_key or "" for model in own.models]
        keys += [value for model in own.models for key, value in model.params.items() if SECRET_NAME.search(key)]
        keys += [value for key, value in os.environ.items() if SECRET_NAME.search(key)]
        # A short one would hide half of every line.
        self._secrets = [key for key in keys if isinstance(key, str) and len(key) > 5]

    async def survive(self, number: int, server: str, step: Coroutine[Any, Any, dict[str, Any]]) -> None:
        """Whatever litellm or its provider does, costs this request only; it is told in a line without content."""
        id = b"%d" % number
        try:
            line = result_line(id, encode(await step))
        except RpcError as wrong:
            self._log("info", f"{server}: {wrong}")
            line = error_line(id, error_body(wrong))
        except Exception as bug:
            error = RpcError(INTERNAL_ERROR, f"mcpmux: a bug in its sampler, please report it: {type(bug).__name__}")
            self._log("error", f"{server}: {error} in {way_of(bug)}")
            line = error_line(id, error_body(error))
        self._write(line)

    def _log(self, level: str, text: str) -> None:
        self._write(notification_line("log", encode({"level": level, "text": text})))

    # ── what would be sent ──

    async def prepare(self, body: Fields) -> dict[str, Any]:
        """What would be sent, to whom, and what it may cost at most: the person may be shown that."""
        setup, limits, server = self._setup, self._setup.limits, text_in(body, "server")
        params, count = checked_params(body["params"]), 0
        kinds = [{block["type"] for block in blocks_of(message)} for message in reversed(params["messages"])]
        calling = itertools.takewhile(lambda one: one & {"tool_use", "tool_result"}, kinds)
        if (rounds := sum(1 for _ in calling) // 2) > limits.tool_rounds:
            raise limit_reached("tool_rounds", f"{server} has had tools called in {rounds} rounds in a row")
        if setup.redact:
            params, count = redacted(params)
        if setup.guard:
            seconds = value_of(body["seconds"])
            params = checked_params(encode(await guarded(setup.guard, "request", server, params, seconds)))
        ranked, _ = ranked_models(self._models, params.get("modelPreferences") or {})
        fit, unfit = list[Rated](), list[str]()
        costs, tokens = list[float | None](), await self._tokens(params)
        for model in ranked if setup.fallback else ranked[:1]:
            try:
                costs.append(self._cost(model, params, tokens))
                fit.append(model)
            except NoAnswer as wrong:
                unfit.append(str(wrong))
        if not fit:
            raise RpcError(INTERNAL_ERROR, f"mcpmux: {unfit[0]}")
        self._ledger.check(limits.usd_per_day, min(cost or 0 for cost in costs), time.time())
        usd = None if None in costs else max(cost or 0 for cost in costs)
        labels = [model.label for model in sorted(fit, key=self._is_resting)]
        for why in unfit:
            self._log("info", f"{server}: {why}; {fit[0].name} is asked")
        return {"params": params, "models": labels, "usd": usd, "redacted": count, "unfit": unfit}

    async def _tokens(self, params: dict[str, Any]) -> int:
        """Of the prompt, at most: one tokenizer for all models, since some would be fetched over the network."""
        found = list(texts_of(params, ""))
        media = sum(at.endswith((".data", ".blob")) for _, at in found)
        text = "\n".join(one for one, at in found if not at.endswith((".data", ".blob", ".type", ".role", ".mimeType")))
        tokens = len(text) // 2  # long ones take long
        if any(model.usd for model in self._models) and len(text) < MB:
            count = functools.partial(self._litellm.token_counter, model="", text=text)
            tokens = math.ceil(await asyncio.to_thread(count) * OTHER_TOKENIZERS)
        return tokens + media * MEDIA_TOKENS

    def _cost(self, model: Rated, params: dict[str, Any], tokens: int) -> float | None:
        """At most. Raises `NoAnswer` if it is of no use for this."""
        if wrong := self._wrong.get(model.label):
            raise NoAnswer(f"{model.name} {wrong}", Kind.LASTING)
        if why := model.unfit(params):
            raise NoAnswer(f"{model.name} {why}; configure a model that does", Kind.REQUEST)
        if params.get("tools") and "tools" not in (self._litellm.get_supported_openai_params(model.name) or ()):
            raise NoAnswer(f"{model.name} takes no tools; configure a model that does", Kind.REQUEST)
        return model.cost(tokens, self._arguments(model, params), self._setup.limits.usd_per_request)

    def _arguments(self, model: Rated, params: dict[str, Any]) -> dict[str, Any]:
        options = model.options
        more = {key: value for key, value in options.params.items() if key not in _NOT_IN_PARAMS}
        arguments = chat_arguments(params, self._setup.limits.max_tokens)
        if "max_completion_tokens" in more:
            del arguments["max_tokens"]
        if model.provider in _OLLAMA and arguments.get("tool_choice") == "none":
            del arguments["tools"]
        key = options.api_key or ("none" if model.is_local and model.provider not in _OLLAMA else None)
        return arguments | {"api_key": key, "api_base": options.api_base, "drop_params": True} | more

    async def troubles(self, *, asks: bool) -> list[str]:
        """What is wrong with the models, as far as can be seen; or by asking each for a token."""
        params = {"messages": [{"role": "user", "content": {"type": "text", "text": "Hello"}}], "maxTokens": 1}

        async def trouble(model: Rated) -> str:
            try:
                if asks:
                    entry = {"server": "mcpmux check", "allowed": "person"}
                    await self._ask(model, params, entry, self._setup.timeout_sec)
                else:
                    self._cost(model, params, 0)
            except (NoAnswer, RpcError) as wrong:
                return str(wrong).removeprefix("mcpmux: ")
            return ""

        return list(filter(None, await asyncio.gather(*map(trouble, self._models))))

    def _is_resting(self, model: Rated) -> bool:
        return self._rests.get(model.label, 0.0) > time.monotonic()

    # ── and is sent ──

    async def answer(self, body: Fields) -> dict[str, Any]:
        """What was prepared goes to the models that were named then, until one answers."""
        server, params, labels = text_in(body, "server"), value_of(body["params"]), value_of(body["models"])
        entry: dict[str, Any] = {"server": server, "allowed": value_of(body.get("allowed")) or "config"}
        if count := value_of(body.get("redacted")):
            entry["redacted"] = count
        end = time.monotonic() + value_of(body["seconds"])
        models = sorted((one for label in labels for one in self._models if one.label == label), key=self._is_resting)
        failures: list[str] = value_of(body.get("unfit")) or []
        refusal: RpcError | None = None
        for number, model in enumerate(models, 1):
            left = end - time.monotonic()
            if left < 0:
                break
            share = left / 2 if number < len(models) else left  # the rest is for those after it
            try:
                result = await self._ask(model, params, entry, share)
                if self._setup.guard:
                    result = await guarded(self._setup.guard, "reply", server, result, end - time.monotonic())
                return result
            except NoAnswer as wrong:
                failures.append(str(wrong))
                if wrong.kind in (Kind.PASSING, Kind.LASTING) and len(models) > 1:
                    self._rests[model.label] = time.monotonic() + MODEL_RESTS
                if wrong.kind is Kind.REFUSED:
                    break
            except RpcError as wrong:
                if wrong.code != INTERNAL_ERROR or not isinstance(wrong.data, dict):
                    raise
                refusal = wrong  # another one may be cheaper
            if number < len(models):
                self._log("warning", f"{server}: {refusal or failures[-1]}; {models[number].name} is asked")
        if refusal and not failures:
            raise refusal
        raise RpcError(INTERNAL_ERROR, f"mcpmux: {'; and '.join(failures)}"[: 4 * TEXT_MOST])

    async def _ask(self, model: Rated, params: dict[str, Any], entry: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Asks one, again if it is busy or failing. Raises `NoAnswer`, or `RpcError` for an answer of no use."""
        arguments, end = self._arguments(model, params), time.monotonic() + seconds
        cost = self._cost(model, params, await self._tokens(params))
        for wait in (None,) if self._is_resting(model) else (*RETRY_WAITS, None):
            try:
                return await self._attempt(model, params, arguments, cost, entry, end - time.monotonic())
            except NoAnswer as wrong:
                pause = max((wait or 0) * (1 + any_chance()) / 2, wrong.wait)
                is_late = wrong.wait > RETRY_AFTER_MOST or time.monotonic() + pause >= end
                if wait is None or wrong.kind is not Kind.PASSING or is_late:
                    raise
            await asyncio.sleep(pause)
        raise Bug("the last attempt has no wait")

    async def _attempt(self, model: Rated, params: Any, arguments: Any, cost: Any, entry: Any, seconds: float) -> Any:
        """Asks once. However that ends, it is in the ledger."""
        limits, began = self._setup.limits, time.monotonic()
        held = self._ledger.reserve(limits.usd_per_day, cost, model=model.name, **entry)
        paid: dict[str, Any] = {"usd": cost, "ended": "cancelled"}
        raw: dict[str, Any] = {}
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                response = await self._complete(model, arguments, raw)
            paid |= self._paid(response, model, cost) | {"ended": "answered"}
        except TimeoutError:
            paid["ended"] = "timed out"
            text = f"{model.name} did not answer within {seconds:.3g} s of sampling.timeout_sec"
            raise NoAnswer(text, Kind.LASTING) from None
        except Exception as wrong:  # litellm has no base class of its own; each becomes an error of this request
            paid["ended"] = type(wrong).__name__
            if was_not_reached(wrong) or 400 <= getattr(wrong, "status_code", 0) < 500:
                paid["usd"] = 0 if cost is not None else None  # nobody asks money for that
            text, kind = provider_trouble(wrong, self._secrets, params)
            asked, headers = 0.0, getattr(wrong, "litellm_response_headers", None) or {}
            with contextlib.suppress(ValueError):  # a date is taken for no wish
                asked = max(0.0, float(headers.get("retry-after", 0)))
            later = f"; it asks to wait {asked:g} s" if asked > RETRY_AFTER_MOST else ""
            raise NoAnswer(f"the provider of {model.name} {text}{later}", kind, asked) from None
        finally:
            self._settle(held, paid | {"ms": round((time.monotonic() - began) * 1000)}, model)
        return sampling_result(response, params, model.name, raw)

    async def _complete(self, model: Rated, arguments: dict[str, Any], raw: dict[str, Any]) -> Any:
        if model.provider == "anthropic":  # litellm drops which stop sequence it was
            arguments |= {"logger_fn": lambda one: raw.update(object_of(str(one.get("original_response")).encode()))}
        response = await self._litellm.acompletion(model=model.name, num_retries=0, max_retries=0, **arguments)
        if not arguments.get("stream"):
            return response
        return self._litellm.stream_chunk_builder([chunk async for chunk in response], messages=arguments["messages"])

    def _paid(self, response: Any, model: Rated, cost: float | None) -> dict[str, Any]:
        """What an answer has cost: as its provider says itself, as litellm knows, or by the price of its tokens."""
        usage = getattr(response, "usage", None)
        tokens = [getattr(usage, name, 0) or 0 for name in ("prompt_tokens", "completion_tokens")]
        usd = getattr(usage, "cost", None)
        if not isinstance(usd, int | float):  # litellm takes a price of 0 in the config for none
            given = [model.options.params.get(f"{way}_cost_per_token") for way in ("input", "output")]
            usd = None if 0 in given else response._hidden_params.get("response_cost")
        if not usd and model.usd:
            usd = sum(number * price for number, price in zip(tokens, model.usd, strict=True)) / 1e6
        return {"in": tokens[0], "out": tokens[1], "usd": usd if usd or model.usd else cost}

    def _settle(self, held: dict[str, Any], paid: dict[str, Any], model: Rated) -> None:
        try:
            self._ledger.settle(held, **paid)
        except OSError as wrong:
            self._log("warning", f"the ledger of sampling cannot be written; all that was reserved counts: {wrong}")
        if paid["ended"] != "answered":
            return
        price = "price unknown" if paid["usd"] is None else f"${paid['usd']:.2g}"
        tokens = f"{paid['in']} + {paid['out']} tokens"
        self._log("debug", f"{held['server']}: sampled with {model.name}: {tokens}, {price}, {paid['ms']} ms")
        if paid["usd"] is None and model.label not in self._told:
            self._told.add(model.label)
            self._log("info", f"litellm knows no price of {model.name}: usd_per_day does not limit it")


def any_chance() -> float:
    return int.from_bytes(os.urandom(4)) / 2**32


def child_main(serve: Callable[[asyncio.Queue[bytes], int], Coroutine[Any, Any, None]]) -> int:
    """`mcpmux _sampler` and the like; ends with its input. `serve` gets the lines that come, and where its own go."""
    reading, writing = take_over_stdio()

    async def run() -> None:
        lines: asyncio.Queue[bytes] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def read() -> None:
            for line in os.fdopen(reading, "rb", MB):
                loop.call_soon_threadsafe(lines.put_nowait, line)
            os._exit(0)  # at once, also while litellm loads: nobody is left who would hear of anything

        threading.Thread(target=read, name="input", daemon=True).start()
        await serve(lines, writing)

    asyncio.run(run())
    return 0


async def sampler_setup(config: Config, secrets: set[str]) -> bytes:
    """The sampler's first line, with keys filled in. Raises `StartError` that names the key."""
    assert config.sampling
    if not has_litellm():
        raise StartError(*NO_LITELLM)
    models: list[ModelOptions] = []
    for number, model in enumerate(config.sampling.models):
        where = "sampling" if config.sampling.model else f"sampling.models[{number}]"
        key = model.api_key and await expand(model.api_key, f"{where}.api_key", config.environment, secrets)
        base = model.api_base and await expand(model.api_base, f"{where}.api_base", config.environment, secrets)
        secrets.add(key or "")
        models.append(msgspec.structs.replace(model, api_key=key, api_base=base))
    guard = config.sampling.guard
    if guard:
        program, *args = beside_config([os.path.expanduser(guard[0]), *guard[1:]], config.path.parent)
        guard = [find_program(program, extended_path(config.environment)) or program, *args]
    full = msgspec.structs.replace(config.sampling, models=models, guard=guard)
    return encode(SamplerSetup(full, str(state_folder() / LEDGER_NAME))) + b"\n"


# ══ 21. Page ══════════════════════════════════════════════════════════════════════════════════════════════════════════
# Asks the person where the host cannot: a child process (`mcpmux _page`) that shows a page on loopback. What the core
# tells it are lines like the sampler's; it knows nothing of servers, nor of who waits for an answer.
#
#     {"id": 7, "method": "ask", "params": {asker, call, mode, message, waits, opens, …}}
#     {"id": 8, "method": "open", "params": {}}                                    the person wants to see the page
#     {"method": "notifications/cancelled", "params": {"requestId": 7, "reason": …}}   it is no longer asked
#
# `asker` is a server's name in the config, or `mcpmux`; `call` the host's call in which it asks, or empty; `waits` how
# many seconds it does; and for what has `opens` the browser may be opened. By `mode` there stands besides:
#
#     form        requestedSchema. A question of mcpmux's own has `shown`, a list of {title, text}, and choices under
#                 `decision`, each of which becomes a button
#     url         url
#     sampling    of mcpmux's own, with choices like that, and `sampling`: {server, params, models, usd, reply?}. These
#                 are what would be sent (sampling/createMessage), the names of the models in their order, what it costs
#                 at most (null: nobody knows), and what a model has answered, before its server gets that
#
# The answer is an elicitation's result, {action, content}. That of a choice is {"decision": …} in content, and where
# texts of `sampling` were edited {"decision": …, "params": …}. With `cancel` a `reason` may say why nobody decided.
#
# Who may answer is who has the token of an open tab. A key stands in the fragment of the address that the browser is
# given, becomes a token once, and a second use of it ends all. There are no cookies, since they are shared by ports.
# The tab is shown texts and buttons, and sends back which button it was, and what was typed: names, values and schemas
# stay here. What is asked is in no file and no log.

KEY_LIVES: Final = 60.0  # seconds in which a browser has to come with it
TAB_PATIENCE: Final = 60.0  # what is asked while no tab is open is cancelled after this
OPEN_AGAIN: Final = 60.0  # between two browsers
IGNORED_MOST: Final = 3  # questions in a row to nobody; then no browser is opened until the person opens the page
RELOAD_PATIENCE: Final = 5.0  # a tab that is loaded again comes back with its token within this
BEAT: Final = 5.0  # a tab that hears nothing for so long, four times, is no longer connected
DEAD_TIME: Final = 0.5  # buttons do nothing for so long after the page has moved
CARDS_MOST: Final = 30  # questions that a tab shows; the next ones follow
FIELDS_MOST: Final = 100  # of a form
POST_MOST: Final = 4 * MB

_WALLS: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
_HIDDEN_FIELD: Final = (
    r"(?i)pass(word|phrase|code|wd)|secret|token|(api|private|access).?key|credential|\b(pin|otp|cvv|cvc|ssn)\b"
    r"|card.?number"
)
_FORMATS: Final = {
    "email": r"[^@\s]+@[^@\s]+",
    "uri": r"[A-Za-z][A-Za-z0-9+.-]*:\S+",
    "date": r"\d{4}-(0\d|1[0-2])-[0-3]\d",
    "date-time": r"\d{4}-(0\d|1[0-2])-[0-3]\dT[0-2]\d:[0-5]\d:[0-6]\d(\.\d+)?(Z|[+-]\d\d:\d\d)",
}
_INPUTS: Final = {"email": "email", "uri": "url", "date": "date", "date-time": "datetime-local"}
_YES_NO: Final = {"y": True, "yes": True, "true": True, "n": False, "no": False, "false": False}
_NOT_OPENED: Final = "mcpmux does not open this address: it is none of a page, or it is made to deceive."
_PICTURES: Final = ("image/png", "image/jpeg", "image/gif", "image/webp")
_SHOWN_OF_PARAMS: Final = ("systemPrompt", "messages", "tools", "maxTokens")  # in parts of their own
# What a field of a form may say of itself (2025-11-25, client/elicitation), by the kinds of its values.
_FIELD_KEYS: Final[dict[str, Any]] = {
    **dict.fromkeys(("type", "title", "description", "format"), str),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), int),
    **dict.fromkeys(("enum", "enumNames", "oneOf", "anyOf"), list),
    **dict.fromkeys(("minimum", "maximum"), (int, float)),
    "default": (str, int, float, list),
    "items": dict,
}
_CHOICES: Final = {"oneOf": dict, "anyOf": dict, "enum": (str, int, float), "enumNames": str}  # by what is in each list


# ── forms ──


def field_of(raw: Any) -> dict[str, Any]:
    """A field of a form without what it may not have: a server may write anything there."""
    had = raw if isinstance(raw, dict) else {}
    field = {key: had[key] for key, kind in _FIELD_KEYS.items() if isinstance(had.get(key), kind)}
    for key, kind in _CHOICES.items():
        field[key] = [one for one in field.get(key, ()) if isinstance(one, kind)]
    return field | ({"items": field_of(field["items"])} if "items" in field else {})


def fields_of_form(schema: Any) -> dict[str, dict[str, Any]]:
    """By name. What is `required` is so in a key of that name."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    required = schema.get("required") if isinstance(schema, dict) else None
    needed = {name for name in required if isinstance(name, str)} if isinstance(required, list) else ()
    fields = properties if isinstance(properties, dict) else {}
    return {name: field_of(field) | {"required": name in needed} for name, field in fields.items()}


def choices_of(field: dict[str, Any]) -> list[tuple[Any, Any]]:
    """What a field of a form lets one choose from, and how each is shown."""
    if field.get("type") == "array":
        field = field.get("items", {})
    if titled := field.get("oneOf") or field.get("anyOf"):
        return [(str(one.get("const")), one.get("title", one.get("const"))) for one in titled]
    values, names = field.get("enum", []), field.get("enumNames", [])
    return list(zip(values, names if len(names) == len(values) else values, strict=True))


def typed(text: str, field: dict[str, Any]) -> Any:
    """What a person has typed as the value that a field takes. Raises `ValueError` that says what is expected."""
    choices, kind = choices_of(field), field.get("type")
    if kind == "array":
        return several((_chosen(word.strip(), choices) for word in text.split(",") if word.strip()), field)
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
        if not abs(number) <= sys.float_info.max:  # also one of 400 digits
            raise ValueError("a number is expected")
        _within(number, field, "minimum", "maximum", "a number is expected")
        return number
    _within(len(text), field, "minLength", "maxLength", "so many characters are expected")
    pattern = _FORMATS.get(field.get("format", ""))
    if pattern and not re.fullmatch(pattern, text):
        raise ValueError(f"not of the form that is expected: {field['format']}")
    return text


def several(values: Iterable[Any], field: dict[str, Any]) -> list[Any]:
    """Each once. Raises `ValueError` if they are too many or too few."""
    picked = list(dict.fromkeys(values))
    _within(len(picked), field, "minItems", "maxItems", "so many are expected")
    return picked


def _chosen(text: str, choices: list[tuple[Any, Any]]) -> Any:
    for value, shown in choices:
        if text.lower() in (str(value).lower(), str(shown).lower()):
            return value
    if text.isdecimal() and 0 < int(text) <= len(choices):
        return choices[int(text) - 1][0]
    raise ValueError(f"{text!r} is none of them{did_you_mean(text, [str(shown) for _, shown in choices])}")


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message about a name that is not known."""
    hint = f"did you mean {near}?" if (near := nearest(name, known)) else otherwise
    return hint and f"; {hint}"


def _within(number: float, field: dict[str, Any], least: str, most: str, what: str) -> None:
    if not field.get(least, number) <= number <= field.get(most, number):
        raise ValueError(f"{what}: {', '.join(_bounds(field, least, most))}")


def _bounds(field: dict[str, Any], least: str, most: str) -> list[str]:
    return [f"at {word} {field[key]}" for word, key in (("least", least), ("most", most)) if key in field]


def given(value: Any, field: dict[str, Any]) -> Any:
    """What the page has sent for a field, as its value; None: it is left out. Raises `ValueError`."""
    choices = _shown_choices(field)
    if field.get("type") == "array":
        picked = value if isinstance(value, list) else []
        if not picked and not field["required"]:
            return None
        return several((_numbered(one, choices) for one in picked), field)
    if value is None or value == "":
        if field["required"]:
            raise ValueError("an answer is needed")
        return None
    return _numbered(value, choices) if choices else typed(str(value), field)


def _numbered(value: Any, choices: list[tuple[Any, Any]]) -> Any:
    if not isinstance(value, int) or not 0 <= value < len(choices):
        raise ValueError("one of them is expected")
    return choices[value][0]


def _shown_choices(field: dict[str, Any]) -> list[tuple[Any, Any]]:
    return [(True, "yes"), (False, "no")] if field.get("type") == "boolean" else choices_of(field)


def _field_view(name: str, field: dict[str, Any]) -> dict[str, Any]:
    """As the tab is told of it."""
    choices, default, kind = _shown_choices(field), field.get("default"), field.get("type")
    view: dict[str, Any] = {"label": harmless(field.get("title") or name), "needed": field["required"]}
    view["hint"] = harmless(field.get("description", ""))
    if choices or kind == "array":
        presets = default if isinstance(default, list) else [default]
        preset = {one for one in presets if isinstance(one, str | int | float)}
        view |= {"many": kind == "array", "choices": [harmless(str(shown)) for _, shown in choices]}
        view["about"] = _about(field, "minItems", "maxItems", "to choose:") if kind == "array" else ""
        view["preset"] = [at for at, (value, _) in enumerate(choices) if value in preset]
        return view
    limits: dict[str, Any] = {"minlength": field.get("minLength"), "maxlength": field.get("maxLength")}
    limits |= {"step": 1} if field.get("format") == "date-time" else {}
    about = _about(field, "minLength", "maxLength", "characters:")
    if kind in ("integer", "number"):
        limits = {"min": field.get("minimum"), "max": field.get("maximum"), "step": 1 if kind == "integer" else "any"}
        about = _about(field, "minimum", "maximum", "an integer:" if kind == "integer" else "a number:")
    is_long = limits.get("maxlength", 0) is None and not field.get("format") and "\n" in str(default)
    usual = _INPUTS.get(field.get("format", ""), "area" if is_long or (limits.get("maxlength") or 0) > 300 else "text")
    view["input"] = {"input": "number" if "min" in limits else usual} | limits
    return view | {"about": about} | ({} if default is None else {"preset": harmless(str(default))})


def _about(field: dict[str, Any], least: str, most: str, what: str) -> str:
    bounds = _bounds(field, least, most)
    return f"{what} {' and '.join(bounds)}" if bounds else what.rstrip(":") if what.startswith("an ") else ""


# ── what a question looks like ──


class Button(Struct, frozen=True):
    label: str
    action: str
    decision: str = ""  # of a choice


class Shown(Struct, eq=False):
    """An open question: what the tab is told of it, and what its answer is made from."""

    id: int
    view: dict[str, Any]
    buttons: list[Button]
    fields: dict[str, dict[str, Any]]
    slots: list[tuple[dict[str, Any], str]]  # texts that the person may edit, and where they stand in
    params: Any  # of a sampling request, with those in it
    opens: bool
    is_patient: bool  # it waits as long without a tab
    asked: float
    until: float
    alone: float  # since then it has no tab, if there is none
    hash: str

    @property
    def name(self) -> str:
        """For the log and the list of what was decided."""
        return f"{self.view['title']} “{textwrap.shorten(in_a_line(self.view['message'][:200]), 80, placeholder='…')}”"


def shown_of(id: int, about: dict[str, Any], now: float) -> Shown:
    """Raises `ValueError` for what cannot be shown."""
    mode, asker, call = about.get("mode"), str(about.get("asker")), str(about.get("call") or "")
    is_ours = "shown" in about or mode == "sampling"
    buttons = [Button("Send", "accept"), Button("Decline", "decline"), Button("Cancel", "cancel")]
    fields, notes = fields_of_form(about.get("requestedSchema")), list[str]()
    parts = [{"label": harmless(one["title"]), "text": harmless(one["text"])} for one in about.get("shown", ())]
    view: dict[str, Any] = {"id": id, "call": in_a_line(call), "message": harmless(str(about.get("message", "")))}
    view["title"] = "mcpmux asks you" if is_ours else f"{in_a_line(asker)} asks you"
    slots, params = list[tuple[dict[str, Any], str]](), None
    if is_ours:
        buttons = [Button(str(label), "accept", str(key)) for key, label in choices_of(fields.pop("decision", {}))]
        fields = {}
    if mode == "sampling":
        params = about["sampling"]["params"]
        parts += _sampling_parts(about["sampling"], slots)
    elif mode == "url":
        fields, view["address"], trouble = {}, *address_of(str(about.get("url")))
        buttons[0] = Button(f"Open {view['address']['host']}", "accept")
        notes += trouble
        if not view["address"]["host"]:
            del buttons[0]
    elif mode != "form":
        raise ValueError(f"it has a mode that mcpmux does not know: {str(mode)[:100]}")
    if len(fields) > FIELDS_MOST:
        raise ValueError(f"its form has {len(fields)} fields, more than {FIELDS_MOST}")
    if any(re.search(_HIDDEN_FIELD, f"{name} {field.get('title', '')}") for name, field in fields.items()):
        notes.append("This looks like a secret. Servers must not ask for secrets in a form.")
        view["secret"] = f"I know, and want {in_a_line(asker)} to have it."
    view |= {"fields": [_field_view(name, field) for name, field in fields.items()], "notes": notes, "parts": parts}
    labels = [harmless(one.label[:1].upper() + one.label[1:]) for one in buttons]
    view["buttons"] = [
        {"label": label, "accepts": one.action == "accept", "main": one.action == "accept" and not is_ours}
        for label, one in zip(labels, buttons, strict=True)
    ]
    opens, until = bool(about.get("opens")), now + float(about.get("waits") or TAB_PATIENCE)
    hash = hashlib.sha256(encode(view)).hexdigest()
    return Shown(id, view, buttons, fields, slots, params, opens, is_ours and not opens, now, until, now, hash)


def address_of(url: str) -> tuple[dict[str, str], list[str]]:
    """An address with its host set apart, empty if it is not to be opened; and what there is to say of it."""
    refused = {"before": harmless(url), "host": "", "after": "", "url": ""}
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError:  # also of an alphabet that no host may have
        return refused, [_NOT_OPENED]
    # Browsers read a backslash as a slash, and drop tabs and line ends: nothing of that is left to them.
    is_plain = re.fullmatch(r"[A-Za-z0-9\u00a1-\U0010ffff._~:/?#\[\]@!$&'()*+,;=%-]+", url) and harmless(url) == url
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or not is_plain:
        return refused, [_NOT_OPENED]
    notes = ["It is not encrypted: others on the way can read and change it (http)."] if parts.scheme == "http" else []
    if "xn--" in host:
        notes.append("The name of its host has letters of other alphabets: it may only look like one that you know.")
    host = f"[{host}]" if ":" in host else host
    if not parts.netloc.startswith(host):
        url = parts._replace(netloc=host + (f":{port}" if port else "")).geturl()
    before = f"{parts.scheme}://"
    return {"before": before, "host": host, "after": url[len(before + host) :], "url": url}, notes


def _as_json(value: Any) -> str:
    return harmless(msgspec.json.format(encode(value)).decode())


def _sampling_parts(about: dict[str, Any], slots: list[tuple[dict[str, Any], str]]) -> list[dict[str, Any]]:
    """What would be sent to a model: every text with its number in `slots`, where it may still be edited."""
    params, usd, reply = about["params"], about.get("usd"), about.get("reply")

    def text(label: str, holder: dict[str, Any], key: str) -> dict[str, Any]:
        if reply is not None:
            return {"label": label, "text": harmless(str(holder[key]))}
        slots.append((holder, key))
        return {"label": label, "text": harmless(str(holder[key])), "slot": len(slots) - 1}

    def block(label: str, one: dict[str, Any]) -> Iterator[dict[str, Any]]:
        match one:
            case {"type": "text", "text": str()}:
                yield text(label, one, "text")
            case {"type": "image", "mimeType": str(kind), "data": str(data)} if kind in _PICTURES:
                yield {"label": f"{label}: picture", "image": f"data:{kind};base64,{data}"}
            case {"type": "tool_result", "content": list(content)}:
                yield {"label": label, "text": f"The result of {in_a_line(str(one.get('toolUseId')))}:"}
                for inner in content:
                    yield from block(f"{label}: result", inner)
            case {"data": str(data)}:
                yield {"label": label, "text": f"{one.get('type')}, {one.get('mimeType')}, {len(data) * 3 // 4} bytes"}
            case _:
                yield {"label": label, "text": _as_json(one)}

    cost = "nobody knows its price" if usd is None else f"at most ${usd:.2g}"
    about_it = f"{', '.join(map(str, about['models']))}; {params.get('maxTokens')} tokens at most; {cost}"
    parts: list[dict[str, Any]] = [{"label": "Server", "text": in_a_line(str(about["server"]))}]
    parts.append({"label": "Model, size and price", "text": harmless(about_it)})
    if isinstance(params.get("systemPrompt"), str):
        parts.append(text("System prompt", params, "systemPrompt"))
    for message in params.get("messages", ()):
        for one in blocks_of(message):
            parts += block(str(message.get("role", "")).capitalize(), one)
    for tool in params.get("tools") or ():
        parts.append({"label": f"Tool: {in_a_line(str(tool.get('name')))}", "text": _as_json(tool)})
    if rest := {key: value for key, value in params.items() if key not in _SHOWN_OF_PARAMS}:
        parts.append({"label": "Other settings", "text": _as_json(rest)})
    for one in blocks_of(reply) if reply is not None else ():
        parts += block("The model's answer", one)
    return parts


# ── the browser ──


class Opener(Struct, frozen=True):
    command: list[str]  # it opens the person's browser when it is given the address
    env: dict[str, str] = {}  # with these variables
    by_file: bool = True  # else it cannot read our files, and the address stands among its arguments


_FAR: Final = {"SSH_CONNECTION": "over SSH", "SSH_TTY": "over SSH", "container": "in a container"}
_OF_TERMINALS: Final = ("lynx", "w3m", "links", "links2", "elinks", "www-browser", "browsh")
_BROWSERS: Final = ("xdg-open", "x-www-browser", "firefox", "google-chrome", "chromium", "microsoft-edge")
# Where the browsers are listed that live in a box of their own.
_BOXES: Final = ("/var/lib/snapd/desktop/applications", "/var/lib/flatpak/exports/share/applications")


def opener_for(platform: str, environment: Mapping[str, str], root: Path = Path("/")) -> Opener | str:
    """How a browser can be opened here, or why it cannot. `BROWSER` counts more than anything."""
    far = next((where for name, where in _FAR.items() if environment.get(name)), None)
    if not far and platform == "linux" and any((root / one).exists() for one in (".dockerenv", "run/.containerenv")):
        far = _FAR["container"]
    display = _display(environment, root) if platform == "linux" else {}
    for words in environment.get("BROWSER", "").split(os.pathsep):
        try:
            command = shlex.split(words, posix=platform != "win32")
        except ValueError:  # a quotation mark without its other
            command = words.split()
        if command and PurePath(command[0]).name not in _OF_TERMINALS:
            return Opener(command, display or {}, by_file=not far)
    if far:
        return f"mcpmux runs {far}, where no browser of yours is (the variable BROWSER may name one)"
    if platform in ("win32", "darwin"):
        return Opener(["explorer" if platform == "win32" else "open"])  # neither is the browser's parent
    search = extended_path(environment)
    if "WSL_DISTRO_NAME" in environment and (viewer := find_program("wslview", search)):
        return Opener([viewer], by_file=False)
    if display is None:
        return "there is no display"
    found = next((path for name in _BROWSERS if (path := find_program(name, search))), None)
    return Opener([found], display) if found else "no browser was found (the variable BROWSER may name one)"


def _display(environment: Mapping[str, str], root: Path) -> dict[str, str] | None:
    """The variables that a browser needs and that hosts may keep from us; None: there is no display."""
    if environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"):
        return {}
    if sys.platform == "win32":
        return None
    run, x11 = root / f"run/user/{os.getuid()}", root / "tmp/.X11-unix"
    found = {one.name: "WAYLAND_DISPLAY" for one in run.glob("wayland-*") if one.suffix != ".lock"}
    found |= {f":{one.name[1:]}": "DISPLAY" for one in x11.glob("X*")}
    return {name: value for value, name in found.items()} | {"XDG_RUNTIME_DIR": str(run)} if found else None


def go_to(opener: Opener, address: str) -> None:
    """Opens the browser. Blocks for some seconds. Raises `OSError` with words for the person."""
    words = [word.replace("%s", address) for word in opener.command]
    program, *args = words if words != opener.command else [*words, address]
    command = as_started(find_program(program, extended_path(os.environ)) or program, args)
    env = os.environ | opener.env | {OF_PERSON: "1"}
    null = subprocess.DEVNULL
    with contextlib.suppress(subprocess.TimeoutExpired):  # some browsers stay until they are closed
        process = subprocess.Popen(**command, env=env, stdin=null, stdout=null, stderr=null, **OWN_GROUP)
        code = process.wait(BROWSER_START)
        if code and sys.platform != "win32":  # `explorer` says 1 whatever happens
            raise OSError(f"{opener.command[0]} exited with code {code}")


def _is_boxed() -> bool:
    """Linux: whether the usual browser is a snap or a flatpak, which cannot read most files."""
    try:
        command = find_program("xdg-settings") or "", "get", "default-web-browser"
        told = subprocess.check_output(command, stdin=subprocess.DEVNULL, timeout=BROWSER_START)
    except (OSError, subprocess.SubprocessError):
        return False
    name = os.fsdecode(told).strip()
    home = os.path.expanduser("~/.local/share/flatpak/exports/share/applications")
    return bool(name) and any(os.path.exists(os.path.join(folder, name)) for folder in (*_BOXES, home))


# ── the child ──


class PageSetup(Struct):
    host: str
    opener: Opener


class Key(Struct):
    until: float  # of an opening, from the browser's start
    file: str | None = None  # where the browser finds it
    token: str | None = None  # what it has become


class Tab(Struct, eq=False):
    """Who has this token sees what is asked, and answers."""

    left: float  # when it was last connected, while it is not
    news: asyncio.Queue[dict[str, Any]] | None = None  # while it is
    cards: set[int] = set()  # the questions that it shows


class Page:
    """What is asked, and the tabs that show it: an ASGI application with three ways in besides the page itself."""

    def __init__(self, setup: PageSetup, write: Callable[[bytes], None], now: Callable[[], float]) -> None:
        self.setup, self.host = setup, ""  # its own address, as `Host` has to say
        self._write, self._now = write, now
        self._asked: dict[int, Shown] = {}
        self._tabs: dict[str, Tab] = {}  # by token
        self._keys: dict[str, Key] = {}
        self._lately: collections.deque[str] = collections.deque(maxlen=20)
        self._opened_at = -OPEN_AGAIN
        self._ignored = 0  # questions in a row that nobody came for
        self._opening: set[asyncio.Task[None]] = set()

    def _log(self, level: str, text: str) -> None:
        self._write(notification_line("log", encode({"level": level, "text": text})))

    # ── what mcpmux says ──

    def take(self, message: Envelope) -> None:
        params = object_of(message.params)
        number = None if message.id is UNSET else number_of_id(message.id)
        if message.method == CANCELLED:
            if shown := self._asked.pop(number_of_id(params["requestId"]) or 0, None):
                self._ignored += not self._tabs and shown.opens
                self._over(shown, f"no longer asked: {in_a_line(str(value_of(params.get('reason'), '')))[:TEXT_MOST]}")
        elif number is not None and message.method == "ask":
            self._ask(number, {key: value_of(raw) for key, raw in params.items()})
        elif number is not None and message.method == "open":
            self._ignored = 0
            self._open_browser(number)

    def _ask(self, number: int, about: dict[str, Any]) -> None:
        now = self._now()
        try:
            shown = shown_of(number, about, now)
        except Exception as wrong:  # whatever a server has put there: it costs its question
            said = f": {wrong}" if isinstance(wrong, ValueError) else ""
            self._cancel_number(number, f"the question could not be shown{said}")
            return
        self._asked[number] = shown
        self._tell()
        if self._tabs or shown.is_patient:
            return
        if self._ignored >= IGNORED_MOST:
            self._cancel(shown, "nobody came to the page the last times; `mcpmux page` opens it")
        elif shown.opens and now >= self._opened_at + OPEN_AGAIN:
            self._open_browser()

    # ── the browser ──

    def _open_browser(self, number: int | None = None) -> None:
        """`number`: of a request that waits for it."""
        self._opened_at = now = self._now()
        key = os.urandom(32).hex()
        self._keys[key] = Key(now + KEY_LIVES)
        task = asyncio.get_running_loop().create_task(self._go(key, number))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _go(self, key: str, number: int | None) -> None:
        address = f"http://{self.host}/#{key}"
        try:
            if self.setup.opener.by_file and not await asyncio.to_thread(_is_boxed):
                address = self._keys[key].file = redirect_file(address)
                address = address if sys.platform == "win32" else Path(address).as_uri()
            await asyncio.to_thread(go_to, self.setup.opener, address)
        except OSError as wrong:
            self._forget_file(self._keys.pop(key))
            reason = f"no browser could be opened: {wrong.strerror or wrong}"
            if number is not None:
                self._write(error_line(b"%d" % number, error_body(RpcError(INTERNAL_ERROR, reason))))
            if not self._tabs:
                for shown in [one for one in self._asked.values() if one.opens]:
                    self._cancel(shown, reason)
        else:
            if number is not None:
                self._write(result_line(b"%d" % number, b"{}"))

    def _forget_file(self, key: Key) -> None:
        if key.file:
            with contextlib.suppress(OSError):
                os.unlink(key.file)
            key.file = None

    # ── endings ──

    def _over(self, shown: Shown, outcome: str) -> None:
        """It is out of the table, and its answer is on its way if there is any."""
        self._lately.appendleft(f"{shown.name}: {outcome}")
        self._tell(f"{shown.name}: {outcome}.")

    def _cancel_number(self, number: int, reason: str) -> None:
        self._write(result_line(b"%d" % number, encode({"action": "cancel", "reason": reason})))

    def _cancel(self, shown: Shown, reason: str) -> None:
        del self._asked[shown.id]
        self._cancel_number(shown.id, reason)
        self._over(shown, reason)

    def look(self) -> None:
        """Every second: whose time is over."""
        now = self._now()
        for token, tab in list(self._tabs.items()):
            if tab.news is None and now >= tab.left + RELOAD_PATIENCE:
                del self._tabs[token]
                for shown in self._asked.values() if not self._tabs else ():
                    shown.alone = now
        for key in self._keys.values():
            if now >= key.until:
                self._forget_file(key)
        for shown in [] if self._tabs else list(self._asked.values()):
            if now >= (shown.until if shown.is_patient else shown.alone + TAB_PATIENCE):
                self._ignored += 1
                self._cancel(shown, f"nobody came to the page within {TAB_PATIENCE:g} s")

    def end_all(self, reason: str) -> None:
        """No tab shows anything any more, and nothing is decided."""
        self._log("warning", f"everything on the page is cancelled: {reason}")
        for tab in self._tabs.values():
            if tab.news:
                tab.news.put_nowait({"bye": f"mcpmux has ended this page: {reason}."})
        self._tabs.clear()
        for shown in list(self._asked.values()):
            self._cancel(shown, reason)

    # ── what tabs are told ──

    def _tell(self, say: str = "") -> None:
        for tab in self._tabs.values():
            self._tell_tab(tab, say)

    def _tell_tab(self, tab: Tab, say: str = "") -> None:
        """What differs from what it shows."""
        if tab.news is None:
            return
        now, shown = self._now(), list(self._asked.values())[:CARDS_MOST]
        new = [one for one in shown if one.id not in tab.cards]
        add = [{"question": one.view, "hash": one.hash, "age": now - one.asked, "left": one.until - now} for one in new]
        gone = [id for id in tab.cards if id not in self._asked]
        tab.cards = {one.id for one in shown}
        title = f"mcpmux · {in_a_line(self.setup.host)}" if self.setup.host else "mcpmux"
        about = {"host": title, "lately": list(self._lately), "more": len(self._asked) - len(shown), "say": say}
        tab.news.put_nowait({"add": add, "gone": gone, **about})

    # ── over HTTP ──

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.requests import Request  # noqa: PLC0415

        response = await self._respond(Request(scope, receive))
        response.headers.update(_WALLS)
        await response(scope, receive, send)

    async def _respond(self, request: Any) -> Any:
        from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse  # noqa: PLC0415

        heads, path = request.headers, request.scope["path"]
        if heads.getlist("host") != [self.host]:  # another name may lead to this machine
            return PlainTextResponse("This is not the address of this page.", 421)
        if request.method == "GET" and path == "/" and heads.get("sec-fetch-dest", "document") == "document":
            nonce = os.urandom(16).hex()
            policy = {"Content-Security-Policy": _POLICY.format(nonce)}
            return HTMLResponse(_PAGE.replace("$NONCE", nonce), headers=policy)
        if request.method != "POST" or path not in ("/open", "/events", "/answer"):
            return PlainTextResponse("There is nothing here.", 404)
        is_ours = heads.getlist("origin") == [f"http://{self.host}"] and heads.get("content-type") == "application/json"
        if not is_ours or heads.get("sec-fetch-site", "same-origin") != "same-origin":
            return JSONResponse({"text": "Only the page itself may ask this."}, 403)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > POST_MOST:
                return JSONResponse({"text": "That is too long."}, 413)
        said = value_of(body)
        said = said if isinstance(said, dict) else {}
        if path == "/open":
            return JSONResponse(*self._open(str(said.get("key"))))
        if (tab := self._tabs.get(heads.get("authorization", "").removeprefix("Bearer "))) is None:
            return JSONResponse({"text": "This page is over."}, 401)
        if path == "/events":
            return StreamingResponse(self._events(tab), media_type="text/event-stream")
        return JSONResponse(*self._answer(said))

    def _open(self, key: str) -> tuple[dict[str, Any], int]:
        """A key becomes a token, once."""
        known, now = self._keys.get(key), self._now()
        if known and known.token:
            self.end_all("its key was used twice, so another program may have read it")
            return {"text": "The key of this page has been used before, so everything was cancelled."}, 403
        if not known or now >= known.until:
            return {"text": "This page was opened too late. A question opens it anew, and so does “mcpmux page”."}, 403
        self._forget_file(known)
        self._ignored = 0
        token = known.token = os.urandom(32).hex()
        self._tabs[token] = Tab(now)
        return {"token": token}, 200

    async def _events(self, tab: Tab) -> AsyncGenerator[bytes]:
        if tab.news:  # it was copied: one of the two goes on
            tab.news.put_nowait({"bye": "This page goes on in another tab."})
        news = tab.news = asyncio.Queue()
        tab.cards = set()
        self._tell_tab(tab)
        try:
            message: dict[str, Any] = {}
            while "bye" not in message:
                message = {}
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BEAT):
                        message = await news.get()
                yield b"data: " + encode(message) + b"\n\n" if message else b": \n\n"
        finally:
            if tab.news is news:
                tab.news, tab.left = None, self._now()

    # ── the answer ──

    def _answer(self, said: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Anything that is not exactly an answer to exactly what was shown decides nothing."""
        number, button = said.get("id"), said.get("button")
        shown = self._asked.get(number) if isinstance(number, int) else None
        if shown is None or said.get("hash") != shown.hash:
            return {"text": "This is no longer asked."}, 409
        if not isinstance(button, int) or not 0 <= button < len(shown.buttons):
            return {"text": "There is no such button."}, 422
        pressed = shown.buttons[button]
        result: dict[str, Any] = {"action": pressed.action}
        if pressed.action == "accept":
            content, wrong = self._content(shown, pressed.decision, said)
            if wrong:
                return wrong, 422
            result |= {} if content is None else {"content": content}
        del self._asked[shown.id]
        self._ignored = 0
        self._write(result_line(b"%d" % shown.id, encode(result)))
        self._over(shown, f"you chose “{pressed.label}”")
        return {}, 200

    def _content(self, shown: Shown, decision: str, said: dict[str, Any]) -> tuple[dict[str, Any] | None, Any]:
        """What is accepted, and what is wrong with it: a text, or one for each field."""
        if decision:
            edits = said["edits"] if isinstance(said.get("edits"), dict) else {}
            for slot, (holder, key) in enumerate(shown.slots):
                holder[key] = str(edits.get(str(slot), holder[key]))
            return {"decision": decision} | ({"params": shown.params} if edits else {}), {}
        if "address" in shown.view:
            return None, {}
        values, content, wrong = said.get("values"), dict[str, Any](), dict[int, str]()
        if not isinstance(values, list) or len(values) != len(shown.fields):
            return None, {"text": "An answer to each field is expected."}
        for number, ((name, field), value) in enumerate(zip(shown.fields.items(), values, strict=True)):
            try:
                taken = given(value, field)
            except ValueError as problem:
                wrong[number] = harmless(str(problem))
            else:
                content |= {} if taken is None else {name: taken}
        if "secret" in shown.view and said.get("sure") is not True and not wrong:
            return None, {"text": "Say first that you want this to be known."}
        return content, {"wrong": wrong} if wrong else {}


def redirect_file(address: str) -> str:
    """A file that only this user can read and that leads there: others may read the arguments of a process."""
    import tempfile  # noqa: PLC0415

    file, path = tempfile.mkstemp(".html", "mcpmux-")
    with os.fdopen(file, "w") as page:
        page.write(f'<!doctype html><meta charset="utf-8"><script>location.replace("{address}")</script>')
    return path


async def serve_page(lines: asyncio.Queue[bytes], writing: int) -> None:
    """The child's work, for ever: it ends with its input."""
    import logging  # noqa: PLC0415
    import socket  # noqa: PLC0415

    import uvicorn  # noqa: PLC0415

    logging.disable(logging.CRITICAL)  # what a library would log may be about what is asked

    write = functools.partial(write_all, writing)
    page = Page(msgspec.json.decode(await lines.get(), type=PageSetup), write, time.monotonic)
    listening = socket.create_server(("127.0.0.1", 0))
    page.host = "{}:{}".format(*listening.getsockname())
    options: dict[str, Any] = {"http": "h11", "ws": "none", "lifespan": "off", "log_config": None, "access_log": False}
    server = uvicorn.Server(uvicorn.Config(page, server_header=False, date_header=False, **options))

    async def look() -> None:
        while True:
            await asyncio.sleep(1)
            page.look()

    async def read() -> None:
        while True:
            page.take(decode_line(await lines.get()))

    await asyncio.gather(server.serve(sockets=[listening]), look(), read())


# What the tab runs. It is handed texts, and makes elements of them one by one: nothing of it is ever read as HTML.
_PAGE: Final = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>mcpmux</title>
<style nonce="$NONCE">
:root { --ground: #f6f7f9; --card: #fff; --ink: #1b1f24; --soft: #59636e; --line: #d1d9e0; --accent: #0b62c4;
  --on: #fff; --warn: #6b4300; --warning: #fff5d6; --bad: #b3202c; }
@media (prefers-color-scheme: dark) { :root { --ground: #0d1117; --card: #161b22; --ink: #e6edf3; --soft: #9aa4af;
  --line: #363d47; --accent: #6cb2ff; --on: #0d1117; --warn: #f2cc60; --warning: #2d2410; --bad: #ff8f87; } }
* { box-sizing: border-box; overflow-wrap: anywhere; }
body { margin: 0 auto; max-width: 46rem; padding: 1rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
header { display: flex; flex-wrap: wrap; gap: .25rem 1rem; align-items: baseline; justify-content: space-between; }
h1, h2 { font-size: 1.1rem; margin: 0; } h1:focus { outline: none; } p { margin: .5rem 0; }
.soft, .hint, li, h3 { color: var(--soft); font-size: .9rem; } .bold, legend { font-size: .9rem; font-weight: 600; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; margin: 1rem 0; }
.message { white-space: pre-wrap; font-size: 1.1rem; max-height: 50vh; overflow: auto; }
.note { color: var(--warn); background: var(--warning); border-radius: .4rem; padding: .4rem .6rem; }
.wrong { color: var(--bad); margin: .25rem 0; } .wrong:empty { display: none; }
.address, pre { font: .9rem/1.45 ui-monospace, monospace; background: var(--ground); border-radius: .4rem;
  padding: .6rem; } .address { color: var(--soft); } .address strong { color: var(--ink); font-size: 1.2em; }
pre { margin: .2rem 0; max-height: 40vh; overflow: auto; white-space: pre-wrap; }
img { max-width: 100%; max-height: 40vh; border: 1px solid var(--line); border-radius: .4rem; }
.field, fieldset { border: 0; padding: 0; margin: .8rem 0; min-width: 0; }
input, textarea, button { font: inherit; color: inherit; border: 1px solid var(--soft); border-radius: .4rem; }
input:not([type=radio], [type=checkbox]), textarea { width: 100%; padding: .45rem .6rem; background: var(--ground); }
textarea { resize: vertical; } .choice { display: block; padding: .15rem 0; }
[aria-invalid=true] { border-color: var(--bad); outline: 1px solid var(--bad); }
.buttons { display: flex; flex-wrap: wrap; gap: .5rem; margin-top: 1rem; }
button { padding: .5rem 1rem; background: transparent; cursor: pointer; }
button.main { background: var(--accent); border-color: var(--accent); color: var(--on); font-weight: 600; }
.still button, button:disabled { opacity: .55; cursor: default; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; } ul { padding-left: 1.2rem; }
@media (max-width: 30rem) { body { padding: .5rem; } .buttons button { flex: 1 1 100%; } }
</style>
</head>
<body>
<header><h1 id="top" tabindex="-1">mcpmux</h1><button id="bell" type="button" hidden>Notify me</button></header>
<p id="status" class="soft" role="status">Connecting…</p>
<main id="open" aria-label="Questions"></main>
<section id="past" hidden><h3>Lately</h3><ul id="lately"></ul></section>
<script nonce="$NONCE">
"use strict";
const OVER = "mcpmux is no longer connected to this page, so it shows nothing any more. You can close it: the next " +
  "question opens another, and so does the command “mcpmux page”.";
const find = (id) => document.getElementById(id), cards = new Map();
let token = sessionStorage.getItem("token"), dead = 0, waking = 0, missed = 0, leaving = false;

function make(tag, given, ...inside) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(given ?? {}))
    if (value !== undefined && value !== null) key in made ? (made[key] = value) : made.setAttribute(key, value);
  made.append(...inside.filter((one) => one));
  return made;
}
// A click that was meant for what stood there before the page moved does nothing.
function moved() {
  dead = performance.now() + $DEAD;
  document.body.classList.add("still");
  clearTimeout(waking);
  waking = setTimeout(() => document.body.classList.remove("still"), $DEAD);
}
const pressed = (button, act) =>
  button.addEventListener("click", (click) => { if (click.isTrusted && click.timeStamp >= dead) act(); });
const post = (path, body) => fetch(path, {
  method: "POST", body: JSON.stringify(body), cache: "no-store", credentials: "omit", redirect: "error",
  headers: { "Content-Type": "application/json", ...(token && { Authorization: `Bearer ${token}` }) },
}).catch(() => null);
function blank(text) {
  token = null;
  sessionStorage.removeItem("token");
  cards.clear();
  document.title = "mcpmux";
  document.body.replaceChildren(make("h1", {}, "mcpmux"), make("p", { role: "alert" }, text ?? OVER));
}

// ── one question ──
function choices(field, name) {
  const options = field.many || field.needed ? field.choices : [...field.choices, "(no answer)"];
  const boxes = options.map((_, at) =>
    make("input", { type: field.many ? "checkbox" : "radio", name, checked: field.preset.includes(at) }));
  const labels = options.map((text, at) => make("label", { className: "choice" }, boxes[at], " ", text));
  const chosen = () => boxes.flatMap((box, at) => (box.checked && at < field.choices.length ? [at] : []));
  return { boxes, labels, value: () => (field.many ? chosen() : (chosen()[0] ?? null)) };
}
function written(field, id) {
  const { input, ...limits } = field.input, isTime = input === "datetime-local";
  const about = { id, ...limits, required: field.needed, autocomplete: "off", spellcheck: false };
  const box = input === "area" ? make("textarea", { rows: 4, ...about }) : make("input", { type: input, ...about });
  const preset = new Date(field.preset);
  if (isTime) box.valueAsNumber = preset.getTime() - preset.getTimezoneOffset() * 60000;
  else box.value = field.preset ?? "";
  const text = () => (isTime && box.value ? new Date(box.value).toISOString() : box.value);
  return { boxes: [box], value: () => (box.validity.valid ? text() || null : undefined) };
}
function fieldOf(field, name) {
  const part = field.choices ? choices(field, name) : written(field, name);
  const error = make("p", { className: "wrong", id: `${name}-wrong` });
  const label = field.label + (field.needed ? " *" : ""), about = [field.about, field.hint].filter(Boolean).join(" · ");
  const hint = make("div", { className: "hint", id: `${name}-hint` }, about);
  for (const box of part.boxes) box.setAttribute("aria-describedby", `${name}-hint ${name}-wrong`);
  part.whole = part.labels ? make("fieldset", {}, make("legend", {}, label), hint, ...part.labels, error)
    : make("div", { className: "field" }, make("label", { htmlFor: name, className: "bold" }, label), hint,
      part.boxes[0], error);
  part.say = (text) => {
    error.textContent = text;
    for (const box of part.boxes) box.setAttribute("aria-invalid", String(Boolean(text)));
  };
  return part;
}
function partOf({ label, text, image, slot }, edits) {
  const box = image ? make("img", { src: image, alt: label })
    : slot === undefined ? make("pre", { tabIndex: 0, role: "group", ariaLabel: label }, text)
    : make("textarea", { value: text, rows: Math.min(12, 2 + text.length / 70), ariaLabel: label, spellcheck: false });
  const before = box.value;
  if (slot !== undefined) edits.push(() => (box.value === before ? {} : { [slot]: box.value }));
  return make("div", { className: "field" }, make("div", { className: "bold" }, label), box);
}
function cardOf({ question, hash, age, left }) {
  const { id, address } = question, at = performance.now(), edits = [], time = make("span");
  const fields = question.fields.map((field, index) => fieldOf(field, `q${id}-${index}`));
  const trouble = make("p", { className: "wrong", role: "alert" });
  const sure = question.secret && make("input", { type: "checkbox" });
  const buttons = question.buttons.map(({ label, main }) =>
    make("button", { type: "button", className: main ? "main" : "" }, label));
  const whole = make("article", { "aria-labelledby": `q${id}` }, make("h2", { id: `q${id}` }, question.title),
    make("div", { className: "soft" }, question.call ? `In the call ${question.call}. ` : "Outside any call. ", time),
    make("p", { className: "message" }, question.message),
    address && make("p", { className: "address" }, address.before, make("strong", {}, address.host), address.after),
    ...question.notes.map((text) => make("p", { className: "note" }, text)),
    ...question.parts.map((part) => partOf(part, edits)), ...fields.map((field) => field.whole),
    sure && make("label", { className: "choice note" }, sure, " ", question.secret), trouble,
    make("div", { className: "buttons" }, ...buttons));
  function tick() {
    const gone = (performance.now() - at) / 1000, rest = Math.max(0, Math.round(left - gone));
    const two = String(rest % 60).padStart(2, "0"), ago = Math.floor((age + gone) / 60);
    time.textContent = `Asked ${ago ? `${ago} min ago` : "now"}, waits ${Math.floor(rest / 60)}:${two} more.`;
  }
  async function send(button) {
    const accepts = question.buttons[button].accepts;
    const wrong = accepts ? fields.filter((field) => field.value() === undefined) : [];
    for (const field of fields) field.say(wrong.includes(field) ? field.boxes[0].validationMessage : "");
    if (wrong.length) return wrong[0].boxes[0].focus();
    const values = accepts ? fields.map((one) => one.value()) : [], changed = edits.map((edit) => edit());
    const said = { id, hash, button, values, sure: Boolean(sure?.checked), edits: Object.assign({}, ...changed) };
    const reply = await post("/answer", said), told = (await reply?.json().catch(() => null)) ?? {};
    if (reply?.ok && accepts && address) window.open(address.url, "_blank", "noopener,noreferrer");
    trouble.textContent = told.text ?? "";
    fields.forEach((field, index) => field.say(told.wrong?.[index] ?? ""));
    fields.find((_, index) => told.wrong?.[index])?.boxes[0].focus();
  }
  buttons.forEach((button, index) => pressed(button, () => send(index)));
  if (address?.host && (!URL.canParse(address.url) || new URL(address.url).hostname !== address.host)) {
    trouble.textContent = "Your browser reads this address in another way, so it cannot be opened from here.";
    buttons[0].disabled = true;
  }
  tick();
  return { whole, tick };
}

// ── all of them ──
function heard({ bye, host, gone, add, more, say, lately }) {
  if (bye) return blank(bye);
  for (const id of gone) {
    if (cards.get(id)?.whole.contains(document.activeElement)) find("top").focus();
    cards.get(id)?.whole.remove();
    cards.delete(id);
  }
  for (const one of add) {
    cards.set(one.question.id, cardOf(one));
    find("open").append(cards.get(one.question.id).whole);
    if (document.hidden && window.Notification?.permission === "granted")
      new Notification("mcpmux", { body: one.question.title, tag: "mcpmux" }).onclick = () => window.focus();
  }
  const count = cards.size + more, rest = more ? `, of which ${cards.size} are shown` : "";
  find("top").textContent = host;
  document.title = (count ? `(${count}) ` : "") + host;
  const now = count === 1 ? "One question waits for you." : count ? `${count} questions wait for you${rest}.`
    : "Nothing is asked now. You may leave this page open.";
  find("status").textContent = `${say} ${now}`;
  find("lately").replaceChildren(...lately.map((text) => make("li", {}, text)));
  find("past").hidden = !lately.length;
  moved();
}
async function listen() {
  const reply = await post("/events", {});
  const reader = reply?.ok && reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; reader; ) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) break;
    missed = 0;
    text += value;
    if (!value.includes("\n")) continue;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) if (event.startsWith("data: ")) heard(JSON.parse(event.slice(6)));
  }
  if (!leaving && token) blank();
}
async function begin() {
  const key = location.hash.slice(1), bell = find("bell");
  history.replaceState(null, "", "/");
  if (key) {
    token = null;
    const reply = await post("/open", { key }), said = (await reply?.json().catch(() => null)) ?? {};
    if (!reply?.ok) return blank(said.text);
    sessionStorage.setItem("token", (token = said.token));
  }
  if (!token) return blank();
  bell.hidden = window.Notification?.permission !== "default";
  pressed(bell, () => Notification.requestPermission().then(() => { bell.hidden = true; }));
  new ResizeObserver(moved).observe(document.body);
  for (const change of ["resize", "focus"]) addEventListener(change, moved);
  document.addEventListener("visibilitychange", moved);
  addEventListener("pagehide", () => { leaving = true; });
  addEventListener("pageshow", (shown) => { if (shown.persisted) blank(); });
  setInterval(() => { for (const card of cards.values()) card.tick(); }, 1000);
  // By beats that were missed and not by the clock: a machine may have slept.
  setInterval(() => { if (token && ++missed > 4) blank(); }, $BEAT);
  await listen();
}
begin();
</script>
</body>
</html>
""".replace("$DEAD", f"{DEAD_TIME * 1000:g}").replace("$BEAT", f"{BEAT * 1000:g}")


# ══ 22. Mux ═══════════════════════════════════════════════════════════════════════════════════════════════════════════
# Feeds the core and does what it says. The only task that lives long is the loop; a start and a stop are a task each.


def on_signal(loop: asyncio.AbstractEventLoop, number: int, heard: Callable[[int], Any]) -> None:
    """`heard` is called in the loop's thread, in place of whatever was called before."""
    if sys.platform == "win32":
        signal.signal(number, lambda number, _: loop.call_soon_threadsafe(heard, number))
    else:
        loop.add_signal_handler(number, heard, number)


class HostSide(Protocol):
    """Where the host is spoken with: `HostPipes`, or a host that mcpmux plays itself."""

    def start(self, post: Post, on_room: Callable[[Name, bool], None]) -> None: ...
    def put(self, source: Name, line: bytes) -> None: ...
    def is_full(self, source: Name) -> bool: ...
    def flush(self) -> None: ...
    async def close(self) -> None: ...


class ServerSide(Protocol):
    """Where a server is spoken with: a process, or a connection."""

    run: int
    outbox: list[bytes]

    def flush(self) -> None: ...
    def read(self, wanted: bool) -> None: ...
    async def stop(self) -> None: ...


class Mux:
    """A core, its host and its processes."""

    def __init__(
        self,
        config: Config,
        host: HostSide,
        journal: Journal,
        *,
        cached: bool = True,
        watches: bool = True,
        model: Iterable[str] = (),
    ) -> None:
        """`model`: this program's arguments for what plays the sampler."""
        known, notes = read_known(cache_folder(), config) if cached else ({}, [])
        for note in notes:
            journal.log("warning", note)
        no_config = f"mcpmux has no config yet: put one at {config.path}, then start this host again."
        opener = opener_for(sys.platform, os.environ)
        self.core = Core(
            config.options,
            config.servers,
            hosts=config.hosts,
            sampling=config.sampling if config.sampling and (model or has_litellm()) else None,
            known=known,
            names=read_kept(kept_path("names", config.path), Names) if config.exists else {},
            pins=read_pins(config.path),
            consents=read_consents(config),
            broken=config.broken,
            notice="" if config.exists else no_config,
            chance=any_chance,
            secret=lambda: os.urandom(16).hex(),
            has_page=isinstance(opener, Opener),
        )
        self.opener, self._model = opener, list(model)
        self.unlearnt: list[str] = []  # at its end: servers that its host has not been told of yet
        self._config = config
        self._host = host
        self._journal = journal
        self._inbox: collections.deque[Event] = collections.deque()
        self._is_hearing = False
        self._timers: dict[TimerKey, asyncio.TimerHandle] = {}
        self._processes: dict[Name, ServerSide] = {}
        self._starting: dict[Name, asyncio.Task[None]] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._guardian = Guardian()
        self._spawning = asyncio.Lock()
        self._logins: dict[str, Path] = {}  # by server: the file of its login
        self._done = threading.Event()  # ends the watch over config, logins and parent
        self._watches = watches

    def post(self, event: Event) -> None:
        """From the loop's thread. It is heard at once; what comes of that, right after it."""
        self._inbox.append(event)
        if not self._is_hearing:
            self._drain()

    # ── the loop ──

    async def run(self) -> None:
        """Serves until the host goes or a signal comes; returns when nothing is left."""
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        become_subreaper()
        self._watch_signals()
        for note in self._config.notes:
            self._journal.log("info", note)
        for problem in self._config.broken.values():
            self._journal.log("error", problem)
        if self._config.sampling and not (self._model or has_litellm()):
            self._journal.log("error", f"{NO_LITELLM[0]}; {NO_LITELLM[1]}; servers are told of no local model")
        if isinstance(self.opener, str) and self._config.options.page != "off":
            self._journal.log("info", f"nobody is asked on mcpmux's own page: {self.opener}")
        self._host.start(self.post, self._make_room)
        if self._watches:
            threading.Thread(target=self._watch, args=(parent_watch(),), name="mcpmux watch", daemon=True).start()
        await self._over
        await self._finish()

    def _drain(self) -> None:
        """What goes wrong here ends mcpmux."""
        self._is_hearing = True
        try:
            while self._inbox:
                self._hear_all()
        except BaseException as wrong:
            if self._over.done():
                raise
            self._over.set_exception(wrong)
        finally:
            self._is_hearing = False

    def _hear_all(self) -> None:
        core, now = self.core, self._loop.time
        touched: dict[Name, ServerSide] = {}
        while self._inbox:
            event = self._inbox.popleft()
            if type(event) is HostGone and not self._over.done():
                self._leave_learning()
                self._over.set_result(None)
                self._done.set()
            elif type(event) is ServerGone:
                process = self._processes.get(event.server)
                if process and process.run == event.run:
                    del self._processes[event.server]
            for effect in core.handle(event, now()):
                if type(effect) is SendHost:
                    self._host.put(effect.source, effect.line)
                elif type(effect) is SendServer:
                    if process := self._processes.get(effect.server):
                        process.outbox.append(effect.line)
                        touched[effect.server] = process
                else:
                    self._do(effect)
        for process in touched.values():
            process.flush()
        self._host.flush()

    def _do(self, effect: Effect) -> None:
        match effect:
            case SendHost() | SendServer():
                raise Bug("it is sent where many are")
            case Log(level, text):
                self._journal.log(level, text)
            case SetTimer(key, at):
                self._set_timer(key, at)
            case SaveCatalogue() | SaveNames() | SavePins() | SaveConsent():
                self._journal.later(functools.partial(save, effect, self._config))
            case Start(server, run):
                self._starting[server] = self._loop.create_task(self._start(server, run))
            case Stop(server, run):
                self._stop(server, run)

    def _leave_learning(self) -> None:
        """What the host was not told of, though it was told of other servers."""
        servers = self.core.servers.values()
        if any(one.known for one in servers):
            self.unlearnt = [one.name for one in servers if one.settling and not one.known and not one.trouble]

    def _set_timer(self, key: TimerKey, at: float | None) -> None:
        if handle := self._timers.pop(key, None):
            handle.cancel()
        if at is not None:
            self._timers[key] = self._loop.call_at(at, self._timer_due, key)

    def _timer_due(self, key: TimerKey) -> None:
        if self._loop.time() - self._timers[key].when() > STOOD_STILL:
            self._timers[key] = self._loop.call_later(WOKEN, self._timer_due, key)
        else:
            del self._timers[key]
            self.post(TimerDue(key))

    # ── processes come and go ──

    async def _start(self, name: Name, run: int) -> None:
        try:
            process = await (self._start_server(name, run) if isinstance(name, str) else self._start_own(name, run))
        except StartError as wrong:
            what, todo = wrong.args
            self.post(ServerGone(name, run, self._journal.redact(f"{called(name)}: {what}"), todo, []))
        else:
            if process:
                self._processes[name] = process
                process.read(not self._host.is_full(name))
                self.post(ServerUp(name, run))
        finally:
            if self._starting.get(name) is asyncio.current_task():
                del self._starting[name]

    async def _start_server(self, name: str, run: int) -> ServerSide | None:
        if (table := self._config.servers.get(name)) is None:
            return None  # a new config is on its way to the core
        options = self._config.options
        if table.url:
            address = await locate(name, table, self._config)
            self._journal.hide(address.secrets)
            self._logins[name] = address.login
            limit, outbox = int(options.max_message_mb * MB), int(options.outbox_mb * MB)
            remote = RemoteServer(run, self.post, limit, outbox, address, self._journal)
            await remote.start()
            return remote
        command = await prepare(name, table, self._config)
        self._journal.hide(command.secrets)
        process = ServerProcess(name, run, self.post, options, self._journal, self._guardian)
        lock = await turn_to_fetch(command)
        if launcher_of(command.program, command.args):
            process.mind = functools.partial(Minder, lock)
        try:
            await self._spawn(command, process)
        except BaseException:
            if process.mind and lock is not None:  # it has no minder
                os.close(lock)
            raise
        return process

    async def _start_own(self, name: Peer, run: int) -> ServerSide:
        """A child process that is this program too: its first line is its setup."""
        secrets: set[str] = set()
        if name is Peer.PAGE:
            assert isinstance(self.opener, Opener)
            setup = encode(PageSetup(self.core.host.caller.name, self.opener)) + b"\n"
        else:
            setup = b"{}\n" if self._model else await sampler_setup(self._config, secrets)
        self._journal.hide(secrets)
        env = {key: value for key, value in self._config.inherited.items() if not key.startswith("MCPMUX_")}
        words = self._model if self._model and name is Peer.SAMPLER else [f"_{name.value}"]
        program, *args = again(*words)
        command = Command(program, args, env, None, frozenset())
        process = ServerProcess(name, run, self.post, self._config.options, self._journal, self._guardian)
        await self._spawn(command, process)
        process.outbox.append(setup)
        process.flush()
        return process

    async def _spawn(self, command: Command, process: ServerProcess) -> None:
        """One in a turn of the loop: seventy take seconds, in which the host's end would not be seen."""
        async with self._spawning:
            self._guardian.start()
            if process.mind is None:
                await spawn(command, process)
                return
            spawning = asyncio.ensure_future(spawn(command, process))
            try:
                await asyncio.shield(spawning)  # asyncio would kill what has begun to fetch
            except asyncio.CancelledError:
                await spawning
                await process.stop()
                raise

    def _await_end(self, task: asyncio.Task[None]) -> None:
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)
        task.add_done_callback(lambda _: self._child_ended())

    def _stop(self, name: Name, run: int) -> None:
        if (process := self._processes.get(name)) and process.run == run:
            self._await_end(self._loop.create_task(process.stop()))
        else:
            if name in self._starting:
                starting = self._starting.pop(name)
                starting.cancel()  # asyncio kills what it has started by then
                self._await_end(starting)
            self.post(ServerGone(name, run, f"{called(name)} was stopped while it started", "", []))

    def _make_room(self, source: Name, room: bool) -> None:
        """The host reads slowly: the server whose lines wait is not read meanwhile."""
        if process := self._processes.get(source):
            process.read(room)

    async def _finish(self) -> None:
        """All ladders at once, what the host still takes, and then whoever left his group."""
        self._is_hearing = True  # no more
        closing = self._loop.create_task(self._host.close())
        for task in self._starting.values():
            task.cancel()
        await asyncio.wait([*self._stopping, *self._starting.values(), closing], timeout=END_MOST)
        for handle in self._timers.values():
            handle.cancel()
        kill_all(set(descendants(os.getpid())) - self._guardian.pids)
        self._guardian.close()
        reap(())

    # ── what is watched ──

    def _watch(self, parent_is_gone: Callable[[], bool]) -> None:
        """A thread, since a disk may be slow. Most beginnings of a config file are TOML too: it is read when it has
        stood still between two looks."""
        path = self._config.path
        seen = taken = self._config.mark
        logins: dict[str, tuple[int, int] | None] = {}
        pins = kept_path("pins", path)
        marks, wanted = (mark_of(pins), mark_of(kept_path("consents"))), mark_of(kept_path("page", path))
        trim, worked = memory_trimmer(), time.process_time()
        while not self._done.wait(WATCH_TICK):
            if time.process_time() - worked > TRIM_AFTER:
                trim()
                worked = time.process_time()
            if parent_is_gone():
                in_loop(self._loop, self.post, HostGone("the process that started mcpmux is gone"))
                return
            for name, path_of_login in list(self._logins.items()):
                if (mark := mark_of(path_of_login)) and logins.get(name, mark) != mark:
                    in_loop(self._loop, self.post, TryAgain(name))
                logins[name] = mark
            former_marks, marks = marks, (mark_of(pins), mark_of(kept_path("consents")))
            if former_marks[0] != marks[0]:
                in_loop(self._loop, self.post, PinsRead(read_pins(path)))
            if former_marks[1] != marks[1]:
                in_loop(self._loop, self.post, ConsentsRead(read_consents(self._config)))
            if wanted != (wanted := mark_of(kept_path("page", path))):
                in_loop(self._loop, self._open_page)
            former, seen = seen, mark_of(path)
            if seen == taken or seen != former:
                continue
            taken = seen
            try:
                if not (config := with_profile(load_config(path), self._config.profile)).exists:
                    raise ConfigError(f"{path}: is gone")
            except ConfigError as wrong:
                for line in str(wrong).splitlines():
                    if not line.startswith(" "):  # a picture of the place, for a terminal
                        self._journal.log("error", f"{line} (the previous configuration stays in effect)")
            else:
                in_loop(self._loop, self._take, config)

    def _open_page(self) -> None:
        """Somebody has run `mcpmux page`: it is told what becomes of that, and never the key."""
        why = 'its config says page = "off"' if self._config.options.page == "off" else self.opener
        who = in_a_line(self.core.host.caller.name) or "a host"
        if isinstance(why, Opener):
            self.post(PageWanted())
        told = f"the mcpmux of {who} " + ("opens its page" if isinstance(why, Opener) else f"has no page: {why}")
        self._journal.later(functools.partial(add_line, heard_path(self._config.path), told))

    def _take(self, config: Config) -> None:
        """A new configuration. Secrets are read anew when their servers start."""
        for note in [*config.notes, *config.broken.values()]:
            self._journal.log("info" if note in config.notes else "error", note)
        self._config = config
        self._journal.threshold = LEVELS[config.options.log_level]
        sampling = config.sampling if config.sampling and has_litellm() else None
        self.post(ConfigChanged(config.options, config.servers, config.broken, sampling, config.hosts))
        self.post(ConsentsRead(read_consents(config)))

    def _watch_signals(self) -> None:
        if sys.platform == "win32":
            numbers = (signal.SIGINT, signal.SIGBREAK)
        else:
            numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            self._loop.add_signal_handler(signal.SIGCHLD, self._child_ended)
        for number in numbers:
            on_signal(self._loop, number, lambda number: self.post(HostGone(signal.Signals(number).name)))

    def _child_ended(self) -> None:
        # One that is being started or replaced is not among the known ones: asyncio is to hear of its end.
        if sys.platform == "linux" and not self._starting and not self._stopping:
            reap(process.pid for process in self._processes.values() if isinstance(process, ServerProcess))


# ══ 23. Hosts ═════════════════════════════════════════════════════════════════════════════════════════════════════════
# Where hosts keep their servers, and what they mean by what stands there: to move servers out of a host's file, and
# mcpmux into it. Starts no server and speaks no protocol. No value that may be a secret is ever in a message.

ENTRY_NAME: Final = "mcpmux"  # what we are called in a host
BACKUP_SUFFIX: Final = ".before-mcpmux"
FIRST_ANSWER: Final = 60.0  # seconds that Claude Desktop waits for a first answer, downloads included


class Host(Struct, frozen=True):
    """What a host means by what stands in its file."""

    name: str
    title: str
    key: str  # of the object that has the servers
    dialect: Literal["none", "shell", "dollar", "editor"]  # of its placeholders, in `DIALECTS`
    timeout_unit: float | None  # of its `timeout`, in seconds; None: it has none
    bare_url: Literal["http", "sse"]  # what a `url` means without a type
    passes_all: bool  # its servers see the whole environment of whoever started it
    aliases: str = ""


MS: Final = 0.001
# fmt: off
HOSTS: Final = (
    Host("claude-desktop", "Claude Desktop", "mcpServers",      "none",   None, "http", False, "claude"),
    Host("claude-code",    "Claude Code",    "mcpServers",      "shell",  MS,   "http", True),
    Host("vscode",         "VS Code",        "servers",         "editor", None, "http", True,  "code vs-code copilot"),
    Host("cursor",         "Cursor",         "mcpServers",      "editor", None, "http", True),
    Host("codex",          "Codex",          "mcp_servers",     "none",   None, "http", False),
    Host("gemini",         "Gemini CLI",     "mcpServers",      "dollar", MS,   "sse",  True,  "gemini-cli"),
    Host("zed",            "Zed",            "context_servers", "none",   None, "http", True),
    Host("windsurf",       "Windsurf",       "mcpServers",      "editor", None, "http", False),
    Host("goose",          "Goose",          "extensions",      "shell",  1,    "http", True),
    Host("lm-studio",      "LM Studio",      "mcpServers",      "editor", None, "http", False, "lmstudio"),
    Host("amazon-q",       "Amazon Q",       "mcpServers",      "editor", MS,   "http", True,  "amazonq q"),
    Host("kiro",           "Kiro",           "mcpServers",      "editor", MS,   "http", False),
    Host("cline",          "Cline",          "mcpServers",      "none",   1,    "sse",  False),
)
# fmt: on
# In the folders of `host_folders`, the first before the others; those in {here} are a project's.
HOST_FILES: Final = {
    "claude-desktop": (
        "{local}/Packages/Claude_*/LocalCache/Roaming/Claude/claude_desktop_config.json",  # of the MSIX build
        "{data}/Claude/claude_desktop_config.json",
    ),
    "claude-code": ("{home}/.claude.json", "{here}/.mcp.json"),
    "vscode": ("{data}/Code/User/mcp.json", "{here}/.vscode/mcp.json"),
    "cursor": ("{home}/.cursor/mcp.json", "{here}/.cursor/mcp.json"),
    "codex": ("{codex}/config.toml", "{here}/.codex/config.toml"),
    "gemini": ("{home}/.gemini/settings.json", "{here}/.gemini/settings.json"),
    "zed": ("{config}/zed/settings.json",),
    "windsurf": ("{home}/.codeium/windsurf/mcp_config.json",),
    "goose": ("{roaming}/Block/goose/config/config.yaml", "{config}/goose/config.yaml"),
    "lm-studio": ("{home}/.lmstudio/mcp.json",),
    "amazon-q": ("{home}/.aws/amazonq/mcp.json",),
    "kiro": ("{home}/.kiro/settings/mcp.json",),
    "cline": ("{home}/.cline/data/settings/cline_mcp_settings.json",),
}
# The hosts that have commands for it: how they take a server in and let it go. VS Code has none that lets one go.
OWN_COMMANDS: Final = {
    "claude-code": ("claude mcp add-json --scope user {name} {entry}", "claude mcp remove --scope user {name}"),
    "codex": ("codex mcp add {name} -- {command}", "codex mcp remove {name}"),
    "vscode": ("code --add-mcp {named-entry}", ""),
}

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
HOST_KEYS: Final = {"cmd": "command", "envs": "env", "headers": "http_headers"} | {
    **dict.fromkeys(("serverUrl", "httpUrl", "uri"), "url"),
    **dict.fromkeys(("disabledTools", "excludeTools"), "disabled_tools"),
    **dict.fromkeys(("includeTools", "available_tools"), "enabled_tools"),
}
_TEXT_KEYS: Final = ("env", "http_headers", "command", "args", "cwd", "url")  # the first name their secrets
_TRANSPORTS: Final = ("sse", "http", "streamable-http", "streamable_http", "streamableHttp")  # what hosts call ours
_PARTS_OF_HOSTS: Final = ("builtin", "platform", "frontend", "inline_python")  # types of Goose's
_SAYS_NOTHING: Final = frozenset({"name", "description", "display_name", "bundled", "source", "tools"})
# What is lost with keys that we have nothing for.
_NO_ASKING: Final = "its tools were called without asking there; mcpmux leaves that to the host"
_LOST: Final = dict.fromkeys(("trust", "autoApprove", "alwaysAllow"), _NO_ASKING) | {
    **dict.fromkeys(("sandboxEnabled", "sandbox"), "it ran in a sandbox there, and does not here"),
    "oauth": "its login stays with that host: mcpmux login",
    "headersHelper": "the command that made its headers; ${cmd:...} in http_headers can run it",
}


class Machine(Struct, frozen=True):
    """What decides where a host's files are."""

    platform: str  # as sys.platform
    environment: Mapping[str, str]
    home: str
    here: str  # the folder whose project files are meant


def this_machine() -> Machine:
    return Machine(sys.platform, os.environ, str(Path.home()), os.getcwd())


def host_folders(machine: Machine) -> dict[str, PurePath]:
    """The folders that `HOST_FILES` name; one that a platform has not is missing."""
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


def host_files(host: Host, machine: Machine, projects: bool = True) -> list[PurePath]:
    """Where its files may be; may have a `*`."""
    folders = host_folders(machine)
    places = [file[1:].partition("}/") for file in HOST_FILES[host.name]]
    return [folders[base] / rest for base, _, rest in places if base in folders and (projects or base != "here")]


def real_files(host: Host, machine: Machine, projects: bool = True) -> list[Path]:
    """As `host_files`, with a `*` replaced by what is there; where nothing is, the path is left out."""
    import glob  # noqa: PLC0415

    found: list[Path] = []
    for pattern in host_files(host, machine, projects):
        folder, star, rest = pattern.as_posix().partition("*")
        found += [Path(one + rest) for one in sorted(glob.glob(glob.escape(folder) + star))] if star else [Path(folder)]
    return list(dict.fromkeys(found))


def host_named(name: str) -> Host | None:
    wanted = re.sub(r"[\s_]+", "-", name.strip().lower())
    return next((host for host in HOSTS if wanted in (host.name, host.title.lower(), *host.aliases.split())), None)


def host_of_file(path: Path, machine: Machine) -> tuple[Host, str | None]:
    """Whose file this is, by its place, else by its name, else by what it holds; and the project that it belongs to."""
    for host in HOSTS:
        if path in real_files(host, machine, projects=False):
            return host, None
    for host in HOSTS:
        for file in reversed(HOST_FILES[host.name]):  # a project's last
            base, _, tail = file[1:].partition("}/")
            if fnmatch.fnmatch(path.as_posix(), f"*/{tail}"):
                return host, str(path.parents[tail.count("/")]) if base == "here" else None
    by_key = {host.key: host for host in reversed(HOSTS)} | {"mcpServers": HOSTS[1]}
    document = host_document(path, read_text(path) or "")
    return next((host for key, host in by_key.items() if key in document), HOSTS[1]), None


# ── reading: JSON with comments, TOML, and Goose's YAML ──

_JSON_NOISE: Final = r'(?s)"(?:\\.|[^"\\])*"|//[^\r\n]*|/\*.*?\*/'
_TRAILING_COMMA: Final = r'"(?:\\.|[^"\\])*"|,(?=\s*[}\]])'


def bare_json(text: str) -> str:
    """Without comments and trailing commas, which become blanks: places in the text stay where they are."""
    for noise in (_JSON_NOISE, _TRAILING_COMMA):
        text = re.sub(noise, lambda found: found[0] if found[0][0] == '"' else re.sub(r"[^\r\n]", " ", found[0]), text)
    return text


def host_document(path: Path, text: str) -> dict[str, Any]:
    """What a host's file says. Raises `ConfigError`, one line."""
    kinds = {".toml": ("TOML", tomllib.loads), ".yaml": ("YAML", load_yaml), ".yml": ("YAML", load_yaml)}
    kind, read = kinds.get(path.suffix, ("JSON", lambda text: json.loads(bare_json(text).strip() or "{}")))
    try:
        document = parsed(path, text, kind, read)
    except ImportError:
        how = f"{BY_UVX.replace('uvx', 'uvx --with pyyaml', 1)} import goose"
        raise ConfigError(f"{path}: is YAML, and to read that takes one package more: {how}") from None
    if not isinstance(document, dict | None):
        raise ConfigError(f"{path}: not an object")
    return document or {}


def load_yaml(text: str) -> Any:
    """Numbers stay text, and so does what only YAML 1.1 takes for more (`on`, `yes`). Raises `ValueError`, and
    `ImportError` where PyYAML is not there: one host in thirteen writes YAML."""
    import yaml  # noqa: PLC0415

    words = {"true": True, "false": False, "null": None, "~": None}
    try:
        document = yaml.load(text, yaml.BaseLoader)  # noqa: S506 - makes nothing but texts, lists and mappings
        return _each_text(document, lambda one, under: words.get(one, one))
    except (yaml.YAMLError, TypeError) as wrong:  # a key that is a list
        raise ValueError(" ".join(str(wrong).split())) from None


def _each_text(value: Any, change: Callable[[str, str], Any], under: str = "") -> Any:
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


# ── secrets ──
# Patterns are plain text: serving does not pay for compiling them.


def variable_name(text: str) -> str:
    """As an environment variable is called: `github-apiKey` becomes GITHUB_API_KEY."""
    name = re.sub(r"\W+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text), flags=re.ASCII).strip("_").upper()
    return name if re.match(r"[A-Z_]", name) else f"_{name}"


class Variables:
    """The variables that imported servers come to need: each secret has one, and no two share one."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.values: dict[str, str] = {}  # of the secrets
        self.notes: dict[str, str] = {}  # of what a person alone can know: what that is

    def hold(self, secret: str, name: str, server: str) -> str:
        """What to write in place of a secret that stood under a name."""
        secret = secret.replace("$${", "${")
        long = variable_name(f"{server}_{name}")
        names = [name] if re.fullmatch(r"[A-Z_][A-Z0-9_]*", name) else []
        names = itertools.chain(names, [long], (f"{long}_{number}" for number in itertools.count(2)))
        held, there = self.values, self._environment
        variable = next(one for one in names if held.get(one, secret) == secret == there.get(one, secret))
        held[variable] = secret
        return f"${{{variable}}}"

    def needed_by(self, tables: Tables) -> dict[str, str]:
        """The variables that these servers cannot do without, each with the place that needs it first."""
        found: dict[str, str] = {}
        for name, table in tables.items():
            for text, at in texts_of({key: table[key] for key in _TEXT_KEYS if key in table}, ""):
                for one in re.finditer(PLACEHOLDER, text):
                    variable = one["var"]
                    if variable and one["default"] is None and not is_safe(variable, ""):
                        found.setdefault(variable, f"{name}: {at[1:]}{self.notes.get(variable, '')}")
        return found


# ── what a host means, in our words ──


class HostEntry(Struct, frozen=True):
    """A server as it stands in a host's file."""

    host: Host
    file: Path
    name: str
    table: Any
    folder: str | None = None  # of the project that it is for
    inputs: Mapping[str, Mapping[str, Any]] = {}  # what VS Code asks for, by id


def entries_of(host: Host, path: Path, folder: str | None) -> list[HostEntry]:
    """All servers in a host's file; ourselves too. Raises `ConfigError`."""
    document = host_document(path, read_text(path) or "")
    inputs = {one["id"]: one for one in document.get("inputs") or () if isinstance(one, dict) and "id" in one}
    groups: list[tuple[str | None, Any]] = [(folder, document.get(host.key))]
    if host.name == "claude-code" and isinstance(projects := document.get("projects"), dict):
        groups += [(at, project.get(host.key)) for at, project in projects.items() if isinstance(project, dict)]
    found: list[HostEntry] = []
    for at, servers in groups:
        if not isinstance(servers, dict | None):
            raise ConfigError(f"{path}: {host.key} is not an object")
        found += [HostEntry(host, path, name, table, at, inputs) for name, table in (servers or {}).items()]
    return found


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


def import_entry(entry: HostEntry, variables: Variables, machine: Machine) -> tuple[str, dict[str, Any], list[str]]:
    """A name, a table of ours, and what the person should know of it. Raises `ConfigError` for an entry that cannot
    become one: why, in a line."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", entry.name).strip("-")[:64] or "server"
    notes = [] if name == entry.name else [f"called {entry.name!r} there"]
    table, left = _with_our_keys(entry)
    if isinstance(env := table.get("env", {}), dict):  # if not, that is told below
        keyring = left.pop("env_keys", ())
        for key in (key for key in keyring if isinstance(key, str)) if isinstance(keyring, list) else ():
            table["env"] = env = {**env, key: f"${{{key}}}"}
            variables.notes[key] = f"; {entry.host.title} has it in its keyring"

    held = functools.partial(variables.hold, server=name)

    def ours(key: str, text: str, under: str) -> str:
        if key == "args" and entry.host.name == "vscode":  # as it does
            text = re.sub(r"^~(?=[/\\]|$)", lambda _: "${userHome}", text)
        return hide_secrets(translate(text, entry, machine, variables, notes), under, held)

    for key in (key for key in _TEXT_KEYS if key in table):
        table[key] = _each_text(table[key], functools.partial(ours, key))
    if isinstance(file := left.pop("envFile", None), str) and isinstance(table.setdefault("env", {}), dict):
        notes += _take_env_file(translate(file, entry, machine, variables, notes), table, held)
    notes += [f"left out: {key} ({_LOST.get(key, 'mcpmux has nothing like it')})" for key in sorted(left)]
    _, wrong = read_server(name, table, [])
    try:
        tomllib.loads(server_block(name, table, ()).encode().decode())
    except (TypeError, ValueError):  # half of a surrogate pair, a null in a list
        wrong.append("cannot be written as TOML")
    if wrong:
        raise ConfigError("; ".join(problem.removeprefix(f"mcp_servers.{name}.") for problem in wrong))
    return name, table, list(dict.fromkeys(notes))


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
    own = keys_of(ServerOptions).keys() - {"tools"} | {"startup_timeout_ms"}
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


def _take_env_file(file: str, table: dict[str, Any], held: Callable[[str, str], str]) -> list[str]:
    """What the file holds goes where secrets go: it need not be there any more."""
    try:
        values = parse_env_file(Path(os.path.expanduser(file)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [f"left out: its envFile {file}, which cannot be read"]
    table["env"] = {name: held(_plain(value), name) for name, value in values.items()} | table.get("env", {})
    return [f"its envFile {file} has {', '.join(values)}"]


def _plain(text: str) -> str:
    """A text as it has to be written where we would replace placeholders."""
    return text.replace("${", "$${")


def translate(text: str, entry: HostEntry, machine: Machine, variables: Variables, notes: list[str]) -> str:
    """A host's placeholders as ours; what it would take as it stands, we do too."""
    fixed = {"userHome": machine.home, "/": os.sep, "pathSeparator": os.sep}
    if entry.folder is not None:
        fixed |= dict.fromkeys(("workspaceFolder", "cwd"), entry.folder)
        fixed["workspaceFolderBasename"] = re.split(r"[/\\]", entry.folder.rstrip("/\\"))[-1]

    def ours(parts: dict[str, str | None], whole: str) -> str:
        if variable := parts.get("var") or parts.get("bare"):
            default = parts.get("default")
            return f"${{{variable}}}" if default is None else f"${{{variable}:-{default}}}"
        kind, _, id = (parts.get("word") or "").partition(":")
        variable = variable_name(id or kind)
        asked = entry.inputs.get(id, {}) if kind == "input" else {}
        default = asked.get("default")
        if isinstance(default, str) and not asked.get("password") and not re.search(r"[{}]", default):
            return f"${{{variable}:-{default}}}"
        what = asked.get("description")
        variables.notes.setdefault(variable, f", in place of {whole}" + (f", {what}" if what else ""))
        return f"${{{variable}}}"

    done, plain, at = "", "", 0  # `plain` stands for itself, up to `at`
    for found in re.finditer(DIALECTS[entry.host.dialect], text):
        plain += text[at : found.start()]
        at, parts = found.end(), found.groupdict()
        if (word := parts.get("word")) in fixed:
            notes.append(f"{found[0]} became {fixed[word]}")
            plain += fixed[word]
            continue
        before = _plain(plain)
        bare = before.rstrip("$")  # `$${` would stand for a plain `${`
        done += bare + "${DOLLAR:-$}" * (len(before) - len(bare)) + ours(parts, found[0])
        plain = ""
    return done + _plain(plain + text[at:])


# ── our own file: what is there stays byte for byte ──

Tables = Mapping[str, dict[str, Any]]  # of servers, by name


def _as_expected(new: str, expected: dict[str, Any]) -> str:
    """Raises `ConfigError` where the lines that were changed were not all there is of it."""
    with contextlib.suppress(ValueError):
        if {"mcp_servers": {}} | tomllib.loads(new) == {"mcp_servers": {}} | expected:
            return new
    raise ConfigError("its [mcp_servers] is written in a way that mcpmux cannot change; do it by hand")


def with_servers(text: str, tables: Tables, comments: Mapping[str, list[str]], out: Iterable[str] = ()) -> str:
    """The file's text with these servers at its end, in place of what has their names, and without others. Raises
    `ConfigError`."""
    before, newline = tomllib.loads(text), "\r\n" if "\r\n" in text else "\n"
    servers = before.get("mcp_servers", {})
    gone = servers.keys() & {*tables, *out}
    for name in gone:
        text = _without_server(text, name)
    if tables:
        blocks = [server_block(name, table, comments.get(name, ())) for name, table in tables.items()]
        text += ("" if not text or text.endswith("\n") else newline) + (newline if text.strip() else "")
        text += "\n".join(blocks).replace("\n", newline)
    left = {name: table for name, table in servers.items() if name not in gone}
    return _as_expected(text, before | {"mcp_servers": {**left, **tables}})


def with_setting(text: str, table: tuple[str, ...], key: str, value: str | bool | None) -> str:
    """The file's text with one key of a table set, or without that key. Raises `ConfigError`."""
    expected = tomllib.loads(text)
    holder = expected
    for name in table:
        holder = holder.setdefault(name, {})
    holder.pop(key, None)
    newline = "\r\n" if "\r\n" in text else "\n"
    said = [] if value is None else [f"{key} = {json.dumps(value)}{newline}"]
    if value is not None:
        holder[key] = value
    words = [rf"""(["']?){re.escape(name)}\{at}""" for at, name in enumerate(table, 1)]
    head = re.compile(r"\s*\[\s*" + r"\s*[.]\s*".join(words) + r"\s*\]")
    lines = text.splitlines(keepends=True)
    start = next((at for at, line in enumerate(lines, 1) if head.match(line)), None)
    if start is None:
        at = next((at for at, line in enumerate(lines) if not line.startswith("#:")), len(lines))  # after the schema
        gap = [newline] if lines[at:] and lines[at].strip() else []
        lines[at:at] = [f"[{'.'.join(table)}]{newline}", *said, *gap]
    else:
        end = next((at for at in range(start, len(lines)) if re.match(r"\s*\[", lines[at])), len(lines))
        old = next((at for at in range(start, end) if re.match(rf"\s*{key}\s*=", lines[at])), None)
        at, more = (start, 0) if old is None else (old, 1)
        lines[at : at + more] = said
    return _as_expected("".join(lines), expected)


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


def rewritten(path: Path, old: str | None, change: Callable[[str], str]) -> str:
    """What our file becomes: it is known to load. Raises `ConfigError`."""
    text = (old or "").removeprefix("\ufeff")
    try:
        new = change(text or f"#:schema ./{schema_file(path).name}\n")
        config_of(tomllib.loads(new), path, lambda named: absolute(named, path.parent))
    except (ValueError, ConfigError) as wrong:
        raise ConfigError(str(wrong) if str(path) in str(wrong) else f"{path}: {wrong}") from None
    return (old or "").removesuffix(text) + new


def change_config(path: Path, change: Callable[[str], str]) -> None:
    """Writes our file anew. Raises `ConfigError` and leaves the file as it was."""
    old = read_text(path)
    write_config(path, rewritten(path, old, change), old)


def write_config(path: Path, new: str, old: str | None) -> None:
    """As `write_text`, with the schema that the file names."""
    write_text(path, new, old)
    if re.match(f"#:schema ./{re.escape(schema_file(path).name)}\\s", new):
        with contextlib.suppress(OSError):  # editors check the file by that and complete what is typed: a help, no more
            write_whole(schema_file(path), json.dumps(schema_of_config(), indent=2).encode() + b"\n")


def schema_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}.schema.json")


# ── a host's file: what is not ours stays byte for byte ──


Span = tuple[int, int, int]  # of a member in a JSON text: where it begins, where its value does, and where both end


def _members(bare: str, brace: int) -> tuple[dict[str, Span], int]:
    """Of the object that opens at `brace`; and where it closes. The text is known to be JSON."""
    decode = json.JSONDecoder().raw_decode
    found: dict[str, Span] = {}

    def next_word(at: int) -> int:
        while bare[at] in " \t\r\n,:":
            at += 1
        return at

    at = next_word(brace + 1)
    while bare[at] != "}":
        key, after = decode(bare, at)
        value = next_word(after)
        end = decode(bare, value)[1]
        found[key] = at, value, end
        at = next_word(end)
    return found, at


def _json_of(value: Any, indent: str | None = None) -> str:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return json.dumps(value, indent=indent) if re.search(r"[\ud800-\udfff]", text) else text


def _json_with(text: str, key: str, name: str, table: Any, donor: str) -> str:
    """With a server in place of the one of that name, or at the end."""
    text = text if text.strip("\ufeff \t\r\n") else "{}\n"
    bare = bare_json(text)
    brace, depth, member, value = bare.index("{"), 1, key, {name: table}
    _, start, end = _members(bare, brace)[0].get(key, (0, 0, 0))
    if bare[start:end] not in ("", "null"):
        brace, depth, member, value = start, 2, name, table
    members, close = _members(bare, brace)
    newline = "\r\n" if "\r\n" in text else "\n"
    found = re.search(r'\n([ \t]+)"', text)
    indent = found[1] if found else "  "
    pad = newline + indent * depth
    written = _json_of(value, indent).replace("\n", pad)
    if member in members:
        _, start, end = members[member]
        return text[:start] + written + text[end:]
    written = f"{pad}{_json_of(member)}: {written}"
    if members:
        last = max(end for *_, end in members.values())
        return text[:last] + "," + written + text[last:]
    inside = text[brace + 1 : close]
    end = inside if "\n" in inside else inside.strip() + newline + indent * (depth - 1)
    return text[: brace + 1] + written + end + text[close:]


def _json_without(text: str, key: str, name: str) -> str:
    bare = bare_json(text)
    brace = _members(bare, bare.index("{"))[0][key][1]
    members, close = _members(bare, brace)
    at, spans = list(members).index(name), list(members.values())
    if at:
        return text[: spans[at - 1][2]] + text[spans[at][2] :]
    if len(spans) > 1:
        return text[: spans[0][0]] + text[spans[1][0] :]
    return text[: brace + 1] + text[close:]


def _yaml_node(text: str, key: str) -> Any:
    import yaml  # noqa: PLC0415

    root: Any = yaml.compose(text, yaml.BaseLoader)
    return next((value for one, value in root.value if one.value == key), None) if root else None


def _yaml_span(text: str, node: Any, name: str) -> tuple[int, int]:
    """Where a member of a YAML mapping is in the text; of one with a line of its own, whole lines."""
    if node.flow_style:
        raise ValueError
    keys = [key for key, _ in node.value]
    at = [key.value for key in keys].index(name)
    start, *after = (key.start_mark.index - key.start_mark.column for key in keys[at : at + 2])
    lines = text[start : after[0] if after else node.end_mark.index].splitlines(keepends=True)
    while not after and re.match(r"\s*(#|$)", lines[-1]):  # what follows the last one is not a part of it
        lines.pop()
    return start, start + sum(map(len, lines))


def _yaml_with(text: str, key: str, name: str, table: Any, donor: str) -> str:
    """As flow, which is JSON; or as it stood in a `donor`: what is a number or a word varies with YAML's version."""
    node, newline = _yaml_node(text, key), "\r\n" if "\r\n" in text else "\n"
    line = f"{_json_of(name)}: {_json_of(table)}"
    if donor:
        start, end = _yaml_span(donor, _yaml_node(donor, key), name)
        line = donor[start:end].strip(" \r\n,")
    if node is None:
        return text + ("" if not text or text.endswith("\n") else newline) + f"{key}:{newline}  {line}{newline}"
    if isinstance(node.value, list) and any(one.value == name for one, _ in node.value):
        text = _yaml_without(text, key, name)
        node = _yaml_node(text, key)
    start, end = node.start_mark, node.end_mark
    if isinstance(node.value, list) and not node.flow_style:
        return text[: start.index] + line + newline + " " * start.column + text[start.index :]
    if node.value and node.value not in ("null", "~"):
        raise ValueError
    return text[: start.index] + f"{newline}  {line}" + text[end.index :]


def _yaml_without(text: str, key: str, name: str) -> str:
    start, end = _yaml_span(text, _yaml_node(text, key), name)
    return text[:start] + text[end:]


_EDITS: Final[dict[str, tuple[Callable[..., str], Callable[..., str]]]] = {
    ".json": (_json_with, _json_without),
    ".toml": (
        lambda text, key, name, table, donor: with_servers(text, {name: table}, {}),
        lambda text, key, name: _without_server(text, name),
    ),
    ".yaml": (_yaml_with, _yaml_without),
}


def edited(path: Path, text: str, key: str, out: Iterable[str], into: Mapping[str, Any], donor: str = "") -> str:
    """A host's file without some servers and with others. Raises `ConfigError` and has changed nothing then."""
    document, bare = host_document(path, text), text.removeprefix("\ufeff")
    servers = document.get(key) or {}
    if not isinstance(servers, dict):
        raise ConfigError(f"{path}: {key} is not an object")
    put_in, take_out = _EDITS[path.suffix]
    new, gone = bare, [name for name in out if name in servers]
    left = {name: table for name, table in servers.items() if name not in gone}
    read = load_yaml(_json_of(dict(into))) if path.suffix == ".yaml" else dict(into)  # numbers of YAML's are text
    try:
        for name in gone:
            new = take_out(new, key, name)
        for name, table in into.items():
            if (name, read[name]) not in left.items():
                new = put_in(new, key, name, table, donor)
        after = host_document(path, new)
        if (after.get(key) or {}) != left | read or document | {key: 0} != after | {key: 0}:
            raise ValueError
    except (ValueError, ConfigError):
        by_hand = f"its {key} is written in a way that mcpmux cannot change; do it by hand"
        raise ConfigError(f"{path}: {by_hand}") from None
    return text.removesuffix(bare) + new


def servers_in(path: Path, text: str, key: str) -> dict[str, Any]:
    servers = host_document(path, text).get(key)
    return servers if isinstance(servers, dict) else {}


def uninstalled(path: Path, text: str, kept: str | None, key: str) -> tuple[str | None, list[str]]:
    """The file as it was before us, and the servers that had to be put back one by one, because somebody has changed
    it since. None: there was no file. Raises `ConfigError`."""
    now, before = (dict(servers_in(path, one, key)) for one in (text, kept or ""))
    missing = {name: table for name, table in before.items() if name not in now}
    now.pop(ENTRY_NAME, None)
    if host_document(path, text) | {key: now | missing} == host_document(path, kept or "") | {key: before}:
        return kept, []
    return edited(path, text, key, [ENTRY_NAME], missing, kept or ""), list(missing)


# ── how a host starts us ──


def _origin(here: Path) -> dict[str, Any] | None:
    """Where the installed package came from (`direct_url.json`, empty for one from an index). None: what runs is not
    the installed package."""
    import importlib.metadata  # noqa: PLC0415

    try:
        package = importlib.metadata.distribution(DISTRIBUTION)
        origin = json.loads(package.read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    is_linked = here.parent.as_uri() == origin.get("url") and origin.get("dir_info", {}).get("editable")
    return origin if is_linked or here == Path(str(package.locate_file("mcpmux.py"))) else None


def entry_for_hosts(config: Path, sampling: bool) -> dict[str, Any]:
    """How a host is to start mcpmux: with whole paths, since hosts with a window have a bare PATH and no folder."""
    here, prefix = Path(__file__).absolute(), Path(sys.prefix)
    program = prefix / ("Scripts/mcpmux.exe" if sys.platform == "win32" else "bin/mcpmux")
    origin = _origin(here)
    command, args = sys.executable, [str(here)]
    is_swept = any((folder / "CACHEDIR.TAG").exists() for folder in prefix.parents)  # uv's cache, pip's, pipx's…
    if is_swept and origin is None:  # `uv run mcpmux.py`
        command, args = os.environ.get("UV", "uv"), ["run", *args]
    elif is_swept:
        found = find_program("uvx", extended_path(os.environ))
        command, args = os.path.abspath(found) if found else "uvx", run_by_uvx(origin or {}, sampling)
    elif origin is not None and program.is_file():
        command, args = str(program), []
    if config != config_path(None) or {"MCPMUX_CONFIG", "XDG_CONFIG_HOME"} & os.environ.keys():  # the host has neither
        args += ["--config", str(config)]
    return {"command": command, "args": args}


def run_by_uvx(origin: Mapping[str, Any], sampling: bool) -> list[str]:
    """What uvx has to be told to run just what runs now: this version of an index, a wheel, a commit or a folder.
    https://packaging.python.org/en/latest/specifications/direct-url-data-structure/"""
    package = DISTRIBUTION + ("[sampling]" if sampling else "")
    if "url" in origin:
        vcs, part = origin.get("vcs_info"), origin.get("subdirectory")
        at = f"{vcs['vcs']}+{origin['url']}@{vcs['commit_id']}" if vcs else origin["url"]
        return ["--from", f"{package} @ {at}" + (f"#subdirectory={part}" if part else ""), "mcpmux"]
    package += f"=={__version__}"
    return ["--from", package, "mcpmux"] if sampling or DISTRIBUTION != "mcpmux" else [package]


def entry_in(host: Host, entry: dict[str, Any]) -> dict[str, Any]:
    """Our entry as this host writes one."""
    if host.name != "goose":
        return entry
    own = {"type": "stdio", "name": ENTRY_NAME, "enabled": True, "cmd": entry["command"], "args": entry["args"]}
    return own | {"envs": {}, "timeout": 300}


def own_command(host: Host, which: int, name: str, table: Mapping[str, Any]) -> list[str]:
    """A host's own command that takes a server in (0) or lets it go (1); empty: it has none."""
    stands_for = {
        "{name}": [name],
        "{entry}": [json.dumps(table)],
        "{named-entry}": [json.dumps({"name": name, **table})],
        "{command}": [table.get("command", ""), *table.get("args", ())],
    }
    words = OWN_COMMANDS.get(host.name, ("", ""))[which].split()
    return [part for word in words for part in stands_for.get(word, [word])]


_OFTEN_USED: Final = r"(AWS|AZURE|CLOUDSDK|GOOGLE|OLLAMA|PG)_?[A-Z_]+"


def no_longer_seen(entries: Iterable[HostEntry], environment: Mapping[str, str]) -> list[str]:
    """Which variables servers were given where they were, and may have used, by their names or the servers'."""
    names = {re.sub("[^A-Z]+", "_", entry.name.upper()) for entry in entries if entry.host.passes_all}
    words = "|".join([_OFTEN_USED, *(rf"{re.escape(name)}_\w+" for name in names)])
    found = (one for one in environment if re.fullmatch(words, one) or SECRET_NAME.search(one)) if names else ()
    return [one for one in found if not is_safe(one, environment[one])]


class Outcome(Struct, frozen=True):
    """What becomes of an entry."""

    entry: HostEntry
    said: str
    notes: list[str]
    moved: bool = False  # it is in our file now
    failed: bool = False
    name: str = ""  # what it is called there


class Import(Struct):
    """What importing does: nothing is written yet."""

    tables: dict[str, dict[str, Any]] = {}
    comments: dict[str, list[str]] = {}
    outcomes: list[Outcome] = []
    needed: dict[str, str] = {}  # the variables without which these servers do not work, each with what for
    secrets: dict[str, str] = {}  # what those of them hold that stood in a host's file


def _one_of(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any] | None:
    """Two hosts' tables as one server: what is run or reached is the same, and what each sets the other does not set
    otherwise. None: they are two."""
    both = {**other, **one}
    for part in ("env", "http_headers"):
        mine, theirs = one.get(part, {}), other.get(part, {})
        if any(theirs.get(name, value) != value for name, value in mine.items()):
            return None
        both |= {part: {**theirs, **mine}} if mine or theirs else {}
    return both if all(one.get(key) == other.get(key) for key in ("command", "args", "url", "cwd", "enabled")) else None


def plan_import(
    entries: Iterable[HostEntry], there: Mapping[str, Any], variables: Variables, machine: Machine, force: bool = False
) -> Import:
    """Brings entries together with the servers that are present. Each is imported, or it is said why it is not."""
    plan, hosts = Import(), dict[str, list[Host]]()
    for entry in entries:
        if why := why_not_ours(entry.table):
            plan.outcomes.append(Outcome(entry, f"left where it is: {why}", []))
            continue
        try:
            stem, table, notes = import_entry(entry, variables, machine)
        except ConfigError as wrong:
            plan.outcomes.append(Outcome(entry, f"cannot be imported: {wrong}", [], failed=True))
            continue
        names = [stem, *(f"{stem[:60]}-{number}" for number in range(2, 1000))]
        same = (one for one, its in there.items() if isinstance(its, dict) and _one_of(its, table) == its)
        free = (one for one in names if one not in plan.tables or _one_of(plan.tables[one], table))
        alike = (one for one, its in plan.tables.items() if entry.host not in hosts[one] and its == table)
        name = (twin := next(same, None)) or next(alike, None) or next(free)
        hosts.setdefault(name, []).append(entry.host)
        said = "imported" if name == entry.name else f"imported as {name}"
        if twin or name in plan.tables:
            said, notes = f"is there already, as {name}", []
            plan.tables |= {name: _one_of(plan.tables[name], table) or table} if not twin else {}
        elif name in there and not force:
            plan.outcomes.append(Outcome(entry, f"not imported: there is another {name}, which --force overwrites", []))
            continue
        else:
            project = f", for {entry.folder}" if entry.folder else ""
            plan.tables[name] = table
            plan.comments[name] = [f"From {entry.host.title}: {entry.file}{project}", *notes]
        plan.outcomes.append(Outcome(entry, said, notes, moved=True, name=name))
    plan.needed = variables.needed_by(plan.tables)
    plan.secrets = {name: variables.values[name] for name in plan.needed if name in variables.values}
    return plan


# ══ 24. CLI ═══════════════════════════════════════════════════════════════════════════════════════════════════════════
# Messages for people. Exit codes: 0 well, 1 a server or a tool failed, 2 the command or the config cannot be used, 130
# the person pressed Ctrl-C.

_HOST_NAMES: Final = ", ".join(host.name for host in HOSTS)
# Of ours, as the mux starts them.
CHILDREN: Final = {"_sampler": lambda lines, writing: SamplerLoop(writing).run(lines), "_page": serve_page}
_PROFILE: Final = "show what [hosts.NAME] says, whatever the host calls itself"
_WHICH_CONFIG: Final = "the TOML file (default: $MCPMUX_CONFIG, else mcpmux.toml in the user's config folder)"


def main(argv: list[str] | None = None) -> int:
    """The console script. While serving, stdout is the protocol's and all that people read goes to stderr."""
    words = sys.argv[1:] if argv is None else list(argv)
    close_memory()
    if words[:1] == ["_demo_server"]:  # of the demo, by the demo
        return DemoServer(words[1]).serve()
    if words[:1] == ["_learn"]:  # by `_serve`
        return _learn_on(Path(words[1]), words[2:])
    if words and words[0] in CHILDREN:
        return child_main(CHILDREN[words[0]])
    arguments = parse(words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a console's alphabet lacks is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    former: Any = sys.stdout, sys.stderr
    if arguments.run is not _serve:
        sys.stdout, sys.stderr = (stream and Screen(stream) for stream in former)
    try:
        return arguments.run(arguments) or 0
    except ConfigError as wrong:
        print(re.sub(r"^(?! )", "mcpmux: ", as_typed(str(wrong)), flags=re.MULTILINE), file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):  # Ctrl-C, or something else told the command to end
        return 130
    except BrokenPipeError:  # as of `mcpmux tools | head`; Python flushes stdout once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    finally:
        sys.stdout, sys.stderr = former


class Subcommand(Struct, frozen=True):
    """A row of the table of commands."""

    name: str
    run: Callable[[argparse.Namespace], int | None]  # its docstring is shown by --help; a test runs the example
    help: str  # in the list of commands
    arguments: str = ""  # by their words in `ARGUMENTS`
    rest: str = ""  # what may stand after `--`


def _parser() -> argparse.ArgumentParser:
    class Parser(argparse.ArgumentParser):
        """Says of a command that is none which one is near."""

        def error(self, message: str) -> NoReturn:
            if unknown := re.search("invalid choice: '([^']*)'", message):
                message += did_you_mean(unknown[1], [row.name for row in SUBCOMMANDS])
            super().error(message)

    what = "Runs all your MCP servers behind one stdio entry. Without a command it serves: a host starts it."
    parser = Parser(prog="mcpmux", description=what, epilog="example: mcpmux --config ~/mcpmux.toml")
    parser.add_argument("--config", metavar="PATH", help=_WHICH_CONFIG)
    parser.add_argument("--profile", metavar="NAME", default="", help=_PROFILE)
    parser.add_argument("--version", action="version", version=f"mcpmux {__version__}")
    parser.set_defaults(run=_serve, takes="")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for row in SUBCOMMANDS:
        description, _, example = " ".join((row.run.__doc__ or "").split()).partition(" Example: ")
        command = commands.add_parser(row.name, help=row.help, description=description, epilog=f"example: {example}")
        command.formatter_class = argparse.RawDescriptionHelpFormatter  # an example stays on one line
        command.register("action", "yes or no", argparse.BooleanOptionalAction)
        for flags, keys in (ARGUMENTS[word] for word in row.arguments.split()):
            # What stands before the command is not undone by it.
            kept: dict[str, Any] = {"default": argparse.SUPPRESS} if flags == ("--config",) else {}
            command.add_argument(*flags, **keys, **kept)
        if row.rest:
            command.usage = f"{command.format_usage().removeprefix('usage: ').strip()} [-- {row.rest}]"
        command.set_defaults(run=row.run, takes=row.rest)
    return parser


def parse(words: list[str]) -> argparse.Namespace | SimpleNamespace:
    """The command line. What stands after `--` is taken off first: argparse would look for options in it. As hosts'
    files have it, it is read without argparse, which takes a tenth of a start."""
    given = dict(zip(words[::2], words[1::2], strict=False))
    is_plain = given.keys() <= {"--config", "--profile"} and not any(value[:1] == "-" for value in given.values())
    if is_plain and 2 * len(given) == len(words):
        return SimpleNamespace(run=_serve, config=given.get("--config"), profile=given.get("--profile", ""))
    at = words.index("--") if "--" in words else len(words)
    parser = _parser()
    arguments, unknown = parser.parse_known_args(words[:at])
    arguments.rest = words[at + 1 :]
    if unknown or (arguments.rest and not arguments.takes):
        hint = f"; {arguments.takes} stands after --" if arguments.takes else ""
        parser.error(f"unrecognized arguments: {command_line(unknown or words[at:])}{hint}")
    return arguments


def _number_of_days(text: str) -> int:
    if not (text.isdecimal() and len(text) < 6 and 1 <= int(text) <= 36500):
        raise argparse.ArgumentTypeError("a number from 1 to 36500 is expected")
    return int(text)


def _serve(arguments: argparse.Namespace) -> None:
    if sys.stdin is not None and sys.stdin.isatty():
        hint = "mcpmux speaks MCP on stdin and stdout: a host starts it. Try `mcpmux check` or `mcpmux demo`."
        print(hint, file=sys.stderr)
    config = with_profile(load_config(config_path(arguments.config)), arguments.profile)
    reading, writing = take_over_stdio()
    journal = Journal(config.options.log_level, state_folder() / "logs")

    async def serve() -> list[str]:
        mux = Mux(config, HostPipes(reading, writing, int(config.options.max_message_mb * MB)), journal)
        await mux.run()
        return mux.unlearnt

    if unlearnt := asyncio.run(serve()):
        with contextlib.suppress(OSError):
            words, nothing = again("_learn", str(config.path), *unlearnt), subprocess.DEVNULL
            subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=nothing, **OWN_GROUP)
    journal.close()


def _learn_on(path: Path, names: list[str]) -> int:
    """`mcpmux _learn`: a host has gone that was told of other servers only. What these offer is learnt all the same, in
    the time that they would have had, so that the next start knows it."""
    with contextlib.suppress(OSError, ConfigError), locked(user_folder("cache") / "learning.lock", patience=0):
        checked(only(load_config(path), names))
    return 0


# ── looks ──

STYLES: Final = {"bold": "1", "red": "31", "green": "32", "yellow": "33"}
OF_STATES: Final = {"ready": "green", "enabled": "green", "failed": "red", "broken": "red", "starting": "yellow"}

_OURS: Final = os.urandom(8).hex()  # about what mcpmux itself makes a terminal do: no peer can guess it


def ours(sequence: str) -> str:
    return f"{_OURS}{sequence}{_OURS}"


class Screen:
    """A stream for people: what the words of peers would make a terminal do is made visible, whoever prints them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        parts = enumerate(text.split(_OURS))
        return self._stream.write("".join(part if at % 2 else harmless(part) for at, part in parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


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
    return ours(f"\x1b[{STYLES[style]}m") + text + ours("\x1b[0m")


def to_stderr(text: str) -> None:
    if text and sys.stderr is not None:
        sys.stderr.write(text)
        sys.stderr.flush()


class Waiting:
    """What a command waits for, on stderr: a line each. A terminal shows them in place, until the end; elsewhere each
    change is a line of its own."""

    def __init__(self) -> None:
        self.is_in_place = moves(sys.stderr)
        self._lines: dict[str, str] = {}
        self._drawn = 0
        self._said = ""
        self._paused = False

    def show(self, lines: Mapping[str, str]) -> None:
        """By what is waited for, how that goes."""
        new = {name: text for name, text in lines.items() if self._lines.get(name) != text}
        self._lines |= new
        if new:
            self._write("" if self.is_in_place else "".join(f"{name}: {text}\n" for name, text in new.items()))

    def servers(self, servers: Iterable[Facts], now: float) -> None:
        """Those that are used; in a terminal with a clock, and a count if they are several."""
        quiet = (State.IDLE, State.STOPPING, State.STOPPED)
        shown = [one for one in servers if one.state not in quiet]
        lines = {one.name: how_it_goes(one, now if self.is_in_place else None) for one in shown}
        if self.is_in_place and len(lines) > 1:
            ready = sum(text.startswith("ready") for text in lines.values())
            lines[""] = f"{ready} of {len(lines)} ready"
            self._lines.pop("", None)  # below all others
        self.show(lines)

    def say(self, text: str) -> None:
        """A line that stays."""
        self._write(f"{text}\n")

    def clear(self, *, paused: bool = False) -> None:
        """Nothing is shown any more; what comes while `paused` waits, since a person is being asked."""
        self._paused = paused
        self._write("", draws=False)

    def _write(self, text: str, *, draws: bool = True) -> None:
        """What is drawn gives way to what stays, as this text does, and follows it."""
        lines = self._drawing() if draws and self.is_in_place and not self._paused else []
        said, self._said = ("", self._said + text) if self._paused else (self._said + text, "")
        to_stderr((ours(f"\x1b[{self._drawn}A\x1b[J") if self._drawn else "") + said + "".join(lines))
        self._drawn = len(lines)

    def _drawing(self) -> list[str]:
        size = shutil.get_terminal_size()
        rows = list(self._lines.items())
        if len(rows) >= size.lines:  # who is ready is waited for no more
            rows = [(name, text) for name, text in rows if not text.startswith("ready")]
        width = max((len(name) for name, _ in rows), default=0)
        room = max(size.columns - width - 3, 1)
        lines: list[str] = []
        for name, text in rows[-(size.lines - 1) :]:
            style = OF_STATES.get(text.partition(",")[0], "yellow" if name and "fetching" in text else None)
            lines.append(f"{name:{width}}  {painted(in_a_line(text)[:room], style, sys.stderr)}\n")
        return lines


def how_it_goes(server: Facts, now: float | None) -> str:
    """A server's state, for those who wait for its lists; `now` is for the clock, if there is to be one."""
    if server.state is State.READY and not server.settling:
        return f"ready, {counted(len(server.lists.get('tools/list', ())), 'tool')}"
    is_late = server.state is State.STARTING and server.run.stage is Stage.LATE
    if server.state not in (State.READY, State.STARTING) or (server.trouble and not is_late):
        return "failed" if server.trouble else server.state.value
    what = "starting" if server.state is State.STARTING else "starting, reading its lists"
    seconds = 0.0 if now is None else now - server.run.started_at
    if now is None and is_late:
        return f"{what}, over {server.options.startup_timeout_sec:g} s"
    launcher = launcher_of(server.options.command or "", server.options.args)
    if launcher and server.state is State.STARTING and seconds >= 3:
        what = f"{launcher} is fetching or starting it"
    return what if seconds < 2 else f"{what}, {seconds:.0f} s"


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


# ── the host that commands play ──

PERSON: Final = {"elicitation": {"form": {}, "url": {}}}  # what a terminal can do; sampling and roots are the config's

Scene = Callable[["InnerHost"], Coroutine[Any, Any, Decoded]]  # what a command does as a host
Bar = Callable[[Fields], None]  # is told of a request's progress


class InnerHost:
    """A host in mcpmux's own process: what a command wants of servers, it asks as any host would.

    On `waiting` a person sees how each server does, and which model is asked; `elicited` answers what servers ask the
    person; `hears` is given their notifications.
    """

    def __init__(
        self,
        config: Config,
        waiting: Waiting | None = None,
        *,
        cached: bool = False,
        capabilities: Mapping[str, Any] = {},
        elicited: Callable[[Fields], Coroutine[Any, Any, Any]] | None = None,
        hears: Callable[[str, Fields], None] = lambda method, params: None,
        model: Iterable[str] = (),
    ) -> None:
        self._journal = Journal("error", state_folder() / "logs")
        self._journal.threshold = LEVELS["error"] + 1  # what is wrong is in the answers
        options = msgspec.structs.replace(config.options, expose="all")  # a person sees everything
        everything = msgspec.structs.replace(config, options=options, hosts={})
        self.mux = Mux(everything, self, self._journal, cached=cached, watches=False, model=model)
        self.about: Any = None  # the answer to `initialize`
        self._capabilities, self._elicited = capabilities, elicited
        self._hears, self._waiting = hears, waiting
        self._open: dict[int, tuple[asyncio.Future[Reply], Bar | None]] = {}
        self._questions: dict[bytes, asyncio.Task[None]] = {}
        self._numbers = itertools.count(1)
        self._trouble: Exception | None = None  # of the command's own functions: it ends the scene

    def play(self, scene: Scene[Decoded]) -> Decoded:
        """Serves itself while the scene lasts; then every server is stopped. Raises `CancelledError` at Ctrl-C."""
        try:
            return asyncio.run(self._play(scene))
        finally:
            self._journal.close()
            if self._waiting:
                self._waiting.clear()

    async def _play(self, scene: Scene[Decoded]) -> Decoded:
        self._started, self._moved = asyncio.Event(), asyncio.Event()
        serving = asyncio.create_task(self.mux.run())
        acting = self._acting = asyncio.create_task(self._act(scene))
        while not (await asyncio.wait({serving, acting}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED))[0]:
            self.flush()  # a clock goes on
        acting.cancel()
        await asyncio.wait({acting})  # a call that it has open is cancelled while its server is still there
        self.mux.post(HostGone("the command is done"))
        await serving
        if self._trouble:
            raise self._trouble
        return acting.result()

    async def _act(self, scene: Scene[Decoded]) -> Decoded:
        await self._started.wait()
        hello = {"protocolVersion": LEGACY_REVISIONS[0], "capabilities": self._capabilities}
        self.about = value_of((await self.ask("initialize", hello | {"clientInfo": IMPLEMENTATION})).result)
        self._say(notification_line("notifications/initialized"))
        return await scene(self)

    async def ask(self, method: str, params: Mapping[str, Any] = {}, bar: Bar | None = None) -> Reply:
        """The answer to a request; who stops waiting for it cancels it."""
        number, body = next(self._numbers), dict(params)
        if bar:
            body["_meta"] = {"progressToken": number}
        answer, _ = self._open[number] = asyncio.get_running_loop().create_future(), bar
        self._say(request_line(number, method, encode(body) if body else UNSET))
        try:
            return await answer
        except asyncio.CancelledError:
            self._say(notification_line(CANCELLED, encode({"requestId": number})))
            raise
        finally:
            del self._open[number]

    def _say(self, line: bytes) -> None:
        self.mux.post(HostLines([line]))

    async def settled(self) -> None:
        """Until each server is ready or has failed: a list does not wait for those that are late."""
        servers, busy = self.mux.core.servers.values(), (State.STARTING, State.STOPPING)
        while any(one.settling or one.state in busy for one in servers):
            self._moved.clear()
            await self._moved.wait()  # something has happened, or a second has passed

    # ── what the mux does with a host ──

    def start(self, post: Callable[[Event], None], on_room: Callable[[Name, bool], None]) -> None:
        on_signal(asyncio.get_running_loop(), signal.SIGINT, lambda _: self._acting.cancel())
        self._started.set()

    def put(self, source: Name, line: bytes) -> None:
        message = decode_line(line)
        params = object_of(message.params)
        if message.method is UNSET:
            answer, _ = self._open.get((message.id is not UNSET and number_of_id(message.id)) or 0, (None, None))
            if answer and not answer.done():
                answer.set_result(Reply(message.result or None, message.error or None))
        elif message.id is not UNSET:
            id = bytes(message.id)
            self._questions[id] = asyncio.create_task(self._answer(id, message.method, params))
        elif message.method == "notifications/cancelled":
            if question := self._questions.get(bytes(params.get("requestId", b""))):
                question.cancel()
        elif message.method == "notifications/progress":
            _, bar = self._open.get(value_of(params.get("progressToken")), (None, None))
            if bar:
                self._survive(bar, params)
        else:
            self._survive(self._hears, message.method, params)

    async def _answer(self, id: bytes, method: str, params: Fields) -> None:
        try:
            if method != "elicitation/create" or self._elicited is None:
                raise RpcError(METHOD_NOT_FOUND, f"{method} is nothing that a terminal answers")
            line = result_line(id, encode(await self._elicited(params)))
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

    def is_full(self, source: Name) -> bool:
        return False

    def flush(self) -> None:
        self._moved.set()
        if self._waiting:
            self._survive(self._look, self._waiting, asyncio.get_running_loop().time())

    def _look(self, waiting: Waiting, now: float) -> None:
        waiting.servers(self.mux.core.servers.values(), now)
        for one in self.mux.core.in_flight.owed_by(Peer.SAMPLER):
            if one.params and (models := value_of(one.params.get("models"))):
                seconds = f", {now - one.since:.0f} s" if waiting.is_in_place else ""
                waiting.show({models[0]: f"asked for {one.server}{seconds}"})

    async def close(self) -> None:
        for question in list(self._questions.values()):
            question.cancel()


def _print_table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A dash stands for what is not known (None); columns of numbers end together."""
    columns: list[list[str]] = []
    for column in zip(heads, *rows, strict=True):
        cells = ["-" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in column]
        pad = str.rjust if any(isinstance(cell, int) for cell in column) else str.ljust
        width, styles = max(map(len, cells)), ["bold", *map(OF_STATES.get, cells[1:])]
        columns.append([painted(pad(cell, width), style) for cell, style in zip(cells, styles, strict=True)])
    for line in zip(*columns, strict=True):
        print("  ".join(line).rstrip())


# ── check ──

# Hosts that give a part of their environment only to what they start: those with a window, which ask no shell for its
# PATH either, and those that keep secrets to themselves. On Windows most give all of it.
_BARE_PATH: Final = "/usr/bin:/bin:/usr/sbin:/sbin"
_BARE: Final = r"HOME|USER|LOGNAME|SHELL|TMPDIR|UV|DISPLAY|WAYLAND_DISPLAY|LANG|LC_\w+|XDG_\w+|DBUS_\w+"
_CODEX: Final = r"HOME|LOGNAME|PATH|SHELL|USER|LANG|LC_ALL|TERM|TMPDIR|TZ|\w+_CERT|\w+_CERT_FILE|\w+_CA_(BUNDLE|CERTS)"
_GEMINI: Final = r"(?i)(?!.*(TOKEN|SECRET|PASSW|KEY|AUTH|CREDENTIAL|CREDS|PRIVATE|CERT|DATABASE_URL|CLIENT_ID)).*"
_GIVEN: Final = {"claude-desktop": _BARE, "codex": _CODEX, "gemini": _GEMINI, "lm-studio": _BARE}
TOOLS_OF_HOSTS: Final = {"Cursor": 40, "VS Code": 128}  # as many as they give to a model; they leave out the rest
BUSY: Final = 3  # so many late servers at once are more likely one busy machine


class Checked(NamedTuple):
    """What a check has found."""

    rows: list[dict[str, Any]]
    tools: list[str]
    trouble: str | None  # of sampling
    no_page: str | None = None  # why mcpmux cannot ask in the browser


def _check(arguments: argparse.Namespace) -> int:
    """Starts every server, or these, lists what they offer, stops them.
    Example: mcpmux check --json"""
    config = load_config(config_path(arguments.config))
    differs: list[str] = []
    host, given = strict_host() if arguments.as_host is not False else (None, {})
    if arguments.as_host and not host:
        host, given = "a host", _given(_BARE, {})
    if host and config.exists:
        config, differs = as_host(config, given)
    for name in arguments.servers:
        if name not in config.broken:
            _expect_server(config, name)
    if arguments.servers:
        chosen = {name: text for name, text in config.broken.items() if name in arguments.servers}
        models = config.sampling if arguments.model else None
        config = msgspec.structs.replace(only(config, arguments.servers), broken=chosen, sampling=models)
    found = checked(config, asks=arguments.model)
    if arguments.repair and (broken := [row["server"] for row in found.rows if _repaired(row)]):
        print(f"npx's copies of these were broken; they are fetched again: {', '.join(broken)}", file=sys.stderr)
        found = checked(config, asks=arguments.model)
    models = [model.model for model in config.sampling.models] if config.sampling else []
    if arguments.json:
        sampling = {"models": models, "reason": found.trouble} if config.sampling else None
        seen_by = {"host": host, "unset": differs} if host else None
        report = {"config": str(config.path), "servers": found.rows, "tools": found.tools, "sampling": sampling}
        print(json.dumps(report | {"no_page": found.no_page, "asHost": seen_by}, indent=2))
    elif not config.exists:
        print(f"There is no config file at {config.path}.")
        print(as_typed("`mcpmux import` takes servers over from a host, and `mcpmux demo` shows what goes into one."))
    else:
        _print_check(config, found, f"does not work: {found.trouble}" if found.trouble else ", ".join(models))
        if host:
            print(f"\nChecked with the environment that {host} gives; --no-as-host takes your terminal's.")
        if differs:
            print(f"Your terminal sets what {host} does not: {', '.join(differs)}. `env_file` in [mux] is for such.")
        print(_after_check(found, host) if found.rows else "")
    failed = found.trouble or any(row["state"] == "failed" or row.get("unread") for row in found.rows)
    return 1 if failed or not config.exists else 0


def strict_host() -> tuple[str | None, dict[str, str]]:
    """A host that has mcpmux and gives it a part of the environment only, and that part; None: there is none."""
    for host in HOSTS:
        if host.name in _GIVEN and sys.platform != "win32":
            with contextlib.suppress(ConfigError, ValueError, TypeError, AttributeError):  # it may say anything there
                if entry := Place.of(host).servers().get(ENTRY_NAME):
                    return host.title, _given(_GIVEN[host.name], entry)
    return None, {}


def _given(pattern: str, entry: Mapping[str, Any]) -> dict[str, str]:
    """Of the variables here, with what a host's entry for mcpmux adds itself."""
    more, own = entry.get("env_vars") or (), entry.get("env") or {}
    given = {key: value for key, value in os.environ.items() if re.fullmatch(pattern, key) or key in more}
    return {"PATH": _BARE_PATH, **given, **{key: str(value) for key, value in own.items()}}


def as_host(config: Config, given: Mapping[str, str]) -> tuple[Config, list[str]]:
    """The config with such an environment, and the variables that it names and only the terminal has."""
    seen, models = load_config(config.path, given), config.sampling.models if config.sampling else []
    named = {f"{model.model.partition('/')[0].upper()}_API_KEY" for model in models if not model.api_key}
    for options in (*config.servers.values(), *models):
        texts = texts_of(msgspec.to_builtins(options), "")
        named |= {found["var"] for text, _ in texts for found in re.finditer(PLACEHOLDER, text) if found["var"]}
    for options in config.servers.values():
        named |= {*options.env_vars, *options.env_http_headers.values(), options.bearer_token_env_var or ""}
    return seen, sorted(named & config.environment.keys() - seen.environment.keys())


def checked(config: Config, *, asks: bool = False) -> Checked:
    """Every server is started, and given as long as if it were served; `asks` the models, too."""

    async def scene(host: InnerHost) -> Checked:
        trouble = None
        try:
            if config.sampling:
                trouble = await _models_trouble(await sampler_setup(config, set()), asks=asks)
        except StartError as wrong:
            trouble = "; ".join(wrong.args)
        await host.ask("tools/list")  # it waits for every server, but not for those that are late
        await host.settled()
        core, opener = host.mux.core, host.mux.opener
        rows = [_report(core.servers[name]) for name in (*config.servers, *config.broken)]
        rows += [{"server": name, "state": "disabled"} for name in config.disabled]
        no_page = opener if config.options.page != "off" and isinstance(opener, str) else None
        return Checked(rows, list(core.catalogue.tools), trouble, no_page)

    return InnerHost(config, Waiting()).play(scene)


def tokens_of(tools: Iterable[Entry]) -> int:
    return sum(len(tool.left) + len(tool.right) + len(tool.shown) for tool in tools) // BYTES_OF_A_TOKEN


def over_limits(tools: int) -> str:
    """Which hosts will not use so many tools, and what to do."""
    over = [f"{host} ({most})" for host, most in TOOLS_OF_HOSTS.items() if tools > most]
    what = 'enabled_tools in a server\'s table chooses; expose = "search" in [mux] or [hosts.NAME] lists two for all'
    return f"; more than {' and '.join(over)} will use: {what}" if over else ""


async def _models_trouble(line: bytes, *, asks: bool) -> str | None:
    loop, setup = SamplerLoop(sys.stderr.fileno()), msgspec.json.decode(line, type=SamplerSetup)
    try:
        loop.set_up(setup, await asyncio.to_thread(load_litellm, setup.sampling.models))  # servers start meanwhile
    except Exception as wrong:  # whatever its import does
        return f"litellm cannot be loaded: {in_a_line(repr(wrong))}; install mcpmux[sampling] anew"
    return "; ".join(await loop.troubles(asks=asks)) or None


def _report(server: Facts) -> dict[str, Any]:
    ready = server.state is State.READY
    lists = {kind.key: None if one in server.unread else server.lists.get(one, ()) for one, kind in LISTS.items()}
    return {
        "server": server.name,
        "state": "ready" if ready else "failed",
        "revision": server.revision if ready else None,
        **{key: len(entries) if ready and entries is not None else None for key, entries in lists.items()},
        "tokens": tokens_of(lists["tools"] or ()) if ready else None,
        "ms": round(server.ready_in * 1000) if server.ready_in is not None else None,
        "unread": [f"{method} {why}" for method, why in server.unread.items()],
        "leftOut": server.left_out,
        "reason": None if ready else server.trouble,
        "next": None if ready else server.hint.removesuffix("; the next call starts it again"),
    }


def _repaired(row: dict[str, Any]) -> bool:
    """Whether a server's copy at npx's was broken, and is deleted."""
    copy = broken_npx([row.get("reason") or "", "MODULE_NOT_FOUND", row.get("next") or ""])
    folder = Path(copy) if copy else None
    if folder is None or folder.parent.name != "_npx" or not folder.is_dir() or folder.is_symlink():
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True


def _print_check(config: Config, found: Checked, sampling: str) -> None:
    print(f"{config.path}\n")
    keys = ("server", "state", "revision", "tools", "prompts", "resources", "tokens", "ms")
    rows, ready = found.rows, sum(row["state"] == "ready" for row in found.rows)
    if not rows:
        print(f"No servers yet: add a [mcp_servers.NAME] table to {config.path}.")
        return
    shown = [dict(row) for row in rows]
    for row in shown:
        both = (row.get("resources"), row.get("resourceTemplates"))
        row["resources"] = None if None in both else sum(one or 0 for one in both)
    _print_table(map(str.upper, keys), [[row.get(key) for key in keys] for row in shown])
    tokens = sum(row.get("tokens") or 0 for row in rows)
    count = f"{ready} of {len(rows)} ready, {counted(len(found.tools), 'tool')}, about {tokens:,} tokens"
    print(f"\n{count}{over_limits(len(found.tools))}" + (f"\nsampling: {sampling}" if sampling else ""))
    if found.no_page:
        more = ", and whether they may use your model" if sampling else ""
        print(f"page: none, so only your host can ask you what servers ask{more}: {found.no_page}")
    for note in config.notes:
        print(f"note: {note}")
    for row in rows:
        for text in [*row.get("unread", ()), *(f"left out: {what}" for what in row.get("leftOut", ()))]:
            print(f"\n{row['server']}: {in_a_line(text)}")
        if row["state"] == "failed":
            reason = in_a_line(row["reason"]).removeprefix(row["server"] + ": ")
            print(f"\n{row['server']}: {reason}\n  next: {as_typed(in_a_line(row['next']))}")


def _after_check(found: Checked, host: str | None) -> str:
    failed = [row["server"] for row in found.rows if row["state"] == "failed"]
    late = [row["server"] for row in found.rows if re.match(r"\S+ (has|did) not ", row.get("reason") or "")]
    if len(late) >= BUSY:
        what = f"{len(late)} servers were late at once, so this machine is probably busy. Check them one by one"
        return as_typed(f"\n{what}: mcpmux check {late[0]}")
    if failed:
        return as_typed(f"\nNext: mend what failed, then mcpmux check {' '.join(failed)}")
    if host:
        return f"\nNext: restart {host} if it runs since before; it then has these tools."
    return as_typed("\nNext: `mcpmux tools` shows the tools, `mcpmux install HOST` gives them to a host.")


# ── add, list, tools ──

_HOW_TO_ADD: Final = "`mcpmux add NAME -- COMMAND` adds a server"


def _add(arguments: argparse.Namespace) -> None:
    """Appends a server's table to the config file, which stays as it is otherwise.
    Example: mcpmux add gitlab -e 'GITLAB_TOKEN=${GITLAB_TOKEN}' -- npx -y @modelcontextprotocol/server-gitlab"""
    path = config_path(arguments.config)
    name, command = arguments.name, arguments.rest
    if bool(command) == bool(arguments.url):
        raise ConfigError(f"give a command or a --url, as in: mcpmux add {name} -- uvx mcp-server-time")
    if not re.fullmatch(SERVER_NAME, name):
        raise ConfigError(f"{name!r}: {NAME_RULE}")
    if arguments.env if arguments.url else arguments.header:
        raise ConfigError("--env goes with a command, which has an environment, and --header with a --url")
    env, headers = _pairs("--env", "=", arguments.env), _pairs("--header", ":", arguments.header)
    if name in load_config(path).tables and not arguments.force:
        raise ConfigError(f"{path} has a server {name} already; choose another name, or --force overwrites its table")
    remote = {"url": arguments.url, "http_headers": headers}
    whole = {"command": command[0], "args": command[1:], "env": env} if command else remote
    table = {key: value for key, value in whole.items() if value}
    _, wrong = read_server(name, table, [])
    if wrong:
        raise ConfigError(f"{path} is left as it is: {'; '.join(wrong)}")
    change_config(path, lambda text: with_servers(text, {name: table}, {}))
    print(as_typed(f"added {name} to {path}\nnext: mcpmux tools {name}"))
    secret = next((key for key, value in (env | headers).items() if secrets_in([f"{key}={value}"])), None)
    if secret:
        better = f"--header '{secret}: ${{VAR}}'" if headers else f"--env '{secret}=${{{secret}}}'"
        print(f"note: {secret} looks like a secret and now stands in the file. Better: {better},")
        print("which is read from the environment, or from env_file, when the server is started")
    elif secrets_in(command or [arguments.url]):
        print("note: the command holds what looks like a secret; ${VAR} in its place is read from the environment")


def _pairs(option: str, mark: str, given: list[str]) -> dict[str, str]:
    """What an option says of names and values, as in `--env KEY=VALUE`."""
    for one in given:
        if one.find(mark) < 1:
            raise ConfigError(f"{option} {without_secrets([one])[0]}: KEY{mark}VALUE is expected")
    pairs = (one.partition(mark) for one in given)
    return {key.strip(): value.removeprefix(" ") if mark == ":" else value for key, _, value in pairs}


def _changed(arguments: argparse.Namespace, change: Callable[[str, str], str], done: str) -> None:
    """One server's table in the file becomes another, and every other byte stays."""
    config = load_config(config_path(arguments.config))
    name = arguments.server
    if name not in config.tables:
        hint = did_you_mean(name, config.tables, f"there are: {', '.join(config.tables) or 'none'}")
        raise ConfigError(f"{config.path} has no server {name}{hint}")
    change_config(config.path, lambda text: change(text, name))
    print(f"{name} {done}, in {config.path}")


def _remove(arguments: argparse.Namespace) -> None:
    """Takes a server out of the config file, which stays as it is otherwise.
    Example: mcpmux remove time"""
    _changed(arguments, lambda text, name: with_servers(text, {}, {}, [name]), "is gone")


def _enable(arguments: argparse.Namespace) -> None:
    """Takes `enabled = false` out of a server's table.
    Example: mcpmux enable time"""
    _changed(arguments, lambda text, name: with_setting(text, ("mcp_servers", name), "enabled", None), "is on")


def _disable(arguments: argparse.Namespace) -> None:
    """Puts `enabled = false` into a server's table: it is left out, and its table stays.
    Example: mcpmux disable time"""
    _changed(arguments, lambda text, name: with_setting(text, ("mcp_servers", name), "enabled", False), "is off")


def last_known(config: Config) -> dict[str, Known]:
    """What the cache has of servers' lists; of several the one that depends least on the host."""
    found = read_known(cache_folder(), config)[0]
    lists = {name: [one for one in those if not one.failed] for name, those in found.items()}
    return {name: min(those, key=lambda one: one.told) for name, those in lists.items() if those}


def known_catalogue(config: Config, more: Mapping[str, Mapping[str, list[Entry]]] | None = None) -> Catalogue:
    """All that is known, `more` before what the cache has: every server has a say in what tools are called."""
    lists = {name: one.lists for name, one in last_known(config).items()} | dict(more or {})
    parts = [Part(name, table.prefix, lists[name]) for name, table in config.servers.items() if name in lists]
    return merge(parts, config.options, read_kept(kept_path("names", config.path), Names))


def _list_servers(arguments: argparse.Namespace) -> None:
    """Lists the servers and starts none. No value of a variable, a header or a secret flag is shown.
    Example: mcpmux list --json"""
    config = load_config(config_path(arguments.config))
    known = last_known(config)
    routes = known_catalogue(config).tools

    def row(name: str, table: Any) -> dict[str, Any]:
        one = known.get(name)
        return {
            "server": name,
            "state": "broken" if name in config.broken else "disabled" if name in config.disabled else "enabled",
            "command": _shown_command(table),
            "url": without_secrets([str(table["url"])])[0] if isinstance(table, dict) and "url" in table else None,
            "era": one.era if one else None,
            "revision": one.revision if one else None,
            "tools": [tool for tool, route in routes.items() if route.server == name] if one else None,
            "tokens": tokens_of(route.entry for route in routes.values() if route.server == name) if one else None,
            "reason": config.broken.get(name),
        }

    rows = [row(name, table) for name, table in config.tables.items()]
    if arguments.json:
        print(json.dumps({"config": str(config.path), "servers": rows}, indent=2))
    elif not config.exists:
        print(as_typed(f"There is no config file at {config.path}; {_HOW_TO_ADD}"))
    elif not rows:
        print(as_typed(f"No servers yet in {config.path}; {_HOW_TO_ADD}"))
    else:
        _print_servers(rows)


def _print_servers(rows: list[dict[str, Any]]) -> None:
    def cells(row: dict[str, Any]) -> list[Any]:
        tools = None if row["tools"] is None else len(row["tools"])
        command = row["url"] or command_line(row["command"] or [])
        return [row["server"], row["state"], row["revision"], tools, row["tokens"], command or None]

    _print_table(("SERVER", "STATE", "REVISION", "TOOLS", "TOKENS", "COMMAND"), map(cells, rows))
    if tools := sum(len(row["tools"] or ()) for row in rows):
        tokens = sum(row["tokens"] or 0 for row in rows)
        print(f"\n{counted(tools, 'tool')}, about {tokens:,} tokens{over_limits(tools)}")
    for row in rows:
        if row["reason"]:
            print(f"\n{row['server']}: {in_a_line(row['reason'])}")
    if any(row["state"] == "enabled" and row["tools"] is None for row in rows):
        print(as_typed("\n-: not known before it has run once; `mcpmux check` starts them all"))


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
        there = f"there are: {', '.join(config.servers)}" if config.servers else _HOW_TO_ADD
        raise ConfigError(f"{config.path} has no server {name}{did_you_mean(name, config.servers, there)}")


def learn(
    config: Config, names: Iterable[str], *, waits: bool = False
) -> tuple[dict[str, Mapping[str, list[Entry]]], dict[str, str]]:
    """The lists of these servers, from the cache or else from themselves; and why some cannot tell. `waits`: for those
    that are late, too."""
    known = last_known(config)
    lists: dict[str, Mapping[str, list[Entry]]] = {name: known[name].lists for name in names if name in known}
    unknown = only(config, [name for name in names if name not in known])
    failed: dict[str, str] = {}

    async def listed(host: InnerHost) -> None:
        await host.ask("tools/list")
        if waits:
            await host.settled()
        for server in host.mux.core.servers.values():
            if server.known:
                lists[server.name] = dict(server.lists)
            else:
                failed[server.name] = "; ".join(filter(None, [server.trouble or server.state.value, server.hint]))

    if unknown.servers:
        InnerHost(unknown, Waiting(), capabilities=PERSON).play(listed)
    return lists, failed


def _tools(arguments: argparse.Namespace) -> int:
    """Lists tools as a host sees them, from what servers said last; those that never said are started.
    Example: mcpmux tools"""
    config = load_config(config_path(arguments.config))
    if arguments.server:
        _expect_server(config, arguments.server)
    wanted = [arguments.server] if arguments.server else list(config.servers)
    lists, failed = learn(config, wanted)
    if not arguments.server:
        failed |= config.broken
    catalogue = known_catalogue(config, lists)
    if arguments.search is not None:
        return _show_found(arguments, catalogue, last_known(config))
    listed = value_of(catalogue.results["tools/list"])["tools"]
    tools = [{"server": catalogue.tools[tool["name"]].server, **tool} for tool in listed]
    tools = [tool for tool in tools if tool["server"] in wanted]
    if arguments.json:
        print(json.dumps({"tools": tools, "failed": failed}, indent=2))
        return 1 if failed else 0
    for tool in tools:
        _print_entry(tool)
    if not tools and not failed:
        nothing = f"{arguments.server or config.path} has no tools."
        print(nothing if wanted else f"No servers yet in {config.path}; {_HOW_TO_ADD}")
    for name, reason in failed.items():
        print(f"mcpmux: {'' if reason.startswith(name) else name + ': '}{in_a_line(reason)}", file=sys.stderr)
    return 1 if failed else 0


def _show_found(arguments: argparse.Namespace, catalogue: Catalogue, known: Mapping[str, Known]) -> int:
    """What `find_tools` would find, and by which words."""
    about = {name: purpose(one.instructions, object_of(one.info)) for name, one in known.items()}
    given = {"query": arguments.search, "server": arguments.server}
    found = ToolSearch(catalogue.tools, about).find(given, [arguments.server])
    rows = [(one.name, one.route.server, round(one.score, 1), dict(one.words)) for one in found]
    if arguments.json:
        keys = ("name", "server", "score", "words")
        print(json.dumps({"tools": [dict(zip(keys, row, strict=True)) for row in rows]}, indent=2))
    elif rows:
        by = [", ".join(f"{said} ~ {term}" for said, term in words.items()) for *_, words in rows]
        _print_table(("TOOL", "SCORE", "BY"), [(row[0], row[2], text) for row, text in zip(rows, by, strict=True)])
    else:
        print("No tool fits; say in other words what is to be done.")
    return 0 if rows else 1


def signature(tool: dict[str, Any]) -> str:
    """A tool as people read it: NAME(needed: type, more?: type)."""
    properties, needed = members_of(tool.get("inputSchema"))
    parameters = [f"{name}{'' if name in needed else '?'}: {_type_of(one)}" for name, one in properties.items()]
    return in_a_line(f"{tool['name']}({', '.join(parameters)})")


def _print_entry(tool: dict[str, Any]) -> None:
    """How it is used, and in a line what it does."""
    width, name = max(shutil.get_terminal_size().columns, 60), tool["name"]
    first, *rest = textwrap.wrap(signature(tool), width, subsequent_indent="        ", break_on_hyphens=False)
    print("\n".join([painted(name, "bold") + first.removeprefix(name), *rest]))
    title = tool.get("title") or tool.get("annotations", {}).get("title")
    does = next((line.strip() for line in tool.get("description", "").splitlines() if line.strip()), "")
    says = ": ".join(harmless(one) for one in dict.fromkeys([title, does]) if one)
    if says:
        print(textwrap.indent(textwrap.shorten(says, width - 4, placeholder=" …"), "    "))


def members_of(schema: Any) -> tuple[dict[str, Any], list[Any]]:
    """The properties that an object's schema names, and which are required: it may say anything there."""
    properties, needed = (schema.get(key) if isinstance(schema, dict) else None for key in ("properties", "required"))
    return properties if isinstance(properties, dict) else {}, needed if isinstance(needed, list) else []


def _type_of(schema: Any, depth: int = 5) -> str:
    """A JSON schema in a word or two."""
    if not isinstance(schema, dict) or not depth:
        return "any"
    if isinstance(schema.get("enum"), list):
        return " | ".join(json.dumps(one, ensure_ascii=False) for one in schema["enum"])
    parts = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(parts, list):
        return " | ".join(dict.fromkeys(_type_of(one, depth - 1) for one in parts))
    if "const" in schema:
        return json.dumps(schema["const"], ensure_ascii=False)
    kind = schema.get("type", "any")
    if kind == "array":
        inner = _type_of(schema.get("items"), depth - 1)
        return f"({inner})[]" if " " in inner else f"{inner}[]"
    return " | ".join(map(str, kind)) if isinstance(kind, list) else str(kind)


def _accept(arguments: argparse.Namespace) -> int:
    """Shows how the tools of a server with `pin` in its table have changed, and takes them as they are now.
    Example: mcpmux accept time"""
    config = load_config(config_path(arguments.config))
    name = arguments.server
    _expect_server(config, name)
    if not config.servers[name].pin:
        raise ConfigError(f"{name} has no pin = true in its table in {config.path}: all its tools are used as they are")
    seen = [one.lists for one in read_known(cache_folder(), config)[0].get(name, ()) if not one.failed]
    if not seen:
        lists, failed = learn(config, [name])
        if name in failed:
            raise ConfigError(failed[name])
        seen = list(lists.values())
    pins, new = read_pins(config.path).get(name, {}), dict[str, Pin]()
    for entry in (one for lists in seen for one in lists.get("tools/list", ())):  # by what its hosts can, they differ
        pin, digest = pins.get(entry.name, Pin()), pin_digest(entry)
        if digest not in pin.accepted + new.get(entry.name, Pin()).accepted:
            now = encode(definition(entry)).decode()
            new[entry.name] = Pin([*new.get(entry.name, Pin()).accepted, digest], now)
            print("\n".join(how_it_changed(entry.name, pin.shown, now)))
    if not new:
        print(f"Nothing has changed: all tools of {name} are as they were accepted.")
    elif _agrees(f"Use {counted(len(new), 'tool')} of {name} as above?", arguments, unasked=False):
        write_pins(config.path, {name: new})
        print(f"Accepted: {', '.join(new)}. A running mcpmux hears of it within seconds.")
    else:
        print("Nothing was accepted.")
        return 1
    return 0


def how_it_changed(tool: str, before: str, after: str) -> Iterator[str]:
    """Two definitions line by line, as a person reads them."""
    old, new = (harmless(msgspec.json.format(text)).splitlines() if text else [] for text in (before, after))
    for line in difflib.unified_diff(old, new, f"{tool}, as you accepted it", f"{tool}, now", lineterm="", n=2):
        yield painted(line, {"+": "green", "-": "red"}.get(line[0]))


def _consents(arguments: argparse.Namespace) -> None:
    """Lists which servers may use your model, and which may not, as you have said it; with --forget they have to ask
    again.
    Example: mcpmux consents"""
    all_given: AllGiven = read_kept(kept_path("consents"), AllGiven)
    given = {to: one for to, one in all_given.items() if arguments.server in (None, one.server)}
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(list(given.values())), indent=2))
    elif not given:
        print("Nothing was decided for good" + (f" about {arguments.server}." if arguments.server else "."))
    else:
        rows = [(one.server, one.decision, ", ".join(one.models), one.since, one.config) for one in given.values()]
        _print_table(("SERVER", "DECISION", "MODELS", "SINCE", "CONFIG"), rows)
    if arguments.forget and given:
        with kept_to_change(kept_path("consents"), AllGiven) as there:
            for to in given:
                there.pop(to, None)
        print(f"Forgotten: {counted(len(given), 'decision')}. A running mcpmux hears of it within seconds.")


# ── call ──


def _call(arguments: argparse.Namespace) -> int:
    """Calls a tool and shows its answer. What its server asks is asked here, or with --page in the browser. Arguments
    are KEY=VALUE for a text, KEY:=JSON for all else; or one JSON object; or - for that on stdin. Exits with 1 if it
    failed.
    Example: mcpmux call time__get_current_time timezone=Europe/London"""
    config = load_config(config_path(arguments.config))
    given = arguments_in(arguments.arguments, arguments.tool)
    owner, own_name = owner_of_tool(config, arguments.tool)
    waiting, called = Waiting(), dict[str, Any]()
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
            raise ConfigError(f"there is no tool {name}{did_you_mean(name, routes)}")
        called.update(tool or {})
        if wrong := wrong_argument(given, called.get("inputSchema")):
            raise ConfigError(f"{harmless(wrong)}\n  {signature(called)}")
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

    options = msgspec.structs.replace(config.options, page="always" if arguments.page else "off")
    mine = msgspec.structs.replace(only(config, [owner]), options=options)
    cached = own_name is not None
    host = InnerHost(mine, waiting, cached=cached, capabilities=PERSON, elicited=person.asked, hears=hear)
    if arguments.page:
        expect_browser(host.mux.opener)
    ledger = Ledger(state_folder() / LEDGER_NAME)
    before = len(ledger.lines()) if config.sampling else 0
    reply = host.play(scene)
    for line in ledger.lines()[before:] if config.sampling else ():
        if line.get("server") == owner:
            print(harmless(what_it_took(line)), file=sys.stderr)
    if called and reply.error and value_of(reply.error).get("code") == INVALID_PARAMS:
        print(f"mcpmux: it is {signature(called)}", file=sys.stderr)
    return show_reply(reply, arguments.output, as_it_came=arguments.json)


def what_it_took(line: Mapping[str, Any]) -> str:
    """A request of a model, by its line in the ledger."""
    usd = line.get("usd")
    cost = f"${usd:.4f}" if isinstance(usd, int | float) else "at a price that nobody knows"
    return f"{line.get('model')}: {amount(line, 'in'):,} tokens in, {amount(line, 'out'):,} out, {cost}"


def expect_browser(opener: Opener | str) -> Opener:
    """Raises `ConfigError`."""
    if isinstance(opener, str):
        raise ConfigError(f"there is no page here: {opener}")
    return opener


# What `mcpmux page --try` asks, one of each kind.
_TRIAL: Final[list[dict[str, Any]]] = decode_any(rb"""[
{"mode": "form", "asker": "example", "message": "A form has a field for each thing that its server wants to know.",
 "requestedSchema": {"required": ["name", "count"], "properties": {
   "name": {"type": "string", "title": "Name", "minLength": 2},
   "email": {"type": "string", "title": "Email", "format": "email"},
   "day": {"type": "string", "title": "Day", "format": "date"},
   "count": {"type": "integer", "title": "How many", "minimum": 1, "maximum": 9, "default": 3},
   "urgent": {"type": "boolean", "title": "Urgent"},
   "colour": {"type": "string", "title": "Colour", "enum": ["red", "green"]},
   "extras": {"type": "array", "title": "Extras", "items": {"enum": ["gift wrap", "insurance"]}},
   "token": {"type": "string", "title": "API token", "description": "Leave it empty: this is a test."}}}},
{"mode": "url", "asker": "example", "message": "An address is opened if you want it.", "url": "https://example.org"},
{"mode": "form", "message": "May example run delete_branch?", "shown": [{"title": "Arguments", "text": "main"}]},
{"mode": "sampling", "message": "May example use your model?", "sampling": {
   "server": "example", "models": ["anthropic/claude-sonnet-4-5"], "usd": 0.0061, "params": {"maxTokens": 400,
   "systemPrompt": "You summarize notes in one line.",
   "messages": [{"role": "user", "content": {"type": "text", "text": "Buy milk. Call Ada on Friday."}}]}}}]""")


def _page(arguments: argparse.Namespace) -> int:
    """Has the mcpmux that your host runs open its page: what servers ask you, and what you have lately decided. With
    --try the page shows one question of each kind.
    Example: mcpmux page --try"""
    config = load_config(config_path(arguments.config))
    if arguments.trial:
        return asyncio.run(_try_page(expect_browser(opener_for(sys.platform, os.environ))))
    wanted, heard = kept_path("page", config.path), heard_path(config.path)
    heard.unlink(missing_ok=True)
    write_whole(wanted, str(time.time_ns()).encode(), private=True, lasting=False)
    time.sleep(2 * WATCH_TICK + 0.2)  # each looks once in a while
    said = (read_text(heard) or "").rstrip("\n")
    none = f"No mcpmux runs with {config.path}: your host starts it. `mcpmux page --try` shows a page without it."
    print(said or none)
    return 0 if said else 1


async def _try_page(opener: Opener) -> int:
    """The page's process without a core: its answers are printed."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*again("_page"), stdin=pipe, stdout=pipe)
    assert process.stdin and process.stdout
    process.stdin.write(encode(PageSetup("", opener)) + b"\n")
    for number, question in enumerate(_TRIAL):
        form = choice_form(question["message"], consents("first") if "sampling" in question else DECISIONS)
        about = {"asker": OURSELVES, "call": "example__try", "waits": 600.0, "opens": True} | form | question
        process.stdin.write(request_line(number, "ask", encode(about)))
    still = set(range(len(_TRIAL)))
    while still and (line := await process.stdout.readline()):
        message = decode_line(line)
        number = None if message.id is UNSET else number_of_id(message.id)
        if number in still:
            still.remove(number)
            print(harmless(f"{_TRIAL[number]['message']}\n  {bytes(message.result or b'').decode()}"), flush=True)
    process.stdin.close()
    return await process.wait()


def arguments_in(words: list[str], what: str) -> dict[str, Any]:
    """The arguments that a command line has for something. Raises `ConfigError`."""

    def decoded(text: str | bytes) -> Any:
        try:
            return decode_any(text.encode(errors="replace") if isinstance(text, str) else text)
        except (msgspec.DecodeError, RecursionError) as wrong:
            raise ConfigError(f"the arguments of {what} are not JSON: {wrong}") from None

    if len(words) == 1 and not re.match(r"[^={\[\"]+=", words[0]):
        given = decoded(sys.stdin.buffer.read() if words[0] == "-" else words[0])
        if not isinstance(given, dict):
            raise ConfigError(f'the arguments of {what} are name=value, or a JSON object as in \'{{"name": "value"}}\'')
        return given
    pairs = [(one, *one.partition("=")) for one in words]
    for one, key, equals, _ in pairs:
        if not key.rstrip(":") or not equals:
            raise ConfigError(f"{one}: name=value for a text, or name:=JSON, is expected")
    return {key.removesuffix(":"): decoded(value) if key.endswith(":") else value for _, key, _, value in pairs}


_JSON_KINDS: Final = {"string": str, "integer": int, "number": int | float, "boolean": bool, "array": list}


def wrong_argument(given: dict[str, Any], schema: Any) -> str | None:
    """What a schema has against arguments, as far as a glance tells: one that is missing, unknown, of another type."""
    known, needed = members_of(schema)
    for name in needed:
        if name not in given:
            return f"{name} is missing"
    for name, value in given.items():
        one = known.get(name)
        if one is None and isinstance(schema, dict) and schema.get("additionalProperties") is False:
            return f"{name} is no argument of it{did_you_mean(name, known)}"
        kinds = one.get("type") if isinstance(one, dict) else None
        kinds = [kinds] if isinstance(kinds, str) else kinds or []
        is_one = any(isinstance(value, _JSON_KINDS.get(kind, dict | None)) for kind in kinds)
        if kinds and (not is_one or (isinstance(value, bool) and "boolean" not in kinds)):
            how = f"; {name}:={value} gives one" if isinstance(value, str) else ""
            return f"{name} is expected as {_type_of(one)}{how}"
    return None


def owner_of_tool(config: Config, tool: str) -> tuple[str, str | None]:
    """The server to be started for a tool, and what the tool is called there if that is known. Raises `ConfigError`."""
    known, routes = last_known(config), known_catalogue(config).tools
    separator = config.options.separator
    named = tool.partition(separator)[0]
    if tool not in routes:
        prefixes = {name: name if table.prefix is None else table.prefix for name, table in config.servers.items()}
        owners = [name for name, prefix in prefixes.items() if prefix and tool.startswith(prefix + separator)]
        if owners:  # one that is known may offer a terminal what it did not offer those who asked before
            return min(owners, key=lambda name: (name in known, -len(prefixes[name]))), None
        if separator in tool and (named in config.broken or named in config.disabled):
            _expect_server(config, named)
        if bare := [name for name, prefix in prefixes.items() if not prefix and name not in known]:
            routes = known_catalogue(config, learn(config, bare)[0]).tools
    if tool in routes:
        return routes[tool].server, routes[tool].name
    same = [name for name, route in routes.items() if route.name == tool]
    near = f"; did you mean {' or '.join(same)}?" if same else did_you_mean(tool, routes)
    if not near and separator in tool:
        near = f": there is no server {named}{did_you_mean(named, config.servers)}"
    raise ConfigError(f"there is no tool {tool}{near or '; `mcpmux tools` lists them'}")


def bar_of(progress: Fields) -> str:
    """How far a call is, in a line."""
    done, total, message = (value_of(progress.get(key)) for key in ("progress", "total", "message"))
    words = f"  {message}" if isinstance(message, str) else ""
    done, total = (max(-1e9, min(one, 1e300)) if isinstance(one, int | float) else 0 for one in (done, total))
    if total > 0:
        filled = int(20 * min(max(done / total, 0), 1))
        return f"[{'#' * filled:20}] {done:g}/{total:g}{words}"
    return f"{done:g}{words}"


def show_reply(reply: Reply, output: str | None, *, as_it_came: bool) -> int:
    """A call's result on stdout, a failure on stderr; the exit code."""
    body = object_of(reply.result)
    failed = reply.result is None or value_of(body.get("isError")) is True
    out: Any = sys.stderr if failed else sys.stdout
    if not failed and not sys.stdout.isatty():  # for a program
        out = getattr(sys.stdout, "_stream", sys.stdout)
    line = bytes(reply.result) if reply.result is not None else b'{"error":%b}' % bytes(reply.error or b"null")
    if as_it_came and sys.stdout.isatty():
        print(line.decode(errors="replace"))
    elif as_it_came:
        sys.stdout.flush()
        sys.stdout.buffer.write(line + b"\n")
    elif reply.result is None:
        error = object_of(reply.error)
        print(f"mcpmux: {value_of(error.get('message'))} ({value_of(error.get('code'))})", file=sys.stderr)
    else:
        unread = {"type": "text", "text": "(what cannot be read)"}
        blocks = [one for raw in items_of(body.get("content")) if isinstance(one := value_of(raw, unread), dict)]
        keeper = Keeper(output, sum(blob_of(block) is not None for block in blocks))
        for block in blocks:
            print(_shown(block, keeper).replace("\r\n", "\n") if out.isatty() else _shown(block, keeper), file=out)
        structured = value_of(body.get("structuredContent"))
        if structured is not None and not any(block.get("type") == "text" for block in blocks):
            print(json.dumps(structured, indent=2, ensure_ascii=False), file=out)
        if output and not keeper.count:
            print("mcpmux: nothing to save: the result has no image, audio or file", file=sys.stderr)
    return 1 if failed else 0


def _shown(block: dict[str, Any], keeper: Keeper) -> str:
    """A content block for people."""
    resource = held if isinstance(held := block.get("resource"), dict) else {}
    match block.get("type"):
        case "text":
            return str(block.get("text"))
        case "image" | "audio":
            return keeper.keep(block)
        case "resource":
            return f"{resource.get('uri')}\n{keeper.keep(block) if 'blob' in resource else resource.get('text')}"
        case "resource_link":
            words = [block.get("title") or block.get("name"), block.get("mimeType"), block.get("description")]
            return f"{block.get('uri')} ({', '.join(str(word) for word in words if word)})"
        case _:
            return json.dumps(block, ensure_ascii=False)


def blob_of(block: dict[str, Any]) -> tuple[str, str] | None:
    """The MIME type and the base64 of a block that is no text."""
    is_resource = block.get("type") == "resource"
    holder = block.get("resource") if is_resource else block
    if not isinstance(holder, dict) or not isinstance(data := holder.get("blob" if is_resource else "data"), str):
        return None
    return str(holder.get("mimeType", "application/octet-stream")), data


class Keeper:
    """Writes what is no text where `--output` says: into that file, or, of several, into files in that folder."""

    def __init__(self, output: str | None, expected: int) -> None:
        self._path = Path(os.path.expanduser(output)) if output else None
        ends = (os.sep, os.altsep)
        self._in_folder = bool(output and (expected > 1 or output[-1] in ends or os.path.isdir(output)))
        self.count = 0

    def keep(self, block: dict[str, Any]) -> str:
        """A line that says what it is, and where."""
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
        self._reading = False  # a thread waits for a line
        self._is_there = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))

    async def asked(self, params: Fields) -> dict[str, Any]:
        """An answer to `elicitation/create`."""
        question = {key: value_of(raw) for key, raw in params.items()}
        message = str(question.get("message")).replace("\n", "\n  ")  # what it says further is seen to be its own
        if not self._is_there:
            self._waiting.say(f"mcpmux: declined, because stdin is no terminal: {message}")
            return {"action": "decline"}
        async with self._turn:
            self._waiting.clear(paused=True)
            try:
                if question.get("mode") == "url":
                    return await self._sent_to(message, str(question.get("url")))
                return await self._fills_in(message, question.get("requestedSchema"))
            except EOFError:
                to_stderr("declined\n")
                return {"action": "decline"}
            except asyncio.CancelledError:
                to_stderr("\n(it is no longer asked)\n")
                raise
            finally:
                self._waiting.clear()

    async def visits(self, reply: Reply) -> bool:
        """Whether a call was refused until pages are visited (-32042), and the person has been there."""
        pages = pages_in(reply.error)
        for page in pages:
            if (await self.asked(page))["action"] != "accept":
                return False
        if not pages:
            return False
        self._waiting.clear(paused=True)
        try:
            await self._line("Enter when you are done there: ")
        except EOFError:
            return False
        self._waiting.clear()
        return True

    async def _sent_to(self, message: str, url: str) -> dict[str, Any]:
        to_stderr(f"{message}\n  {in_a_line(url)}\n")
        if not re.match("https?://", url):
            to_stderr("declined: this is no address of a page\n")
            return {"action": "decline"}
        action = await self._chooses("open it in the browser? y: yes, n: decline, c: cancel: ", _ACTIONS)
        opener = opener_for(sys.platform, os.environ)
        if action == "accept" and isinstance(opener, Opener):
            with contextlib.suppress(OSError):  # it stands above, to be copied
                await asyncio.to_thread(go_to, opener, url)
        return {"action": action}

    async def _fills_in(self, message: str, schema: Any) -> dict[str, Any]:
        fields = fields_of_form(schema)
        to_stderr(f"{message}\n" + ("  (Enter takes what is in brackets, Ctrl-D declines)\n" if fields else ""))
        while True:
            entered = [(name, await self._enters(name, field)) for name, field in fields.items()]
            content = {name: value for name, value in entered if value is not None}
            answers = _ACTIONS | ({"e": "edit"} if fields else {})
            edit = ", e: edit" if fields else ""
            action = await self._chooses(f"send this? y: yes, n: decline, c: cancel{edit}: ", answers)
            if action != "edit":
                return {"action": action, **({"content": content} if action == "accept" else {})}

    async def _enters(self, name: str, field: dict[str, Any]) -> Any:
        """A valid value, or None for a field that is left out."""
        default, needed = field.get("default"), field["required"]
        choices = choices_of(field)
        about = [field.get("format") or _type_of({key: said for key, said in field.items() if said != []})]
        if choices:
            about = ["several, with commas between" if field.get("type") == "array" else "one"]
        about += ["needed"] if needed and default is None else []
        label = [f"  {field.get('title', name)} ({', '.join(about)})"]
        if field.get("description"):
            label[0] += f": {field['description']}"
        for number, (value, shown) in enumerate(choices, 1):
            label.append(f"    {number}: {shown}" + (f" ({value})" if shown != value else ""))
        to_stderr("".join(f"{in_a_line(line)}\n" for line in label))
        usual = default if isinstance(default, str) else json.dumps(default)
        while True:
            text = (await self._line("    > " if default is None else f"    [{in_a_line(usual)}] > ")).strip()
            if not text and (default is not None or not needed):
                return default
            try:
                return typed(text, field)
            except ValueError as wrong:
                to_stderr(f"    {in_a_line(str(wrong))}\n")

    async def _chooses(self, prompt: str, answers: Mapping[str, str]) -> str:
        """Nothing is taken for granted: Enter alone asks again."""
        while not (answer := answers.get((await self._line(prompt)).strip().lower()[:1])):
            pass
        return answer

    async def _line(self, prompt: str) -> str:
        """Raises `EOFError` at Ctrl-D. A thread reads, which Ctrl-C does not wait for."""
        to_stderr(prompt)
        loop = asyncio.get_running_loop()

        def read() -> None:
            line = b""
            with contextlib.suppress(OSError), open(0, "rb", buffering=0, closefd=False) as stdin:  # it may be closed
                line = stdin.read(65536) or b""
            loop.call_soon_threadsafe(self._lines.put_nowait, line)

        if not self._reading:  # what was asked before may have been withdrawn, and its thread still reads
            self._reading = True
            threading.Thread(target=read, name="mcpmux keyboard", daemon=True).start()
        line = await self._lines.get()
        self._reading = False
        if not line:
            raise EOFError
        return line.decode(errors="replace")


_ACTIONS: Final = {"y": "accept", "n": "decline", "c": "cancel"}


# ── models, logs, usage ──


def _models(arguments: argparse.Namespace) -> None:
    """Shows the models that answer sampling, and where each number comes from.
    Example: mcpmux models --prefer '{"hints": [{"name": "sonnet"}], "costPriority": 0.8}'"""
    config = load_config(config_path(arguments.config))
    if config.sampling is None:
        raise ConfigError(f'{config.path}: no model is configured; add [sampling] with model = "provider/model"')
    if not has_litellm():
        raise ConfigError("; ".join(NO_LITELLM))
    preferences = _preferences(arguments.prefer or "{}")
    prices = load_litellm(config.sampling.models).model_cost
    rated = [rate(model, prices) for model in config.sampling.models]

    def cells(one: Rated) -> list[Any]:
        scores = [f"{one.scores[key]:g} ({one.sources[key]})" for key in PRIORITIES]
        prices = ["?", "?"] if one.usd is None else [f"{price:.4g}" for price in one.usd]
        return [one.options.model, *scores, *prices, ", ".join(one.options.hints) or None]

    _print_table(("MODEL", "COST", "SPEED", "INTELLIGENCE", "$/M IN", "$/M OUT", "HINTS"), map(cells, rated))
    if any(one.usd is None and not one.is_local for one in rated):
        print("\n?: litellm knows no price; such a model is asked only if usd_per_request says what a request counts")
    if arguments.prefer:
        order, why = ranked_models(rated, preferences)
        print(f"\n{order[0].name}: {why}")


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
        hint = did_you_mean(name, remote, f"there are: {', '.join(remote) or 'none'}").removeprefix("; ")
        what = "runs on this machine and has no login" if name in config.servers else "is not in it"
        raise ConfigError(f"{config.path}: {name} {what}; of servers with a url {hint}")
    return name, config.servers[name], config


def _login(arguments: argparse.Namespace) -> int:
    """Opens a browser, and keeps what comes of it for serving.
    Example: mcpmux login github"""
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
    """Removes a login, and has it revoked where that server knows how.
    Example: mcpmux logout github"""
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


def _logs(arguments: argparse.Namespace) -> None:
    """Prints the end of a server's log. Without a name: which logs there are.
    Example: mcpmux logs"""
    folder = state_folder() / "logs"
    known = sorted(path.stem for path in folder.glob("*.log"))
    if arguments.server is None:
        print("\n".join(f"{name}  {folder / name}.log" for name in known) or f"There are no logs yet in {folder}.")
        return
    if arguments.server not in known:
        hint = did_you_mean(arguments.server, known, f"there are: {', '.join(known) or 'none'}")
        raise ConfigError(f"{arguments.server} has written no log{hint}")
    path = folder / f"{arguments.server}.log"
    rotated = path.with_suffix(".log.1")
    present = path.read_bytes()
    past = (rotated.read_bytes() if rotated.exists() else b"") + present
    lines = past.splitlines(keepends=True)[-arguments.lines :] if arguments.lines > 0 else []
    sys.stdout.buffer.write(b"".join(lines))
    sys.stdout.flush()
    at = len(present)
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        while arguments.follow:
            time.sleep(0.2)
            size = path.stat().st_size if path.exists() else 0
            at = 0 if size < at else at  # it was moved aside, and begun anew
            if size > at:
                with path.open("rb") as file:
                    file.seek(at)
                    sys.stdout.buffer.write(file.read())
                    at = file.tell()
                sys.stdout.flush()


def _usage(arguments: argparse.Namespace) -> None:
    """Adds up the ledger of sampling. Days are those of UTC.
    Example: mcpmux usage --days 7"""
    ledger = Ledger(state_folder() / LEDGER_NAME)
    since = day_of(time.time() - 86400 * (arguments.days - 1))
    sums: dict[tuple[str, str, str], list[Any]] = {}
    for line in ledger.lines():
        if (day := str(line.get("day", line["time"]))[:10]) >= since:
            row = sums.setdefault((day, str(line.get("server")), str(line.get("model"))), [0, 0, 0, 0.0, 0])
            is_known = isinstance(line.get("usd"), int | float)
            for column, more in enumerate([1, *(amount(line, name) for name in ("in", "out", "usd")), not is_known]):
                row[column] += more
    names = ("day", "server", "model", "requests", "tokensIn", "tokensOut", "usd", "priceUnknown")
    rows: list[dict[str, Any]] = [dict(zip(names, [*key, *sums[key]], strict=True)) for key in sorted(sums)]
    if arguments.json:
        rows = [row | ({"usd": None} if row["priceUnknown"] == row["requests"] else {}) for row in rows]
        print(json.dumps({"ledger": str(ledger.path), "usage": rows}, indent=2))
    elif not rows:
        print(f"No sampling in {arguments.days} days ({ledger.path}).")
    else:
        heads = ("DAY", "SERVER", "MODEL", "REQUESTS", "TOKENS IN", "TOKENS OUT", "USD")
        costs = ["unknown" if row["priceUnknown"] else f"{row['usd']:.4f}" for row in rows]
        _print_table(heads, [[*[*row.values()][:6], usd] for row, usd in zip(rows, costs, strict=True)])
        print(f"\n${sum(row['usd'] for row in rows):.4f} in all ({ledger.path})")


# ── import, install, uninstall ──


def _import(arguments: argparse.Namespace) -> int:
    """Writes a host's servers, or those of them that are named, into the TOML file. Without a source: shows what is
    where. What looks like a secret goes into secrets.env beside that file.
    Example: mcpmux import"""
    config = load_config(config_path(arguments.config))
    if arguments.undo:
        _undo_import(config.path)
        return 0
    source = arguments.source or _choose_source()
    if source is None:
        return 0
    entries: list[HostEntry] = []
    failed = False
    for host, file, folder in _sources(source):
        try:
            entries += entries_of(host, file, folder)
        except ConfigError as wrong:
            failed = True
            print(f"{host.title}: {wrong}")
    if arguments.chosen:
        known = {entry.name: entry for entry in entries}
        for name in (wanted := arguments.chosen.split(",")):
            if name not in known:
                raise ConfigError(f"{source} has no server {name}{did_you_mean(name, known, ', '.join(known))}")
        entries = [entry for entry in entries if entry.name in wanted]
    plan = _plan_of(entries, config, arguments)
    _tell_outcomes(plan)
    if arguments.dry_run:
        print(_would_be_added(plan, config) if plan.tables else "\nNothing would be added.")
        _tell_needed(plan, config, {})
    elif plan.tables:
        print()
        _take_in(plan, config, arguments)
        print("Next: mcpmux check; mcpmux import --undo takes it back")
    return 1 if failed or any(outcome.failed for outcome in plan.outcomes) else 0


SECRETS_NAME: Final = "secrets.env"
BEFORE_IMPORT: Final = ".before-import"


class LastImport(Struct):
    """What an import did, for its undoing. No value is in it."""

    servers: list[str] = []
    variables: list[str] = []
    after: str = ""  # a digest of the TOML file then


def _take_in(plan: Import, config: Config, arguments: argparse.Namespace) -> None:
    """Writes imported servers into our file, and their secrets beside it."""
    if not plan.tables:
        return
    path, named = config.path, config.options.env_file
    file = absolute(named or SECRETS_NAME, path.parent)
    question = f"Keep {', '.join(plan.secrets)} in {file}, which only you can read?"
    old, before = read_text(file), read_text(path)
    kept = {name: line for name, value in plan.secrets.items() if (line := variable_line(name, value))}
    moves = kept and not arguments.no_secrets and _agrees(question, arguments, unasked=True)
    known = parse_env_file(old or "")
    values = {name: line for name, line in kept.items() if moves and known.get(name) != plan.secrets[name]}

    def change(text: str) -> str:
        text = with_servers(text, plan.tables, plan.comments)
        return with_setting(text, ("mux",), "env_file", SECRETS_NAME) if moves and not named else text

    after = rewritten(path, before, change)
    if values:
        text = without_variables(old or "", values)
        write_text(file, text + ("" if text[-1:] in ("", "\n") else "\n") + "".join(values.values()), old, private=True)
    backup = path.with_name(path.name + BEFORE_IMPORT)
    write_text(backup, before or "", read_text(backup), private=True)
    write_config(path, after, before)
    last = LastImport([*plan.tables], [*values], hashlib.sha256(after.encode()).hexdigest())
    write_whole(kept_path("imports", path), encode(last), private=True)
    print(f"{len(plan.tables)} added to {path}.")
    if moves:
        print(f"What was secret is in {file}; env_file in [mux] names it.")
    _tell_needed(plan, config, kept if moves else {})


def _undo_import(path: Path) -> None:
    last, backup = read_kept(kept_path("imports", path), LastImport), path.with_name(path.name + BEFORE_IMPORT)
    text, before = read_text(path), read_text(backup)
    if not last.servers or text is None or before is None:
        raise ConfigError("there is no import to take back")
    config = load_config(path)
    is_untouched = hashlib.sha256(text.encode()).hexdigest() == last.after
    new = before if is_untouched else rewritten(path, text, lambda now: with_servers(now, {}, {}, last.servers))
    write_text(path, new, text)
    if not new:
        path.unlink()
        schema_file(path).unlink(missing_ok=True)
    file = absolute(config.options.env_file or SECRETS_NAME, path.parent)
    if last.variables and (kept := read_text(file)) is not None:
        write_text(file, rest := without_variables(kept, dict.fromkeys(last.variables)), kept, private=True)
        if not rest:
            file.unlink()
    backup.unlink()
    kept_path("imports", path).unlink()
    print(f"{', '.join(last.servers)}: no longer in {path}.")


def _agrees(question: str, arguments: argparse.Namespace, *, unasked: bool) -> bool:
    """Enter is yes, and so is --yes; `unasked` is what holds where there is nobody to ask."""
    if arguments.yes or sys.stdin is None or not sys.stdin.isatty():
        if not arguments.yes and not unasked:
            print(f"{question} Say --yes where nobody can be asked.")
        return arguments.yes or unasked
    return _answer(f"{question} [Y/n] ").lower() not in ("n", "no")


def _answer(prompt: str) -> str:
    """Ctrl-D is Ctrl-C."""
    try:
        return input(prompt).strip()
    except EOFError:
        raise KeyboardInterrupt from None


def _choose_source() -> str | None:
    """Shows what is where; asks a person which of it is meant."""
    rows: list[list[Any]] = []
    places = [(host, file) for host in HOSTS for file in real_files(host, this_machine()) if file.exists()]
    for host, file in places:
        try:
            names = ", ".join(dict.fromkeys(one.name for one in entries_of(host, file, None)))
            rows.append([host.name, in_a_line(names) or None, file])
        except ConfigError as wrong:
            rows.append([host.name, "?", wrong])
    if not rows:
        print(f"None of these hosts has a file here: {_HOST_NAMES}.")
        return None
    _print_table(["HOST", "SERVERS", "FILE"], rows)
    if sys.stdin is None or not sys.stdin.isatty():
        print("\nTo take servers over: mcpmux import HOST, or mcpmux import all")
        return None
    return _answer("\nImport from which host (`all`, or Enter for none)? ") or None


def _sources(named: str) -> list[tuple[Host, Path, str | None]]:
    file, machine = Path(os.path.expanduser(named)).absolute(), this_machine()
    if named != "all" and host_named(named) is None and file.is_file():
        owner, folder = host_of_file(file, machine)
        return [(owner, file, folder)]
    hosts = HOSTS if named == "all" else [_expect_host(named, ", and no file")]
    places = {file: host for host in hosts for file in real_files(host, machine)}
    found = [(host, file, host_of_file(file, machine)[1]) for file, host in places.items() if file.exists()]
    if not found:
        none = "no host has a file here" if named == "all" else f"there is no {' nor '.join(map(str, places))}"
        raise ConfigError(none)
    return found


def _expect_host(named: str, also: str = "") -> Host:
    if host := host_named(named):
        return host
    hint = did_you_mean(named.lower(), [host.name for host in HOSTS], f"known are: {_HOST_NAMES}")
    raise ConfigError(f"{named} is no host that mcpmux knows{also}{hint}")


def _plan_of(entries: list[HostEntry], config: Config, arguments: argparse.Namespace) -> Import:
    """What is to be imported, known to load."""
    force = getattr(arguments, "force", False)
    plan = plan_import(entries, config.tables, Variables(config.environment), this_machine(), force)
    rewritten(config.path, read_text(config.path), lambda text: with_servers(text, plan.tables, plan.comments))
    return plan


def _tell_outcomes(plan: Import) -> None:
    file = None
    width = max((len(outcome.entry.name) for outcome in plan.outcomes), default=0)
    for outcome in plan.outcomes:
        if outcome.entry.file != file:
            file = outcome.entry.file
            print(f"{outcome.entry.host.title}, {file}:")
        print(in_a_line(f"  {outcome.entry.name:{width}}  {outcome.said}"))
        for note in outcome.notes:
            print(in_a_line(f"  {'':{width}}    {note}"))
    if unseen := no_longer_seen((outcome.entry for outcome in plan.outcomes if outcome.moved), os.environ):
        print(f"These servers saw your whole environment there. Here one sees {', '.join(unseen)}")
        print(f"only if its table says so, as in env_vars = {json.dumps(unseen[:1])}.")


def _would_be_added(plan: Import, config: Config) -> str:
    blocks = (server_block(name, table, plan.comments[name]) for name, table in plan.tables.items())
    return f"\nThis would be added to {config.path}:\n\n" + "\n".join(blocks)


def _tell_needed(plan: Import, config: Config, kept: Mapping[str, Any]) -> None:
    """Which variables a person has still to set."""
    if left := {name: why for name, why in plan.needed.items() if name not in kept}:
        file = config.options.env_file or f"a file that env_file in [mux] of {config.path.name} names"
        print(f"Set these variables, in what starts your host or in {file}:")
        width = max(map(len, left))
        for name, why in left.items():
            print(in_a_line(f"  {name:{width}}  {why}"))


def _install(arguments: argparse.Namespace) -> int:
    """Makes a host start mcpmux: by the command that Claude Code, Codex and VS Code have for it, else in its file.
    Example: mcpmux install cursor --dry-run"""
    host = _expect_host(arguments.host)
    config = load_config(config_path(arguments.config))
    entry = entry_for_hosts(config.path, config.sampling is not None)
    if arguments.profile and with_profile(config, arguments.profile):
        entry["args"] += ["--profile", arguments.profile]
    if config.sampling and "--from" not in entry["args"] and not has_litellm():
        print(f"note: {'; '.join(NO_LITELLM)}")
    place = Place.of(host)
    plan = _plan_of(place.entries(), config, arguments)
    moved = [outcome for outcome in plan.outcomes if outcome.moved]
    if arguments.replace:
        _tell_outcomes(plan)
        if plan.tables and arguments.dry_run:
            print(_would_be_added(plan, config))
    else:
        moved = [outcome for outcome in moved if outcome.name not in plan.tables]
        plan.tables = {}
        moved = moved if moved and _takes_out(host, config, moved, arguments) else []
    if not arguments.dry_run:
        expect_start(entry)
        _take_in(plan, config, arguments)
    return put_in(place, entry, [outcome.entry.name for outcome in moved], arguments.dry_run)


def _takes_out(host: Host, config: Config, twice: list[Outcome], arguments: argparse.Namespace) -> bool:
    """Whether what is in both places shall stay in ours alone."""
    names = ", ".join(outcome.entry.name for outcome in twice)
    print(in_a_line(f"In {host.title} and in {config.path} too, so that their tools would be there twice: {names}."))
    if _agrees(f"Take them out of {host.title}?", arguments, unasked=False):
        return True
    print(f"`mcpmux install {host.name} --replace` takes them out of {host.title}.")
    return False


# ── setup ──


def _setup(arguments: argparse.Namespace) -> int:
    """Moves the servers of your hosts into mcpmux and makes these hosts start it. It asks which servers and hosts, and
    checks each server first: one that does not start stays where it is.
    Example: mcpmux setup --dry-run"""
    if not (arguments.yes or arguments.dry_run or (sys.stdin is not None and sys.stdin.isatty())):
        raise ConfigError("setup asks, and stdin is no terminal; --yes answers all, --dry-run only shows")
    config = load_config(config_path(arguments.config))
    entry = entry_for_hosts(config.path, config.sampling is not None)
    places, entries = _places()
    plan = _plan_of(entries, config, arguments)
    groups = _groups(plan)
    print("Servers:")
    chosen = _picked("Which of them shall mcpmux run?", groups, arguments)
    if len(chosen) < len(groups):
        taken = [one.entry for one in plan.outcomes if one.moved and one.name in chosen]
        plan = _plan_of(taken, config, arguments)
    print("\nHosts:")
    titles = {place.host.title: str(place.file) for place in places}
    hosts = _picked("Which of them shall start mcpmux?", titles, arguments)
    failed: Mapping[str, str] = {}
    if arguments.dry_run:
        print(_would_be_added(plan, config) if plan.tables else "")
    else:
        expect_start(entry)
        print()
        _take_in(plan, config, arguments)
        failed = _left_behind(config.path, [*plan.tables])
    code = 0
    for place in (place for place in places if place.host.title in hosts):
        mine = [one for one in plan.outcomes if one.moved and one.entry.file == place.file and one.name not in failed]
        print()
        code = max(code, put_in(place, entry, [one.entry.name for one in mine], arguments.dry_run))
    print("\nTo take all of it back: mcpmux uninstall all, then mcpmux import --undo")
    return 1 if failed else code


def _places() -> tuple[list[Place], list[HostEntry]]:
    """The hosts' own files that are here, and the servers in them."""
    places, entries = list[Place](), list[HostEntry]()
    for host in HOSTS:
        try:
            place = Place.of(host)
            if place.text is not None:
                entries += place.entries()
                places.append(place)
        except ConfigError as wrong:
            print(f"{host.title} is left out: {wrong}")
    if not places:
        raise ConfigError(f"none of these hosts has a file here: {_HOST_NAMES}. {_HOW_TO_ADD}")
    return places, entries


def _groups(plan: Import) -> dict[str, str]:
    """The servers that can be moved: what each runs, and in which hosts it is."""
    groups: dict[str, tuple[str, list[str]]] = {}
    for outcome in plan.outcomes:
        if outcome.moved:
            table = outcome.entry.table
            words = without_secrets([str(word) for word in (table.get("command"), *table.get("args", ())) if word])
            runs = command_line(words) or without_secrets([str(plan.tables.get(outcome.name, {}).get("url"))])[0]
            groups.setdefault(outcome.name, (runs, []))[1].append(outcome.entry.host.title)
        elif not why_not_ours(outcome.entry.table):
            print(in_a_line(f"{outcome.entry.host.title}: {outcome.entry.name} {outcome.said}"))
    return {name: f"{runs}  ({', '.join(dict.fromkeys(titles))})" for name, (runs, titles) in groups.items()}


def _picked(question: str, rows: Mapping[str, str], arguments: argparse.Namespace) -> list[str]:
    """The rows that a person wants: all, unless some are named by their numbers."""
    names, width = list(rows), max(map(len, rows), default=0)
    for number, (name, what) in enumerate(rows.items(), 1):
        print(in_a_line(f"  {number:2}  {name:{width}}  {what}"))
    while rows and not arguments.yes and not arguments.dry_run:
        words = _answer(f"{question} (Enter: all; numbers, as in 1,3; 0: none) ").replace(",", " ").split()
        numbers = [int(word) if word.isdecimal() else len(names) + 1 for word in words]
        if all(number <= len(names) for number in numbers):
            return [names[number - 1] for number in numbers if number] if numbers else names
        print(f"  numbers from 1 to {len(names)} are expected")
    return names


def _left_behind(path: Path, names: list[str]) -> Mapping[str, str]:
    """Starts the servers that were taken in. Those that do not start are switched off, and it is said why."""
    config = load_config(path)
    lists, failed = learn(config, names, waits=True)  # what is new here may have to be fetched first
    failed |= {name: config.broken[name] for name in names if name in config.broken}
    for name in names:
        ready = f"{painted('ready', 'green')}, {counted(len(lists.get(name, {}).get('tools/list', ())), 'tool')}"
        print(f"  {name}: " + (f"{painted('failed', 'red')}: {failed[name]}" if name in failed else ready))
    for name in failed:
        change_config(path, lambda text, name=name: with_setting(text, ("mcp_servers", name), "enabled", False))
    if failed:
        print(f"{', '.join(failed)}: left in its host, off in {path.name}. When it works: mcpmux enable, then setup")
    return failed


class Place(NamedTuple):
    """A host's own file, which is not a project's, and where it is kept as it was before mcpmux."""

    host: Host
    file: Path
    text: str | None
    backup: Path
    kept: str | None

    @classmethod
    def of(cls, host: Host) -> Place:
        files = real_files(host, this_machine(), projects=False)
        file = next((file for file in files if file.exists()), files[0])
        backup = file.with_name(file.name + BACKUP_SUFFIX)
        return cls(host, file, read_text(file), backup, read_text(backup))

    def servers(self) -> dict[str, Any]:
        return servers_in(self.file, self.text or "", self.host.key)

    def entries(self) -> list[HostEntry]:
        """Its servers but us: those of no project."""
        found = entries_of(self.host, self.file, None) if self.text is not None else []
        return [one for one in found if one.folder is None and one.name != ENTRY_NAME]


def _ran(commands: list[list[str]]) -> bool | None:
    """Plays a host's own commands. None: the host has none that can be found here."""
    program = find_program(commands[0][0], extended_path(os.environ)) if commands else None
    if program is None:
        return None
    for command in commands:
        print(f"Running: {command_line(command)}", flush=True)
        if subprocess.run(**as_started(program, command[1:]), stdin=subprocess.DEVNULL, check=False).returncode:
            return False
    return True


def put_in(place: Place, entry: dict[str, Any], moved: list[str], dry_run: bool) -> int:
    """A host gets our entry, and loses what moved into our file. What it had is kept beside its file."""
    host, file, text, backup, kept = place
    own, servers = entry_in(host, entry), place.servers()
    is_there = ENTRY_NAME in servers
    new = edited(file, text or "", host.key, moved, {ENTRY_NAME: own})
    if new == (text or ""):
        print(f"{host.title} is already set up, in {file}; nothing to change.")
        return 0
    renewal = [own_command(host, 1, ENTRY_NAME, {})] if is_there else []
    renewal = [] if servers.get(ENTRY_NAME) == own else [*renewal, own_command(host, 0, ENTRY_NAME, own)]
    commands = [one for one in (*renewal, *(own_command(host, 1, name, {}) for name in moved)) if one]
    if dry_run:
        print(f"Would change {file}, where it has servers:")
        print(f"  + {ENTRY_NAME}: {command_line([entry['command'], *entry['args']])}")
        print("".join(in_a_line(f"  - {name}") + "\n" for name in moved), end="")
        return 0
    before = uninstalled(file, text or "", kept, host.key)[0] if is_there else text
    if kept is not None and not is_there and kept != text:  # of another time
        os.replace(backup, f"{backup}.old")
        kept = None
    if before is not None and before != kept:
        write_text(backup, before, kept, private=True)
    went = _ran(commands)
    if went is None and commands and text is None:
        print(f"{commands[0][0]} was not found. Where it is, run:\n\n" + "\n".join(map(command_line, commands)))
        return 0
    if went is False:
        return 1
    now = read_text(file)
    if went:  # not every host has a command that lets a server go
        new = edited(file, now or "", host.key, moved, {})
    if new != (now or ""):
        write_text(file, new, now)
    print(f"{host.title} has mcpmux now, in {file}" + ("." if before is None else f";\n  as it was: {backup}"))
    print(f"  Restart {host.title}. `mcpmux uninstall {host.name}` takes it back.")
    return 0


def expect_start(entry: Mapping[str, Any]) -> None:
    """Runs what a host will run, as a host with a window does: a bare PATH, no variables, no folder of ours. Raises
    `ConfigError` if it does not answer."""
    names = ("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "SYSTEMROOT", "TEMP", "TMP", "LANG")
    bare = {name: os.environ[name] for name in names if name in os.environ}
    bare["PATH"] = "C:\\Windows\\system32;C:\\Windows" if sys.platform == "win32" else _BARE_PATH
    command = [entry["command"], *entry["args"]]
    ping, root, pipe = request_line(1, "ping", UNSET), Path(sys.prefix).anchor, subprocess.PIPE
    try:
        done = subprocess.run(command, input=ping, env=bare, cwd=root, stdout=pipe, stderr=pipe, timeout=FIRST_ANSWER)  # noqa: PLW1510
        if b'"result"' in done.stdout:
            return
        why = telling(done.stderr.decode(errors="replace").split("\n")) or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as wrong:
        why = str(wrong)
    raise ConfigError(f"no host could start mcpmux by {command_line(command)}: {harmless(why)}; nothing was changed")


def _uninstall(arguments: argparse.Namespace) -> None:
    """Gives a host (or `all` of them) back what it had before mcpmux. The TOML file stays as it is.
    Example: mcpmux uninstall cursor --dry-run"""
    is_all = arguments.host == "all"
    for place in [Place.of(host) for host in (HOSTS if is_all else [_expect_host(arguments.host)])]:
        if place.text is not None or not is_all:
            take_out(place, arguments.dry_run)


def take_out(place: Place, dry_run: bool) -> None:
    """A host has its file as it was before us; if somebody has changed it since, it keeps that."""
    host, file, text, backup, kept = place
    is_there = text is not None and ENTRY_NAME in place.servers()
    if text is None or (not is_there and kept is None):
        print(f"{host.title} has no mcpmux in {file}.")
        return
    new, restored = uninstalled(file, text, kept, host.key)
    if dry_run:
        print(f"Would change {file}, where it has servers:\n  - {ENTRY_NAME}")
        print("".join(in_a_line(f"  + {name}") + "\n" for name in restored), end="")
        return
    if is_there and _ran([one] if (one := own_command(host, 1, ENTRY_NAME, {})) else []):
        text = read_text(file) or ""
        new, restored = uninstalled(file, text, kept, host.key)
        if new != kept and "{entry}" in OWN_COMMANDS[host.name][0]:  # one that takes all that a table has
            before = servers_in(file, kept or "", host.key)
            _ran([own_command(host, 0, name, before[name]) for name in restored])
            text = read_text(file) or ""
            new, _ = uninstalled(file, text, kept, host.key)
    if new is None:
        file.unlink(missing_ok=True)
        print(f"{file} was there for mcpmux alone, and is gone.")
        return
    write_text(file, new, text)
    backup.unlink(missing_ok=True)
    if new == kept:
        print(f"{file} is as it was before mcpmux.")
    else:
        back = in_a_line(f", and these are back: {', '.join(restored)}") if restored else ""
        print(f"{file} was changed since: mcpmux is out of it{back}.")


# ── demo ──


class DemoServer:
    """A small MCP server for the demo: one thread, one request at a time, the standard library only. Each tool is a
    method, described by its docstring."""

    _tools: Final = {"notes": ("whoami", "add_note", "summarize"), "clock": ("whoami", "countdown")}

    def __init__(self, name: str) -> None:
        self._name = name
        self._notes = ["buy milk", "call Ada"]

    def serve(self) -> int:
        if self._name == "model":
            sys.stdin.buffer.readline()  # its setup
            self._send(method=LOADED)
        for line in iter(sys.stdin.buffer.readline, b""):
            message = decode_any(line)
            if "id" in message:
                self._send(id=message["id"], result=self._answer(message["method"], message.get("params") or {}))
        return 0

    def _answer(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        match method:
            case "prepare":
                return {"params": params["params"], "models": ["demo"], "usd": None}
            case "sampling/createMessage":
                text = {"type": "text", "text": "Milk, Ada, plants."}
                return {"role": "assistant", "content": text, "model": "demo/model", "stopReason": "endTurn"}
            case "initialize":
                info = {"name": self._name, "version": __version__}
                return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": info}
            case "tools/list":
                tools = {name: getattr(self, name).__doc__ for name in self._tools[self._name]}
                schema = {"type": "object"}
                return {"tools": [{"name": one, "description": tools[one], "inputSchema": schema} for one in tools]}
            case "tools/call":
                return {"content": [{"type": "text", "text": getattr(self, params["name"])(params)}]}
            case _:
                return {}

    def _send(self, **message: Any) -> None:
        sys.stdout.buffer.write(encode({"jsonrpc": "2.0", **message}) + b"\n")
        sys.stdout.buffer.flush()

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._send(id=f"ask-{method}", method=method, params=params)
        while message := decode_any(sys.stdin.buffer.readline() or b"{}"):
            if message.get("id") == f"ask-{method}":
                return message.get("result", {})
        sys.exit(0)

    def whoami(self, params: dict[str, Any]) -> str:
        """Says which process this is"""
        return f"{self._name}, process {os.getpid()}"

    def add_note(self, params: dict[str, Any]) -> str:
        """Adds a note; asks the person for its text"""
        schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
        answer = self._ask("elicitation/create", message="What shall I note?", requestedSchema=schema)
        if answer.get("action") != "accept":
            return "Nothing was noted."
        self._notes.append(answer["content"]["text"])
        return f"Noted: {self._notes[-1]}"

    def summarize(self, params: dict[str, Any]) -> str:
        """Asks a model to sum the notes up"""
        prompt = {"type": "text", "text": f"Sum up in a line: {'; '.join(self._notes)}"}
        messages = [{"role": "user", "content": prompt}]
        answer = self._ask("sampling/createMessage", messages=messages, maxTokens=50)
        return f"The model {answer['model']} says: {answer['content']['text']}"

    def countdown(self, params: dict[str, Any]) -> str:
        """Counts down, with progress"""
        arguments, token = params.get("arguments", {}), params.get("_meta", {}).get("progressToken")
        steps = arguments.get("steps", 5)
        for step in range(1, steps + 1):
            time.sleep(arguments.get("seconds", 1) / steps)
            if token is not None:
                told = {"progressToken": token, "progress": step, "total": steps}
                self._send(method="notifications/progress", params=told)
        return "Lift-off!"


def _schema(arguments: argparse.Namespace) -> None:
    """Prints a JSON Schema of the config file, by which editors check it and complete what is typed.
    Example: mcpmux schema"""
    print(json.dumps(schema_of_config(), indent=2))


def _demo(arguments: argparse.Namespace) -> None:
    """Runs mcpmux over two small servers and plays the host.
    Example: mcpmux demo"""
    program, *args = again("_demo_server")
    servers = {name: {"command": program, "args": [*args, name]} for name in ("notes", "clock")}

    async def elicited(params: Fields) -> Any:
        form = value_of(params["requestedSchema"])["properties"]
        content = {"decision": "once"} if "decision" in form else {"text": "water the plants"}
        lines = [painted(line, "yellow") for line in value_of(params["message"]).split("\n")]
        print(f"     the host shows  {f'{chr(10):22}'.join(lines)}")
        print(f"     you answer      {painted(next(iter(content.values())), 'yellow')}")
        return {"action": "accept", "content": content}

    document = {"mcp_servers": servers, "sampling": {"model": "demo/model"}}
    config, model = read_config(document, Path(CONFIG_NAME).absolute()), ["_demo_server", "model"]
    InnerHost(config, capabilities={"elicitation": {}}, elicited=elicited, model=model).play(_scenes)
    print(f"""
Now with your own servers: `mcpmux setup` takes them out of your hosts' files, and makes these hosts start mcpmux.
Or list them in {config_path(None)}:

     [mcp_servers.time]
     command = "uvx"
     args = ["mcp-server-time"]
""")


async def _scenes(host: InnerHost) -> None:
    async def show(tool: str, bar: Bar | None = None, after: str = "", **arguments: Any) -> str:
        reply = await host.ask("tools/call", {"name": tool, "arguments": arguments}, bar)
        text, failed = value_of(reply.result)["content"][0]["text"], value_of(reply.result).get("isError")
        print(f"     {tool}  ->  {painted(text, 'red' if failed else 'green')}{after}")
        return text

    def bar(progress: Fields) -> None:
        tall = sys.stdout.isatty()
        ends = not tall or value_of(progress["progress"]) == value_of(progress["total"])
        print(f"{ours(chr(13)) if tall else ''}     {bar_of(progress)}", end="\n" if ends else "", flush=True)

    def kill_clock(progress: Fields) -> None:
        if value_of(progress["progress"]) == 1:
            os.kill(int(clock.split()[-1]), signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)

    def head(text: str) -> None:
        print(("" if text[0] == "1" else "\n") + painted(text, "bold"))

    head(f"1. A host starts mcpmux {host.about['serverInfo']['version']}, and two servers look like one:")
    for tool in value_of((await host.ask("tools/list")).result)["tools"]:
        print(f"     {tool['name']:18} {tool['description']}")
    head("2. A call to each:")
    await show("notes__whoami")
    clock = await show("clock__whoami")
    head("3. Progress reaches the host:")
    await show("clock__countdown", bar, steps=10)
    head("4. A server asks you something (elicitation):")
    await show("notes__add_note")
    head("5. A server asks for a model, and this host has none, like most (sampling):")
    await show("notes__summarize")
    print("     mcpmux asked the model in [sampling]; here the demo plays it, so that no key is needed.")
    head("6. A server is killed in the middle of a call:")
    await show("clock__countdown", kill_clock, steps=100, seconds=30)
    await show("notes__whoami", after="   (untouched)")
    await show("clock__whoami", after="   (started again)")


# ── the table of commands ──


def _argument(*flags: str, **keys: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What `ArgumentParser.add_argument` takes."""
    return flags, keys


_ENV: Final = "a variable for it, as often as needed; a secret is better given as '${VAR}'"
_AS_HOST: Final = "with what a host gives of its environment (usual if one that gives a part has mcpmux), or with yours"
_HEADER: Final = "sent with each request to a --url, as often as needed; a secret is better given as '${VAR}'"

ARGUMENTS: Final = {
    "as-it-came": _argument("--json", action="store_true", help="the result as it came"),
    "as-host": _argument("--as-host", action="yes or no", help=_AS_HOST),
    "config": _argument("--config", metavar="PATH", help=_WHICH_CONFIG),
    "days": _argument("--days", metavar="N", type=_number_of_days, default=30, help="counted back from today (30)"),
    "dry-run": _argument("--dry-run", action="store_true", help="only show what would be written or run"),
    "env": _argument("--env", "-e", metavar="KEY=VALUE", action="append", default=[], help=_ENV),
    "follow": _argument("-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C"),
    "force": _argument("--force", action="store_true", help="overwrite servers that have the same names"),
    "forget": _argument("--forget", action="store_true", help="what is listed is no longer decided"),
    "given": _argument("arguments", nargs="*", metavar="NAME=VALUE", help="its arguments; NAME:=JSON, or one object"),
    "header": _argument("--header", "-H", metavar="KEY: VALUE", action="append", default=[], help=_HEADER),
    "host": _argument("host", metavar="HOST", help=_HOST_NAMES),
    "json": _argument("--json", action="store_true", help="for scripts"),
    "lines": _argument("-n", "--lines", metavar="N", type=int, default=200, help="how many lines of the past (200)"),
    "log": _argument("server", nargs="?", metavar="SERVER", help="its name in the config"),
    "name": _argument("name", metavar="NAME", help="what it is to be called: A-Z a-z 0-9 _ -"),
    "model": _argument("--model", action="store_true", help="ask each model of [sampling] for a token, too"),
    "one": _argument("server", nargs="?", metavar="SERVER", help="of this server only"),
    "output": _argument("--output", "-o", metavar="PATH", help="a file or folder for images, audio and files"),
    "page": _argument("--page", action="store_true", help="what is asked is asked in the browser, not here"),
    "profile": _argument("--profile", metavar="NAME", default="", help=_PROFILE),
    "prefer": _argument("--prefer", metavar="JSON", help="modelPreferences of a request: which model, and why"),
    "repair": _argument("--repair", action="store_true", help="delete broken copies of npx's, and fetch them again"),
    "no-secrets": _argument("--no-secrets", action="store_true", help="say which variables to set; keep none of them"),
    "chosen": _argument("chosen", nargs="?", metavar="SERVER,...", help="these only"),
    "undo": _argument("--undo", action="store_true", help="take the last import back"),
    "replace": _argument("--replace", action="store_true", help="move the host's other servers into the TOML file"),
    "search": _argument("--search", metavar="WORDS", help="what a host would find by these, and why"),
    "server": _argument("server", metavar="SERVER", help="its name in the config"),
    "servers": _argument("servers", nargs="*", metavar="SERVER", help="these alone"),
    "source": _argument("source", nargs="?", metavar="HOST|FILE", help=f"all, a file, or one of: {_HOST_NAMES}"),
    "tool": _argument("tool", metavar="TOOL", help="its name, as `mcpmux tools` shows it"),
    "yes": _argument("--yes", "-y", action="store_true", help="do it unasked"),
    "try": _argument("--try", dest="trial", action="store_true", help="one question of each kind, to try it out"),
    "url": _argument("--url", metavar="URL", help="of a remote server, in place of a command"),
}
_SETUP: Final = "config no-secrets yes dry-run"  # of all that moves servers
SUBCOMMANDS: Final = (
    Subcommand("add", _add, "put a server in the config", "name url env header force config", "COMMAND [ARGUMENT ...]"),
    Subcommand("list", _list_servers, "the servers of the config, and what is known of them", "config json"),
    Subcommand("tools", _tools, "the tools and their arguments", "one config search json"),
    Subcommand("accept", _accept, "see how a pinned server's tools have changed, and take them", "server yes config"),
    Subcommand("consents", _consents, "which servers may use your model, as you said", "one forget json"),
    Subcommand("call", _call, "call a tool", "tool given output page config as-it-came"),
    Subcommand("page", _page, "open the page that asks you what servers ask", "try config"),
    Subcommand("check", _check, "start every server and say how each does", "servers config as-host model repair json"),
    Subcommand("login", _login, "log in to a remote server, in your browser", "server config"),
    Subcommand("logout", _logout, "forget a login at a remote server", "server config"),
    Subcommand("import", _import, "take servers over from a host's own file", f"source chosen force undo {_SETUP}"),
    Subcommand("install", _install, "make a host start mcpmux", f"host profile replace {_SETUP}"),
    Subcommand("uninstall", _uninstall, "give a host back what it had before install", "host dry-run"),
    Subcommand("models", _models, "the models of [sampling], with scores and prices", "config prefer"),
    Subcommand("usage", _usage, "what sampling has cost, by day, server and model", "days json"),
    Subcommand("logs", _logs, "what a server has written to its stderr", "log follow lines"),
    Subcommand("schema", _schema, "a JSON Schema of the config file, for editors"),
    Subcommand("demo", _demo, "see it work: no config, no key, no Node"),
    Subcommand("setup", _setup, "move your hosts' servers into mcpmux, step by step", _SETUP),
    Subcommand("remove", _remove, "take a server out of the config", "server config"),
    Subcommand("enable", _enable, "switch a server on again", "server config"),
    Subcommand("disable", _disable, "switch a server off, and keep its table", "server config"),
)

gc.freeze()
gc.enable()

if __name__ == "__main__":
    sys.exit(main())
