"""Compute features of a pretrainer's three networks for the same clips and some weights (§3.1).

One process alone computes them, whatever devices the training has. The computation is compiled once
with the weights as arguments, so that each further look costs no more than a forward pass.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_vjepa.backend import device
from keras_vjepa.tasks.pretrainer import VJEPAPretrainer
from keras_vjepa.types import Batch, Tensor

PARTS = ("target", "context", "predictions")
# Number of clips that are encoded at a time, at most, and number of tokens kept of each.
MOST_CLIPS, TOKENS = 16, 16


@dataclass(frozen=True)
class Look:
    """Holds the features that a part of a pretrainer computes for some clips.

    Attributes:
        clips: `(clips, dim)`, the mean over the tokens of each clip.
        tokens: `(tokens, dim)`, some tokens of each clip.
    """

    clips: NDArray[np.float32]
    tokens: NDArray[np.float32]


def variables_of(pretrainer: VJEPAPretrainer) -> list[keras.Variable]:
    """List the weights that a look reads: those of both encoders and of the predictor."""
    networks = (pretrainer.target_encoder, pretrainer.encoder, pretrainer.predictor)
    return [variable for network in networks for variable in network.variables]


def make_looking(
    pretrainer: VJEPAPretrainer,
) -> Callable[[list[NDArray[Any]], Batch], dict[str, Look]]:
    """Make a function that computes the features of each of `PARTS` for given weights and a batch.

    The weights are values of `variables_of`. Context and predictions are those of the first kind of
    mask.

    Args:
        pretrainer: the pretrainer whose networks are measured.
    """
    variables = variables_of(pretrainer)

    def look(values: list[Tensor], batch: Batch) -> list[tuple[Tensor, Tensor]]:
        pairs = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=pairs):
            target = pretrainer.target_encoder(batch["videos"])
            context = pretrainer.encode_context(batch, 0)
            predictions = pretrainer.predictions(batch, 0, context)
        whole = ops.ones(ops.shape(target)[:2], "bool")
        valid = [whole, batch["context_indices_0"] >= 0, batch["target_indices_0"] >= 0]
        found = zip((target, context, predictions), valid, strict=True)
        return [_pooled_and_some(ops.cast(x, "float32"), mask) for x, mask in found]

    compiled = device.compiled_alone(look)

    def look_at(values: list[NDArray[Any]], batch: Batch) -> dict[str, Look]:
        tensors = [
            ops.convert_to_tensor(value, variable.dtype)
            for variable, value in zip(variables, values, strict=True)
        ]
        found: list[list[tuple[Tensor, Tensor]]] = []
        for chunk in _chunks(batch):
            found.append([(_host(a), _host(b)) for a, b in compiled(tensors, chunk)])
        return {
            part: Look(
                np.concatenate([one[position][0] for one in found]),
                _without_zeros(np.concatenate([one[position][1] for one in found])),
            )
            for position, part in enumerate(PARTS)
        }

    return look_at


def _pooled_and_some(features: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over valid tokens, and some of the tokens, with zeros for padding."""
    weights = ops.expand_dims(ops.cast(valid, "float32"), -1)
    count = ops.maximum(ops.sum(weights, axis=1), 1.0)
    length = int(features.shape[1])
    places = np.unique(np.linspace(0, length - 1, min(TOKENS, length)).round().astype("int32"))
    some = ops.take(features * weights, places, axis=1)
    return ops.sum(features * weights, axis=1) / count, some


def _without_zeros(tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = tokens.reshape(-1, tokens.shape[-1])
    there = rows.any(axis=1)
    # Rows of zeros are padding. A collapsed network may return nothing but zeros; then all rows are
    # kept.
    return rows[there] if there.sum() > 1 else rows


def _chunks(batch: Mapping[str, Any]) -> list[Batch]:
    """Split a batch into parts of the same size, so that one compiled program serves all."""
    count = len(batch["videos"])
    size = max(n for n in range(1, MOST_CLIPS + 1) if count % n == 0)
    names = ("videos", "context_indices_0", "target_indices_0")
    return [
        {name: batch[name][start : start + size] for name in names}
        for start in range(0, count, size)
    ]


def _host(tensor: Tensor) -> NDArray[np.float32]:
    return ops.convert_to_numpy(tensor)
