"""Compute the features of a hidden region, predicted and true, for the decoder (§6, Fig. 6a).

The predictor sees what is around the region, and gives the features that it expects within. The
decoder gets these alone, and never a feature or pixel of what is around.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_vjepa.backend import inference
from keras_vjepa.backend.step_functions import StepFunctions
from keras_vjepa.layers.embedding import gather_tokens
from keras_vjepa.models.diffusion_network import KINDS
from keras_vjepa.presets.fingerprints import fingerprint_of_weights
from keras_vjepa.tasks.decoder import FeatureDecoder
from keras_vjepa.tasks.pretrainer import VJEPAPretrainer
from keras_vjepa.types import Batch, Tensor

# The predictor gets the index of the first kind of mask. With the paper's masks, that is the kind
# that hides small blocks.
_KIND = 0
CONTEXT, TARGET = (f"{role}_indices_{_KIND}" for role in ("context", "target"))
# Parts of a batch in which samples are computed, so that there are as many programs at most.
_PARTS = 4


class RegionFeatures(StepFunctions, keras.Model):
    """Computes features of hidden regions with a frozen encoder and predictor.

    Args:
        pretrainer: a pretrained model with features as targets; it is frozen.

    Call arguments:
        inputs: a batch as `VJEPAPretrainer` takes it, of one kind of mask, without padding.

    Returns:
        A dictionary of float32 `(batch, targets, dim)`: `predicted`, and `target`, the target
        encoder's own features.

    Raises:
        ValueError: for a model that predicts pixels.

    Example:

    >>> from keras_vjepa import VJEPABackbone, VJEPAPredictor, VJEPAPretrainer
    >>> from keras_vjepa.tasks.region_features import RegionFeatures
    >>> encoder = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    >>> pretrainer = VJEPAPretrainer(encoder, VJEPAPredictor(24, (2, 2, 2), 12, 1, 2))
    >>> batch = {"videos": np.zeros((1, 4, 32, 32, 3), "float32")}
    >>> batch["context_indices_0"] = np.array([[0, 1, 2, 4, 5, 6]], "int32")
    >>> batch["target_indices_0"] = np.array([[3, 7]], "int32")
    >>> RegionFeatures(pretrainer).of(batch)["predicted"].shape
    (1, 2, 24)
    """

    def __init__(self, pretrainer: VJEPAPretrainer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if pretrainer.target != "features":
            raise ValueError(
                "`preset` must be of a model that was trained to predict features, with --target "
                f"features. Received: one that predicts {pretrainer.target}"
            )
        pretrainer.trainable = False
        self.pretrainer = pretrainer
        self.built = True

    def call(self, inputs: Batch) -> dict[str, Tensor]:
        return {"predicted": self._predicted(inputs), "target": self._target(inputs)}

    def _predicted(self, inputs: Batch) -> Tensor:
        return self.pretrainer.predictions(inputs, _KIND)

    def _target(self, inputs: Batch) -> Tensor:
        return gather_tokens(self.pretrainer.targets(inputs["videos"]), inputs[TARGET])

    def of(self, batch: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
        """Compute the features of a batch in one compiled call; see the call.

        Args:
            batch: arrays as in the call; others are left out.
        """
        given = {name: batch[name] for name in ("videos", CONTEXT, TARGET)}
        found = self.predict_on_batch(given)
        return {name: np.asarray(ops.convert_to_numpy(x), "float32") for name, x in found.items()}

    def of_kinds(
        self, batch: Mapping[str, Any], kinds: NDArray[np.integer], process_index: int = 0
    ) -> NDArray[np.float32]:
        """Compute for each sample of a batch only the features of its kind.

        Args:
            batch: arrays as in the call; others are left out.
            kinds: `(batch,)`, numbers of `KINDS`.
            process_index: number of this process, of which the batch is.

        Returns:
            `(batch, targets, dim)`; zeros for samples of kind "none".
        """
        given = {name: np.asarray(batch[name]) for name in ("videos", CONTEXT, TARGET)}
        found = np.zeros((*given[TARGET].shape, self.width), "float32")
        # Devices of JAX share whole batches. A process of TensorFlow computes its clips on one
        # device, because batches are made in a thread that must not wait for other processes.
        alone = keras.distribution.distribution() is None
        every = {} if alone else self._on_all_devices.own_rows(given, process_index)
        part = max(1, len(kinds) // _PARTS)
        for name, compute in self._compiled.items():
            rows = np.flatnonzero(kinds == KINDS.index(name))
            if not alone:
                found[rows] = every[name][rows]
            elif len(rows):
                filled = np.resize(rows, -(-len(rows) // part) * part)
                values = compute(*(array[filled] for array in given.values()))
                found[rows] = ops.convert_to_numpy(values)[: len(rows)]
        return found

    @functools.cached_property
    def _on_all_devices(self) -> inference.DistributedInference:
        """Return what computes all features of the clips of all processes."""
        return inference.DistributedInference(self)

    @functools.cached_property
    def _compiled(self) -> dict[str, Callable[..., Tensor]]:
        """Return compiled functions of videos, context and targets, by the kind of features."""

        def compiled(compute: Callable[[Batch], Tensor]) -> Callable[..., Tensor]:
            def of_arrays(videos: Tensor, context: Tensor, targets: Tensor) -> Tensor:
                return compute({"videos": videos, CONTEXT: context, TARGET: targets})

            return inference.compiled_beside(self, of_arrays)

        return {"predicted": compiled(self._predicted), "target": compiled(self._target)}

    @property
    def width(self) -> int:
        """Return the width of the features; of a V-JEPA 2.1, that of several levels."""
        return int(self.pretrainer.predictor.output_dim)

    @property
    def fingerprint(self) -> str:
        """Return a hash of all weights that the features come from."""
        return fingerprint_of_weights(self.pretrainer)


def check_made_for(decoder: FeatureDecoder, features: RegionFeatures, name: str) -> None:
    """Check that a decoder was trained on the features of a preset.

    Args:
        decoder: the decoder.
        features: the models of the preset.
        name: name of the preset as the user gave it.

    Raises:
        ValueError: for a preset of other sizes, for other weights, and for regions that leave
            nothing of the clip to predict from.
    """
    encoder = features.pretrainer.encoder
    width, grid = decoder.network.feature_dim, decoder.network.grid_shape
    if width != features.width:
        raise ValueError(
            f"`decoder` must be of this preset, whose features are {features.width} wide. "
            f"Received: one for features of {width}"
        )
    own = encoder.grid_shape
    if grid[0] != own[0] or any(a > b for a, b in zip(grid, own, strict=True)):
        raise ValueError(
            f"`decoder` must be of this preset, whose tokens are {_by(own)}. Received: one for "
            f"regions of {_by(grid)}"
        )
    if decoder.made_for and decoder.made_for != features.fingerprint:
        raise ValueError(
            "`decoder` must be trained on the features of this preset: train one with "
            f"`decode train --preset {name}`. Received: one that was trained on other weights"
        )
    frames = decoder.network.clip_shape[0]
    if frames != encoder.num_frames:
        raise ValueError(
            f"`decoder` must be of this preset, whose clips have {encoder.num_frames} frames. "
            f"Received: one for clips of {frames}"
        )
    if grid == own:
        raise ValueError(
            "`decoder` must be of regions that leave something of the clip to predict from. "
            f"Received: one for regions of {_by(grid)} tokens, all that there are"
        )


def _by(grid: tuple[int, ...]) -> str:
    return " x ".join(map(str, grid))
