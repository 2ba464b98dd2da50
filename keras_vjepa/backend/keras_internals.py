"""List all private names of Keras and torch that the package uses, and check them (§3.1, App. C).

A private name may be gone in the next release, and some would be missed without an error: a method
that overrides nothing is simply never called. So each name is used here and nowhere else. `check`
looks for all of them when a model is compiled, and names one that is gone. The table below is the
list to go through for a new release of Keras or torch.
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras.src import backend

from keras_vjepa.types import Tensor

# The versions that were tested; pyproject.toml has the same.
KERAS_VERSIONS = "keras>=3.15,<3.17"
TORCH_VERSIONS = "torch>=2.6"

ALL_ENGINES = ("jax", "tensorflow", "torch")


@dataclasses.dataclass(frozen=True)
class PrivateName:
    """Describes an attribute of Keras or torch that is not part of their public interface.

    Attributes:
        name: the name of the attribute.
        owner: words for its owner, for the error message.
        find_owner: returns the class, module or instance that has the attribute.
        parameters: arguments that this package passes to it, or that Keras or torch passes to the
            method that overrides it.
        engines: the engines on which it is used.
        since: the first version of Keras that has it; older versions do not need it.
        requirement: what to install if it is gone.
    """

    name: str
    owner: str
    find_owner: Callable[[], Any]
    parameters: tuple[str, ...] = ()
    engines: tuple[str, ...] = ALL_ENGINES
    since: tuple[int, int] = (0, 0)
    requirement: str = KERAS_VERSIONS

    @property
    def is_used(self) -> bool:
        """Return whether the running engine and the installed Keras use the attribute."""
        return keras.config.backend() in self.engines and keras_version() >= self.since

    def check(self) -> None:
        """Raise unless the attribute is there and takes the arguments.

        Raises:
            RuntimeError: if not; the message names the attribute and the versions that have it.
        """
        owner = self.find_owner()
        if hasattr(owner, self.name):
            found = getattr(owner, self.name)
            if not self.parameters or {*self.parameters} <= {*inspect.signature(found).parameters}:
                return
        wanted = f"{self.owner}.{self.name}"
        if self.parameters:
            wanted += f"({', '.join(self.parameters)})"
        raise RuntimeError(
            f"keras_vjepa needs `{wanted}`. Found Keras {keras.__version__}{_torch_version()} "
            f"without it: pip install '{self.requirement}'"
        )


def keras_version() -> tuple[int, int]:
    """Return the major and minor version of the installed Keras."""
    major, minor = re.findall(r"\d+", keras.__version__)[:2]
    return int(major), int(minor)


def _torch_version() -> str:
    if keras.config.backend() != "torch":
        return ""
    import torch

    return f" and torch {torch.__version__}"


@functools.cache
def _a_variable() -> keras.Variable:
    return keras.Variable(0.0)


@functools.cache
def _an_optimizer() -> keras.optimizers.Optimizer:
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=2)
    optimizer.build([_a_variable()])
    return optimizer


@functools.cache
def _names_in_state_sync() -> Any:
    """Return an object with the names that Keras' own code for JAX reads in a loop over batches."""
    return type("Read", (), dict.fromkeys(keras.Model.jax_state_sync.__code__.co_names))


def _torch() -> Any:
    import torch

    return torch


def _of_torch(*names: str) -> list[PrivateName]:
    return [
        PrivateName(name, "torch", _torch, engines=("torch",), requirement=TORCH_VERSIONS)
        for name in names
    ]


def _of_a_module(name: str, *parameters: str) -> PrivateName:
    return PrivateName(
        name,
        "torch.nn.Module",
        lambda: _torch().nn.Module,
        parameters,
        engines=("torch",),
        requirement=TORCH_VERSIONS,
    )


@functools.cache
def _a_layer() -> keras.layers.Layer:
    return keras.layers.Layer()


# Functions that a user has attached to a module of torch.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

PRIVATE_NAMES: list[PrivateName] = [
    PrivateName("_value", "keras.Variable", _a_variable),
    PrivateName("_dtype", "keras.Variable", _a_variable, engines=("torch",)),
    PrivateName(
        "_flatten_layers",
        "keras.layers.Layer",
        lambda: keras.layers.Layer,
        ("include_self", "recursive"),
    ),
    PrivateName("_post_quantize", "keras.Model", lambda: keras.Model, ("mode",)),
    PrivateName("get_autocast_scope", "keras.src.backend", lambda: backend, engines=("torch",)),
    PrivateName("in_stateless_scope", "keras.src.backend", lambda: backend, engines=("jax",)),
    PrivateName("get_stateless_scope", "keras.src.backend", lambda: backend, engines=("jax",)),
    # Gradients that an optimizer accumulates, the number of batches, and the weights.
    PrivateName("_accumulated_gradients", "keras.optimizers.Optimizer", _an_optimizer),
    PrivateName("_iterations", "keras.optimizers.Optimizer", _an_optimizer),
    PrivateName("_trainable_variables", "keras.optimizers.Optimizer", _an_optimizer),
    # Functions that change all weights in a few calls.
    *_of_torch(
        "_foreach_add_",
        "_foreach_copy_",
        "_foreach_mul",
        "_foreach_mul_",
        "_foreach_norm",
        "_foreach_sub",
    ),
    PrivateName(
        "_flash_attention_forward",
        "torch.ops.aten",
        lambda: _torch().ops.aten,
        engines=("torch",),
        requirement=TORCH_VERSIONS,
    ),
    # What a call of a module does beside calling its `forward`, see `calls_nothing_else`.
    PrivateName(
        "_has_any_global_hook",
        "torch.nn.modules.module",
        lambda: _torch().nn.modules.module,
        engines=("torch",),
        requirement=TORCH_VERSIONS,
    ),
    *(
        PrivateName(
            name,
            "torch.nn.Module()",
            lambda: _torch().nn.Module(),
            engines=("torch",),
            requirement=TORCH_VERSIONS,
        )
        for name in (*_HOOKS, "_compiled_call_impl")
    ),
    PrivateName("_remat_mode", "keras.layers.Layer()", _a_layer),
    # Holds the weights that a step has made, while the variables hold none.
    PrivateName("_jax_state", "keras.Model", _names_in_state_sync, engines=("jax",)),
    # Overridden, see `Overrides`.
    PrivateName(
        "_maybe_symbolic_build",
        "keras.Model",
        lambda: keras.Model,
        ("iterator", "data_batch"),
        engines=("tensorflow",),
    ),
    # Overridden, see `torch_modules.TorchModule`.
    _of_a_module("_apply", "fn", "recurse"),
    _of_a_module("_save_to_state_dict", "destination", "prefix", "keep_vars"),
    _of_a_module(
        "_load_from_state_dict", "state_dict", "local_metadata", "missing_keys", "error_msgs"
    ),
    # Overridden, see `ExportedAsAsked`.
    PrivateName(
        "_default_save_signature",
        "keras.Model",
        lambda: keras.Model,
        engines=("tensorflow",),
    ),
    PrivateName(
        "_initialize_ddp", "keras.Model", lambda: keras.Model, engines=("torch",), since=(3, 16)
    ),
]


def check() -> None:
    """Raise unless the installed Keras and torch have every private name that is used here.

    It is called when a model is compiled, and takes less than a millisecond.

    Raises:
        RuntimeError: for the first name that is gone.

    Example:

    >>> from keras_vjepa.backend import keras_internals
    >>> keras_internals.check()
    """
    for private in PRIVATE_NAMES:
        if private.is_used:
            private.check()


# --- What is read or called ----------------------------------------------------------------------


def stored_value(variable: Any) -> Tensor:
    """Return the tensor that a variable holds, in the dtype it is kept in; a tensor as it is.

    `variable.value` first looks for scopes of dtypes and of states, and casts within a scope of
    dtypes. That often takes longer than the work on the result.
    """
    return variable._value if isinstance(variable, keras.Variable) else variable


def value_in_scope(variable: keras.Variable) -> Tensor:
    """Return the value of a variable in a `keras.StatelessScope`, in the dtype it is kept in."""
    value = None
    if backend.in_stateless_scope():
        value = backend.get_stateless_scope().get_current_value(variable)
    return stored_value(variable) if value is None else value


def follow_stored_dtype(variable: keras.Variable) -> None:
    """Tell a variable the dtype of its tensor, after torch has cast the tensor."""
    variable._dtype = keras.backend.standardize_dtype(variable._value.dtype)


def layers_of(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """List the layers that a layer holds directly, not those within them."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def track_weights_anew(model: keras.Model) -> None:
    """Tell torch which weights a model has, after layers were given new ones one by one.

    `model.quantize` does this by itself. Otherwise the torch module of a Keras model would go on
    with weights that were replaced, and not know new ones in layers that are held in lists.
    """
    model._post_quantize(None)


def autocast_dtype() -> str | None:
    """Return the dtype that weights are cast to when they are read; None if they are not cast."""
    scope = backend.get_autocast_scope()
    return None if scope is None else scope.dtype


def calls_nothing_else(layer: keras.layers.Layer) -> bool:
    """Tell whether torch and Keras do nothing in the call of a layer but call its `call`.

    They would do more for hooks, of the layer or of all modules, for `Module.compile`, for a
    `forward` of the layer's own, while torch traces, and within a `keras.RematScope`. Quantization
    is not looked at.

    Args:
        layer: the layer; torch only.
    """
    torch, own = _torch(), layer.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or own["_remat_mode"]
        or own.get("_compiled_call_impl")
        or "forward" in own
        or torch.nn.modules.module._has_any_global_hook()
        or torch.jit.is_tracing()
        or torch.compiler.is_compiling()
    )


def names_computed_again(layer: keras.layers.Layer) -> Sequence[str] | None:
    """Return the names of the `keras.RematScope` that a layer was made in; None if it has none.

    A scope has names in the mode `"list_of_layers"`, and in the mode None, which computes nothing
    again, an empty list of them.
    """
    scope = layer._remat_mode
    if scope is not None and scope.mode is None:
        return ()
    return None if scope is None or scope.mode != "list_of_layers" else scope.layer_names


def batch_count(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """Return the variable in which an optimizer counts batches, those without an update too."""
    return optimizer._iterations


def lend_state(model: keras.Model, state: Mapping[str, Sequence[Tensor]] | None) -> None:
    """Tell a model on JAX the values of its variables in a loop over batches; None after it.

    Keras itself does this after a step, and puts the values into the variables when the loop ends.
    """
    model._jax_state = state


def optimized_weights(optimizer: keras.optimizers.Optimizer) -> Sequence[keras.Variable]:
    """Return the weights that an optimizer was built for; none if it is not built."""
    return optimizer._trainable_variables


def gradient_accumulators(optimizer: keras.optimizers.Optimizer) -> Sequence[keras.Variable]:
    """Return the sums of gradients that a built optimizer keeps, in the order of its weights."""
    return optimizer._accumulated_gradients


def onednn_linear() -> Any:
    """Return torch's linear map by oneDNN, which has no gradient; None if torch has none.

    It is no part of the list above: without it everything works, only slower.
    """
    return getattr(_torch().ops.mkldnn, "_linear_pointwise", None)


def follows_ops() -> bool:
    """Tell whether torch transforms or watches each op that is called.

    It does within `torch.func`, within a level of `torch.autograd.forward_ad`, and within modes
    that record a program, count operations or make up tensors. An op that torch has no rule for
    would raise an error there, or be left out. Where torch does not say it, True is returned.
    """
    core, forward = _torch()._C, _torch().autograd.forward_ad
    transforms = getattr(core, "_are_functorch_transforms_active", lambda: True)
    modes = getattr(core, "_len_torch_dispatch_stack", lambda: 1)
    return transforms() or modes() > 0 or getattr(forward, "_current_level", 0) >= 0


def foreach(operation: str, *arguments: Any) -> Any:
    """Call an operation of torch for all tensors of a list at once.

    Args:
        operation: `"add_"`, `"copy_"`, `"mul"`, `"mul_"`, `"norm"` or `"sub"`.
        arguments: lists of tensors, and arguments that apply to all of them.
    """
    return getattr(_torch(), f"_foreach_{operation}")(*arguments)


def flash_attention(rows: Sequence[Tensor], edges: Tensor, most_tokens: int) -> Tensor:
    """Compute attention within parts of one row of tokens, by torch's kernel for NVIDIA's devices.

    `torch.nn.attention.varlen` calls the same kernel, but torch 2.6 does not have that module yet.

    Args:
        rows: query, key and value `(tokens, heads, head_dim)`.
        edges: int32 `(parts + 1,)`, where each part begins, and where the last one ends.
        most_tokens: the largest number of tokens of a part.

    Returns:
        `(tokens, heads, head_dim)`.
    """
    kernel = _torch().ops.aten._flash_attention_forward
    return kernel(*rows, edges, edges, most_tokens, most_tokens, 0.0, False, False)[0]


# --- What is overridden --------------------------------------------------------------------------


class Overrides:
    """Replaces methods of `keras.Model`, for the models that this package trains.

    It is a mixin, which must precede `keras.Model` among the bases of a model whose own step
    averages the gradients of all processes.

    Attributes:
        built_when_compiled: whether nothing is left for Keras to build after `compile`.
    """

    built_when_compiled = True
    skipped_a_build = False

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Build the model only if needed: Keras would in any case take a batch of data for it."""
        self.skipped_a_build = self.built_when_compiled
        if not self.built_when_compiled:
            super()._maybe_symbolic_build(iterator, data_batch)  # type: ignore[misc]

    def _initialize_ddp(self) -> None:
        """Do nothing: Keras 3.16 would average the gradients of torch's processes once more."""


class ExportedAsAsked:
    """Makes a SavedModel of a model with several inputs hold only the signature asked for.

    It is a mixin, which must precede `keras.Model` among the bases. Keras would add a signature for
    the shape that `build` was given, which would call the model with its first input alone.
    """

    _default_save_signature = None


def check_overrides(model: keras.Model) -> None:
    """Raise unless Keras called the methods of `Overrides` before a model's first step.

    Args:
        model: a model whose train function has been made.

    Raises:
        RuntimeError: if a method was not called; the message names it.
    """
    # Each of these has happened only if the method that prevents it was not called.
    wrapped = getattr(model, "ddp_model", None) is not None
    strategy = getattr(model, "distribute_strategy", None)
    took_a_batch = strategy is not None and strategy.num_replicas_in_sync > 1
    took_a_batch = took_a_batch and model.built_when_compiled and not model.skipped_a_build
    for name, happened in (("_initialize_ddp", wrapped), ("_maybe_symbolic_build", took_a_batch)):
        if happened:
            raise RuntimeError(
                f"keras_vjepa needs Keras to call `keras.Model.{name}`. Found Keras "
                f"{keras.__version__}, which does not: pip install '{KERAS_VERSIONS}'"
            )
