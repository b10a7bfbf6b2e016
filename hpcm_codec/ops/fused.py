"""The blocks of a training step as single operations with their own gradients, on the processor in bfloat16.

They compute what the network's blocks compute under autocast, with fewer roundings, passes over memory and calls. `active`
returns whether they apply; where they do not (CUDA, float32, evaluation, no compiler) the blocks use torch's operators.
Tensors are B×C×h×w as the network has them, channels last; tokens B×T×C. Results are bfloat16, with two exceptions (see
`model.precision`): what changes the resolution returns float32 (`halve`, `double`, patches taken, images drawn), and a residual block
returns the dtype of its input.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hpcm_codec.constants import LARGEST_PIXEL
from hpcm_codec.ops import training
from hpcm_codec.ops.training import PackedWeight

# The packed weights of the step in progress. Never kept for longer: nothing shows that an optimiser has changed the weights.
# The weights themselves are held too, so that no other tensor can get the same address.
_packed: dict[tuple[int, int], tuple[Tensor, PackedWeight]] | None = None


@contextmanager
def step() -> Iterator[None]:
    """Inside, every weight is packed once: its values may not change until the end."""
    global _packed
    before, _packed = _packed, {}
    try:
        yield
    finally:
        _packed = before


class _Sinks(NamedTuple):
    """Where gradients of weights are written: by a parameter's id, as outputs×inputs; and the ids of those written so far."""

    matrices: dict[int, Tensor]
    written: set[int]


_sinks: _Sinks | None = None


@contextmanager
def gradients_into(matrices: dict[int, Tensor]) -> Iterator[set[int]]:
    """Inside, the backward pass writes gradients of weights there and not into `grad`; those of a shared weight need no extra addition.

    matrices: by the id of a parameter that is a matrix (1×1 convolutions too), float32, outputs×inputs, contiguous; what they hold
              is overwritten. Yields the set of ids whose gradients were written. A gradient from torch's operators is still in `grad`.
    """
    global _sinks
    before, _sinks = _sinks, _Sinks(matrices, set())
    try:
        yield _sinks.written
    finally:
        _sinks = before


def _target(key: int, shape: torch.Size) -> tuple[Tensor, bool, bool]:
    """Where the gradient of a weight is to be written, whether it is to be added there, and whether autograd needs it."""
    if _sinks is None or key not in _sinks.matrices:
        return torch.empty(shape[0], shape.numel() // shape[0]), False, True
    added = key in _sinks.written
    _sinks.written.add(key)
    return _sinks.matrices[key], added, False


def active(x: Tensor, parameter: Tensor) -> bool:
    """Whether a block that was given x and has that parameter (and others of its dtype) is to use these operations."""
    return (
        x.device.type == "cpu"
        and parameter.dtype == torch.float32
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and training.ready()
    )


def _pack(weight: Tensor, start: int, end: int) -> PackedWeight:
    """Columns start … end-1 of a weight outputs×inputs (a 1×1 convolution's too), packed."""
    key = (id(weight), start)
    if _packed is not None and key in _packed:
        return _packed[key][1]
    matrix = weight.detach().reshape(weight.shape[0], -1)[:, start:end]
    packed = PackedWeight.of(matrix if matrix.stride(1) == 1 else matrix.contiguous())
    if _packed is not None:
        _packed[key] = weight, packed
    return packed


def rows_of(x: Tensor) -> Tensor:
    """B×C×h×w as contiguous B×h×w×C in bfloat16, without a copy where it is one already; tokens stay B×T×C."""
    if x.ndim == 4:
        x = x.permute(0, 2, 3, 1)
    return x.to(torch.bfloat16).contiguous()


def _stream_rows(x: Tensor) -> Tensor:
    """`rows_of`, but float32 stays float32."""
    return x.permute(0, 2, 3, 1).contiguous() if x.dtype == torch.float32 else rows_of(x)


def plane_of(rows: Tensor) -> Tensor:
    return rows.permute(0, 3, 1, 2) if rows.ndim == 4 else rows


class _Linear(torch.autograd.Function):
    """Returns the result and the first input (see `linear_and_input`). Either may be unused: its gradient is then None."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, added: Tensor | None, wide: bool, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows = tuple(rows_of(x) for x in inputs)
        packs, start = [], 0
        for x in rows:
            packs.append(_pack(weight, start, start + x.shape[-1]))
            start += x.shape[-1]
        ctx.save_for_backward(*rows)
        ctx.packs, ctx.shape, ctx.has_bias = packs, weight.shape, bias is not None
        ctx.key = id(weight)
        ctx.added_once = added is not None and len(added) == 1
        y = training.linear(
            rows, tuple(pack.forward for pack in packs), weight.shape[0],
            bias=None if bias is None else bias.detach(), wide=wide,
            added=None if added is None else _stream_rows(added.float()) if wide else rows_of(added),
        )  # fmt: skip
        ctx.set_materialize_grads(False)
        return plane_of(y), inputs[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, passed_on: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return None, None, None, None, passed_on, *(None for _ in ctx.packs[1:])
        g, outputs = rows_of(gradient), ctx.shape[0]
        weight, to_add, wanted_here = _target(ctx.key, ctx.shape)
        bias = torch.empty(outputs) if ctx.has_bias else None
        inputs: list[Tensor | None] = []
        start = 0
        for number, (x, pack) in enumerate(zip(ctx.saved_tensors, ctx.packs, strict=True)):
            part = weight[:, start : start + pack.inputs]
            training.weight_gradient(g, x, part, bias if number == 0 else None, added=to_add)
            start += pack.inputs
            wanted = ctx.needs_input_grad[4 + number]
            other = rows_of(passed_on) if wanted and number == 0 and passed_on is not None else None
            by_input = training.linear((g,), (pack.backward,), pack.inputs, added=other) if wanted else None
            inputs.append(None if by_input is None else plane_of(by_input))
        added = None
        if ctx.needs_input_grad[2]:
            added = plane_of(g.sum(dim=0, keepdim=True) if ctx.added_once else g)
        return weight.view(ctx.shape) if wanted_here else None, bias, added, None, *inputs


def linear(
    weight: Tensor, bias: Tensor | None, *inputs: Tensor, added: Tensor | None = None, wide: bool = False
) -> Tensor:
    """A linear layer or 1×1 convolution of one or two inputs side by side, plus a plane (one for all if its batch is 1).

    wide: the result is float32, not bfloat16.
    """
    y: Tensor = _Linear.apply(weight, bias, added, wide, *inputs)[0]
    return y


def linear_and_input(
    weight: Tensor, bias: Tensor | None, *inputs: Tensor, added: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The result of `linear`, and its first input; what comes back for that one is added, in bfloat16, to the input's gradient."""
    y, first = _Linear.apply(weight, bias, added, False, *inputs)
    return y, first


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel: Tensor, kernel_bias: Tensor, expand: Tensor, expand_bias: Tensor, project: Tensor,
        project_bias: Tensor, levels: Tensor | None, rate: Tensor | None,
    ) -> Tensor:  # fmt: skip
        rows = _stream_rows(x)
        taps = _taps(kernel)
        factors = None if levels is None else factors_at(levels, rate)
        if factors is not None and len(factors) not in (1, len(rows)):
            raise ValueError(f"factors for {len(factors)} pictures, but there are {len(rows)}")
        packs = (_pack(expand, 0, expand.shape[1]), _pack(project, 0, project.shape[1]))
        y, *kept = training.residual(
            rows, taps, kernel_bias.detach(), packs[0], expand_bias.detach(), packs[1], project_bias.detach(), factors
        )
        ctx.save_for_backward(rows, *kept, taps, factors)
        ctx.rate, ctx.levels = rate, 0 if levels is None else len(levels)
        ctx.packs, ctx.shapes = packs, (kernel.shape, expand.shape, project.shape)
        ctx.keys = id(expand), id(project)
        return plane_of(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, shifted, hidden, branch, taps, factors = ctx.saved_tensors
        to_hidden, to_branch = ctx.packs
        shapes = ctx.shapes
        expand, expand_added, expand_wanted = _target(ctx.keys[0], shapes[1])
        project, project_added, project_wanted = _target(ctx.keys[1], shapes[2])
        x, kernel, kernel_bias, expand_bias, project_bias, factor = training.residual_backward(
            _stream_rows(gradient.to(rows.dtype)), rows, shifted, hidden, branch, taps, to_hidden, to_branch, factors, expand, project,
            (expand_added, project_added),
        )  # fmt: skip
        return (
            plane_of(x), kernel.t().reshape(shapes[0]), kernel_bias,
            expand.view(shapes[1]) if expand_wanted else None, expand_bias,
            project.view(shapes[2]) if project_wanted else None, project_bias,
            None if factor is None else levels_gradient(factor, ctx.rate, ctx.levels), None,
        )  # fmt: skip


def residual(
    x: Tensor,
    kernel: Tensor,
    kernel_bias: Tensor,
    expand: Tensor,
    expand_bias: Tensor,
    project: Tensor,
    project_bias: Tensor,
    levels: Tensor | None,
    rate: Tensor | None,
) -> Tensor:
    """x + factor · project(leaky(expand(depthwise 3×3(x)))); levels: L×C, the factor at each rate level; rate: level weights B×L."""
    y: Tensor = _Residual.apply(x, kernel, kernel_bias, expand, expand_bias, project, project_bias, levels, rate)
    return y


def factors_at(levels: Tensor, rate: Tensor | None) -> Tensor:
    """Factors B×C of level weights B×L, without a gradient; 1×C where there is one level."""
    values = levels.detach().float()
    with torch.autocast("cpu", enabled=False):
        return values.contiguous() if rate is None or len(values) == 1 else rate.detach().float() @ values


def levels_gradient(factors: Tensor, rate: Tensor | None, levels: int) -> Tensor:
    """The gradient of the levels L×C from that of `factors_at`."""
    return factors if rate is None or levels == 1 else rate.float().t() @ factors


def _taps(kernel: Tensor) -> Tensor:
    """A depthwise kernel C×1×n×n as taps n²×C."""
    return kernel.detach().float().flatten(1).t().contiguous()


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        rows, taps = rows_of(x), _taps(kernel)
        ctx.save_for_backward(rows, taps)
        ctx.shape = kernel.shape
        return plane_of(training.depthwise(rows, taps))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        rows, taps = ctx.saved_tensors
        g, kernel = rows_of(gradient), torch.empty_like(taps)
        training.depthwise_gradient(rows, g, kernel)
        return plane_of(training.depthwise(g, taps, flipped=True)), kernel.t().reshape(ctx.shape)


def depthwise(x: Tensor, kernel: Tensor) -> Tensor:
    """A depthwise convolution with a kernel C×1×3×3 or C×1×5×5, zeros outside."""
    y: Tensor = _Depthwise.apply(x, kernel)
    return y


def halve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 2×2 convolution of stride 2: B×C×h×w, h and w even, to B×outputs×h/2×w/2; weight: outputs×C×2×2."""
    blocks = rows_of(x).unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 2, 4, 5).flatten(3)
    return linear(weight.permute(0, 2, 3, 1).flatten(1), bias, plane_of(blocks), wide=True)


def double(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A transposed 2×2 convolution of stride 2: B×C×h×w to B×outputs×2h×2w; weight: C×outputs×2×2."""
    y = linear(weight.permute(2, 3, 1, 0).flatten(0, 2), bias.repeat(4), x, wide=True).permute(0, 2, 3, 1)
    blocks = y.unflatten(3, (2, 2, weight.shape[1])).permute(0, 1, 3, 2, 4, 5)
    return plane_of(blocks.flatten(3, 4).flatten(1, 2))


class _TakePatches(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        edge = weight.shape[-1]
        height, width = x.shape[-2] // stride, x.shape[-1] // stride
        patches = torch.empty(x.shape[0], height, width, 3 * edge * edge, dtype=torch.bfloat16)
        levels = (x.detach().float() * LARGEST_PIXEL).contiguous()
        overlap = (edge - stride) // 2
        training.take_patches(levels, patches, edge, stride, -overlap, repeat=True)
        # Rounding changes the sum of a filter's weights, and with it the response to brightness. What is missing, for each colour,
        # is multiplied by the patch's mean and added.
        means = functional.avg_pool2d(functional.pad(levels, (overlap,) * 4, mode="replicate"), edge, stride)
        exact = weight.detach().flatten(2) / LARGEST_PIXEL
        lost = (exact - exact.to(torch.bfloat16).float()).sum(dim=2)
        packs = tuple(PackedWeight.of(part).forward for part in (exact.flatten(1), lost))
        ctx.save_for_backward(patches)
        ctx.shape = weight.shape
        return plane_of(training.linear((patches, rows_of(means)), packs, len(weight), bias=bias.detach(), wide=True))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (patches,) = ctx.saved_tensors
        weight, bias = torch.empty(ctx.shape[0], patches.shape[-1]), torch.empty(ctx.shape[0])
        training.weight_gradient(rows_of(gradient), patches, weight, bias)
        return None, weight.div_(LARGEST_PIXEL).view(ctx.shape), bias, None


def take_patches(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """A convolution of an image B×3×H×W that needs no gradient, with outputs×3×n×n; outside, the image's border is repeated.

    Values that are 255ths, as those of 8-bit pictures, are not rounded: whole numbers up to 255 are exact in bfloat16, and most of
    their 255ths would be rounded up, by 7e-4 on average.
    """
    y: Tensor = _TakePatches.apply(x, weight, bias, stride)
    return y


class _DrawPatches(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, beyond: int) -> Tensor:
        rows, edge = rows_of(x), weight.shape[-1]
        pack = _pack(weight.detach().flatten(1).t().contiguous(), 0, x.shape[1])
        drawn = training.linear((rows,), (pack.forward,), pack.outputs)
        size = tuple((n - 1) * stride + edge - 2 * padding for n in rows.shape[1:3])
        ctx.save_for_backward(rows)
        ctx.pack, ctx.shape, ctx.stride, ctx.padding, ctx.beyond = pack, weight.shape, stride, padding, beyond
        return training.add_patches(drawn, bias.detach(), size, edge, stride, -padding, beyond=beyond)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        g = gradient.float().contiguous()
        patches = rows.new_empty(*rows.shape[:3], ctx.pack.outputs)
        training.take_patches(g, patches, ctx.shape[-1], ctx.stride, -ctx.padding, beyond=ctx.beyond, repeat=False)
        weight = torch.empty(rows.shape[-1], ctx.pack.outputs)
        training.weight_gradient(rows, patches, weight)
        x = training.linear((patches,), (ctx.pack.backward,), ctx.pack.inputs)
        return plane_of(x), weight.view(ctx.shape), g.sum(dim=(0, 2, 3)), None, None, None


def draw_patches(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, beyond: int) -> Tensor:
    """A transposed convolution of B×C×h×w with C×3×n×n, to an image B×3×H×W in float32.

    padding: pixels that are cut off at each side. beyond: rings of places around x, which repeat its border.
    """
    image: Tensor = _DrawPatches.apply(x, weight, bias, stride, padding, beyond)
    return image
