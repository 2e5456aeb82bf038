"""Run the user's own Python, which only the user may name: never a file that bdaudit reads."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bdaudit.errors import BdauditError, InputError
from bdaudit.foundation.opening import SOURCE_BYTES, check_file

__all__ = ["failing_as", "load_function", "split_reference"]

_REFERENCE = re.compile(r"(?P<file>.+\.py):(?P<function>\w+)")


def split_reference(text: str) -> tuple[Path, str] | None:
    """Split `path/to/file.py:function`; `None` when `text` is something else."""
    match = _REFERENCE.fullmatch(text)
    return None if match is None else (Path(match["file"]), match["function"])


@contextmanager
def failing_as(error: type[InputError], what: str) -> Iterator[None]:
    """Turn whatever the user's code raises, `sys.exit` included, into an `InputError`.

    An exit code of its own choice would be read as a verdict of ours. Ctrl-C stays what it is, and
    what bdaudit raises is passed on.

    Raises:
        InputError: The code failed; of the class `error`.
    """
    try:
        yield
    except (BdauditError, KeyboardInterrupt):
        raise
    except BaseException as failure:
        raise error(f"{what}: {type(failure).__name__}: {failure}") from failure


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
    check_file(file, limit=SOURCE_BYTES, what="a Python file", error=error)
    spec = importlib.util.spec_from_file_location(f"bdaudit_user_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise error(f"{file}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    with failing_as(error, str(file)):
        spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise error(f"{file}: has no function {name!r}")
    return function  # type: ignore[no-any-return]
