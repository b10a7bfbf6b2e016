"""Engines: they turn pictures into latents, latents into symbols and back, in floating point or in integers (`interface`)."""
