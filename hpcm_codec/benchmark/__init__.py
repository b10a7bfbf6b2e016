"""Speed, memory and cost of the codec on this machine: what `hpcm bench` and the guards in the tests measure and count.

`meter` charges seconds (or any other rising count) to stages, `stages` says which calls are which stage, `work` how much each has to
compute and move, `ceilings` what the machine can at most do. `timing` times one picture, `process` runs fresh processes for peak memory,
`measure` puts those together; `growth`, `cells` and `training` are the other tables; `counting` and `callgrind` count what
must not creep up.
"""
