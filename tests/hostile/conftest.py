"""The sound files beside the hostile ones, and workers that run commands."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import bdaudit
from tests.hostile.cases import SECRET, Case, Ran
from tests.hostile.lying import lying_server
from tests.hostile.onnx_of import linear
from tests.records import audit_record

_ROOT = Path(__file__).parents[2]


def write_base(folder: Path) -> Path:
    """Write sound files: the demonstration's, a record, an ONNX file and a torch file."""
    import torch

    from bdaudit.records import to_json

    shutil.copytree(Path(bdaudit.__file__).parent / "demo_files", folder)
    record = audit_record(defended={0.02: 0.05, 0.05: 0.1}, innocents=[{0.02: 0.05, 0.05: 0.1}] * 3)
    (folder / "audit.json").write_text(to_json(record))
    (folder / "m.onnx").write_bytes(linear())
    torch.save({"state_dict": {"fc.weight": torch.zeros(10, 4)}}, folder / "m.pt")
    return folder


class Worker:
    """A process of tests.hostile.server."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=_ROOT,
            env=environment,
        )

    def run(self, task: dict[str, Any]) -> dict[str, Any]:
        """Run one command and wait for it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        while (line := self._process.stdout.readline()) == "ready\n":
            pass
        return dict(json.loads(line))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


@dataclass
class Range:
    """Where cases are run: a folder for each, sound files beside them, a server that lies."""

    folder: Path
    server: str
    environment: dict[str, str]
    workers: queue.SimpleQueue[Worker]
    n_workers: int
    seconds: float = 120.0  # a hang is told from a busy machine
    most_bytes: int = 1 << 30
    limit_bytes: int = 3 << 30

    @property
    def base(self) -> Path:
        """The sound files."""
        return self.folder / "base"

    def prepare(self, case: Case) -> tuple[Path, list[str]]:
        """Write a case's files; return its working folder and the command's arguments."""
        place = self.folder / f"{case.kind}-{abs(hash(case.name)):x}"
        folder = place / "here"
        folder.mkdir(parents=True)
        case.build(folder)
        named = {"{base}": str(self.base), "{server}": self.server}
        argv = list(case.argv)
        for key, value in named.items():
            argv = [part.replace(key, value) for part in argv]
        return folder, argv

    def run(self, case: Case) -> tuple[Ran, Path]:
        """Run a case in a forked process that holds bdaudit already."""
        folder, argv = self.prepare(case)
        worker = self.workers.get()
        try:
            done = worker.run(
                {
                    "argv": argv,
                    "folder": str(folder),
                    "seconds": self.seconds,
                    "bytes": self.limit_bytes,
                    "settings": case.settings,
                }
            )
        finally:
            self.workers.put(worker)
        ran = Ran(
            code=done["code"],
            cpu_s=done["cpu_s"],
            grown_bytes=done["grown_bytes"],
            stdout=(folder.parent / "stdout").read_bytes(),
            stderr=(folder.parent / "stderr").read_bytes(),
        )
        return ran, folder

    def run_all(self, cases: list[Case]) -> Iterator[tuple[Case, Ran, Path]]:
        """Run cases side by side."""
        with ThreadPoolExecutor(self.n_workers) as pool:
            for case, (ran, folder) in zip(cases, pool.map(self.run, cases), strict=True):
                yield case, ran, folder
                shutil.rmtree(folder.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def hostile_range(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Range]:
    folder = tmp_path_factory.mktemp("hostile")
    write_base(folder / "base")
    (folder / "secret.txt").write_text(f"{SECRET}\n{SECRET}\n")
    environment = {
        **os.environ,
        "BDAUDIT_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
        "COLUMNS": "200",
        "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    n_workers = 2
    workers: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    started = [Worker(environment) for _ in range(n_workers)]
    for worker in started:
        workers.put(worker)
    with lying_server() as server:
        yield Range(folder, server, environment, workers, n_workers)
    for worker in started:
        worker.close()
