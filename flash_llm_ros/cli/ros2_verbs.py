"""`ros2 flash_llm VERB`, by the entry points of ros2cli: the commands of `flash_llm`.

Loaded by ros2cli alone; the interface is that of ros2cli's CommandExtension and VerbExtension.
"""

from argparse import ArgumentParser, Namespace
from types import ModuleType

from flash_llm_ros.cli.main import COMMANDS, EPILOG, carry_out, declare

VERBS = 'flash_llm.verb'    # the entry point group, see setup.py


class FlashLlmCommand:
    """Flash stores, the node that answers from them, and what both can do on this machine."""

    NAME = 'flash_llm'
    EXTENSION_POINT_VERSION = '0.1'

    def add_arguments(
        self, parser: ArgumentParser, cli_name: str, *, argv: list[str] | None = None,
    ) -> None:
        """Add a sub-parser for every verb."""
        from ros2cli.command import add_subparsers_on_demand

        self._parser = parser
        parser.epilog = EPILOG
        add_subparsers_on_demand(parser, cli_name, '_verb', VERBS, required=False,
                                 argv=argv)

    def main(self, *, parser: ArgumentParser, args: Namespace) -> int:
        """Run the verb, or print the help where there is none."""
        if not hasattr(args, '_verb'):
            self._parser.print_help()
            return 0
        return args._verb.main(args=args)


class Verb:
    """One command of `flash_llm`; ros2cli sets ``NAME`` to the name of the entry point."""

    NAME = ''
    EXTENSION_POINT_VERSION = '0.1'
    _module: ModuleType

    def add_arguments(self, parser: ArgumentParser, cli_name: str) -> None:
        """Add the arguments of the command."""
        self._module = declare(self.NAME, parser)

    def main(self, *, args: Namespace) -> int:
        """Run the command; returns its exit code."""
        return carry_out(self._module.run, args)


# ros2cli keeps one object of each class, so that every verb needs a class of its own.
CLASSES = {
    f'{name.capitalize()}Verb': type(
        f'{name.capitalize()}Verb', (Verb,),
        {'__doc__': f'{summary[0].upper()}{summary[1:]}.', 'NAME': name})
    for name, summary in COMMANDS.items()
}
globals().update(CLASSES)
