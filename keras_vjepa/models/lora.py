"""Fine-tune with LoRA: learn changes of low rank to the projections of attention (App. D.1).

LoRA (Hu et al., 2021) goes beyond the paper, which trains probes on frozen features. The methods
are those of keras-hub's backbones; Keras' dense layers do the work.
"""

from pathlib import Path
from typing import Any, NamedTuple

import h5py
import keras
import numpy as np
from keras import ops

from keras_vjepa import files
from keras_vjepa.arguments import check_number, check_whole, shown
from keras_vjepa.backend.keras_internals import track_weights_anew
from keras_vjepa.layers.layer_states import KeepsLayerStates, layers_within
from keras_vjepa.named_errors import named
from keras_vjepa.presets.claims import numbers_held

_ENDING = ".lora.h5"
_MATRICES = ("lora_kernel_a", "lora_kernel_b")
_BIAS = "bias"
# Names of the layers that LoRA changes.
_TARGETS = ("query_key_value",)


class LowRankAdaptable(KeepsLayerStates):
    """Lets LoRA fine-tune a model: a few weights learn, and the others are frozen.

    After `enable_lora`, `trainable = True` means that the layers with LoRA learn, their kernels
    excepted, and nothing else of the model; set `trainable` of another layer to train that as well.

    Example:

    >>> from keras_vjepa import VJEPABackbone
    >>> backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    >>> backbone.enable_lora(rank=2)
    >>> [variable.name for variable in backbone.trainable_variables]
    ['bias', 'lora_kernel_a', 'lora_kernel_b']
    """

    takes_lora = True

    @property
    def trainable(self) -> bool:
        """Return whether the model learns; with LoRA, only the layers that have it do."""
        return super().trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        KeepsLayerStates.trainable.fset(self, value)
        if value and self.lora_rank is not None:
            within = dict(layers_within(self))
            for layer in within.values():
                layer.trainable = False
            for layer in _with_lora(self).values():
                layer.trainable = True
        self._freeze_own_weights()

    def restore_layer_states(self) -> None:
        """Set the states of the layers; with LoRA, also freeze weights that belong to no layer."""
        super().restore_layer_states()
        self._freeze_own_weights()

    def _freeze_own_weights(self) -> None:
        """Freeze the weights that the model itself holds, such as mask tokens, if it has LoRA."""
        if self.lora_rank is not None:
            of_layers = {id(v) for _, layer in layers_within(self) for v in layer.variables}
            for variable in self.variables:
                if id(variable) not in of_layers:
                    variable.trainable = False

    def enable_lora(self, rank: int, lora_alpha: float | None = None) -> None:
        """Freeze the model, and add matrices that learn to attention's fused projections.

        Compile the model again afterwards. The outputs do not change until the matrices have
        learnt.

        Args:
            rank: rank of the change of each kernel.
            lora_alpha: the change is scaled by `lora_alpha / rank`; None means `rank`.

        Raises:
            ValueError: if LoRA is enabled already, or `rank` is larger than a side of a kernel.
        """
        targets = [layer for _, layer in layers_within(self) if layer.name in _TARGETS]
        most = min(min(layer.kernel.shape) for layer in targets)
        check_whole(1, most, rank=rank)
        check_number("(0, inf)", optional=True, lora_alpha=lora_alpha)
        if _with_lora(self):
            raise ValueError("`enable_lora` must be called only once. Received: a model with LoRA")
        for layer in targets:
            layer.enable_lora(rank, lora_alpha)
        track_weights_anew(self)
        self.lora_rank = rank
        self.trainable = True

    def save_lora_weights(self, filepath: files.PathLike) -> None:
        """Write LoRA's matrices to a file with the biases that learn beside them, and nothing else.

        Args:
            filepath: the file, whose name must end in `.lora.h5`.

        Raises:
            ValueError: for a model without LoRA, and for another ending.
        """
        layers = _with_lora(self)
        if not layers:
            raise ValueError(
                "`enable_lora` must be called before `save_lora_weights`. Received: a model "
                "without LoRA"
            )
        if not str(filepath).endswith(_ENDING):
            raise ValueError(f"`filepath` must end in {_ENDING}. Received: {filepath}")
        with files.unfinished_file(filepath) as unfinished, h5py.File(unfinished, "w") as file:
            for path, layer in layers.items():
                group = file.create_group(path)
                group.attrs["lora_alpha"] = float(layer.lora_alpha)
                for name in _MATRICES:
                    group[name] = ops.convert_to_numpy(getattr(layer, name))
                if layer.bias is not None:
                    # HDF5 has no bfloat16.
                    group[_BIAS] = ops.convert_to_numpy(ops.cast(layer.bias, "float32"))

    def load_lora_weights(self, filepath: files.PathLike) -> None:
        """Read the file that `save_lora_weights` wrote; call `enable_lora` first if need be.

        Biases stay as they are if the file has none, as older files.

        Args:
            filepath: the file.

        Raises:
            ValueError: if the file is damaged, or of a model with other layers or another rank.
        """
        with named(filepath):
            found = _read(Path(filepath))
            ranks = {change.matrices[0].shape[-1] for change in found.values()}
            alphas = {change.alpha for change in found.values()}
            if not _with_lora(self) and len(ranks) == len(alphas) == 1:
                self.enable_lora(ranks.pop(), alphas.pop())
            layers = _with_lora(self)
            if layers.keys() != found.keys():
                raise ValueError(
                    f"it must hold LoRA weights of the model's {len(layers)} layers. "
                    f"Received: those of {len(found)} layers, not all of them the model's"
                )
            for path, layer in layers.items():
                found[path].check_fits(layer)
            for path, layer in layers.items():
                found[path].assign_to(layer)


class _Change(NamedTuple):
    """Holds what LoRA has learnt of one layer, as in a file."""

    matrices: list[np.ndarray]
    alpha: float
    bias: np.ndarray | None

    def check_fits(self, layer: Any) -> None:
        """Refuse a layer whose matrices or bias have other shapes."""
        shapes = [tuple(getattr(layer, name).shape) for name in _MATRICES]
        received = [matrix.shape for matrix in self.matrices]
        if received != shapes:
            raise ValueError(
                f"it must hold matrices of the shapes {shapes}, of rank "
                f"{layer.lora_rank}. Received: {received}"
            )
        width = None if layer.bias is None else tuple(layer.bias.shape)
        if self.bias is not None and self.bias.shape != width:
            raise ValueError(
                f"it must hold biases of the shape {width}. Received: {self.bias.shape}"
            )

    def assign_to(self, layer: Any) -> None:
        """Set the weights of a layer that it fits."""
        layer.lora_alpha = self.alpha
        for name, matrix in zip(_MATRICES, self.matrices, strict=True):
            getattr(layer, name).assign(matrix)
        if self.bias is not None:
            layer.bias.assign(self.bias)


def has_lora(model: keras.Model) -> bool:
    """Tell whether any layer of a model has LoRA enabled."""
    return bool(_with_lora(model))


def _with_lora(model: keras.Model) -> dict[str, Any]:
    """Return the layers within a model that have LoRA, by their paths."""
    return {
        path: layer for path, layer in layers_within(model) if getattr(layer, "lora_enabled", False)
    }


def _read(path: Path) -> dict[str, _Change]:
    """Read what LoRA has learnt of each layer from a file, by the layers' paths."""
    # Called for its check alone: it refuses a file that refers to data in other files.
    numbers_held(path)
    found = {}
    with h5py.File(path, "r") as file:

        def visit(name: str, group: Any) -> None:
            if isinstance(group, h5py.Group) and _MATRICES[0] in group:
                matrices = [np.asarray(group[matrix]) for matrix in _MATRICES]
                if any(matrix.ndim != 2 for matrix in matrices):
                    raise ValueError(f"{shown(name)} must hold two matrices")
                bias = np.asarray(group[_BIAS]) if _BIAS in group else None
                found[name] = _Change(matrices, float(group.attrs["lora_alpha"]), bias)

        file.visititems(visit)
    if not found:
        raise ValueError("it must hold weights of LoRA. Received: none")
    return found
