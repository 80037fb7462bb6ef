"""The whole node keeps the budget, too: the demo's work under a kernel cap."""

import pytest
from ros_fixtures import new_domain

from bench.support.memory_cgroup import cgroup_version, memory_cgroup

BUDGET = 96_000_000
SLACK = 16 << 20     # for what ROS takes while it serves
pytestmark = [pytest.mark.ros, pytest.mark.timeout(240),
              pytest.mark.skipif(not cgroup_version(), reason='no writable memory cgroup here')]


def answer(store, command=()):
    """Answer one prompt by a node of its own; returns its bare and peak size, and the text."""
    from flash_llm_msgs.action import GenerateText
    from flash_llm_ros.cli.node_process import COMMAND, NodeProcess
    from flash_llm_ros.client.operator import OperatorClient

    parameters = {'store': str(store), 'memory.dram_budget': f'{BUDGET // 10**6}MB'}
    domain = new_domain()
    with (NodeProcess(parameters, domain, command=(*command, *COMMAND)) as process,
          OperatorClient(domain_id=domain, give_up=process.has_ended) as client):
        client.wait_for_node(60.0)
        bare = process.memory('VmRSS')
        assert client.transition('configure'), process.log()
        assert client.transition('activate'), process.log()
        goal = GenerateText.Goal(prompt='What is the capital of France? Tell me its story.')
        goal.sampling.max_tokens = 48
        _, result = client.send_goal(goal).result()
        assert result.error.code == 0, result.error.message
        return bare, process.memory('VmHWM'), result.text


def test_the_node_answers_under_a_cap_of_bare_node_and_budget(real_store):
    bare, _, text = answer(real_store)
    with memory_cgroup() as group:
        group.limit(bare + BUDGET + SLACK)
        # The shell joins the group before it becomes the node, so that every page counts.
        join = ('sh', '-c', f'echo $$ > {group.path}/cgroup.procs && exec "$@"', 'sh')
        bare_under_cap, peak, same_text = answer(real_store, join)
        assert group.oom_kills() == 0
    assert peak - bare_under_cap < BUDGET + SLACK
    assert 'Paris' in text and same_text == text
