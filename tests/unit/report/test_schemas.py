"""Every JSON document of a report against its published schema, with a validator that is not ours."""

import json

import jsonschema
import pytest

from tunescope.analysis.documents import DOCUMENTS, json_schema

from .conftest import Published

WRITTEN_BY_PUBLISH = set(DOCUMENTS) - {"built_from"}


def check(document: object, schema: dict) -> list[str]:
    validator = jsonschema.Draft202012Validator
    validator.check_schema(schema)
    return [e.message for e in validator(schema).iter_errors(document)]


@pytest.mark.parametrize("name", sorted(WRITTEN_BY_PUBLISH))
def test_documents_keep_to_the_schema_beside_them(published: Published, name: str) -> None:
    schema = json.loads((published.root / "results" / "schemas" / f"{name}.schema.json").read_text())
    assert schema == json_schema(name) and schema["additionalProperties"] is False
    document = json.loads((published.root / DOCUMENTS[name][0]).read_text())
    assert check(document, schema) == []
    key = schema["required"][0]
    assert check({k: v for k, v in document.items() if k != key}, schema) and check(document | {"other": 1}, schema)


def test_every_json_of_a_report_has_a_schema(published: Published) -> None:
    root = published.root
    found = {str(p.relative_to(root)) for folder in ("results", "analysis") for p in (root / folder).rglob("*.json")}
    named = {path for path, _ in DOCUMENTS.values()}
    assert {p for p in found if not p.startswith("results/schemas/")} <= named
    assert {p.name for p in (root / "results/schemas").iterdir()} == {f"{name}.schema.json" for name in DOCUMENTS}


def test_fields_are_described(published: Published) -> None:
    claim = json_schema("final_analysis_report")["$defs"]["Claim"]["properties"]
    assert "Holm" in claim["p_adjusted"]["description"] and claim["verdict"]["enum"] == ["supported", "contradicted", "inconclusive"]
