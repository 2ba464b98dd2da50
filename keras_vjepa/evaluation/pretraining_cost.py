"""Count what pretraining costs: V-JEPA and masked autoencoders (App. E.2, Fig. 5).

FLOPs are those of matrix products, 2 for each multiply-add, and a backward pass counts twice. The
pixels need no gradient, so that the backward pass of the patches costs one product.

The published decoders of VideoMAE and VideoMAEv2, and how many tokens they see, are facts of their
repositories (MCG-NJU/VideoMAE, OpenGVLab/VideoMAEv2: models of pretraining and scripts).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Clips or images that a released model has seen, in millions, as the paper states them, by the
# preset's name (Tables 5, 7 and 16). For VideoMAE, it is Table 7's number for Kinetics-400; Table 5
# has 410, which in Table 7 is that of the model of Something-Something v2.
SAMPLES_SEEN = {
    "vjepa_large_patch16_224": 270,
    "vjepa_huge_patch16_224": 270,
    "vjepa_huge_patch16_384": 210,
    "videomae_large_patch16_224_kinetics400": 380,
    "videomae_huge_patch16_224_kinetics400": 380,
    "videomaev2_giant_patch14_224_hybrid": 1_600,
    "omnimae_large_patch16_224": 2_400,
    "hiera_large_16x224_mae": 770,
    "dinov2_giant_patch14": 1_900,
    "openclip_bigG_patch14_224_laion2b": 39_000,
}


def hours_of_samples(preset: str, seconds: float) -> float | None:
    """Compute how long a released model would take for all samples that it has seen.

    Args:
        preset: name of its preset.
        seconds: time of one sample's training step.

    Returns:
        Hours, or None if the paper has no number for the model.
    """
    seen = SAMPLES_SEEN.get(preset)
    return None if seen is None else seconds * seen * 1e6 / 3600


@dataclass(frozen=True)
class Transformer:
    """Describes blocks of attention and MLP by what their FLOPs depend on.

    Attributes:
        hidden_dim: width of a token.
        num_layers: number of blocks.
        mlp_dim: width of the MLP's hidden layer.
    """

    hidden_dim: int
    num_layers: int
    mlp_dim: int

    @classmethod
    def of(cls, model: Any) -> "Transformer":
        """Describe an encoder or a predictor by its attributes."""
        width = model.hidden_dim
        mlp_dim = getattr(model, "mlp_dim", None) or int(width * model.mlp_ratio)
        return cls(width, model.num_layers, mlp_dim)

    def flops(self, tokens: int) -> float:
        """Count the FLOPs of a forward pass of one sample.

        Args:
            tokens: number of tokens that attend to each other.
        """
        dim = self.hidden_dim
        linear = 2.0 * tokens * dim * (4 * dim + 2 * self.mlp_dim)
        return self.num_layers * linear + self.attention_flops(tokens)

    def attention_flops(self, tokens: int) -> float:
        """Count those FLOPs that are of attention itself, of queries by keys and of weights."""
        return self.num_layers * 4.0 * tokens**2 * self.hidden_dim


def vjepa_flops(
    encoder: Transformer,
    predictor: Transformer,
    patch_values: int,
    tokens: int,
    masks: Sequence[tuple[int, int]],
) -> float:
    """Count the FLOPs of one clip's training step of V-JEPA (§3.1, App. B).

    The target encoder sees all tokens; encoder and predictor work once for each kind of mask.

    Args:
        encoder: the encoder.
        predictor: the predictor.
        patch_values: numbers in a patch, over frames, rows, columns and colours.
        tokens: of a whole clip.
        masks: the context and the target tokens of each kind of mask.

    Example:

    >>> from keras_vjepa.evaluation.pretraining_cost import Transformer, vjepa_flops
    >>> large, predictor = Transformer(1024, 24, 4096), Transformer(384, 12, 1536)
    >>> clip = vjepa_flops(large, predictor, 1536, 1568, [(368, 752), (104, 1104)])
    >>> f"{clip / 1e12:.1f} TFLOP"
    '2.5 TFLOP'
    """
    patch = 2.0 * patch_values * encoder.hidden_dim
    total = encoder.flops(tokens) + tokens * patch
    for context, target in masks:
        projections = 2 * predictor.hidden_dim * encoder.hidden_dim * (context + target)
        trained = encoder.flops(context) + predictor.flops(context + target)
        total += 3 * (trained + projections) + 2 * context * patch
    return total


def vjepa_attention_flops(
    encoder: Transformer, predictor: Transformer, tokens: int, masks: Sequence[tuple[int, int]]
) -> float:
    """Count those FLOPs of `vjepa_flops` that are of attention itself; arguments are its own.

    Example:

    >>> from keras_vjepa.evaluation.pretraining_cost import Transformer, vjepa_attention_flops
    >>> large, predictor = Transformer(1024, 24, 4096), Transformer(384, 12, 1536)
    >>> clip = vjepa_attention_flops(large, predictor, 1568, [(368, 752), (104, 1104)])
    >>> f"{clip / 1e12:.2f} TFLOP"
    '0.43 TFLOP'
    """
    return encoder.attention_flops(tokens) + 3 * sum(
        encoder.attention_flops(context) + predictor.attention_flops(context + target)
        for context, target in masks
    )


@dataclass(frozen=True)
class MaskedAutoencoder:
    """Describes the pretraining of a masked autoencoder of clips.

    Attributes:
        encoder: sees the visible tokens.
        decoder: sees these, and a mask token for each token that it reconstructs.
        decoder_heads: attention heads of the decoder.
        patch_values: numbers in a patch, over frames, rows, columns and colours.
        visible: tokens that the encoder sees.
        reconstructed: tokens whose pixels the decoder predicts.
    """

    encoder: Transformer
    decoder: Transformer
    decoder_heads: int
    patch_values: int
    visible: int
    reconstructed: int

    @property
    def flops(self) -> float:
        """Count the FLOPs of one clip's training step."""
        wide, narrow = self.encoder.hidden_dim, self.decoder.hidden_dim
        decoded = self.visible + self.reconstructed
        trained = self.encoder.flops(self.visible) + self.decoder.flops(decoded)
        trained += 2.0 * self.visible * wide * narrow
        trained += 2.0 * self.reconstructed * narrow * self.patch_values
        return 3 * trained + 2 * self.visible * 2.0 * self.patch_values * wide


# VideoMAE masks the same 176 of 196 patches in all 8 time steps. VideoMAEv2 masks 230 of 256, and
# reconstructs half of the clip's 2,048 tokens.
VIDEOMAE = {
    name: MaskedAutoencoder(
        Transformer(dim, num_layers, 4 * dim),
        Transformer(width, depth, 4 * width),
        heads,
        patch_values=2 * 16 * 16 * 3,
        visible=8 * 20,
        reconstructed=8 * 176,
    )
    for name, dim, num_layers, width, depth, heads in (
        ("small", 384, 12, 192, 4, 3),
        ("base", 768, 12, 384, 4, 6),
        ("large", 1024, 24, 512, 12, 8),
        ("huge", 1280, 32, 640, 12, 8),
    )
}
VIDEOMAEV2_GIANT = MaskedAutoencoder(
    Transformer(1408, 40, 6144),
    Transformer(512, 4, 2048),
    decoder_heads=8,
    patch_values=2 * 14 * 14 * 3,
    visible=8 * 26,
    reconstructed=1024,
)
