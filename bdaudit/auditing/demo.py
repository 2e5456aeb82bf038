"""The embedded demonstration: real images, real models, two different verdicts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib import resources
from pathlib import Path

from bdaudit.auditing.audit import audit_steps
from bdaudit.cases.settings import TELLING_CONTROLS, AuditSettings, ComputeSettings, SplitSettings
from bdaudit.cases.sources import Sources
from bdaudit.errors import InputError
from bdaudit.foundation.progress import Progress, Steps, reworded
from bdaudit.measuring.store import MemoryStore
from bdaudit.records import AuditRecord
from bdaudit.relearning import RelearnConfig

__all__ = ["DEMO_MODELS", "demo_steps", "export_demo"]

DEMO_MODELS = ("dormant", "removed")
"""The defended models of the demonstration, by file name and by what they are."""

_FILES = resources.files("bdaudit") / "demo_files"
_REFERENCES = ("innocent-1", "innocent-2", "innocent-3")
# A smaller budget than the default one: two audits take 2:16 on two cores (docs/demo.md).
_N_CRAFT = 200
_N_PASSES = 12
_RELEARN = RelearnConfig(draws=3, n_held_out=250)


def demo_steps(*, seed: int = 0, device: str = "auto") -> Steps[dict[str, AuditRecord]]:
    """Audit both defended models of the demonstration; docs/demo.md says what they are.

    The original and the innocent models meet the same attacks in both audits, so their runs are
    made once.

    Returns:
        The records by name of the defended model.
    """
    store = MemoryStore()
    records = {}
    settings = AuditSettings(
        passes=_N_PASSES,
        controls=TELLING_CONTROLS,
        relearn=_RELEARN,
        compute=ComputeSettings(seed=seed, device=device),
        split=SplitSettings(craft=_N_CRAFT),
    )
    with resources.as_file(_FILES) as folder:
        for number, name in enumerate(DEMO_MODELS):
            steps = audit_steps(
                Sources.of(
                    defended=folder / f"{name}.safetensors",
                    original=folder / "original.safetensors",
                    references=[folder / f"{ref}.safetensors" for ref in _REFERENCES],
                    data=folder / "clean.npz",
                    trigger=folder / "trigger.toml",
                ),
                settings=settings,
                store=store,
            )
            records[name] = yield from _one_of_several(steps, number, len(DEMO_MODELS))
    return records


def _one_of_several(steps: Steps[AuditRecord], number: int, total: int) -> Steps[AuditRecord]:
    """Scale the progress of one audit to its part of all."""

    def scaled(event: Progress) -> Progress:
        share = event.done / event.total if event.total else 0.0
        return replace(event, done=number + share, total=total)

    return reworded(steps, scaled)


def export_demo(folder: Path) -> list[Path]:
    """Copy the demonstration's files into a new or empty `folder`.

    Raises:
        InputError: The folder holds something already, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder}: is not empty; choose a new folder")
        with resources.as_file(_FILES) as source:
            files = [file for file in sorted(source.iterdir()) if file.is_file()]
            copied = [Path(shutil.copyfile(file, folder / file.name)) for file in files]
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}") from error
    return copied
