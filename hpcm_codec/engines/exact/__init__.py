"""The exact profile: the context model in integers, so that every machine decides the same probabilities.

`tables` has the stored functions, `formats` what the numbers mean, `layers` the layers made of a trained network's, `network` the walk over
the coding steps with them, `export` the calibration that `hpcm checkpoints export --exact` runs. The operators themselves are
in `hpcm_codec.ops.integer`. docs/determinism.md says what is promised and why it holds.
"""
