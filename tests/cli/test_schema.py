from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from safeweights.reports.documents import DOCUMENTS
from safeweights.reports.schema import file_name, schema_of, write

FOLDER = Path(__file__).parents[2] / "docs" / "schema"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.__name__)
def test_published_schemas_are_those_of_the_records(document):
    schema = schema_of(document)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads((FOLDER / file_name(document)).read_text()) == schema, (
        "run: python -m safeweights.reports.schema docs/schema"
    )


def test_no_schema_is_left_of_a_document_that_is_gone(tmp_path):
    write(str(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {path.name for path in FOLDER.glob("*.json")}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.__name__)
def test_schemas_refuse_what_is_no_such_document(document):
    schema = schema_of(document)
    for wrong in ({}, [], {"schema": schema["title"]}, {"schema": "safeweights.other/1"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
