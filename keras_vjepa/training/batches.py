"""Batches as training takes them: a function of the step, streamed while it lasts (App. C)."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import keras


class Named(Protocol):
    """A sample, by its name."""

    @property
    def path(self) -> str:
        """Its name, for most the path of a file."""

    @property
    def source(self) -> Any:
        """What is read: that path, or what `keras_vjepa.data.Sample` has in its place."""


class Batches(Protocol):
    """What a run asks of its batches; `keras_vjepa.data.ClipBatches` is one kind.

    Attributes:
        samples: what the batches are made of.
        error: what ended a stream, if anything did.
    """

    @property
    def samples(self) -> Sequence[Named]: ...

    @property
    def error(self) -> Exception | None: ...

    def batch(self, step: int) -> Any:
        """Make the batch of a step."""

    def stream(self, start: int = 0, stop: int | None = None) -> Generator[Any, None, None]:
        """Yield the batches of the steps from `start` to `stop`, or for ever."""

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
        Exception: what the data raised, as it raised it: some backends wrap it into pages of
            their own.
    """
    source = batches.stream(start, stop)
    try:
        yield source
    except Exception:
        if batches.error is not None:
            raise batches.error from None
        raise
    finally:
        # A backend's own thread may still be in it, and will then do so.
        with suppress(ValueError):
            source.close()


@dataclass
class Waiting:
    """The time that training has waited for batches.

    Attributes:
        seconds: of all batches so far.

    Example:

    >>> from keras_vjepa.training.batches import Waiting
    >>> waiting = Waiting()
    >>> list(waiting.timed(iter("ab"))), waiting.seconds < 1
    (['a', 'b'], True)
    """

    seconds: float = 0.0

    def timed(self, source: Iterator[Any]) -> Iterator[Any]:
        """Hand batches on, and take the time until each is there.

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
    """The batches of the first steps, the same in every pass: what an evaluation looks at.

    Args:
        batches: the batches.
        steps: how many of them.
    """

    def __init__(self, batches: Batches, steps: int) -> None:
        # Each thread makes a batch; as many wait as training has ahead.
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
        """Have what the data raised in a block leave it as it was raised, as in `opened`."""
        try:
            yield
        except Exception:
            if self._error is not None:
                raise self._error from None
            raise
