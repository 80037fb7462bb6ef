"""What becomes of text, process and memory when flash, files and input are damaged: each row is a
seeded campaign, each trial a process with a limit of time and of memory.
"""

from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path
import sys
import tempfile

from bench.faults.outcome import BAD, Outcome
from bench.faults.processes import processes
from bench.faults.rows import ROWS
from bench.faults.stores import write_stores
from bench.support.command import Report, at_least, command, run, show

LIMIT_S = 120.0         # until a trial counts as hanging; the longest stall is one of 10 s


def measure(options: Namespace) -> Report:
    seeds = range(options.seed, options.seed + options.count)
    counts, bad, details = {}, [], []
    with tempfile.TemporaryDirectory(prefix='flash_llm_faults_') as folder:
        write_stores(Path(folder))
        with processes(Path(folder), LIMIT_S) as trials:
            for name in options.row or ROWS:
                counts[name] = Counter()
                for seed in seeds:
                    ending = trials.attempt(name, seed)
                    counts[name][ending.outcome] += 1
                    details.append({'row': name, 'seed': seed, 'outcome': ending.outcome,
                                    'detail': ending.detail})
                    if ending.outcome in BAD:
                        bad.append(details[-1])
                        print(f'--row "{name}" --seed {seed} --count 1: {ending.outcome}: '
                              f'{ending.detail}')
    show(('fault', *Outcome), [(name, *(str(found[outcome]) for outcome in Outcome))
                               for name, found in counts.items()])
    trials_made = options.count * len(counts)
    return Report({'counts': counts, 'trials': details},
                  f'{trials_made} trials, {len(bad)} with {", ".join(BAD[:-1])} or {BAD[-1]}',
                  bool(bad))


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('--row', action='append', choices=ROWS, metavar='NAME',
                        help=f'may be given several times (default: all): {", ".join(ROWS)}')
    result.add_argument('--seed', type=at_least(0), default=0, help='of the first trial')
    result.add_argument('--count', type=at_least(1), default=100, help='trials a row')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
