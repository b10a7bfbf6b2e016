"""The trained modules, made of integer layers by their names in the checkpoint: one class for each of `model`'s.

Planes are int16 h×w×C: numpy arrays or tensors, as the layers' weights are. Nothing but operators of `ops.integer` touches them.
"""

from __future__ import annotations

import math

import numpy as np

from hpcm_codec.engines.exact.blocks import Blocks
from hpcm_codec.engines.exact.layers import LayerMaker, Longs
from hpcm_codec.engines.exact.rwkv import ARGUMENT_FRACTION, IntegerRWKVBlocks
from hpcm_codec.errors import UnsupportedError
from hpcm_codec.model.config import CellConfig, ModelConfig
from hpcm_codec.ops import integer
from hpcm_codec.ops.integer import LIMIT, Array, Linear
from hpcm_codec.ops.integer_tables import StoredFunctions


class IntegerPrior:
    """Blocks, a gain, blocks, and the head, whose output is added to the context where the configuration says so."""

    def __init__(
        self,
        make: LayerMaker,
        config: ModelConfig,
        blocks: tuple[int, int],
        context: Longs,
        name: str,
        functions: StoredFunctions,
    ) -> None:
        stream = make.fraction(name)

        def sequence(part: str, count: int) -> Blocks | IntegerRWKVBlocks:
            names = (f"{name}.{part}.{i}" for i in range(count))
            if config.prior_rwkv_rate is not None:
                return IntegerRWKVBlocks(make, name, names, functions)
            return Blocks(make, stream, names)

        self.residual = config.prior_residual
        self.before, self.after = sequence("before", blocks[0]), sequence("after", blocks[1])
        self.head = make.linear(f"{name}.head", stream, context)

    def __call__(self, adapted: Array, gain: Array, context: Array, position: Array) -> Array:
        x = self.after(integer.scale(self.before(adapted, position), gain), position)
        return integer.linear(x, weights=self.head, added=context if self.residual else None)


class IntegerContextConv:
    """The network between two scales as a 1×1 convolution."""

    def __init__(self, make: LayerMaker, context: Longs, name: str) -> None:
        self.weights: Linear = make.linear(name, context, context)

    def __call__(self, context: Array) -> Array:
        return integer.linear(context, weights=self.weights)


class IntegerAdaptor:
    """A step's own conv1×1 of (context ‖ latents), its phase bias, and its gain."""

    def __init__(self, make: LayerMaker, fraction_in: Longs, stream: Longs, name: str) -> None:
        self.adapt = make.linear(f"{name}.adapt", fraction_in, stream)
        self.gain: Array = make.factor(f"{name}.gain")
        self.phase: Array | None = None
        if f"{name}.phase_bias" in make.weights:
            phase = np.rint(np.ldexp(make.real(f"{name}.phase_bias"), stream[:, None, None]))
            phase = np.clip(phase, -LIMIT, LIMIT).astype(np.int16)
            self.phase = np.ascontiguousarray(phase.transpose(1, 2, 0))  # cell×cell×C

    def __call__(self, context: Array, latents: Array) -> Array:
        return integer.linear(context, latents, weights=self.adapt, added=self.phase, repeated=True)


class IntegerAttentionCell:
    """attention(query(params), key(context), value(context)) + output(params), and the params themselves in a residual cell.

    Where the cell is narrower than its context, the attention passes through `widen`; else the values are in units of the context.
    """

    def __init__(
        self, make: LayerMaker, config: CellConfig, context: Longs, name: str, functions: StoredFunctions
    ) -> None:
        self.heads, self.window, self.functions = config.heads, config.window, functions
        self.residual, narrow = config.residual, f"{name}.widen.weight" in make.weights
        query, key = (make.fraction(f"{name}.{part}") for part in ("query", "key"))
        value = make.fraction(f"{name}.value") if narrow else context
        self.query = make.linear(f"{name}.query", context, query)
        self.key = make.linear(f"{name}.key", context, key)
        self.value = make.linear(f"{name}.value", context, value)
        self.output = make.linear(f"{name}.output", context, context)
        self.widen = make.linear(f"{name}.widen", value, context) if narrow else None
        unit = make.one_fraction(f"{name}.query") + make.one_fraction(f"{name}.key")
        if unit + 15 < ARGUMENT_FRACTION:
            raise UnsupportedError(
                f"the scores of {name} are too coarse for integer arithmetic", advice="use the float profile"
            )
        per_head = len(query) // config.heads
        # multiplier / 2^shift = 256 / √(channels of a head) / 2^unit, with 15 bits of multiplier
        self.scores = integer.AttentionScale(round(2**15 / math.sqrt(per_head)), unit + 15 - ARGUMENT_FRACTION)

    def __call__(self, params: Array, context: Array) -> Array:
        query = integer.linear(params, weights=self.query)
        key, value = integer.together(context, (self.key, self.value))
        attended = integer.window_attention(
            query, key, value, self.heads, self.window, self.scores, self.functions.exponential
        )
        if self.widen is None:
            output = integer.linear(params, weights=self.output, added=attended)
            return integer.add(output, params) if self.residual else output
        output = integer.linear(params, weights=self.output, added=params if self.residual else None)
        return integer.linear(attended, weights=self.widen, added=output)
