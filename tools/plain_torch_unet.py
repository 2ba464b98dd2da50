"""Write the decoder's U-Net in plain PyTorch, to compare its time with ours (App. F).

It is `DiffusionNetwork` with factorized convolutions and a grid of features, written the way
PyTorch users write it: channels first, `Conv3d`, `GroupNorm`. It has as many weights. Beside it
stands a training step and a sampler.
"""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from keras_vjepa.models.diffusion import NoiseSchedule
from keras_vjepa.models.diffusion_network import KINDS, DiffusionNetwork, Stage
from keras_vjepa.types import Batch


class Convolution(nn.Sequential):
    """Convolves clips over space and then over time."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__(
            nn.Conv3d(channels, filters, (1, 3, 3), padding=(0, 1, 1)),
            nn.Conv3d(filters, filters, (3, 1, 1), padding=(1, 0, 0)),
        )


class Residual(nn.Module):
    """Adds two convolutions of a clip to it, scaled and shifted by a vector."""

    def __init__(self, stage: Stage, embedded: int, groups: int) -> None:
        super().__init__()
        channels, filters = stage.channels, stage.filters
        self.sampling = stage.sampling
        self.norm = nn.GroupNorm(np.gcd(groups, channels), channels)
        self.first = Convolution(channels, filters)
        self.scale_and_shift = nn.Linear(embedded, 2 * filters)
        self.second_norm = nn.GroupNorm(np.gcd(groups, filters), filters)
        self.second = Convolution(filters, filters)
        same = channels == filters
        self.skip: nn.Module = nn.Identity() if same else nn.Conv3d(channels, filters, 1)

    def resized(self, x: torch.Tensor) -> torch.Tensor:
        if self.sampling == "down":
            return functional.avg_pool3d(x, (1, 2, 2))
        return x if self.sampling == "same" else functional.interpolate(x, scale_factor=(1, 2, 2))

    def forward(self, x: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        inner = self.first(self.resized(functional.silu(self.norm(x))))
        told = self.scale_and_shift(functional.silu(vector))[:, :, None, None, None]
        scale, shift = told.chunk(2, dim=1)
        inner = functional.silu(self.second_norm(inner) * (1 + scale) + shift)
        return self.second(inner) + self.skip(self.resized(x))


class Attention(nn.Module):
    """Lets all places of a clip attend to each other."""

    def __init__(self, channels: int, head_dim: int, groups: int) -> None:
        super().__init__()
        self.heads = 1 if channels % head_dim else channels // head_dim
        self.norm = nn.GroupNorm(np.gcd(groups, channels), channels)
        self.projections = nn.Linear(channels, 3 * channels)
        self.output_projection = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        packed = self.projections(self.norm(x).flatten(2).transpose(1, 2))
        query, key, value = packed.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(query, key, value)
        found = self.output_projection(found.transpose(1, 2).flatten(2))
        return x + found.transpose(1, 2).unflatten(2, x.shape[2:])


class UNet(nn.Module):
    """Predicts the noise of clips as `DiffusionNetwork` does, of whose sizes it is made."""

    def __init__(self, like: DiffusionNetwork) -> None:
        super().__init__()
        embedded = 4 * like.width
        self.width, self.clip_shape, self.grid_shape = like.width, like.clip_shape, like.grid_shape
        self.time = nn.Sequential(
            nn.Linear(like.width, embedded), nn.SiLU(), nn.Linear(embedded, embedded)
        )
        self.of_features = nn.Linear(like.feature_dim, embedded)
        self.of_kinds = nn.Embedding(len(KINDS), embedded)
        pixels = int(np.prod(like.clip_shape)) // like.num_tokens
        self.laid_out = nn.Linear(like.feature_dim, pixels * like.grid_channels)
        self.first = Convolution(3 + like.grid_channels, like.width)
        self.stages = like._stages()
        self.blocks = nn.ModuleList(Residual(one, embedded, like.groups) for one in self.stages)
        self.attentions = nn.ModuleList(
            Attention(one.filters, like.head_dim, like.groups) for one in self.stages if one.attends
        )
        last = like.width * like.multipliers[0]
        self.norm = nn.GroupNorm(np.gcd(like.groups, last), last)
        self.last = Convolution(last, 3)

    def forward(
        self,
        clips: torch.Tensor,
        timesteps: torch.Tensor,
        features: torch.Tensor,
        kinds: torch.Tensor,
    ) -> torch.Tensor:
        features = features * (kinds > 0)[:, None, None]
        half = self.width // 2
        frequencies = torch.exp(-np.log(10_000) * torch.arange(half) / half)
        angles = timesteps[:, None] * frequencies
        vector = self.time(torch.cat([angles.cos(), angles.sin()], -1))
        vector = vector + self.of_kinds(kinds) + self.of_features(features.mean(1))
        x = self.first(torch.cat([clips, self._grid(features)], 1))
        kept, attentions = [x], iter(self.attentions)
        for one, block in zip(self.stages, self.blocks, strict=True):
            x = block(torch.cat([x, kept.pop()], 1) if one.joins else x, vector)
            x = next(attentions)(x) if one.attends else x
            if one.part == "down":
                kept.append(x)
        found: torch.Tensor = self.last(functional.silu(self.norm(x)))
        return found

    def _grid(self, features: torch.Tensor) -> torch.Tensor:
        clip, grid = self.clip_shape, self.grid_shape
        sides = [side // count for side, count in zip(clip, grid, strict=True)]
        x = self.laid_out(features).unflatten(-1, (*sides, -1))
        x = x.unflatten(1, grid).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.reshape(len(x), -1, *clip)


class Training:
    """Holds a U-Net, its moving average and its optimizer; makes steps and samples."""

    def __init__(self, like: DiffusionNetwork, rate: float = 2e-3, average: float = 0.995) -> None:
        self.network, self.average = UNet(like), average
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), rate, weight_decay=0.0)
        self.schedule = NoiseSchedule()
        self.shares = torch.tensor(self.schedule.signal_shares, dtype=torch.float32)

    def step(self, batch: Batch) -> float:
        """Make a training step with a batch of `FeatureDecoder`."""
        given = {name: torch.from_numpy(np.asarray(value)) for name, value in batch.items()}
        clips, noise = (given[name].permute(0, 4, 1, 2, 3).contiguous() for name in _PIXELS)
        share = self.shares[given["timesteps"].long()][:, None, None, None, None]
        noised = share.sqrt() * clips + (1 - share).sqrt() * noise
        condition = (given["timesteps"], given["features"], given["kinds"])
        loss = (self.network(noised, *condition) - noise).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            pairs = zip(self.averaged.parameters(), self.network.parameters(), strict=True)
            for mean, value in pairs:
                mean.lerp_(value, 1 - self.average)
        return float(loss.detach())

    @torch.no_grad()
    def sample(self, features: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
        """Draw clips by DDIM without noise."""
        count = len(features)
        given = torch.from_numpy(features)
        kinds = torch.ones(count, dtype=torch.int32)
        x = torch.randn(count, 3, *self.network.clip_shape)
        kept = self.schedule.kept(steps)
        before = [1.0, *self.shares[kept[:-1]].tolist()]
        for number in range(steps)[::-1]:
            share = float(self.shares[kept[number]])
            times = torch.full((count,), int(kept[number]))
            noise = self.averaged(x, times, given, kinds)
            clean = ((x - (1 - share) ** 0.5 * noise) / share**0.5).clamp(-1, 1)
            noise = (x - share**0.5 * clean) / (1 - share) ** 0.5
            x = before[number] ** 0.5 * clean + (1 - before[number]) ** 0.5 * noise
        return np.asarray(x.permute(0, 2, 3, 4, 1))


_PIXELS = ("clips", "noise")
