"""`flash_llm chat`: a conversation in the terminal, with the running node or from a store."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
import os
from pathlib import Path
import sys

from flash_llm_ros.cli.main import fail
from flash_llm_ros.store.errors import FlashLlmError

EPILOG = """\
examples:
  flash_llm chat                                   with the running node
  flash_llm chat --node /robot/flash_llm --system 'You are the voice of a robot.'
  flash_llm chat /data/smollm2.store --budget 96MB

Ctrl-C stops an answer, which is then not remembered; Ctrl-D ends. The node keeps the conversation
as one of its sessions. Where it gets too long for the context the oldest turns go, and it says so.
"""
Ask = Callable[[str], Iterator[str]]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('store', nargs='?', type=Path,
                        help='a flash store, for an engine of its own (default: the node answers)')
    parser.add_argument('--node', default='flash_llm', metavar='NAME',
                        help='with its namespace (default: flash_llm)')
    parser.add_argument('--budget', default='256MB', metavar='SIZE',
                        help='DRAM budget of an engine of its own (default: 256MB)')
    parser.add_argument('--context', type=int, default=2048, metavar='N',
                        help='tokens of the whole conversation, likewise (default: 2048)')
    parser.add_argument('--system', default='', metavar='TEXT', help='system prompt')
    parser.add_argument('--max-tokens', type=int, default=256, metavar='N',
                        help='of each answer (default: 256)')


def run(options: Namespace) -> int:
    """Return 0 at the end of input, 1 where nobody answers."""
    partner = _node if options.store is None else _engine
    try:
        with partner(options) as ask:
            return _talk(ask)
    except ImportError as error:
        return fail(ImportError(f'ROS 2 is not there ({error.name}); source it first, or name a '
                                'store: flash_llm chat STORE'))
    except (ConnectionError, FlashLlmError, OSError, ValueError) as error:
        return fail(error)


def _talk(ask: Ask) -> int:
    while True:
        try:
            text = input('> ')
        except EOFError:
            print()
            return 0
        if not text.strip():
            continue
        try:
            with closing(ask(text)) as pieces:
                for piece in pieces:
                    print(piece, end='', flush=True)
            print('\n')
        except KeyboardInterrupt:
            print('\n[stopped]\n')
        except (FlashLlmError, ValueError) as error:        # of this turn: the next may do
            print()
            fail(error)


@contextmanager
def _node(options: Namespace) -> Iterator[Ask]:
    from flash_llm_ros.client import FlashLlmClient

    session = f'chat-{os.getpid()}'
    with FlashLlmClient(options.node) as client:
        def ask(text: str) -> Iterator[str]:
            pending = client.start(
                text, session_id=session, system_prompt=options.system,
                max_tokens=options.max_tokens, drop_oldest_turns=True)
            try:
                yield from pending
                yield _dropped(pending.result().stats.dropped_tokens)
            finally:
                pending.cancel()

        yield ask


@contextmanager
def _engine(options: Namespace) -> Iterator[Ask]:
    from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
    from flash_llm_ros.engine.byte_size import parse_byte_size

    engine = Engine.open(
        EngineConfig(options.store, parse_byte_size('budget', options.budget),
                     context_length=options.context, max_sessions=1),
        lambda line: print(line, file=sys.stderr))

    def ask(text: str) -> Iterator[str]:
        generation = engine.start(GenerationRequest(
            text, options.system, max_tokens=options.max_tokens, session_id='chat',
            drop_oldest_turns=True))
        yield from generation
        yield _dropped(generation.stats.dropped_tokens)

    try:
        yield ask
    finally:
        engine.close()


def _dropped(tokens: int) -> str:
    return f'\n[the context is full: {tokens} tokens of the oldest turns are gone]' * bool(tokens)
