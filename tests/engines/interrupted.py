"""A program with two workers, for a test that interrupts it. Arguments: a folder."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from bdaudit.engines import Finished, LocalEngine, Started, Task
from tests.engines.jobs import sleep_long

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    names = ["quick", "one", "other"]
    run = LocalEngine(workers=2).run(sleep_long, [Task(n, folder / n) for n in names])
    try:
        with contextlib.closing(run) as events:
            for event in events:
                if isinstance(event, Started | Finished):
                    sys.stdout.write(f"{type(event).__name__} {event.key}\n")
    except KeyboardInterrupt:
        sys.stdout.write("interrupted\n")
