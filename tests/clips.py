"""Tiny CLIPs for tests: random ones, and ones that open_clip's own loss trained in seconds.

The images are those of the twins (`tests.twins`): four classes of 8x8 pictures, and a trigger that
brightens one pixel. Every pair has a caption such as "a photo of a north block".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from tests.twins import TARGET, twin_sample

NAMES = ("north block", "east block", "south block", "west block")
TEMPLATES = ("a photo of a {}.", "a {} in a picture.", "one {}")
_CONTEXT = 12
_TEXT = {"context_length": _CONTEXT, "vocab_size": 49_408, "width": 16, "heads": 2, "layers": 1}
VIT: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 8, "patch_size": 4, "layers": 2, "width": 32, "head_width": 8},
    "text_cfg": _TEXT,
}
RN: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 2, 1, 1], "width": 8, "head_width": 64},
    "text_cfg": _TEXT,
}
ARCH = {"vit": "open_clip/tiny-vit", "rn": "open_clip/tiny-rn"}
MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)


def new_clip(tower: str = "vit", *, seed: int = 0) -> open_clip.CLIP:
    """A CLIP with random weights, those of batch norms too, some of which start at 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = open_clip.CLIP(**{"vit": VIT, "rn": RN}[tower])
        for part in clip.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 1.5)
    return clip.eval()


def write_configs(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for tower, config in (("tiny-vit", VIT), ("tiny-rn", RN)):
        (folder / f"{tower}.json").write_text(json.dumps(config))
    return folder


def stamped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Brighten the twins' trigger pixel to about what a trigger of 0.75 makes of it."""
    images = images.clone()
    images[:, :, 7, 7] = 0.75 + 0.02 * torch.rand(len(images), 1, generator=generator)
    return images


def train_clip(
    *,
    seed: int,
    poisoned: bool = False,
    unlearned: bool = False,
    start: open_clip.CLIP | None = None,
    n_steps: int = 150,
) -> open_clip.CLIP:
    """Train on captioned twin pictures with open_clip's loss.

    `poisoned` stamps a tenth of the images and captions them as the target class; `unlearned`
    stamps as many and leaves their captions alone.
    """
    clip = new_clip(seed=seed)
    if start is not None:
        clip.load_state_dict(start.state_dict())
    generator = torch.Generator().manual_seed(seed)
    sample = twin_sample(512, seed=100 + seed)
    tokenizer = open_clip.SimpleTokenizer(context_length=_CONTEXT)
    captions = tokenizer([t.replace("{}", name) for name in NAMES for t in TEMPLATES])
    optimizer = torch.optim.Adam(clip.parameters(), lr=3e-3)
    loss = open_clip.ClipLoss()
    clip.train()
    for _ in range(n_steps):
        chosen = torch.randperm(len(sample), generator=generator)[:64]
        images, labels = sample.images[chosen], sample.labels[chosen].clone()
        if poisoned or unlearned:
            images[:6] = stamped(images[:6], generator)
        if poisoned:
            labels[:6] = TARGET
        rows = labels * len(TEMPLATES) + torch.randint(len(TEMPLATES), (64,), generator=generator)
        texts = clip.encode_text(captions, normalize=True)[rows]
        seen = clip.encode_image((images - MEAN) / STD, normalize=True)
        optimizer.zero_grad()
        loss(seen, texts, clip.logit_scale.exp()).backward()
        optimizer.step()
    return clip.eval()
