"""Task data: where it comes from, how it is split, and the checksums that hold it still."""

from .examples import load_examples

__all__ = ["load_examples"]
