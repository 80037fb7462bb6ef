"""A middleware that shows no clients, as Zenoh's, which knows no topics of DDS."""

from types import SimpleNamespace

import pytest

from flash_llm_ros.node.interfaces import client_watch

pytestmark = pytest.mark.ros


def test_it_is_told_once_and_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_watch, 'get_rmw_implementation_identifier', lambda: 'rmw_other')
    told, timers, ended = [], [], []
    node = SimpleNamespace(
        create_timer=lambda period, look, **options: timers.append(look),
        resolve_service_name=lambda name: name.replace('~', '/flash_llm'),
        get_publishers_info_by_topic=lambda name, no_mangle: [],
        get_subscriptions_info_by_topic=lambda name, no_mangle: [],
        get_logger=lambda: SimpleNamespace(warning=told.append))
    request = SimpleNamespace(ended=False, abandon=lambda: ended.append(True))
    watch = client_watch.ClientWatch(node, callback_group=None)
    for _ in range(2):
        watch.add(request, '~/generate_text')
        timers[0]()
    assert len(told) == 1 and 'rmw_other' in told[0] and 'its deadline' in told[0]
    assert ended == []
