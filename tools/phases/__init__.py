"""Which context model needs the fewest bits for the same latents: see tools/compare_phases.py and docs/phases.md."""
