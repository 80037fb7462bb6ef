"""Every architecture family against its own class in transformers."""

from pathlib import Path

from gguf_checkpoint import write_gguf
import numpy as np
import pytest
from tiny_checkpoint import write_checkpoint
import torch
from transformers import AutoModelForCausalLM

from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.convert.conversion import ConversionOptions, convert
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest

FAMILIES = ('llama', 'qwen2')
ARCHITECTURES = {'llama': 'LlamaForCausalLM', 'qwen2': 'Qwen2ForCausalLM'}
PROMPTS = ('Where is the charging station?', 'x', 'Turn left, then stop. ' * 5)


@pytest.fixture(scope='module', params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return write_checkpoint(folder, seed=3, model_type=request.param,
                            architectures=[ARCHITECTURES[request.param]])


@pytest.mark.parametrize('source', ['folder', 'gguf'])
def test_greedy_tokens_and_logits(checkpoint: Path, source: str, tmp_path: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    path = checkpoint
    if source == 'gguf':
        path = tmp_path / 'model.gguf'
        write_gguf(checkpoint, path)
    convert(path, tmp_path / 'store', ConversionOptions(neurons='fp16', calibrate=False),
            lambda what, done, total: None)
    engine = Engine.open(EngineConfig(tmp_path / 'store', 40_000_000, lock_memory=False))
    try:
        for prompt in PROMPTS:
            generation = engine.start(GenerationRequest(prompt, raw=True, max_tokens=30))
            for _ in generation:
                pass
            given = torch.tensor([generation.prompt_tokens])
            expected = reference.generate(given, max_new_tokens=30, do_sample=False,
                                          pad_token_id=257)
            assert generation.tokens == expected[0, given.shape[1]:].tolist()
        tokens = np.array(generation.prompt_tokens[:60], np.int64)
        logits = np.empty((len(tokens), engine.model.spec.embedding.vocab_size), np.float32)
        engine.model.forward(tokens, 0, True, logits)
        given = np.random.default_rng(0).standard_normal((40, 64), np.float32)
        of_embeddings = np.empty((len(given), logits.shape[1]), np.float32)
        engine.model.forward_embeddings(given, 0, True, of_embeddings)
    finally:
        engine.close()
    for found, inputs in ((logits, {'input_ids': torch.from_numpy(tokens[None])}),
                          (of_embeddings, {'inputs_embeds': torch.from_numpy(given[None])})):
        with torch.no_grad():
            expected = reference(**inputs).logits[0].numpy()
        assert np.abs(found - expected).max() < 0.02 * expected.std()


def test_a_quantised_store_adds_the_biases_too(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / 'checkpoint', model_type='qwen2',
                                  architectures=['Qwen2ForCausalLM'])
    convert(checkpoint, tmp_path / 'store', ConversionOptions(calibrate=False),
            lambda what, done, total: None)
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    engine = Engine.open(EngineConfig(tmp_path / 'store', 40_000_000, lock_memory=False))
    tokens = np.arange(20, 60)
    logits = np.empty((len(tokens), engine.model.spec.embedding.vocab_size), np.float32)
    engine.model.forward(tokens, 0, True, logits)
    engine.close()
    with torch.no_grad():
        expected = reference(torch.from_numpy(tokens[None])).logits[0].numpy()
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.999


def test_sliding_windows_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, model_type='qwen2', use_sliding_window=True)
    with pytest.raises(CheckpointError, match='use_sliding_window'):
        open_checkpoint(folder)
