"""The base model and its adapters: loading, tokenising, LoRA. Imports nothing on its own."""
