"""Names, settings and files: where things are, YAML, atomic writes."""
