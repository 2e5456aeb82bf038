"""Run commands one after another, each in a forked child that holds bdaudit already.

Started as a process of its own, so that no thread of the test session is forked. Reads one JSON
object a line (argv, folder, seconds, bytes, settings) and writes one back (exit code or "timeout",
CPU seconds, growth of memory).
"""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

_PRELOADED = (
    "torch",
    "torchvision",
    "scipy.stats",
    "matplotlib.pyplot",
    "onnx.inliner",
    "bdaudit.auditing",
    "bdaudit.auditing.preview",
    "bdaudit.auditing.drafting",
    "bdaudit.auditing.verification",
    "bdaudit.cli.app",
    "bdaudit.verdict.gate",
    "bdaudit.report.html_report",
    "bdaudit.report.sarif_report",
)


def serve() -> None:
    """Answer until there are no more lines."""
    for name in _PRELOADED:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    gc.freeze()  # or a child's first collection copies all of our memory
    _say("ready")
    for line in sys.stdin:
        _say(json.dumps(_run(json.loads(line))))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _idle_kilobytes() -> int:
    """Return the memory of a child that does nothing: less than ours, since it touches less."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    return os.wait4(child, 0)[2].ru_maxrss


def _run(task: dict[str, Any]) -> dict[str, Any]:
    before = _idle_kilobytes()
    child = os.fork()
    if child == 0:
        _become(task)
    deadline = time.monotonic() + task["seconds"]
    timed_out = False
    while True:
        pid, status, used = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            timed_out = True
            deadline = float("inf")
        time.sleep(0.003)
    code: int | str = os.waitstatus_to_exitcode(status)
    return {
        "code": "timeout" if timed_out else code,
        "cpu_s": used.ru_utime + used.ru_stime,
        "grown_bytes": max(0, used.ru_maxrss - before) * 1024,
    }


def _become(task: dict[str, Any]) -> None:
    """Be the command: its output goes to files beside its folder, its exit code is ours."""
    folder = Path(task["folder"])
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        out = os.open(folder.parent / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(out, number)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    most = pages * os.sysconf("SC_PAGE_SIZE") + task["bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    code = 99
    try:
        for place, value in task["settings"].items():
            module, _, name = place.rpartition(".")
            if name == "deadline_s":  # the default of a dataclass's field
                from bdaudit.blackbox.transport import TransportSettings

                inspect.unwrap(TransportSettings.__init__).__kwdefaults__[name] = value
                continue
            place = importlib.import_module(module)
            getattr(place, name)  # one that is not there would be set without a word
            setattr(place, name, value)
        sys.argv = ["bdaudit", *task["argv"]]
        main = importlib.import_module("bdaudit.cli").main
        main()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


if __name__ == "__main__":
    serve()
