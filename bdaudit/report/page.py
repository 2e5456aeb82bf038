"""HTML pages that work offline: one file, no script, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from bdaudit.plain_text import visible
from bdaudit.report.wording import number, points, share, share_with_interval
from bdaudit.version import __version__

__all__ = ["render_page"]

_STACKED = re.compile(r'<table class="stack">.*?</table>', re.DOTALL)
_HEADING = re.compile(r"<th [^>]*>(.*?)</th>", re.DOTALL)
_ROW = re.compile(r"<tr[ >].*?</tr>", re.DOTALL)
_CELL = re.compile(r"<td(?=[ >])")
_TAG = re.compile(r"<[^>]*>")


def render_page(template: str, **context: Any) -> str:
    """Render `template`, which extends `base.html.j2`.

    Everything in `context` is escaped, save figures (`Markup`). The page's style sheet is in the
    page and its digest in the Content-Security-Policy, so that no other style, no script and no
    address can be smuggled in by the strings of a record.

    Args:
        template: Its file name in `templates/`.
        context: What it shows.
    """
    # As it will stand between the tags: the digest is over exactly that.
    style = "\n" + _environment().get_template("style.css").render().strip() + "\n"
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    page = _environment().get_template(template).render(
        **context,
        style=Markup(style),  # noqa: S704 - our own file
        content_security_policy=Markup(policy),  # noqa: S704 - our own words and a digest
        version=__version__,
    )  # fmt: skip
    return _STACKED.sub(_label_cells, page)


def _label_cells(found: re.Match[str]) -> str:
    """Give each cell of a table the heading of its column, for pages too narrow for columns.

    Cells are our own markup: in what a record says every angle bracket is escaped.
    """
    table = found[0]
    head, start, body = table.partition("</thead>")
    headings = [_TAG.sub("", text).strip() for text in _HEADING.findall(head)]

    def label(row: re.Match[str]) -> str:
        names = iter(headings[1:])  # the first heads the names of the rows
        return _CELL.sub(lambda cell: f'{cell[0]} data-label="{next(names, "")}"', row[0])

    return head + start + _ROW.sub(label, body)


@cache
def _environment() -> jinja2.Environment:
    folder = resources.files("bdaudit.report") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "share": share,
        "interval": share_with_interval,
        "points": points,
        "number": number,
        "code": _with_code,
    }
    return environment


def _with_code(text: str) -> Markup:
    """Set what stands between back quotes as code; everything is escaped."""
    parts = visible(text).split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else part
        for place, part in enumerate(parts)
    )


def _finalize(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Markup):
        return visible(value)
    return value
