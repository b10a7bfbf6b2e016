"""Training: packed data, the rate-distortion loss, and the loop behind `hpcm train`."""
