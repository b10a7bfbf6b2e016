"""Speed, memory and cost of the codec on this machine: what `hpcm bench` measures.

`meter` attributes seconds (or any other rising count) to stages, `stages` names the stages, `work` counts how much each has to compute and
move, `ceilings` measures the highest speeds of the machine. `timing` times one picture, `process` runs fresh processes for peak memory,
`measure` combines these; `growth`, `cells` and `training` are the other tables. Costs that must not grow are counted in tools/costs.
"""
