"""A run goes on with the files that it began with: what is in them, not their names, tells."""

import os
import shutil

import numpy as np
import pytest

from keras_vjepa.data.sources.listing import list_samples
from keras_vjepa.training.input_files import check_input_files, keep_input_files

pytestmark = pytest.mark.data


@pytest.fixture
def samples(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / "videos" / name).write_text(f"the video {name}")
    return list_samples(tmp_path / "videos")


@pytest.fixture
def workdir(samples, tmp_path):
    """The folder of a run that has begun with the samples."""
    (tmp_path / "run").mkdir()
    keep_input_files(tmp_path / "run", samples, goes_on=False)
    return tmp_path / "run"


def replace_by_another(path):
    """One of the same name, size and times."""
    status = os.stat(path)
    with open(path, "r+") as file:
        file.write("THE VIDEO")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_replaced_file_is_refused_and_named(samples, workdir):
    replace_by_another(samples[1].path)
    for check in (check_input_files, lambda *both: keep_input_files(*both, goes_on=True)):
        with pytest.raises(ValueError) as error:
            check(workdir, samples)
        [line] = str(error.value).splitlines()
        assert f"{workdir} holds a run whose data has changed since it began" in line
        assert f"Received: other content in 1 of 3 files, {samples[1].path} among them." in line
        assert f"remove {workdir / 'input_files.npz'} to continue" in line


def test_what_the_message_advises_works(samples, workdir, caplog):
    replace_by_another(samples[1].path)
    (workdir / "input_files.npz").unlink()
    keep_input_files(workdir, samples, goes_on=True)
    assert f"{workdir / 'input_files.npz'} is written now" in caplog.text
    keep_input_files(workdir, samples, goes_on=True)
    check_input_files(workdir, samples)
    assert len(caplog.records) == 1


def test_files_may_be_moved_and_touched(samples, workdir, tmp_path, caplog):
    shutil.move(tmp_path / "videos", tmp_path / "moved")
    moved = list_samples(tmp_path / "moved")
    os.utime(moved[0].path, (1, 1))
    keep_input_files(workdir, moved, goes_on=True)
    check_input_files(workdir, moved)
    assert not caplog.records


def test_another_number_of_files_is_refused(samples, workdir):
    with pytest.raises(
        ValueError, match="holds a run that began with 3 files. Received: 2. Put them back"
    ):
        check_input_files(workdir, samples[:2])


def test_a_file_that_is_gone_is_left_to_the_reading(samples, workdir):
    os.remove(samples[2].path)
    check_input_files(workdir, samples)
    # If the files of a finished run are all gone, nothing is known of them, which is no error.
    check_input_files(workdir, [])


def test_a_new_run_in_the_folder_begins_with_the_files_as_they_are(samples, workdir, caplog):
    replace_by_another(samples[1].path)
    keep_input_files(workdir, samples, goes_on=False)
    check_input_files(workdir, samples)
    assert not caplog.records


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def of_another_kind(path):
    np.savez(path, hashes=np.zeros((3, 5)))


def compressed(path):
    """Of a few bytes, 4 GB in memory."""
    np.savez_compressed(path, hashes=np.zeros((1000, 16), np.uint8))


@pytest.mark.parametrize("damage", [cut, empty, of_another_kind, compressed])
def test_a_damaged_record_is_named_and_made_anew(damage, samples, workdir, caplog):
    record = workdir / "input_files.npz"
    damage(record)
    keep_input_files(workdir, samples, goes_on=True)
    messages = caplog.messages
    assert messages[0].startswith("It is not known whether") and str(record) in messages[0]
    assert "is written now" in messages[1]
    replace_by_another(samples[1].path)
    with pytest.raises(ValueError, match="whose data has changed since it began"):
        check_input_files(workdir, samples)
