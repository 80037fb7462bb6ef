"""Every parameter of the node in one table: type, default, unit, range, and when it may change."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
import math
from pathlib import Path

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from flash_llm_ros.engine import EngineConfig, SamplingParams
from flash_llm_ros.engine.byte_size import RIGHT as BYTE_SIZE_FORM
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.engine.config import MOST_SESSIONS
from flash_llm_ros.engine.numpy_policies import POLICY_FORM, make_policy
from flash_llm_ros.node.work.turns import WHEN_BUSY
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

Value = str | bool | int | float


class Change(Enum):
    """When a parameter may get another value."""

    NEVER = 'read-only: it is given when the node starts'
    UNCONFIGURED = 'it is read when the node is configured'
    ALWAYS = 'it holds from the next request on'
    AT_ONCE = 'it holds from the next token on'


@dataclass(frozen=True)
class Entry:
    """One line of the table; ``low`` and ``high`` are inclusive."""

    name: str
    default: Value
    change: Change
    about: str
    unit: str = ''
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    byte_size: bool = False
    form: str = ''      # of a text that `is_right` tells from others
    is_right: Callable[[str], bool] = lambda text: True

    def descriptor(self) -> ParameterDescriptor:
        """Return what ``ros2 param describe`` shows."""
        descriptor = ParameterDescriptor(
            name=self.name,
            description=f'{self.about}{f" [{self.unit}]" if self.unit else ""}; '
                        f'{self.change.value}',
            read_only=self.change is Change.NEVER,
            dynamic_typing=self.byte_size,
            additional_constraints=self.constraint)
        if self.low is not None and isinstance(self.default, float):
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(self.low), to_value=float(self.high))]
        elif self.low is not None:
            descriptor.integer_range = [
                IntegerRange(from_value=int(self.low), to_value=int(self.high))]
        return descriptor

    @property
    def constraint(self) -> str:
        """What a value has to be beyond its type and range; '' for nothing."""
        if self.byte_size:
            return BYTE_SIZE_FORM
        return f'one of {", ".join(self.choices)}' if self.choices else self.form

    def complaint(self, value: Value | None) -> str:
        """Return what is wrong with a value that has the right type and range, or ''."""
        if self.byte_size:
            try:
                parse_byte_size(self.name, value)
            except FlashLlmError as error:
                return str(error)
        if isinstance(value, float) and not math.isfinite(value):
            return f'{self.name} is {value}; it has to be a finite number.'
        if (self.choices and value not in self.choices) or not self.is_right(value):
            return f'{self.name} is {value!r}; it has to be {self.constraint}.'
        return ''


def _is_policy(text: str) -> bool:
    try:
        make_policy(text, 1)
    except ValueError:
        return False
    return True


NEVER, UNCONFIGURED, ALWAYS, AT_ONCE = Change
LONGEST = 1e6  # s; longer waits are mistakes

TABLE = (
    Entry('autostart', False, NEVER,
          'Configure and activate without being asked, also after a respawn'),
    Entry('store', '', UNCONFIGURED, 'Folder of the flash store'),
    Entry('dram_budget', '256MB', UNCONFIGURED,
          'Memory the engine may use in all, on top of the bare process', byte_size=True),
    Entry('mode', 'exact', UNCONFIGURED,
          'Use every neuron, only the active set, or only what `flash_llm order` found important',
          choices=('exact', 'sparse', 'aggressive')),
    Entry('sparsity', -1.0, UNCONFIGURED,
          'Share of the down columns left out in sparse mode; below 0: as calibrated', '',
          -1.0, 0.99),
    Entry('neuron_share', -1.0, UNCONFIGURED,
          'Share of the neurons that mode aggressive uses, one of those the store is prepared for; '
          'below 0: the least that was measured to be good', '', -1.0, 1.0),
    Entry('context_length', 512, UNCONFIGURED,
          'Longest prompt and answer together', 'tokens', 2, 2**20),
    Entry('prefill_chunk', 64, UNCONFIGURED,
          'Prompt tokens that share one pass over the flash', 'tokens', 1, 4096),
    Entry('lookup_tokens', 4, UNCONFIGURED,
          'Tokens guessed from the text so far and computed in the same pass over the flash, '
          'in modes exact and aggressive; 0: none', 'tokens', 0, 64),
    Entry('structured', False, UNCONFIGURED,
          'Requests may have constraints, for which llguidance and memory for it are needed: the '
          'memory plan shows how much'),
    Entry('force_batches', True, UNCONFIGURED,
          'Tokens that a constraint forces share one pass over the flash; false only to compare'),
    Entry('whole_groups', False, UNCONFIGURED,
          'Sparse mode also uses neurons that are read along with active ones: no more is read, '
          'more is computed, and less of the text is lost'),
    Entry('read_ahead', False, UNCONFIGURED,
          'Sparse mode of a ReLU model also predicts each layer from the input of the one before, '
          'and reads that while the one before is computed: the same text, more bytes, less '
          'waiting'),
    Entry('token_deadline_ms', 0.0, UNCONFIGURED,
          'Time of one token in sparse mode, where neurons that cannot be read in it are left out; '
          '0: as long as it takes', 'ms', 0.0, 1e6),
    Entry('threads', 1, UNCONFIGURED, 'Threads that compute', 'threads', 1, 256),
    Entry('reader', 'auto', UNCONFIGURED,
          'How flash is read; auto: with io_uring where kernel and container allow it',
          choices=('auto', 'io_uring', 'threads')),
    Entry('reads_in_flight', 32, UNCONFIGURED, 'Reads at once', 'reads', 1, 256),
    Entry('direct_io', True, UNCONFIGURED, 'Read past the page cache'),
    Entry('lock_memory', True, UNCONFIGURED, 'Lock the window in memory where this is allowed'),
    Entry('verify', True, UNCONFIGURED, 'Check the hashes of the store when it is opened'),
    Entry('window_policy', 'least_likely', UNCONFIGURED,
          'Which cached groups yield to others', form=POLICY_FORM, is_right=_is_policy),
    Entry('core', 'native', UNCONFIGURED,
          'Compiled core, or its slow reference', choices=('native', 'numpy')),
    Entry('max_sessions', 4, UNCONFIGURED,
          'Conversations that are kept between requests; the one used longest ago gives way',
          'conversations', 0, MOST_SESSIONS),
    Entry('session_folder', '', UNCONFIGURED,
          'Folder on flash for keys and values of conversations, of requests that stand back and '
          'of the system prompt; empty: the cache folder of the user'),
    Entry('queue_size', 4, UNCONFIGURED,
          'Requests that may wait while one runs; more are refused', 'requests', 0, 1000),
    Entry('when_busy', 'queue', ALWAYS,
          'What becomes of a request that finds the engine busy: queue: it waits; keep_last: only '
          'the newest waits; reject: it is refused; interrupt: it ends what runs',
          choices=WHEN_BUSY),
    Entry('duty_cycle', 1.0, AT_ONCE,
          'Share of the time in which the engine works; less saves heat and energy', '',
          0.05, 1.0),
    Entry('max_threads', 256, AT_ONCE,
          'Of the `threads`, how many compute in the core', 'threads', 1, 256),
    Entry('stream_period', 0.05, ALWAYS,
          'Shortest time between two chunks of an answer', 's', 0.001, 60.0),
    Entry('default_deadline', 600.0, ALWAYS,
          'Deadline of action goals and topic prompts that bring none; 0: none', 's',
          0.0, LONGEST),
    Entry('service_deadline', 30.0, ALWAYS,
          'Deadline of service calls that bring none', 's', 0.001, LONGEST),
    Entry('status_rate', 2.0, NEVER, 'Messages on ~/status', '1/s', 0.01, 100.0),
    Entry('flash_slowdown_warning', 4.0, ALWAYS,
          '/diagnostics warns when reads that are waited for take so many times as long as the '
          'device profile allows', 'times', 1.0, 1e6),
    Entry('hit_rate_warning', 0.0, ALWAYS,
          '/diagnostics warns when a smaller share of the groups is found in the window; 0: never',
          '', 0.0, 1.0),
    Entry('memory_tolerance', '16MB', ALWAYS,
          'What ROS and Python may take beside dram_budget before /diagnostics warns; twice as '
          'much is an error', byte_size=True),
    Entry('temperature_warning', 80.0, ALWAYS,
          '/diagnostics warns from this temperature of the hottest zone on', '°C', -40.0, 200.0),
    Entry('temperature_error', 95.0, ALWAYS,
          'From this temperature on it is an error', '°C', -40.0, 200.0),
    Entry('max_tokens', 128, ALWAYS,
          'Longest answer to requests that ask for no other', 'tokens', 1, 2**20),
    Entry('system_prompt', '', ALWAYS,
          'System prompt of requests that bring none, whose keys and values are kept on flash; '
          'empty: what the chat template puts there'),
    Entry('temperature', 0.0, ALWAYS, 'For prompts on ~/prompt; 0: greedy', '', 0.0, 100.0),
    Entry('top_k', 0, ALWAYS, 'For prompts on ~/prompt; 0: all', 'tokens', 0, 2**20),
    Entry('top_p', 1.0, ALWAYS, 'For prompts on ~/prompt', '', 1e-6, 1.0),
    Entry('min_p', 0.0, ALWAYS, 'For prompts on ~/prompt', '', 0.0, 1.0),
    Entry('repetition_penalty', 1.0, ALWAYS, 'For prompts on ~/prompt; 1: none', '', 0.01, 100.0),
    Entry('seed', 0, ALWAYS, 'For prompts on ~/prompt', '', 0, 2**63 - 1),
)
BY_NAME = {entry.name: entry for entry in TABLE}


class Parameters:
    """The node's parameters, declared, guarded and read as typed values."""

    def __init__(self, node: Node, is_configured: Callable[[], bool]) -> None:
        self._node = node
        self._is_configured = is_configured
        # Registered first, so that it also sees the values given on the command line.
        node.add_on_set_parameters_callback(self._check)
        for entry in TABLE:
            node.declare_parameter(entry.name, entry.default, entry.descriptor())

    def __getitem__(self, name: str) -> Value:
        return self._node.get_parameter(name).value

    def engine_config(self) -> EngineConfig:
        """Return what the engine is opened with; raises FlashLlmError(INVALID_PARAMETER, ...)."""
        if not self['store']:
            raise FlashLlmError(
                ErrorCode.STORE_NOT_FOUND,
                'The parameter `store` is empty; it has to name the folder of a flash store.')
        names = ('mode', 'context_length', 'prefill_chunk', 'lookup_tokens', 'structured',
                 'force_batches', 'whole_groups', 'read_ahead', 'token_deadline_ms', 'threads',
                 'reader',
                 'reads_in_flight', 'direct_io', 'lock_memory', 'verify', 'window_policy', 'core',
                 'max_sessions')
        folder = self['session_folder']
        return EngineConfig(
            store=Path(self['store']).expanduser(),
            dram_budget=parse_byte_size('dram_budget', self['dram_budget']),
            session_folder=Path(folder).expanduser() if folder else None,
            sparsity=self['sparsity'] if self['sparsity'] >= 0 else None,
            neuron_share=self['neuron_share'] if self['neuron_share'] >= 0 else None,
            **{name: self[name] for name in names})

    def sampling(self) -> SamplingParams:
        """Return the sampling of prompts that cannot bring their own."""
        names = ('temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty', 'seed')
        return SamplingParams(**{name: self[name] for name in names})

    def _check(self, parameters: list[Parameter]) -> SetParametersResult:
        """All that are set together are taken, or none is and every reason is told."""
        entries = [(BY_NAME[parameter.name], parameter.value) for parameter in parameters
                   if parameter.name in BY_NAME]
        reasons = [self._complaint(entry, value) for entry, value in entries]
        reason = ' '.join(text for text in reasons if text)
        return SetParametersResult(successful=not reason, reason=reason)

    def _complaint(self, entry: Entry, value: Value | None) -> str:
        if entry.change is Change.UNCONFIGURED and self._is_configured():
            return f'{entry.name} is read when the node is configured; clean the node up first.'
        return entry.complaint(value)
