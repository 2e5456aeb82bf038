"""Figures as inline SVG that take their colours from the page.

matplotlib draws in stand-in colours; here they become classes (`fill-defended`, `line-ink`), so
that one drawing serves light, dark and print, and the page needs no inline style, which its
Content-Security-Policy forbids.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from bdaudit.plain_text import visible

__all__ = ["PAINTS", "Picture", "draw"]

PAINTS = {
    name: f"#0101{k:02x}"
    for k, name in enumerate(
        (
            "ink",
            "faint",
            "grid",
            "paper",
            "defended",
            "original",
            "reference",
            "surrogate",
            "same_delta",
            "no_trigger",
            "wrong_target",
            "noise",
        ),
        start=1,
    )
}
"""The stand-in colour of each paint; templates/style.css says what the paints look like."""

_BY_COLOR = {color: name for name, color in PAINTS.items()}
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_FONT_SIZE = re.compile(r"([\d.]+)px")
_REFERENCE = re.compile(r"url\(#")

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read out, searched and copied
    "text.parse_math": False,  # a layer's name is not a formula
    "font.size": 10.5,
    "axes.edgecolor": PAINTS["faint"],
    "axes.labelcolor": PAINTS["ink"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PAINTS["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": PAINTS["faint"],
    "ytick.color": PAINTS["faint"],
    "xtick.labelcolor": PAINTS["ink"],
    "ytick.labelcolor": PAINTS["ink"],
    "text.color": PAINTS["ink"],
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


@dataclass(frozen=True)
class Picture:
    """One figure in two shapes, for wide and for narrow pages."""

    wide: Markup
    narrow: Markup


def draw(
    name: str,
    title: str,
    description: str,
    plot: Callable[[Figure, bool], None],
    *,
    height: float,
    narrow_height: float | None = None,
) -> Picture:
    """Draw one figure.

    Args:
        name: A short name, for identifiers; unique on the page.
        title: What the figure shows, for those who cannot see it.
        description: The same at more length: the figures it makes visible.
        plot: Draws on the figure it is given; told whether the page is narrow.
        height: In inches, of 7.2 inches of width.
        narrow_height: In inches, of 3.7 inches of width; `height` by default.

    Returns:
        Both shapes as SVG.
    """
    shapes = {}
    for narrow in (False, True):
        size = (3.7, narrow_height or height) if narrow else (7.2, height)
        with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
            figure = Figure(figsize=size, layout="constrained")
            plot(figure, narrow)
            stream = io.BytesIO()
            figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
        identifier = f"{name}-narrow" if narrow else name
        shapes[narrow] = _for_page(stream.getvalue(), identifier, title, description)
    return Picture(wide=shapes[False], narrow=shapes[True])


def _for_page(svg: bytes, identifier: str, title: str, description: str) -> Markup:
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    # matplotlib wrote this a moment ago; it holds no document type and no entities.
    root = ElementTree.fromstring(svg.decode())  # noqa: S314
    for unwanted in ("metadata", "style"):
        for parent in list(root.iter()):
            for child in parent.findall(f"{{{_SVG}}}{unwanted}"):
                parent.remove(child)
    for element in root.iter():
        _name_apart(element, identifier)
        _style_by_class(element)
    for attribute in ("width", "height"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{identifier}-title {identifier}-description")
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        child = ElementTree.Element(f"{{{_SVG}}}{tag}")
        suffix = {"title": "title", "desc": "description"}[tag]
        child.set("id", f"{identifier}-{suffix}")
        child.text = visible(text)
        root.insert(position, child)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 - made here


def _name_apart(element: ElementTree.Element, prefix: str) -> None:
    """Keep identifiers of several figures on one page apart."""
    if "id" in element.attrib:
        element.set("id", f"{prefix}-{element.get('id')}")
    for name, value in element.attrib.items():
        if name == f"{{{_XLINK}}}href" and value.startswith("#"):
            element.set(name, f"#{prefix}-{value[1:]}")
        elif "url(#" in value:
            element.set(name, _REFERENCE.sub(f"url(#{prefix}-", value))


def _style_by_class(element: ElementTree.Element) -> None:
    """Turn an inline style, and stand-in colours, into attributes and classes."""
    properties: dict[str, str] = {}
    for entry in element.attrib.pop("style", "").split(";"):
        name, separator, value = entry.partition(":")
        if separator:
            properties[name.strip()] = value.strip()
    for name in ("fill", "stroke"):
        if name in element.attrib:
            properties[name] = element.attrib.pop(name)
    classes = []
    for name, value in properties.items():
        if name == "font":
            size = _FONT_SIZE.search(value)
            if size is not None:
                element.set("font-size", size[1])
            if "bold" in value or re.search(r"\b[67]00\b", value):
                element.set("font-weight", "bold")
        elif name in ("fill", "stroke") and value in _BY_COLOR:
            kind = "fill" if name == "fill" else "line"
            classes.append(f"{kind}-{_BY_COLOR[value].replace('_', '-')}")
        else:
            element.set(name, value)
    if classes:
        element.set("class", " ".join(classes))
