"""The native policies against their plain twins, and Belady's optimum against trying everything."""

from functools import cache

from core_cases import POLICIES, needs_native
import numpy as np
import pytest

from flash_llm_ros.engine.numpy_policies import make_policy
from flash_llm_ros.engine.numpy_window import GroupCache

try:
    from flash_llm_ros import _native
except ImportError:
    _native = None

SECTION_GROUPS = 9


def random_events(rng, events, sections, hot):
    """Sections in turn, as layers; predictions before uses; some groups are used more often."""
    chance = rng.random((sections, SECTION_GROUPS)) ** hot
    made = []
    for number in range(events):
        section = number % sections
        first = section * SECTION_GROUPS
        for predicted in (True, False):
            if predicted and rng.random() < 0.5:
                continue
            chosen = np.flatnonzero(rng.random(SECTION_GROUPS) < chance[section])
            made.append((section, predicted, (first + chosen).tolist()))
    return made


def as_arrays(events):
    groups = [group for _, _, some in events for group in some]
    return (np.array([section for section, _, _ in events], np.int64),
            np.array([predicted for _, predicted, _ in events], np.uint8),
            np.cumsum([len(some) for _, _, some in events]).astype(np.int64),
            np.array(groups, np.int64))


def plain_replay(policy, slots, events):
    table = GroupCache(list(range(slots)), make_policy(policy, slots))
    counts = dict.fromkeys(('hits', 'misses', 'prefetched'), 0)
    for section, predicted, groups in events:
        if predicted:
            counts['prefetched'] += len(table.expect(section, groups))
        else:
            missing = table.use(section, groups)
            counts['misses'] += len(missing)
            counts['hits'] += len(groups) - len(missing)
            table.rest(groups)
        assert len(table.slots) + len(table.free) == slots
        assert sorted([*table.slots.values(), *table.free]) == list(range(slots))
    return counts


@needs_native
@pytest.mark.parametrize('policy', POLICIES)
@pytest.mark.parametrize('seed', range(6))
def test_the_native_policies_choose_as_the_plain_ones(policy, seed):
    rng = np.random.default_rng(seed)
    sections = int(rng.integers(1, 6))
    events = random_events(rng, 300, sections, rng.choice([0.3, 1, 4]))
    for slots in (SECTION_GROUPS, SECTION_GROUPS + 5, 3 * SECTION_GROUPS, 60):
        found = _native.replay(policy, sections * SECTION_GROUPS, slots, *as_arrays(events))
        assert found == plain_replay(policy, slots, events)


@needs_native
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

    events = [(0, False, [group]) for group in uses]
    found = _native.most_hits(groups, slots, *as_arrays(events))
    assert found == best(0, frozenset())


@needs_native
@pytest.mark.parametrize('policy', POLICIES)
def test_no_policy_beats_belady(policy):
    rng = np.random.default_rng(7)
    events = [event for event in random_events(rng, 400, 4, 1) if not event[1]]
    arrays = as_arrays(events)
    for slots in (9, 14, 20, 30):
        hits = _native.replay(policy, 36, slots, *arrays)['hits']
        assert hits <= _native.most_hits(36, slots, *arrays)
    assert _native.replay(policy, 36, 36, *arrays)['misses'] == len(set(arrays[3].tolist()))


@needs_native
def test_layer_after_layer_least_recent_keeps_nothing_and_the_default_its_share():
    everything = [(section, False, list(range(section * 9, section * 9 + 9)))
                  for _ in range(50) for section in range(8)]
    arrays = as_arrays(everything)
    uses, slots = 50 * 72, 36
    assert _native.replay('least_recent', 72, slots, *arrays)['hits'] == 0
    for policy in ('least_likely', 'least_frequent', 'sliding_window'):
        share = _native.replay(policy, 72, slots, *arrays)['hits'] / uses
        assert 0.35 <= share <= 0.5


@pytest.mark.parametrize('make', [
    pytest.param(lambda name: make_policy(name, 4), id='numpy'),
    pytest.param(lambda name: _native.replay(name, 9, 9, *as_arrays([(0, False, [1])])),
                 id='native', marks=needs_native)])
@pytest.mark.parametrize('name', ['', 'lru', 'least_recent:3', 'sliding_window:', 'hot_set:0',
                                  'sliding_window:-1', 'least_frequent:1e3', 'hot_set:1234567'])
def test_a_wrong_policy_is_told(make, name):
    with pytest.raises(ValueError, match='policy: '):
        make(name)


@needs_native
@pytest.mark.parametrize(('change', 'field'), [
    ({'slots': 2}, 'slots'), ({'slots': 0}, 'slots'), ({'file_groups': 3}, 'groups'),
    ({'ends': np.array([9], np.int64)}, 'ends'), ({'ends': np.array([-1], np.int64)}, 'ends'),
    ({'sections': np.zeros(2, np.int64)}, 'predicted'),
    ({'groups': [1, 2, 3]}, 'groups')])
def test_a_wrong_trace_is_told(change, field):
    arguments = dict(zip(('sections', 'predicted', 'ends', 'groups'),
                         as_arrays([(0, False, [1, 2, 3])]), strict=True))
    arguments |= {'policy': 'least_recent', 'file_groups': 4, 'slots': 3}
    _native.replay(**arguments)
    with pytest.raises(ValueError, match=f'^{field}: '):
        _native.replay(**(arguments | change))
