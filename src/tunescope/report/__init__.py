"""Renders Findings: one HTML file, figures, LaTeX and CSV tables, JSON and parquet. Decides nothing itself."""
