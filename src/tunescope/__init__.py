"""tunescope: quality, drift and serving cost of fine-tuning."""

__version__ = "0.1.0"
