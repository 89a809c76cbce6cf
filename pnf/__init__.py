"""Progressive Normalizing Flows: exact-likelihood image models with compiled kernels."""

from pnf.backends import Backend, backends

__version__ = "0.1.0"

__all__ = ["Backend", "__version__", "backends"]
