"""The training loop, its back end, and what a run keeps."""
