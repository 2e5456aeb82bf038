"""Bills of materials and VEX: valid by the schemas, the same twice, and kept when merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from typer.testing import CliRunner

from bdaudit.cli import app
from bdaudit.errors import ConfigError, RecordError
from bdaudit.records import AuditRecord, to_json
from bdaudit.records.summary import list_figures
from bdaudit.report.evidence import backdoor_name, identity_of, product_of
from bdaudit.report.formats import merge_report, render_report
from bdaudit.report.wording import not_proved
from tests.evidence.audits import (
    FILES,
    active,
    digest,
    dormant,
    inconclusive,
    inputs,
    removed,
)

ONE_FILE = {"candidate.pt": b"all of it"}

# The rules of the official OpenVEX schema (v0.2.0) that a document of ours touches.
_VEX_COMPONENT = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "@id": {"type": "string", "format": "uri"},
        "identifiers": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"purl": {"type": "string"}},
        },
        "hashes": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"sha-256": {"type": "string"}},
        },
        "subcomponents": {"type": "array", "uniqueItems": True},
    },
}
VEX = {
    "type": "object",
    "additionalProperties": False,
    "required": ["@context", "@id", "author", "timestamp", "version", "statements"],
    "properties": {
        "@context": {"type": "string", "format": "uri"},
        "@id": {"type": "string", "format": "uri"},
        "author": {"type": "string"},
        "role": {"type": "string"},
        "timestamp": {"type": "string", "format": "date-time"},
        "last_updated": {"type": "string", "format": "date-time"},
        "version": {"type": "integer", "minimum": 1},
        "tooling": {"type": "string"},
        "statements": {
            "type": "array",
            "uniqueItems": True,
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["vulnerability", "status"],
                "properties": {
                    "@id": {"type": "string", "format": "uri"},
                    "vulnerability": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["name"],
                        "properties": {
                            "name": {"type": "string"},
                            "description": {"type": "string"},
                        },
                    },
                    "timestamp": {"type": "string", "format": "date-time"},
                    "products": {"type": "array", "uniqueItems": True, "items": _VEX_COMPONENT},
                    "status": {"enum": ["not_affected", "affected", "under_investigation"]},
                    "status_notes": {"type": "string"},
                    "impact_statement": {"type": "string"},
                    "action_statement": {"type": "string"},
                },
                "allOf": [
                    {
                        "if": {"properties": {"status": {"const": "not_affected"}}},
                        "then": {"required": ["impact_statement"]},
                    },
                    {
                        "if": {"properties": {"status": {"const": "affected"}}},
                        "then": {"required": ["action_statement"]},
                    },
                ],
            },
        },
    },
}


def bom_of(record: AuditRecord) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(render_report("cyclonedx", record))
    return made


def faults(bom: dict[str, Any]) -> object:
    version = {"1.6": SchemaVersion.V1_6, "1.7": SchemaVersion.V1_7}[bom["specVersion"]]
    return JsonStrictValidator(version).validate_str(json.dumps(bom))


def merged(name: str, record: AuditRecord, existing: object, folder: Path) -> dict[str, Any]:
    path = folder / "existing.json"
    path.write_text(json.dumps(existing))
    made: dict[str, Any] = json.loads(merge_report(name, record, path))
    return made


def later(record: AuditRecord) -> AuditRecord:
    return record.model_copy(update={"created": record.created.replace(year=2027)})


# -- CycloneDX -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [removed, dormant, active, inconclusive])
def test_a_bill_satisfies_the_official_schema(make: Callable[..., AuditRecord]) -> None:
    for files in (FILES, ONE_FILE, {}):
        record = make(inputs=inputs(files) if files else ())
        assert faults(bom_of(record)) is None
        assert render_report("cyclonedx", record) == render_report("cyclonedx", record)


def test_the_check_of_the_schema_can_fail() -> None:
    bom = bom_of(removed())
    bom["components"][0]["modelCard"]["verdict"] = "fine"
    assert faults(bom) is not None


def test_the_component_is_the_model_with_its_digests_and_pedigree() -> None:
    (component,) = bom_of(removed(inputs=inputs(ONE_FILE)))["components"]
    assert component["type"] == "machine-learning-model"
    assert component["hashes"] == [{"alg": "SHA-256", "content": digest(b"all of it")}]
    (ancestor,) = component["pedigree"]["ancestors"]
    assert ancestor["hashes"] == [{"alg": "SHA-256", "content": digest(b"the original")}]
    assert component["pedigree"]["patches"][0]["resolves"][0]["id"] == backdoor_name(removed())
    (sharded,) = bom_of(removed())["components"]
    assert {c["name"]: c["hashes"][0]["content"] for c in sharded["components"]} == {
        name: digest(body) for name, body in FILES.items()
    }


def test_the_card_has_every_figure_with_its_interval_and_every_limit() -> None:
    record = dormant()
    card = bom_of(record)["components"][0]["modelCard"]
    metrics = card["quantitativeAnalysis"]["performanceMetrics"]
    assert {m["type"] for m in metrics} == {
        "clean_acc", "asr", "clean_target_rate", "reactivated_asr", "lift", "bec",
    }  # fmt: skip
    for metric, figure in zip(metrics, list_figures(record), strict=True):
        assert float(metric["value"]) == pytest.approx(figure.value, abs=1e-6)
        bounds = metric["confidenceInterval"]
        assert float(bounds["lowerBound"]) <= float(metric["value"])
        assert float(metric["value"]) <= float(bounds["upperBound"])
    (at,) = (m for m in metrics if m["type"] == "reactivated_asr" and "eps 0.05" in m["slice"])
    assert at["value"] == "0.9"
    limits = card["considerations"]["technicalLimitations"]
    assert all(any(line in limit for limit in limits) for line in not_proved(record))


@pytest.mark.parametrize(
    ("record", "state", "claimed", "score"),
    [
        (removed(), "not_affected", "claims", 1.0),
        (dormant(), "exploitable", "counterClaims", 0.0),
        (active(), "exploitable", "counterClaims", 0.0),
        (inconclusive(), "in_triage", "counterClaims", None),
    ],
)
def test_the_verdict_is_claim_and_status(
    record: AuditRecord, state: str, claimed: str, score: float | None
) -> None:
    bom = bom_of(record)
    (vulnerability,) = bom["vulnerabilities"]
    assert vulnerability["analysis"]["state"] == state
    assert vulnerability["id"] == backdoor_name(record)
    reference = bom["components"][0]["bom-ref"]
    assert [t["ref"] for t in vulnerability["affects"]] == [reference]
    declarations = bom["declarations"]
    (claim,) = declarations["claims"]
    assert record.verdict is not None
    assert claim["target"] == reference
    assert claim["reasoning"] == record.verdict.why
    (entry,) = declarations["attestations"][0]["map"]
    assert entry[claimed] == [claim["bom-ref"]]
    assert entry.get("conformance", {}).get("score") == score
    assert claim["evidence"] == [declarations["evidence"][0]["bom-ref"]]
    assert "left out" in declarations["evidence"][0]["description"]


def existing_bom() -> dict[str, Any]:
    """Somebody's bill: an application with the candidate inside, with a card of its own."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": "urn:uuid:3e671687-395b-41f5-a30f-a58921a69b79",
        "version": 4,
        "metadata": {"component": {"type": "application", "name": "shop", "bom-ref": "shop"}},
        "components": [
            {"type": "library", "name": "numpy", "version": "2.0", "bom-ref": "numpy"},
            {
                "type": "application",
                "name": "service",
                "components": [
                    {
                        "type": "machine-learning-model",
                        "name": "classifier",
                        "bom-ref": "their-model",
                        "hashes": [{"alg": "SHA-256", "content": digest(b"all of it")}],
                        "properties": [{"name": "their:key", "value": "kept"}],
                        "modelCard": {
                            "modelParameters": {"task": "theirs"},
                            "quantitativeAnalysis": {
                                "performanceMetrics": [{"type": "f1", "value": "0.8"}]
                            },
                        },
                    }
                ],
            },
        ],
        "vulnerabilities": [{"id": "CVE-2020-1", "bom-ref": "theirs"}],
        "dependencies": [{"ref": "shop", "dependsOn": ["numpy"]}],
    }


def test_merged_into_a_bill_everything_else_stays(tmp_path: Path) -> None:
    record = dormant(inputs=inputs(ONE_FILE))
    before = existing_bom()
    bom = merged("cyclonedx", record, before, tmp_path)
    assert faults(bom) is None
    assert json.loads((tmp_path / "existing.json").read_text()) == before
    for key in ("serialNumber", "metadata", "dependencies"):
        assert bom[key] == before[key]
    assert bom["version"] == 5
    assert bom["components"][0] == before["components"][0]
    model = bom["components"][1]["components"][0]
    assert len(bom["components"]) == 2, "found by its digest, and not added again"
    assert (model["name"], model["bom-ref"]) == ("classifier", "their-model")
    assert {"name": "their:key", "value": "kept"} in model["properties"]
    assert model["modelCard"]["modelParameters"] == {"task": "theirs"}
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert metrics[0] == {"type": "f1", "value": "0.8"}
    assert len(metrics) == 1 + len(list_figures(record))
    assert bom["vulnerabilities"][0] == before["vulnerabilities"][0]
    assert bom["vulnerabilities"][1]["affects"] == [{"ref": "their-model"}]
    assert bom["declarations"]["claims"][0]["target"] == "their-model"


def test_merged_twice_it_is_merged_once_and_a_new_audit_replaces(tmp_path: Path) -> None:
    record = dormant(inputs=inputs(ONE_FILE))
    once = merged("cyclonedx", record, existing_bom(), tmp_path)
    assert merged("cyclonedx", record, once, tmp_path) == once
    again = later(removed(inputs=inputs(ONE_FILE)))
    bom = merged("cyclonedx", again, once, tmp_path)
    assert faults(bom) is None
    states = [v["analysis"]["state"] for v in bom["vulnerabilities"] if "analysis" in v]
    assert states == ["not_affected"]
    assert len(bom["declarations"]["claims"]) == len(bom["declarations"]["attestations"]) == 1
    assert "removed" in bom["declarations"]["claims"][0]["predicate"]


def test_a_model_that_is_not_there_is_added(tmp_path: Path) -> None:
    record = removed()  # two files, which no component of theirs has
    bom = merged("cyclonedx", record, existing_bom(), tmp_path)
    assert faults(bom) is None
    assert bom["components"][-1]["bom-ref"] == f"bdaudit:model:{identity_of(record)}"
    other = removed(inputs=inputs({"x.pt": b"another"}))
    both = merged("cyclonedx", other, bom, tmp_path)
    assert faults(both) is None
    assert len(both["components"]) == len(bom["components"]) + 1
    assert len(both["declarations"]["claims"]) == 2


@pytest.mark.parametrize(
    ("existing", "said"),
    [
        ({"bomFormat": "SPDX"}, "expected a CycloneDX"),
        ([], "expected a CycloneDX"),
        ({"bomFormat": "CycloneDX", "specVersion": "1.4"}, "no place for a verdict"),
        ({"bomFormat": "CycloneDX", "specVersion": "one"}, "no place for a verdict"),
        ({"bomFormat": "CycloneDX", "specVersion": "9.9"}, "does not know"),
        ({"bomFormat": "CycloneDX", "specVersion": "1.6", "components": 3}, "is not CycloneDX"),
    ],
)
def test_what_is_no_bill_is_refused(existing: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=said):
        merged("cyclonedx", removed(), existing, tmp_path)


# -- OpenVEX ---------------------------------------------------------------------------------------


def vex_of(record: AuditRecord) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(render_report("openvex", record))
    return made


def check_vex(document: dict[str, Any]) -> None:
    jsonschema.validate(
        document, VEX, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )


@pytest.mark.parametrize(
    ("record", "status"),
    [
        (removed(), "not_affected"),
        (dormant(), "affected"),
        (active(), "affected"),
        (inconclusive(), "under_investigation"),
        (removed(inputs=inputs(ONE_FILE)), "not_affected"),
        (removed(inputs=()), "not_affected"),
    ],
)
def test_the_status_follows_the_verdict(record: AuditRecord, status: str) -> None:
    document = vex_of(record)
    check_vex(document)
    (statement,) = document["statements"]
    assert statement["status"] == status
    assert record.verdict is not None
    assert record.verdict.why in statement["status_notes"]
    assert statement["vulnerability"]["name"] == backdoor_name(record)
    assert record.trigger.sha256 in statement["vulnerability"]["description"]
    assert statement["products"][0]["@id"] == product_of(record)


def test_the_check_of_a_vex_document_can_fail() -> None:
    document = vex_of(dormant())
    del document["statements"][0]["action_statement"]
    with pytest.raises(jsonschema.ValidationError):
        check_vex(document)


def test_the_same_backdoor_has_the_same_name_in_every_model() -> None:
    assert backdoor_name(removed()) == backdoor_name(dormant(inputs=inputs(ONE_FILE)))
    other = removed()
    trigger = other.trigger.model_copy(update={"target_label": 3})
    assert backdoor_name(other.model_copy(update={"trigger": trigger})) != backdoor_name(other)


def test_after_another_audit_the_newer_statement_holds(tmp_path: Path) -> None:
    first = vex_of(dormant())
    both = merged("openvex", later(removed()), first, tmp_path)
    check_vex(both)
    assert both["@id"] == first["@id"], "the same backdoor in the same model"
    assert both["version"] == 2
    assert [s["status"] for s in both["statements"]] == ["affected", "not_affected"]
    newest = max(both["statements"], key=lambda s: s["timestamp"])
    assert newest["status"] == "not_affected"
    assert both["last_updated"] == newest["timestamp"]
    assert merged("openvex", later(removed()), both, tmp_path) == both
    with pytest.raises(RecordError, match="expected an OpenVEX document"):
        merged("openvex", removed(), {"statements": []}, tmp_path)


# -- by the command line ---------------------------------------------------------------------------


def test_the_command_merges_and_leaves_the_file_it_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.json").write_text(to_json(dormant(inputs=inputs(ONE_FILE))))
    text = json.dumps(existing_bom())
    Path("bom.json").write_text(text)

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["report", "r.json", "--quiet", *arguments])
        return result.exit_code, result.stderr

    assert run("--report", "cyclonedx=new.json", "--merge", "bom.json")[0] == 1
    assert Path("bom.json").read_text() == text
    assert len(json.loads(Path("new.json").read_text())["components"]) == 2
    assert run("--report", "html=x.html", "--merge", "bom.json")[0] == 2
    code, said = run(
        "--report", "cyclonedx=a", "--report", "openvex=b", "--merge", "bom.json"
    )  # fmt: skip
    assert code == 2
    assert "exactly one" in said
    for wrong in ("nowhere.json", "r.json"):
        code, said = run("--report", "cyclonedx=b.json", "--merge", wrong)
        assert code == 4, said
        assert wrong in said
    assert not Path("b.json").exists()


def test_other_formats_are_not_merged(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not merged"):
        merge_report("html", removed(), tmp_path / "x")
