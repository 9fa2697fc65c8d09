"""Fine-tuning, evaluation and the files of a run."""
