"""Flash stores, the node that answers from them, and what both can do on this machine."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
import errno
from importlib import import_module
from importlib.metadata import version
import os
import signal
import sys
from types import FrameType, ModuleType

# Each command is a module of this package with `add_arguments`, `run` and an `EPILOG`.
COMMANDS = {
    'doctor': 'say what this machine is, and which model in which budget it carries',
    'preset': 'show models by name: where they are, how to convert them, in which budget they run',
    'convert': 'write a flash store from a GGUF file or a Hugging Face folder',
    'calibrate': 'learn from text which neurons a ReLU model needs',
    'verify': "compare a flash store's files with its manifest",
    'inspect': 'print what a flash store holds',
    'probe': 'measure the flash device under a store, and plan its reads by that',
    'bench': 'measure how fast this machine answers from a store, and in how much memory',
    'prompt': 'answer one prompt, by the running node or by the engine alone',
    'chat': 'talk with the running node, or with a store, in the terminal',
    'serve': "answer OpenAI's chat completions over HTTP, by the running node",
    'top': 'watch the running node',
    'report': 'write one page on a flash store: what it holds, its speed, settings',
    'demo': 'start the node, ask it something, show what the answer cost',
    'replay': 'send the prompts of a bag to a running node and compare the answers',
}
# Of earlier versions: what to do instead.
LEFT = {
    'order': "convert puts a ReLU model's neurons in order by itself; all others are exact",
    'recover': 'nothing is left out any more that would have to be corrected',
    'relufy': 'weights that were trained for it are put into a store by `convert --ffn FILE`',
    'trace': '`python -m bench.window.trace` does it, in the source folder',
}
PACKAGE = 'flash_llm_ros'
CONVERTING = ('gguf', 'ml_dtypes', 'onnx')      # libraries that a robot may be without
INTERRUPTED, BROKEN_PIPE = 130, 141
EPILOG = """\
exit codes:
  0    done
  1    it failed; a sentence on stderr says why
  2    wrong usage
  130  interrupted by Ctrl-C
  141  whoever read the output has gone

`flash_llm COMMAND --help` shows options and examples. Where ros2cli is installed,
`ros2 flash_llm COMMAND` is the same.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. SystemExit(2) for wrong usage."""
    _open_closed_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog='flash_llm', description=__doc__, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--version', action='version', version=f'flash_llm_ros {version(PACKAGE)}',
                        help='print the version of the package and end')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    if arguments and arguments[0] in LEFT:
        parser.error(f'the command `{arguments[0]}` has left: {LEFT[arguments[0]]}.')
    wanted = next((word for word in arguments if word in COMMANDS), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=f'{summary}.',
            formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == wanted:      # only the command that runs is imported
            command.set_defaults(run=declare(name, command).run)
    options = parser.parse_args(arguments)
    return carry_out(options.run, options)


def _open_closed_streams() -> None:
    """Who is started without an output writes to nobody, not into the next file it opens."""
    for number, name in ((1, 'stdout'), (2, 'stderr')):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_WRONLY)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, 'w', closefd=False))


def declare(name: str, parser: argparse.ArgumentParser) -> ModuleType:
    """Load a command and give a parser its arguments and examples."""
    # NumPy is not imported yet. OpenBLAS' threads wait for each other by spinning: where other
    # processes run, a factorisation takes forty times as long with two as with one.
    os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
    with _on_interrupt(_leave):      # nothing has been done that would have to be undone
        try:
            module = import_module(f'{__package__}.{name}')
        except ModuleNotFoundError as error:
            sys.exit(_cannot_convert(error))
    module.add_arguments(parser)
    parser.epilog = module.EPILOG
    return module


def interrupted_once() -> AbstractContextManager[None]:
    """The first Ctrl-C is obeyed; more of them keep nobody from cleaning up, to the very end."""
    return _on_interrupt(_obey_once)


@contextmanager
def _on_interrupt(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:        # a background job ignores it
        signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is handle:
            signal.signal(signal.SIGINT, before)


def _leave(number: int, frame: FrameType | None) -> None:
    """End the process at once: an exception would come out of a library half imported."""
    os.write(sys.stderr.fileno(), b'flash_llm: interrupted\n')
    os._exit(INTERRUPTED)


def _obey_once(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def carry_out(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a command and return its exit code, also where it was interrupted."""
    try:
        code = run(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print('flash_llm: interrupted', file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _write_no_more()
        return BROKEN_PIPE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _write_no_more()
        return fail(error)
    except ModuleNotFoundError as error:
        return _cannot_convert(error)


def _cannot_convert(error: ModuleNotFoundError) -> int:
    if error.name not in CONVERTING:
        raise error
    return fail(ImportError(f'{error.name} is not there, which only converting needs: '
                            f'pip install {" ".join(CONVERTING)}'))


def _write_no_more() -> None:
    """Python would complain once more when it flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(sentence: str) -> None:
    print(f'flash_llm: warning: {sentence}', file=sys.stderr)


def fail(error: Exception) -> int:
    """Report an expected failure; returns the exit code."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        what = f'{error.filename}: {error.strerror}.'
    else:
        what = str(error)
    print(f'flash_llm: {what}', file=sys.stderr)
    return 1
