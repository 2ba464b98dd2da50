"""Copy a network for the moving average of its weights (§3.1, App. F)."""

from typing import TypeVar

import keras

from keras_vjepa.backend import collectives

NetworkT = TypeVar("NetworkT", bound=keras.Model)


def averaged_copy(network: NetworkT, name: str) -> NetworkT:
    """Make a network that begins with the same weights, and is not trained.

    Args:
        network: the network whose weights are averaged.
        name: name of the copy.

    Returns:
        The copy. That of a network in half precision keeps its weights in float32.

    Example:

    >>> from keras_vjepa import VJEPABackbone
    >>> from keras_vjepa.models.averaged import averaged_copy
    >>> encoder = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    >>> averaged_copy(encoder, "target_encoder").trainable
    False
    """
    config = network.get_config()
    if network.dtype_policy.variable_dtype in ("bfloat16", "float16"):
        # In half precision the moving average would never change, because its steps are rounded to
        # zero.
        config["dtype"] = f"mixed_{network.dtype_policy.compute_dtype}"
    averaged = type(network).from_config({**config, "name": name})
    averaged.trainable = False
    # The weights are copied through NumPy, because JAX could not donate the training state if two
    # variables shared a buffer.
    averaged.set_weights(collectives.values(network.weights))
    return averaged


def check_unchanged(
    network: keras.Model, averaged: keras.Model, argument: str, model: str, purpose: str
) -> None:
    """Check that a network still has the variables that its copy has.

    Args:
        network: the network.
        averaged: its copy.
        argument: name of the argument that the network was given as.
        model: what holds both, in messages.
        purpose: what the copy is for, in messages.

    Raises:
        ValueError: if its variables are others, as they are with LoRA.
    """
    shapes = [[variable.shape for variable in one.variables] for one in (network, averaged)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"`{argument}` has changed since the {model} copied it {purpose}: enable LoRA or "
            f"quantize before the {model} is made."
        )
