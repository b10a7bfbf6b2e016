"""The exact profile: the context model in integers, so that every machine decides the same probabilities.

`layers` and `modules` make integer layers of a trained network's, `network` evaluates them over the coding steps, `export` is the
calibration that `hpcm checkpoints export --exact` runs. The operators are in `ops.integer`, the stored functions in `ops.integer_tables`.
docs/determinism.md says what is guaranteed and why it holds.
"""
