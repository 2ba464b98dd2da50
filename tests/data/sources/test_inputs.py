"""What users pass: paths, arrays and tensors in every layout, pictures, and lists of them."""

from pathlib import Path

import numpy as np
import pytest

from keras_vjepa.data.reading.in_memory import as_array, rgb
from keras_vjepa.data.sources.inputs import as_sources, is_one

pytestmark = pytest.mark.data

RNG = np.random.default_rng(0)
VIDEO = RNG.integers(256, size=(6, 20, 30, 3), dtype=np.uint8)
FRAME = VIDEO[0]


class Tensor:
    """Offers what a library's tensors offer, and stands for one on an accelerator."""

    def __init__(self, array, at="accelerator"):
        self.array, self.at = array, at
        self.shape, self.dtype = array.shape, array.dtype

    def detach(self):
        return self

    def cpu(self):
        return Tensor(self.array, "host")

    def __array__(self, dtype=None, copy=None):
        assert self.at == "host"
        return self.array


class DecodersArray:
    """What decord gives."""

    def __init__(self, array):
        self.shape, self.asnumpy = array.shape, lambda: array


class Exchanged:
    """A tensor that can only be handed over."""

    def __init__(self, array):
        self.shape, self.array = array.shape, array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("kind", [np.asarray, Tensor, DecodersArray, Exchanged])
def test_tensors_are_known_by_what_they_offer(kind):
    [found] = as_sources(kind(VIDEO))
    np.testing.assert_array_equal(found, VIDEO)
    assert is_one(kind(VIDEO)) and not is_one([kind(VIDEO), kind(VIDEO)])


def test_tensors_of_the_engines():
    torch = pytest.importorskip("torch")
    floats = torch.from_numpy(VIDEO).permute(0, 3, 1, 2).float() / 255
    for tensor in (floats, floats.requires_grad_(), floats.double()):
        np.testing.assert_array_equal(as_sources(tensor)[0], VIDEO)
    np.testing.assert_array_equal(as_sources(floats.bfloat16())[0], VIDEO)
    jax = pytest.importorskip("jax")
    np.testing.assert_array_equal(as_sources(jax.numpy.asarray(VIDEO))[0], VIDEO)
    half = jax.numpy.asarray(VIDEO / 255, "bfloat16")
    np.testing.assert_array_equal(as_sources(half)[0], VIDEO)
    with pytest.raises(ValueError, match="`inputs` must hold values"):
        jax.jit(lambda x: as_array(x) is None)(VIDEO)


@pytest.mark.parametrize(
    "given,expected",
    [
        (VIDEO, VIDEO),
        (VIDEO.transpose(0, 3, 1, 2), VIDEO),
        (VIDEO[:1].transpose(0, 3, 1, 2), VIDEO[:1]),
        (VIDEO[:4].transpose(0, 3, 1, 2), VIDEO[:4]),
        (VIDEO / 255, VIDEO),
        ((VIDEO / 255).astype("float16"), VIDEO),
        (VIDEO[..., :1], VIDEO[..., :1].repeat(3, -1)),
        (np.concatenate([VIDEO, VIDEO[..., :1]], -1), VIDEO),
        (FRAME, FRAME),
        (FRAME.transpose(2, 0, 1), FRAME),
        (FRAME[..., 0], FRAME[..., :1].repeat(3, -1)),
    ],
)
def test_layouts_and_numbers(given, expected):
    np.testing.assert_array_equal(rgb(given), expected)


@pytest.mark.parametrize(
    "shape",
    [(10, 3, 60, 3), (10, 1, 60, 4), (3, 60, 3), (3, 3, 20, 30), (3, 4, 20, 30)],
)
def test_layouts_that_could_mean_two_things_are_refused(shape):
    with pytest.raises(ValueError, match="`inputs` must say which axis holds the channels"):
        rgb(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    "array,message",
    [
        (VIDEO.astype("int64"), "uint8 from 0 to 255, or floats from 0 to 1. Received: int64"),
        (VIDEO.astype("uint16"), "Received: uint16"),
        (VIDEO > 3, "Received: bool"),
        (VIDEO.astype("float32"), "floats from 0 to 1. Received: float32 from 0 to 255"),
        (VIDEO / 255 - 1, "Received: float64 from -1 to 0"),
        (np.full((2, 8, 9, 3), np.nan), "Received: float64 from nan"),
        (VIDEO[:, :, :, [0, 1]], r"must be \(frames, height, width, 3\) or \(frames, 3"),
        (VIDEO.transpose(3, 0, 1, 2), r"Received shape: \(3, 6, 20, 30\); move the first axis"),
        (VIDEO[..., 0], r"must be \(height, width, 3\) or \(3, height, width\)"),
        (VIDEO[:0], r"at least one pixel. Received shape: \(0, 20"),
        (np.zeros(3), r"Received shape: \(3,\)"),
    ],
)
def test_other_arrays_are_refused(array, message):
    with pytest.raises(ValueError, match=message) as caught:
        rgb(array)
    assert "\n" not in str(caught.value)


def test_a_list_of_pictures_is_one_video_and_for_image_models_as_many_images():
    frames = list(VIDEO)
    for given in (frames, tuple(frames), [frames], [f.transpose(2, 0, 1) for f in frames]):
        [video] = as_sources(given)
        np.testing.assert_array_equal(video, VIDEO)
    assert is_one(frames) and not is_one([frames])
    assert [one.shape for one in as_sources(frames, images_apart=True)] == [FRAME.shape] * 6
    assert not is_one(frames, images_apart=True)
    [image] = as_sources([FRAME])
    np.testing.assert_array_equal(image, FRAME)


def test_lists_mix_all_kinds():
    found = as_sources([Path("a.mp4"), "b.png", VIDEO, FRAME, list(VIDEO)])
    assert found[:2] == ["a.mp4", "b.png"]
    assert [one.shape for one in found[2:]] == [VIDEO.shape, FRAME.shape, VIDEO.shape]
    assert as_sources(np.array(["a.mp4", "b.mp4"])) == ["a.mp4", "b.mp4"]
    assert [one.shape for one in as_sources(np.stack([VIDEO, VIDEO]))] == [VIDEO.shape] * 2


def test_pictures_of_pil():
    image = pytest.importorskip("PIL.Image")
    picture = image.fromarray(FRAME)
    np.testing.assert_array_equal(as_sources(picture)[0], FRAME)
    np.testing.assert_array_equal(as_sources([image.fromarray(f) for f in VIDEO])[0], VIDEO)
    assert as_sources(picture.convert("L"))[0].shape == FRAME.shape
    np.testing.assert_array_equal(as_sources(picture.convert("RGBA"))[0], FRAME)
    lying = image.fromarray(FRAME)
    lying.getexif()[0x0112] = 6  # the picture must be turned by a quarter
    assert as_sources(lying)[0].shape == (30, 20, 3)
    with pytest.raises(ValueError, match="pictures of 8 bits. Received: a PIL image of mode 'I;16"):
        as_sources(image.fromarray(FRAME[..., 0].astype("uint16")))


@pytest.mark.parametrize(
    "inputs,message",
    [
        (["a.mp4", 3], "element 1 of `inputs` must be a path, an array or tensor, .*Received: 3"),
        ([VIDEO, VIDEO * 1.0], "element 1 of `inputs` must be uint8 .*Received: float64"),
        ([VIDEO, list(VIDEO[:2]) + [4]], "frame 2 of element 1 of `inputs` must be a picture"),
        ([FRAME, FRAME[:9]], r"frames of one size .*\(9, 30\) for frame 1"),
        ([["a.jpg", "b.jpg"]], "frame 0 of element 0 of `inputs` must be a picture"),
        ([], "at least one video or image. Received: none"),
        ([[]], "element 0 of `inputs` must hold at least one frame"),
        (b"a.mp4", "must be a path"),
        (None, "must be a path, .*Received: None"),
        ({"videos": VIDEO}, "must be a path, .*Received: {'videos'"),
    ],
)
def test_other_inputs_are_named_with_their_place(inputs, message):
    with pytest.raises(ValueError, match=message) as caught:
        as_sources(inputs)
    assert "\n" not in str(caught.value)


def test_an_address_is_a_path():
    assert as_sources("https://example.org/~a.mp4") == ["https://example.org/~a.mp4"]
