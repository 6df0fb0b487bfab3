"""Fine-tuning, evaluation and baselines."""
