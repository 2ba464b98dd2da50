"""The numbers of the pretraining runs (Table 9), and small ones for the built-in videos.

A config is a function that returns a `PretrainConfig`; a variant changes fields of another.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from keras_vjepa.layers.dense import INITIALIZER_STDDEV


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that defines a pretraining run. Defaults are the paper's (Table 9), ViT-L/16."""

    # Data (Table 9, "data"). The clip spans num_frames * temporal_stride source frames.
    # `data` is a folder, a list, or the name of a built-in set.
    data: str = "digit_motion"
    image_size: int = 224
    num_frames: int = 16
    temporal_stride: int = 4
    random_resize_scale: tuple[float, ...] = (0.3, 1.0)
    random_resize_aspect_ratio: tuple[float, ...] = (0.75, 1.35)
    horizontal_flip: float = 0.5
    max_bad_share: float = 0.05
    num_workers: int = 2

    # Masks: "multi_block" is the paper's; "causal_multi_block", whose context ends with frame
    # `max_context_frames`, and "random_tube" of `mask_ratio` are its ablation (Table 6, App. E.3);
    # "random_tokens" hides that share of each clip's tokens and is the easiest.
    masks: str = "multi_block"
    max_context_frames: int = 12
    mask_ratio: float = 0.9

    # Blocks (Table 9, "masking"), one entry per kind: short range, long range. The budgets are the
    # reference's mean token counts at 24 clips a device (official-behaviour §6); they belong to
    # the task and do not change with the batch size. truncation="batch_min" is the reference
    # exactly, with a shape of its own in every batch.
    mask_num_blocks: tuple[int, ...] = (8, 2)
    mask_spatial_scale: tuple[float, ...] = (0.15, 0.7)
    mask_aspect_ratio: tuple[float, ...] = (0.75, 1.5)
    context_budgets: tuple[int, ...] = (368, 104)
    target_budgets: tuple[int, ...] = (752, 1104)
    truncation: str = "budget"

    # Architecture (Table 9, App. C). The predictor has the encoder's number of heads.
    patch_size: int = 16
    tubelet_size: int = 2
    hidden_dim: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    predictor_hidden_dim: int = 384
    predictor_num_layers: int = 12
    # Deviation of the initial weights; 0.02 suits a width of about 1,000, narrow models want more.
    initializer_stddev: float = INITIALIZER_STDDEV

    # Optimisation (Table 9). Schedules are made for steps * schedule_scale iterations. Clipping
    # starts an epoch of 300 iterations after the warm-up (official-behaviour §5).
    # The batch is that of all devices together. What makes it fit, with the same numbers: parts of
    # a step one after the other, activations computed twice, parameters split over the devices
    # (JAX only).
    batch_size: int = 3072
    accumulation_steps: int = 1
    remat: bool = False
    shard_parameters: bool = False
    steps: int = 90_000
    warmup_steps: int = 12_000
    schedule_scale: float = 1.25
    start_learning_rate: float = 2e-4
    learning_rate: float = 6.25e-4
    final_learning_rate: float = 1e-6
    start_weight_decay: float = 0.04
    final_weight_decay: float = 0.4
    start_momentum: float = 0.998
    final_momentum: float = 1.0
    clip_norm: float = 10.0
    clip_after: int = 12_300
    # "pixels" is the baseline of Table 1, with a loss exponent of 2.
    target: str = "features"
    normalize_targets: bool = True
    loss_exponent: float = 1.0
    variance_weight: float = 0.0
    # Beyond the paper, for little data; see `VJEPAPretrainer`.
    context_variance_weight: float = 0.0
    context_covariance_weight: float = 0.0
    # Presets. The encoder to begin with, of the same architecture, in place of random weights; and
    # one that is predicted in place of the moving average, and stays as it is.
    start_from: str = ""
    teacher: str = ""

    dtype: str = "mixed_bfloat16"
    seed: int = 234
    # The frozen probe at the end of a run on a built-in set: passes over the first so many of the
    # training videos, with their labels.
    probe_epochs: int = 8
    probe_videos: int = 2000

    # Steps between two looks at the spread of the features of the run's first clips.
    monitor_every: int = 300
    monitor_clips: int = 8

    # Checkpoints. In steps; the reference saves once an epoch, which is 300.
    checkpoint_every: int = 300
    keep_last: int = 2
    keep_every: int = 9000


def vitl16() -> PretrainConfig:
    """ViT-L/16, 224 px: 90,000 steps of 3,072 clips; 128 A100s in the paper, 7.0e20 FLOP."""
    return PretrainConfig()


def vith16() -> PretrainConfig:
    """ViT-H/16, 224 px: 90,000 steps of 3,072 clips; 128 A100s in the paper, 1.3e21 FLOP."""
    return replace(vitl16(), hidden_dim=1280, num_layers=32)


def vith16_384() -> PretrainConfig:
    """ViT-H/16, 384 px: 90,000 steps of 2,400 clips; 240 A100s in the paper, 4.1e21 FLOP."""
    return replace(
        vith16(),
        image_size=384,
        batch_size=2400,
        # The reference's means at 10 clips a device.
        context_budgets=(1288, 424),
        target_budgets=(2304, 3328),
    )


def digit_motion() -> PretrainConfig:
    """The default, 3 minutes on 2 CPU cores: shows that all works. digit_motion_long learns."""
    return PretrainConfig(
        image_size=64,
        num_frames=8,
        # 64 of the 72 frames: the turning motions turn in the middle.
        temporal_stride=8,
        random_resize_scale=(0.5, 1.0),
        # The built-in set tells left from right.
        horizontal_flip=0.0,
        mask_num_blocks=(4, 2),
        # The means at 32 clips, by `mean_counts` in keras_vjepa.data.masks.
        context_budgets=(116, 20),
        target_budgets=(76, 176),
        patch_size=8,
        hidden_dim=96,
        num_layers=4,
        num_heads=4,
        predictor_hidden_dim=48,
        predictor_num_layers=2,
        batch_size=32,
        steps=100,
        warmup_steps=15,
        start_learning_rate=1e-4,
        learning_rate=5e-4,
        start_momentum=0.999,
        clip_after=15,
        dtype="float32",
        seed=0,
        monitor_every=25,
        monitor_clips=32,
        checkpoint_every=25,
    )


def digit_motion_long() -> PretrainConfig:
    """Learns motion and digit from pixels, in 42 minutes of one CPU core.

    Torch, frozen probe, mean of three seeds: motion .27 -> .82 (.89, .82, .74), digit .64 -> .77
    (.72, .81, .78; recipes/README.md). 32 pixels on black, tokens of one frame; the two terms on
    the context are beyond the paper.
    """
    return replace(
        digit_motion(),
        data="digit_motion_black",
        image_size=32,
        # 16 of the 18 frames.
        temporal_stride=2,
        # A token sees one frame: what moves can only be known from several.
        tubelet_size=1,
        random_resize_scale=(1.0, 1.0),
        random_resize_aspect_ratio=(1.0, 1.0),
        masks="random_tokens",
        mask_ratio=0.75,
        initializer_stddev=0.1,
        steps=12_000,
        warmup_steps=100,
        clip_after=100,
        clip_norm=1.0,
        start_learning_rate=2e-4,
        # With 2e-3 two of three runs do not find the motion.
        learning_rate=1e-3,
        target="pixels",
        # An even background then weighs nothing.
        normalize_targets=False,
        loss_exponent=2.0,
        context_variance_weight=0.1,
        context_covariance_weight=0.004,
        monitor_every=500,
        checkpoint_every=500,
    )


def digit_motion_features() -> PretrainConfig:
    """The same with features as targets, as V-JEPA: learns the digit; 27 minutes on 2 CPU cores.

    Torch, one seed, with files of 64 pixels: digit .67 -> .88, motion .28 -> .34.
    """
    return replace(
        digit_motion_long(),
        target="features",
        normalize_targets=True,
        loss_exponent=1.0,
        steps=6000,
        start_momentum=0.998,
    )


CONFIGS: dict[str, Callable[[], PretrainConfig]] = {
    function.__name__: function
    for function in (
        digit_motion,
        digit_motion_long,
        digit_motion_features,
        vitl16,
        vith16,
        vith16_384,
    )
}
