"""Data sets, metrics and rate-distortion curves: what `hpcm eval` and `hpcm compare` run.

`datasets` finds pictures, `codecs` are the codecs that can be measured, `runner` measures one picture, `campaign` many in several
processes, `metrics` and `images.fidelity` compare pictures, `bjontegaard` compares curves.
"""
