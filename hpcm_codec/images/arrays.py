"""Pictures as numpy arrays and torch tensors: what `encode` takes besides files and Pillow images, and what `decode` gives.

|              | shape                  | samples                            | channels                                    |
|--------------|------------------------|------------------------------------|---------------------------------------------|
| numpy array  | H×W×C, or H×W for grey | uint8, or floating point in [0, 1] | C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA |
| torch tensor | C×H×W                  | uint8, or floating point in [0, 1] | the same                                    |

Alpha is 0 (transparent) .. 255 (opaque), not premultiplied. Floating point samples are rounded to the nearest of 256 levels. What is
given out is always uint8, with the channels of the file: H×W×C or C×H×W, on the CPU, memory of its own.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcm_codec.errors import UsageError
from hpcm_codec.images import Picture, Samples

if TYPE_CHECKING:
    from torch import Tensor

CHANNELS = (1, 2, 3, 4)


def picture_from_array(array: NDArray[Any]) -> Picture:
    """A picture of H×W×C or H×W samples; raises UsageError for other shapes, dtypes and ranges."""
    shape = _shape_in_words(array.shape)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise UsageError(f"an image array is H×W×C or H×W, not {shape}")
    samples = array[..., None] if array.ndim == 2 else array
    if samples.shape[2] not in CHANNELS:
        first = samples.shape[0] in CHANNELS
        raise UsageError(
            f"an image array is H×W×C of 1 to 4 channels, not {shape}",
            advice="put the channels last: array.transpose(1, 2, 0)" if first else None,
        )
    return _picture(_as_bytes(samples, "an image array", str(array.dtype)))


def is_tensor(image: object) -> bool:
    """Whether it is a torch tensor; False where torch has not been imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(image, torch.Tensor)


def picture_from_tensor(tensor: Tensor) -> Picture:
    """A picture of C×H×W samples, on any device; raises UsageError for other shapes, dtypes and ranges."""
    import torch

    shape = _shape_in_words(tensor.shape)
    if tensor.ndim != 3 or 0 in tensor.shape:
        batch = tensor.ndim == 4
        raise UsageError(
            f"an image tensor is C×H×W, not {shape}",
            advice="encode the pictures of a batch one by one" if batch else None,
        )
    if tensor.shape[0] not in CHANNELS:
        last = tensor.shape[2] in CHANNELS
        raise UsageError(
            f"an image tensor is C×H×W of 1 to 4 channels, not {shape}",
            advice="put the channels first: tensor.permute(2, 0, 1)" if last else None,
        )
    values = tensor.detach().cpu()
    if values.is_floating_point():
        values = values.to(torch.promote_types(values.dtype, torch.float32))  # numpy has no bfloat16
    return _picture(
        _as_bytes(values.permute(1, 2, 0).numpy(), "an image tensor", str(tensor.dtype).removeprefix("torch."))
    )


def array_of(picture: Picture) -> Samples:
    """The picture's samples, uint8 H×W×C, alpha as the last channel."""
    return picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])


def tensor_of(picture: Picture) -> Tensor:
    """The picture's samples, uint8 C×H×W, contiguous, alpha as the last channel."""
    import torch

    return torch.from_numpy(array_of(picture)).permute(2, 0, 1).contiguous()


def _shape_in_words(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a single number"


def _as_bytes(samples: NDArray[Any], what: str, dtype: str) -> Samples:
    """H×W×C samples as uint8; what: begins the message of what is refused, dtype: as the caller knows it."""
    if samples.dtype == np.uint8:
        return samples
    if samples.dtype.kind != "f":
        raise UsageError(f"{what} holds uint8 or floating point samples, not {dtype}")
    lowest, highest = float(samples.min()), float(samples.max())
    if np.isnan(lowest):
        raise UsageError(f"{what} holds samples that are not numbers")
    if lowest < 0 or highest > 1:
        raise UsageError(
            f"{what} of floating point samples holds them from 0 to 1, not from {lowest:g} to {highest:g}",
            advice="clamp them, or divide those of 0 to 255 by 255",
        )
    rounded: Samples = np.rint(samples.astype(np.promote_types(samples.dtype, np.float32)) * 255).astype(np.uint8)
    return rounded


def _picture(samples: Samples) -> Picture:
    """A picture of uint8 H×W×C samples, which are copied where they are not contiguous and writable."""
    colours = 1 if samples.shape[2] < 3 else 3
    alpha = np.ascontiguousarray(samples[..., -1]) if samples.shape[2] in (2, 4) else None
    return Picture(np.require(samples[..., :colours], requirements=["C", "W"]), alpha)
