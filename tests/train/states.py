"""States and checkpoints whose every array tells the step, for tests."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.core.mesh import make_mesh
from jaxlm.train.checkpoints import Checkpoints
from jaxlm.train.state import State


def mesh_of(**sizes):
    return make_mesh({"data": 1, "fsdp": 1, "tensor": 1, **sizes})[0]


def state_of(step, mesh=None):
    """A state whose every array depends on the step."""
    mesh = mesh or mesh_of()
    table = jnp.arange(64.0).reshape(8, 8) + step
    params = {
        "layer": {"kernel": table, "bias": jnp.full(8, step, jnp.bfloat16)},
        "head": {"kernel": table[:, :4] * 2},
    }
    moments = {"mu": jax.tree.map(lambda leaf: leaf * 0.5, params)}
    key = jnp.array([step, 7], jnp.uint32)
    state = State(params, {}, moments, jnp.int32(step), key, jnp.int32(0))
    return jax.tree.map(jax.device_put, state, placed(state, mesh))


def placed(state, mesh):
    return jax.tree.map(
        lambda leaf: NamedSharding(
            mesh, PartitionSpec("fsdp", "tensor") if leaf.ndim == 2 else PartitionSpec()
        ),
        state,
    )


def abstract_of(mesh=None):
    return abstracted(state_of(0), mesh or mesh_of())


def abstracted(tree, mesh):
    """Shapes, dtypes and shardings."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        tree,
        placed(tree, mesh),
    )


def opened(folder, **options):
    options = {"keep_last": 2, "keep_best": 1, "clean": True, **options}
    return Checkpoints(folder / "checkpoints", score=lambda m: m.get("f1"), **options)


def save_all(folder, scores, **options):
    """Save steps 1, 2, ... with these scores; None for one without metrics."""
    with opened(folder, **options) as checkpoints:
        for step, score in enumerate(scores, start=1):
            metrics = None if score is None else {"f1": score, "loss": 1.0}
            checkpoints.save(state_of(step), metrics)
            checkpoints.wait()
        return checkpoints.steps(), checkpoints.best()


def equal(first, second):
    same = jax.tree.map(np.array_equal, first, second)
    return all(jax.tree.leaves(same))
