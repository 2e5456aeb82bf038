"""Where a query search stands: everything needed to go on as if it had never stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bdaudit.errors import ConfigError, InputError
from bdaudit.foundation.opening import SAMPLE_BYTES, check_file
from bdaudit.foundation.writing import write_atomically

__all__ = ["Milestone", "QueryPoint", "QueryState", "read_state", "write_state"]

_FORMAT = "bdaudit query state 1"


@dataclass(frozen=True, slots=True)
class QueryPoint:
    """One question in the history of a search.

    Attributes:
        n_queries: Images asked about so far.
        phase: The part of the search that asked.
        craft_success: Share of the images just asked about that were classified as their target.
            They are craft images, and most carry a candidate or a probe rather than delta itself:
            a sign of life, not a result.
    """

    n_queries: int
    phase: str
    craft_success: float


@dataclass(frozen=True, slots=True, eq=False)
class Milestone:
    """The perturbation (1, C, H, W) that the search would have given after `n_queries` images."""

    n_queries: int
    delta: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QueryState:
    """A search between two questions.

    It is taken right after an answer was paid for, so a search that is killed and resumed from
    its last state never pays for the same answer twice, and asks what it would have asked.

    Attributes:
        fingerprint: What must not change before the search is resumed, by name: settings, images,
            surrogates and whatever the caller says about the model that answers.
        n_queries: Images asked about so far.
        phase: Index of the part of the search that is running.
        phase_start: `n_queries` when that part began.
        generator: State of the random generator.
        memory: What the running part remembers, as tensors.
        finalists: Perturbations that finished parts of the search left behind.
        delta: (1, C, H, W), the best so far.
        trace: One point a question.
        milestones: The best perturbation at growing numbers of queries.
        accepted: Candidates tried and accepted, (tried, accepted).
        suspicions: Codes of diagnostics raised on the way.
    """

    fingerprint: Mapping[str, str]
    n_queries: int
    phase: int
    phase_start: int
    generator: Tensor
    memory: Mapping[str, Tensor]
    finalists: tuple[Tensor, ...]
    delta: Tensor
    trace: tuple[QueryPoint, ...]
    milestones: tuple[Milestone, ...]
    accepted: tuple[int, int]
    suspicions: tuple[str, ...]

    def check_same(self, fingerprint: Mapping[str, str]) -> None:
        """Refuse to go on under changed circumstances.

        Raises:
            ConfigError: Something differs; the message says what it was and what it is.
        """
        changes = [
            f"{name} was {self.fingerprint.get(name, 'absent')}, "
            f"is {fingerprint.get(name, 'absent')}"
            for name in sorted(self.fingerprint.keys() | fingerprint.keys())
            if self.fingerprint.get(name) != fingerprint.get(name)
        ]
        if changes:
            raise ConfigError(
                f"cannot resume the query search: {'; '.join(changes)}; restore that, or start "
                "a new search"
            )


def write_state(path: Path, state: QueryState) -> None:
    """Write `state` as one safetensors file, whole or not at all.

    Tensors are tensors of the file, everything else is JSON in its metadata. Nothing in it can
    run code when it is read.
    """
    tensors = {f"memory/{name}": tensor for name, tensor in state.memory.items()}
    tensors |= {f"finalists/{k}": delta for k, delta in enumerate(state.finalists)}
    tensors |= {f"milestones/{k}": point.delta for k, point in enumerate(state.milestones)}
    tensors |= {"delta": state.delta, "generator": state.generator}
    numbers = {
        "fingerprint": dict(state.fingerprint),
        "n_queries": state.n_queries,
        "phase": state.phase,
        "phase_start": state.phase_start,
        "n_finalists": len(state.finalists),
        "trace": [(point.n_queries, point.phase, point.craft_success) for point in state.trace],
        "milestones": [point.n_queries for point in state.milestones],
        "accepted": state.accepted,
        "suspicions": state.suspicions,
    }
    # safetensors refuses tensors that share memory, as milestones and finalists may.
    content = save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
        metadata={"format": _FORMAT, "numbers": json.dumps(numbers, allow_nan=False)},
    )
    write_atomically(path, content)


def read_state(path: Path) -> QueryState:
    """Read what `write_state` wrote.

    Raises:
        InputError: The file is missing, damaged, or something else.
    """
    check_file(path, limit=SAMPLE_BYTES, what="the state of a query search")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != _FORMAT:
            raise InputError(
                f"{path}: expected a file of format {_FORMAT!r}, got {metadata.get('format')!r}; "
                "start a new search"
            )
        return _state_of(tensors, json.loads(metadata["numbers"]))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path}: expected the state of a query search, got {error}; start a new search"
        ) from error


def _state_of(tensors: dict[str, Tensor], numbers: Any) -> QueryState:
    tried, accepted = numbers["accepted"]
    return QueryState(
        fingerprint=dict(numbers["fingerprint"]),
        n_queries=int(numbers["n_queries"]),
        phase=int(numbers["phase"]),
        phase_start=int(numbers["phase_start"]),
        generator=tensors["generator"],
        memory={
            name.removeprefix("memory/"): tensor
            for name, tensor in tensors.items()
            if name.startswith("memory/")
        },
        finalists=tuple(tensors[f"finalists/{k}"] for k in range(numbers["n_finalists"])),
        delta=tensors["delta"],
        trace=tuple(QueryPoint(*point) for point in numbers["trace"]),
        milestones=tuple(
            Milestone(n_queries, tensors[f"milestones/{k}"])
            for k, n_queries in enumerate(numbers["milestones"])
        ),
        accepted=(int(tried), int(accepted)),
        suspicions=tuple(numbers["suspicions"]),
    )
