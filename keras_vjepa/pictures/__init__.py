"""Draw pictures and videos of what a model sees, finds alike, attends to and does not expect."""

from keras_vjepa.pictures.attention import encoder_attention, probe_attention
from keras_vjepa.pictures.changes import prediction_changes
from keras_vjepa.pictures.features import patch_colours, patch_features, patch_similarity
from keras_vjepa.pictures.masks import TokenState, token_states
from keras_vjepa.pictures.neighbors import nearest_videos
from keras_vjepa.pictures.surprise import prediction_errors, surprise
from keras_vjepa.pictures.videos import WatchedVideo, read_watched
from keras_vjepa.pictures.writing import FrameRow, check_picture_path, write_rows

__all__ = [
    "FrameRow",
    "TokenState",
    "WatchedVideo",
    "check_picture_path",
    "encoder_attention",
    "nearest_videos",
    "patch_colours",
    "patch_features",
    "patch_similarity",
    "prediction_changes",
    "prediction_errors",
    "probe_attention",
    "read_watched",
    "surprise",
    "token_states",
    "write_rows",
]
