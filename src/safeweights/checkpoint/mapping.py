"""A checkpoint: a mapping from a name to a tensor that has not been read yet.

Everything above this module produces or consumes that mapping: one file, a folder of shards, a
checkpoint of another format being converted. Filtering, renaming and merging are mapping -> mapping.
Frameworks appear only above: here a tensor is its type, its shape and its bytes.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    Collection,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    ValuesView,
)
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ..errors import ClosedError, FormatError, SafetensorError, TensorNotFoundError, quote
from ..lazy import deferred
from .file import SafetensorsFile, not_found
from .tensor import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..format.header import TensorInfo


__all__ = ["Checkpoint", "matches"]

_html_of = deferred("safeweights.reports.notebook", "checkpoint_html")

_rearranged = deferred("safeweights.derived.rearranging", "rearranged")

_dequantized = deferred("safeweights.derived.quantised.schemes", "dequantized")


class _Unread(Mapping[str, Tensor]):
    """The tensors of files. Each `Tensor` is made when it is asked for: most callers need few of 100,000.

    Args:
        owners: Name -> where `file_of` finds its file; only its keys and order are used here.
        file_of: The file that has a tensor.
    """

    def __init__(
        self, owners: Mapping[str, Any], file_of: Callable[[str], SafetensorsFile]
    ) -> None:
        self._owners = owners
        self._file_of = file_of

    def __getitem__(self, name: str) -> Tensor:
        return self._file_of(name).tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._owners)

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, name: object) -> bool:
        return name in self._owners


class Checkpoint(Mapping[str, Tensor]):
    """A mapping from names to unread tensors, with the metadata of the file.

    Iteration follows the order of the data, so that reading one after another reads the disk in
    order. Closing is optional: files are closed when no tensor refers to them any more.

    Attributes:
        name: Path of the file or folder, for messages.
        format: What the files are: ``"safetensors"``, or another format that tensors were read from.
        files: The safetensors files behind it, in order; empty for other formats and views of them.
        beside: Reads a small file that lies beside the weights: a function from its name and the most
            bytes it may have to its contents, None if there is no such file. None for what is in memory.
    """

    beside: Callable[[str, int], bytes | None] | None = None

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str] | None = None,
        *,
        name: str = "",
        files: Iterable[SafetensorsFile] = (),
        format: str = "safetensors",  # noqa: A002 - what other formats' readers call it
    ) -> None:
        self._tensors: Mapping[str, Tensor] | None = tensors
        self._metadata = None if metadata is None else dict(metadata)
        self.name = name
        self.files = tuple(files)
        self.format = format

    @classmethod
    def from_files(cls, files: Iterable[SafetensorsFile], name: str) -> Checkpoint:
        """Several files as one checkpoint.

        Metadata of all files is merged; a key that has different values in two files is left out.

        Raises:
            FormatError: Two files have a tensor of the same name.
        """
        files = tuple(files)
        if len(files) == 1:  # nothing to unite: the header's own table serves
            (only,) = files
            unread = _Unread(only.header.tensors, lambda _: only)
            return cls(unread, only.header.metadata, name=name, files=files)
        owners: dict[str, SafetensorsFile] = {}
        for file in files:
            tensors = file.header.tensors
            if not owners.keys().isdisjoint(tensors):
                twice = next(key for key in tensors if key in owners)
                raise FormatError(
                    f"tensor {quote(twice)} is in two files: {quote(owners[twice].name)} and "
                    f"{quote(file.name)}; if they are two models, open one of them by its name",
                    rule="duplicate-key", path=name, tensor=twice,
                )  # fmt: skip
            owners.update(dict.fromkeys(tensors, file))
        return cls(
            _Unread(owners, owners.__getitem__), _common_metadata(files), name=name, files=files
        )

    @property
    def metadata(self) -> dict[str, str] | None:
        """A copy of the file's metadata; None if it has none."""
        return None if self._metadata is None else dict(self._metadata)

    def _open_tensors(self) -> Mapping[str, Tensor]:
        if self._tensors is None:
            raise ClosedError(path=self.name or None)
        return self._tensors

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._open_tensors()[name]
        except (KeyError, TypeError) as error:
            # Our own errors derive from these classes; only one of them means that the name is unknown.
            if isinstance(error, SafetensorError) and not isinstance(error, TensorNotFoundError):
                raise
            raise not_found(name, self.name or None, self._open_tensors()) from None

    def get(self, name: str, default: Any = None) -> Any:
        """The tensor called `name`, or `default`, without the search for similar names of ``[name]``."""
        return self[name] if isinstance(name, str) and name in self else default

    @property
    def refused(self) -> dict[str, str]:
        """Name -> why the file's values of that tensor cannot be given (`Tensor.unreadable`)."""
        if self.files:  # every tensor of a safetensors file can be read
            return {}
        return {
            name: reason
            for name, tensor in self.items()
            if (reason := tensor.unreadable) is not None
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._open_tensors())

    def __len__(self) -> int:
        return len(self._open_tensors())

    def __contains__(self, name: object) -> bool:
        return name in self._open_tensors()

    # The base's views look up each name anew, which takes most of the time of a pass over all tensors.
    def items(self) -> ItemsView[str, Tensor]:
        return self._open_tensors().items()

    def values(self) -> ValuesView[Tensor]:
        return self._open_tensors().values()

    # Compared by identity: comparing unread tensors says nothing about their values.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        state = "closed" if self._tensors is None else f"{len(self._tensors)} tensors"
        return f"<Checkpoint {quote(self.name)}: {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled for worker processes: files are opened there again, and have to be the same.

        Raises:
            UnsupportedError: Something in it cannot be opened in another process.
        """
        tensors = self._open_tensors()
        if isinstance(tensors, _Unread):
            return Checkpoint.from_files, (self.files, self.name)
        return _made_again, (dict(tensors), self._metadata, self.name, self.format)

    def _repr_html_(self) -> str:
        """What notebooks show: a table of the first tensors. No value is read."""
        found: str = _html_of(self)
        return found

    def info(self, name: str) -> TensorInfo:
        """Type, shape and place of a tensor; the place counts from the beginning of its file's data."""
        return self[name].info

    def filter(
        self, *, only: str | Iterable[str] = (), skip: str | Iterable[str] = ()
    ) -> Checkpoint:
        """A view of the tensors that match one of `only` (all, if empty) and none of `skip`.

        Args:
            only: Name, shell pattern, or several; case-sensitive: ``*`` matches anything, dots and
                slashes too.
            skip: The same.

        >>> ours = Checkpoint(dict.fromkeys(["norm.weight", "norm.bias", "w[0]"]))
        >>> list(ours.filter(only=["norm.*", "w[0]"], skip="*.bias"))
        ['norm.weight', 'w[0]']
        """
        wanted, unwanted = _patterns(only), _patterns(skip)
        kept = dict(self.items())
        if wanted or unwanted:
            kept = {
                name: tensor
                for name, tensor in kept.items()
                if (not wanted or matches(name, wanted)) and not matches(name, unwanted)
            }
        return self._with(kept)

    def rename(self, new_name: Callable[[str], str]) -> Checkpoint:
        """A view in which `new_name(name)` is the name of each tensor; the order stays.

        Raises:
            FormatError: Two tensors would get the same name (rule ``name-collision``), or one would lose
                its name: the format allows the empty one, but few programs can address it (rule
                ``name-empty``).
        """
        renamed: dict[str, Tensor] = {}
        for name, tensor in self.items():
            target = new_name(name)
            if name and not target:
                raise FormatError(
                    f"nothing would be left of the name {quote(name)}, and few programs can address a "
                    "tensor with an empty name: give it another one",
                    rule="name-empty", path=self.name or None, tensor=name,
                )  # fmt: skip
            if target in renamed:
                other = [*self][[*renamed].index(target)]
                raise FormatError(
                    f"{quote(other)} and {quote(name)} would both be called {quote(target)}",
                    rule="name-collision", path=self.name or None, tensor=name,
                )  # fmt: skip
            renamed[target] = tensor
        return self._with(renamed)

    def dequantize(
        self,
        dtype: str = "F32",
        *,
        scheme: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """A view in which every quantised weight is a tensor of numbers; other tensors stay.

        Values are computed when they are read, in float32; see docs/quantised.md for the schemes and
        their formulas. Scales and other parts of a quantised weight are not in the view.

        Args:
            dtype: Type of the dequantised tensors: ``"F32"``, or ``"BF16"``, ``"F16"``, ``"F64"``, to
                which each value is rounded.
            scheme: A name of docs/quantised.md, where names, types and settings leave a choice.
            settings: What ``quantization_config`` in config.json has; by default that of the config.json
                beside the weights.

        Cost: reads the settings, and small parts such as the order of groups; no codes.

        Raises:
            UnsupportedError: No weight is quantised, or the method is not read.
            FormatError: A part breaks a rule of its scheme; or the scheme is ambiguous, which the
                message says with the choices.
            TrustError: The settings are not what ``trust=`` asked for.
            OSError: The settings cannot be read.

        >>> from safeweights.checkpoint import MemoryTensor
        >>> w = {"a.weight": MemoryTensor("a.weight", "F8_E4M3", (1, 2), bytes([0x38, 0x40])),
        ...      "a.weight_scale_inv": MemoryTensor("s", "F32", (1, 1), bytes([0, 0, 0, 0x41]))}
        >>> Checkpoint(w).dequantize()["a.weight"].numpy()
        array([[ 8., 16.]], dtype=float32)
        """
        found: Checkpoint = _dequantized(self, dtype, scheme=scheme, settings=settings)
        return found

    def rearrange(self, plan: Mapping[str, Any]) -> Checkpoint:
        """A view in which tensors are put together from others: fused projections, stacked experts.

        Args:
            plan: New name -> a stored name, or a `safeweights.Concat`, `Stack`, `Narrow` or `Transpose` of
                stored names. Names may have placeholders, such as ``{layer}``, each of which stands for
                what is between two dots; an entry holds for all their values. What a plan uses is no
                longer in the view under its own name.

        Cost: looks at names and shapes. Reading a part of a new tensor reads that part of the stored ones.

        Raises:
            UnsupportedError: An entry is no plan, or fits no tensor.
            TensorNotFoundError: A tensor that an entry needs is missing.
            FormatError: Types or shapes do not fit (rule ``plan``), or a new name is taken (rule
                ``name-collision``).

        >>> from safeweights import Concat
        >>> from safeweights.checkpoint import MemoryTensor
        >>> w = {f"h.0.{n}": MemoryTensor(n, "U8", (1, 2), bytes([n, n])) for n in (1, 2)}
        >>> fused = Checkpoint(w).rearrange({"h.{i}.both": Concat(["h.{i}.1", "h.{i}.2"])})
        >>> fused["h.0.both"].numpy()
        array([[1, 1],
               [2, 2]], dtype=uint8)
        """
        found: Checkpoint = _rearranged(self, plan)
        return found

    def replaced(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
    ) -> Checkpoint:
        """A view of the same name and format with other tensors and metadata."""
        view = Checkpoint(tensors, metadata, name=self.name, format=self.format)
        view.beside = self.beside
        return view

    def _with(self, tensors: Mapping[str, Tensor]) -> Checkpoint:
        return self.replaced(tensors, self._metadata)

    def close(self) -> None:
        """Close the files. Tensors that were already taken from the mapping stay usable."""
        self._tensors = None
        self.files = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _made_again(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None,
    name: str,
    format: str,  # noqa: A002
) -> Checkpoint:
    return Checkpoint(tensors, metadata, name=name, format=format)


def matches(name: str, patterns: Collection[str]) -> bool:
    """Whether `name` equals one of `patterns`, or matches one as a shell pattern."""
    return name in patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _patterns(given: str | Iterable[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _common_metadata(files: Iterable[SafetensorsFile]) -> dict[str, str] | None:
    found = [file.header.metadata for file in files if file.header.metadata is not None]
    merged: dict[str, str] = {}
    disputed: set[str] = set()
    for metadata in found:
        for key, value in metadata.items():
            if merged.setdefault(key, value) != value:
                disputed.add(key)
    return {key: merged[key] for key in merged if key not in disputed} if found else None
