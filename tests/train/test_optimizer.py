"""The optimizer: parity with PyTorch, which leaves decay, where moments live."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.core.mesh import make_mesh, replicated
from jaxlm.train.config import OptimizerConfig, ScheduleConfig
from jaxlm.train.optimizer import decay_mask, make_optimizer, optimizer_shardings
from jaxlm.train.schedule import make_schedule

STEPS = 20
CONFIG = OptimizerConfig(learning_rate=0.05, weight_decay=0.1, clip_norm=1.0)


def problem():
    """A two-layer regression whose first gradients are clipped, and the last not."""
    random = np.random.default_rng(0)
    params = {
        "first": {"kernel": random.normal(size=(5, 7)), "bias": random.normal(size=7)},
        "norm": {"scale": random.normal(size=7)},
        "last": {"kernel": random.normal(size=(7, 1)), "bias": random.normal(size=1)},
    }
    x = random.normal(size=(32, 5))
    y = np.sin(x.sum(1, keepdims=True))
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), (params, x, y))


def run_ours(params, x, y):
    schedule = make_schedule(ScheduleConfig("linear", 0.2), 0.05, STEPS)
    optimizer = make_optimizer(CONFIG, schedule)

    def loss(params):
        hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"][None])
        hidden = hidden * params["norm"]["scale"][None]
        out = hidden @ params["last"]["kernel"] + params["last"]["bias"][None]
        return ((out - y) ** 2).mean()

    @jax.jit
    def step(params, moments):
        gradient = jax.grad(loss)(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, gradient

    moments, norms = optimizer.init(params), []
    for _ in range(STEPS):
        params, moments, gradient = step(params, moments)
        norms.append(float(optax.tree.norm(gradient)))
    return params, norms


def run_torch(torch, params, x, y):
    leaves = jax.tree.map(lambda leaf: torch.tensor(leaf, requires_grad=True), params)
    first, norm, last = leaves["first"], leaves["norm"], leaves["last"]
    decayed = [first["kernel"], last["kernel"]]
    undecayed = [first["bias"], norm["scale"], last["bias"]]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": CONFIG.weight_decay},
            {"params": undecayed, "weight_decay": 0.0},
        ],
        lr=CONFIG.learning_rate,
    )
    warmup = 0.2 * STEPS

    def rate(step):
        if step < warmup:
            return (step + 1) / warmup
        return 1 - (step - warmup) / (STEPS - warmup)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    x, y = torch.tensor(x), torch.tensor(y)
    for _ in range(STEPS):
        hidden = torch.tanh(x @ first["kernel"] + first["bias"]) * norm["scale"]
        loss = ((hidden @ last["kernel"] + last["bias"] - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decayed + undecayed, CONFIG.clip_norm)
        optimizer.step()
        schedule.step()
    return jax.tree.map(lambda leaf: leaf.detach().numpy(), leaves)


@pytest.mark.parity
def test_twenty_steps_equal_those_of_torch(torch):
    params, x, y = problem()
    ours, norms = run_ours(params, x, y)
    theirs = run_torch(torch, params, x, y)
    assert max(norms) > 1 > min(norms)  # clipping and no clipping both happened
    # torch divides by the norm + 1e-6 when clipping; Adam hardly sees that.
    for mine, peer in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, peer, rtol=1e-4, atol=1e-5)


def test_biases_and_scales_do_not_decay():
    tree = {"a": {"kernel": 0, "bias": 0}, "norm": {"scale": 0, "bias": 0}, "table": 0}
    assert decay_mask(tree) == {
        "a": {"kernel": True, "bias": False},
        "norm": {"scale": False, "bias": False},
        "table": True,
    }


def test_a_name_that_only_contains_bias_decays():
    tree = {"bias": {"kernel": 0}, "bias_table": 0}
    assert decay_mask(tree) == {"bias": {"kernel": True}, "bias_table": True}


def test_clip_norm_none_does_not_clip():
    params = {"kernel": jnp.zeros(4)}
    huge = {"kernel": jnp.full(4, 1e3)}
    moments: dict = {}
    for clip in (None, 1.0):
        config = OptimizerConfig(clip_norm=clip)
        optimizer = make_optimizer(config, optax.constant_schedule(1.0))
        _, state = optimizer.update(huge, optimizer.init(params), params)
        adam = next(
            part
            for part in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu"))
            if hasattr(part, "mu")
        )
        moments[clip] = float(adam.mu["kernel"][0])
    assert moments[None] == pytest.approx(100.0)
    assert moments[1.0] == pytest.approx(0.05)


def test_moments_have_the_sharding_of_their_parameter():
    mesh, _ = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    shapes = {
        "a": {"kernel": jax.ShapeDtypeStruct((4, 8), jnp.float32)},
        "b": {"bias": jax.ShapeDtypeStruct((8,), jnp.float32)},
    }
    placed = {
        "a": {"kernel": NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))},
        "b": {"bias": NamedSharding(mesh, PartitionSpec("tensor"))},
    }
    optimizer = make_optimizer(CONFIG, optax.constant_schedule(1e-3))
    found = optimizer_shardings(optimizer, shapes, placed, replicated(mesh))
    params = jax.tree.map(
        lambda leaf, where: jax.device_put(jnp.zeros(leaf.shape), where), shapes, placed
    )
    state = jax.jit(optimizer.init, out_shardings=found)(params)
    adam = [
        part
        for part in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu"))
        if hasattr(part, "mu")
    ][0]
    for moments in (adam.mu, adam.nu):
        assert jax.tree.map(lambda leaf: leaf.sharding, moments) == placed
    assert adam.count.sharding.is_fully_replicated
