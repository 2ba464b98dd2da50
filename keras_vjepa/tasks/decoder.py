"""Turn features into pixels by a conditional diffusion model (§6, App. F).

The decoder learns what the predictor's features of a hidden region say: it sees those features,
never what is around the region, and has to find the noise in a clip of the region. What samples
from several seeds have in common is in the features; what varies is not (Fig. 6).

Departures from RCDM, which the paper follows: the condition is told to be predicted, the target
encoder's, or none, so that one network serves all three. Samples come from a moving average of the
weights, as there; its momentum rises at the beginning, for short runs. The network's output may
stand for something else than the noise, from which the noise follows.

One batch is a dictionary:

    clips      float32 (batch, frames, height, width, 3), clean, in [-1, 1]
    noise      float32, of the same shape, normal
    timesteps  int32 (batch,)
    features   float32 (batch, tokens, feature_dim)
    kinds      int32 (batch,): what the features are, numbers of `KINDS`
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_vjepa.arguments import (
    MOST_LONG,
    MOST_SEED,
    arguments_of,
    check_choice,
    check_number,
    check_whole,
    shown,
)
from keras_vjepa.backend import collectives, inference, updates
from keras_vjepa.backend.torch_modules import TorchModule
from keras_vjepa.backend.train_step import TrainableModel
from keras_vjepa.layers.layer_states import KeepsLayerStates
from keras_vjepa.models.averaged import averaged_copy, check_unchanged
from keras_vjepa.models.diffusion import FEWEST_STEPS, NoiseModel, NoiseSchedule, Progress, denoise
from keras_vjepa.models.diffusion_network import KINDS, DiffusionNetwork
from keras_vjepa.models.diffusion_outputs import NetworkOutput
from keras_vjepa.presets.claims import described_class
from keras_vjepa.presets.preset import Preset, PresetName
from keras_vjepa.training.optimizer import AdamW
from keras_vjepa.types import Tensor

WEIGHTS_FILE = "decoder.weights.h5"
_INPUTS = ("clips", "noise", "timesteps", "features", "kinds")
_LEARNING_RATE = 1e-4


@keras.saving.register_keras_serializable("keras_vjepa")
class FeatureDecoder(Preset, KeepsLayerStates, TorchModule, TrainableModel):
    """Decodes the features of a hidden region of a clip to its pixels (§6, App. F).

    Args:
        network: a `DiffusionNetwork`.
        schedule: noise of each timestep: `"cosine"` or `"linear"`.
        num_steps: number of timesteps.
        average: momentum of the moving average of the weights that samples come from, in [0, 1);
            in early steps it is lower.
        made_for: fingerprint of the predictor whose features the decoder knows; empty if unknown.
        prediction_type: what the network's output stands for: `"noise"`, as in the paper, or
            `"residual"`, what a linear guess of the clean clip leaves; see `NetworkOutput`. Small
            networks learn much faster with the latter.
        pixel_statistics: mean of the pixels of clips, in [-1, 1], and their deviation, in (0, 1];
            for `"residual"`.

    Call arguments:
        inputs: a batch as described at the top of the module.

    Returns:
        The mean squared error of the network's output of each sample, `(batch,)`. At first it is
        about 1, because the network's first output is 0.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa import FeatureDecoder
    >>> from keras_vjepa.models.diffusion_network import DiffusionNetwork
    >>> decoder = FeatureDecoder(DiffusionNetwork((2, 8, 8), 6, (2, 2, 2), 8, (1, 2), 1, ()))
    >>> clips = decoder.sample(np.zeros((1, 8, 6), "float32"), seeds=(0, 1), steps=2)
    >>> clips.shape, clips.dtype.name
    ((1, 2, 2, 8, 8, 3), 'uint8')
    """

    config_file = "decoder.json"

    def __init__(
        self,
        network: DiffusionNetwork,
        schedule: str = "cosine",
        num_steps: int = 1000,
        average: float = 0.9999,
        made_for: str = "",
        prediction_type: str = "noise",
        pixel_statistics: Sequence[float] = (0.0, 0.5),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.network_output = check_decoder(
            schedule, num_steps, average, prediction_type, pixel_statistics
        )
        self.network = network
        self.average = average
        self.made_for = made_for
        self.averaged = averaged_copy(network, f"averaged_{network.name}")
        self.built = True

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """Return how much noise each timestep has."""
        return self.network_output.schedule

    @property
    def trainable(self) -> bool:
        """Return whether the network learns; its moving average never does by itself."""
        return super().trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        KeepsLayerStates.trainable.fset(self, value)
        self.averaged.trainable = False

    def described_elsewhere(self) -> list[keras.layers.Layer]:
        """Return the network, which has a config of its own, and its moving average."""
        return [self.network, self.averaged]

    # --- Training --------------------------------------------------------------------------------

    def call(self, inputs: Mapping[str, Tensor], training: bool = False) -> Tensor:
        if not isinstance(inputs, Mapping) or set(inputs) != {*_INPUTS}:
            found = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(
                f"`inputs` must be a dictionary of {', '.join(_INPUTS)}. Received: {found}"
            )
        timesteps = inputs["timesteps"]
        noised = self.noise_schedule.noised(inputs["clips"], inputs["noise"], timesteps)
        given = {"clips": noised, "timesteps": timesteps}
        given |= {name: inputs[name] for name in ("features", "kinds")}
        predicted = self.network(given, training=training)
        wanted = self.network_output.wanted(inputs["clips"], inputs["noise"], timesteps)
        return ops.mean(ops.square(predicted - wanted), axis=(1, 2, 3, 4))

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Return the mean of the samples' errors."""
        return collectives.loss_share(sum(self.losses, ops.mean(y_pred)))

    def compile(self, optimizer: Any = None, **kwargs: Any) -> None:  # type: ignore[override]
        """Configure training as `keras.Model.compile` does, without a loss.

        Args:
            optimizer: default: `AdamW`, with a learning rate of 1e-4 and no weight decay.
            kwargs: as in Keras.

        Raises:
            ValueError: for a network that has other variables than when the decoder was made.
        """
        check_unchanged(self.network, self.averaged, "network", "decoder", "for the moving average")
        self.prepare_step()
        optimizer = keras.optimizers.get(optimizer) if optimizer else AdamW(_LEARNING_RATE, 0.0)
        super().compile(optimizer=optimizer, **kwargs)
        # So that saved variables of the optimizer find their place.
        self.optimizer.build(self.trainable_variables)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile the decoder as it was when it was saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def after_step(self, moved: Tensor | None = None) -> dict[str, Tensor]:
        """Move the averaged weights towards the network's.

        Args:
            moved: bool scalar, whether there was an update; None for True.
        """
        done = ops.cast(ops.convert_to_tensor(self.optimizer.iterations), "float32")
        # After n steps the average covers about the last tenth of them, until `average` is reached.
        early = 9.0 / (10.0 + done)
        # A Python number would be copied to the device in each step where operations run alone.
        rate = ops.maximum(ops.zeros_like(early) + (1.0 - self.average), early)
        if moved is not None:
            rate = rate * ops.cast(moved, "float32")
        updates.move_towards(self.averaged.variables, self.network.variables, rate)
        return {}

    def compute_output_shape(self, input_shape: dict[str, Sequence[int | None]]) -> Any:
        return (input_shape["clips"][0],)

    def compute_output_spec(self, inputs: Any, training: bool = False) -> keras.KerasTensor:
        return keras.KerasTensor((inputs["clips"].shape[0],), dtype="float32")

    # --- Sampling --------------------------------------------------------------------------------

    def sample(
        self,
        features: Any,
        seeds: Sequence[int] = (0,),
        kind: str = "predicted",
        steps: int = 50,
        sampler: str = "ddim",
        eta: float = 0.0,
        guidance: float = 1.0,
        progress: Progress = iter,
    ) -> NDArray[np.uint8]:
        """Decode features, once for each seed; all seeds and clips are one batch.

        The noise of a seed is the same for every clip and on every backend, so that clips differ
        only by their features.

        Args:
            features: float `(clips, tokens, feature_dim)`.
            seeds: seeds of the noise.
            kind: what the features are: `"predicted"`, `"target"`, or `"none"`, which does not
                look at them.
            steps: number of timesteps that are gone through.
            sampler: `"ddim"` or `"ddpm"`.
            eta: how much noise DDIM adds in each step, from 0 to 1.
            guidance: 1 for the condition as it is. A larger number goes beyond it, away from what
                the network predicts without a condition, at twice the cost.
            progress: goes through the steps, and may show how far they are.

        Returns:
            uint8 `(clips, seeds, frames, height, width, 3)`, RGB.

        Raises:
            ValueError: for features of another width or number, arguments out of range, and weights
                that are damaged.
        """
        if not isinstance(seeds, Iterable):
            raise ValueError(f"`seeds` must be a list of whole numbers. Received: {shown(seeds)}")
        seeds = [*seeds]
        features = self._checked(features, seeds, kind, guidance)
        count, each = len(features), len(seeds)
        streams = [np.random.default_rng(seed) for seed in seeds]
        shape = (*self.network.clip_shape, 3)

        def draw() -> NDArray[np.float32]:
            noise = np.stack([one.standard_normal(shape, dtype="float32") for one in streams])
            return np.tile(noise, (count, 1, 1, 1, 1))

        model = self._noise_model(np.repeat(features, each, axis=0), KINDS.index(kind), guidance)
        found = denoise(
            model, draw(), self.noise_schedule, steps, sampler, eta, draw, progress=progress
        )
        decoded = ops.convert_to_numpy(found)
        if not np.isfinite(decoded).all():
            raise ValueError(
                "`features` and the decoder's weights must be finite: copy the preset again if its "
                "files are damaged. Received: some that decode to NaN"
            )
        pixels = np.rint(127.5 * (decoded + 1)).clip(0, 255).astype("uint8")
        return pixels.reshape(count, each, *shape)

    def _noise_model(self, features: NDArray[np.float32], kind: int, guidance: float) -> NoiseModel:
        """Make the function that predicts noise for these features.

        Nothing but the number of a timestep leaves the host or comes back to it in between.
        """
        told = ops.convert_to_tensor(features)
        # Keras' `full` would copy its number to the device on torch, and wait for it.
        none = ops.zeros((len(features),), "int32")
        kinds = none + kind

        def model(x: Tensor, timestep: int) -> Tensor:
            timesteps = none + timestep
            given = self._compiled_noise(x, timesteps, told, kinds)
            if guidance == 1:
                return given
            without = self._compiled_noise(x, timesteps, told, none)
            return without + guidance * (given - without)

        return model

    @functools.cached_property
    def _compiled_noise(self) -> Callable[..., Tensor]:
        """Return the compiled prediction of the averaged network."""

        def predicted(x: Tensor, timesteps: Tensor, features: Tensor, kinds: Tensor) -> Tensor:
            inputs = {"clips": x, "timesteps": timesteps, "features": features, "kinds": kinds}
            return self.network_output.noise(self.averaged(inputs), x, timesteps)

        return inference.compiled_beside(self.averaged, predicted)

    def _checked(
        self, features: Any, seeds: Sequence[int], kind: str, guidance: float
    ) -> NDArray[np.float32]:
        check_choice(KINDS, kind=kind)
        check_number("[0, inf)", guidance=guidance)
        for seed in seeds:
            check_whole(0, MOST_SEED, seeds=seed)
        if not len(seeds):
            raise ValueError("`seeds` must hold a seed. Received: none")
        features = np.asarray(ops.convert_to_numpy(features), "float32")
        wanted = (self.network.num_tokens, self.network.feature_dim)
        if features.ndim != 3 or features.shape[1:] != wanted:
            raise ValueError(
                f"`features` must be (clips, {wanted[0]} tokens, {wanted[1]} wide), which the "
                f"decoder was made for. Received shape: {features.shape}"
            )
        # Times 0, features that are no numbers would not vanish.
        return np.zeros_like(features) if kind == "none" else features

    # --- Configuration ---------------------------------------------------------------------------

    def preset_files(self) -> dict[str, Any]:
        return {self.config_file: self, WEIGHTS_FILE: self.averaged}

    @classmethod
    def from_preset(cls, preset: PresetName, *args: Any, **kwargs: Any) -> Self:
        """Restore a decoder from a preset, as `VJEPABackbone.from_preset` does.

        A preset holds the averaged weights, and the network begins with these too.

        Args:
            preset: a folder that `save_to_preset` wrote.
            args: as in `VJEPABackbone.from_preset`.
            kwargs: likewise.
        """
        decoder = super().from_preset(preset, *args, **kwargs)
        decoder.network.set_weights(collectives.values(decoder.averaged.weights))
        return decoder

    @classmethod
    def weights_asked_for(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """Count weights as `VJEPABackbone.weights_asked_for` does."""
        own = arguments_of(cls, config)
        check_decoder(**{name: own[name] for name in own if name not in ("network", "made_for")})
        described_class(own["network"], DiffusionNetwork)
        return {WEIGHTS_FILE: DiffusionNetwork.number_of_weights(**own["network"]["config"])}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "network": keras.saving.serialize_keras_object(self.network),
            "schedule": self.noise_schedule.kind,
            "num_steps": self.noise_schedule.num_steps,
            "average": self.average,
            "made_for": self.made_for,
            "prediction_type": self.network_output.kind,
            "pixel_statistics": (self.network_output.mean, self.network_output.deviation),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        network = keras.saving.deserialize_keras_object(
            config["network"], custom_objects=custom_objects
        )
        return cls(**{**config, "network": network})


def check_decoder(
    schedule: str,
    num_steps: int,
    average: float,
    prediction_type: str = "noise",
    pixel_statistics: Sequence[float] = (0.0, 0.5),
) -> NetworkOutput:
    """Check those arguments of `FeatureDecoder` that are no model; return what they describe.

    Raises:
        ValueError: for the first that is out of range.
    """
    check_number("[0, 1)", average=average)
    check_whole(1, num_steps=num_steps)
    # By this name before the schedule does it, whose `steps` a command would take for its --steps.
    check_whole(FEWEST_STEPS, MOST_LONG, num_steps=num_steps)
    if not isinstance(pixel_statistics, list | tuple) or len(pixel_statistics) != 2:
        raise ValueError(
            f"`pixel_statistics` must be mean and deviation. Received: {shown(pixel_statistics)}"
        )
    return NetworkOutput(NoiseSchedule(schedule, num_steps), prediction_type, *pixel_statistics)
