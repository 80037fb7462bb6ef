"""Converting takes memory for a layer, not for the model."""

from pathlib import Path
import subprocess
import sys

from gguf_checkpoint import write_gguf
from tiny_checkpoint import write_checkpoint

CONVERT = ('import resource, sys; from flash_llm_ros.cli.main import main; '
           'code = main(["convert", *sys.argv[1:]]); '
           'print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024); sys.exit(code)')


def peak(folder: Path, layers: int) -> int:
    """Bytes, of a process that converts a model whose layers have 13 MB in the file."""
    checkpoint = write_checkpoint(folder / 'checkpoint', num_hidden_layers=layers, hidden_size=256,
                                  head_dim=64, intermediate_size=4096)
    write_gguf(checkpoint, folder / 'model.gguf')
    done = subprocess.run([sys.executable, '-c', CONVERT, str(folder / 'model.gguf'),
                           str(folder / 'store')], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def test_more_layers_take_no_more_memory(tmp_path: Path) -> None:
    few, many = tmp_path / 'few', tmp_path / 'many'
    assert peak(many, 6) - peak(few, 1) < 30_000_000        # their weights are 65 MB more
