"""Where a reward runs: here, in a thread, in a process, behind a server; cached or not."""
