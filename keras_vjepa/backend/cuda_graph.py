"""A training step recorded on a GPU and replayed, where a backend runs op by op (§3.1, App. C).

Compilers start a whole step at once. torch starts thousands of kernels from Python, one by one,
and at many sizes a GPU is done with one before the next is there. A recording (a CUDA graph) starts
them all, on the same memory, as they were started when it was made.
"""

import functools
import gc
import logging
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_vjepa.backend.collectives import is_alone
from keras_vjepa.backend.device import has_accelerator
from keras_vjepa.backend.keras_internals import stored_value
from keras_vjepa.backend.token_ops import runs_op_by_op
from keras_vjepa.types import Batch, Tensor

Step = Callable[[Batch], dict[str, Tensor]]

# What a first step sets up, kernels and workspaces, cannot be recorded.
_STEPS_BEFORE_RECORDING = 2
_LOG = logging.getLogger(__name__)


class RecordedStep:
    """A step, recorded when it pays: torch, one GPU, batches of one shape. Elsewhere as it is.

    The first two steps on batches of a shape run op by op, the third is recorded. Batches of
    another shape run op by op in between. Python code of the step runs while it is recorded only:
    as with compilers, what it reads from attributes is from then on a constant, and a new
    `compile` takes a new one. The memory of a step stays with its recording. A step that cannot be
    recorded, since it waits for the device, say, is warned of once and runs op by op.

    Args:
        step: takes a batch of tensors by name, returns logs; changes variables in place.
        variables: returns all variables that the step reads or changes. A recording is of the
            memory that they have; if one is given other memory, a new recording is made.

    Example:

    >>> import keras
    >>> from keras_vjepa.backend.cuda_graph import RecordedStep
    >>> count = keras.Variable(0.0)
    >>> step = RecordedStep(lambda batch: {"count": count.assign_add(batch["x"])}, lambda: [count])
    >>> float(step({"x": keras.ops.ones(())})["count"])
    1.0
    """

    def __init__(self, step: Step, variables: Callable[[], Sequence[keras.Variable]]) -> None:
        self._step = step
        self._variables = variables
        self._may_record = runs_op_by_op() and has_accelerator()
        self._shapes: Any = None
        self._steps_alike = 0
        self._recording: Any = None

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        if not (self._may_record and is_alone()):
            return self._step(batch)
        batch = {name: ops.convert_to_tensor(value) for name, value in batch.items()}
        if self._recording is not None and self._recording.fits(batch):
            return self._recording.replay(batch)
        shapes = _shapes(batch)
        self._steps_alike = self._steps_alike + 1 if shapes == self._shapes else 1
        self._shapes = shapes
        if self._steps_alike <= _STEPS_BEFORE_RECORDING:
            return _CudaGraph.run_beside(self._step, batch)
        self._recording = None  # First, so that two do not take memory.
        try:
            self._recording = _CudaGraph(self._step, batch, self._variables())
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            _LOG.warning("The step runs op by op: it could not be recorded (%s)", reason)
            self._may_record = False
            return self._step(batch)
        return self._recording.replay(batch)


def _shapes(batch: Batch) -> Any:
    return {name: (tuple(x.shape), x.dtype) for name, x in batch.items()}


@functools.cache
def _side_stream() -> Any:
    import torch

    return torch.cuda.Stream()


class _CudaGraph:
    """One recording of a step."""

    def __init__(self, step: Step, batch: Batch, variables: Sequence[keras.Variable]) -> None:
        import torch

        self._memory = [(variable, stored_value(variable)) for variable in variables]
        for _, value in self._memory:
            value.grad = None
        # What earlier backward passes were made of would run in their streams, which cannot be
        # recorded; Keras leaves it in cycles.
        gc.collect()
        self._batch = {name: value.clone() for name, value in batch.items()}
        self._graph = torch.cuda.CUDAGraph()
        # Another thread copies the next batch meanwhile; "global" would forbid it.
        mode = "thread_local"
        with torch.cuda.graph(self._graph, stream=_side_stream(), capture_error_mode=mode):
            self._logs = step(self._batch)

    @staticmethod
    def run_beside(step: Step, batch: Batch) -> dict[str, Tensor]:
        """The step in a stream of its own: what it sets up there is no part of a recording."""
        import torch

        current, beside = torch.cuda.current_stream(), _side_stream()
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            logs = step(batch)
        current.wait_stream(beside)
        return logs

    def fits(self, batch: Batch) -> bool:
        """Whether a replay is what the step would do."""
        return _shapes(batch) == _shapes(self._batch) and all(
            stored_value(variable) is value for variable, value in self._memory
        )

    def replay(self, batch: Batch) -> dict[str, Tensor]:
        for name, value in batch.items():
            self._batch[name].copy_(value, non_blocking=True)
        self._graph.replay()
        # The next replay writes where this one wrote.
        return {name: value.clone() for name, value in self._logs.items()}
