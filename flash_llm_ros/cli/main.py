"""`flash_llm COMMAND`: each command is a module of this package."""

import argparse
from importlib import import_module
import sys

COMMANDS = {
    'convert': 'write a flash store from a GGUF file or a Hugging Face folder',
    'calibrate': 'learn from text which neurons a flash store needs',
    'verify': "compare a flash store's files with its manifest",
    'inspect': 'print what a flash store holds',
    'probe': 'measure the flash device under a store, and plan its reads by that',
    'prompt': 'answer one prompt without ROS',
    'trace': 'record which neurons the tokens of a text need',
    'demo': 'start the node, ask it something, show what the answer cost',
    'replay': 'send the prompts of a bag to a running node and compare the answers',
}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog='flash_llm', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    wanted = next((word for word in arguments if word in COMMANDS), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f'{summary}.')
        if name == wanted:      # only the command that runs is imported
            module = import_module(f'{__package__}.{name}')
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print('flash_llm: interrupted', file=sys.stderr)
        return 130


def fail(error: Exception) -> int:
    """Report an expected failure; returns the exit code."""
    print(f'flash_llm: {error}', file=sys.stderr)
    return 1
