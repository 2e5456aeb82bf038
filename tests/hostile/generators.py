"""Hostile inputs by kind, each from a seed; `corpus` gives all of them."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile.bytes_of import (
    ANSI,
    SPECIALS,
    TEXTS,
    archive,
    mutate,
    noise,
    npy,
    npy_of,
    png,
    safetensors,
    special,
    tensor_entry,
    text_chunk,
)
from tests.hostile.cases import ANSWERED, CANARY, DRAFTED, REFUSED, Case

TRIGGER = "{base}/trigger.toml"
DATA = "{base}/clean.npz"
MODEL = "{base}/removed.safetensors"
RECORD = "{base}/audit.json"
SCORE = (
    "--original",
    "{base}/original.safetensors",
    "--data",
    DATA,
    "--trigger",
    TRIGGER,
    "--stand-ins",
    "0",
    "--no-cache",
    "--bootstrap",
    "0",
    "--samples",
    "20",
)
QUERY = (
    "--original",
    "{base}/original.safetensors",
    "--data",
    DATA,
    "--trigger",
    TRIGGER,
    "--mode",
    "query",
    "--stand-ins",
    "0",
    "--no-cache",
    "--max-queries",
    "50",
)
# A model that can still be used is not audited at length: what is tried is how it is opened.
_OPEN_ONLY = ("--output-name", "no-such-output")
REPORTS = (
    "--report",
    "html=o.html",
    "--report",
    "md=o.md",
    "--report",
    "sarif=o.sarif",
    "--report",
    "junit=o.xml",
)


def preview(trigger: str = TRIGGER, data: str = DATA, *rest: str) -> tuple[str, ...]:
    return ("trigger", "preview", trigger, "--data", data, "--out", "out.png", *rest)


def content(name: str, data: bytes | str) -> Callable[[Path], object]:
    """Build one file."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data

    def build(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)

    return build


def together(*builds: Callable[[Path], object]) -> Callable[[Path], object]:
    def build(folder: Path) -> None:
        for one in builds:
            one(folder)

    return build


def _special(kind: str, name: str) -> Callable[[Path], object]:
    return lambda folder: special(kind, folder / name)


# --- what is no regular file ---------------------------------------------------------------------

_PATCH = 'kind = "patch"\n[target]\nlabel = 0\n[patch]\nimage = "{}"\n'
_PLACES: dict[str, tuple[str, tuple[str, ...], frozenset[int], str | None]] = {
    "trigger": ("t.toml", preview("t.toml"), REFUSED, None),
    "trigger-image": ("p.png", preview("t.toml"), REFUSED, _PATCH.format("p.png")),
    "trigger-npy": ("p.npy", preview("t.toml"), REFUSED, _PATCH.format("p.npy")),
    "trigger-tensors": (
        "p.safetensors",
        preview("t.toml"),
        REFUSED,
        _PATCH.format("p.safetensors"),
    ),
    "trigger-code": (
        "c.py",
        preview("t.toml", DATA, "--allow-trigger-code"),
        REFUSED,
        'kind = "python"\n[target]\nlabel = 0\n[python]\nfunction = "c.py:f"\n',
    ),
    "data-npz": ("d.npz", preview(TRIGGER, "d.npz"), REFUSED, None),
    "data-safetensors": ("d.safetensors", preview(TRIGGER, "d.safetensors"), REFUSED, None),
    "data-idx": ("t10k-images-idx3-ubyte", preview(TRIGGER, "."), REFUSED, None),
    "data-cifar": (
        "c/cifar-10-batches-py/test_batch",
        preview(TRIGGER, "c"),
        REFUSED,
        None,
    ),
    "classes": ("c.txt", preview(TRIGGER, DATA, "--classes", "c.txt"), REFUSED, None),
    "config": ("p.toml", ("audit", "--config", "p.toml"), REFUSED, None),
    "config-here": ("bdaudit.toml", ("audit",), REFUSED, None),
    "pyproject-here": ("pyproject.toml", ("audit",), REFUSED, None),
    "policy": ("p.toml", ("gate", RECORD, "--policy", "p.toml"), REFUSED, None),
    "gate-file": ("m.safetensors", ("gate", RECORD, "m.safetensors"), ANSWERED, None),
    "record-report": ("r.json", ("report", "r.json"), REFUSED, None),
    "record-gate": ("r.json", ("gate", "r.json"), REFUSED, None),
    "record-compare": ("r.json", ("compare", "r.json", RECORD), REFUSED, None),
    "record-diff": ("r.json", ("diff", RECORD, "r.json"), REFUSED, None),
    "record-verify": ("r.json", ("verify", "r.json", "--digests-only"), REFUSED, None),
    "manifest": ("m.toml", ("sweep", "m.toml", "--out", "o"), REFUSED, None),
    "family": ("f.toml", ("zoo", "build", "f.toml", "--out", "o"), REFUSED, None),
    "bench": ("f/family.json", ("bench", "f", "--out", "o"), REFUSED, None),
    "init": ("x.toml", ("init",), DRAFTED, None),
    "init-data": ("x.npz", ("init",), DRAFTED, None),
    "init-classes": ("classes.txt", ("init",), DRAFTED, None),
    "state": (
        "s/inputs.json",
        (*("audit", MODEL, *QUERY), "--state", "s", "--resume"),
        REFUSED,
        None,
    ),
    "model-safetensors": ("m.safetensors", ("inspect", "m.safetensors"), ANSWERED, None),
    "model-pt": ("m.pt", ("inspect", "m.pt"), ANSWERED, None),
    "model-score": ("m.safetensors", ("score", "m.safetensors", *SCORE), REFUSED, None),
    "model-settings": (
        "m.toml",
        ("score", "m.safetensors", *SCORE),
        ANSWERED,
        None,
    ),
    "onnx": ("m.onnx", ("audit", "m.onnx", *QUERY), REFUSED, None),
    "arch": ("a.py", ("score", MODEL, *SCORE, "--arch", "a.py:make"), REFUSED, None),
}


def special_files() -> Iterator[Case]:
    for place, (name, argv, codes, trigger) in _PLACES.items():
        for kind in SPECIALS:
            builds = [_special(kind, name)]
            if trigger is not None:
                builds.append(content("t.toml", trigger))
            if kind == "empty" and place == "classes":
                continue
            wanted = codes
            if kind == "empty" and place in {"policy", "init-classes"}:
                wanted = ANSWERED  # an empty policy is the default one
            yield Case(f"special-{place}-{kind}", "special-file", argv, together(*builds), wanted)


def odd_names() -> Iterator[Case]:
    names = {
        "long": "a" * 5000,
        "long-part": "a/" * 3000,
        "nul": "a\0b",
        "loop": "l",
        "ansi": f"x{ANSI}",
        "bidi": f"x{TEXTS['bidi']}",
        "c1": f"x{TEXTS['c1']}",
        "markup": f"x{TEXTS['markup']}",
        "newline": "a\nb: c",
        "dash": "--",
        "empty": "",
        "surrogate": "x\udcff",
        "root": "/",
    }
    commands: dict[str, Callable[[str], tuple[str, ...]]] = {
        "inspect": lambda n: ("inspect", n),
        "trigger": lambda n: preview(n),
        "data": lambda n: preview(TRIGGER, n),
        "classes": lambda n: preview(TRIGGER, DATA, "--classes", n),
        "report": lambda n: ("report", n),
        "gate": lambda n: ("gate", RECORD, n),
        "policy": lambda n: ("gate", RECORD, "--policy", n),
        "config": lambda n: ("audit", "--config", n),
        "sweep": lambda n: ("sweep", n, "--out", "o"),
        "verify": lambda n: ("verify", n),
        "key": lambda n: ("gate", RECORD, "--key", n),
        "zoo": lambda n: ("zoo", "build", n, "--out", "o"),
        "json": lambda n: ("inspect", MODEL, "--json", n),
    }
    for command, argv in commands.items():
        for name, text in names.items():
            yield Case(
                f"name-{command}-{name}",
                "name",
                argv(text),
                _special("loop", "l"),
                ANSWERED if command in {"json", "gate"} else REFUSED,
            )


# --- TOML ----------------------------------------------------------------------------------------

_NASTY_TOML = {
    "deep-array": "a = " + "[" * 5000 + "]" * 5000,
    "deep-table": "a = " + "{b=" * 5000 + "1" + "}" * 5000,
    "deep-key": ".".join("a" * 3000) + " = 1",
    "bigint": "a = " + "9" * 10_000,
    "bighex": "a = 0x" + "f" * 10_000,
    "infinity": "a = inf\nb = nan",
    "date": "a = 9999-99-99",
    "nul": "a = 1\0",
    "latin": b"a = '\xe9'",
    "utf16": "a = 1".encode("utf-16"),
    "no-toml": "<html><body>log in</body></html>",
    "half": 'a = "',
    "twice": "a = 1\na = 2",
    "ansi-key": f'"{"".join(f"{chr(92)}u{ord(c):04x}" for c in ANSI)}" = 1',
    "bidi-key": '"\u202ePWN" = 1',
    "markup-key": '"[bold]x[/nothing]" = 1',
}
_TOML_PLACES: dict[str, tuple[str, tuple[str, ...], frozenset[int], str]] = {
    "trigger": ("t.toml", preview("t.toml"), REFUSED, ""),
    "project": ("p.toml", ("audit", "--config", "p.toml"), REFUSED, ""),
    "project-here": ("bdaudit.toml", ("audit",), REFUSED, ""),
    "pyproject": ("pyproject.toml", ("audit", "--config", "pyproject.toml"), REFUSED, ""),
    "policy": ("p.toml", ("gate", RECORD, "--policy", "p.toml"), REFUSED, ""),
    "manifest": ("m.toml", ("sweep", "m.toml", "--out", "o"), REFUSED, ""),
    "family": ("f.toml", ("zoo", "build", "f.toml", "--out", "o"), REFUSED, ""),
    "init": ("x.toml", ("init",), DRAFTED, ""),
    "model": ("m.toml", ("score", "m.safetensors", *SCORE), REFUSED, "m.safetensors"),
}


def toml_files() -> Iterator[Case]:
    for place, (name, argv, codes, beside) in _TOML_PLACES.items():
        for kind, text in _NASTY_TOML.items():
            builds = [content(name, text)]
            if beside:
                builds.append(_copy_of("removed.safetensors", beside))
            yield Case(f"toml-{place}-{kind}", "toml", argv, together(*builds), codes)


def _copy_of(name: str, target: str) -> Callable[[Path], object]:
    return lambda folder: (folder / target).symlink_to(folder.parent.parent / "base" / name)


_VALUES = {
    "list": "[1]",
    "table": "{a=1}",
    "bool": "true",
    "text": '"x"',
    "float": "1.5",
    "nan": "nan",
    "inf": "-inf",
    "negative": "-1",
    "big": "9223372036854775807",
    "zero": "0",
    "date": "1979-05-27",
    "deep": "[[[[[]]]]]",
    "empty": '""',
    "nul": '"a\\u0000b"',
    "ansi": '"\\u001b[31mPWN"',
    "bidi": '"\\u202ePWN"',
    "up": '"../../../etc/passwd"',
    "root": '"/etc/passwd"',
    "long": '"' + "a" * 5000 + '"',
    "many": "[" + "1," * 2000 + "]",
    "markup": '"[b]x[/q]"',
}


def trigger_values() -> Iterator[Case]:
    """Every key of every kind of trigger, with values of other types and ranges."""
    sound = {
        "patch": {
            "image": '"p.npy"',
            "corner": '"top-left"',
            "offset": "[0, 0]",
            "mask": '"p.npy"',
        },
        "blend": {"image": '"w.npy"', "alpha": "0.1"},
        "sinusoid": {"amplitude": "0.1", "frequency": "6.0"},
        "additive": {"delta": '"w.npy"'},
        "warp": {"grid": '"g.npy"'},
        "paired": {"folder": '"f"', "layout": '"names"'},
        "encoder": {"weights": '"w.safetensors"', "eps": "0.1"},
        "python": {"function": '"c.py:f"'},
    }
    files = together(
        content("p.npy", npy_of([[1.0, 0.0], [0.0, 1.0]])),
        content("w.npy", npy_of([[[0.5] * 28] * 28])),
        content("g.npy", npy_of([[[[0.0, 0.0]] * 28] * 28])),
        content("f/0/1.png", png(2, 2, b"\0\0\0" * 2)),
    )

    def write(
        kind: str, changed: dict[str, str], top: dict[str, str], target: dict[str, str]
    ) -> str:
        head = {"kind": f'"{kind}"', **top}
        rows = [f"{k} = {v}" for k, v in head.items()]
        rows += ["[target]", *(f"{k} = {v}" for k, v in {"label": "0", **target}.items())]
        rows += [f"[{kind}]", *(f"{k} = {v}" for k, v in {**sound[kind], **changed}.items())]
        return "\n".join(rows) + "\n"

    for kind, keys in sound.items():
        for key in keys:
            for name, value in _VALUES.items():
                yield Case(
                    f"trigger-{kind}-{key}-{name}",
                    "trigger-value",
                    preview("t.toml"),
                    together(files, content("t.toml", write(kind, {key: value}, {}, {}))),
                    ANSWERED,
                )
    for name, value in _VALUES.items():
        for key in ("kind", "version", "sha256", "recovered"):
            yield Case(
                f"trigger-top-{key}-{name}",
                "trigger-value",
                preview("t.toml"),
                together(files, content("t.toml", write("blend", {}, {key: value}, {}))),
                ANSWERED,
            )
        for key in ("label", "rule", "sources", "classes"):
            yield Case(
                f"trigger-target-{key}-{name}",
                "trigger-value",
                preview("t.toml"),
                together(files, content("t.toml", write("blend", {}, {}, {key: value}))),
                ANSWERED,
            )


def trigger_code() -> Iterator[Case]:
    toml = content(
        "t.toml", 'kind = "python"\n[target]\nlabel = 0\n[python]\nfunction = "c.py:f"\n'
    )
    canary = f"open({CANARY!r}, 'w').close()\n"
    yield Case(
        "code-not-allowed",
        "trigger-code",
        preview("t.toml"),
        together(toml, content("c.py", canary + "def f(x):\n    return x\n")),
    )
    for name, code in {
        "exit": "import sys\nsys.exit(0)",
        "exit-1": "raise SystemExit(1)",
        "base": "class B(BaseException): pass\nraise B('no')",
        "syntax": "def f(",
        "exit-inside": "def f(x):\n    raise SystemExit(0)",
        "base-inside": "def f(x):\n    raise GeneratorExit",
        "recursion": "def f(x):\n    return f(x)",
        "none": "def f(x):\n    return None",
        "shape": "def f(x):\n    return x[:0]",
        "nan": "def f(x):\n    return x * float('nan')",
        "int": "f = 3",
        "nul": "f = '\0'",
        "missing": "g = 1",
    }.items():
        yield Case(
            f"code-{name}",
            "trigger-code",
            preview("t.toml", DATA, "--allow-trigger-code"),
            together(toml, content("c.py", code)),
        )


_HEADERS = {
    "huge": "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 9), }",
    "5GB": "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 35000, 35000), }",
    "negative": "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 28, 28), }",
    "bigint": "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 4000 + ",), }",
    "object": "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "deep": "(" * 3000 + ")" * 3000,
    "deep-neg": "-" * 6000 + "1",
    "code": f"{{'descr': open({CANARY!r}, 'w'), 'fortran_order': False, 'shape': (1,), }}",
    "text": "{'descr': '<U5', 'fortran_order': False, 'shape': (1,), }",
    "void": "{'descr': [('a', '<f4'), ('b', 'V9')], 'fortran_order': False, 'shape': (1,), }",
    "zero-size": "{'descr': '|V0', 'fortran_order': False, 'shape': (1,), }",
    "float-shape": "{'descr': '<f4', 'fortran_order': False, 'shape': (1.5,), }",
    "no-shape": "{'descr': '<f4', 'fortran_order': False}",
    "complex": "{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }",
    "big-endian": "{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }",
    "half": "{'descr': '<f4', 'fort",
    "many-dims": "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 80 + "), }",
    "empty": "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 28, 28), }",
}


def npy_headers() -> Iterator[Case]:
    for kind, key in (("patch", "image"), ("additive", "delta"), ("warp", "grid")):
        for name, header in _HEADERS.items():
            for version in ((1, 0), (2, 0), (9, 0)):
                toml = f'kind = "{kind}"\n[target]\nlabel = 0\n[{kind}]\n{key} = "x.npy"\n'
                yield Case(
                    f"npy-{kind}-{name}-v{version[0]}",
                    "npy",
                    preview("t.toml"),
                    together(
                        content("t.toml", toml),
                        content("x.npy", npy(header, b"\0" * 64, version=version)),
                    ),
                )
    for name, header in _HEADERS.items():
        packed = archive({"images.npy": npy(header, b"\0" * 64), "labels.npy": npy_of([0])})
        yield Case(f"npz-{name}", "npz", preview(TRIGGER, "d.npz"), content("d.npz", packed))
        labels = archive({"images.npy": npy_of([[[[0.5]]]]), "labels.npy": npy(header, b"\0" * 64)})
        yield Case(f"npz-labels-{name}", "npz", preview(TRIGGER, "d.npz"), content("d.npz", labels))


# --- tensors and models --------------------------------------------------------------------------


def safetensors_files() -> Iterator[Case]:
    one = tensor_entry([1], 0, 4)
    broken: dict[str, bytes] = {
        "empty": b"",
        "short": b"\x08\0\0",
        "huge-head": safetensors({"a": one}, b"\0" * 4, length=1 << 62),
        "long-head": safetensors({"a": one}, b"\0" * 4, length=200),
        "gap": safetensors({"a": tensor_entry([1], 4, 8)}, b"\0" * 8),
        "overlap": safetensors({"a": one, "b": one}, b"\0" * 4),
        "backwards": safetensors({"a": tensor_entry([1], 4, 0)}, b"\0" * 4),
        "past-end": safetensors({"a": tensor_entry([9], 0, 36)}, b"\0" * 4),
        "tail": safetensors({"a": one}, b"\0" * 40),
        "negative": safetensors({"a": tensor_entry([-1], 0, 4)}, b"\0" * 4),
        "huge-shape": safetensors({"a": tensor_entry([1 << 40, 1 << 40], 0, 4)}, b"\0" * 4),
        "F4": safetensors({"images": tensor_entry([8], 0, 4, "F4")}, b"\0" * 4),
        "F8": safetensors({"images": tensor_entry([4], 0, 4, "F8_E4M3")}, b"\0" * 4),
        "unknown": safetensors({"a": tensor_entry([1], 0, 4, "X9")}, b"\0" * 4),
        "list": b"\x02\0\0\0\0\0\0\0[]",
        "deep": (2000).to_bytes(8, "little") + b"[" * 2000,
        "int-tensors": safetensors({"conv.weight": tensor_entry([1], 0, 8, "I64")}, b"\0" * 8),
        "bool": safetensors({"conv.weight": tensor_entry([4], 0, 4, "BOOL")}, b"\0" * 4),
        "empty-tensor": safetensors({"conv.weight": tensor_entry([0], 0, 0)}),
        "none": safetensors({}),
    }
    for text_name, text in TEXTS.items():
        broken[f"name-{text_name}"] = safetensors({text: one}, b"\0" * 4)
        broken[f"meta-key-{text_name}"] = safetensors(
            {"__metadata__": {text: "x"}, "a": one}, b"\0" * 4
        )
        broken[f"meta-value-{text_name}"] = safetensors(
            {"__metadata__": {"arch": text, "x": text}, "a": one}, b"\0" * 4
        )
    for name, raw in broken.items():
        build = content("m.safetensors", raw)
        yield Case(
            f"st-inspect-{name}", "safetensors", ("inspect", "m.safetensors"), build, ANSWERED
        )
        yield Case(
            f"st-score-{name}", "safetensors", ("score", "m.safetensors", *SCORE), build, REFUSED
        )
        yield Case(
            f"st-data-{name}", "safetensors", preview(TRIGGER, "m.safetensors"), build, REFUSED
        )
        toml = (
            'kind = "blend"\n[target]\nlabel = 0\n[blend]\nalpha = 0.1\nimage = "m.safetensors"\n'
        )
        yield Case(
            f"st-trigger-{name}",
            "safetensors",
            preview("t.toml"),
            together(build, content("t.toml", toml)),
            ANSWERED,
        )


class _Shell:
    """Runs a command when a careless reader unpickles it."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {CANARY}",)


class _Eval:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (f"open({CANARY!r}, 'w').close()",)


def canary_pickle() -> bytes:
    """Return a pickle that makes the canary when it is loaded, for a positive control."""
    return pickle.dumps({"state_dict": _Shell()}, protocol=2)


def pickles() -> Iterator[Case]:
    broken = {
        "system": pickle.dumps(_Shell(), protocol=2),
        "system-inside": canary_pickle(),
        "eval": pickle.dumps({"a": _Eval()}, protocol=2),
        "system-4": pickle.dumps(_Shell(), protocol=4),
        "global": b"c__builtin__\nexec\n(V" + f"open({CANARY!r}, 'w')".encode() + b"\ntR.",
        "bytearray": b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        "memo-bomb": b"\x80\x02]q\x00" + b"(h\x00h\x00h\x00h\x00l" * 2000 + b".",
        "deep": b"\x80\x02" + b"(" * 5000 + b"l" * 5000 + b".",
        "long4": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
        "stop": b".",
        "pop": b"0.",
        "empty": b"\x80\x02}.",
        "cut": b"\x80\x02}q\x00X\xff\xff",
        "persid": b"\x80\x02X\x01\x00\x00\x00aQ.",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:"
        + b"0" * 64
        + b"\nsize 9\n",
        "page": b"<!doctype html><html><body>please log in</body></html>",
        "noise": noise(1, 5000),
        "dict-shadow": pickle.dumps({"items": 3, "get": 4, "state_dict": {"keys": 5}}, protocol=2),
        "keys-int": pickle.dumps({1: 2, (3,): 4}, protocol=2),
    }
    for name, raw in broken.items():
        for suffix in (".pt", ".pth.tar"):
            file = f"m{suffix}"
            build = content(file, raw)
            yield Case(
                f"pickle-inspect-{name}{suffix}", "pickle", ("inspect", file), build, ANSWERED
            )
            yield Case(f"pickle-score-{name}{suffix}", "pickle", ("score", file, *SCORE), build)
        zipped = archive({"archive/data.pkl": raw, "archive/version": b"3\n"})
        build = content("m.pt", zipped)
        yield Case(f"zip-inspect-{name}", "zip", ("inspect", "m.pt"), build, ANSWERED)
        yield Case(f"zip-score-{name}", "zip", ("score", "m.pt", *SCORE), build)
        argv = ("inspect", "m.pt", _AS_MODULE)
        yield Case(f"module-inspect-zip-{name}", "pickled-module", argv, build, ANSWERED)
        packed = archive({"archive/data.pkl": raw, "archive/version": b"3\n"}, compressed=True)
        yield Case(
            f"zip-compressed-{name}", "zip", ("score", "m.pt", *SCORE), content("m.pt", packed)
        )
        batch = content("c/cifar-10-batches-py/test_batch", raw)
        yield Case(f"cifar-{name}", "cifar", preview(TRIGGER, "c"), batch)
    yield from _module_pickles()


_AS_MODULE = "--read-pickled-module"


def _module_pickles() -> Iterator[Case]:
    """Whole modules that are none, cost much, or would run something."""
    layer = b"ctorch.nn.modules.linear\nLinear\n)\x81q\x01"
    parts = (b"_parameters", b"_buffers", b"_modules")

    def text(word: bytes) -> bytes:
        return b"X" + len(word).to_bytes(4, "little") + word

    def with_state(state: bytes) -> bytes:
        return b"\x80\x02" + layer + state + b"b."

    empty = b"}(" + b"".join(text(part) + b"}" for part in parts) + b"u"
    shell = b"cos\nsystem\n" + text(f"touch {CANARY}".encode()) + b"\x85R"
    evaluate = b"c__builtin__\neval\n" + text(f"open({CANARY!r}, 'w').close()".encode()) + b"\x85R"
    broken = {
        "empty": with_state(empty),
        "no-state": with_state(b"N"),
        "own-child": with_state(b"}(" + text(parts[2]) + b"}" + text(b"a") + b"h\x01su"),
        "number-for-modules": with_state(b"}" + text(parts[2]) + b"K\x03s"),
        "number-for-name": with_state(b"}" + text(parts[2]) + b"}K\x03h\x01ss"),
        "long-name": with_state(b"}" + text(parts[2]) + b"}" + text(b"a" * 9999) + b"h\x01ss"),
        "control-name": with_state(b"}" + text(parts[2]) + b"}" + text(b"\x1b[31m") + b"K\x03ss"),
        "shell-as-module": with_state(b"}" + text(parts[2]) + b"}" + text(b"a") + shell + b"ss"),
        "shell-as-state": with_state(shell),
        "eval-as-hook": with_state(b"}" + text(b"_forward_hooks") + b"}K\x01" + evaluate + b"ss"),
        "class-with-controls": b"\x80\x02cm\n\x1b]0;PWN\x07\n)\x81" + empty + b"b.",
        "class-as-module": b"\x80\x02ctorch.nn.modules.linear\nLinear\n.",
        "twice": b"\x80\x02" + layer + empty + b"b" + empty + b"b.",
        "called": b"\x80\x02cm\nF\n" + empty + b"\x85R.",
        "many-classes": b"\x80\x02(" + b"".join(b"cm\nC%d\n" % n for n in range(5000)) + b"t.",
    }
    for name, raw in broken.items():
        build = content("m.pt", archive({"archive/data.pkl": raw, "archive/version": b"3\n"}))
        argv = ("score", "m.pt", *SCORE, _AS_MODULE)
        yield Case(f"module-score-{name}", "pickled-module", argv, build)


def damaged(base: Path) -> Iterator[Case]:
    """Sound files with a few bytes changed, by seed."""
    sources: dict[str, tuple[bytes, str, tuple[str, ...]]] = {
        "npz": ((base / "clean.npz").read_bytes(), "d.npz", preview(TRIGGER, "d.npz")),
        "trigger": (
            (base / "trigger.toml").read_bytes(),
            "t.toml",
            preview("t.toml"),
        ),
        "tensors": (
            (base / "trigger.safetensors").read_bytes(),
            "trigger.safetensors",
            preview("t.toml"),
        ),
        "png": (
            png(28, 28, (b"\0" + b"\x80" * 28) * 28),
            "p.png",
            preview("t.toml"),
        ),
        "model": (
            (base / "removed.safetensors").read_bytes(),
            "m.safetensors",
            ("inspect", "m.safetensors"),
        ),
        "record": ((base / "audit.json").read_bytes(), "r.json", ("report", "r.json", *REPORTS)),
        "record-gate": ((base / "audit.json").read_bytes(), "r.json", ("gate", "r.json")),
        "onnx": (
            (base / "m.onnx").read_bytes(),
            "m.onnx",
            ("audit", "m.onnx", *QUERY, *_OPEN_ONLY),
        ),
        "zip": ((base / "m.pt").read_bytes(), "m.pt", ("inspect", "m.pt")),
    }
    toml = (base / "trigger.toml").read_bytes()
    for name, (sound, file, argv) in sources.items():
        number = 40 if name not in {"onnx", "npz"} else 15
        for seed in range(number * 4):
            builds = [content(file, mutate(sound, seed))]
            if name == "png":
                builds.append(content("t.toml", _PATCH.format("p.png")))
            if name == "tensors":
                builds.append(content("t.toml", toml))
            if name == "trigger":
                builds.append(_copy_of("trigger.safetensors", "trigger.safetensors"))
            yield Case(
                f"damaged-{name}-{seed}",
                f"damaged-{name}",
                argv,
                together(*builds),
                ANSWERED,
            )


# --- pictures and folders ------------------------------------------------------------------------


def pictures() -> Iterator[Case]:
    broken = {
        "1x1e8": png(1, 10**8),
        "1e8x1": png(10**8, 1),
        "30000x30000": png(30000, 30000),
        "0x0": png(0, 0),
        "2x2-short": png(2, 2, b"\0"),
        "palette": png(2, 2, kind=3),
        "bad-kind": png(2, 2, kind=9),
        "empty": b"",
        "noise": noise(3, 400),
        "head": b"\x89PNG\r\n\x1a\n",
        "gif": b"GIF89a" + noise(4, 60),
        "jpeg": b"\xff\xd8\xff\xe0" + noise(5, 60),
        "bmp-huge": b"BM" + b"\xff" * 60,
        "text-bomb": png(2, 2, b"\0\0\0" * 2, extra=text_chunk("a", "b" * 2_000_000)),
        "text-ansi": png(2, 2, b"\0\0\0" * 2, extra=text_chunk("a", ANSI)),
        "webp": b"RIFF\xff\xff\xff\xffWEBPVP8X" + noise(6, 40),
        "tiff": b"II*\0\xff\xff\xff\xff",
        "svg": b"<svg onload='x'/>",
        "eps": b"%!PS-Adobe\n(" + CANARY.encode() + b") (w) file",
    }
    shape = ("--image-shape", "1,28,28")
    for name, raw in broken.items():
        codes = ANSWERED if name in {"text-ansi", "palette", "2x2-short", "text-bomb"} else REFUSED
        for suffix in (".png", ".jpg"):
            yield Case(
                f"picture-trigger-{name}{suffix}",
                "picture",
                preview("t.toml"),
                together(
                    content(f"p{suffix}", raw), content("t.toml", _PATCH.format(f"p{suffix}"))
                ),
                codes,
            )
            yield Case(
                f"picture-data-{name}{suffix}",
                "picture",
                preview(TRIGGER, "d", *shape),
                together(content(f"d/0/1{suffix}", raw), content(f"d/1/2{suffix}", raw)),
                codes,
            )
    fine = png(2, 2, b"\0\0\0" * 2)
    for text_name, text in TEXTS.items():
        safe = text.replace("/", "_").replace("\n", " ")
        for where, made in (
            ("folder", (f"d/{safe}/1.png", "d/1/2.png")),
            ("file", (f"d/0/{safe}.png", "d/1/2.png")),
        ):
            for raw_name, raw in (("fine", fine), ("broken", b"x")):
                yield Case(
                    f"folder-{where}-{raw_name}-{text_name}",
                    "folder",
                    preview(TRIGGER, "d", *shape),
                    together(*(content(name, raw) for name in made)),
                    ANSWERED,
                )
        yield Case(
            f"init-name-{text_name}",
            "folder",
            ("init",),
            together(content(f"{safe}.safetensors", b"x"), content(f"{safe}.toml", b"kind = 1")),
            DRAFTED,
        )
    for name, folder in {
        "huge": "9" * 60,
        "5000-digits": "9" * 250,
        "negative": "-1",
        "unicode": "\u0663",
    }.items():
        yield Case(
            f"folder-number-{name}",
            "folder",
            preview(TRIGGER, "d", *shape),
            together(content(f"d/{folder}/1.png", fine), content("d/0/2.png", fine)),
            ANSWERED,
        )


def packed_data() -> Iterator[Case]:
    """Tables, exports and archives of images."""
    fine = together(
        content("d/0.png", png(2, 2, b"\0\0\0" * 2)), content("d/1.png", png(2, 2, b"\1\1\1" * 2))
    )
    rows = "path,label\n0.png,a\n{},b\n"
    tables: dict[str, bytes | str] = {
        "up.csv": rows.format("../../secret.txt"),
        "root.csv": rows.format("/etc/passwd"),
        "nul.csv": rows.format("1.png\0"),
        "ansi.csv": rows.format("\x1b]0;PWN\x07.png"),
        "ansi-label.csv": "path,label\n0.png,a\n1.png,\x1b[31mPWN\n",
        "ansi-column.csv": "\x1b[31mPWN,x\n0.png,a\n",
        "quote.csv": 'path,label\n"0.png,a\n' + "x" * 500_000,
        "wide.csv": "path," + "c," * 50_000 + "label\n",
        "deep.jsonl": "[" * 100_000 + "\n",
        "number.jsonl": '{"path": "0.png", "label": ' + "9" * 10_000 + "}\n",
        "deep.json": '{"images": ' + "[" * 100_000,
        "lists.json": '{"images": [1], "annotations": [2], "categories": [3]}',
        "up.json": '{"images": [{"id": 1, "file_name": "../../secret.txt"}], "annotations": '
        '[{"image_id": 1, "category_id": 1}], "categories": [{"id": 1, "name": "a"}]}',
        "noise.parquet": b"PAR1" + noise(3, 3000) + b"PAR1",
        "length.parquet": b"PAR1" + noise(4, 300) + b"\xff\xff\xff\x7fPAR1",
        "noise.tar": noise(5, 20_000),
        "zeros.tar": b"\0" * 20_000,
        "noise.zip": b"PK\x03\x04" + noise(6, 5000),
        "up.zip": archive({"../0/a.png": b"x", "1/b.png": b"x"}),
        "ansi.zip": archive({"\x1b[31m/a.png": b"x", "1/b.png": b"x"}),
        "bomb.zip": archive({"0/a.png": b"\0" * (32 << 20), "1/b.png": b"x"}, compressed=True),
    }
    for name, text in tables.items():
        yield Case(
            f"packed-{name}",
            "packed-data",
            preview(TRIGGER, f"d/{name}"),
            together(fine, content(f"d/{name}", text)),
        )


def links() -> Iterator[Case]:
    """A file in a data set that is a link to a file elsewhere."""
    places = {
        "classes": ("d/classes.txt", ("d/0/1.png", "d/1/2.png"), "d"),
        "image": ("d/0/1.png", ("d/1/2.png",), "d"),
        "wnids": ("d/wnids.txt", ("d/val/images/a.JPEG",), "d"),
        "tiny": ("d/val/val_annotations.txt", ("d/wnids.txt", "d/val/images/a.JPEG"), "d"),
        "gtsrb": ("d/GT-final_test.csv", ("d/Final_Test/Images/00000.ppm",), "d"),
        "idx": ("d/t10k-images-idx3-ubyte", ("d/t10k-labels-idx1-ubyte",), "d"),
        "cifar": ("d/cifar-10-batches-py/test_batch", ("d/cifar-10-batches-py/batches.meta",), "d"),
    }
    fine = png(2, 2, b"\0\0\0" * 2)
    for name, (link, others, data) in places.items():

        def build(folder: Path, link: str = link, others: tuple[str, ...] = others) -> None:
            for other in others:
                content(other, fine)(folder)
            (folder / link).parent.mkdir(parents=True, exist_ok=True)
            (folder / link).symlink_to(folder.parent.parent / "secret.txt")

        yield Case(
            f"link-{name}",
            "link",
            preview(TRIGGER, data, "--image-shape", "1,28,28"),
            build,
            REFUSED,
        )
        yield Case(f"link-init-{name}", "link", ("init",), build, DRAFTED)


# --- records -------------------------------------------------------------------------------------


def records(base: Path) -> Iterator[Case]:
    sound = json.loads((base / "audit.json").read_text())
    commands = {
        "report": ("report", "r.json", *REPORTS),
        "gate": ("gate", "r.json"),
        "compare": ("compare", "r.json", RECORD, "--report", "html=c.html"),
        "diff": ("diff", RECORD, "r.json", "--report", "html=d.html", "--report", "csv=d.csv"),
        "verify": ("verify", "r.json", "--digests-only", "--folder", "{base}"),
    }
    nasty = {
        "deep-array": "[" * 5000 + "]" * 5000,
        "deep-object": '{"a":' * 5000 + "1" + "}" * 5000,
        "bigint": '{"kind": ' + "9" * 10_000 + "}",
        "nan": '{"kind": NaN}',
        "list": "[]",
        "null": "null",
        "text": '"x"',
        "half": '{"kind"',
        "empty": "",
        "kind-list": '{"kind": ["audit"], "schema_version": 1}',
        "kind-object": '{"kind": {"a": 1}}',
        "kind-null": '{"kind": null}',
        "bom": "\ufeff{}",
        "surrogate": '{"kind": "\\ud800"}',
        "latin": '{"kind": "\xe9',
        "twice": '{"kind": "audit", "kind": "score"}',
        "1e999": '{"kind": 1e999}',
    }
    for command, argv in commands.items():
        for name, text in nasty.items():
            yield Case(f"record-{command}-{name}", "record", argv, content("r.json", text))
    # A record whose own digest holds, with something odd in one place.
    paths = sorted(_leaves(sound), key=str)
    random = Random(7)
    values: list[Any] = [
        None,
        True,
        -1,
        10**30,
        1e308,
        "",
        [],
        {},
        "x" * 100_000,
        [[[]]],
        "\x00",
        "-0",
        0.5,
        *TEXTS.values(),
        "../../../../etc/passwd",
        "2024-13-45T99:99:99Z",
    ]
    for number in range(480):
        path = random.choice(paths)
        value = values[number % len(values)]
        document = _with(sound, path, value)
        command = random.choice(sorted(commands))
        yield Case(
            f"record-leaf-{number}-{command}-{'.'.join(map(str, path))}"[:120],
            "record-leaf",
            commands[command],
            content("r.json", sealed(document)),
            ANSWERED,
        )
    by_key = {path[-1]: path for path in paths if isinstance(_at(sound, path), str)}
    for text_name, text in TEXTS.items():
        for key, path in sorted(by_key.items(), key=str):
            document = _with(sound, path, text)
            yield Case(
                f"inject-{text_name}-{key}",
                "record-text",
                commands["report"],
                content("r.json", sealed(document)),
                ANSWERED,
            )


def _at(document: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:2]):
            yield from _leaves(inner, (*path, number))


def _with(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = json.loads(json.dumps(document))
    place = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return changed


def sealed(document: dict[str, Any]) -> str:
    """Write a record as bdaudit does, its digest computed anew, as whoever forges one would."""
    from bdaudit.records.reading import content_digest

    document = {k: v for k, v in document.items() if k != "content_sha256"}
    return json.dumps({**document, "content_sha256": content_digest(document)})


# --- settings files with wrong values ------------------------------------------------------------


def settings_values(base: Path) -> Iterator[Case]:
    policy_keys = (
        "active_asr",
        "lift",
        "confidence",
        "saturation",
        "min_held_out",
        "bec_warning",
        "inconclusive",
        "allowed_sha256",
        "min_references",
        "unaudited_weights",
        "clean_acc_loss",
    )
    for key in policy_keys:
        for name, value in _VALUES.items():
            yield Case(
                f"policy-{key}-{name}",
                "policy",
                ("gate", RECORD, "{base}/removed.safetensors", "--policy", "p.toml"),
                content("p.toml", f"{key} = {value}\n"),
                ANSWERED,
            )
    for value in ("0.5", "0.5000000001", "0.999999999999", "0.99999999999999999", "1e-300"):
        yield Case(
            f"policy-confidence-{value}",
            "policy",
            ("gate", RECORD, "--policy", "p.toml"),
            content("p.toml", f"confidence = {value}\n"),
            ANSWERED,
        )
    for text_name, text in {
        "tool": "tool = 5",
        "tool-list": "tool = [1]",
        "bdaudit-int": "[tool]\nbdaudit = 5",
        "bdaudit-list": "[tool]\nbdaudit = [1]",
        "policy-int": "[tool.bdaudit]\npolicy = 5",
        "policy-itself": '[tool.bdaudit]\npolicy = "pyproject.toml"',
        "nothing": "",
        "policy-list": "[tool.bdaudit]\npolicy = [1]",
    }.items():
        build = content("pyproject.toml", text)
        for command, argv in (
            ("gate", ("gate", RECORD, "--policy", "pyproject.toml")),
            ("audit", ("audit", "--config", "pyproject.toml")),
            ("audit-here", ("audit",)),
        ):
            yield Case(f"pyproject-{text_name}-{command}", "project", argv, build)
    tables = (
        ("inputs", "defended"),
        ("inputs", "data"),
        ("inputs", "reference"),
        ("attack", "eps"),
        ("output", "json"),
        ("models", "arch"),
        ("query", "max_queries"),
        ("", "policy"),
    )
    for table, key in tables:
        for name, value in _VALUES.items():
            text = f"[{table}]\n{key} = {value}\n" if table else f"{key} = {value}\n"
            yield Case(
                f"project-{table}-{key}-{name}",
                "project",
                ("audit",),
                content("bdaudit.toml", text),
            )
    for name, text in {
        "audit-int": "audit = 5",
        "audit-list": "audit = [1, 2]",
        "audit-table": "[audit]\na = 1",
        "defaults-int": "defaults = 5\n[[audit]]",
        "glob-up": '[[audit]]\n[audit.inputs]\ndefended = "../**"',
        "glob-root": '[[audit]]\n[audit.inputs]\ndefended = "/*"',
        "glob-bad": '[[audit]]\n[audit.inputs]\ndefended = "**x"',
        "glob-nul": '[[audit]]\n[audit.inputs]\ndefended = "*\\u0000"',
        "name-int": "[[audit]]\nname = 5",
        "glob-class": '[[audit]]\n[audit.inputs]\ndefended = "[!]*"',
        "matrix-int": "[[audit]]\nmatrix = 5",
        "matrix-list": "[[audit]]\nname = 'a'\n[audit.matrix.inputs]\ndata = [1]",
        "inputs-int": "[[audit]]\nname = 'a'\ninputs = 5\n[audit.matrix.inputs]\ndata = ['x']",
        "matrix-explodes": "[[audit]]\nname = 'a'\n[audit.matrix.attack]\n"
        + "\n".join(f"k{i} = [{','.join('1' * 9)}]" for i in range(12)),
        "defended-list": "[[audit]]\n[audit.inputs]\ndefended = [[1]]",
        "long-glob": f"[[audit]]\n[audit.inputs]\ndefended = '{'a' * 5000}*'",
    }.items():
        yield Case(
            f"manifest-{name}",
            "manifest",
            ("sweep", "m.toml", "--out", "o"),
            content("m.toml", text),
        )


def arguments() -> Iterator[Case]:
    numbers = (
        "1e99999",
        "1/" + "9" * 3000,
        "1e-999999999",
        "nan",
        "inf",
        "-1",
        "0",
        "1/0",
        "",
        ",",
        "x",
        "9" * 5000,
        "1_000",
        "0x10",
        "8/255/3",
        "\u0661",
        "1e5,1e6," * 600,
    )
    for option in ("--eps",):
        for number, text in enumerate(numbers):
            if text == "0":
                continue  # no perturbation at all, which may be asked for
            yield Case(
                f"argument{option}-{number}",
                "argument",
                ("reactivate", MODEL, *SCORE[:6], option, text),
                content("x", b""),
            )
    for option in ("--image-shape",):
        for number, text in enumerate(
            (*numbers, "1,2", "1,2,3,4", "1,99999999,99999999", "-1,28,28")
        ):
            yield Case(
                f"argument{option}-{number}",
                "argument",
                preview(TRIGGER, DATA, option, text),
                content("x", b""),
                ANSWERED,
            )
    for number, text in enumerate((*numbers, "32x", "x32", "1x2x3", "99999999x99999999")):
        yield Case(
            f"argument--input-size-{number}",
            "argument",
            ("score", MODEL, *SCORE, "--input-size", text),
            content("x", b""),
            ANSWERED,
        )
    for option in ("--mean", "--std"):
        for number, text in enumerate(numbers[:8]):
            yield Case(
                f"argument{option}-{number}",
                "argument",
                ("score", MODEL, *SCORE, option, text),
                content("x", b""),
                ANSWERED,
            )
    yield Case(
        "argument-state-file",
        "argument",
        ("audit", MODEL, *QUERY, "--state", RECORD),
        content("x", b""),
    )


# --- ONNX ----------------------------------------------------------------------------------------


def onnx_files() -> Iterator[Case]:
    from tests.hostile import onnx_of

    argv = ("audit", "m.onnx", *QUERY)
    for name, build in onnx_of.FILES.items():
        yield Case(
            f"onnx-{name}",
            "onnx",
            argv,
            build,
            settings={
                "bdaudit.blackbox.file_model.TIME_LIMIT_S": 0.5,
                "bdaudit.blackbox.file_model.TIME_LIMIT_EACH_S": 0.0,
            }
            if name == "loop"
            else {},
        )


# --- servers -------------------------------------------------------------------------------------


def addresses() -> Iterator[Case]:
    hosts = {
        "port-0": "127.0.0.1:0",
        "port-big": "127.0.0.1:99999",
        "port-text": "127.0.0.1:x",
        "port-long": "127.0.0.1:" + "9" * 5000,
        "idna": "\u2488",
        "idna-2": "xn--\u0600",
        "idna-3": "xn--a",
        "long": "a" * 300,
        "long-label": "a" * 64 + ".com",
        "empty": "",
        "dots": "..",
        "bracket": "[::1",
        "zone": "[fe80::1%25x]",
        "space": "a b",
        "at": "user:pw@",
        "percent": "%zz",
        "bidi": "\u202ex",
        "surrogate": "a\udcff",
        "nul": "a\0b",
    }
    for name, host in hosts.items():
        for scheme in ("https", "http", "s3", "hf"):
            yield Case(
                f"url-{scheme}-{name}",
                "url",
                ("inspect", f"{scheme}://{host}/m.pt"),
                content("x", b""),
                settings={"bdaudit.fetching.cached.TRIES": 1},
            )
        yield Case(
            f"endpoint-{name}",
            "url",
            ("audit", "--endpoint", f"http://{host}/v2/models/m", *QUERY, "--retries", "0"),
            content("x", b""),
        )
    for name, path in {
        "long": "a" * 200_000,
        "long-name": "a" * 4000,
        "bidi": "\u202e",
        "surrogate": "\udcff",
        "nul": "a\0b",
        "up": "../../x.pt",
        "escape": "\x1b[31m",
    }.items():
        yield Case(
            f"url-path-{name}",
            "url",
            ("inspect", f"https://127.0.0.1:1/{path}.pt"),
            content("x", b""),
            settings={"bdaudit.fetching.cached.TRIES": 1},
        )
        yield Case(
            f"endpoint-path-{name}",
            "url",
            (
                "audit",
                "--endpoint",
                f"http://127.0.0.1:1/v2/models/{path}",
                *QUERY,
                "--retries",
                "0",
            ),
            content("x", b""),
        )


def lying_servers() -> Iterator[Case]:
    from tests.hostile import lying

    for name in lying.ANSWERS:
        for command, argv in (
            ("inspect", ("inspect", f"{{server}}/{name}/m.safetensors")),
            (
                "endpoint",
                (
                    "audit",
                    "--endpoint",
                    f"{{server}}/{name}/v2/models/m",
                    *QUERY,
                    "--retries",
                    "0",
                ),
            ),
        ):
            yield Case(
                f"server-{name}-{command}",
                "server",
                argv,
                content("x", b""),
                ANSWERED if command == "inspect" else REFUSED,
                settings={
                    "bdaudit.fetching.cached.TRIES": 1,
                    "bdaudit.fetching.cached.PATIENCE_S": 0.5,
                    "bdaudit.fetching.sources.HEADERS_TIME_LIMIT_S": 1.0,
                    "deadline_s": 1.0,
                },
            )


_MOST_OF_A_KIND = 25
"""Of a kind with more cases than this the others run with `BDAUDIT_WHOLE_CORPUS=1`."""


def corpus(base: Path) -> list[Case]:
    """Return all cases; `base` holds the sound files.

    Of large kinds every few-th case is in the ordinary run, the same ones every time.
    """
    cases = [
        *special_files(),
        *odd_names(),
        *toml_files(),
        *trigger_values(),
        *trigger_code(),
        *npy_headers(),
        *safetensors_files(),
        *pickles(),
        *damaged(base),
        *pictures(),
        *packed_data(),
        *links(),
        *records(base),
        *settings_values(base),
        *arguments(),
        *onnx_files(),
        *addresses(),
        *lying_servers(),
    ]
    names = Counter(case.name for case in cases)
    assert names.most_common(1)[0][1] == 1, names.most_common(3)
    kinds = Counter(case.kind for case in cases)
    seen: Counter[str] = Counter()
    chosen = []
    for case in cases:
        every = -(-kinds[case.kind] // _MOST_OF_A_KIND)
        chosen.append(case if seen[case.kind] % every == 0 else replace(case, spare=True))
        seen[case.kind] += 1
    return chosen
