"""Every parameter of the node in one table: type, default, unit, range, and when it may change."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
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
from flash_llm_ros.engine.config import (
    KV_CACHES,
    MODES,
    MOST_READS_IN_FLIGHT,
    MOST_SESSIONS,
    MOST_THREADS,
    READERS,
)
from flash_llm_ros.engine.text.chat_template import check_text
from flash_llm_ros.node.work.scheduler import WHEN_BUSY
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

    @property
    def field(self) -> str:
        """The name without its group."""
        return self.name.rpartition('.')[2]

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
        return f'one of {", ".join(self.choices)}' if self.choices else ''

    def wrong_type(self, value: object) -> str:
        """Return what is wrong with the type of a value, or ''; byte sizes have any."""
        if self.byte_size or type(value) is type(self.default):
            return ''
        wanted = {bool: 'true or false', int: 'an integer', float: 'a number', str: 'a text'}
        return f'{self.name} is {value!r}; it has to be {wanted[type(self.default)]}.'

    def complaint(self, value: Value | None) -> str:
        """Return what is wrong with a value that has the right type and range, or ''."""
        if self.byte_size:
            try:
                parse_byte_size(self.name, value)
            except FlashLlmError as error:
                return str(error)
        if isinstance(value, float) and not math.isfinite(value):
            return f'{self.name} is {value}; it has to be a finite number.'
        if self.choices and value not in self.choices:
            return f'{self.name} is {value!r}; it has to be {self.constraint}.'
        return ''


NEVER, UNCONFIGURED, ALWAYS, AT_ONCE = Change
LONGEST = 1e6  # s; longer waits are mistakes

# What is read when the node is configured is a field of EngineConfig of the same name, the group
# aside.
TABLE = (
    Entry('autostart', False, NEVER,
          'Configure and activate without being asked, also after a respawn'),
    Entry('store', '', UNCONFIGURED, 'Folder of the flash store'),
    Entry('draft_store', '', UNCONFIGURED,
          'Folder of the flash store of a small model with the same tokenizer, which lies in '
          'memory.dram_budget and guesses tokens that one pass of the large model checks; left out '
          'where the window gains more by its memory; empty: none'),
    Entry('mode', EngineConfig.mode, UNCONFIGURED,
          'Which neurons are used: exact: every one; gated: of a ReLU model, those that its '
          'predictors foresee; auto: gated where it costs at most 1 % of perplexity, by the '
          'calibration of the store, and its reads are estimated to take less time, else exact',
          choices=MODES),
    Entry('memory.dram_budget', '256MB', UNCONFIGURED,
          'Memory the engine may use in all, on top of the bare process', byte_size=True),
    Entry('memory.context_length', EngineConfig.context_length, UNCONFIGURED,
          'Longest prompt and answer together; the default is what the model was trained for, '
          'if that is less', 'tokens', 2, 2**20),
    Entry('memory.kv_cache', EngineConfig.kv_cache, UNCONFIGURED,
          'Numbers of keys and values: int8, or int16, which takes twice as much; models with '
          'layer norms or learned positions have fp16', choices=KV_CACHES),
    Entry('memory.prefill_chunk', EngineConfig.prefill_chunk, UNCONFIGURED,
          'Prompt tokens that share one pass over the flash; 0: 64, or with experts as many as '
          'take least time by their size, the budget and the device', 'tokens', 0, 4096),
    Entry('memory.max_sessions', EngineConfig.max_sessions, UNCONFIGURED,
          'Conversations that are kept between requests; the one used longest ago gives way',
          'conversations', 0, MOST_SESSIONS),
    Entry('flash.reader', EngineConfig.reader, UNCONFIGURED,
          'How flash is read; auto: with io_uring where kernel and container allow it',
          choices=READERS),
    Entry('flash.reads_in_flight', EngineConfig.reads_in_flight, UNCONFIGURED,
          'Reads at once', 'reads', 1, MOST_READS_IN_FLIGHT),
    Entry('flash.verify', EngineConfig.verify, UNCONFIGURED,
          'Check the hashes of the store when it is opened'),
    Entry('flash.session_folder', '', UNCONFIGURED,
          'Folder on flash for keys and values of conversations, of requests that stand back and '
          'of the system prompt; empty: the cache folder of the user'),
    Entry('compute.threads', EngineConfig.threads, UNCONFIGURED,
          'Threads that compute', 'threads', 1, MOST_THREADS),
    Entry('compute.max_threads', MOST_THREADS, AT_ONCE,
          'Of the `compute.threads`, how many compute in the core', 'threads', 1, MOST_THREADS),
    Entry('compute.duty_cycle', 1.0, AT_ONCE,
          'Share of the time in which the engine works; less saves heat and energy', '',
          0.05, 1.0),
    Entry('compute.lookup_tokens', EngineConfig.lookup_tokens, UNCONFIGURED,
          'Tokens guessed from the text so far and computed in the same pass over the flash, '
          'in mode exact; 0: none', 'tokens', 0, 64),
    Entry('requests.structured', EngineConfig.structured, UNCONFIGURED,
          'Requests may have constraints and tools, for which llguidance, jsonschema and memory '
          'are needed: the memory plan shows how much'),
    Entry('requests.queue_size', 4, ALWAYS,
          'Requests that may wait while one runs; more are refused', 'requests', 0, 1000),
    Entry('requests.when_busy', 'queue', ALWAYS,
          'What becomes of a request that finds the engine busy: queue: it waits; keep_last: only '
          'the newest waits; reject: it is refused; interrupt: it ends what runs',
          choices=WHEN_BUSY),
    Entry('requests.default_deadline', 600.0, ALWAYS,
          'Deadline of action goals and topic prompts that bring none; 0: none', 's',
          0.0, LONGEST),
    Entry('requests.service_deadline', 30.0, ALWAYS,
          'Deadline of service calls that bring none', 's', 0.001, LONGEST),
    Entry('requests.stream_period', 0.05, ALWAYS,
          'Shortest time between two chunks of an answer', 's', 0.001, 60.0),
    Entry('requests.max_tokens', 128, ALWAYS,
          'Longest answer to requests that ask for no other', 'tokens', 1, 2**20),
    Entry('requests.system_prompt', '', ALWAYS,
          'System prompt of requests that bring none, whose keys and values are kept on flash; '
          'empty: what the chat template puts there'),
    Entry('sampling.temperature', 0.0, ALWAYS, 'For prompts on ~/prompt; 0: greedy', '',
          0.0, 100.0),
    Entry('sampling.top_k', 0, ALWAYS, 'For prompts on ~/prompt; 0: all', 'tokens', 0, 2**20),
    Entry('sampling.top_p', 1.0, ALWAYS, 'For prompts on ~/prompt', '', 1e-6, 1.0),
    Entry('sampling.min_p', 0.0, ALWAYS, 'For prompts on ~/prompt', '', 0.0, 1.0),
    Entry('sampling.repetition_penalty', 1.0, ALWAYS, 'For prompts on ~/prompt; 1: none', '',
          0.01, 100.0),
    Entry('sampling.seed', 0, ALWAYS, 'For prompts on ~/prompt', '', 0, 2**63 - 1),
    Entry('health.flash_slowdown_warning', 4.0, ALWAYS,
          '/diagnostics warns when reads that are waited for take so many times as long as the '
          'device profile allows', 'times', 1.0, 1e6),
    Entry('health.memory_tolerance', '16MB', ALWAYS,
          'What ROS and Python may take beside memory.dram_budget before /diagnostics warns; twice '
          'as much is an error', byte_size=True),
    Entry('health.stall_error', 60.0, ALWAYS,
          'A request, or a store that is opened, without any progress for so long is an error; a '
          'transition that waits for it then ends the process, with an exit code that makes '
          '`respawn` start it again',
          's', 1.0, LONGEST),
    Entry('health.temperature_warning', 80.0, ALWAYS,
          '/diagnostics warns from this temperature of the hottest zone on', '°C', -40.0, 200.0),
    Entry('health.temperature_error', 95.0, ALWAYS,
          'From this temperature on it is an error', '°C', -40.0, 200.0),
)
BY_NAME = {entry.name: entry for entry in TABLE}
RENAMED = {entry.field: entry.name for entry in TABLE if entry.field != entry.name}
LEFT = {
    'core': 'the compiled core is the only one',
    'direct_io': 'reads go past the page cache wherever the file system allows it',
    'force_batches': 'tokens that a constraint forces always share a pass over the flash',
    'hit_rate_warning': 'see `window hit rate` in /diagnostics',
    'lock_memory': 'the window is locked in memory wherever this is allowed',
    'neuron_share': 'mode aggressive has left with it; see `mode`',
    'read_ahead': "it is automatic, in the device's idle time",
    'sparsity': 'mode gated leaves out what the predictors of the store say; see `mode`',
    'status_rate': '~/status comes twice a second',
    'token_deadline_ms': 'no neuron is left out by time; requests have deadlines',
    'whole_groups': 'mode gated computes what its predictors foresee; see `mode`',
    'window_policy': 'there is one policy',
}
OF_RCLPY = ('use_sim_time', 'start_type_description_service', 'qos_overrides.')     # or begin so


def unknown_name(name: str) -> str:
    """Return what a name stands for that is none of ours or of ROS, in a sentence; '' for those."""
    if name in BY_NAME or name.startswith(OF_RCLPY):
        return ''
    if name in RENAMED:
        return f'The parameter `{name}` is now called `{RENAMED[name]}`.'
    if name in LEFT:
        return f'The parameter `{name}` has left: {LEFT[name]}.'
    # By its whole name, or by that behind a group, which is then a wrong one or missing.
    near = get_close_matches(name, BY_NAME, 1) or [
        RENAMED[field] for field in get_close_matches(name.rpartition('.')[2], RENAMED, 1)]
    return f'There is no parameter `{name}`{f"; `{near[0]}` is the nearest" if near else ""}.'


def as_declared(parameter: Parameter) -> Parameter:
    """Return a parameter whose integer stands for a number, as in `duty_cycle: 1`, as a double."""
    entry = BY_NAME.get(parameter.name)
    if entry is not None and type(entry.default) is float and type(parameter.value) is int:
        return Parameter(parameter.name, value=float(parameter.value))
    return parameter


class Parameters:
    """The node's parameters, declared, guarded and read as typed values."""

    def __init__(self, node: Node, is_configured: Callable[[], bool]) -> None:
        """The node has declared what it was given; raises FlashLlmError(INVALID_PARAMETER)."""
        self._node = node
        self._is_configured = is_configured
        given = {name: as_declared(parameter)
                 for name, parameter in node.get_parameters_by_prefix('').items()}
        self._check_given(given)
        # Registered first, so that it also sees the values given on the command line.
        node.add_on_set_parameters_callback(self._check)
        for entry in TABLE:
            value = entry.default
            if entry.name in given:     # declared anew, with its range
                node.undeclare_parameter(entry.name)
                value = given[entry.name].value
            node.declare_parameter(entry.name, value, entry.descriptor(), ignore_override=True)

    def __getitem__(self, name: str) -> Value:
        return self._node.get_parameter(name).value

    def _check_given(self, given: Mapping[str, Parameter]) -> None:
        """Names and types: rclpy takes the type of a parameter from the value that it is given."""
        refusals = [unknown_name(name) for name in given]
        refusals += [entry.wrong_type(given[entry.name].value) for entry in TABLE
                     if entry.name in given]
        if sentences := ' '.join(filter(None, refusals)):
            raise FlashLlmError(ErrorCode.INVALID_PARAMETER, sentences)

    def engine_config(self) -> EngineConfig:
        """Return what the engine is opened with; raises FlashLlmError(INVALID_PARAMETER, ...)."""
        if not self['store']:
            raise FlashLlmError(
                ErrorCode.STORE_NOT_FOUND,
                'The parameter `store` is empty; it has to name the folder of a flash store.')
        values = {entry.field: self[entry.name] for entry in TABLE
                  if entry.change is Change.UNCONFIGURED}
        folders = {name: Path(values[name]).expanduser() if values[name] else None
                   for name in ('store', 'draft_store', 'session_folder')}
        return EngineConfig(**values | folders | {
            'dram_budget': parse_byte_size('memory.dram_budget', values['dram_budget']),
            # A bag's, where the node runs on simulated time.
            'clock': lambda: self._node.get_clock().now().nanoseconds / 1e9})

    def sampling(self) -> SamplingParams:
        """Return the sampling of prompts that cannot bring their own."""
        return SamplingParams(**{entry.field: self[entry.name] for entry in TABLE
                                 if entry.name.startswith('sampling.')})

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
        if entry.name == 'requests.system_prompt':
            try:
                check_text(entry.name, value, self['memory.context_length'])
            except FlashLlmError as error:
                return str(error)
        return entry.complaint(value)
