"""Show what more devices gain in a training step, and that they change no result (App. C).

`keras-vjepa bench --scaling` prints the table. Each number of devices is measured in processes of
its own: as many as devices on torch and without accelerators, where each has its share of the
cores, and one for all accelerators on JAX and TensorFlow.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import keras_vjepa

# isort: split
import keras
import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.arguments import counted
from keras_vjepa.backend import collectives, distribution, engine
from keras_vjepa.data.batches.mask_kinds import MultiBlockMask
from keras_vjepa.data.batches.mask_sampler import MaskSampler
from keras_vjepa.data.batches.workers import usable_cores
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.models.predictor import VJEPAPredictor
from keras_vjepa.tasks.pretrainer import VJEPAPretrainer
from keras_vjepa.tools.child_runs import core_shares, on_cores
from keras_vjepa.training.optimizer import AdamW

Floats = NDArray[np.float64]

# Steps after which weights are compared.
_STEPS = 5
_POLL_SECONDS = 0.05
# Processes of a run without accelerators, unless it is said how many.
_PROCESSES = 2


@dataclass(frozen=True)
class ScalingLine:
    """Holds what was measured with a number of devices.

    Attributes:
        devices: number of devices.
        clips: of a step, on all devices together.
        seconds: of a step.
        difference: the largest difference of a weight from that of one device.
    """

    devices: int
    clips: int
    seconds: float
    difference: float


@dataclass(frozen=True)
class Machine:
    """Describes the devices of a machine.

    Attributes:
        name: what they are.
        devices: how many there are: accelerators, or cores if there is none.
        accelerated: whether they are accelerators.
    """

    name: str
    devices: int
    accelerated: bool


def machine() -> Machine:
    """Look what devices there are, in a process of its own: one that looks may take their memory.

    Raises:
        RuntimeError: if that process fails; the message is the last line that it wrote.
    """
    script = "import json, keras_vjepa; from keras_vjepa.backend import device; "
    script += "print(json.dumps(device.accelerators()))"
    names = json.loads(_run([sys.executable, "-c", script], [{}], [set()]).splitlines()[-1])
    if names:
        return Machine(" and ".join(sorted({*names})), len(names), True)
    return Machine("processes without accelerators", usable_cores(), False)


def counts(most: int) -> list[int]:
    """List numbers of devices: 1, 2, 4 and so on, and the largest.

    Example:

    >>> from keras_vjepa.tools.bench_scaling import counts
    >>> counts(6)
    [1, 2, 4, 6]
    """
    return sorted({most, *(2**power for power in range(most.bit_length()))})


def check_devices(devices: int | None, found: Machine) -> int:
    """Return the largest number of devices to measure, or raise if there are not so many.

    Args:
        devices: the number that was asked for; None takes all accelerators, or two processes.
        found: what there is.

    Raises:
        ValueError: if there are fewer, or fewer than 2.
    """
    here = f"{found.devices} {'of ' + found.name if found.accelerated else 'cores'}"
    if found.devices < 2:
        raise ValueError(f"`scaling` needs at least 2 devices. Found {here}")
    if devices is not None and devices > found.devices:
        raise ValueError(
            f"`devices` must be at most those that are here, {here}. Received: {devices}"
        )
    return devices or (found.devices if found.accelerated else _PROCESSES)


def scaling_lines(lines: Sequence[ScalingLine], change: float) -> list[str]:
    """Write the table.

    Args:
        lines: what was measured, of one device first.
        change: the largest change of a weight on one device in the steps that are compared.
    """
    text = ["devices  clips a step   s a step   clips/s  x one device  of ideal  weights differ by"]
    rates = [line.clips / line.seconds for line in lines]
    for line, rate in zip(lines, rates, strict=True):
        gain = rate / rates[0]
        text.append(
            f"{line.devices:7d} {line.clips:13d} {line.seconds:10.3f} {rate:9.3f} {gain:13.2f} "
            f"{gain * lines[0].devices / line.devices:9.0%} {line.difference:18.1e}"
        )
    text.append(
        f"weights: the largest difference from one device after {_STEPS} steps with the same "
        f"clips, which changed a weight by up to {change:.1e}"
    )
    return text


def print_scaling(arguments: Sequence[str], batch_size: int, found: Machine, most: int) -> None:
    """Measure steps on more and more devices, and print a table to look at and to send on.

    Args:
        arguments: of `keras-vjepa bench`, without the size of a batch.
        batch_size: clips of a device.
        found: what devices there are.
        most: the largest number of them that is measured.

    Raises:
        RuntimeError: if one device alone cannot be measured; the message says why.
    """
    numbers = counts(most)
    lines, alone, change = list[ScalingLine](), dict[str, Floats](), 0.0
    for number in numbers:
        here = _Devices(found, number, most)
        try:
            seconds = here.seconds_of_a_step(arguments, batch_size)
            weights, changes = here.trained(int(np.lcm.reduce(numbers)))
        except RuntimeError as error:
            if number == 1:
                raise
            print(f"{number} devices: left out: {error}", file=sys.stderr, flush=True)
            continue
        if not alone:
            alone, change = weights, _largest(changes)
        difference = _largest({name: weights[name] - alone[name] for name in alone})
        lines.append(ScalingLine(number, batch_size * number, seconds, difference))
        print(f"{counted(number, 'device')}: {seconds:.3f} s", file=sys.stderr, flush=True)
    versions = [f"keras_vjepa {keras_vjepa.__version__}", engine.name_and_version()]
    print(", ".join([*versions, found.name]))
    print("\n".join(scaling_lines(lines, change)))


def _largest(arrays: Mapping[str, Floats]) -> float:
    return max(float(np.abs(array).max()) for array in arrays.values())


@dataclass(frozen=True)
class _Devices:
    """Runs commands on some devices of a machine.

    Attributes:
        machine: the machine.
        count: number of the devices.
        most: the largest number of devices that is measured: without accelerators, each process has
            its share of the cores, however many processes there are.
    """

    machine: Machine
    count: int
    most: int

    @property
    def processes(self) -> int:
        """Return how many processes drive the devices."""
        return distribution.processes_for(self.count) if self.machine.accelerated else self.count

    def run(self, command: Sequence[str]) -> str:
        """Run a command, and return what its first process prints."""
        environments = distribution.environments(self.processes)
        if not self.machine.accelerated:
            return _run(command, environments, core_shares(self.most)[: self.count])
        names = os.environ.get("CUDA_VISIBLE_DEVICES", "") or ",".join(map(str, range(self.count)))
        chosen = {"CUDA_VISIBLE_DEVICES": ",".join(names.split(",")[: self.count])}
        return _run(command, [{**one, **chosen} for one in environments], [set()] * self.processes)

    def seconds_of_a_step(self, arguments: Sequence[str], batch_size: int) -> float:
        """Return the seconds of a step of `keras-vjepa bench`, with so many clips a device."""
        clips = batch_size * self.count // self.processes
        command = [sys.executable, "-m", "keras_vjepa", "bench", *arguments, "--json"]
        said = self.run([*command, "--batch-size", str(clips)])
        return float(json.loads(said.splitlines()[-1])["seconds"])

    def trained(self, batch_size: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Return what `write_weights` writes: the weights, and their changes."""
        script = "import sys; from keras_vjepa.tools.bench_scaling import write_weights; "
        script += "write_weights(sys.argv[1], int(sys.argv[2]))"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.npz"
            self.run([sys.executable, "-c", script, str(path), str(batch_size)])
            with np.load(path) as arrays:
                found = {name: arrays[name].astype("float64") for name in arrays}
        weights = {name: one for name, one in found.items() if name.startswith("weight")}
        return weights, {name: one for name, one in found.items() if name not in weights}


def write_weights(path: str, batch_size: int) -> None:
    """Train a small model for some steps on all devices of this run, and write its weights.

    Args:
        path: an .npz file, which the first process writes.
        batch_size: clips of all devices together, which are the same on any number of them.
    """
    parallel = distribution.setup()
    keras.utils.set_random_seed(0)
    encoder = VJEPABackbone(
        32, 4, patch_size=8, hidden_dim=32, num_layers=2, num_heads=2, name="encoder"
    )
    predictor = VJEPAPredictor(32, encoder.position_axes, 16, 2, 2, name="predictor")
    pretrainer = VJEPAPretrainer(encoder, predictor)
    # A larger epsilon than usual, so that Adam makes no steps of rounding noise.
    pretrainer.compile(AdamW(1e-2, epsilon=1e-3))
    masks = MaskSampler([MultiBlockMask(2, 0.25)] * 2, encoder.grid_shape)
    draws = np.random.default_rng(0)
    begin = parallel.process_index * batch_size // parallel.process_count
    own = slice(begin, begin + batch_size // parallel.process_count)
    shape = (batch_size, *encoder.video_shape)
    batches = [
        {"videos": draws.normal(size=shape).astype("float32"), **masks(step, batch_size)}
        for step in range(_STEPS)
    ]
    before = collectives.values(pretrainer.trainable_variables)
    given = ({name: array[own] for name, array in batch.items()} for batch in batches)
    pretrainer.fit(parallel.feed(given), steps_per_epoch=_STEPS, shuffle=False, verbose=0)
    after = collectives.values(pretrainer.trainable_variables)
    if parallel.is_first:
        changes = [new - old for new, old in zip(after, before, strict=True)]
        named = {f"weight {i}": array for i, array in enumerate(after)}
        named |= {f"change {i}": array for i, array in enumerate(changes)}
        with files.unfinished_file(path) as unfinished:
            np.savez(unfinished, **named)  # type: ignore[arg-type]


# --- Processes -----------------------------------------------------------------------------------


def _run(
    command: Sequence[str], environments: Sequence[Mapping[str, str]], cores: Sequence[set[int]]
) -> str:
    """Run a command in several processes at once, and return what the first one prints.

    Args:
        command: its words.
        environments: for each process, variables that it has besides those of this one.
        cores: for each process, the cores that it may use; all if there are none.

    Raises:
        RuntimeError: if a process fails, with the last line that it wrote. The others are ended.
    """
    with ExitStack() as stack:
        running: list[tuple[subprocess.Popen[str], IO[str], IO[str]]] = []
        for environment, share in zip(environments, cores, strict=True):
            said: IO[str] = stack.enter_context(tempfile.TemporaryFile("w+"))
            errors: IO[str] = stack.enter_context(tempfile.TemporaryFile("w+"))
            variables = {**os.environ, **environment}
            with on_cores(share):
                process = subprocess.Popen(
                    command, env=variables, stdout=said, stderr=errors, text=True
                )
            stack.callback(process.wait)
            stack.callback(process.kill)
            running.append((process, said, errors))
        while any(process.poll() is None for process, *_ in running):
            if any(process.poll() for process, *_ in running):
                break
            time.sleep(_POLL_SECONDS)
        for process, _, errors in running:
            if process.poll():
                errors.seek(0)
                raise RuntimeError((errors.read().strip().splitlines() or ["no message"])[-1])
        running[0][1].seek(0)
        return running[0][1].read()
