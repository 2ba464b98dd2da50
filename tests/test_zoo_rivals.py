"""Built-in names of V-JEPA's rivals: what they say; a file is fetched, converted and kept."""

import dataclasses
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import keras_vjepa
from keras_vjepa import (
    VJEPABackbone,
    VJEPAPretrainer,
    VJEPAVideoClassifier,
    VJEPAVideoPreprocessor,
)
from keras_vjepa.conversion import export_checkpoint
from keras_vjepa.models import DINOv2Backbone, OpenCLIPBackbone, VideoMAEBackbone
from keras_vjepa.presets.downloads import TRUST_VARIABLE
from keras_vjepa.presets.preset import BUILT_IN
from keras_vjepa.zoo_rivals import RivalEntry
from tests.support import ROOT

pytestmark = pytest.mark.data

RIVALS = {name: entry for name, entry in BUILT_IN.items() if isinstance(entry, RivalEntry)}


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize("name", RIVALS)
def test_what_a_name_says(name):
    entry = RIVALS[name]
    described = keras_vjepa.list_presets(entry.backbone)[name]
    assert described["parameters"] > 20_000_000 and described["licence"]
    assert described["source"].startswith("https://")
    assert bool(described["files"]) == entry.is_download
    assert f"`{name}`" in (ROOT / "docs" / "rivals.md").read_text()
    preprocessor = VJEPAVideoPreprocessor.from_preset(name)
    assert list(preprocessor.get_config()["mean"]) == list(entry.preprocessor().mean)
    assert preprocessor.num_frames == described["input"][0]


def test_a_file_that_cannot_be_downloaded_says_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="drive.google.com.*keras-vjepa convert FILE FOLDER --fam"):
        VideoMAEBackbone.from_preset("videomae_large_patch16_224_kinetics400")
    assert not [*tmp_path.rglob("*.h5")]


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (VJEPABackbone.from_preset, "call DINOv2Backbone.from_preset"),
        (partial(VJEPABackbone.from_preset, image_size=28), "call DINOv2Backbone.from_preset"),
        (VJEPAPretrainer.from_preset, "holds pretrainer.json.* Received: dinov2_small_patch14"),
        (VJEPAVideoClassifier.from_preset, "`num_classes` must be given.* dinov2_small_patch14"),
    ],
)
def test_what_a_name_has_not_is_refused_before_the_download(load, message, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path))
    monkeypatch.setattr(RivalEntry, "write_models", None)
    with pytest.raises((ValueError, OSError), match=message):
        load("dinov2_small_patch14", trust_on_first_use=True)


def test_a_file_is_fetched_converted_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    backbone = DINOv2Backbone(28, patch_size=14, hidden_dim=384, num_layers=1, num_heads=6)
    (tmp_path / "server").mkdir()
    export_checkpoint(backbone, tmp_path / "server" / "small.pth")
    handler = partial(Quiet, directory=str(tmp_path / "server"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        entry = dataclasses.replace(
            RIVALS["dinov2_small_patch14"],
            address=f"http://127.0.0.1:{server.server_port}/small.pth",
            arguments={"image_size": 28, "patch_size": 14, "num_layers": 1},
        )
        monkeypatch.setitem(BUILT_IN, "small", entry)
        loaded = DINOv2Backbone.from_preset("small")
        server.shutdown()
    again = DINOv2Backbone.from_preset("small")
    for one in (loaded, again):
        assert all(map(np.array_equal, one.get_weights(), backbone.get_weights()))


def test_clip_has_its_own_normalisation():
    name = "openclip_bigG_patch14_224_laion2b"
    assert VJEPAVideoPreprocessor.from_preset(name).mean == OpenCLIPBackbone.facts.mean
