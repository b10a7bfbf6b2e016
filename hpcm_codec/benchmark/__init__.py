"""Speed, memory and cost of the codec on this machine: what `hpcm bench` measures.

`meter` charges seconds (or any other rising count) to stages, `stages` names the stages, `work` says how much each has to compute and
move, `ceilings` what the machine can at most do. `timing` times one picture, `process` runs fresh processes for peak memory, `measure`
puts those together; `growth`, `cells` and `training` are the other tables. What must not grow is counted in tools/costs.
"""
