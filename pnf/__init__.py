"""Progressive Normalizing Flows: exact-likelihood image models with compiled kernels."""

__version__ = "0.1.0"

__all__ = ["__version__"]
