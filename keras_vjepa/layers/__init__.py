"""Provide the transformers' Keras layers and the functions on their tokens (§3.3, App. B)."""

from keras_vjepa.layers.dense import TokenDense, TokenNorm
from keras_vjepa.layers.embedding import TubeletEmbedding, gather_tokens
from keras_vjepa.layers.pooling import AttentivePooler
from keras_vjepa.layers.positions import position_table, resample_position_table
from keras_vjepa.layers.roi_align import RoIAlign
from keras_vjepa.layers.rotary import make_rotations, rotate
from keras_vjepa.layers.transformer import SelfAttention, TransformerBlock

__all__ = [
    "AttentivePooler",
    "RoIAlign",
    "SelfAttention",
    "TokenDense",
    "TokenNorm",
    "TransformerBlock",
    "TubeletEmbedding",
    "gather_tokens",
    "make_rotations",
    "position_table",
    "resample_position_table",
    "rotate",
]
