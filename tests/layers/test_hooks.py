"""torch's hooks, of a module and of all modules, are called for each part of a block."""

import keras
import numpy as np
import pytest

from tests.layers.small import OWNERS, PARTS, block, inputs_of, numpy, part_of

if keras.config.backend() == "torch":
    import torch.nn.modules.module as torch_module

    HOOKS = {
        "forward_pre": lambda m, f: m.register_forward_pre_hook(f),
        "forward_pre, with_kwargs": lambda m, f: m.register_forward_pre_hook(f, with_kwargs=True),
        "forward": lambda m, f: m.register_forward_hook(f),
        "forward, with_kwargs": lambda m, f: m.register_forward_hook(f, with_kwargs=True),
        "forward, always_call": lambda m, f: m.register_forward_hook(f, always_call=True),
        "full_backward_pre": lambda m, f: m.register_full_backward_pre_hook(f),
        "full_backward": lambda m, f: m.register_full_backward_hook(f),
        "backward": lambda m, f: m.register_backward_hook(f),
    }
    GLOBAL_HOOKS = {
        "forward_pre": torch_module.register_module_forward_pre_hook,
        "forward": torch_module.register_module_forward_hook,
        "full_backward_pre": torch_module.register_module_full_backward_pre_hook,
        "full_backward": torch_module.register_module_full_backward_hook,
        "backward": torch_module.register_module_backward_hook,
    }
else:
    HOOKS, GLOBAL_HOOKS = {}, {}
torch_only = pytest.mark.skipif(keras.config.backend() != "torch", reason="torch's hooks")


def with_gradient(owner):
    """The same inputs, of which floats ask for a gradient: so do hooks of the backward pass."""
    return [x.requires_grad_() if x.is_floating_point() else x for x in inputs_of(owner)]


@torch_only
@pytest.mark.parametrize("name", OWNERS)
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_of_each_part_are_called(hook, name):
    owner, seen = OWNERS[name](), []
    for path in PARTS:
        HOOKS[hook](part_of(owner, path), lambda part, *_, path=path: seen.append(path))
    owner(*with_gradient(owner)).sum().backward()
    assert sorted(seen) == sorted(PARTS)


@torch_only
@pytest.mark.parametrize("name", OWNERS)
@pytest.mark.parametrize("hook", GLOBAL_HOOKS)
def test_hooks_of_all_modules_are_called(hook, name):
    owner, seen = OWNERS[name](), []
    handle = GLOBAL_HOOKS[hook](lambda module, *_: seen.append(module))
    try:
        owner(*with_gradient(owner)).sum().backward()
    finally:
        handle.remove()
        # torch does not allow both kinds of backward hooks in one process, and remembers which it
        # had.
        torch_module._global_is_full_backward_hook = None
    for part in [part_of(owner, path) for path in PARTS] + getattr(owner, "blocks", []):
        assert sum(module is part for module in seen) == 1, part.name


@torch_only
def test_a_hook_changes_what_a_part_gives():
    owner = block()
    tokens = inputs_of(owner)[0]
    owner.mlp_output.register_forward_hook(lambda part, inputs, output: 0.0 * output)
    expected = tokens + owner.attention_branch(tokens)
    np.testing.assert_allclose(numpy(owner(tokens)), numpy(expected), atol=1e-6)


@torch_only
@pytest.mark.parametrize("name", OWNERS)
def test_a_forward_of_a_part_s_own_is_called(name):
    """Programs that move weights between devices replace it, as accelerate does."""
    owner, seen = OWNERS[name](), []
    for path in PARTS:
        part = part_of(owner, path)

        def forward(*inputs, path=path, part=part):
            seen.append(path)
            return type(part).forward(part, *inputs)

        part.forward = forward
    owner(*inputs_of(owner))
    assert sorted(seen) == sorted(PARTS)


@torch_only
def test_parts_that_torch_compiles_are_called_so():
    owner, seen = block(), []
    for path in PARTS:
        part = part_of(owner, path)

        def compiled(*inputs, path=path, part=part):
            seen.append(path)
            return part.forward(*inputs)

        # As `torch.nn.Module.compile` sets it.
        part._compiled_call_impl = compiled
    owner(*inputs_of(owner))
    assert sorted(seen) == sorted(PARTS)
