"""Which tokens end an answer, and which ones a chat template may name."""

from collections.abc import Iterable, Mapping

# Of control tokens, as llama.cpp knows them: checkpoints often name but one of theirs.
_ENDS = frozenset((
    '<|eot_id|>', '<|im_end|>', '<|end|>', '<|return|>', '<|call|>', '<|flush|>', '<|calls|>',
    '<end_of_turn>', '<|endoftext|>', '</s>', '<|eom_id|>', '<EOT>', '_<EOT>', '[EOT]', '[EOS]',
    '<|end_of_text|>', '<end_of_utterance>', '<eos>', '<turn|>', '<|tool_response>',
    '<｜end▁of▁sentence｜>', '[e~[',
    # What follows a piece of code that was filled in.
    '<|fim_pad|>', '<fim-pad>', '<fim_pad>', '<|fim_repo|>', '<|repo_name|>', '<fim-repo>',
    '<REPO>', '<reponame>', '<|file_sep|>'))
# Where a model has these, <|end|> only ends a part of an answer.
_OF_PARTS = tuple((one, other) for one in ('<|return|>', '<|flush|>')
                  for other in ('<|call|>', '<|calls|>'))
NO_TOKEN = (-1, 0xFFFF_FFFF)        # what some files have as the number of one that they lack
TEMPLATE_NAMES = ('bos_token', 'eos_token', 'unk_token', 'pad_token')
NO_END = ('no token is named that ends an answer: every one goes on to its max_tokens; name one as '
          'eos_token_id, in generation_config.json or the metadata of the GGUF file')


def end_tokens(named: Iterable[int], control: Mapping[str, int]) -> tuple[int, ...]:
    """Those that the checkpoint names, then those that are known by their texts.

    `control` has all control tokens by their texts.
    """
    texts = _ENDS.intersection(control)
    if any(texts.issuperset(pair) for pair in _OF_PARTS):
        texts -= {'<|end|>'}
    return tuple(dict.fromkeys((*named, *sorted(control[text] for text in texts))))
