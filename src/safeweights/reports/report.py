"""Documents as Python returns them: dictionaries that a prompt and a notebook show in short."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from ..display import Displayed
from ..text import human_bytes, plural, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .documents import CheckDocument, DiffDocument, ShowDocument

    Rows = Iterable[Sequence[str]]

__all__ = ["as_check", "as_diff", "as_show"]


class _Report(Displayed, dict[str, Any]):
    """A document of ``--json``."""

    def __repr__(self) -> str:
        return f"<{self['schema']}: {printable(self._summary())}>"


class _Model(_Report):
    """What a model is; see `safeweights.describe`."""

    def _summary(self) -> str:
        return str(self["model"]["summary"])

    def _table(self) -> tuple[Sequence[str], Rows]:
        return (), self._facts()

    def _facts(self) -> Iterator[tuple[str, str]]:
        model, sums = self["model"], self["total"]
        facts: dict[str, object] = {
            "path": self["path"],
            "format": self["format"],
            "class": model["architecture"],
            "tensors": f"{sums['tensors']:,}",
            "parameters": f"{sums['parameters']:,}",
            "types": ", ".join(kind["dtype"] for kind in self["dtypes"]),
            "size": human_bytes(sums["bytes"]),
            "layers": model["layers"],
            "context": model["context"] and plural(model["context"], "token"),
            "vocabulary": model["vocabulary"] and plural(model["vocabulary"], "token"),
            "quantised as": model["quantisation"],
            "tied": ", ".join(model["tied"]),
            "signature": model["signature"] or "none found",
            "loading runs code": ", ".join([model["code"]["verdict"], *model["code"]["reasons"]]),
            "problems": "; ".join(model["problems"]),
        }
        return ((name, str(value)) for name, value in facts.items() if value)


class _Check(_Report):
    """What is wrong with files; see `safeweights.check`."""

    def _summary(self) -> str:
        results = self["results"]
        bad = [each["path"] for each in results if each["status"] != "ok"]
        if not bad:
            return f"{plural(len(results), 'path')} ok"
        return f"{len(bad)} of {plural(len(results), 'path')} not ok: {', '.join(bad[:5])}"

    def _table(self) -> tuple[Sequence[str], Rows]:
        found = [finding for result in self["results"] for finding in result["findings"]]
        worst = sorted(found, key=lambda each: ("error", "warning", "note").index(each["level"]))
        titles = ("level", "rule", "file", "tensor", "message")
        return titles, ([each[key] or "" for key in titles] for each in worst)


class _Comparison(_Report):
    """What differs between two checkpoints."""

    def _summary(self) -> str:
        kinds = ("added", "removed", "renamed", "retyped", "changed")
        counts = [f"{len(self[kind]):,} {kind}" for kind in kinds if self[kind]]
        counts.append(f"{self['unchanged']:,} unchanged")
        return f"{'the same' if self['same'] else 'different'}: {', '.join(counts)}"

    def _table(self) -> tuple[Sequence[str], Rows]:
        return ("", "tensor", "before", "after", "largest difference"), self._rows()

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for each in self["retyped"] + self["changed"]:
            most = each["values"] and each["values"]["max"]
            largest = "" if most is None else f"{most:.3g}"
            yield "changed", each["name"], *map(_kind, (each["before"], each["after"])), largest
        for each in self["removed"]:
            yield "removed", each["name"], _kind(each), "", ""
        for each in self["added"]:
            yield "added", each["name"], "", _kind(each), ""
        for each in self["renamed"]:
            yield "renamed", each["after"], each["before"], "", ""


def _kind(tensor: Any) -> str:
    return f"{tensor['dtype']} {tensor['shape']}"


def as_show(document: ShowDocument) -> ShowDocument:
    """The same document, which shows what the model is."""
    return cast("ShowDocument", _Model(document))


def as_check(document: CheckDocument) -> CheckDocument:
    """The same document, which shows what is wrong."""
    return cast("CheckDocument", _Check(document))


def as_diff(document: DiffDocument) -> DiffDocument:
    """The same document, which shows what differs."""
    return cast("DiffDocument", _Comparison(document))
