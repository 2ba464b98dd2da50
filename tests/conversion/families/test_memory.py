"""Full-size files of V-JEPA's rivals convert in little more memory than they take."""

import os
import subprocess
import sys

import pytest

from tests.support import ROOT

MAKE = """
import sys
from keras_vjepa import models
from keras_vjepa.conversion import export_checkpoint
cls = getattr(models, sys.argv[1])
given = {"DINOv2Backbone": {"image_size": 518, "patch_size": 14}, "HieraBackbone": {
    "num_pools": 2, "fusion": True, "features": "fused"}}.get(sys.argv[1], {})
export_checkpoint(cls(**{**cls.arguments_of_size("large"), **given}), sys.argv[2])
"""
CONVERT = """
import sys
from keras_vjepa.monitoring.step_log import memory_in_use
from keras_vjepa.tools import convert_checkpoint
convert_checkpoint.main(sys.argv[1:])
print("peak", memory_in_use())
"""
CLASSES = {"videomae": "VideoMAEBackbone", "hiera": "HieraBackbone", "dinov2": "DINOv2Backbone"}


def run(code, *words):
    """Run some Python, and return what it prints."""
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.slow
@pytest.mark.parametrize("family", CLASSES)
def test_memory_of_a_full_size_file(family, tmp_path):
    file = tmp_path / "official.pth"
    run(MAKE, CLASSES[family], file)
    said = run(CONVERT, file, tmp_path / "preset", "--family", family)
    peak = int(said.split("peak ")[1])
    assert peak <= 2.5 * file.stat().st_size, peak / file.stat().st_size
