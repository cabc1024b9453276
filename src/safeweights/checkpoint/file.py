"""One opened safetensors file: a source and its validated header."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..errors import FormatError, NameTypeError, TensorNotFoundError, quote
from ..format.header import PREFIX, Header, header_length, parse
from ..format.sniffing import ENCRYPTED, HEAD, identify
from ..storage import Source, Verifier, open_source
from ..text import similar_names
from .tensor import FileTensor

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["SafetensorsFile", "not_found"]


class SafetensorsFile:
    """One opened safetensors file: its source and its header.

    Args:
        source: The file.
        head: Bytes of its beginning that were read already; they are not read again.

    Attributes:
        name: Path, or another name for messages.
        header: The validated header.
        source: Where the bytes are.
    """

    __slots__ = ("header", "name", "source")

    def __init__(self, source: Source, head: bytes = b"") -> None:
        self.source = source
        self.name = source.name
        self.header = _read_header(source, head)

    @classmethod
    def open(
        cls, target: Any, *, backend: str = "mmap", verify: Verifier | None = None
    ) -> SafetensorsFile:
        """Open a path, a readable file object, or memory that holds a file.

        Args:
            target: A path, a readable file object, or bytes-like memory.
            backend: How a path is read; see `safeweights.storage.open_source`.
            verify: Given the source of a path and the path, the source to read from instead.

        Raises:
            FormatError: The file breaks a rule of the format, or is of another format.
            UnsupportedError: `target` is of another type.
            OSError: The file cannot be opened or read.
        """
        return cls(open_source(target, backend=backend, verify=verify))

    def __reduce__(self) -> tuple[Any, ...]:
        return SafetensorsFile, (self.source,)  # the header is read again: it is long

    def tensor(self, name: str) -> FileTensor:
        """The tensor called `name`, unread."""
        info = self.header.tensors.get(name) if isinstance(name, str) else None
        if info is None:
            raise not_found(name, self.name)
        return FileTensor(name, info, self.source, self.header.data_start)

    def tensors(self) -> dict[str, FileTensor]:
        """All tensors, unread, in the order of the header."""
        source, start = self.source, self.header.data_start
        return {
            name: FileTensor(name, info, source, start)
            for name, info in self.header.tensors.items()
        }


_FEW: Final = 5
"""Names that a message lists, if none is similar."""


def not_found(name: object, path: str | None, known: Collection[str] = ()) -> TensorNotFoundError:
    """The error for a name that a checkpoint does not have, in the words of the reference."""
    where = name if isinstance(name, str) else None
    shown = repr(name) if where is None else quote(where)[1:-1]
    kind = NameTypeError if where is None else TensorNotFoundError
    close = ", ".join(map(quote, similar_names(where, known))) if where is not None else ""
    hint = f"; similar names: {close}" if close else ""
    if not hint and 0 < len(known) <= _FEW:
        hint = f"; it has {', '.join(map(quote, known))}"
    return kind(f"File does not contain tensor {shown}{hint}", path=path or None, tensor=where)


def _read_header(source: Source, head: bytes) -> Header:
    name = source.name or None
    # Read, not viewed: the first access to a mapped page takes longer than reading it.
    head = head or source.read(0, min(PREFIX, source.size))
    try:
        length = header_length(head, source.size, path=name)
        end = PREFIX + length
        text = head[PREFIX:end] if end <= len(head) else source.read(PREFIX, length)
        return parse(text, source.size - end, path=name)
    except FormatError as error:
        found = identify(bytes(source.view(0, min(HEAD, source.size))))
        if found == ENCRYPTED:
            raise FormatError(f"this is {found}", rule="encrypted", path=name) from None
        if found is not None:
            error.message += f"; this looks like {found}"
        raise
