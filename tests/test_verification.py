"""`keras-vjepa verify`: small files in the authors' format, from a server and from the disk."""

import hashlib
import platform
import re
from dataclasses import replace
from functools import partial

import keras
import numpy as np
import pytest

from keras_vjepa import VJEPABackbone, VJEPAPredictor, VJEPAPretrainer, verification
from keras_vjepa.conversion import export_checkpoint, export_hugging_face
from keras_vjepa.presets import transfer
from keras_vjepa.presets.downloads import RemoteFile
from keras_vjepa.presets.preset import BUILT_IN
from keras_vjepa.tools import verify_weights as command
from keras_vjepa.verification import fixed_clip, verify
from keras_vjepa.zoo import ClassifierEntry, PretrainedEntry
from tests.presets.web_server import serving, well
from tests.support import GOLDEN

# Files are checked in the same way on each backend.
pytestmark = pytest.mark.data

ENCODER = {
    "image_size": 64,
    "num_frames": 8,
    "patch_size": 16,
    "tubelet_size": 2,
    "hidden_dim": 72,
    "num_layers": 3,
    "num_heads": 4,
}
PREDICTOR = {"hidden_dim": 40, "num_layers": 2, "num_heads": 4, "num_mask_tokens": 2}
CHECKPOINT = (GOLDEN / "tiny.pth.tar").read_bytes()
SHA256 = hashlib.sha256(CHECKPOINT).hexdigest()


def entry(address, **changes):
    arguments = {"encoder": ENCODER, "predictor": PREDICTOR, "parameters": 300_240, **changes}
    file = RemoteFile(address, SHA256, len(CHECKPOINT), "the tests")
    return PretrainedEntry("tiny", file, licence="none", source="tests", **arguments)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "PATIENCE", transfer.Patience(tries=2, first_wait=0.0))
    with serving(CHECKPOINT) as server:
        monkeypatch.setitem(BUILT_IN, "tiny", entry(server.address))
        yield server


def rows(report):
    return {finding.what: (finding.value, finding.is_right) for finding in report.findings}


def test_a_file_that_is_what_it_must_be(server, tmp_path):
    report = verify("tiny")
    found = rows(report)
    assert report.passed
    assert found["bytes"] == (f"{len(CHECKPOINT):,}", True)
    assert found["SHA-256"] == (f"{SHA256}, stated by the tests", True)
    assert found["tensors of encoder"][0] == found["tensors of target_encoder"][0]
    assert re.fullmatch(r"\d+ of [\d,]+ values", found["tensors of predictor"][0])
    assert found["strict load"][1] and found["architecture"] == ("as the zoo has it", True)
    assert found["parameters"] == ("300,240", True)
    assert set(report.seconds) == {"download", "index", "strict load", "features"}
    # The features are those of the converted model, for a clip that anybody can make.
    backbone = verification.convert(GOLDEN / "tiny.pth.tar", num_heads=4).target_encoder
    mean = float(keras.ops.convert_to_numpy(backbone(fixed_clip((8, 64, 64, 3)))).mean())
    written = re.search(r"mean (-?[\d.]+), std", found["features of target_encoder"][0])
    assert float(written[1]) == pytest.approx(mean, abs=2e-6)
    assert found["features of encoder"] != found["features of target_encoder"]
    assert not list((tmp_path / "cache" / "downloads").iterdir())


def test_the_clip_is_its_formula():
    clip = fixed_clip((16, 48, 48, 3))
    assert clip.shape == (1, 16, 48, 48, 3) and clip.dtype == "float32"
    phase = 2 * np.pi * (3 / 8 + 40 / 32 + 7 / 48) + 2
    assert clip[0, 3, 40, 7, 2] == pytest.approx(np.sin(phase), abs=1e-6)


def test_what_is_kept_is_not_fetched_again(server):
    assert verify("tiny", keep=True).passed
    assert BUILT_IN["tiny"].checkpoint.path.is_file()
    VJEPABackbone.from_preset("tiny")
    assert server.asked == [0] and not BUILT_IN["tiny"].checkpoint.path.exists()


def changed(monkeypatch, **changes):
    monkeypatch.setitem(BUILT_IN, "tiny", replace(BUILT_IN["tiny"], **changes))


def test_what_is_wrong_is_named_and_the_rest_is_looked_at(server, monkeypatch):
    file = replace(BUILT_IN["tiny"].checkpoint, sha256=64 * "0", num_bytes=7)
    changed(monkeypatch, checkpoint=file, encoder={**ENCODER, "num_layers": 4}, parameters=1)
    report = verify("tiny")
    wrong = {what: value for what, (value, is_right) in rows(report).items() if is_right is False}
    assert not report.passed
    assert set(wrong) == {"bytes", "SHA-256", "architecture", "parameters"}
    assert wrong["SHA-256"] == f"{SHA256}, stated by the tests; it must be {64 * '0'}"
    assert wrong["architecture"] == "encoder.num_layers 3, not 4"
    assert "features of encoder" in rows(report)


def test_a_hash_that_nobody_stated_is_told_and_not_judged(server, monkeypatch):
    changed(monkeypatch, checkpoint=RemoteFile(server.address))
    report = verify("tiny")
    assert report.passed
    assert rows(report)["SHA-256"] == (f"{SHA256}, nobody has stated it", None)
    assert rows(report)["bytes"] == (f"{len(CHECKPOINT):,}", None)
    # Checking a file does not mean trusting it.
    assert not BUILT_IN["tiny"].checkpoint.pin.exists()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (CHECKPOINT[:-5000], "index"),
        (b"<html>", "index"),
    ],
)
def test_a_file_that_cannot_be_used_fails(content, what, server, tmp_path):
    server.content = content
    report = verify("tiny")
    assert not report.passed
    [reason] = [v for w, (v, is_right) in rows(report).items() if w == what and is_right is False]
    assert reason.startswith("CheckpointError: ") and "\n" not in reason
    assert not list((tmp_path / "cache" / "downloads").iterdir())


def test_a_probe_in_the_place_of_networks_fails(server):
    server.content = (GOLDEN / "probe.pth.tar").read_bytes()
    assert rows(verify("tiny"))["kind"] == ("a probe; it must be networks", False)


def test_no_network_is_a_finding(server):
    server.shutdown()
    server.server_close()
    report = verify("tiny")
    value, is_right = rows(report)["download"]
    assert is_right is False and "no connection" in value


def test_what_was_kept_of_a_broken_download_is_not_told_with_its_folder(server, tmp_path):
    server.answers = 9 * [partial(well, most=100)]
    value, is_right = rows(verify("tiny"))["download"]
    assert is_right is False and "200 bytes of 5.5 MB are kept in 127.0.0.1:" in value


# --- Probes, local files -------------------------------------------------------------------------


def test_a_probe(server, monkeypatch):
    server.content = (GOLDEN / "probe.pth.tar").read_bytes()
    probe = RemoteFile(server.address)
    classifier = ClassifierEntry("tiny", probe, "task", num_classes=7, score=50.0)
    monkeypatch.setitem(BUILT_IN, "tiny_task", classifier)
    report = verify("tiny_task")
    assert report.passed and rows(report)["classes"] == ("7", True)
    assert "logits of 64 tokens by the formula" in rows(report)
    monkeypatch.setitem(BUILT_IN, "tiny_task", replace(classifier, num_classes=8))
    assert rows(verify("tiny_task"))["classes"] == ("7; it must be 8", False)


def test_a_local_file_is_taken_for_the_one_of_its_name_or_hash(server, tmp_path, monkeypatch):
    for name in ("weights.pt", "other.pt"):
        (tmp_path / name).write_bytes(CHECKPOINT)
        report = verify(str(tmp_path / name))
        assert report.passed and rows(report)["taken for"] == ("the file of tiny", None)
        assert rows(report)["architecture"][1] is True
    assert server.asked == []
    # For an unknown content, the name of the file counts. If the name is unknown too, nothing is
    # known.
    (tmp_path / "weights.pt").write_bytes(CHECKPOINT + b"x")
    assert rows(verify(str(tmp_path / "weights.pt")))["SHA-256"][1] is False
    (tmp_path / "unknown.pt").write_bytes((GOLDEN / "probe.pth.tar").read_bytes())
    found = rows(verify(str(tmp_path / "unknown.pt")))
    assert "taken for" not in found and found["SHA-256"][1] is None


def test_a_file_of_which_nothing_is_known_is_asked_for_few_frames_too(twins, tmp_path):
    """A V-JEPA 2 file says nothing of its clips, which have 64 frames if nobody else does."""
    (tmp_path / "unknown.pt").write_bytes((twins / "weights.pt").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        heads = {"num_heads": 2, "predictor_num_heads": 2, "image_size": 32}
        patch.setattr(verification, "convert", partial(verification.convert, **heads))
        found = rows(verify(str(tmp_path / "unknown.pt")))
    assert "shape (1, 32, 48)" in found["features of encoder"][0]


# --- The same weights on the hub -----------------------------------------------------------------


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """A V-JEPA 2 checkpoint whose encoders differ, and a folder with the first of them."""
    pytest.importorskip("safetensors")
    folder = tmp_path_factory.mktemp("twins")
    sizes = {"hidden_dim": 48, "num_layers": 1, "num_heads": 2, "position_embedding": "rotary"}
    keras.utils.set_random_seed(3)
    encoder = VJEPABackbone(32, 4, **sizes)
    predictor = VJEPAPredictor(48, encoder.position_axes, num_mask_tokens=10, **sizes)
    pretrainer = VJEPAPretrainer(encoder, predictor)
    averaged = pretrainer.target_encoder
    averaged.set_weights([w + 0.1 for w in averaged.get_weights()])
    export_checkpoint(pretrainer, folder / "weights.pt")
    export_hugging_face(VJEPAPretrainer(encoder, predictor), folder / "hub")
    return folder


@pytest.fixture
def tiny_2(server, twins, monkeypatch):
    server.content = (twins / "weights.pt").read_bytes()
    sizes = {"hidden_dim": 48, "num_layers": 1, "num_heads": 2, "position_embedding": "rotary"}
    clip = {"image_size": 32, "num_frames": 64, "patch_size": 16, "tubelet_size": 2}
    tiny = entry(
        server.address,
        encoder={**clip, **sizes},
        predictor={**sizes, "num_mask_tokens": 10},
        parameters=0,
        unwritten=("image_size", "num_frames"),
    )
    monkeypatch.setitem(BUILT_IN, "tiny_2", replace(tiny, checkpoint=RemoteFile(server.address)))
    monkeypatch.setitem(verification.TWINS, "tiny_2", "hf://facebook/tiny")
    asked = []

    def preset_from_hub(address, load_weights):
        asked.append(address)
        return twins / "hub"

    monkeypatch.setattr(verification, "preset_from_hub", preset_from_hub)
    return asked


def test_the_twin_is_compared_number_by_number(tiny_2):
    found = rows(verify("tiny_2"))
    assert tiny_2 == ["hf://facebook/tiny"]
    value, is_right = found["encoder of hf://facebook/tiny"]
    # The hub may have either of the two encoders; which one is not known for the official files.
    assert is_right and value.startswith("equal to encoder (largest difference to encoder 0, to ")
    assert found["predictor of hf://facebook/tiny"] == ("largest difference 0", True)
    assert "shape (1, 32, 48)" in found["features of encoder"][0]  # 16 of 64 frames


def test_a_twin_that_differs_fails(tiny_2, twins, monkeypatch):
    convert = verification.hugging_face.convert

    def other(folder, **sizes):
        twin = convert(folder, **sizes)
        twin.encoder.norm.beta.assign(twin.encoder.norm.beta + 1e-6)
        return twin

    monkeypatch.setattr(verification.hugging_face, "convert", other)
    found = rows(verify("tiny_2"))
    value, is_right = found["encoder of hf://facebook/tiny"]
    assert is_right is False and "equal to neither (largest difference to encoder 1e-06" in value


def test_a_twin_that_cannot_be_had_is_said(tiny_2, monkeypatch):
    def missing(address, load_weights):
        raise ImportError(f"{address} needs a package: pip install huggingface_hub")

    monkeypatch.setattr(verification, "preset_from_hub", missing)
    value, is_right = rows(verify("tiny_2"))["twin"]
    assert is_right is None and "not compared: hf://facebook/tiny needs a package" in value


# --- The command ---------------------------------------------------------------------------------


def test_the_report_is_to_be_pasted_and_a_failure_is_in_the_exit_code(server, tmp_path, capsys):
    (tmp_path / "damaged.pt").write_bytes(CHECKPOINT[:100])
    names = ["tiny", str(tmp_path / "damaged.pt")]
    assert command.main(names, "keras-vjepa verify") == 1
    out, err = capsys.readouterr()
    for text in (
        "## keras-vjepa verify",
        f"keras {keras.__version__}, {keras.config.backend()} ",
        f"Python {platform.python_version()}, ",
        "Clip: sin(2 pi (t/8 + y/32 + x/48) + c)",
        "### tiny: passed",
        f"| SHA-256 | {SHA256}, stated by the tests | ok |",
        "### damaged.pt: FAILED",
        "| **WRONG** |",
        "1 passed, 1 failed: damaged.pt.",
    ):
        assert text in out, text
    # Names of folders are not printed either, because they may contain the names of people.
    assert str(tmp_path) not in out
    # Progress is not part of the report.
    assert "downloading" in err and "downloading" not in out
    assert command.main(["tiny"], "keras-vjepa verify") == 0


def test_without_a_name_all_of_the_zoo_is_looked_at(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        command, "verify", lambda name, keep: asked.append(name) or verification.FileReport(name)
    )
    assert command.main([], "keras-vjepa verify") == 0
    assert asked == verification.verifiable() and len(asked) >= 22


def test_what_lies_in_the_package_is_no_file_to_verify(capsys):
    with pytest.raises(SystemExit):
        command.main(["vjepa_tiny_digits_pixels"], "keras-vjepa verify")
    assert "this one lies in the package. Received: vjepa_tiny" in capsys.readouterr().err


def test_an_unknown_name_is_refused_before_anything_is_fetched(server, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["tiny", "vjepa_larg_patch16_224"], "keras-vjepa verify")
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.count("\n") == 1 and server.asked == []
    assert "Received: vjepa_larg_patch16_224; did you mean vjepa_large_patch16_224?" in err
