"""CycloneDX 1.6: the candidate as a component of a bill of materials, with what the audit found.

Component, digests, pedigree and vulnerability are made by cyclonedx-python-lib. It has no classes
for model cards and declarations, so these two are added to its JSON; the whole is held against the
official schema, which the library brings, before it is written. CycloneDX Specification 1.6
(ECMA-424).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

from bdaudit.errors import ConfigError, RecordError
from bdaudit.records import AuditRecord, Outcome, Verdict
from bdaudit.records.summary import Figure, list_figures, release_of
from bdaudit.report.evidence import (
    LEFT_OUT,
    action_of,
    backdoor_name,
    backdoor_words,
    identifier,
    identity_of,
    judged_audit,
    model_name,
    moment,
    product_of,
    slice_of,
    status_of,
)
from bdaudit.report.wording import AnyRecord, gist_of, not_proved

__all__ = ["merge", "render"]

_OLDEST = (1, 6)
_PREFIX = "bdaudit:"
_PATCH = "The original was put through a defence, whose kind the record does not say."


def render(record: AnyRecord) -> str:
    """Write an audit as a bill of materials of one component.

    Raises:
        RecordError: The record is not of an audit, or was not judged.
        ConfigError: cyclonedx-python-lib is not installed.
    """
    audit, verdict = judged_audit(record, "a bill of materials")
    bom = _own(audit, verdict)
    _validate(bom, "the bill of materials that was made")
    return _written(bom)


def merge(record: AnyRecord, existing: Any, source: str) -> str:
    """Put an audit into a bill of materials, the rest of which stays as it is.

    The candidate is found among its components by the digest of one of its files, or by an earlier
    audit's reference, and gets what it lacks; otherwise it is added. What an earlier audit of the
    same candidate said is replaced.

    Args:
        record: The audit.
        existing: The bill, parsed.
        source: Where it is from, for messages.

    Raises:
        RecordError: As for `render`; or the bill is older than CycloneDX 1.6, which has no
            declarations, or does not satisfy the schema of its version.
        ConfigError: cyclonedx-python-lib is not installed.
    """
    audit, verdict = judged_audit(record, "a bill of materials")
    if not isinstance(existing, dict) or existing.get("bomFormat") != "CycloneDX":
        raise RecordError(f"{source}: expected a CycloneDX bill of materials in JSON")
    if _version_of(existing) < _OLDEST:
        raise RecordError(
            f"{source}: CycloneDX {existing.get('specVersion')!r} has no place for a verdict; "
            "expected 1.6 or later: convert it first, with cyclonedx-cli convert "
            "--output-version v1_6"
        )
    _validate(existing, source)
    own = _own(audit, verdict)
    made = own["components"][0]
    bom = json.loads(json.dumps(existing))  # a deep copy of plain JSON
    found = next((c for c in _components(bom) if _is_candidate(c, audit)), None)
    if found is None:
        bom.setdefault("components", []).append(made)
        reference = made["bom-ref"]
    else:
        if found["type"] != made["type"]:
            raise RecordError(
                f"{source}: its component {found.get('name')!r} has the digest of the candidate, "
                f"but is a {found['type']}; expected a machine-learning-model"
            )
        reference = found.setdefault("bom-ref", made["bom-ref"])
        _complete(found, made)
    own = _pointing_to(own, made["bom-ref"], reference)
    for key in ("vulnerabilities",):
        kept = [x for x in bom.get(key, []) if not _is_replaced(x.get("bom-ref"), own[key])]
        bom[key] = [*kept, *own[key]]
    _put(bom.setdefault("declarations", {}), own["declarations"])
    _put(bom.setdefault("definitions", {}), own["definitions"])
    if bom != existing:
        bom["version"] = int(existing.get("version", 1)) + 1
    _validate(bom, f"{source}, with the audit in it")
    return _written(bom)


def _written(bom: dict[str, Any]) -> str:
    return json.dumps(bom, indent=2, allow_nan=False) + "\n"


def _own(audit: AuditRecord, verdict: Verdict) -> dict[str, Any]:
    """Make a bill of the candidate alone."""
    bom: dict[str, Any] = json.loads(_by_the_library(audit, verdict))
    (component,) = bom["components"]
    component["modelCard"] = _model_card(audit)
    bom["declarations"], bom["definitions"] = _declarations(audit, verdict)
    return bom


def _by_the_library(audit: AuditRecord, verdict: Verdict) -> str:
    bom_model, component_model = _load("model.bom"), _load("model.component")
    model, vulnerabilities = _load("model"), _load("model.vulnerability")
    analysis, issue = _load("model.impact_analysis"), _load("model.issue")
    output = _load("output.json")
    purl = importlib.import_module("packageurl").PackageURL.from_string(product_of(audit))

    def digests(role: str) -> list[Any]:
        return [
            model.HashType(alg=model.HashAlgorithm.SHA_256, content=digest)
            for digest in dict.fromkeys(f.sha256 for f in audit.files_of(role))
        ]

    kind = component_model.ComponentType.MACHINE_LEARNING_MODEL
    files = audit.files_of("defended")
    ancestors = [
        component_model.Component(
            type=kind,
            name="original",
            description="The model the defence started from, in which the backdoor works.",
            bom_ref=f"{_PREFIX}original:{_digest_over('original', audit)}",
            hashes=digests("original") if len(digests("original")) == 1 else [],
            components=_files(component_model, model, audit, "original"),
        )
    ]
    patch = component_model.Patch(
        type=component_model.PatchClassification.UNOFFICIAL,
        resolves=[
            issue.IssueType(
                type=issue.IssueClassification.SECURITY,
                id=backdoor_name(audit),
                name=backdoor_name(audit),
                description=_PATCH,
            )
        ],
    )
    component = component_model.Component(
        type=kind,
        name=model_name(audit),
        bom_ref=_reference(audit),
        purl=purl,
        hashes=digests("defended") if len(files) == 1 else [],
        components=_files(component_model, model, audit, "defended") if len(files) > 1 else [],
        pedigree=component_model.Pedigree(
            ancestors=ancestors, patches=[patch], notes="Original and defended model of one audit."
        ),
        properties=[
            model.Property(name=f"{_PREFIX}{key}", value=value)
            for key, value in _properties(audit, verdict)
        ],
    )
    state = {
        "affected": analysis.ImpactAnalysisState.EXPLOITABLE,
        "not_affected": analysis.ImpactAnalysisState.NOT_AFFECTED,
        "under_investigation": analysis.ImpactAnalysisState.IN_TRIAGE,
    }[status_of(verdict)]
    affected = status_of(verdict) == "affected"
    vulnerability = vulnerabilities.Vulnerability(
        bom_ref=f"{_PREFIX}vulnerability:{backdoor_name(audit)}:{identity_of(audit)}",
        id=backdoor_name(audit),
        source=vulnerabilities.VulnerabilitySource(name="bdaudit"),
        description=backdoor_words(audit),
        cwes=[912, 1039] if verdict.outcome == "dormant" else [912],
        recommendation=action_of(verdict) if affected else None,
        analysis=vulnerabilities.VulnerabilityAnalysis(
            state=state,
            # None of the fixed justifications says "measured, and no more than innocents do".
            detail=f"{verdict.outcome}: {verdict.why}",
            last_updated=audit.created,
        ),
        affects=[vulnerabilities.BomTarget(ref=_reference(audit))],
    )
    bom = bom_model.Bom(
        components=[component],
        vulnerabilities=[vulnerability],
        serial_number=identifier(identity_of(audit), moment(audit)),
        metadata=bom_model.BomMetaData(
            timestamp=audit.created,
            tools=_load("model.tool").ToolRepository(
                components=[
                    component_model.Component(
                        type=component_model.ComponentType.APPLICATION,
                        name="bdaudit",
                        version=audit.environment.bdaudit,
                    )
                ]
            ),
        ),
    )
    text: str = output.JsonV1Dot6(bom).output_as_string()
    return text


def _files(component_model: Any, model: Any, audit: AuditRecord, role: str) -> list[Any]:
    """The files of a model that consists of several, a component each."""
    files = {file.sha256: file for file in audit.files_of(role)}
    if len(files) < 2:
        return []
    return [
        component_model.Component(
            type=component_model.ComponentType.FILE,
            name=file.path,
            bom_ref=f"{_PREFIX}file:{file.sha256}",
            hashes=[model.HashType(alg=model.HashAlgorithm.SHA_256, content=file.sha256)],
        )
        for file in files.values()
    ]


def _digest_over(role: str, audit: AuditRecord) -> str:
    known = [file.sha256 for file in audit.files_of(role)]
    return str(identifier(role, *sorted(known), identity_of(audit)))


def _properties(audit: AuditRecord, verdict: Verdict) -> Iterator[tuple[str, str]]:
    yield "verdict", verdict.outcome
    yield "release", release_of(audit)
    yield "policy-sha256", verdict.policy_sha256 or "unknown"
    yield "trigger-sha256", audit.trigger.sha256
    yield "images-sha256", audit.data.sha256
    for model in audit.models_with("defended"):
        if model.weights_sha256 is not None:
            yield "weights-sha256", model.weights_sha256
    yield "left-out", LEFT_OUT


def _model_card(audit: AuditRecord) -> dict[str, Any]:
    considerations = [
        "Not proved by this audit, whatever its verdict: " + line for line in not_proved(audit)
    ]
    model = next(iter(audit.models_with("defended")), None)
    return {
        "bom-ref": f"{_PREFIX}card:{identity_of(audit)}",
        "modelParameters": {
            "task": "image classification",
            **({} if model is None else {"modelArchitecture": model.arch}),
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [_metric(figure) for figure in list_figures(audit)]
        },
        "considerations": {
            "technicalLimitations": considerations,
            "ethicalConsiderations": [
                {
                    "name": f"Backdoor, {audit.verdict.outcome}: {gist_of(audit.verdict)}",
                    "mitigationStrategy": action_of(audit.verdict)
                    if status_of(audit.verdict) == "affected"
                    else "Audit again after every change of the weights.",
                }
            ]
            if audit.verdict is not None
            else [],
        },
    }


def _metric(figure: Figure) -> dict[str, Any]:
    bounds = {"lowerBound": figure.low, "upperBound": figure.high}
    known = {key: f"{value:.6g}" for key, value in bounds.items() if value is not None}
    return {
        "type": figure.name,
        "value": f"{figure.value:.6g}",
        "slice": slice_of(figure),
        **({"confidenceInterval": known} if known else {}),
    }


def _declarations(audit: AuditRecord, verdict: Verdict) -> tuple[dict[str, Any], dict[str, Any]]:
    """The verdict as a claim about the component, its figures as evidence, and what is claimed."""
    about = f"{identity_of(audit)}:{backdoor_name(audit)}"
    reference = {part: f"{_PREFIX}{part}:{about}" for part in ("claim", "evidence", "attestation")}
    expected: Outcome = "active" if verdict.wanted else "removed"
    requirement = f"{_PREFIX}requirement:backdoor-{expected}"
    figures = [
        {
            "name": f"{figure.name}: {slice_of(figure)}",
            "contents": {
                "attachment": {
                    "contentType": "application/json",
                    "content": json.dumps(figure.model_dump(mode="json", exclude_none=True)),
                }
            },
        }
        for figure in list_figures(audit)
    ]
    says = verdict.outcome == expected
    claims = {"claims": [reference["claim"]]} if says else {"counterClaims": [reference["claim"]]}
    mapped: dict[str, Any] = {"requirement": requirement, **claims}
    if verdict.outcome != "inconclusive":
        mapped["conformance"] = {"score": 1.0 if says else 0.0, "rationale": verdict.why}
    declarations = {
        "assessors": [
            {
                "bom-ref": f"{_PREFIX}assessor",
                "thirdParty": False,
                "organization": {"name": "bdaudit"},
            }
        ],
        "attestations": [
            {
                "summary": f"{verdict.outcome}: {verdict.why}",
                "assessor": f"{_PREFIX}assessor",
                "map": [mapped],
            }
        ],
        "claims": [
            {
                "bom-ref": reference["claim"],
                "target": _reference(audit),
                "predicate": f"The backdoor {backdoor_name(audit)} is {verdict.outcome}: "
                f"{gist_of(verdict)}.",
                "reasoning": verdict.why,
                "evidence": [reference["evidence"]],
            }
        ],
        "evidence": [
            {
                "bom-ref": reference["evidence"],
                "propertyName": f"{_PREFIX}figures",
                "description": f"Figures of the audit; {LEFT_OUT}.",
                "data": figures,
                "created": moment(audit),
            }
        ],
    }
    definitions = {
        "standards": [
            {
                "bom-ref": f"{_PREFIX}standard",
                "name": "bdaudit verdict",
                "description": "Requirements that an audit by bdaudit speaks of.",
                "requirements": [
                    {
                        "bom-ref": requirement,
                        "identifier": "backdoor-removed",
                        "title": "The named backdoor is gone, and not only asleep.",
                    }
                ],
            }
        ]
    }
    return declarations, definitions


def _reference(audit: AuditRecord) -> str:
    return f"{_PREFIX}model:{identity_of(audit)}"


# -- merging ---------------------------------------------------------------------------------------


def _version_of(bom: dict[str, Any]) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in str(bom.get("specVersion")).split("."))
    except ValueError:
        return (0,)


def _components(bom: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every component, those inside others as well."""
    waiting = [*bom.get("components", [])]
    main = bom.get("metadata", {}).get("component")
    if main is not None:
        waiting.insert(0, main)
    while waiting:
        component = waiting.pop(0)
        yield component
        waiting += component.get("components", [])


def _is_candidate(component: dict[str, Any], audit: AuditRecord) -> bool:
    if component.get("bom-ref") == _reference(audit):
        return True
    files = {file.sha256 for file in audit.files_of("defended")}
    if component["type"] == "file" or len(files) != 1:
        return False
    return any(
        h["alg"] == "SHA-256" and h["content"].lower() in files for h in component.get("hashes", [])
    )


def _complete(found: dict[str, Any], made: dict[str, Any]) -> None:
    """Give a component what the audit says of it, and leave the rest as it was."""
    for key in ("hashes", "pedigree", "purl", "components"):
        if key in made:
            found.setdefault(key, made[key])
    foreign = [p for p in found.get("properties", []) if not p["name"].startswith(_PREFIX)]
    found["properties"] = [*foreign, *made["properties"]]
    card, own = found.setdefault("modelCard", {}), made["modelCard"]
    card.setdefault("modelParameters", own["modelParameters"])
    names = {metric["type"] for metric in own["quantitativeAnalysis"]["performanceMetrics"]}
    analysis = card.setdefault("quantitativeAnalysis", {})
    others = [
        metric
        for metric in analysis.get("performanceMetrics", [])
        if metric.get("type") not in names
    ]
    analysis["performanceMetrics"] = [
        *others,
        *own["quantitativeAnalysis"]["performanceMetrics"],
    ]
    considerations = card.setdefault("considerations", {})
    for key, entries in own["considerations"].items():
        kept = [x for x in considerations.get(key, []) if not _is_ours(x)]
        considerations[key] = [*kept, *entries]


def _is_ours(entry: Any) -> bool:
    text = entry.get("name", "") if isinstance(entry, dict) else str(entry)
    return text.startswith(("Not proved by this audit", "Backdoor, "))


def _is_replaced(reference: str | None, own: list[dict[str, Any]]) -> bool:
    return reference in {entry["bom-ref"] for entry in own}


def _put(there: dict[str, Any], own: dict[str, Any]) -> None:
    """Put lists of entries into those that are there, in place of the ones they replace."""
    for key, entries in own.items():
        kept = [x for x in there.get(key, []) if not _replaces(entries, x)]
        there[key] = [*kept, *entries]


def _replaces(entries: list[dict[str, Any]], old: dict[str, Any]) -> bool:
    for new in entries:
        if "bom-ref" in new and new["bom-ref"] == old.get("bom-ref"):
            return True
        if "map" in new and _claims(new) == _claims(old):
            return True
    return False


def _claims(attestation: dict[str, Any]) -> list[str]:
    """Attestations have no reference of their own; they are known by their claims."""
    return [
        claim
        for part in attestation.get("map", [])
        for claim in (*part.get("claims", []), *part.get("counterClaims", []))
    ]


def _pointing_to(own: dict[str, Any], made: str, reference: str) -> dict[str, Any]:
    """Let claim and vulnerability point to the component as the bill calls it."""
    for claim in own["declarations"]["claims"]:
        claim["target"] = reference if claim["target"] == made else claim["target"]
    for vulnerability in own["vulnerabilities"]:
        vulnerability["affects"] = [
            {**target, "ref": reference if target["ref"] == made else target["ref"]}
            for target in vulnerability["affects"]
        ]
    return own


def _validate(bom: dict[str, Any], what: str) -> None:
    schema, validation = _load("schema"), _load("validation.json")
    version = next(
        (v for v in schema.SchemaVersion if v.to_version() == bom.get("specVersion")), None
    )
    if version is None:
        raise RecordError(
            f"{what}: CycloneDX {bom.get('specVersion')!r} is a version that the installed "
            "cyclonedx-python-lib does not know"
        )
    fault = validation.JsonStrictValidator(version).validate_str(json.dumps(bom))
    if fault is not None:
        gist = str(fault.data.message if hasattr(fault.data, "message") else fault.data)
        raise RecordError(f"{what}: is not CycloneDX {bom['specVersion']}: {gist[:300]}")


def _load(name: str) -> Any:
    try:
        return importlib.import_module(f"cyclonedx.{name}")
    except ImportError as error:
        raise ConfigError(
            "CycloneDX needs cyclonedx-python-lib; pip install 'bdaudit[evidence]'"
        ) from error
