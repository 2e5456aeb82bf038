"""The pages about the package itself say what is there: its modules, its rooms, its files."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import bdaudit
from bdaudit.cli import exits
from tests.docs.modules import ROOT, first_sentence, modules_page


def test_the_page_of_modules_is_what_the_docstrings_say() -> None:
    written = (ROOT / "docs" / "modules.md").read_text(encoding="utf-8")
    assert written == modules_page(), (
        "a first sentence changed; run: python -m tests.docs.modules > docs/modules.md"
    )


def test_every_module_is_on_the_page() -> None:
    sections = modules_page().split("\n## ")[1:]
    listed = {
        section.partition("\n")[0] + row.split("`")[1]
        for section in sections
        for row in section.splitlines()
        if row.startswith("| `")
    }
    there = {file.relative_to(ROOT).as_posix() for file in (ROOT / "bdaudit").rglob("*.py")}
    assert listed == there


def test_a_first_sentence_ends_where_the_next_begins(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        '"""Reads `a.b` of version 1.2\nand nothing else. More of it.\n\nAnd more."""\n'
    )
    assert first_sentence(file) == "Reads `a.b` of version 1.2 and nothing else."
    file.write_text('"""No sentence"""\n')
    with pytest.raises(ValueError, match="begins with a sentence"):
        first_sentence(file)
    file.write_text("x = 1\n")
    with pytest.raises(ValueError, match="begins with a sentence"):
        first_sentence(file)


def test_the_architecture_has_a_row_for_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = page.partition("## Rooms")[2].partition("\n## ")[0]
    named = {
        name
        for row in rooms.splitlines()
        if row.startswith("| `")
        for name in row.split("|")[1].replace("`", "").replace(" ", "").split(",")
    }
    there = {
        f"{entry.name}/" if entry.is_dir() else entry.name
        for entry in (ROOT / "bdaudit").iterdir()
        if (entry / "__init__.py").is_file() or entry.suffix == ".py"
    } - {"__init__.py", "__main__.py"}
    assert named == there


@pytest.mark.parametrize("page", ["README.md", "docs/stability.md"])
def test_the_table_of_exit_codes_is_complete(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    table = text.partition("| exit code |" if page == "README.md" else "| code |")[2]
    table = table.partition("\n\n")[0]
    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert listed == sorted(
        {
            v
            for name, v in vars(exits).items()
            if re.match(r"EXIT_[A-Z_]+", name) and isinstance(v, int)
        }
    )


PATHS = re.compile(r"`([\w.-]+/[\w./-]*|[A-Z]+\.(?:md|cff))`")


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md", "docs/releasing.md"])
def test_every_path_that_is_named_exists(page: str) -> None:
    named = PATHS.findall((ROOT / page).read_text(encoding="utf-8"))
    there = [path for path in named if "NAME" not in path and path != "dist/"]
    assert len(there) > 5
    missing = [p for p in there if not (ROOT / p).exists() and not (ROOT / "bdaudit" / p).exists()]
    assert not missing


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("KINDS", "bdaudit/measuring/attacking.py"),
        ("MODES", "bdaudit/foundation/modes.py"),
        ("CHANGES", "tests/project/test_manifest.py"),
        ("_ALL", "bdaudit/defenses/catalogue.py"),
        ("_ALL", "bdaudit/zoo/attacks/catalogue.py"),
        ("_READERS", "bdaudit/triggers/files.py"),
        ("_FILE_KEYS", "bdaudit/triggers/files.py"),
        ("every_kind", "tests/triggers/test_transforms.py"),
        ("TRANSFORMS", "tests/triggers/test_files.py"),
        ("SETTINGS", "tests/defenses/test_purifying.py"),
        ("QUICK", "tests/defenses/test_purifying.py"),
        ("LocalSource", "bdaudit/foundation/sources.py"),
        ("parse_model", "bdaudit/foundation/sources.py"),
        ("_open_folder", "bdaudit/data/loading.py"),
        ("FORMATS", "bdaudit/report/formats.py"),
        ("_DOUBTS_EVERY_RATE", "bdaudit/verdict/rules.py"),
        ("SCHEMA_VERSION", "bdaudit/records/header.py"),
    ],
)
def test_every_name_that_a_contributor_is_sent_to_exists(name: str, file: str) -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"`{name}`" in page
    assert f"`{file}`" in page
    code = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^(def )?{name}\b", code, re.MULTILINE)


def test_hooks_before_a_commit_run_what_ci_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = [hook["entry"] for repo in hooks["repos"] for hook in repo["hooks"]]
    hooked = {entry.replace(" --force-exclude", "") for entry in entries}
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    linters = re.findall(r"^(?:ruff|mypy|lint-imports)\b.*$", script, re.MULTILINE)
    assert hooked == {re.sub(r" (\.|bdaudit tests.*)$", "", line) for line in linters}


def test_the_citation_and_the_changelog_are_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == bdaudit.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\d\S*)( \(\d{4}-\d\d-\d\d\))?$", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == bdaudit.__version__


def test_an_sdist_holds_what_the_tests_look_at() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert not [name for name in included if not (ROOT / name).exists()]
    for file in (ROOT / "tests").rglob("*.py"):
        for name in re.findall(r'ROOT / "([\w./-]+)"', file.read_text(encoding="utf-8")):
            assert name.split("/")[0] in [*included, "pyproject.toml"], f"{file}: {name}"


def test_every_diagnostic_has_a_paragraph() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    codes = set()
    for file in (ROOT / "bdaudit").rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            name = ast.unparse(call.func)
            given = [word.value for word in call.keywords if word.arg == "code"]
            if name == "_doubt":
                given += call.args[:1]
            if name in ("Diagnostic", "_doubt"):
                codes |= {
                    part.value
                    for value in given
                    for part in ast.walk(value)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                }
    assert len(codes) > 20
    for code in codes:
        if code.startswith("_"):  # the end of a code that begins with the mode
            assert f"## query{code}" in pages, code
            continue
        assert re.search(rf"^(#+ |- |\| |\*\*)?[`*]*{code}\b", pages, re.MULTILINE), code
