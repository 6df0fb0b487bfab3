"""From finished steps to tables, tests and verdicts. Reads frames, never models."""
