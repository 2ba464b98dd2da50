"""Compute Hiera in plain PyTorch, to compare with; see `plain_torch_rivals.py` (App. D.1)."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from keras_vjepa.models.families import HieraBackbone
from keras_vjepa.models.families.hiera_arguments import stem
from keras_vjepa.tools.plain_torch_parts import MLP, Patches


@dataclasses.dataclass(frozen=True)
class HieraStep:
    """Holds the switches of one of Hiera's blocks.

    Attributes:
        dim: width of the tokens that come in.
        dim_out: width of those that come out.
        num_heads: attention heads.
        windows: of the attention; 1 for attention of all tokens.
        pool: tokens that become one, 4 or 1.
    """

    dim: int
    dim_out: int
    num_heads: int
    windows: int
    pool: int


class WindowAttention(nn.Module):
    """Lets tokens attend within windows, which are the fastest part of their axis."""

    def __init__(self, step: HieraStep) -> None:
        super().__init__()
        self.step = step
        self.qkv = nn.Linear(step.dim, 3 * step.dim_out)
        self.proj = nn.Linear(step.dim_out, step.dim_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        packed = self.qkv(x).unflatten(1, (-1, self.step.windows))
        packed = packed.unflatten(-1, (3, self.step.num_heads, -1)).permute(3, 0, 4, 2, 1, 5)
        query, key, value = packed.unbind()
        if self.step.pool > 1:
            query = query.unflatten(3, (self.step.pool, -1)).amax(3)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.permute(0, 3, 2, 1, 4).flatten(1, 2).flatten(2))


class HieraBlock(nn.Module):
    """Applies attention, which may pool, and an MLP."""

    def __init__(self, step: HieraStep) -> None:
        super().__init__()
        self.pool = step.pool
        self.norm1 = nn.LayerNorm(step.dim, eps=1e-6)
        self.attn = WindowAttention(step)
        self.norm2 = nn.LayerNorm(step.dim_out, eps=1e-6)
        self.mlp = MLP(step.dim_out, 4 * step.dim_out, "gelu")
        self.proj = nn.Linear(step.dim, step.dim_out) if step.dim != step.dim_out else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed, shortcut = self.norm1(x), x
        if self.proj is not None:
            shortcut = self.proj(normed).unflatten(1, (self.pool, -1)).amax(1)
        x = shortcut + self.attn(normed)
        return x + self.mlp(self.norm2(x))


class Hiera(nn.Module):
    """Encodes clips or images as a `HieraBackbone` whose features are the last stage's.

    Args:
        of: a backbone with the architecture.
    """

    def __init__(self, of: HieraBackbone) -> None:
        super().__init__()
        kernel, stride = (part[of.is_image_model :] for part in stem(of.num_frames))
        margins = [size // 2 for size in kernel]
        self.patch_embed = Patches(of.embed_dim, kernel, stride, margins)
        self.grid: Sequence[int] = of.patch_grid
        time, places = self.grid[0], self.grid[1] * self.grid[2]
        if of.is_image_model:
            self.pos_embed = nn.Parameter(torch.randn(1, places, of.embed_dim))
        else:
            self.pos_embed_spatial = nn.Parameter(torch.randn(1, places, of.embed_dim))
            self.pos_embed_temporal = nn.Parameter(torch.randn(1, time, of.embed_dim))
        self.blocks = nn.ModuleList(HieraBlock(step) for step in self.steps(of))
        self.norm = nn.LayerNorm(of.hidden_dim, eps=1e-6) if of.final_norm else nn.Identity()

    @staticmethod
    def steps(of: HieraBackbone) -> list[HieraStep]:
        """List the switches of the blocks; a stage's first block attends as the stage before."""
        time, rows, columns = of.patch_grid
        windows, made, dim = time * (rows // 8) * (columns // 8), [], of.embed_dim
        for stage, depth in enumerate(of.depths):
            for number in range(depth):
                is_first = stage > 0 and number == 0
                local, pool = stage - is_first < 2, 4 if is_first and stage <= of.num_pools else 1
                width, heads = of.embed_dim * 2**stage, of.embed_heads * 2**stage
                made.append(HieraStep(dim, width, heads, windows if local else 1, pool))
                dim = width
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x)
        if hasattr(self, "pos_embed"):
            x = x + self.pos_embed
        else:
            table = self.pos_embed_temporal[:, :, None] + self.pos_embed_spatial[:, None]
            x = x + table.flatten(1, 2)
        x = x.unflatten(1, (1, *self.grid))
        for _ in range(3):
            x = x.unflatten(3, (-1, 2)).unflatten(5, (-1, 2)).permute(0, 1, 4, 6, 2, 3, 5, 7)
            x = x.flatten(1, 3)
        x = x.flatten(1, 4)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
