"""Find the largest batch of a pretraining run that fits into memory (App. C).

    keras-vjepa find-batch --config vitl16 --dtype mixed_bfloat16 --remat true
    keras-vjepa find-batch --memory 12

It takes the options of `pretrain`. Each size is tried in a process of its own, which makes three
steps on noise, so that running out of memory ends only that process. Without an accelerator, a size
is too large if the process has held more than --memory GiB. No data is read, and nothing is
written.
"""

import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import numpy as np

from keras_vjepa import command_line
from keras_vjepa.arguments import MOST_LONG, check_number, check_whole
from keras_vjepa.backend import device, distribution
from keras_vjepa.backend.device import memory_of_machine
from keras_vjepa.models.dimensions import height_and_width
from keras_vjepa.monitoring.step_log import memory_in_use
from keras_vjepa.pretraining_check import configured
from keras_vjepa.recipes import pretrain_configs
from keras_vjepa.recipes.pretrain_derived import check_options
from keras_vjepa.recipes.pretrain_objects import make_masks, make_pretrainer
from keras_vjepa.recipes.pretrain_parts import PretrainConfig

# The share of the machine's memory that a process may hold by default; other programs run too.
SHARE = 0.8
# After two steps everything is allocated; the third one is recorded by torch on a GPU.
STEPS = 3
# The search ends when the remaining sizes differ by no more than this share of the size.
CLOSE = 1 / 16
TOO_LARGE = 3
_OUT_OF_MEMORY = re.compile(r"out of memory|RESOURCE_EXHAUSTED|\bOOM\b|MemoryError|can't allocate")
_CHILD = "from keras_vjepa.tools.find_batch import try_here; try_here()"


@dataclass(frozen=True)
class FindBatchConfig(PretrainConfig):
    """Defines a pretraining run, and how much memory it may take.

    Attributes:
        memory: GiB that the process may hold if there is no accelerator; by default four fifths of
            the machine's memory.
        most: the largest batch to try.
    """

    memory: float | None = None
    most: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("(0, 1000000]", optional=True, memory=self.memory)
        check_whole(1, MOST_LONG, most=self.most)


def _with_limits(make: Callable[[], PretrainConfig]) -> Callable[[], FindBatchConfig]:
    def config() -> FindBatchConfig:
        made = make()
        return FindBatchConfig(**{one.name: getattr(made, one.name) for one in fields(made)})

    config.__doc__ = make.__doc__
    return config


CONFIGS = {name: _with_limits(make) for name, make in pretrain_configs.CONFIGS.items()}


def largest(fits: Callable[[int], bool], unit: int, most: int) -> tuple[int, int | None]:
    """Find the largest number that fits, nearly exactly.

    Args:
        fits: a function that tells whether a number fits; if one does not, no larger one does.
        unit: only multiples of this number are tried.
        most: the largest number to try.

    Returns:
        The largest number found to fit, or 0; and the smallest number found not to fit, or None if
        all fit.

    Example:

    >>> from keras_vjepa.tools.find_batch import largest
    >>> largest(lambda number: number <= 21, unit=2, most=1000)
    (20, 22)
    """
    low, high = 0, unit
    while high <= most and fits(high):
        low, high = high, 2 * high
    if high > most:
        return low, None
    while high - low > max(unit, low * CLOSE):
        middle = (low + high) // 2 // unit * unit
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, high


def try_batch(arguments: list[str], batch_size: int, memory: float) -> str | None:
    """Try a batch in a process of its own.

    Args:
        arguments: arguments of the command line.
        batch_size: the batch size to try.
        memory: GiB that the process may hold without an accelerator.

    Returns:
        Memory and time that it took, in words; None if it does not fit.

    Raises:
        RuntimeError: if the process ended for another reason.
    """
    given = [*arguments, f"--batch_size={batch_size}", f"--memory={memory}"]
    done = subprocess.run([sys.executable, "-c", _CHILD, *given], capture_output=True)
    said, problem = done.stdout.decode(), done.stderr.decode("utf-8", "replace")
    if done.returncode == 0:
        return said.splitlines()[-1]
    # If the system has killed the process (-9), the reason is its memory.
    if done.returncode in (TOO_LARGE, -9) or _OUT_OF_MEMORY.search(problem):
        return None
    raise RuntimeError(problem.strip().splitlines()[-1] if problem.strip() else "it ended silently")


def try_here() -> None:
    """Make some steps and print what they took; end the process if they take too much memory."""
    name, given, _ = command_line.parse("find-batch", __doc__ or "", CONFIGS)
    config = configured(CONFIGS[name](), given, say=False)
    if not device.has_accelerator():
        threading.Thread(target=_watch, args=((config.memory or 0) * 2**30,), daemon=True).start()
    parallel = distribution.setup(config.shard_parameters)
    pretrainer = make_pretrainer(config)
    batch_size, encoder = config.batches.batch_size, config.encoder
    rng = np.random.default_rng(0)
    shape = (batch_size, encoder.num_frames, *height_and_width(encoder.image_size), 3)
    batch = make_masks(config, pretrainer.encoder.grid_shape)(0, batch_size)
    batch["videos"] = rng.normal(size=shape).astype("float32")
    began = time.perf_counter()
    data = parallel.feed(itertools.repeat(batch, STEPS))
    history = pretrainer.fit(data, steps_per_epoch=STEPS, shuffle=False, verbose=0)
    seconds = time.perf_counter() - began
    assert history.history["loss"]
    held = (memory_in_use() or 0) / 2**30
    print(f"{held:.1f} GiB, {STEPS} steps and compiling them in {seconds:.0f} s")


def _watch(limit: float) -> None:
    while (memory_in_use() or 0) <= limit:
        time.sleep(0.05)
    # The process ends without cleaning up, because its next allocation may take the memory that
    # other programs need.
    os._exit(TOO_LARGE)


def main(arguments: list[str] | None = None, program: str = "find_batch.py") -> None:
    """Run the command, with `program` in front of its messages."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name, given, _ = command_line.parse(program, __doc__ or "", CONFIGS, arguments)
    with command_line.refusing(program, CONFIGS, arguments):
        config = configured(CONFIGS[name](), given)
        check_options(config)
    memory = config.memory or SHARE * (memory_of_machine() or 8 * 2**30) / 2**30

    def fits(batch_size: int) -> bool:
        found = try_batch(arguments, batch_size, memory)
        print(f"{batch_size}: {found or 'does not fit'}", file=sys.stderr, flush=True)
        return found is not None

    try:
        low, high = largest(fits, config.accumulation_steps, config.most)
    except RuntimeError as error:
        sys.exit(f"{program}: {error}")
    if not low:
        sys.exit(f"{program}: no batch fits; more accumulation_steps do not help, remat may")
    beyond = f"{high} does not fit" if high else f"{config.most} is the largest to try"
    print(f"--batch_size {low} fits, {beyond}.")


if __name__ == "__main__":
    main()
