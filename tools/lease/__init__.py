"""What `tools/gpu_lease.py` is made of: the half hour on a borrowed GPU, prepared here, used there, brought home. See docs/gpu-lease.md."""
