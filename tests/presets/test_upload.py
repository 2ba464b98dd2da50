"""Uploaded presets: to a server of the Hugging Face Hub's interface, and by Kaggle's call."""

import base64
import json
import logging
import sys
import threading
import traceback
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

import keras_vjepa
from keras_vjepa import (
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAVideoClassifier,
    VJEPAVideoPreprocessor,
)
from keras_vjepa.presets.model_card import model_card
from keras_vjepa.tools import upload_preset as command
from tests.presets.test_hubs import COMMIT, Hub, assert_same_weights

pytestmark = pytest.mark.data

SMALL = {"hidden_dim": 24, "num_layers": 1, "num_heads": 2}


class WritableHub(Hub):
    """The part that an upload needs, too; large files go through its store, as LFS has it."""

    def read(self):
        return self.rfile.read(int(self.headers["Content-Length"]))

    def answer_with(self, content, status=200):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_PUT(self):
        self.server.stored[self.path.rsplit("/", 1)[-1]] = self.read()
        self.answer_with({})

    def do_POST(self):
        content = self.read()
        if self.headers.get("Authorization") != "Bearer hf_right":
            self.answer_with({"error": "no"}, 401)
        elif self.path == "/api/validate-yaml":
            self.server.validated.append(json.loads(content)["content"])
            self.answer_with({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(content))
            self.answer_with({"url": "https://huggingface.co/user/tiny"})
        elif self.path.startswith("/api/models/user/tiny/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False}
                for f in json.loads(content)["files"]
            ]
            self.answer_with({"files": files})
        elif self.path == "/user/tiny.git/info/lfs/objects/batch":
            address = f"http://127.0.0.1:{self.server.server_port}/store"
            objects = json.loads(content)["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": f"{address}/{one['oid']}"}}
            self.answer_with({"transfer": "basic", "objects": objects})
        elif self.path.startswith("/api/models/user/tiny/commit/main"):
            for line in content.splitlines():
                self.change(**json.loads(line))
            self.answer_with(
                {
                    "commitUrl": f"https://huggingface.co/user/tiny/commit/{COMMIT}",
                    "commitOid": COMMIT,
                }
            )

    def change(self, key, value):
        folder, stored = self.server.folder, self.server.stored
        if key == "file":
            (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            (folder / value["path"]).write_bytes(stored.pop(value["oid"]))
        elif key == "deletedFile":
            (folder / value["path"]).unlink()


def mode(name):
    return "lfs" if name.endswith(".h5") else "regular"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with an empty repository, and somebody who may write there."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server = ThreadingHTTPServer(("127.0.0.1", 0), WritableHub)
    server.folder, server.fetched, server.created = tmp_path / "on_hub", [], []
    server.validated, server.stored = [], {}
    server.folder.mkdir()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def preset(tmp_path):
    """A classifier's preset, among files that are nobody else's business."""
    backbone = VJEPABackbone(32, 4, **SMALL)
    classifier = VJEPAVideoClassifier(backbone, 3, class_names=["run", "jump", "<b>sit</b>"])
    folder = tmp_path / "mine"
    classifier.save_to_preset(folder)
    VJEPAVideoPreprocessor(32, 4).save_to_preset(folder)
    (folder / "passwords.txt").write_text("secret")
    (folder / "notes").mkdir()
    (folder / "notes" / "config.json").write_text("{}")
    return folder


FILES = {
    "config.json",
    "metadata.json",
    "model.weights.h5",
    "preprocessor.json",
    "task.json",
    "task.weights.h5",
}


def test_what_is_uploaded_to_hugging_face_is_the_preset_and_a_page(hub, preset, caplog):
    sent = keras_vjepa.upload_preset("hf://user/tiny", preset)
    assert {path.name for path in hub.folder.iterdir()} == {*FILES, "README.md"} == set(sent)
    assert hub.created[0]["name"] == "tiny" and hub.created[0]["organization"] == "user"
    assert (hub.folder / "README.md").read_text() in hub.validated
    assert "not uploaded: notes, passwords.txt" in caplog.text
    before, after = (VJEPAVideoClassifier.from_preset(n) for n in (preset, "hf://user/tiny"))
    assert_same_weights(before, after)
    assert after.class_names == before.class_names


def test_a_second_upload_replaces_the_preset_and_keeps_the_page(hub, preset, tmp_path, caplog):
    (hub.folder / "README.md").write_text("mine")
    (hub.folder / "unrelated.txt").write_text("theirs")
    keras_vjepa.upload_preset("hf://user/tiny", preset)
    VJEPABackbone(32, 4, **SMALL).save_to_preset(tmp_path / "other")
    keras_vjepa.upload_preset("hf://user/tiny", tmp_path / "other")
    names = {path.name for path in hub.folder.iterdir()}
    backbone = {"config.json", "metadata.json", "model.weights.h5"}
    assert names == {*backbone, "README.md", "unrelated.txt"}
    assert (hub.folder / "README.md").read_text() == "mine" and "has a page already" in caplog.text
    assert "these are removed: preprocessor.json, task.json, task.weights.h5" in caplog.text


def as_kaggle(monkeypatch, upload=None, user="me"):
    """Kaggle's package, reduced to what is called."""
    asked = []

    def whoami():
        if user is None:
            raise RuntimeError("User is not authenticated")
        return {"username": user}

    def keep(handle, folder, license_name=None):
        names = {path.name for path in Path(folder).iterdir()}
        asked.append((handle, names, license_name, (Path(folder) / "README.md").read_text()))

    package = SimpleNamespace(whoami=whoami, model_upload=upload or keep)
    monkeypatch.setitem(sys.modules, "kagglehub", package)
    return asked


def test_what_is_uploaded_to_kaggle(preset, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path / "cache"))
    asked = as_kaggle(monkeypatch)
    sent = keras_vjepa.upload_preset("kaggle://me/vjepa/keras/tiny", preset, licence="MIT")
    [(handle, names, licence, card)] = asked
    assert handle == "me/vjepa/keras/tiny" and names == {*FILES, "README.md"} == set(sent)
    assert licence == "MIT" and "kaggle://me/vjepa/keras/tiny" in card
    assert "not uploaded: notes, passwords.txt" in caplog.text
    assert not list((tmp_path / "cache").iterdir())
    assert (preset / "model.weights.h5").is_file()


# --- What is refused -----------------------------------------------------------------------------


def refusal(address, folder, error=ValueError):
    with pytest.raises(error) as raised:
        keras_vjepa.upload_preset(address, folder)
    text = str(raised.value)
    assert "\n" not in text and len(text) < 700
    assert "".join(traceback.format_exception(raised.value)).count("Traceback") == 1
    return text


@pytest.mark.parametrize(
    "address",
    [
        "user/repo", "hf://repo", "hf://user/repo/more", "hf://user/repo@main", "hf://", "hf://a/..",
        "hf://user/my repo", "hf://user/repo\n", "hf://-a/b", "hf://../b", "hf://a/b--c", "",
        "kaggle://user/model", "kaggle://user/model/keras/tiny/3", "https://huggingface.co/a/b",
        "hf://user/" + 97 * "a", "hf://usér/repo",
    ],
)  # fmt: skip
def test_a_malformed_name(address, preset):
    text = refusal(address, preset)
    assert text.startswith("`address` must be ") and repr(address) in text
    assert "hf://user/repo" in text or "kaggle://user/model/framework/variation" in text


def test_a_missing_package(preset, monkeypatch):
    for scheme, package in (("hf://a/b", "huggingface_hub"), ("kaggle://a/b/c/d", "kagglehub")):
        monkeypatch.setitem(sys.modules, package, None)
        assert f"pip install {package}" in refusal(scheme, preset, ImportError)


def test_nobody_is_logged_in(hub, preset, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "nobody is logged in: hf auth login" in refusal("hf://user/tiny", preset)
    assert hub.created == []
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path / "cache"))
    as_kaggle(monkeypatch, user=None)
    assert "nobody is logged in: kagglehub.login()" in refusal("kaggle://a/b/c/d", preset)


def test_somebody_who_may_not(hub, preset, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    text = refusal("hf://user/tiny", preset)
    assert text.startswith("hf://user/tiny cannot be written: ") and "hf auth login" in text


def test_a_hub_that_fails(preset, tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("a long\nstory " * 99)

    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path / "cache"))
    as_kaggle(monkeypatch, upload=broken)
    assert "cannot be written: a long story" in refusal("kaggle://a/b/c/d", preset)
    assert not list((tmp_path / "cache").iterdir())


def test_what_is_no_preset(preset, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "none", "hf://a/b", "vjepa_large_patch16_224"):
        text = refusal("hf://user/tiny", folder, FileNotFoundError)
        assert "`folder` must be the folder of a preset" in text
    assert str(preset) in refusal("hf://user/tiny", tmp_path, FileNotFoundError)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def other_weights(path):
    VJEPABackbone(32, 4, hidden_dim=24, num_layers=2, num_heads=2).save_weights(path)


@pytest.mark.parametrize(
    ("name", "damaging", "message"),
    [
        ("model.weights.h5", cut, "is not as it was written"),
        ("model.weights.h5", other_weights, "is not as it was written"),
        ("task.weights.h5", Path.unlink, "is missing"),
        ("metadata.json", cut, "no JSON"),
        ("config.json", cut, "no JSON"),
    ],
)
def test_a_damaged_preset_is_not_uploaded(name, damaging, message, hub, preset):
    damaging(preset / name)
    text = refusal("hf://user/tiny", preset)
    assert text.startswith("`folder` must be a whole preset") and message in text
    assert hub.created == [] and str(preset / name) in text


def test_a_config_that_its_weights_do_not_have_is_not_uploaded(hub, preset):
    config = json.loads((preset / "config.json").read_text())
    config["config"].update(hidden_dim=4800, num_layers=99)
    (preset / "config.json").write_text(json.dumps(config))
    assert "config.json describes" in refusal("hf://user/tiny", preset)
    assert hub.created == []


# --- The page ------------------------------------------------------------------------------------


def test_the_page_says_what_the_preset_says(preset):
    metadata = json.loads((preset / "metadata.json").read_text())
    metadata |= {
        "description": "Trained on\n# my videos <script>",
        "licence": "CC BY-NC 4.0",
        "source": "https://example.org",
        "scores": {"Kinetics-400": 80.8},
        "files": [{"address": "https://example.org/a.pt", "sha256": "ab12"}],
    }
    (preset / "metadata.json").write_text(json.dumps(metadata))
    (preset / "probe.json").write_text(json.dumps({"trained": {"digit_accuracy": 0.77123}}))
    card = model_card(preset, "hf://user/tiny")
    header, body = card.split("---\n")[1:]
    assert "license: cc-by-nc-4.0" in header and "pipeline_tag: video-classification" in header
    assert "library_name: keras\n" in header
    for line in (
        "Trained on # my videos script.",
        "model = keras_vjepa.VJEPAVideoClassifier.from_preset(name)",
        "- hidden_dim: `24`",
        "- image_size: `32`",
        "- frame_step: `4`",
        "Classes: run, jump, b sit /b.",
        "- Source of the weights: https://example.org",
        "- Licence of the weights: CC BY-NC 4.0",
        "- Made from: https://example.org/a.pt, SHA-256 `ab12`",
        "- Kinetics-400: 80.8 % top-1, as the paper reports it",
        "- trained, digit accuracy: 0.7712",
    ):
        assert line in body.splitlines(), line


def test_the_page_of_a_run_has_the_figures_beside_its_preset(tmp_path):
    VJEPABackbone(32, 4, **SMALL).save_to_preset(tmp_path / "preset")
    (tmp_path / "probe.json").write_text(json.dumps({"trained": {"motion_accuracy": 0.5}}))
    card = model_card(tmp_path / "preset", "hf://user/tiny")
    assert "- trained, motion accuracy: 0.5" in card and "feature-extraction" in card
    assert "Licence of the weights: not stated" in card and "license" not in card.split("---")[1]


def test_the_page_of_a_classifier_has_the_figures_of_its_evaluation(preset, tmp_path):
    classifier = preset.rename(tmp_path / "classifier_motion")
    metrics = {"top1": 0.8765, "top5": 1.0, "num_counted": 400, "per_class": [0.5]}
    result = {"splits": [{"motion": metrics, "digit": {"top1": 0.1}}, {"motion": {"top1": 0.2}}]}
    (tmp_path / "result.json").write_text(json.dumps(result))
    card = model_card(classifier, "hf://user/tiny")
    assert "- motion, top1: 87.6 % of 400 samples\n- motion, top5: 100.0 % of 400 samples\n" in card
    for damaged in ("[]", '{"splits": 3}', '{"splits": [[]]}', '{"splits": [{"motion": 1}]}'):
        (tmp_path / "result.json").write_text(damaged)
        assert "No figures are in the preset." in model_card(classifier, "hf://user/tiny")


@pytest.mark.parametrize("licence", ["my own: free\nlicense: mit", "Apache-2.0"])
def test_a_licence_is_one_entry_of_the_header(licence, preset):
    yaml = pytest.importorskip("yaml")
    header = yaml.safe_load(model_card(preset, "hf://user/tiny", licence).split("---\n")[1])
    if licence == "Apache-2.0":
        assert header["license"] == "apache-2.0" and "license_name" not in header
    else:
        assert (
            header["license"] == "other" and header["license_name"] == "my own: free license: mit"
        )


def test_the_code_of_the_page_runs(hub, preset, tmp_path):
    """Of each kind of preset: what it says how to load is what was saved."""
    backbone = VJEPABackbone(32, 4, **SMALL)
    predictor = VJEPAPredictor(24, backbone.position_axes, **SMALL)
    made = {"backbone": backbone, "pretrainer": VJEPAPretrainer(backbone, predictor)}
    for name, model in made.items():
        model.save_to_preset(tmp_path / name)
    for folder in (preset, tmp_path / "backbone", tmp_path / "pretrainer"):
        code = model_card(folder, str(folder)).split("```python\n")[1].split("```")[0]
        lines = [line for line in code.splitlines() if "clip.mp4" not in line]
        names = {}
        exec("\n".join(lines), names)
        assert names["model"].count_params() > 0


def test_the_command(hub, preset, capsys, caplog):
    caplog.set_level(logging.WARNING)
    command.main([str(preset), "hf://user/tiny", "--licence", "MIT"], "keras-vjepa upload")
    assert capsys.readouterr().out.startswith("Uploaded to hf://user/tiny: config.json, ")
    assert "license: mit" in (hub.folder / "README.md").read_text()
    with pytest.raises(SystemExit) as ended:
        command.main([str(preset), "hf://user"], "keras-vjepa upload")
    assert str(ended.value.code).startswith("keras-vjepa upload: `address` must be hf://user/repo")
