"""JSON Schema (draft 2020-12) from the types in `documents`.

``python -m safeweights.reports.schema docs/schema`` writes one file per document; a test compares them.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import types
from typing import (
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from .documents import DOCUMENTS

__all__ = ["file_name", "schema_of", "write"]

_SCALARS = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    types.NoneType: "null",
}


def schema_of(document: Any, *, closed: bool = False) -> dict[str, Any]:
    """The JSON Schema of a document type.

    Args:
        document: One of `documents.DOCUMENTS`.
        closed: Reject keys that the type lacks. Published schemas are open, because later versions may
            add keys, which a consumer must ignore.
    """
    identifier = _identifier(document)
    name, version = identifier.removeprefix("safeweights.").split("/")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:safeweights:schema:{name}:{version}",
        "title": identifier,
        **_object(document, closed=closed),
    }


def file_name(document: Any) -> str:
    """Name of the schema's file, e.g. ``"safeweights.ls-1.json"``."""
    return f"{_identifier(document).replace('/', '-')}.json"


def write(folder: str) -> None:
    """Write every schema into `folder`."""
    for document in DOCUMENTS:
        text = json.dumps(schema_of(document), indent=2) + "\n"
        with open(os.path.join(folder, file_name(document)), "w", encoding="utf-8") as file:
            file.write(text)


def _identifier(document: Any) -> str:
    (identifier,) = get_args(get_type_hints(document)["schema"])
    return str(identifier)


def _object(record: Any, *, closed: bool) -> dict[str, Any]:
    fields = get_type_hints(record, include_extras=True)
    found: dict[str, Any] = {
        "description": inspect.getdoc(record),
        "type": "object",
        "properties": {name: _type(hint, closed=closed) for name, hint in fields.items()},
        "required": list(fields),
    }
    return found | {"additionalProperties": False} if closed else found


def _type(hint: Any, *, closed: bool) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _type(arguments[0], closed=closed) | {"description": arguments[1]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return _union([_type(argument, closed=closed) for argument in arguments])
    if origin is list:
        return {"type": "array", "items": _type(arguments[0], closed=closed)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type(arguments[1], closed=closed)}
    if hint is Any:
        return {}
    if is_typeddict(hint):
        return _object(hint, closed=closed)
    return {"type": _SCALARS[hint]}


def _union(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    if all(set(schema) == {"type"} for schema in schemas):
        return {"type": [schema["type"] for schema in schemas]}
    return {"anyOf": schemas}


if __name__ == "__main__":
    write(sys.argv[1])
