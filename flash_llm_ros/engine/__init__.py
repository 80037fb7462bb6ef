"""The engine: a language model larger than its DRAM budget. Knows no ROS."""

from flash_llm_ros.engine.config import EngineConfig
from flash_llm_ros.engine.conversations.runs import Suspended
from flash_llm_ros.engine.engine import Engine
from flash_llm_ros.engine.plan import MemoryPlan, PlanRow
from flash_llm_ros.engine.request.constraint import Constraint, ConstraintKind
from flash_llm_ros.engine.request.generation import (
           FinishReason,
           Generation,
           GenerationCost,
           GenerationRequest,
)
from flash_llm_ros.engine.request.sampling import SamplingParams
from flash_llm_ros.engine.text.chat_template import Message
from flash_llm_ros.engine.text.tools import Tool, ToolCall

__all__ = ['Constraint', 'ConstraintKind', 'Engine', 'EngineConfig', 'FinishReason', 'Generation',
           'GenerationCost', 'GenerationRequest', 'MemoryPlan', 'Message', 'PlanRow',
           'SamplingParams', 'Suspended', 'Tool', 'ToolCall']
