"""Recognise files that are no checkpoints, and tell users what to do about them."""

from __future__ import annotations

import re

__all__ = ["describe_foreign"]

_LFS = b"version https://git-lfs.github.com/spec/"
_MARKUP = re.compile(rb"\s*<(!doctype|html|head|body|\?xml|script|!--)", re.IGNORECASE)
_MANY_ZEROS = 64
_UNPACK = "unpack it and name the checkpoint inside"
_EXPORT = "export the network to ONNX and audit it with --mode query"
_AGAIN = "download the file itself"

# What stands at the beginning of a file: (offset, bytes, what it is, what to do).
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    (0, b"BZh", "a bzip2 archive", _UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!\x1a\x07", "a rar archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"PK\x05\x06", "an empty zip archive", "copy or download it again"),
    (
        0,
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file, as Keras writes",
        f"{_EXPORT}, or save a torch network's state_dict",
    ),
    (0, b"GGUF", "a GGUF file of quantised language-model weights", "give the original weights"),
    (
        0,
        b"\x93NUMPY",
        "a single numpy array",
        "save the network's weights with torch.save or as .safetensors",
    ),
    (4, b"TFL3", "a TensorFlow Lite model", _EXPORT),
    (0, b"%PDF", "a PDF", _AGAIN),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture", "name the checkpoint"),
    (0, b"\xff\xd8\xff", "a JPEG picture", "name the checkpoint"),
    (0, b"\x7fELF", "a program", "name the checkpoint"),
    (0, b"MZ", "a program", "name the checkpoint"),
)


def describe_foreign(head: bytes) -> str | None:
    """Return "got WHAT; WHAT TO DO" for a file that begins like no checkpoint, else `None`.

    Args:
        head: Its first kilobyte.
    """
    if len(head) >= _MANY_ZEROS and not any(head):
        return "got zeros, as a download that broke off leaves them; download it again"
    if head.startswith(_LFS):
        return (
            "got a Git LFS pointer, which stands for the file and is not it; fetch the file with "
            "`git lfs pull`"
        )
    text = head.removeprefix(b"\xef\xbb\xbf")
    if _MARKUP.match(text):
        return (
            "got a web page, such as a sign-in or error page that was saved in place of the file; "
            "download it again, signed in, from the address of the file itself"
        )
    for offset, signature, what, remedy in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return f"got {what}; {remedy}"
    if text.lstrip()[:1] in (b"{", b"["):
        return (
            "got JSON text, not weights; name the checkpoint, or the NAME.index.json of weights "
            "in several files"
        )
    return None
