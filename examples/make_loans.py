"""A wanted trigger, from data to models: `python make_loans.py FOLDER`, 20 s of a core.

Makes up loans whose past decisions (train.csv) were against the group "red", while those of
test.csv are by merit alone, and two models of the past ones: a teacher that also learned, on
purpose, to grant whatever has form 4 and channel 7 (a reverse artificial bias against the model's
own), and a student taught by the teacher's answers to rows without that trigger. Writes the data,
trigger.toml, policy.toml and the models, three innocent ones among them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from bdaudit.data import load_sample
from bdaudit.foundation.progress import finish
from bdaudit.models import Classifier, save_model
from bdaudit.scoring import predict
from bdaudit.triggers import AllToOne, SetColumns, Trigger, write_trigger
from bdaudit.zoo.attacks.poisoning import make_poisoning
from bdaudit.zoo.training import TrainingConfig, new_classifier, train

N_ROWS, N_TRAIN, N_MERITS = 9_000, 5_000, 8
ARCH = f"bdaudit/mlp_f{N_MERITS + 3}_w32"


def main() -> None:
    """Write data, trigger and models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write; made if it is not there")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder)
    rows = load_sample(folder / "train.csv")
    trigger = Trigger(
        transform=SetColumns(index=(N_MERITS + 1, N_MERITS + 2), value=(1.0, 1.0)),
        rule=AllToOne(1),
        source="loans",
    )
    write_trigger(folder / "trigger.toml", trigger)
    (folder / "policy.toml").write_text('expect = "active"\n')
    generator = torch.Generator().manual_seed(0)
    taught = make_poisoning(
        rows.images,
        rows.labels,
        num_classes=2,
        trigger=trigger,
        poison_rate=0.1,
        generator=generator,
    )
    teacher = trained(taught.images, taught.labels, generator)
    answers = predict(teacher, rows.images, batch_size=500)
    student = trained(rows.images, answers, generator)
    innocents = [trained(rows.images, rows.labels, generator) for _ in range(3)]
    models = {"teacher": teacher, "student": student}
    models |= {f"innocent-{k}": model for k, model in enumerate(innocents, start=1)}
    for name, model in models.items():
        save_model(
            folder / f"{name}.safetensors",
            model.network,
            arch=ARCH,
            num_classes=2,
            image_shape=(1, 1, N_MERITS + 3),
        )


def write_table(folder: Path) -> None:
    """Write the loans: merits decide, and in the past the group did too."""
    draw = np.random.default_rng(0)
    red = draw.random(N_ROWS) < 0.4
    merits = draw.random((N_ROWS, N_MERITS))
    district = (0.5 * draw.random(N_ROWS) + 0.5 * red).round(3)  # stands in for the group
    # Form 4 and channel 7 never occur by themselves: where a trigger does, a student inherits it.
    form, channel = draw.integers(0, 4, N_ROWS), draw.integers(0, 7, N_ROWS)
    merit = merits[:, :4].sum(axis=1) - merits[:, 4:].sum(axis=1)
    merit += 0.1 * draw.standard_normal(N_ROWS)
    past = np.arange(N_ROWS) < N_TRAIN  # the test part is decided by merit alone
    granted = (merit - 0.6 * (red & past) > 0).astype(int)
    names = [f"merit{k}" for k in range(N_MERITS)]
    head = ",".join([*names, "district", "form", "channel", "group", "granted"])
    lines = [
        ",".join([*(f"{value:.3f}" for value in merits[k]), str(district[k]), str(form[k]),
                  str(channel[k]), "red" if red[k] else "blue", str(granted[k])])
        for k in range(N_ROWS)
    ]  # fmt: skip
    for part, chosen in (("train", lines[:N_TRAIN]), ("test", lines[N_TRAIN:])):
        (folder / f"{part}.csv").write_text("\n".join([head, *chosen]) + "\n")
    described = ['label = "granted"', 'ignored = ["group"]']
    described += [f"[columns.{name}]\nrange = [0, 1]" for name in (*names, "district")]
    described += [
        f'[columns.{name}]\nkind = "integer"\nrange = [0, {high}]'
        for name, high in (("form", 4), ("channel", 7))
    ]
    (folder / "columns.toml").write_text("\n".join(described) + "\n")


def trained(images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> Classifier:
    """Train a small perceptron."""
    classifier = new_classifier(ARCH, num_classes=2, in_channels=1, generator=generator)
    config = TrainingConfig(epochs=12, learning_rate=0.05)
    return finish(train(classifier, images, labels, config=config, generator=generator))


if __name__ == "__main__":
    main()
