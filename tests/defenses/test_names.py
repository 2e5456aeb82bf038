"""Defences by the names that people call them."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from bdaudit.auditing import DefendSettings
from bdaudit.cli import app
from bdaudit.defenses.catalogue import DEFENSES, defense_name
from bdaudit.errors import ConfigError


@pytest.mark.parametrize("defense", DEFENSES.values(), ids=lambda defense: defense.name)
def test_every_title_and_name_is_understood(defense: object) -> None:
    name, title = defense.name, defense.title  # type: ignore[attr-defined]
    for text in (name, name.replace("-", "_"), name.upper(), title, title.replace(" ", "-")):
        assert defense_name(text) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [("ft", "finetune"), ("FT", "finetune"), ("FP", "fine-pruning"), ("NC", "nc-unlearn"),
     ("ibau", "i-bau"), ("ftsam", "ft-sam")],
)  # fmt: skip
def test_what_papers_say_is_understood(text: str, name: str) -> None:
    assert defense_name(text) == name


def test_a_name_that_is_none_gives_the_nearest_and_where_all_are() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'anp'.*defend --list"):
        defense_name("anpp")


def test_settings_follow_the_names() -> None:
    settings = DefendSettings(methods=("FT", "ANP"), settings={"ft": {"tuning.n_epochs": 2}})
    assert settings.chosen == ("finetune", "anp")
    assert settings.configs()["finetune"].tuning.n_epochs == 2


def test_the_list_needs_no_model() -> None:
    result = CliRunner().invoke(app, ["defend", "--list"])
    assert result.exit_code == 0, result.output
    assert "finetune (fine-tuning)" in result.stdout
    assert "  --set anp.threshold=0.7" in result.stdout
    for name in DEFENSES:
        assert f"\n{name}" in f"\n{result.stdout}"
