"""A conversation through a checkpoint's chat template, before minutes of work are spent on it."""

from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.engine.text.chat_template import ChatTemplate, Message
from flash_llm_ros.store.errors import FlashLlmError

_QUESTION = Message('user', 'How far is the charger?')
_REPAIR = ('put one that works into chat_template.jinja of the folder, or into the GGUF file with '
           '`gguf-new-metadata OLD NEW --chat-template-file FILE`')


def conversation_doubts(checkpoint: Checkpoint) -> list[str]:
    """What a robot could not do with this template, a sentence each.

    Raises CheckpointError for one that gives no prompt of a single question.
    """
    if not checkpoint.chat_template.strip():
        return ['there is no chat template: prompts reach the model as they are; for one that was '
                f'trained on conversations, {_REPAIR}']
    try:
        template = ChatTemplate(checkpoint.chat_template, checkpoint.special_tokens)
        text = template.render([_QUESTION])
    except FlashLlmError as error:
        raise CheckpointError(f'{checkpoint.path}: {error} To go on, {_REPAIR}') from None
    if _QUESTION.content not in text:
        raise CheckpointError(f'{checkpoint.path}: the chat template leaves the question out; '
                              f'{_REPAIR}')
    doubts = []
    for what, attempt in (
            ('sessions', lambda: template.render_next([_QUESTION], '')),
            ('system prompts', lambda: template.render([Message('system', 'Be brief.'),
                                                        _QUESTION]))):
        try:
            attempt()
        except FlashLlmError as error:
            doubts.append(f'{what} will be refused: {error}')
    return doubts
