"""The layers of mcpmux.py: sections in order, a core without I/O, imports that cost only those who need them.

All of it is our choice: the module docstring promises it, and these tests hold it to that.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Container, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import MCPMUX, ROOT, RawHost, server_table
from script import Script

import mcpmux

CORE = range(1, 15)  # the sections above the line
# What the core may use of the standard library and of others: nothing that reads, writes, waits or tells the time.
PURE = {
    *(
        "__future__",
        "bisect",
        "collections",
        "collections.abc",
        "contextlib",
        "dataclasses",
        "difflib",
        "enum",
        "fnmatch",
    ),
    *("functools", "hashlib", "heapq", "itertools", "math", "msgspec", "operator", "re", "string", "textwrap"),
    *("types", "typing", "urllib.parse"),
}
# But not `id`, the protocol's word.
IMPURE_BUILTINS = {
    *("__import__", "breakpoint", "compile", "eval", "exec", "exit", "globals", "help", "input", "open", "print"),
    *("quit", "vars"),
}
HEAVY = {
    "anyio",
    "httpcore2",
    "httpx",
    "httpx2",
    "litellm",
    "mcp",
    "openai",
    "pydantic",
    "pydantic_core",
    "starlette",
    "uvicorn",
}

BANNER = re.compile(r"^# ══ (\d+)\. (.+?) ═+$")
LINE_BELOW_CORE = "# Above this line: no I/O, no clock, no environment, no asyncio."
MAP_ROW = re.compile(r"^ {4,5}(\d+)  (.+?) {2,}\S")

SOURCE = MCPMUX.read_text(encoding="utf-8")
TREE = ast.parse(SOURCE)


class Section(NamedTuple):
    number: int
    title: str
    line: int  # of its banner


def sections_of(source: str) -> list[Section]:
    found: list[Section] = []
    for line, text in enumerate(source.splitlines(), 1):
        if banner := BANNER.match(text):
            found.append(Section(int(banner[1]), banner[2], line))
    return found


def number_at(sections: list[Section], line: int) -> int:
    """The section of a line; 0 before the first banner."""
    return max((section.number for section in sections if section.line < line), default=0)


# ── names ──


def bound_by(node: ast.AST) -> Iterator[str]:
    """Names that a statement, or anything in it but an inner function or class, binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    if isinstance(node, ast.Lambda):
        return
    match node:
        case ast.Name(ctx=ast.Store()):
            yield node.id
        case ast.Import() | ast.ImportFrom():
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0]
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name
        case ast.MatchMapping(rest=str(name)):
            yield name
        case _:
            pass
    for child in ast.iter_child_nodes(node):
        yield from bound_by(child)


def unquoted(annotation: ast.expr) -> ast.expr:
    """An annotation, read even if it stands in quotes."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return ast.copy_location(ast.parse(annotation.value, mode="eval").body, annotation)
    return annotation


def named_from_outside(node: ast.AST, local: frozenset[str] = frozenset()) -> Iterator[tuple[str, int]]:
    """Names that are read and that no function round them binds, annotations and base classes included, by line."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        outside: list[ast.AST] = [unquoted(one.annotation) for one in every if one and one.annotation]
        outside += [one for one in [*arguments.defaults, *arguments.kw_defaults] if one]
        body: list[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else list(node.body)
        if not isinstance(node, ast.Lambda):
            outside += [*node.decorator_list, *([unquoted(node.returns)] if node.returns else [])]
        for one in outside:
            yield from named_from_outside(one, local)
        inner = local | {one.arg for one in every if one} | {name for one in body for name in bound_by(one)}
        for one in body:
            yield from named_from_outside(one, inner)
        return
    if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        local = local | set(bound_by(node))
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store) and node.id not in local:
        yield node.id, node.lineno
    if isinstance(node, ast.AnnAssign) and isinstance(node.annotation, ast.Constant):
        yield from named_from_outside(unquoted(node.annotation), local)
    for child in ast.iter_child_nodes(node):
        yield from named_from_outside(child, local)


def imported(tree: ast.Module) -> dict[str, str]:
    """The names that the file's head imports, each with its module."""
    found: dict[str, str] = {}
    later = [one for node in tree.body if isinstance(node, ast.If) for one in node.body]  # when first used
    for node in [*tree.body, *later]:
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node.module or "" for alias in node.names}
    return found


def forward_references(source: str) -> list[str]:
    tree, sections = ast.parse(source), sections_of(source)
    defined: dict[str, int] = {}
    for node in tree.body:
        for name in bound_by(node):
            defined.setdefault(name, number_at(sections, node.lineno))
    found: list[str] = []
    for node in tree.body:
        here = number_at(sections, node.lineno)
        for name, line in named_from_outside(node):
            if defined.get(name, 0) > here:
                found.append(f"line {line}: section {here} names {name}, of section {defined[name]}")
    return found


def impurities(source: str, where: Container[int] = CORE, pure: Container[str] = PURE) -> list[str]:
    """What the core names that is not pure: modules, builtins, and imports of its own."""
    tree, sections = ast.parse(source), sections_of(source)
    modules = imported(tree)
    found: list[str] = []
    for node in tree.body:
        if number_at(sections, node.lineno) not in where:
            continue
        for one in ast.walk(node):
            if isinstance(one, ast.Import | ast.ImportFrom):
                found.append(f"line {one.lineno}: an import inside the core")
            if isinstance(one, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
                found.append(f"line {one.lineno}: the core waits for nothing")
        for name, line in named_from_outside(node):
            if modules.get(name, "typing") not in pure:
                found.append(f"line {line}: {name} of {modules[name]}")
            if name in IMPURE_BUILTINS:
                found.append(f"line {line}: {name}")
    return found


# ── the tests ──


def test_the_sections_are_those_of_the_map_in_the_docstring():
    """The map is what a newcomer reads first."""
    docstring = ast.get_docstring(TREE, clean=False)
    assert docstring
    drawn = {int(row[1]): row[2] for line in docstring.splitlines() if (row := MAP_ROW.match(line))}
    there = sections_of(SOURCE)
    numbers = [section.number for section in there]
    assert numbers == sorted(set(numbers)) == list(drawn)

    def words(title: str) -> set[str]:
        return set(re.findall(r"\w+", title.lower())) - {"and"}

    for section in there:
        # The imports stand above the first banner.
        assert words(section.title) == words(drawn[section.number]) - {"imports"}, section


def test_the_line_below_the_core_is_where_the_map_has_it():
    docstring = ast.get_docstring(TREE, clean=False) or ""
    lines = SOURCE.splitlines()
    below = lines.index(LINE_BELOW_CORE) + 1
    first, last = (next(one.line for one in sections_of(SOURCE) if one.number == n) for n in (CORE[-1], CORE[-1] + 1))
    assert first < below < last
    assert not any(lines[below + 1 : last - 1]), "code between the line and the next section"
    assert re.search(r"^ +14  core .*\n +-- above this line there is no I/O", docstring, re.MULTILINE)


def test_every_statement_but_the_imports_and_the_last_is_in_a_section():
    sections = sections_of(SOURCE)
    homeless = [node for node in TREE.body if number_at(sections, node.lineno) == 0]
    allowed = (ast.Import, ast.ImportFrom, ast.Expr)
    others = [node for node in homeless if not isinstance(node, allowed)]
    assert [re.split(" =|:", ast.unparse(node))[0] for node in others] == [
        "if gc.isenabled()",
        "TYPE_CHECKING",
        "if TYPE_CHECKING",
        "__version__",
    ]


def test_no_section_names_anything_of_a_later_one():
    assert forward_references(SOURCE) == []


@pytest.mark.parametrize(
    "code",
    [
        "x = later()",
        "def f():\n    return later()",
        "def f(a: later) -> None: ...",
        "def f() -> 'later': ...",
        "def f(a=later): ...",
        "class C(later): ...",
        "class C:\n    x: 'later'",
        "x: later | None = None",
        "class C:\n    def f(self):\n        return [later for x in ()]",
        "@later\ndef f(): ...",
        "f = lambda: later",
        "def f():\n    return later.x",
        "def f():\n    def g():\n        later = 1\n    return later",
    ],
)
def test_the_check_for_forward_references_finds_them(code: str):
    """A check that cannot fail would be worth nothing."""
    source = f"# ══ 1. A ══\n{code}\n# ══ 2. B ══\ndef later(): ...\n"
    assert len(forward_references(source)) == 1


@pytest.mark.parametrize(
    "code",
    [
        "def f(later):\n    return later",
        "def f():\n    later = 1\n    return later",
        "f = lambda later: later",
        "f = [later for later in ()]",
        "def f(x):\n    return x.later",
        "def f():\n    for later in ():\n        yield later",
    ],
)
def test_the_check_for_forward_references_leaves_local_names_alone(code: str):
    assert forward_references(f"# ══ 1. A ══\n{code}\n# ══ 2. B ══\ndef later(): ...\n") == []


@pytest.mark.requirement("schemas-not-followed")
def test_the_core_names_nothing_that_does_io():
    """Its tests take milliseconds and find every path because of this."""
    assert impurities(SOURCE) == []


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n    return os.getpid()",
        "def f():\n    import os",
        "def f():\n    from time import monotonic",
        "x = Path('.')",
        "def f(p: Path): ...",
        "def f():\n    print(1)",
        "f = open",
        "def f():\n    __import__('os')",
        "async def f(): ...",
        "class C:\n    x = os.environ",
    ],
)
def test_the_check_of_the_core_finds_io(code: str):
    source = f"import os, re\nfrom pathlib import Path\n# ══ 14. Core ══\n{code}\n# ══ 15. Config ══\nprint(os)\n"
    assert impurities(source)
    assert impurities(source.replace("14.", "15.").replace("15. Config", "16. Pipes")) == []


def test_the_config_is_read_without_the_disk_and_the_environment():
    """Both are the business of the section after it. A path is a value until somebody opens it."""
    [config] = [section.number for section in sections_of(SOURCE) if section.title == "Config"]
    assert impurities(SOURCE, [config], PURE | {"pathlib"}) == []


def test_the_names_that_are_refused_in_the_core_exist():
    assert all(hasattr(builtins, name) for name in IMPURE_BUILTINS)


def test_importing_mcpmux_loads_nothing_heavy():
    """The SDK costs 0.6 s and 40 MB; a host may start mcpmux for every window."""
    code = "import json, sys, mcpmux; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert {"mcpmux", "msgspec"} <= loaded
    assert not loaded & HEAVY


# All that a serving mcpmux loads besides what `import asyncio` does, by who asks for it first. 25 ms in all on a slow
# machine: mcpmux itself takes 7 (compiled), typing_extensions 3, ctypes and platform 1 each, the rest less.
SERVING = {
    "mcpmux": "__future__ ctypes fnmatch gc hashlib msgspec pathlib platformdirs shlex shutil tomllib",
    "msgspec": "datetime decimal numbers typing_extensions uuid",
    "pathlib": "urllib ipaddress ntpath nt",
    "platformdirs": "copy org tempfile",  # org is what copy looks for in vain
    "tempfile": "random bisect",
    "shutil": "bz2 lzma zlib",
    "uuid": "platform",
}


def modules_loaded(log: str) -> set[str]:
    """Top-level names, of what -X importtime prints; without the private ones, which belong to public ones."""
    names = set(re.findall(r"^import time: +\d+ \| +\d+ \| +(\w+)", log, re.MULTILINE))
    return {name for name in names if not name.startswith("_") or name == "__future__"}


def test_serving_a_server_over_stdio_loads_what_has_been_reviewed_and_nothing_heavy(
    tmp_path: Path, home: dict[str, str]
):
    """The promise is about a multiplexer at work, not about its import. Hosts start one for every window."""
    config = tmp_path / "mcpmux.toml"
    config.write_text(server_table("fake"))
    command = [sys.executable, "-X", "importtime", str(MCPMUX), "--config", str(config)]
    host = RawHost(command, home)
    try:
        host.initialize({"sampling": {}, "elicitation": {}, "roots": {}})
        assert len(host.tools()) > 1
        assert host.text("fake__echo", said="hello") == '{"said": "hello"}'
    finally:
        code = host.close()
    assert code == 0, host.log()
    loaded = modules_loaded(host.log())
    assert {"msgspec", "asyncio", "tomllib"} <= loaded, "what -X importtime prints is not understood"
    assert not loaded & HEAVY
    bare = subprocess.run([sys.executable, "-X", "importtime", "-c", "import asyncio"], capture_output=True, text=True)
    reviewed = {name for names in SERVING.values() for name in names.split()}
    others = {name for name in loaded - modules_loaded(bare.stderr) - reviewed if name not in sys.stdlib_module_names}
    assert others == set()
    if sys.version_info[:2] == (3, 11) and sys.platform == "linux":  # another Python's library has other needs
        assert loaded - modules_loaded(bare.stderr) - {"mcpmux"} == reviewed


def test_every_public_class_and_function_of_some_length_says_what_it_is_for():
    """Top-level names without a leading underscore; what has five lines or less may speak for itself, and so may the
    members of an enumeration."""
    silent = [
        f"line {node.lineno}: {node.name}"
        for node in TREE.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and (node.end_lineno or 0) - node.lineno >= 5
        and not any(isinstance(base, ast.Name) and base.id == "Enum" for base in getattr(node, "bases", ()))
    ]
    assert silent == []


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == MCPMUX.relative_to(ROOT).as_posix()
    (version,) = re.findall(r'^__version__ = "(.+)"$', SOURCE, re.MULTILINE)
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", version)


def test_the_wheel_is_the_one_file():
    """Copied alone, or installed: the program is mcpmux.py."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"] == [MCPMUX.name]
    assert project["project"]["scripts"] == {"mcpmux": "mcpmux:main"}


STARTS = re.compile(
    r"\bsubprocess\.(run|Popen|check_output|call)\(|create_subprocess_(exec|shell)|\.subprocess_(exec|shell)"
)
STARTERS = {  # who starts processes, and why Windows' cmd cannot read what they are given as its own
    "spawn": "asks batch_line",
    "started": "asks batch_line",
    "go_to": "by as_started",
    "_ran": "by as_started",
    "_own_shell": "a shell of POSIX",
    "take_over": "Python itself",
    "_try_page": "Python itself",
    "_serve": "Python itself",
    "expect_start": "our own entry: uvx or Python",
    "_is_boxed": "Linux",
}


def test_no_program_is_started_past_what_windows_cmd_would_make_of_its_arguments():
    """A batch file is read by cmd, whoever starts it; a new way to start one has to be put into the table."""
    found = {
        node.name
        for node in ast.walk(TREE)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and STARTS.search(ast.get_source_segment(SOURCE, node) or "")
    }
    assert found == STARTERS.keys()


# ── the house ──

MOST_LINES = 16_228
CLASS_MOST, FUNCTION_MOST, COMPLEXITY_MOST = 500, 60, 15
LONG_FUNCTIONS: dict[str, str] = {}  # by name: why one may be longer
CLASS_WITHOUT_BANNERS = 160  # a longer one has headings within
PARTS = range(7, 15)  # the sections that the core consists of

Sized = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def length(node: Sized) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def test_the_house_is_no_larger_than_its_budget(capsys: pytest.CaptureFixture[str]):
    """What a feature adds, it first makes room for."""
    nodes = [node for node in ast.walk(TREE) if isinstance(node, Sized)]
    classes = sorted(((length(one), one.name) for one in nodes if isinstance(one, ast.ClassDef)), reverse=True)
    functions = sorted(((length(one), one.name) for one in nodes if not isinstance(one, ast.ClassDef)), reverse=True)
    with capsys.disabled():
        print(f"\n{len(SOURCE.splitlines())} lines; longest classes {classes[:3]}, functions {functions[:3]}")
    assert len(SOURCE.splitlines()) <= MOST_LINES
    assert [one for one in classes if one[0] > CLASS_MOST] == []
    assert [one for one in functions if one[0] > FUNCTION_MOST and one[1] not in LONG_FUNCTIONS] == []


def test_no_function_is_more_complex_than_a_reader_can_hold():
    """As ruff counts it (C901)."""
    limit = f"lint.mccabe.max-complexity={COMPLEXITY_MOST}"
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "C901", "--config", limit, str(MCPMUX)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_long_class_has_headings_and_each_stands_above_something():
    """A reader finds the room by its name."""
    lines = SOURCE.splitlines()
    heading = re.compile(r"^ *# ── .+ ──$")
    for node in ast.walk(TREE):
        if isinstance(node, ast.ClassDef) and length(node) > CLASS_WITHOUT_BANNERS:
            assert any(heading.match(line) for line in lines[node.lineno : node.end_lineno]), node.name
    for number, line in enumerate(lines):
        if heading.match(line):
            following = next(one for one in lines[number + 1 :] if one.strip())
            assert not heading.match(following) and not BANNER.match(following), line


GIVEN = {"_replace", "_hidden_params"}  # a named tuple's method; and litellm has no other name for what a call cost


def private_uses(source: str) -> list[str]:
    """Private names of a section that another one uses, and private members that are not one's own."""
    tree, sections = ast.parse(source), sections_of(source)
    homes = {name: number_at(sections, node.lineno) for node in tree.body for name in bound_by(node)}
    found: list[str] = []
    for node in tree.body:
        here = number_at(sections, node.lineno)
        for name, line in named_from_outside(node):
            if name.startswith("_") and not name.startswith("__") and homes.get(name, here) != here:
                found.append(f"line {line}: section {here} uses {name}, of section {homes[name]}")
        for one in ast.walk(node):
            if isinstance(one, ast.Attribute) and re.match("_[a-z]", one.attr):
                owner = one.value.id if isinstance(one.value, ast.Name) else ""
                if owner not in ("self", "os", "sys") and one.attr not in GIVEN:
                    found.append(f"line {one.lineno}: {ast.unparse(one)}")
    return found


def test_no_section_uses_anothers_private_names():
    assert private_uses(SOURCE) == []


@pytest.mark.parametrize("code", ["x = _own", "def f():\n    return _own()", "def f(one):\n    return one._member"])
def test_the_check_of_private_names_finds_them(code: str):
    assert private_uses(f"# ══ 1. A ══\ndef _own(): ...\n# ══ 2. B ══\n{code}\n")


DRAWN = re.compile(r"^#   (\w+) +((?:\w+(?:, )?)+)$")


def test_the_parts_of_the_core_use_each_other_as_drawn():
    """The drawing stands above the core: each part, and the parts that it is handed."""
    drawn: dict[str, set[str]] = {}
    for row in filter(None, map(DRAWN.match, SOURCE.splitlines())):
        drawn.setdefault(row[1], set()).update(row[2].split(", "))
    sections = sections_of(SOURCE)
    classes = {
        node.name: node
        for node in TREE.body
        if isinstance(node, ast.ClassDef) and number_at(sections, node.lineno) in PARTS
    }
    assert {"Calls", "Rounds", "Life", "Router"} <= drawn.keys() <= classes.keys()
    for name, handed in drawn.items():
        body = ast.walk(classes[name])
        named = {node.id for node in body if isinstance(node, ast.Name)} & drawn.keys() - {name}
        assert named == handed & drawn.keys(), name


def test_a_call_between_legacy_peers_goes_through_few_frames():
    """Twelve out and twelve back, in the sections from calls to core, and none of them twice."""
    lines = SOURCE.splitlines()
    first = next(one.line for one in sections_of(SOURCE) if one.number == PARTS[0])
    last = lines.index(LINE_BELOW_CORE)
    s = Script(["git"])
    s.tools()

    def frames(event: mcpmux.Event) -> list[str]:
        seen: list[str] = []

        def look(frame: types.FrameType, what: str, _: object) -> None:
            code = frame.f_code
            if what == "call" and code.co_filename == mcpmux.__file__ and first < code.co_firstlineno <= last:
                seen.append(code.co_qualname if sys.version_info >= (3, 11) else code.co_name)

        sys.setprofile(look)
        try:
            s.feed(event)
        finally:
            sys.setprofile(None)
        return seen

    call = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"git__log","arguments":{"a":1}}}'
    out = frames(mcpmux.HostLines([call]))
    number = s.server_hears("git", "tools/call")["id"]
    answer = b'{"jsonrpc":"2.0","id":%d,"result":{"content":[]}}' % number
    back = frames(mcpmux.ServerLines("git", s.runs["git"], [answer]))
    assert s.host_hears(1)["result"] == {"content": []}
    for way in (out, back):
        assert len(way) <= 12 and len(way) == len(set(way)), way
