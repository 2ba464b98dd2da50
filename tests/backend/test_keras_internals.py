"""A private name of Keras or torch that is gone is an error that names it, before a step."""

import inspect

import keras
import pytest

from keras_vjepa import VJEPABackbone, VJEPAPredictor, VJEPAPretrainer
from keras_vjepa.backend import keras_internals
from keras_vjepa.backend.keras_internals import PRIVATE_NAMES, PrivateName

USED = [private for private in PRIVATE_NAMES if private.is_used]


def small_pretrainer():
    encoder = VJEPABackbone(16, 2, hidden_dim=12, num_layers=1, num_heads=2)
    return VJEPAPretrainer(encoder, VJEPAPredictor(12, encoder.position_axes, 12, 1, 2))


def renamed(monkeypatch, private):
    """Take the name from whatever has it, as a release would that calls it something else."""
    owner = private.find_owner()
    kind = owner if inspect.isclass(owner) else type(owner)
    for holder in [owner, *kind.__mro__] if inspect.ismodule(owner) else kind.__mro__:
        if private.name in vars(holder):
            monkeypatch.delattr(holder, private.name)
    # An attribute may belong to instances only, or be created when it is read.
    for method in ("__getattribute__", "__getattr__"):
        original = getattr(kind, method, None)
        if hasattr(owner, private.name) and original is not None:

            def gone(self, name, original=original):
                if name == private.name:
                    raise AttributeError(name)
                return original(self, name)

            monkeypatch.setattr(kind, method, gone)
    assert not hasattr(owner, private.name)


@pytest.mark.parametrize("private", USED, ids=lambda private: private.name)
def test_a_renamed_name_is_an_error_at_compile(private, monkeypatch):
    pretrainer = small_pretrainer()
    pretrainer.compile()
    renamed(monkeypatch, private)
    with pytest.raises(RuntimeError, match=f"{private.name}.* pip install '") as error:
        pretrainer.compile()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("private", [p for p in USED if p.parameters], ids=lambda p: p.name)
def test_renamed_arguments_are_an_error_at_compile(private, monkeypatch):
    pretrainer = small_pretrainer()
    monkeypatch.setattr(private.find_owner(), private.name, lambda other_name: None)
    with pytest.raises(RuntimeError, match=rf"{private.name}\({private.parameters[0]}"):
        pretrainer.compile()


def test_names_of_other_engines_and_versions_are_not_asked_for():
    other = {"jax": "torch", "torch": "tensorflow", "tensorflow": "jax"}[keras.config.backend()]
    for differs in ({"engines": (other,)}, {"since": (99, 0)}):
        assert not PrivateName("_gone", "keras.Model", lambda: keras.Model, **differs).is_used
    gone = PrivateName("_gone", "keras.Model", lambda: keras.Model)
    assert gone.is_used
    with pytest.raises(RuntimeError, match=r"`keras.Model._gone`. Found Keras 3\.\d+"):
        gone.check()


def test_the_installed_versions_have_all_names():
    keras_internals.check()
    assert USED
