"""V-JEPA 2.1's pretraining on images and videos: turns in one process, a share of several."""

import numpy as np
import pytest

from keras_vjepa import VJEPAPretrainer
from keras_vjepa.backend.distribution import DataParallel
from keras_vjepa.configuration import replace
from keras_vjepa.data.sources.digit_motion import prepare_digit_motion
from keras_vjepa.data.sources.digit_motion_rendering import DigitMotionConfig
from keras_vjepa.monitoring.tables import read_rows
from keras_vjepa.recipes import pretrain, pretrain_objects
from keras_vjepa.recipes.pretrain_configs import digit_motion
from keras_vjepa.recipes.pretrain_derived import check_options
from keras_vjepa.tools import check_resume
from tests.backend.test_distribution import BACKEND, RECIPE, finish, launch

SMALL = {
    "hidden_dim": 8,
    "num_layers": 2,
    "num_heads": 1,
    "patch_size": 16,
    "position_embedding": "rotary_pairs",
    "position_reach": 15,
    "level_layers": (0, 1),
    "modalities": True,
    "predictor_hidden_dim": 8,
    "predictor_num_layers": 1,
    "predictor_num_levels": 2,
    "predictor_predicts_context": True,
    "context_loss_weight": 0.5,
    "mask_token": 0,
    "batch_size": 2,
    "image_batch_size": 4,
    "image_num_blocks": 4,
    "monitor_clips": 4,
    "steps": 4,
    "warmup_steps": 1,
    "clip_after": 2,
    "checkpoint_every": 2,
    "log_every": 1,
}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    made = DigitMotionConfig(num_training_videos=5, num_test_videos=4)
    files = prepare_digit_motion(tmp_path_factory.mktemp("cache"), made, None)
    folders = {"data": str(files.folder / "train"), "image_data": str(files.folder / "test")}
    return {**SMALL, **folders}


def losses(workdir):
    return [row["loss"] for row in read_rows(workdir / "steps.jsonl")]


@pytest.mark.data
def test_images_need_modalities_and_a_share(options):
    for change, message in (
        ({"modalities": False}, "`modalities` must be True with `image_data`"),
        ({"image_share": 1.0}, "`image_share` must be"),
        ({"image_num_blocks": 0}, "`image_num_blocks` must be"),
        ({"target": "pixels"}, "`target` must be 'features' with `image_data`"),
    ):
        with pytest.raises(ValueError, match=message):
            check_options(replace(digit_motion(), **{**options, **change}))
    taught = {**options, "teacher": "vjepa_tiny_digits_pixels"}
    with pytest.raises(ValueError, match="`teacher` must be a preset with `modalities`, such as"):
        pretrain_objects.make_pretrainer(replace(digit_motion(), **taught))
    # On torch each kind has devices of its own, elsewhere all devices read it together.
    quick = {"truncation": "batch_min", "image_batch_size": 5}
    config = replace(digit_motion(), **{**options, **quick})
    parallel = DataParallel(0, 4, 4, "an engine")
    if BACKEND == "tensorflow":
        with pytest.raises(ValueError, match="`image_data` must be left out on TensorFlow"):
            pretrain_objects.make_batches(config, (4, 4, 4), parallel)
        return
    with pytest.raises(ValueError, match="batch_size` must be a multiple of"):
        pretrain_objects.make_batches(config, (4, 4, 4), parallel)


@pytest.mark.slow
def test_a_run_takes_turns_and_goes_on(options, tmp_path, monkeypatch):
    traced = []
    original = VJEPAPretrainer.sample_losses

    def counted(self, batch):
        traced.append(tuple(batch["videos"].shape))
        return original(self, batch)

    monkeypatch.setattr(VJEPAPretrainer, "sample_losses", counted)
    config = replace(digit_motion(), **options)
    pretrain.run(config, tmp_path / "whole")
    kinds = [shape[:2] for shape in traced if shape[0] in (2, 4) and shape[1] in (1, 8)]
    if BACKEND == "torch":
        assert kinds[-4:] == [(2, 8), (4, 1), (2, 8), (4, 1)]
    elif BACKEND == "jax":
        # Each shape is traced once (JAX traces a gradient without running it a second time).
        assert sorted(set(kinds)) == [(2, 8), (4, 1)] and len(kinds) == 2
    pretrain.run(replace(config, steps=2, schedule_steps=4), tmp_path / "stopped")
    pretrain.run(config, tmp_path / "stopped")
    assert check_resume.result_of(tmp_path / "stopped") == check_resume.result_of(
        tmp_path / "whole"
    )
    assert len(losses(tmp_path / "whole")) == 4
    with pytest.raises(ValueError, match="image_share 0.5 -> 0.25"):
        pretrain.run(replace(config, image_share=0.25), tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(BACKEND == "tensorflow", reason="refused there, see above")
def test_two_processes(options, tmp_path):
    """On torch one reads videos, the other images; elsewhere both take turns, as one process."""
    given = [f"--{name}={_text(value)}" for name, value in options.items()]
    command = [str(RECIPE), *given, "--workdir", str(tmp_path / "two")]
    codes, outputs = finish(launch(command, count=2))
    assert codes == [0, 0], "\n".join(outputs)
    config = replace(digit_motion(), **options)
    if BACKEND == "torch":
        assert "in 1 of 2 processes" in outputs[0]
        pretrainer = pretrain_objects.make_pretrainer(config)
        batches = pretrain_objects.make_batches(config, pretrainer.encoder.grid_shape)
        firsts = [
            np.asarray(pretrainer(one.batch(0)).detach())
            for one in (batches.videos, batches.images)
        ]
        assert losses(tmp_path / "two")[0] == pytest.approx(np.mean([np.mean(f) for f in firsts]))
    else:
        pretrain.run(config, tmp_path / "one")
        np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-5)


def _text(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else value
