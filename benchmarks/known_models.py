"""Models of known truth for benchmarks to attack: from a family's folder, or the demonstration's.

A dormant model is asked under its own trigger, and so is every innocent one, since what an attack
shows is how far it takes a dormant model beyond innocent ones. `family.json` names the dormant
models where relearning settled it; others, known by an audit, are named with `--dormant`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bdaudit
from bdaudit.data import Sample, Split, load_sample, split_sample
from bdaudit.errors import BdauditError
from bdaudit.models import LoadedModel, load_model
from bdaudit.scoring import predict
from bdaudit.triggers import Poisoned, poison, read_trigger

__all__ = ["Asked", "Subjects", "add_arguments", "open_subjects", "run", "share"]

DEMO = Path(bdaudit.__file__).parent / "demo_files"


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A model, the trigger it is asked under, and what is known about it.

    Attributes:
        model: The model.
        truth: "dormant" or "innocent".
        trigger: Name of the trigger.
        original: Name of the model the trigger was trained into.
        craft: Images deltas are made on, with the trigger and without.
        held_out: Images rates come from.
    """

    model: LoadedModel
    truth: str
    trigger: str
    original: str
    craft: Poisoned
    held_out: Poisoned

    @property
    def classifier(self) -> nn.Module:
        return self.model.classifier


class Subjects:
    """Which models are asked, opened one at a time."""

    def __init__(
        self,
        name: str,
        files: dict[str, Path],
        dormant: dict[str, tuple[str, str]],
        innocent: list[str],
        triggers: dict[str, Path],
        sample: Sample,
        sizes: tuple[int, int],
    ) -> None:
        self.name, self.files, self.innocent = name, files, innocent
        self._dormant, self._triggers = dormant, triggers
        self.halves: Split = split_sample(sample, n_craft=sizes[0], n_held_out=sizes[1], seed=0)
        self._opened: dict[str, LoadedModel] = {}

    def model(self, name: str) -> LoadedModel:
        if name not in self._opened:
            shape = self.halves.craft.images.shape[1:]
            self._opened[name] = load_model(
                self.files[name], name=name, fallback_image_shape=tuple(shape)
            )
        return self._opened[name]

    def other_innocent(self, name: str) -> nn.Module:
        """Return an innocent model that is not the one named."""
        other = next(other for other in self.innocent if other != name)
        return self.model(other).classifier

    def __iter__(self) -> Iterator[Asked]:
        """List dormant models under their triggers, then innocent ones under the same."""
        rows = [(name, "dormant", *about) for name, about in self._dormant.items()]
        for trigger, original in dict.fromkeys(self._dormant.values()):
            rows += [(name, "innocent", trigger, original) for name in self.innocent]
        for name, truth, trigger, original in rows:
            model = self.model(name)
            stamped = read_trigger(self._triggers[trigger])
            craft, held_out = (
                poison(half, stamped, model.num_classes)
                for half in (self.halves.craft, self.halves.held_out)
            )
            yield Asked(model, truth, trigger, original, craft, held_out)


def share(asked: Asked, images: Tensor, targets: Tensor, delta: Tensor | None = None) -> float:
    """Return the share of images + delta that are classified as their targets."""
    answers = predict(asked.classifier, images, batch_size=200, delta=delta)
    return round(float((answers == targets).double().mean()), 4)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which models are asked about which images."""
    parser.add_argument("family", nargs="?", help="folder that `zoo build` made, or `demo`")
    parser.add_argument("--dormant", nargs="*", default=[], help="default: as family.json says")
    parser.add_argument("--innocent", nargs="*", default=[], help="default: the family's first 3")
    parser.add_argument("--craft", type=int, default=160)
    parser.add_argument("--held-out", type=int, default=600)


def run(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.ArgumentParser, argparse.Namespace], None],
    show: Callable[[Path], None],
) -> None:
    """Measure and show what came of it, or show what a folder given as `--table` holds."""
    parser.add_argument("--table", type=Path, help="print what a folder holds, and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table:
        show(arguments.table)
    else:
        measure(parser, arguments)
        show(arguments.out)


def open_subjects(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Subjects:
    """Open what the options name; what does not fit ends the program with a usage error."""
    try:
        return _open(parser, arguments)
    except BdauditError as error:
        parser.error(str(error))


def _open(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Subjects:
    if arguments.family is None:
        parser.error("expected `demo` or the folder of a family, or --table FOLDER")
    sizes = (arguments.craft, arguments.held_out)
    if arguments.family == "demo":
        there = ["innocent-1", "innocent-2", "innocent-3"]
        innocent = arguments.innocent or there
        if arguments.dormant or len(innocent) < 2 or not set(innocent) <= set(there):
            parser.error(f"demo: has one dormant model; --innocent takes two or more of {there}")
        return Subjects(
            "demo",
            {name: DEMO / f"{name}.safetensors" for name in ("original", "dormant", *innocent)},
            {"dormant": ("badnets", "original")},
            innocent,
            {"badnets": DEMO / "trigger.toml"},
            load_sample(DEMO / "clean.npz"),
            sizes,
        )
    folder = Path(arguments.family)
    if not (folder / "family.json").is_file():
        parser.error(f"{folder}: expected `demo`, or a folder with family.json as zoo build makes")
    document: dict[str, Any] = json.loads((folder / "family.json").read_text())
    members = {member["name"]: member for member in document["members"]}
    truths = {name: member["truth"] for name, member in members.items()}
    dormant = arguments.dormant or [name for name in members if truths[name] == "dormant"]
    innocent = arguments.innocent or [name for name in members if truths[name] == "innocent"][:3]
    for name in (*dormant, *innocent):
        if name not in members:
            parser.error(f"{name}: no such model in {folder}; there are {', '.join(members)}")
    if not dormant:
        parser.error(f"{folder}: family.json calls no model dormant; name some with --dormant")
    if len(innocent) < 2:
        parser.error(f"{folder}: expected two innocent models or more, got {innocent}")
    return Subjects(
        document["name"],
        {name: folder / member["file"] for name, member in members.items()},
        {name: (members[name]["trigger"], members[name]["original"]) for name in dormant},
        innocent,
        {name: folder / trigger["file"] for name, trigger in document["triggers"].items()},
        load_sample(folder / "clean.npz"),
        sizes,
    )
