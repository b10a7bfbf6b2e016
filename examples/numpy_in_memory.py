"""A numpy array through memory, no files: `python examples/numpy_in_memory.py`. Encodes a gradient, decodes it whole and in part."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import hpcm_codec


def gradient(height: int = 200, width: int = 300) -> NDArray[np.uint8]:
    """Red grows to the right, green downwards: uint8 H×W×3."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return pixels


def main() -> None:
    """Print the size of the file and the error of the decoded picture."""
    original = gradient()
    data = hpcm_codec.encode(original, quality=70)  # bytes of a .hpcm file
    decoded = hpcm_codec.decode(data, output="numpy")  # uint8 H×W×3
    error = np.abs(decoded.astype(int) - original).mean()
    print(f"{original.nbytes} bytes of pixels → {len(data)} bytes, mean absolute error {error:.2f} of 255")
    part = hpcm_codec.decode(data, output="numpy", region=(20, 30, 100, 50))  # x, y, width, height
    print(
        f"a region of {part.shape[1]}×{part.shape[0]} pixels, the same as the crop: {np.array_equal(part, decoded[30:80, 20:120])}"
    )


if __name__ == "__main__":
    main()
