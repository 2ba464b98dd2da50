"""Names, preprocessor, training by default, and what presets of classifiers keep and drop."""

import json
import logging

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import AdamW, VJEPABackbone, VJEPAVideoClassifier, VJEPAVideoPreprocessor
from tests.support import slow_but_on

NAMES = ["cat", "dog", "juggling"]
VIDEO = np.random.default_rng(0).integers(256, size=(9, 20, 30, 3), dtype=np.uint8)


def backbone(**arguments):
    return VJEPABackbone(
        **{
            "image_size": 16,
            "num_frames": 2,
            "patch_size": 8,
            "hidden_dim": 8,
            "num_layers": 1,
            "num_heads": 1,
            **arguments,
        }
    )


def classifier(**arguments):
    preprocessor = VJEPAVideoPreprocessor(16, 2)
    return VJEPAVideoClassifier(
        backbone(), **{"class_names": NAMES, "preprocessor": preprocessor, **arguments}
    )


@pytest.fixture(scope="module")
def model():
    return classifier()


@pytest.fixture
def preset(model, tmp_path):
    model.save_to_preset(tmp_path / "preset")
    return tmp_path / "preset"


# --- From a file to names ------------------------------------------------------------------------


def test_classify_names_the_likeliest(model):
    found = model.classify(VIDEO)
    assert sorted(name for name, _ in found) == NAMES
    shares = [share for _, share in found]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1)
    logits = model.predict(model.preprocessor(VIDEO), verbose=0)
    probabilities = ops.convert_to_numpy(ops.softmax(logits))[0]
    assert dict(found) == pytest.approx(dict(zip(NAMES, probabilities.tolist(), strict=True)))
    assert model.classify(VIDEO, top=1) == found[:1]


def test_one_video_is_one_list_and_several_are_as_many(model):
    one = model.classify(VIDEO)
    same = [list(VIDEO), VIDEO / 255, ops.convert_to_tensor(VIDEO), VIDEO.transpose(0, 3, 1, 2)]
    for given in same:
        assert dict(model.classify(given)) == pytest.approx(dict(one), abs=1e-5)
    # There are two batches, and the second is not full.
    several = model.classify([VIDEO, VIDEO[0], *same], batch_size=4)
    assert (
        len(several) == 6
        and [dict(row) for row in several[2:]] == [pytest.approx(dict(one), abs=1e-5)] * 4
    )
    assert dict(several[1]) != pytest.approx(dict(one), abs=1e-5)
    assert [len(row) for row in model.classify([VIDEO], top=2)] == [2]


def test_iterators_are_lists(model):
    given = [VIDEO, VIDEO[0]]
    assert model.classify(iter(given)) == model.classify(given)


def test_clips_and_views_are_combined_as_in_an_evaluation():
    several = classifier(
        num_clips=2, num_views=3, preprocessor=VJEPAVideoPreprocessor(16, 2, 1, 2, 3)
    )
    probabilities = ops.softmax(several.predict(several.preprocessor(VIDEO), verbose=0))
    assert dict(several.classify(VIDEO)) == pytest.approx(
        dict(zip(NAMES, ops.convert_to_numpy(probabilities)[0].tolist(), strict=True)), abs=1e-5
    )


def test_without_names_there_are_numbers():
    plain = classifier(class_names=None, num_classes=4)
    assert sorted(name for name, _ in plain.classify(VIDEO)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "use,message",
    [
        (lambda: classifier(preprocessor=None).classify(VIDEO), "`preprocessor` must be set to cl"),
        (lambda: classifier(max_frames=9).classify(VIDEO), "`max_frames` must be None to classify"),
        (lambda: classifier().classify(VIDEO, top=0), "`top` must be at least 1. Received: 0"),
        (lambda: classifier().classify(["a.mp4", 3]), "element 1 of `inputs` must be a path"),
        (lambda: classifier(class_names={*NAMES}), "`class_names` must be a list of names. Rec"),
        (lambda: classifier(class_names=None), "`num_classes` or `class_names` must be given"),
        (lambda: classifier(num_classes=4), "must hold `num_classes`=4 names. Received: 3"),
        (lambda: classifier(class_names=["a", "b", "a"]), "must differ. Received twice: 'a'"),
        (lambda: classifier(class_names="abc"), "must be a list of names. Received: 'abc'"),
        (lambda: classifier(class_names=[1, 2]), r"must be a list of names. Received: \[1, 2\]"),
        (lambda: classifier(num_clips=2), "`preprocessor` must have `num_clips`=2 as the class"),
        (lambda: classifier(preprocessor=3), "`preprocessor` must be a VJEPAVideoPreprocessor or"),
    ],
)
def test_what_does_not_fit_is_named(use, message):
    with pytest.raises(ValueError, match=message) as caught:
        use()
    assert "\n" not in str(caught.value)


# --- Training by default -------------------------------------------------------------------------


def test_it_trains_as_it_is():
    made = classifier()
    videos, labels = made.preprocessor([VIDEO, VIDEO[::-1], VIDEO[3:]]), np.array([0, 1, 2])
    history = made.fit(videos, labels, epochs=2, verbose=0).history
    assert set(history) == {"loss", "accuracy"}
    assert set(made.evaluate(videos, labels, verbose=0, return_dict=True)) == {"loss", "accuracy"}
    assert isinstance(made.optimizer, AdamW)


def test_compile_keeps_defaults_for_what_is_not_given():
    made = classifier(trainable_backbone=True)
    assert float(made.optimizer.learning_rate) == pytest.approx(1e-4)
    made.compile()
    assert float(made.optimizer.learning_rate) == pytest.approx(1e-4) and made.loss.from_logits
    made.compile(keras.optimizers.SGD(0.5), "categorical_crossentropy")
    assert float(made.optimizer.learning_rate) == 0.5
    assert type(made.loss) is keras.losses.CategoricalCrossentropy and made.loss.from_logits
    # One-hot labels need another accuracy, so the default metrics must be gone.
    labels = np.eye(3, dtype="float32")
    history = made.fit(np.zeros((3, 2, 16, 16, 3), "float32"), labels, verbose=0).history
    assert set(history) == {"loss"}
    assert float(classifier().optimizer.learning_rate) == pytest.approx(1e-3)


@slow_but_on("torch")
def test_what_belongs_to_it_is_in_the_keras_file(tmp_path, recwarn):
    made = classifier()
    made.save(tmp_path / "fresh.keras")
    fresh = keras.saving.load_model(tmp_path / "fresh.keras")
    assert fresh.classify(VIDEO) == made.classify(VIDEO)
    assert fresh.get_config() == made.get_config()
    videos, labels = made.preprocessor([VIDEO, VIDEO[::-1], VIDEO[3:]]), np.array([0, 1, 2])
    made.fit(videos, labels, verbose=0)
    made.save(tmp_path / "trained.keras")
    trained = keras.saving.load_model(tmp_path / "trained.keras")
    assert repr(trained.preprocessor) == repr(made.preprocessor)
    assert int(trained.optimizer.iterations) == 1
    losses = [m.fit(videos, labels, verbose=0).history["loss"] for m in (made, trained)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    assert not [w for w in recwarn if "optimizer" in str(w.message) or "compile" in str(w.message)]


# --- Presets -------------------------------------------------------------------------------------


def test_a_preset_holds_all_that_belongs_to_it(model, preset):
    restored = VJEPAVideoClassifier.from_preset(preset)
    assert restored.get_config() == {
        **model.get_config(),
        "backbone": restored.get_config()["backbone"],
    }
    assert restored.classify(VIDEO) == model.classify(VIDEO)
    own = VJEPAVideoPreprocessor.from_preset(preset)
    assert repr(own) == repr(model.preprocessor)
    assert "preprocessor" not in json.loads((preset / "task.json").read_text())["config"]


def test_what_others_put_into_a_preset_stays(model, preset):
    (preset / "notes").mkdir()
    (preset / "notes" / "a.txt").write_text("of the user")
    (preset / "README.md").write_text("a card")
    backbone().save_to_preset(preset)
    names = {path.name for path in preset.iterdir()}
    kept = {"notes", "README.md", "preprocessor.json"}
    assert names == {"config.json", "metadata.json", "model.weights.h5", *kept}
    assert (preset / "notes" / "a.txt").read_text() == "of the user"
    model.save_to_preset(preset)
    assert (preset / "README.md").read_text() == "a card"
    assert VJEPAVideoClassifier.from_preset(preset).class_names == NAMES


def test_a_preprocessor_may_come_first(tmp_path):
    VJEPAVideoPreprocessor(16, 2, frame_step=3).save_to_preset(tmp_path / "preset")
    backbone().save_to_preset(tmp_path / "preset")
    made = VJEPAVideoClassifier.from_preset(tmp_path / "preset", class_names=NAMES, num_clips=2)
    assert made.preprocessor.frame_step == 3 and made.preprocessor.num_clips == 2
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="`folder` must not exist, be empty or be a preset"):
        made.save_to_preset(elsewhere)
    assert [path.name for path in elsewhere.iterdir()] == ["mine.txt"]


def test_a_preset_without_a_preprocessor_gets_one_of_its_sizes(tmp_path):
    backbone().save_to_preset(tmp_path / "preset")
    made = VJEPAVideoClassifier.from_preset(tmp_path / "preset", class_names=NAMES)
    assert (made.preprocessor.image_size, made.preprocessor.num_frames) == (16, 2)
    assert len(made.classify(VIDEO)) == 3


def test_other_classes_get_a_new_head_and_one_line(model, preset, caplog):
    for changes, number, names in (
        ({"num_classes": 7}, 7, None),
        ({"class_names": ["x", "y"]}, 2, ["x", "y"]),
        ({"class_names": NAMES[::-1]}, 3, NAMES[::-1]),
    ):
        caplog.clear()
        other = VJEPAVideoClassifier.from_preset(preset, **changes)
        assert (other.num_classes, other.class_names) == (number, names)
        [record] = caplog.records
        line = record.getMessage()
        assert f"the probe of its 3 classes; that of {number} classes begins anew" in line
        for ours, theirs in zip(
            other.backbone.get_weights(), model.backbone.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_classes_without_names_can_be_named(tmp_path, caplog):
    plain = classifier(class_names=None, num_classes=3)
    plain.save_to_preset(tmp_path / "preset")
    # Presets from before there were class names look like this.
    described = json.loads((tmp_path / "preset" / "task.json").read_text())
    del described["config"]["class_names"]
    (tmp_path / "preset" / "task.json").write_text(json.dumps(described))
    named = VJEPAVideoClassifier.from_preset(tmp_path / "preset", class_names=NAMES)
    assert named.class_names == NAMES and not caplog.records
    np.testing.assert_array_equal(named.probe.get_weights()[0], plain.probe.get_weights()[0])


@pytest.mark.parametrize("kind", ["sincos", "rotary"])
def test_a_backbone_of_another_size_keeps_its_weights(kind, tmp_path, caplog):
    arguments = {"position_embedding": kind}
    small = backbone(**arguments)
    small.save_to_preset(tmp_path / "preset")
    sizes = {"num_frames": 4, "image_size": 32}
    large = VJEPABackbone.from_preset(tmp_path / "preset", **sizes)
    assert large.video_shape == (4, 32, 32, 3)
    clips = np.random.default_rng(0).normal(size=(1, 4, 32, 32, 3)).astype("float32")
    # The small model stretches its table for clips of that size in the same way.
    np.testing.assert_allclose(
        ops.convert_to_numpy(large(clips)), ops.convert_to_numpy(small(clips)), atol=1e-5
    )
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    wanted = [f"Positions of {tmp_path / 'preset'} were stretched from 2 x 16 x 16 to 4 x 32 x 32"]
    assert lines == (wanted if kind == "sincos" else [])
    if kind == "sincos":
        fresh = VJEPABackbone.from_preset(tmp_path / "preset", position_mode="fresh", **sizes)
        made = backbone(**sizes)
        np.testing.assert_array_equal(
            ops.convert_to_numpy(fresh.position_table), ops.convert_to_numpy(made.position_table)
        )


@pytest.mark.parametrize(
    "change,message",
    [
        ({"num_frames": 1}, "`num_frames` must be more than 1 for the weights of .*Received: 1"),
        ({"hidden_dim": 16}, "`hidden_dim` must be 8 for the weights of .*Received: 16"),
        ({"image_size": 20}, "`image_size` must be a multiple of `patch_size`=8. Received: 20"),
        ({"frames": 3}, "`overrides` must be arguments of VJEPABackbone"),
    ],
)
def test_what_the_weights_do_not_fit_is_one_line(change, message, tmp_path):
    backbone().save_to_preset(tmp_path / "preset")
    with pytest.raises(ValueError, match=message) as caught:
        VJEPABackbone.from_preset(tmp_path / "preset", **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cls", [VJEPABackbone, VJEPAVideoPreprocessor, VJEPAVideoClassifier])
def test_what_is_no_preset_is_one_line(cls, tmp_path):
    arguments = {"num_classes": 3} if cls is VJEPAVideoClassifier else {}
    checkpoint = tmp_path / "x.pth.tar"
    checkpoint.touch()
    with pytest.raises(FileNotFoundError, match="which is a file; .*: keras-vjepa convert"):
        cls.from_preset(checkpoint, **arguments)
    (tmp_path / "m.keras").touch()
    with pytest.raises(FileNotFoundError, match="is loaded by keras.models.load_model"):
        cls.from_preset(tmp_path / "m.keras", **arguments)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "timesformer"}))
    with pytest.raises(ValueError, match="another package's model, 'timesformer'.*vjepa2"):
        cls.from_preset(tmp_path, **arguments)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "videomae"}))
    with pytest.raises(ValueError, match="must hold model.safetensors, or several"):
        cls.from_preset(tmp_path, **arguments)


@pytest.mark.parametrize("num_classes", [3, 5])
def test_a_classifier_of_another_size_has_that_backbone_and_preprocessor(
    model, preset, num_classes, caplog
):
    """`image_size` and `num_frames` are its parts' arguments; the probe is kept, or is new."""
    sizes = {"image_size": 24, "num_frames": 4}
    made = VJEPAVideoClassifier.from_preset(preset, num_classes=num_classes, **sizes)
    assert made.backbone.video_shape == (4, 24, 24, 3)
    assert (made.preprocessor.image_size, made.preprocessor.num_frames) == (24, 4)
    assert len(made.classify(VIDEO)) == num_classes and not made.backbone.trainable
    lines = [record.getMessage() for record in caplog.records]
    assert sum("were stretched from 2 x 16 x 16 to 4 x 24 x 24" in line for line in lines) == 1
    alone = VJEPABackbone.from_preset(preset, **sizes)
    pairs = [(made.backbone, alone)]
    if num_classes == 3:
        pairs.append((made.probe, model.probe))
    for one, other in pairs:
        for weights, wanted in zip(one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(weights, wanted)
    assert made.class_names == (NAMES if num_classes == 3 else None)


def test_sizes_need_no_weights(preset):
    fresh = VJEPAVideoClassifier.from_preset(preset, load_weights=False, num_frames=4)
    assert fresh.backbone.num_frames == 4 and fresh.class_names == NAMES


def test_names_of_arguments_are_checked_first(preset):
    for folder in (preset, "nowhere/at/all"):
        with pytest.raises(ValueError, match="'num_clases'. is no argument of VJEPAVideoClassifi"):
            VJEPAVideoClassifier.from_preset(folder, num_clases=7)


def test_a_smaller_model_in_its_place_is_one_line(model, preset, caplog):
    model.backbone.save_to_preset(preset)
    [line] = [record.getMessage() for record in caplog.records]
    assert line == f"Removed from {preset}: task.json, task.weights.h5, of the model that was there"
    caplog.clear()
    model.save_to_preset(preset)
    assert not caplog.records


def test_where_presets_are_written(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model.save_to_preset("~/mine")
    assert (tmp_path / "mine" / "task.json").is_file()
    made = VJEPAVideoClassifier.from_preset("~/mine", load_weights=False)
    assert made.class_names == NAMES
    with pytest.raises(ValueError, match="on a disk; upload it from there with `keras_vjepa.upl"):
        model.save_to_preset("hf://user/repo")
    (tmp_path / "file").touch()
    for use in (model.save_to_preset, model.preprocessor.save_to_preset):
        with pytest.raises(FileExistsError, match="Received: .*file, which is a file"):
            use(tmp_path / "file")


@pytest.mark.parametrize("names", [np.array(NAMES), tuple(NAMES), dict.fromkeys(NAMES).keys()])
def test_names_are_kept_as_text(names):
    made = classifier(class_names=names)
    assert made.class_names == NAMES and {type(name) for name in made.class_names} == {str}


def test_shapes_are_known_beforehand(model):
    assert model.compute_output_shape((None, 2, 16, 16, 3)) == (None, 3)
    with pytest.raises(ValueError, match="`videos` must hold `num_clips`=1 clips. Received: 2"):
        model.compute_output_shape((None, 2, 2, 16, 16, 3))


# --- Losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss,kind",
    [
        ("auto", keras.losses.SparseCategoricalCrossentropy),
        ("sparse_categorical_crossentropy", keras.losses.SparseCategoricalCrossentropy),
        ("CategoricalCrossentropy", keras.losses.CategoricalCrossentropy),
        (keras.losses.binary_crossentropy, keras.losses.BinaryCrossentropy),
    ],
)
def test_names_of_losses_mean_those_of_logits(model, loss, kind):
    model.compile(loss=loss)
    assert type(model.loss) is kind and model.loss.from_logits
    model.compile()


def test_losses_of_probabilities_are_warned_of(model, recwarn):
    with pytest.warns(UserWarning, match=r"CategoricalFocalCrossentropy\(from_logits=True\). Rec"):
        model.compile(loss=keras.losses.CategoricalFocalCrossentropy())
    model.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    model.compile(loss="mse")
    assert not recwarn and model.loss == "mse"
    model.compile()
