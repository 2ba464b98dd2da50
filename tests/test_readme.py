"""What the documents tell a user to type works: Python, options of commands, links."""

import dataclasses
import re
import shlex
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest

from keras_vjepa import VJEPABackbone, VJEPAVideoPreprocessor
from keras_vjepa.__main__ import COMMANDS, main
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.models import backbone
from tests.support import ROOT, slow_but_on

GUIDES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ("README.md", "recipes/README.md", "recipes/DISTRIBUTED.md", "CONTRIBUTING.md", *GUIDES)


def blocks(document, language):
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# --- Python --------------------------------------------------------------------------------------


def write_mp4(path, frames):
    height, width = frames.shape[1:3]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 24, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()


def write_class_folders(frames):
    for number in range(10):
        path = Path("videos", ("juggling", "riding")[number % 2], f"{number}.avi")
        write_motion_jpeg(path, np.roll(frames, number, axis=1), 24)


@dataclasses.dataclass(frozen=True)
class SmallerSize(backbone.EncoderSize):
    """Smaller clips too."""

    image_size: int = 64


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """A folder with what the README's reader has: a few videos, lists, and a preset in the cache.

    All of it small: the preset in the place of the authors' weights, the encoder size, and one step
    of training in the place of thousands.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path / "cache"))
    released = tmp_path / "cache" / "presets" / "vjepa_large_patch16_224"
    VJEPABackbone(32, 4, hidden_dim=24, num_layers=4, num_heads=2).save_to_preset(released)
    VJEPAVideoPreprocessor(32, 4).save_to_preset(released)
    own = VJEPABackbone(64, 8, patch_size=16, hidden_dim=24, num_layers=1, num_heads=2)
    own.save_to_preset("workdir/digit_motion/preset")
    frames = np.random.default_rng(0).integers(256, size=(40, 64, 80, 3), dtype=np.uint8)
    write_mp4("clip.mp4", frames)
    rows = []
    for number in range(20):
        path = tmp_path / "my_videos" / f"{number}.avi"
        write_motion_jpeg(path, np.roll(frames, number, axis=1), 24)
        rows.append(f"{path} {number % 10}\n")
    write_class_folders(frames)
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("".join(rows))
    monkeypatch.setitem(backbone.SIZES, "small", SmallerSize(24, 1, 2))
    fit = keras.Model.fit

    def one_step(model, *arguments, steps_per_epoch=None, **options):
        steps = None if steps_per_epoch is None else 1
        return fit(model, *arguments, steps_per_epoch=steps, **options)

    monkeypatch.setattr(keras.Model, "fit", one_step)
    return tmp_path


@slow_but_on("torch")
def test_the_python_of_the_readme_runs(at_home):
    names = {}
    # The order matters: the second document continues with the variables of the first.
    in_order = ["README.md", "docs/python.md"]
    others = [guide for guide in GUIDES if guide not in in_order]
    assert len(blocks(in_order[1], "python")) >= 5
    for document in in_order + others:
        for number, block in enumerate(blocks(document, "python"), start=1):
            exec(compile(block, f"<{document}, Python block {number}>", "exec"), names)
    assert names["features"].shape == (1, 128, 96)
    assert (at_home / "runs" / "a" / "preset" / "config.json").is_file()


def test_from_a_folder_of_classes_to_names(tmp_path, monkeypatch, capsys):
    """On each backend, unlike the whole of it: with as little as it needs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path / "cache"))
    released = tmp_path / "cache" / "presets" / "vjepa_large_patch16_224"
    VJEPABackbone(16, 2, hidden_dim=8, num_layers=1, num_heads=1).save_to_preset(released)
    frames = np.random.default_rng(0).integers(256, size=(8, 20, 30, 3), dtype=np.uint8)
    write_mp4("clip.mp4", frames)
    write_class_folders(frames)
    [block] = [block for block in blocks("README.md", "python") if "from_directory" in block]
    assert len([line for line in block.splitlines() if line]) <= 8
    names = {}
    exec(compile(block, "<README, a folder of classes>", "exec"), names)
    printed = capsys.readouterr().out
    assert "10 files of 2 classes: 8 for training, 2 for validation" in printed
    found = names["model"].classify("clip.mp4", top=5)
    assert str(found) == printed.splitlines()[-1]
    assert sorted(name for name, _ in found) == ["juggling", "riding"]
    assert sum(share for _, share in found) == pytest.approx(1, abs=1e-5)


# --- Commands ------------------------------------------------------------------------------------


def commands(text):
    """The commands of a block of shell: name and arguments, `python recipes/x.py` among them."""
    programs = {name.split(".")[-1]: command for command, name in COMMANDS.items()}
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for place, word in enumerate(words):
            file = re.fullmatch(r"(?:recipes|tools)/(\w+)\.py", word)
            if word.endswith("keras-vjepa") and place + 1 < len(words):
                yield words[place + 1], words[place + 2 :]
            elif file:
                yield programs[file[1]], words[place + 1 :]


def wrong_options(text, capsys):
    """Commands and options that there are not."""
    wrong = []
    for command, arguments in commands(text):
        if command not in COMMANDS:
            wrong.append(command)
            continue
        # Each action of this command has options of its own.
        action = arguments[:1] if command == "decode" else []
        with pytest.raises(SystemExit):
            main([command, *action, "--help"])
        known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
        options = {word.split("=")[0] for word in arguments if word.startswith("--")}
        # These commands pass unknown options on.
        if command in ("sweep", "ablations", "check-resume"):
            with pytest.raises(SystemExit):
                main(["pretrain", "--help"])
            known |= set(re.findall(r"--[\w-]+", capsys.readouterr().out))
        wrong += [f"{command} {option}" for option in sorted(options - known)]
    return wrong


@pytest.mark.data
@pytest.mark.parametrize("document", DOCUMENTS)
def test_options_in_the_documents_exist(document, capsys):
    text = "\n".join(blocks(document, "sh"))
    assert wrong_options(text, capsys) == []
    if document == "README.md":
        assert len(list(commands(text))) >= 4


def dead_links(document):
    """Files that a document links to and that are not there; addresses are not looked at."""
    text = (ROOT / document).read_text()
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    here = (ROOT / document).parent
    return [link for link in links if "://" not in link and not (here / link).exists()]


@pytest.mark.data
@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files(document):
    assert dead_links(document) == []


@pytest.mark.data
def test_the_readme_is_for_a_newcomer():
    """It names every command and every guide, and is read in minutes."""
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    assert [name for name in (*COMMANDS, *GUIDES) if name not in text] == []


@pytest.mark.data
def test_a_wrong_option_is_found(capsys):
    text = "keras-vjepa probe --presett a\npython recipes/pretrain.py \\\n  --step 3\nkeras-vjepa x"
    assert wrong_options(text, capsys) == ["probe --presett", "pretrain --step", "x"]
