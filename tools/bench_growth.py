"""Show how time and memory of a training step grow with its clips (App. C).

`keras-vjepa bench --growth` prints the table. Each line is measured in a process of its own, so
that its peak of memory is its own.
"""

import json
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from keras_vjepa.backend.device import memory_of_machine
from keras_vjepa.tools.find_batch import SHARE

# Clips of these sizes, one at a time, and then batches of the smallest.
IMAGE_SIZES = (112, 224, 384)
NUM_FRAMES = (16, 32, 64)
BATCH_SIZES = (2, 4, 8, 16, 32, 64)
# The line whose rate is the yardstick: the paper's clip.
PAPER = (224, 16, 1)


@dataclass(frozen=True)
class StepCost:
    """Holds what a training step costs.

    Attributes:
        seconds: of the fastest of the timed steps.
        memory: bytes that the process or the device held at most.
        flops: of the step, counted.
        tokens: of all clips of the batch, before masks.
        attention: those of `flops` that are of attention itself; 0 if they were not counted.
    """

    seconds: float
    memory: float
    flops: float
    tokens: int
    attention: float = 0.0


def points() -> list[tuple[int, int, int]]:
    """List the image size, the number of frames and the batch size of each line."""
    clips = [(size, frames, 1) for frames in NUM_FRAMES for size in IMAGE_SIZES]
    return clips + [(IMAGE_SIZES[0], NUM_FRAMES[0], batch) for batch in BATCH_SIZES]


def measure(arguments: Sequence[str], point: tuple[int, int, int]) -> StepCost | str:
    """Measure a step of `keras-vjepa bench` in a process of its own.

    Args:
        arguments: of `keras-vjepa bench`.
        point: image size, number of frames, batch size.

    Returns:
        What it costs, or, if the process failed, the last line that it wrote.
    """
    image_size, num_frames, batch_size = map(str, point)
    line = [sys.executable, "-m", "keras_vjepa", "bench", *arguments, "--json"]
    line += ["--image-size", image_size, "--num-frames", num_frames, "--batch-size", batch_size]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode == 0:
        return StepCost(**json.loads(done.stdout.splitlines()[-1]))
    # The system ends a process that takes too much memory without a word.
    said = [] if done.returncode < 0 else done.stderr.strip().splitlines()
    return (said or ["the system ended it: too little memory"])[-1]


def memory_by_tokens(costs: Collection[StepCost]) -> tuple[float, float]:
    """Fit the memory of steps by a constant and a share of each token.

    Relative errors count alike, so that a small step weighs as much as a large one.

    Args:
        costs: of at least two steps with different numbers of tokens.

    Returns:
        Bytes of a step without tokens (weights, moments, programs), and bytes of a token.

    Example:

    >>> from keras_vjepa.tools.bench_growth import StepCost, memory_by_tokens
    >>> steps = [StepCost(1.0, 100.0 + 3.0 * tokens, 1.0, tokens) for tokens in (10, 20, 80)]
    >>> [round(value, 6) for value in memory_by_tokens(steps)]
    [100.0, 3.0]
    """
    return _fitted([cost.memory for cost in costs], [(1.0, cost.tokens) for cost in costs])


def time_by_flops(costs: Collection[StepCost]) -> tuple[float, float]:
    """Fit the time of steps by a rate of attention and another of all other products.

    Attention computes fewer FLOPs in a second, and has a larger share of them in longer clips.

    Args:
        costs: of at least two steps in which attention has different shares.

    Returns:
        Seconds of a FLOP of attention, and of any other.

    Example:

    >>> from keras_vjepa.tools.bench_growth import StepCost, time_by_flops
    >>> steps = [StepCost(2.0 * n + 1.0, 1.0, n + 1.0, 1, float(n)) for n in (1, 2, 4)]
    >>> [round(value, 6) for value in time_by_flops(steps)]
    [2.0, 1.0]
    """
    kinds = [(cost.attention, cost.flops - cost.attention) for cost in costs]
    return _fitted([cost.seconds for cost in costs], kinds)


def _fitted(wholes: Sequence[float], parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Fit what each of two parts weighs in some wholes, by relative errors."""
    rows = np.array(parts, "float64") / np.array(wholes, "float64")[:, None]
    first, second = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]
    return float(first), float(second)


def too_heavy(
    costs: dict[tuple[int, int, int], StepCost], point: tuple[int, int, int], memory: float | None
) -> str | None:
    """Tell why a step is not to be tried: it would take more memory than there is.

    A step that does not fit can stop all else on a machine for minutes before the system ends it.

    Args:
        costs: of the steps that were measured, by image size, number of frames and batch size.
        point: those of the step.
        memory: bytes that it may take; None if they are not known.

    Returns:
        None for a step that may be tried, and for all steps before two sizes were measured.

    Example:

    >>> from keras_vjepa.tools.bench_growth import StepCost, too_heavy
    >>> sizes = {(112, 16, 1): 392, (224, 16, 1): 1568}
    >>> costs = {point: StepCost(1.0, 2**20 * n, 1.0, n) for point, n in sizes.items()}
    >>> too_heavy(costs, (384, 16, 1), memory=2**32)
    'it needs about 4.5 GiB, and may take 4.0'
    >>> too_heavy(costs, (224, 32, 1), memory=2**32) is None
    True
    """
    if memory is None or len({cost.tokens for cost in costs.values()}) < 2:
        return None
    constant, slope = memory_by_tokens(costs.values())
    known, cost = next(iter(costs.items()))
    needed = constant + slope * cost.tokens * _pixels(point) / _pixels(known)
    if needed <= memory:
        return None
    return f"it needs about {needed / 2**30:.1f} GiB, and may take {memory / 2**30:.1f}"


def _pixels(point: tuple[int, int, int]) -> int:
    image_size, num_frames, batch_size = point
    return image_size**2 * num_frames * batch_size


def growth_lines(costs: dict[tuple[int, int, int], StepCost]) -> list[str]:
    """Write each step's cost beside what theory expects.

    In theory time grows as FLOPs do, from the paper's clip, or from the first line if that one is
    missing; and memory is a constant plus a share of each token. If the FLOPs of attention are
    known, the last column has the time beside `time_by_flops`.

    Args:
        costs: of steps, by image size, number of frames and batch size.
    """
    yardstick = costs.get(PAPER, next(iter(costs.values())))
    rate = yardstick.flops / yardstick.seconds
    constant, slope = memory_by_tokens(costs.values())
    rates = _rates([*costs.values()])
    lines = ["pixels frames batch   tokens   TFLOP        s  of theory     GiB  of theory"]
    lines[0] += "  by two rates" if rates else ""
    times, memories, by_rates = [], [], []
    for (image_size, num_frames, batch_size), cost in costs.items():
        times.append(cost.seconds / (cost.flops / rate))
        memories.append(cost.memory / (constant + slope * cost.tokens))
        lines.append(
            f"{image_size:6d} {num_frames:6d} {batch_size:5d} {cost.tokens:8d} "
            f"{cost.flops / 1e12:7.3f} {cost.seconds:8.3f} {times[-1]:10.2f} "
            f"{cost.memory / 2**30:7.2f} {memories[-1]:10.2f}"
        )
        if rates:
            others = cost.flops - cost.attention
            by_rates.append(cost.seconds / (rates[0] * cost.attention + rates[1] * others))
            lines[-1] += f" {by_rates[-1]:13.2f}"
    if rates:
        lines.append(
            f"at most {max(by_rates):.2f} x the time by two rates ({1e-9 / rates[0]:.0f} GFLOP/s "
            f"of attention and {1e-9 / rates[1]:.0f} of all other products)"
        )
    lines.append(
        f"at most {max(times):.2f} x the time and {max(memories):.2f} x the memory in theory "
        f"({rate / 1e9:.0f} GFLOP/s; {constant / 2**30:.2f} GiB and {slope / 2**10:.0f} KiB a "
        "token)"
    )
    return lines


def _rates(costs: Sequence[StepCost]) -> tuple[float, float] | None:
    """Return what `time_by_flops` finds; None if the steps do not tell two rates apart."""
    shares = {round(cost.attention / cost.flops, 6) for cost in costs}
    return None if len(shares) < 2 or 0.0 in shares else time_by_flops(costs)


def print_growth(arguments: Sequence[str]) -> None:
    """Measure steps of all sizes, and print a table of what they cost.

    Args:
        arguments: of `keras-vjepa bench`, without sizes of clips and batches.

    Raises:
        RuntimeError: if hardly any step could be measured.
    """
    costs: dict[tuple[int, int, int], StepCost] = {}
    # No accelerator is asked for its own: it would be held by this process, and it says by itself,
    # and at once, that its memory does not do.
    machine = memory_of_machine()
    for number, point in enumerate(points(), 1):
        heavy = too_heavy(costs, point, machine and SHARE * machine)
        cost = heavy or measure(arguments, point)
        name = "{} pixels, {} frames, batch {}".format(*point)
        if isinstance(cost, StepCost):
            costs[point] = cost
        said = f"{cost.seconds:.3f} s" if isinstance(cost, StepCost) else f"left out: {cost}"
        print(f"{number} of {len(points())}: {name}: {said}", file=sys.stderr, flush=True)
    if len({cost.tokens for cost in costs.values()}) < 2:
        raise RuntimeError("fewer than two sizes could be measured; take a smaller --size")
    print("\n".join(growth_lines(costs)))
