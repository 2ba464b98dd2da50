"""Gradients of several processes of torch are summed in few calls, whatever weights a model has."""

import keras
import numpy as np
import pytest

from keras_vjepa.backend import collectives

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
