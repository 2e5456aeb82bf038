"""Tables of settings as parameters of a command: each field becomes an option of it.

    @reporting_errors
    @taking_tables
    def audit(inputs: Annotated[Inputs, Required("original", "data")], compute: Compute) -> None:

is, to Typer, a function with one option for every setting of both tables, whose range, default,
choices and help are those of the declaration; when it is called the tables come out filled.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from bdaudit.cli.streams import tell
from bdaudit.errors import ConfigError
from bdaudit.settings.declaring import Declared, LocalPath, Table, declared

__all__ = [
    "Argument",
    "Bundle",
    "Default",
    "InPanel",
    "NotFromFile",
    "Only",
    "Required",
    "Reworded",
    "Single",
    "Without",
    "bundles_of",
    "taking_tables",
    "telling_old_names",
]


class Only:
    """Takes these settings of a table, and no other."""

    def __init__(self, *names: str) -> None:
        self.names = names


class Without:
    """Takes all settings of a table but these."""

    def __init__(self, *names: str) -> None:
        self.names = names


class Required:
    """Demands these settings, which a project file or another command may leave out."""

    def __init__(self, *names: str) -> None:
        self.names = names


class Single:
    """Takes one value of each of these settings, which others take several of."""

    def __init__(self, *names: str) -> None:
        self.names = names


class NotFromFile:
    """Takes these settings from the command line alone.

    What a project file says of them is meant for an audit: where it writes the record to
    `result.json`, another command must not write over it.
    """

    def __init__(self, *names: str) -> None:
        self.names = names


class Argument:
    """Takes this setting without its name, by its place."""

    def __init__(self, *names: str) -> None:
        self.names = names


class InPanel:
    """Shows the settings in this panel of the help, `None` for that of plain options."""

    def __init__(self, panel: str | None) -> None:
        self.panel = panel


class Reworded:
    """Gives settings another help, where they do something else in this command."""

    def __init__(self, **help_by_name: str) -> None:
        self.help = help_by_name


class Default:
    """Says what a setting comes to where it is not given, when that differs in this command."""

    def __init__(self, **text_by_name: str) -> None:
        self.texts = text_by_name


_Mark = Default | Only | Without | Required | Single | NotFromFile | Argument | InPanel | Reworded


def taking_tables(command: Callable[..., None]) -> Callable[..., None]:
    """Flatten the tables among a command's parameters into options.

    What a value is wrong with is a usage error that names the option; that an old name was used is
    said on stderr.
    """
    signature = inspect.signature(command, eval_str=True)
    bundles: dict[str, Bundle] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        table, marks = _table_of(parameter.annotation)
        if table is None:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        else:
            bundles[parameter.name] = Bundle(table, marks)
            parameters += bundles[parameter.name].parameters()

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        with telling_old_names():
            tables = {name: bundle.fill(values) for name, bundle in bundles.items()}
        command(**values, **tables)

    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    wrapped.bundles = tuple(bundles.values())  # type: ignore[attr-defined]
    return wrapped


def bundles_of(command: Callable[..., object] | None) -> tuple[Bundle, ...]:
    """Return the tables that a command takes, with what it does not take of each."""
    found: tuple[Bundle, ...] = getattr(command, "bundles", ())
    return found


@contextmanager
def telling_old_names() -> Iterator[None]:
    """Warn on stderr of a setting given by its old name; Python would hide the warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeprecationWarning)
        yield
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        tell(f"bdaudit: {text}")


def _table_of(annotation: Any) -> tuple[type[Table] | None, tuple[_Mark, ...]]:
    marks: tuple[Any, ...] = ()
    if get_origin(annotation) is Annotated:
        annotation, *given = get_args(annotation)
        marks = tuple(given)
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return annotation, marks
    return None, ()


@dataclass
class Bundle:
    """The part of a table that a command takes."""

    table: type[Table]
    marks: tuple[_Mark, ...]
    taken: tuple[Declared, ...] = field(init=False)

    def __post_init__(self) -> None:
        known = {each.key: each for each in declared(self.table)}
        names = {name for mark in self.marks for name in _names_in(mark)}
        assert names <= known.keys(), f"{self.table.__name__} has no {names - known.keys()}"
        only, without = self.named(Only), self.named(Without)
        self.taken = tuple(
            each for key, each in known.items() if (not only or key in only) and key not in without
        )

    def parameters(self) -> Iterator[inspect.Parameter]:
        """Return the parameters that Typer makes options of."""
        for each in self.taken:
            one = each.key in self.named(Single) and each.several
            required = each.key in self.named(Required)
            argument = each.key in self.named(Argument)
            default, kind = _default_of(each, one), _type_of(each, one)
            if default is None and not required:
                kind |= None
            info = self._argument(each) if argument else self._option(each)
            yield inspect.Parameter(
                each.key,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if required else default,
                annotation=Annotated[kind, info],
            )

    def fill(self, values: dict[str, Any]) -> Table:
        """Take the table's values out of those that Typer gives.

        Raises:
            ConfigError: A value cannot be read, or is out of range.
        """
        given = {}
        for each in self.taken:
            value = values.pop(each.key)
            one = each.key in self.named(Single) and each.several
            if one and value is not None and each.option.form is None:
                value = [value]
            try:
                given[each.attribute] = each.read(_plain(value))
                each.check(given[each.attribute])
            except ConfigError as error:
                said = str(error).removeprefix(f"{each.key}: ")
                raise ConfigError(f"{each.shown_name}: {said}") from error
        return self.table(**given)

    def named(self, kind: type) -> tuple[str, ...]:
        """Return the keys of the settings that carry a mark of this kind."""
        return tuple(n for mark in self.marks if isinstance(mark, kind) for n in _names_in(mark))

    def _help(self, each: Declared) -> str:
        text, default = each.option.help, each.option.default_text
        for mark in self.marks:
            if isinstance(mark, Reworded):
                text = mark.help.get(each.key, text)
            elif isinstance(mark, Default):
                default = mark.texts.get(each.key, default)
        if default is not None and each.key not in self.named(Required):
            text = f"{text.removesuffix('.')} [default: {default}]."
        return text.replace("[", "\\[")  # Typer reads its help as markup

    def _argument(self, each: Declared) -> Any:
        return typer.Argument(help=self._help(each), show_default=False)

    def _option(self, each: Declared) -> Any:
        said = each.option
        panel: str | None = each.panel
        for mark in self.marks:
            if isinstance(mark, InPanel):
                panel = mark.panel
        return typer.Option(
            *each.flags,
            help=self._help(each),
            min=said.ge,
            max=said.le,
            metavar=said.metavar,
            rich_help_panel=panel,
            show_default=said.default_text is None and each.default not in (None, ()),
            hidden=said.now is not None,
        )


def _names_in(mark: _Mark) -> tuple[str, ...]:
    if isinstance(mark, Reworded):
        return tuple(mark.help)
    if isinstance(mark, Default):
        return tuple(mark.texts)
    return () if isinstance(mark, InPanel) else mark.names


def _type_of(each: Declared, one: bool) -> Any:
    """Return the type by which Typer reads the value."""
    form = each.option.form
    if each.choices:
        kind: Any = _choices(each.attribute, each.choices)
    elif form is not None or each.item not in (bool, int, float):
        kind = Path if each.has(LocalPath) else str
    else:
        kind = each.item
    several = each.several if form is None else form.repeated
    return list[kind] if several and not one else kind


@functools.cache
def _choices(name: str, choices: tuple[str, ...]) -> type[Enum]:
    names = {choice.upper().replace("-", "_"): choice for choice in choices}
    make: Any = StrEnum  # called with a name that is worked out
    made: type[Enum] = make(name.title().replace("_", ""), names)
    return made


def _default_of(each: Declared, one: bool) -> Any:
    form = each.option.form
    if form is not None and each.default is not None:
        return form.write(each.default)
    if each.several and not one and each.default:
        return list(each.default)
    return each.default or None if each.several else each.default


def _plain(value: Any) -> Any:
    """Return what Typer read as text, number, truth value or list of such."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
