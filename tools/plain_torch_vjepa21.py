"""Write V-JEPA 2.1's encoder in plain PyTorch, to compare its time with ours (vjepa21.md).

Rotary positions turn two channels of a pair by one angle; the angles are computed once.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from keras_vjepa.tools.plain_torch_step import Block

_LARGEST_PERIOD = 10_000.0


def angles(grid: tuple[int, int, int], width: int, reach: float) -> torch.Tensor:
    """Compute the angle of each channel of a head at each token, `(tokens, width)`."""
    steps, rows, columns = grid
    scales = (1.0, reach / max(rows - 1, 1), reach / max(columns - 1, 1))
    places = torch.cartesian_prod(*map(torch.arange, (steps, rows, columns)))
    own = 2 * (width // 3 // 2)
    frequencies = _LARGEST_PERIOD ** -(torch.arange(own // 2) / (own / 2))
    found = [
        (places[:, axis, None] * scale * frequencies).repeat_interleave(2, -1)
        for axis, scale in enumerate(scales)
    ]
    return torch.cat([*found, torch.zeros(len(places), width - 3 * own)], -1)


class RotaryBlock(Block):
    """Applies attention with rotated queries and keys, and an MLP."""

    def forward(self, x: torch.Tensor, turns: tuple[torch.Tensor, ...] = ()) -> torch.Tensor:
        cosines, sines = turns
        packed = self.query_key_value(self.attention_norm(x))
        query, key, value = packed.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = (
            one * cosines + torch.stack([-one[..., 1::2], one[..., ::2]], -1).flatten(-2) * sines
            for one in (query, key)
        )
        found = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.output_projection(found.transpose(1, 2).flatten(2))
        return x + self.mlp_output(functional.gelu(self.mlp_hidden(self.mlp_norm(x))))


class Encoder(nn.Module):
    """Computes features of videos, `(batch, tokens, dim)`, with the sizes of a backbone."""

    def __init__(self, like: Any) -> None:
        super().__init__()
        dim, sides = like.hidden_dim, (like.tubelet_size, like.patch_size, like.patch_size)
        self.tubelet_embedding = nn.Conv3d(3, dim, sides, sides)
        self.modality = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(RotaryBlock(dim, like.num_heads) for _ in like.blocks)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        turned = angles(like.grid_shape, dim // like.num_heads, like.position_reach)
        self.turns = (turned.cos(), turned.sin())

    @torch.no_grad()
    def features(self, videos: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the features of videos `(batch, frames, height, width, channels)`."""
        pixels = torch.from_numpy(videos).permute(0, 4, 1, 2, 3)
        x = self.tubelet_embedding(pixels).flatten(2).transpose(1, 2) + self.modality
        for block in self.blocks:
            x = block(x, self.turns)
        return np.asarray(self.norm(x))
