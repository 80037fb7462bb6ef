"""Architecture families by the checkpoints' model_type; doc/add_a_family.md says how to add one."""

from typing import Any

from flash_llm_ros.checkpoint.families.arcee import Arcee
from flash_llm_ros.checkpoint.families.dots1 import Dots1
from flash_llm_ros.checkpoint.families.ernie4_5_moe import Ernie45Moe
from flash_llm_ros.checkpoint.families.family import Family
from flash_llm_ros.checkpoint.families.gemma2 import Gemma2
from flash_llm_ros.checkpoint.families.gemma3 import Gemma3
from flash_llm_ros.checkpoint.families.glm4_moe import Glm4Moe
from flash_llm_ros.checkpoint.families.gpt_oss import GptOss
from flash_llm_ros.checkpoint.families.granite import Granite
from flash_llm_ros.checkpoint.families.granitemoe import GraniteMoe, GraniteMoeShared
from flash_llm_ros.checkpoint.families.lfm2 import Lfm2
from flash_llm_ros.checkpoint.families.lfm2_moe import Lfm2Moe
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.checkpoint.families.minicpm import MiniCpm
from flash_llm_ros.checkpoint.families.mistral import Mistral
from flash_llm_ros.checkpoint.families.mistral3 import Mistral3
from flash_llm_ros.checkpoint.families.mixtral import Mixtral
from flash_llm_ros.checkpoint.families.nemotron import Nemotron
from flash_llm_ros.checkpoint.families.olmo2 import Olmo2
from flash_llm_ros.checkpoint.families.olmoe import Olmoe
from flash_llm_ros.checkpoint.families.opt import Opt
from flash_llm_ros.checkpoint.families.phi3 import Phi3
from flash_llm_ros.checkpoint.families.qwen2 import Qwen2
from flash_llm_ros.checkpoint.families.qwen2_moe import Qwen2Moe
from flash_llm_ros.checkpoint.families.qwen3 import Qwen3
from flash_llm_ros.checkpoint.families.qwen3_moe import Qwen3Moe
from flash_llm_ros.checkpoint.families.smollm3 import SmolLm3
from flash_llm_ros.checkpoint.families.stablelm import StableLm

FAMILIES: dict[str, Family] = {
    'arcee': Arcee(),
    'dots1': Dots1(),
    'ernie4_5-moe': Ernie45Moe(),       # of GGUF
    'ernie4_5_moe': Ernie45Moe(),
    'gemma2': Gemma2(),
    'gemma3': Gemma3(),                 # of GGUF
    'gemma3_text': Gemma3(),            # of config.json, alone or within that of gemma3
    'glm4_moe': Glm4Moe(),
    'glm4moe': Glm4Moe(),               # of GGUF
    'gpt-oss': GptOss(),                # of GGUF
    'gpt_oss': GptOss(),
    'granite': Granite(),
    'granitemoe': GraniteMoe(),
    'granitemoeshared': GraniteMoeShared(),     # of config.json
    'lfm2': Lfm2(),
    'lfm2_moe': Lfm2Moe(),
    'lfm2moe': Lfm2Moe(),               # of GGUF
    'llama': Llama(),
    'minicpm': MiniCpm(),
    'ministral': Mistral(),
    'ministral3': Mistral3(),           # of config.json, alone or within that of mistral3
    'mistral': Mistral(),
    'mistral3': Mistral3(),             # of GGUF
    'mixtral': Mixtral(),
    'nemotron': Nemotron(),
    'olmo2': Olmo2(),
    'olmoe': Olmoe(),
    'opt': Opt(),
    'phi3': Phi3(),
    'qwen2': Qwen2(),
    'qwen2_moe': Qwen2Moe(),
    'qwen2moe': Qwen2Moe(),             # of GGUF
    'qwen3': Qwen3(),
    'qwen3_moe': Qwen3Moe(),
    'qwen3moe': Qwen3Moe(),             # of GGUF
    'smollm3': SmolLm3(),
    'sparsellama': Llama(),             # ProSparse's name for llama with FATReLU
    'stablelm': StableLm(),
}


def family(model_type: object) -> Family:
    """Raises ValueError with what is supported."""
    if not (isinstance(model_type, str) and model_type in FAMILIES):
        spelled_once = {name.replace('-', '').replace('_', ''): name for name in FAMILIES}
        raise ValueError(f'model type {model_type!r} is not supported; supported: '
                         f'{", ".join(spelled_once.values())}')
    return FAMILIES[model_type]


def family_of_gguf(fields: dict[str, Any]) -> Family:
    """By a file's metadata. Raises ValueError as `family`."""
    name = fields.get('general.architecture', '')
    if name == 'llama' and fields.get('llama.expert_count'):
        return family('mixtral')
    if name == 'granitemoe' and fields.get('granitemoe.expert_shared_feed_forward_length'):
        return family('granitemoeshared')
    return family(name)
