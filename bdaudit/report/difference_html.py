"""A difference between two audits as one self-contained HTML file."""

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
)
from bdaudit.report.page import render_page
from bdaudit.report.release import RELEASES
from bdaudit.report.untrusted import shown

__all__ = ["render"]


def render(made: DifferenceRecord) -> str:
    """Write `made` as a page that works offline and printed."""
    made = shown(made)
    return render_page(
        "difference.html.j2",
        made=made,
        gist=gist(made),
        attack=attack_line(made),
        rows=list(figure_rows(made)),
        inputs=[
            (name, input_value(given.old), input_value(given.new))
            for name, given in changed_inputs(made)
        ],
        same=same_inputs(made),
        limits=limits_line(made),
        releases=RELEASES,
    )
