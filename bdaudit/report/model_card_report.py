"""A section for a model's README on the Hugging Face Hub, and `model-index` figures above it.

The section stands between two markers and is replaced whole; what stands outside of them is kept,
and so are figures of the metadata that are not ours. Written twice it is written once. The
metadata's form is that of huggingface_hub, which makes the entries.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from typing import Any

from bdaudit.errors import ConfigError, RecordError, reading
from bdaudit.records import AuditRecord, Verdict
from bdaudit.records.summary import Figure, list_figures
from bdaudit.report.evidence import (
    LEFT_OUT,
    action_of,
    backdoor_name,
    judged_audit,
    model_name,
    slice_of,
    status_of,
)
from bdaudit.report.untrusted import markdown
from bdaudit.report.wording import AnyRecord, gist_of, not_proved

__all__ = ["BEGIN", "END", "merge", "render"]

BEGIN = "<!-- bdaudit: begin; written by bdaudit report, edits are lost -->"
END = "<!-- bdaudit: end -->"
_FENCE = "---\n"
_OURS = " (bdaudit)"
_TITLES = {
    "clean_acc": "Clean accuracy",
    "asr": "Attack success rate, trigger alone",
    "clean_target_rate": "Clean images taken to the target",
    "reactivated_asr": "Re-activated attack success rate",
    "lift": "Lift over the strongest control",
    "bec": "Backdoor existence coefficient",
}


def render(record: AnyRecord) -> str:
    """Write a model card of nothing but the audit.

    Raises:
        RecordError: The record is not of an audit, or was not judged.
        ConfigError: huggingface_hub or ruamel.yaml is not installed.
    """
    return merge(record, "", "the card")


def merge(record: AnyRecord, existing: str, source: str) -> str:
    """Put an audit into a model card.

    Args:
        record: The audit.
        existing: The card as it is.
        source: Where it is from, for messages.

    Raises:
        RecordError: As for `render`; or the card has one marker without the other, or metadata
            that are no YAML table.
        ConfigError: As for `render`.
    """
    audit, verdict = judged_audit(record, "a model card")
    head, body = _split(existing, source)
    return f"{_FENCE}{_metadata(head, audit, source)}{_FENCE}{_body(body, audit, verdict, source)}"


def _split(text: str, source: str) -> tuple[str, str]:
    """Part the metadata from the text."""
    if not text.startswith(_FENCE):
        return "", text
    if text.startswith(2 * _FENCE):
        return "", text[2 * len(_FENCE) :]
    head, fence, body = text[len(_FENCE) :].partition("\n---\n")
    if not fence:
        if text.endswith("\n---"):
            return text[len(_FENCE) : -len("---")], ""
        raise RecordError(f"{source}: its metadata begin with --- and do not end with a second one")
    return f"{head}\n", body


# -- the section -----------------------------------------------------------------------------------


def _body(body: str, audit: AuditRecord, verdict: Verdict, source: str) -> str:
    section = f"{BEGIN}\n{_section(audit, verdict)}{END}"
    if (body.count(BEGIN), body.count(END)) == (0, 0):
        before = body.rstrip("\n")
        return f"{before}\n\n{section}\n" if before else f"\n{section}\n"
    begin, end = body.find(BEGIN), body.find(END)
    if (body.count(BEGIN), body.count(END)) != (1, 1) or end < begin:
        raise RecordError(
            f"{source}: expected the markers of the section once each and in order; remove what is "
            f"left of them ({BEGIN} and {END})"
        )
    return f"{body[:begin]}{section}{body[end + len(END) :]}"


def _section(audit: AuditRecord, verdict: Verdict) -> str:
    return "".join(f"{line}\n" for line in _lines(audit, verdict))


def _lines(audit: AuditRecord, verdict: Verdict) -> Iterator[str]:
    yield "## Backdoor audit"
    yield ""
    yield f"**{verdict.outcome}**: {gist_of(verdict)}. {markdown(verdict.why)}"
    yield ""
    if status_of(verdict) == "affected":
        yield action_of(verdict)
        yield ""
    for warning in (*verdict.release_reasons, *verdict.warnings):
        yield f"- **Note:** {markdown(warning)}"
    if verdict.release_reasons or verdict.warnings:
        yield ""
    yield "| figure | on | value | 95% interval or bounds |"
    yield "|---|---|---|---|"
    for figure in list_figures(audit):
        yield (
            f"| {_TITLES[figure.name]} | {markdown(slice_of(figure))} | {figure.value:.3f} "
            f"| {_bounds(figure)} |"
        )
    yield ""
    yield "What this does not prove, whatever the verdict:"
    yield ""
    for line in not_proved(audit):
        yield f"- {markdown(line)}"
    yield ""
    files = audit.files_of("defended")
    for file in files:
        yield f"- audited file: {markdown(file.path)}, sha256 {markdown(file.sha256)}"
    if not files:
        yield "- audited file: unknown; the model was only queried, or handed over in memory"
    yield f"- backdoor: {markdown(backdoor_name(audit))}"
    yield (
        f"- made by bdaudit {markdown(audit.environment.bdaudit)} on "
        f"{audit.created.date().isoformat()}; {markdown(LEFT_OUT)}"
    )


def _bounds(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return "-"
    return f"{figure.low:.3f} to {figure.high:.3f}"


# -- the metadata ----------------------------------------------------------------------------------


def _metadata(head: str, audit: AuditRecord, source: str) -> str:
    """Put our figures into the metadata, in place of those an earlier audit left."""
    yaml = _load("ruamel.yaml").YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 1 << 16
    with reading(source, RecordError):
        table = yaml.load(head) if head.strip() else {}
    table = {} if table is None else table
    if not isinstance(table, dict):
        raise RecordError(f"{source}: expected its metadata to be a table, got {type(table)}")
    (made,) = _model_index(audit)
    index = table.get("model-index")
    if index is None:
        table["model-index"] = [made]
    elif (
        not isinstance(index, list)
        or not index
        or not isinstance(index[0], dict)
        or not isinstance(index[0].get("results", []), list)
    ):
        raise RecordError(f"{source}: expected model-index to be a list of models with results")
    else:
        first = index[0]
        kept = [result for result in first.get("results", []) if not _is_ours(result)]
        first["results"] = [*kept, *made["results"]]
        first.setdefault("name", made["name"])
    stream = io.StringIO()
    yaml.dump(table, stream)
    return stream.getvalue()


def _is_ours(result: Any) -> bool:
    metrics = result.get("metrics") if isinstance(result, dict) else None
    if not isinstance(metrics, list) or not metrics:
        return False
    return all(
        isinstance(metric, dict) and str(metric.get("name", "")).endswith(_OURS)
        for metric in metrics
    )


def _model_index(audit: AuditRecord) -> list[dict[str, Any]]:
    data = _load("huggingface_hub.repocard_data")
    results = [
        data.EvalResult(
            task_type="image-classification",
            dataset_type="held-out",
            dataset_name=f"held-out images, sha256 {audit.data.sha256[:12]}",
            metric_type="accuracy" if figure.name == "clean_acc" else figure.name,
            metric_name=f"{_TITLES[figure.name]}: {slice_of(figure)}{_OURS}",
            metric_value=round(figure.value, 6),
        )
        for figure in list_figures(audit)
    ]
    index: list[dict[str, Any]] = data.eval_results_to_model_index(model_name(audit), results)
    return index


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            "model cards need huggingface_hub and ruamel.yaml; pip install 'bdaudit[evidence]'"
        ) from error
