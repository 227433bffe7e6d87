"""What is done to a running job, and what is left of it."""
