"""The replayer of windows: against the core's own cache, and Belady against trying everything."""

from functools import cache

from core_oracle import plain_group
import numpy as np
import pytest

from bench.window.hit_rates import POLICIES
from bench.window.policies import make_policy
from bench.window.replayer import Counts, at_best, replay
from bench.window.trace import NeuronTrace, Recorder
from flash_llm_ros import _native

LAYER_GROUPS, DIM, GROUP_BYTES = 9, 32, 512


def random_trace(rng, tokens, layers, hot):
    """Some groups are used more often; every layer uses one at least, as the core counts turns."""
    chance = rng.random((layers, LAYER_GROUPS)) ** hot
    trace = []
    for _ in range(tokens):
        used = rng.random((layers, LAYER_GROUPS)) < chance
        used[np.arange(layers), rng.integers(0, LAYER_GROUPS, layers)] = True
        trace.append([(layer * LAYER_GROUPS + np.flatnonzero(used[layer])).tolist()
                      for layer in range(layers)])
    return trace


def counts_of_the_core(path, slots, half_life, layers, trace):
    """Hits and misses of the window that computes with real groups of zeros, one bundle each."""
    body = bytes(GROUP_BYTES - 4)
    path.write_bytes(b''.join(plain_group(0, number, body)
                              for number in range(layers * LAYER_GROUPS)))
    core = _native.NeuronCore(str(path), GROUP_BYTES, layers * LAYER_GROUPS, DIM, slots,
                              lock_memory=False)
    sections = [core.add_section(layer * LAYER_GROUPS, LAYER_GROUPS, 1, 2, 'fp16')
                for layer in range(layers)]
    core.set_cache(slots, half_life)
    x, out = np.ones((2, DIM), np.float32)
    for token in trace:
        for layer, groups in enumerate(token):
            active = np.zeros(LAYER_GROUPS, np.uint8)
            active[np.array(groups) - layer * LAYER_GROUPS] = 1
            core.bundled_sparse(sections[layer], x, active, out, 'relu')
    stats = core.stats()
    core.close()
    return Counts(stats['hits'], stats['misses'])


@pytest.mark.parametrize(('seed', 'half_life'), [
    *((seed, 4) for seed in range(5)), (5, 16), (6, 1)])
def test_the_policy_in_use_hits_and_misses_as_the_core_does(tmp_path, seed, half_life):
    rng = np.random.default_rng(seed)
    layers = int(rng.integers(1, 6))
    trace = random_trace(rng, 80, layers, rng.choice([0.3, 1, 4]))
    for slots in (LAYER_GROUPS, LAYER_GROUPS + 5, 3 * LAYER_GROUPS, 60):
        assert replay(f'least_likely:{half_life}', slots, trace) == counts_of_the_core(
            tmp_path / 'neurons.bin', slots, half_life, layers, trace)


@pytest.mark.parametrize('seed', range(20))
def test_no_choice_of_victims_has_more_hits_than_belady(seed):
    """Against every possible sequence of victims, tried one by one."""
    rng = np.random.default_rng(seed)
    groups, slots = int(rng.integers(2, 6)), int(rng.integers(1, 4))
    uses = rng.integers(0, groups, int(rng.integers(1, 14))).tolist()

    @cache
    def best(position, present):
        if position == len(uses):
            return 0
        group = uses[position]
        if group in present:
            return 1 + best(position + 1, present)
        if len(present) < slots:
            return best(position + 1, present | {group})
        return max(best(position + 1, present - {victim} | {group}) for victim in present)

    hits = best(0, frozenset())
    assert at_best(slots, [[[group]] for group in uses]) == Counts(hits, len(uses) - hits)


@pytest.mark.parametrize('policy', POLICIES)
def test_no_policy_beats_belady_and_with_room_for_all_each_group_is_missed_once(policy):
    trace = random_trace(np.random.default_rng(7), 100, 4, 1)
    for slots in (9, 14, 20, 30):
        assert replay(policy, slots, trace).hits <= at_best(slots, trace).hits
    used = {group for token in trace for groups in token for group in groups}
    assert replay(policy, 36, trace).misses == at_best(36, trace).misses == len(used)


def test_layer_after_layer_least_recent_keeps_nothing_and_the_one_in_use_its_share():
    everything = [[list(range(layer * 9, layer * 9 + 9)) for layer in range(8)]] * 50
    assert replay('least_recent', 36, everything).hits == 0
    for policy in ('least_likely', 'least_frequent', 'sliding_window'):
        assert 0.35 <= replay(policy, 36, everything).hit_rate <= 0.5


@pytest.mark.parametrize(('policy', 'victims'), [
    ('least_recent', [1, 3, 2]), ('segmented', [1, 3, 2]), ('least_frequent', [3, 1, 2]),
    ('sliding_window:1', [1, 3, 2]), ('sliding_window:9', [2, 3, 1])])
def test_victims_by_their_definition(policy, victims):
    """1, 2 and 3 are used by the first token, 2 by the third again."""
    chosen = make_policy(policy, 10)
    for group in (1, 2, 3):
        chosen.add(group)
    chosen.token()
    chosen.token()
    chosen.take(2)
    chosen.add(2)
    assert [chosen.victim() for _ in victims] == victims


def test_a_trace_keeps_neurons_and_gives_their_groups(tmp_path):
    recorder = Recorder(range(1))
    for neurons in ([0, 1, 4], [2], [4], [0, 3]):
        active = np.zeros(5, np.uint8)
        active[neurons] = 1
        recorder.feed_forward(0, np.zeros((1, 4), np.float32), active)
    trace = NeuronTrace('some model', 2, np.array(recorder.rows).reshape(2, 2, -1))
    assert trace.groups() == [[[0, 2], [4]], [[2], [3, 4]]]
    path = tmp_path / 'trace.npz'
    trace.save(path)
    again = NeuronTrace.load(path)
    assert (again.model, again.per_group) == ('some model', 2)
    assert np.array_equal(again.active, trace.active)
    path.write_bytes(b'something else')
    with pytest.raises(ValueError, match=r'trace\.npz is no trace'):
        NeuronTrace.load(path)
    with pytest.raises(ValueError, match='mode gated'):
        recorder.feed_forward(0, np.zeros((1, 4), np.float32), None)
