"""Real audits to report on, and a real browser to look at reports with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import bdaudit
from bdaudit.records import AuditRecord, Diagnostic, ReactivationRecord, ScoreRecord
from tests.twins import (
    TARGET,
    TwinNet,
    dormant_twin,
    innocent_twin,
    original_twin,
    twin_sample,
    twin_trigger,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = (
    "<script>document.title='owned'</script><img src=http://127.0.0.1:9/x>$x^2$\x00\u202e\u2028"
    "](http://evil.example) ![p](http://evil.example/p.png) @everyone #1 `x` {0} www.evil.example"
)
"""What a record's free strings could hold if somebody wished its readers ill."""

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_INPUTS = {"data": twin_sample(400, seed=1), "trigger": bdaudit.from_callable(twin_trigger, TARGET)}


def references(count: int) -> list[TwinNet]:
    """Innocent twins whose weights differ a little."""
    nets = [innocent_twin() for _ in range(count)]
    for number, net in enumerate(nets):
        net.linear.weight.mul_(1.0 + 0.01 * number)
    return nets


@pytest.fixture(scope="session")
def audited() -> AuditRecord:
    """A real audit of the dormant twin, by two attacks, with everything a report can show."""
    return bdaudit.audit(
        dormant_twin(),
        original=original_twin(),
        reference=references(2),
        settings=bdaudit.AuditSettings(
            stand_ins=0,
            eps=(0.02, 0.05),
            passes=8,
            mode=("white", "query"),
            max_queries=300,
            cold=True,
            split=bdaudit.SplitSettings(craft=100),
        ),
        command=["bdaudit", "audit", "a file.safetensors", "--original", "o.safetensors"],
        **_INPUTS,
    )


@pytest.fixture(scope="session")
def scored() -> ScoreRecord:
    return bdaudit.score(
        dormant_twin(), original=original_twin(), reference=references(1), **_INPUTS
    )


@pytest.fixture(scope="session")
def reactivated() -> ReactivationRecord:
    found = bdaudit.reactivate(
        dormant_twin(), config=bdaudit.WhiteboxConfig(eps=0.02, n_passes=8), **_INPUTS
    )
    return found.record


@pytest.fixture(scope="session")
def hostile(audited: AuditRecord) -> AuditRecord:
    """A record whose every free string is an attack on the page."""
    bec = audited.bec[0]
    layers = tuple(x.model_copy(update={"layer": HOSTILE + x.layer}) for x in bec.layers)
    models = tuple(
        m.model_copy(update={"path": HOSTILE, "arch": HOSTILE, "notes": (HOSTILE,)})
        for m in audited.models
    )
    assert audited.verdict is not None
    return audited.model_copy(
        update={
            "models": models,
            "bec": (bec.model_copy(update={"layers": layers, "reference": HOSTILE}),),
            "data": audited.data.model_copy(
                update={"class_names": (HOSTILE,) * 4, "source": HOSTILE}
            ),
            "diagnostics": (
                Diagnostic(code=HOSTILE, severity="error", message=HOSTILE, subject=HOSTILE),
            ),
            "verdict": audited.verdict.model_copy(
                update={"why": HOSTILE, "reasons": (HOSTILE, HOSTILE), "policy_source": HOSTILE}
            ),
            "command": ("bdaudit", HOSTILE),
        }
    )


@dataclass
class Look:
    """A page, and what it complained about or asked for."""

    page: Page
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


OpenPage = Callable[..., Look]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium as the system has it; nothing is downloaded."""
    executable = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium: .ci/run should have installed it")
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox refuses to run as root, as CI does.
        yield playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])


@pytest.fixture
def look(browser: Browser) -> Iterator[OpenPage]:
    """A function that opens a file and notes its console and all that it asks for."""
    contexts = []

    def open_page(path: Path, *, width: int = 1100, scheme: str = "light") -> Look:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        seen = Look(context.new_page())
        seen.page.on("console", lambda message: seen.console.append(message.text))
        seen.page.on("pageerror", lambda error: seen.console.append(str(error)))
        seen.page.on("dialog", lambda dialog: seen.console.append(f"dialog {dialog.message}"))
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.goto(path.as_uri())
        return seen

    yield open_page
    for context in contexts:
        context.close()
