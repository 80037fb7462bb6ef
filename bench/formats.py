"""What rounding parts of a model to few bits costs, simulated in float32 by transformers.

    python bench/formats.py [--model models/SmolLM2-135M-Instruct.Q4_1.gguf] [--json PATH]

Mean KL divergence from the unrounded model, in nats a token, on held-out text. These are the
figures behind the default formats of the store.
"""

from argparse import ArgumentParser
from collections.abc import Callable
import json
from pathlib import Path
import sys

from fidelity import mean_divergence
from held_out_text import held_out_text
from reference_model import load_reference, reference_logits
from rich.console import Console
from rich.table import Table
import torch

from flash_llm_ros.checkpoint.checkpoint import open_checkpoint
from flash_llm_ros.engine.text.tokenizer import TextTokenizer
from flash_llm_ros.store.block_quantisation import dequantise, quantise
from flash_llm_ros.store.codec import row_codec

Rounding = Callable[[torch.Tensor], torch.Tensor]


def int8_rows(block: int) -> Rounding:
    """One scale for `block` neighbours of a row; 0: for the whole row."""
    def rounded(rows: torch.Tensor) -> torch.Tensor:
        blocks = rows.reshape(len(rows), -1, block or rows.shape[1])
        scale = (blocks.abs().amax(2, keepdim=True) / 127).half().float()
        return ((blocks / scale.clamp(min=1e-12)).round().clamp(-127, 127) * scale
                ).reshape(rows.shape)
    return rounded


def int4_rows(rows: torch.Tensor) -> torch.Tensor:
    """As int4 rows of a store are rounded."""
    codec = row_codec('int4', rows.shape[1])
    return torch.from_numpy(codec.decode(codec.encode(rows.numpy())))


def resident(form: str) -> Rounding:
    """As the attention matrices of a store are rounded."""
    def rounded(rows: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(dequantise(quantise(rows.numpy(), form), rows.shape[1]))
    return rounded


CASES = (
    ('feed-forward int8, a scale per row', 'mlp', int8_rows(0)),
    ('feed-forward int8, blocks of 64', 'mlp', int8_rows(64)),
    ('feed-forward int8, blocks of 32', 'mlp', int8_rows(32)),
    ('gate rows int4', 'gate_proj', int4_rows),
    ('up rows int4', 'up_proj', int4_rows),
    ('down columns int4', 'down_proj', int4_rows),
    ('embedding and head int4', 'embed_tokens', int4_rows),
    ('attention q8', 'self_attn', resident('q8')),
    ('attention q4', 'self_attn', resident('q4')),
)


def round_part(model: torch.nn.Module, part: str, rounding: Rounding) -> dict[str, torch.Tensor]:
    """Round the matrices whose names contain `part`; returns what they were."""
    kept = {}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if part in name:
                kept[name] = weight.clone()
                # A neuron's down weights are a column, stored as a row.
                weight.copy_(rounding(weight.T.contiguous()).T if 'down_proj' in name
                             else rounding(weight))
    return kept


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', type=Path,
                        default=Path('models/SmolLM2-135M-Instruct.Q4_1.gguf'))
    parser.add_argument('--tokens', type=int, default=1000)
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    tokenizer = TextTokenizer(open_checkpoint(options.model).tokenizer_json, None)
    tokens = tokenizer.encode(held_out_text())[:options.tokens]
    model = load_reference(options.model)
    exact = reference_logits(model, tokens)
    figures = {}
    for name, part, rounding in CASES:
        print(name, file=sys.stderr)
        kept = round_part(model, part, rounding)
        figures[name] = mean_divergence(exact, reference_logits(model, tokens))
        with torch.no_grad():
            for parameter, weight in kept.items():
                model.get_parameter(parameter).copy_(weight)
    table = Table('rounded', 'KL divergence, nats a token')
    for name, divergence in figures.items():
        table.add_row(name, f'{divergence:.4f}')
    Console(width=110).print(table)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + '\n')
    print('; '.join(f'{name} {divergence:.4f}' for name, divergence in figures.items()))
    return 0


if __name__ == '__main__':
    sys.exit(main())
