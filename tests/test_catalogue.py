"""Many lists become one. https://modelcontextprotocol.io/specification/2025-11-25/server/tools"""

from __future__ import annotations

import difflib
import json
import re
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mcpmux
from mcpmux import Entry, MuxOptions, Part, ServerOptions, ToolOverride

SCHEMA = {"type": "object"}


def fit(entry: Any, method: str = "tools/list", **table: Any) -> Any:
    """An entry as it is offered, or the reason why not."""
    raw = entry if isinstance(entry, bytes) else msgspec.json.encode(entry)
    fitted = mcpmux.fit_entry(method, mcpmux.Raw(raw), ServerOptions(command="x", **table))
    return shown(fitted) if isinstance(fitted, Entry) else fitted


def shown(entry: Entry) -> dict[str, Any]:
    return json.loads(entry.left + msgspec.json.encode(entry.shown) + entry.right)


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "description": name, "inputSchema": SCHEMA, **more}


def part(server: str, *names: str, prefix: str | None = None, method: str = "tools/list", **table: Any) -> Part:
    key = mcpmux.LISTS[method].identity
    entries = [
        mcpmux.fit_entry(method, mcpmux.Raw(msgspec.json.encode({**tool(name), key: name})), ServerOptions(**table))
        for name in names
    ]
    return Part(server, prefix, {method: [entry for entry in entries if isinstance(entry, Entry)]})


def names(*parts: Part, **options: Any) -> list[str]:
    merged = mcpmux.merge(list(parts), MuxOptions(**options))
    listed = [entry["name"] for entry in json.loads(merged.results["tools/list"])["tools"]]
    assert listed == list(merged.tools)
    return listed


# ── entries ──


def test_an_entry_that_is_valid_is_kept_byte_for_byte():
    raw = b'{"x-vendor":[1.0, 1e2],"name":"a","description":"d","inputSchema":{"type" : "object"},"_meta":{"k":null}}'
    fitted = mcpmux.fit_entry("tools/list", mcpmux.Raw(raw), ServerOptions())
    assert isinstance(fitted, Entry)
    assert fitted.left + b'"a"' + fitted.right == raw


@pytest.mark.parametrize("at", [0, 1, 2])
def test_the_name_may_stand_anywhere(at: int):
    fields = [("description", "d"), ("inputSchema", SCHEMA)]
    fields.insert(at, ("name", "a"))
    assert list(fit(dict(fields))) == [key for key, _ in fields]


@pytest.mark.requirement("strict-entries", "schemas-not-followed")
@pytest.mark.parametrize(
    ("entry", "becomes"),
    [
        (tool("a", description=None), tool("a")),
        (tool("a", description=""), tool("a")),
        (tool("a", description=7), tool("a")),
        ({"name": "a", "inputSchema": SCHEMA}, tool("a")),
        (tool("a", title=None, annotations=None, icons=None, _meta=None), tool("a")),
        (tool("a", title=7, annotations=[], icons={}, _meta=1), tool("a")),
        ({"name": "a", "description": "a"}, tool("a")),
        (tool("a", inputSchema=None), tool("a")),
        (tool("a", inputSchema={}), tool("a")),
        (tool("a", inputSchema={"properties": {}}), tool("a", inputSchema={"type": "object", "properties": {}})),
        (
            tool("a", inputSchema={"type": "object", "properties": None, "required": None}),
            tool("a"),
        ),
        (
            tool("a", inputSchema={"type": "object", "properties": {"x": True, "y": False, "z": {}}, "required": [7]}),
            tool("a", inputSchema={"type": "object", "properties": {"x": {}, "y": {"not": {}}, "z": {}}}),
        ),
        (tool("a", icons=[{}], annotations={"readOnlyHint": None, "x": 1}), tool("a", annotations={"x": 1})),
        (tool("a", outputSchema="no"), tool("a")),
        (tool("a", outputSchema=None), tool("a")),
        (tool("a", outputSchema=SCHEMA), tool("a", outputSchema=SCHEMA)),
    ],
)
def test_an_entry_is_made_valid_where_it_can_be(entry: dict[str, Any], becomes: dict[str, Any]):
    """Our choice: TypeScript hosts refuse the whole list for one such entry."""
    assert fit(entry) == becomes


@pytest.mark.requirement("strict-entries")
@pytest.mark.parametrize(
    ("method", "entry", "reason"),
    [
        ("tools/list", b"7", "an entry of tools/list without a name"),
        ("tools/list", {}, "an entry of tools/list without a name"),
        ("tools/list", {"name": 7}, "an entry of tools/list without a name"),
        ("tools/list", tool("a", inputSchema={"type": "array"}), "tool 'a': its inputSchema is not of type \"object\""),
        ("tools/list", tool("a", inputSchema=7), "tool 'a': its inputSchema is not of type \"object\""),
        ("resources/list", {"name": "x"}, "an entry of resources/list without a uri"),
        ("resources/templates/list", {"name": "x"}, "an entry of resources/templates/list without a uriTemplate"),
        ("prompts/list", {"name": "p", "arguments": [{}]}, "prompt 'p': an argument without a name"),
    ],
)
def test_an_entry_that_cannot_be_made_valid_is_left_out_with_its_reason(method: str, entry: Any, reason: str):
    assert fit(entry, method) == reason


@pytest.mark.requirement("wrapped-schemas")
@pytest.mark.parametrize(
    ("schema", "outer"),
    [
        ({"type": "array"}, {"type": "object", "properties": {"result": {"type": "array"}}, "required": ["result"]}),
        (True, {"type": "object", "properties": {"result": {}}, "required": ["result"]}),
        (False, {"type": "object", "properties": {"result": {"not": {}}}, "required": ["result"]}),
    ],
)
def test_an_output_schema_that_is_no_object_is_wrapped_with_its_results(schema: Any, outer: dict[str, Any]):
    """Our choice, as the TypeScript SDK does it."""
    assert fit(tool("a", outputSchema=schema))["outputSchema"] == outer
    assert mcpmux.wrap_structured(mcpmux.Raw(b'{"content":[],"structuredContent":[1.0]}')) == (
        b'{"content":[],"structuredContent":{"result":[1.0]}}'
    )


@pytest.mark.requirement("wrapped-schemas")
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"anyOf": [{"type": "string"}, {"type": "array", "items": {"$ref": "#"}}]}, ["a", ["b"]], ["a", [1]]),
        (
            {"type": "array", "items": {"type": "object", "properties": {"next": {"$ref": "#/items"}}}},
            [{"next": {"next": {}}}],
            [{"next": {"next": 5}}],
        ),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "array", "items": {"$ref": "#/$defs/x"}}}}, [[]], [[1]]),
        ({"$ref": "#/definitions/x", "definitions": {"x": {"type": "string"}}}, "a", 1),
        ({"$id": "urn:x", "type": "array", "items": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}, [[None]], [["a"]]),
        ({"enum": [{"$ref": "#"}]}, {"$ref": "#"}, {"$ref": "#/properties/result"}),
        ({"properties": {"$ref": {"type": "string"}, "enum": {"$ref": "#"}}}, {"enum": {}}, {"enum": {"$ref": 1}}),
    ],
)
def test_references_of_an_output_schema_mean_the_same_when_it_is_wrapped(schema: Any, good: Any, bad: Any):
    outer = fit(tool("a", outputSchema={"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}))
    direct = jsonschema.Draft202012Validator(schema)
    wrapped = jsonschema.Draft202012Validator(outer["outputSchema"])
    assert direct.is_valid(good) and wrapped.is_valid({"result": good})
    assert not direct.is_valid(bad) and not wrapped.is_valid({"result": bad})


def test_arguments_of_prompts_are_made_valid():
    arguments = [{"name": "x", "description": None, "required": "yes"}, {"name": "y", "required": True}]
    fitted = fit({"name": "p", "arguments": arguments}, "prompts/list")
    assert fitted == {"name": "p", "arguments": [{"name": "x"}, {"name": "y", "required": True}]}


def test_what_would_make_a_list_longer_than_hosts_take_is_left_out_and_can_still_be_called():
    entries = part("a", "x", "y", "z").lists["tools/list"]
    entries[1] = msgspec.structs.replace(entries[1], right=b',"description":"' + b"d" * 20_000 + b'"}')
    merged = mcpmux.merge([Part("a", None, {"tools/list": entries})], MuxOptions(host_message_mb=0.02))
    assert [tool["name"] for tool in json.loads(merged.results["tools/list"])["tools"]] == ["a__x", "a__z"]
    assert list(merged.tools) == ["a__x", "a__y", "a__z"]
    ((server, note),) = merged.notes
    assert server == "a" and note.startswith("1 entries are left out: tools/list would be longer than host_message_mb")


def test_the_server_with_the_most_gives_way_first():
    """No server crowds another's entries out of a list."""
    big = part("big", *(f"t{number}" for number in range(1000)))
    small = part("small", "x", "y")
    merged = mcpmux.merge([big, part("middle", *"abcdef"), small], MuxOptions(host_message_mb=0.02))
    listed = [tool["name"] for tool in json.loads(merged.results["tools/list"])["tools"]]
    assert {f"middle__{name}" for name in "abcdef"} | {"small__x", "small__y"} <= set(listed)
    assert 100 < sum(name.startswith("big") for name in listed) < 1000
    assert len(merged.tools) == 1008


def test_very_many_colliding_names_are_numbered_in_good_time():
    many = [f"{'x' * 40}{chr(0x4E00 + number)}" for number in range(3000)]
    assert len(set(names(part("a", *many, prefix=""), max_name_length=41))) == 3000


def test_a_name_that_a_server_lists_twice_is_offered_once():
    """It would be called by the same name both times."""
    assert names(part("a", "x", "y", "x")) == ["a__x", "a__y"]


def test_resources_without_a_name_are_named_by_their_uri():
    assert fit({"uri": "mem://1"}, "resources/list") == {"uri": "mem://1", "name": "mem://1"}


@pytest.mark.parametrize(
    ("table", "enabled"),
    [
        ({}, ["get_a", "get_b", "put_a"]),
        ({"enabled_tools": ["get_*"]}, ["get_a", "get_b"]),
        ({"disabled_tools": ["get_a", "put_?"]}, ["get_b"]),
        ({"enabled_tools": ["get_*"], "disabled_tools": ["*_a"]}, ["get_b"]),
        ({"enabled_tools": []}, []),
        ({"enabled_tools": ["GET_A"]}, []),
        ({"tools": {"get_a": ToolOverride(enabled=False)}}, ["get_b", "put_a"]),
    ],
)
def test_tools_are_enabled_by_the_servers_own_names_and_globs(table: dict[str, Any], enabled: list[str]):
    assert [name for name in ("get_a", "get_b", "put_a") if fit(tool(name), **table) is not None] == enabled


def test_overrides_replace_what_the_host_is_shown_and_not_what_the_server_is_called():
    override = {"get": ToolOverride(name="fetch", title="Fetch", description="Fetches.")}
    entry = mcpmux.fit_entry("tools/list", mcpmux.Raw(msgspec.json.encode(tool("get"))), ServerOptions(tools=override))
    assert isinstance(entry, Entry)
    assert shown(entry) == tool("fetch", title="Fetch", description="Fetches.")
    merged = mcpmux.merge([Part("s", None, {"tools/list": [entry]})], MuxOptions())
    assert merged.tools == {"s__fetch": mcpmux.Route("s", "get", merged.tools["s__fetch"].entry)}


# ── names ──


def test_names_have_the_servers_prefix_and_config_order():
    assert names(part("b", "z", "a"), part("a", "x")) == ["b__z", "b__a", "a__x"]


@pytest.mark.parametrize(
    ("prefix", "expected"), [(None, ["git__log"]), ("g", ["g__log"]), ("", ["log"]), ("my-git", ["my-git__log"])]
)
def test_a_prefix_may_be_chosen_or_dropped(prefix: str | None, expected: list[str]):
    assert names(part("git", "log", prefix=prefix)) == expected


def test_the_separator_may_be_chosen():
    assert names(part("git", "log"), separator="-") == ["git-log"]


def test_names_are_brought_to_the_alphabet_that_all_hosts_accept():
    """Claude Desktop refuses a whole request for one name with a dot."""
    assert names(part("s", "a.b/c d", "ärger")) == ["s__a_b_c_d", "s___rger"]


def test_a_long_name_is_cut_and_keeps_a_hash_of_the_whole():
    (name,) = names(part("server", "x" * 100))
    assert len(name) == 46
    assert re.fullmatch(r"server__x+_[0-9a-f]{6}", name)
    assert names(part("server", "x" * 100)) == [name]
    assert names(part("server", "x" * 101)) != [name]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([part("a", "x", prefix=""), part("b", "x", prefix="")], ["x", "b__x"]),
        ([part("a", "x", prefix=""), part("b", "x", "y", prefix="")], ["x", "b__x", "y"]),
        ([part("a", "x", prefix="p"), part("b", "x", prefix="p")], ["p__x", "b__x"]),
        ([part("a", "x.y", "x_y")], ["a__x_y", "a__x_y_#"]),
        ([part("a", "x.y", "x_y", "x/y")], ["a__x_y", "a__x_y_#", "a__x_y_#"]),
        ([part("a", "a__x", "x", prefix=""), part("b", "x", prefix="")], ["a__x", "x", "b__x"]),
        ([part("a", "b__c"), part("a__b", "c")], ["a__b__c_#", "a__b__c"]),
        ([part("a__b", "c"), part("a", "b__c")], ["a__b__c", "a__b__c_#"]),
        ([part("evil", "git__commit", prefix=""), part("git")], ["evil__git__commit"]),
        ([part("a", "_c"), part("a_", "c")], ["a___c_#", "a___c"]),
    ],
)
def test_of_those_who_would_have_one_name_the_first_has_it_and_no_name_reads_as_anothers(
    parts: list[Part], expected: list[str]
):
    """Our choice, and always logged."""
    merged = mcpmux.merge(parts, MuxOptions())
    listed = [re.sub("_[0-9a-f]{6}$", "_#", name) for name in merged.tools]
    assert listed == expected
    assert merged.notes and len(set(merged.tools)) == len(expected)


def test_who_has_a_name_keeps_it_whatever_comes_before_it_in_the_file():
    evil, good = part("evil", "x", prefix=""), part("good", "x", prefix="")
    first = mcpmux.merge([part("evil", prefix=""), good], MuxOptions())
    assert first.tools["x"].server == "good"
    second = mcpmux.merge([evil, good], MuxOptions(), first.names)
    assert {name: route.server for name, route in second.tools.items()} == {"evil__x": "evil", "x": "good"}
    away = mcpmux.merge([evil, part("good", prefix="")], MuxOptions(), second.names)
    assert list(away.tools) == ["evil__x"]  # it is good's also while good does not offer it
    removed = mcpmux.merge([evil], MuxOptions(), away.names)
    assert list(removed.tools) == ["x"]


def test_names_are_remembered_within_bounds():
    names: mcpmux.Names = {}
    for number in range(5):
        many = part("evil", *(f"t{number}_{n}" for n in range(mcpmux.ENTRIES_MOST // 2)))
        names = mcpmux.merge([many, part("good", "x")], MuxOptions(), names).names
    assert len(names["tools/list"]) == mcpmux.ENTRIES_MOST + 1
    assert names["tools/list"]["good__x"] == ("good", "x")


_NAME = st.text(st.sampled_from("ab._-é"), min_size=1, max_size=60)


@pytest.mark.requirement("names-fit")
@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from([None, "", "a", "b"]), st.lists(_NAME, max_size=6)),
        max_size=4,
    )
)
def test_names_are_always_distinct_valid_short_and_the_same_from_run_to_run(tables: list[Any]):
    parts = [
        part(f"{server}{n}", *dict.fromkeys(tools), prefix=prefix) for n, (server, prefix, tools) in enumerate(tables)
    ]
    merged = mcpmux.merge(parts, MuxOptions(max_name_length=24))
    listed = [entry["name"] for entry in json.loads(merged.results["tools/list"])["tools"]]
    assert len(listed) == len(set(listed)) == sum(len(one.lists["tools/list"]) for one in parts)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,24}", name) for name in listed)
    assert merged.results == mcpmux.merge(parts, MuxOptions(max_name_length=24)).results
    assert [(route.server, route.name) for route in merged.tools.values()] == [
        (one.server, entry.name) for one in parts for entry in one.lists["tools/list"]
    ]


# ── URIs ──


def test_uris_are_not_rewritten_and_the_first_server_keeps_a_shared_one():
    kind = "resources/list"
    merged = mcpmux.merge(
        [part("a", "mem://1", method=kind), part("b", "mem://1", "mem://2", method=kind)], MuxOptions()
    )
    assert merged.resources == {"mem://1": "a", "mem://2": "b"}
    assert [one["uri"] for one in json.loads(merged.results[kind])["resources"]] == ["mem://1", "mem://2"]
    assert merged.notes == [("b", "mem://1 is offered by a already and left out")]


@pytest.mark.parametrize(
    ("template", "uri", "matches"),
    [
        ("mem://{id}", "mem://7", True),
        ("mem://{id}", "mem://7/8", False),
        ("mem://{+path}", "mem://7/8", True),
        ("mem://{id}/x", "mem://7/x", True),
        ("mem://{id}", "mem://", False),
        ("mem://a.b", "mem://aXb", False),
        ("mem://x{?q,r}", "mem://x?q=1", True),
        ("mem://x{?q,r}", "mem://x", True),
        ("mem://{a}/{b}", "mem://1/2", True),
        ("file:///{+path}", "file:///a/b c\n", True),
    ],
)
def test_a_template_owns_the_uris_that_it_describes(template: str, uri: str, matches: bool):
    """RFC 6570, as far as a URI can be told to come from a template."""
    assert mcpmux.UriText(uri).matches(template) is matches


@given(st.lists(st.sampled_from(["a", "/", "{x}", "{+x}"]), max_size=5), st.text("ab/", max_size=6))
def test_a_template_matches_as_its_regular_expression_would(pieces: list[str], uri: str):
    pattern = "".join({"{x}": "[^/]+", "{+x}": ".+"}.get(piece, piece) for piece in pieces)
    assert mcpmux.UriText(uri).matches("".join(pieces)) is bool(re.fullmatch(pattern, uri))


def test_no_template_takes_long():
    """As a regular expression this would take hours: any server could stop all of them."""
    assert not mcpmux.UriText("x" * 2000).matches("{+a}" * 500 + "!")
    assert not mcpmux.UriText("x" * 9000).matches("{+a}{+b}")


def test_a_listed_uri_counts_before_a_template():
    parts = [
        part("a", "mem://{x}", method="resources/templates/list"),
        part("b", "mem://1", method="resources/list"),
    ]
    merged = mcpmux.merge(parts, MuxOptions())
    assert [merged.owners_of(uri) for uri in ("mem://1", "mem://2", "x")] == [["b"], ["a"], []]


# ── anything ──

_ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "type", "uri", "x"]), inner),
    max_leaves=5,
)
_KEYS = [
    "name",
    "uri",
    "uriTemplate",
    "description",
    "title",
    "inputSchema",
    "outputSchema",
    "arguments",
    "_meta",
    "icons",
]


@pytest.mark.requirement("strict-entries")
@given(st.dictionaries(st.sampled_from(_KEYS), _ANY), st.sampled_from(list(mcpmux.LISTS)))
def test_any_entry_is_valid_for_a_strict_host_or_left_out(entry: dict[str, Any], method: str):
    fitted = fit(entry, method)
    if isinstance(fitted, str):
        return
    assert isinstance(fitted[mcpmux.LISTS[method].identity], str)
    assert isinstance(fitted["name"], str)
    assert all(value is not None for value in fitted.values())
    assert isinstance(fitted.get("description", ""), str)
    assert isinstance(fitted.get("_meta", {}), dict)
    if method == "tools/list":
        assert fitted["inputSchema"]["type"] == "object"
        assert fitted.get("outputSchema", SCHEMA)["type"] == "object"
        assert fitted["description"]
    if method == "prompts/list":  # elsewhere it is nobody's member
        assert all(isinstance(one["name"], str) for one in fitted.get("arguments", []))


# ── mistaken names ──

TYPING = st.text("ab_1", min_size=1, max_size=12)


@given(TYPING, st.lists(TYPING, max_size=100))
def test_the_nearest_of_a_hundred_names_is_the_one_that_a_comparison_of_all_finds(name: str, known: list[str]):
    assert mcpmux.nearest(name, known) == next(iter(difflib.get_close_matches(name, known, n=1)), None)


@pytest.mark.parametrize(
    ("mistaken", "meant"),
    [
        ("git__read_file_12345x", "git__read_file_12345"),  # too much
        ("git__read_fle_12345", "git__read_file_12345"),  # too little
        ("git__raed_file_12345", "git__read_file_12345"),  # turned round
        ("gti__read_file_29999", "git__read_file_29999"),
        ("it__read_file_00000", "git__read_file_00000"),
        ("git_read_file_00077", "git__read_file_00077"),
        ("time__now", "time__now_in"),
        ("weather", None),
    ],
)
def test_of_30_000_names_a_hundred_are_compared(mistaken: str, meant: str | None, monkeypatch: pytest.MonkeyPatch):
    """To compare two names letter by letter takes the product of their lengths; difflib would do it 30,000 times."""
    compared: list[int] = []

    def compare(name: str, candidates: list[str], n: int) -> list[str]:
        compared.append(len(candidates))
        return difflib_compares(name, candidates, n)

    difflib_compares = difflib.get_close_matches
    monkeypatch.setattr(difflib, "get_close_matches", compare)
    known = [f"git__read_file_{number:05}" for number in range(30_000)]
    assert mcpmux.nearest(mistaken, ["time__now_in", *known]) == meant
    assert compared
    assert max(compared) <= 100


def test_a_name_that_is_longer_than_any_is_like_none(monkeypatch: pytest.MonkeyPatch):
    """A host may send megabytes."""
    monkeypatch.delattr(difflib, "get_close_matches")
    assert mcpmux.nearest("a" * 10_000_000, ["a" * 9_999_999]) is None
