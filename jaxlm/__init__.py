"""Pretrained language models in JAX: train, evaluate and predict by one config file.

Importing this package is light: nothing heavier than the standard library is loaded.
"""

__version__ = "0.1.0"
