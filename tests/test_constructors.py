"""Numeric arguments of public constructors: what cannot be is refused in one line that names it."""

import inspect
import math
import re
import typing

import pytest

import keras_vjepa
from keras_vjepa import (
    AdamW,
    CosineSchedule,
    FeatureDecoder,
    FineTuningSchedule,
    LinearSchedule,
    VJEPAActionDetector,
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAProbe,
    VJEPAVideoClassifier,
    VJEPAVideoPreprocessor,
    WarmupCosine,
)
from keras_vjepa.data import (
    CausalMultiBlockMask,
    ClipSettings,
    MaskSampler,
    MultiBlockMask,
    PretrainTransform,
    RandomTokenMask,
    RandomTubeMask,
    ReadingLimits,
)
from keras_vjepa.data.transforms.augmentation import RandAugment
from keras_vjepa.evaluation.settings import ProbeSettings
from keras_vjepa.layers.embedding import TubeletEmbedding
from keras_vjepa.layers.pooling import AttentivePooler
from keras_vjepa.layers.roi_align import RoIAlign
from keras_vjepa.layers.transformer import SelfAttention, TransformerBlock
from keras_vjepa.layers.vision_block import VisionBlock
from keras_vjepa.models import DINOv2Backbone, HieraBackbone, OpenCLIPBackbone, VideoMAEBackbone
from keras_vjepa.models.diffusion_network import DiffusionNetwork

pytestmark = pytest.mark.data

NETWORK = {
    "clip_shape": (2, 4, 4), "feature_dim": 4, "grid_shape": (1, 1, 1), "width": 8,
    "multipliers": (1,), "num_blocks": 1,
}  # fmt: skip
SMALL = {"hidden_dim": 24, "num_layers": 1, "num_heads": 2}


def encoder():
    return VJEPABackbone(32, 4, **SMALL)


# The required arguments of each constructor, made when they are needed.
GIVEN = {
    VJEPABackbone: lambda: {"image_size": 32, "num_frames": 4, **SMALL},
    VJEPAPredictor: lambda: {"encoder_dim": 24, "grid_shape": (2, 2, 2), **SMALL},
    VJEPAPretrainer: lambda: {
        "encoder": encoder(),
        "predictor": VJEPAPredictor(24, (2, 2, 2), **SMALL),
    },
    VJEPAProbe: lambda: {"num_classes": 3, "num_heads": 2},
    VJEPAVideoClassifier: lambda: {"backbone": encoder(), "num_classes": 3},
    VJEPAActionDetector: lambda: {"backbone": encoder(), "num_classes": 3},
    DiffusionNetwork: lambda: NETWORK,
    FeatureDecoder: lambda: {"network": DiffusionNetwork(**NETWORK)},
    VJEPAVideoPreprocessor: lambda: {"image_size": 32, "num_frames": 4},
    AdamW: dict,
    WarmupCosine: lambda: {
        "start": 0.1, "peak": 1.0, "final": 0.0, "warmup_steps": 2, "total_steps": 9
    },
    CosineSchedule: lambda: {"start": 1.0, "final": 0.1, "total_steps": 9},
    FineTuningSchedule: lambda: {
        "start": 0.1, "peak": 1.0, "final": 0.0, "warmup_steps": 2, "total_steps": 9
    },
    LinearSchedule: lambda: {"start": 0.9, "final": 1.0, "total_steps": 9.0},
    MultiBlockMask: lambda: {"num_blocks": 2, "spatial_scale": 0.2},
    CausalMultiBlockMask: lambda: {
        "num_blocks": 2, "spatial_scale": 0.2, "num_context_frames": 4, "num_frames": 8
    },
    RandomTubeMask: lambda: {"ratio": 0.9},
    RandomTokenMask: lambda: {"ratio": 0.9},
    MaskSampler: lambda: {"masks": [RandomTubeMask(0.5)], "grid": (2, 4, 4)},
    ClipSettings: dict,
    PretrainTransform: lambda: {"crop_size": 32},
    ReadingLimits: dict,
    RandAugment: dict,
    ProbeSettings: dict,
    TubeletEmbedding: lambda: {"hidden_dim": 24},
    SelfAttention: lambda: {"num_heads": 2},
    TransformerBlock: lambda: {"num_heads": 2, "mlp_dim": 8},
    AttentivePooler: lambda: {"num_heads": 2},
    RoIAlign: dict,
    VisionBlock: lambda: {"num_heads": 2, "mlp_dim": 8},
    VideoMAEBackbone: lambda: {"image_size": 32, "num_frames": 4, **SMALL},
    OpenCLIPBackbone: lambda: {"image_size": 32, **SMALL},
    HieraBackbone: lambda: {"image_size": 32, "num_frames": 2, "embed_dim": 4},
    DINOv2Backbone: lambda: {"image_size": 32, **SMALL},
}  # fmt: skip

VALUES = (0, -1, 1.5, math.nan, math.inf, 10**30, 1e39, "7", True)

# Zeros that a constructor accepts, to leave something out or as a start.
ZEROS = """context_loss_weight context_warmup_start context_warmup_end mask_token
    seed clip_after warmup_steps epsilon layer_norm_epsilon beta_1 beta_2 max_bad_share
    erasing horizontal_flip variance_weight context_variance_weight context_covariance_weight start
    final peak momentum learning_rate weight_decay num_operations magnitude magnitude_std
    sampling_ratio dropout probability drop_path_rate head_dropout num_register_tokens
    interpolate_offset average
    """.split()
# Any finite number is accepted, because a loss that is not finite stops the training.
LARGE = """epsilon variance_weight context_variance_weight context_covariance_weight start final
    peak learning_rate weight_decay clip_norm loss_scale_factor magnitude_std total_steps""".split()


def has_a_use(constructor, name, value, is_whole):
    if value == 0 and not isinstance(value, bool):
        # A predictor without layers stands for weights that a file does not contain.
        return name in ZEROS or (constructor, name) == (VJEPAPredictor, "num_layers")
    return name in LARGE if value == 10**30 else value == 1.5 and not is_whole


def numeric_arguments(constructor):
    """Names of the arguments that can be one number, and whether it must be whole."""
    documented = constructor.__init__ if inspect.isclass(constructor) else constructor
    found = {}
    for name, kind in typing.get_type_hints(documented).items():
        kinds = set(typing.get_args(kind)) | {kind}
        if name != "return" and kinds & {int, float}:
            found[name] = float not in kinds
    return found


def test_all_public_classes_with_numbers_are_walked():
    public = [getattr(keras_vjepa, name) for name in keras_vjepa.__all__]
    classes = [one for one in public if inspect.isclass(one)]
    assert len(classes) > 5
    assert {one for one in classes if numeric_arguments(one)} <= GIVEN.keys()


@pytest.mark.parametrize("constructor", GIVEN, ids=lambda one: one.__name__)
def test_numeric_arguments(constructor):
    given, wrong = GIVEN[constructor](), {}
    arguments = numeric_arguments(constructor)
    assert arguments
    for name, is_whole in arguments.items():
        for value in VALUES:
            try:
                constructor(**{**given, name: value})
                said = "accepted"
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            is_right = re.fullmatch(rf"ValueError: .*`{name}`.*", said) or (
                said == "accepted" and has_a_use(constructor, name, value, is_whole)
            )
            if not is_right:
                wrong[name, value] = said
    assert not wrong, "\n".join(f"{key}: {said}" for key, said in wrong.items())
