"""Define the configs of pretraining: the paper's (Table 9), and small ones for built-in videos.

A config is a function that returns a `PretrainConfig`. A variant changes options of another config,
by the names that they have on the command line.
"""

from collections.abc import Callable

from keras_vjepa.configuration import replace
from keras_vjepa.recipes.pretrain_parts import PretrainConfig


def vitl16() -> PretrainConfig:
    """Train ViT-L/16, 224 px: 90,000 steps of 3,072 clips; 128 A100s in the paper, 7.0e20 FLOP."""
    return PretrainConfig()


def vith16() -> PretrainConfig:
    """Train ViT-H/16, 224 px: 90,000 steps of 3,072 clips; 128 A100s in the paper, 1.3e21 FLOP."""
    return replace(vitl16(), hidden_dim=1280, num_layers=32)


def vith16_384() -> PretrainConfig:
    """Train ViT-H/16, 384 px: 90,000 steps of 2,400 clips; 240 A100s in the paper, 4.1e21 FLOP."""
    return replace(
        vith16(),
        image_size=384,
        batch_size=2400,
        # This is the number of clips on each device in the paper.
        budget_batch_size=10,
    )


def vjepa21_gigantic() -> PretrainConfig:
    """Train V-JEPA 2.1's ViT-G/16 by its published first stage: 256 GPUs there.

    Give it images by `--image_data`, which the published run reads on half of the devices. A step
    there has 3,072 clips and 4,608 images, and the learning rate stays at its peak (vjepa21 §4).
    """
    return replace(
        vitl16(),
        image_size=256,
        hidden_dim=1664,
        num_layers=48,
        num_heads=26,
        mlp_ratio=64 / 13,
        position_embedding="rotary_pairs",
        position_reach=15,
        level_layers=(11, 23, 37, 47),
        modalities=True,
        image_batch_size=4608,
        predictor_num_layers=24,
        predictor_num_heads=12,
        predictor_num_mask_tokens=8,
        predictor_num_levels=4,
        predictor_predicts_context=True,
        context_loss_weight=0.5,
        context_warmup_start=15_000,
        context_warmup_end=30_000,
        mask_token=0,
        steps=300_000,
        start_learning_rate=1e-4,
        learning_rate=6e-4,
        final_learning_rate=6e-4,
        final_weight_decay=0.04,
        start_momentum=0.99925,
        final_momentum=0.99925,
        clip_norm=None,
        # This is the number of clips on each device that reads videos.
        budget_batch_size=24,
    )


def vjepa21_giant() -> PretrainConfig:
    """Train V-JEPA 2.1's ViT-g/16 by its published first stage: 128 GPUs there."""
    return replace(
        vjepa21_gigantic(),
        hidden_dim=1408,
        num_layers=40,
        num_heads=22,
        mlp_ratio=48 / 11,
        level_layers=(9, 19, 29, 39),
        budget_batch_size=48,
    )


def vjepa21_large() -> PretrainConfig:
    """Train V-JEPA 2.1's ViT-L/16 with its ViT-G/16 as teacher, whose last level is predicted.

    The paper says how, and no code is published (vjepa21 §5). It has two stages, of which this is
    the first; its teacher there was an earlier state of the released one.
    """
    return replace(
        vjepa21_gigantic(),
        teacher="vjepa21_gigantic_patch16_384",
        hidden_dim=1024,
        num_layers=24,
        num_heads=16,
        mlp_ratio=4.0,
        level_layers=(5, 11, 17, 23),
        predictor_num_layers=12,
        predictor_num_levels=1,
        budget_batch_size=48,
    )


def vjepa21_base() -> PretrainConfig:
    """Train V-JEPA 2.1's ViT-B/16 with its ViT-G/16 as teacher, as `vjepa21_large` does."""
    return replace(
        vjepa21_large(),
        hidden_dim=768,
        num_layers=12,
        num_heads=12,
        level_layers=(2, 5, 8, 11),
        budget_batch_size=96,
    )


def digit_motion() -> PretrainConfig:
    """Show that all works, in 3 minutes on 2 CPU cores (the default); digit_motion_long learns."""
    return replace(
        PretrainConfig(),
        image_size=64,
        num_frames=8,
        # A clip spans 64 of the 72 frames, because turning motions turn in the middle.
        temporal_stride=8,
        random_resize_scale=(0.5, 1.0),
        # Left and right are different classes in the built-in set.
        horizontal_flip=0.0,
        mask_num_blocks=(4, 2),
        budget_batch_size=32,
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
        monitor_every=100,
        monitor_clips=32,
        checkpoint_every=25,
    )


def digit_motion_pixels() -> PretrainConfig:
    """Learn motion and digit from pixels, as Table 1's baseline, in 42 minutes of one CPU core.

    A frozen probe, three seeds, torch: motion .27 -> .82, digit .64 -> .77 (recipes/README.md).
    Videos have 32 pixels on black, and tokens one frame. The terms on the context are additions.
    """
    return replace(
        digit_motion(),
        data="digit_motion_black",
        image_size=32,
        # A clip spans 16 of the 18 frames.
        temporal_stride=2,
        # Each token sees only one frame, so that motion can be known only from several tokens.
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
        # With 2e-3, two of three runs do not learn the motion.
        learning_rate=1e-3,
        target="pixels",
        # Without this, an even background counts for nothing in the loss.
        normalize_targets=False,
        loss_exponent=2.0,
        context_variance_weight=0.1,
        context_covariance_weight=0.004,
        monitor_every=500,
        monitor_clips=256,
        monitor_probe_clips=1000,
        checkpoint_every=500,
    )


def digit_motion_features() -> PretrainConfig:
    """Learn the digit from features of the moving average, in 27 minutes on 2 CPU cores.

    Everything else is as in `digit_motion_pixels`. A frozen probe, three seeds, torch: digit +17.9
    points, motion +9.8.
    """
    return replace(
        digit_motion_pixels(),
        target="features",
        normalize_targets=True,
        loss_exponent=1.0,
        monitor_probe_every=3000,
        steps=6000,
        start_momentum=0.998,
    )


def digit_motion_long() -> PretrainConfig:
    """Learn motion and digit from a frozen teacher's features, in 50 minutes of one CPU core.

    The teacher learnt from pixels (SALT). A frozen probe, three seeds, torch: motion .25 -> .81,
    digit .67 -> .77 (recipes/README.md).
    """
    changes = {"teacher": "vjepa_tiny_digits_pixels", "steps": 12_000, "cache_gib": 1.0}
    return replace(digit_motion_features(), **changes)


def digit_scene() -> PretrainConfig:
    """Pretrain on the built-in scenes for `keras-vjepa detect`; a step takes 3 CPU seconds.

    It is like `digit_motion_pixels`, but with 64 pixels, which is half the size of the files. What
    it learns is not measured yet.
    """
    return replace(
        digit_motion_pixels(),
        data="digit_scene",
        image_size=64,
        # A clip spans 32 of the 36 frames.
        temporal_stride=4,
        monitor_probe_clips=0,
        batch_size=16,
        budget_batch_size=16,
        steps=2000,
    )


_DIGITS = (digit_motion, digit_motion_long, digit_motion_features, digit_motion_pixels, digit_scene)
_PAPER = (vitl16, vith16, vith16_384)
_VJEPA21 = (vjepa21_gigantic, vjepa21_giant, vjepa21_large, vjepa21_base)

CONFIGS: dict[str, Callable[[], PretrainConfig]] = {
    function.__name__: function for function in (*_DIGITS, *_PAPER, *_VJEPA21)
}
