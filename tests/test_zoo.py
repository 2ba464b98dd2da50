"""Built-in presets: the authors' files from a local server, converted, checked and cached."""

import hashlib
import json
import math
import os
import re
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import keras
import numpy as np
import pytest
from keras import ops

import keras_vjepa
from keras_vjepa import (
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAVideoClassifier,
    VJEPAVideoPreprocessor,
)
from keras_vjepa.presets import shipped, transfer
from keras_vjepa.presets.downloads import TRUST_VARIABLE, RemoteFile
from keras_vjepa.presets.preset import BUILT_IN
from keras_vjepa.verification import verifiable
from keras_vjepa.zoo import _CONFIRMED, _REPORTED, ClassifierEntry, PretrainedEntry
from tests.support import GOLDEN, ROOT, channels_last, golden

# Files are downloaded, converted and stored in the same way on each backend.
pytestmark = pytest.mark.data

CHECKPOINT, PROBE = "tiny/tiny.pth.tar", "tiny/probe.pth.tar"


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, and counts."""

    def do_GET(self):
        self.server.requested.append(self.path)
        if self.server.interrupt:
            content = (self.server.folder / self.path[1:]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            return
        super().do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    """A folder laid out as the authors' server, on loopback."""
    folder = tmp_path / "server"
    (folder / "tiny").mkdir(parents=True)
    (folder / CHECKPOINT).write_bytes((GOLDEN / "tiny.pth.tar").read_bytes())
    (folder / PROBE).write_bytes((GOLDEN / "probe.pth.tar").read_bytes())
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    http.folder, http.requested, http.interrupt = folder, [], False
    http.address = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield http
    http.shutdown()
    http.server_close()


@pytest.fixture
def zoo(server, tmp_path, monkeypatch):
    """An empty cache, and two entries as those of the table; returns their hashes."""
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    hashes = {
        name: hashlib.sha256((server.folder / name).read_bytes()).hexdigest()
        for name in (CHECKPOINT, PROBE)
    }
    encoder = {"image_size": 64, "num_frames": 8, "patch_size": 16, "tubelet_size": 2}
    pretrained = PretrainedEntry(
        "tiny",
        RemoteFile(f"{server.address}/{CHECKPOINT}", hashes[CHECKPOINT]),
        encoder={**encoder, "hidden_dim": 72, "num_layers": 3, "num_heads": 4},
        predictor={"hidden_dim": 40, "num_layers": 2, "num_heads": 4, "num_mask_tokens": 2},
        parameters=0,
        licence="none",
        source="tests",
    )
    probe = RemoteFile(f"{server.address}/{PROBE}", hashes[PROBE])
    classifier = ClassifierEntry("tiny", probe, "task", num_classes=7, score=50.0, num_clips=2)
    monkeypatch.setitem(BUILT_IN, "tiny", pretrained)
    monkeypatch.setitem(BUILT_IN, "tiny_task", classifier)
    return hashes


def numpy(x):
    return ops.convert_to_numpy(x)


def forget_hash(monkeypatch, name="tiny"):
    entry = BUILT_IN[name]
    field = "checkpoint" if isinstance(entry, PretrainedEntry) else "probe"
    unknown = replace(getattr(entry, field), sha256=None)
    monkeypatch.setitem(BUILT_IN, name, replace(entry, **{field: unknown}))


def left_in_cache(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if not p.is_dir())


# --- What a user does ----------------------------------------------------------------------------


def test_a_name_is_downloaded_once_and_then_needs_no_network(zoo, server):
    arrays = golden("forward.npz")
    videos = channels_last(arrays["clip"])
    backbone = VJEPABackbone.from_preset("tiny")
    assert np.abs(numpy(backbone(videos)) - arrays["target_full"]).max() <= 2e-5
    assert len(backbone.trainable_variables) > 0
    server.shutdown()
    assert server.requested == [f"/{CHECKPOINT}"]
    assert numpy(VJEPABackbone.from_preset("tiny")(videos)).shape == (2, 64, 72)
    # The other networks of the checkpoint are the trained encoder and the predictor.
    pretrainer = VJEPAPretrainer.from_preset("tiny")
    assert np.abs(numpy(pretrainer.encoder(videos)) - arrays["encoder_full"]).max() <= 2e-5
    for part in ("target_encoder", "encoder"):
        assert getattr(pretrainer, part).image_size == 64
    predictor = VJEPAPredictor.from_preset("tiny")
    masks = arrays["mask_context_0"].astype("int32"), arrays["mask_target_0"].astype("int32")
    predictions = numpy(predictor(arrays["encoder_masked_0"], *masks))
    assert np.abs(predictions - arrays["predictor_0"]).max() <= 2e-5


def test_a_classifier_is_the_target_encoder_with_the_authors_probe(zoo, server):
    arrays = golden("forward.npz")
    classifier = VJEPAVideoClassifier.from_preset("tiny_task", num_views=2)
    videos = arrays["multiclip_input"].transpose(2, 0, 1, 4, 5, 6, 3)
    probabilities = numpy(ops.softmax(classifier(videos)))
    assert np.abs(probabilities - arrays["multiclip_probs"]).max() <= 2e-5
    assert server.requested == [f"/{CHECKPOINT}", f"/{PROBE}"]
    preprocessor = VJEPAVideoPreprocessor.from_preset("tiny_task")
    assert preprocessor(np.zeros((200, 80, 90, 3), np.uint8)).shape == (1, 2, 1, 8, 64, 64, 3)


def test_the_preset_says_where_it_is_from(zoo, tmp_path, capsys):
    VJEPABackbone.from_preset("tiny")
    VJEPABackbone.from_preset("tiny")
    assert capsys.readouterr().err.count("tiny: licence of the weights: none, see tests\n") == 1
    folder = tmp_path / "cache" / "presets" / "tiny"
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["licence"] == "none" and metadata["source"] == "tests"
    assert metadata["files"][0]["sha256"] == zoo[CHECKPOINT]
    assert set(left_in_cache(tmp_path)) == {
        "config.json",
        "encoder.weights.h5",
        "metadata.json",
        "model.weights.h5",
        "predictor.json",
        "predictor.weights.h5",
        "preprocessor.json",
        "pretrainer.json",
    }


def test_the_architecture_alone_needs_no_download(zoo, server):
    described = VJEPAPretrainer.from_preset("tiny", load_weights=False)
    classifier = VJEPAVideoClassifier.from_preset("tiny_task", load_weights=False, num_classes=3)
    fresh = VJEPAVideoClassifier.from_preset("tiny", load_weights=False, num_classes=4)
    assert classifier.probe.num_classes == 3 and fresh.probe.num_classes == 4
    assert VJEPABackbone.from_preset("tiny", load_weights=False, num_layers=1).num_layers == 1
    assert VJEPAVideoPreprocessor.from_preset("tiny").num_frames == 8
    assert server.requested == []
    # The file contains what the table describes.
    loaded = VJEPAPretrainer.from_preset("tiny")
    for part in ("encoder", "predictor"):
        expected, found = (getattr(m, part).get_config() for m in (loaded, described))
        assert {**found, "name": None} == {**expected, "name": None}


def test_weights_are_float32_whatever_the_policy(zoo):
    keras.config.set_dtype_policy("bfloat16")
    try:
        VJEPABackbone.from_preset("tiny")
        assert keras.config.dtype_policy().name == "bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    backbone = VJEPABackbone.from_preset("tiny")
    videos = channels_last(golden("forward.npz")["clip"])
    assert np.abs(numpy(backbone(videos)) - golden("forward.npz")["target_full"]).max() <= 2e-5


# --- What can go wrong ---------------------------------------------------------------------------


def test_an_unknown_hash_must_be_trusted_and_is_then_pinned(zoo, server, tmp_path, monkeypatch):
    forget_hash(monkeypatch)
    with pytest.raises(ValueError, match="SHA-256 of .* is not yet known.*trust_on_first_use=True"):
        VJEPABackbone.from_preset("tiny")
    assert server.requested == [] and left_in_cache(tmp_path) == []
    VJEPABackbone.from_preset("tiny", trust_on_first_use=True)
    [pin] = (tmp_path / "cache" / "trusted").iterdir()
    assert pin.read_text() == f"{zoo[CHECKPOINT]}  {server.address}/{CHECKPOINT}\n"
    # The same file is accepted without asking, and another one is an error.
    (tmp_path / "cache" / "presets" / "tiny").rename(tmp_path / "away")
    VJEPABackbone.from_preset("tiny")
    (tmp_path / "cache" / "presets" / "tiny").rename(tmp_path / "away too")
    (server.folder / CHECKPOINT).write_bytes((GOLDEN / "probe.pth.tar").read_bytes())
    with pytest.raises(ValueError, match="must have the SHA-256 .*according to .*trusted"):
        VJEPABackbone.from_preset("tiny", trust_on_first_use=True)
    assert left_in_cache(tmp_path) == [pin.name]


def state(monkeypatch, stated_by, **changes):
    """Have somebody say of the tiny file's hash what the table says of the authors'."""
    entry = BUILT_IN["tiny"]
    checkpoint = replace(entry.checkpoint, stated_by=stated_by, **changes)
    monkeypatch.setitem(BUILT_IN, "tiny", replace(entry, checkpoint=checkpoint))


@pytest.mark.parametrize("stated_by", [_CONFIRMED, _REPORTED])
def test_a_stated_hash_needs_no_trust_and_a_difference_says_whose_it_is(
    stated_by, zoo, server, tmp_path, monkeypatch
):
    state(monkeypatch, stated_by)
    content = (server.folder / CHECKPOINT).read_bytes()
    (server.folder / CHECKPOINT).write_bytes(content[:-1] + b"x")
    whose = f"must have the SHA-256 {zoo[CHECKPOINT]}, according to {re.escape(stated_by)}. "
    for trusted in (False, True):
        with pytest.raises(ValueError, match=f"{whose}Received: .*not taken.*keras-vjepa verify"):
            VJEPABackbone.from_preset("tiny", trust_on_first_use=trusted)
        assert left_in_cache(tmp_path) == []
    (server.folder / CHECKPOINT).write_bytes(content)
    assert VJEPABackbone.from_preset("tiny").num_layers == 3


def test_a_stated_length_is_compared_before_anything_comes(zoo, server, monkeypatch):
    state(monkeypatch, _CONFIRMED, num_bytes=10**12)
    with pytest.raises(ValueError, match="exactly 1,000,000,000,000 bytes, according to two or"):
        VJEPABackbone.from_preset("tiny")


def test_what_the_table_knows_of_hashes():
    stated = {
        file["address"].rpartition(".com/")[2]: (file["sha256"][:8], file["num_bytes"])
        for described in keras_vjepa.list_presets().values()
        for file in described["files"]
        if file["sha256"]
    }
    assert stated == {
        "jepa/vitl16/vitl16.pth.tar": ("0cd3bfce", None),
        "vjepa2/vitl.pt": ("5346856e", 5_127_726_842),
        "vjepa2/vjepa2_1_vitb_dist_vitG_384.pt": ("848a77c3", 1_664_223_428),
        "vjepa2/vjepa2_1_vitl_dist_vitG_384.pt": ("7ea9b7cb", 5_151_198_524),
        "vjepa2/vjepa2_1_vitg_384.pt": ("b417628f", 16_878_318_788),
        "vjepa2/vjepa2_1_vitG_384.pt": ("7aae1a3c", 30_238_058_912),
    }


def test_a_pin_that_is_damaged_is_named(zoo, monkeypatch):
    forget_hash(monkeypatch)
    pin = BUILT_IN["tiny"].checkpoint.pin
    pin.parent.mkdir(parents=True)
    pin.write_text("<html>")
    with pytest.raises(ValueError, match=r"\.sha256 must begin with a SHA-256. Remove it"):
        VJEPABackbone.from_preset("tiny", trust_on_first_use=True)


def test_trust_by_environment(zoo, monkeypatch):
    forget_hash(monkeypatch)
    forget_hash(monkeypatch, "tiny_task")
    monkeypatch.setenv(TRUST_VARIABLE, "0")
    with pytest.raises(ValueError, match="not yet known"):
        VJEPAVideoClassifier.from_preset("tiny_task")
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    assert VJEPAVideoClassifier.from_preset("tiny_task").num_classes == 7


def break_it(server, how):
    path = server.folder / CHECKPOINT
    content = path.read_bytes()
    if how == "404":
        path.unlink()
    elif how == "wrong hash":
        path.write_bytes(content[:-1] + b"x")
    elif how == "truncated archive":
        path.write_bytes(content[: len(content) // 2])
    elif how == "another model":
        path.write_bytes((GOLDEN / "probe.pth.tar").read_bytes())
    elif how == "no server":
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "how,trusted,message",
    [
        ("404", False, "nothing was kept: the server answers 404, .* .curl -C - -O http"),
        ("no server", False, "nothing was kept: no connection .*refused.* .curl -C - -O http"),
        ("wrong hash", False, "must have the SHA-256 .*according to this package"),
        ("truncated archive", True, "cannot be used, and was removed: .*not a PyTorch zip archive"),
        ("another model", True, "cannot be used, and was removed: the checkpoint has no `encoder`"),
    ],
)
def test_a_bad_download_leaves_nothing_behind(
    zoo, server, tmp_path, monkeypatch, how, trusted, message
):
    break_it(server, how)
    if trusted:
        forget_hash(monkeypatch)
    with pytest.raises(ValueError, match=message) as raised:
        VJEPABackbone.from_preset("tiny", trust_on_first_use=trusted)
    assert "\n" not in str(raised.value) and str(tmp_path) not in str(raised.value)
    # The errors that caused this one are not shown above it.
    assert "".join(traceback.format_exception(raised.value)).count("Traceback") == 1
    assert left_in_cache(tmp_path) == []
    if how == "truncated archive":
        (server.folder / CHECKPOINT).write_bytes((GOLDEN / "tiny.pth.tar").read_bytes())
        assert VJEPABackbone.from_preset("tiny", trust_on_first_use=trusted).num_layers == 3


def test_an_interrupted_download_is_kept(zoo, server, tmp_path, monkeypatch):
    server.interrupt = True
    monkeypatch.setattr(transfer, "PATIENCE", transfer.Patience(tries=2, first_wait=0.0))
    with pytest.raises(ValueError, match="are kept in .*part.*: the connection broke") as raised:
        VJEPABackbone.from_preset("tiny")
    assert "\n" not in str(raised.value) and f"curl -C - -O {server.address}" in str(raised.value)
    names = left_in_cache(tmp_path)
    assert len(names) == 2 and names[0].endswith(".pth.tar.part") and names[1].endswith(".json")
    server.interrupt = False
    assert VJEPABackbone.from_preset("tiny").num_layers == 3
    assert not list((tmp_path / "cache" / "downloads").iterdir())


def test_a_file_is_kept_until_there_is_a_preset_of_it(zoo, server, monkeypatch):
    """What is stopped or has no place on the disk is gone on with, without a second download."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("keras_vjepa.zoo.convert", raising(KeyboardInterrupt))
        VJEPABackbone.from_preset("tiny")
    path = BUILT_IN["tiny"].checkpoint.path
    assert path.is_file()
    VJEPABackbone.from_preset("tiny")
    assert server.requested == [f"/{CHECKPOINT}"] and not path.exists()


def raising(error):
    def function(*arguments, **options):
        raise error

    return function


def test_a_file_that_was_changed_in_the_cache_is_fetched_anew(zoo, server, caplog):
    path = BUILT_IN["tiny"].checkpoint.path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else")
    VJEPABackbone.from_preset("tiny")
    assert (
        server.requested == [f"/{CHECKPOINT}"]
        and "does not have the content that it must have" in caplog.text
    )


@pytest.mark.parametrize("name", ["model.weights.h5", "config.json", "metadata.json"])
def test_a_damaged_preset_in_the_cache_is_made_anew(name, zoo, server, tmp_path, caplog):
    before = VJEPABackbone.from_preset("tiny").get_weights()
    path = tmp_path / "cache" / "presets" / "tiny" / name
    os.truncate(path, path.stat().st_size // 2)
    after = VJEPABackbone.from_preset("tiny").get_weights()
    assert f"The preset in the cache is made anew: {path} is " in caplog.text
    assert server.requested == 2 * [f"/{CHECKPOINT}"]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    VJEPABackbone.from_preset("tiny")
    assert len(caplog.records) == 1


def test_a_file_of_another_architecture_is_an_error(zoo, tmp_path, monkeypatch):
    entry = BUILT_IN["tiny"]
    monkeypatch.setitem(
        BUILT_IN, "tiny", replace(entry, encoder={**entry.encoder, "num_layers": 4})
    )
    with pytest.raises(ValueError, match="was removed: its `num_layers` must be 4. Received: 3"):
        VJEPABackbone.from_preset("tiny")
    assert left_in_cache(tmp_path) == []


def test_two_at_a_time_get_the_same_preset(zoo, server, tmp_path):
    """One downloads, the other waits and takes the files of the first."""
    folder = partial(BUILT_IN["tiny"].folder, "tiny", True, False)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: folder(), range(2))
    assert first == second and server.requested == [f"/{CHECKPOINT}"]
    assert VJEPABackbone.from_preset(first).num_layers == 3
    assert [p.name for p in (tmp_path / "cache" / "presets").iterdir()] == ["tiny"]


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match="must be a folder, hf://.*list_presets.*'vitl'"):
        VJEPABackbone.from_preset("vitl")


# --- The table -----------------------------------------------------------------------------------


def test_every_released_model_is_listed():
    sizes = ("large_patch16_224", "huge_patch16_224", "huge_patch16_384")
    tasks = ("kinetics400", "ssv2", "imagenet", "places205", "inat21")
    pretrained = {f"vjepa_{size}" for size in sizes}
    classifiers = {f"{name}_{task}" for name in pretrained for task in tasks}
    sizes = ("large_patch16_256", "huge_patch16_256", "giant_patch16_256", "giant_patch16_384")
    pretrained |= {f"vjepa2_{size}" for size in sizes}
    sizes = ("base", "large", "giant", "gigantic")
    pretrained |= {f"vjepa21_{size}_patch16_384" for size in sizes}
    in_the_package = {name for name, _ in shipped.entries()}
    own = {name for name in keras_vjepa.list_presets() if name.startswith("vjepa")}
    assert own - in_the_package == pretrained | classifiers == set(verifiable())
    for cls in (VJEPABackbone, VJEPAPredictor, VJEPAPretrainer):
        assert set(cls.presets) - in_the_package == pretrained
    assert set(VJEPAVideoClassifier.presets) - in_the_package == classifiers
    for name in own:
        described = keras_vjepa.list_presets()[name]
        assert described["licence"] and described["source"].startswith("https://")
        for file in described["files"]:
            assert file["address"].startswith("https://dl.fbaipublicfiles.com/")
            assert set(file) == {"address", "sha256", "num_bytes", "stated_by"}
            assert (file["sha256"] is None) == (file["stated_by"] is None)


@pytest.mark.parametrize("name", [n for n in verifiable() if n in VJEPABackbone.presets])
def test_every_listed_model_has_its_number_of_parameters(name):
    """From models of one and of two blocks: the others are alike."""
    # A network with levels needs at least one block for each. What a level has does not depend on
    # its place.
    levels = BUILT_IN[name].encoder.get("level_layers")
    least = len(levels or (0,))
    counts = []
    for n in (least, least + 1):
        own = {"level_layers": (*range(least - 1), n - 1)} if levels else {}
        one = VJEPABackbone.from_preset(
            name, load_weights=False, num_layers=n, image_size=32, **own
        )
        counts.append(sum(math.prod(v.shape) for v in one.trainable_variables))
    num_layers = BUILT_IN[name].encoder["num_layers"]
    total = counts[0] + (num_layers - least) * (counts[1] - counts[0])
    assert total == VJEPABackbone.presets[name]["parameters"]


def test_the_readme_has_the_table():
    readme = (ROOT / "README.md").read_text()
    for name, described in keras_vjepa.list_presets().items():
        if name in VJEPABackbone.presets:
            [row] = [line for line in readme.splitlines() if line.startswith(f"| `{name}`")]
            assert f"{described['parameters']:,}" in row and described["licence"] in row
            assert " x ".join(map(str, described["input"][:3])) in row
