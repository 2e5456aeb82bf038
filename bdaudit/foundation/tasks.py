"""What a model does, and so what is asked of it."""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["Task"]

Task: TypeAlias = Literal["classification", "detection"]
"""Classify an image as a whole, or find the objects in a picture."""
