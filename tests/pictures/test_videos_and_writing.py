"""Cutting videos into clips, and writing rows of frames."""

import cv2
import numpy as np
import pytest
from PIL import Image

from keras_vjepa.data import MaskSampler, RandomTubeMask
from keras_vjepa.data.reading.video import read_frames, video_info
from keras_vjepa.pictures import (
    FrameRow,
    TokenState,
    WatchedVideo,
    check_picture_path,
    patch_colours,
    patch_similarity,
    token_states,
    write_rows,
)
from keras_vjepa.pictures.drawing import heat
from keras_vjepa.pictures.masks import hidden_share, hide
from keras_vjepa.pictures.surprise import hidden_boxes

pytestmark = pytest.mark.data


def numbered(count, height=24, width=40):
    """Frames that are as bright as their number says."""
    return np.repeat(np.arange(count, dtype=np.uint8), height * width * 3).reshape(
        count, height, width, 3
    )


@pytest.mark.parametrize("count,step", [(3, 4), (16, 2), (19, 2), (50, 4)])
def test_every_frame_has_the_token_that_saw_it(count, step):
    video = WatchedVideo(numbered(count), 24.0, clip_frames=4, frame_step=step, token_frames=2)
    assert video.clip_indices.shape == (len(video.starts), 4)
    assert video.clip_indices.max() == count - 1 or video.step > 1
    seen = video.clip_indices.reshape(-1, 2, 2)[..., 0].reshape(len(video.starts), 2)
    first_frames = video.of_frames(seen)
    behind = np.arange(count) - first_frames
    assert len(first_frames) == count and behind.min() == 0
    assert behind.max() < 2 * video.step
    for clip, time in np.ndindex(seen.shape):
        frames = video.frames_of_token(clip, time)
        assert len(frames) == 0 or frames[0] == seen[clip, time]


@pytest.mark.parametrize("ending", [".mp4", ".gif", ".png"])
def test_what_is_written_has_frames_size_and_rate(ending, tmp_path):
    path, frames = tmp_path / f"rows{ending}", 10 * numbered(10, 32, 48)
    write_rows(path, [FrameRow("input", frames), FrameRow("other", 255 - frames)], 12.5, "title")
    if ending == ".gif":
        with Image.open(path) as image:
            assert (image.n_frames, image.size, image.info["duration"]) == (10, (96, 32), 80)
            image.seek(9)
            left, right = (np.asarray(image.convert("RGB"))[5, x, 0] for x in (5, 90))
        assert abs(int(left) - 90) < 8 and abs(int(right) - 165) < 8
    elif ending == ".mp4":
        pytest.importorskip("av")
        info = video_info(path)
        assert (info.num_frames, info.height, info.width, info.fps) == (10, 32, 96, 12.5)
        last = read_frames(path, [9])[0].astype(int)
        assert abs(last[5, 5, 0] - 90) < 8 and abs(last[5, 90, 0] - 165) < 8
    else:
        image = cv2.imread(str(path))
        assert image.shape[1] > 8 * 128 and image.shape[0] > 2 * 85
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`output` must end in .mp4 or .gif or .png or .jpg"):
        check_picture_path(tmp_path / "a.webm", "output")
    with pytest.raises(ValueError, match=r"must end in .png or .jpg. Received: .*a.gif"):
        check_picture_path(tmp_path / "a.gif", "output", videos=False)
    with pytest.raises(OSError, match="folder that exists"):
        check_picture_path(tmp_path / "none" / "a.png")
    rows = [FrameRow("a", numbered(2)), FrameRow("b", numbered(3))]
    with pytest.raises(ValueError, match="`rows` must have frames of one shape"):
        write_rows(tmp_path / "a.png", rows, 24.0)
    assert not list(tmp_path.iterdir())


def test_the_hidden_share_of_pixels_is_the_masks():
    sampler = MaskSampler([RandomTubeMask(ratio=0.75)], (2, 4, 8), seed=3)
    [states] = token_states(sampler, 3)
    shown = [len(row) for row in sampler(step=0, batch_size=3)["context_indices_0"]]
    assert hidden_share(states) == 1 - np.mean(shown) / 64 == 0.75
    video = WatchedVideo(np.full((12, 64, 96, 3), 255, np.uint8), 24.0, clip_frames=4)
    drawn = hide(video.frames, video.of_frames(states))
    assert (drawn != 255).any(axis=-1).mean() == 0.75
    # The place of one token of the second clip is computed by hand.
    time, row, column = np.argwhere(states[1] == TokenState.TARGET)[0]
    assert (
        drawn[4 + 2 * time, 16 * row : 16 * row + 16, 12 * column : 12 * column + 12] < 255
    ).all()
    assert not np.array_equal(states[0], states[1])


def test_colours_tell_groups_of_patches_apart():
    rng = np.random.default_rng(0)
    features = rng.normal(scale=0.01, size=(1, 2, 4, 4, 8)).astype("float32")
    features[..., :2, 0] += 3
    colours = patch_colours(features).astype(int)
    assert abs(colours[..., :2, 0].mean() - colours[..., 2:, 0].mean()) > 200
    np.testing.assert_array_equal(patch_colours(features), colours)
    assert len(np.unique(patch_colours(np.ones((5, 4), "float32")))) == 1  # not noise


def test_a_patch_is_like_itself():
    features = np.random.default_rng(0).normal(size=(2, 2, 3, 4, 8)).astype("float32")
    features[1, 1, 2, 3] = 5 * features[0, 1, 0, 2]
    cosines = patch_similarity(features, (1, 0, 2))
    assert cosines.shape == (2, 2, 3, 4)
    np.testing.assert_allclose(cosines[[0, 1], [1, 1], [0, 2], [2, 3]], 1, rtol=1e-5)
    assert (cosines > 0.999).sum() == 2
    for patch in ((2, 0, 0), (0, -1, 0), (0, 0, 4), (0, 0)):
        with pytest.raises(ValueError, match="time 0 to 1, row 0 to 2, column 0 to 3. Received"):
            patch_similarity(features, patch)


@pytest.mark.parametrize("known", ["past", "around"])
@pytest.mark.parametrize("grid", [(4, 4, 4), (2, 5, 7), (3, 2, 1)])
def test_every_token_is_hidden_once(known, grid):
    boxes = hidden_boxes(grid, known)
    hidden = np.concatenate([box for _, box in boxes])
    np.testing.assert_array_equal(np.sort(hidden), np.arange(np.prod(grid)))
    for outside, box in boxes:
        assert not set(outside) & set(box) and len(outside)
        if known == "around":
            assert set(outside) | set(box) == set(range(np.prod(grid)))
    with pytest.raises(ValueError, match="`known` must leave something of the grid"):
        hidden_boxes((1, 1, 1), known)


def test_what_is_highest_is_brightest():
    maps = np.zeros((2, 2, 2), "float32")
    maps[1, 0, 1] = 4
    drawn = heat(np.full((2, 32, 32, 3), 90, np.uint8), maps).sum(axis=-1).astype(int)
    assert np.unravel_index(drawn.argmax(), drawn.shape)[0] == 1
    assert drawn[1, 4, 28] > drawn[1, 28, 4] + 200
    assert len(np.unique(drawn[0])) == 1


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path, monkeypatch):
    assert check_picture_path(tmp_path / "out.png") == tmp_path / "out.png"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(OSError, match="`output` must be a file in a folder that can be written"):
        check_picture_path(tmp_path / "out.png", "output")
