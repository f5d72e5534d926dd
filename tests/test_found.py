"""Whether the search finds the right tool, among those of real servers (tools.json.xz, by record_tools.py), by queries
that were written before anybody looked at a description (queries.txt). Our choice (README, "Many tools").

    uv run --group bench python tests/test_found.py     # a table of it all, beside others
"""

from __future__ import annotations

import fnmatch
import functools
import json
import lzma
import math
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

import mcpmux
from mcpmux import Catalogue, MuxOptions, Part, ServerOptions, ToolSearch

HERE = Path(__file__).parent
RECORDED: dict[str, Any] = json.loads(lzma.decompress((HERE / "tools.json.xz").read_bytes()))


class Query(NamedTuple):
    text: str
    right: frozenset[str]  # exposed names


def catalogue() -> tuple[Catalogue, dict[str, str]]:
    """Of the recorded servers, and what each is for."""
    parts, about = list[Part](), dict[str, str]()
    for name, server in RECORDED.items():
        raws = [msgspec.Raw(msgspec.json.encode(tool)) for tool in server["tools"]]
        entries = [mcpmux.fit_entry("tools/list", raw, ServerOptions(command="x")) for raw in raws]
        parts.append(Part(name, None, {"tools/list": [one for one in entries if isinstance(one, mcpmux.Entry)]}))
        info = {key: msgspec.Raw(msgspec.json.encode(value)) for key, value in server["info"].items()}
        about[name] = mcpmux.purpose(server["instructions"], info)
    return mcpmux.merge(parts, MuxOptions()), about


CATALOGUE, ABOUT = catalogue()
NAMES = {f"{route.server}/{route.name}": name for name, route in CATALOGUE.tools.items()}


@functools.cache
def queries(kind: str) -> list[Query]:
    text = (HERE / "queries.txt").read_text(encoding="utf-8")
    found: list[Query] = []
    for line in text.partition(f"[{kind}]\n")[2].partition("\n[")[0].splitlines():
        asked, _, right = line.partition(" | ")
        names = {name for glob in right.split() for own, name in NAMES.items() if fnmatch.fnmatchcase(own, glob)}
        if names:
            found.append(Query(asked, frozenset(names)))
    return found


Finder = Callable[[str], list[str]]  # the first five names


def ours() -> Finder:
    search, servers = ToolSearch(CATALOGUE.tools, ABOUT), list(RECORDED)
    return lambda query: [one.name for one in search.find({"query": query}, servers)]


def plain_bm25() -> Finder:
    """Over names and descriptions, as it stands in the books."""
    words = {
        name: re.findall(r"[a-z0-9]+", f"{route.name} {tool_of(name)['description']}".lower())
        for name, route in CATALOGUE.tools.items()
    }
    mean = sum(map(len, words.values())) / len(words)
    counts = {name: Counter(text) for name, text in words.items()}
    having = Counter(word for text in counts.values() for word in text)

    def score(name: str, query: list[str]) -> float:
        total = 0.0
        for word in query:
            often = counts[name][word]
            rarity = math.log(1 + (len(words) - having[word] + 0.5) / (having[word] + 0.5))
            total += rarity * often * 2.5 / (often + 1.5 * (0.25 + 0.75 * len(words[name]) / mean))
        return total

    def find(query: str) -> list[str]:
        asked = re.findall(r"[a-z0-9]+", query.lower())
        best = sorted(words, key=lambda name: -score(name, asked))[:5]
        return [name for name in best if score(name, asked) > 0]

    return find


def tool_of(name: str) -> dict[str, Any]:
    entry = CATALOGUE.tools[name].entry
    return json.loads(entry.left + json.dumps(name).encode() + entry.right)


def recall(find: Finder, asked: list[Query], first: int) -> float:
    """The share of queries of which a right tool is among so many first."""
    return sum(bool(one.right & set(find(one.text)[:first])) for one in asked) / len(asked)


def tuned(kind: str) -> list[Query]:
    return [one for at, one in enumerate(queries(kind)) if at % 3 < 2]


def apart(kind: str) -> list[Query]:
    return queries(kind)[2::3]


@pytest.mark.parametrize(("kind", "first", "least"), [("models", 1, 0.65), ("models", 5, 0.9), ("people", 5, 0.7)])
def test_the_right_tool_is_found_among_those_of_many_servers(kind: str, first: int, least: float):
    """Also by queries on which nobody has tuned it."""
    assert len(RECORDED) >= 25 and len(queries(kind)) >= 100
    assert recall(ours(), queries(kind), first) >= least


@pytest.mark.parametrize("asked", [tuned, apart])
def test_people_are_understood_better_than_by_plain_bm25(asked: Callable[[str], list[Query]]):
    assert recall(ours(), asked("people"), 5) >= recall(plain_bm25(), asked("people"), 5) + 0.1


def test_a_search_is_the_same_each_time():
    first, again = ours(), ours()
    assert all(first(one.text) == again(one.text) for one in queries("people"))


def test_the_file_of_tools_stays_small():
    assert (HERE / "tools.json.xz").stat().st_size < 1024 * 1024


def in_a_list(names: list[str]) -> int:
    """Bytes of these tools as they are listed."""
    return sum(len(json.dumps(tool_of(name), ensure_ascii=False)) for name in names)


def test_a_task_of_three_tools_costs_a_tenth_of_the_list():
    """With what is listed in place of all, three searches and their answers."""
    everything = len(CATALOGUE.results["tools/list"])
    search, servers = ToolSearch(CATALOGUE.tools, ABOUT), list(RECORDED)
    listed = len(mcpmux.deferred(CATALOGUE, MuxOptions(), set(), ABOUT).results["tools/list"])
    asked = ["read file contents", "create github issue", "post message to slack channel"]
    answers = [mcpmux.answer_found(search.find({"query": query}, servers)) for query in asked]
    assert listed < 4 * 2000
    assert listed + sum(len(answer) // 2 for answer in answers) < everything / 10  # said twice, for who reads either


def fastmcp_search() -> Finder:
    """FastMCP's own, as its servers offer it in place of their tools."""
    import asyncio

    from fastmcp.server.transforms.search.bm25 import BM25SearchTransform
    from fastmcp.tools import Tool

    tools = [
        Tool(name=name, description=tool["description"], parameters=tool["inputSchema"])
        for name in CATALOGUE.tools
        if (tool := tool_of(name))
    ]
    transform = BM25SearchTransform(max_results=5)
    return lambda query: [one.name for one in asyncio.run(transform._search(tools, query))]


def main() -> None:
    print(f"{len(RECORDED)} servers, {len(CATALOGUE.tools)} tools, {len(CATALOGUE.results['tools/list'])} bytes")
    finders: dict[str, Callable[[], Finder]] = {"mcpmux": ours, "BM25": plain_bm25, "FastMCP": fastmcp_search}
    for name, new in finders.items():
        find = new()
        for kind in ("models", "people"):
            for what, asked in (("all", queries(kind)), ("apart", apart(kind))):
                rates = ", ".join(f"@{first} {recall(find, asked, first):.2f}" for first in (1, 5))
                print(f"{name:8} {kind} {what:6} {len(asked):4} queries: {rates}")
    search = ToolSearch(CATALOGUE.tools, ABOUT)
    start = time.process_time()
    find = search.index.find
    built = time.process_time()
    for one in queries("people"):
        find(one.text)
    took = (time.process_time() - built) / len(queries("people"))
    print(
        f"index {(built - start) * 1e3 / len(CATALOGUE.tools) * 1000:.0f} ms per 1000 tools, query {took * 1e3:.2f} ms"
    )


if __name__ == "__main__":
    main()
