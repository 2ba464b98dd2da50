"""Turn the batches of epochs into a dataset for Keras' `fit` and `evaluate` (App. D.1)."""

from typing import Any, Protocol

import keras


class Epochs(Protocol):
    """Makes batches by epoch and index; `keras_vjepa.data` has classes of this kind."""

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches of an epoch."""

    def batch_of(self, epoch: int, index: int) -> Any:
        """Make a batch of an epoch."""


class EpochDataset(keras.utils.PyDataset):
    """Reads batches by threads, at most twice as many at a time as there are threads.

    Args:
        batches: the batches to read.
        num_workers: number of threads; each reads one batch at a time.

    Attributes:
        batches: as given; `batches.samples` and `batches.bad_files` say what is read.
        epoch: number of the next epoch.
        keeps_order: True, which tells `fit` to leave the batches in order: they are shuffled
            already, by a seed.

    Example:

    >>> from keras_vjepa.training.datasets import EpochDataset
    >>> class Squares:
    ...     steps_per_epoch = 3
    ...     def batch_of(self, epoch, index):
    ...         return index**2
    >>> list(EpochDataset(Squares()))
    [0, 1, 4]
    """

    keeps_order = True

    def __init__(self, batches: Epochs, num_workers: int = 2) -> None:
        super().__init__(workers=num_workers, use_multiprocessing=False, max_queue_size=num_workers)
        self.batches = batches
        self.epoch = 0

    def __len__(self) -> int:
        return self.batches.steps_per_epoch

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be in [0, {len(self)}). Received: {index}")
        return self.batches.batch_of(self.epoch, index)

    def on_epoch_end(self) -> None:
        """Go on to the next epoch; by now Keras has stopped the threads."""
        self.epoch += 1
