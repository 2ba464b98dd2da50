"""Define what the rivals' plain networks in PyTorch share (App. D.1)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Patches(nn.Module):
    """Projects patches of images or clips, whose axes are channel, (time,) row and column."""

    def __init__(
        self,
        dim: int,
        size: Sequence[int],
        stride: Sequence[int],
        margins: Sequence[int],
        bias: bool = True,
    ) -> None:
        super().__init__()
        convolution: Any = nn.Conv2d if len(size) == 2 else nn.Conv3d
        self.proj = convolution(3, dim, (*size,), (*stride,), (*margins,), bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class MLP(nn.Module):
    """Applies two layers with an activation between them."""

    def __init__(self, dim: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        names = ("w12", "w3") if activation == "swiglu" else ("fc1", "fc2")
        self.add_module(names[0], nn.Linear(dim, hidden * (1 + (activation == "swiglu"))))
        self.add_module(names[1], nn.Linear(hidden, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.children()
        x = first(x)
        if self.activation == "swiglu":
            gate, value = x.chunk(2, dim=-1)
            return second(functional.silu(gate) * value)
        if self.activation == "quick_gelu":
            return second(x * torch.sigmoid(1.702 * x))
        return second(functional.gelu(x))
