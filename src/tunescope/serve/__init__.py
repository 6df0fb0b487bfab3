"""The serving benchmark: what base, full, merged and side-by-side adapter engines cost in vLLM."""
