"""Define the variants of the paper's ablations and what it found (§4, §5.1, App. E.3).

A variant is a change of options of pretraining. The figures are the paper's, in per cent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# The frames of a clip in the paper, which its causal masks are named after.
PAPER_FRAMES = 16


@dataclass(frozen=True)
class Variant:
    """Says what a row of an ablation changes.

    Attributes:
        name: name of the row.
        run: name of the pretraining, which several rows may share.
        changes: options of pretraining, with their values.
        context_frames: frames that causal masks show, of the paper's 16; None for other masks.
        pooling: how the frozen probe pools, "attentive" or "average".
        share: share of the training videos that are pretrained on, in (0, 1].
        paper: the paper's figures, one for each column of the table; empty where it has none.
    """

    name: str
    run: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    context_frames: int | None = None
    pooling: str = "attentive"
    share: float = 1.0
    paper: tuple[float, ...] = ()

    def options(self, num_frames: int) -> dict[str, Any]:
        """List the options that the variant sets, for clips of a number of frames.

        Args:
            num_frames: number of frames, at least 1.

        Example:

        >>> Variant("causal", "causal", context_frames=6).options(8)
        {'max_context_frames': 3}
        """
        if self.context_frames is None:
            return {**self.changes}
        frames = max(1, num_frames * self.context_frames // PAPER_FRAMES)
        return {**self.changes, "max_context_frames": frames}


@dataclass(frozen=True)
class Ablation:
    """Holds a table of the paper.

    Attributes:
        title: what varies.
        base: name of the built-in config that the variants change, unless another one is given.
        changes: options that this ablation sets in that config.
        columns: names of the paper's columns.
        variants: the rows.
        findings: pairs of rows, of which the paper finds the first one better.
    """

    title: str
    base: str
    changes: Mapping[str, Any]
    columns: tuple[str, ...]
    variants: tuple[Variant, ...]
    findings: tuple[tuple[str, str], ...]

    def varied(self) -> set[str]:
        """Return the names of all options that the variants set."""
        causal = any(one.context_frames for one in self.variants)
        names = {name for one in self.variants for name in one.changes}
        return names | ({"max_context_frames"} if causal else set())


# Targets, pooling and data are compared on a config of which it is known that it learns.
_TOKENS: dict[str, Any] = {"base": "digit_motion_features", "changes": {}}
# Blocks need a grid on which they can differ. This one is 8 x 6 x 6; the blocks of the paper hide
# 63 % and 83 % of it, and 63 % and 81 % of the paper's grid, 8 x 14 x 14. Tokens have one frame, so
# that 6 and 12 of 16 frames are 3 and 6 of 8 exactly, and motion is in several tokens only. A step
# takes 2.7 times as long as on the other grid, so that there are fewer: 1,500 are enough there
# to learn the digit (docs/learning.md).
_BLOCKS: dict[str, Any] = {
    "base": "digit_motion_features",
    "changes": {"image_size": 24, "patch_size": 4, "steps": 1500},
}
_FROZEN = ("K400", "SSv2", "IN1K")


def _blocks(*kinds: tuple[int, float], temporal_scale: float = 1.0) -> dict[str, Any]:
    """Return options of multi-block masks, for kinds of a number of blocks and their area."""
    return {
        "masks": "multi_block",
        "mask_num_blocks": tuple(number for number, _ in kinds),
        "mask_spatial_scale": tuple(scale for _, scale in kinds),
        "mask_temporal_scale": (temporal_scale, temporal_scale),
    }


_PAPER_BLOCKS = _blocks((8, 0.15), (2, 0.7))
_CAUSAL = {**_PAPER_BLOCKS, "masks": "causal_multi_block"}
_FEATURES = {"target": "features", "normalize_targets": True, "loss_exponent": 1.0}
_TUBES = {"masks": "random_tube", "mask_ratio": 0.9}
# VideoMAE's objective (its §3): one set of tubes, normalised pixels of the hidden tokens, a squared
# error, and nothing else. V-JEPA's predictor takes the place of its decoder.
_VIDEOMAE = {
    **_TUBES,
    "mask_sets": 1,
    "target": "pixels",
    "normalize_targets": True,
    "loss_exponent": 2.0,
    "context_variance_weight": 0.0,
    "context_covariance_weight": 0.0,
}
_TWO_KINDS = "two kinds: 8 of 0.15, 2 of 0.7"

ABLATIONS: dict[str, Ablation] = {
    "1": Ablation(
        "target of the prediction",
        **_TOKENS,
        columns=(*_FROZEN, "K400 fine-tuned"),
        variants=(
            Variant(
                "pixels",
                "pixels",
                # As in digit_motion_pixels: normalised, an even background would not count.
                {"target": "pixels", "normalize_targets": False, "loss_exponent": 2.0},
                paper=(68.6, 66.0, 73.3, 85.4),
            ),
            Variant("features", "features", _FEATURES, paper=(73.7, 66.2, 74.8, 85.6)),
        ),
        findings=(("features", "pixels"),),
    ),
    "2": Ablation(
        "number of videos, at the same number of steps",
        **_TOKENS,
        columns=(*_FROZEN, "average"),
        variants=(
            Variant("5 % of the videos", "5 percent", _FEATURES, share=0.05),
            Variant(
                "25 % of the videos",
                "25 percent",
                _FEATURES,
                share=0.25,
                paper=(72.7, 66.1, 73.9, 70.9),
            ),
            Variant("all videos", "features", _FEATURES, paper=(73.7, 66.2, 74.8, 71.5)),
        ),
        findings=(
            ("all videos", "25 % of the videos"),
            ("25 % of the videos", "5 % of the videos"),
        ),
    ),
    "3": Ablation(
        "pooling of the probe",
        **_TOKENS,
        columns=("K400", "SSv2"),
        variants=(
            Variant("average", "features", _FEATURES, pooling="average", paper=(56.7, 50.1)),
            Variant("attentive", "features", _FEATURES, paper=(73.7, 66.2)),
        ),
        findings=(("attentive", "average"),),
    ),
    "4": Ablation(
        "masks",
        **_BLOCKS,
        columns=_FROZEN,
        variants=(
            Variant("random-tube[0.9]", "random tube", _TUBES, paper=(51.5, 46.4, 55.6)),
            Variant("causal multi-block[6]", "causal 6", _CAUSAL, 6, paper=(61.3, 49.8, 66.9)),
            Variant("causal multi-block[12]", "causal 12", _CAUSAL, 12, paper=(71.9, 63.6, 72.2)),
            Variant("multi-block", "multi-block", _PAPER_BLOCKS, paper=(72.9, 67.4, 72.8)),
        ),
        findings=(
            ("multi-block", "causal multi-block[12]"),
            ("causal multi-block[12]", "causal multi-block[6]"),
            ("causal multi-block[6]", "random-tube[0.9]"),
        ),
    ),
    "videomae": Ablation(
        "objective: V-JEPA's, or VideoMAE's with V-JEPA's predictor as decoder",
        **_BLOCKS,
        columns=_FROZEN,
        variants=(
            Variant("VideoMAE", "videomae", _VIDEOMAE, paper=(77.8, 65.5, 71.1)),
            Variant(
                "V-JEPA", "vjepa", {**_PAPER_BLOCKS, **_FEATURES}, paper=(80.8, 69.5, 74.8)
            ),
        ),
        findings=(("V-JEPA", "VideoMAE"),),
    ),
    "8": Ablation(
        "blocks (Fig. 8)",
        **_BLOCKS,
        columns=(),
        variants=(
            Variant(_TWO_KINDS, "multi-block", _PAPER_BLOCKS),
            Variant("one kind: 8 of 0.15", "short range", _blocks((8, 0.15))),
            Variant("one kind: 2 of 0.7", "long range", _blocks((2, 0.7))),
            # These four hide 83 to 85 % of the grid, as 2 of 0.7 does.
            # A nearly square block would hide all of the 6 x 6 patches; this one hides 5 x 6.
            Variant(
                "one kind: 1 of 0.9",
                "1 block",
                {**_blocks((1, 0.9)), "mask_aspect_ratio": (0.75, 0.75)},
            ),
            Variant("one kind: 4 of 0.5", "4 blocks", _blocks((4, 0.5))),
            Variant("one kind: 8 of 0.3", "8 blocks", _blocks((8, 0.3))),
            Variant("one kind: 16 of 0.15", "16 blocks", _blocks((16, 0.15))),
            Variant("half the area", "half the area", _blocks((8, 0.07), (2, 0.35))),
            Variant(
                "half the time",
                "half the time",
                _blocks((8, 0.15), (2, 0.7), temporal_scale=0.5),
            ),
            Variant(
                "a quarter of the time",
                "a quarter of the time",
                _blocks((8, 0.15), (2, 0.7), temporal_scale=0.25),
            ),
        ),
        findings=(
            (_TWO_KINDS, "one kind: 8 of 0.15"),
            (_TWO_KINDS, "one kind: 2 of 0.7"),
            ("one kind: 8 of 0.3", "one kind: 1 of 0.9"),
            (_TWO_KINDS, "half the area"),
            (_TWO_KINDS, "half the time"),
            ("half the time", "a quarter of the time"),
        ),
    ),
}  # fmt: skip
