"""Training: packed data, the rate-distortion loss, and the loop behind `hpcm train`; scores and light copies of what it gives."""
