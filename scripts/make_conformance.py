"""Write conformance/: the rules of the format as files, and the manifest that says what is what.

    python scripts/make_conformance.py          writes all of it anew
    python scripts/make_conformance.py --check  exits 1 if what is there differs

Verdict, rule and reason of every vector are decided here, by hand. What a valid vector contains, and
what the reference makes of each, is asked of the reference (the `safetensors` package), so that the
manifest's expectations do not come from the code that it tests.
"""

# ruff: noqa: E501 - tables of vectors, a few to a line

from __future__ import annotations

import hashlib
import json
import re
import sys
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import safetensors

FOLDER = Path(__file__).parents[1] / "conformance"
BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
MAX = 2**64 - 1


class Vector(NamedTuple):
    """One file. `strict` are the rules that a strict check reports though the file is valid."""

    name: str
    data: bytes
    rule: str
    why: str
    valid: bool
    strict: tuple[str, ...] = ()


def main() -> int:
    vectors = [*valid(), *invalid()]
    files = {path(vector): vector.data for vector in vectors}
    if len(files) != len(vectors):
        names = [path(vector) for vector in vectors]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise SystemExit(f"names used twice: {twice}")
    manifest: dict[str, Any] = {
        "schema": "safeweights.conformance/1",
        "about": "verdict: what a reader has to say. rule: the rule that the file shows or breaks, an "
        "identifier of safeweights.format.header.RULES. reference: what the reference implementation does.",
        "reference": {"name": "safetensors", "version": safetensors.__version__},
    }
    # One line a vector: what changes is seen in a diff.
    lines = ",\n".join(json.dumps(describe(vector)) for vector in vectors)
    text = json.dumps(manifest, indent=1)
    files["manifest.json"] = f'{text[:-2]},\n "vectors": [\n{lines}\n]\n}}\n'.encode()
    if "--check" in sys.argv[1:]:
        present = {
            str(p.relative_to(FOLDER)): p.read_bytes() for p in FOLDER.rglob("*.*") if p.is_file()
        }
        present.pop("README.md", None)
        wrong = sorted(name for name in {*files, *present} if files.get(name) != present.get(name))
        print("\n".join(wrong) or f"{len(vectors)} vectors as generated")
        return 1 if wrong else 0
    for folder in ("valid", "invalid"):
        (FOLDER / folder).mkdir(parents=True, exist_ok=True)
        for old in (FOLDER / folder).iterdir():
            old.unlink()
    for name, data in files.items():
        (FOLDER / name).write_bytes(data)
    print(f"{len(vectors)} vectors, {sum(map(len, files.values()))} bytes")
    return 0


def path(vector: Vector) -> str:
    return f"{'valid' if vector.valid else 'invalid'}/{vector.name}.safetensors"


def describe(vector: Vector) -> dict[str, Any]:
    found: dict[str, Any] = {
        "file": path(vector),
        "verdict": "valid" if vector.valid else "invalid",
        "rule": vector.rule,
        "why": vector.why,
    }
    try:
        tensors = safetensors.deserialize(vector.data)
    except safetensors.SafetensorError as error:
        if vector.valid:
            raise SystemExit(f"{vector.name}: the reference refuses it: {error}") from error
        found["reference"] = "refuses"
        # Which of two tensors it names is left to chance.
        said = re.sub(r"(invalid offset for tensor) `.*`", r"\1", str(error))
        found["reference_says"] = said.removeprefix("Error while deserializing: ")
        return found
    found["reference"] = "reads"
    if vector.valid:
        found["tensors"] = {
            name: {
                "dtype": tensor["dtype"],
                "shape": tensor["shape"],
                "sha256": hashlib.sha256(tensor["data"]).hexdigest(),
            }
            for name, tensor in sorted(tensors)
        }
        if vector.strict:
            found["strict"] = list(vector.strict)
    return found


# Building files


def raw(text: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of a header's text and data; `length` is a wrong length field."""
    text = text if isinstance(text, bytes) else text.encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def pattern(size: int) -> bytes:
    """Bytes that differ from place to place."""
    return bytes((7 * i + 1) % 251 for i in range(size))


def entry(dtype: str = "U8", shape: Any = (1,), begin: Any = 0, end: Any = 1) -> str:
    shape = shape if isinstance(shape, str) else json.dumps(list(shape), separators=(",", ":"))
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'


def one(value: str, size: int = 1, name: str = "a") -> bytes:
    """A file with one entry, whose JSON is given."""
    return raw(f"{{{json.dumps(name)}:{value}}}", pattern(size))


def packed(*tensors: tuple[str, str, tuple[int, ...]], metadata: str | None = None) -> bytes:
    """Tensors one after another in the order given; names are JSON strings without their quotes."""
    parts = [] if metadata is None else [f'"__metadata__":{metadata}']
    position = 0
    for name, dtype, shape in tensors:
        bits = BITS[dtype]
        for dim in shape:
            bits *= dim
        parts.append(f'"{name}":{entry(dtype, shape, position, position + bits // 8)}')
        position += bits // 8
    return raw("{" + ",".join(parts) + "}", pattern(position))


def named(name: str) -> bytes:
    """One tensor of that name, which is JSON text without its quotes."""
    return packed((name, "U8", (2,)))


def extra(value: str, key: str = "note") -> bytes:
    """One tensor with an unknown field."""
    return one(f'{{"dtype":"U8","shape":[1],"data_offsets":[0,1],"{key}":{value}}}')


# What has to be read


def valid() -> list[Vector]:
    found: list[Vector] = []

    def add(name: str, rule: str, why: str, data: bytes, *strict: str) -> None:
        found.append(Vector(name, data, rule, why, valid=True, strict=strict))

    _valid_types(add)
    _valid_golden(add)
    _valid_spelling(add)
    _valid_metadata(add)
    _valid_names(add)
    _valid_layouts(add)
    return found


def _valid_types(add: Any) -> None:
    for dtype, bits in BITS.items():
        count = 64 // bits if 64 % bits == 0 else 8
        add(
            f"dtype-{dtype}",
            "dtype",
            f"{dtype} takes {bits} bits",
            packed(("a", dtype, (count,))),
        )
        if bits >= 8:
            add(f"dtype-{dtype}-scalar", "size", "rank 0 is one element", packed(("a", dtype, ())))
    for dtype, shape in (
        ("F4", (2, 1)), ("F4", (1, 2)), ("F4", (3, 2)), ("F6_E2M3", (2, 2)), ("F6_E3M2", (2, 3, 2)),
        ("F4", (1, 0)), ("F6_E2M3", (0, 3)),
    ):  # fmt: skip
        name = f"subbyte-{dtype}-{'x'.join(map(str, shape))}"
        add(
            name,
            "byte-boundary",
            "only the whole tensor must fill bytes",
            packed(("a", dtype, shape)),
        )
    every = [(dtype.lower(), dtype, (8,)) for dtype in BITS]
    add("dtype-all", "dtype", "all 22 types in one file", packed(*every))
    for name, shape in (
        ("zero", (0,)), ("zero-inner", (5, 0, 3)), ("zero-outer", (0, 5)), ("zero-twice", (0, 0)),
        ("zero-huge", (0, MAX)), ("zero-before-overflow", (0, 2**63, 2)), ("zero-after-huge", (2**63, 0)),
        ("rank-2", (2, 3)), ("rank-4", (2, 1, 3, 1)), ("rank-8", (1, 2) * 4), ("rank-64", (1,) * 64),
    ):  # fmt: skip
        rule = "rank" if "rank" in name else "size"
        add(f"shape-{name}", rule, f"{list(shape)[:8]} is a shape", packed(("a", "U8", shape)))
    for name, dtype, value in (
        ("bool-2", "BOOL", "02"), ("bool-ff", "BOOL", "ff"), ("f32-nan-payload", "F32", "010080ff"),
        ("f32-infinity", "F32", "0000807f"), ("f32-minus-zero", "F32", "00000080"),
        ("bf16-2.25", "BF16", "1040"), ("c64-minus1-plus-i", "C64", "000080bf0000803f"),
    ):  # fmt: skip
        data = bytes.fromhex(value)
        add(f"value-{name}", "size", "values are not checked, and kept bit by bit",
            raw(f'{{"a":{entry(dtype, (), 0, len(data))}}}', data))  # fmt: skip


def _valid_golden(add: Any) -> None:
    text = '{"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}}'
    two = (
        '{"test1":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]},'
        '"test2":{"dtype":"F16","shape":[2,2],"data_offsets":[16,24]}}'
    )
    for name, header, size in (
        ("empty", "{}", 0), ("metadata", '{"__metadata__":{"framework":"pt"}}', 0),
        ("int32", text, 16), ("int32-float16", two, 24),
    ):  # fmt: skip
        padded = header + " " * (-len(header) % 8)
        add(
            f"golden-{name}", "json", "the reference's writer writes this", raw(padded, bytes(size))
        )


def _valid_spelling(add: Any) -> None:
    plain = f'{{"a":{entry()}}}'
    for name, space in (
        ("space", " "),
        ("tab", "\t"),
        ("lf", "\n"),
        ("cr", "\r"),
        ("mixed", " \r\n\t"),
    ):
        for place, text in (("before", space + plain), ("after", plain + space)):
            strict = () if (place, name) == ("after", "space") else ("strict-space",)
            add(
                f"space-{name}-{place}",
                "json",
                "JSON allows white space there",
                raw(text, b"1"),
                *strict,
            )
        inside = plain
        for char in "{}[]:,":
            inside = inside.replace(char, f"{space}{char}{space}")
        add(
            f"space-{name}-inside",
            "json",
            "JSON allows white space there",
            raw(inside.strip(), b"1"),
        )
    for count in (2, 3, 5, 7, 4096):
        add(
            f"padding-{count}",
            "json",
            "padded with spaces, aligned or not",
            raw(plain + " " * count, b"1"),
        )
    for order in permutations(('"dtype":"U8"', '"shape":[1]', '"data_offsets":[0,1]')):
        name = "-".join(field.split('"')[1].removeprefix("data_") for field in order)
        add(f"fields-{name}", "entry", "fields come in any order", one("{" + ",".join(order) + "}"))
    for name, value in (
        ("field", r'{"dtyp\u0065":"U8","sh\u0061pe":[1],"data_offsets":[0,1]}'),
        ("dtype", r'{"dtype":"U\u0038","shape":[1],"data_offsets":[0,1]}'),
    ):
        add(f"escaped-{name}", "json", "an escape is another spelling of a character", one(value))
    nested = "[" * 125 + "]" * 125
    objects = '{"x":' * 124 + "{}" + "}" * 124
    for name, value in (
        ("null", "null"), ("true", "true"), ("false", "false"), ("zero", "0"), ("minus-zero", "-0"),
        ("float", "-1.5e-3"), ("large", "1e300"), ("tiny", "1e-999"), ("integer-2-to-64", str(MAX + 1)),
        ("string", '"text"'), ("string-escapes", r'"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00"'),
        ("array", "[1,[2,[]],{}]"), ("object", '{"a":{"b":null}}'), ("empty-object", "{}"),
        ("nested-125-arrays", nested), ("nested-125-objects", objects), ("entry", entry()),
        ("same-key-in-two-objects", '[{"a":1},{"a":2}]'),
    ):  # fmt: skip
        add(
            f"extra-{name}",
            "extra-limit",
            "an unknown field is ignored",
            extra(value),
            "strict-extra",
        )
    add(
        "extra-empty-key",
        "extra-limit",
        "an unknown field is ignored",
        extra("1", ""),
        "strict-extra",
    )
    add("extra-strides", "extra-limit", "an unknown field is ignored, whatever it is called",
        extra("[1]", "strides"), "strict-extra")  # fmt: skip
    first = '{"note":[1,2],"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    add("extra-first", "extra-limit", "an unknown field is ignored", one(first), "strict-extra")


def _valid_metadata(add: Any) -> None:
    a = f'"a":{entry()}'
    for name, value in (
        ("null", "null"), ("empty", "{}"), ("one", '{"format":"pt"}'), ("two", '{"b":"1","a":"2"}'),
        ("empty-key", '{"":"x"}'), ("empty-value", '{"x":""}'), ("unicode", '{"é":"\u4e2d\U0001f600"}'),
        ("escapes", r'{"\u00e9\n":"\ud83d\ude00\u0000"}'), ("json-in-value", r'{"config":"{\"a\":[1]}"}'),
        ("key-of-tensor", '{"a":"x"}'), ("key-metadata", '{"__metadata__":"x"}'),
        ("key-fields", '{"dtype":"F32","shape":"[1]"}'), ("long-value", '{"x":"' + "y" * 5000 + '"}'),
    ):  # fmt: skip
        add(f"metadata-{name}", "metadata", "strings to strings, or null as if it were absent",
            raw(f'{{"__metadata__":{value},{a}}}', b"1"))  # fmt: skip
    m = '"__metadata__":{"k":"v"}'
    b = f'"b":{entry("U8", (1,), 1, 2)}'
    for name, text in (
        ("last", f"{{{a},{m}}}"), ("alone", f"{{{m}}}"), ("alone-empty", '{"__metadata__":{}}'),
        ("alone-null", '{"__metadata__":null}'), ("amid", f"{{{a},{m},{b}}}"),
        ("key-escaped", r'{"__met\u0061data__":{"k":"v"},' + a + "}"),
    ):  # fmt: skip
        size = text.count("dtype")
        add(
            f"metadata-{name}", "metadata", "__metadata__ stands anywhere", raw(text, pattern(size))
        )


def _valid_names(add: Any) -> None:
    for name, text in (
        ("empty", ""), ("space", " "), ("dots", "a.b.c"), ("nul", r"a\u0000b"), ("newline", r"a\nb"),
        ("controls", r"\u0001\u001f\u001b[2J"), ("delete", "a\x7fb"), ("c1", "a\u0085\u009b"),
        ("bidi", "a\u202eb\u2066c"), ("zero-width", "a\u200bb"), ("bom", "\ufeffa"), ("nbsp", "a\u00a0"),
        ("parent", "../../etc/passwd"), ("absolute", "/etc/passwd"), ("drive", r"C:\\x"), ("url", "http://x/"),
        ("quote", r"\""), ("backslash", r"\\"), ("backslash-quote", r"\\\""), ("slash-escaped", r"a\/b"),
        ("brace", "{"), ("json", r"\":{\"dtype\":\"U8\""), ("emoji", "\U0001f600"),
        ("emoji-escaped", r"\ud83d\ude00"), ("latin", "é"), ("cjk", "\u4e2d\u6587"), ("last", "\U0010ffff"),
        ("noncharacter", "\uffff"), ("private", "\ue000"), ("dtype", "dtype"), ("metadata-like", "__metadata"),
        ("proto", "__proto__"), ("number", "1"), ("null", "null"), ("long", "n" * 2000),
        ("long-emoji", "\U0001f600" * 500), ("upper-escape", r"\u00E9"),
    ):  # fmt: skip
        add(f"name-{name}", "json", "a name is any string", named(text))
    for name, one_, other in (
        ("case", "A", "a"), ("normal-forms", "\u00e9", "e\u0301"), ("space", "a", "a "),
        ("nul", "a", r"a\u0000"), ("prefix", "a", "a.b"),
    ):  # fmt: skip
        add(f"names-{name}", "duplicate-key", "names are compared code point by code point",
            packed((one_, "U8", (1,)), (other, "U8", (2,))))  # fmt: skip


def _valid_layouts(add: Any) -> None:
    def many(*parts: str, size: int) -> bytes:
        return raw(
            "{" + ",".join(f'"t{i}":{part}' for i, part in enumerate(parts)) + "}", pattern(size)
        )

    add("order-reversed", "offsets", "the order of the header is free",
        many(entry("U8", (2,), 3, 5), entry("U8", (1,), 2, 3), entry("U8", (2,), 0, 2), size=5))  # fmt: skip
    add("order-narrow-first", "offsets", "the order of types is free",
        packed(("a", "U8", (1,)), ("b", "F64", (1,)), ("c", "BF16", (1,))))  # fmt: skip
    add("unaligned-header", "offsets", "nothing has to be aligned", packed(("ab", "F64", (1,))))
    for name, sizes in (
        ("first", (0, 3)), ("last", (3, 0)), ("between", (2, 0, 1)), ("many", (0, 0, 2, 0, 0)), ("all", (0, 0)),
    ):  # fmt: skip
        parts, position = [], 0
        for size in sizes:
            parts.append(entry("U8", (size,), position, position + size))
            position += size
        add(f"zero-size-{name}", "offsets", "a tensor without bytes stands at a boundary",
            many(*parts, size=position))  # fmt: skip
    shuffled = many(
        entry("U8", (0,), 1, 1), entry("U8", (1,), 1, 2), entry("U8", (1,), 0, 1), size=2
    )
    add("zero-size-shuffled", "offsets", "order is by begin, then by end", shuffled)
    same = [(f"layer.{i}.weight", "F16", (2, 3)) for i in range(2000)]
    add("many-alike", "offsets", "two thousand tensors", packed(*same))
    odd = [(f"layer.{i}.w", "F16" if i % 7 else "I8", (i % 5,)) for i in range(300)]
    add("many-different", "offsets", "three hundred tensors of several shapes", packed(*odd))
    text = packed(*odd[:40])[8:]
    text = text[: text.rindex(b"}}") + 2].replace(b'"shape"', b' "shape" ', 7)
    size = sum(int(i % 5) * (2 if i % 7 else 1) for i in range(40))
    add("many-styles", "json", "entries may be spelled differently", raw(text, pattern(size)))
    add("one-byte", "coverage", "data end with the file", packed(("a", "U8", (1,))))


# What has to be refused


def invalid() -> list[Vector]:
    found: list[Vector] = []

    def add(name: str, rule: str, why: str, data: bytes) -> None:
        found.append(Vector(name, data, rule, why, valid=False))

    _invalid_files(add)
    _invalid_utf8(add)
    _invalid_json(add)
    _invalid_keys(add)
    _invalid_entries(add)
    _invalid_numbers(add)
    _invalid_metadata(add)
    _invalid_layouts(add)
    return found


def _invalid_files(add: Any) -> None:
    for size in (0, 1, 7):
        add(
            f"file-of-{size}-bytes",
            "header-too-small",
            "the length field is not whole",
            bytes(size),
        )
    for name, length in (
        ("100000001", 100_000_001), ("2-to-32", 2**32), ("2-to-63", 2**63), ("2-to-64-minus-1", MAX),
    ):  # fmt: skip
        why = "more than 100,000,000 bytes of header"
        add(f"length-{name}", "header-too-large", why, raw("{}      ", length=length))
    add("length-big-endian", "header-too-large", "the length is little-endian",
        (8).to_bytes(8, "big") + b"{}      ")  # fmt: skip
    for name, head, why in (
        ("json", b'{"weight_map": {"a": "x.safetensors"}}', "JSON without a length field"),
        ("html", b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        ("git-lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a pointer"),
        ("zip", b"PK\x03\x04\x14\0\0\0" + bytes(26), "a zip archive"),
        ("pickle", b"\x80\x02}q\x00." + bytes(9), "a pickle"),
        ("gguf", b"GGUF\x03\x00\x00\x00" + bytes(16), "a GGUF file"),
        ("gzip", b"\x1f\x8b\x08" + bytes(16), "gzip"),
        ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(16), "an HDF5 file"),
        ("npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}\n", "a NumPy file"),
    ):  # fmt: skip
        rule = "header-length" if name == "gzip" else "header-too-large"
        add(f"not-safetensors-{name}", rule, f"{why}, whose first bytes are no length", head)
    text = f'{{"a":{entry()}}}'
    add(
        "length-past-the-end",
        "header-length",
        "the header ends behind the file",
        raw(text, length=len(text) + 1),
    )
    add(
        "length-without-header",
        "header-length",
        "the file ends behind the length",
        (2).to_bytes(8, "little"),
    )
    add("header-truncated", "header-length", "half a download", raw(text)[:40])
    add("length-too-short", "json", "the length cuts the JSON", raw(text, b"1", len(text) - 1))
    add(
        "length-into-data",
        "json",
        "the length takes data for header",
        raw(text, b"1", len(text) + 1),
    )
    add("length-zero", "json", "an empty header is no object", bytes(16))
    add("length-zero-alone", "json", "an empty header is no object", bytes(8))


def _invalid_utf8(add: Any) -> None:
    for name, wrong in (
        ("ff", b"\xff"), ("continuation", b"\x80"), ("cut", b"\xe2\x82"), ("overlong", b"\xc0\xaf"),
        ("overlong-nul", b"\xc0\x80"), ("surrogate", b"\xed\xa0\x80"), ("cesu-8", b"\xed\xa0\xbd\xed\xb8\x80"),
        ("beyond-10ffff", b"\xf4\x90\x80\x80"), ("latin-1", "é".encode("latin-1")),
    ):  # fmt: skip
        header = b'{"' + wrong + b'":' + entry().encode() + b"}"
        add(f"utf8-{name}", "utf-8", "a name whose bytes are not UTF-8", raw(header, b"1"))
    text = f'{{"a":{entry()}}}'.encode()
    for name, header in (
        ("in-metadata", b'{"__metadata__":{"k":"\xff"},' + text[1:]), ("in-padding", text + b"\xff"),
        ("in-extra", text.replace(b"[0,1]", b'[0,1],"x":"\xff"')), ("between-entries", b"{\xfe" + text[1:]),
        ("utf-16-le-bom", text.decode().encode("utf-16")), ("behind-other-faults", b"{,}\xff"),
    ):  # fmt: skip
        add(f"utf8-{name}", "utf-8", "all of the header is UTF-8", raw(header, b"1"))


def _invalid_json(add: Any) -> None:
    def bad(name: str, why: str, text: str | bytes) -> None:
        add(f"json-{name}", "json", why, raw(text, b"1"))

    e = entry()
    a = f'"a":{e}'
    for name, text in (
        ("empty", ""), ("spaces", "   "), ("null", "null"), ("array", "[]"), ("string", '"a"'), ("number", "1"),
        ("true", "true"), ("bom", f"\ufeff{{{a}}}"), ("not-closed", f"{{{a}"), ("closed-twice", f"{{{a}}}}}"),
        ("bare-brace", "{"), ("two-objects", f"{{{a}}}{{}}"), ("nul-padding", f"{{{a}}}\0\0"),
        ("trailing-text", f"{{{a}}}x"), ("trailing-comma", f"{{{a},}}"), ("leading-comma", f"{{,{a}}}"),
        ("two-commas", f'{{{a},,"b":{e}}}'), ("no-comma", f'{{{a} "b":{e}}}'), ("no-colon", f'{{"a"{e}}}'),
        ("two-colons", f'{{"a"::{e}}}'), ("no-value", '{"a":}'), ("key-only", '{"a"}'),
        ("single-quotes", f"{{{a}}}".replace('"', "'")), ("bare-key", f"{{a:{e}}}"),
        ("number-as-key", f"{{1:{e}}}"), ("line-comment", f"{{{a}}}//x\n"), ("block-comment", f"/**/{{{a}}}"),
        ("form-feed", f"\x0c{{{a}}}"), ("vertical-tab", f"{{\x0b{a}}}"), ("nbsp", f"{{\u00a0{a}}}"),
        ("line-separator", f"{{\u2028{a}}}"), ("brackets-mixed", f"{{{a}]"), ("string-open", '{"a'),
        ("string-open-escape", '{"a\\'),
    ):  # fmt: skip
        bad(name, "not one JSON object", text)
    utf16 = f"{{{a}}}".encode("utf-16-le")
    bad("utf-16-le", "UTF-16 without a byte order mark is UTF-8 with NULs", utf16)
    bad(
        "utf-16-be",
        "UTF-16 without a byte order mark is UTF-8 with NULs",
        f"{{{a}}}".encode("utf-16-be"),
    )
    for name, text in (
        ("control-nul", "\0"), ("control-lf", "\n"), ("control-tab", "\t"), ("control-1f", "\x1f"),
        ("escape-x", r"\x41"), ("escape-zero", r"\0"), ("escape-upper-u", r"\U0041"), ("escape-short", r"\u12"),
        ("escape-not-hex", r"\u12G4"), ("escape-plus", r"\u+123"), ("escape-space", r"\u 123"),
        ("escape-newline", "\\\n"), ("surrogate-high", r"\ud800"), ("surrogate-low", r"\udc00"),
        ("surrogates-reversed", r"\ude00\ud83d"), ("surrogate-then-text", r"\ud83dx"),
        ("surrogate-then-escape", r"\ud83d\n"), ("surrogate-then-high", r"\ud83d\ud83d"),
    ):  # fmt: skip
        bad(f"name-{name}", "not a JSON string", f'{{"{text}":{e}}}')
    for name, value in (
        ("nan", "NaN"), ("infinity", "-Infinity"), ("leading-zero", "01"), ("plus", "+1"), ("point-last", "1."),
        ("point-first", ".5"), ("exponent-empty", "1e"), ("minus-alone", "-"), ("hex", "0x1"),
        ("underscore", "1_0"), ("too-large", "1e400"), ("capital-true", "True"), ("none", "None"),
        ("half-literal", "nul"), ("array-comma", "[1,]"), ("object-comma", '{"x":1,}'), ("array-open", "[1"),
        ("surrogate", r'"\ud800"'), ("control", '"\x01"'),
    ):  # fmt: skip
        add(f"json-extra-{name}", "json", "an unknown field is JSON too", extra(value))


def _invalid_keys(add: Any) -> None:
    e, after = entry(), entry("U8", (1,), 1, 2)
    fields = '"dtype":"U8","shape":[1],"data_offsets":[0,1]'
    meta = '"__metadata__":'
    for name, text in (
        ("tensor", f'{{"a":{e},"a":{after}}}'), ("tensor-same-value", f'{{"a":{e},"a":{e}}}'),
        ("tensor-other-type", f'{{"a":{e},"a":{entry("I8")}}}'),
        ("tensor-by-escape", f'{{"a":{e},"\\u0061":{after}}}'), ("tensor-empty-name", f'{{"":{e},"":{after}}}'),
        ("tensor-zero-size", f'{{"a":{entry("U8", (0,), 0, 0)},"a":{entry("U8", (2,), 0, 2)}}}'),
        ("tensor-thrice", f'{{"a":{e},"b":{after},"a":{e},"a":{e}}}'),
        ("dtype", f'{{"a":{{"dtype":"I8",{fields}}}}}'), ("shape", f'{{"a":{{"shape":[2],{fields}}}}}'),
        ("data-offsets", f'{{"a":{{{fields},"data_offsets":[0,1]}}}}'),
        ("field-by-escape", f'{{"a":{{{fields},"\\u0064type":"U8"}}}}'),
        ("unknown-field", f'{{"a":{{{fields},"x":1,"x":1}}}}'),
        ("in-unknown-field", f'{{"a":{{{fields},"x":{{"k":1,"k":2}}}}}}'),
        ("deep-in-unknown-field", f'{{"a":{{{fields},"x":[[{{"k":1,"\\u006b":2}}]]}}}}'),
        ("metadata", f'{{{meta}{{"a":"b"}},{meta}{{"c":"d"}},"a":{e}}}'),
        ("metadata-null-first", f'{{{meta}null,"a":{e},{meta}{{"c":"d"}}}}'),
        ("metadata-null-twice", f'{{{meta}null,{meta}null,"a":{e}}}'),
        ("metadata-by-escape", f'{{{meta}{{}},"__metadat\\u0061__":{{}},"a":{e}}}'),
        ("metadata-key", f'{{{meta}{{"k":"1","k":"2"}},"a":{e}}}'),
        ("metadata-key-same-value", f'{{{meta}{{"k":"1","k":"1"}},"a":{e}}}'),
        ("metadata-key-by-escape", f'{{{meta}{{"k":"1","\\u006b":"2"}},"a":{e}}}'),
    ):  # fmt: skip
        size = 2 if after in text else 1
        add(f"duplicate-{name}", "duplicate-key", "two readers could read two different files",
            raw(text, pattern(size)))  # fmt: skip
    parts = [f'"t{i}":{entry("U8", (1,), i, i + 1)}' for i in range(2000)]
    again = "{" + ",".join([*parts, f'"t7":{entry("U8", (1,), 2000, 2001)}']) + "}"
    add(
        "duplicate-tensor-far-apart",
        "duplicate-key",
        "two thousand tensors apart",
        raw(again, pattern(2001)),
    )


def _invalid_entries(add: Any) -> None:
    dtype, shape, offsets = '"dtype":"U8"', '"shape":[1]', '"data_offsets":[0,1]'
    for name, value in (
        ("null", "null"), ("true", "true"), ("number", "1"), ("string", '"U8"'), ("empty-array", "[]"),
        ("array", '["U8",[1],[0,1]]'), ("empty", "{}"), ("without-dtype", f"{{{shape},{offsets}}}"),
        ("without-shape", f"{{{dtype},{offsets}}}"), ("without-offsets", f"{{{dtype},{shape}}}"),
        ("dtype-null", f'{{"dtype":null,{shape},{offsets}}}'), ("dtype-number", f'{{"dtype":8,{shape},{offsets}}}'),
        ("dtype-true", f'{{"dtype":true,{shape},{offsets}}}'), ("dtype-array", f'{{"dtype":["U8"],{shape},{offsets}}}'),
        ("dtype-object", f'{{"dtype":{{"U8":null}},{shape},{offsets}}}'),
        ("shape-null", f'{{{dtype},"shape":null,{offsets}}}'), ("shape-number", f'{{{dtype},"shape":1,{offsets}}}'),
        ("shape-string", f'{{{dtype},"shape":"[1]",{offsets}}}'), ("shape-object", f'{{{dtype},"shape":{{}},{offsets}}}'),
        ("offsets-null", f'{{{dtype},{shape},"data_offsets":null}}'),
        ("offsets-number", f'{{{dtype},{shape},"data_offsets":1}}'),
        ("offsets-object", f'{{{dtype},{shape},"data_offsets":{{"begin":0,"end":1}}}}'),
        ("offsets-empty", f'{{{dtype},{shape},"data_offsets":[]}}'),
        ("offsets-one", f'{{{dtype},{shape},"data_offsets":[1]}}'),
        ("offsets-three", f'{{{dtype},{shape},"data_offsets":[0,1,1]}}'),
        ("field-case", f'{{"Dtype":"U8",{shape},{offsets}}}'), ("field-old-name", f'{{{dtype},{shape},"offsets":[0,1]}}'),
    ):  # fmt: skip
        add(f"entry-{name}", "entry", "dtype, shape and data_offsets, of their types", one(value))
    for name, code in (
        ("lower-case", "u8"), ("numpy", "uint8"), ("torch", "torch.uint8"), ("array-protocol", "|u1"), ("empty", ""),
        ("space-after", "U8 "), ("space-before", " U8"), ("nul", r"U8\u0000"), ("newline", r"U8\n"),
        ("full-width", "Ｕ8"), ("unknown", "U9"), ("f8", "F8"), ("f8-torch", "F8_E4M3FN"), ("f128", "F128"),
        ("c128", "C128"), ("i4", "I4"), ("string", "STR"), ("long", "U8" * 500),
    ):  # fmt: skip
        add(f"dtype-{name}", "dtype", "not one of the 22 codes", one(entry(code)))


def _invalid_numbers(add: Any) -> None:
    for name, number in (
        ("point", "1.0"), ("exponent", "1e0"), ("minus-zero", "-0"), ("minus", "-1"), ("2-to-64", str(MAX + 1)),
        ("1e400", "1e400"), ("30-digits", "1" * 30), ("true", "true"), ("null", "null"), ("string", '"1"'),
        ("array", "[1]"), ("object", "{}"),
    ):  # fmt: skip
        rule = "json" if name == "1e400" else "integer"
        why = "not an integer of 0 to 2^64-1, or not written as one"
        add(f"shape-{name}", rule, why, one(entry("U8", f"[{number}]")))
        add(f"end-{name}", rule, why, one(entry("U8", (1,), 0, number)))
        if name in {"minus-zero", "point", "null", "minus"}:
            zero = number.replace("1", "0") if name == "point" else number
            add(f"begin-{name}", rule, why, one(entry("U8", (1,), zero, 1)))
    for name, text in (
        ("leading-zero", "01"),
        ("plus", "+1"),
        ("hex", "0x1"),
        ("underscore", "1_0"),
        ("nan", "NaN"),
    ):
        add(f"shape-{name}", "json", "not a JSON number", one(entry("U8", f"[{text}]")))
        add(f"end-{name}", "json", "not a JSON number", one(entry("U8", (1,), 0, text)))
    add("shape-trailing-comma", "json", "not a JSON array", one(entry("U8", "[1,]")))
    add("shape-open", "json", "not a JSON array", one('{"dtype":"U8","shape":[1'))
    for name, dims in (
        ("65", "1," * 64 + "1"),
        ("65-zero", "0," * 64 + "0"),
        ("1000", "1," * 999 + "1"),
    ):
        data = one(
            entry("U8", f"[{dims}]", 0, 0 if "zero" in name else 1), 0 if "zero" in name else 1
        )
        add(
            f"rank-{name}",
            "rank",
            "over 64 dimensions: no framework has them, and they cost memory",
            data,
        )
    for name, shape in (
        ("2-to-64", (2**32, 2**32)), ("far", (MAX, MAX)), ("many", (2**16,) * 5), ("zero-too-late", (2**63, 2, 0)),
        ("zero-too-late-max", (MAX, MAX, 0)),
    ):  # fmt: skip
        add(f"overflow-{name}", "overflow", "the product of the dimensions exceeds 64 bits on the way",
            one(entry("U8", shape, 0, 0), 0))  # fmt: skip
    add("overflow-bits", "overflow", "the size in bits exceeds 64 bits",
        one(entry("U64", (2**58,), 0, 2**61), 0))  # fmt: skip
    for dtype, shape in (
        ("F4", ()), ("F4", (1,)), ("F4", (3,)), ("F4", (3, 3)), ("F6_E2M3", ()), ("F6_E2M3", (1,)),
        ("F6_E2M3", (2,)), ("F6_E2M3", (3,)), ("F6_E3M2", (1,)), ("F6_E3M2", (2, 3)),
    ):  # fmt: skip
        name = f"boundary-{dtype}-{'x'.join(map(str, shape)) or 'scalar'}"
        size = 1
        for dim in shape:
            size *= dim
        size = (size * BITS[dtype] + 7) // 8
        add(
            name,
            "byte-boundary",
            "does not fill whole bytes",
            one(entry(dtype, shape, 0, size), size),
        )


def _invalid_metadata(add: Any) -> None:
    for name, value in (
        ("number", "1"), ("true", "true"), ("null", "null"), ("array", "[]"), ("object", "{}"), ("float", "1.5"),
    ):  # fmt: skip
        add(f"metadata-value-{name}", "metadata", "values are strings",
            raw(f'{{"__metadata__":{{"k":{value}}},"a":{entry()}}}', b"1"))  # fmt: skip
    for name, value in (
        ("array", "[]"), ("string", '"x"'), ("number", "0"), ("false", "false"), ("tensor", entry()),
    ):  # fmt: skip
        add(f"metadata-{name}", "metadata", "an object of strings",
            raw(f'{{"__metadata__":{value},"a":{entry()}}}', b"1"))  # fmt: skip
    pairs = ",".join(f'"{number:x}":""' for number in range(100_001))
    add("metadata-100001-keys", "metadata-limit", "keys without bound cost memory without bound",
        raw(f'{{"__metadata__":{{{pairs}}}}}'))  # fmt: skip
    for name, value in (
        ("126-arrays", "[" * 126 + "]" * 126), ("126-objects", '{"x":' * 125 + "{}" + "}" * 125),
        ("1000-open-arrays", "[" * 1000), ("5000-digits", "0." + "1" * 5000),
    ):  # fmt: skip
        add(f"extra-{name}", "extra-limit", "what is ignored is bounded", extra(value))


def _invalid_layouts(add: Any) -> None:
    def two(a: tuple[int, int], b: tuple[int, int], size: int) -> bytes:
        first, second = (entry("U8", (max(0, end - begin),), begin, end) for begin, end in (a, b))
        return raw(f'{{"a":{first},"b":{second}}}', pattern(size))

    for name, data in (
        ("hole-first", one(entry("U8", (1,), 1, 2), 2)), ("hole-between", two((0, 2), (3, 4), 4)),
        ("overlap-by-one", two((0, 2), (1, 3), 3)), ("same-bytes", two((0, 2), (0, 2), 2)),
        ("inside", two((0, 4), (1, 2), 4)), ("zero-size-inside", two((0, 4), (2, 2), 4)),
        ("zero-size-past-the-end", two((0, 2), (3, 3), 2)), ("zero-size-hole", one(entry("U8", (0,), 1, 1), 1)),
        ("backwards", one(entry("U8", (1,), 1, 0))), ("backwards-zero", one(entry("U8", (0,), 1, 0))),
        ("max", one(entry("U8", (1,), MAX - 1, MAX))), ("wraps", one(entry("U8", (1,), MAX, 0))),
        ("second-backwards", two((0, 2), (2, 1), 2)),
    ):  # fmt: skip
        add(
            f"offsets-{name}",
            "offsets",
            "tensors follow one another, without hole or overlap",
            data,
        )
    for name, data in (
        ("too-many-bytes", one(entry("U8", (1,), 0, 2), 2)), ("too-few-bytes", one(entry("U8", (2,), 0, 1))),
        ("zero-with-bytes", one(entry("U8", (0,), 0, 1))), ("scalar-without-bytes", one(entry("U8", (), 0, 0), 0)),
        ("wider-type", one(entry("F64", (2,), 0, 8), 8)), ("narrower-type", one(entry("F16", (2,), 0, 8), 8)),
        ("f4-unpacked", one(entry("F4", (2,), 0, 2), 2)), ("f6-padded", one(entry("F6_E2M3", (4,), 0, 4), 4)),
        ("second-of-two", raw(f'{{"a":{entry()},"b":{entry("U8", (3,), 1, 3)}}}', b"123")),
        ("large", one(entry("U8", (2**40,), 0, 1))),
    ):  # fmt: skip
        add(f"size-{name}", "size", "offsets span exactly what type and shape need", data)
    whole = packed(("a", "F32", (4,)))
    for name, data in (
        ("one-byte-more", whole + b"\0"), ("eight-zeros-more", whole + bytes(8)), ("one-byte-less", whole[:-1]),
        ("half", whole[:-8]), ("no-data", whole[:-16]), ("no-tensors", raw("{}", b"1")), ("two-files", whole + whole),
        ("zip-behind", whole + b"PK\x05\x06" + bytes(18)), ("metadata-only", raw('{"__metadata__":{}}', b"1")),
        ("zero-size-only", one(entry("U8", (0,), 0, 0))),
    ):  # fmt: skip
        add(
            f"coverage-{name}",
            "coverage",
            "the tensors cover the data to the end of the file",
            data,
        )


if __name__ == "__main__":
    sys.exit(main())
