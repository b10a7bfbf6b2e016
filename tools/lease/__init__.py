"""The parts of `tools/gpu_lease.py`: preparing a lease of a GPU, the commands that run there, keeping results. See docs/gpu-lease.md."""
