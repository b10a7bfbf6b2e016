"""The operators of a fused training step against the network's blocks in plain PyTorch: results and every gradient."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hpcm_codec.entropy.distributions import fused_distribution
from hpcm_codec.errors import UnsupportedError
from hpcm_codec.images import read_picture
from hpcm_codec.model import schedule
from hpcm_codec.model.blocks import ResidualBlock, down2, pointwise, pointwise_and_input, up2
from hpcm_codec.model.cells import CrossAttentionCell
from hpcm_codec.model.config import CellConfig, preset
from hpcm_codec.model.context import ContextModel
from hpcm_codec.model.hpcm import HPCM, EstimatorPort, FusedEstimator, Noise
from hpcm_codec.model.precision import in_autocast
from hpcm_codec.model.rwkv import OmniShift, RWKVBlock
from hpcm_codec.model.schedule import Lattice
from hpcm_codec.model.transforms import PATCH_WIDTH, PatchesOut, _patches_in, analysis_transform
from hpcm_codec.ops import build, fused, fused_mixing, training
from hpcm_codec.training.conditioning import condition
from hpcm_codec.training.data import PackedPictures
from hpcm_codec.training.loop import Trainer
from hpcm_codec.training.losses import lambda_at, rate_distortion
from hpcm_codec.training.settings import CropPhase, TrainSettings
from hpcm_codec.weights.checkpoints import load_checkpoint
from test_hpcm_phase1 import SMALL

pytestmark = pytest.mark.skipif(build.find_compiler("training") is None, reason="no C++ compiler here")

EXAMPLES = Path(__file__).parents[1] / "examples"
HALF = 0.006  # relative error of sums of products of bfloat16 numbers, generously


@pytest.fixture(autouse=True)
def filled_memory() -> Iterator[None]:
    """New memory holds NaN, so that whatever an operator leaves out is seen."""
    assert training.ready()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)


def relative(value: Tensor, truth: Tensor) -> float:
    assert value.shape == truth.shape
    difference = value.detach().float() - truth.detach().float()
    return float(difference.norm() / truth.detach().float().norm().clamp_min(1e-12))


def bfloat16(*shape: int) -> Tensor:
    """Numbers that bfloat16 holds, as float32."""
    return torch.randn(shape).to(torch.bfloat16).float()


def check(
    compute: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    parameters: list[nn.Parameter],
    least: float = HALF,
) -> None:
    """Result, gradients of inputs and of parameters: fused they are as near to those in float32 as plain bfloat16 comes.

    least: relative error that is always allowed.
    """

    def run(operators: str, half: bool) -> list[Tensor]:
        taken = [x.clone().requires_grad_() for x in inputs]
        for parameter in parameters:
            parameter.grad = None
        with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16, enabled=half):
            patch.setenv("HPCM_OPS", operators)
            assert fused.active(taken[0], parameters[0]) == (half and operators == "auto")
            y = compute(*taken)
        generator = torch.Generator().manual_seed(5)
        y.backward(torch.randn(y.shape, generator=generator).to(torch.bfloat16).to(y.dtype))
        found = [y.detach(), *(x.grad for x in taken if x.grad is not None)]
        return [*found, *(p.grad.clone() for p in parameters if p.grad is not None)]

    truth, plain, quick = run("auto", False), run("torch", True), run("auto", True)
    assert len(truth) == len(plain) == len(quick) > 1
    for exact, half, mine in zip(truth, plain, quick, strict=True):
        assert relative(mine, exact) < max(least, 1.5 * relative(half, exact))


def rounded(module: nn.Module) -> nn.Module:
    """A module whose parameters bfloat16 holds, so that only sums differ."""
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter).mul(0.2).to(torch.bfloat16).float()
    return module


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 1, 1), (3, 7, 5), (1, 33, 20)])
@pytest.mark.parametrize(("inputs", "outputs"), [((32,), 64), ((20, 12), 50), ((48, 40), 7)])
@pytest.mark.parametrize("threads", [1, 2])  # with one, memory is fetched ahead
def test_products(shape: tuple[int, int, int], inputs: tuple[int, ...], outputs: int, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    batch, height, width = shape
    layer = rounded(nn.Conv2d(sum(inputs), outputs, 1))
    planes = tuple(bfloat16(batch, size, height, width) for size in inputs)
    added = bfloat16(batch, outputs, height, width)
    parameters = list(layer.parameters())
    assert isinstance(layer, nn.Conv2d)
    check(lambda *x: pointwise(layer, *x[:-1], added=x[-1]), (*planes, added), parameters)


@pytest.mark.parametrize("inputs", [(32,), (20, 12)])
@pytest.mark.parametrize("uses", ["both", "result", "input"])
def test_products_pass_their_first_input_on(inputs: tuple[int, ...], uses: str) -> None:
    torch.manual_seed(6)
    layer = rounded(nn.Conv2d(sum(inputs), inputs[0], 1))
    assert isinstance(layer, nn.Conv2d)
    planes = tuple(bfloat16(2, size, 7, 5) for size in inputs)
    for_all = bfloat16(1, inputs[0], 7, 5)  # one plane for the whole batch

    def compute(*x: Tensor) -> Tensor:
        result, first = pointwise_and_input(layer, *x[:-1], added=x[-1])
        assert torch.equal(first, x[0])
        return {"both": result + 3 * first, "result": result, "input": 3 * first}[uses]

    check(compute, (*planes, for_all), list(layer.parameters()))


def test_a_token_layer_passes_its_input_on() -> None:
    torch.manual_seed(7)
    layers = [nn.Linear(24, 24, bias=False) for _ in range(2)]

    def compute(tokens: Tensor) -> Tensor:
        total = torch.zeros(())
        for layer in layers:
            result, tokens = pointwise_and_input(layer, tokens)
            total = total + result
        return total + tokens

    for layer in layers:
        rounded(layer)
    check(compute, (bfloat16(1, 9, 24),), [parameter for layer in layers for parameter in layer.parameters()])


@pytest.mark.parametrize("width", [None, 16])
def test_attention_in_windows(width: int | None) -> None:
    torch.manual_seed(8)
    cell = CrossAttentionCell(24, CellConfig(window=4, heads=2, width=width))
    check(cell, (bfloat16(2, 24, 6, 7), bfloat16(2, 24, 6, 7)), list(cell.parameters()), least=0.02)


def test_tokens() -> None:
    torch.manual_seed(2)
    layer = rounded(nn.Linear(24, 40, bias=False))
    assert isinstance(layer, nn.Linear)
    check(lambda x: pointwise(layer, x), (bfloat16(2, 9, 24),), list(layer.parameters()))


@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (3, 20, 5, 7), (1, 48, 1, 1), (2, 64, 40, 9)])
@pytest.mark.parametrize("levels", [0, 1, 4])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16])
def test_residual_blocks(shape: tuple[int, ...], levels: int, threads: int, stream: torch.dtype) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(3)
    block = rounded(ResidualBlock(shape[1], factor_levels=levels))
    rate = torch.rand(shape[0], 4).softmax(dim=1)
    if levels != 4:
        rate = rate[:, :1]

    def compute(x: Tensor) -> Tensor:
        given = in_autocast(x) if stream == torch.bfloat16 else x
        y: Tensor = block(given, rate)
        assert y.dtype == given.dtype
        return y

    check(compute, (bfloat16(*shape),), list(block.parameters()))


@pytest.mark.parametrize("operators", ["auto", "torch"])
def test_small_additions_to_a_stream_are_not_lost(operators: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    monkeypatch.setenv("HPCM_OPS", operators)
    block = ResidualBlock(32, factor_levels=4)
    x, rate = 1000 + torch.randn(1, 32, 5, 6), torch.rand(1, 4).softmax(dim=1)
    nn.init.normal_(block.project.weight, std=1e-4)
    plain = block(x, rate) - x
    with torch.autocast("cpu", torch.bfloat16):
        quick = block(x, rate) - x
        with torch.inference_mode():
            inferred = block(x, rate) - x
    assert plain.abs().max() < 1  # bfloat16 has steps of 4 there
    assert relative(quick, plain) < 0.02
    assert relative(inferred, plain) < 0.02


@pytest.mark.parametrize("operators", ["auto", "torch"])
@pytest.mark.parametrize("levels", [0, 4])
@pytest.mark.parametrize("threads", [1, 2])
def test_small_additions_to_the_gradient_of_a_stream_are_not_lost(
    operators: str, levels: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(4)
    monkeypatch.setenv("HPCM_OPS", operators)
    block = ResidualBlock(32, factor_levels=levels)
    nn.init.normal_(block.project.weight, std=1e-4)
    rate = torch.rand(1, 4).softmax(dim=1)
    gradient = 1000 + torch.randn(1, 32, 15, 26)
    found = []
    for half in (False, True):
        x = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(9)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = block(x, rate)
        y.backward(gradient)
        assert x.grad is not None
        found.append(x.grad - gradient)
    assert found[0].abs().max() < 2  # bfloat16 has steps of 4 there
    assert relative(found[1], found[0]) < 0.05


def test_compiled_blocks_keep_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCM_OPS", "torch")
    torch.manual_seed(4)
    block = ResidualBlock(16, factor_levels=4)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    x, rate = torch.randn(1, 16, 5, 6), torch.rand(1, 4).softmax(dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(x, rate), block(x, rate))


@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (1, 20, 3, 5), (1, 40, 1, 2), (1, 33, 1, 1)])
def test_depthwise_5x5(shape: tuple[int, ...]) -> None:
    torch.manual_seed(4)
    shift = OmniShift(shape[1])
    check(shift, (bfloat16(*shape),), list(shift.parameters()))


@pytest.mark.parametrize("make", [down2, up2])
def test_changes_of_resolution(make: Callable[[int, int], nn.Module]) -> None:
    torch.manual_seed(5)
    layer = rounded(make(24, 20))
    check(layer, (bfloat16(2, 24, 6, 10),), list(layer.parameters()))


@pytest.mark.parametrize("make", [down2, up2])
@pytest.mark.parametrize(("operators", "error"), [("auto", 1e-5), ("torch", HALF)])
def test_changes_of_resolution_begin_streams_in_float32(
    make: Callable[[int, int], nn.Module], operators: str, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    monkeypatch.setenv("HPCM_OPS", operators)
    layer, x = rounded(make(24, 20)), bfloat16(2, 24, 6, 10)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.float32
    assert relative(y, layer(x)) < error  # torch's operators round their result once


@pytest.mark.parametrize("kernel", [8, 16, 32])
def test_patches(kernel: int) -> None:
    torch.manual_seed(6)
    config = preset("phase1-lite").__class__(transform="patch", patch_kernel=kernel)
    into, out = rounded(_patches_in(config)), rounded(PatchesOut(kernel))
    image = bfloat16(2, 3, 32, 48)
    with torch.autocast("cpu", torch.bfloat16):
        quick = into(image)
    plain = into(image)
    generator = torch.randn_like(plain)
    found = []
    for y in (quick, plain):
        into.zero_grad()
        y.backward(generator.to(y.dtype))
        found.append([y.detach(), *(p.grad.clone() for p in into.parameters() if p.grad is not None)])
    assert max(relative(a, b) for a, b in zip(*found, strict=True)) < HALF
    for size in ((4, 6), (1, 3), (1, 1)):
        check(out, (bfloat16(2, PATCH_WIDTH, *size),), list(out.parameters()))


@pytest.mark.parametrize(
    ("operators", "model"), [("auto", "phase1-lite"), ("torch", "phase1-lite"), ("torch", "phase1")]
)
def test_the_brightness_of_pictures_is_not_rounded(operators: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 nearly every 255th is rounded up: weights that learn from such pictures draw all others too dark."""
    monkeypatch.setenv("HPCM_OPS", operators)
    torch.manual_seed(12)
    into = analysis_transform(preset(model))[0]
    assert isinstance(into, nn.Conv2d)
    nn.init.normal_(into.weight)
    levels = torch.arange(256.0).repeat(3)[torch.randperm(768)].reshape(256, 3, 1, 1)
    plain, detailed = levels.expand(-1, 3, 16, 16), levels.reshape(1, 3, 16, 16)
    for x, most in ((plain, 2e-5), (detailed, 2e-3)):
        with torch.autocast("cpu", torch.bfloat16):
            half = into(x / 255)
        assert half.dtype == torch.float32
        assert relative(half, into(x / 255)) < most


@pytest.mark.parametrize("operators", ["auto", "torch"])
def test_transforms_in_bfloat16_draw_the_same_picture(
    operators: str, shipped: HPCM, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = torch.from_numpy(read_picture(EXAMPLES / "coffee.png").pixels.copy()).permute(2, 0, 1) / 255
    x = torch.stack([picture[:, top : top + 128, left : left + 128] for top in (0, 200) for left in (0, 150, 300)])
    rate = shipped.rate_at(5.0, len(x))
    truth = shipped.analyse(x)
    drawn = shipped.synthesise(truth, rate)
    monkeypatch.setenv("HPCM_OPS", operators)
    with torch.autocast("cpu", torch.bfloat16):
        latents = shipped.analyse(x)
        error = shipped.synthesise(latents, rate).float() - drawn
    assert relative(latents, truth) < {"auto": 0.0035, "torch": 0.004}[operators]
    assert error.mean().abs() < 2e-4  # of the brightness; 6e-4 where pixels are rounded
    assert -10 * error.square().mean().log10() > {"auto": 59, "torch": 57}[operators]  # dB


@pytest.mark.parametrize("size", [(4, 4), (8, 12)])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_rates(size: tuple[int, int], number: int) -> None:
    """Decoded latents, likelihoods and gradients of a fused scale are those of the plain port, but for bfloat16 planes."""
    torch.manual_seed(7)
    channels, batch = 40, 2
    scale = schedule.scales(channels)[number]
    height, width = (n * 2**number // 4 for n in size)
    latents = 3 * torch.randn(batch, channels, *size)
    noise = torch.rand_like(latents) - 0.5
    log_gain = 0.3 * torch.randn(batch, channels, 1, 1)
    params = bfloat16(batch, 2 * channels, height, width) * 2  # some scales lie outside of the bounds
    weights = bfloat16(batch, channels, height, width)
    context = HPCM(preset("phase1-lite")).context
    results = []
    for fuse in (False, True):
        given = [x.clone().requires_grad_() for x in (latents, params, log_gain)]
        port = FusedEstimator(given[0], noise, given[2]) if fuse else EstimatorPort(given[0], noise)
        decoded = torch.zeros(batch, channels, height, width)
        for number, step in enumerate(scale.steps, start=1):
            port.begin(scale, number)
            decoded = coded_step(context, step, given[1], decoded, port, given[2])
        bits = _bits(port)
        (bits + (decoded.float() * weights).sum()).backward()
        results.append([decoded.detach(), bits.detach().reshape(1), *(x.grad for x in given)])
    for plain, quick in zip(*results, strict=True):
        assert plain is not None and quick is not None
        assert relative(quick, plain) < HALF


def coded_step(
    context: ContextModel,
    step: Lattice,
    params: Tensor,
    latents: Tensor,
    port: EstimatorPort | FusedEstimator,
    log_gain: Tensor,
) -> Tensor:
    if isinstance(port, FusedEstimator):
        return port.code(step, params, latents)
    return context.code_step(step, params, latents, port, log_gain)


def _bits(port: EstimatorPort | FusedEstimator) -> Tensor:
    if isinstance(port, FusedEstimator):
        coded = [likelihood for steps in port._likelihoods.values() for _, likelihood in steps]
    else:
        coded = [likelihood for _, _, likelihood in port._likelihoods]
    return -torch.stack([x.log2().sum() for x in coded]).sum()


def test_likelihoods_have_their_places() -> None:
    torch.manual_seed(10)
    latents, noise = torch.randn(1, 40, 8, 8) * 2, torch.rand(1, 40, 8, 8) - 0.5
    log_gain, params = torch.zeros(1, 40, 1, 1), bfloat16(1, 80, 8, 8) * 0.5
    ports = EstimatorPort(latents, noise), FusedEstimator(latents, noise, log_gain)
    model = HPCM(preset("phase1-lite")).context
    for port in ports:
        for scale in schedule.scales(40):
            size = 8 // {"s1": 4, "s2": 2, "s3": 1}[scale.name]
            decoded = torch.zeros(1, 40, size, size)
            for number, step in enumerate(scale.steps, start=1):
                port.begin(scale, number)
                decoded = coded_step(model, step, params[:, :, :size, :size].contiguous(), decoded, port, log_gain)
    plain, quick = (port.likelihoods() for port in ports)
    assert torch.allclose(plain, quick, rtol=1e-3, atol=1e-5)


def test_the_table_of_the_distribution_is_close_enough() -> None:
    given = fused_distribution()
    assert given.table.isfinite().all()
    assert given.table.shape[1] == 2 and given.table[0, 0].exp() == pytest.approx(0.5)


@pytest.fixture(scope="module")
def shipped() -> HPCM:
    return load_checkpoint("phase1-lite").build_model().requires_grad_().train()


@pytest.fixture(scope="module")
def model() -> HPCM:
    torch.manual_seed(11)
    return HPCM(preset("phase1-lite")).train()


def test_what_is_between_rate_levels_is_float32(shipped: HPCM) -> None:
    control = shipped.rate_control
    assert control is not None
    rate = shipped.rate_at(3.3, 2)
    for between in (
        control.latent_log_gain, control.synthesis_correction, control.hyper_log_gain, shipped.hyper_scale, shipped.hyper_mean
    ):  # fmt: skip
        plain = between(rate)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(between(rate), plain)


@pytest.mark.parametrize("operators", ["auto", "torch"])
def test_the_context_model_is_in_bfloat16(operators: str, model: HPCM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCM_OPS", operators)
    seen = set()
    hooks = [
        prior.register_forward_pre_hook(lambda _, given: seen.update({given[0].dtype, given[2].dtype}))
        for prior in (model.context.prior_s12, model.context.prior_s3)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.rand(1, 3, 64, 64), 2.0)
    for hook in hooks:
        hook.remove()
    assert seen == {torch.bfloat16}


def test_a_whole_step_agrees_with_a_plain_one(model: HPCM, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(2, 3, 64, 128)
    positions = torch.tensor([1.5, 6.0])
    noise = Noise(torch.rand(2, 320, 4, 8) - 0.5, torch.rand(2, 96, 1, 2) - 0.5)
    losses, gradients = [], []
    called: list[str] = []
    call = training._function

    def noting(name: str, count: int) -> object:
        called.append(name)
        return call(name, count)

    monkeypatch.setattr(training, "_function", noting)
    for ops in ("torch", "auto"):
        monkeypatch.setenv("HPCM_OPS", ops)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            result = model(x, positions, noise)
        outcome = rate_distortion(result, x, lambda_at(positions, model.config.lambdas))
        outcome.loss.backward()
        losses.append(float(outcome.loss.detach()))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert result["likelihoods"]["y"].shape == (2, 320, 4, 8)
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
    assert relative(gradients[1], gradients[0]) < 0.15
    counts = {
        name: called.count(name) for name in ("residual", "residual_backward", "code_step", "gated_wkv", "add_patches")
    }
    assert counts == {"residual": 49, "residual_backward": 49, "code_step": 11, "gated_wkv": 5, "add_patches": 1}


def test_weights_are_packed_anew_after_they_changed(model: HPCM) -> None:
    """An optimiser changes weights without a trace; a second forward pass sees them."""
    layer = nn.Conv2d(32, 32, 1)
    x = bfloat16(1, 32, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        before = pointwise(layer, x)
        layer.weight.data.mul_(2)
        assert relative(pointwise(layer, x), before) > 0.1


def test_without_a_compiler_the_blocks_are_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setenv("HPCM_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_state", build._State())
    monkeypatch.setattr(build, "find_compiler", lambda backend: None)
    block = ResidualBlock(16)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused.active(torch.zeros(1), torch.zeros(1))
        assert block(torch.rand(1, 16, 4, 4)).isfinite().all()


def test_blocks_of_another_dtype_are_plain() -> None:
    """The operators read float32 parameters: anything else would be read beyond its end."""
    block = RWKVBlock(24, 2).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused.active(torch.zeros(1), block.gamma1)
        block(torch.rand(2, 24, 4, 4, dtype=torch.bfloat16)).float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def test_what_does_not_fit_is_refused_or_plain() -> None:
    block, x = ResidualBlock(16, factor_levels=4), torch.rand(2, 16, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match="factors for 3 pictures"):
            block(x, torch.rand(3, 4))
        assert down2(16, 8)(torch.rand(1, 16, 5, 7)).shape == (1, 8, 2, 3)
        assert up2(1, 1)(torch.rand(1, 1, 2, 2)).shape == (1, 1, 4, 4)


def test_what_is_no_number_stays_none() -> None:
    """A loss that hides it would let broken weights pass."""
    params, latents = torch.full((1, 16, 2, 2), torch.nan), torch.zeros(1, 8, 2, 2)
    port = FusedEstimator(torch.rand(1, 8, 8, 8), torch.zeros(1, 8, 8, 8), torch.zeros(1, 8, 1, 1))
    scale = schedule.scales(8)[0]
    port.begin(scale, 1)
    port.code(scale.steps[0], params, latents)
    assert _bits(port).isnan()
    assert fused_mixing.squared_relu(torch.full((1, 2, 16), torch.nan)).isnan().all()


def test_packing_refuses_what_it_cannot_read() -> None:
    with pytest.raises(ValueError, match="contiguous rows"):
        training.PackedWeight.of(torch.rand(4, 8).t())


def test_a_run_is_the_same_fused_and_plain(
    pictures: PackedPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """Losses of every step and the score of the averaged weights, to the accuracy of bfloat16."""
    settings = TrainSettings(
        steps=8, warmup_steps=2, learning_rate=2e-4, crops=(CropPhase(0.0, 64, 2),), log_every=1, save_minutes=60
    )
    losses, scores = [], []
    for operators in ("torch", "auto"):
        monkeypatch.setenv("HPCM_OPS", operators)
        folder = tmp_path / operators
        trainer = Trainer(SMALL, pictures, folder, settings)
        trainer.run()
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows])
        scores.append(trainer.score)
    assert losses[0][-1] != losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert scores[1] == pytest.approx(scores[0], rel=0.01)


def test_conditioning_does_not_change_the_function() -> None:
    """Channels between the projections get one size; what the network computes stays."""
    torch.manual_seed(12)
    model = HPCM(preset("phase1-lite")).eval()
    for name, parameter in model.named_parameters():
        if name.startswith(("g_a", "g_s")):
            parameter.data += 0.02 * torch.randn_like(parameter)
    x = nn.functional.interpolate(torch.rand(2, 3, 8, 16), scale_factor=8, mode="bilinear")
    with torch.no_grad():
        before = model(x, 3.0)
        sizes = condition(model, x)
        after = model(x, 3.0)
        again = condition(model, x)
    assert (before["x_hat"] - after["x_hat"]).abs().max() < 1e-4
    assert torch.allclose(before["likelihoods"]["y"], after["likelihoods"]["y"], atol=1e-3)
    for first, second in zip(sizes, again, strict=True):
        assert not torch.allclose(first, torch.ones_like(first), atol=0.1)
        assert torch.allclose(second, torch.ones_like(second), atol=1e-3)
    assert sizes[0].max() > 2 * sizes[0].min()
    with pytest.raises(UnsupportedError, match="patch"):
        condition(HPCM(preset("hpcm-base"), initialise=False), x)
