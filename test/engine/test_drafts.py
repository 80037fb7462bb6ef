"""A draft model's guesses: fewer passes, and the same answers."""

from itertools import accumulate
from pathlib import Path

from generation_cases import PLENTY, PROMPTS, answer, opened, request, say
from greedy_reference import ReferenceModel
import numpy as np
import pytest
from refusals import assert_error
from test_suspend import interrupted
from tiny_checkpoint import converted, write_checkpoint

from flash_llm_ros.engine import Engine, EngineConfig, SamplingParams
from flash_llm_ros.engine.memory.read_estimate import ReadEstimate
import flash_llm_ros.engine.model.draft_model
from flash_llm_ros.engine.model.draft_model import PassCosts
from flash_llm_ros.engine.request.constraint import Constraint, ConstraintKind
from flash_llm_ros.engine.request.draft_length import DraftLength
from flash_llm_ros.store.errors import ErrorCode

SAMPLED = SamplingParams(temperature=0.8, seed=5, repetition_penalty=1.1, top_p=0.9)


@pytest.fixture(scope='module')
def drafts(fp16_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model itself, its first two layers, and one that knows nothing."""
    folder = tmp_path_factory.mktemp('drafts')
    stores = {'itself': fp16_store}
    for name, changes in {'alike': {'num_hidden_layers': 2}, 'strange': {'seed': 9},
                          'short': {'max_position_embeddings': 60},
                          'tied': {'tie_word_embeddings': True}}.items():
        checkpoint = write_checkpoint(folder / name, **changes)
        stores[name] = converted(checkpoint, folder / f'{name}.store').path
    return stores


@pytest.fixture(autouse=True)
def slow_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts pay, though the window holds everything."""
    monkeypatch.setattr(flash_llm_ros.engine.model.draft_model, 'estimated_reads',
                        lambda *_: ReadEstimate(0, 1.0))


def drafting(store: Path, draft: Path, **options: object) -> Engine:
    return opened(store, draft_store=draft, lookup_tokens=0, **options)


@pytest.mark.parametrize('sampling', [SamplingParams(), SAMPLED])
@pytest.mark.parametrize('draft', ['itself', 'alike', 'strange', 'short', 'tied'])
def test_answers_are_those_without_drafts(fp16_store: Path, drafts: dict[str, Path], draft: str,
                                          sampling: SamplingParams) -> None:
    alone = opened(fp16_store, lookup_tokens=0)
    engine = drafting(fp16_store, drafts[draft], prefill_chunk=16)
    for prompt in PROMPTS:
        plain = answer(alone, prompt, sampling=sampling)
        found = answer(engine, prompt, sampling=sampling)
        assert (found.tokens, found.text) == (plain.tokens, plain.text)
        stats = found.stats
        assert 0 <= stats.accepted_tokens <= stats.drafted_tokens
        assert len(found.tokens) == 1 + stats.passes + stats.accepted_tokens
        if draft == 'itself':
            assert stats.accepted_tokens == stats.drafted_tokens > 15
            assert stats.passes < len(found.tokens) / 3
        if draft == 'alike':
            assert stats.accepted_tokens > 0
        again = answer(engine, prompt, sampling=sampling).stats
        assert ((again.passes, again.drafted_tokens, again.accepted_tokens)
                == (stats.passes, stats.drafted_tokens, stats.accepted_tokens))
    alone.close()
    engine.close()


@pytest.mark.parametrize('behind', [0, 37])
@pytest.mark.parametrize('store', ['fp16_store', 'int8_store'])
def test_guesses_are_computed_as_tokens_alone_are(request: pytest.FixtureRequest, store: str,
                                                  behind: int) -> None:
    """So an answer is the same whatever was guessed."""
    engine = opened(request.getfixturevalue(store), lookup_tokens=11)
    model, tokens = engine.model, np.random.default_rng(3).integers(3, 60, behind + 12)
    if behind:
        model.forward(tokens[:behind], 0, dense=True)
    alone, together = np.zeros((2, 12, model.logits.shape[1]), np.float32)
    for i in range(12):
        model.forward(tokens[behind + i:][:1], behind + i, dense=False, logits=alone[i:i + 1])
    model.forward(tokens[behind:], behind, dense=True, logits=together)
    assert np.array_equal(together, alone)
    engine.close()


def test_greedy_ones_are_those_of_transformers(fp16_store: Path, drafts: dict[str, Path]) -> None:
    engine = drafting(fp16_store, drafts['alike'], kv_cache='int16')
    reference = ReferenceModel(fp16_store.parent / 'checkpoint')
    for prompt in PROMPTS:
        expected = reference.greedy(engine.tokenize(prompt), 40)
        assert answer(engine, prompt, max_tokens=40).tokens == expected
    engine.close()


def test_with_a_constraint(fp16_store: Path, drafts: dict[str, Path]) -> None:
    alone = opened(fp16_store, structured=True, lookup_tokens=0)
    engine = drafting(fp16_store, drafts['itself'], structured=True)
    ask = {'constraint': Constraint(ConstraintKind.REGEX, '[a-z]{4}-[0-9]{12}-(left|right)!{5}')}
    plain, found = answer(alone, **ask), answer(engine, **ask)
    assert found.text == plain.text
    assert found.stats.accepted_tokens > 0
    alone.close()
    engine.close()


def test_turns_and_requests_between(fp16_store: Path, drafts: dict[str, Path],
                                    tmp_path: Path) -> None:
    """What the draft model has seen of other texts changes nothing."""
    engine = drafting(fp16_store, drafts['alike'], prefill_chunk=16, session_folder=tmp_path)
    alone = opened(fp16_store, prefill_chunk=16, session_folder=tmp_path / 'alone')
    for turn in PROMPTS:
        assert say(engine, 'a', turn).text == say(alone, 'a', turn).text
        assert answer(engine, turn[::-1]).text == answer(alone, turn[::-1]).text
    asked = request(PROMPTS[1], sampling=SAMPLED)
    whole = answer(alone, PROMPTS[1], sampling=SAMPLED)
    found, pieces = interrupted(engine, asked, 2)
    assert found.text == whole.text
    assert pieces > 5
    alone.close()
    engine.close()


def test_refusals(fp16_store: Path, drafts: dict[str, Path], tmp_path: Path) -> None:
    with assert_error(ErrorCode.STORE_NOT_FOUND):
        opened(fp16_store, draft_store=tmp_path / 'none')
    with assert_error(ErrorCode.INVALID_PARAMETER) as refused:
        opened(fp16_store, draft_store=drafts['alike'], mode='gated')
    checkpoint = write_checkpoint(tmp_path / 'checkpoint')
    tokenizer = checkpoint / 'tokenizer.json'
    tokenizer.write_text(tokenizer.read_text().replace('<|im_start|>', '<|other|>'))
    other = converted(checkpoint, tmp_path / 'other.store').path
    with assert_error(ErrorCode.INVALID_PARAMETER) as refused:
        opened(fp16_store, draft_store=other)
    assert 'the same tokenizer' in str(refused.value)
    with assert_error(ErrorCode.BUDGET_TOO_SMALL):
        opened(fp16_store, 2_000_000, draft_store=drafts['alike'])


@pytest.mark.parametrize(('reads', 'used'), [
    ((0.4, 0.1), False), ((0.31, 0.1), True), ((0.4, 0.38), True), ((0.0, 0.0), False)])
def test_drafts_are_left_out_where_the_window_gains_more(
        fp16_store: Path, drafts: dict[str, Path], monkeypatch: pytest.MonkeyPatch,
        reads: tuple[float, float], used: bool) -> None:
    """At 0.7 right guesses eight of them give 3.2 tokens a pass, which may read 3.2 times as long.

    `reads`: seconds of a pass with the draft model in memory, and without.
    """
    estimates, lines = iter([*reads, reads[0]]), []
    monkeypatch.setattr(flash_llm_ros.engine.model.draft_model, 'estimated_reads',
                        lambda *_: ReadEstimate(0, next(estimates)))
    engine = Engine.open(EngineConfig(fp16_store, PLENTY, draft_store=drafts['alike'],
                                      context_length=512), lines.append)
    assert ('draft model' in [row.name for row in engine.plan.rows]) == used
    assert any('draft_store is left out' in line for line in lines) != used
    engine.close()


def test_a_budget_without_room_for_drafts(fp16_store: Path, drafts: dict[str, Path]) -> None:
    budget, lines = opened(fp16_store, lookup_tokens=0).plan.planned, []
    engine = Engine.open(EngineConfig(fp16_store, budget + 100_000, draft_store=drafts['itself'],
                                      lookup_tokens=0, context_length=512), lines.append)
    assert any('has no room for it' in line for line in lines)
    engine.close()


def expected_speed(share: float, drafted: int, costs: PassCosts) -> float:
    """Tokens a second, from what the k-th guess adds: the chance that all up to it are right."""
    chances = accumulate([share] * drafted, lambda sure, one: sure * one, initial=1.0)
    reads = max(costs.reads, costs.first_row + costs.next_row * drafted)
    return sum(chances) / (reads + costs.draft * drafted)


@pytest.mark.parametrize('costs', [PassCosts(0.3, 0.1, 0.06, 0.03), PassCosts(2.0, 0.1, 0.06, 0.03),
                                   PassCosts(0.0, 0.1, 0.06, 0.03), PassCosts(0.1, 0.1, 0.1, 0.1)])
@pytest.mark.parametrize('share', [0.05, 0.5, 0.8, 0.95])
def test_length_is_the_fastest_one(costs: PassCosts, share: float) -> None:
    length = DraftLength(costs, 8)
    for _ in range(400):                    # learns the share
        length.learn(round(100 * share / (1 - share)), 10 ** 6)
    learned = round(100 * share / (1 - share))
    exact = learned / (learned + 1)
    assert length.next() == max(range(9), key=lambda k: expected_speed(exact, k, costs))


def test_what_never_pays_is_left_and_what_once_did_is_tried_again() -> None:
    never = DraftLength(PassCosts(0.0, 0.1, 0.1, 0.1), 8)
    assert not any(never.next() for _ in range(100))
    rarely = DraftLength(PassCosts(0.0, 1.0, 0.1, 0.5), 8)
    for _ in range(50):
        rarely.learn(0, 4)
    drafted = [rarely.next() for _ in range(100)]
    assert set(drafted) == {0, 1}
    assert sum(drafted) == 5
