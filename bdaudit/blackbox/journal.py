"""Answers on disk as they arrive, so that a run that is killed pays for none of them again.

A search hands over its state after every question, but a question may take many requests, and
scoring asks without any search. What is in the journal was answered; on resuming, the same images
in the same order are answered from it.
"""

from __future__ import annotations

import struct
from collections import defaultdict, deque
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bdaudit.foundation.digests import digest_tensors
from bdaudit.foundation.opening import SAMPLE_BYTES, is_file, read_bytes

__all__ = ["AnswerJournal"]

_LENGTH = struct.Struct("<Q")


class AnswerJournal:
    """Answers by the images they belong to, appended to one file.

    Every entry is a safetensors file behind its length: nothing in it can run code. An entry that a
    kill left unfinished at the end is dropped.

    Args:
        path: The file; missing until the first answer. What it holds when the journal is opened can
            be recalled, each entry once; equal images are recalled in the order they were asked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: defaultdict[str, deque[Tensor]] = defaultdict(deque)
        sound = 0
        content = (
            read_bytes(path, limit=SAMPLE_BYTES, what="kept answers") if is_file(path) else b""
        )
        while len(content) >= sound + _LENGTH.size:
            (length,) = _LENGTH.unpack_from(content, sound)
            entry = content[sound + _LENGTH.size : sound + _LENGTH.size + length]
            try:
                ((digest, answers),) = load(entry).items()
            except (SafetensorError, ValueError):
                break
            self._known[digest].append(answers)
            sound += _LENGTH.size + length
        if sound < len(content):
            with path.open("r+b") as stream:
                stream.truncate(sound)

    def recall(self, images: Tensor) -> Tensor | None:
        """Return what an earlier run was answered for exactly these images (n, C, H, W)."""
        waiting = self._known.get(_digest(images))
        return waiting.popleft() if waiting else None

    def keep(self, images: Tensor, answers: Tensor) -> None:
        """Append the answers (n, K) or (n,) to images (n, C, H, W).

        Once its folder was thrown away, since all is done, nothing is kept.
        """
        if not self.path.parent.is_dir():
            return
        entry = save({_digest(images): answers.detach().cpu().contiguous()})
        with self.path.open("ab") as stream:
            # One write, so that a kill cuts it off and does not tear it open.
            stream.write(_LENGTH.pack(len(entry)) + entry)


def _digest(images: Tensor) -> str:
    return digest_tensors({"images": images})
