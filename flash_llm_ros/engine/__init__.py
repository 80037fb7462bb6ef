"""The engine: a language model larger than its DRAM budget. Knows no ROS."""

from .config import EngineConfig
from .engine import Engine
from .generation import FinishReason, Generation, GenerationCost, GenerationRequest
from .memory_plan import MemoryPlan, PlanRow
from .sampling import SamplingParams

__all__ = ['Engine', 'EngineConfig', 'FinishReason', 'Generation', 'GenerationCost',
           'GenerationRequest', 'MemoryPlan', 'PlanRow', 'SamplingParams']
