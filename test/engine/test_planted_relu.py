"""Bundled layout: the predictor decides, on a checkpoint where the right answer is known."""

import numpy as np
from planted_checkpoint import ACTIVE_SHARE, PLANTED_RANK, write_planted_checkpoint
import pytest
from safetensors.numpy import load_file
import torch
from transformers import LlamaForCausalLM

from flash_llm_ros.convert.conversion import ConversionOptions, convert
from flash_llm_ros.convert.traces import TraceRecorder, Traces
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.store.flash_store import FlashStore

PROMPTS = ('Where is the drone?', 'Land now, please.', 'Report the battery state.')


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return write_planted_checkpoint(tmp_path_factory.mktemp('planted') / 'checkpoint')


@pytest.fixture(scope='module')
def store(checkpoint):
    path = checkpoint.with_name('planted.store')
    convert(checkpoint, path, ConversionOptions(neurons='fp16', rank=2 * PLANTED_RANK),
            lambda what, done, total: None)
    return path


def open_engine(store, mode, budget=20_000_000, core='native'):
    return Engine.open(EngineConfig(store, budget, mode, core=core, lock_memory=False))


def answers(engine):
    result = []
    for prompt in PROMPTS:
        generation = engine.start(GenerationRequest(prompt, max_tokens=40))
        for _ in generation:
            pass
        result.append((generation.prompt_tokens, generation.tokens, generation.stats))
    return result


def test_the_store_is_bundled_and_the_predictor_finds_the_planted_share(store):
    manifest = FlashStore.open(store).manifest
    assert manifest.layout == 'bundled'
    assert min(facts.recall for facts in manifest.calibration.predictors) > 0.985
    assert 1 - 2 * ACTIVE_SHARE < manifest.calibration.default_sparsity < 1 - ACTIVE_SHARE / 2


@pytest.mark.parametrize('core', ['native', 'numpy'])
def test_sparse_answers_are_those_of_the_dense_model_in_transformers(checkpoint, store, core):
    reference = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    engine = open_engine(store, 'sparse', core=core)
    try:
        for prompt, tokens, stats in answers(engine):
            expected = reference.generate(torch.tensor([prompt]), max_new_tokens=40,
                                          do_sample=False, pad_token_id=257)
            assert tokens == expected[0, len(prompt):].tolist()
            # The prompt is read with every neuron, the answer with the predicted ones only.
            prefill = stats.prompt_tokens / (stats.prompt_tokens + stats.generated_tokens - 1)
            assert stats.active_fraction < prefill + (1 - prefill) * 2 * ACTIVE_SHARE
    finally:
        engine.close()


def test_the_predictor_agrees_with_the_sign_computed_in_float64(checkpoint, store, tmp_path):
    weights = load_file(checkpoint / 'model.safetensors')
    engine = open_engine(store, 'sparse')
    predictors = engine.model.feed_forward._predictors
    traces = Traces(tmp_path, 3, 128)
    recorder = TraceRecorder(engine.model.feed_forward, traces)
    engine.model.feed_forward = recorder
    try:
        for _ in engine.start(GenerationRequest(PROMPTS[0], max_tokens=60)):
            pass
        recorder.close()
        kept = total = chosen = right = 0
        for layer in range(3):
            gate, up, down = (weights[f'model.layers.{layer}.mlp.{part}_proj.weight']
                              .astype(np.float64) for part in ('gate', 'up', 'down'))
            norm = np.linalg.norm(down, axis=0)
            for x in traces.read(layer):
                exact = np.maximum(gate @ x, 0) * np.abs(up @ x) * norm
                wanted = predictors.wanted(layer, x).astype(bool)
                kept, total = kept + exact[wanted].sum(), total + exact.sum()
                chosen, right = chosen + wanted.sum(), right + (exact[wanted] > 0).sum()
    finally:
        engine.close()
    assert kept / total > 0.985
    assert right / chosen > 0.9         # few neurons are loaded in vain


def test_sparse_mode_reads_a_fraction_of_what_exact_mode_reads(store):
    read = {}
    for mode in ('exact', 'sparse'):
        engine = open_engine(store, mode, budget=19_000_000)
        try:
            answers(engine)                         # the window is warm after this
            before = engine.stats()
            tokens = sum(len(found) for _, found, _ in answers(engine))
            read[mode] = (engine.stats()['misses'] - before['misses']) / tokens
        finally:
            engine.close()
    assert 0 < read['sparse'] < 0.6 * read['exact']
