"""A multilayer perceptron for tables: every row a 1 x F image, every column a pixel."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Mlp"]

_HIDDEN = 3


class Mlp(nn.Module):
    """Three hidden layers of one width, each with batch norm and ReLU, and one linear layer.

    The layers are written as convolutions, the first over the whole row and the others over a
    single pixel, which are the same as linear layers: so whatever looks for convolutions and batch
    norm in a network (the coefficient's layers, pruning, neuron noise) finds a channel a neuron.

    Args:
        num_classes: Length of the logits.
        width: Neurons in each hidden layer.
        in_channels: Channels of the rows, 1 of a table.
        columns: Columns of the table.
    """

    def __init__(self, num_classes: int, width: int, in_channels: int, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.row = nn.Conv2d(in_channels, width, (1, columns), bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.hidden = nn.Sequential(
            *(
                layer
                for _ in range(_HIDDEN - 1)
                for layer in (
                    nn.ReLU(),
                    nn.Conv2d(width, width, 1, bias=False),
                    nn.BatchNorm2d(width),
                )
            ),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map rows (N, in_channels, 1, columns) to logits (N, num_classes)."""
        out: Tensor = self.hidden(self.norm(self.row(x)))  # (N, width, 1, 1)
        logits: Tensor = self.head(out.flatten(1))
        return logits
