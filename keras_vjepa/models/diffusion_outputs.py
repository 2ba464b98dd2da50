"""Say what the output of a decoder's network stands for: the noise, as in the paper (App. F).

A network that outputs the noise has to copy its input where nearly everything is noise, and to find
a little noise in a clip where nearly nothing is. Both are slow to learn, and an error there hides
what the features say. Of clips whose pixels have some mean and deviation, the best linear guess is
known beforehand; what is left of the clean clip beside it (the residual) has a deviation of 1 at
every timestep, and all that the network has to learn. That is the preconditioning of Karras et al.,
"Elucidating the Design Space of Diffusion-Based Generative Models" (2022), §5, for our schedules.
"""

from dataclasses import dataclass

import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_vjepa.arguments import check_choice, check_number
from keras_vjepa.models.diffusion import NoiseSchedule, weighted_sum
from keras_vjepa.types import Tensor

PREDICTION_TYPES = ("noise", "residual")


@dataclass(frozen=True)
class NetworkOutput:
    """Computes what a network is to output, and the noise that an output stands for.

    Args:
        schedule: how much noise each timestep has.
        kind: `"noise"`, or `"residual"`: what is left of the clean clip beside the linear guess,
            divided by its deviation.
        mean: mean of the pixels of clean clips, which are in [-1, 1]; for the residual.
        deviation: their deviation; likewise.

    Raises:
        ValueError: for another kind, and for numbers out of range.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.models.diffusion import NoiseSchedule
    >>> from keras_vjepa.models.diffusion_outputs import NetworkOutput
    >>> output = NetworkOutput(NoiseSchedule(), "residual", mean=0.0, deviation=0.5)
    >>> clean, noise, timesteps = np.full((1, 3), 0.5), np.zeros((1, 3)), np.array([999])
    >>> ops.convert_to_numpy(output.wanted(clean, noise, timesteps)).round(3).tolist()
    [[1.0, 1.0, 1.0]]
    """

    schedule: NoiseSchedule
    kind: str = "noise"
    mean: float = 0.0
    deviation: float = 0.5

    def __post_init__(self) -> None:
        check_choice(PREDICTION_TYPES, prediction_type=self.kind)
        # `FeatureDecoder` takes both as one argument.
        check_number("[-1, 1]", pixel_statistics=self.mean)
        check_number("(0, 1]", pixel_statistics=self.deviation)

    def wanted(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Compute what the network is to output.

        Args:
            clean: float `(batch, ...)`, in [-1, 1].
            noise: the noise that is mixed with it, of the same shape.
            timesteps: int `(batch,)`.

        Returns:
            float32, in the shape of `clean`.
        """
        if self.kind == "noise":
            return ops.cast(noise, "float32")
        share, deviation = self.schedule.signal_shares, self._deviations()
        # The guess's error is a weighted sum of clean clip and noise, as the noised clip is.
        of_clean = np.sqrt(1 - share) / (self.deviation * deviation)
        of_noise = -np.sqrt(share) * self.deviation / deviation
        away = ops.cast(clean, "float32") - self.mean
        return weighted_sum(timesteps, (of_clean, away), (of_noise, noise))

    def noise(self, output: Tensor, noised: Tensor, timesteps: Tensor) -> Tensor:
        """Compute the noise in clips from the output of a network.

        Args:
            output: the output, float `(batch, ...)`.
            noised: what the network was given, of the same shape.
            timesteps: int `(batch,)`.

        Returns:
            float32, in the shape of `output`.
        """
        if self.kind == "noise":
            return ops.cast(output, "float32")
        share, deviation = self.schedule.signal_shares, self._deviations()
        of_noised = np.sqrt(1 - share) / deviation**2
        of_output = -np.sqrt(share) * self.deviation / deviation
        # What is left of the mean in a noised clip is taken away.
        of_mean = -of_noised * np.sqrt(share) * self.mean
        ones = ops.ones_like(output)
        return weighted_sum(timesteps, (of_noised, noised), (of_mean, ones), (of_output, output))

    def _deviations(self) -> NDArray[np.float64]:
        """Return the deviation of noised pixels at each timestep."""
        share = self.schedule.signal_shares
        return np.asarray(np.sqrt(share * self.deviation**2 + 1 - share), np.float64)
