"""Compute what the probe's query and the encoder's heads attend to (§3.3, App. D.1)."""

import math
from collections.abc import Sequence

import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_vjepa.arguments import places
from keras_vjepa.backend.device import compiled_alone
from keras_vjepa.data.transforms.crops import PIXEL_MEAN, PIXEL_STD, Colour
from keras_vjepa.models.families import HieraBackbone
from keras_vjepa.pictures.features import check_patch, grid_of
from keras_vjepa.pictures.videos import PicturedBackbone, WatchedVideo, whole_frame_size
from keras_vjepa.tasks.classifier import VJEPAVideoClassifier


def encoder_attention(
    backbone: PicturedBackbone,
    video: WatchedVideo,
    layer: int = -1,
    heads: Sequence[int] | None = None,
    patch: Sequence[int] | None = None,
    mean: Colour = PIXEL_MEAN,
    std: Colour = PIXEL_STD,
) -> NDArray[np.float32]:
    """Compute how much attention each patch gets in a block of the encoder.

    Args:
        backbone: the encoder.
        video: the video, cut into clips of as many frames as the backbone has.
        layer: number of the block, from 0; negative numbers count back from the last one, -1.
        heads: numbers of the heads, counted in the same way; None for the mean of all as one head.
        patch: time, row and column of the patch that attends; None for the mean of all patches.
        mean: mean of red, green and blue with which the encoder was trained.
        std: deviation of red, green and blue with which the encoder was trained.

    Returns:
        float32 `(clips, heads, time, rows, columns)`; for each clip and head they sum to one. What
        class and register tokens get, of a family that has them, is left out.

    Raises:
        ValueError: for a block, head or patch that does not exist, and for Hiera, most of whose
            blocks attend within windows.
    """
    if isinstance(backbone, HieraBackbone):
        raise ValueError(
            "`backbone` must attend to all patches in its blocks. Received: a HieraBackbone, whose "
            "blocks attend within windows and pool; a probe's attention can be drawn"
        )
    places(backbone.num_layers, layer=[layer])
    chosen = None if heads is None else places(backbone.num_heads, heads=heads)
    size = whole_frame_size(backbone, *video.frames.shape[1:3])
    grid = grid_of(backbone, size)
    first = getattr(backbone, "num_prefix_tokens", 0)
    queries = [*range(first, first + math.prod(grid))] if first else None
    if patch is not None:
        queries = [first + int(np.ravel_multi_index(check_patch(patch, grid), grid))]
    mean_attention = compiled_alone(
        lambda clip: ops.mean(backbone.attention_weights(clip, [layer], queries)[0], axis=2)
    )
    found = []
    for clip in video.clips(size, mean, std):
        mean_of_queries = ops.convert_to_numpy(
            mean_attention(ops.convert_to_tensor(clip[np.newaxis]))
        )[..., first:]
        if first:
            mean_of_queries = mean_of_queries / mean_of_queries.sum(axis=-1, keepdims=True)
        kept = mean_of_queries.mean(axis=1, keepdims=True)
        found.append(kept if chosen is None else mean_of_queries[:, chosen])
    return np.concatenate(found).reshape(len(found), -1, *grid)


def probe_attention(
    classifier: VJEPAVideoClassifier,
    video: WatchedVideo,
    heads: Sequence[int] | None = None,
    mean: Colour = PIXEL_MEAN,
    std: Colour = PIXEL_STD,
) -> NDArray[np.float32]:
    """Compute by how much the query of an attentive probe attends to each patch.

    Args:
        classifier: the classifier of the probe, which reads one clip at a time.
        video: the video, cut into clips of as many frames as the backbone has.
        heads: numbers of the probe's heads, from 0, or from -1 backwards; None for the mean of all.
        mean: mean of red, green and blue with which the encoder was trained.
        std: deviation of red, green and blue with which the encoder was trained.

    Returns:
        As `encoder_attention`.

    Raises:
        ValueError: for a head that does not exist, for average pooling, and for a classifier with a
            table of frame numbers.
    """
    if classifier.max_frames is not None:
        raise ValueError(
            "`classifier` must have no table of frames, whose clips cannot be read alone. "
            f"Received: `max_frames`={classifier.max_frames}"
        )
    backbone = classifier.backbone
    size = whole_frame_size(backbone, *video.frames.shape[1:3])
    attention = compiled_alone(classifier.probe.attention_weights)
    found = []
    for clip in video.clips(size, mean, std):
        tokens = ops.convert_to_tensor(backbone.predict_on_batch(clip[np.newaxis]))
        grid = grid_of(backbone, size)
        weights = ops.convert_to_numpy(attention(tokens))[..., -math.prod(grid) :]
        if heads is None:
            found.append(weights.mean(axis=1, keepdims=True))
        else:
            found.append(weights[:, places(weights.shape[1], heads=heads)])
    return np.concatenate(found).reshape(len(found), -1, *grid_of(backbone, size))
