"""Define the config of a pretraining run by its parts, with the paper's numbers (Table 9).

An option is an argument of a part's constructor, or a plain field; `--help` lists all.
"""

from dataclasses import dataclass

from keras_vjepa import (
    AdamW,
    CosineSchedule,
    LinearSchedule,
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    WarmupCosine,
    training,
)
from keras_vjepa.arguments import check_choice
from keras_vjepa.configuration import Part
from keras_vjepa.data import (
    ClipBatches,
    ClipSettings,
    MaskSampler,
    PretrainTransform,
    ReadingLimits,
    list_samples,
)
from keras_vjepa.data.batches.named_masks import MASKS
from keras_vjepa.data.batches.videos_and_images import ImageSettings
from keras_vjepa.layers.dense import INITIALIZER_STDDEV
from keras_vjepa.monitoring import Monitor
from keras_vjepa.pretraining_check import check_fields


@dataclass(frozen=True)
class PretrainConfig:
    """Defines a pretraining run. Defaults are the paper's (Table 9) for ViT-L/16.

    Attributes:
        data: a folder, a list, a table, shards, or the name of a built-in set.
        source: how `data` is read; see `keras_vjepa.data.sources.listing`.
        clip: how clips are taken from a video.
        limits: time and pixels that a file may take; a file that takes more is unreadable.
        transform: augmentation of clips (Table 9, "data").
        batches: the batches; a batch size is that of all devices together.
        masks: multi_block is the paper's; causal_multi_block and random_tube are its ablation
            (Table 4, §4.4); random_tokens hides random tokens and is the easiest.
        mask: arguments of the masks; for blocks, several values make one kind of masks each (Table
            9, "masking": short range, long range).
        mask_sets: sets of masks for each clip, of a kind without blocks; by default two of
            random_tube (§4.4) and one of random_tokens.
        images: images that are mixed with the videos, as V-JEPA 2.1 has it.
        sampler: budgets follow from the grid and the masks, not the batch (official-behaviour §6).
            With batch_min, which is exactly the reference, every batch has a shape of its own.
        encoder: the encoder (App. C).
        predictor: the predictor (Table 9).
        initializer_stddev: deviation of the initial weights; the default suits a width of about
            1,000, narrow models need more.
        start_from: preset of an encoder to begin with; the run takes its sizes.
        teacher: preset of an encoder whose features are predicted in place of the moving average's;
            it does not change.
        pretrainer: the objective. Pixels, with a loss exponent of 2, are the baseline of Table 1.
        momentum: momentum of the moving average.
        optimizer: clipping starts an epoch after a warm-up of 40 epochs (official-behaviour §5).
        learning_rate: schedule of the learning rate.
        weight_decay: schedule of the weight decay.
        schedule_scale: schedules are made for the steps times this factor.
        schedule_steps: number of steps that schedules are made for; by default that of the run, and
            if a run continues, the number that it began with.
        accumulation_steps: parts of a step, made one after the other: less memory, same results.
        shard_parameters: split parameters over the devices (JAX only).
        run: the run and its checkpoints; the reference saves once an epoch, which is 300 steps.
        monitor: says in words what the features of some clips show.
        monitor_clips: number of these clips, two of each video; a built-in set's are test videos.
        monitor_probe_clips: clips with labels on which the monitor trains a probe; 0 for none.
        tensorboard: write all numbers of the run for TensorBoard too.
        callbacks: further callbacks of Keras, each package.module:Name, as MLflow has one.
        dtype: precision, a policy of Keras.
        seed: seed of everything random.
        probe_epochs: passes of the frozen probe at the end of a run on a built-in set.
        probe_videos: number of training videos that it is trained on, with their labels.
    """

    data: str = "digit_motion"
    source: Part = Part(list_samples, supplied=("source", "class_names", "label_column"))
    clip: Part = Part(
        ClipSettings,
        names={"frame_step": "temporal_stride"},
        supplied=("frames_per_clip", "num_clips", "allow_clip_overlap"),
    )
    limits: Part = Part(ReadingLimits)
    transform: Part = Part(
        PretrainTransform,
        names={"scale": "random_resize_scale", "ratio": "random_resize_aspect_ratio"},
        supplied=("crop_size", "augmentation"),
    )
    batches: Part = Part(
        ClipBatches,
        supplied=(
            "samples", "transform", "masks", "clip", "limits", "video_shape", "grid_shape", "seed",
            "process_index", "process_count",
        ),
        derived={"num_workers": "one for each core, from 2 to 32"},
        arguments={"batch_size": 3072},
    )  # fmt: skip
    masks: str = "multi_block"
    mask: Part = Part(
        *MASKS.values(),
        prefix="mask_",
        names={"num_context_frames": "max_context_frames"},
        supplied=("num_frames",),
        each=("num_blocks", "spatial_scale"),
        arguments={
            "num_blocks": (8, 2),
            "spatial_scale": (0.15, 0.7),
            "num_context_frames": 12,
        },
    )
    mask_sets: int | None = None
    images: Part = Part(ImageSettings, prefix="image_")
    sampler: Part = Part(
        MaskSampler,
        supplied=("masks", "grid", "seed"),
        derived={
            "context_budgets": "those of this grid, see --budget_batch_size",
            "target_budgets": "those of this grid, see --budget_batch_size",
        },
    )
    encoder: Part = Part(
        VJEPABackbone,
        supplied=("drop_path_rate",),
        arguments={"hidden_dim": 1024, "num_layers": 24, "num_heads": 16},
    )
    predictor: Part = Part(
        VJEPAPredictor,
        prefix="predictor_",
        supplied=("encoder_dim", "grid_shape"),
        derived={
            "num_heads": "the encoder's",
            "num_mask_tokens": "one for each kind of masks",
            "position_embedding": "the encoder's",
            "uniform_power": "the encoder's",
            "remat": "the encoder's",
            "position_reach": "the encoder's",
            "modalities": "the encoder's",
            "output_dim": "what the target has",
        },
    )
    initializer_stddev: float = INITIALIZER_STDDEV
    start_from: str = ""
    teacher: str = ""
    pretrainer: Part = Part(
        VJEPAPretrainer,
        supplied=("encoder", "predictor", "momentum", "teacher"),
        derived={"padding": "whether the masks may leave lists too short"},
    )
    momentum: Part = Part(
        LinearSchedule,
        names={"start": "start_momentum", "final": "final_momentum"},
        supplied=("total_steps",),
        arguments={"start": 0.998, "final": 1.0},
    )
    optimizer: Part = Part(
        AdamW,
        # The recipe has `accumulation_steps` instead; rates by layer are for fine-tuning.
        supplied=(
            *("learning_rate", "weight_decay", "name", "gradient_accumulation_steps"),
            "layer_decay",
        ),
        derived={"clip_after": "41/40 of --warmup_steps"},
        arguments={"clip_norm": 10.0},
    )
    learning_rate: Part = Part(
        WarmupCosine,
        names={
            "start": "start_learning_rate",
            "peak": "learning_rate",
            "final": "final_learning_rate",
        },
        supplied=("total_steps",),
        arguments={"start": 2e-4, "peak": 6.25e-4, "final": 1e-6, "warmup_steps": 12_000},
    )
    weight_decay: Part = Part(
        CosineSchedule,
        names={"start": "start_weight_decay", "final": "final_weight_decay"},
        supplied=("total_steps",),
        arguments={"start": 0.04, "final": 0.4},
    )
    schedule_scale: float = 1.25
    schedule_steps: int | None = None
    accumulation_steps: int = 1
    shard_parameters: bool = False
    run: Part = Part(
        training.run,
        supplied=(
            "model", "batches", "workdir", "callbacks", "description", "defaults", "upgrade",
            "parallel",
        ),
        arguments={"steps": 90_000, "keep_every": 9000},
    )  # fmt: skip
    monitor: Part = Part(
        Monitor,
        names={"every": "monitor_every", "probe_every": "monitor_probe_every"},
        supplied=("held_out", "folder", "probe", "writers"),
    )
    monitor_clips: int = 64
    monitor_probe_clips: int = 0
    tensorboard: bool = False
    callbacks: tuple[str, ...] | None = None
    dtype: str = "mixed_bfloat16"
    seed: int = 234
    probe_epochs: int = 8
    probe_videos: int = 2000

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice(MASKS, masks=self.masks)
