"""The processes of a command: ranks, signals, progress."""
