"""The machinery behind the scripts: everything that is not the algorithm.

From other code: `from wgan import load_generator, generate`.
"""

try:
    from wgan.sampling import generate, load_generator
except ImportError as error:
    if error.name in ("utils", "wgan_gp"):
        error.add_note(f"wgan needs the {error.name}.py next to its folder: rename the other one")
    raise

__all__ = ["generate", "load_generator"]
