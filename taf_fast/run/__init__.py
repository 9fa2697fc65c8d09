"""Fine-tuning, and the files of a run."""
