"""Relufication: its parts against PyTorch and transformers, and the command as a whole."""

import json
from pathlib import Path

from gguf_checkpoint import write_gguf
import numpy as np
import pytest
from tiny_checkpoint import write_checkpoint
from tokenizers import Tokenizer
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from flash_llm_ros.calibrate.distillation import Divergence, ReluBlocks, SiluBlocks
from flash_llm_ros.calibrate.relufy import Measured, Relufication, RelufyOptions, Step
from flash_llm_ros.calibrate.teacher_text import user_turn, written_by
from flash_llm_ros.calibrate.torch_model import MATRIX, KvCache, TorchModel, gated_weights
from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.huggingface_writer import write_huggingface
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.cli.main import main
from flash_llm_ros.model_spec import ModelSpec

pytestmark = pytest.mark.timeout(300)
OPTIONS = {'length': 32, 'sequences': 2, 'batch': 4, 'measure_every': 10, 'learning_rate': 3e-3}


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module', params=['llama', 'qwen2'])
def checkpoint(request, tmp_path_factory) -> Path:
    names = {'llama': 'LlamaForCausalLM', 'qwen2': 'Qwen2ForCausalLM'}
    return write_checkpoint(tmp_path_factory.mktemp(request.param) / 'checkpoint', seed=4,
                            model_type=request.param, architectures=[names[request.param]])


def teacher_of(checkpoint: Path) -> tuple[TorchModel, SiluBlocks, ModelSpec]:
    opened = open_checkpoint(checkpoint)
    weights = [gated_weights(opened, layer, MATRIX) for layer in range(opened.spec.layers)]
    return TorchModel(opened, 256), SiluBlocks(weights), opened.spec


def test_the_model_is_that_of_transformers(checkpoint: Path) -> None:
    model, blocks, _ = teacher_of(checkpoint)
    tokens = torch.randint(0, 256, (2, 60), generator=torch.Generator().manual_seed(1))
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = (model.run(tokens, blocks) @ model.head.T).float()
        expected = reference(tokens).logits
    assert (logits - expected).abs().mean() < 0.02 * expected.std()     # bfloat16


def test_a_cache_changes_nothing_but_rounding(checkpoint: Path) -> None:
    model, blocks, _ = teacher_of(checkpoint)
    tokens = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(2))
    cache = KvCache()
    with torch.no_grad():
        at_once = model.run(tokens, blocks).float()
        one_by_one = torch.cat([model.run(tokens[:, i:i + 1], blocks, cache)
                                for i in range(20)], 1).float()
    assert cache.length == 20
    assert (at_once - one_by_one).abs().mean() < 0.02 * at_once.std()


def test_what_the_teacher_writes_is_its_own(checkpoint: Path) -> None:
    model, blocks, spec = teacher_of(checkpoint)
    seen: list[tuple[int, int]] = []
    rows = written_by(model, blocks, 600, 24, 5, lambda done, total: seen.append((done, total)))
    assert rows.shape[1] == 24 and rows.numel() >= 600 and seen[-1] == (600, 600)
    assert torch.equal(rows, written_by(model, blocks, 600, 24, 5, lambda done, total: None))
    with torch.no_grad():
        loss = [functional.cross_entropy((model.run(text, blocks)[:, :-1] @ model.head.T).float()
                                         .flatten(0, 1), text[:, 1:].flatten())
                for text in (rows, torch.randint(0, spec.embedding.vocab_size, rows.shape))]
    assert loss[0] < loss[1] - 1


def test_conversations_begin_as_the_chat_template_says(checkpoint: Path) -> None:
    model, blocks, _ = teacher_of(checkpoint)
    opened = open_checkpoint(checkpoint)
    begun = user_turn(opened)
    assert Tokenizer.from_str(opened.tokenizer_json).decode(begun, skip_special_tokens=False) == (
        '<|im_start|>user\n')
    rows = written_by(model, blocks, 16 * 24 * 3, 24, 5, lambda done, total: None, begun)
    begins = (rows[:, :len(begun)] == torch.tensor(begun)).all(1)
    assert begins.tolist() == [True] * 16 + [False] * 16 + [True] * 16
    alone = torch.cat([rows[:1, :20], torch.zeros(1, 1, dtype=torch.int64)], 1)
    with torch.no_grad():       # the prefix was read: what follows is likely behind it
        logits = (model.run(alone, blocks)[0] @ model.head.T).float().log_softmax(1)
    chosen = logits[len(begun) - 1:19].gather(1, rows[0, len(begun):20, None])
    assert chosen.mean() > logits[len(begun) - 1:19].mean() + 1
    assert user_turn(without_template(opened)) == []
    short = written_by(model, blocks, 32, 3, 5, lambda done, total: None, range(3))
    assert not (short == torch.arange(3)).all(1).any()


def without_template(checkpoint: Checkpoint) -> Checkpoint:
    checkpoint.chat_template = ''
    return checkpoint


def test_divergence_against_autograd() -> None:
    torch.manual_seed(0)
    student, teacher, head = (torch.randn(n, 16) for n in (300, 300, 50))     # several blocks
    student.requires_grad_()
    found = Divergence.apply(student, teacher, head)
    gradient, = torch.autograd.grad(3 * found, student)
    expected = functional.kl_div((student @ head.T).log_softmax(1), (teacher @ head.T)
                                 .log_softmax(1), log_target=True, reduction='batchmean')
    wanted, = torch.autograd.grad(3 * expected, student)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


def test_what_blocks_report_of_themselves(checkpoint: Path) -> None:
    model, silu, spec = teacher_of(checkpoint)
    tokens = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(3))
    opened = open_checkpoint(checkpoint)
    relu = ReluBlocks([gated_weights(opened, layer, torch.float32)
                       for layer in range(spec.layers)])
    with torch.no_grad():
        model.run(tokens, silu)
        relu.begin(silu.outputs)
        gates, errors = [], []
        original = ReluBlocks.forward

        def noted(layer: int, x: torch.Tensor) -> torch.Tensor:
            out = original(relu, layer, x)
            gates.append(functional.linear(x, relu.gate[layer].to(MATRIX)).double())
            target = silu.outputs[layer].double()
            errors.append(((out.double() - target).square().sum(-1)
                           / target.square().sum(-1)).mean())
            return out

        model.run(tokens, noted)
    assert relu.zeros == pytest.approx(float(np.mean([(g <= 0).double().mean() for g in gates])))
    assert float(relu.error) == pytest.approx(float(np.mean(errors)), rel=1e-4)
    assert float(relu.size) == pytest.approx(float(np.mean(
        [g.clamp(min=0).sum() / g.abs().sum() for g in gates])), rel=1e-2)


def relufication(checkpoint: Path, state: Path, tokens: int, **options: object) -> Relufication:
    opened = open_checkpoint(checkpoint)
    text = np.random.default_rng(0).integers(0, 256, 4096)
    return Relufication(opened, opened, text, text[:200],
                        RelufyOptions(tokens=tokens, **{**OPTIONS, **options}), state)


@pytest.fixture(scope='module')
def biased(tmp_path_factory) -> Path:
    """Its biases are a direction that all tokens share, along which gates can be switched off."""
    return write_checkpoint(tmp_path_factory.mktemp('biased') / 'checkpoint', seed=4,
                            model_type='qwen2', architectures=['Qwen2ForCausalLM'])


def test_training_brings_the_student_nearer(biased: Path, tmp_path: Path) -> None:
    training = relufication(biased, tmp_path / 'state.pt', 128 * 40, zeros=0.5,
                            learning_rate=2e-3, error_weight=0.3)
    steps: list[Step] = []
    training.train(steps.append)
    assert np.mean([step.error for step in steps[-5:]]) < 0.85 * steps[0].error
    assert np.mean([step.divergence for step in steps[-5:]]) < 0.85 * steps[0].divergence


def test_training_brings_zeros(biased: Path, tmp_path: Path) -> None:
    training = relufication(biased, tmp_path / 'state.pt', 128 * 60, zeros=0.7)
    steps: list[Step] = []
    training.train(steps.append)
    assert steps[0].zeros == pytest.approx(0.5, abs=0.05)       # random gates
    assert steps[-1].zeros > 0.62
    assert [step.tokens for step in steps if step.measured] == [1280 * i for i in range(1, 7)]
    measured = training.measure()
    assert isinstance(measured, Measured) and measured.zeros > 0.62
    assert measured.relative == measured.perplexity / training.teacher_perplexity


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(checkpoint: Path, tmp_path: Path
                                                               ) -> None:
    whole = relufication(checkpoint, tmp_path / 'whole.pt', 128 * 8)
    whole.train(lambda step: None)
    cut = relufication(checkpoint, tmp_path / 'cut.pt', 128 * 8, save_every=0.0)

    def stop(step: Step) -> None:
        if step.tokens == 128 * 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut.train(stop)
    rest = relufication(checkpoint, tmp_path / 'cut.pt', 128 * 8)
    assert rest.tokens == 128 * 3
    rest.train(lambda step: None)
    for (name, ours), (_, theirs) in zip(whole.weights(), rest.weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    with pytest.raises(ValueError, match='another model or another text'):
        relufication(checkpoint, tmp_path / 'cut.pt', 128 * 8, length=16)


@pytest.mark.parametrize('source', ['folder', 'gguf'])
def test_the_command_writes_what_convert_reads(tmp_path: Path, source: str,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    path = write_checkpoint(tmp_path / 'teacher')
    if source == 'gguf':
        write_gguf(path, tmp_path / 'teacher.gguf')
        path = tmp_path / 'teacher.gguf'
    (tmp_path / 'text.txt').write_text('Where is the charging station? Turn left. ' * 60)
    arguments = ['relufy', str(path), str(tmp_path / 'student'), '--text',
                 str(tmp_path / 'text.txt'), '--written', '400', '--tokens', '2000', '--length',
                 '32', '--threads', '1']
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert 'held-out tokens' in said and 'zeros' in said
    spec = open_checkpoint(tmp_path / 'student').spec
    teacher = open_checkpoint(path).spec
    assert (spec.feed_forward.activation, teacher.feed_forward.activation) == ('relu', 'silu')
    for name in ('hidden_size', 'layers', 'attention', 'positions', 'embedding', 'end_tokens',
                 'begin_token', 'max_context'):
        assert getattr(spec, name) == getattr(teacher, name)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / 'student')
    assert isinstance(model.model.layers[0].mlp.act_fn, torch.nn.ReLU)
    assert main(['convert', str(tmp_path / 'student'), str(tmp_path / 'store'),
                 '--no-calibration']) == 0
    assert main(arguments) == 1                                 # it exists
    assert 'student exists' in capsys.readouterr().err


def test_the_command_writes_and_begins_with_an_ffn_file(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / 'teacher')
    (tmp_path / 'text.txt').write_text('Where is the charging station? Turn left. ' * 60)
    arguments = ['relufy', str(path), '--text', str(tmp_path / 'text.txt'), '--length', '32',
                 '--threads', '1', '--threshold', '0.25']
    assert main([*arguments, str(tmp_path / 'first.ffn'), '--tokens', '1000']) == 0
    first, teacher = open_checkpoint(path, tmp_path / 'first.ffn'), open_checkpoint(path)
    assert first.spec.feed_forward.relu_threshold == 0.25
    name = 'layers.1.gate'
    assert 0 < np.abs(first.rows(name) - teacher.rows(name)).mean() < 0.1
    # 1 token, at the last rate of a schedule: next to nothing changes.
    assert main([*arguments, str(tmp_path / 'second.ffn'), '--tokens', '1', '--start',
                 str(tmp_path / 'first.ffn'), '--learning-rate', '1e-9']) == 0
    second = open_checkpoint(path, tmp_path / 'second.ffn')
    difference = np.abs(second.rows(name) - first.rows(name))
    assert difference.max() <= 0.08 * np.square(first.rows(name)).mean(1).max() ** 0.5


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    source = open_checkpoint(write_checkpoint(tmp_path / 'teacher'))
    source.rows = lambda name: (_ for _ in ()).throw(OSError('the disk is gone'))
    with pytest.raises(OSError, match='gone'):
        write_huggingface(source, tmp_path / 'copy', {}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ['teacher']


def test_replaced_tensors_and_settings(tmp_path: Path) -> None:
    source = open_checkpoint(write_checkpoint(tmp_path / 'teacher'))
    gate = np.full(source.shape('layers.1.gate'), 0.5, np.float32)
    write_huggingface(source, tmp_path / 'copy', {'hidden_act': 'relu'}, {'layers.1.gate': gate})
    copy = open_checkpoint(tmp_path / 'copy')
    np.testing.assert_array_equal(copy.rows('layers.1.gate'), gate)
    for name in source.tensors:
        if name != 'layers.1.gate':
            np.testing.assert_allclose(copy.rows(name), source.rows(name), rtol=1e-3, atol=1e-7)
    assert json.loads((tmp_path / 'copy/config.json').read_text())['hidden_act'] == 'relu'


@pytest.mark.parametrize(('changes', 'message'), [
    ({'tokens': 0}, 'tokens is 0'), ({'zeros': 1.0}, 'zeros is 1.0'),
    ({'learning_rate': float('nan')}, 'learning_rate is nan'),
    ({'batch': 3}, 'batch is 3'), ({'ramp': 0.0}, 'ramp is 0.0'),
])
def test_wrong_options(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RelufyOptions(**changes)


def test_only_gated_silu_is_made_relu(tmp_path: Path) -> None:
    relu = write_checkpoint(tmp_path / 'relu', hidden_act='relu')
    with pytest.raises(CheckpointError, match='only gated silu'):
        relufication(relu, tmp_path / 'state.pt', 100)
    assert main(['relufy', str(relu), str(tmp_path / 'out'), '--written', '0']) == 1


def test_relu_with_a_threshold(biased: Path, tmp_path: Path) -> None:
    training = relufication(biased, tmp_path / 'state.pt', 128 * 20, threshold=0.2, ramp=0.25)
    seen: list[float] = []
    training.train(lambda step: seen.append(training.threshold))
    assert seen[0] < 0.1 and seen[4:] == [0.2] * 16
    x = torch.randn(1, 50, 64, generator=torch.Generator().manual_seed(1)).to(MATRIX)
    weights = dict(training.weights())
    gate, up, down = (x[0].float().numpy() @ weights['layers.0.gate'].T,
                      x[0].float().numpy() @ weights['layers.0.up'].T, weights['layers.0.down'])
    training.student.begin(None)
    with torch.no_grad():
        found = training.student(0, x)[0].float().numpy()
    expected = np.where(gate > 0.2, gate, 0) * up @ down.T
    assert np.abs(found - expected).mean() < 0.02 * expected.std()      # bfloat16
