"""Files from URLs: into a cache, whole or not at all, size-limited and digest-checked."""

from bdaudit.fetching.cached import fetch, fetch_beside, fetch_steps
from bdaudit.fetching.repositories import fetch_repository, is_repository
from bdaudit.fetching.urls import public_url

__all__ = [
    "fetch",
    "fetch_beside",
    "fetch_repository",
    "fetch_steps",
    "is_repository",
    "public_url",
]
