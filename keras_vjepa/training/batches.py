"""Define what a run asks of its batches, and hand them to training as a stream (App. C)."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import keras


class Named(Protocol):
    """Describes a sample that has a name."""

    @property
    def path(self) -> str:
        """Return the sample's name, which for most is the path of a file."""

    @property
    def source(self) -> Any:
        """Return what is read: the path, or what a `keras_vjepa.data.Sample` has in its place."""


class Batches(Protocol):
    """Lists what a run asks of its batches; `keras_vjepa.data.ClipBatches` is one kind.

    Attributes:
        samples: the samples that the batches are made of.
        error: the error that ended a stream; None if there was none.
    """

    @property
    def samples(self) -> Sequence[Named]:
        """Return the samples that the batches are made of."""
        ...

    @property
    def error(self) -> Exception | None:
        """Return the error that ended a stream; None if there was none."""
        ...

    def batch(self, step: int) -> Any:
        """Make the batch of a step."""

    def stream(self, start: int = 0, stop: int | None = None) -> Generator[Any, None, None]:
        """Yield the batches of the steps from `start` up to `stop`; without `stop`, for ever."""

    def paths(self, step: int) -> list[str]:
        """List the files that the batch of a step is made of."""


@contextmanager
def opened(batches: Batches, start: int, stop: int | None = None) -> Iterator[Any]:
    """Lend the stream of batches for a `fit`, and end its threads afterwards.

    Args:
        batches: the batches.
        start: number of the first step.
        stop: number of the step before which it ends; None for a stream without an end.

    Yields:
        A generator of batches.

    Raises:
        Exception: the error that the data raised, unchanged; some backends would wrap it into
            pages of their own.
    """
    source = batches.stream(start, stop)
    try:
        yield source
    except Exception:
        if batches.error is not None:
            raise batches.error from None
        raise
    finally:
        # `close` fails while a thread of the backend still runs the generator. That thread then
        # ends it.
        with suppress(ValueError):
            source.close()


@dataclass
class Waiting:
    """Measures the time that training waits for batches.

    Attributes:
        seconds: the time waited for all batches so far.

    Example:

    >>> from keras_vjepa.training.batches import Waiting
    >>> waiting = Waiting()
    >>> list(waiting.timed(iter("ab"))), waiting.seconds < 1
    (['a', 'b'], True)
    """

    seconds: float = 0.0

    def timed(self, source: Iterator[Any]) -> Iterator[Any]:
        """Pass batches on, and add up the time spent waiting for them.

        Args:
            source: the batches.

        Yields:
            The batches.
        """
        end = object()
        while True:
            start = time.perf_counter()
            batch = next(source, end)
            self.seconds += time.perf_counter() - start
            if batch is end:
                return
            yield batch


class FirstSteps(keras.utils.PyDataset):
    """Yields the batches of the first steps, the same in every pass, for evaluations.

    Args:
        batches: the batches.
        steps: number of batches in a pass.
    """

    def __init__(self, batches: Batches, steps: int) -> None:
        # Each thread makes one batch; as many batches are read ahead as for training.
        workers = getattr(batches, "threads", 1)
        ahead = getattr(batches, "read_ahead", 1)
        super().__init__(workers=workers, use_multiprocessing=False, max_queue_size=ahead)
        self.batches = batches
        self.steps = steps
        self._error: Exception | None = None

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[Any]:
        try:
            return (self.batches.batch(index),)
        except Exception as error:
            self._error = error
            raise

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Let an error that the data raise within a block leave it unchanged, as in `opened`."""
        try:
            yield
        except Exception:
            if self._error is not None:
                raise self._error from None
            raise
