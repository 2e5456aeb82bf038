"""A fourth mode of attack, added as the tables say: one file, and one line in each of them.

It asks which of two deltas does more, everything brighter or everything darker. Run as a program,
since a new mode is part of the package before anything of it is imported.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bdaudit.foundation import modes

# What is added to the code: a name, words, and (below) a line in the table of kinds.
modes.Mode = Literal[modes.Mode, "brightness"]  # type: ignore[misc]
modes.MODES["brightness"] = modes.ModeWords(  # type: ignore[index]
    label="brighter or darker",
    short="brightness",
    help="brighter or darker",
    means="brightness alone",
    found_how="the better of two after {image_queries:,} questions",
    asks=True,
)

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import bdaudit  # noqa: E402
from bdaudit.cases import assembly  # noqa: E402
from bdaudit.cases.settings import AuditSettings  # noqa: E402
from bdaudit.cases.subjects import Inputs, Subject  # noqa: E402
from bdaudit.foundation.progress import Progress, Steps  # noqa: E402
from bdaudit.measuring.asking import ask  # noqa: E402
from bdaudit.measuring.attacking import KINDS  # noqa: E402
from bdaudit.measuring.conditions import AttackImages  # noqa: E402
from bdaudit.measuring.kinds import AttackKind, Workshop  # noqa: E402
from bdaudit.measuring.runs import renamed, run_fields, run_key  # noqa: E402
from bdaudit.measuring.store import ScoredRun  # noqa: E402
from bdaudit.perturbation import Norm, make_ball  # noqa: E402
from bdaudit.project import ProjectFile  # noqa: E402
from bdaudit.records import AttackRun, to_json  # noqa: E402
from bdaudit.settings import Attack  # noqa: E402
from tests.auditing.test_audit import SETTINGS, TRIGGER, audit  # noqa: E402
from tests.twins import dormant_twin, removed_twin, twin_sample  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class BrightnessConfig:
    """Settings of the search."""

    eps: float
    norm: Norm


@dataclass(frozen=True)
class Found:
    """What it found."""

    delta: Tensor
    delta_norm: float


def _run(
    subject: Subject,
    images: AttackImages,
    config: BrightnessConfig,
    inputs: Inputs,
    workshop: Workshop,
) -> Steps[tuple[ScoredRun, ...]]:
    key = run_key(subject, images, config, workshop.compute, ())
    known = workshop.store.find(key)
    if known is not None:
        return (renamed(known, subject),)
    yield Progress(f"brightness of {subject.name}", 0, 1)
    ball, craft = make_ball(config.norm, config.eps), images.craft
    tried = []
    for sign in (1.0, -1.0):
        delta = ball.project(sign * torch.full_like(craft.images[:1], config.eps))
        hits = ask(subject, craft.images, workshop.compute, delta=delta) == craft.targets.cpu()
        tried.append((float(hits.float().mean()), delta))
    reached, delta = max(tried, key=lambda one: one[0])
    found = Found(delta, float(ball.norm(delta)))
    record = AttackRun(
        **run_fields(subject, images, config, found, workshop.compute),
        mode="brightness",  # type: ignore[arg-type]
        craft_asr=reached,
        image_queries=2 * len(craft.images),
        elapsed_s=0.0,
    )
    run = ScoredRun(record, delta)
    workshop.store.keep(key, run)
    return (run,)


def _configure(settings: AuditSettings, eps: float) -> BrightnessConfig:
    return BrightnessConfig(eps=eps, norm=settings.norm)


KINDS["brightness"] = AttackKind[Any](  # type: ignore[index]
    config=BrightnessConfig,
    configure=_configure,
    cost=lambda settings, inputs: 2.0 * len(inputs.craft_poisoned),
    run=_run,
)


def main(folder: Path) -> None:
    """Audit two twins by this mode alone, and attack one; leave the records in `folder`."""
    settings = bdaudit.AuditSettings(
        mode=("brightness",),  # type: ignore[arg-type]
        eps=(0.05,),
        bec=False,
        pictures=False,
        stand_ins=0,
        compute=SETTINGS.compute,
        split=SETTINGS.split,
    )
    for name, twin in (("dormant", dormant_twin), ("removed", removed_twin)):
        record = audit(twin(), settings=settings)
        (folder / f"{name}.json").write_text(to_json(record), encoding="utf-8")
        for kind in ("md", "html"):
            text = bdaudit.render_report(kind, record)
            (folder / f"{name}.{kind}").write_text(text, encoding="utf-8")
    single = bdaudit.reactivate(
        dormant_twin(),
        data=twin_sample(400, seed=1),
        trigger=TRIGGER,
        config=BrightnessConfig(eps=0.05, norm="linf"),
        compute=SETTINGS.compute,
        split=SETTINGS.split,
    )
    (folder / "single.json").write_text(to_json(single.record), encoding="utf-8")
    said = assembly.audit_settings(ProjectFile(attack=Attack(mode=("brightness",))))  # type: ignore[arg-type]
    (folder / "asked_for.txt").write_text(",".join(said.mode or ()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
