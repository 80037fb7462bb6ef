"""What people have that is no checkpoint for here: one sentence each, with what to do."""

from pathlib import Path
import re
from typing import Any

_BEGINNINGS = (
    (b'version https://git-lfs', 'is a pointer of Git LFS, not the file itself; `git lfs pull` in '
                                 'its folder fetches it'),
    (b'PK\x03\x04', 'is a file of PyTorch or another archive; `AutoModelForCausalLM.'
                    'from_pretrained(FOLDER).save_pretrained(NEW)` of transformers writes a folder '
                    'with model.safetensors'),
    (b'\x80', 'is a pickled file of PyTorch; `AutoModelForCausalLM.from_pretrained(FOLDER).'
              'save_pretrained(NEW)` of transformers writes a folder with model.safetensors'),
    (b'<', 'is a web page, not a model; what was downloaded was another address'),
)
# Older kinds of llama.cpp's files.
_BEFORE_GGUF = (b'lmgg', b'fmgg', b'tjgg', b'algg')
_SAFETENSORS = re.compile(rb'.{7}\0\s*\{"', re.DOTALL)
_WEIGHTS = ('pytorch_model.bin', 'pytorch_model.bin.index.json', 'consolidated.00.pth',
            'tf_model.h5', 'flax_model.msgpack', 'model.onnx')
_TOKENIZERS = ('tokenizer.model', 'vocab.json', 'tekken.json', 'spiece.model')
_BY_TRANSFORMERS = '.from_pretrained(FOLDER).save_pretrained(FOLDER)` of transformers'


def damage(path: Path) -> str | None:
    """What was copied or downloaded in place of a file; None where nobody can tell. OSError."""
    head = _head(path)
    if not head:
        return 'is empty; copy or download it again'
    if _SAFETENSORS.match(head):        # whose first bytes may be any
        return None
    return next((sentence for beginning, sentence in _BEGINNINGS
                 if head.lstrip(b' \r\n').startswith(beginning)), None)


def strange_file(path: Path) -> str | None:
    """What a file is that is given as a checkpoint, and no GGUF file."""
    if (sentence := damage(path)) is not None:
        return sentence
    head = _head(path)
    if head[:4] in _BEFORE_GGUF:
        return 'is of a kind before GGUF; a newer file of the model is needed'
    if _SAFETENSORS.match(head):
        return ('has tensors alone; give its folder, in which config.json and tokenizer.json must '
                'be, too')
    if head.startswith(b'{'):
        return 'is a JSON file; give its folder'
    return None


def _head(path: Path) -> bytes:
    with path.open('rb') as file:
        return file.read(64)


def strange_folder(path: Path) -> str:
    """What a folder without config.json is."""
    if (path / 'manifest.yaml').is_file():
        return 'is a flash store already'
    if (path / 'adapter_config.json').is_file():
        return _ADAPTER
    if files := sorted(path.glob('*.gguf')):
        return f'has GGUF files; give one of them: {files[0]}'
    if (path / 'params.json').is_file():
        return ("is in the form of the model's makers; get the folder in Hugging Face's form, "
                'which has config.json')
    return 'has no config.json; a checkpoint is a Hugging Face folder or a .gguf file'


_ADAPTER = ('has an adapter (LoRA), not a model; `AutoPeftModelForCausalLM.from_pretrained(FOLDER)'
            '.merge_and_unload().save_pretrained(NEW)` of peft puts it into its model')


_ONE_WAY = 'only text that is read from left to right is supported'


def check_config(path: Path, config: dict[str, Any]) -> None:
    """Raise ValueError for a folder whose weights nobody here reads; before any are opened."""
    quantised = config.get('quantization_config')
    if isinstance(quantised, dict) and quantised.get('quant_method') != 'mxfp4':
        kind = quantised.get('quant_method', 'unknown')
        raise ValueError(f'quantization_config: the weights are quantised by {kind}, which is not '
                         "read; take the model's folder before that, or a GGUF file of it")
    if config.get('is_causal') is False:
        raise ValueError(f'is_causal is false; {_ONE_WAY}')
    if (path / 'adapter_config.json').is_file() and not any(path.glob('model*.safetensors*')):
        raise ValueError(f'the folder {_ADAPTER}')


def check_fields(fields: dict[str, Any]) -> None:
    """Raise ValueError for a GGUF file that is no model which goes on with a text."""
    kind = fields.get('general.type', 'model')
    if kind == 'adapter':
        raise ValueError('general.type is adapter: the file has an adapter (LoRA), not a model; '
                         '`llama-export-lora` of llama.cpp puts it into its model')
    if kind != 'model':
        raise ValueError(f'general.type is {kind}; it must be model: this is another part of one')
    causal = f'{fields.get("general.architecture")}.attention.causal'
    if not fields.get(causal, True):
        raise ValueError(f'{causal} is false; {_ONE_WAY}')


def missing_weights(path: Path) -> str:
    """Why a folder has no model.safetensors."""
    for name in _WEIGHTS:
        if (path / name).is_file():
            return (f'the folder has {name} instead, which is not read; '
                    f'`AutoModelForCausalLM{_BY_TRANSFORMERS} writes model.safetensors beside it')
    if parts := sorted(path.glob('*.safetensors')):
        return (f'the folder has {parts[0].name}, but no model.safetensors.index.json that names '
                'it; copy that file, too')
    return 'the file is not there; copy or download the whole folder'


def missing_tokenizer(path: Path) -> str:
    """Why a folder has no tokenizer.json."""
    for name in _TOKENIZERS:
        if (path / name).is_file():
            return (f'the folder has {name} instead; `AutoTokenizer{_BY_TRANSFORMERS} writes '
                    'tokenizer.json beside it')
    return 'the file is not there; copy or download the whole folder'
