"""Methods that train nothing: they search at inference time."""
