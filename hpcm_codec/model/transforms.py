"""Analysis and synthesis transforms, main and hyper, for both kinds of model.

All take and give B×C×h×w. The main transforms map an image in [0, 1] (3 channels) to latents at 1/16 of its
resolution and back; the hyper transforms map latents to hyper-latents at 1/64 and back to 2M context parameters.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from hpcm_codec.constants import LARGEST_PIXEL
from hpcm_codec.model.blocks import RateSequential, ResidualBlock, down2, up2
from hpcm_codec.model.config import PATCH, ModelConfig
from hpcm_codec.model.precision import autocast_is_on, outside_autocast
from hpcm_codec.ops import fused

PATCH_WIDTH = 192  # channels at 1/8 resolution: three colours of an 8×8 block
# How much faster a chrominance coefficient loses its importance with frequency than a luminance one.
CHROMA_FREQUENCY_FACTOR = 2.5


def _partial(channels: int, count: int) -> list[nn.Module]:
    return [ResidualBlock(channels, "partial") for _ in range(count)]


def _depthwise(channels: int, count: int, levels: int) -> list[nn.Module]:
    return [ResidualBlock(channels, "depthwise", levels) for _ in range(count)]


class _FromPixels(nn.Conv2d):
    """A convolution of an image in [0, 1], computed in float32 under autocast too.

    bfloat16 would round most 255ths up, and every filter's response to brightness. On a GPU float32 may be TF32, in which weights have
    11 bits and whole numbers up to 255 are exact.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not autocast_is_on(x):
            return super().forward(x)
        with outside_autocast(x):
            return self._conv_forward(x.float() * LARGEST_PIXEL, self.weight / LARGEST_PIXEL, self.bias)


class _PatchesIn(_FromPixels):
    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None and not x.requires_grad and fused.active(x, self.weight):
            return fused.take_patches(x, self.weight, self.bias, PATCH)
        return super().forward(x)


def _patches_in(config: ModelConfig) -> nn.Conv2d:
    """Image → patches at 1/8 resolution. Outside of the image, overlapping patches get its border repeated."""
    overlap = (config.patch_kernel - PATCH) // 2
    return _PatchesIn(
        3,
        PATCH_WIDTH,
        config.patch_kernel,
        stride=PATCH,
        padding=overlap,
        padding_mode="replicate" if overlap else "zeros",
    )


class PatchesOut(nn.ConvTranspose2d):
    """Patches at 1/8 resolution → image, the mirror of the projection; overlapping patches add up.

    Patches beyond the border repeat those at it: pixels there are covered by as many patches as all others. Computed as one 1×1
    convolution and sums of shifted blocks of 8×8 pixels, which takes a third of the time of torch's transposed convolution.
    """

    def __init__(self, kernel: int) -> None:
        self.overlap = (kernel - PATCH) // 2  # pixels, on each side
        self.beyond = -(-self.overlap // PATCH)  # rings of patches outside the image that reach into it
        super().__init__(PATCH_WIDTH, 3, kernel, stride=PATCH, padding=self.overlap + PATCH * self.beyond)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert self.bias is not None
        if fused.active(x, self.weight):
            return fused.draw_patches(x, self.weight, self.bias, PATCH, self.overlap, self.beyond)
        if self.beyond:
            x = functional.pad(x, (self.beyond,) * 4, mode="replicate")
        channels, height, width = x.shape[1:]
        # A 1×1 convolution, whose last bits do not depend on where its arguments lie in memory, as those of `@` may.
        drawn = functional.conv2d(x, self.weight.reshape(channels, -1, 1, 1).transpose(0, 1))
        blocks = self.kernel_size[0] // PATCH  # along an edge of what a patch draws
        drawn = rearrange(drawn, "b (c m i n j) y x -> b y x m n c i j", c=3, i=PATCH, j=PATCH, m=blocks)
        rows, columns = height - blocks + 1, width - blocks + 1  # of 8×8 blocks that all their patches are there for
        blocks_of_image = sum(
            drawn[:, blocks - 1 - i :][:, :rows, blocks - 1 - j :][:, :, :columns, i, j]
            for i in range(blocks)
            for j in range(blocks)
        )
        assert isinstance(blocks_of_image, Tensor)
        image = rearrange(blocks_of_image, "b y x c i j -> b c (y i) (x j)")
        margin = self.overlap + PATCH * self.beyond - PATCH * (blocks - 1)
        return image[..., margin : rows * PATCH - margin, margin : columns * PATCH - margin] + self.bias[:, None, None]


def analysis_transform(config: ModelConfig) -> RateSequential:
    """g_a: image → latents. It never depends on the rate, so one analysis serves every quality."""
    latents = config.latent_channels
    if config.transform == "staircase":
        return RateSequential(
            _FromPixels(3, 96, 4, stride=2, padding=1),
            *_partial(96, 2),
            down2(96, 192),
            *_partial(192, 2),
            down2(192, 384),
            *_partial(384, config.staircase_blocks),
            down2(384, latents),
        )
    factors = 1 if config.residual_factors else 0
    return RateSequential(
        _patches_in(config),
        *_depthwise(PATCH_WIDTH, config.patch_blocks, factors),
        down2(PATCH_WIDTH, latents),
        *_depthwise(latents, 1, factors),
    )


def synthesis_transform(config: ModelConfig) -> RateSequential:
    """g_s: latents → image, the mirror of the analysis; its residual blocks may follow the rate."""
    latents = config.latent_channels
    if config.transform == "staircase":
        return RateSequential(
            up2(latents, 384),
            *_partial(384, config.staircase_blocks),
            up2(384, 192),
            *_partial(192, 2),
            up2(192, 96),
            *_partial(96, 2),
            nn.ConvTranspose2d(96, 3, 4, stride=2, padding=1),
        )
    levels = config.rate_levels if config.residual_factors else 0
    return RateSequential(
        *_depthwise(latents, 1, levels),
        up2(latents, PATCH_WIDTH),
        *_depthwise(PATCH_WIDTH, config.patch_blocks, levels),
        PatchesOut(config.patch_kernel),
    )


def hyper_analysis_transform(config: ModelConfig) -> RateSequential:
    """h_a: latents B×M×h×w → hyper-latents B×N×h/4×w/4."""
    latents, hyper = config.latent_channels, config.hyper_channels
    if config.transform == "staircase":
        return RateSequential(*_partial(latents, 1), down2(latents, hyper), *_partial(hyper, 3), down2(hyper, hyper))
    factors = 1 if config.residual_factors else 0
    return RateSequential(down2(latents, hyper), *_depthwise(hyper, 2, factors), down2(hyper, hyper))


def hyper_synthesis_transform(config: ModelConfig) -> RateSequential:
    """h_s: hyper-latents → context parameters B×2M×h×w, scales in the first M channels, means in the last M."""
    latents, hyper = config.latent_channels, config.hyper_channels
    if config.transform == "staircase":
        return RateSequential(
            up2(hyper, hyper), *_partial(hyper, 3), up2(hyper, 2 * latents), *_partial(2 * latents, 1)
        )
    levels = config.rate_levels if config.residual_factors else 0
    return RateSequential(
        up2(hyper, hyper),
        *_depthwise(hyper, 2, levels),
        up2(hyper, 2 * latents),
        *_depthwise(2 * latents, 1, levels),
    )


def _dct_basis(size: int) -> Tensor:
    """The orthonormal DCT-II basis, size×size: row u is frequency u."""
    sample = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi * (sample[None] + 0.5) * sample[:, None] / size) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def haar_pairs() -> Tensor:
    """All 768 Haar projections of 2×2 blocks of DCT coefficients, 768×192×2×2 in float64, lowest frequencies first.

    Chrominance counts as `CHROMA_FREQUENCY_FACTOR` times its frequency.
    """
    haar = _dct_basis(2)
    candidates = []
    for channel in range(PATCH_WIDTH):
        colour, u, v = channel // PATCH**2, channel // PATCH % PATCH, channel % PATCH
        weight = CHROMA_FREQUENCY_FACTOR if colour else 1.0
        for a in range(2):
            for b in range(2):
                # Haar's high band of an odd DCT frequency is the lower of the two frequencies it splits into.
                row = 2 * u + (a ^ (u & 1))
                column = 2 * v + (b ^ (v & 1))
                candidates.append(((row**2 + column**2) * weight**2 + (weight - 1) * 4, channel, a, b))
    candidates.sort()
    pairs = torch.zeros(len(candidates), PATCH_WIDTH, 2, 2, dtype=torch.float64)
    for output, (_, channel, a, b) in enumerate(candidates):
        pairs[output, channel] = torch.outer(haar[a], haar[b])
    return pairs


def initialise_as_block_transform(analysis: RateSequential, synthesis: RateSequential, unit: float) -> None:
    """Start the patch model as a transform codec: 8×8 DCT of opponent colours, then Haar, lowest frequencies first.

    The synthesis gets the transpose, so that before training it inverts the analysis up to the frequencies left out.
    unit: what one unit of an orthonormal coefficient (image in [0, 1]) becomes in the latents; chosen so that a latent
    is about one quantisation step at the middle rate, the size at which networks learn well.
    """
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]], dtype=torch.float64)
    colours /= colours.norm(dim=1, keepdim=True)
    dct = _dct_basis(PATCH)
    # kernel[colour, u, v, rgb, y, x]
    kernel = torch.einsum("cr,uy,vx->cuvryx", colours, dct, dct).reshape(PATCH_WIDTH, 3, PATCH, PATCH)
    layers_in = [layer for layer in analysis if isinstance(layer, nn.Conv2d)]
    layers_out = [layer for layer in synthesis if isinstance(layer, nn.ConvTranspose2d)]
    project, halve = layers_in
    double, unproject = layers_out

    overlap = (project.kernel_size[0] - PATCH) // 2
    kernel = functional.pad(kernel, (overlap,) * 4)
    with torch.no_grad():
        pair = haar_pairs()[: halve.out_channels]
        for layer, weights in ((project, kernel), (unproject, kernel), (halve, pair * unit), (double, pair / unit)):
            layer.weight.copy_(weights)
            assert layer.bias is not None
            layer.bias.zero_()
        # The analysis gets pixels around zero, and the synthesis adds mid-grey again.
        assert project.bias is not None and unproject.bias is not None
        project.bias.copy_(-0.5 * kernel.sum(dim=(1, 2, 3)))
        unproject.bias.fill_(0.5)
