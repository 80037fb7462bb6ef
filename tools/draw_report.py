"""Writes the first plot of a store's report: `python tools/draw_report.py STORE doc/budget.svg`."""

import argparse
from pathlib import Path
import re
import subprocess
import sys
import tempfile

COMMAND = 'from flash_llm_ros.cli.main import main; raise SystemExit(main())'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('store', type=Path)
    parser.add_argument('picture', type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, 'report.html')
        subprocess.run([sys.executable, '-c', COMMAND, 'report', str(options.store), '--out',
                        str(page)], check=True)
        drawn = re.search(r'<svg.*?</svg>', page.read_text('utf-8'), re.DOTALL)
    options.picture.write_text(drawn[0] + '\n', 'utf-8')


if __name__ == '__main__':
    main()
