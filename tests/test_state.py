import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax import parallel
from diffjax import state as states


def make_state(rates=(0.5, 0.9), value=1.0):
    params = {"w": jnp.full((3,), value), "b": jnp.zeros(())}
    return states.create(jax.random.key(0), params, optax.sgd(0.1), rates)


def test_averages_start_as_copies_of_the_parameters():
    state = make_state()
    for average in state.ema.values():
        chex.assert_trees_all_equal(average, state.params)
    # Memory of their own: the state is donated whole, and no buffer can be given away twice.
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state.params, state.ema))]
    assert len(set(pointers)) == len(pointers) == 6


@pytest.mark.parametrize("rate", [0.5, 0.999])
def test_warm_up_is_the_smaller_of_the_two_and_ends(rate):
    steps = np.arange(20_000)
    found = states.ema_decay(rate, jnp.asarray(steps), warmup=True)
    np.testing.assert_allclose(found, np.minimum(rate, (1 + steps) / (10 + steps)), rtol=1e-6)
    assert found[0] == pytest.approx(0.1) and found[int(10 / (1 - rate))] == pytest.approx(rate)
    assert states.ema_decay(rate, jnp.asarray(0), warmup=False) == pytest.approx(rate)


def test_update_takes_one_step_of_everything(x64):
    state = make_state(value=2.0)
    grads = {"w": jnp.asarray([1.0, 0.0, -2.0]), "b": jnp.asarray(3.0)}
    new = states.update(state, grads, optax.sgd(0.1), ema_warmup=False)
    assert new.step == 1
    np.testing.assert_allclose(new.params["w"], [1.9, 2.0, 2.2])
    for rate, average in new.ema.items():
        decay = float(rate)
        expected = decay * np.full(3, 2.0) + (1 - decay) * np.array([1.9, 2.0, 2.2])
        np.testing.assert_allclose(average["w"], expected, rtol=1e-12)
    assert jnp.array_equal(jax.random.key_data(new.key), jax.random.key_data(state.key))


def test_average_of_many_updates_is_the_weighted_sum(x64):
    """ema_n = d^n p_0 + (1 - d) sum_k d^(n - k) p_k."""
    state, decay, count = make_state((0.7,), 0.0), 0.7, 12
    history = [np.zeros(3)]
    for k in range(count):
        grads = {"w": jnp.full(3, float(k)), "b": jnp.zeros(())}
        state = states.update(state, grads, optax.sgd(0.1), ema_warmup=False)
        history.append(np.asarray(state.params["w"]))
    weights = [decay**count] + [(1 - decay) * decay ** (count - k) for k in range(1, count + 1)]
    np.testing.assert_allclose(
        state.ema["0.7"]["w"], sum(w * p for w, p in zip(weights, history, strict=True)), rtol=1e-12
    )


def test_warm_up_forgets_the_start():
    """After n updates the start weighs prod_k (1 + k) / (10 + k), in place of 0.9999^n."""
    state, count = make_state((0.9999,), 1.0), 30
    target = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    state = state.replace(params=target)
    for _ in range(count):
        state = states.update(state, target, optax.sgd(0.1))
    k = np.arange(count)
    np.testing.assert_allclose(
        state.ema["0.9999"]["w"], np.prod((1 + k) / (10 + k)) * np.ones(3), rtol=1e-4
    )


def test_parameters_are_selected_by_rate():
    state = make_state((0.5, 0.9))
    state = state.replace(ema={"0.5": "slow", "0.9": "slower"})
    assert states.select_parameters(state, "0.5") == "slow"
    assert states.select_parameters(state, "0.9") == "slower"
    assert states.select_parameters(state, "") is state.params
    assert states.select_parameters(state, None) is state.params
    with pytest.raises(ValueError, match=r"no parameter average of rate '0.99'.*'0.5', '0.9'"):
        states.select_parameters(state, "0.99")
    with pytest.raises(ValueError, match="this run keeps none"):
        states.select_parameters(make_state(()), "0.5")


def test_gather_does_nothing_where_nothing_is_sharded():
    params = {"w": jnp.ones((4, 4))}
    assert states.gather(params) is params
    assert "sharding_constraint" not in str(jax.make_jaxpr(states.gather)(params))


def test_gather_makes_sharded_parameters_whole():
    mesh = parallel.make_mesh("sharding", 4)
    params = {"w": jnp.arange(64.0).reshape(8, 8)}
    shardings = parallel.state_sharding(params, mesh, min_size=1)

    @jax.jit
    def gathered(params):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return states.gather(params)

    placed = jax.device_put(params, shardings)
    assert not placed["w"].sharding.is_fully_replicated
    whole = gathered(placed)
    assert whole["w"].sharding.is_fully_replicated
    chex.assert_trees_all_equal(whole, params)
