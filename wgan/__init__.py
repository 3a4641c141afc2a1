"""The machinery behind the scripts: everything that is not the algorithm."""
