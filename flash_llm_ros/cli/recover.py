"""`flash_llm recover`: corrections for what modes sparse and aggressive leave out, trained."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from flash_llm_ros.cli.main import fail
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.convert.calibration_text import read_texts
from flash_llm_ros.convert.resumable_folder import remove_parts
from flash_llm_ros.store.errors import FlashLlmError

if TYPE_CHECKING:
    from flash_llm_ros.calibrate.recovery import Outcome

EPILOG = """\
examples:
  flash_llm recover /data/qwen.store --text missions.txt chat.jsonl
  flash_llm recover /data/qwen.store --text missions.txt --sparsity 0.6 0.7
  flash_llm recover /data/qwen-ordered.store --text missions.txt --share 0.75

The same command goes on after an interruption. A correction is used by mode sparse at its own
sparsity, and by mode aggressive at its own share of the neurons. Calibrate and order first: other
thresholds need other corrections.
"""


_PARAMETERS = {'sparse': 'sparsity', 'aggressive': 'neuron_share'}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('store', type=Path, help='a flash store; its manifest is replaced')
    parser.add_argument('--text', type=Path, nargs='+', metavar='FILE',
                        help='UTF-8 text or .jsonl files, best of what the robot will be asked '
                             '(default: text that the model writes)')
    parser.add_argument('--sparsity', type=float, nargs='+', metavar='S',
                        help='of mode sparse, to learn for (default: 0.7, or none where shares '
                             'are given)')
    parser.add_argument('--share', type=float, nargs='+', metavar='SHARE',
                        help='of the neurons in mode aggressive (default: all prepared ones, or '
                             'none where sparsities are given)')
    parser.add_argument('--rank', type=int, default=16,
                        help="of mode sparse's corrections (default: 16); mode aggressive's keep "
                             'the rank that the store was ordered with')
    parser.add_argument('--tokens', type=int, default=65536, metavar='N',
                        help='of text, at most (default: 65536)')
    parser.add_argument('--measured-tokens', type=int, default=4096, metavar='N',
                        help='of these that nothing is learned from (default: 4096)')
    parser.add_argument('--learning-rate', type=float, default=5e-4, metavar='RATE',
                        help='the largest one (default: 5e-4; small models take 1e-3)')
    parser.add_argument('--length', type=int, default=512, metavar='N',
                        help='tokens of a piece of text (default: 512)')
    parser.add_argument('--threads', type=int, default=2, help='that compute (default: 2)')
    parser.add_argument('--work', type=Path, metavar='DIR',
                        help='keeps what is done until all is (default: .STORE.recovery beside '
                             'STORE)')


def run(options: Namespace) -> int:
    try:
        import torch
    except ImportError:
        return fail(ValueError('recover needs PyTorch: pip install "flash_llm_ros[calibrate]"'))
    if options.threads < 1:
        return fail(ValueError(f'threads is {options.threads}; it must be at least 1'))
    torch.set_num_threads(options.threads)
    from flash_llm_ros.calibrate.recovery import WORK_FOLDERS, RecoveryOptions, recover

    path = options.store.absolute()
    work = options.work or path.with_name(f'.{path.name}.recovery')
    try:
        chosen = RecoveryOptions(*_settings(options), options.rank, options.tokens,
                                 options.measured_tokens, options.length, options.learning_rate,
                                 options.threads)
        texts = read_texts(options.text) if options.text else None
        with Steps() as steps:
            store, outcomes = recover(path, texts, work, chosen, steps)
    except (FlashLlmError, OSError, ValueError) as error:
        return fail(error)
    remove_parts(work, WORK_FOLDERS)
    _print(outcomes, Console(width=100))
    kept = [outcome for outcome in outcomes if outcome.kept]
    used = ', '.join(f'{_PARAMETERS[outcome.mode]}: {outcome.name}' for outcome in kept)
    print(f'{store.path}: {len(kept)} of {len(outcomes)} settings have learned corrections'
          + f', which are used with {used}' * bool(kept)
          + f'; {outcomes[0].setting.tokens} held-out tokens')
    return 0


def _settings(options: Namespace
              ) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Sparsities and shares; whichever is not given is left out where the other is."""
    if options.sparsity is None and options.share is None:
        return None, None
    return tuple(options.sparsity or ()), tuple(options.share or ())


def _print(outcomes: list['Outcome'], console: Console) -> None:
    table = Table('mode', 'setting', 'perplexity, of exact', 'with what was learned', 'kept')
    for outcome in outcomes:
        setting = outcome.setting
        table.add_row(outcome.mode, outcome.name, f'{setting.before:.3f}',
                      f'{setting.after:.3f} ± {setting.error:.3f}',
                      'yes' if outcome.kept else 'no: not better')
    console.print(table)
