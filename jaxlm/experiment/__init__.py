"""The typed config of an experiment, and the only wiring: config to objects.

``config`` is light (no jax); ``wiring``, ``training`` and ``runs`` import the rest.
"""

from jaxlm.experiment.config import ExperimentConfig, MeshConfig

__all__ = ["ExperimentConfig", "MeshConfig"]
