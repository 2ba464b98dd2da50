"""JSON of elsewhere: what is damaged or hostile is refused in one line that names the file."""

import json
import os

import pytest

from keras_vjepa.json_files import JsonFileError, read_json, read_json_object

pytestmark = pytest.mark.data


@pytest.mark.parametrize(
    "content,message",
    [
        (b"", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b"[-Infinity]", "-Infinity is no number of JSON"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "'b' occurs twice"),
        (b"[" * 10**5 + b"]" * 10**5, "nested too deep"),
        (b"[" * 101 + b"]" * 101, "nested too deep"),
        (b"[" + b"9" * 5000 + b"]", "cannot be read as JSON"),
        (b" " * (2**25 + 1), "must have at most 33,554,432 bytes"),
    ],
    ids=range(10),
)
def test_what_is_refused(content, message, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(JsonFileError) as caught:
        read_json(path)
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_read(tmp_path):
    path = tmp_path / "a.json"
    for content in ({"a": [1, {"b": None}], "c": {"a": 1.5}}, json.loads("[" * 90 + "]" * 90)):
        path.write_text(json.dumps(content))
        assert read_json(path) == content
    with pytest.raises(JsonFileError, match="must hold a JSON object. Received: list"):
        read_json_object(path)
    for content in (None, True, 3, 1.5, "text"):
        path.write_text(json.dumps(content))
        assert read_json(path) == content
        with pytest.raises(JsonFileError, match="must hold a JSON object. Received: "):
            read_json_object(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json")


@pytest.mark.skipif(os.name == "nt", reason="has no pipes")
def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(JsonFileError, match="must be a file. Received: a pipe"):
        read_json(tmp_path / "a.json")
    with pytest.raises(JsonFileError, match="must be a file. Received: a folder"):
        read_json(tmp_path)
