"""The tokens of 500 texts in 20 scripts, of code, signs and special tokens, read from a GGUF file
and those of llama.cpp (the wheel xllamacpp), with the special tokens in them and without.

llama.cpp takes </s> for a special token in every vocabulary, the models' own tokenizers do not:
texts that have it are left out of the comparison.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
import json
from pathlib import Path
import sys
from urllib.request import Request, urlopen

from bench.support.command import Report, command, run, show
from bench.support.world_texts import world_texts
from flash_llm_ros.checkpoint.gguf_parts import GgufParts
from flash_llm_ros.checkpoint.gguf_tokenizer import tokenizer_json
from flash_llm_ros.engine.text.tokenizer import LibraryTokenizer

Encode = Callable[[str, bool], list[int]]       # (text, whether special tokens are read as such)


@contextmanager
def llama_cpp(path: Path) -> Iterator[Encode]:
    """The tokens of llama.cpp, by its server on this machine; ImportError."""
    import xllamacpp  # requirements/bench.txt

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.verbosity = 64, -1
    parameters.warmup = parameters.fit_params = False
    server = xllamacpp.Server(parameters)

    def encode(text: str, special: bool) -> list[int]:
        body = {'content': text, 'add_special': False, 'parse_special': special}
        with urlopen(Request(f'{server.listening_address}/tokenize', json.dumps(body).encode(),
                             {'Content-Type': 'application/json'})) as answer:
            return json.load(answer)['tokens']

    yield encode


def differing(path: Path) -> tuple[int, int, list[str]]:
    """How many texts and tokens were compared, and the texts whose tokens are others."""
    ours = LibraryTokenizer(tokenizer_json(GgufParts(path).fields))
    texts = [text for text in world_texts() if '</s>' not in text]
    count, others = 0, []
    with llama_cpp(path) as theirs:
        for text in texts:
            expected = theirs(text, True), theirs(text, False)
            count += sum(map(len, expected))
            if (ours.encode(text), ours.encode_inside(text)) != expected:
                others.append(text)
    return len(texts), count, others


def measure(options: Namespace) -> Report:
    found = {path.name: differing(path) for path in options.models}
    show(('model', 'texts', 'tokens', 'texts with others'),
         [(name, str(texts), str(tokens), str(len(others)))
          for name, (texts, tokens, others) in found.items()])
    wrong = sum(len(others) for _, _, others in found.values())
    return Report({name: {'texts': texts, 'tokens': tokens, 'others': others}
                   for name, (texts, tokens, others) in found.items()},
                  f'{len(found)} vocabularies: {wrong} texts have other tokens than llama.cpp '
                  'gives', wrong > 0)


def parser() -> ArgumentParser:
    commands = command(__doc__)
    commands.add_argument('models', type=Path, nargs='+', metavar='GGUF')
    return commands


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
