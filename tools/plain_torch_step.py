"""Time a training step in plain PyTorch, to compare with `tools/bench.py` (§3.1, §3.3, App. B, C).

    KERAS_BACKEND=torch python tools/plain_torch_step.py --size base --steps 5

The step follows the description of the authors' step, with the batch of `tools/bench.py`: modules
and their fused attention, an encoder pass for each kind of mask, autocast and loss scaling on a
GPU, no padding, AdamW in groups, the moving average weight by weight. The authors' step also
measures every weight's gradient and both of its moments, and reads each number back; with
`--unmeasured`, this is left out. Weights are random and schedules are constant, because neither
changes the time of a step.
"""

import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from keras_vjepa.arguments import MOST_LONG, check_whole
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.models.backbone import SIZES
from keras_vjepa.tools.bench import CONTEXT_TOKENS, TARGET_TOKENS, TOKENS, make_batch

Tensors = list[torch.Tensor]


class Block(nn.Module):
    """Applies attention and an MLP to tokens, each after a norm and added to its input."""

    def __init__(self, dim: int, num_heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.drop_path = num_heads, drop_path
        self.attention_norm = nn.LayerNorm(dim, eps=1e-6)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.output_projection = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp_hidden = nn.Linear(dim, 4 * dim)
        self.mlp_output = nn.Linear(4 * dim, dim)

    def kept(self, branch: torch.Tensor) -> torch.Tensor:
        """Leave a branch out of some samples at random, at the rate of `drop_path`."""
        if not self.drop_path:
            return branch
        drawn = torch.rand(len(branch), 1, 1, device=branch.device) < 1.0 - self.drop_path
        return branch * drawn / (1.0 - self.drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        packed = self.query_key_value(self.attention_norm(x))
        packed = packed.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(packed[0], packed[1], packed[2])
        x = x + self.kept(self.output_projection(attended.transpose(1, 2).flatten(2)))
        hidden = functional.gelu(self.mlp_hidden(self.mlp_norm(x)))
        return x + self.kept(self.mlp_output(hidden))


def take(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Pick tokens of each sample by their indices: `(batch, picked, dim)`."""
    indices = indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    return torch.gather(tokens.expand(len(indices), -1, -1), 1, indices)


class Encoder(nn.Module):
    """Encodes all or some patches of videos `(batch, channels, frames, height, width)`."""

    def __init__(self, dim: int, num_layers: int, num_heads: int, num_tokens: int = TOKENS) -> None:
        super().__init__()
        self.tubelet_embedding = nn.Conv3d(3, dim, (2, 16, 16), (2, 16, 16))
        self.position_table = nn.Parameter(0.02 * torch.randn(1, num_tokens, dim), False)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, videos: torch.Tensor, indices: torch.Tensor | None = None) -> torch.Tensor:
        x = self.tubelet_embedding(videos).flatten(2).transpose(1, 2) + self.position_table
        if indices is not None:
            x = take(x, indices)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Predictor(nn.Module):
    """Predicts the features of hidden tokens from those of the context."""

    def __init__(
        self,
        encoder_dim: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        num_tokens: int = TOKENS,
        num_mask_tokens: int = 2,
    ) -> None:
        super().__init__()
        self.input_projection = nn.Linear(encoder_dim, dim)
        self.mask_tokens = nn.ParameterList(torch.zeros(1, 1, dim) for _ in range(num_mask_tokens))
        self.position_table = nn.Parameter(0.02 * torch.randn(1, num_tokens, dim), False)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.output_projection = nn.Linear(dim, encoder_dim)

    def forward(
        self, context: torch.Tensor, at: torch.Tensor, wanted: torch.Tensor, mask_index: int
    ) -> torch.Tensor:
        x = self.input_projection(context) + take(self.position_table, at)
        x = torch.cat([x, self.mask_tokens[mask_index] + take(self.position_table, wanted)], 1)
        for block in self.blocks:
            x = block(x)
        return self.output_projection(self.norm(x)[:, context.shape[1] :])


class Training:
    """Holds the networks and the optimizer, and makes training steps."""

    def __init__(self, encoder: Encoder, predictor: Predictor, half: bool, measured: bool) -> None:
        self.encoder, self.predictor, self.measured = encoder, predictor, measured
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.device = encoder.position_table.device
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=half)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [w for w in self.weights() if w.ndim > 1], "weight_decay": 0.04},
                {"params": [w for w in self.weights() if w.ndim == 1], "weight_decay": 0.0},
            ],
            lr=1e-4,
        )

    def weights(self) -> Tensors:
        """List the weights that are trained."""
        networks = (self.encoder, self.predictor)
        return [w for network in networks for w in network.parameters() if w.requires_grad]

    def loss(self, videos: torch.Tensor, context: Tensors, target: Tensors) -> torch.Tensor:
        """Compute the loss of a batch, given the token indices of each kind of mask."""
        with torch.no_grad():
            features = self.target_encoder(videos)
            features = functional.layer_norm(features, features.shape[-1:])
            wanted = [take(features, indices) for indices in target]
        losses, deviations = [], []
        for i, indices in enumerate(context):
            encoded = self.encoder(videos, indices)
            predicted = self.predictor(encoded, indices, target[i], i)
            losses.append((predicted - wanted[i]).abs().mean())
            deviations.append((predicted.var(dim=1) + 1e-4).sqrt())
        # Its weight is zero in the paper's runs, but the authors' step computes it.
        variance_loss = functional.relu(1.0 - sum(deviations) / len(deviations)).mean()
        return sum(losses) / len(losses) + 0.0 * variance_loss

    def step(self, videos: torch.Tensor, context: Tensors, target: Tensors) -> float:
        """Make a step on a batch in host memory, and return the loss when all is done."""
        videos, *indices = (
            x.to(self.device, non_blocking=True) for x in (videos, *context, *target)
        )
        with self.autocast:
            loss = self.loss(videos, indices[: len(context)], indices[len(context) :])
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.measured:
            self.measure()
        self.optimizer.zero_grad()
        self.follow()
        return float(loss.detach())

    @torch.no_grad()
    def follow(self) -> None:
        """Move the target encoder's weights towards the encoder's."""
        pairs = zip(self.encoder.parameters(), self.target_encoder.parameters(), strict=True)
        for weight, follower in pairs:
            follower.mul_(0.998).add_(0.002 * weight)

    def measure(self) -> list[float]:
        """Measure gradient norms of matrices and mean sizes of moments, each read back at once."""
        numbers = [float(torch.norm(w.grad)) for w in self.weights() if w.ndim > 1]  # type: ignore[arg-type]
        for state in self.optimizer.state.values():
            numbers += [float(state[name].abs().mean()) for name in ("exp_avg", "exp_avg_sq")]
        return numbers


class FineTuning:
    """Holds encoder, head and an optimizer with a rate for each layer, and makes steps.

    Args:
        encoder: its final norm is removed, and its blocks leave branches out.
        num_classes: number of classes.
        rates: learning rate, weight decay, layer decay, and drop path of the last block.
        half: whether it computes in bfloat16.
    """

    def __init__(
        self, encoder: Encoder, num_classes: int, rates: tuple[float, ...], half: bool
    ) -> None:
        learning_rate, weight_decay, layer_decay, drop_path = rates
        self.device = device()
        dim, depth = encoder.position_table.shape[-1], len(encoder.blocks)
        for number in range(depth):
            rate = drop_path * number / max(depth - 1, 1)
            encoder.blocks[number].drop_path = rate  # type: ignore[assignment]
        head = nn.Sequential(nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, num_classes))
        encoder.norm = nn.Identity()  # type: ignore[assignment]
        self.encoder, self.head = encoder.to(self.device), head.to(self.device)
        self.autocast = torch.autocast(self.device, torch.bfloat16, enabled=half)
        layers = [encoder.tubelet_embedding, *encoder.blocks, head]
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [w for w in layer.parameters() if (w.ndim > 1) == decayed],
                    "weight_decay": weight_decay * decayed,
                    "lr": learning_rate * layer_decay ** (len(layers) - 1 - number),
                }
                for number, layer in enumerate(layers)
                for decayed in (True, False)
            ]
        )

    def step(self, videos: np.ndarray, targets: np.ndarray) -> float:
        """Make a step on a batch in host memory, and return the loss when all is done."""
        inputs = torch.from_numpy(np.ascontiguousarray(videos.transpose(0, 4, 1, 2, 3)))
        with self.autocast:
            logits = self.head(self.encoder(inputs.to(self.device)).mean(1))
        loss = functional.cross_entropy(logits.float(), torch.from_numpy(targets).to(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def device() -> str:
    """Name the device that steps run on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def host_batch(batch: dict[str, np.ndarray], pinned: bool) -> tuple[torch.Tensor, Tensors, Tensors]:
    """Convert a batch of `keras_vjepa` to the arguments of a step."""

    def tensor(array: np.ndarray) -> torch.Tensor:
        made = torch.from_numpy(np.ascontiguousarray(array))
        return made.pin_memory() if pinned else made

    def indices(kind: str) -> Tensors:
        names = sorted(name for name in batch if name.startswith(kind))
        return [tensor(batch[name].astype("int64")) for name in names]

    videos = tensor(batch["videos"].transpose(0, 4, 1, 2, 3))
    return videos, indices("context_indices_"), indices("target_indices_")


def seconds(function: Callable[[], float], steps: int) -> list[float]:
    """Time the calls of a function, without the first two."""
    times = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return times[2:]


def main(arguments: list[str] | None = None, program: str = "plain_torch_step.py") -> None:
    """Run the command, with `program` in front of its messages."""
    parser = OneLineParser(prog=program, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="base", choices=list(SIZES), help="of the encoder")
    parser.add_argument("--batch-size", type=int, default=1, help="clips")
    parser.add_argument("--steps", type=int, default=5, help="that are timed")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "mixed_bfloat16"],
        help="precision",
    )
    parser.add_argument("--unmeasured", action="store_true", help="no numbers of each weight")
    options = parser.parse_all(arguments)
    with parser.refusing():
        check_whole(1, MOST_LONG, batch_size=options.batch_size, steps=options.steps)
    where = device()
    size = SIZES[options.size]
    encoder = Encoder(size.hidden_dim, size.num_layers, size.num_heads).to(where)
    predictor = Predictor(size.hidden_dim, 384, 12, size.num_heads).to(where)
    half = options.dtype == "mixed_bfloat16"
    training = Training(encoder, predictor, half, not options.unmeasured)
    batch = host_batch(make_batch(options.batch_size), where == "cuda")
    times = seconds(lambda: training.step(*batch), options.steps)
    step = float(np.median(times))
    print(
        f"plain PyTorch on {where}; {options.size}, batch {options.batch_size}, tokens "
        f"{CONTEXT_TOKENS} and {TARGET_TOKENS}: step {step:7.3f} s ({min(times):.3f} to "
        f"{max(times):.3f}), {options.batch_size / step:6.3f} clips/s"
    )


if __name__ == "__main__":
    main()
