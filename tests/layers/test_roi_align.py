"""RoIAlign against torchvision's numbers, and against samples drawn one by one."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa.layers import RoIAlign
from tests.gradients import loss_and_gradients
from tests.layers.small import in_float32, numpy
from tests.support import compiled, golden

FORMS = [(aligned, sampling) for aligned in (False, True) for sampling in (0, 2)]


@pytest.mark.parametrize("aligned,sampling", FORMS)
def test_equals_the_reference(aligned, sampling):
    """Boxes inside the map and beyond it, of no width, smaller than a cell."""
    arrays = golden("detection/roi_align.npz")
    features, rois = arrays["features"].transpose(0, 2, 3, 1), arrays["rois"]
    boxes = np.repeat(rois[None, :, 1:], len(features), axis=0)
    layer = RoIAlign(sampling_ratio=sampling, aligned=aligned)
    pooled = numpy(compiled(layer)(*map(ops.convert_to_tensor, (features, boxes))))
    actual = pooled[rois[:, 0].astype(int), np.arange(len(rois))].transpose(0, 3, 1, 2)
    expected = arrays[f"aligned_{str(aligned).lower()}_sampling_{sampling}"]
    assert np.abs(actual - expected).max() <= 1e-5


def sampled(features, box, bins, scale, sampling, aligned):
    """RoIAlign of one box as it is defined, sample by sample."""
    height, width, channels = features.shape
    left, top, right, bottom = box.astype("float64") * scale - (0.5 if aligned else 0.0)
    least = -np.inf if aligned else 1.0
    sizes = max(bottom - top, least), max(right - left, least)
    counts = [
        sampling or max(int(np.ceil(size / n)), 0) for size, n in zip(sizes, bins, strict=True)
    ]
    result = np.zeros((*bins, channels))
    for i, j in np.ndindex(*bins):
        for m, n in np.ndindex(*counts):
            y = top + sizes[0] / bins[0] * (i + (m + 0.5) / counts[0])
            x = left + sizes[1] / bins[1] * (j + (n + 0.5) / counts[1])
            if not (-1 <= y <= height and -1 <= x <= width):
                continue
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            upper = (1 - x + x0) * features[y0, x0] + (x - x0) * features[y0, x1]
            lower = (1 - x + x0) * features[y1, x0] + (x - x0) * features[y1, x1]
            result[i, j] += ((1 - y + y0) * upper + (y - y0) * lower) / max(
                counts[0] * counts[1], 1
            )
    return result


BOXES = [
    (3.0, 5.0, 70.0, 33.0),  # inside
    (-400.0, -900.0, 700.0, 1300.0),  # far beyond the map, on all sides
    (-8.0, -8.0, 0.5, 0.5),  # covering a corner
    (200.0, 200.0, 260.0, 260.0),  # completely outside
    (20.0, 9.0, 20.1, 9.2),  # smaller than a sample
    (50.0, 20.0, 30.0, 40.0),  # with its ends exchanged
    (0.0, 0.0, 80.0, 40.0),  # the whole map
    (-24.0, -24.0, 88.0, 56.0),  # up to the last place that counts
]


@pytest.mark.parametrize("aligned,sampling", [(False, 0), (True, 0), (True, 3)])
def test_equals_samples_one_by_one(aligned, sampling):
    features = np.random.default_rng(0).normal(size=(1, 5, 10, 2)).astype("float32")
    boxes = np.array([BOXES], "float32")
    layer = RoIAlign((3, 2), 1 / 8, sampling, aligned)
    actual = numpy(compiled(layer)(*map(ops.convert_to_tensor, (features, boxes))))[0]
    expected = [sampled(features[0], b, (3, 2), 1 / 8, sampling, aligned) for b in boxes[0]]
    assert np.abs(actual - np.stack(expected)).max() <= 1e-5


class Pooled(keras.layers.Layer):
    """Pools the boxes of a map that is learnt."""

    def build(self, boxes_shape):
        self.map = self.add_weight(shape=(1, 4, 6, 2), name="map")
        self.align = RoIAlign(2, 1 / 8)

    def call(self, boxes):
        return self.align(self.map, boxes)


def test_features_have_their_gradient():
    layer = Pooled()
    boxes = ops.convert_to_tensor(np.array([[[3, 2, 20, 30], [-9, 4, 40, 70]]], "float32"))
    layer.build(boxes.shape)
    loss, (gradient,), _ = loss_and_gradients(layer, boxes)
    assert np.abs(gradient).max() > 1e-3
    # The loss is quadratic, so that a central difference is exact.
    values, direction = numpy(layer.map.value), np.random.default_rng(0).normal(size=(1, 4, 6, 2))
    around = []
    for sign in (1, -1):
        layer.map.assign(values + sign * direction.astype("float32"))
        around.append(np.mean(np.square(numpy(compiled(layer)(boxes)) - 0.3)))
    assert abs((around[0] - around[1]) / 2 - np.sum(gradient * direction)) <= 1e-5


def test_round_trip_in_half_precision(tmp_path):
    layer = RoIAlign((2, 3), 0.125, 2, False, name="roi_align", dtype="mixed_bfloat16")
    shapes = (4, 6, 2), (2, 4)
    inputs = [keras.Input(shape) for shape in shapes]
    model = keras.Model(inputs, layer(*inputs))
    assert model.output.shape == (None, 2, 2, 3, 2)
    # Half precision cannot represent these positions.
    values = [np.linspace(0, 1, 48, dtype="float32").reshape(1, 4, 6, 2)]
    values.append(np.array([[[17.3, 1.1, 30.7, 9.9], [0.3, 0.1, 40.9, 20.3]]], "float32"))
    values = [ops.convert_to_tensor(value) for value in values]
    outputs = compiled(layer)(*values)
    assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype
    expected = compiled(RoIAlign((2, 3), 0.125, 2, False, dtype="float32"))(*values)
    assert np.abs(in_float32(outputs) - numpy(expected)).max() <= 0.01
    model.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras").get_layer("roi_align")
    np.testing.assert_array_equal(in_float32(compiled(restored)(*values)), in_float32(outputs))
    assert RoIAlign.from_config(layer.get_config()).get_config() == layer.get_config()


@pytest.mark.parametrize(
    "features,boxes,name",
    [
        ((1, 4, 4), (1, 2, 4), "features"),
        ((1, 4, 4, 2), (1, 4), "boxes"),
        ((1, 4, 4, 2), (1, 2, 5), "boxes"),
        ((1, 4, 4, 2), (2, 2, 4), "boxes"),
    ],
)
def test_other_shapes_are_named(features, boxes, name):
    with pytest.raises(ValueError, match=f"^`{name}` must be "):
        RoIAlign()(np.zeros(features, "float32"), np.zeros(boxes, "float32"))
