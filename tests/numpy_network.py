"""The exact profile's layers in plain numpy, on planes h×w×C of int64: the hyper synthesis, priors and cells of `numpy_decoder`."""

from __future__ import annotations

import math

import numpy as np

from numpy_decoder import Ints, Model, make_layer, neighbourhoods, round_divide, round_shift, saturate


def depthwise(
    model: Model, x: Ints, kernel: np.ndarray, bias: np.ndarray | None, units_in: Ints, units_out: Ints
) -> Ints:
    """kernel: C×k×k real numbers. Every channel by itself: its neighbourhood is the row of one output."""
    channels, size, _ = kernel.shape
    result = np.empty_like(x)
    around = neighbourhoods(x, size)
    for c in range(channels):
        own = slice(c, c + 1)
        units = np.repeat(units_in[own], size * size)
        layer = make_layer(kernel[c].reshape(1, -1), None if bias is None else bias[own], units, units_out[own])
        result[..., own] = layer(around[..., c, :])
    return result


def partial_convolution(model: Model, name: str, x: Ints, stream: Ints) -> tuple[Ints, Ints]:
    """A dense 3×3 convolution over the first quarter of the channels, the others as they are; and the units of all of them."""
    weight, units = model.real(f"{name}.conv.weight"), model.units(name)
    active = len(weight)
    inputs = np.repeat(stream[:active], 9)  # channel by channel, as `neighbourhoods` has them
    layer = make_layer(weight.reshape(active, -1), model.real(f"{name}.conv.bias"), inputs, units)
    around = neighbourhoods(x[..., :active], 3).reshape(*x.shape[:2], -1)
    return np.concatenate((layer(around), x[..., active:]), axis=-1), np.concatenate((units, stream[active:]))


def residual_block(model: Model, name: str, x: Ints, stream: Ints) -> Ints:
    """x + factor · project(LeakyReLU(expand(spatial(x)))); the slope is 328/2^15, the factor in units of 2^-12, or 1."""
    spatial = f"{name}.spatial"
    if model.has(f"{spatial}.conv.weight"):
        inner, units = partial_convolution(model, spatial, x, stream)
    else:
        units, kernel = model.units(spatial), model.real(f"{spatial}.weight")[:, 0]
        inner = depthwise(model, x, kernel, model.real(f"{spatial}.bias"), stream, units)
    hidden = model.units(f"{name}.expand")
    inner = model.layer(f"{name}.expand", units, hidden)(inner)
    inner = np.where(inner < 0, round_shift(inner * 328, 15), inner)
    branch = model.layer(f"{name}.project", hidden, stream)(inner)
    if model.has(f"{name}.factor.level_values"):
        branch = round_shift(branch * model.factor(f"{name}.factor"), 12)
    return saturate(x + branch)


def double(model: Model, name: str, x: Ints, units_in: Ints, units_out: Ints) -> Ints:
    """A transposed convolution 2×2 of stride 2: output (2i + a, 2j + b) is a layer of its own of input (i, j)."""
    weight, bias = model.real(f"{name}.weight"), model.real(f"{name}.bias")  # in×out×2×2
    height, width, _ = x.shape
    result = np.empty((2 * height, 2 * width, weight.shape[1]), np.int64)
    for a in range(2):
        for b in range(2):
            result[a::2, b::2] = make_layer(weight[:, :, a, b].T, bias, units_in, units_out)(x)
    return result


def hyper_synthesis(model: Model, x: Ints) -> Ints:
    """h_s: up2, two or three blocks, up2 to context parameters, one block."""
    inner = model.units("h_s.inner")
    x = double(model, "h_s.0", x, model.units("h_s"), inner)
    blocks = 2 if model.config["transform"] == "patch" else 3
    for block in range(1, blocks + 1):
        x = residual_block(model, f"h_s.{block}", x, inner)
    x = double(model, f"h_s.{blocks + 1}", x, inner, model.context_units)
    return residual_block(model, f"h_s.{blocks + 2}", x, model.context_units)


def parameters(model: Model, scale: int, step: int, context: Ints, latents: Ints) -> Ints:
    """Adaptor with its phase bias, blocks, gain, blocks, and the head, added to the context in residual priors."""
    prior = "context.prior_s3" if scale == 2 else "context.prior_s12"
    adaptor = f"context.adaptors.{scale}.{step}"
    stream = model.units(prior)
    units_in = np.concatenate((model.context_units, model.units("latents")))
    x = model.layer(f"{adaptor}.adapt", units_in, stream)(np.concatenate((context, latents), axis=-1))
    if model.has(f"{adaptor}.phase_bias"):
        real = model.real(f"{adaptor}.phase_bias").transpose(1, 2, 0)
        phase = saturate(np.rint(np.ldexp(real, stream.astype(np.int32))).astype(np.int64))
        rows, columns = (np.arange(side) % len(phase) for side in x.shape[:2])
        x = saturate(x + phase[rows[:, None], columns[None]])
    before, after = model.config["prior_blocks_s3" if scale == 2 else "prior_blocks_s12"]
    for block in range(before):
        x = prior_block(model, f"{prior}.before.{block}", x, stream)
    x = saturate(round_shift(x * model.factor(f"{adaptor}.gain"), 12))
    for block in range(after):
        x = prior_block(model, f"{prior}.after.{block}", x, stream)
    refined = model.layer(f"{prior}.head", stream, model.context_units)(x)
    return saturate(context + refined) if model.config["prior_residual"] else refined


def prior_block(model: Model, name: str, x: Ints, stream: Ints) -> Ints:
    block = residual_block if model.config.get("prior_rwkv_rate") is None else rwkv_block
    return block(model, name, x, stream)


def context_net(model: Model, number: int, context: Ints) -> Ints:
    """Between two scales: a 1×1 convolution, or an RWKV block that refines the context."""
    name, units = f"context.context_nets.{number}", model.context_units
    if model.config.get("context_fusion") is None:
        return model.layer(name, units, units)(context)
    return saturate(context + fusion(model, name, [context]))


def cell(model: Model, scale: int, params: Ints, context: Ints) -> Ints:
    """The context for the next step."""
    kind = model.config["cells"][scale]["kind"]
    return (attention_cell if kind == "cross-attention" else rwkv_cell)(model, scale, params, context)


def attention_cell(model: Model, scale: int, params: Ints, context: Ints) -> Ints:
    """output(params) + widen(attention), plus params in residual cells; softmax inside windows, one head after the other.

    A cell as wide as its context has no `widen`.
    """
    name, settings, units = f"context.cells.{scale}.inner", model.config["cells"][scale], model.context_units
    narrow = model.has(f"{name}.widen.weight")
    query_units, key_units = (model.units(f"{name}.{part}") for part in ("query", "key"))
    value_units = model.units(f"{name}.value") if narrow else units
    query = model.layer(f"{name}.query", units, query_units)(params)
    key = model.layer(f"{name}.key", units, key_units)(context)
    value = model.layer(f"{name}.value", units, value_units)(context)
    height, width, channels = query.shape
    per_head = channels // settings["heads"]
    # differences of scores in units of 1/256: · 256 / √(channels of a head), less the units of queries and keys
    multiplier = round(2**15 / math.sqrt(per_head))
    shift = int(query_units[0] + key_units[0]) + 15 - 8
    edge = settings["window"]
    attended = np.empty_like(query)
    for top in range(0, height, edge):
        for left in range(0, width, edge):
            window = slice(top, top + edge), slice(left, left + edge)
            for head in range(settings["heads"]):
                own = (*window, slice(head * per_head, (head + 1) * per_head))
                q, k, v = (plane[own].reshape(-1, per_head) for plane in (query, key, value))
                scores = q @ k.T
                distance = round_shift((scores.max(axis=1, keepdims=True) - scores) * multiplier, shift)
                weights = (model.exponentials(distance) + 2) >> 2
                mean = round_divide(weights @ v, weights.sum(axis=1, keepdims=True))
                attended[own] = saturate(mean).reshape(attended[own].shape)
    output = model.layer(f"{name}.output", units, units)(params)
    if narrow:
        kept = saturate(params + output) if settings["residual"] else output
        return saturate(kept + model.layer(f"{name}.widen", value_units, units)(attended))
    kept = saturate(output + attended)
    return saturate(kept + params) if settings["residual"] else kept


def rwkv_cell(model: Model, scale: int, params: Ints, context: Ints) -> Ints:
    """The fusion of params and context, added to the params in residual cells."""
    refined = fusion(model, f"context.cells.{scale}.inner", [params, context])
    return saturate(params + refined) if model.config["cells"][scale]["residual"] else refined


def fusion(model: Model, name: str, inputs: list[Ints]) -> Ints:
    """leave(RWKV block(enter(inputs side by side))), inputs and output in units of the context."""
    stream = model.units(name)
    units = np.concatenate([model.context_units] * len(inputs))
    z = model.layer(f"{name}.enter", units, stream)(np.concatenate(inputs, axis=-1))
    z = rwkv_block(model, f"{name}.block", z, stream)
    return model.layer(f"{name}.leave", stream, model.context_units)(z)


def rwkv_block(model: Model, name: str, z: Ints, stream: Ints) -> Ints:
    """A spatial mix, then a channel mix."""
    return channel_mix(model, name, spatial_mix(model, name, z, stream), stream)


def layer_norm(model: Model, name: str, x: Ints, unit_in: int, units_out: Ints) -> Ints:
    """n = (C·x − Σx) / √V in units of 2^-12; then gamma and beta in such units that a shift of 16 gives the output's."""
    channels = x.shape[-1]
    total = x.sum(axis=-1, keepdims=True)
    epsilon = max(1, round(1e-5 * channels**2 * 2.0 ** (2 * unit_in)))
    variance = channels * (x * x).sum(axis=-1, keepdims=True) - total * total + epsilon
    root = np.vectorize(math.isqrt, otypes=[np.int64])(variance)
    normal = round_divide((channels * x - total) << 12, root)
    gamma = np.rint(np.ldexp(model.real(f"{name}.weight"), units_out.astype(np.int32) + 4)).astype(np.int64)
    beta = np.rint(np.ldexp(model.real(f"{name}.bias"), units_out.astype(np.int32) + 16)).astype(np.int64)
    return saturate(round_shift(normal * gamma + beta, 16))


def omni_shift(model: Model, name: str, x: Ints, units_in: Ints, units_out: Ints) -> Ints:
    """α₀·x + α₁·dw1×1 + α₂·dw3×3 + α₃·dw5×5 as one kernel 5×5; float64 holds these sums without rounding."""
    alpha = model.real(f"{name}.alpha")
    one, three, five = (model.real(f"{name}.conv{k}x{k}.weight")[:, 0] for k in (1, 3, 5))
    kernel = alpha[3] * five
    kernel = kernel + np.pad(alpha[2] * three, ((0, 0), (1, 1), (1, 1)))
    kernel = kernel + np.pad(alpha[0] + alpha[1] * one, ((0, 0), (2, 2), (2, 2)))
    return depthwise(model, x, kernel, None, units_in, units_out)


def gate(model: Model, control: Ints, x: Ints) -> Ints:
    """σ(control / 256) · x."""
    return saturate(round_shift(x * model.sigmoid[np.clip(control, -2048, 2047) + 2048], 14))


def spatial_mix(model: Model, block: str, z: Ints, stream: Ints) -> Ints:
    """z + gamma1 · output(σ(r) · BiWKV(k, v)); keys and receptances in units of 1/256."""
    name, norm_units = f"{block}.spatial_mix", model.units(f"{block}.norm1")
    shifted, value_units = model.units(f"{name}.shift"), model.units(f"{name}.value")
    argument = np.full(len(stream), 8, np.int64)
    x = layer_norm(model, f"{block}.norm1", z, int(stream[0]), norm_units)
    x = omni_shift(model, f"{name}.shift", x, norm_units, shifted)
    key = model.layer(f"{name}.key", shifted, argument)(x)
    value = model.layer(f"{name}.value", shifted, value_units)(x)
    receptance = model.layer(f"{name}.receptance", shifted, argument)(x)
    mixed = gate(model, receptance, bi_wkv(model, name, key, value))
    return saturate(z + model.layer(f"{name}.output", value_units, stream, model.real(f"{block}.gamma1"))(mixed))


def channel_mix(model: Model, block: str, z: Ints, stream: Ints) -> Ints:
    """z + σ(r) · gamma2·value(relu(key)²); the square is shifted by 13."""
    name, norm_units = f"{block}.channel_mix", model.units(f"{block}.norm2")
    shifted, key_units = model.units(f"{name}.shift"), model.units(f"{name}.key")
    x = layer_norm(model, f"{block}.norm2", z, int(stream[0]), norm_units)
    x = omni_shift(model, f"{name}.shift", x, norm_units, shifted)
    key = np.maximum(model.layer(f"{name}.key", shifted, key_units)(x), 0)
    value = model.layer(f"{name}.value", 2 * key_units - 13, stream, model.real(f"{block}.gamma2"))
    receptance = model.layer(f"{name}.receptance", shifted, np.full(len(stream), 8, np.int64))(x)
    return saturate(z + gate(model, receptance, value(saturate(round_shift(key * key, 13)))))


def bi_wkv(model: Model, name: str, key: Ints, value: Ints) -> Ints:
    """Weighted means over all tokens, row-major: weights e^(k − largest k), faded by e^(−w·(distance − 1)), or e^u for the token itself."""
    height, width, channels = key.shape
    tokens = height * width
    k, v = key.reshape(tokens, channels), value.reshape(tokens, channels)
    decay, boost = (
        np.rint(np.clip(model.real(f"{name}.{part}"), -6, 6) * (1.4426950408889634 * 65536)).astype(np.int64)
        for part in ("decay", "boost")
    )
    weights = model.exponentials(k.max(axis=0) - k)
    length = -(-tokens // 16)
    exponent = decay * np.arange(length + 1)[:, None] // tokens
    growth, fading = model.power_of_two(exponent), model.power_of_two(-exponent)
    itself = model.power_of_two(boost // tokens)

    def before(x: Ints) -> Ints:
        """The faded sum over the tokens before each; tokens are cut into blocks, which hand on a carry."""
        sums = np.empty_like(x)
        carry = np.zeros(channels, np.int64)
        for start in range(0, tokens, length):
            inside = np.zeros(channels, np.int64)
            for j in range(length + 1):
                faded = (carry * fading[j]) >> 14
                if j:
                    faded = faded + (((inside >> 14) * fading[j - 1]) >> 14)
                if j == length:
                    carry = faded
                elif start + j < tokens:
                    sums[start + j] = faded
                    inside = inside + x[start + j] * growth[j]
        return sums

    def everywhere(x: Ints) -> Ints:
        return before(x) + before(x[::-1])[::-1] + ((x * itself) >> 14)

    mean = round_divide(everywhere(weights * v), np.maximum(everywhere(weights), 1))
    return saturate(mean).reshape(height, width, channels)
