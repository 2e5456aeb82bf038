"""Family files: what they say, and what they are refused for."""

from __future__ import annotations

from pathlib import Path

import pytest

from bdaudit.errors import ManifestError
from bdaudit.zoo.manifest import Manifest, read_manifest
from bdaudit.zoo.seeds import derive_seed

EXAMPLES = Path(__file__).parents[2] / "examples" / "families"

HEAD = """
[family]
name = "f"
[data]
path = "images"
"""
ATTACK = """
[[attack]]
type = "badnets"
rates = [0.1, 0.005]
seeds = [1, 2]
"""


def read(folder: Path, text: str) -> Manifest:
    path = folder / "family.toml"
    path.write_text(HEAD + text)
    return read_manifest(path)


def test_names_follow_from_what_is_written(tmp_path: Path) -> None:
    manifest = read(
        tmp_path,
        ATTACK
        + """
[[defense]]
name = "hard"
type = "finetune"
of = ["badnets-r10-*", "*--innocent"]
settings = { tuning = { learning_rate = 0.1 } }
[clean]
innocent = ["badnets-r10-s2"]
true_labels = ["*-s1"]
""",
    )
    assert list(manifest.originals()) == [
        *("badnets-r10-s1", "badnets-r10-s2", "badnets-r0_5-s1", "badnets-r0_5-s2")
    ]
    assert list(manifest.clean_ends()) == [
        *("badnets-r10-s2--innocent", "badnets-r10-s1--true-labels", "badnets-r0_5-s1--true-labels")
    ]
    # A pattern without "--" means originals alone.
    assert list(manifest.defended()) == [
        *("badnets-r10-s1--hard", "badnets-r10-s2--hard", "badnets-r10-s2--innocent--hard")
    ]
    assert manifest.defense_named("hard").config().tuning.learning_rate == 0.1
    assert manifest.data.path == str(tmp_path / "images")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[[attack]]\ntype = "badnet"', "did you mean 'badnets'"),
        ('[[attack]]\ntype = "badnets"\nrate = [0.1]', r"attack\[1\]: unknown key 'rate'.*'rates'"),
        ('[[attack]]\ntype = "badnets"\nrates = [10]', r"attack\[1\]\.rates\[1\]: .*got 10"),
        ('[[attack]]\ntype = "badnets"\nrates = [0.1, 0.1]', "expected each once"),
        ('[[attack]]\ntype = "badnets"\nsettings = { size = 0 }', "size"),
        ('[[attack]]\ntype = "badnets"\nsettings = { sise = 2 }', "did you mean 'size'"),
        ('[[attack]]\ntype = "sig"\ntarget = "all-to-all"', "one class"),
        ('[[attack]]\ntype = "badnets"\n[[attack]]\ntype = "badnets"', "badnets again"),
        ('[[attack]]\ntype = "badnets"\nname = "a--b"', "name"),
        (ATTACK + '[[defense]]\ntype = "ft-sma"', "did you mean 'ft-sam'"),
        (ATTACK + '[[defense]]\ntype = "fst"\nof = ["blended-*"]', "fst.*'blended-.' matches none"),
        (ATTACK + '[clean]\ninnocent = ["sig-*"]', "clean.innocent: 'sig-.' matches none"),
        (ATTACK + '[clean]\nreferences = ["nad"]', "clean.references: unknown key 'nad'"),
        (ATTACK + "[training]\nepochs = 0", "epochs: expected 1 or more"),
        (ATTACK + '[training]\nprecision = "fp16"', "precision"),
        (ATTACK + "[hardening]\neps = 8", "hardening: eps"),
        (ATTACK + "[relearning]\nshot = 5", "did you mean 'shots'"),
        ("", "attack: Field required"),
        ("[[attack]]", "type: Field required"),
        ("attack = 3", "attack"),
        ("[[attack]\n", "TOML"),
    ],
)
def test_what_cannot_be_is_refused_with_the_place(
    tmp_path: Path, text: str, complaint: str
) -> None:
    with pytest.raises(ManifestError, match=rf"(?s)family\.toml: (?!:).*{complaint}"):
        read(tmp_path, text)


def test_data_is_one_set_or_two_folders(tmp_path: Path) -> None:
    path = tmp_path / "family.toml"
    for data in ("", 'path = "a"\ntrain = "b"', 'train = "b"'):
        path.write_text(f'[family]\nname = "f"\n[data]\n{data}\n{ATTACK}')
        with pytest.raises(ManifestError, match="data: expected"):
            read_manifest(path)
    path.write_text(f'[family]\nname = "f"\n[data]\ntrain = "a"\ntest = "b"\n{ATTACK}')
    assert read_manifest(path).data.test == str(tmp_path / "b")
    assert read_manifest(path).with_data("c").data.path == "c"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"nowhere\.toml"):
        read_manifest(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_examples_can_be_read(path: Path) -> None:
    manifest = read_manifest(path)
    members = [*manifest.originals(), *manifest.clean_ends(), *manifest.defended()]
    members += manifest.clean.references
    assert len(members) >= {"fashion-mnist": 60, "fashion-mnist-attacks": 8}.get(path.stem, 12)


def test_the_large_example_is_as_docs_say() -> None:
    manifest = read_manifest(EXAMPLES / "fashion-mnist.toml")
    assert len(manifest.originals()) >= 12
    assert len(manifest.clean.references) >= 4
    attacks_of: dict[str, set[str]] = {}
    for name, (defense, parent) in manifest.defended().items():
        assert name.startswith(parent)
        if parent in manifest.originals():
            attacks_of.setdefault(defense.name, set()).add(manifest.originals()[parent].name)
    assert all(len(attacks) >= 3 for attacks in attacks_of.values()), attacks_of
    assert set(attacks_of) == {entry.name for entry in manifest.defense}


def test_seeds_hang_on_names_alone() -> None:
    assert derive_seed(0, "a") == derive_seed(0, "a")
    assert len({derive_seed(seed, name) for seed in (0, 1) for name in ("a", "b", "a b")}) == 6
    assert all(0 <= derive_seed(0, str(n)) < 2**31 for n in range(100))
