"""The tables of settings: one a panel of the help, and (most of them) one in the project file.

To add a setting, add a field here. `docs/command-line.md`, `docs/bdaudit.schema.json` and
`tests/cli/options.json` are then written anew, each by the command that its test names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from bdaudit.foundation.modes import MODES, Mode
from bdaudit.settings.declaring import (
    CODE,
    COUNTS,
    LADDER,
    LOCATION,
    NAMES,
    NUMBERS,
    PATH,
    SIZE,
    WRITTEN,
    WRITTEN_AS,
    Table,
    Trusted,
    option,
)

__all__ = [
    "BUDGETS",
    "Attack",
    "Budget",
    "Clip",
    "Compute",
    "Defend",
    "Engine",
    "Existence",
    "Inputs",
    "Inversion",
    "Limits",
    "Models",
    "Output",
    "Precision",
    "PrecisionChoice",
    "Query",
    "Relearning",
    "Surrogates",
]

Budget: TypeAlias = Literal["quick", "standard", "thorough"]

BUDGETS: dict[Budget, dict[str, dict[str, Any]]] = {
    "quick": {
        # The attack stays as it is: a weaker one would say "removed" of what it cannot wake.
        "audit": {"stand_ins": 0, "bec": False},
        "search": {"method": ("universal",)},
    },
    "standard": {"audit": {}, "search": {}},
    "thorough": {
        "audit": {"passes": 60, "restarts": 2, "placebos": 8},
        "search": {
            "method": (
                *("universal", "warp", "neural-cleanse"),
                *("feature-decoupling", "neuron-noise"),
            ),
            "passes": 24,
        },
    },
}
"""What a budget sets, where nothing else does: of an audit, and of a search for the trigger.

What each can and cannot decide is in docs/running.md.
"""

_ASKING = "Query mode"
_COMPUTE = "Computation"
_STAND_INS = "Stand-ins for innocent models"

Precision: TypeAlias = Literal["float32", "bfloat16"]
PrecisionChoice: TypeAlias = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Inputs(Table, panel="Inputs"):
    """What is audited, on which images, with which trigger."""

    defended: str | None = option(
        help="The release candidate: a checkpoint; in query and transfer mode also an .onnx file, "
        "an OpenVINO .xml, or FILE.py:FUNCTION (which runs that file's code).",
        examples=("defended.safetensors",),
        marks=(LOCATION, CODE),
    )
    endpoint: str | None = option(
        help="Instead of a checkpoint: a served candidate, "
        "http(s)://HOST:PORT/v2/models/NAME (Open Inference Protocol).",
        examples=("http://localhost:8080/v2/models/NAME",),
        panel=_ASKING,
    )
    original: str | None = option(
        help="The suspected model, before the defence.",
        examples=("original.safetensors",),
        marks=(LOCATION,),
    )
    reference: tuple[str, ...] = option(
        (),
        help="An innocent model for the same task; pass three or more for a firm verdict. "
        "Stand-ins are made for missing ones.",
        examples=(["innocent-1.safetensors", "innocent-2.safetensors"],),
        marks=(LOCATION,),
    )
    stand_ins: int | None = option(
        help="Number of stand-ins to make from the clean images: substitute innocent models, used "
        "only if they pass checks.",
        examples=(3,),
        ge=0,
        default_text="as many as are missing",
        panel=_STAND_INS,
    )
    stand_in_images: int = option(
        64_000,
        help="Images each stand-in is trained on, counting every variant of a craft image.",
        examples=(64_000,),
        ge=1,
        panel=_STAND_INS,
    )
    data: str | None = option(
        help="Clean labelled images: a folder of class folders, arrays (.npz, .safetensors), a "
        "table (.csv, .jsonl), .parquet, .tar, .zip, a COCO export, or a data set's own files.",
        examples=("clean/",),
        marks=(LOCATION,),
    )
    task: Literal["classification", "detection"] = option(
        "classification",
        help="What the models do: classify images, or detect objects. For detection the data are "
        "pictures with boxes, in COCO's or VOC's layout.",
        examples=("detection",),
    )
    classes: str | None = option(
        help="File with one class name per line, in order of index.",
        examples=("classes.txt",),
        marks=(LOCATION, PATH),
    )
    label_column: str | None = option(
        help="Column of the labels, of data in a table or in parquet files: indices or names.",
        examples=("label",),
        default_text="the one that is called so",
    )
    image_column: str | None = option(
        help="Column of the images or of their paths, likewise.",
        examples=("file_name",),
        default_text="the one that is called so",
    )
    trigger: str | None = option(
        help="Trigger file (TOML). Without one, a trigger is first searched for in the original.",
        examples=("trigger.toml",),
        marks=(LOCATION,),
    )
    target: int | str | None = option(
        help="Target class (index or name), overriding the trigger file.",
        examples=(0, "sandal"),
    )
    placebo: tuple[str, ...] = option(
        (),
        help="A placebo of your own: a trigger file whose target is ignored; screened like those "
        "that are drawn, and counted among --placebos, which are then 8 where nothing is said.",
        examples=(["sticker.toml"],),
        marks=(LOCATION,),
    )
    allow_trigger_code: bool = option(
        False,
        help="Run the Python file that a trigger of kind 'python' names.",
        examples=(False,),
        flags="--allow-trigger-code/--no-trigger-code",
        marks=(Trusted("runs the Python file of the trigger"),),
    )


@dataclass(frozen=True, kw_only=True)
class Limits(Table, panel="Inputs"):
    """What the verdict holds the figures against."""

    policy: str | None = option(
        help="Limits of the verdict: a policy file (TOML).",
        examples=("policy.toml",),
        marks=(LOCATION, PATH),
    )


@dataclass(frozen=True, kw_only=True)
class Models(Table, panel="Model details that the checkpoints do not store"):
    """Model details that the checkpoints do not store."""

    arch: str | None = option(
        help="torchvision/NAME, timm/NAME, open_clip/NAME, bdaudit/preactresnet18[_wN], or "
        "FILE.py:FACTORY (which runs that file's code).",
        examples=("torchvision/resnet18",),
        marks=(CODE,),
    )
    num_classes: int | None = option(help="Number of classes.", examples=(10,), ge=2)
    input_size: tuple[int, int] | None = option(
        help="Input size of the network, HxW or one number; images are resized to it. Of "
        "detectors: the size that all pictures are brought to.",
        examples=("224x224",),
        form=SIZE,
    )
    mean: tuple[float, ...] | None = option(
        help="Per-channel mean of the normalisation, comma-separated.",
        examples=([0.49, 0.48, 0.45],),
        form=NUMBERS,
    )
    std: tuple[float, ...] | None = option(
        help="Per-channel standard deviation, comma-separated.",
        examples=([0.25, 0.24, 0.26],),
        form=NUMBERS,
    )
    outputs: Literal["logits", "probabilities"] | None = option(
        help="What the network returns.", examples=("logits",)
    )
    score_threshold: float | None = option(
        help="Score from which a detection counts, of detectors.",
        examples=(0.5,),
        gt=0,
        le=1,
        default_text="0.5",
    )
    weights: tuple[str, ...] = option(
        (),
        help="Which weights to use of a file with several sets: KEY for every file that has it, "
        "original=KEY (or defended, reference, surrogate) for one role; may be repeated.",
        examples=(["state_dict_ema"], ["defended=model", "original=state_dict"]),
        metavar="KEY|ROLE=KEY",
    )
    read_pickled_module: bool = option(
        False,
        help="Take the tensors of a whole pickled module (torch.save(model)) without running it; "
        "what they compute is the architecture's.",
        examples=(False,),
    )


@dataclass(frozen=True, kw_only=True)
class Clip(Table, panel="CLIP as a classifier (--arch open_clip/NAME)"):
    """A CLIP as a classifier, where models.arch is open_clip/NAME."""

    classnames: str | None = option(
        help="File with the class names for the prompts, one per line, in order of index.",
        examples=("classnames.txt",),
        marks=(LOCATION, PATH),
    )
    templates: str | None = option(
        help="File with one prompt per line, {} for the class name; their embeddings are averaged.",
        examples=("templates.txt",),
        default_text="'a photo of a {}.'",
        marks=(LOCATION, PATH),
    )
    pretrained: str | None = option(
        help="Weights the checkpoints were trained from, a tag of open_clip or a local file (as "
        "seen from the working folder): gives the normalisation, and the text tower where a "
        "checkpoint has none.",
        examples=("openai",),
    )
    clip_config: str | None = option(
        help="Folder with NAME.json, an open_clip config.",
        examples=("configs",),
        marks=(LOCATION, PATH),
    )


@dataclass(frozen=True, kw_only=True)
class Attack(Table, panel="Attack"):
    """How the backdoor is sought to be woken."""

    mode: tuple[Mode, ...] = option(
        (),
        help="; ".join(f"{mode}: {words.help}" for mode, words in MODES.items()) + ".",
        examples=(["white"],),
        default_text="white; query for a black-box model (predictions only)",
    )
    eps: tuple[float, ...] | None = option(
        help="Radii to try, in pixel units on [0, 1] images: 0.01,0.02 or 2/255.",
        examples=([0.01, 0.02, 0.03, 0.05], ["2/255", "4/255"]),
        default_text="0.01,0.02,0.03,0.05 for linf",
        form=LADDER,
    )
    norm: Literal["linf", "l2"] = option(
        "linf", help="Norm of the perturbation.", examples=("linf",)
    )
    passes: int = option(
        24,
        help="Gradient passes over the craft images, for each attack.",
        examples=(24,),
        ge=1,
    )
    restarts: int = option(1, help="Independent starts.", examples=(1,), ge=1)
    objective: Literal["standard", "specific"] = option(
        "standard", help="Objective of the attack.", examples=("standard",)
    )
    optimizer: Literal["default", "research"] = option(
        "default",
        help="Optimiser of the attack; research: the one of the paper, for comparison.",
        in_file=False,
    )
    placebos: int = option(
        0,
        help="Placebo triggers, as strong as the true one and ignored by the original, that each "
        "telling attack is made with too; the verdict is then held against them.",
        examples=(8,),
        ge=0,
        le=64,
    )
    budget: Literal["quick", "standard", "thorough"] = option(
        "standard",
        help="Effort, for all that no other option says: quick makes no stand-ins and measures no "
        "BEC; thorough attacks harder, with placebos.",
        in_file=False,
    )
    bec: bool = option(True, help="Measure the backdoor existence coefficient.", examples=(True,))
    relearn: bool = option(
        True,
        help="Measure how fast the trigger is relearned, where weights are at hand; there is no "
        '"removed" where it comes back too fast.',
        examples=(True,),
    )


@dataclass(frozen=True, kw_only=True)
class Query(Table, panel=_ASKING):
    """Asking alone: budget, and how a server is asked."""

    max_queries: int = option(
        20_000,
        help="Query budget of one search, in images; never exceeded.",
        examples=(20_000,),
        ge=1,
    )
    feedback: Literal["scores", "labels"] = option(
        "scores",
        help="What the search sees of each answer: scores, or the top label only.",
        examples=("scores",),
    )
    schedule: Literal["default", "research"] = option(
        "default",
        help="Query search; research: the one of the paper, for comparison.",
        examples=("default",),
    )
    cold: bool = option(
        False,
        help="Start the query search without surrogates.",
        examples=(False,),
        flags="--cold/--warm",
    )
    qps: float | None = option(help="Maximum number of images per second.", examples=(50.0,), gt=0)
    concurrency: int = option(1, help="Number of requests in flight.", examples=(1,), ge=1)
    timeout: float = option(30.0, help="Seconds to wait for a response.", examples=(30.0,), gt=0)
    retries: int = option(
        5, help="How many times a failed request is retried.", examples=(5,), ge=0
    )
    token_env: str | None = option(
        help="Environment variable that holds a bearer token.",
        examples=("MODEL_TOKEN",),
        marks=(Trusted("sends the content of an environment variable to the server"),),
    )
    ca_file: str | None = option(
        help="Certificates to trust for TLS.", examples=("ca.pem",), marks=(LOCATION, PATH)
    )
    binary: bool | None = option(
        help="Send tensors as raw bytes.",
        examples=(True,),
        default_text="if the server supports it",
    )
    layout: Literal["NCHW", "NHWC"] | None = option(
        help="Order of dimensions of the model's input.", examples=("NCHW",)
    )
    first_label: int = option(
        1,
        help="Number of a detector's first class in its answers: 1 as torchvision has it, where "
        "0 is the background, or 0.",
        examples=(0,),
        ge=0,
        le=1,
    )
    input_name: str | None = option(help="Name of the server's image input.", examples=("input",))
    output_name: str | None = option(
        help="Name of the output with the scores, if there are several.", examples=("logits",)
    )
    grid: int | None = option(
        help="Quantisation steps of a pixel value in transit, 255 for 8-bit images.",
        examples=(255,),
        ge=1,
    )
    request_size: int | None = option(help="Images per request.", examples=(64,), ge=1)
    state: str | None = option(
        help="Folder for the state that --resume needs.",
        examples=("audit.state",),
        default_text="the --json file's name + .state",
        marks=(WRITTEN, PATH),
    )


@dataclass(frozen=True, kw_only=True)
class Surrogates(Table, panel="Surrogates (transfer mode, and where queries start)"):
    """Models that a perturbation is made on, or that queries start from."""

    surrogate: tuple[str, ...] = option(
        (),
        help="Another defended version of the original, of any architecture; may be repeated.",
        examples=(["other-defence.safetensors"],),
        default_text="made from the original, by four defences",
        marks=(LOCATION, PATH),
    )
    strategy: Literal["ensemble", "momentum", "one-per-step"] = option(
        "ensemble", help="How several surrogates are combined.", examples=("ensemble",)
    )
    input_diversity: float = option(
        0.0,
        help="Probability that a mini-batch is shrunk and shifted at random.",
        examples=(0.0,),
        ge=0.0,
        le=1.0,
    )
    cache: str | None = option(
        help="Cache folder for the models that a run makes.",
        examples=(".bdaudit-cache",),
        default_text="$BDAUDIT_CACHE, or ~/.cache/bdaudit",
        panel=_COMPUTE,
        marks=(WRITTEN, PATH),
    )
    no_cache: bool = option(
        False, help="Do not cache models.", examples=(False,), flags="--no-cache", panel=_COMPUTE
    )


@dataclass(frozen=True, kw_only=True)
class Compute(Table, panel=_COMPUTE):
    """Where, on how many images, from which seed."""

    craft: int | None = option(
        help="Number of images to make perturbations on.",
        examples=(500,),
        ge=1,
        default_text="half, at most 500",
    )
    held_out: int | None = option(
        help="Number of images to measure rates on.",
        examples=(1500,),
        ge=1,
        default_text="all others",
    )
    device: str = option("auto", help="auto, cpu, cuda or cuda:N.", examples=("auto",))
    seed: int = option(0, help="Seed of all random draws.", examples=(0,), ge=0)
    batch_size: int = option(256, help="Images per forward pass.", examples=(256,), ge=1)
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto",
        help="Precision of attacks, their scoring, BEC and all training; auto is bfloat16 on a "
        "card that has it, and float32 elsewhere. Clean accuracy and the ASR of the trigger alone "
        "are always measured in float32.",
        examples=("float32",),
    )
    bf16: bool | None = option(
        help="Old name of precision = bfloat16.",
        now=lambda bf16: ("precision", "bfloat16" if bf16 else "float32"),
    )


@dataclass(frozen=True, kw_only=True)
class Output(Table, panel="Output"):
    """What an audit writes."""

    json_: str | None = option(
        help="Write the record as JSON to this file, or to stdout with '-'.",
        examples=("result.json",),
        metavar="FILE|-",
        key="json",
        marks=(WRITTEN,),
    )
    report: tuple[str, ...] = option(
        (),
        help="Also write the result as html, sarif, junit, md, csv, env, intoto, cyclonedx, "
        "openvex, model-card, json; may be repeated.",
        examples=(["html=report.html"],),
        metavar="FORMAT=FILE",
        marks=(WRITTEN_AS,),
    )
    pictures: bool = option(
        True,
        help="Keep a few small held-out images in the record, for its report.",
        examples=(True,),
    )


@dataclass(frozen=True, kw_only=True)
class Defend(Table, panel="Defences"):
    """What `bdaudit defend` tries; no other command looks at it."""

    methods: tuple[str, ...] | None = option(
        help="Defences to try, separated by commas.",
        examples=(["anp", "fst"],),
        default_text="all of them",
        form=NAMES,
    )
    settings: tuple[str, ...] = option(
        (),
        help="A setting of one defence, such as anp.threshold=0.3; may be repeated.",
        examples=(["ft-sam.rho=1.0"],),
        flags="--set",
        metavar="METHOD.SETTING=VALUE",
    )
    defender_images: int | None = option(
        help="Number of clean images for the defences; the audits use the others.",
        examples=(500,),
        ge=2,
        default_text="half, at most 2000",
    )


@dataclass(frozen=True, kw_only=True)
class Existence(Table, panel="BEC"):
    """How `bdaudit score`, and no other command, measures the backdoor existence coefficient."""

    top_share: float = option(
        0.10, help="Share of channels kept in each layer.", examples=(0.10,), ge=0.0, le=1.0
    )
    estimator: Literal["plain", "debiased"] = option(
        "plain", help="Estimator of CKA.", examples=("plain",)
    )
    samples: int = option(500, help="Maximum number of images.", examples=(500,), ge=4)
    bootstrap: int = option(200, help="Bootstrap draws; 0 for none.", examples=(200,), ge=0)
    layer: tuple[str, ...] = option(
        (),
        help="Only layers whose name matches this pattern; may be repeated.",
        examples=(["layer3*", "layer4*"],),
    )


@dataclass(frozen=True, kw_only=True)
class Relearning(Table, panel="Relearning"):
    """How `bdaudit relearn`, and an audit with attack.relearn, teach the trigger."""

    shots: int = option(5, help="Number of triggered images to train on.", examples=(5,), ge=1)
    steps: tuple[int, ...] = option(
        (2, 5, 10, 20),
        help="Training steps after which the ASR is measured, in rising order.",
        examples=([2, 5, 10, 20],),
        form=COUNTS,
    )
    learning_rates: tuple[float, ...] = option(
        (0.0001, 0.0003, 0.001, 0.003),
        help="Learning rates to try on the innocent models, in rising order; the defended model "
        "is trained at the largest that leaves them innocent.",
        examples=([0.0001, 0.0003, 0.001, 0.003],),
        form=NUMBERS,
    )
    draws: int = option(5, help="Repetitions with other triggered images.", examples=(5,), ge=1)
    freeze_batch_norm: bool = option(
        True,
        help="Freeze the running statistics of batch norm.",
        examples=(True,),
        flags="--freeze-batch-norm/--train-batch-norm",
    )


@dataclass(frozen=True, kw_only=True)
class Inversion(Table, panel="Search"):
    """How `bdaudit invert`, and an audit without inputs.trigger, look for the trigger."""

    method: tuple[
        Literal[
            "auto",
            "universal",
            "warp",
            "neural-cleanse",
            "embedded",
            "feature-decoupling",
            "neuron-noise",
        ],
        ...,
    ] = option(
        (),
        help="Search method; may be repeated. auto: universal, warp and neural-cleanse.",
        examples=(["auto"],),
        default_text="auto",
    )
    budget: Literal["quick", "standard", "thorough"] = option(
        "standard",
        help="Effort, for all that no other option says: quick uses one method, thorough five.",
        in_file=False,
    )
    target: int | str = option(
        "all",
        help="The suspected class (index or name), or all; for an audit set inputs.target.",
        examples=("all", 0),
        metavar="N|all",
    )
    passes: int = option(
        12,
        help="Passes over the craft images for each trigger that is optimised to the end.",
        examples=(12,),
        ge=1,
    )


@dataclass(frozen=True, kw_only=True)
class Engine(Table, panel="Execution"):
    """Who does the many tasks of `bdaudit defend`, and with what."""

    engine: Literal["local", "ray"] = option(
        "local",
        help="local: processes on this machine; ray: Ray here or on a cluster (bdaudit[ray]).",
        examples=("local",),
    )
    workers: int | None = option(
        help="Number of tasks to run at a time.",
        examples=(2,),
        ge=1,
        default_text="1; on Ray, as many as fit",
    )
    threads: int | None = option(
        help="Threads per task.",
        examples=(1,),
        ge=1,
        default_text="the processors divided among the workers; on Ray, 1",
    )
    gpus_per_task: float | None = option(
        help="Ray: GPUs per task; 0.25 lets four tasks share one.",
        examples=(0.25,),
        default_text="0",
    )
    ray_address: str | None = option(
        help="Ray: address of the cluster, or auto.",
        examples=("auto",),
        default_text="a Ray that is started here",
        marks=(Trusted("lets the Ray cluster there run code on this machine"),),
    )
    start_limit: float | None = option(
        help="Ray: seconds to wait for free processors or GPUs.",
        examples=(120.0,),
        default_text="120",
    )
