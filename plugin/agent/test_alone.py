# SPDX-License-Identifier: Apache-2.0
import os
import threading

from torpor.plugin.agent.alone import hold


def test_the_second_waits_for_the_end_of_the_first(tmp_path):
    told = []
    first = hold(tmp_path, lambda _: True)
    other = threading.Thread(target=lambda: told.append(hold(tmp_path, lambda _: False)))
    other.start()
    other.join(0.5)
    assert other.is_alive()
    assert told == []
    os.close(first)
    other.join(10)
    (second,) = told
    assert second is not None
    os.close(second)


def test_waiting_ends_when_the_agent_is_told_to_stop(tmp_path):
    first = hold(tmp_path, lambda _: True)
    assert hold(tmp_path, lambda _: True) is None
    os.close(first)
