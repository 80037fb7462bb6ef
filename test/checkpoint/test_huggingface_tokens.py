"""What a Hugging Face folder says of its tokens: where texts begin and end, and its template."""

import json
from pathlib import Path

import pytest
from test_checkpoint_huggingface import edit_json
from tiny_checkpoint import byte_tokenizer

from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.open import open_checkpoint


@pytest.mark.parametrize(('config', 'generation', 'tokenizer', 'expected'), [
    (257, {}, {}, (257,)),
    ([257, 10], {}, {}, (257, 10)),
    (257, {'eos_token_id': [256, 257]}, {}, (256, 257)),
    (257, {'eos_token_id': 3}, {}, (3, 257)),
    (3, {'eos_token_id': None}, {}, (3, 257)),
    (3, {}, {'eos_token': '<|im_start|>'}, (3, 256, 257)),
    (3, {}, {'eos_token': {'content': '<|im_start|>', 'special': True}}, (3, 256, 257)),
    (3, {}, {'eos_token': 'not there'}, (3, 257)),
    (None, {}, {}, (257,)),        # <|im_end|>, by its name
    (-1, {}, {}, (257,)), ([3, -1], {}, {}, (3, 257)),      # there is none
    (3, {'eos_token_id': -1}, {'eos_token': '<|im_start|>'}, (256, 257)),
])
def test_end_tokens(checkpoint_folder: Path, config: object, generation: dict[str, object],
                    tokenizer: dict[str, object], expected: tuple[int, ...]) -> None:
    edit_json(checkpoint_folder / 'config.json', eos_token_id=config)
    edit_json(checkpoint_folder / 'generation_config.json', **generation)
    edit_json(checkpoint_folder / 'tokenizer_config.json', **tokenizer)
    checkpoint = open_checkpoint(checkpoint_folder)
    assert checkpoint.spec.end_tokens == expected and not checkpoint.doubts


def test_no_end_token(checkpoint_folder: Path) -> None:
    edit_json(checkpoint_folder / 'config.json', eos_token_id=None)
    definition = checkpoint_folder / 'tokenizer.json'
    definition.write_text(definition.read_text().replace('<|im_end|>', '<|im_other|>'))
    checkpoint = open_checkpoint(checkpoint_folder)
    assert checkpoint.spec.end_tokens == ()
    doubt, = checkpoint.doubts
    assert 'max_tokens' in doubt and 'generation_config.json' in doubt


@pytest.mark.parametrize(('files', 'expected'), [
    ({}, {'bos_token': '<|im_start|>', 'eos_token': '<|im_end|>'}),
    ({'config.json': {'bos_token_id': -1, 'pad_token_id': -1}}, {'eos_token': '<|im_end|>'}),
    ({'special_tokens_map.json': {'unk_token': {'content': '<unk>'}, 'eos_token': 'E'}},
     {'bos_token': '<|im_start|>', 'eos_token': 'E', 'unk_token': '<unk>'}),
    ({'special_tokens_map.json': {'eos_token': 'E'},
      'tokenizer_config.json': {'eos_token': 'F', 'pad_token': 'P', 'bos_token': None}},
     {'bos_token': '<|im_start|>', 'eos_token': 'F', 'pad_token': 'P'})])
def test_special_tokens(checkpoint_folder: Path, files: dict[str, dict[str, object]],
                        expected: dict[str, str]) -> None:
    for name, content in files.items():
        edit_json(checkpoint_folder / name, **content)
    assert open_checkpoint(checkpoint_folder).special_tokens == expected


def add_template(folder: Path) -> None:
    """Let the tokenizer itself put token 256 in front, as those of Llama 3 do."""
    edit_json(folder / 'tokenizer.json', post_processor={
        'type': 'TemplateProcessing',
        'single': [{'SpecialToken': {'id': '<|im_start|>', 'type_id': 0}},
                   {'Sequence': {'id': 'A', 'type_id': 0}}],
        'pair': [{'Sequence': {'id': 'A', 'type_id': 0}}, {'Sequence': {'id': 'B', 'type_id': 1}}],
        'special_tokens': {'<|im_start|>': {'id': '<|im_start|>', 'ids': [256],
                                            'tokens': ['<|im_start|>']}}})


OF_A = byte_tokenizer().token_to_id('a')


@pytest.mark.parametrize(('setting', 'config', 'in_tokenizer', 'expected'), [
    ({'add_bos_token': True}, 256, False, 256), ({'add_bos_token': False}, 256, True, None),
    ({'add_bos_token': True, 'bos_token': '<|im_end|>'}, None, False, 257),
    ({}, 256, True, 256), ({}, 256, False, None),
    ({'add_bos_token': True, 'bos_token': '<|im_end|>'}, -1, False, 257),
    ({'add_bos_token': True}, -1, False, None), ({}, -1, True, 256),
    ({}, None, True, 256), ({}, 3, True, 256), ({}, OF_A, False, None),     # as AutoTokenizer does
])
def test_begin_token(checkpoint_folder: Path, setting: dict[str, object], config: int | None,
                     in_tokenizer: bool, expected: int | None) -> None:
    edit_json(checkpoint_folder / 'tokenizer_config.json', **setting)
    edit_json(checkpoint_folder / 'config.json', bos_token_id=config)
    if in_tokenizer:
        add_template(checkpoint_folder)
    assert open_checkpoint(checkpoint_folder).spec.begin_token == expected


@pytest.mark.parametrize(('files', 'expected'), [
    ({'chat_template.jinja': 'a {{ b }}'}, 'a {{ b }}'),
    ({'tokenizer_config.json': '{"chat_template": "from settings"}'}, 'from settings'),
    ({'tokenizer_config.json': json.dumps({'chat_template': [
        {'name': 'tools', 'template': 'no'}, {'name': 'default', 'template': 'yes'}]})}, 'yes'),
    ({}, ''),
])
def test_chat_template(checkpoint_folder: Path, files: dict[str, str], expected: str) -> None:
    (checkpoint_folder / 'chat_template.jinja').unlink()
    for name, text in files.items():
        (checkpoint_folder / name).write_text(text)
    assert open_checkpoint(checkpoint_folder).chat_template == expected


@pytest.mark.parametrize('template', [5, ['text'], [{'name': 'default'}]])
def test_chat_template_of_another_shape(checkpoint_folder: Path, template: object) -> None:
    (checkpoint_folder / 'chat_template.jinja').unlink()
    (checkpoint_folder / 'tokenizer_config.json').write_text(
        json.dumps({'chat_template': template}))
    with pytest.raises(CheckpointError, match='chat_template must be text'):
        open_checkpoint(checkpoint_folder)
