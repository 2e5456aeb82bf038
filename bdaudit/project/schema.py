"""What a project file may say.

Every key is an option of `bdaudit audit`, by the option's own name, in a table that is a panel of
the command's help; `bdaudit defend` takes those that it has as well, and a table of its own. A new
option of `audit` becomes a key by one field here; a test names the options that have neither a key
nor a reason to have none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bdaudit.verdict.policy import Policy

__all__ = [
    "Code",
    "Joined",
    "Location",
    "ProjectFile",
    "Table",
    "Trusted",
    "Written",
    "WrittenAs",
    "json_schema",
]


@dataclass(frozen=True)
class Location:
    """Marks a path to read (or an address), relative to the project file."""


@dataclass(frozen=True)
class Code:
    """Marks a name that may also be `FILE.py:NAME`, relative to the project file, which runs it."""


@dataclass(frozen=True)
class Written:
    """Marks a path that an audit writes, relative to the project file."""


@dataclass(frozen=True)
class WrittenAs:
    """Marks `FORMAT=FILE`, whose file an audit writes, relative to the project file."""


@dataclass(frozen=True)
class Trusted:
    """Marks a key that a file from elsewhere could do harm with, and says how.

    Attributes:
        why: What following the key does, to be read after the key's name.
    """

    why: str


@dataclass(frozen=True)
class Joined:
    """Marks a list that the command takes as one text, joined by commas."""


_Path = Annotated[str, Location()]
_Numbers = Annotated[list[float | str], Joined()]


class Table(BaseModel):
    """Base of all tables: frozen, no unknown keys, TOML's own types and no guessing."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Inputs(Table):
    """What is audited, on which images, with which trigger."""

    defended: Annotated[str, Location(), Code()] | None = Field(
        default=None,
        description="The release candidate: a checkpoint.",
        examples=["defended.safetensors"],
    )
    endpoint: str | None = Field(
        default=None,
        description="Instead of a checkpoint: a served candidate (Open Inference Protocol).",
        examples=["http://localhost:8080/v2/models/NAME"],
    )
    original: _Path | None = Field(
        default=None,
        description="The suspected model, before the defence.",
        examples=["original.safetensors"],
    )
    reference: list[_Path] | None = Field(
        default=None,
        description="Innocent models of the same task; three or more for a firm verdict.",
        examples=[["innocent-1.safetensors", "innocent-2.safetensors"]],
    )
    stand_ins: int | None = Field(
        default=None,
        description="Innocent models to make where too few are given, 0 for none.",
        examples=[3],
    )
    stand_in_images: int | None = Field(
        default=None,
        description="Images each of them is trained on, variants counted.",
        examples=[64_000],
    )
    data: _Path | None = Field(
        default=None, description="Clean labelled images: a folder or a file.", examples=["clean/"]
    )
    classes: _Path | None = Field(
        default=None,
        description="File with one class name a line, in order of index.",
        examples=["classes.txt"],
    )
    trigger: _Path | None = Field(
        default=None, description="Trigger file.", examples=["trigger.toml"]
    )
    target: int | str | None = Field(
        default=None,
        description="Target class, its index or name, in place of the trigger file's.",
        examples=[0, "sandal"],
    )
    allow_trigger_code: Annotated[bool, Trusted("runs the Python file of the trigger")] | None = (
        Field(
            default=None,
            description="Run the Python file that a trigger of kind 'python' names.",
            examples=[False],
        )
    )


class Models(Table):
    """What the checkpoints do not say themselves."""

    arch: Annotated[str, Code()] | None = Field(
        default=None,
        description="torchvision/NAME, timm/NAME, open_clip/NAME, bdaudit/NAME, or "
        "FILE.py:FACTORY.",
        examples=["torchvision/resnet18"],
    )
    num_classes: int | None = Field(default=None, description="Number of classes.", examples=[10])
    input_size: int | str | None = Field(
        default=None, description="Size the network wants, HxW or one number.", examples=["224x224"]
    )
    mean: _Numbers | None = Field(
        default=None,
        description="Per-channel mean of the normalisation.",
        examples=[[0.49, 0.48, 0.45]],
    )
    std: _Numbers | None = Field(
        default=None, description="Per-channel deviation.", examples=[[0.25, 0.24, 0.26]]
    )
    outputs: Literal["logits", "probabilities"] | None = Field(
        default=None, description="What the network returns.", examples=["logits"]
    )


class Clip(Table):
    """A CLIP as a classifier, where models.arch is open_clip/NAME."""

    classnames: _Path | None = Field(
        default=None,
        description="File with the name that prompts give each class, one a line.",
        examples=["classnames.txt"],
    )
    templates: _Path | None = Field(
        default=None,
        description="File with one prompt a line, {} for the name.",
        examples=["templates.txt"],
    )
    pretrained: str | None = Field(
        default=None,
        description="Weights the checkpoints were trained from: a tag of open_clip, or a file "
        "(as seen from the working folder).",
        examples=["openai"],
    )
    clip_config: _Path | None = Field(
        default=None,
        description="Folder with NAME.json, a config of open_clip.",
        examples=["configs"],
    )


class Attack(Table):
    """How the backdoor is sought to be woken."""

    mode: list[Literal["white", "query", "transfer"]] | None = Field(
        default=None,
        description="Kinds of attack: white looks into the model, query only asks it, transfer "
        "makes the perturbation on other models.",
        examples=[["white"]],
    )
    eps: list[float | str] | None = Field(
        default=None,
        description="Radii to try, in pixel units on [0, 1] images.",
        examples=[[0.01, 0.02, 0.03, 0.05], ["2/255", "4/255"]],
    )
    norm: Literal["linf", "l2"] | None = Field(
        default=None, description="Norm of the perturbation.", examples=["linf"]
    )
    passes: int | None = Field(
        default=None,
        description="Gradient passes over the craft images, each attack.",
        examples=[24],
    )
    restarts: int | None = Field(default=None, description="Independent starts.", examples=[1])
    objective: Literal["standard", "specific"] | None = Field(
        default=None, description="What the attack optimises.", examples=["standard"]
    )
    bec: bool | None = Field(
        default=None, description="Measure the backdoor existence coefficient.", examples=[True]
    )
    relearn: bool | None = Field(
        default=None,
        description="Also measure how fast the trigger is relearned, beside the verdict.",
        examples=[False],
    )


class Query(Table):
    """Asking alone: budget, and how a server is asked."""

    max_queries: int | None = Field(
        default=None, description="Images one search may ask about.", examples=[20_000]
    )
    feedback: Literal["scores", "labels"] | None = Field(
        default=None, description="What the search is given.", examples=["scores"]
    )
    schedule: Literal["default", "research"] | None = Field(
        default=None, description="research: the paper's search, to compare.", examples=["default"]
    )
    cold: bool | None = Field(
        default=None, description="Start queries without surrogates.", examples=[False]
    )
    qps: float | None = Field(default=None, description="Images a second at most.", examples=[50.0])
    concurrency: int | None = Field(default=None, description="Requests in flight.", examples=[1])
    timeout: float | None = Field(
        default=None, description="Seconds to wait for an answer.", examples=[30.0]
    )
    retries: int | None = Field(
        default=None, description="Times a request is sent again.", examples=[5]
    )
    token_env: (
        Annotated[str, Trusted("sends the content of an environment variable to the server")] | None
    ) = Field(
        default=None,
        description="Environment variable that holds a bearer token.",
        examples=["MODEL_TOKEN"],
    )
    ca_file: _Path | None = Field(
        default=None, description="Certificates to trust for TLS.", examples=["ca.pem"]
    )
    binary: bool | None = Field(
        default=None, description="Send tensors as raw bytes or not.", examples=[True]
    )
    layout: Literal["NCHW", "NHWC"] | None = Field(
        default=None, description="Of the model's input.", examples=["NCHW"]
    )
    input_name: str | None = Field(
        default=None, description="Of a server's image input.", examples=["input"]
    )
    output_name: str | None = Field(
        default=None, description="Output with the scores, of several.", examples=["logits"]
    )
    grid: int | None = Field(
        default=None, description="Steps of a pixel value on its way.", examples=[255]
    )
    request_size: int | None = Field(
        default=None, description="Images in a request.", examples=[64]
    )
    state: Annotated[str, Written()] | None = Field(
        default=None, description="Folder for what is needed to resume.", examples=["audit.state"]
    )


class Surrogates(Table):
    """Models that a perturbation is made on, or that queries start from."""

    surrogate: list[_Path] | None = Field(
        default=None,
        description="Other defended versions of the original, in place of ones made from it.",
        examples=[["other-defence.safetensors"]],
    )
    strategy: Literal["ensemble", "momentum", "one-per-step"] | None = Field(
        default=None, description="How several are used.", examples=["ensemble"]
    )
    input_diversity: float | None = Field(
        default=None,
        description="Chance that a mini-batch is shrunk and moved at random.",
        examples=[0.0],
    )
    cache: Annotated[str, Written()] | None = Field(
        default=None,
        description="Folder that keeps surrogates for the next run.",
        examples=[".bdaudit-cache"],
    )
    no_cache: bool | None = Field(default=None, description="Keep none.", examples=[False])


class Compute(Table):
    """Where, on how many images, from which seed."""

    craft: int | None = Field(
        default=None, description="Images perturbations are made on.", examples=[500]
    )
    held_out: int | None = Field(
        default=None, description="Images rates are measured on.", examples=[1500]
    )
    device: str | None = Field(
        default=None, description="auto, cpu, cuda or cuda:N.", examples=["auto"]
    )
    seed: int | None = Field(default=None, description="Seed of every draw.", examples=[0])
    batch_size: int | None = Field(
        default=None, description="Images in a forward pass.", examples=[256]
    )
    bf16: bool | None = Field(
        default=None, description="Run attacks under bfloat16 autocast.", examples=[False]
    )


class Output(Table):
    """What an audit writes."""

    json_: Annotated[str, Written()] | None = Field(
        default=None, alias="json", description="The record.", examples=["result.json"]
    )
    report: list[Annotated[str, WrittenAs()]] | None = Field(
        default=None,
        description="Reports, FORMAT=FILE each: html, sarif, junit, md, csv, env, json.",
        examples=[["html=report.html"]],
    )
    pictures: bool | None = Field(
        default=None,
        description="Keep a few small held-out images in the record, for its report.",
        examples=[True],
    )


class Defend(Table):
    """What `bdaudit defend` tries; `bdaudit audit` does not look at it."""

    methods: Annotated[list[str], Joined()] | None = Field(
        default=None, description="Defences, all of them by default.", examples=[["anp", "fst"]]
    )
    settings: list[str] | None = Field(
        default=None,
        description="Settings of single defences, METHOD.SETTING=VALUE each.",
        examples=[["ft-sam.rho=1.0"]],
    )
    defender_images: int | None = Field(
        default=None,
        description="Clean images the defences get; the audits get the others.",
        examples=[500],
    )


class ProjectFile(Table):
    """Everything `bdaudit audit` needs, so that it can be run without arguments.

    Keys are the command's options by name. Paths are relative to this file. What is left out keeps
    the command's default, and the command line wins over the file.
    """

    model_config = ConfigDict(title="bdaudit project file")

    inputs: Inputs = Inputs()
    models: Models = Models()
    clip: Clip = Clip()
    attack: Attack = Attack()
    query: Query = Query()
    surrogates: Surrogates = Surrogates()
    compute: Compute = Compute()
    output: Output = Output()
    defend: Defend = Defend()
    policy: _Path | Policy | None = Field(
        default=None, description="Limits of the verdict: a table, or the path of a policy file."
    )


def json_schema() -> str:
    """Return the JSON schema of a project file, for editors, as indented JSON."""
    schema: dict[str, Any] = ProjectFile.model_json_schema()
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
