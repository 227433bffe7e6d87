"""Media in and out of files."""
