"""What is read: prompts, and samples that somebody compared or judged."""
