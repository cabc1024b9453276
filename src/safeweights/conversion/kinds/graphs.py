"""ONNX models and TensorFlow graphs: what the operators and the references in them can reach.

Only the fields that can reach code or files are read (onnx.proto of ONNX 1.19; saved_model.proto,
meta_graph.proto, graph.proto and function.proto of TensorFlow 2.21). Weights are skipped where they lie.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Final, NamedTuple

from ...errors import FormatError, quote
from ...storage.windows import read_bytes
from .concerns import Concern
from .vocabulary import TENSORFLOW_OPERATORS
from .wire import Budget, Message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...storage import Source

__all__ = [
    "is_fingerprint",
    "is_onnx",
    "is_saved_model",
    "is_sentencepiece",
    "onnx_concerns",
    "saved_model_concerns",
]

_ONNX_TOP: Final = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
_ONNX_DOMAINS: Final = frozenset(
    {
        "", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training",
        "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc", "org.pytorch.aten",
        "pkg.onnxscript.torch_lib", "pkg.onnxscript.torch_lib.common", "pkg.torch",
    }
)  # fmt: skip
"""Domains whose operators ONNX, ONNX Runtime and PyTorch's exporter define themselves."""

_Operators = dict[tuple[str, str], int]
"""Domain and name of each operator -> where one is first."""

_TF_ACTS: Final = frozenset(
    {
        "PyFunc", "EagerPyFunc", "PyFuncStateless", "ReadFile", "WriteFile", "MatchingFiles",
        "FixedLengthRecordReader", "FixedLengthRecordReaderV2", "TextLineReader", "TextLineReaderV2",
        "TFRecordReader", "TFRecordReaderV2", "WholeFileReader", "WholeFileReaderV2", "LMDBReader",
        "FixedLengthRecordDataset", "FixedLengthRecordDatasetV2", "TextLineDataset", "TFRecordDataset",
        "TFRecordDatasetV2", "LoadDataset", "SaveDataset", "SaveDatasetV2", "SqlDataset", "PrintV2",
        "DebugIdentityV2", "DebugNumericSummaryV2", "Bigtable", "DecodeProtoV2", "RpcCall", "Send",
        "Recv", "_Send", "_Recv", "_HostSend", "_HostRecv", "TPUCompile", "GeneratorDataset",
        "CreateSummaryFileWriter", "CreateSummaryDbWriter", "DataServiceDataset",
        "DataServiceDatasetV2", "DataServiceDatasetV3", "DataServiceDatasetV4",
    }
)  # fmt: skip
"""Operators that call Python, or read, write or send what the graph names."""


_WRITERS: Final = {"SaveV2": 1, "MergeV2Checkpoints": 2}
"""Operators that save a model -> how many of their first inputs are paths."""
_JOINING: Final = frozenset({"Identity", "Pack", "ShardedFilename", "StringJoin"})
_GIVEN: Final = frozenset({"Placeholder", "PlaceholderWithDefault"})


def is_onnx(source: Source) -> bool:
    """Whether all of a file is an ONNX ModelProto: every top field known, with a graph (field 7)."""
    numbers = _top(source, _ONNX_TOP)
    return numbers.get(7) is True and (numbers.get(1) is False or 8 in numbers)


def is_saved_model(source: Source) -> bool:
    """Whether all of a file is a SavedModel: a schema version (1) and graphs (2), nothing else."""
    return _top(source, frozenset({1, 2})) == {1: False, 2: True}


def is_sentencepiece(source: Source) -> bool:
    """Whether all of a file is a SentencePiece ModelProto: pieces (1), trainer (2), normalizer (3)."""
    numbers = _top(source, frozenset({1, 2, 3, 4, 5}))
    return all(numbers.get(number) for number in (1, 2, 3))


def is_fingerprint(source: Source) -> bool:
    """Whether all of a file is a FingerprintDef (fingerprint.proto): five hashes, a version, an id."""
    if source.size > 1024:
        return False
    numbers = _top(source, frozenset({1, 2, 3, 4, 5, 6, 7}))
    hashes = all(numbers.get(number, False) is False for number in (1, 2, 3, 4, 5))
    tail = read_bytes(source, max(source.size - 20, 0), min(source.size, 20))
    return bool(numbers) and hashes and numbers.get(7, False) and tail.isdigit()


def _top(source: Source, allowed: frozenset[int]) -> dict[int, bool]:
    """The number of each field of a message -> whether it has content, which varints have not.

    Empty where there is another field than `allowed`, or the bytes are no message.
    """
    found: dict[int, bool] = {}
    try:
        for field in Message(source, 0, source.size, Budget(1_000_000)).fields():
            if field.number not in allowed:
                return {}
            found[field.number] = found.get(field.number, False) or field.length > 0
    except FormatError:
        return {}
    return found


def onnx_concerns(source: Source) -> Iterator[Concern]:
    """What an ONNX model reaches: operators of other domains, files of external data.

    Raises:
        FormatError: The file is no ONNX model, or is damaged.
    """
    model = Message(source, 0, source.size, Budget())
    domains: _Operators = {}
    files: dict[str, int] = {}
    for field in model.fields():
        if field.number == 7:
            _graph(model.inner(field), domains, files)
        elif (
            field.number == 25
        ):  # a function of the model itself: its nodes are read like a graph's
            _nodes(model.inner(field), 7, domains, files)
        elif field.number == 20:  # training: the graphs of initialisation and algorithm
            training = model.inner(field)
            for part in training.fields():
                if part.number in {1, 2}:
                    _graph(training.inner(part), domains, files)
    own = set(map(_function_name, model.messages(25)))
    reported: set[str] = set()
    for (domain, operator), offset in sorted(domains.items()):
        known = domain in _ONNX_DOMAINS or domain in reported or (domain, operator) in own
        if not known:
            reported.add(domain)
            yield Concern(
                "unknown", "onnx-custom-operator",
                f"operators of the domain {quote(domain, 100)}, which a custom library provides", offset,
            )  # fmt: skip
    for name, offset in sorted(files.items()):
        if _leaves(name):
            yield Concern(
                "acts", "onnx-external-data",
                f"external data {quote(name, 200)}, which is outside the model's folder", offset,
            )  # fmt: skip


def _function_name(function: Message) -> tuple[str, str]:
    """Domain and name of a function that the model defines itself."""
    found = {
        field.number: function.text(field) for field in function.fields() if field.number in {1, 10}
    }
    return found.get(10, ""), found.get(1, "")


def _leaves(name: str) -> bool:
    """Whether a path may lead out of the folder: absolute, a drive, a scheme, or `..`."""
    plain = name.replace("\\", "/")
    return (
        plain.startswith(("/", "~"))
        or ":" in plain
        or ".." in posixpath.normpath(plain).split("/")
        or "\0" in plain
    )


def _graph(graph: Message, domains: _Operators, files: dict[str, int]) -> None:
    for field in graph.fields():
        if field.number == 1:
            _node(graph.inner(field), domains, files)
        elif field.number == 5:
            _tensor(graph.inner(field), files)
        elif field.number == 15:
            _sparse(graph.inner(field), files)


def _sparse(sparse: Message, files: dict[str, int]) -> None:
    for part in sparse.fields():
        if part.number in {1, 2}:  # values and indices
            _tensor(sparse.inner(part), files)


def _nodes(function: Message, number: int, domains: _Operators, files: dict[str, int]) -> None:
    for node in function.messages(number):
        _node(node, domains, files)


def _node(node: Message, domains: _Operators, files: dict[str, int]) -> None:
    names = {4: "", 7: ""}  # the operator and its domain
    offset = 0
    for field in node.fields():
        if field.number in names:
            names[field.number], offset = node.text(field), field.offset
        elif field.number == 5:
            attribute = node.inner(field)
            for part in attribute.fields():
                if part.number in {6, 11}:  # a graph, several graphs
                    _graph(attribute.inner(part), domains, files)
                elif part.number in {5, 10}:  # a tensor, several tensors
                    _tensor(attribute.inner(part), files)
                elif part.number in {22, 23}:
                    _sparse(attribute.inner(part), files)
    domains.setdefault((names[7], names[4]), offset)


def _tensor(tensor: Message, files: dict[str, int]) -> None:
    for field in tensor.fields():
        if field.number == 13:
            entry = tensor.inner(field)
            found = {part.number: entry.text(part) for part in entry.fields() if part.number < 3}
            if found.get(1) == "location":
                files.setdefault(found.get(2, ""), field.offset)


def saved_model_concerns(source: Source) -> Iterator[Concern]:
    """What the operators of a SavedModel reach.

    Raises:
        FormatError: The file is no SavedModel, or is damaged.
    """
    model = Message(source, 0, source.size, Budget())
    operators: dict[str, int] = {}
    for meta_graph in model.messages(2):
        for graph in meta_graph.messages(2):
            yield from _scope(graph, 1, operators)
            for library in graph.messages(2):
                for function in library.messages(1):
                    yield from _scope(function, 3, operators)
    for name, offset in sorted(operators.items()):
        if name in _TF_ACTS or "PyFunc" in name:
            message = (
                f"the operator {quote(name, 100)} calls Python, or reaches files or the network"
            )
            yield Concern("acts", "tensorflow-operator", message, offset)
        elif name not in TENSORFLOW_OPERATORS:
            message = f"the operator {quote(name, 100)} is not known to be harmless"
            yield Concern("unknown", "tensorflow-operator", message, offset)


class _Node(NamedTuple):
    """One node of a graph: its operator, and the names of the nodes that its inputs come from."""

    operator: str
    inputs: list[str]
    offset: int


def _scope(scope: Message, number: int, operators: dict[str, int]) -> Iterator[Concern]:
    """Note the operators of a graph or function, whose nodes are the fields called `number`.

    Yields what is written to a place that the graph chooses itself, and not its caller.
    """
    nodes: dict[str, _Node] = {}
    for each in scope.messages(number):
        name, node = _read_node(each)
        nodes[name] = node
        operators.setdefault(node.operator, node.offset)
    writers = [node for node in nodes.values() if node.operator in _WRITERS]
    chosen = _chosen(nodes) if writers else set()
    for node in writers:
        for place in node.inputs[: _WRITERS[node.operator]]:
            if place in chosen:
                message = (
                    f"the operator {quote(node.operator)} writes to a place that the graph chooses"
                )
                yield Concern("acts", "tensorflow-operator", message, node.offset)


def _read_node(message: Message) -> tuple[str, _Node]:
    name, operator, inputs, offset = "", "", [], 0
    for field in message.fields():
        if field.number == 1:
            name = message.text(field)
        elif field.number == 2:
            operator, offset = message.text(field), field.offset
        elif field.number == 3 and not (text := message.text(field)).startswith("^"):
            inputs.append(text.partition(":")[0])  # the others only come before it
    return name, _Node(operator, inputs, offset)


def _chosen(nodes: dict[str, _Node]) -> set[str]:
    """Names of the nodes that give a text whose beginning the graph chooses itself.

    What is no node is an argument of the function: like a placeholder, it comes from the caller. Linear in
    the inputs, however many writers ask.
    """
    users: dict[str, list[str]] = {}
    pending = []
    for name, node in nodes.items():
        if node.operator in _GIVEN:
            continue
        if node.operator not in _JOINING or not node.inputs:
            pending.append(name)
            continue
        for place in node.inputs if node.operator == "Pack" else node.inputs[:1]:
            users.setdefault(place, []).append(name)
    found = set(pending)
    while pending:
        reached = set(users.get(pending.pop(), ())) - found
        found |= reached
        pending += reached
    return found
