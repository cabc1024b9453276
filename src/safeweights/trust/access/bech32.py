"""Bech32 (BIP 173) without its limit of length, as age writes recipients and identities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["decode", "encode"]

_LETTERS: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VALUES: Final = {letter: value for value, letter in enumerate(_LETTERS)}
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM: Final = 6


def encode(prefix: str, data: bytes) -> str:
    """The text of `data`, in the case of `prefix`.

    >>> encode("AGE-SECRET-KEY-", bytes(32))[:24]
    'AGE-SECRET-KEY-1QQQQQQQQ'
    """
    lower = prefix.lower()
    values = _regroup(data, 8, 5)
    if len(data) * 8 % 5:
        values.append(int.from_bytes(data[-2:], "big") << 5 - len(data) * 8 % 5 & 31)
    check = _polymod([*_expand(lower), *values, *[0] * _CHECKSUM]) ^ 1
    values += [check >> 5 * (_CHECKSUM - 1 - index) & 31 for index in range(_CHECKSUM)]
    text = f"{lower}1{''.join(_LETTERS[value] for value in values)}"
    return text if prefix == lower else text.upper()


def decode(text: str) -> tuple[str, bytes] | None:
    """The prefix, in the case in which it is written, and the data; None if it is not valid.

    It does not say what is wrong: the text may be a private key.

    >>> decode("age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj")[0]
    'age'
    """
    lower = text.lower()
    if not text.isascii() or text not in {lower, text.upper()}:
        return None
    prefix, separator, rest = lower.rpartition("1")
    if not prefix or not separator or len(rest) < _CHECKSUM:
        return None
    if any(not "!" <= char <= "~" for char in prefix):
        return None
    values = [_VALUES.get(char, -1) for char in rest]
    if -1 in values or _polymod([*_expand(prefix), *values]) != 1:
        return None
    values = values[:-_CHECKSUM]
    spare = len(values) * 5 % 8
    if spare >= 5 or (spare and values[-1] & (1 << spare) - 1):
        return None  # padding that is longer than needed, or not zero
    return text[: len(prefix)], bytes(_regroup(values, 5, 8))


def _regroup(values: Iterable[int], old: int, new: int) -> list[int]:
    """Whole groups of `new` bits from groups of `old` bits; bits left over at the end are dropped."""
    found, bits, number = [], 0, 0
    for value in values:
        number = (number << old | value) & 0xFFF
        bits += old
        while bits >= new:
            bits -= new
            found.append(number >> bits & (1 << new) - 1)
    return found


def _expand(prefix: str) -> list[int]:
    codes = prefix.encode()
    return [*(code >> 5 for code in codes), 0, *(code & 31 for code in codes)]


def _polymod(values: Iterable[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for index, generator in enumerate(_GENERATOR):
            check ^= generator if top >> index & 1 else 0
    return check
