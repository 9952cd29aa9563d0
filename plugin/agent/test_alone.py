# SPDX-License-Identifier: Apache-2.0
import threading

from torpor.plugin.agent.alone import alone


def test_the_second_waits_for_the_end_of_the_first(tmp_path):
    told = []

    def second():
        with alone(tmp_path, lambda _: False) as mine:
            told.append(mine)

    with alone(tmp_path, lambda _: True) as mine:
        assert mine
        other = threading.Thread(target=second)
        other.start()
        other.join(0.5)
        assert other.is_alive()
        assert told == []
    other.join(10)
    assert told == [True]


def test_waiting_ends_when_the_agent_is_told_to_stop(tmp_path):
    with alone(tmp_path, lambda _: True), alone(tmp_path, lambda _: True) as mine:
        assert not mine
