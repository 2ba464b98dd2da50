"""Gradients of several processes of torch are summed in few calls, whatever weights a model has."""

import keras
import numpy as np
import pytest

from keras_vjepa.backend import collectives
from tests.backend import data_parallel_worker as worker

pytestmark = pytest.mark.skipif(keras.config.backend() != "torch", reason="torch's processes only")


class TwoProcesses:
    """Stands in for `torch.distributed` where another process has three times each gradient."""

    def __init__(self):
        self.sizes = []

    def get_world_size(self):
        return 2

    def all_reduce(self, tensor, async_op):
        self.sizes.append((str(tensor.dtype), tensor.numel()))
        tensor.mul_(4)
        return self

    def wait(self):
        return True


def weights_of(shapes, dtypes):
    import torch

    torch.manual_seed(0)
    weights = [torch.randn(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    for weight in weights:
        weight.grad = torch.randn(weight.shape).to(weight.dtype)
    return weights


@pytest.mark.parametrize(("numbers", "calls"), [(1000, 2), (12, 3), (1, 7)])
def test_gradients_are_summed_many_at_a_time(numbers, calls, monkeypatch):
    import torch

    processes = TwoProcesses()
    monkeypatch.setattr(collectives, "joined_torch_processes", lambda: processes)
    monkeypatch.setattr(collectives, "_NUMBERS_AT_A_TIME", numbers)
    half, single = torch.bfloat16, torch.float32
    weights = weights_of([(3, 2), (2,), (4,), (), (1, 5), (3,)], [single, half, single] * 2)
    expected = [2 * weight.grad for weight in weights]
    found = collectives.average_gradients(weights)
    assert [one.dtype for one in found] == [one.dtype for one in weights]
    for one, mean in zip(found, expected, strict=True):
        torch.testing.assert_close(one, mean)
    # One number tells for each weight whether it is reached.
    assert len(processes.sizes) == calls and sum(n for _, n in processes.sizes) == 27
    assert all(size <= max(numbers, 6) for _, size in processes.sizes)
    assert all(weight.grad is None for weight in weights)


def test_a_weight_that_no_process_reaches_has_no_gradient(monkeypatch):
    monkeypatch.setattr(collectives, "joined_torch_processes", TwoProcesses)
    weights = weights_of([(3,), (2,)], [None, None])
    weights[1].grad = None
    first, second = collectives.average_gradients(weights)
    assert np.all(np.isfinite(first.numpy())) and second is None


def test_one_process_keeps_its_gradients(monkeypatch):
    monkeypatch.setattr(collectives, "joined_torch_processes", lambda: None)
    weights = weights_of([(3,), (2,)], [None, None])
    assert [one.grad for one in weights] == list(collectives.average_gradients(weights))


class Twins(TwoProcesses):
    """Stands in for `torch.distributed` where the other process computes the same."""

    def all_reduce(self, tensor, async_op=False):
        self.sizes.append((str(tensor.dtype), tensor.numel()))
        tensor.mul_(2)
        return self

    def broadcast(self, tensor, src):
        pass


def test_a_sum_starts_before_the_backward_pass_ends(monkeypatch):
    """In the same order, whichever gradients come first; the first weight's group comes last."""
    import torch

    processes = Twins()
    monkeypatch.setattr(collectives, "joined_torch_processes", lambda: processes)
    monkeypatch.setattr(collectives, "_NUMBERS_AT_A_TIME", 5)
    weights = [torch.ones(size, requires_grad=True) for size in (1, 2, 3, 4, 5)]
    started = []

    def pass_through(uses):
        """How many sums have been started when the gradient of each use is there."""
        averages = collectives.GradientAverages(weights)
        total = torch.zeros(())
        for use in uses:
            total = total + (3.0 * weights[use]).sum()
            total.register_hook(lambda _, use=use: started.append((use, len(processes.sizes))))
        with averages.summed_meanwhile(last_pass=False):
            total.backward(retain_graph=True)
        assert processes.sizes == []
        with averages.summed_meanwhile():
            total.backward()
        return averages.whole()

    for gradient, weight in zip(pass_through(range(5)), weights, strict=True):
        torch.testing.assert_close(gradient, 6 * torch.ones_like(weight))
    # When the pass comes to a weight, all sums of those after it have been started but one's.
    assert dict(started[5:])[0] >= 2 and started[-5:][0] == (4, 0)
    sizes = [size for _, size in processes.sizes]
    assert sizes == [5, 4, 3 + 2, 1, 5]  # The last sum tells which weights are reached.
    processes.sizes.clear()
    # The last weight is not used, so that its sum and all others wait for the end of the pass.
    gradients = pass_through([3, 1, 0, 2])
    assert [size for _, size in processes.sizes] == sizes and gradients[4] is None
    torch.testing.assert_close(gradients[0], torch.tensor([6.0]))


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("options", [{}, {"remat": True, "accumulation_steps": 3}])
def test_a_step_that_sums_meanwhile_is_the_step_of_one_process(dtype, options, monkeypatch):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        alone = worker.make_pretrainer(**options)
        expected = worker.train(worker.distribution.ALONE, alone)
        processes = Twins()
        monkeypatch.setattr(collectives, "joined_torch_processes", lambda: processes)
        monkeypatch.setattr(collectives, "_NUMBERS_AT_A_TIME", 500)
        whole, started = collectives.GradientAverages.whole, []

        def count_and_wait(averages):
            started.append(len(averages._sums) / len(averages._groups))
            return whole(averages)

        monkeypatch.setattr(collectives.GradientAverages, "whole", count_and_wait)
        twin = worker.make_pretrainer(**options)
        np.testing.assert_allclose(worker.train(worker.distribution.ALONE, twin), expected)
    finally:
        keras.config.set_dtype_policy(before)
    # In each step, the backward pass has started most sums; at least the last one waits for it.
    assert len(started) == 5 and all(0.5 < share < 1 for share in started)
    states = worker.state(alone), worker.state(twin)
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, rtol=0, atol=1e-6, err_msg=name)
