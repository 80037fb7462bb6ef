"""Runs the demo and draws what it prints: `python tools/draw_demo.py STORE doc/demo.svg`."""

import argparse
from html import escape
from pathlib import Path
import subprocess
import sys

COMMAND = 'from flash_llm_ros.cli.main import main; raise SystemExit(main())'
WIDTH, LINE, MARGIN = 8.4, 18, 16       # pixels: of a character, of a line, around all


def demo(store: Path) -> list[str]:
    """Return the lines of a real run, from the question on; raises CalledProcessError."""
    done = subprocess.run([sys.executable, '-c', COMMAND, 'demo', '--store', str(store)],
                          check=True, stdout=subprocess.PIPE, text=True)
    return ['$ make demo', *done.stdout[done.stdout.index('> '):].rstrip().splitlines()]


def svg(lines: list[str]) -> str:
    """Return the lines as a picture of a terminal, with no font or script from elsewhere."""
    width = max(map(len, lines)) * WIDTH + 2 * MARGIN
    height = len(lines) * LINE + 2 * MARGIN
    texts = '\n'.join(
        f'<text x="{MARGIN}" y="{MARGIN + (row + 0.75) * LINE:.0f}" '
        f'fill="{"#8ec07c" if line.startswith(("$", ">")) else "#ebdbb2"}">{escape(line)}</text>'
        for row, line in enumerate(lines) if line)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}">\n'
            '<rect width="100%" height="100%" rx="8" fill="#282828"/>\n'
            f'<g font-family="monospace" font-size="14" xml:space="preserve">\n{texts}\n</g>\n'
            '</svg>\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('store', type=Path)
    parser.add_argument('picture', type=Path)
    options = parser.parse_args()
    options.picture.write_text(svg(demo(options.store)), encoding='utf-8')


if __name__ == '__main__':
    main()
