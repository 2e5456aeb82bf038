"""Run the user's own Python, which only the user may name: never a file that bdaudit reads."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bdaudit.errors import InputError

__all__ = ["load_function", "split_reference"]

_REFERENCE = re.compile(r"(?P<file>.+\.py):(?P<function>\w+)")


def split_reference(text: str) -> tuple[Path, str] | None:
    """Split `path/to/file.py:function`; `None` when `text` is something else."""
    match = _REFERENCE.fullmatch(text)
    return None if match is None else (Path(match["file"]), match["function"])


def load_function(
    file: Path, name: str, *, error: type[InputError] = InputError
) -> Callable[..., Any]:
    """Run the Python file and take the function called `name` from it.

    Args:
        file: The Python file, which is executed.
        name: The function.
        error: What to raise.

    Raises:
        InputError: There is no such file or function, or the file fails; of the class `error`.
    """
    if not file.is_file():
        raise error(f"{file}: no such file")
    spec = importlib.util.spec_from_file_location(f"bdaudit_user_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise error(f"{file}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as failure:
        raise error(f"{file}: {type(failure).__name__}: {failure}") from failure
    function = getattr(module, name, None)
    if not callable(function):
        raise error(f"{file}: has no function {name!r}")
    return function  # type: ignore[no-any-return]
