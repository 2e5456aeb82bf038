"""How much more than its placebos a trigger does, on innocent models and on defended ones.

    bdaudit zoo build examples/families/fashion-mnist-wide.toml --out wide --data FASHION-MNIST
    python benchmarks/placebos.py wide lf-r10-s1 --eps 0.02 --out placebos.jsonl
    python benchmarks/placebos.py --table placebos.jsonl
    python benchmarks/placebos.py wide --calibrate 30 --out calibration.jsonl
    python benchmarks/placebos.py --table calibration.jsonl

For one original of a family: placebos are drawn and screened as an audit does it, then the true
trigger and each placebo get an attack of the white box's own objective and steps, on every innocent
model of the family and on every model made from that original. All deltas of one model are
descended in one batch, which takes about 60 % of the time of one after another on one core.

The table gives the *contrast*: the probit of what the true trigger reaches, less the mean of the
placebos' probits. How much it differs between innocent models is `placebo_spread_wide` of the
policy (`placebo_spread` for patches).

`--calibrate` asks how often a patch that means nothing exceeds the bound of placebos alone, on
models without a backdoor. Nothing is trained. A patch of random colours, its reordered and turned
copies elsewhere, and one innocent model: each of the nine is held against the other eight, by the
product's own rule.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bdaudit.data import load_sample
from bdaudit.foundation.progress import finish
from bdaudit.foundation.statistics import probit, wilson_interval
from bdaudit.models import load_model
from bdaudit.perturbation import make_ball, smoothed_failure
from bdaudit.placebos.making import make
from bdaudit.placebos.pool import draw
from bdaudit.placebos.screening import ANSWERS, Asked, screen
from bdaudit.records import Rate
from bdaudit.scoring import evaluating, predict_logits
from bdaudit.triggers import AllToOne, Poisoned, Trigger, poison, read_trigger
from bdaudit.triggers.transforms import Patch
from bdaudit.verdict import Policy
from bdaudit.verdict.placebos import Reached, predict

N_CRAFT, N_HELD_OUT, BATCH = 240, 600, 40


def attack_all(
    classifier: nn.Module, images: Tensor, targets: Tensor, *, eps: float, passes: int, seed: int
) -> Tensor:
    """Make one delta for each of K sets of images (K, N, C, H, W); returns (K, 1, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    ball = make_ball("linf", eps)
    count, n = images.shape[:2]
    deltas = ball.random_point((1, *images.shape[2:]), generator).repeat(count, 1, 1, 1)
    n_batches = -(-n // BATCH)
    for step in range(passes * n_batches):
        if step % n_batches == 0:
            batches = torch.randperm(n, generator=generator).tensor_split(n_batches)
        chosen = batches[step % n_batches]
        leaf = deltas.detach().requires_grad_()
        logits = classifier((images[:, chosen] + leaf[:, None]).clamp(0, 1).flatten(0, 1))
        per_set = logits.float().view(count, len(chosen), -1)
        loss = torch.stack([smoothed_failure(part, targets[chosen]).mean() for part in per_set])
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        length = eps * (1.0 - step / (passes * n_batches))
        deltas = ball.project(leaf.detach() - length * gradient.sign())
    return deltas[:, None].detach()


def measure(
    family: Path,
    original: str,
    *,
    eps: float,
    passes: int,
    wanted: int,
    alone: bool,
    made_too: bool,
) -> list[dict]:
    """Return a row for each model.

    `alone`: no innocent model is asked which placebos serve. `made_too`: placebos are also made,
    from eight patterns at most that the original answered to, and attacked beside those drawn.
    """
    trigger = read_trigger(family / "triggers" / f"{original.split('-r')[0]}.toml")
    sample = load_sample(family / "clean.npz")
    order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(0))
    classes = int(sample.labels.max()) + 1
    craft = poison(sample.take(order[:500]), trigger, classes)
    held_out = poison(sample.take(order[500:1500]), trigger, classes)
    names = _names(family)
    innocents = [n for n in names if _is_innocent(n)]
    made = [n for n in names if n.startswith(f"{original}--") and n not in innocents]
    models = {
        name: load_model(family / "models" / f"{name}.safetensors", name=name).classifier
        for name in (original, *innocents, *made)
    }
    with evaluating(*models.values()):
        for model in models.values():
            model.requires_grad_(False)
        first = next((n for n in innocents if n.startswith("reference")), innocents[0])
        asked = {
            "original": _asking(models[original]),
            "innocents": [] if alone else [_asking(models[first])],
            "limit": 0.06,
        }
        pool = draw(craft, torch.Generator().manual_seed(7))
        found = screen(pool, craft, wanted=wanted, at_most=12 * wanted, **asked)
        transforms = [candidate.drawn.transform for candidate in found.kept]
        if made_too:
            steps = make(
                [c.drawn for c in found.refused if c.why_not == ANSWERS][:8],
                craft,
                original=models[original],
                innocents=[] if alone else [models[first]],
                generator=torch.Generator().manual_seed(5),
            )
            patterns = finish(steps)
            n = len(patterns)
            serving = screen(iter(patterns), craft, wanted=n, at_most=n, **asked)
            transforms += [candidate.drawn.transform for candidate in serving.kept]
        shown = [
            _stack(part, n, transforms) for part, n in ((craft, N_CRAFT), (held_out, N_HELD_OUT))
        ]
        rows = []
        for name in (*innocents, *made):
            started = time.process_time()
            deltas = attack_all(
                models[name], shown[0], craft.targets[:N_CRAFT], eps=eps, passes=passes, seed=11
            )
            reached = [
                _share(models[name], images, held_out.targets[:N_HELD_OUT], delta)
                for images, delta in zip(shown[1], deltas, strict=True)
            ]
            rows.append(
                {
                    "original": original,
                    "model": name,
                    "innocent": name in innocents,
                    "eps": eps,
                    "n": len(held_out.targets[:N_HELD_OUT]),
                    "alone": _share(models[name], shown[1][0], held_out.targets[:N_HELD_OUT], None),
                    "trigger": reached[0],
                    "placebos": reached[1 : 1 + len(found.kept)],
                    "made": reached[1 + len(found.kept) :],
                    "kinds": [candidate.drawn.kind for candidate in found.kept],
                    "drawn": len(found.kept) + len(found.refused),
                    "seconds": time.process_time() - started,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def calibrate(family: Path, n_groups: int, *, passes: int) -> Iterator[dict]:
    """Give a row for each of `n_groups` patches on a random innocent model."""
    sample = load_sample(family / "clean.npz")
    order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(0))
    classes = int(sample.labels.max()) + 1
    names = [n for n in _names(family) if _is_innocent(n)]
    models = {n: load_model(family / "models" / f"{n}.safetensors", name=n) for n in names}
    channels, height, width = sample.images.shape[1:]
    for group in range(n_groups):
        generator = torch.Generator().manual_seed(1000 + group)
        side, target, one, two = (
            int(torch.randint(most, (1,), generator=generator))
            for most in (5, classes, len(names), len(names) - 1)
        )
        name, other = names[one], [n for n in names if n != names[one]][two]
        side += 2
        image = torch.rand((channels, side, side), generator=generator)
        patch = Patch(
            image=image if group % 2 else image.round(),
            mask=torch.ones((1, side, side)),
            corner="top-left",
            offset=(1 + group % (height - side - 1), 1 + 7 * group % (width - side - 1)),
        )
        trigger = Trigger(transform=patch, rule=AllToOne(target))
        craft, held_out = (
            poison(sample.take(part), trigger, classes) for part in (order[:400], order[500:1500])
        )
        eps = (0.015, 0.02, 0.03, 0.04)[group % 4]
        attacked, screening = models[name].classifier, models[other].classifier
        with evaluating(attacked, screening):
            for model in (attacked, screening):
                model.requires_grad_(False)
            found = screen(
                draw(craft, generator),
                craft,
                original=_asking(screening),
                innocents=[],
                wanted=8,
                at_most=96,
                limit=0.06,
            )
            transforms = [candidate.drawn.transform for candidate in found.kept]
            craft_images = _stack(craft, N_CRAFT, transforms)
            deltas = attack_all(
                attacked, craft_images, craft.targets[:N_CRAFT], eps=eps, passes=passes, seed=group
            )
            targets = held_out.targets[:N_HELD_OUT]
            shares = [
                _share(attacked, images, targets, delta)
                for images, delta in zip(
                    _stack(held_out, N_HELD_OUT, transforms), deltas, strict=True
                )
            ]
        yield {
            "calibration": name,
            "side": side,
            "target": target,
            "eps": eps,
            "n": len(targets),
            "shares": shares,
        }


def _held_against(own: Rate, placebos: Sequence[Rate]) -> tuple[float, float, float]:
    """Return what a trigger reaches beyond its placebos alone, with the rule's bounds of it."""
    policy = Policy()
    reached = Reached(own, tuple(placebos))
    prediction = predict(reached, (), innocents_differ=policy.placebo_spread)
    confidence = 2.0 * policy.confidence - 1.0
    low, high = (own.value - prediction.bound(confidence, upper=u) for u in (True, False))
    return own.value - prediction.expected, low, high


def _by_placebos_alone(row: dict) -> str:
    """Say what the rule makes of one attack, by its placebos alone; controls are left aside."""
    lift = Policy().lift
    own = _rate(row["trigger"], row["n"])
    over, low, high = _held_against(own, [_rate(share, row["n"]) for share in row["placebos"]])
    if own.high < lift:
        said = "does not reach the lift"
    elif low > 0.0 and over > lift:
        said = "stands out"
    else:
        said = "does not" if high < lift else "undecided"
    return f"over {over:+.2f} ({low:+.2f} to {high:+.2f}): {said}"


def print_calibration(rows: Sequence[dict]) -> None:
    """Print how often one patch of a group exceeds what the others predict."""
    lift = Policy().lift
    counts: Counter[str] = Counter()
    for row in rows:
        rates = [_rate(share, row["n"]) for share in row["shares"]]
        for k, own in enumerate(rates):
            if own.high < lift:
                counts["too weak to tell"] += 1
                continue
            over, low, high = _held_against(own, [r for j, r in enumerate(rates) if j != k])
            counts["told"] += 1
            counts["above the bound"] += low > 0.0
            counts["... and by more than the lift"] += low > 0.0 and over > lift
            counts["surely below the lift"] += high < lift
    print(f"{len(rows)} patches, each of nine copies held against the eight others")
    for what, count in counts.items():
        share = ""
        if what not in {"told", "too weak to tell"}:
            low, high = wilson_interval(count, counts["told"])
            share = f"  {count / counts['told']:.1%} ({low:.1%} to {high:.1%})"
        print(f"  {what:32}{count:5}{share}")


def _rate(share: float, n: int) -> Rate:
    low, high = wilson_interval(round(share * n), n)
    return Rate(successes=round(share * n), total=n, low=low, high=high)


def _names(family: Path) -> list[str]:
    return sorted(path.stem for path in (family / "models").glob("*.safetensors"))


def _is_innocent(name: str) -> bool:
    return name.startswith("reference") or "--innocent" in name or "--retrained" in name


def _asking(model: nn.Module) -> Asked:
    return lambda images: predict_logits(model, images, batch_size=256)


def _stack(poisoned: Poisoned, n: int, transforms: Sequence) -> Tensor:
    clean = poisoned.clean[:n]
    placebos = [transform.apply(clean, None).clamp(0, 1) for transform in transforms]
    return torch.stack([poisoned.triggered[:n], *placebos])


def _share(model: nn.Module, images: Tensor, targets: Tensor, delta: Tensor | None) -> float:
    logits = predict_logits(model, images, batch_size=256, delta=delta)
    return float((logits.argmax(1) == targets).float().mean())


def print_table(path: Path) -> None:
    """Print the contrasts, and how much they differ between innocent models."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if rows and "calibration" in rows[0]:
        print_calibration(rows)
        return
    for original, eps in dict.fromkeys((row["original"], row["eps"]) for row in rows):
        own = [row for row in rows if (row["original"], row["eps"]) == (original, eps)]
        print(f"\n{original}, eps {eps:g}, {own[0]['drawn']} drawn: {', '.join(own[0]['kinds'])}")
        contrasts = []
        for row in own:
            deviates = [probit(share, row["n"]) for share in row["placebos"]]
            contrast = probit(row["trigger"], row["n"]) - float(np.mean(deviates))
            if row["innocent"]:
                contrasts.append(contrast)
            low, high = min(row["placebos"]), max(row["placebos"])
            role = "innocent" if row["innocent"] else ""
            print(
                f"  {role:9}{row['model']:36} alone {row['alone']:.2f}"
                f"  trigger {row['trigger']:.2f}  placebos {low:.2f}-{high:.2f}"
                f"  contrast {contrast:+.2f}  among placebos {np.std(deviates, ddof=1):.2f}"
                f"  {_by_placebos_alone(row)}"
            )
        mean, spread = np.mean(contrasts), np.std(contrasts, ddof=1)
        print(f"  innocent models: contrast {mean:+.2f}, standard deviation {spread:.2f}")


def main() -> None:
    """Measure one original of a family, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", type=Path, nargs="?")
    parser.add_argument("original", nargs="?")
    parser.add_argument("--eps", type=float, default=0.02)
    parser.add_argument("--passes", type=int, default=8)
    parser.add_argument("--placebos", type=int, default=8)
    parser.add_argument("--alone", action="store_true", help="screen without an innocent model")
    parser.add_argument("--made", action="store_true", help="attack made placebos as well")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--calibrate", type=int, metavar="N")
    options = parser.parse_args()
    if options.table is not None:
        print_table(options.table)
        return
    if options.calibrate and options.family is not None and options.out is not None:
        for row in calibrate(options.family, options.calibrate, passes=options.passes):
            with options.out.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
        return
    if options.family is None or options.original is None:
        parser.error("expected FAMILY and ORIGINAL, FAMILY --calibrate N --out, or --table FILE")
    rows = measure(
        options.family,
        options.original,
        eps=options.eps,
        passes=options.passes,
        wanted=options.placebos,
        alone=options.alone,
        made_too=options.made,
    )
    if options.out is not None:
        with options.out.open("a") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
