"""V-JEPA 2.1: the authors' numbers through the converter, the way back, and refusals by name."""

import functools
import json

import numpy as np
import pytest
from keras import ops

from keras_vjepa import VJEPABackbone, VJEPAPredictor, VJEPAPretrainer
from keras_vjepa.conversion import (
    CheckpointError,
    convert,
    convert_backbone,
    convert_probe,
    export_checkpoint,
    export_hugging_face,
)
from keras_vjepa.conversion.torch_archive import read_checkpoint
from keras_vjepa.tasks.objective import nearest_target_distances
from keras_vjepa.training.schedules import late_warmup
from tests.gradients import RecordGradients
from tests.support import GOLDEN, channels_last, compiled, slow_but_on

FOLDER = GOLDEN / "vjepa21"
HEADS = {
    "pretrain": {"num_heads": 2, "predictor_num_heads": 3},
    "distilled": {"num_heads": 2, "predictor_num_heads": 2},
}
SIZE = {"image_size": 64, "num_frames": 8}
MODELS = pytest.mark.parametrize("model", list(HEADS))
# Each backend tests one model and one kind of input; the code is the same for the others.
FEWER_MODELS = pytest.mark.parametrize(
    "model", ["pretrain", pytest.param("distilled", marks=slow_but_on("torch"))]
)
FEWER_KINDS = pytest.mark.parametrize(
    "kind", ["video", pytest.param("image", marks=slow_but_on("torch"))]
)
KINDS = pytest.mark.parametrize("kind", ["video", "image"])


@functools.cache
def golden(name):
    return dict(np.load(FOLDER / f"{name}.npz"))


@functools.cache
def converted(model):
    return convert(FOLDER / f"{model}.pt", **HEADS[model], **SIZE)


def batch_of(model, kind):
    inputs = golden("inputs")
    batch = {"videos": channels_last(inputs[kind])}
    for role in ("context", "target"):
        for i in range(2):
            batch[f"{role}_indices_{i}"] = inputs[f"{kind}_{role}_{i}"].astype("int32")
    if model == "distilled":
        batch["targets"] = inputs[f"{kind}_teacher"]
    return batch


def agree(model, found):
    """Compare with the authors' arrays, by the tolerance of each."""
    tolerances = json.loads((FOLDER / f"{model}.json").read_text())["arrays"]
    for name, value in found.items():
        value, expected = ops.convert_to_numpy(value), golden(model)[name]
        assert value.shape == expected.shape, name
        assert np.abs(value - expected).max() <= tolerances[name]["tolerance"], name


@slow_but_on("torch")
@MODELS
def test_features_of_videos_and_images(model):
    encoder = converted(model).target_encoder

    def outputs(videos, images):
        found = {}
        for kind, x in (("video", videos), ("image", images)):
            found[f"{kind}_final"] = encoder(x)
            found[f"{kind}_levels"] = encoder(x, hierarchical=True)
            found[f"{kind}_patch_embed"] = encoder.tokenizer(x.shape)(x)
        return found

    clips = [channels_last(golden("inputs")[kind]) for kind in ("video", "image")]
    found = compiled(outputs)(*clips)
    agree(model, found)
    levels = np.split(ops.convert_to_numpy(found["video_levels"]), 4, axis=-1)
    chosen = encoder.intermediate_features(clips[0], encoder.level_layers[::-1])
    for level, own in zip(levels[::-1], chosen, strict=True):
        assert np.abs(ops.convert_to_numpy(own) - level).max() <= 2e-5


@FEWER_MODELS
def test_inside_the_blocks(model):
    encoder = converted(model).target_encoder
    blocks = [0, 1, 3] if model == "pretrain" else [0, 5]

    def outputs(videos):
        raw = encoder.intermediate_features(videos, blocks, norm=False)
        tokens, rotations = encoder.embed(videos), encoder.rotations(videos)
        found = {f"video_block_{i}": x for i, x in zip(blocks, raw, strict=True)}
        branch = encoder.blocks[0].attention_branch(tokens, None, rotations)
        return {**found, "video_attention_block_0": branch}

    agree(model, compiled(outputs)(channels_last(golden("inputs")["video"])))


@slow_but_on("torch")
@MODELS
def test_other_sizes_and_masked_tokens(model):
    encoder, inputs = converted(model).target_encoder, golden("inputs")
    names = ("video_rect", "image_rect", "video_other")
    found = {f"{n}_final": encoder(channels_last(inputs[n])) for n in names}
    masked = encoder(channels_last(inputs["video_rect"]), inputs["mask_rect"])
    agree(model, {**found, "video_rect_masked_final": masked})


@FEWER_KINDS
@FEWER_MODELS
def test_predictions_and_losses(model, kind):
    pretrainer, batch = converted(model), batch_of(model, kind)
    names = list(batch)

    def outputs(*arrays):
        batch = dict(zip(names, arrays, strict=True))
        targets = pretrainer.targets(batch["videos"], batch.get("targets"))
        found = {f"{kind}_targets": targets} if model == "pretrain" else {}
        of_context = []
        for i in range(2):
            context = pretrainer.encode_context(batch, i)
            predicted, own = pretrainer.predicted(batch, i, context)
            found[f"{kind}_context_features_{i}"] = context
            found[f"{kind}_predicted_{i}"] = predicted
            found[f"{kind}_predicted_context_{i}"] = own
            of_context.append(ops.mean(pretrainer.context_loss(batch, i, own, targets)))
        found[f"{kind}_loss_context"] = sum(of_context) / 2
        found[f"{kind}_loss_total"] = ops.mean(pretrainer.sample_losses(batch)[0])
        return found

    agree(model, compiled(outputs)(*batch.values()))


@slow_but_on("torch")
@MODELS
def test_variants_of_the_predictor_and_the_loss(model):
    pretrainer, batch = converted(model), batch_of(model, "video")
    context, places = pretrainer.encode_context(batch, 0), batch["context_indices_0"]
    wanted = batch["target_indices_0"]
    token_1, _ = pretrainer.predictor(context, places, wanted, mask_index=1)
    predictor = VJEPAPredictor.from_config(
        {**pretrainer.predictor.get_config(), "position_reach": None}
    )
    predictor.set_weights(pretrainer.predictor.get_weights())
    whole, _ = predictor(context, places, wanted)
    plain = VJEPAPretrainer(
        pretrainer.encoder,
        pretrainer.predictor,
        target=pretrainer.target,
        context_loss_weight=1.0,
        context_loss_by_distance=False,
        mask_token=0,
    )
    plain.target_encoder.set_weights(pretrainer.target_encoder.get_weights())
    targets = plain.targets(batch["videos"], batch.get("targets"))
    losses = [
        ops.mean(plain.context_loss(batch, i, plain.predicted(batch, i, c)[1], targets))
        for i in range(2)
        for c in [plain.encode_context(batch, i)]
    ]
    agree(
        model,
        {
            "video_predicted_0_mask_token_1": token_1,
            "video_predicted_0_not_interpolated": whole,
            "video_loss_context_unweighted": sum(losses) / 2,
        },
    )


GRADIENTS = {
    "encoder_video_mod_embed": lambda p: p.encoder.video_vector,
    "encoder_img_mod_embed": lambda p: p.encoder.image_vector,
    "encoder_patch_embed_proj_bias": lambda p: p.encoder.tubelet_embedding.bias,
    "encoder_patch_embed_img_proj_bias": lambda p: p.encoder.image_embedding.bias,
    "encoder_blocks_0_norm1_weight": lambda p: p.encoder.blocks[0].attention_norm.gamma,
    "encoder_blocks_1_attn_qkv_bias": lambda p: p.encoder.blocks[1].attention.query_key_value.bias,
    "encoder_norms_block_0_weight": lambda p: p.encoder.lower_norms[0].gamma,
    "encoder_norms_block_3_bias": lambda p: p.encoder.norm.beta,
    "predictor_video_mod_embed": lambda p: p.predictor.video_vector,
    "predictor_img_mod_embed": lambda p: p.predictor.image_vector,
    "predictor_predictor_embed_0_bias": lambda p: p.predictor.level_projection.bias,
    "predictor_predictor_embed_bias": lambda p: p.predictor.input_projection.bias,
    "predictor_mask_tokens_0": lambda p: p.predictor.mask_tokens[0],
    "predictor_predictor_blocks_0_attn_qkv_bias": (
        lambda p: p.predictor.blocks[0].attention.query_key_value.bias
    ),
    "predictor_predictor_proj_context_bias": lambda p: p.predictor.context_projection.bias,
}


@slow_but_on("torch")
@KINDS
@MODELS
def test_gradients(model, kind):
    pretrainer, optimizer = converted(model), RecordGradients()
    # The step must change nothing, because the model is shared with other tests.
    pretrainer.momentum = 1.0
    pretrainer.compile(optimizer)
    pretrainer.train_on_batch(batch_of(model, kind))
    by_path = dict(
        zip((v.path for v in pretrainer.trainable_variables), optimizer.gradients, strict=True)
    )
    found = {
        f"{kind}_gradient_{name}": by_path[variable_of(pretrainer).path]
        for name, variable_of in GRADIENTS.items()
        if f"{kind}_gradient_{name}" in golden(model)
    }
    assert len(found) > 9
    agree(model, found)


@pytest.mark.data
def test_distances_and_the_warm_up_of_their_loss():
    inputs = golden("inputs")
    places = inputs["dist32_context"], inputs["dist32_target"]
    for name, unit in (("dist32_root", 1), ("dist32_root_offset", 32 // 16)):
        distances = nearest_target_distances(*places, (2, 32, 32), unit)
        agree("pretrain", {name: ops.sqrt(distances)})
    schedule = json.loads((FOLDER / "pretrain.json").read_text())["lambda_schedule"]
    for step, weight in schedule.items():
        assert 0.5 * float(late_warmup(int(step), 15_000, 30_000)) == pytest.approx(weight)


@pytest.mark.data
@MODELS
def test_the_way_back_is_exact(model, tmp_path):
    pretrainer = converted(model)
    export_checkpoint(pretrainer, tmp_path / "back.pt")
    original, written = (
        read_checkpoint(FOLDER / f"{model}.pt"),
        read_checkpoint(tmp_path / "back.pt"),
    )
    networks = [name for name in original if "encoder" in name or name == "predictor"]
    assert len(networks) == 3
    for name in networks:
        assert original[name].keys() == written[name].keys()
        for key, tensor in original[name].items():
            np.testing.assert_array_equal(tensor.read(), written[name][key].read())


@pytest.mark.data
def test_a_preset_at_another_size(tmp_path):
    pretrainer = converted("distilled")
    pretrainer.save_to_preset(tmp_path / "preset")
    restored = VJEPAPretrainer.from_preset(tmp_path / "preset")
    assert restored.target == "given" and restored.mask_token == 0
    for old, new in zip(pretrainer.get_weights(), restored.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    small = VJEPABackbone.from_preset(tmp_path / "preset", image_size=(32, 48), num_frames=4)
    assert small.video_shape == (4, 32, 48, 3) and small.level_layers == (2, 5, 8, 11)
    with pytest.raises(ValueError, match="`num_frames` must be more than 1"):
        VJEPABackbone.from_preset(tmp_path / "preset", num_frames=1)


@pytest.mark.data
def test_one_row_and_one_column_have_position_0():
    encoder = converted("pretrain").target_encoder
    column = np.random.default_rng(0).normal(size=(1, 2, 48, 16, 3)).astype("float32")
    for clip in (column, column.swapaxes(2, 3), column[:, :1]):
        assert np.isfinite(ops.convert_to_numpy(encoder(clip))).all()


def remove(key):
    return lambda network: {k: t for k, t in network.items() if not k.endswith(key)}


@pytest.mark.data
@pytest.mark.parametrize(
    "change,reason",
    [
        (remove("norms_block.2.bias"), "misses keys: norms_block.2.bias"),
        (remove("img_mod_embed"), "misses keys: img_mod_embed"),
        (remove("patch_embed.proj.weight"), "misses keys: patch_embed.proj.weight"),
        (lambda network: {**network, "norm.bias": next(iter(network.values()))}, "norm.bias"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(change, reason, tmp_path):
    from keras_vjepa.conversion.torch_archive import write_checkpoint

    content = read_checkpoint(FOLDER / "distilled.pt")
    for name in ("encoder", "ema_encoder"):
        content[name] = change(content[name])
    del content["scaler"]
    write_checkpoint(tmp_path / "changed.pt", content)
    for read, heads in ((convert, HEADS["distilled"]), (convert_backbone, {"num_heads": 2})):
        with pytest.raises(CheckpointError, match="V-JEPA 2.1") as error:
            read(tmp_path / "changed.pt", **heads)
        assert reason in str(error.value)


@pytest.mark.data
def test_no_reader_takes_it_for_something_else(tmp_path):
    path = FOLDER / "distilled.pt"
    cut, empty = tmp_path / "cut.pt", tmp_path / "vjepa2_1_vitb_dist_vitG_384.pt"
    cut.write_bytes(path.read_bytes()[:-70_000])
    empty.touch()
    readers = [
        lambda file: convert_probe(file),
        lambda file: convert(file, family="dinov2"),
        lambda file: convert(file, num_heads=2, position_embedding="rotary"),
        lambda file: convert(file, num_heads=3),
        lambda file: VJEPABackbone.from_preset(file),
    ]
    for file in (path, cut, empty):
        for reader in readers:
            with pytest.raises((CheckpointError, OSError), match="V-JEPA 2.1") as error:
                reader(file)
            assert "\n" not in str(error.value)


@pytest.mark.data
def test_other_containers_of_its_tensors_are_named(tmp_path):
    start = b'{"norms_block.0.bias": {"dtype": "F32", "shape": [1]}}'
    content = len(start).to_bytes(8, "little") + start + bytes(4)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="must be a file of PyTorch: .* V-JEPA 2.1"):
        convert(tmp_path / "model.safetensors")
    for reader in (convert, convert_backbone, VJEPABackbone.from_preset):
        with pytest.raises((CheckpointError, OSError), match="files of V-JEPA 2.1"):
            reader(tmp_path)


@pytest.mark.data
def test_layouts_without_it_refuse_it(tmp_path):
    pytest.importorskip("safetensors")
    encoder = converted("pretrain").encoder
    with pytest.raises(CheckpointError, match="position_embedding"):
        export_hugging_face(encoder, tmp_path / "folder")
    config = {**encoder.get_config(), "modalities": False}
    with pytest.raises(CheckpointError, match="V-JEPA 2.1 must have all .* not modalities=True"):
        export_checkpoint(VJEPABackbone.from_config(config), tmp_path / "mixed.pt")
    assert not (tmp_path / "mixed.pt").exists()


@pytest.mark.data
def test_unknown_depths_need_their_levels(tmp_path):
    deep = {"level_layers": (0, 2, 4), "num_layers": 5}
    config = {**converted("pretrain").encoder.get_config(), **deep}
    export_checkpoint(VJEPABackbone.from_config(config), tmp_path / "deep.pt")
    with pytest.raises(CheckpointError, match="pass `level_layers`"):
        convert_backbone(tmp_path / "deep.pt", num_heads=2, **SIZE)
    restored = convert_backbone(tmp_path / "deep.pt", num_heads=2, level_layers=(0, 2, 4), **SIZE)
    assert restored.level_layers == (0, 2, 4)


@pytest.mark.data
def test_batch_size_one_and_a_missing_teacher():
    pretrainer, batch = converted("distilled"), batch_of("distilled", "video")
    one = {name: array[:1] for name, array in batch.items()}
    whole, single = (ops.convert_to_numpy(pretrainer(b)) for b in (batch, one))
    assert single.shape == (1,) and abs(single[0] - whole[0]) <= 1e-5
    del batch["targets"]
    with pytest.raises(ValueError, match="must hold `targets`"):
        pretrainer(batch)
    with pytest.raises(ValueError, match="`given` must be features of the teacher"):
        pretrainer.targets(batch["videos"])


@pytest.mark.data
def test_images_whose_targets_do_not_exist_are_refused():
    """Images have fewer tokens than videos, fewer pixels in a patch, and not every teacher."""
    known, batch = converted("pretrain"), batch_of("pretrain", "image")
    beyond = {**batch, "target_indices_1": batch["target_indices_1"] + 16}
    with pytest.raises(ValueError, match="^`target_indices_1` must be .* from -1 to 15. Received"):
        known(beyond)
    config = {**known.predictor.get_config(), "num_levels": 1, "predicts_context": False}
    small = {**known.encoder.get_config(), "modalities": False, "num_layers": 1, "name": "small"}
    teacher = VJEPABackbone.from_config({**small, "level_layers": None})
    for options, width, reason in (
        ({"target": "pixels"}, known.encoder.patch_dim, "`target` must not be 'pixels' for images"),
        ({"teacher": teacher}, teacher.hidden_dim, "`teacher` must have `modalities` for images"),
    ):
        predictor = VJEPAPredictor.from_config({**config, "output_dim": width})
        pretrainer = VJEPAPretrainer(known.encoder, predictor, **options)
        pretrainer.compile("sgd")
        for call in (pretrainer, pretrainer.train_on_batch):
            with pytest.raises(ValueError, match=f"^{reason}"):
                call(batch)


@pytest.mark.data
@pytest.mark.parametrize("argument", [{"level_layers": (1, 0)}, {"num_frames": 1}])
def test_what_cannot_be_is_refused(argument):
    own = {"image_size": 32, "num_frames": 4, "hidden_dim": 8, "num_layers": 2, "num_heads": 1}
    given = {**own, "position_embedding": "rotary_pairs", "modalities": True, **argument}
    with pytest.raises(ValueError, match=f"`{next(iter(argument))}` must"):
        VJEPABackbone(**given)
