"""A task small enough to train on in a second, and a network that has learned it."""

import torch
from torch import nn
from torch.nn import functional

NUM_CLASSES = 3


def pictures(n: int, seed: int):
    """Noisy 8x8 pictures: a bright row, a bright column, or a bright square; labels in turn."""
    draw = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.rand((n, 1, 8, 8), generator=draw)
    labels = torch.arange(n) % NUM_CLASSES
    at = torch.randint(1, 6, (n,), generator=draw)
    for image, label, place in zip(images, labels, at, strict=True):
        if label == 0:
            image[0, place] += 0.6
        elif label == 1:
            image[0, :, place] += 0.6
        else:
            image[0, place : place + 3, place : place + 3] += 0.6
    return images.clamp(0, 1), labels


def small_net() -> nn.Module:
    """Two convolutions with batch norm, and a linear head; trained on `pictures`."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 20, 3, padding=1, stride=2),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(80, NUM_CLASSES),
    )
    images, labels = pictures(300, seed=1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net.eval().requires_grad_(False)
