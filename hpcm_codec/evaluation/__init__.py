"""How good and how fast: data sets, metrics, rate-distortion curves, speed. What `hpcm eval` and `hpcm bench` run.

Import the modules: `datasets` finds pictures, `codecs` are what can be measured, `runner` measures them, `metrics`
are the yardsticks, `bjontegaard` compares two curves, `speed` takes the time of one picture apart.
"""
