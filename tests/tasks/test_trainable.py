"""What is trained is what Keras says is trainable, of any model, in any order of the calls."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import (
    AdamW,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAVideoClassifier,
)
from tests.models.test_layer_states import LABELS, VIDEOS, backbone
from tests.support import random_batch, slow_but_on


def classifier(num_layers=2, **arguments):
    return VJEPAVideoClassifier(backbone(num_layers), 2, **arguments)


def compiled(model, optimizer=None):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # The decay is so large that it shows at once in weights without a gradient.
    optimizer = optimizer or AdamW(1e-2, weight_decay=10.0)
    model.compile(optimizer, loss, jit_compile=keras.config.backend() == "jax")
    return model


def values(model):
    return {v.path: np.array(ops.convert_to_numpy(v)) for v in model.variables}


def moved(model, train):
    """Paths of the weights that `train` changes."""
    before = values(model)
    train()
    return {path for path, value in values(model).items() if (value != before[path]).any()}


def trained(model):
    return {v.path for v in model.trainable_variables}


# What is set to trainable, and the layers of the backbone that are then trained.
PARTS = {
    "whole": lambda b: setattr(b, "trainable", True),
    "last": lambda b: (setattr(b, "trainable", False), setattr(b.blocks[1], "trainable", True)),
    "all_but_first": lambda b: (
        setattr(b, "trainable", True),
        setattr(b.tubelet_embedding, "trainable", False),
        setattr(b.blocks[0], "trainable", False),
    ),
    "nothing": lambda b: setattr(b, "trainable", False),
}
OF_THE_BACKBONE = {"whole": 28, "last": 12, "all_but_first": 14, "nothing": 0}


@pytest.mark.parametrize(
    "part,order,optimizer",
    [
        ("last", "compile fit set compile fit", "ours"),
        pytest.param("whole", "compile set fit", "ours", marks=slow_but_on("torch", "jax")),
        pytest.param("last", "set compile fit", "ours", marks=slow_but_on("torch")),
        pytest.param("all_but_first", "set compile fit", "ours", marks=slow_but_on("torch")),
        pytest.param("nothing", "compile set fit", "ours", marks=slow_but_on("torch")),
        pytest.param("whole", "set compile fit", "keras", marks=slow_but_on("torch")),
        pytest.param("last", "set compile fit", "keras", marks=slow_but_on("torch")),
    ],
)
@pytest.mark.filterwarnings("ignore:A layer's `trainable` state")
def test_what_is_trainable_moves_and_nothing_else(part, order, optimizer):
    model = classifier()

    def fit():
        model.fit(VIDEOS, LABELS, verbose=0)

    steps = {
        "set": lambda: PARTS[part](model.backbone),
        "compile": lambda: compiled(
            model, keras.optimizers.AdamW(1e-2, 10.0) if optimizer == "keras" else None
        ),
        "fit": fit,
    }
    *ahead, _ = order.split()
    for step in ahead:
        steps[step]()
    assert moved(model, fit) == trained(model)
    assert len(trained(model)) == len(trained(model.probe)) + OF_THE_BACKBONE[part]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("optimizer", ["ours", "keras"])
def test_an_optimizer_of_other_weights_is_refused(before, optimizer):
    """Not trained silently with what was trainable before, as a program that is kept would do."""
    model = classifier(1, trainable_backbone=before)
    compiled(model, keras.optimizers.AdamW(1e-2) if optimizer == "keras" else None)
    # The first step does the same.
    model.optimizer.build(model.trainable_variables)
    model.make_train_function()
    model.backbone.trainable = not before
    for train in (model.fit, model.train_on_batch):
        with pytest.raises(ValueError, match="`compile` must be called again.*: vjepa_backbone"):
            train(VIDEOS, LABELS)
    model.backbone.trainable = before
    model.make_train_function()


def test_the_argument_is_what_the_backbone_says():
    model = classifier()
    assert model.trainable_backbone is model.backbone.trainable is False
    assert not trained(model.backbone)
    model.backbone.trainable = True
    assert model.trainable_backbone and model.get_config()["trainable_backbone"] is True
    partly = backbone()
    partly.blocks[0].trainable = False
    assert len(trained(VJEPAVideoClassifier(partly, 2, trainable_backbone=True).backbone)) == 16
    assert not trained(VJEPAVideoClassifier(partly, 2).backbone)
    assert len(trained(VJEPAVideoClassifier(partly, 2, trainable_backbone=True).backbone)) == 28


def test_a_backbone_made_frozen_is_frozen():
    frozen = backbone(trainable=False)
    assert not any(variable.trainable for variable in frozen.variables)
    frozen.trainable = True
    assert len(trained(frozen)) == 28
    images = keras.Input((8, 8, 3))
    tokens = keras.layers.Dense(8)(keras.layers.Reshape((-1, 6))(images))
    foreign = keras.Model(images, tokens, trainable=False)
    model = VJEPAVideoClassifier(foreign, 2, num_heads=2)
    assert trained(model) == trained(model.probe)
    model.backbone.trainable = True
    assert len(trained(model)) == len(trained(model.probe)) + 2


class WithPooler(keras.Model):
    """A backbone as other packages have them: one of its layers is for another task's loss."""

    def __init__(self):
        super().__init__()
        self.hidden_dim, self.is_image_model = 8, False
        self.embedding = keras.layers.Dense(8)
        self.pooler = keras.layers.Dense(8)
        self.pooler.build((None, 8))

    def call(self, videos):
        return self.embedding(ops.reshape(videos, (ops.shape(videos)[0], -1, 6)))


@pytest.mark.parametrize(
    "optimizer,dtype",
    [
        (lambda: AdamW(1e-2, weight_decay=10.0, clip_norm=1.0), "float32"),
        pytest.param(
            lambda: keras.optimizers.AdamW(1e-2, 0.9), "mixed_float16", marks=slow_but_on("torch")
        ),
    ],
    ids=["ours", "scaled"],
)
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_what_the_loss_does_not_depend_on_is_not_decayed(optimizer, dtype):
    foreign = WithPooler()
    foreign(VIDEOS)
    model = VJEPAVideoClassifier(foreign, 2, num_heads=2, trainable_backbone=True, dtype=dtype)
    compiled(model, optimizer())
    found = moved(model, lambda: model.fit(VIDEOS, LABELS, epochs=2, verbose=0))
    pooler = {variable.path for variable in foreign.pooler.variables}
    assert pooler < trained(model)
    assert found & trained(model) == trained(model) - pooler


def test_assigning_what_is_there_reaches_all_layers():
    model = backbone()
    model.blocks[1].trainable = False
    model.trainable = True
    assert len(trained(model)) == 28


# --- No backward pass where nothing is trained ---------------------------------------------------


def products_in_a_step(model):
    """Number of matrix products in one training step."""
    data = (ops.convert_to_tensor(VIDEOS), ops.convert_to_tensor(LABELS))
    compiled(model)
    model.prepare_step()
    model.optimizer.build(model.trainable_variables)
    return {"torch": in_torch, "tensorflow": in_tensorflow, "jax": in_jax}[keras.config.backend()](
        model, data
    )


def in_torch(model, data):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = str(function)
            self.count += "mm" in name or "attention" in name
            return function(*args, **(kwargs or {}))

    with Count() as counting:
        model.train_step(data)
    return counting.count


def in_tensorflow(model, data):
    import tensorflow as tf

    graph = tf.function(model.train_step, autograph=False).get_concrete_function(data).graph
    return sum(op.type in ("MatMul", "BatchMatMulV2", "Einsum") for op in graph.get_operations())


def in_jax(model, data):
    import jax

    state = tuple(
        [variable.value for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    )

    def count(jaxpr):
        inner = [
            count(getattr(part, "jaxpr", part))
            for equation in jaxpr.eqns
            for value in equation.params.values()
            for part in (value if isinstance(value, list | tuple) else [value])
            if hasattr(part, "eqns") or hasattr(part, "jaxpr")
        ]
        return sum(e.primitive.name == "dot_general" for e in jaxpr.eqns) + sum(inner)

    return count(jax.make_jaxpr(model.train_step)(state, data).jaxpr)


def test_no_backward_pass_where_nothing_is_trained():
    """A block more that is frozen costs its forward pass, wherever something above it learns."""

    def last_only(num_layers):
        model = classifier(num_layers)
        model.backbone.blocks[-1].trainable = True
        return model

    counts = [products_in_a_step(model) for model in (classifier(1), classifier(2))]
    partly = [products_in_a_step(model) for model in (last_only(1), last_only(2))]
    forward = counts[1] - counts[0]
    assert partly[1] - partly[0] == forward > 0
    # With a gradient, the test does see it.
    assert partly[0] >= counts[0] + forward


# --- Pretraining, and pixels ---------------------------------------------------------------------


@pytest.mark.parametrize("part", ["last", pytest.param("nothing", marks=slow_but_on("torch"))])
def test_a_pretrainer_trains_what_is_trainable(part):
    encoder = backbone()
    predictor = VJEPAPredictor(8, encoder.position_axes, 8, 1, 2, num_mask_tokens=1)
    model = VJEPAPretrainer(encoder, predictor, momentum=0.5)
    PARTS[part](encoder)
    model.compile(AdamW(1e-2, weight_decay=10.0), jit_compile=keras.config.backend() == "jax")
    batch = random_batch(0, model, context=2, target=2)
    found = moved(model, lambda: model.fit(batch, verbose=0))
    of_target = {path for path in found if path.startswith(model.target_encoder.name)}
    assert found - of_target == trained(model)
    of_encoder = {path for path in trained(model) if path.startswith(encoder.name)}
    assert len(of_encoder) == OF_THE_BACKBONE[part] == len(of_target)


def gradient_of_pixels(model):
    """Of the first logit, by what each engine offers for it."""
    engine = keras.config.backend()
    if engine == "torch":
        import torch

        pixels = torch.tensor(VIDEOS, requires_grad=True)
        return torch.autograd.grad(model(pixels, training=False)[0, 0], pixels)[0]
    if engine == "jax":
        import jax

        variables = (model.trainable_variables, model.non_trainable_variables)
        values = [[variable.value for variable in part] for part in variables]
        function = lambda x: model.stateless_call(*values, x, training=False)[0][0, 0]  # noqa: E731
        return jax.jit(jax.grad(function))(VIDEOS)
    import tensorflow as tf

    pixels = tf.constant(VIDEOS)
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        logit = model(pixels, training=False)[0, 0]
    return tape.gradient(logit, pixels)


def test_pixels_of_a_frozen_classifier_have_a_gradient():
    gradient = ops.convert_to_numpy(gradient_of_pixels(classifier(1)))
    assert np.abs(gradient[0]).max() > 0 and not gradient[1].any()


def test_a_model_of_which_nothing_is_trained_refuses_to_fit():
    model = classifier(1)
    model.trainable = False
    with pytest.raises(ValueError, match="`trainable` must be True for a part of .*") as caught:
        compiled(model).fit(VIDEOS, LABELS, verbose=0)
    assert "\n" not in str(caught.value)
