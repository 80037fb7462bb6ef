"""Every kind of interface over each transport of DDS; elsewhere the default is enough."""

import pytest
from ros_fixtures import running_node
from test_node_requests import check_chunks, goal, streamed

from flash_llm_ros.engine import FinishReason
from flash_llm_ros.store.errors import ErrorCode

pytestmark = pytest.mark.ros


@pytest.mark.parametrize('transport', ['SHM', 'UDPv4'])
def test_action_service_and_topics(int8_store, transport, monkeypatch):
    from flash_llm_msgs.srv import GenerateText
    from flash_llm_ros.client.operator import CANCELED, SUCCEEDED

    monkeypatch.setenv('FASTDDS_BUILTIN_TRANSPORTS', transport)
    with running_node(int8_store) as node:
        client = node.activate().client
        run = client.send_goal(goal('Hello [piece=0.02]', 60))
        status, result = run.result(30)
        assert (status, len(result.text)) == (SUCCEEDED, 60)
        check_chunks(streamed(client, run), result.text, FinishReason.LENGTH)
        request = GenerateText.Request(prompt='Hello [piece=0.02]')
        request.sampling.max_tokens = 60
        assert client.generate_text(request).text == result.text
        assert len(client.ask('Hello', timeout=30).text) == 128
        # More than a datagram, and than a segment of shared memory, holds.
        assert client.ask('x' * 10**6, timeout=30).finish_reason == FinishReason.ERROR
        error = client.send_goal(goal('x' * 10**6)).result(30)[1].error
        assert error.code == ErrorCode.PROMPT_TOO_LONG and '1000000' in error.message
        run = client.send_goal(goal('Hello [piece=0.05]', 4000))
        client.until(lambda: run.chunks, 30, 'the first chunk')
        assert run.cancel() and run.result(30)[0] == CANCELED
        client.until(lambda: client.diagnostics, 30, '/diagnostics')
