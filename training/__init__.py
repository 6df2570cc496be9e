"""Training for napari-msamil: from slides to a checkpoint."""
