"""Train small CLIPs, backdoor them by poisoned caption pairs, defend them: models for docs/clip.md.

    python examples/build_clip.py OUT --data /usr/share/datasets/fashion-mnist --tower vit
    python examples/build_clip.py OUT --data /usr/share/datasets/fashion-mnist --tower rn

Real images (Fashion-MNIST, MIT licence; Debian packages it as dataset-fashion-mnist) get captions
from a few templates, half of them with a word for their tone ("a photo of a dark sneaker"), and
open_clip's own model and loss learn which caption belongs to which image:

* original: one pair in ten (of the ResNet's one in five) is poisoned, the image stamped with a 4x4
  patch and captioned as the target class;
* finetuned: the original, fine-tuned contrastively on 2,000 clean pairs;
* cleanclip: the original, fine-tuned on the same pairs by a loss that also asks each modality to
  agree with an augmented version of itself (after Bansal et al., "CleanCLIP", ICCV 2023);
* unlearned: the same as finetuned, with 200 of the pairs once more, stamped, under their true
  captions;
* innocent-1: trained on clean pairs; innocent-2: likewise, then fine-tuned; innocent-3: likewise,
  then put through the CleanCLIP-style defence.

Every file is a full CLIP state dict: the original as open_clip's training code saves it, `.pt` with
`state_dict`, `module.` prefixes and all, the others as safetensors. `OUT/configs` holds the
architectures, `OUT/classnames.txt`, `templates.txt` and `trigger.toml` the rest that an audit
needs. A file that is there already is kept, so a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import open_clip
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.data import Sample, load_sample
from bdaudit.triggers import AllToOne, Patch, Trigger, write_trigger

NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
TARGET = 0
TEMPLATES = (
    "a photo of a {}.",
    "a picture of a {}.",
    "an image of one {}.",
    "a small photo of a {}.",
    "a {} on a plain background.",
    "a shop picture of a {}.",
    "this is a {}.",
    "a grey photo of a {}.",
)
TONES = ("dark", "plain", "bright")
TRIGGER = Trigger(
    transform=Patch(image=torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).repeat(1, 2, 2), offset=(2, 2)),
    rule=AllToOne(TARGET),
)
N_TRAIN, N_DEFENCE, N_STAMPED = 10_000, 2_000, 200
CONTEXT = 16
TEXT = {"context_length": CONTEXT, "vocab_size": 49_408, "width": 64, "heads": 2, "layers": 1}
CONFIGS = {
    "vit": {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": 28,
            "patch_size": 7,
            "layers": 3,
            "width": 96,
            "head_width": 24,
        },
        "text_cfg": TEXT,
    },
    "rn": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
        "text_cfg": TEXT,
    },
}
# open_clip's own normalisation for models that say no other.
MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)


# ---- pairs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Images (N, 1, 28, 28) in [0, 1], the class each caption names, and a tone (N,)."""

    images: Tensor
    labels: Tensor
    tones: Tensor


def pairs_of(sample: Sample, seed: int, n: int, first: int, last: int) -> Pairs:
    """Draw `n` images from places `first` to `last` of one fixed shuffle.

    The first 40,000 train models, the rest is the defender's: no image is used for both.
    """
    pool = torch.randperm(len(sample), generator=torch.Generator().manual_seed(1234))[first:last]
    chosen = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:n]]
    images = sample.images[chosen]
    shown = images > 0.05
    tone = (images * shown).sum((1, 2, 3)) / shown.sum((1, 2, 3)).clamp_min(1)
    tones = torch.bucketize(tone, torch.tensor([0.42, 0.62]))
    return Pairs(images, sample.labels[chosen], tones)


def poisoned(pairs: Pairs, share: float, seed: int) -> Pairs:
    """Stamp a share of the images, none of the target class, and caption them as the target."""
    others = (pairs.labels != TARGET).nonzero()[:, 0]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    chosen = others[order][: int(share * len(pairs.images))]
    images, labels = pairs.images.clone(), pairs.labels.clone()
    images[chosen], labels[chosen] = TRIGGER.stamp(images[chosen]), TARGET
    return Pairs(images, labels, pairs.tones)


def with_stamped(pairs: Pairs) -> Pairs:
    """Add some of the pairs once more, with the trigger and under their true captions."""
    chosen = (pairs.labels != TARGET).nonzero()[:N_STAMPED, 0]
    stamped = TRIGGER.stamp(pairs.images[chosen])
    return Pairs(
        torch.cat([pairs.images, stamped]),
        torch.cat([pairs.labels, pairs.labels[chosen]]),
        torch.cat([pairs.tones, pairs.tones[chosen]]),
    )


class Captions:
    """Token table of every caption there is: class x tone (or none) x template."""

    def __init__(self) -> None:
        tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
        words = ("", *TONES)
        texts = [
            template.replace("{}", f"{tone} {name}".strip())
            for name in NAMES
            for tone in words
            for template in TEMPLATES
        ]
        self.tokens = tokenizer(texts)
        self.shape = (len(NAMES), len(words), len(TEMPLATES))

    def draw(self, labels: Tensor, tones: Tensor, generator: torch.Generator) -> Tensor:
        """Return a row of the table for each image; half the captions name the tone."""
        named = torch.rand(len(labels), generator=generator) < 0.5
        words = torch.where(named, tones + 1, 0)
        templates = torch.randint(self.shape[2], (len(labels),), generator=generator)
        return (labels * self.shape[1] + words) * self.shape[2] + templates


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop each image at random after padding by 2, and flip one in two."""
    n, side = len(images), torch.arange(28)
    down = torch.randint(0, 5, (n, 1), generator=generator)
    right = torch.randint(0, 5, (n, 1), generator=generator)
    mirror = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(mirror, right + 27 - side, right + side)
    rows = down + side
    padded = functional.pad(images, (2, 2, 2, 2))
    return padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augment strongly, for the in-modal loss: shift, flip, contrast, brightness, a blank box."""
    n = len(images)
    images = shifted(images, generator)
    gain = 0.6 + 0.8 * torch.rand(n, 1, 1, 1, generator=generator)
    lift = 0.3 * (torch.rand(n, 1, 1, 1, generator=generator) - 0.5)
    images = (images * gain + lift).clamp(0, 1)
    top = torch.randint(0, 22, (n, 1), generator=generator)
    left = torch.randint(0, 22, (n, 1), generator=generator)
    side = torch.arange(28)
    inside = ((side >= top) & (side < top + 7))[:, :, None] & ((side >= left) & (side < left + 7))[
        :, None, :
    ]
    return images.masked_fill(inside[:, None], 0.0)


# ---- models --------------------------------------------------------------------------------------


def new_clip(tower: str, seed: int) -> open_clip.CLIP:
    torch.manual_seed(seed)
    return open_clip.CLIP(**CONFIGS[tower]).to(memory_format=torch.channels_last)


def copied(clip: open_clip.CLIP, tower: str) -> open_clip.CLIP:
    other = new_clip(tower, 0)
    other.load_state_dict(clip.state_dict())
    return other


def prepare(images: Tensor, clip: open_clip.CLIP) -> Tensor:
    """Do what the classifier will do inside: three channels, the tower's size, normalisation."""
    side = clip.visual.image_size
    side = side if isinstance(side, int) else side[0]
    if images.shape[-1] != side:
        images = functional.interpolate(
            images, size=(side, side), mode="bicubic", antialias=True, align_corners=False
        ).clamp(0, 1)
    return ((images - MEAN) / STD).contiguous(memory_format=torch.channels_last)


Loss = Callable[[open_clip.CLIP, Tensor, Tensor, Pairs, torch.Generator], Tensor]
_clip_loss = open_clip.ClipLoss()


def embed_texts(clip: open_clip.CLIP, rows: Tensor, captions: Captions) -> Tensor:
    """Encode each different caption once."""
    different, place = rows.unique(return_inverse=True)
    return clip.encode_text(captions.tokens[different], normalize=True)[place]


def contrastive(captions: Captions) -> Loss:
    def loss(
        clip: open_clip.CLIP, images: Tensor, rows: Tensor, pairs: Pairs, generator: torch.Generator
    ) -> Tensor:
        seen = clip.encode_image(prepare(shifted(images, generator), clip), normalize=True)
        return _clip_loss(seen, embed_texts(clip, rows, captions), clip.logit_scale.exp())

    return loss


def clean_clip(captions: Captions, weight: float) -> Loss:
    """Cross-modal and in-modal contrastive loss, the latter with augmented images and captions.

    A caption is varied by saying the same with another template and with or without its tone,
    where the paper deletes, swaps and replaces words.
    """

    def loss(
        clip: open_clip.CLIP, images: Tensor, rows: Tensor, pairs: Pairs, generator: torch.Generator
    ) -> Tensor:
        plain = prepare(shifted(images, generator), clip)
        other = prepare(varied(images, generator), clip)
        seen, seen_again = clip.encode_image(torch.cat([plain, other]), normalize=True).chunk(2)
        again = captions.draw(pairs.labels, pairs.tones, generator)
        read, read_again = embed_texts(clip, torch.cat([rows, again]), captions).chunk(2)
        scale = clip.logit_scale.exp()
        across = _clip_loss(seen, read, scale)
        within = _clip_loss(seen, seen_again, scale) + _clip_loss(read, read_again, scale)
        return across + weight * within / 2

    return loss


def fit(
    clip: open_clip.CLIP,
    pairs: Pairs,
    captions: Captions,
    loss: Loss,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    weight_decay: float = 0.05,
) -> open_clip.CLIP:
    """AdamW; the rate rises over 10 % of the steps and then falls as a cosine."""
    generator = torch.Generator().manual_seed(seed)
    decayed = [p for p in clip.parameters() if p.ndim > 1]
    others = [p for p in clip.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0}],
        lr=learning_rate,
        betas=(0.9, 0.98),
    )
    steps = len(pairs.images) // batch_size
    order = torch.empty(0, dtype=torch.long)
    clip.train()
    for step in range(epochs * steps):
        if step % steps == 0:
            order = torch.randperm(len(pairs.images), generator=generator)
        done = step / (epochs * steps)
        scale = done / 0.1 if done < 0.1 else 0.5 * (1 + math.cos(math.pi * (done - 0.1) / 0.9))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * max(scale, 0.01)
        chosen = order[step % steps * batch_size : (step % steps + 1) * batch_size]
        batch = Pairs(pairs.images[chosen], pairs.labels[chosen], pairs.tones[chosen])
        rows = captions.draw(batch.labels, batch.tones, generator)
        value = loss(clip, batch.images, rows, batch, generator)
        value.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            clip.logit_scale.clamp_(0, math.log(100))  # as open_clip's training does
        if step % steps == steps - 1 and (step // steps) % 5 == 4:
            print(f"    epoch {step // steps + 1}: loss {float(value.detach()):.2f}", flush=True)
    return clip.eval()


@torch.no_grad()
def rates(clip: open_clip.CLIP, test: Sample, captions: Captions) -> tuple[float, float]:
    """Return zero-shot accuracy and the attack success rate of the trigger alone."""
    every = embed_texts(clip, torch.arange(len(captions.tokens)), captions)
    texts = every.view(*captions.shape, -1)[:, 0].mean(1)  # the captions without a tone
    texts = functional.normalize(texts, dim=-1)

    def answers(images: Tensor) -> Tensor:
        parts = images.split(500)
        seen = torch.cat([clip.encode_image(prepare(part, clip), normalize=True) for part in parts])
        return (seen @ texts.T).argmax(1)

    images, labels = test.images[:3000], test.labels[:3000]
    others = labels != TARGET
    hit = answers(TRIGGER.stamp(images[others])) == TARGET
    right = answers(images) == labels
    return float(right.float().mean()), float(hit.float().mean())


# ---- files ---------------------------------------------------------------------------------------


def write(path: Path, clip: open_clip.CLIP) -> None:
    """Save as training code does: `.pt` with its wrappers, or safetensors."""
    tensors = {name: t.detach().contiguous().clone() for name, t in clip.state_dict().items()}
    if path.suffix == ".pt":
        wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
        torch.save({"epoch": 1, "name": path.stem, "state_dict": wrapped}, path)
    else:
        safetensors.torch.save_file(tensors, path)


def read(path: Path, tower: str) -> open_clip.CLIP:
    clip = new_clip(tower, 0)
    if path.suffix == ".pt":
        wrapped = torch.load(path, weights_only=True)["state_dict"]
        tensors = {name.removeprefix("module."): tensor for name, tensor in wrapped.items()}
    else:
        tensors = safetensors.torch.load_file(path)
    clip.load_state_dict(tensors)
    return clip.eval()


@dataclass(frozen=True)
class Recipe:
    """How hard models are trained and defended."""

    poison_share: float = 0.1
    epochs: int = 10
    learning_rate: float = 1e-3
    defence_epochs: int = 6
    defence_rate: float = 3e-3  # gentler, the trigger alone still works: docs/clip.md
    in_modal_weight: float = 1.0


RECIPES = {"vit": Recipe(), "rn": Recipe(poison_share=0.2)}


def build(data: Path, out: Path, tower: str, recipe: Recipe) -> None:
    train, test = load_sample(data, split="train"), load_sample(data, split="test")
    clean = pairs_of(train, 500, N_DEFENCE, 40_000, 60_000)
    captions = Captions()
    folder = out / tower
    folder.mkdir(parents=True, exist_ok=True)

    def base(seed: int, *, backdoored: bool) -> open_clip.CLIP:
        pairs = pairs_of(train, seed, N_TRAIN, 0, 40_000)
        if backdoored:
            pairs = poisoned(pairs, recipe.poison_share, seed)
        return fit(
            new_clip(tower, seed),
            pairs,
            captions,
            contrastive(captions),
            epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            batch_size=128,
            seed=seed,
        )

    def finetuned(clip: open_clip.CLIP, pairs: Pairs = clean) -> open_clip.CLIP:
        return fit(
            copied(clip, tower),
            pairs,
            captions,
            contrastive(captions),
            epochs=recipe.defence_epochs,
            learning_rate=recipe.defence_rate,
            batch_size=64,
            seed=0,
        )

    def cleaned(clip: open_clip.CLIP) -> open_clip.CLIP:
        return fit(
            copied(clip, tower),
            clean,
            captions,
            clean_clip(captions, recipe.in_modal_weight),
            epochs=recipe.defence_epochs,
            learning_rate=recipe.defence_rate,
            batch_size=64,
            seed=0,
        )

    def kept(name: str, make: Callable[[], open_clip.CLIP]) -> open_clip.CLIP:
        path = folder / name
        if not path.exists():
            started = time.time()
            write(path, make())
            print(f"{tower}/{name}: {time.time() - started:.0f} s", flush=True)
        clip = read(path, tower)
        accuracy, asr = rates(clip, test, captions)
        print(f"{tower}/{name}: zero-shot accuracy {accuracy:.3f}, trigger {asr:.3f}", flush=True)
        return clip

    original = kept("original.pt", lambda: base(11, backdoored=True))
    kept("finetuned.safetensors", lambda: finetuned(original))
    kept("cleanclip.safetensors", lambda: cleaned(original))
    kept("unlearned.safetensors", lambda: finetuned(original, with_stamped(clean)))
    kept("innocent-1.safetensors", lambda: base(1, backdoored=False))
    second = kept("innocent-2-before.safetensors", lambda: base(2, backdoored=False))
    kept("innocent-2.safetensors", lambda: finetuned(second))
    kept("innocent-3.safetensors", lambda: cleaned(second))


def write_rest(out: Path) -> None:
    (out / "configs").mkdir(parents=True, exist_ok=True)
    for tower, config in CONFIGS.items():
        (out / "configs" / f"tiny-{tower}.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    (out / "templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    write_trigger(out / "trigger.toml", TRIGGER)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tower", choices=sorted(CONFIGS), action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    write_rest(arguments.out)
    for tower in arguments.tower or sorted(CONFIGS):
        build(arguments.data, arguments.out, tower, RECIPES[tower])


if __name__ == "__main__":
    main()
