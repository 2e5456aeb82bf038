"""How a setting is declared: once, with everything that is ever said about it.

A table is a frozen dataclass whose fields are made by `option`. From the declarations follow the
options of the command line (`bdaudit.cli.bundles`), the keys of the project file and their JSON
schema (`bdaudit.project.schema`), the reference page (`bdaudit.cli.reference`) and the defaults of
the Python settings. They are dataclasses and not pydantic models so that `bdaudit --help` need not
import pydantic; `bdaudit.project.schema` makes models of them where a file is read.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, reduce
from operator import or_
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from bdaudit.errors import ConfigError
from bdaudit.foundation.number_texts import read_numbers, read_size

__all__ = [
    "CODE",
    "COUNTS",
    "LADDER",
    "LOCATION",
    "NAMES",
    "NUMBERS",
    "PATH",
    "SIZE",
    "WRITTEN",
    "WRITTEN_AS",
    "Declared",
    "Form",
    "Mark",
    "Option",
    "Table",
    "Trusted",
    "declared",
    "option",
]


@dataclass(frozen=True)
class Location:
    """Marks a path to read (or an address); in a project file it is relative to that file."""


@dataclass(frozen=True)
class LocalPath:
    """Marks a path of this machine, which is never an address."""


@dataclass(frozen=True)
class Code:
    """Marks a name that may also be `FILE.py:NAME`, which runs that file."""


@dataclass(frozen=True)
class Written:
    """Marks a path that is written to."""


@dataclass(frozen=True)
class WrittenAs:
    """Marks `FORMAT=FILE`, whose file is written."""


@dataclass(frozen=True)
class Trusted:
    """Marks what a project file from elsewhere could do harm with, and says how.

    Attributes:
        why: What following the key does, to be read after the key's name.
    """

    why: str


Mark: TypeAlias = Location | LocalPath | Code | Written | WrittenAs | Trusted

LOCATION, PATH, CODE = Location(), LocalPath(), Code()
WRITTEN, WRITTEN_AS = Written(), WrittenAs()


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a value is written that is more than a number, a text or a truth value.

    Attributes:
        read: From what was written, a text or a list of texts and numbers, to the value.
        in_file: Type of the value in a TOML file.
        repeated: Whether the command line takes it several times, and not as one text with commas.
        write: From the value to the text that the command line takes.
    """

    read: Callable[[Any], Any]
    in_file: Any
    repeated: bool = False
    write: Callable[[Any], str] = str


def _joined(values: Any) -> str:
    return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def _as_text(written: Any) -> str:
    parts = written if isinstance(written, list | tuple) else [written]
    return ",".join(str(part) for part in parts)


def _read_numbers(written: Any) -> tuple[float, ...]:
    return read_numbers(_as_text(written))


def _read_counts(written: Any) -> tuple[int, ...]:
    text = _as_text(written)
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"expected whole numbers separated by commas, got {text!r}") from error


def _read_names(written: Any) -> tuple[str, ...]:
    return tuple(part.strip() for part in _as_text(written).split(","))


NUMBERS = Form(read=_read_numbers, in_file=list[float | str], write=_joined)
"""Numbers or fractions: 0.5,0.25 or 8/255."""

LADDER = Form(read=_read_numbers, in_file=list[float | str], repeated=True, write=_joined)
"""The same, given with commas, several times, or both."""

COUNTS = Form(read=_read_counts, in_file=list[int], write=_joined)
NAMES = Form(read=_read_names, in_file=list[str], write=_joined)
SIZE = Form(read=lambda written: read_size(str(written)), in_file=int | str)
"""Height and width: 32 or 32x24."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """What is said about one setting beside its name, its type and its default.

    Attributes:
        help: What it is, in a sentence or two of plain text.
        examples: Values as a project file has them, the most telling first.
        ge: Least value.
        gt: Value it is above.
        le: Greatest value.
        flags: The command line's, where they do not follow from the name.
        metavar: What the help calls the value.
        default_text: Words for a default that is worked out when it runs.
        panel: Of the command's help, where it is not that of the table.
        marks: What kind of path it is, and what harm it could do.
        form: How it is written, where that does not follow from its type.
        key: Its name where that cannot be a Python name here, such as `json`.
        now: Of an old name, kept for one release and left out of the help: from its value to the
            new name and value.
        in_file: Whether a project file may set it.
    """

    help: str
    examples: tuple[Any, ...] = ()
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    flags: str | None = None
    metavar: str | None = None
    default_text: str | None = None
    panel: str | None = None
    marks: tuple[Mark, ...] = ()
    form: Form | None = None
    key: str | None = None
    now: Callable[[Any], tuple[str, Any]] | None = None
    in_file: bool = True


def option(default: Any = None, **said: Any) -> Any:
    """Declare a setting: its default, and what `Option` says of it."""
    return field(default=default, metadata={"option": Option(**said)})


class Table:
    """Base of all tables: each is a frozen dataclass, and a panel of the help.

    Raises:
        ConfigError: A value is out of range, when a table is built.
    """

    panel: ClassVar[str] = ""

    def __init_subclass__(cls, panel: str | None = None) -> None:
        super().__init_subclass__()
        if panel is not None:
            cls.panel = panel

    def __post_init__(self) -> None:
        for each in declared(type(self)):
            value = getattr(self, each.attribute)
            each.check(value)
            if each.option.now is None or value is None:
                continue
            name, now = each.option.now(value)
            warnings.warn(
                f'{each.key} will be removed in the next release: use {name} = "{now}"',
                DeprecationWarning,
                stacklevel=3,
            )
            object.__setattr__(self, name, now)
            object.__setattr__(self, each.attribute, None)


@dataclass(frozen=True, kw_only=True)
class Declared:
    """One setting of a table, as it was declared.

    Attributes:
        table: The table it is in.
        attribute: Its name in Python.
        type: Of its value, without `None`.
        optional: Whether it may be `None`.
        default: When it is not given.
        option: All else.
    """

    table: type[Table]
    attribute: str
    type: Any
    optional: bool
    default: Any
    option: Option

    @property
    def key(self) -> str:
        """Its name in a project file, and on the command line with `-` for `_`."""
        return self.option.key or self.attribute

    @property
    def panel(self) -> str:
        """Of the help."""
        return self.option.panel or self.table.panel

    @property
    def is_flag(self) -> bool:
        """Whether it is a truth value."""
        return self.type is bool

    @property
    def several(self) -> bool:
        """Whether the value is a sequence."""
        return get_origin(self.type) is tuple and get_args(self.type)[-1] is Ellipsis

    @property
    def item(self) -> Any:
        """The type of the value, or of each where there are several."""
        return get_args(self.type)[0] if self.several else self.type

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts it may be; empty where any may be."""
        return get_args(self.item) if get_origin(self.item) is Literal else ()

    @property
    def flags(self) -> tuple[str, ...]:
        """What is written on the command line."""
        if self.option.flags is not None:
            return tuple(self.option.flags.split())
        own = "--" + self.key.replace("_", "-")
        return (f"{own}/--no-{own[2:]}" if self.is_flag else own,)

    @property
    def shown_name(self) -> str:
        """The first of its names on the command line, for messages."""
        return self.flags[0].partition("/")[0]

    def has(self, kind: type) -> bool:
        """Return whether it is marked so."""
        return any(isinstance(mark, kind) for mark in self.option.marks)

    def read(self, written: Any) -> Any:
        """Return the value of what a file or a command line has.

        Raises:
            ConfigError: It cannot be read; the message begins with what was expected.
        """
        if written is None:
            return () if self.several and not self.optional else None
        if self.option.form is not None:
            return self.option.form.read(written)
        if self.several:
            return tuple(written)
        return float(written) if self.type is float else written

    def check(self, value: Any) -> None:
        """Hold a value against choices and range.

        Raises:
            ConfigError: It is none of the choices, or out of range.
        """
        if value is None:
            return
        said = self.option
        for one in value if self.several else (value,):
            if self.choices and one not in self.choices:
                raise ConfigError(
                    f"{self.key}: expected one of {', '.join(self.choices)}, got {one!r}"
                )
            # Written so that NaN fails.
            if said.ge is not None and not one >= said.ge:
                raise ConfigError(f"{self.key}: expected {said.ge:g} or more, got {one}")
            if said.gt is not None and not one > said.gt:
                raise ConfigError(f"{self.key}: expected above {said.gt:g}, got {one}")
            if said.le is not None and not one <= said.le:
                raise ConfigError(f"{self.key}: expected {said.le:g} or less, got {one}")


def declared(table: type[Table]) -> tuple[Declared, ...]:
    """List the settings of a table in the order of their declaration."""
    given: Any = table
    return _declared(given)


@cache
def _declared(table: Any) -> tuple[Declared, ...]:
    hints = get_type_hints(table)
    found = []
    for each in dataclasses.fields(table):
        kind = hints[each.name]
        optional = get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)
        if optional:
            kind = reduce(or_, (part for part in get_args(kind) if part is not NoneType))
        found.append(
            Declared(
                table=table,
                attribute=each.name,
                type=kind,
                optional=optional,
                default=each.default,
                option=each.metadata["option"],
            )
        )
    return tuple(found)
