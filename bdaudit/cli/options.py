"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bdaudit.errors import ConfigError
from bdaudit.number_texts import read_numbers, read_size

if TYPE_CHECKING:
    from bdaudit.auditing import BlackBoxOptions, FolderStore
    from bdaudit.auditing.settings import ComputeSettings, SplitSettings
    from bdaudit.engines import Engine as AnyEngine
    from bdaudit.models import ModelSettings

_INPUTS = "Inputs"
_MODELS = "What the checkpoints do not say themselves"
_CLIP = "A CLIP as a classifier (--arch open_clip/NAME)"
_COMPUTE = "Computation"
_OUTPUT = "Output"
_STAND_INS = "Stand-ins for innocent models"
_ENGINE = "Where it is computed"


class Mode(StrEnum):
    """Kinds of attack."""

    WHITE = "white"
    QUERY = "query"
    TRANSFER = "transfer"


class Strategy(StrEnum):
    """Ways to use several surrogates."""

    ENSEMBLE = "ensemble"
    MOMENTUM = "momentum"
    ONE_PER_STEP = "one-per-step"


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


class Feedback(StrEnum):
    """What a query search is given."""

    SCORES = "scores"
    LABELS = "labels"


class Schedule(StrEnum):
    """Query searches."""

    DEFAULT = "default"
    RESEARCH = "research"


class Engine(StrEnum):
    """Who does many tasks."""

    LOCAL = "local"
    RAY = "ray"


class Layout(StrEnum):
    """Which dimension of a model's input holds the channels."""

    NCHW = "NCHW"
    NHWC = "NHWC"


_ASKING = "Asking (query mode)"
_SURROGATES = "Surrogates (transfer mode, and where queries start)"

DefendedFile = Annotated[
    str, typer.Argument(help="The release candidate: a checkpoint.", show_default=False)
]
Defended = Annotated[
    str | None,
    typer.Argument(
        help="The release candidate: a checkpoint; in query and transfer mode also an .onnx "
        "file, or FILE.py:FUNCTION (which runs that file's code).",
        show_default=False,
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        help="Served release candidate: http(s)://HOST:PORT/v2/models/NAME (Open Inference "
        "Protocol).",
        rich_help_panel=_ASKING,
    ),
]
MaxQueries = Annotated[
    int,
    typer.Option(
        help="Images one search may ask about, never exceeded.", min=1, rich_help_panel=_ASKING
    ),
]
FeedbackOption = Annotated[
    Feedback,
    typer.Option("--feedback", help="Scores, or the top labels alone.", rich_help_panel=_ASKING),
]
ScheduleOption = Annotated[
    Schedule,
    typer.Option(
        "--schedule", help="research: the paper's search, to compare.", rich_help_panel=_ASKING
    ),
]
Surrogates = Annotated[
    list[Path] | None,
    typer.Option(
        "--surrogate",
        help="Another defended version of the original, of any architecture; may be repeated "
        "\\[default: made from the original, by four defences].",
        rich_help_panel=_SURROGATES,
        show_default=False,
    ),
]
StrategyOption = Annotated[
    Strategy,
    typer.Option("--strategy", help="How several are used.", rich_help_panel=_SURROGATES),
]
InputDiversity = Annotated[
    float,
    typer.Option(
        help="Chance that a mini-batch is shrunk and moved at random.",
        min=0.0,
        max=1.0,
        rich_help_panel=_SURROGATES,
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder that keeps models made here for the next run \\[default: $BDAUDIT_CACHE, or "
        "~/.cache/bdaudit].",
        show_default=False,
        rich_help_panel=_COMPUTE,
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep none.", rich_help_panel=_COMPUTE)]
Cold = Annotated[
    bool,
    typer.Option(
        "--cold/--warm", help="Start queries without surrogates.", rich_help_panel=_ASKING
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on where a killed run stopped.", rich_help_panel=_ASKING),
]
State = Annotated[
    Path | None,
    typer.Option(
        help="Folder for what is needed to resume \\[default in query mode: the --json file's name "
        "+ .state].",
        show_default=False,
        rich_help_panel=_ASKING,
    ),
]
Qps = Annotated[
    float | None, typer.Option(help="Images a second at most.", rich_help_panel=_ASKING)
]
Concurrency = Annotated[
    int, typer.Option(help="Requests in flight.", min=1, rich_help_panel=_ASKING)
]
Timeout = Annotated[
    float, typer.Option(help="Seconds to wait for an answer.", rich_help_panel=_ASKING)
]
Retries = Annotated[
    int,
    typer.Option(help="Times a request is sent again.", min=0, rich_help_panel=_ASKING),
]
TokenEnv = Annotated[
    str | None,
    typer.Option(help="Environment variable that holds a bearer token.", rich_help_panel=_ASKING),
]
CaFile = Annotated[
    Path | None,
    typer.Option(help="Certificates to trust for TLS.", rich_help_panel=_ASKING),
]
Binary = Annotated[
    bool | None,
    typer.Option(
        "--binary/--no-binary",
        help="Send tensors as raw bytes \\[default: as the server offers].",
        show_default=False,
        rich_help_panel=_ASKING,
    ),
]
LayoutOption = Annotated[
    Layout | None,
    typer.Option("--layout", help="Of the model's input.", rich_help_panel=_ASKING),
]
InputName = Annotated[
    str | None, typer.Option(help="Of a server's image input.", rich_help_panel=_ASKING)
]
OutputName = Annotated[
    str | None,
    typer.Option(help="Output with the scores, of several.", rich_help_panel=_ASKING),
]
Grid = Annotated[
    int | None,
    typer.Option(
        help="Steps of a pixel value on its way, 255 for 8-bit images.",
        min=1,
        rich_help_panel=_ASKING,
    ),
]
RequestSize = Annotated[
    int | None, typer.Option(help="Images in a request.", min=1, rich_help_panel=_ASKING)
]
Original = Annotated[
    str,
    typer.Option(help="The suspected model, before the defence.", rich_help_panel=_INPUTS),
]
Data = Annotated[
    str,
    typer.Option(
        help="Clean labelled images: a folder of class folders, .npz, .safetensors, or a data "
        "set's own files.",
        rich_help_panel=_INPUTS,
    ),
]
TriggerFile = Annotated[
    str, typer.Option("--trigger", help="Trigger file (TOML).", rich_help_panel=_INPUTS)
]
TriggerIfKnown = Annotated[
    str | None,
    typer.Option(
        "--trigger",
        help="Trigger file (TOML). Without it one is looked for in the original first.",
        show_default=False,
        rich_help_panel=_INPUTS,
    ),
]
References = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        help="An innocent model of the same task; give three or more for a firm verdict. "
        "Stand-ins are made for those that are missing.",
        rich_help_panel=_INPUTS,
        show_default=False,
    ),
]
StandIns = Annotated[
    int | None,
    typer.Option(
        "--stand-ins",
        help="Innocent models to make from the clean images, 0 for none \\[default: as many as are "
        "missing].",
        min=0,
        rich_help_panel=_STAND_INS,
        show_default=False,
    ),
]
StandInImages = Annotated[
    int,
    typer.Option(
        "--stand-in-images",
        help="Images each is trained on, every variant of a craft image counted.",
        min=1,
        rich_help_panel=_STAND_INS,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        help="Target class, its index or name, in place of the trigger file's.",
        rich_help_panel=_INPUTS,
    ),
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
        "--allow-trigger-code/--no-trigger-code",
        help="Run the Python file that a trigger of kind 'python' names.",
        rich_help_panel=_INPUTS,
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        help="torchvision/NAME, timm/NAME, open_clip/NAME, bdaudit/preactresnet18[_wN], or "
        "FILE.py:FACTORY "
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
ClassNames = Annotated[
    Path | None,
    typer.Option(
        "--classnames",
        help="File with the name that prompts give each class, one a line in order of index.",
        rich_help_panel=_CLIP,
    ),
]
Templates = Annotated[
    Path | None,
    typer.Option(
        help="File with one prompt a line, {} for the name; their embeddings are averaged "
        "\\[default: 'a photo of a {}.'].",
        show_default=False,
        rich_help_panel=_CLIP,
    ),
]
Pretrained = Annotated[
    str | None,
    typer.Option(
        help="Weights the checkpoints were trained from, a tag of open_clip or a local file: gives "
        "the normalisation, and the text tower where a checkpoint has none.",
        rich_help_panel=_CLIP,
    ),
]
ClipConfig = Annotated[
    Path | None,
    typer.Option(help="Folder with NAME.json, a config of open_clip.", rich_help_panel=_CLIP),
]
Craft = Annotated[
    int | None,
    typer.Option(
        help="Images perturbations are made on \\[default: half, at most 500].",
        min=1,
        rich_help_panel=_COMPUTE,
        show_default=False,
    ),
]
HeldOut = Annotated[
    int | None,
    typer.Option(
        help="Images rates are measured on \\[default: all others].",
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
    typer.Option(
        "--bf16/--no-bf16", help="Run attacks under bfloat16 autocast.", rich_help_panel=_COMPUTE
    ),
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
Reports = Annotated[
    list[str] | None,
    typer.Option(
        "--report",
        metavar="FORMAT=FILE",
        help="Also write the result as html, sarif, junit, md, csv, env, json; repeat for more.",
        rich_help_panel=_OUTPUT,
        show_default=False,
    ),
]
PicturesOption = Annotated[
    bool,
    typer.Option(
        "--pictures/--no-pictures",
        help="Keep a few small held-out images in the record, for its report.",
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


EngineName = Annotated[
    Engine,
    typer.Option(
        "--engine",
        help="local: processes of this machine; ray: Ray here or on a cluster (bdaudit\\[ray]).",
        rich_help_panel=_ENGINE,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Tasks at a time \\[default: 1, or as many as there is room for on Ray].",
        min=1,
        show_default=False,
        rich_help_panel=_ENGINE,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        help="Threads of each \\[default: the processors shared out among several, 1 on Ray].",
        min=1,
        show_default=False,
        rich_help_panel=_ENGINE,
    ),
]
GpusPerTask = Annotated[
    float | None,
    typer.Option(
        help="Ray: GPUs a task takes, 0.25 for four on each \\[default: 0].",
        show_default=False,
        rich_help_panel=_ENGINE,
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        help="Ray: address of the cluster, or auto \\[default: Ray is started here].",
        show_default=False,
        rich_help_panel=_ENGINE,
    ),
]
StartLimit = Annotated[
    float | None,
    typer.Option(
        help="Ray: seconds to wait for free processors or GPUs \\[default: 120].",
        show_default=False,
        rich_help_panel=_ENGINE,
    ),
]


def read_counts(text: str, option: str) -> tuple[int, ...]:
    """Read "2,5,10" into whole numbers.

    Raises:
        ConfigError: A part is none.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"{option}: expected whole numbers separated by commas, got {text!r}"
        ) from error


def read_ladder(values: Sequence[str] | None) -> tuple[float, ...] | None:
    """Read `--eps`, given once with commas or several times."""
    if not values:
        return None
    return tuple(eps for text in values for eps in read_numbers(text, "--eps") or ())


def read_shape(text: str | None) -> tuple[int, int, int] | None:
    """Read "3,32,32" into (channels, height, width).

    Raises:
        ConfigError: It is not three numbers above 0.
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
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
    *,
    classnames: Path | None = None,
    templates: Path | None = None,
    pretrained: str | None = None,
    clip_config: Path | None = None,
) -> ModelSettings:
    """Gather what the user says about the checkpoints.

    Raises:
        ConfigError: An option does not go with the others.
        ModelError: Class names or templates cannot be used.
    """
    from bdaudit.auditing import ClipSettings, ModelSettings

    clip = None
    if classnames is not None:
        if arch is not None and not arch.startswith("open_clip/"):
            raise ConfigError(f"--classnames: only for --arch open_clip/NAME, got {arch}")
        clip = ClipSettings.from_files(
            classnames, templates=templates, config_folder=clip_config, pretrained=pretrained
        )
    elif templates or pretrained or clip_config:
        raise ConfigError("--templates, --pretrained, --clip-config: give --classnames with them")

    return ModelSettings(
        arch=arch,
        num_classes=num_classes,
        input_size=read_size(input_size),
        mean=read_numbers(mean, "--mean"),
        std=read_numbers(std, "--std"),
        outputs=None if outputs is None else outputs.value,
        clip=clip,
    )


def open_engine(
    name: Engine,
    workers: int | None,
    threads: int | None,
    gpus_per_task: float | None,
    ray_address: str | None,
    start_limit: float | None,
) -> AnyEngine:
    """Return the engine that was asked for.

    Raises:
        ConfigError: An option is out of range, or of the other engine.
    """
    from bdaudit import engines

    return engines.open_engine(
        name.value,
        workers=workers,
        threads_per_worker=threads,
        gpus_per_task=gpus_per_task,
        address=ray_address,
        start_limit_s=start_limit,
    )


def compute_settings(device: str, seed: int, batch_size: int, bf16: bool) -> ComputeSettings:
    """Gather where and how to compute."""
    from bdaudit.auditing.settings import ComputeSettings

    return ComputeSettings(device=device, seed=seed, batch_size=batch_size, bf16=bf16)


def split_settings(craft: int | None, held_out: int | None) -> SplitSettings:
    """Gather the sizes of the halves."""
    from bdaudit.auditing.settings import SplitSettings

    return SplitSettings(n_craft=craft, n_held_out=held_out)


def model_cache(folder: Path | None, no_cache: bool) -> Path | None:
    """Return the folder that keeps models made here, `None` for none.

    Raises:
        ConfigError: A folder was named, and none wanted.
    """
    from bdaudit.cache import cache_folder

    if no_cache and folder is not None:
        raise ConfigError("give --cache or --no-cache, not both")
    if no_cache:
        return None
    return (cache_folder() if folder is None else folder) / "models"


def defended_source(defended: str | None, endpoint: str | None) -> str:
    """Return the one thing to be audited.

    Raises:
        ConfigError: None was given, or two.
    """
    if (defended is None) == (endpoint is None):
        raise ConfigError("give either a DEFENDED file or --endpoint, and only one of them")
    if endpoint is not None:
        from bdaudit.blackbox.protocol import parse_endpoint

        parse_endpoint(endpoint)
    return str(defended if endpoint is None else endpoint)


def black_box_options(
    *,
    qps: float | None,
    concurrency: int,
    timeout: float,
    retries: int,
    token_env: str | None,
    ca_file: Path | None,
    binary: bool | None,
    layout: Layout | None,
    input_name: str | None,
    output_name: str | None,
    grid: int | None,
    request_size: int | None,
) -> BlackBoxOptions:
    """Gather what the user says about a model that can only be asked."""
    from bdaudit.auditing import BlackBoxOptions, TransportSettings

    return BlackBoxOptions(
        order=None if layout is None else layout.value,
        input_name=input_name,
        output_name=output_name,
        binary=binary,
        grid=grid,
        batch_size=request_size,
        transport=TransportSettings(
            timeout_s=timeout,
            max_retries=retries,
            qps=qps,
            concurrency=concurrency,
            token_env=token_env,
            ca_file=None if ca_file is None else str(ca_file),
        ),
    )


def open_store(
    state: Path | None, *, json: str | None, resume: bool, default: bool
) -> FolderStore | None:
    """Return where a run keeps what is needed to resume it, `None` for nowhere.

    Args:
        state: The folder the user named.
        json: Where the result goes; the default folder is beside it.
        resume: Whether to go on with what is there.
        default: Whether a folder beside the result is wanted when none was named.

    Raises:
        ConfigError: There is nothing to resume from.
        InputError: The folder cannot serve.
    """
    from bdaudit.auditing import FolderStore

    if state is None and json not in (None, "-") and (default or resume):
        state = Path(f"{json}.state")
    if state is None:
        if resume:
            raise ConfigError("--resume: name the result with --json FILE, or a folder by --state")
        return None
    return FolderStore(state, resume=resume)
