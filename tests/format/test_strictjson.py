"""The JSON reader: exactly RFC 8259, positions of errors, limits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from safeweights.format import strictjson
from safeweights.format.strictjson import MAX_DEPTH, MAX_NUMBER, JSONError, Reader, has_surrogates

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


def skip(text: str | bytes, **options: Any) -> Reader:
    reader = Reader(text if isinstance(text, bytes) else text.encode(), **options)
    reader.skip()
    reader.end()
    return reader


@given(VALUES, st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_skip_takes_all_json(value: Any, ascii_only: bool, indent: int | str | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert skip(text).position == len(text.encode())


@given(
    st.binary(max_size=30)
    | st.text('{}[]":,0123456789-+.eEtrufalsn\\ \n', max_size=20).map(str.encode)
)
def test_skip_takes_no_more_than_json(text: bytes) -> None:
    """`json` accepts everything that we accept, and more."""
    refused = None
    try:
        skip(text)
    except JSONError as error:
        refused = error
    if refused is None:
        json.loads(text.decode())
    else:
        assert 0 <= refused.position <= len(text)


@given(TEXT, st.booleans())
def test_string(text: str, ascii_only: bool) -> None:
    reader = Reader(b" \n" + json.dumps(text, ensure_ascii=ascii_only).encode() + b"  ")
    assert reader.string() == text
    reader.end()


def test_every_escape() -> None:
    text = rb'"\"\\\/\b\f\n\r\t\u00e9\u00E9\ud83d\ude00"'
    assert Reader(text).string() == '"\\/\b\f\n\r\téé\U0001f600'


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        (b'"a', 0, "end of text"),
        (b'"a\\', 0, "end of text"),
        (b'"a\n"', 2, "control character 0x0a"),
        (b'"\\\x01"', 0, "invalid escape"),
        (b'"\\x"', 0, "invalid escape"),
        (b'"\\u12"', 0, "invalid escape"),
        (b'"\xff"', 0, "invalid UTF-8"),
        (b'"\\n\xff"', 0, "invalid UTF-8"),
        (b'"\\ud800"', 0, "lone surrogate"),
        (b'"\\ud800\xed\xb0\x80"', 0, "invalid UTF-8"),
        (b" 5", 1, "expected a string, found a number"),
        (b"", 0, "expected a string, found the end"),
        (b"\xef", 0, "found byte 0xef"),
    ],
)
def test_bad_strings(text: bytes, position: int, message: str) -> None:
    with pytest.raises(JSONError, match=message) as caught:
        Reader(text).string()
    assert caught.value.position == position
    assert caught.value.kind == "syntax"


def test_escapes_beyond_one_step_of_the_scanner() -> None:
    assert Reader(b'"' + b"\\n" * 5000 + b'"').string() == "\n" * 5000


@pytest.mark.parametrize("text", [b"0", b"1", b"18446744073709551615", b" \t\r\n7 "])
def test_integer(text: bytes) -> None:
    assert Reader(text).integer() == int(text)


@pytest.mark.parametrize(
    "text",
    [
        b"-1",
        b"-0",
        b"1.0",
        b"1e1",
        b"1E1",
        b"01",
        b"18446744073709551616",
        b"9" * 21,
        b"true",
        b'"1"',
        b"",
    ],
)
def test_no_integer(text: bytes) -> None:
    reader = Reader(text)
    with pytest.raises(JSONError):
        reader.integer()
        reader.end()


def test_members_and_integers() -> None:
    reader = Reader(b'{ "a" : [ 1 , 2 ] , "b":[], "c":{} }')
    found = {}
    for key, at in reader.members():
        assert reader.text[at : at + 3] == f'"{key}"'.encode()
        found[key] = dict(reader.members()) if key == "c" else list(reader.integers())
    assert found == {"a": [1, 2], "b": [], "c": {}}
    reader.end()


@pytest.mark.parametrize(
    ("text", "position"),
    [
        (b"[", 0),
        (b"{", 1),
        (b"{5:1}", 1),
        (b'{"a" 1}', 5),
        (b'{"a":1]', 6),
        (b'{"a":1,}', 7),
        (b'{"a":1', 6),
    ],
)
def test_bad_members(text: bytes, position: int) -> None:
    reader = Reader(text)
    with pytest.raises(JSONError) as caught:
        for _ in reader.members():
            reader.integer()
    assert caught.value.position == position


@pytest.mark.parametrize("text", [b"{", b"[1 2]", b"[1,]", b"[1}", b"[,]", b"[", b"[1"])
def test_bad_integers(text: bytes) -> None:
    with pytest.raises(JSONError):
        list(Reader(text).integers())


def test_trailing_characters() -> None:
    with pytest.raises(JSONError, match="trailing characters: a number") as caught:
        skip("{} 5")
    assert caught.value.position == 3


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"x":', "}")])
def test_depth_is_counted_not_recursed(opening: str, closing: str) -> None:
    leaf = "[]" if opening == "[" else "{}"
    skip(opening * (MAX_DEPTH - 1) + leaf + closing * (MAX_DEPTH - 1))
    with pytest.raises(JSONError, match="recursion limit") as caught:
        skip(opening * MAX_DEPTH + leaf + closing * MAX_DEPTH)
    assert caught.value.kind == "limit"
    with pytest.raises(JSONError, match="recursion limit"):
        skip(opening * 1_000_000)


@pytest.mark.parametrize(
    "text",
    ["[" * 30, '"' + "x" * 30 + '"', '{"' + "x" * 30 + '":1}', "[1,1,1,1,1,1,1]", " " * 30 + "[1]"],
)
def test_bytes_are_bounded(text: str) -> None:
    with pytest.raises(JSONError, match="longer than 8 bytes") as caught:
        Reader(text.encode()).skip(limit=8)
    assert caught.value.kind == "limit"


def test_numbers_are_bounded() -> None:
    skip("0." + "1" * (MAX_NUMBER - 2))
    with pytest.raises(JSONError, match="digits") as caught:
        skip("0." + "1" * MAX_NUMBER)
    assert caught.value.kind == "limit"
    with pytest.raises(JSONError, match="out of range") as caught:
        skip("-1e400")
    assert caught.value.kind == "syntax"


@pytest.mark.parametrize("size", [10_000, 1_000_000])
def test_a_bound_ends_the_search_for_the_end(size: int) -> None:
    # The text after the limit is not JSON: a reader that reports it has read too far.
    for text in ('"' + "x" * size + "\0", '"' + "\\n" * size + "\0", "1" * size + "x"):
        with pytest.raises(JSONError) as caught:
            Reader(text.encode()).skip(limit=1000)
        assert (caught.value.kind, caught.value.position) == ("limit", 0)


@pytest.mark.parametrize("digits", [21, 22, 5000])
def test_integers_of_too_many_digits(digits: int) -> None:
    reader = Reader(b"1" * digits + b"x")
    with pytest.raises(JSONError, match="exceeds 2"):
        reader.integer()
    assert reader.position == 0


def test_keys_repeat_only_if_allowed() -> None:
    text = '[{"a":1},{"a":{"a":2}}]'
    skip(text)
    again = '[{"b":1,"a":1,"\\u0061":2}]'
    with pytest.raises(JSONError, match="duplicate key `a`") as caught:
        skip(again)
    assert (caught.value.kind, caught.value.position) == ("duplicate-key", 14)
    skip(again, unique=False)


def test_surrogates() -> None:
    assert has_surrogates("a\udfff")
    assert not has_surrogates("a\U0001f600\ud7ff\ue000")


LONG = [4095, 4096, 4097, 4096 + 32768, 4097 + 32768, 5 * 32768 + 5]
"""Lengths below and above the length from which blocks are scanned."""


@pytest.mark.parametrize("length", LONG)
@pytest.mark.parametrize(
    ("odd", "value"), [(b"", ""), (b"\\n", "\n"), (b"\\\\", "\\"), (b"\xc3\xa9", "é")]
)
def test_long_strings(length: int, odd: bytes, value: str) -> None:
    for before in (0, 5, length // 2, length):
        after = length - before
        reader = Reader(b' "' + b"x" * before + odd + b"y" * after + b'" ,' + b"z" * 200_000)
        assert reader.string() == "x" * before + value + "y" * after
        assert reader.peek() == b","


@pytest.mark.parametrize("length", LONG)
@pytest.mark.parametrize("odd", [b"\x00", b"\x1f", b"\n", b"\\n\x01"])
def test_a_control_character_in_a_long_string_is_found(length: int, odd: bytes) -> None:
    for before in (0, 5, length // 2, length):
        reader = Reader(b'"' + b"x" * before + odd + b"y" * (length - before) + b'"')
        with pytest.raises(JSONError, match="control character") as caught:
            reader.string()
        assert caught.value.position == before + len(odd)


@pytest.mark.parametrize("length", LONG)
@pytest.mark.parametrize("end", [b"", b"\\"])
def test_a_long_string_without_an_end(length: int, end: bytes) -> None:
    with pytest.raises(JSONError, match="end of text") as caught:
        Reader(b'"' + b"x" * length + end).string()
    assert caught.value.position == 0


@pytest.mark.parametrize("length", LONG)
@pytest.mark.parametrize("odd", [b"", b"\t", b"\v", b"\f", b"\x1c", b"\x85", b"1"])
def test_long_white_space(length: int, odd: bytes) -> None:
    """JSON has only four of the characters that Python counts as white space."""
    for before in (0, 5, length // 2, length):
        reader = Reader(b" " * before + odd + b"\n" * (length - before) + b",")
        expected, at = (b",", length + len(odd)) if odd in (b"", b"\t") else (odd, before)
        assert (reader.peek(), reader.position) == (expected, at)


@pytest.mark.parametrize("escape", ['\\"', "\\\\", "\\n", "\\u00e9"])
def test_escapes_at_the_ends_of_blocks(escape: str) -> None:
    """Escapes at any position: none is cut in two."""
    for before in range(7):
        text = f'"{escape * 1500}{"x" * before}{escape * 70_000}"'
        assert Reader(text.encode()).string() == json.loads(text)
        with pytest.raises(JSONError, match="end of text"):
            Reader(text.encode()[:-1]).string()


@pytest.mark.parametrize("space", ["", " ", "\n", " " * 9, "\t" * 100])
@pytest.mark.parametrize(
    "numbers", ["[]", "[0]", "[1,2]", "[1, 2]", "[1 ,2]", f"[{2**64 - 1}]", str([7] * 9)]
)
def test_usual_and_unusual_spellings_are_read_alike(space: str, numbers: str) -> None:
    for key in ("a", "", "\\u0061", "é", "k" * 300):
        text = f'{{{space}"{key}"{space}:{space}{numbers}{space}}}'
        reader = Reader(text.encode())
        found = [(name, at, list(reader.integers())) for name, at in reader.members()]
        assert found == [(json.loads(f'"{key}"'), 1 + len(space), json.loads(numbers))]
        reader.end()


@pytest.mark.parametrize("text", ["[01]", "[1,02]", "[1,]", "[-1]", f"[{2**64}]", "[1.0]", "[1e2]"])
def test_usual_spellings_have_no_other_numbers(text: str) -> None:
    with pytest.raises(JSONError):
        list(Reader(text.encode()).integers())


@pytest.mark.parametrize("piece", [1, 2, 5, 11, 12])
@given(text=st.text(st.sampled_from('ab\\"\n\té\U0001f600\ud7ff')), plain=st.booleans())
def test_strings_are_the_same_in_pieces(piece: int, text: str, plain: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strictjson, "_PIECE", piece)
        coded = json.dumps(text, ensure_ascii=not plain)
        assert Reader(coded.encode()).string() == text


@pytest.mark.parametrize(
    "text", [r'"aa\ud83d\n"', r'"aa\n\ude00"', r'"aaaa\x"', r'"aa\n\u12"', '"aa\\n\xff\\n"']
)
def test_pieces_hide_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strictjson, "_PIECE", 2)
    with pytest.raises(JSONError) as caught:
        Reader(text.encode("latin-1")).string()
    assert caught.value.position == 0


MEMBERS = st.sampled_from(
    ['"a":"b"', '"b" : "}"', '"}}}}}}}}}":""', '"é":","', '"a":"\\n"', '"c\\"":","']
)
PIECES = st.sampled_from(['"', ",", ":", "{", "}", "\\", " ", "\n", "a", "é", '", "', '": "'])
JUNK = st.tuples(st.lists(PIECES, max_size=3).map("".join), st.integers(0, 200))


@given(st.lists(MEMBERS, min_size=1, max_size=20), JUNK, st.integers(1, 64))
@example(['"a":"b"', '"}}}}}}}}}":""'], ("", 0), 64)
def test_texts_are_read_in_steps_as_one_by_one(members, junk, step):
    text = f"{{{','.join(members)}}} "
    text = (text[: junk[1]] + junk[0] + text[junk[1] :]).encode()

    def outcome():
        reader, found = Reader(text), []
        try:
            for keys, values, at in reader.texts("an object", "a text"):
                assert text[at : at + 1] == b'"'
                found += zip(keys, values, strict=True)
        except JSONError as error:
            return str(error), error.position
        return found, reader.position

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(strictjson, "_TEXTS_STEP", step)
        in_steps = outcome()
        patched.setattr(Reader, "_plain_texts", lambda _: None)
        assert in_steps == outcome()


def test_most_texts_are_read_together():
    members = ",\n".join(f'"key.{number}": "x{"}" * (number == 3)}"' for number in range(10_000))
    found = list(Reader(f"{{{members}}}".encode()).texts("an object", "a text"))
    assert len(found) < 20


@pytest.mark.parametrize("space", ["", " ", "\n", " " * 9])
def test_texts_of_any_spelling_are_read_alike(space: str) -> None:
    names = ["a", "", "\\u0061b", "é", "k" * 300, 'q\\"', "\\\\"]
    pairs = [(name, value) for name in names for value in (*names, "x.safetensors")]
    members = f"{space},{space}".join(f'"{k}"{space}:{space}"{v}"' for k, v in pairs)
    text = f"{{{space}{members}{space}}}".encode()
    reader = Reader(text)
    found = list(reader.texts("an object", "a text"))
    reader.end()
    assert [pair for keys, values, _ in found for pair in zip(keys, values, strict=True)] == [
        (json.loads(f'"{k}"'), json.loads(f'"{v}"')) for k, v in pairs
    ]
    for keys, _, at in found:
        assert next(Reader(text, at).more_members()) == (keys[0], at)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        (b"[]", 0),
        (b'{"a":"b"', 8),
        (b'{"a":"b",}', 9),
        (b'{"a":"b","c":1}', 13),
        (b'{"a":"b","c":"d" "e"}', 17),
        (b'{"a":"b","c":"d"', 16),
        (b'{"a":"b","c":"d\n"}', 15),
        (b'{"a":"b","c":"d",,"e":"f"}', 17),
        (b'{"a":"b","c":"\xff"}', 13),
    ],
)
def test_bad_texts(text: bytes, position: int) -> None:
    with pytest.raises(JSONError) as caught:
        for _ in Reader(text).texts("an object", "a text"):
            pass
    assert caught.value.position == position
