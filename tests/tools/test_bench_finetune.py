"""The benchmark of fine-tuning: both do the same step, and the ratio is printed."""

import keras
import numpy as np
import pytest

from keras_vjepa.models.backbone import EncoderSize
from keras_vjepa.tools import bench_finetune

SMALL = EncoderSize(24, 2, 2)


@pytest.mark.slow
def test_ratio_and_rates(monkeypatch, capsys):
    monkeypatch.setitem(bench_finetune.SIZES, "tiny", SMALL)
    bench_finetune.main(["--size", "tiny", "--steps", "1"])
    said = capsys.readouterr().out
    assert said.count("ratio ") == 2 and "plain PyTorch on cpu: step" in said
    assert f"1 device on {keras.config.backend()}" in said and "keras_vjepa: step" in said
    classifier = bench_finetune.make_classifier("tiny")
    variables = classifier.trainable_variables
    scales = classifier.optimizer.scales(variables)
    plain = bench_finetune.make_plain("tiny")
    # There are four rates, each for the same number of weights: three of blocks and head, one of
    # the patches.
    assert len(set(scales)) == 4
    for rate in set(scales):
        count = sum(np.prod(v.shape) for s, v in zip(scales, variables, strict=True) if s == rate)
        groups = [
            group
            for group in plain.optimizer.param_groups
            if np.isclose(group["lr"], rate * bench_finetune.RATE)
        ]
        assert sum(weight.numel() for group in groups for weight in group["params"]) == count
