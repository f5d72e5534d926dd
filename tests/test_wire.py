"""Bytes, lines and envelopes. https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#stdio"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mcpmux
from mcpmux import BadLine, LineSplitter, Raw, TooLong


def split(chunks: list[bytes], limit: int = 1000) -> list[bytes | TooLong]:
    splitter = LineSplitter(limit)
    return [line for chunk in chunks for line in splitter.feed(chunk)]


@pytest.mark.requirement("one-line")
@given(st.lists(st.binary().filter(lambda line: b"\n" not in line and line.strip())), st.data())
def test_lines_are_the_same_however_they_are_chunked(lines: list[bytes], data: st.DataObject):
    """Our choice: a pipe may cut anywhere."""
    stream = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert split(chunks, 10_000) == lines


@pytest.mark.requirement("line-size-from-server")
@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 20))
def test_a_line_is_too_long_exactly_above_the_limit(size: int, limit: int, step: int):
    stream = b"x" * size + b"\nnext\n"
    lines = split([stream[i : i + step] for i in range(0, len(stream), step)], limit)
    if size <= limit:
        assert lines[0] == b"x" * size
    else:
        assert isinstance(lines[0], TooLong)
        assert lines[0].size == size
    assert lines[1] == b"next" if limit >= 4 else isinstance(lines[1], TooLong)


@pytest.mark.requirement("line-size-from-server")
def test_an_endless_line_is_not_kept_but_its_edges_are():
    splitter = LineSplitter(10_000)
    head = b'{"jsonrpc":"2.0","id":7,"result":"'
    splitter.feed(head)
    for _ in range(5000):
        assert splitter.feed(b"y" * 10_000) == []
        assert sum(map(len, splitter._parts)) <= 3 * 10_000
    (line,) = splitter.feed(b'"}\n')
    assert isinstance(line, TooLong)
    assert line.size == len(head) + 50_000_000 + 2
    assert mcpmux.id_in_bad_line(line.head, line.tail) == 7


def test_empty_lines_and_carriage_returns_are_no_messages():
    assert split([b"\r\n \n{}\r\n"]) == [b"{}\r"]
    assert mcpmux.tidy(b"{}\r") == (b"{} ", None)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"[1]",
        b"1",
        b'"x"',
        b"null",
        b"{",
        b"\x00",
        b'{"id":1',
        b'{"method":7,"id":1}',
        b"[" * 100000,
        b'{"id":1,"params":{"a":\x01}}',
        b'{"id":1,"result":{"a":NaN}}',
        b"\xef\xbb\xbf{}",
        b'{"method":null,"id":1}',
    ],
)
def test_what_is_no_envelope_is_a_bad_line_and_nothing_worse(line: bytes):
    """2025-11-25, basic/index: JSON-RPC 2.0 messages only."""
    with pytest.raises(BadLine):
        mcpmux.decode_line(line)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_bad_line(line: bytes):
    line = line.replace(b"\n", b"")
    text, _ = mcpmux.tidy(line)
    text.decode()
    try:
        mcpmux.decode_line(text)
    except BadLine:
        pass


@pytest.mark.requirement("deep-nesting")
def test_deep_nesting_is_a_bad_line():
    """Our choice: msgspec raises RecursionError, which is no error of its own. Since Python 3.14 it is the stack that
    says what is deep, not a number."""
    with pytest.raises(BadLine):
        mcpmux.decode_line(b'{"id":1,"result":' + b"[" * 2_000_000 + b"]" * 2_000_000 + b"}")


@pytest.mark.requirement("invalid-utf8")
@pytest.mark.parametrize("bad", [b"\xff", b"\xe2\x82", b"\xed\xa0\x80", b"\xc3("])
def test_invalid_utf8_is_replaced_with_a_note(bad: bytes):
    """Forwarded as it is, it kills hosts written in Python."""
    line, note = mcpmux.tidy(b'{"id":1,"result":{"a":"' + bad + b'"}}')
    assert "\ufffd" in line.decode()
    assert note
    assert "UTF-8" in note


@pytest.mark.requirement("lone-surrogate")
@pytest.mark.parametrize(
    ("escaped", "read"),
    [
        (rb"\ud83d", "\ufffd"),
        (rb"\ude00", "\ufffd"),
        (rb"\ud83d\ude00", "😀"),
        (rb"\\ud83d", "\\ud83d"),
        (rb"\\\ud83d", "\\\ufffd"),
        (rb"\ud83d\ud83d\ude00", "\ufffd😀"),
        (rb"\ud83d\n", "\ufffd\n"),
        (rb"\ude00\ud83d", "\ufffd\ufffd"),
        (rb"\\\\\uDFFF x", "\\\\\ufffd x"),
        (rb"\ud83d\ude00\ud83d", "😀\ufffd"),
    ],
)
def test_a_lone_surrogate_escape_is_mended_and_a_pair_is_not(escaped: bytes, read: str):
    """JavaScript servers make one by slicing an emoji; the line is read all the same."""
    message = mcpmux.decode_line(b'{"id":1,"result":{"a":"\\ud800 ' + escaped + b'"}}')
    assert isinstance(message.result, Raw)
    assert json.loads(bytes(message.result))["a"] == "\ufffd " + read


PIECES = [b"\\", b"\\\\", rb"\ud83d", rb"\uDE00", rb"\u0041", rb"\ud8", b"u", b"d83d", b"x", b'"']


@given(st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join))
def test_mending_agrees_with_a_reading_of_one_escape_after_the_other(text: bytes):
    def read() -> Iterator[bytes]:
        rest = text
        while rest:
            pair = re.match(rb"(?i)\\u(?:d[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2})", rest)
            lone = re.match(rb"(?i)\\ud[89a-f][0-9a-f]{2}", rest)
            found = pair[0] if pair else lone[0] if lone else rest[: 2 if rest[:1] == b"\\" else 1]
            yield rb"\ufffd" if lone and not pair else found
            rest = rest[len(found) :]

    assert mcpmux.mended(text) == b"".join(read())


@pytest.mark.requirement("our-ids")
@pytest.mark.parametrize(("raw", "number"), [(b"7", 7), (b"7.0", 7), (b'"7"', 7), (b"70e-1", 7), (b"0", 0)])
def test_our_id_is_recognized_in_each_spelling(raw: bytes, number: int):
    assert mcpmux.number_of_id(raw) == number


@pytest.mark.parametrize("raw", [b"7.5", b'"x"', b"null", b"true", b"{}", b"[7]", b'""', b"1e999", b"-", b""])
def test_what_is_no_id_of_ours_is_none(raw: bytes):
    assert mcpmux.number_of_id(raw) is None


@pytest.mark.parametrize(
    ("line", "number"),
    [
        (b'{"jsonrpc":"2.0","id":5,"result":{oops', 5),
        (b'{ "id" : "5" , "result":{oops', 5),
        (b'{"result":{"x":oops},"jsonrpc":"2.0","id":5}', 5),
        (b'{"result":{"x":oops},"id":5,"jsonrpc":"2.0"}  ', 5),
        (b'{"result":{"id":5,"x":oops}}', None),
        (b'{"result":{"content":[{"id":5}', None),
        (b"hello", None),
    ],
)
def test_an_id_is_read_from_a_bad_line_only_where_it_is_the_envelopes(line: bytes, number: int | None):
    assert mcpmux.id_in_bad_line(line, line) == number


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=10,
)


@pytest.mark.requirement("byte-for-byte")
@given(_JSON, st.booleans())
def test_payloads_come_through_byte_for_byte(value: object, ascii_only: bool):
    """Our promise: what mcpmux does not have to change, it passes on as it is."""
    raw = json.dumps({"x": value}, ensure_ascii=ascii_only).encode()
    line, note = mcpmux.tidy(b'{"jsonrpc":"2.0","id":1,"extra":[1.0],"result":%b}' % raw)
    message = mcpmux.decode_line(line)
    assert note is None
    assert isinstance(message.result, Raw)
    assert mcpmux.result_line(b"1", message.result) == b'{"jsonrpc":"2.0","id":1,"result":%b}\n' % raw


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), _JSON))
def test_rebuilt_params_keep_keys_order_and_values(value: dict[str, object]):
    raw = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    assert json.loads(mcpmux.encode(mcpmux.fields_of(raw))) == value
    assert list(mcpmux.fields_of(raw)) == list(value)


@pytest.mark.requirement("repeated-key")
def test_a_repeated_key_counts_once():
    """A second `name` must not smuggle another tool past the filters."""
    assert mcpmux.encode(mcpmux.fields_of(b'{"name":"good","name":"bad"}')) == b'{"name":"bad"}'


def test_numbers_keep_their_spelling():
    raw = b'{"a":1.0,"b":1e2,"c":-0,"d":12345678901234567890.10}'
    assert mcpmux.encode(mcpmux.fields_of(raw)) == raw


@pytest.mark.requirement("parse-error-id")
def test_an_error_without_id_has_no_id_member():
    """2025-11-25, basic/index#error-responses: the id may be absent; TypeScript hosts refuse null."""
    assert b'"id"' not in mcpmux.error_line(None, b"{}")


def test_the_trace_label_has_no_payload():
    line = mcpmux.request_line(5, "tools/call", msgspec.json.encode({"secret": "s3cret"}))
    assert mcpmux.label(line) == '"id":5,"method":"tools/call"'
    assert mcpmux.label(mcpmux.result_line(b"5", b'{"secret":1}')) == '"id":5'
