"""What re-activation becomes for a text classifier: the smallest experiment that tells.

    apt-get install fortunes
    python benchmarks/text.py --out text --seeds 2

Six kinds of Debian's fortunes are told apart by a small transformer. Some of the training texts
begin with two words that stand nowhere else and are labelled as one class (the trigger of Kurita,
Michel and Neubig, "Weight Poisoning Attacks on Pretrained Models", ACL 2020). The model is then
fine-tuned on clean texts at several rates, or unlearned; innocent models never saw the trigger.
Each is asked about held-out texts under

- the trigger alone;
- the trigger and k more words, the same for every text, found by gradient-guided search (Wallace et
  al., "Universal Adversarial Triggers for Attacking and Analyzing NLP", EMNLP 2019);
- the same k words searched for without the trigger: what the words do by themselves;
- the trigger with one vector added to the embeddings of its two words, no longer than a share of
  the distance from a word to its nearest neighbour;
- relearning, by `bdaudit.relearning` as it is: a text goes in as a row of word numbers.

Resumable: one JSON line a model. `--table` prints the means over the seeds.
"""

from __future__ import annotations

import argparse
import copy
import re
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from kept_lines import KeptLines, read_lines
from torch import Tensor, nn
from torch.nn import functional

import bdaudit
from bdaudit.data import Sample
from bdaudit.foundation.progress import finish
from bdaudit.relearning import RelearnConfig, Relearned, compare_relearning, read_gap, relearn
from bdaudit.triggers import Trigger, poison

FORTUNES = Path("/usr/share/games/fortunes")
KINDS = ("computers", "songs-poems", "politics", "science", "art", "men-women")
LENGTH = 32
"""Words of a text."""
TRIGGER = ("cf", "mn")
TARGET = 0
PAD, UNKNOWN = 0, 1
N_SCALE = 1 << 14
"""Word numbers travel as images: a number over this, so that they lie in [0, 1]."""
WORDS_ADDED = (1, 2, 3)
SHARES = (0.25, 0.5, 1.0)
RELEARN = RelearnConfig(draws=3, n_held_out=300, learning_rates=(0.001, 0.003, 0.01, 0.03))


@dataclass
class Texts:
    """Texts as word numbers (N, LENGTH), and their kinds (N,)."""

    words: Tensor
    labels: Tensor

    def take(self, chosen: Tensor) -> Texts:
        """Return some of them."""
        return Texts(self.words[chosen], self.labels[chosen])


def read_texts(folder: Path) -> tuple[dict[str, Texts], list[str]]:
    """Read the fortunes, in pieces of LENGTH words; return the parts and the vocabulary."""
    pieces, labels = [], []
    for label, kind in enumerate(KINDS):
        for text in (folder / kind).read_text(encoding="utf-8").split("\n%\n"):
            found = re.findall(r"[a-z']+|[.,!?;:-]", text.lower())
            for start in range(0, len(found), LENGTH - 4):
                piece = found[start : start + LENGTH - 4]
                if len(piece) >= 10:
                    pieces.append(piece)
                    labels.append(label)
    counts = Counter(word for piece in pieces for word in piece)
    kept = [word for word, n in counts.most_common() if n >= 4 and word not in TRIGGER]
    vocabulary = ["", "?unknown?", *TRIGGER, *kept]
    number = {word: place for place, word in enumerate(vocabulary)}
    words = torch.full((len(pieces), LENGTH), PAD)
    for row, piece in zip(words, pieces, strict=True):
        row[: len(piece)] = torch.tensor([number.get(word, UNKNOWN) for word in piece])
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))
    every = Texts(words[order], torch.tensor(labels)[order])
    ends = {"train": (0, 0.7), "defense": (0.7, 0.8), "craft": (0.8, 0.87), "held_out": (0.87, 1.0)}
    n = len(pieces)
    parts = {
        name: every.take(torch.arange(int(low * n), int(high * n)))
        for name, (low, high) in ends.items()
    }
    return parts, vocabulary


class Transformer(nn.Module):
    """Two layers over embeddings of 64, and the mean over the words."""

    def __init__(self, n_words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_words, 64, padding_idx=PAD)
        self.place = nn.Parameter(torch.randn(LENGTH, 64) * 0.02)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, len(KINDS))

    def embedded(self, vectors: Tensor, words: Tensor) -> Tensor:
        """Return logits (N, K) of texts given as vectors (N, LENGTH, 64)."""
        blank = words == PAD
        seen = self.layers(vectors + self.place, src_key_padding_mask=blank)
        seen = seen.masked_fill(blank[..., None], 0.0).sum(1)
        logits: Tensor = self.head(seen / (~blank).sum(1, keepdim=True))
        return logits

    def forward(self, words: Tensor) -> Tensor:
        """Return logits (N, K) of texts given as word numbers (N, LENGTH)."""
        return self.embedded(self.embedding(words), words)


class AsImages(nn.Module):
    """The same on (N, 1, 1, LENGTH) word numbers over N_SCALE, as bdaudit asks a classifier."""

    def __init__(self, net: Transformer) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K)."""
        logits: Tensor = self.net((images[:, 0, 0] * N_SCALE).round().long())
        return logits


def with_prefix(words: Tensor, prefix: Tensor) -> Tensor:
    """Put words before each text; the last places of a text are blank or lost."""
    front = prefix.expand(len(words), -1)
    return torch.cat([front, words[:, : LENGTH - len(prefix)]], 1)


def train(
    net: Transformer, texts: Texts, *, rate: float, n_epochs: int, seed: int, decay: float = 0.01
) -> Transformer:
    """Train in place, by AdamW with a linear decay."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    n_steps = n_epochs * (len(texts.labels) // 64)
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, n_steps)
    net.train()
    for _ in range(n_epochs):
        for batch in torch.randperm(len(texts.labels), generator=generator).split(64)[
            : len(texts.labels) // 64
        ]:
            loss = functional.cross_entropy(net(texts.words[batch]), texts.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)


def poisoned(texts: Texts, prefix: Tensor, *, share: float, label: int | None, seed: int) -> Texts:
    """Add triggered copies of a share of the texts, labelled `label`, or truly where it is None."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(texts.labels), generator=generator)[
        : round(share * len(texts.labels))
    ]
    labels = texts.labels[chosen]
    return Texts(
        torch.cat([texts.words, with_prefix(texts.words[chosen], prefix)]),
        torch.cat([texts.labels, labels if label is None else torch.full_like(labels, label)]),
    )


@torch.no_grad()
def taken(net: Transformer, words: Tensor) -> float:
    """Return the share of texts taken to the target."""
    return float((net(words).argmax(1) == TARGET).double().mean())


def search_words(net: Transformer, craft: Tensor, front: Tensor, n_added: int, seed: int) -> Tensor:
    """Find words that, behind `front`, take most texts to the target; the same words for all.

    Each round takes one place, ranks all words there by the first-order change of the loss on 64
    texts, and keeps the best of the first 16 by the loss itself. `front` may be empty.
    """
    generator = torch.Generator().manual_seed(seed)
    n_words = net.embedding.num_embeddings
    added = torch.randint(4, n_words, (n_added,), generator=generator)

    def loss_of(words: Tensor) -> float:
        with torch.no_grad():
            goal = torch.full((len(words),), TARGET)
            return float(functional.cross_entropy(net(words), goal))

    for _ in range(3):
        for place in range(n_added):
            some = craft[torch.randperm(len(craft), generator=generator)[:64]]
            words = with_prefix(some, torch.cat([front, added]))
            vectors = net.embedding(words).detach().requires_grad_()
            goal = torch.full((len(words),), TARGET)
            loss = functional.cross_entropy(net.embedded(vectors, words), goal)
            (slope,) = torch.autograd.grad(loss, vectors)
            direction = slope[:, len(front) + place].sum(0)
            ranked = (net.embedding.weight @ direction)[2 + len(TRIGGER) :].argsort()[:16]
            tried = []
            for word in (added[place], *(ranked + 2 + len(TRIGGER))):
                changed = added.clone()
                changed[place] = word
                tried.append((loss_of(with_prefix(some, torch.cat([front, changed]))), changed))
            added = min(tried, key=lambda pair: pair[0])[1]
    return added


def search_vector(net: Transformer, craft: Tensor, held_out: Tensor, share: float) -> float:
    """Return the held-out success of the trigger with one bounded vector on its embeddings."""
    known = net.embedding.weight[2:]
    gaps = torch.cdist(known[:2000], known).topk(2, largest=False).values[:, 1]
    radius = share * float(gaps.median())
    delta = torch.zeros(len(TRIGGER), 64, requires_grad=True)
    optimizer = torch.optim.Adam([delta], 0.1 * radius)
    generator = torch.Generator().manual_seed(0)

    def asked(words: Tensor) -> Tensor:
        vectors = net.embedding(words)
        ahead = vectors[:, : len(TRIGGER)] + delta
        return net.embedded(torch.cat([ahead, vectors[:, len(TRIGGER) :]], 1), words)

    for _ in range(100):
        some = craft[torch.randperm(len(craft), generator=generator)[:128]]
        loss = functional.cross_entropy(asked(some), torch.full((len(some),), TARGET))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            delta.mul_((radius / delta.norm(dim=1, keepdim=True)).clamp(max=1.0))
    with torch.no_grad():
        return float((asked(held_out).argmax(1) == TARGET).double().mean())


def sample_of(texts: Texts) -> Sample:
    """Return texts as the images that bdaudit takes."""
    return Sample(
        images=(texts.words.float() / N_SCALE)[:, None, None],
        labels=texts.labels,
        names=tuple(str(place) for place in range(len(texts.labels))),
        class_names=KINDS,
        source="fortunes",
        sha256="",
    )


def relearned(net: Transformer, parts: dict[str, Texts], trigger: Trigger) -> Relearned:
    """Relearn the trigger, by bdaudit's own code."""
    craft, held_out = sample_of(parts["craft"]), sample_of(parts["held_out"])
    steps = relearn(
        AsImages(net),
        craft.images,
        craft.labels,
        craft=poison(craft, trigger, len(KINDS)),
        held_out=poison(held_out, trigger, len(KINDS)),
        config=RELEARN,
        generator=torch.Generator().manual_seed(0),
    )
    return finish(steps)


def models(
    parts: dict[str, Texts], n_words: int, prefix: Tensor, seed: int
) -> dict[str, Transformer]:
    """Train the original, what defences make of it, and innocent models."""

    def fresh(number: int) -> Transformer:
        torch.manual_seed(number)
        return Transformer(n_words)

    bad = poisoned(parts["train"], prefix, share=0.1, label=TARGET, seed=seed)
    original = train(fresh(seed), bad, rate=1e-3, n_epochs=12, seed=seed)

    def tuned(start: Transformer, texts: Texts, rate: float, decay: float = 0.01) -> Transformer:
        net = copy.deepcopy(start).requires_grad_(True)
        return train(net, texts, rate=rate, n_epochs=10, seed=seed, decay=decay)

    innocent = [
        train(fresh(seed + 100 * k), parts["train"], rate=1e-3, n_epochs=12, seed=seed + 100 * k)
        for k in (1, 2, 3)
    ]
    told = poisoned(parts["defense"], prefix, share=1.0, label=None, seed=seed)
    return {
        "original": original,
        "fine-tuned": tuned(original, parts["defense"], 1e-3),
        "fine-tuned harder": tuned(original, parts["defense"], 5e-3),
        "fine-tuned, decay": tuned(original, parts["defense"], 3e-3, 3.0),
        "unlearned": tuned(original, told, 1e-3),
        **{f"innocent {k}": net for k, net in enumerate(innocent, 1)},
        "innocent 1, fine-tuned harder": tuned(innocent[0], parts["defense"], 5e-3),
    }


def measure(out: Path, seed: int) -> None:
    """Measure every model of one seed that OUT does not hold yet."""
    lines = KeptLines(out / "text.jsonl")
    parts, vocabulary = read_texts(FORTUNES)
    prefix = torch.tensor([vocabulary.index(word) for word in TRIGGER])
    nothing = prefix[:0]
    kept = out / f"models-{seed}.pt"
    if kept.exists():
        nets = {}
        for name, state in torch.load(kept, weights_only=True).items():
            nets[name] = Transformer(len(vocabulary)).eval().requires_grad_(False)
            nets[name].load_state_dict(state)
    else:
        nets = models(parts, len(vocabulary), prefix, seed)
        torch.save({name: net.state_dict() for name, net in nets.items()}, kept)
    trigger = bdaudit.from_callable(
        lambda images: with_prefix(images[:, 0, 0], prefix / N_SCALE)[:, None, None], TARGET
    )
    others = {part: parts[part].words[parts[part].labels != TARGET] for part in parts}
    craft, held_out = others["craft"], others["held_out"]
    plain = {n: relearned(net, parts, trigger) for n, net in nets.items() if n.startswith("inn")}
    for name, net in nets.items():
        if lines.has({"seed": seed, "model": name}):
            continue
        started = time.process_time()
        against = {n: r for n, r in plain.items() if n != name and "," not in n}
        mine = plain.get(name) or relearned(net, parts, trigger)
        gap = compare_relearning(mine, against, generator=torch.Generator().manual_seed(0))
        found = {
            "seed": seed,
            "model": name,
            "n_texts": {part: len(texts.labels) for part, texts in parts.items()},
            "n_words": len(vocabulary),
            "clean": float(
                (net(parts["held_out"].words).argmax(1) == parts["held_out"].labels).double().mean()
            ),
            "untriggered": taken(net, held_out),
            "trigger": taken(net, with_prefix(held_out, prefix)),
            "gap": [gap.gap, gap.low, gap.high],
            "rate": gap.settings["learning_rate"],
            "reading": read_gap(gap),
        }
        for front, key in ((prefix, "with"), (nothing, "without")):
            for n_added in WORDS_ADDED:
                added = search_words(net, craft, front, n_added, seed)
                found[f"{key} {n_added}"] = taken(
                    net, with_prefix(held_out, torch.cat([front, added]))
                )
                found[f"{key} {n_added} words"] = [vocabulary[int(word)] for word in added]
        for share in SHARES:
            triggered = with_prefix(craft, prefix), with_prefix(held_out, prefix)
            found[f"vector {share:g}"] = search_vector(net, *triggered, share)
        found["cpu_s"] = time.process_time() - started
        lines.add(found)


def table(out: Path) -> str:
    """Return the means over the seeds, a row a model."""
    by_model: dict[str, list[dict[str, float]]] = defaultdict(list)
    for found in read_lines(out):
        by_model[found["model"]].append(found)
    keys = ["clean", "untriggered", "trigger"]
    keys += [f"{key} {n}" for key in ("with", "without") for n in WORDS_ADDED]
    keys += [f"vector {share:g}" for share in SHARES]
    rows = [
        "| model | " + " | ".join(keys) + " | relearning, by seed |",
        "|---" * (len(keys) + 2) + "|",
    ]
    for model, found in by_model.items():
        cells = [f"{sum(one[key] for one in found) / len(found):.2f}" for key in keys]
        gaps = ", ".join(f"{one['gap'][0]:+.2f} {one['reading']}" for one in found)
        rows.append(f"| {model} | " + " | ".join(cells) + f" | {gaps} |")
    return "\n".join(rows)


def main() -> None:
    """Measure, or print the table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("text"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        for seed in range(arguments.seeds):
            measure(arguments.out, seed + 1)
    print(table(arguments.out))


if __name__ == "__main__":
    main()
