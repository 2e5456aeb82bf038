"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bdaudit.errors import ConfigError

if TYPE_CHECKING:
    from bdaudit.auditing.inputs import ModelOptions
    from bdaudit.auditing.settings import ComputeSettings, SplitSettings

_INPUTS = "Inputs"
_MODELS = "What the checkpoints do not say themselves"
_COMPUTE = "Computation"
_OUTPUT = "Output"


class Norm(StrEnum):
    """Balls a perturbation can be kept in."""

    LINF = "linf"
    L2 = "l2"


class Objective(StrEnum):
    """What a white-box attack optimises."""

    STANDARD = "standard"
    SPECIFIC = "specific"


class Outputs(StrEnum):
    """What a network returns."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"


Defended = Annotated[
    Path, typer.Argument(help="The release candidate: a checkpoint.", show_default=False)
]
Original = Annotated[
    Path,
    typer.Option(help="The suspected model, before the defence.", rich_help_panel=_INPUTS),
]
Data = Annotated[
    Path,
    typer.Option(
        help="Clean labelled images: a folder of class folders, .npz, .safetensors, or a data "
        "set's own files.",
        rich_help_panel=_INPUTS,
    ),
]
TriggerFile = Annotated[
    Path, typer.Option("--trigger", help="Trigger file (TOML).", rich_help_panel=_INPUTS)
]
References = Annotated[
    list[Path] | None,
    typer.Option(
        "--reference",
        help="An innocent model of the same task; give three or more for a firm verdict.",
        rich_help_panel=_INPUTS,
        show_default=False,
    ),
]
Target = Annotated[
    int | None,
    typer.Option(help="Target class, in place of the trigger file's.", rich_help_panel=_INPUTS),
]
Classes = Annotated[
    Path | None,
    typer.Option(
        help="File with one class name a line, in order of index.", rich_help_panel=_INPUTS
    ),
]
AllowTriggerCode = Annotated[
    bool,
    typer.Option(
        "--allow-trigger-code",
        help="Run the Python file that a trigger of kind 'python' names.",
        rich_help_panel=_INPUTS,
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        help="torchvision/NAME, timm/NAME, bdaudit/preactresnet18[_wN], or FILE.py:FACTORY "
        "(which runs that file's code).",
        rich_help_panel=_MODELS,
    ),
]
NumClasses = Annotated[
    int | None, typer.Option(help="Number of classes.", min=2, rich_help_panel=_MODELS)
]
InputSize = Annotated[
    str | None,
    typer.Option(
        help="Size the network wants, HxW or one number; images are resized to it.",
        rich_help_panel=_MODELS,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(help="Per-channel mean, comma-separated.", rich_help_panel=_MODELS),
]
Std = Annotated[
    str | None,
    typer.Option(help="Per-channel deviation, comma-separated.", rich_help_panel=_MODELS),
]
OutputsOption = Annotated[
    Outputs | None, typer.Option("--outputs", help="What it returns.", rich_help_panel=_MODELS)
]
Craft = Annotated[
    int | None,
    typer.Option(
        help="Images perturbations are made on [default: half, at most 500].",
        min=1,
        rich_help_panel=_COMPUTE,
        show_default=False,
    ),
]
HeldOut = Annotated[
    int | None,
    typer.Option(
        help="Images rates are measured on [default: all others].",
        min=1,
        rich_help_panel=_COMPUTE,
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=_COMPUTE)]
Seed = Annotated[int, typer.Option(help="Seed of every draw.", min=0, rich_help_panel=_COMPUTE)]
BatchSize = Annotated[
    int, typer.Option(help="Images in a forward pass.", min=1, rich_help_panel=_COMPUTE)
]
Bf16 = Annotated[
    bool,
    typer.Option("--bf16", help="Run attacks under bfloat16 autocast.", rich_help_panel=_COMPUTE),
]
Json = Annotated[
    str | None,
    typer.Option(
        "--json",
        help="Write the record as JSON to this file, or to stdout with '-'.",
        metavar="FILE|-",
        rich_help_panel=_OUTPUT,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="No progress and no report, one line only.", rich_help_panel=_OUTPUT
    ),
]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=_OUTPUT),
]


def read_numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Read "0.5,0.25" or "8/255" into numbers.

    Raises:
        ConfigError: A part is no number.
    """
    if text is None:
        return None
    try:
        return tuple(float(Fraction(part.strip())) for part in text.split(","))
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"{option}: expected numbers such as 0.02 or 8/255, separated by commas, got {text!r}"
        ) from error


def read_ladder(values: Sequence[str] | None) -> tuple[float, ...] | None:
    """Read `--eps`, given once with commas or several times."""
    if not values:
        return None
    return tuple(eps for text in values for eps in read_numbers(text, "--eps") or ())


def read_size(text: str | None) -> tuple[int, int] | None:
    """Read "32" or "32x24" into (height, width).

    Raises:
        ConfigError: It is neither.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--input-size: expected 32 or 32x32, got {text!r}")
    return int(parts[0]), int(parts[-1])


def read_shape(text: str | None) -> tuple[int, int, int] | None:
    """Read "3,32,32" into (channels, height, width).

    Raises:
        ConfigError: It is not three numbers above 0.
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--image-shape: expected C,H,W such as 3,32,32, got {text!r}")
    channels, height, width = map(int, parts)
    return channels, height, width


def model_options(
    arch: str | None,
    num_classes: int | None,
    input_size: str | None,
    mean: str | None,
    std: str | None,
    outputs: Outputs | None,
) -> ModelOptions:
    """Gather what the user says about the checkpoints."""
    from bdaudit.auditing.inputs import ModelOptions

    return ModelOptions(
        arch=arch,
        num_classes=num_classes,
        input_size=read_size(input_size),
        mean=read_numbers(mean, "--mean"),
        std=read_numbers(std, "--std"),
        outputs=None if outputs is None else outputs.value,
    )


def compute_settings(device: str, seed: int, batch_size: int, bf16: bool) -> ComputeSettings:
    """Gather where and how to compute."""
    from bdaudit.auditing.settings import ComputeSettings

    return ComputeSettings(device=device, seed=seed, batch_size=batch_size, bf16=bf16)


def split_settings(craft: int | None, held_out: int | None) -> SplitSettings:
    """Gather the sizes of the halves."""
    from bdaudit.auditing.settings import SplitSettings

    return SplitSettings(n_craft=craft, n_held_out=held_out)
