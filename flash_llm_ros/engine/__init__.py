"""The engine: a language model larger than its DRAM budget. Knows no ROS."""

from flash_llm_ros.engine.config import EngineConfig
from flash_llm_ros.engine.constraint import Constraint, ConstraintKind
from flash_llm_ros.engine.engine import Engine
from flash_llm_ros.engine.generation import (
           FinishReason,
           Generation,
           GenerationCost,
           GenerationRequest,
)
from flash_llm_ros.engine.memory_plan import MemoryPlan, PlanRow
from flash_llm_ros.engine.prompt import Message
from flash_llm_ros.engine.runs import Suspended
from flash_llm_ros.engine.sampling import SamplingParams

__all__ = ['Constraint', 'ConstraintKind', 'Engine', 'EngineConfig', 'FinishReason', 'Generation',
           'GenerationCost', 'GenerationRequest', 'MemoryPlan', 'Message', 'PlanRow',
           'SamplingParams', 'Suspended']
