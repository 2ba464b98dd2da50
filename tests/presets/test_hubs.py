"""Presets on the hubs: `hf://` against a server of the same interface, `kaggle://` by its call."""

import json
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from keras_vjepa import VJEPABackbone

COMMIT = "0123456789abcdef0123456789abcdef01234567"

pytestmark = pytest.mark.data


class Hub(BaseHTTPRequestHandler):
    """The part of the Hugging Face Hub that a download needs, for the repository user/tiny."""

    def do_HEAD(self):
        self.answer(with_content=False)

    def do_GET(self):
        self.answer(with_content=True)

    def answer(self, with_content):
        folder = self.server.folder
        if self.path.startswith("/api/models/user/tiny/revision/"):
            files = [{"rfilename": path.name} for path in folder.iterdir()]
            content = json.dumps({"id": "user/tiny", "sha": COMMIT, "siblings": files}).encode()
        elif self.path.startswith("/api/models/user/tiny/tree/"):
            entries = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name}
                for p in folder.iterdir()
            ]
            content = json.dumps(entries).encode()
        elif self.path.startswith(f"/user/tiny/resolve/{COMMIT}/"):
            content = (folder / self.path.rsplit("/", 1)[-1]).read_bytes()
            self.server.fetched += [self.path.rsplit("/", 1)[-1]] if with_content else []
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hash(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_content:
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def backbone(tmp_path):
    backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    backbone.save_to_preset(tmp_path / "preset")
    return backbone


def assert_same_weights(first, second):
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def hub(backbone, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.fetched = tmp_path / "preset", []
    (server.folder / "README.md").write_text("not part of the preset")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield server
    server.shutdown()
    server.server_close()


def test_a_preset_from_hugging_face_works_offline_afterwards(hub, backbone):
    described = VJEPABackbone.from_preset("hf://user/tiny", load_weights=False)
    assert described.hidden_dim == 24
    assert sorted(hub.fetched) == ["config.json", "metadata.json"]
    assert_same_weights(VJEPABackbone.from_preset("hf://user/tiny@main"), backbone)
    assert sorted(hub.fetched) == ["config.json", "metadata.json", "model.weights.h5"]
    hub.shutdown()
    hub.server_close()
    assert_same_weights(VJEPABackbone.from_preset("hf://user/tiny"), backbone)


def test_a_missing_repository_is_one_line(hub):
    with pytest.raises(ValueError, match="^hf://user/nothing cannot be fetched: ") as raised:
        VJEPABackbone.from_preset("hf://user/nothing")
    assert "\n" not in str(raised.value)
    assert "".join(traceback.format_exception(raised.value)).count("Traceback") == 1


def test_a_preset_from_kaggle(backbone, tmp_path, monkeypatch):
    asked = []
    kaggle = SimpleNamespace(model_download=lambda name: asked.append(name) or tmp_path / "preset")
    monkeypatch.setitem(sys.modules, "kagglehub", kaggle)
    restored = VJEPABackbone.from_preset("kaggle://user/vjepa/keras/tiny")
    assert_same_weights(restored, backbone)
    assert asked == ["user/vjepa/keras/tiny"]


@pytest.mark.parametrize("scheme,package", [("hf", "huggingface_hub"), ("kaggle", "kagglehub")])
def test_a_missing_package_is_named(scheme, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"needs a package: pip install {package}") as raised:
        VJEPABackbone.from_preset(f"{scheme}://user/a")
    assert "".join(traceback.format_exception(raised.value)).count("Traceback") == 1
