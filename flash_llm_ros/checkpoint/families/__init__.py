"""Architecture families by the checkpoints' model_type; doc/add_a_family.md says how to add one."""

from typing import Any

from flash_llm_ros.checkpoint.families.family import Family
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.checkpoint.families.minicpm import MiniCpm
from flash_llm_ros.checkpoint.families.mixtral import Mixtral
from flash_llm_ros.checkpoint.families.opt import Opt
from flash_llm_ros.checkpoint.families.qwen2 import Qwen2

FAMILIES: dict[str, Family] = {
    'llama': Llama(),
    'minicpm': MiniCpm(),
    'mixtral': Mixtral(),
    'opt': Opt(),
    'qwen2': Qwen2(),
    'sparsellama': Llama(),             # ProSparse's name for llama with FATReLU
}


def family(model_type: object) -> Family:
    """Raises ValueError with what is supported."""
    if not (isinstance(model_type, str) and model_type in FAMILIES):
        raise ValueError(f'model type {model_type!r} is not supported; supported: '
                         f'{", ".join(FAMILIES)}')
    return FAMILIES[model_type]


def family_of_gguf(fields: dict[str, Any]) -> Family:
    """By a file's metadata. Raises ValueError as `family`."""
    name = fields.get('general.architecture', '')
    if name == 'llama' and fields.get('llama.expert_count'):
        return family('mixtral')
    return family(name)
