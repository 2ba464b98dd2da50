"""Define the configs that train a decoder of the predictor's features (§6, App. F)."""

from collections.abc import Callable
from dataclasses import dataclass

from keras_vjepa import AdamW, FeatureDecoder, WarmupCosine, training
from keras_vjepa.configuration import Part, replace
from keras_vjepa.data import ClipBatches, ClipSettings, PretrainTransform, list_samples
from keras_vjepa.decoding import check_decode_options
from keras_vjepa.models.diffusion_network import DiffusionNetwork


@dataclass(frozen=True)
class DecodeConfig:
    """Defines the training of a decoder.

    Attributes:
        preset: preset of a pretraining run with features as targets; it is frozen.
        data: a folder, a list, a table, shards, or the name of a built-in set.
        source: how `data` is read; see `keras_vjepa.data.sources.listing`.
        clip: how clips are taken from a video.
        transform: augmentation of clips.
        batches: the batches; a batch size is that of all devices together.
        region: height and width in pixels of the hidden region, one box over all time.
        decoded_size: height and width that the region is decoded in; by default its own.
        kinds: how often the condition is none, predicted, and the target encoder's. A share of none
            is what classifier-free guidance needs.
        network: the 3-D U-Net.
        decoder: noise of the timesteps, and the moving average of the weights.
        optimizer: the optimizer.
        learning_rate: schedule of the learning rate.
        run: the run and its checkpoints.
        dtype: precision, a policy of Keras.
        seed: seed of everything random.
    """

    preset: str = ""
    data: str = "digit_motion_black"
    source: Part = Part(list_samples, supplied=("source", "class_names", "label_column"))
    clip: Part = Part(
        ClipSettings, names={"frame_step": "temporal_stride"}, arguments={"frame_step": 2},
        supplied=("frames_per_clip", "num_clips", "allow_clip_overlap"),
    )  # fmt: skip
    transform: Part = Part(
        PretrainTransform,
        names={"scale": "random_resize_scale", "ratio": "random_resize_aspect_ratio"},
        supplied=("crop_size", "augmentation"),
        arguments={"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "horizontal_flip": 0.0},
    )
    batches: Part = Part(
        ClipBatches,
        supplied=(
            "samples", "transform", "masks", "clip", "limits", "video_shape", "grid_shape", "seed",
            "process_index", "process_count", "label_weights", "use_multiprocessing",
        ),
        derived={"num_workers": "one for each core, from 2 to 32"},
        arguments={"batch_size": 8},
    )  # fmt: skip
    region: tuple[int, int] = (16, 16)
    decoded_size: tuple[int, int] | None = None
    kinds: tuple[float, float, float] = (0.2, 0.4, 0.4)
    network: Part = Part(
        DiffusionNetwork,
        supplied=("clip_shape", "feature_dim", "grid_shape"),
        arguments={
            "width": 16, "multipliers": (1, 2, 4), "num_blocks": 1, "attention_at": (4,),
            "head_dim": 32, "condition": "grid", "factorized": True, "groups": 8,
        },
    )  # fmt: skip
    decoder: Part = Part(
        FeatureDecoder, names={"num_steps": "noise_steps"},
        supplied=("network", "made_for", "pixel_statistics"),
        arguments={"average": 0.995, "prediction_type": "residual"},
    )  # fmt: skip
    optimizer: Part = Part(
        AdamW, arguments={"weight_decay": 0.0, "clip_norm": 1.0},
        supplied=("learning_rate", "name", "gradient_accumulation_steps", "layer_decay"),
    )  # fmt: skip
    learning_rate: Part = Part(
        WarmupCosine,
        names={
            "start": "start_learning_rate", "peak": "learning_rate", "final": "final_learning_rate",
        },
        supplied=("total_steps",),
        arguments={"start": 1e-4, "peak": 2e-3, "final": 1e-5, "warmup_steps": 50},
    )  # fmt: skip
    run: Part = Part(
        training.run,
        supplied=(
            "model", "batches", "workdir", "callbacks", "description", "defaults", "upgrade",
            "parallel",
        ),
        arguments={"steps": 4000, "checkpoint_every": 200},
    )  # fmt: skip
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        check_decode_options(self)


def digit_motion_black() -> DecodeConfig:
    """Decode regions of 16 x 16 of the built-in videos, on 2 CPU cores."""
    return DecodeConfig()


def paper() -> DecodeConfig:
    """Decode to 16 frames of 64 x 64 with the paper's U-Net of 746 million parameters (App. F).

    The paper leaves open: batch and rate, which are RCDM's (8 on a GPU of 32, 1e-4), and how a
    region becomes 64 x 64. Here it has 96 x 96 pixels of 224, and is scaled.
    """
    return replace(
        digit_motion_black(), data="videos/", region=(96, 96), decoded_size=(64, 64),
        temporal_stride=4, batch_size=256, width=192, multipliers=(1, 2, 3, 4), num_blocks=3,
        attention_at=(32, 16, 8), head_dim=64, condition="pooled", factorized=False, groups=32,
        dropout=0.1, average=0.9999, prediction_type="noise", kinds=(0.0, 1.0, 0.0),
        steps=450_000, learning_rate=1e-4, start_learning_rate=1e-4, final_learning_rate=1e-4,
        clip_norm=None, dtype="mixed_bfloat16", checkpoint_every=2500,
    )  # fmt: skip


CONFIGS: dict[str, Callable[[], DecodeConfig]] = {
    function.__name__: function for function in (digit_motion_black, paper)
}
