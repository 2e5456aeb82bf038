"""The family file: which models are built, from what, and how.

It is meant to be written by hand: names of attacks and defences, poison rates, seeds, and patterns
that say which models something is done to. docs/zoo.md describes every key.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bdaudit.defenses.catalogue import DEFENSES, defense_config
from bdaudit.errors import ConfigError, ManifestError, reads, unknown_key
from bdaudit.foundation.plain_settings import config_from
from bdaudit.foundation.tasks import Task
from bdaudit.foundation.texts import read_toml
from bdaudit.models.architectures import is_detector_arch
from bdaudit.relatives.standins import StandInConfig
from bdaudit.relearning import RelearnConfig
from bdaudit.triggers import AllToAll, AllToOne, TargetRule
from bdaudit.zoo.attacks import ATTACKS, attack_config
from bdaudit.zoo.attacks.on_objects import rule_of_goal
from bdaudit.zoo.cleanends import HardeningConfig, UnlearningConfig
from bdaudit.zoo.selection import FusConfig
from bdaudit.zoo.training import TrainingConfig

__all__ = [
    "CLEAN_ENDS",
    "UNDEFENDED",
    "AttackEntry",
    "CleanTable",
    "DataTable",
    "DefenseEntry",
    "Manifest",
    "read_manifest",
]

CLEAN_ENDS = ("innocent", "retrained", "true_labels", "distilled", "hardened", "unlearned")
"""Keys of [clean] that list which originals get such a counterpart."""

UNDEFENDED = "none"
"""What a reference went through when it went through nothing."""

_NOT_OF_DETECTORS = ("distilled", "hardened")
"""Clean ends whose training is that of a classifier's answers."""

_OF_DETECTORS = {"batch_size": 16, "weight_decay": 1e-4, "max_shift": 0.0, "flip": False}

Config = TypeVar("Config")

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*$")]
_Seed = Annotated[int, Field(ge=0)]
_Rate = Annotated[float, Field(gt=0, le=1)]
_Patterns = list[Annotated[str, Field(min_length=1)]]


class Table(BaseModel):
    """Base of all tables: frozen, no unknown keys, TOML's own types and no guessing."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FamilyTable(Table):
    """[family].

    Attributes:
        name: Of the family.
        seed: Every member's own seed follows from it and the member's name.
    """

    name: _Name
    seed: _Seed = 0


class DataTable(Table):
    """[data]: where images come from and into which disjoint parts they are dealt.

    Attributes:
        path: A data set with both a train and a test part, as docs/data.md lists them; relative
            paths are from the family file's folder.
        train: Instead of `path`: where training images are.
        test: Instead of `path`: where test images are.
        image_shape: (C, H, W) to bring images to; needed where they differ in size.
        task: "detection" reads pictures with objects, of which `path` has a training and a test
            part. All that is counted below are pictures then, each with all of its objects.
        pool: Training images that models are trained on; all but the defender's by default.
        defense: Training images that only defenders get.
        sample: Test images that the auditor gets, in clean.npz, or pictures, in clean/.
        measure: Test images that rates in family.json are measured on.
    """

    path: str | None = None
    train: str | None = None
    test: str | None = None
    image_shape: tuple[int, int, int] | None = None
    task: Task = "classification"
    pool: int | None = Field(default=None, ge=2)
    defense: int = Field(default=2_000, ge=2)
    sample: int = Field(default=2_000, ge=20)
    measure: int = Field(default=2_000, ge=20)

    @field_validator("image_shape", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_source(self) -> DataTable:
        if (self.path is None) == (self.train is None and self.test is None):
            raise ValueError("expected either path, or train and test")
        if (self.train is None) != (self.test is None):
            raise ValueError("expected train and test together")
        return self


class ModelTable(Table):
    """[model]: the network that every member is.

    Attributes:
        arch: Architecture, as docs/models.md spells it; a family cannot run a Python file.
        mean: Subtracted from [0, 1] images, one value or one a channel.
        std: Divisor, likewise.
        input_size: (H, W) to resize to inside the model.
    """

    arch: str = "bdaudit/preactresnet18"
    mean: list[float] = [0.0]
    std: list[float] = [1.0]
    input_size: tuple[int, int] | None = None

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _floats(cls, value: Any) -> Any:
        return [float(v) if type(v) is int else v for v in value] if type(value) is list else value

    @field_validator("input_size", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class AttackEntry(Table):
    """[[attack]]: originals with one trigger.

    Attributes:
        type: A key of `ATTACKS`.
        name: In the names of models; the type by default.
        target: The class that images are taken to, or "all-to-all".
        rates: Poison rates, one original each.
        seeds: For each rate, one original each; they differ in images, weights and poisoned images.
        selection: How the images to poison are chosen: at "random", or by "fus", as [fus] says.
        settings: Of the attack, where they differ from its defaults.
    """

    type: str
    name: _Name = ""
    target: Annotated[int, Field(ge=0)] | Literal["all-to-all"] = 0
    rates: list[_Rate] = Field(default=[0.1], min_length=1)
    seeds: list[_Seed] = Field(default=[1], min_length=1)
    selection: Literal["random", "fus"] = "random"
    settings: dict[str, Any] = {}

    @field_validator("rates", mode="before")
    @classmethod
    def _floats(cls, value: Any) -> Any:
        return [float(v) if type(v) is int else v for v in value] if type(value) is list else value

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        return _with_name(values)

    @model_validator(mode="after")
    def _known(self) -> AttackEntry:
        if self.type not in ATTACKS:
            raise ValueError(f"type: {unknown_key(self.type, ATTACKS)}")
        if ATTACKS[self.type].one_target and self.target == "all-to-all":
            raise ValueError(f"target: {self.type} goes to one class, not all-to-all")
        _require_once("rates", self.rates)
        _require_once("seeds", self.seeds)
        config = self.config()
        if ATTACKS[self.type].task == "detection":
            rule_of_goal(config.goal, self.rule())
        return self

    def config(self) -> Any:
        """Build the attack's settings."""
        return attack_config(self.type, self.settings)

    def rule(self) -> TargetRule:
        """Build the target rule."""
        return AllToAll() if self.target == "all-to-all" else AllToOne(self.target)

    def originals(self) -> dict[str, tuple[float, int]]:
        """Return poison rate and seed of every original by name: `badnets-r10-s1`."""
        return {
            f"{self.name}-r{_percent(rate)}-s{seed}": (rate, seed)
            for rate in self.rates
            for seed in self.seeds
        }


class DefenseEntry(Table):
    """[[defense]]: one defence, and the models that are put through it.

    Attributes:
        type: A key of `DEFENSES`.
        name: In the names of models; the type by default.
        of: Patterns of originals (`badnets-*`, as a shell's) and of clean ends (`*--innocent`).
        settings: Of the defence, where they differ from its defaults.
    """

    type: str
    name: _Name = ""
    of: _Patterns = []
    settings: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        return _with_name(values)

    @model_validator(mode="after")
    def _known(self) -> DefenseEntry:
        if self.type not in DEFENSES:
            raise ValueError(f"type: {unknown_key(self.type, DEFENSES)}")
        if self.name == UNDEFENDED:
            raise ValueError(f"name: {UNDEFENDED!r} means no defence")
        self.config()
        return self

    def config(self) -> Any:
        """Build the defence's settings."""
        return defense_config(self.type, self.settings)


class CleanTable(Table):
    """[clean]: models with a known clean end. Each list holds patterns of originals.

    Attributes:
        innocent: Trained on clean images, and asked about that original's trigger.
        retrained: Trained from scratch on the original's own images, none of them poisoned.
        true_labels: Trained with the trigger on as many images, which keep their true labels.
        distilled: Taught by the original's answers on clean images.
        hardened: Trained on clean images adversarially.
        unlearned: The original, tuned on clean and on triggered images under their true labels.
        references: Innocent models that are set aside to compare with: the defence each goes
            through, by name, or "none".
    """

    innocent: _Patterns = []
    retrained: _Patterns = []
    true_labels: _Patterns = []
    distilled: _Patterns = []
    hardened: _Patterns = []
    unlearned: _Patterns = []
    references: list[str] = []


class Manifest(Table):
    """All of a family file, its paths as they are written.

    Attributes:
        family: Name and seed.
        data: Images.
        model: Network.
        training: How networks are trained, as `TrainingConfig` names it.
        attack: Originals.
        defense: Defences.
        clean: Clean ends and references.
        fus: Of originals whose `selection` is "fus", as `FusConfig` names it.
        hardening: Of `clean.hardened`, as `HardeningConfig` names it.
        distillation: Of `clean.distilled`, as `StandInConfig` names it.
        unlearning: Of `clean.unlearned`, as `UnlearningConfig` names it.
        relearning: How the truth is settled, as `RelearnConfig` names it.
    """

    family: FamilyTable
    data: DataTable
    model: ModelTable = ModelTable()
    training: dict[str, Any] = {}
    attack: list[AttackEntry] = Field(min_length=1)
    defense: list[DefenseEntry] = []
    clean: CleanTable = CleanTable()
    fus: dict[str, Any] = {}
    hardening: dict[str, Any] = {}
    distillation: dict[str, Any] = {}
    unlearning: dict[str, Any] = {}
    relearning: dict[str, Any] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        _require_once("attack: name", [entry.name for entry in self.attack])
        _require_once("defense: name", [entry.name for entry in self.defense])
        _require_once("attack", list(self.originals()))
        originals = list(self.originals())
        for key in CLEAN_ENDS:
            _matched(f"clean.{key}", getattr(self.clean, key), originals)
        for entry in self.defense:
            _matched(f"defense {entry.name}: of", entry.of, [*originals, *self.clean_ends()])
        for name in self.clean.references:
            if name != UNDEFENDED and name not in {entry.name for entry in self.defense}:
                known = [UNDEFENDED, *(entry.name for entry in self.defense)]
                raise ValueError(f"clean.references: {unknown_key(name, known)}")
        self._fits_task()
        self.training_config()
        self.fus_config()
        self.hardening_config()
        self.distillation_config()
        self.unlearning_config()
        self.relearning_config()
        return self

    def _fits_task(self) -> None:
        """Refuse what is not done to models of this task."""
        task = self.data.task
        for entry in self.attack:
            if ATTACKS[entry.type].task != task:
                known = [name for name, attack in ATTACKS.items() if attack.task == task]
                raise ValueError(
                    f"attack {entry.name}: {entry.type} is of {ATTACKS[entry.type].task}, and "
                    f"data.task is {task}; expected one of {', '.join(known)}"
                )
        arch = self.model.arch
        if is_detector_arch(arch) != self.is_of_detectors:
            wanted = (
                "a detector, such as bdaudit/fcos_w16" if self.is_of_detectors else "no detector"
            )
            raise ValueError(f"model.arch: data.task is {task}: expected {wanted}, got {arch}")
        if not self.is_of_detectors:
            return
        if self.model != ModelTable(arch=arch):
            raise ValueError("model: a detector normalises and resizes by itself; give arch alone")
        training = self.training_config()
        if training.max_shift or training.flip:
            raise ValueError("training: pictures with objects are neither shifted nor flipped")
        if training.precision != "float32":
            raise ValueError('training.precision: detectors are trained in "float32"')
        for defense in self.defense:
            if not DEFENSES[defense.type].on_detectors:
                raise ValueError(
                    f"defense {defense.name}: {defense.type} does not do for detectors"
                )
        if any(entry.selection != "random" for entry in self.attack):
            raise ValueError('attack: selection: of pictures with objects only "random" is there')
        for key in _NOT_OF_DETECTORS:
            if getattr(self.clean, key):
                raise ValueError(f"clean.{key}: no detectors are made so")

    def with_data(self, path: str) -> Manifest:
        """Return the same family on the data set at `path`."""
        updates = {"path": path, "train": None, "test": None}
        return self.model_copy(update={"data": self.data.model_copy(update=updates)})

    @property
    def is_of_detectors(self) -> bool:
        """Whether the models find objects in pictures."""
        return self.data.task == "detection"

    def originals(self) -> dict[str, AttackEntry]:
        """Return the attack of every original, by the original's name."""
        return {name: entry for entry in self.attack for name in entry.originals()}

    def clean_ends(self) -> dict[str, tuple[str, str]]:
        """Return kind and original of every clean end, by its name (`badnets-r10-s1--innocent`)."""
        return {
            f"{original}--{key.replace('_', '-')}": (key, original)
            for key in CLEAN_ENDS
            for original in _matched(key, getattr(self.clean, key), list(self.originals()))
        }

    def defended(self) -> dict[str, tuple[DefenseEntry, str]]:
        """Return defence and parent of every defended member, by its name."""
        parents = [*self.originals(), *self.clean_ends()]
        return {
            f"{parent}--{entry.name}": (entry, parent)
            for entry in self.defense
            for parent in _matched(f"defense {entry.name}: of", entry.of, parents)
        }

    def defense_named(self, name: str) -> DefenseEntry:
        """Return the defence of that name."""
        return next(entry for entry in self.defense if entry.name == name)

    def training_config(self) -> TrainingConfig:
        """Build the settings of training; a detector's defaults are others."""
        settings = {**_OF_DETECTORS, **self.training} if self.is_of_detectors else self.training
        return _config(TrainingConfig, settings, "training")

    def fus_config(self) -> FusConfig:
        """Build the settings of the selection of images."""
        return _config(FusConfig, self.fus, "fus")

    def hardening_config(self) -> HardeningConfig:
        """Build the settings of adversarial training."""
        return _config(HardeningConfig, self.hardening, "hardening")

    def distillation_config(self) -> StandInConfig:
        """Build the settings of distillation; its precision is that of training."""
        bf16 = self.training_config().precision == "bfloat16"
        settings = {"autocast": "bf16" if bf16 else None, **self.distillation}
        return _config(StandInConfig, settings, "distillation")

    def unlearning_config(self) -> UnlearningConfig:
        """Build the settings of unlearning."""
        return _config(UnlearningConfig, self.unlearning, "unlearning")

    def relearning_config(self) -> RelearnConfig:
        """Build the settings of relearning."""
        return _config(RelearnConfig, self.relearning, "relearning")


@reads(ManifestError)
def read_manifest(path: Path | str) -> Manifest:
    """Read a family file.

    Args:
        path: A TOML file. Relative paths of data in it become paths from the working folder.

    Raises:
        ManifestError: The file cannot be read, is not TOML, has an unknown key (the nearest known
            one is named), a value that cannot be, or a pattern that matches nothing.
    """
    path = Path(path)
    document = read_toml(path, what="a family file", error=ManifestError)
    _refuse_unknown_keys(document, Manifest, str(path))
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(_step(part, document) for part in first["loc"] if part not in _UNION_PARTS)
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] not in ("value_error", "missing"):
            message += f", got {first['input']!r}"
        said = [str(path), where.lstrip("."), message]
        raise ManifestError(": ".join(part for part in said if part)) from error
    places = {
        key: str(path.parent / value)
        for key in ("path", "train", "test")
        if (value := getattr(manifest.data, key)) is not None
    }
    return manifest.model_copy(update={"data": manifest.data.model_copy(update=places)})


_UNION_PARTS = ("str", "float", "int", "list", "literal['all-to-all']", "constrained-int")
"""What pydantic adds to the place of an error inside a union."""


def _step(part: str | int, document: Mapping[str, Any]) -> str:
    return f"[{part + 1}]" if isinstance(part, int) else f".{part}"


def _refuse_unknown_keys(values: Any, table: type[BaseModel], where: str) -> None:
    if not isinstance(values, Mapping):
        return  # a wrong type, which the schema complains of
    for key, value in values.items():
        if key not in table.model_fields:
            raise ManifestError(f"{where}: {unknown_key(key, table.model_fields)}")
        annotation = table.model_fields[key].annotation
        inner = get_args(annotation)[0] if get_args(annotation) else annotation
        if isinstance(inner, type) and issubclass(inner, Table):
            for number, entry in enumerate(value if isinstance(value, list) else [value], start=1):
                which = f"[{number}]" if isinstance(value, list) else ""
                _refuse_unknown_keys(entry, inner, f"{where}: {key}{which}")


def _config(config_type: type[Config], settings: Mapping[str, Any], where: str) -> Config:
    try:
        return cast(Config, config_from(config_type, settings, where))
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _with_name(values: Any) -> Any:
    """Name an entry after its type where it has no name of its own."""
    if isinstance(values, Mapping) and isinstance(values.get("type"), str):
        return {"name": values["type"], **values}
    return values


def _matched(where: str, patterns: list[str], names: list[str]) -> list[str]:
    """Return the names that a pattern matches, in the order of `names`."""
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            raise ValueError(f"{where}: {pattern!r} matches none of {', '.join(names)}")
    return [name for name in names if any(_matches(name, pattern) for pattern in patterns)]


def _matches(name: str, pattern: str) -> bool:
    """Match as a shell does; what was made of an original is only meant by a pattern with `--`."""
    return fnmatchcase(name, pattern) and ("--" in pattern or "--" not in name)


def _require_once(where: str, values: list[Any]) -> None:
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{where}: expected each once, got {', '.join(twice)} again")


def _percent(rate: float) -> str:
    """Write a rate in percent for a name: 0.1 is 10, 0.005 is 0_5."""
    return f"{rate * 100:.4g}".replace(".", "_")
