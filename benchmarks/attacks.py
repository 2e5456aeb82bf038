"""Measure every attack of the zoo: what it costs in accuracy and how well its trigger works.

    python benchmarks/attacks.py OUT --data /usr/share/datasets/fashion-mnist

PreAct-ResNet-18 of width 8 on 20,000 Fashion-MNIST images, five epochs under bfloat16, scored on
2,000 test images that are used for nothing else. OUT gets the triggers, the clean helper and
`figures.json`; what is there already is left alone, so a killed run goes on. About 90 seconds a
model on one free core.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from build_inversion_models import ARCH, MEAN, SIDE, STD, part, share, trained
from torch import nn

from bdaudit.data import load_sample
from bdaudit.foundation.plain_settings import flat_settings
from bdaudit.foundation.progress import finish
from bdaudit.models import load_model, save_model
from bdaudit.scoring import predict
from bdaudit.triggers import AllToAll, AllToOne, read_trigger, write_trigger
from bdaudit.zoo.attacks import ATTACKS, attack_config

N_TRAIN, SEED, TARGET = 20_000, 41, 0  # OUT belongs to one size of the training set
DIRTY = tuple(name for name, attack in ATTACKS.items() if not attack.one_target)


def runs() -> list[tuple[str, str, float, dict[str, object]]]:
    """List (attack, rule, poison rate, settings) in the order they are measured."""
    at_ten = [(name, "all-to-one", 0.10, {}) for name in ATTACKS]
    low = [(name, "all-to-one", rate, {}) for rate in (0.05, 0.01) for name in ATTACKS]
    relabelled = ("sig", "all-to-one", 0.10, {"clean_label": False})
    return [*at_ten, relabelled, *low, *((name, "all-to-all", 0.10, {}) for name in DIRTY)]


def save(path: Path, classifier: nn.Module) -> None:
    save_model(
        path,
        classifier.network,  # type: ignore[arg-type]
        arch=ARCH,
        num_classes=10,
        image_shape=(1, SIDE, SIDE),
        mean=(MEAN,),
        std=(STD,),
    )


def measure(
    data: Path, out: Path, n_train: int, only: set[str], rates: set[float], rules: set[str]
) -> None:
    train, test = load_sample(data, split="train"), load_sample(data, split="test")
    test = test.take(torch.arange(1_000, 3_000))
    images, labels = part(train, SEED, n_train, 0, 40_000)
    out.mkdir(parents=True, exist_ok=True)
    helper_file = out / "helper.safetensors"
    if not helper_file.exists():
        save(helper_file, trained(*part(train, SEED + 1, n_train, 0, 40_000), SEED + 1))
    helper = load_model(helper_file, name="helper").classifier
    figures_file = out / "figures.json"
    figures = json.loads(figures_file.read_text()) if figures_file.exists() else {}
    for name, rule, rate, settings in runs():
        config = attack_config(name, settings)
        key = f"{name} {rule} {rate:g}" + "".join(f" {k}={v}" for k, v in settings.items())
        skipped = (only and name not in only) or (rates and rate not in rates)
        if key in figures or skipped or (rules and rule not in rules):
            continue
        started = time.process_time()
        attack, generator = ATTACKS[name], torch.Generator().manual_seed(SEED)
        shared = {
            "num_classes": 10,
            "config": config,
            "generator": generator,
            "helper": helper if attack.needs_helper else None,
        }
        trigger_file = out / f"{name} {rule}{'' if not settings else ' other'}.toml"
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            if not trigger_file.exists():
                wanted = AllToAll() if rule == "all-to-all" else AllToOne(TARGET)
                made = finish(attack.make_trigger(images, labels, rule=wanted, **shared))
                write_trigger(trigger_file, made)
            trigger = read_trigger(trigger_file)
            made_s = time.process_time() - started
            poisoning = finish(
                attack.poison(images, labels, trigger=trigger, poison_rate=rate, **shared)
            )
        poisoned_s = time.process_time() - started - made_s
        classifier = trained(poisoning.images, poisoning.labels, SEED)
        # Fashion-MNIST's accuracy differs by class, and clean-label attacks take one class's away.
        of_target = test.labels == TARGET
        answers = predict(classifier, test.images[of_target], batch_size=250)
        figures[key] = {
            "clean_acc": round(share(classifier, test, None), 4),
            "target_class_acc": round(float((answers == TARGET).double().mean()), 4),
            "asr": round(share(classifier, test, trigger), 4),
            "asr_on_helper": round(share(helper, test, trigger), 4),
            "poison_rate": poisoning.poison_rate,
            "n_cover": len(poisoning.cover),
            "settings": flat_settings(config),
            "cpu_s": [round(made_s), round(poisoned_s), round(time.process_time() - started)],
        }
        figures_file.write_text(json.dumps(figures, indent=1))
        print(key, figures[key], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the idx files")
    parser.add_argument("--images", type=int, default=N_TRAIN, help="in the training set")
    parser.add_argument("--only", nargs="*", default=[], choices=ATTACKS, help="attacks")
    parser.add_argument("--rates", nargs="*", default=[], type=float, help="poison rates")
    parser.add_argument("--rules", nargs="*", default=[], choices=["all-to-one", "all-to-all"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measure(
        arguments.data,
        arguments.out,
        arguments.images,
        set(arguments.only),
        set(arguments.rates),
        set(arguments.rules),
    )


if __name__ == "__main__":
    main()
