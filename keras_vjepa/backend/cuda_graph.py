"""Record a training step on a GPU and replay it, if the backend runs op by op (§3.1, App. C).

A compiled step starts as a whole. torch starts thousands of kernels from Python, one by one, and at
many sizes a GPU has finished one before the next arrives. A recording (a CUDA graph) starts them
all at once, on the same memory and in the same order as when it was made.
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

# The first steps set up kernels and workspaces, which cannot be recorded.
_STEPS_BEFORE_RECORDING = 2
_LOG = logging.getLogger(__name__)


class RecordedStep:
    """Records a step on torch with one GPU, and replays it for batches of the same shape.

    On other engines, and with several processes, the step runs as it is. The first two steps on
    batches of a shape run op by op, and the third is recorded; batches of another shape run op by
    op in between. The Python code of the step runs only while it is recorded. So, as with
    compilers, values that it reads from attributes are constants from then on, until the next
    `compile`. The memory of a step stays with its recording. If a step cannot be recorded, for
    instance because it waits for the device, there is one warning and it runs op by op.

    Args:
        step: takes a batch of tensors by name, returns logs, and changes variables in place.
        variables: returns all variables that the step reads or changes. A recording works on the
            memory of these variables; if a variable gets other memory, a new recording is made.

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
        self._recording = None  # The old recording frees its memory before the new one takes some.
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
    """Holds one recording of a step."""

    def __init__(self, step: Step, batch: Batch, variables: Sequence[keras.Variable]) -> None:
        import torch

        self._memory = [(variable, stored_value(variable)) for variable in variables]
        for _, value in self._memory:
            value.grad = None
        # Keras leaves the graphs of earlier backward passes in reference cycles. If Python freed
        # them while a step is recorded, this would run on their own streams, which a recording does
        # not allow.
        gc.collect()
        self._batch = {name: value.clone() for name, value in batch.items()}
        self._graph = torch.cuda.CUDAGraph()
        # Another thread may copy the next batch meanwhile, which "global" would forbid.
        mode = "thread_local"
        with torch.cuda.graph(self._graph, stream=_side_stream(), capture_error_mode=mode):
            self._logs = step(self._batch)

    @staticmethod
    def run_beside(step: Step, batch: Batch) -> dict[str, Tensor]:
        """Run the step in the stream of recordings, so that its set-up is done before one."""
        import torch

        current, beside = torch.cuda.current_stream(), _side_stream()
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            logs = step(batch)
        current.wait_stream(beside)
        return logs

    def fits(self, batch: Batch) -> bool:
        """Tell whether a replay does what the step would do with this batch."""
        return _shapes(batch) == _shapes(self._batch) and all(
            stored_value(variable) is value for variable, value in self._memory
        )

    def replay(self, batch: Batch) -> dict[str, Tensor]:
        """Run the recorded step on a batch, and return its logs."""
        for name, value in batch.items():
            self._batch[name].copy_(value, non_blocking=True)
        self._graph.replay()
        # The logs are copied, since the next replay overwrites them.
        return {name: value.clone() for name, value in self._logs.items()}
