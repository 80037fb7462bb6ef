"""`flash_llm convert`: checkpoint to flash store."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.cli.calibrate import price
from flash_llm_ros.cli.main import fail, interrupted_once, warn
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.convert.calibration_text import read_texts
from flash_llm_ros.convert.conversion import convert
from flash_llm_ros.convert.options import MOST_LOSS, ConversionOptions
from flash_llm_ros.store.codec import NEURON_CODECS
from flash_llm_ros.store.errors import FlashLlmError

EPILOG = """\
examples:
  flash_llm convert smollm2.Q4_1.gguf /data/smollm2.store
  flash_llm convert Qwen2.5-1.5B-Instruct/ /data/qwen.store --neurons int4
  flash_llm convert model.gguf /data/small.store --neurons int4 --most-loss inf   smallest
  flash_llm convert smollm2.gguf /data/relu.store --ffn smollm2-relu.ffn

Takes minutes, and memory for the vocabulary and a layer's largest matrices in 32 bits: 0.3 GB
for a model of half a billion weights, 0.5 GB for one of 1.5 billion; with int4, where rows are
rounded for the inputs that they meet, 1.4 and 2.6 GB (12 bytes for each pair of inputs of a matrix:
4 GB where the feed-forward block is 18,944 wide). Nothing is left of a conversion that fails or is
interrupted. A ReLU model gets predictors, which mode gated uses.
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('checkpoint', help='a .gguf file (of a split one any part), or a Hugging '
                        'Face folder')
    parser.add_argument('store', help='the folder to write; the one that it lies in must be there')
    parser.add_argument('--ffn', type=Path, metavar='FILE',
                        help="take the feed-forward weights from this file instead of the "
                             "checkpoint's")
    parser.add_argument('--neurons', choices=NEURON_CODECS, default='int8',
                        help='format of the feed-forward weights on flash (default: int8)')
    parser.add_argument('--most-loss', type=float, metavar='NATS',
                        help='with int4: keep those sections int8 (down rows of a layer, the '
                        'head) without which rounding costs more nats a token than this (default: '
                        f'{MOST_LOSS}, about {100 * MOST_LOSS:g} %% of perplexity; inf: all is '
                        'int4, the smallest store)')
    parser.add_argument('--bytes-per-token', type=float, metavar='SHARE',
                        help='with int4, instead: the sections that make the least of the loss, in '
                        'this share of what a token reads where all is int4 (1.1: a tenth more)')
    parser.add_argument('--resident', choices=('q8', 'q4', 'fp32'),
                        help='format of the attention weights (default: q4 where '
                        'the checkpoint has no more to keep, else q8; fp32 with fp16: the core '
                        'then has fp16)')
    parser.add_argument('--block', type=int, default=512, metavar='BYTES',
                        help="the flash device's logical block (default: 512)")
    parser.add_argument('--text', type=Path, nargs='+', metavar='FILE',
                        help="UTF-8 text or .jsonl files to calibrate on, and to round int4 for "
                             "(default: the package's own texts)")
    parser.add_argument('--no-calibration', action='store_true',
                        help='make no predictors: a store for mode exact only')
    parser.add_argument('--replace', action='store_true', help='replace a store that exists')


def run(options: Namespace) -> int:
    try:
        chosen = ConversionOptions(
            ffn=options.ffn, neurons=options.neurons, most_loss=options.most_loss,
            bytes_per_token=options.bytes_per_token,
            resident=options.resident, block=options.block,
            calibrate=not options.no_calibration,
            texts=read_texts(options.text) if options.text else None, replace=options.replace)
        with interrupted_once(), Steps() as steps:
            store = convert(options.checkpoint, options.store, chosen, steps, warn)
    except (CheckpointError, FlashLlmError, OSError, ValueError) as error:
        return fail(error)
    geometry = store.manifest.geometry
    print(f'{store.path}: {store.bytes / 1e6:.1f} MB, {geometry.formats_text}; '
          f'{store.manifest.layout} layout, groups of {geometry.group_bytes} bytes')
    if store.manifest.calibration is not None:
        print(price(store.manifest.calibration))
    return 0
