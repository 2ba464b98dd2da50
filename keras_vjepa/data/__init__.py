"""Make batches out of files, with NumPy and OpenCV alone."""

from keras_vjepa.data.batches.clips import ClipSettings
from keras_vjepa.data.batches.directory import DirectoryData, from_directory
from keras_vjepa.data.batches.fine_tuning import FineTuningBatches
from keras_vjepa.data.batches.labelled import EvaluationBatches, LabelledBatches
from keras_vjepa.data.batches.mask_kinds import (
    CausalMultiBlockMask,
    MultiBlockMask,
    RandomTokenMask,
    RandomTubeMask,
)
from keras_vjepa.data.batches.mask_sampler import MaskSampler, mean_counts, paper_masks
from keras_vjepa.data.batches.mixing import Mixing
from keras_vjepa.data.batches.pretraining import ClipBatches
from keras_vjepa.data.batches.videos_and_images import VideosAndImages
from keras_vjepa.data.reading.limits import ReadingLimits
from keras_vjepa.data.sources.listing import list_samples
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.data.transforms.augmentation import AutoAugment, RandAugment
from keras_vjepa.data.transforms.training import (
    ImageProbeTransform,
    PretrainTransform,
    VideoProbeTransform,
)
from keras_vjepa.data.transforms.views import center_view, three_views

__all__ = [
    "AutoAugment",
    "CausalMultiBlockMask",
    "ClipBatches",
    "ClipSettings",
    "DirectoryData",
    "EvaluationBatches",
    "FineTuningBatches",
    "ImageProbeTransform",
    "LabelledBatches",
    "MaskSampler",
    "Mixing",
    "MultiBlockMask",
    "PretrainTransform",
    "RandAugment",
    "RandomTokenMask",
    "RandomTubeMask",
    "ReadingLimits",
    "Sample",
    "VideoProbeTransform",
    "VideosAndImages",
    "center_view",
    "from_directory",
    "list_samples",
    "mean_counts",
    "paper_masks",
    "three_views",
]
