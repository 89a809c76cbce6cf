"""Progressive Normalizing Flows: exact-likelihood image models with compiled kernels."""

from pnf.backends import Backend, backends
from pnf.reference import RealNVP

__version__ = "0.1.0"

__all__ = ["Backend", "RealNVP", "__version__", "backends"]
