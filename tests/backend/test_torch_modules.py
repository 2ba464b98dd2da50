"""A model is a module as users of torch know them (torch only)."""

import io

import keras
import numpy as np
import pytest

from keras_vjepa import (
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAProbe,
    VJEPAVideoClassifier,
    VJEPAVideoPreprocessor,
)
from keras_vjepa.backend.torch_modules import weights_by_name

torch = pytest.importorskip("torch")
on_torch = pytest.mark.skipif(keras.config.backend() != "torch", reason="modules of torch")

VIDEOS = np.random.default_rng(0).normal(size=(2, 4, 16, 16, 3)).astype("float32")


def backbone(**kwargs):
    sizes = {"patch_size": 8, "hidden_dim": 24, "num_layers": 2, "num_heads": 2}
    return VJEPABackbone(16, 4, **{**sizes, **kwargs})


def classifier(dtype="float32", **kwargs):
    encoder = backbone(dtype=dtype, **kwargs)
    return VJEPAVideoClassifier(encoder, num_classes=3, num_heads=2, dtype=dtype)


def pretrainer(**kwargs):
    encoder = backbone(**kwargs)
    return VJEPAPretrainer(
        encoder,
        VJEPAPredictor(24, encoder.position_axes, hidden_dim=12, num_layers=1, num_heads=2),
    )


def probe():
    model = VJEPAProbe(num_classes=3, num_heads=2)
    model.build((None, 5, 24))
    return model


MODELS = {
    "backbone": backbone,
    "predictor": lambda: VJEPAPredictor(24, (2, 2, 2), hidden_dim=12, num_layers=1, num_heads=2),
    "pretrainer": pretrainer,
    "probe": probe,
    "classifier": classifier,
}


@pytest.mark.parametrize("kind", MODELS)
def test_each_weight_has_one_name_on_every_engine(kind):
    model, another = MODELS[kind](), MODELS[kind]()
    names = weights_by_name(model)
    assert [id(weight) for weight in names.values()] == [id(weight) for weight in model.weights]
    assert list(names) == list(weights_by_name(another))
    assert not any("/" in name for name in names)


@on_torch
@pytest.mark.parametrize("kind", MODELS)
def test_state_of_one_goes_into_another(kind):
    model, another = MODELS[kind](), MODELS[kind]()
    for weight in model.weights:
        weight.assign(np.random.default_rng(1).normal(size=weight.shape))
    state = model.state_dict()
    assert sorted(state) == sorted(weights_by_name(model))
    assert len([*model.parameters()]) == len(state)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    another.load_state_dict(torch.load(file))
    for ours, theirs in zip(model.weights, another.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@on_torch
def test_state_within_a_module_of_the_users():
    def head():
        return torch.nn.Sequential(classifier(), torch.nn.Linear(3, 2))

    first, second = head(), head()
    state = first.state_dict()
    assert "0.backbone.block_1.attention.query_key_value.kernel" in state
    assert len(state) == len(first[0].weights) + 2
    second.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(second(VIDEOS), first(VIDEOS), rtol=0, atol=0)


@on_torch
def test_state_with_adapters_and_int8():
    def adapted():
        model = backbone()
        model.quantize("int8")
        model.enable_lora(2)
        return model

    first, second = adapted(), adapted()
    parameters = {id(parameter) for parameter in first.parameters()}
    assert parameters == {id(weight.value) for weight in first.weights}
    for weight in first.trainable_weights:
        weight.assign(np.random.default_rng(1).normal(size=weight.shape))
    assert "block_0.attention.query_key_value.lora_kernel_a" in first.state_dict()
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(second.predict(VIDEOS), first.predict(VIDEOS))


@on_torch
def test_state_that_does_not_fit_is_named():
    model = classifier()
    state = model.state_dict()
    del state["probe.linear.bias"]
    state["probe.linear.kernel"] = torch.zeros(2, 2)
    state["another"] = torch.zeros(1)
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(state)
    assert 'Missing key(s) in state_dict: "probe.linear.bias". ' in str(error.value)
    assert 'Unexpected key(s) in state_dict: "another". ' in str(error.value)
    assert "`probe.linear.kernel` must have the shape (24, 3). Received: (2, 2)" in str(error.value)
    del state["probe.linear.kernel"]
    found = model.load_state_dict(state, strict=False)
    assert found.missing_keys == ["probe.linear.kernel", "probe.linear.bias"]
    assert found.unexpected_keys == ["another"]
    with pytest.raises(ValueError, match="`assign` must be False"):
        model.load_state_dict(model.state_dict(), assign=True)


@on_torch
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_a_model_cast_is_one_that_was_made_so(dtype, positions):
    method = {"bfloat16": "bfloat16", "float16": "half", "float64": "double"}[dtype]
    cast = classifier(position_embedding=positions)
    made = classifier(dtype, position_embedding=positions)
    made.set_weights(cast.get_weights())
    assert getattr(cast, method)() is cast
    assert {weight.dtype for weight in cast.weights} == {weight.dtype for weight in made.weights}
    with torch.no_grad():
        torch.testing.assert_close(cast(VIDEOS), made(VIDEOS), rtol=0, atol=0)
    assert cast.get_config()["dtype"] == made.get_config()["dtype"]
    assert cast.float().compute_dtype == "float32"
    assert cast(VIDEOS).dtype == torch.float32


@on_torch
def test_what_a_cast_cannot_do_is_refused():
    model = backbone()
    with pytest.raises(ValueError, match="`to` must name the device that Keras computes on, 'cpu'"):
        model.to("meta")
    assert model.to("cpu") is model
    model.quantize("int8")
    before = model.predict(VIDEOS)
    with pytest.raises(ValueError, match="before it is quantized. Received: bfloat16"):
        model.bfloat16()
    np.testing.assert_array_equal(model.predict(VIDEOS), before)


@on_torch
def test_requires_grad_is_trainable():
    model = classifier()
    model.backbone.requires_grad_(True)
    assert model.backbone.trainable and model.trainable_backbone
    model(VIDEOS).sum().backward()
    assert all(weight.value.grad is not None for weight in model.backbone.trainable_weights)
    model.requires_grad_(False)
    assert not model.trainable_weights
    assert not any(weight.requires_grad for weight in model.parameters())


@on_torch
def test_a_loop_of_torch_compiled_and_in_autocast():
    model = backbone()
    model.trainable = True
    videos = torch.tensor(VIDEOS)
    expected = model(videos)
    torch.testing.assert_close(torch.compile(model, backend="eager")(videos), expected)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = (model(videos) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[2] < losses[1] < losses[0]


@on_torch
@pytest.mark.parametrize("kind", ["backbone", "classifier"])
def test_transforms_of_torch(kind):
    """Within them, tensors have no numbers that a check could look at."""
    model, videos = MODELS[kind](), torch.tensor(VIDEOS)
    model.requires_grad_(True)
    expected = model(videos)
    each = torch.func.vmap(lambda video: model(video[None])[0])(videos)
    torch.testing.assert_close(each, expected)
    found = torch.func.grad(lambda videos: model(videos)[..., 0].sum())(videos)
    videos.requires_grad_(True)
    model(videos)[..., 0].sum().backward()
    torch.testing.assert_close(found, videos.grad)
    assert found.abs().max() > 1e-5


@on_torch
def test_a_loader_of_paths(tmp_path):
    cv2 = pytest.importorskip("cv2")
    paths = []
    for i in range(3):
        paths.append(str(tmp_path / f"{i}.png"))
        cv2.imwrite(paths[-1], np.full((20, 30, 3), 40 * i, np.uint8))
    preprocessor = VJEPAVideoPreprocessor(image_size=16, num_frames=4)
    loader = torch.utils.data.DataLoader(paths, batch_size=2, collate_fn=preprocessor)
    model = backbone()
    np.testing.assert_allclose(model.predict(loader), model.predict(preprocessor(paths)), atol=1e-6)
