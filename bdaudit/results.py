"""The records by the name they had; import them from `bdaudit.records`."""

from bdaudit.records import *  # noqa: F403
from bdaudit.records import __all__ as __all__
