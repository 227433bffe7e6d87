"""A recipe made into a run."""
