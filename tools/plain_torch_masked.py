"""Make pretraining steps of V-JEPA and VideoMAE in plain PyTorch (Table 5, Fig. 5b; App. B).

VideoMAE's follows the description of the official one: the encoder sees 20 of 196 patches, the same
in all time steps; a linear layer brings its tokens to the decoder's width; mask tokens with their
positions follow; the decoder's last layer gives the pixels of each hidden patch, normalised by the
patch's own mean and deviation; the loss is the mean square. For its speed it does not matter which
patches are hidden.
"""

from collections.abc import Callable

import torch
from torch import nn

from keras_vjepa.evaluation.pretraining_cost import VIDEOMAE
from keras_vjepa.models.backbone import SIZES
from keras_vjepa.tools.bench import TOKENS, make_batch
from keras_vjepa.tools.plain_torch_step import (
    Encoder,
    Predictor,
    Tensors,
    Training,
    device,
    host_batch,
    take,
)

Step = Callable[[], float]


def patches_of(videos: torch.Tensor, side: int = 16) -> torch.Tensor:
    """Cut videos `(batch, channels, frames, height, width)` into patches `(batch, tokens, values)`.

    Each patch spans two frames, and is normalised by its own mean and deviation, as VideoMAE's.
    """
    x = videos.unfold(2, 2, 2).unfold(3, side, side).unfold(4, side, side)
    # Colours are normalised one by one.
    x = x.permute(0, 2, 3, 4, 5, 6, 7, 1).flatten(1, 3).flatten(2, 4)
    x = (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True).sqrt() + 1e-6)
    return x.flatten(2)


class PixelTraining(Training):
    """Trains an encoder and a decoder of pixels, without a target encoder."""

    def loss(self, videos: torch.Tensor, context: Tensors, target: Tensors) -> torch.Tensor:
        """Compute the mean square of the errors of the hidden patches' pixels."""
        with torch.no_grad():
            wanted = take(patches_of(videos), target[0])
        encoded = self.encoder(videos, context[0])
        return (self.predictor(encoded, context[0], target[0], 0) - wanted).square().mean()

    def follow(self) -> None:
        """Do nothing, because nothing follows the encoder."""


def _encoder(size: str) -> Encoder:
    one = SIZES[size]
    return Encoder(one.hidden_dim, one.num_layers, one.num_heads).to(device())


def vjepa_step(size: str, batch_size: int, half: bool) -> Step:
    """Make V-JEPA's step: all tokens through the target encoder, two masks through the others.

    Args:
        size: a name of V-JEPA's sizes.
        batch_size: clips.
        half: whether it computes in bfloat16.

    Returns:
        A function that makes a step and returns the loss.
    """
    one, encoder = SIZES[size], _encoder(size)
    heads = one.num_heads if 384 % one.num_heads == 0 else 12
    predictor = Predictor(one.hidden_dim, 384, 12, heads).to(device())
    training = Training(encoder, predictor, half, measured=False)
    batch = host_batch(make_batch(batch_size), device() == "cuda")
    return lambda: training.step(*batch)


def videomae_step(size: str, batch_size: int, half: bool) -> Step:
    """Make VideoMAE's step; the arguments are as in `vjepa_step`."""
    of, encoder = VIDEOMAE[size], _encoder(size)
    width = of.decoder.hidden_dim
    decoder = Predictor(
        of.encoder.hidden_dim, width, of.decoder.num_layers, of.decoder_heads, TOKENS, 1
    )
    decoder.input_projection = nn.Linear(of.encoder.hidden_dim, width, bias=False)
    decoder.output_projection = nn.Linear(width, of.patch_values)
    training = PixelTraining(encoder, decoder.to(device()), half, measured=False)
    # It would take memory, and nothing reads it.
    del training.target_encoder
    videos, *_ = host_batch(make_batch(batch_size), device() == "cuda")
    order = torch.rand(batch_size, TOKENS).argsort(1)
    context, target = order[:, : of.visible].contiguous(), order[:, of.visible :].contiguous()
    return lambda: training.step(videos, [context], [target])
