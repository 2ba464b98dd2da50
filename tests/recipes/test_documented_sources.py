"""Every source in docs/videos.md: a small copy is checked, and trained on by one command."""

import csv
import io
import itertools
import json
import re
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from keras_vjepa import files
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.recipes import pretrain
from keras_vjepa.tools import check_videos
from tests.data.reading.stamped import stamped_frame
from tests.data.sources.ava_layout import write_ava
from tests.data.sources.file_server import serving

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "--image_size 16 --num_frames 4 --temporal_stride 2 --patch_size 4 --hidden_dim 8 "
    "--num_layers 1 --num_heads 2 --predictor_hidden_dim 6 --predictor_num_layers 1 "
    "--batch_size 2 --steps 2 --warmup_steps 1 --monitor_every 2 --monitor_clips 2"
).split()
CLASSES = ("jumping jacks", "juggling")
_NUMBERS = itertools.count()
KINETICS = "label,youtube_id,time_start,time_end,split"


def video(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    first = 12 * (next(_NUMBERS) % 70)  # another content than that of other videos of a test
    shown = [stamped_frame(first + number, 64, 96) for number in range(12)]
    write_motion_jpeg(path, np.stack(shown), 30)
    return path


def own(root):
    return [video(root / f"own/{name}/{n}.avi") for name in CLASSES for n in range(3)]


def folder(root):
    own(root)
    return [root / "own"]


def one_file(root):
    return [own(root)[0]]


def images(root):
    rng = np.random.default_rng(0)
    for n in range(4):
        path = root / f"train/n0144{n % 2}/n0144_{n}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = cv2.imencode(".jpg", rng.integers(0, 255, (40, 50, 3)).astype("uint8"))[1]
        path.write_bytes(content.tobytes())
    return [root / "train", "--kind", "image"]


def both(root):
    images(root)
    own(root)
    return [root, "--kind", "any"]


def frames(root):
    for name in "abcd":
        path = root / f"frames/two words/{name}"
        path.mkdir(parents=True)
        for n in (*range(5, 12), *range(13, 20)):
            picture = np.full((40, 50, 3), 10 * n + ord(name) % 4, np.uint8)
            cv2.imwrite(str(path / f"img_{n:05d}.jpg"), picture)
    return [root / "frames", "--kind", "frames", "--fps", "12"]


def listed(root, name, form):
    lines = [form.format(path, number % 2) for number, path in enumerate(own(root))]
    (root / name).write_text("\n".join(lines) + "\n")
    return [root / name]


def space_list(root):
    return listed(root, "list.csv", "{} {}")


def quoted_list(root):
    return listed(root, "list.txt", '"{}",{}')


def array(root):
    np.save(root / "paths.npy", np.array([str(path) for path in own(root)]))
    return [root / "paths.npy"]


def rows_of(root):
    return [{"clip": str(p), "label": p.parent.name, "split": "train"} for p in own(root)]


def separated_table(root, name, delimiter):
    rows = rows_of(root)
    with open(root / name, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return [root / name, "--path_column", "clip"]


def csv_table(root):
    return separated_table(root, "table.csv", ",")


def tsv_table(root):
    return separated_table(root, "table.tsv", "\t")


def jsonl_table(root):
    (root / "table.jsonl").write_text("\n".join(map(json.dumps, rows_of(root))))
    return [root / "table.jsonl", "--path_column", "clip"]


def parquet_table(root):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows_of(root)), root / "table.parquet")
    return [root / "table.parquet", "--path_column", "clip"]


def kinetics(root):
    ids = [f"-a_{n}XyZ0123" for n in range(4)]
    rows = [f'"{CLASSES[n % 2]}",{name},{n},{n + 10},train' for n, name in enumerate(ids)]
    (root / "kinetics_train.csv").write_text("\n".join([KINETICS, *rows]))
    for n, name in enumerate(ids):
        video(root / f"videos/{CLASSES[n % 2]}/{name}_{n:06d}_{n + 10:06d}.avi")
    return [root / "kinetics_train.csv", "--videos", root / "videos"]


def something_something(root):
    template = "Holding [something]"
    entries = [{"id": str(n), "label": "holding a cup", "template": template} for n in range(4)]
    (root / "train.json").write_text(json.dumps(entries))
    (root / "labels.json").write_text(json.dumps({"Holding something": "0"}))
    for n in range(4):
        video(root / f"videos/{n}.avi")
    found = [root / "train.json", "--videos", root / "videos"]
    return [*found, "--label_names", root / "labels.json"]


def ava(root):
    write_ava(root)
    return [root / "annotations/ava_train_v2.2.csv", "--videos", root / "videos"]


def shards_in(root):
    paths = own(root)
    (root / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(root / f"shards/train-{shard:06d}.tar", "w") as tar:
            for path in paths[shard::2]:
                for ending, content in (("avi", path.read_bytes()), ("cls", b"1")):
                    info = tarfile.TarInfo(f"{path.parent.name[:3]}{path.stem}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def shards(root):
    shards_in(root)
    return [root / "shards/train-{000000..000001}.tar"]


def folder_of_shards(root):
    shards_in(root)
    return [root / "shards"]


# The rows of the table in docs/videos.md, by the beginning of their first cells.
SOURCES = {
    "my_videos/": (folder, one_file, images, both),
    "frames/": (frames,),
    "list.csv": (space_list, quoted_list, array),
    "table.csv": (csv_table, tsv_table, jsonl_table, parquet_table),
    "kinetics_train.csv": (kinetics, something_something, ava),
    "'train-{000000..000099}.tar'": (shards, folder_of_shards),
}
# Rows that have a test of their own, here or where Python is tested.
OTHERS = {"gs://bucket/videos/", "in Python: a Hugging Face data set"}


def check_and_pretrain(tmp_path, source, options, capsys):
    """Check the files of a source, train on all of it, and on those that the check lists."""
    given = [str(option) for option in options]
    known = [option.replace("_", "-") if option[:2] == "--" else option for option in given]
    assert check_videos.main([source, *known, "--output", str(tmp_path / "checked")]) == 0
    said = capsys.readouterr().out
    usable, count = re.search(r"(\d+) usable files? of (\d+)", said).groups()
    clean = str(tmp_path / "checked/clean.csv")
    for number, (data, further) in enumerate([(source, given), (clean, [])]):
        workdir = tmp_path / f"run{number}"
        pretrain.main(["--data", data, *further, *SMALL, "--workdir", str(workdir)])
        losses = (workdir / "loss.csv").read_text().splitlines()
        assert len(losses) == 3 and (workdir / "preset").is_dir()
        assert np.isfinite([float(cell) for line in losses[1:] for cell in line.split(",")]).all()
    return int(usable), int(count)


@pytest.mark.parametrize("make", [make for makes in SOURCES.values() for make in makes])
def test_a_source_is_checked_and_trained_on_by_one_command(make, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    source, *options = make(tmp_path / "data")
    usable, count = check_and_pretrain(tmp_path, str(source), options, capsys)
    # Those of AVA all look the same.
    assert usable == count or (make is ava and usable == 1)


@pytest.mark.parametrize("name", ["list.csv", "shards/train-{000000..000001}.tar"])
def test_an_address_is_checked_and_trained_on(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))
    space_list(tmp_path / "data")
    lines = (tmp_path / "data/list.csv").read_text().replace(f"{tmp_path}/data/", "")
    (tmp_path / "data/list.csv").write_text(lines)
    shards_in(tmp_path / "data")
    with serving(tmp_path / "data") as (address, _):
        assert check_and_pretrain(tmp_path, f"{address}/{name}", [], capsys) == (6, 6)


def test_an_address_of_a_store_is_checked_and_trained_on(tmp_path, capsys, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))
    assert "file" in fsspec.available_protocols()
    source = f"file://{folder(tmp_path)[0]}"
    assert check_and_pretrain(tmp_path, source, [], capsys) == (6, 6)


def test_every_row_of_the_guide_is_tried():
    """A new kind of source stands here, or is not called one."""
    table = (
        (ROOT / "docs/videos.md").read_text().split("what it is |\n|---|---|\n")[1].split("\n\n")[0]
    )
    begins = [re.match(r"\| `?([^`|,]*?)(`|,| --|$)", row)[1] for row in table.splitlines()]
    assert sorted(begins) == sorted([*SOURCES, *OTHERS])
