"""Products and attention by oneDNN: numbers and gradients of torch's own, where both work."""

import keras
import numpy as np
import pytest

from keras_vjepa.backend import attention as attention_module
from keras_vjepa.backend import onednn, onednn_attention, token_ops
from keras_vjepa.backend.attention import fused_attention

pytestmark = pytest.mark.skipif(keras.config.backend() != "torch", reason="torch's products")
torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def on_such_a_processor(monkeypatch):
    """Use oneDNN on every processor for which torch has it."""
    if onednn.onednn_linear() is None or not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN here")
    monkeypatch.setattr(onednn, "is_faster_here", lambda: True)


def tensors(*shapes, seed=0):
    random = np.random.default_rng(seed)
    return [torch.tensor(random.normal(size=s), dtype=torch.float32) for s in shapes]


def gradients(function, arguments, upstream):
    return torch.autograd.grad(function(*arguments), arguments, upstream)


def plain(tokens, kernel, bias):
    return torch.nn.functional.linear(tokens, kernel.t(), bias)


@pytest.mark.parametrize("shape", [(256, 96), (2, 150, 96), (2, 5, 30, 96)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_torch(shape, with_bias):
    tokens, kernel, bias, upstream = tensors(shape, (96, 128), (128,), (*shape[:-1], 128))
    assert onednn.suits(tokens, kernel)
    arguments = [one.requires_grad_() for one in (tokens, kernel, bias)[: 2 + with_bias]]

    def of(function):
        return lambda *given: function(*given, *[None] * (3 - len(given)))

    torch.testing.assert_close(
        of(token_ops.linear)(*arguments), of(plain)(*arguments), rtol=1e-5, atol=1e-5
    )
    found = gradients(of(token_ops.linear), arguments, upstream)
    expected = gradients(of(plain), arguments, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(
            of(token_ops.linear)(*arguments), of(plain)(*arguments), rtol=1e-5, atol=1e-5
        )


def test_tokens_in_any_layout():
    tokens, kernel, bias = tensors((96, 300), (128, 96), (128,))
    found = token_ops.linear(tokens.t(), kernel.t(), bias)
    torch.testing.assert_close(found, plain(tokens.t(), kernel.t(), bias), rtol=1e-5, atol=1e-5)


def sliced(tensor):
    """The same numbers as a slice of a wider tensor."""
    return torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]


def padded_columns(tensor):
    return sliced(tensor.t()).t()


def expanded(tensor):
    return tensor[:1].expand_as(tensor)


@pytest.mark.parametrize("layout", [sliced, padded_columns, expanded, torch.t])
@pytest.mark.parametrize("place", range(4))
def test_numbers_that_do_not_lie_one_after_the_other(layout, place, monkeypatch):
    # oneDNN would take a thousand times as long for such a second matrix.
    def dense(rows, transposed, *others):
        assert transposed.is_contiguous() or transposed.t().is_contiguous()
        return linear(rows, transposed, *others)

    linear = onednn.onednn_linear()
    monkeypatch.setattr(onednn, "onednn_linear", lambda: dense)
    given = tensors((512, 128), (128, 128), (128, 128), (512, 128))
    tokens, kernel, _, upstream = given
    if layout is not torch.t:
        given[place] = layout(given[place])
    elif place in (0, 3):
        given[place] = given[place].reshape(128, 512).t()
    else:
        given[place] = given[place].t()
    tokens, kernel, weights, upstream = given
    assert onednn.suits(tokens, kernel)
    arguments = [one.detach().requires_grad_() for one in (tokens, kernel)]
    found = gradients(lambda *x: token_ops.linear(*x, None), arguments, upstream)
    expected = gradients(lambda x, y: x @ y, arguments, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)
    product = onednn.multiplied(tokens.detach(), weights)
    torch.testing.assert_close(product, tokens @ weights.t(), rtol=1e-5, atol=1e-3)


def test_the_gradient_of_a_small_kernel_is_torchs_own(monkeypatch):
    monkeypatch.setattr(onednn, "multiplied", lambda *_: pytest.fail("oneDNN is slower"))
    tokens, upstream = tensors((4096, 16), (4096, 32))
    assert torch.equal(onednn.kernel_gradient(tokens, upstream), tokens.t() @ upstream)


def test_what_is_frozen_gets_no_gradient():
    tokens, kernel, bias = tensors((256, 96), (96, 128), (128,))
    kernel.requires_grad_()
    token_ops.linear(tokens, kernel, bias).sum().backward()
    assert tokens.grad is None and bias.grad is None
    torch.testing.assert_close(kernel.grad, tokens.sum(0)[:, None].expand(96, 128))


@pytest.mark.parametrize(("learns", "kept"), [(0, [(96, 128)]), (1, [(2, 150, 96)]), (2, [])])
def test_only_what_a_gradient_needs_is_kept(learns, kept):
    """With a frozen kernel, as under LoRA, tokens need not stay until the backward pass."""
    given = tensors((2, 150, 96), (96, 128), (128,))
    given[learns].requires_grad_()
    shapes = []
    hooks = (lambda one: shapes.append(tuple(one.shape)) or one, lambda one: one)
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        outputs = token_ops.linear(*given)
    assert shapes == kept
    found = torch.autograd.grad(outputs.square().sum(), given[learns])
    expected = torch.autograd.grad(plain(*given).square().sum(), given[learns])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)


def test_a_product_may_be_changed_in_place():
    tokens, kernel = tensors((2, 150, 96), (96, 128))
    kernel.requires_grad_()
    torch.relu_(token_ops.linear(tokens, kernel, None)).sum().backward()
    (expected,) = torch.autograd.grad(torch.relu(tokens @ kernel).sum(), kernel)
    torch.testing.assert_close(kernel.grad, expected, rtol=1e-4, atol=1e-3)


def test_gradients_of_gradients():
    arguments = [one.requires_grad_() for one in tensors((256, 96), (96, 128), (128,))]

    def of(function):
        found = function(*arguments).square().sum()
        (first,) = torch.autograd.grad(found, arguments[0], create_graph=True)
        return torch.autograd.grad(first.square().sum(), arguments[1])

    torch.testing.assert_close(of(token_ops.linear), of(plain), rtol=1e-4, atol=1)


def test_transforms_and_programs_of_torch():
    tokens, kernel, bias = tensors((3, 256, 96), (96, 128), (128,))
    expected = plain(tokens, kernel, bias)
    each = torch.func.vmap(lambda one: token_ops.linear(one, kernel, bias))(tokens)
    torch.testing.assert_close(each, expected, rtol=1e-5, atol=1e-5)
    found = torch.func.grad(lambda one: token_ops.linear(one, kernel, bias).sum())(tokens)
    torch.testing.assert_close(found, kernel.sum(1).expand(3, 256, 96), rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert token_ops.linear(tokens, kernel, bias).dtype is torch.bfloat16

    class Map(torch.nn.Module):
        def forward(self, one):
            return token_ops.linear(one, kernel, bias)

    free = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(Map(), (tokens,), dynamic_shapes=free)
    assert "mkldnn" not in str(program.graph)
    assert program.module()(tokens[:2]).shape == (2, 256, 128)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "bias",
    [
        lambda b: b[::2],
        lambda b: b[:1].expand(128),
        lambda b: b[:1],
        lambda b: b[0],
        lambda b: b[None, :128],
    ],
    ids=["strided", "expanded", "of one number", "a number", "a row"],
)
def test_a_bias_in_any_layout(bias):
    tokens, kernel, numbers = tensors((256, 96), (96, 128), (256,))
    close(token_ops.linear(tokens, kernel, bias(numbers)), plain(tokens, kernel, bias(numbers)))


def test_what_does_not_fit_is_refused_by_torch():
    tokens, kernel, bias = tensors((256, 95), (96, 128), (128,))
    with pytest.raises(RuntimeError, match="256x95 and 96x128"):
        token_ops.linear(tokens, kernel, bias)
    with pytest.raises(RuntimeError, match="meta"):
        token_ops.linear(tokens[:, :94], kernel[:94], bias.to("meta"))


def test_transforms_in_which_a_product_takes_no_part():
    """Of it, they see only a bias, or what comes after it."""
    tokens, kernel, bias = tensors((256, 96), (96, 128), (128,))
    expected, many = plain(tokens, kernel, bias), torch.stack([bias, -bias])
    each = torch.func.vmap(lambda one: token_ops.linear(tokens, kernel, one))(many)
    close(each, plain(tokens, kernel, None) + many[:, None])
    each = torch.func.vmap(lambda one: token_ops.linear(tokens, kernel, bias) * one)(many)
    close(each, expected * many[:, None])
    found = torch.func.grad(lambda one: (token_ops.linear(tokens, kernel, bias) * one).sum())(bias)
    close(found, expected.sum(0))
    found = torch.func.functionalize(token_ops.linear)(tokens, kernel, bias)
    close(found, expected)


@pytest.mark.parametrize("with_grad", [True, False])
def test_tangents(with_grad):
    tokens, kernel, bias = tensors((256, 96), (96, 128), (128,))
    with torch.autograd.forward_ad.dual_level(), torch.set_grad_enabled(with_grad):
        given = torch.autograd.forward_ad.make_dual(tokens, tokens)
        found = torch.autograd.forward_ad.unpack_dual(token_ops.linear(given, kernel, bias))
        close(found.tangent, plain(tokens, kernel, None))


def test_several_gradients_at_once():
    arguments = [one.requires_grad_() for one in tensors((3, 100, 96), (96, 128), (128,))]
    (upstream,) = tensors((2, 3, 100, 128))

    def of(function):
        outputs = function(*arguments)
        return torch.autograd.grad(outputs, arguments, upstream, is_grads_batched=True)

    for found, expected in zip(of(token_ops.linear), of(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_modes_of_torch_see_its_own_ops():
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils.flop_counter import FlopCounterMode

    tokens, kernel, bias = tensors((256, 96), (96, 128), (128,))
    query, key, value, _ = heads(300, 300)
    with FlopCounterMode(display=False) as counter:
        token_ops.linear(tokens, kernel.requires_grad_(), bias).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 256 * 96 * 128
    program = make_fx(lambda one: fused_attention(one, key, value))(query)
    assert "mkldnn" not in str(program.graph)
    ragged = torch.nested.nested_tensor([tokens[:100], tokens])
    close(token_ops.linear(ragged, kernel, bias).unbind()[1], plain(tokens, kernel, bias))


def test_a_compiler_reads_all_of_it():
    """Without a break, which would make it several programs."""
    tokens, kernel, bias = tensors((1, 300, 96), (96, 128), (128,))

    class Run(torch.nn.Module):
        def forward(self, one):
            query = one.unflatten(-1, (4, 24))
            return token_ops.linear(fused_attention(query, query, query).flatten(2), kernel, bias)

    program = torch.compile(Run(), backend="eager", fullgraph=True)
    close(program(tokens), Run()(tokens))


@pytest.mark.parametrize(
    ("rows", "dtype"), [(15, "float32"), (256, "float64"), (256, "bfloat16"), (0, "float32")]
)
def test_what_torch_does_itself(rows, dtype):
    tokens = torch.zeros((rows, 4096), dtype=getattr(torch, dtype))
    kernel = torch.zeros((4096, 64), dtype=getattr(torch, dtype))
    assert not onednn.suits(tokens, kernel)
    assert token_ops.linear(tokens, kernel, kernel[0]).shape == (rows, 64)


def test_torchs_switch_of_onednn():
    tokens, kernel = tensors((256, 96), (96, 128))
    with torch.backends.mkldnn.flags(enabled=False):
        assert not onednn.suits(tokens, kernel)
    assert onednn.suits(tokens, kernel)


def test_a_training_step_takes_it(monkeypatch):
    """A block's four linear layers and their gradients, three products each."""
    from keras_vjepa.layers import TransformerBlock

    calls = []
    real = onednn.onednn_linear()

    def counted():
        return lambda *arguments: calls.append(1) or real(*arguments)

    monkeypatch.setattr(onednn, "onednn_linear", counted)
    block = TransformerBlock(num_heads=4, mlp_dim=384)
    (tokens,) = tensors((2, 160, 96))
    block(tokens.requires_grad_()).square().mean().backward()
    assert len(calls) == 12


# --- Attention -----------------------------------------------------------------------------------


def heads(num_queries, num_keys, dim=8, batch=2, seed=0):
    shapes = [(batch, n, 3, dim) for n in (num_queries, num_keys, num_keys, num_queries)]
    return tensors(*shapes, seed=seed)


def plain_attention(query, key, value, mask):
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    mask = None if mask is None else mask[:, None, None]
    found = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return found.transpose(1, 2)


@pytest.mark.parametrize("most_at_once", [1, 500, 10**6])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(37, 37), (20, 41), (1, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_torch(num_queries, num_keys, masked, most_at_once, monkeypatch):
    monkeypatch.setattr(onednn_attention, "_LEAST_LOGITS", 1)
    monkeypatch.setattr(onednn_attention, "_MOST_LOGITS_AT_ONCE", most_at_once)
    monkeypatch.setattr(onednn_attention, "_LEAST_ROWS", 1)
    *arguments, upstream = heads(num_queries, num_keys)
    arguments = [one.requires_grad_() for one in arguments]
    mask = torch.arange(num_keys) < torch.tensor([[num_keys], [2]]) if masked else None
    assert onednn_attention.suits(*arguments)

    def of(function):
        return lambda *given: function(*given, mask)

    found, expected = of(fused_attention)(*arguments), of(plain_attention)(*arguments)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    found = gradients(of(fused_attention), arguments, upstream)
    expected = gradients(of(plain_attention), arguments, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(
            of(fused_attention)(*arguments), of(plain_attention)(*arguments), rtol=1e-5, atol=1e-6
        )


def test_attention_at_its_own_size():
    """Heads that are a view of one projection, large logits, and parts of unequal length."""
    (packed,) = tensors((1, 1201, 3, 2, 16))
    query, key, value = (30 * packed).unbind(2)
    assert onednn_attention.suits(query, key, value)
    found = fused_attention(query, key, value)
    torch.testing.assert_close(
        found, plain_attention(query, key, value, None), rtol=1e-3, atol=1e-3
    )


def test_attention_under_another_default_dtype():
    """One mask serves all samples."""
    query, key, value, upstream = heads(300, 300)
    mask, default = torch.arange(300)[None] < 200, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = fused_attention(query.requires_grad_(), key, value, mask)
        (of_query,) = torch.autograd.grad(found, query, upstream)
    finally:
        torch.set_default_dtype(default)
    expected = plain_attention(query, key, value, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    (expected,) = torch.autograd.grad(expected, query, upstream)
    torch.testing.assert_close(of_query, expected, rtol=1e-4, atol=1e-5)


def test_a_program_with_attention_for_any_number_of_samples():
    class Attend(torch.nn.Module):
        def forward(self, one):
            return fused_attention(one, one, one)

    query, *_ = heads(300, 300)
    free = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(Attend(), (query,), dynamic_shapes=free)
    found = program.module()(query[:1])
    torch.testing.assert_close(found, fused_attention(*[query[:1]] * 3), rtol=1e-5, atol=1e-5)


def test_attention_of_few_tokens_is_torchs_own():
    query, key, value, _ = heads(200, 200)
    assert not onednn_attention.suits(query, key, value)
    query, key, value, _ = heads(300, 300)
    assert onednn_attention.suits(query, key, value)
    assert not onednn_attention.suits(query[:1], key, value)
    assert not onednn_attention.suits(query.bfloat16(), key.bfloat16(), value.bfloat16())


@pytest.mark.parametrize(
    "mask",
    [lambda m: m.t(), lambda m: m.repeat(1, 2).t()[::2], lambda m: m.t()[:, :1]],
    ids=["transposed", "strided", "of one column"],
)
def test_attention_with_a_mask_in_any_layout(mask):
    query, key, value, _ = heads(300, 300)
    given = mask(torch.arange(600).reshape(300, 2) % 7 < 4)
    found = fused_attention(query, key, value, given)
    close(found, plain_attention(query, key, value, given))


def test_attention_to_what_torch_broadcasts_or_refuses():
    query, key, value, _ = heads(300, 300)
    for one in (value[:1], value[:, :, :1]):
        close(fused_attention(query, key, one), plain_attention(query, key, one, None))
    mask = torch.ones((2, 299), dtype=torch.bool)
    with pytest.raises(RuntimeError, match="size of tensor"):
        fused_attention(query, key, value, mask)


def test_attention_by_the_kernel_that_was_asked_for():
    """That of plain ops has gradients of gradients, and tangents."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    query, key, value, _ = heads(300, 300)
    with sdpa_kernel(SDPBackend.MATH):
        found = fused_attention(query.requires_grad_(), key, value).square().sum()
        (first,) = torch.autograd.grad(found, query, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), query)
        assert second.shape == query.shape
        _, tangent = torch.func.jvp(lambda one: fused_attention(query, one, value), (key,), (key,))
        assert tangent.shape == query.shape


@pytest.mark.parametrize("masked", [False, True])
def test_several_gradients_of_attention_at_once(masked):
    *arguments, upstream = heads(300, 300)
    arguments = [one.requires_grad_() for one in arguments]
    mask = torch.arange(300)[None] < 200 if masked else None
    upstream = torch.stack([upstream, -upstream])

    def of(function):
        outputs = function(*arguments, mask)
        return torch.autograd.grad(outputs, arguments, upstream, is_grads_batched=True)

    for found, expected in zip(of(fused_attention), of(plain_attention), strict=True):
        close(found, expected)


def test_a_sample_in_which_no_key_takes_part():
    """Its logits are all about minus a billion, beside which the sum's logarithm would be lost."""
    *arguments, upstream = heads(300, 300)
    arguments = [one.requires_grad_() for one in arguments]
    mask = torch.ones((2, 300), dtype=torch.bool) & torch.tensor([[True], [False]])
    assert onednn_attention.suits(*arguments)
    found, expected = (
        gradients(lambda *given: function(*given, mask), arguments, upstream)  # noqa: B023
        for function in (fused_attention, attention_module.plain_attention)
    )
    for one, other in zip(found, expected, strict=True):
        close(one, other)


@pytest.mark.parametrize("size", [1e10, 1e20, 1e37])
def test_attention_with_logits_of_any_size(size):
    query, key, value, _ = heads(300, 300)
    key[0, 5, 0] *= size
    close(fused_attention(query, key, value), plain_attention(query, key, value, None))


def test_attention_to_values_without_channels():
    query, key, value, _ = heads(300, 300)
    query.requires_grad_()
    outputs = fused_attention(query, key, value[..., :0])
    assert outputs.shape == (2, 300, 3, 0)
    (found,) = torch.autograd.grad(outputs.sum(), query)
    assert not found.any()
