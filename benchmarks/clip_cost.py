"""What a full-size CLIP costs: memory, and processor seconds an image, with random weights.

    python benchmarks/clip_cost.py

Weights do not change what a pass costs, so none are needed. Every line is measured in a process of
its own, with one thread; processor seconds do not hang on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from bdaudit.existence import ExistenceConfig, existence_coefficient
from bdaudit.existence.layers import select_layers
from bdaudit.foundation.progress import finish
from bdaudit.models import Classifier, ClipSettings
from bdaudit.models.clip import as_zero_shot, plan_clip
from bdaudit.reactivation import WhiteboxConfig, reactivate_whitebox

NAMES = tuple(f"thing number {number}" for number in range(10))
TEMPLATES = ("a photo of a {}.", "a drawing of a {}.", "a small {}.", "one {} on a table.")


def peak_gib() -> float:
    """Return the most memory the process has held, in GiB (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(arch: str, n_images: int) -> dict[str, float]:
    torch.set_num_threads(1)
    settings = ClipSettings(class_names=NAMES, templates=TEMPLATES)
    plan = plan_clip(f"open_clip/{arch}", settings)
    torch.manual_seed(0)
    started = time.process_time()
    clip = plan.build()
    # A ResNet's last batch norms start at 0, so that its blocks would be idle.
    for part in clip.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
    built = time.process_time()
    network = as_zero_shot(clip, plan, settings, device="cpu").eval().requires_grad_(False)
    embedded = time.process_time()
    classifier = Classifier(network, mean=(0.48,) * 3, std=(0.27,) * 3).eval()
    del clip
    images = torch.rand(n_images, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    triggered = images.clone()
    triggered[:, :, 8:24, 8:24] = 1.0
    figures = {
        "layers": float(len(select_layers(network))),
        "build_s": built - started,
        "text_s_per_prompt": (embedded - built) / (len(NAMES) * len(TEMPLATES)),
        "open_gib": peak_gib(),
    }
    started = time.process_time()
    with torch.inference_mode():
        classifier(images)
    figures["forward_s_per_image"] = (time.process_time() - started) / n_images
    started = time.process_time()
    finish(
        existence_coefficient(
            classifier,
            classifier,
            [("reference", classifier)],
            clean=images,
            triggered=triggered,
            config=ExistenceConfig(n_bootstrap=0, batch_size=n_images),
            generator=torch.Generator().manual_seed(0),
        )
    )
    figures["score_s_per_image"] = (time.process_time() - started) / n_images
    figures["score_gib"] = peak_gib()
    # Two searches of different length, so that what every search does once drops out.
    short, long = (_attack_s(classifier, triggered, n_passes) for n_passes in (1, 3))
    figures["attack_pass_s_per_image"] = (long - short) / 2 / n_images
    figures["peak_gib"] = peak_gib()
    return figures


def _attack_s(classifier: Classifier, triggered: torch.Tensor, n_passes: int) -> float:
    started = time.process_time()
    finish(
        reactivate_whitebox(
            classifier,
            triggered,
            torch.zeros(len(triggered), dtype=torch.long),
            config=WhiteboxConfig(eps=0.001, n_passes=n_passes, batch_size=len(triggered)),
            generator=torch.Generator().manual_seed(0),
        )
    )
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4, help="in one batch")
    parser.add_argument("--arch", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arch is not None:
        print(json.dumps(measure(arguments.arch, arguments.images)))
        return
    for arch in ("RN50", "ViT-B-32"):
        command = [sys.executable, __file__, "--arch", arch, "--images", str(arguments.images)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(arch)
        for name, value in json.loads(done.stdout.splitlines()[-1]).items():
            print(f"  {name:26} {value:.3f}")


if __name__ == "__main__":
    main()
