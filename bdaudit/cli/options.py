"""What commands are told beside the settings: how this one run is begun and watched."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bdaudit.cli.streams import tell
from bdaudit.errors import ConfigError
from bdaudit.plain_text import shortened
from bdaudit.settings import Engine

if TYPE_CHECKING:
    from bdaudit.auditing import FolderStore
    from bdaudit.engines import Engine as AnyEngine

__all__ = [
    "Debug",
    "FamilyFolder",
    "PlanOnly",
    "Quiet",
    "Resume",
    "only_models",
    "open_engine",
    "open_store",
    "read_shape",
]

Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue an interrupted run, with what --json or --state kept of it.",
        rich_help_panel="Output",
    ),
]
FamilyFolder = Annotated[
    Path,
    typer.Argument(
        help="Folder with a family.json, or of BackdoorBench records.", show_default=False
    ),
]
PlanOnly = Annotated[
    bool,
    typer.Option(
        "--plan",
        help="Only say what would be done, what would be trained that was not asked for, and how "
        "long it takes on this machine.",
        rich_help_panel="Output",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Print one line in place of progress and report.",
        rich_help_panel="Output",
    ),
]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Output"),
]


_SIDE = re.compile(r"\s*[1-9][0-9]{0,5}\s*")


def read_shape(text: str | None) -> tuple[int, int, int] | None:
    """Read "3,32,32" into (channels, height, width).

    Raises:
        ConfigError: It is not three numbers above 0.
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(map(_SIDE.fullmatch, parts)):
        raise ConfigError(f"--image-shape: expected C,H,W such as 3,32,32, got {shortened(text)!r}")
    channels, height, width = map(int, parts)
    return channels, height, width


def read_pair(text: str | None) -> tuple[int, int] | None:
    """Read "0,3" into (rows, columns).

    Raises:
        ConfigError: It is not two whole numbers from 0.
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() and len(part) < 6 for part in parts):
        raise ConfigError(f"--offset: expected ROWS,COLUMNS such as 0,0, got {shortened(text)!r}")
    return int(parts[0]), int(parts[1])


def only_models(panel: str) -> Any:
    """Return the option that chooses models of a family, in a panel of the help."""
    return typer.Option(
        "--only",
        metavar="PATTERN",
        help="Only models whose names match ('badnets-*'); may be repeated.",
        show_default=False,
        rich_help_panel=panel,
    )


def open_engine(engine: Engine) -> AnyEngine:
    """Return the engine that was asked for.

    Raises:
        ConfigError: An option is out of range, or of the other engine.
    """
    from bdaudit import engines

    return engines.open_engine(
        engine.engine,
        workers=engine.workers,
        threads_per_worker=engine.threads,
        gpus_per_task=engine.gpus_per_task,
        address=engine.ray_address,
        start_limit_s=engine.start_limit,
    )


def open_store(state: str | None, *, json: str | None, resume: bool) -> FolderStore | None:
    """Return where a run keeps what is needed to resume it, `None` for nowhere.

    Args:
        state: The folder the user named.
        json: Where the result goes; a folder beside that file is taken where none was named.
        resume: Whether to go on with what is there.

    Raises:
        ConfigError: There is nothing to resume from.
        InputError: The folder cannot serve.
    """
    from bdaudit.auditing import FolderStore

    if state is None and json not in (None, "-"):
        state = f"{json}.state"
    if state is None:
        if resume:
            raise ConfigError(
                "--resume: pass --json FILE or --state FOLDER, which tell where "
                "the earlier run was kept"
            )
        return None
    store = FolderStore(Path(state), resume=resume)
    if store.holds_results and not resume:
        tell(
            f"bdaudit: {state} holds results of an interrupted run, which this one replaces; "
            "with --resume it would go on with them"
        )
    return store
