"""Engines: what makes latents of pictures, symbols of latents and pictures of latents, in floating point or in integers."""
