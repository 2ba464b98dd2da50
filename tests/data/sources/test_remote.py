"""Videos at addresses are those that lie there: fetched once, whole, or named."""

import contextlib

import numpy as np
import pytest

from keras_vjepa import files
from keras_vjepa.data import Sample
from keras_vjepa.data.reading import remote
from keras_vjepa.data.reading.errors import MissingPackageError, UnreadableVideoError
from keras_vjepa.data.reading.limits import ReadingLimits
from keras_vjepa.data.reading.media import NO_CONTENT
from keras_vjepa.data.reading.remote import RemoteFile
from keras_vjepa.data.reading.video import open_video
from keras_vjepa.data.sources.content_hashes import content_hash, size_of
from keras_vjepa.data.sources.listing import list_samples, source_exists
from tests.data.reading.stamped import stamps, write_with_opencv
from tests.data.sources.file_server import serving
from tests.data.sources.test_listing import shown_frames
from tests.data.sources.test_shards import write_tar

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_with_opencv(tmp_path_factory.mktemp("videos") / "a.avi", "MJPG", 12).read_bytes()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0))
    remote._info.cache_clear()
    return tmp_path / "cache" / "remote"


def kept(cache):
    return sorted(path for path in cache.rglob("*") if path.is_file())


@pytest.fixture
def served(tmp_path):
    """A folder, its address, and what answers there."""
    folder = tmp_path / "served"
    folder.mkdir()
    with serving(folder) as (address, handler):
        yield folder, address, handler


@pytest.fixture
def memory():
    """A folder of a store that fsspec knows."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs.clear()
    yield system
    system.store.clear()


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_file_at_https_is_fetched_once(served, video, cache, has_ranges):
    folder, address, handler = served
    handler.has_ranges = has_ranges
    (folder / "a.avi").write_bytes(video)
    for _ in range(2):
        with open_video(f"{address}/a.avi") as opened:
            assert stamps(opened.read([0, 7, 11])) == [0, 7, 11]
    assert handler.asked == ["/a.avi"]
    (copy,) = kept(cache)
    assert copy.read_bytes() == video
    # A truncated copy is downloaded again.
    copy.write_bytes(video[:100])
    assert open_video(f"{address}/a.avi").num_frames == 12
    assert len(handler.asked) == 2 and copy.read_bytes() == video
    # So is a file that was replaced, by the next process.
    (folder / "a.avi").write_bytes(video + b"0")
    remote._info.cache_clear()
    assert size_of(f"{address}/a.avi") == len(video) + 1
    open_video(f"{address}/a.avi").close()
    assert len(kept(cache)) == 2


def test_what_is_not_there_is_named(served, video):
    folder, address, _ = served
    with pytest.raises(UnreadableVideoError, match=f"{address}/none.avi: no such file"):
        open_video(f"{address}/none.avi")
    assert content_hash(f"{address}/none.avi") == NO_CONTENT
    with pytest.raises(UnreadableVideoError, match="/a.avi: .*refused"):
        open_video("http://127.0.0.1:9/a.avi")
    with pytest.raises(UnreadableVideoError, match="b.avi: no video is found in it, but text"):
        (folder / "b.avi").write_text("text")
        open_video(f"{address}/b.avi")
    with pytest.raises(ValueError, match="must be a list or shards at http"):
        list_samples(address)


def test_a_connection_that_fails_is_tried_again(served, video, cache):
    folder, address, handler = served
    (folder / "a.avi").write_bytes(video)
    handler.failures = 2
    assert open_video(f"{address}/a.avi").num_frames == 12
    handler.failures = 9
    (folder / "b.avi").write_bytes(video)
    with pytest.raises(UnreadableVideoError, match="b.avi: "):
        open_video(f"{address}/b.avi")
    assert len(kept(cache)) == 1


def test_the_limit_of_time_counts(served, video, monkeypatch, cache):
    folder, address, handler = served
    (folder / "a.avi").write_bytes(video)
    monkeypatch.setattr(remote, "_AT_ONCE", 100)
    with pytest.raises(UnreadableVideoError, match="longer than 0.001 seconds"):
        open_video(f"{address}/a.avi", limits=ReadingLimits(max_file_seconds=0.001))


def test_members_of_a_shard_are_fetched_alone(served, video, cache):
    folder, address, handler = served
    for number in range(2):
        members = {f"{i}.{end}": content for i in range(3)
                   for end, content in (("avi", video), ("cls", str(i)))}  # fmt: skip
        write_tar(folder / f"t-{number}.tar", members)
    samples = list_samples(f"{address}/t-{{0..1}}.tar")
    assert [s.label for s in samples] == [0, 1, 2, 0, 1, 2]
    assert samples[4] == Sample(f"{address}/t-1.tar/1.avi", 1)
    assert len(shown_frames(samples, 3)) == 6
    assert kept(cache) == []
    with pytest.raises(FileNotFoundError, match="1 shard of 3 is missing, .*t-2.tar first"):
        list_samples(f"{address}/t-{{0..2}}.tar")
    (folder / "t-0.tar").write_bytes((folder / "t-0.tar").read_bytes()[:20_000])
    remote._info.cache_clear()
    with contextlib.suppress(UnreadableVideoError):
        open_video(f"{address}/t-0.tar/2.avi")
        raise AssertionError("it is cut")


def test_a_list_at_an_address(served, video):
    folder, address, _ = served
    (folder / "v").mkdir()
    (folder / "v" / "a.avi").write_bytes(video)
    (folder / "train.csv").write_text(f"v/a.avi 3\n{address}/v/a.avi 1\n")
    samples = list_samples(f"{address}/train.csv")
    assert samples == [Sample(f"{address}/v/a.avi", 3), Sample(f"{address}/v/a.avi", 1)]
    (folder / "bad.csv").write_text("v/a.avi -3\n")
    with pytest.raises(ValueError, match=f"^{address}/bad.csv:1: "):
        list_samples(f"{address}/bad.csv")


def test_a_folder_of_a_store(memory, video, cache):
    for name in ("set/b/2.avi", "set/a/1.avi", "set/readme.txt", "set/a/3.jpg"):
        memory.pipe_file(f"/{name}", video)
    samples = list_samples("memory://set")
    assert samples == [Sample(f"memory:///set/{name}") for name in ("a/1.avi", "b/2.avi")]
    assert len(list_samples("memory://set", "any")) == 3
    # The size is known from the listing, so the server is not asked again.
    assert [s.source.status()[0] for s in samples] == [len(video)] * 2
    assert remote._info.cache_info().misses == 0
    assert len(shown_frames(samples, 2)) == 4
    assert len(kept(cache)) == 2
    before = content_hash("memory://set/a/1.avi")
    memory.pipe_file("/set/a/1.avi", video)  # the same file with another time
    remote._info.cache_clear()
    assert content_hash("memory://set/a/1.avi") != before != NO_CONTENT
    with pytest.raises(ValueError, match="No videos in memory://empty"):
        list_samples("memory://empty")
    with pytest.raises(UnreadableVideoError, match="memory://set/none.avi: no such file"):
        open_video("memory://set/none.avi")


def test_shards_of_a_store(memory, tmp_path, video):
    shard = write_tar(tmp_path / "x.tar", {"a.avi": video, "b.avi": video[:2000]})
    memory.pipe_file("/x.tar", shard.read_bytes())
    first, second = list_samples("memory://x.tar")
    with open_video(first.path) as opened, open_video(f"{shard}/a.avi") as here:
        np.testing.assert_array_equal(opened.read([3]), here.read([3]))
    with pytest.raises(UnreadableVideoError, match="memory://x.tar/b.avi: "):
        with open_video(second.path) as opened:
            opened.read([11])


def test_errors_of_a_store_are_named(memory, monkeypatch):
    memory.pipe_file("/a.avi", b"video")

    def fail(*_, **__):
        raise RuntimeError("quota exceeded")

    monkeypatch.setattr(type(memory), "info", fail)
    for address in ("memory://a.avi", "memory://x.tar/a.avi"):
        with pytest.raises(UnreadableVideoError, match=f"{address}: RuntimeError: quota exceeded"):
            open_video(address)
        # A run asks for the hash and size of all files when it begins.
        assert (content_hash(address), size_of(address)) == (NO_CONTENT, -1)


def test_what_is_not_installed_is_named(monkeypatch):
    pytest.importorskip("fsspec")
    with pytest.raises(ValueError, match="nonsense:// is not known"):
        list_samples("nonsense://a/b.csv")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    remote._file_system.cache_clear()
    with pytest.raises(MissingPackageError, match=r"pip install keras-vjepa\[remote\]"):
        source_exists("gs://bucket/videos")
    with pytest.raises(UnreadableVideoError, match=r"gs://b/a.mp4: .*keras-vjepa\[remote\]"):
        open_video("gs://b/a.mp4")
    assert content_hash("gs://b/a.mp4") == NO_CONTENT
    assert not RemoteFile("gs://b/a.mp4").is_image
    remote._file_system.cache_clear()


def test_a_list_that_does_not_come_is_named(served):
    folder, address, handler = served
    with pytest.raises(ValueError, match=f"`source` must be .*{address}/none.csv: no such file"):
        list_samples(f"{address}/none.csv")
    nobody = "http://127.0.0.1:9/list.csv"
    with pytest.raises(ValueError, match=f"`source` must be readable.*{nobody}: .*refused"):
        list_samples(nobody)
    # After a broken connection it is tried again, and if that fails too, the error names the list.
    (folder / "list.csv").write_text("a.avi 1\n")
    for failures, works in ((2, True), (9, False)):
        handler.failures = failures
        remote._info.cache_clear()
        if works:
            assert [s.path for s in list_samples(f"{address}/list.csv")] == [f"{address}/a.avi"]
            (folder / "list.csv").write_text("b.avi 1 \n")
        else:
            with pytest.raises(ValueError, match=f"{address}/list.csv: "):
                list_samples(f"{address}/list.csv")


def test_names_with_spaces_and_letters_of_all_languages(served, video):
    folder, address, _ = served
    for name in ("a b.avi", "\u00e9.avi", "c%d.avi"):
        (folder / name).write_bytes(video)
    (folder / "l.csv").write_text("a b.avi 0\n\u00e9.avi 1\nc%25d.avi 2\n")
    samples = list_samples(f"{address}/l.csv")
    assert [open_video(sample.source).num_frames for sample in samples] == [12, 12, 12]


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize("code", [403, 405])
def test_an_address_that_is_good_for_get_alone(served, video, monkeypatch, code, has_ranges):
    """As those with a key behind a question mark."""
    folder, address, handler = served
    handler.has_ranges = has_ranges
    handler.do_HEAD = lambda self: self.send_error(code)
    (folder / "a.avi").write_bytes(video)
    (folder / "l.csv").write_text("a.avi 3\n")
    assert size_of(f"{address}/a.avi?key=a/b") == len(video)
    assert open_video(f"{address}/a.avi?key=a/b").num_frames == 12
    assert list_samples(f"{address}/l.csv?key=a/b") == [Sample(f"{address}/a.avi", 3)]


def test_an_error_of_a_server_is_one_line_and_no_missing_shard(served):
    _, address, handler = served
    handler.do_GET = handler.do_HEAD = lambda self: (
        self.send_response(302),
        self.send_header("Location", self.path),
        self.end_headers(),
    )
    for name in ("a.csv", "a.tar", "n\nl.csv"):
        with pytest.raises((ValueError, OSError), match="HTTP Error 302|InvalidURL|302") as caught:
            list_samples(f"{address}/{name}")
        assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_named_with_a_remedy(
    served, video, tmp_path, monkeypatch
):
    folder, address, _ = served
    (folder / "a.avi").write_bytes(video)
    (tmp_path / "file").touch()
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(UnreadableVideoError, match=f"no copy .* set .* by {files.CACHE_VARIABLE}"):
        open_video(f"{address}/a.avi")
