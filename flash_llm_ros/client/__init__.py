"""For programs that want answers: ``FlashLlmClient`` and ``FlashLlmFleet``, and what they return.

``Toolbox`` and ``run_tools`` let a model use the robot's actions, services and topics.
"""

from flash_llm_ros.client.answer import Answer, AnswerError, NodeLostError, PendingAnswer
from flash_llm_ros.client.flash_llm_client import FlashLlmClient
from flash_llm_ros.client.fleet import FlashLlmFleet
from flash_llm_ros.client.messages import message_from
from flash_llm_ros.client.robot_tool import RobotTool
from flash_llm_ros.client.tool_loop import ToolRun, run_tools
from flash_llm_ros.client.toolbox import Toolbox
from flash_llm_ros.finish_reason import FinishReason
from flash_llm_ros.store.errors import ErrorCode

__all__ = ['Answer', 'AnswerError', 'ErrorCode', 'FinishReason', 'FlashLlmClient',
           'FlashLlmFleet', 'NodeLostError', 'PendingAnswer', 'RobotTool', 'ToolRun', 'Toolbox',
           'message_from', 'run_tools']
