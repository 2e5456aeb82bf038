"""Every command in the documentation is run, every page is in the site, and the site builds."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from typer.testing import CliRunner

import bdaudit
from bdaudit.cli import app
from tests.docs.blocks import Block, commands, read_blocks, with_small_budgets
from tests.docs.page_files import SMALL, write_page_files

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [block for page in PAGES for block in read_blocks(page, ROOT)]
RUN = {
    page: found
    for page in dict.fromkeys(b.page for b in BLOCKS)
    if any(b.is_commands and b.not_run is None for b in BLOCKS if b.page == page)
    and (found := [b for b in BLOCKS if b.page == page])
}


@pytest.fixture(scope="module")
def template(demo_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages speak of: the demonstration's, under the names of the pages."""
    folder = tmp_path_factory.mktemp("pages") / "files"
    write_page_files(folder, demo_files)
    (folder / "stricter.toml").write_text("lift = 0.05\n")
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    )
    (folder / "key.pub").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    (folder / "records").mkdir()
    (folder / "release").mkdir()
    (folder / "release" / "bdaudit.toml").write_text(
        '[inputs]\ndefended = "../defended.safetensors"\noriginal = "../original.safetensors"\n'
        'data = "../clean.npz"\ntrigger = "../trigger.toml"\n'
    )
    records = {
        "result": "defended", "ft": "dormant", "fst": "innocent-3", "unlearned": "removed"
    }  # fmt: skip
    store = bdaudit.MemoryStore()  # the attacks on the original and the references are made once
    with contextlib.chdir(folder):
        for name, model in records.items():
            record = bdaudit.audit(
                Path(f"{model}.safetensors"),
                original=Path("original.safetensors"),
                data=Path("clean.npz"),
                trigger=Path("trigger.toml"),
                reference=[Path("innocent-1.safetensors"), Path("innocent-2.safetensors")],
                settings=SMALL,
                store=store,
            )
            Path(f"{name}.json").write_text(bdaudit.to_json(record), encoding="utf-8")
        shutil.copy("result.json", "records")
    return folder


def run_one(command: str, folder: Path) -> tuple[int, str]:
    """Run a command in `folder`: in this process where that is possible, which is faster."""
    words, needs_shell = with_small_budgets(command)
    with contextlib.chdir(folder):
        if not needs_shell:
            result = CliRunner().invoke(app, words[1:])
            return result.exit_code, result.output
        tools = folder / ".tools"
        tools.mkdir(exist_ok=True)
        script = tools / "bdaudit"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bdaudit "$@"\n')
        script.chmod(0o755)
        ran = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            env=os.environ
            | {"PATH": f"{tools}:{os.environ['PATH']}", "GITHUB_STEP_SUMMARY": "summary.md"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return ran.returncode, ran.stdout + ran.stderr


@pytest.mark.parametrize("page", RUN)
def test_commands_run(page: str, template: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(template, folder)
    for block in RUN[page]:
        if block.file is not None:
            (folder / block.file).write_text(block.body)
        if not block.is_commands or block.not_run is not None:
            continue
        for command in commands(block):
            code, output = run_one(command, folder)
            assert code in block.exits, f"{page}:{block.line}: {command}\n{output}"


def where(block: Block) -> str:
    return f"{block.page}:{block.line}"


def test_what_is_not_run_says_why() -> None:
    for block in BLOCKS:
        if block.mark.startswith("not run"):
            assert block.not_run, f"{where(block)}: 'not run' needs a reason"
            known = block.is_commands or block.language == "python"
            assert known, f"{where(block)}: 'not run' above what is neither command nor Python"


def test_no_command_escapes_by_its_language() -> None:
    for block in BLOCKS:
        if block.language in ("text", "yaml", "toml", "make", "python"):
            continue
        assert block.language in ("", "console", "bash", "sh", "shell"), where(block)


def test_the_reader_of_blocks_reads(tmp_path: Path) -> None:
    assert len(RUN) >= 8
    text = (
        "<!-- not run: why -->\n```\nbdaudit x\n```\n\n```\nbdaudit audit a \\\n  --eps 0.1  # c\n"
        "bdaudit report r | cat\n```\n```\noutput\n```\n"
    )
    page = tmp_path / "made-up.md"
    page.write_text(text)
    blocks = read_blocks(page, tmp_path)
    assert [b.line for b in blocks] == [2, 6, 11]
    assert [b.is_commands for b in blocks] == [True, True, False]
    assert blocks[0].not_run == "why"
    first, second = commands(blocks[1])
    words, needs_shell = with_small_budgets(first)
    assert not needs_shell
    assert words[:5] == ["bdaudit", "audit", "a", "--eps", "0.1"]
    assert words.count("--eps") == 1
    assert words[words.index("--passes") + 1] == "2"
    assert with_small_budgets(second)[1]


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "python"], ids=lambda b: where(b)
)
def test_python_in_the_pages_names_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.body)):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "bdaudit"
        ):
            assert hasattr(bdaudit, node.attr), f"{where(block)}: bdaudit.{node.attr}"


# -- The site --------------------------------------------------------------------------------------


def pages_of(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    if isinstance(nav, dict):
        return [page for value in nav.values() for page in pages_of(value)]
    assert isinstance(nav, list)
    return [page for entry in nav for page in pages_of(entry)]


def test_every_page_is_in_the_navigation() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = pages_of(site["nav"])
    written = [str(p.relative_to(ROOT / "docs")) for p in PAGES if p.parent != ROOT]
    assert sorted(listed) == sorted(written)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    built = {p.parent.name for p in (tmp_path / "site").rglob("index.html")}
    assert {"reading", "numbers", "python", "reports", "github"} <= built
    # Nothing on a page is fetched from elsewhere.
    for page in (tmp_path / "site").rglob("*.html"):
        for address in re.findall(
            r'(?:src|<link[^>]*href)="(https?://[^"]+)"', page.read_text(encoding="utf-8")
        ):
            assert 'rel="canonical"' in address, f"{page.name} asks for {address}"
    verbs = (tmp_path / "site" / "python" / "index.html").read_text(encoding="utf-8")
    for verb in ("audit", "score", "reactivate", "read_record", "render_report", "judge"):
        assert re.search(rf'id="bdaudit\.[\w.]*\.{verb}"', verbs), verb
