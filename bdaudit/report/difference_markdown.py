"""A difference between two audits as Markdown, for a pull request or a job's summary."""

from __future__ import annotations

from bdaudit.records.difference import DifferenceRecord
from bdaudit.report.difference import (
    attack_line,
    changed_inputs,
    figure_rows,
    gist,
    input_value,
    limits_line,
    same_inputs,
    side_line,
)
from bdaudit.report.untrusted import markdown, shown

__all__ = ["render"]

_SIGNS = {"worse": ":x:", "better": ":white_check_mark:", "same": ":heavy_minus_sign:"}


def render(made: DifferenceRecord) -> str:
    """Write `made` as a few lines of GitHub- and GitLab-flavoured Markdown."""
    made = shown(made)
    attack = attack_line(made)
    lines = [
        f"### {_SIGNS[made.change]} bdaudit diff: {markdown(gist(made))}",
        "",
        f"- old: {markdown(side_line(made.old))}",
        f"- new: {markdown(side_line(made.new))}",
        "",
        markdown(made.new.why),
        *(f"- **warning** {markdown(warning)}" for warning in made.new.warnings),
        "",
        *([] if attack is None else [f"Re-activation: {markdown(attack)}.", ""]),
        "| figure | | old | new | change | between |",
        "|---|---|---|---|---|---|",
    ]
    for row in figure_rows(made):
        cells = (row.name, row.change, row.old, row.new, row.difference, row.bounds)
        lines.append(f"| {' | '.join(map(markdown, cells))} |")
    changed = list(changed_inputs(made))
    if changed:
        lines += ["", "| changed input | old | new |", "|---|---|---|"]
        for name, given in changed:
            old, new = input_value(given.old), input_value(given.new)
            lines.append(f"| {markdown(name)} | {markdown(old)} | {markdown(new)} |")
    same = same_inputs(made)
    if same:
        lines += ["", f"The same in both: {markdown(', '.join(same))}."]
    lines += ["", f"{markdown(limits_line(made).capitalize())}."]
    if made.notes:
        lines += ["", *(f"- {markdown(note)}" for note in made.notes)]
    return "\n".join(lines) + "\n"
