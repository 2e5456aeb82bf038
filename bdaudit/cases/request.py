"""An audit that is asked for: sources and settings under a name."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from bdaudit.cases.settings import AuditSettings
from bdaudit.cases.sources import Sources, default_modes
from bdaudit.errors import ConfigError

__all__ = ["AuditRequest"]

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """An audit that is asked for.

    Attributes:
        key: Its name among others, and that of its record's file: letters, digits, `.`, `_`, `-`.
        sources: What it is on. What is handed over in memory must pickle, and cannot be told from
            other such things, so its record is made anew every time.
        settings: How it is run.

    Raises:
        ConfigError: The key cannot be a file's name.
    """

    key: str
    sources: Sources
    settings: AuditSettings

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise ConfigError(
                f"audit {self.key!r}: expected a name of letters, digits, '.', '_' and '-'"
            )

    def with_modes(self) -> AuditRequest:
        """Return the same request, its kinds of attack named."""
        if self.settings.mode is not None or self.sources.defended is None:
            return self
        modes = default_modes(self.sources.defended)
        return replace(self, settings=replace(self.settings, mode=modes))
