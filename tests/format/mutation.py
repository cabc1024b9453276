"""Random safetensors files: valid ones in every spelling, and broken ones that are nearly valid.

A file is first made as a model (entries, their fields, their values, all as JSON text), then broken in
its structure, then written with random white space and order, then broken byte by byte. Everything
comes from the `random.Random` that the caller passes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from safeweights.format.dtypes import BITS

if TYPE_CHECKING:
    import random

NAMES = ["a", "b", "", "weight", "layer.0.weight", "é", "\u4e2d", "\U0001f600", "a/../b", '"', "\\", "\n",
         "\x00", "\x7f", "\u202e", "\ufeff", "dtype", "shape", "data_offsets", " ", "{", "}", ":", ",",
         '":{"dtype":"', '"a"', "x" * 300]  # fmt: skip
NUMBERS = ["0", "1", "2", "3", "7", "8", "16", "63", "64", "255", "4294967296", "9223372036854775807",
           "9223372036854775808", "18446744073709551615", "18446744073709551616", "-0", "-1", "2.0",
           "2e0", "1E1", "01", "1e400", "0x1", "+1", "1_0", "NaN", "Infinity", "true", "null", '"1"',
           "[]", "{}", "", " ", "99999999999999999999999", "1.", ".5", "1e"]  # fmt: skip
DTYPES = [
    "i32",
    "F128",
    "",
    "F8_E4M3FN",
    "BF16 ",
    "I32\\u0000",
    "\\u00493\\u0032",
    "float32",
    "Ｆ32",
]
VALUES = [*NUMBERS, '"text"', '"\\ud800"', '"\\ud83d\\ude00"', '"\\x41"', "[1,2]", "[[]]", '{"a":1,"a":2}',
          '{"a":{"b":[1,null,true,false,-1.5e3]}}', "[" * 100 + "]" * 100, "[" * 125 + "]" * 125,
          "[" * 126 + "]" * 126, "[1,]", "{,}", "nul", "truefalse", '"\t"', '"unterminated', "[" * 40,
          '{"dtype":"I8","shape":[],"data_offsets":[0,1]}', '["I32",[2],[0,8]]', '{"I32":null}',
          "1" * 30, "-1e-400", '"' + "y" * 200 + '"']  # fmt: skip
SPACES = ["", "", "", " ", "\n", "\t", "\r\n", "   "]
ODD_SPACES = ["\x0b", "\x0c", "\u00a0", "\ufeff", "//c\n", "/**/", "\x00", ",", "'", "\u2028"]
BYTES = b'{}[]":,\\ \n\t0123456789-+.eEunltfa\x00\x01\x1f\x7f\x80\xbf\xc0\xed\xa0\xf4\xff'

Fields = list[tuple[str, str]]
Model = list[tuple[str, Fields | str]]


def file(rng: random.Random) -> bytes:
    """One file; about every third is valid."""
    model, size = _model(rng)
    if rng.random() < 0.5:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            model, size = _break(rng, model, size)
    text = _write(rng, model).encode(errors="surrogatepass")
    if rng.random() < 0.25:
        for _ in range(rng.choice((1, 1, 2, 4))):
            text = _break_bytes(rng, text)
    length = len(text)
    if rng.random() < 0.02:
        length = max(0, length + rng.choice((-1, 1, 8, 100_000_001, 2**40)))
    data = length.to_bytes(8, "little") + text + rng.randbytes(size)
    return _break_bytes(rng, data) if rng.random() < 0.05 else data


def header(rng: random.Random) -> tuple[bytes, int]:
    """The header text and data size of such a file, independent of its length field."""
    data = file(rng)
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length]
    return text, max(0, len(data) - 8 - len(text))


def _model(rng: random.Random) -> tuple[Model, int]:
    tensors = {}
    position = 0
    for _ in range(rng.choice((0, 1, 1, 2, 3, 6, 12))):
        name = rng.choice(NAMES) if rng.random() < 0.4 else f"t{rng.randrange(1000)}"
        dtype = rng.choice(list(BITS))
        shape = [rng.choice((0, 1, 2, 3, 8)) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
        bits = BITS[dtype]
        for dim in shape:
            bits *= dim
        if bits % 8 or name in tensors or bits > 1 << 16:
            continue
        tensors[name] = dtype, shape, position, position + bits // 8
        position += bits // 8
    model: Model = []
    if rng.random() < 0.3:
        metadata = {rng.choice(NAMES): rng.choice(NAMES) for _ in range(rng.randrange(3))}
        value = [(_string(rng, key), _string(rng, text)) for key, text in metadata.items()]
        model.append((_string(rng, "__metadata__"), "null" if rng.random() < 0.1 else value))
    for name, (dtype, dims, begin, end) in tensors.items():
        fields = [
            (_string(rng, "dtype"), json.dumps(dtype)),
            (_string(rng, "shape"), json.dumps(dims)),
            (_string(rng, "data_offsets"), json.dumps([begin, end])),
        ]
        model.append((_string(rng, name), fields))
    if rng.random() < 0.2:
        rng.shuffle(model)
    return model, position


def _string(rng: random.Random, text: str) -> str:
    """`text` as a JSON string, in one of its possible spellings."""
    if rng.random() < 0.97:
        return json.dumps(text, ensure_ascii=rng.random() < 0.3)
    units = text.encode("utf-16-be")
    pairs = (units[i : i + 2].hex() for i in range(0, len(units), 2))
    return '"' + "".join(f"\\u{pair}" for pair in pairs) + '"'


def _respelled(rng: random.Random, key: str) -> str:
    try:
        return _string(rng, str(json.loads(key)))
    except ValueError:  # it is broken already
        return key


def _write(rng: random.Random, model: Model) -> str:
    """The JSON text; entries are all written alike, or each in a different way."""
    tidy = rng.random() < 0.5
    style = [rng.choice(SPACES) for _ in range(6)] if rng.random() < 0.5 else [""] * 6
    order = rng.sample(range(3), 3) if rng.random() < 0.4 else [0, 1, 2]

    def space(place: int) -> str:
        if rng.random() < 0.001:
            return rng.choice(ODD_SPACES)
        return style[place] if tidy else rng.choice(SPACES)

    def member(key: str, value: str) -> str:
        return f"{space(0)}{key}{space(1)}:{space(2)}{value}{space(3)}"

    def entry(fields: Fields | str) -> str:
        if isinstance(fields, str):
            return fields
        places = order if tidy else rng.sample(range(3), 3)
        if len(fields) == 3:
            fields = [fields[place] for place in places]
        return "{" + ",".join(member(key, value) for key, value in fields) + "}"

    body = ",".join(member(key, entry(fields)) for key, fields in model)
    return f"{space(4)}{{{body}}}{space(5)}" + " " * rng.choice((0, 0, 1, 7))


def _break(rng: random.Random, model: Model, size: int) -> tuple[Model, int]:
    """Break a rule, or write something unusual that is allowed."""
    what = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 10, 10, 10, 10, 10, 11, 11, 12))
    if what == 0:
        return model, max(0, size + rng.choice((-8, -1, 1, 8)))
    if not model:
        key = rng.choice(("a", "__metadata__"))
        return [(json.dumps(key), rng.choice(VALUES))], size
    at = rng.randrange(len(model))
    key, fields = model[at]
    model = list(model)
    if what == 1:
        model.insert(rng.randrange(len(model) + 1), (_respelled(rng, key), fields))
    elif what == 2:
        model[at] = key, rng.choice(VALUES)
    elif what == 3:
        model[at] = rng.choice(VALUES), fields
    elif what == 4:
        del model[at]
    elif what == 5:
        keys = [
            '"\\ud800"',
            '"\\udc00\\ud800"',
            '"__metadata__"',
            "''",
            '"\x1f"',
            '"\\u12G4"',
            '"\ud800"',
        ]
        model[at] = rng.choice(keys), fields
    elif isinstance(fields, str) or not fields:
        model[at] = key, rng.choice(VALUES)
    else:
        model[at] = key, _break_fields(rng, list(fields), what)
    return model, size


def _break_fields(rng: random.Random, fields: Fields, what: int) -> Fields | str:
    at = rng.randrange(len(fields))
    key, value = fields[at]
    if what == 6:
        del fields[at]
    elif what == 7:
        fields.append((key, value if rng.random() < 0.5 else rng.choice(VALUES)))
    elif what == 8:
        fields.insert(at, (_string(rng, rng.choice(NAMES)), rng.choice(VALUES)))
    elif what == 9:
        fields[at] = key, rng.choice(VALUES)
    elif what == 10 and value.startswith("["):
        numbers = [number.strip() for number in value[1:-1].split(",")]
        place = rng.randrange(len(numbers))
        if rng.random() < 0.5:
            numbers[place] = rng.choice(NUMBERS)
        else:
            count = rng.choice((1, 1, 2, 61, 63, 64, 65))
            numbers[place:place] = [rng.choice(("0", "1", "2"))] * count
        fields[at] = key, f"[{','.join(numbers)}]"
    elif what == 11:
        fields[at] = key, rng.choice([f'"{name}"' for name in (*DTYPES, *BITS)])
    else:
        return "[" + ",".join(value for _, value in fields) + "]"
    return fields


def _break_bytes(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    other = rng.randrange(len(data) + 1)
    what = rng.randrange(6)
    if what == 0:
        return data[:at] + bytes([rng.choice(BYTES)]) + data[at:]
    if what == 1:
        return data[:at] + data[at + 1 :]
    if what == 2:
        return data[:at] + bytes([rng.choice(BYTES)]) + data[at + 1 :]
    if what == 3 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if what == 4:
        return data[: min(at, other)] + data[max(at, other) :]
    return data[:at] + data[min(at, other) : max(at, other)] + data[at:]


def regular(rng: random.Random) -> tuple[bytes, int]:
    """A header as a program writes it, with up to 60 tensors, usually with one irregularity."""
    style = [rng.choice(SPACES) for _ in range(6)]
    order = rng.sample(range(3), 3) if rng.random() < 0.5 else [0, 1, 2]
    sizes = [rng.choice((0, 1, 2, 5, 10, 1000)) for _ in range(rng.randrange(1, 60))]
    entries = []
    end = 0
    for number, size in enumerate(sizes):
        begin, end = end, end + size
        dtype, shape = ("U8", f"[{size}]") if rng.random() < 0.7 else ("I16", f"[ 1,{size} ]")
        if dtype == "I16":
            end += size
        fields = [f'"dtype"{style[0]}:{style[1]}"{dtype}"', f'"shape"{style[0]}:{style[1]}{shape}',
                  f'"data_offsets"{style[0]}:{style[1]}[{begin},{style[2]}{end}]']  # fmt: skip
        if rng.random() < 0.002:
            fields.append(f'"{rng.choice("abc")}":{rng.choice(VALUES)}')
        inside = f",{style[3]}".join(fields[place] for place in order)
        name = json.dumps(
            f"{rng.choice(('', 'é', chr(10), chr(0x202E)))}n{number}",
            ensure_ascii=rng.random() < 0.5,
        )
        if rng.random() < 0.005:
            name = rng.choice(['"n0"', '"__metadata__"', '"\\ud800"', '"\\""', '"\\\\"', '"\x00"'])
        entries.append(f"{name}{style[4]}:{style[5]}{{{inside}}}")
    if rng.random() < 0.2:
        rng.shuffle(entries)
    text = ("{" + f",{style[3]}".join(entries) + "}").encode()
    if rng.random() < 0.6:
        at = rng.randrange(len(text))
        text = text[:at] + bytes([rng.choice(BYTES)]) + text[at + rng.randrange(2) :]
    return text, end
