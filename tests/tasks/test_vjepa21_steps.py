"""Five training steps of V-JEPA 2.1 beside a step in plain torch, written from its description."""

import numpy as np
import pytest

from keras_vjepa.conversion import convert, export_checkpoint
from keras_vjepa.conversion.torch_archive import read_checkpoint
from keras_vjepa.training.optimizer import AdamW
from tests.support import GOLDEN, channels_last, slow_but_on

torch = pytest.importorskip("torch")
functional = torch.nn.functional

HEADS, PREDICTOR_HEADS, LEVELS = 2, 3, 4
# The peak of the learning rate in the published configs.
MOMENTUM, RATE, DECAY, CONTEXT_WEIGHT = 0.9, 6e-4, 0.04, 0.5
WARMUP = (1, 4)


def normed(x, w, name, epsilon=1e-6):
    return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], epsilon)


def linear(x, w, name):
    return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def angles(indices, grid, width):
    """(batch, tokens, channels): every frequency twice in a row; the rest are not rotated."""
    _, rows, columns = grid
    places = (
        indices // (rows * columns),
        indices // columns % rows * (15 / max(rows - 1, 1)),
        indices % columns * (15 / max(columns - 1, 1)),
    )
    own = 2 * (width // 3 // 2)
    found = []
    for place in places:
        frequencies = 10_000.0 ** -(torch.arange(own // 2) / (own / 2))
        found.append((place[..., None] * frequencies).repeat_interleave(2, dim=-1))
    rest = torch.zeros(*indices.shape, width - 3 * own)
    return torch.cat([*found, rest], dim=-1)


def rotated(x, angle):
    even, odd = x[..., ::2], x[..., 1::2]
    partner = torch.stack([-odd, even], dim=-1).flatten(-2)
    return x * angle.cos() + partner * angle.sin()


def block(x, w, name, heads, angle):
    batch, tokens, dim = x.shape
    packed = linear(normed(x, w, f"{name}.norm1"), w, f"{name}.attn.qkv")
    q, k, v = packed.reshape(batch, tokens, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    q, k = rotated(q, angle[:, None]), rotated(k, angle[:, None])
    weights = (q @ k.transpose(-1, -2) / (dim // heads) ** 0.5).softmax(-1)
    x = x + linear((weights @ v).transpose(1, 2).flatten(2), w, f"{name}.attn.proj")
    hidden = functional.gelu(linear(normed(x, w, f"{name}.norm2"), w, f"{name}.mlp.fc1"))
    return x + linear(hidden, w, f"{name}.mlp.fc2")


def encoded(clip, w, indices=None):
    """(batch, channel, time, height, width) to four normed levels side by side."""
    is_image = clip.shape[2] == 1
    name = "patch_embed_img.proj" if is_image else "patch_embed.proj"
    kernel = w[f"{name}.weight"]
    x = functional.conv3d(clip, kernel, w[f"{name}.bias"], stride=kernel.shape[2:])
    grid = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    x = x + w["img_mod_embed" if is_image else "video_mod_embed"]
    if indices is None:
        indices = torch.arange(x.shape[1])[None].expand(len(x), -1)
    x = x.gather(1, indices[..., None].expand(-1, -1, x.shape[2]))
    angle = angles(indices, grid, x.shape[2] // HEADS)
    levels = []
    for i in range(LEVELS):
        x = block(x, w, f"blocks.{i}", HEADS, angle)
        levels.append(normed(x, w, f"norms_block.{i}"))
    return torch.cat(levels, dim=-1), grid


def predicted(context, w, context_indices, target_indices, is_image):
    x = functional.gelu(linear(context, w, "predictor_embed.0"))
    x = linear(x, w, "predictor_embed.2")
    targets = w["mask_tokens.0"].expand(*target_indices.shape, -1)
    x = torch.cat([x, targets], 1) + w["img_mod_embed" if is_image else "video_mod_embed"]
    indices = torch.cat([context_indices, target_indices], 1)
    angle = angles(indices, (4, 4, 4), x.shape[2] // PREDICTOR_HEADS)
    for i in range(4):
        x = block(x, w, f"predictor_blocks.{i}", PREDICTOR_HEADS, angle)
    x, count = normed(x, w, "predictor_norm"), context_indices.shape[1]
    of_context = linear(x[:, :count], w, "predictor_proj_context")
    return linear(x[:, count:], w, "predictor_proj"), of_context


def taken(targets, indices):
    return targets.gather(1, indices[..., None].expand(-1, -1, targets.shape[2]))


def places(indices, grid):
    _, rows, columns = grid
    parts = indices // (rows * columns), indices // columns % rows, indices % columns
    return torch.stack(parts, -1).float()


def loss_of(networks, batch, share):
    clip = batch["clip"]
    with torch.no_grad():
        levels, grid = encoded(clip, networks["target_encoder"])
        parts = levels.chunk(LEVELS, dim=-1)
        targets = torch.cat(
            [functional.layer_norm(p, p.shape[-1:], eps=1e-5) for p in parts], dim=-1
        )
    losses = []
    for context_indices, target_indices in batch["masks"]:
        context, _ = encoded(clip, networks["encoder"], context_indices)
        at_targets, at_context = predicted(
            context, networks["predictor"], context_indices, target_indices, clip.shape[2] == 1
        )
        apart = torch.cdist(places(context_indices, grid), places(target_indices, grid))
        errors = (at_context - taken(targets, context_indices)).abs()
        weighted = errors / apart.amin(-1, keepdim=True).sqrt()
        losses.append(
            (at_targets - taken(targets, target_indices)).abs().mean()
            + CONTEXT_WEIGHT * share * weighted.mean()
        )
    return sum(losses) / len(losses)


def plain_training(networks, batches):
    """Five steps of AdamW on dictionaries of tensors; returns the losses."""
    trained = [w for name in ("encoder", "predictor") for w in networks[name].values()]
    for weight in trained:
        weight.requires_grad_(True)
    groups = [
        {"params": [w for w in trained if w.ndim > 1], "weight_decay": DECAY},
        {"params": [w for w in trained if w.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer, losses = torch.optim.AdamW(groups, lr=RATE, eps=1e-8), []
    for step, batch in enumerate(batches):
        share = min(max((step - WARMUP[0]) / (WARMUP[1] - WARMUP[0]), 0.0), 1.0)
        loss = loss_of(networks, batch, share)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for key, weight in networks["target_encoder"].items():
                weight.mul_(MOMENTUM).add_(networks["encoder"][key], alpha=1 - MOMENTUM)
        losses.append(loss.item())
    return losses


def tensors_of(path):
    content = read_checkpoint(path)
    return {
        name: {
            key.removeprefix("module.backbone."): torch.from_numpy(np.array(tensor.read()))
            for key, tensor in content[name].items()
        }
        for name in ("encoder", "predictor", "target_encoder")
    }


# Images and videos do not take turns here: torch's AdamW counts steps only for weights that get a
# gradient, and Keras' optimizers have one count for all.
@slow_but_on("torch")
@pytest.mark.parametrize("kind", ["video", "image"])
def test_five_steps(kind, tmp_path):
    path, inputs = GOLDEN / "vjepa21" / "pretrain.pt", np.load(GOLDEN / "vjepa21" / "inputs.npz")
    sizes = {"num_heads": HEADS, "predictor_num_heads": PREDICTOR_HEADS}
    converted = convert(path, **sizes, image_size=64, num_frames=8)
    config = {**converted.get_config(), "momentum": MOMENTUM}
    config |= {"context_warmup_start": WARMUP[0], "context_warmup_end": WARMUP[1]}
    pretrainer = type(converted).from_config(config)
    for part in ("encoder", "predictor", "target_encoder"):
        getattr(pretrainer, part).set_weights(getattr(converted, part).get_weights())
    pretrainer.compile(AdamW(RATE, DECAY, epsilon=1e-8))
    batches, losses = [], []
    for step in range(5):
        clip = np.roll(inputs[kind], step, axis=-1)
        own = {"videos": channels_last(clip)}
        masks = []
        for i in range(2):
            for role in ("context", "target"):
                own[f"{role}_indices_{i}"] = inputs[f"{kind}_{role}_{i}"].astype("int32")
            pair = [torch.from_numpy(inputs[f"{kind}_{r}_{i}"]) for r in ("context", "target")]
            masks.append(pair)
        batches.append({"clip": torch.from_numpy(clip.copy()), "masks": masks})
        pretrainer.reset_metrics()
        losses.append(float(pretrainer.train_on_batch(own, return_dict=True)["step_loss"]))
    networks = tensors_of(path)
    expected = plain_training(networks, batches)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    export_checkpoint(pretrainer, tmp_path / "after.pt")
    for name, tensors in tensors_of(tmp_path / "after.pt").items():
        for key, tensor in tensors.items():
            # The true gradient of key biases is zero, but Adam turns its rounding noise into steps.
            if not key.endswith("qkv.bias"):
                apart = (tensor - networks[name][key].detach()).abs().max().item()
                assert apart <= 5e-5, (name, key, apart)
