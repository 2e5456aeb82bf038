"""What can be refused before torch is imported, which takes seconds: names of missing files."""

from __future__ import annotations

from bdaudit.errors import DataError, InputError, ModelError, TriggerError
from bdaudit.foundation.opening import demand_there
from bdaudit.foundation.sources import (
    FileSource,
    LocalFile,
    OnnxFile,
    OpenVinoFile,
    PythonFunction,
    parse_file,
    parse_model,
)
from bdaudit.settings import Inputs

__all__ = ["refuse_missing"]

_FILES: dict[type, str] = {OnnxFile: "an ONNX model", OpenVinoFile: "an OpenVINO IR"}


def refuse_missing(inputs: Inputs) -> None:
    """Refuse the first local file or folder of an audit's inputs that is not there.

    Whatever is there is left to those who open it, and so is what has an address.

    Raises:
        InputError: It is missing; the message names what is called nearly alike.
    """
    models = (inputs.defended, inputs.original, *inputs.reference)
    for named in models:
        source = None if named is None else parse_model(named)
        if isinstance(source, LocalFile):
            what = _FILES.get(type(source), "a checkpoint")
            demand_there(source.path, what=what, error=ModelError)
        elif isinstance(source, PythonFunction):
            demand_there(source.file, what="Python code", error=ModelError)
    files: tuple[tuple[str | None, str, type[InputError]], ...] = (
        (inputs.data, "clean images", DataError),
        (inputs.classes, "a list of class names", DataError),
        (inputs.trigger, "a trigger", TriggerError),
        *((placebo, "a trigger", TriggerError) for placebo in inputs.placebo),
    )
    for named, what, error in files:
        source = None if named is None else parse_file(named)
        if isinstance(source, FileSource):
            demand_there(source.path, what=what, error=error)
