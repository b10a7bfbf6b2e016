"""HPCM: the whole network. `forward` for training; analyse, code_latents and synthesise for coding.

Source: HPCM (Li, Zhang, Li, Liu, ICCV 2025, arXiv 2507.19125); which variant it is, `ModelConfig` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from hpcm_codec.entropy.distributions import bounded, fused_distribution, lower_bounded_likelihood
from hpcm_codec.entropy.sigmas import LARGEST_SIGMA, SMALLEST_SIGMA
from hpcm_codec.model import lattices, schedule, transforms
from hpcm_codec.model.blocks import RateFactor, WithoutInitialValues
from hpcm_codec.model.config import ModelConfig
from hpcm_codec.model.context import ContextModel
from hpcm_codec.model.precision import in_autocast
from hpcm_codec.model.rate import RateControl, coefficient_unit, level_weights
from hpcm_codec.model.schedule import Lattice, Scale
from hpcm_codec.model.walk import SymbolPort
from hpcm_codec.ops import fused, fused_rate


class Likelihoods(TypedDict):
    y: Tensor
    z: Tensor


class ForwardResult(TypedDict):
    x_hat: Tensor
    likelihoods: Likelihoods


class Simulated(NamedTuple):
    """Decoded latents B×M×h×w, and the likelihoods of what was coded."""

    latents: Tensor
    likelihoods: Likelihoods


class Noise(NamedTuple):
    """Uniform in [-1/2, 1/2), for the rates in training: latents B×M×H/16×W/16 and hyper B×N×H/64×W/64."""

    latents: Tensor
    hyper: Tensor


def round_straight_through(x: Tensor) -> Tensor:
    """round(x) with the gradient of the identity."""
    return x + (x.round() - x).detach()


def round_and_rate(residual: Tensor, sigma: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """A residual rounded, and its likelihood: at the residual plus `noise` in training, else at the rounded value."""
    rounded = round_straight_through(residual)
    rated = rounded if noise is None else residual + noise
    return rounded, lower_bounded_likelihood(rated, sigma)


RoundAndRate = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def likelihood_at(rated: Tensor, log_sigma: Tensor) -> Tensor:
    """The likelihood of each value at its width, given as a logarithm."""
    return lower_bounded_likelihood(rated, log_sigma.exp())


class MaskedOperations(NamedTuple):
    """What `MaskedEstimator` computes with, as it is or compiled."""

    step: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    total: Callable[[list[Tensor], list[Tensor]], Tensor]
    rate: Callable[[Tensor, Tensor], Tensor]


class EstimatorPort:
    """The estimator's end of the entropy coder: rounds the true latents and keeps their likelihoods.

    latents: B×M×h×w, in quantisation steps.
    noise:   of the same shape, in training: rates are taken at the latents plus noise instead of the rounded ones; None rounds.
             Rounding passes gradients straight through.
    rate:    `round_and_rate`, or its compiled form.
    """

    def __init__(self, latents: Tensor, noise: Tensor | None = None, rate: RoundAndRate = round_and_rate) -> None:
        self._planes = schedule.split(latents)
        self._noise = None if noise is None else schedule.split(noise)
        self._round_and_rate = rate
        self._likelihoods: list[tuple[str, Lattice, Tensor]] = []
        self._scale_name = ""

    def begin(self, scale: Scale, number: int) -> None:
        self._scale_name = scale.name

    def exchange(self, step: Lattice, sigma: Tensor, mean: Tensor) -> Tensor:
        residual = step.take(self._planes[self._scale_name]) - mean
        noise = None if self._noise is None else step.take(self._noise[self._scale_name])
        rounded, likelihood = self._round_and_rate(residual, sigma, noise)
        self._likelihoods.append((self._scale_name, step, likelihood))
        return rounded

    def likelihoods(self) -> Tensor:
        """The likelihood of every latent, B×M×h×w."""
        planes = {name: torch.ones_like(plane) for name, plane in self._planes.items()}
        for name, step, values in self._likelihoods:
            planes[name] = step.place(values, planes[name])
        return schedule.merge(planes)


def masked_step(
    params: Tensor, latents: Tensor, true: Tensor, noise: Tensor, log_gain: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A coding step of `MaskedEstimator`, computed at all positions of a plane: latents with the step's decoded, and what to rate.

    Returns the latents, the values whose likelihoods are the rate, and log σ, B×M×h×w each; the last two count inside the mask only.
    """
    log_sigma, mean = params.to(torch.promote_types(params.dtype, torch.float32)).chunk(2, dim=1)
    mean = mean * log_gain.exp()
    residual = true - mean
    decoded = (round_straight_through(residual) + mean) * (-log_gain).exp()
    log_sigma = bounded(log_sigma + log_gain, math.log(SMALLEST_SIGMA), math.log(LARGEST_SIGMA))
    return latents + torch.where(mask, decoded, 0.0), residual + noise, log_sigma


def masked_sum(values: list[Tensor], masks: list[Tensor]) -> Tensor:
    """The values inside their masks, which do not overlap; zero elsewhere."""
    return torch.stack([torch.where(mask, value, 0.0) for value, mask in zip(values, masks, strict=True)]).sum(dim=0)


class MaskedEstimator:
    """`EstimatorPort` for training on a GPU, where a few operations on whole planes cost less than many on parts of them.

    A step is computed everywhere and kept inside its mask; all likelihoods are taken at once in the end.
    latents, noise: B×M×h×w, as `EstimatorPort` takes them. log_gain: B×M×1×1.
    operations: `masked_step`, `masked_sum` and `likelihood_at`, or their compiled forms.
    """

    def __init__(self, latents: Tensor, noise: Tensor, log_gain: Tensor, operations: MaskedOperations) -> None:
        self._planes, self._noise, self._log_gain = schedule.split(latents), schedule.split(noise), log_gain
        self._operations = operations
        self._coded: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in self._planes}

    def begin(self, scale: Scale, number: int) -> None:
        self._scale = scale

    def code(self, step: Lattice, params: Tensor, latents: Tensor) -> Tensor:
        """The latents B×M×h×w with those of the step decoded; params: B×2M×h×w, log-scales and means."""
        name = self._scale.name
        mask = lattices.mask(step, tuple(latents.shape[1:]), latents.device)
        true, noise = self._planes[name], self._noise[name]
        latents, rated, log_sigma = self._operations.step(params, latents, true, noise, self._log_gain, mask)
        self._coded[name].append((rated, log_sigma, mask))
        return latents

    def likelihoods(self) -> Tensor:
        """The likelihood of every latent, B×M×h×w."""
        rated, log_sigma = {}, {}
        for name, coded in self._coded.items():
            values, sigmas, masks = (list(column) for column in zip(*coded, strict=True))
            rated[name] = self._operations.total(values, masks)
            log_sigma[name] = self._operations.total(sigmas, masks)
        return self._operations.rate(schedule.merge(rated), schedule.merge(log_sigma))


class FusedEstimator:
    """`EstimatorPort` in training where `ops.fused` applies. No port: it codes whole steps, decoded latents and rates in one operation.

    latents, noise: B×M×h×w, as `EstimatorPort` takes them. log_gain: B×M×1×1.
    """

    def __init__(self, latents: Tensor, noise: Tensor, log_gain: Tensor) -> None:
        self._log_gain = log_gain
        self._likelihoods: dict[str, list[tuple[fused_rate.Pieces, Tensor]]] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._latents: dict[str, dict[Lattice, tuple[Tensor, Tensor]]] = {}
        planes, noises = schedule.split(latents), schedule.split(noise)
        for scale in schedule.scales(latents.shape[1]):
            steps = tuple(step.fused(latents.shape[1]) for step in scale.steps)
            taken = (fused_rate.take_steps(plane[scale.name], steps) for plane in (planes, noises))
            self._latents[scale.name] = dict(zip(scale.steps, zip(*taken, strict=True), strict=True))
            height, width = planes[scale.name].shape[-2:]
            self._sizes[scale.name] = (height, width)

    def begin(self, scale: Scale, number: int) -> None:
        self._scale = scale

    def code(self, step: Lattice, params: Tensor, latents: Tensor) -> Tensor:
        """The latents B×M×h×w with those of the step decoded; params: B×2M×h×w, log-scales and means."""
        true, noise = self._latents[self._scale.name][step]
        pieces = step.fused(latents.shape[1])
        decoded, likelihood = fused_rate.code_step(
            params, latents, true, noise, self._log_gain, pieces, fused_distribution()
        )
        self._likelihoods.setdefault(self._scale.name, []).append((pieces, likelihood))
        return decoded

    def likelihoods(self) -> Tensor:
        """The likelihood of every latent, B×M×h×w."""
        planes = {
            name: fused_rate.place_steps(tuple(v for _, v in coded), tuple(p for p, _ in coded), self._sizes[name])
            for name, coded in self._likelihoods.items()
        }
        return schedule.merge(planes)


# Attributes that hold modules or parameters name the tensors of checkpoints: renaming one makes every file undecodable (CONTRIBUTING.md).
class HPCM(nn.Module):
    """The codec's network. Images are B×3×H×W in [0, 1], H and W multiples of 64; latents B×M×H/16×W/16.

    `rate` arguments are level weights B×L (see `rate.level_weights`); a fixed-rate model has L = 1.

    initialise: False skips initialisation and draws no random numbers, for weights that are about to be loaded.
    """

    def __init__(self, config: ModelConfig, *, initialise: bool = True) -> None:
        super().__init__()
        self.config = config
        self.round_and_rate: RoundAndRate = round_and_rate
        self.masked_operations = MaskedOperations(masked_step, masked_sum, likelihood_at)
        with nullcontext() if initialise else WithoutInitialValues():
            self.g_a = transforms.analysis_transform(config)
            self.g_s = transforms.synthesis_transform(config)
            self.h_a = transforms.hyper_analysis_transform(config)
            self.h_s = transforms.hyper_synthesis_transform(config)
            self.context = ContextModel(config)
        self.hyper_mean = RateFactor(config.rate_levels, config.hyper_channels, initial=0.0)
        self.hyper_scale = RateFactor(
            config.rate_levels, config.hyper_channels, initial=0.0 if config.scale_domain == "log" else 1.0
        )
        self.rate_control = RateControl(config) if config.rate_levels > 1 else None
        if config.transform == "patch" and initialise:
            transforms.initialise_as_block_transform(self.g_a, self.g_s, coefficient_unit(config.lambdas))

    def rate_at(self, position: Tensor | float, batch: int = 1) -> Tensor:
        """Level weights B×L on the model's device, for a position (or B positions) in [0, L-1]."""
        like = self.hyper_mean.level_values
        positions = torch.as_tensor(position, dtype=like.dtype, device=like.device).reshape(-1)
        if positions.shape[0] != batch:
            positions = positions.expand(batch)
        return level_weights(positions, self.config.rate_levels)

    def latent_log_gain(self, rate: Tensor) -> Tensor | None:
        """Logarithm of quantisation steps per unit of latent, B×M×1×1; None in a fixed-rate model."""
        return None if self.rate_control is None else self.rate_control.latent_log_gain(rate)

    def analyse(self, x: Tensor) -> Tensor:
        """Image → latents, the same for every rate."""
        return self.g_a(x)

    def synthesise(self, latents: Tensor, rate: Tensor) -> Tensor:
        """Decoded latents → image, not clamped."""
        if self.rate_control is not None:
            latents = latents * self.rate_control.synthesis_correction(rate)
        return self.g_s(latents, rate)

    def hyper_latents(self, latents: Tensor, rate: Tensor) -> Tensor:
        """Latents → hyper-latents B×N×h/4×w/4, in quantisation steps, not yet rounded."""
        hyper = self.h_a(latents, rate).to(torch.promote_types(latents.dtype, torch.float32))
        return hyper if self.rate_control is None else hyper * self.rate_control.hyper_log_gain(rate).exp()

    def hyper_distribution(self, rate: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and mean of the hyper-latents, B×N×1×1 each, in quantisation steps; scale within [0.12, 64]."""
        scale = self.hyper_scale(rate)
        scale = scale.exp() if self.config.scale_domain == "log" else scale
        return bounded(scale, SMALLEST_SIGMA, LARGEST_SIGMA), self.hyper_mean(rate)

    def hyper_synthesis(self, hyper: Tensor, rate: Tensor) -> Tensor:
        """Decoded hyper-latents (in quantisation steps) → context parameters B×2M×h×w."""
        if self.rate_control is not None:
            hyper = hyper * (-self.rate_control.hyper_log_gain(rate)).exp()
        return self.h_s(hyper, rate)

    def code_latents(self, hyper: Tensor, rate: Tensor, port: SymbolPort) -> Tensor:
        """The walk over all steps from decoded hyper-latents to decoded latents, shared by all ports."""
        return self.context.code_latents(self.hyper_synthesis(hyper, rate), port, rate, self.latent_log_gain(rate))

    def forward(self, x: Tensor, position: Tensor | float = 0.0, noise: Noise | None = None) -> ForwardResult:
        """Code x in simulation: additive noise and straight-through rounding in training, rounding in evaluation.

        x:        B×3×H×W in [0, 1], H and W multiples of 64.
        position: rate position(s) in [0, L-1], one number or B of them.
        noise:    in training only; None draws it.
        Returns x_hat (not clamped) and the likelihoods of y (B×M×H/16×W/16) and z (B×N×H/64×W/64), float32 or wider.
        """
        with fused.step():
            rate = self.rate_at(position, x.shape[0])
            coded = self.code_in_simulation(self.analyse(x), rate, noise)
            return {"x_hat": self.synthesise(coded.latents, rate), "likelihoods": coded.likelihoods}

    def code_in_simulation(self, latents: Tensor, rate: Tensor, noise: Noise | None = None) -> Simulated:
        """What `forward` does between analysis and synthesis, with hyperprior and context model alone.

        latents: B×M×h×w, h and w multiples of 4; rate: level weights B×L; noise: in training only; None draws it.
        """
        hyper = self.hyper_latents(latents, rate)
        scale, mean = self.hyper_distribution(rate)
        if not self.training:
            noise = None
        elif noise is None:
            noise = Noise(*(torch.rand(t.shape, device=t.device) - 0.5 for t in (latents, hyper)))
        rounded, z_likelihood = self.round_and_rate(hyper - mean, scale, None if noise is None else noise.hyper)

        wide = latents.to(torch.promote_types(latents.dtype, torch.float32))
        log_gain = self.latent_log_gain(rate)
        scaled = wide if log_gain is None else wide * log_gain.exp()
        params = in_autocast(self.hyper_synthesis(rounded + mean, rate))
        estimator: EstimatorPort | FusedEstimator | MaskedEstimator
        # These code whole steps at once, for logarithmic scales and noise.
        whole_steps = self.config.scale_domain == "log" and noise is not None and log_gain is not None
        quick = fused.active(latents, self.hyper_mean.level_values)
        if whole_steps and (quick or latents.device.type == "cuda"):
            assert noise is not None and log_gain is not None
            if quick:
                estimator = FusedEstimator(scaled, noise.latents, log_gain)
            else:
                estimator = MaskedEstimator(scaled, noise.latents, log_gain, self.masked_operations)
            decoded = self.context.walk_with(params, estimator.code, estimator.begin, rate)
        else:
            estimator = EstimatorPort(scaled, noise and noise.latents, self.round_and_rate)
            decoded = self.context.code_latents(params, estimator, rate, log_gain)
        return Simulated(decoded, {"y": estimator.likelihoods(), "z": z_likelihood})
