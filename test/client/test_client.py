"""The client class: in a node and thread of its own, in a user's node, and when things go wrong."""

from collections.abc import Iterator
import contextlib
from contextlib import contextmanager
import queue
import subprocess
import sys
import threading
import time

import pytest
from ros_fixtures import RunningNode, new_domain, running_node

from flash_llm_ros.finish_reason import FinishReason
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

pytestmark = pytest.mark.ros
WAIT = 60.0
STORY = 'Hello [piece=0.05]'


@pytest.fixture
def llm(active_node: RunningNode) -> Iterator:
    from flash_llm_ros.client import FlashLlmClient

    with FlashLlmClient(domain_id=active_node.domain) as client:
        yield client


@contextmanager
def own_node(domain: int, executor_name: str, *, spin: bool = True) -> Iterator:
    """A user's node under an executor that runs in another thread."""
    import rclpy
    from rclpy import executors
    from rclpy.context import Context
    from rclpy.node import Node

    context = Context()
    rclpy.init(context=context, domain_id=domain)
    node = Node('commander', context=context)
    executor = getattr(executors, executor_name)(context=context)
    executor.add_node(node)

    def run() -> None:
        with contextlib.suppress(executors.ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=run)
    if spin:
        thread.start()
    try:
        yield node
    finally:
        executor.shutdown()
        if spin:
            thread.join(WAIT)
        node.destroy_node()
        context.try_shutdown()


def test_generate_and_stream_give_the_same_text(active_node: RunningNode, llm) -> None:
    answer = llm.generate('Hello', max_tokens=12, raw=True, timeout=WAIT)
    assert answer.finish_reason == FinishReason.LENGTH
    assert answer.stats.generated_tokens == 12 and answer.stats.prompt_tokens == 5
    pieces = list(llm.stream('Hello [piece=0.06]', max_tokens=12))
    assert len(pieces) > 3
    assert ''.join(pieces) == llm.generate('Hello [piece=0.06]', max_tokens=12, timeout=WAIT).text
    assert str(answer) == answer.text


def test_leaving_a_stream_cancels_it(active_node: RunningNode, llm) -> None:
    from flash_llm_msgs.msg import EngineStatus

    for piece in llm.stream(STORY, max_tokens=400):
        assert piece
        break
    active_node.client.until(
        lambda: active_node.client.status.state == EngineStatus.IDLE, 10, 'the end')
    pending = llm.start(STORY, max_tokens=400)
    next(iter(pending))
    pending.cancel()
    answer = pending.result(WAIT)
    assert answer.finish_reason == FinishReason.CANCELLED and answer.text
    assert answer.stats.generated_tokens < 400


def test_timeout_ends_the_request(active_node: RunningNode, llm) -> None:
    from flash_llm_msgs.msg import EngineStatus

    with pytest.raises(TimeoutError, match=r'0\.5 s'):
        llm.generate(STORY, max_tokens=400, timeout=0.5)
    active_node.client.until(
        lambda: active_node.client.status.state == EngineStatus.IDLE, 10, 'the end')


def test_errors_are_typed_and_keep_the_text(llm) -> None:
    from flash_llm_ros.client import AnswerError

    with pytest.raises(AnswerError, match='empty') as refused:
        llm.generate('', timeout=WAIT)
    assert refused.value.code == ErrorCode.EMPTY_PROMPT
    stream = llm.stream('Hello [fault]', max_tokens=9)
    assert next(stream)
    with pytest.raises(AnswerError, match='failed twice') as failed:
        list(stream)
    assert failed.value.code == ErrorCode.READ_FAILED
    assert failed.value.answer.text and failed.value.answer.finish_reason == FinishReason.ERROR


def test_a_crowd_is_answered(llm) -> None:
    """ROS keeps ten requests of a service; none of many more is lost."""
    pending = [llm.start('' if index % 2 else 'Hello', max_tokens=1) for index in range(100)]
    for entry in pending[::7]:
        entry.cancel()
    for entry in pending:
        with contextlib.suppress(FlashLlmError):
            entry.result(WAIT)
    assert all(entry.done for entry in pending)


def test_answers_to_others_push_no_answer_out(active_node: RunningNode, llm) -> None:
    """Whose executor stands still while a crowd is answered, has its own answer then."""
    from flash_llm_ros.client import FlashLlmClient

    right = llm.generate('Hello', max_tokens=4, timeout=WAIT).text
    with own_node(active_node.domain, 'SingleThreadedExecutor', spin=False) as node:
        executor = node.executor
        with FlashLlmClient(node=node, find_timeout=WAIT) as client:
            assert client.wait_until_ready(WAIT)
            pending = client.start('Hello', max_tokens=4)
            while client._waiting or not client._unanswered:
                executor.spin_once(0.1)
            for number in range(30):
                llm.generate(f'Hello {number}', max_tokens=1, timeout=WAIT)
            end = time.monotonic() + WAIT
            while not pending.done and time.monotonic() < end:
                executor.spin_once(0.1)
            assert pending.done and pending.result(0).text == right


def test_in_a_callback_of_a_single_threaded_executor(active_node: RunningNode) -> None:
    from flash_llm_ros.client import FlashLlmClient

    ended, refusal, texts = threading.Event(), [], []
    with own_node(active_node.domain, 'SingleThreadedExecutor') as node:
        llm = FlashLlmClient(node=node)

        def tick() -> None:
            timer.cancel()
            try:
                llm.generate('Hello', timeout=WAIT)
            except RuntimeError as error:
                refusal.append(str(error))
            llm.start('Hello', max_tokens=8, on_text=texts.append, on_done=finish)

        def finish(answer) -> None:
            texts.append(answer.result())
            try:
                llm.generate('Hello')
            except RuntimeError as error:
                refusal.append(str(error))
            ended.set()

        timer = node.create_timer(0.01, tick)
        assert ended.wait(WAIT)
        assert ''.join(texts[:-1]) == texts[-1].text != ''
        # The first waits inside the executor, the second in a callback of the client.
        assert len(refusal) == 2 and all('MultiThreadedExecutor' in text for text in refusal)
        assert llm.generate('Hello', max_tokens=2, timeout=WAIT).text   # from this thread
        llm.close()
        assert node.context.ok() and node in node.executor.get_nodes()


def test_in_a_callback_of_a_multi_threaded_executor(active_node: RunningNode) -> None:
    from flash_llm_ros.client import FlashLlmClient

    answers, ended = [], threading.Event()
    with own_node(active_node.domain, 'MultiThreadedExecutor') as node:
        llm = FlashLlmClient(node=node)

        def tick() -> None:
            timer.cancel()
            answers.append(llm.generate('Hello', max_tokens=3, timeout=WAIT))
            ended.set()

        timer = node.create_timer(0.01, tick)
        assert ended.wait(WAIT) and answers[0].text
        llm.close()


def test_future_of_a_spinning_program(active_node: RunningNode) -> None:
    from flash_llm_ros.client import FlashLlmClient

    with own_node(active_node.domain, 'SingleThreadedExecutor', spin=False) as node:
        llm = FlashLlmClient(node=node)
        pending = llm.start('Hello', max_tokens=3)
        node.executor.spin_until_future_complete(pending.future, WAIT)
        assert pending.future.result().text == pending.result().text != ''
        llm.close()


def test_a_node_that_nobody_spins() -> None:
    import rclpy
    from rclpy.context import Context
    from rclpy.node import Node

    from flash_llm_ros.client import FlashLlmClient

    context = Context()
    rclpy.init(context=context, domain_id=new_domain())
    node = Node('commander', context=context)
    llm = FlashLlmClient(node=node)
    with pytest.raises(RuntimeError, match='in no executor'):
        llm.generate('Hello')
    llm.close()
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_no_node_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from flash_llm_ros.client import FlashLlmClient, NodeLostError

    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    with FlashLlmClient('robot/llm', domain_id=new_domain(), find_timeout=0.5) as llm:
        with pytest.raises(NodeLostError, match=r'No node /robot/llm .* 0\.5 s'):
            llm.generate('Hello')
        pending = llm.start('Hello')
        pending.cancel()
        assert pending.result(WAIT).finish_reason == FinishReason.CANCELLED


def test_a_program_that_does_not_close_its_client_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    program = f"""
from flash_llm_ros.client import FlashLlmClient, NodeLostError
llm = FlashLlmClient(domain_id={new_domain()}, find_timeout=0.2)
try:
    llm.generate('Hello')
except NodeLostError:
    print('as it should')
"""
    ended = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                           check=False, timeout=WAIT)
    assert (ended.returncode, ended.stdout) == (0, 'as it should\n'), ended.stderr


def test_a_node_that_leaves_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another of the same name has come: it knows nothing of the goal."""
    from rclpy.action import ActionServer

    from flash_llm_msgs.action import GenerateText
    from flash_llm_ros.client import FlashLlmClient, NodeLostError

    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    domain = new_domain()
    with own_node(domain, 'MultiThreadedExecutor') as server:
        accepted = threading.Event()

        def serve():
            return ActionServer(
                server, GenerateText, '/flash_llm/generate', lambda handle: None,
                handle_accepted_callback=lambda handle: accepted.set())

        first = serve()
        with FlashLlmClient(domain_id=domain) as llm:
            pending = llm.start('Hello')
            assert accepted.wait(WAIT)
            second = serve()
            first.destroy()
            with pytest.raises(NodeLostError, match='has left'):
                pending.result(WAIT)
        second.destroy()


def test_what_goes_wrong_in_a_callback_ends_that_request_alone(active_node, llm, capfd) -> None:
    done: queue.SimpleQueue = queue.SimpleQueue()

    def fail(*arguments: object) -> None:
        raise ZeroDivisionError('planted')

    def end_and_fail(answer: object) -> None:
        done.put(answer)
        fail()

    late = llm.start('Hello [piece=0.02]', max_tokens=20, on_done=done.put)
    broken = llm.start('Hello', max_tokens=400, on_text=fail, on_done=end_and_fail)
    with pytest.raises(ZeroDivisionError, match='planted'):
        broken.result(WAIT)
    assert late.result(WAIT).stats.generated_tokens == 20
    assert llm.generate('Hello', max_tokens=2, timeout=WAIT).text
    assert {done.get(timeout=WAIT), done.get(timeout=WAIT)} == {late, broken}
    assert done.empty()
    log = capfd.readouterr().err
    assert 'on_text raised ZeroDivisionError' in log and 'on_done raised' in log


def test_a_thread_that_dies_is_noticed(active_node, monkeypatch: pytest.MonkeyPatch) -> None:
    from flash_llm_ros.client import FlashLlmClient, NodeLostError

    done: queue.SimpleQueue = queue.SimpleQueue()
    monkeypatch.setattr(threading, 'excepthook', lambda arguments: None)
    with FlashLlmClient(domain_id=active_node.domain) as client:
        pending = client.start(STORY, max_tokens=400, on_done=done.put)
        next(iter(pending))
        client._own.executor.create_task(sys.exit)
        client._own.executor.wake()
        with pytest.raises(NodeLostError, match='SystemExit'):
            pending.result(WAIT)
        assert done.get(timeout=WAIT) is pending and done.empty()
        with pytest.raises(RuntimeError, match="client's thread has ended"):
            client.generate('Hello')
    with pytest.raises(RuntimeError, match='client was closed'):
        client.start('Hello')


@pytest.mark.parametrize('end', [
    None, lambda node: node.executor.shutdown(), lambda node: node.executor.remove_node(node)])
def test_an_executor_that_runs_no_more_is_noticed(end, monkeypatch: pytest.MonkeyPatch) -> None:
    from flash_llm_ros.client import FlashLlmClient, NodeLostError

    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    done: queue.SimpleQueue = queue.SimpleQueue()
    with own_node(new_domain(), 'SingleThreadedExecutor', spin=end is not None) as node:
        llm = FlashLlmClient(node=node, find_timeout=2)
        pending = llm.start('Hello', on_done=done.put)
        while end is not None and not llm._requests[pending].is_taken:
            time.sleep(0.01)
        if end is not None:
            end(node)
        with pytest.raises(NodeLostError, match='executor of commander has not run for 2 s'):
            pending.result(WAIT)
        assert done.get(timeout=WAIT) is pending
        llm.close()
        assert done.empty()


@pytest.mark.parametrize(('has_own', 'end', 'why'), [
    (False, lambda llm: llm._node.destroy_node(), "client's node was destroyed"),
    (False, lambda llm: llm._node.context.shutdown(), 'rclpy was shut down'),
    (False, lambda llm: llm.close(), 'client was closed'),
    (True, lambda llm: llm._node.context.shutdown(), 'rclpy was shut down'),
])
def test_a_client_whose_node_is_gone_says_so(has_own: bool, end, why: str,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """During a request and after it, by every method."""
    from flash_llm_ros.client import FlashLlmClient, NodeLostError

    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    done: queue.SimpleQueue = queue.SimpleQueue()
    domain = new_domain()
    with own_node(domain, 'SingleThreadedExecutor') as node:
        llm = FlashLlmClient(node=None if has_own else node, domain_id=domain, find_timeout=WAIT)
        pending = [llm.start('Hello', on_done=done.put) for _ in range(2)]
        end(llm)
        assert {done.get(timeout=WAIT), done.get(timeout=WAIT)} == {*pending}
        for attempt in (pending[0].result, lambda: next(iter(pending[1]))):
            with pytest.raises(NodeLostError, match=why):
                attempt()
        for attempt in (lambda: llm.start('Hello'), lambda: llm.generate('Hello'),
                        lambda: llm.stream('Hello'), llm.is_ready,
                        lambda: llm.wait_until_ready(WAIT)):
            with pytest.raises(RuntimeError, match=why):
                attempt()
        pending[0].cancel()
        llm.cancel()
        llm.close()
        if not has_own and why != 'client was closed':
            with pytest.raises(RuntimeError, match=why):
                FlashLlmClient(node=node)
    assert done.empty()


def test_a_request_waits_until_the_node_is_active(int8_store) -> None:
    from flash_llm_ros.client import AnswerError, FlashLlmClient

    with (running_node(int8_store, environment={'TEST_OPEN_SECONDS': '2'}) as node,
          FlashLlmClient(domain_id=node.domain, find_timeout=WAIT) as llm):
        pending = llm.start('Hello', max_tokens=3)
        node.activate()
        assert pending.result(WAIT).stats.generated_tokens == 3
        node.client.transition('deactivate')
        with pytest.raises(AnswerError) as refused:
            llm.generate('Hello', deadline=0.4)     # it would not wait any longer
        assert refused.value.code == ErrorCode.NOT_ACTIVE
