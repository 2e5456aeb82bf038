"""The backdoor existence coefficient (BEC): how much of the backdoor circuit is still there."""

from bdaudit.existence.coefficient import ExistenceConfig, existence_coefficient

__all__ = ["ExistenceConfig", "existence_coefficient"]
