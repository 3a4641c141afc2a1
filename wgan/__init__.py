"""The machinery behind the scripts: everything that is not the algorithm.

From other code: `from wgan import load_generator, generate`.
"""

from wgan.sampling import generate, load_generator

__all__ = ["generate", "load_generator"]
