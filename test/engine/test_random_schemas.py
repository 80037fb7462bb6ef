"""Every structured answer is valid, says the package jsonschema."""

import json
from pathlib import Path
import subprocess
import sys

from jsonschema import Draft202012Validator
import numpy as np
import pytest

from bench.request.random_schemas import random_case
from bench.request.structured import invalid
from flash_llm_ros.engine import Constraint, ConstraintKind
from flash_llm_ros.engine.request.constrained_decoding import ConstrainedDecoding
from flash_llm_ros.engine.text.tokenizer import load_tokenizer
from flash_llm_ros.store.flash_store import FlashStore

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)        # 250 processes, on a machine that others use, too
def test_with_tokens_drawn_at_random(real_store: Path) -> None:
    """What no model would write, in a vocabulary of 49 thousand tokens."""
    store = FlashStore.open(real_store)
    spec = store.manifest.model
    end = spec.end_tokens[0]
    decoding = ConstrainedDecoding(load_tokenizer(store).vocabulary, spec.embedding.vocab_size,
                                   spec.end_tokens)
    for number in range(250):
        schema, _ = random_case(number)
        Draft202012Validator.check_schema(schema)
        answer = decoding.start(Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema)))
        random, text = np.random.default_rng(number), ''
        for _ in range(1000):
            allowed = np.flatnonzero(answer.allowed())
            token = end if end in allowed else int(random.choice(allowed))
            answer.take(token)
            if token != end:
                text += answer.step(token)
            if answer.complete:
                break
        assert answer.complete and not invalid(schema, text), (number, text)


@pytest.mark.timeout(300)
def test_with_smollm2(real_store: Path, tmp_path: Path) -> None:
    """`python -m bench.request.structured --schemas 500` takes minutes; these are its first."""
    report = tmp_path / 'report.json'
    done = subprocess.run(
        [sys.executable, '-m', 'bench.request.structured', '--store', str(real_store),
         '--schemas', '15', '--json', str(report)], cwd=ROOT, capture_output=True, text=True,
        env={'PYTHONPATH': ':'.join(sys.path)}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ended = json.loads(report.read_text())['figures']['ended']
    assert sum(ended.values()) == 15 and ended['valid'] >= 13
    assert 'invalid' not in ended and done.stdout.splitlines()[-1].startswith('15 random schemas')


def test_a_wrong_answer_would_be_found() -> None:
    schema, _ = random_case(0)
    assert invalid(schema, '{') and invalid({'const': 1}, '2')
    assert invalid({'type': 'string', 'format': 'date'}, '"2026-02-30"')
    assert not invalid({'const': 1}, '1')
