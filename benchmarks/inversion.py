"""How well triggers are recovered, and whether a verdict from one agrees with that from the true.

    python benchmarks/build_inversion_models.py MODELS --data /usr/share/datasets/fashion-mnist
    python benchmarks/inversion.py MODELS races     # every search on every model
    python benchmarks/inversion.py MODELS table     # pairs originals with innocent models, prints
    python benchmarks/inversion.py MODELS stand-ins # the same with stand-ins that labels taught
    python benchmarks/inversion.py MODELS students  # and with those that answers taught
    python benchmarks/inversion.py MODELS verdicts  # audits with true and recovered triggers
    python benchmarks/inversion.py MODELS many --only universal  # time and memory at 1,000 classes

`--only` names originals; `--seed` draws everything anew: the halves of the sample, the searches and
the attacks.

Searches run under bfloat16 with their default settings, all targets and no race dropped (there are
eleven, and none is dropped up to twelve), so each model's are made once and paired with any others.
Everything is kept in MODELS/seed-N as it is made; a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import bdaudit
from bdaudit.data import Split, load_sample, split_sample
from bdaudit.foundation.progress import finish
from bdaudit.inversion import InversionConfig, invert_with, make_arms
from bdaudit.inversion.anomaly import LEAST_SPREAD, LEAST_SPREAD_OF_STAND_INS, score_arms
from bdaudit.inversion.batching import Asker
from bdaudit.inversion.invert import make_search, recover_in_full
from bdaudit.inversion.neural_cleanse import NeuralCleanseSearch
from bdaudit.inversion.universal import UniversalSearch
from bdaudit.measuring.compute import derive_generator
from bdaudit.models import Classifier, LoadedModel, build_network, load_model
from bdaudit.relatives.standins import StandInConfig, make_stand_ins
from bdaudit.scoring import predict
from bdaudit.triggers import AllToOne, Trigger, poison, read_trigger, write_trigger
from bdaudit.verdict import Policy, judge

DEMO = resources.files("bdaudit") / "demo_files"
ORIGINALS = {  # name: file, defended versions
    "patch": (str(DEMO / "original"), ("dormant", "removed")),
    "lowfreq": ("lowfreq", ("lowfreq-finetuned", "lowfreq-unlearned")),
    "warp": ("warp", ("warp-finetuned", "warp-unlearned")),
    "sinusoid": ("sinusoid", ("sinusoid-finetuned", "sinusoid-unlearned")),
    "blend": ("blend", ("blend-finetuned", "blend-unlearned")),
    "patch7": ("patch7", ("patch7-finetuned", "patch7-unlearned")),
    "all2all": ("all2all", ("all2all-finetuned", "all2all-unlearned")),
    "dynamic": ("dynamic", ()),
}
INNOCENT = ("innocent-31", "innocent-32", str(DEMO / "innocent-1"), "innocent-33")
N_CRAFT, NUM_CLASSES = 300, 10
EPS = (0.02, 0.05)
METHODS = ("universal", "warp", "neural-cleanse")
CONFIG = InversionConfig(methods=METHODS)
RULES = [*(AllToOne(k) for k in range(NUM_CLASSES)), None]  # and any other class


@dataclass(frozen=True)
class Study:
    """The models' folder, and a seed whose results are kept in a folder of their own."""

    folder: Path
    seed: int

    @property
    def kept(self) -> Path:
        return self.folder / f"seed-{self.seed}"

    def halves(self) -> Split:
        return split_sample(load_sample(DEMO / "clean.npz"), n_craft=N_CRAFT, seed=self.seed)

    def model(self, name: str) -> LoadedModel:
        return load_model(self.folder / f"{name}.safetensors", name=Path(name).name)

    def existing(self, names: tuple[str, ...]) -> list[str]:
        return [name for name in names if (self.folder / f"{name}.safetensors").exists()]


def raced(
    study: Study, model: LoadedModel, name: str, method: str, halves: Split
) -> UniversalSearch | NeuralCleanseSearch:
    """Return a search that has gone all the way, from the file where there is one."""
    arms, _ = make_arms(RULES, halves.craft.labels, NUM_CLASSES)
    asker = Asker(model.classifier, halves.craft.images, batch_size=256, bf16=True)
    search = make_search(method, asker, arms, CONFIG)
    kept = study.kept / "races" / f"{name}-{method}.pt"
    if not kept.exists():
        stages = []
        for stage in range(search.n_stages):
            generator = torch.Generator().manual_seed(study.seed + stage)
            search.advance(stage, range(len(arms)), generator)
            stages.append(search.standings(stage))
        state = {
            key: value
            for key, value in vars(search).items()
            if isinstance(value, Tensor)
            or (isinstance(value, list) and isinstance(value[0], Tensor))
        }
        cost = torch.tensor([asker.differentiated, asker.forwarded])
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state": state, "stages": torch.stack(stages), "cost": cost}, kept)
        print(kept.stem, search.sizes(search.n_stages - 1).numpy().round(2), flush=True)
    known = torch.load(kept, weights_only=True)
    for key, value in known["state"].items():
        setattr(search, key, value)
    search.standings_by_stage = known["stages"]
    return search


def measure_table(study: Study, only: list[str]) -> None:
    """Score every original against three innocent models, and every innocent one against others."""
    halves = study.halves()
    innocent = study.existing(INNOCENT)
    suspects = {k: f for k, (f, _) in ORIGINALS.items() if study.existing((f,))}
    suspects |= {Path(name).name: name for name in innocent}
    for label, file in suspects.items():
        if only and label not in only:
            continue
        row = study.kept / "table" / f"{label}.json"
        if not row.exists():
            others = [name for name in innocent if name != file][:3]
            row.parent.mkdir(parents=True, exist_ok=True)
            models = {Path(name).name: study.model(name) for name in (file, *others)}
            row.write_text(json.dumps(_row(study, label, models, halves, ""), indent=1))
        print(label, row.read_text(), flush=True)


def measure_stand_ins(study: Study, only: list[str], lessons: Literal["answers", "labels"]) -> None:
    """Score originals, innocent ones too, against three stand-ins each."""
    halves = study.halves()
    suspects = {k: f for k, (f, _) in ORIGINALS.items()}
    suspects |= {Path(name).name: name for name in INNOCENT}
    for label, file in suspects.items():
        if (only and label not in only) or not study.existing((file,)):
            continue
        row = study.kept / "table" / f"{label}-{lessons}.json"
        if not row.exists():
            original = study.model(file)
            # Labels teach the same whatever the original is, so one set serves all.
            teacher = original if lessons == "answers" else study.model(INNOCENT[0])
            made = finish(
                make_stand_ins(
                    teacher,
                    halves.craft,
                    count=3,
                    config=StandInConfig(lessons=lessons, autocast="bf16"),
                    generator=derive_generator(study.seed, "stand-ins"),
                    cache_dir=study.folder / "stand-ins",
                )
            )
            prefix = label if lessons == "answers" else "labels"
            models = {Path(file).name: original} | {
                f"{prefix}-{model.name.replace(' ', '-')}": model for model in made
            }
            row.parent.mkdir(parents=True, exist_ok=True)
            figures = _row(study, label, models, halves, lessons)
            answers = [
                predict(m.classifier, halves.held_out.images, batch_size=250)
                for m in models.values()
            ]
            figures["clean_acc"] = [
                round(float((given == halves.held_out.labels).float().mean()), 4)
                for given in answers
            ]
            row.write_text(json.dumps(figures, indent=1))
        print(label, row.read_text(), flush=True)


def _row(
    study: Study, label: str, models: dict[str, LoadedModel], halves: Split, against: str
) -> dict:
    """Score the first of `models` against the others."""
    figures: dict[str, object] = {"others": list(models)[1:]}
    named, models = models, list(models.values())
    for method in METHODS:
        searches = [raced(study, model, name, method, halves) for name, model in named.items()]
        last = searches[0].n_stages - 1
        sizes = torch.stack([s.sizes(last) for s in searches])
        scored = score_arms(
            sizes,
            n_tests=len(METHODS) * len(RULES),
            least_spread=LEAST_SPREAD_OF_STAND_INS if against else LEAST_SPREAD,
        )
        order = scored.gains.argsort(descending=True).tolist()
        arm = order[0]
        figures[method] = {
            "ranking": [
                (
                    k if k < NUM_CLASSES else "any other",
                    round(float(scored.gains[k]), 2),
                    round(scored.scores[k], 2),
                    float(f"{scored.p_values[k]:.2g}"),
                )
                for k in order[:4]
            ],
            "place_of_class_0_by_stage": [_rank(searches, stage, 0) for stage in range(last + 1)],
        }
        if scored.p_values[arm] > CONFIG.unsure_p:
            continue
        found = finish(
            recover_in_full(searches, arm, halves.craft.labels, config=CONFIG, seed=study.seed)
        )
        rule = found.rule or RULES[arm]
        assert rule is not None
        trigger = Trigger(
            transform=found.transform, rule=rule, source=f"{label}, {method}", recovered=True
        )
        (study.kept / "recovered").mkdir(exist_ok=True)
        suffix = f"-{against}" if against else ""
        write_trigger(study.kept / "recovered" / f"{label}-{method}{suffix}.toml", trigger)
        held_out = poison(halves.held_out, trigger, NUM_CLASSES)

        def share(model: LoadedModel, images: Tensor, targets: Tensor = held_out.targets) -> float:
            answers = predict(model.classifier, images, batch_size=250)
            return round(float((answers == targets).double().mean()), 4)

        figures[method] |= {
            "rule": rule.name,
            "size": found.size,
            "asr": share(models[0], held_out.triggered),
            "innocent": [share(m, held_out.triggered) for m in models[1:]],
            "own": [
                share(m, Trigger(transform=t, rule=rule).stamp(held_out.clean))
                for m, t in zip(models[1:], found.own or (), strict=False)
            ],
        }
    return figures


def _rank(searches: list, stage: int, arm: int) -> int:
    """Place of `arm` (0 is first) if the race were decided after `stage`."""
    standings = torch.stack([s.standings_by_stage[stage] for s in searches])
    gains = standings[1:].mean(0) - standings[0]
    return int((gains > gains[arm]).sum())


def best_recovered(study: Study, label: str) -> Path:
    """Return the trigger file an audit would go on with: awake, unlikely, and far from innocent."""
    row = json.loads((study.kept / "table" / f"{label}.json").read_text())

    def order(method: str) -> tuple[bool, float, float]:
        found = row[method]
        if "asr" not in found:
            return True, 1.0, 0.0
        gap = found["asr"] - max([*found["innocent"], *found["own"]])
        return (found["asr"] < 0.55 or gap < 0.25, max(found["ranking"][0][3], 1e-4), -gap)

    return study.kept / "recovered" / f"{label}-{min(METHODS, key=order)}.toml"


def measure_verdicts(study: Study, only: list[str]) -> None:
    """Audit every defended version with the true trigger and with the recovered one.

    The halves are those of the search, so that no held-out image had a part in the trigger.
    """
    folder = study.folder
    references = study.existing(tuple(f"{n}-finetuned" for n in ("innocent-31", "innocent-32")))
    references.append(str(DEMO / "innocent-2"))
    settings = bdaudit.AuditSettings(
        eps=EPS,
        passes=6,
        controls=("no_trigger",),
        bec=False,
        stand_ins=0,
        pictures=False,
        compute=bdaudit.ComputeSettings(device="cpu", seed=study.seed, precision="bfloat16"),
        split=bdaudit.SplitSettings(craft=N_CRAFT),
    )
    for label, (file, defended) in ORIGINALS.items():
        if not study.existing((file,)) or (only and label not in only):
            continue
        true = DEMO / "trigger.toml" if label == "patch" else folder / "triggers" / f"{label}.toml"
        triggers = {"true": Path(str(true)), "recovered": best_recovered(study, label)}
        home = Path(str(DEMO)) if label == "patch" else folder
        store = bdaudit.MemoryStore()  # both versions share the original and the innocent models
        for version in defended:
            for kind, path in triggers.items():
                kept = study.kept / "verdicts" / f"{version}-{kind}.json"
                if not kept.exists():
                    record = bdaudit.audit(
                        home / f"{version}.safetensors",
                        original=folder / f"{file}.safetensors",
                        data=Path(str(DEMO)) / "clean.npz",
                        trigger=read_trigger(path),
                        reference=[folder / f"{name}.safetensors" for name in references],
                        settings=settings,
                        store=store,
                    )
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text(bdaudit.to_json(record))
                show_verdicts(f"{version}, {kind} ({path.stem})", bdaudit.read_record(kept))


def show_verdicts(what: str, record: bdaudit.AuditRecord) -> None:
    """Print the verdict over all eps, and what each eps alone would have said."""
    assert record.verdict is not None
    alone = {b.role: round(b.asr.value, 3) for b in record.baselines[:2]}
    print(f"{what}: {record.verdict.outcome}; trigger alone {alone}", flush=True)
    for eps in EPS:
        runs = tuple(r for r in record.runs if r.eps == eps)
        verdict = judge(record.model_copy(update={"runs": runs}), Policy())
        figures = {
            f"{r.role} {r.condition}": round(r.asr.value, 3) for r in runs if r.role != "reference"
        }
        innocent = max(r.asr.value for r in runs if r.role == "reference")
        print(f"    eps {eps}: {verdict.outcome}; {figures}; innocent up to {innocent:.3f}")
    print(f"    {record.verdict.why}", flush=True)


def measure_many(study: Study, methods: list[str]) -> None:
    """Time one search over 1,000 classes: two networks of width 4 with random weights."""
    images = load_sample(DEMO / "clean.npz").images[:500]
    labels = torch.arange(len(images)) * 2
    rules = [*(AllToOne(k) for k in range(1000)), None]
    arms, _ = make_arms(rules, labels, 1000)
    networks = []
    for number in range(2):
        generator = torch.Generator().manual_seed(study.seed + number)
        network = build_network(
            "bdaudit/preactresnet18_w4", num_classes=1000, in_channels=1, generator=generator
        )
        networks.append(Classifier(network, mean=(0.286,), std=(0.353,)).eval())
        networks[-1].requires_grad_(requires_grad=False)
    for method in METHODS:
        if methods and method not in methods:
            continue
        began = time.process_time()
        search = invert_with(
            method,
            networks,
            images,
            labels,
            arms,
            config=CONFIG,
            wanted=range(len(arms)),
            n_tests=len(METHODS) * len(arms),
            seed=study.seed,
            batch_size=256,
            bf16=True,
        )
        title = None
        for event in search:
            if (event.step, int(event.done)) != title:
                title = event.step, int(event.done)
                print(f"{time.process_time() - began:.0f} s", *title, flush=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
        print(method, f"{time.process_time() - began:.0f} s of CPU, {peak:.1f} GiB at most")


def measure_races(study: Study, only: list[str]) -> None:
    """Run every search on the originals and on all innocent models."""
    suspects = [file for label, (file, _) in ORIGINALS.items() if not only or label in only]
    for name in dict.fromkeys(study.existing((*INNOCENT, *suspects))):
        model = study.model(name)
        for method in METHODS:
            raced(study, model, Path(name).name, method, study.halves())


STUDIES: dict[str, Callable[[Study, list[str]], None]] = {
    "races": measure_races,
    "table": measure_table,
    "stand-ins": partial(measure_stand_ins, lessons="labels"),
    "students": partial(measure_stand_ins, lessons="answers"),
    "verdicts": measure_verdicts,
    "many": measure_many,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", choices=tuple(STUDIES))
    parser.add_argument("--only", nargs="*", default=[], help="names of originals (many: methods)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study, only = Study(arguments.folder, arguments.seed), arguments.only
    STUDIES[arguments.what](study, only)


if __name__ == "__main__":
    main()
