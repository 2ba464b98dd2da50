"""Add noise to clips step by step, and take it away by a network that predicts it (App. F).

The paper's decoder is a conditional diffusion model "as RCDM", whose code is that of
guided-diffusion (`spec.md` §3.2): a clean clip x and noise e give sqrt(a) x + sqrt(1 - a) e, where
`a` falls from nearly 1 to nearly 0 over the timesteps. Departure from RCDM, as in the paper's
formula: the variance of a step is not learned.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_vjepa.arguments import MOST_LONG, check_choice, check_number, check_whole
from keras_vjepa.backend.device import constant
from keras_vjepa.types import Tensor

SCHEDULES = ("cosine", "linear")
SAMPLERS = ("ddim", "ddpm")
# The linear schedule was made for 1,000 steps; for another number it is stretched.
_LINEAR_STEPS, _LINEAR_BETAS = 1000, (1e-4, 0.02)
# With fewer steps, the stretched linear schedule would have shares of noise above 1.
FEWEST_STEPS = 1 + round(_LINEAR_STEPS * _LINEAR_BETAS[1])
_COSINE_OFFSET, _LARGEST_BETA = 0.008, 0.999
_MAX_PERIOD = 10_000

NoiseModel = Callable[[Tensor, int], Tensor]
# Wraps the steps of a loop to show its progress.
Progress = Callable[[Sequence[int]], Iterator[int]]


@dataclass(frozen=True)
class NoiseSchedule:
    """Says how much noise a clip has at each timestep.

    Args:
        kind: `"cosine"` (guided-diffusion at 64 pixels) or `"linear"` (RCDM at 128 pixels).
        num_steps: number of timesteps.

    Raises:
        ValueError: for another kind, or a number out of range.

    Example:

    >>> from keras_vjepa.models.diffusion import NoiseSchedule
    >>> NoiseSchedule("linear").signal_shares[[0, 999]].round(5).tolist()
    [0.9999, 4e-05]
    """

    kind: str = "cosine"
    num_steps: int = 1000

    def __post_init__(self) -> None:
        check_choice(SCHEDULES, schedule=self.kind)
        check_whole(FEWEST_STEPS, MOST_LONG, steps=self.num_steps)

    @property
    def betas(self) -> NDArray[np.float64]:
        """Return the share of noise that each timestep adds, `(num_steps,)`."""
        if self.kind == "linear":
            low, high = (beta * _LINEAR_STEPS / self.num_steps for beta in _LINEAR_BETAS)
            return np.asarray(np.linspace(low, high, self.num_steps), np.float64)
        times = np.arange(self.num_steps + 1) / self.num_steps
        angles = (times + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * np.pi / 2
        signal = np.cos(angles) ** 2
        return np.asarray(np.minimum(1 - signal[1:] / signal[:-1], _LARGEST_BETA), np.float64)

    @property
    def signal_shares(self) -> NDArray[np.float64]:
        """Return the share of a clip's variance that is left at each timestep, `(num_steps,)`."""
        return np.asarray(np.cumprod(1 - self.betas), np.float64)

    def noised(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Mix clips with noise.

        Args:
            clean: float `(batch, ...)`, in [-1, 1].
            noise: normal noise of the same shape.
            timesteps: int `(batch,)`, from 0 for the least noise.

        Returns:
            float32, in the shape of `clean`.
        """
        shares = self.signal_shares
        return weighted_sum(timesteps, (np.sqrt(shares), clean), (np.sqrt(1 - shares), noise))

    def kept(self, count: int, regular: bool = True) -> NDArray[np.int64]:
        """Choose the timesteps that a shorter run of a sampler goes through.

        Args:
            count: how many; at most `num_steps`.
            regular: whether to take every n-th from 0 on, as guided-diffusion's "ddim20" does,
                where an n gives this count. Otherwise, and where no n does, steps are spread evenly
                from the first to the last one, as its "100" does.

        Returns:
            Rising timesteps, `(count,)`.

        Raises:
            ValueError: for a count out of range.

        Example:

        >>> from keras_vjepa.models.diffusion import NoiseSchedule
        >>> NoiseSchedule().kept(4).tolist(), NoiseSchedule().kept(4, regular=False).tolist()
        ([0, 250, 500, 750], [0, 333, 666, 999])
        """
        check_whole(1, self.num_steps, steps=count)
        if regular:
            for stride in range(1, self.num_steps + 1):
                steps = np.arange(0, self.num_steps, stride)
                if len(steps) == count:
                    return steps
        if count == 1:
            return np.zeros(1, np.int64)
        return np.rint(np.arange(count) * ((self.num_steps - 1) / (count - 1))).astype(np.int64)


def weighted_sum(timesteps: Tensor, *parts: tuple[NDArray[np.float64], Tensor]) -> Tensor:
    """Add tensors, each times the number that a table has for the timestep of its clip.

    Args:
        timesteps: int `(batch,)`.
        parts: pairs of a table, a number for each timestep, and a tensor, float `(batch, ...)`.

    Returns:
        float32, in the shape of the tensors.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.models.diffusion import weighted_sum
    >>> found = weighted_sum(np.array([1, 0]), (np.array([1.0, 3.0]), np.ones((2, 2))))
    >>> ops.convert_to_numpy(found).tolist()
    [[3.0, 3.0], [1.0, 1.0]]
    """
    weighted = []
    for table, tensor in parts:
        numbers = ops.take(constant(table.astype("float32"), timesteps), timesteps, axis=0)
        numbers = ops.reshape(numbers, (-1, *[1] * (len(tensor.shape) - 1)))
        weighted.append(numbers * ops.cast(tensor, "float32"))
    return sum(weighted[1:], weighted[0])


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Embed timesteps by cosines, then sines, of frequencies from 1 down to 1/10,000.

    Args:
        timesteps: numbers, `(batch,)`.
        width: width of the embedding; an odd one ends in a zero.

    Returns:
        float32 `(batch, width)`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.models.diffusion import timestep_embedding
    >>> ops.convert_to_numpy(timestep_embedding(np.array([0, 1]), 4)).tolist()[0]
    [1.0, 1.0, 0.0, 0.0]
    """
    half = width // 2
    # The exponents are rounded to float32 as in guided-diffusion, because at timestep 1000 the last
    # bit of a frequency changes an angle by 6e-5.
    steps = np.arange(half, dtype="float32")
    exponents = np.float32(-np.log(_MAX_PERIOD)) * steps / np.float32(max(half, 1))
    frequencies = np.exp(exponents.astype("float64")).astype("float32")
    timesteps = ops.expand_dims(ops.cast(timesteps, "float32"), -1)
    angles = timesteps * constant(frequencies, timesteps)
    parts = [ops.cos(angles), ops.sin(angles)]
    if width % 2:
        parts.append(ops.zeros_like(angles[:, :1]))
    return ops.concatenate(parts, axis=-1)


def denoise(
    noise_model: NoiseModel,
    start: Any,
    schedule: NoiseSchedule,
    steps: int,
    sampler: str = "ddim",
    eta: float = 0.0,
    draw: Callable[[], Any] | None = None,
    clip: bool = True,
    progress: Progress = iter,
) -> Tensor:
    """Turn noise into clips, one timestep after the other.

    Args:
        noise_model: predicts the noise in `(batch, ...)` at a timestep of the whole schedule.
        start: normal noise, `(batch, ...)`.
        schedule: the schedule that the model was trained with.
        steps: number of timesteps to go through.
        sampler: `"ddim"`, or `"ddpm"`, which adds noise at every step.
        eta: how much noise DDIM adds: 0 for none, 1 for as much as DDPM.
        draw: draws normal noise of the shape of `start`; needed for DDPM, and for an `eta` above 0.
        clip: whether the clean clip that a step expects is kept within [-1, 1].
        progress: goes through the steps, and may show how far they are.

    Returns:
        float32, in the shape of `start`.

    Raises:
        ValueError: for a sampler, an `eta` or a number of steps that do not exist.
    """
    check_choice(SAMPLERS, sampler=sampler)
    check_number("[0, 1]", eta=eta)
    adds_noise = sampler == "ddpm" or eta > 0
    if adds_noise and draw is None:
        raise ValueError(f"`draw` must be given for noise in each step. Received: {sampler!r}")
    kept = schedule.kept(steps, regular=sampler == "ddim")
    shares = schedule.signal_shares[kept]
    before = np.append(1.0, shares[:-1])
    x = ops.cast(ops.convert_to_tensor(start), "float32")
    for i in progress(range(len(kept))[::-1]):
        share, last = float(shares[i]), float(before[i])
        noise = ops.cast(noise_model(x, int(kept[i])), "float32")
        clean = (x - (1 - share) ** 0.5 * noise) / share**0.5
        if clip:
            clean = ops.hard_tanh(clean)  # `ops.clip` would copy its limits to the device.
        if sampler == "ddim":
            # After clipping, the noise is computed again so that it matches the clean clip.
            noise = (x - share**0.5 * clean) / (1 - share) ** 0.5
            deviation = eta * ((1 - last) / (1 - share) * (1 - share / last)) ** 0.5
            x = last**0.5 * clean + (1 - last - deviation**2) ** 0.5 * noise
        else:
            beta = 1 - share / last
            x = (
                beta * last**0.5 / (1 - share) * clean
                + (1 - beta) ** 0.5 * (1 - last) / (1 - share) * x
            )
            deviation = (beta * (1 - last) / (1 - share)) ** 0.5
        if adds_noise and i and draw is not None:
            x = x + deviation * ops.convert_to_tensor(draw())
    return x
