"""The text side of open_clip's models that comes from Hugging Face: text towers and tokenizers.

open_clip would download both by their names. Here they come from the folder of the model: the text
tower's `config.json`, and `tokenizer.json` with the settings beside it. Nothing is fetched, and no
code of a folder is run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bdaudit.errors import ModelError
from bdaudit.foundation.opening import LIST_BYTES, is_file
from bdaudit.models.beside import read_beside
from bdaudit.models.checkpoint import ReadFile
from bdaudit.models.transformers_clip import TOKENIZER, read_tokenizer
from bdaudit.models.transformers_models import quiet_library, structure_of

__all__ = ["FolderTokenizer", "TextTower", "find_text_tower", "open_tokenizer", "text_files"]

_CONFIG = "config.json"
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
_MOST_LAYERS = 1000
_KNOWN_ARGUMENTS = frozenset({"clean", "strip_sep_token"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTower:
    """The config of a text tower of transformers, as its `config.json` has it.

    Attributes:
        config: What says how it is built, `model_type` included.
        file: Where it was read.
    """

    config: Mapping[str, Any]
    file: ReadFile

    @contextmanager
    def as_folder(self) -> Iterator[str]:
        """Lay the config down in a folder of its own, which open_clip takes for a model's name."""
        with tempfile.TemporaryDirectory() as folder, quiet_library():
            (Path(folder) / _CONFIG).write_text(json.dumps(dict(self.config)), encoding="utf-8")
            yield folder


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderTokenizer:
    """A tokenizer of Hugging Face's form, called as open_clip calls its own.

    Attributes:
        tokenizer: Of the `tokenizers` library.
        clean: What is done to a text first.
        context_length: How many tokens the text tower reads.
        padding: The token that fills up.
        separator: The token that is put out by a 0, `None` where none is.
        files: What was read.
    """

    tokenizer: Any
    clean: Callable[[str], str]
    context_length: int
    padding: int
    separator: int | None
    files: tuple[ReadFile, ...]

    def tokens_of(self, text: str) -> list[int]:
        """Return the tokens of a text, its beginning and end included, without padding."""
        return list(self.tokenizer.encode(self.clean(text)).ids)

    def __call__(self, texts: Sequence[str] | str) -> Tensor:
        """Map N texts to tokens (N, context_length)."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = torch.full((len(texts), self.context_length), self.padding)
        for row, text in enumerate(texts):
            ids = torch.tensor(self.tokens_of(text)[: self.context_length])
            rows[row, : len(ids)] = ids
        return rows if self.separator is None else rows.masked_fill(rows == self.separator, 0)


def text_files(folder: Path) -> tuple[Path, ...]:
    """Name the files of a folder that decide what a text tower from Hugging Face answers."""
    named = (_CONFIG, TOKENIZER, *_TOKENIZER_SETTINGS)
    return tuple(folder / name for name in named if is_file(folder / name))


def find_text_tower(arch: str, text: Mapping[str, Any], folder: Path | None) -> TextTower | None:
    """Find the config of the text tower that open_clip would download by its name.

    Args:
        arch: For messages.
        text: `text_cfg` of open_clip's config.
        folder: That of the model.

    Returns:
        `None` where the text tower is open_clip's own.

    Raises:
        ModelError: The folder has no config of it, or that is of another kind.
    """
    name = text.get("hf_model_name")
    if not name:
        return None
    from open_clip.hf_model import arch_dict

    path = None if folder is None else folder / _CONFIG
    if path is None or not is_file(path):
        raise ModelError(
            f"{arch}: expected the config of its text tower ({name!r:.80}), which is not "
            f"downloaded, as {_CONFIG} in the folder of the model"
            + ("" if folder is None else f" ({folder})")
            + f"; fetch it where there is a network (hf download {name!s:.80} {_CONFIG}) and put "
            "it there"
        )
    document, file = read_beside(path, "the config of a text tower", limit=LIST_BYTES)
    kind = document.get("model_type")
    if kind not in arch_dict:
        raise ModelError(
            f"{path}: expected the config of a text tower ({', '.join(arch_dict)}), got "
            f"{kind!r:.40}"
        )
    if document.get("auto_map"):
        raise ModelError(
            f"{path}: refused: 'auto_map' asks for Python code of the model's author, which is "
            "never run"
        )
    # Each layer takes time to set up, even where no memory is taken for it.
    for key, value in document.items():
        if key.endswith("layers") and isinstance(value, int) and value > _MOST_LAYERS:
            raise ModelError(f"{path}: expected at most {_MOST_LAYERS} layers, got {value}")
    config = {**structure_of(path, document), "model_type": kind}
    config.pop("id2label", None)
    config.pop("label2id", None)
    return TextTower(config=config, file=file)


def open_tokenizer(
    arch: str, text: Mapping[str, Any], folder: Path | None, open_clip: ModuleType
) -> FolderTokenizer:
    """Open the tokenizer that lies in the folder of a model.

    Args:
        arch: For messages.
        text: `text_cfg` of open_clip's config.
        folder: That of the model.
        open_clip: The library.

    Raises:
        ModelError: There is none, it does not say how it pads, or the config asks for what is not
            done here.
    """
    if folder is None or not is_file(folder / TOKENIZER):
        raise ModelError(
            f"{arch}: expected its tokenizer ({text.get('hf_tokenizer_name') or 'SigLIP'!s:.80}), "
            f"which is not downloaded, as {TOKENIZER} in the folder of the model"
            + ("; give that folder as the config folder (--clip-config)" if folder is None else "")
            + (f" ({folder}); put it there" if folder is not None else "")
        )
    arguments = dict(text.get("tokenizer_kwargs") or {})
    if text.get("tokenizer_mode") or arguments.keys() - _KNOWN_ARGUMENTS:
        odd = text.get("tokenizer_mode") or sorted(arguments.keys() - _KNOWN_ARGUMENTS)
        raise ModelError(
            f"{arch}: its config asks for a tokenizer that is not at hand ({odd!r:.80})"
        )
    tokenizer, file = read_tokenizer(folder)
    special, files = _special_tokens(folder)
    padding = _token(tokenizer, special, "pad_token", folder)
    separator = None
    if arguments.get("strip_sep_token"):
        separator = _token(tokenizer, special, "sep_token", folder)
    try:
        clean = open_clip.tokenizer.get_clean_fn(arguments.get("clean", "whitespace"))
    except AssertionError as error:
        raise ModelError(f"{arch}: {error}") from error
    return FolderTokenizer(
        tokenizer=tokenizer,
        clean=clean,
        context_length=int(text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)),
        padding=padding,
        separator=separator,
        files=(file, *files),
    )


def _special_tokens(folder: Path) -> tuple[dict[str, Any], list[ReadFile]]:
    special: dict[str, Any] = {}
    files = []
    for name in reversed(_TOKENIZER_SETTINGS):
        if is_file(folder / name):
            document, file = read_beside(folder / name, "a tokenizer's settings", limit=LIST_BYTES)
            special |= {k: v for k, v in document.items() if k.endswith("_token")}
            files.append(file)
    return special, files


def _token(tokenizer: Any, special: Mapping[str, Any], name: str, folder: Path) -> int:
    said = special.get(name)
    said = said.get("content") if isinstance(said, dict) else said
    found = tokenizer.token_to_id(said) if isinstance(said, str) else None
    if not isinstance(found, int):
        raise ModelError(
            f"{folder}: expected {name} in {_TOKENIZER_SETTINGS[0]} beside {TOKENIZER}, a token "
            f"that the tokenizer knows, got {said!r:.40}"
        )
    return found
