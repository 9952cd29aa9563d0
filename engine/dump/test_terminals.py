# SPDX-License-Identifier: Apache-2.0
from torpor.engine.dump.terminals import controlling
from torpor.engine.kind import Session


def task(pid, group, session, tty, foreground, state="S"):
    stat = f"{pid} (x) {state} 1 {group} {session} {tty} {foreground} " + "0 " * 44
    status = f"NStgid:\t{pid}\t{pid - 100}\nNSpgid:\t{group}\t{group - 100}\n"
    return stat, status + f"NSsid:\t{session}\t{session - 100}\n"


def test_sessions_and_their_terminals():
    texts = [
        task(141, 141, 141, 0x8805, 142),
        task(142, 142, 141, 0x8805, 142),
        task(143, 143, 141, 0, -1),
        task(144, 144, 141, 0, -1, "Z"),
        task(150, 150, 150, 0, -1),
        task(160, 160, 160, 0x8806, 999),
    ]
    assert controlling(texts) == {
        0x8805: Session(sid=41, pgrp=42, without=(43,)),
        0x8806: Session(sid=60, pgrp=0),
    }
