"""Callbacks by name: what is made, and what is refused in one line."""

import sys

import keras
import pytest

from keras_vjepa.monitoring.given_callbacks import given_callbacks

pytestmark = pytest.mark.data

MODULE = """
import keras
class Mine(keras.callbacks.Callback):
    pass
def made(size=3):
    return Mine()
there_already = Mine()
class Needs(keras.callbacks.Callback):
    def __init__(self, path): ...
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "of_a_user.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("of_a_user", None)


def test_classes_functions_and_objects(module):
    found = given_callbacks(["of_a_user:Mine", "of_a_user:made", "of_a_user:there_already"])
    assert [type(one).__name__ for one in found] == ["Mine"] * 3
    assert all(isinstance(one, keras.callbacks.Callback) for one in found)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("of_a_user", "must be package.module:Name. Received: of_a_user"),
        ("of_a_user:", "must be package.module:Name"),
        ("of_a_user:Nothing", "must be importable. Received: of_a_user:Nothing .AttributeError"),
        ("not_there:Mine", "must be importable. Received: not_there:Mine .ModuleNotFoundError"),
        ("broken:Mine", "must be importable. Received: broken:Mine .ZeroDivisionError"),
        ("of_a_user:Needs", "must be made without arguments; write a function that makes it"),
        ("of_a_user:number", "must be callbacks of Keras. Received: of_a_user:number"),
    ],
)
def test_what_is_none_is_refused(module, name, message):
    with pytest.raises(ValueError, match=f"`callbacks` {message}") as error:
        given_callbacks([name])
    assert len(str(error.value).splitlines()) == 1
