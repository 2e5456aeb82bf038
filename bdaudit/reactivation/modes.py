"""The kinds of attack, told by their settings."""

from __future__ import annotations

from typing import TypeAlias

from bdaudit.reactivation import WhiteboxConfig
from bdaudit.reactivation.query_config import QueryConfig
from bdaudit.reactivation.transfer import TransferConfig
from bdaudit.records import Mode

__all__ = ["AttackConfig", "mode_of", "needs_surrogates"]

AttackConfig: TypeAlias = WhiteboxConfig | QueryConfig | TransferConfig


def mode_of(config: AttackConfig) -> Mode:
    """Name the kind of attack that these are the settings of."""
    if isinstance(config, TransferConfig):
        return "transfer"
    return "query" if isinstance(config, QueryConfig) else "white"


def needs_surrogates(config: AttackConfig, *, cold: bool) -> bool:
    """Say whether the attack rests on surrogates; a query search does unless `cold`."""
    if isinstance(config, QueryConfig):
        return not cold and config.schedule == "default"
    return isinstance(config, TransferConfig)
