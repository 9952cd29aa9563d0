# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys

from torpor.engine.criu.features import CRIU_FEATURES, missing

TORPOR = [sys.executable, "-m", "torpor.engine.cli"]


def test_names_of_criu_are_told_as_criu_check_tells_them():
    done = subprocess.run([*TORPOR, "check"], capture_output=True, text=True, check=False)
    lines = done.stdout.partition("by name\n")[2].splitlines()
    told = {words[1]: words[0] for line in lines if len(words := line.split(maxsplit=2)) == 3}
    for one in CRIU_FEATURES:
        assert told[one.name] == ("no" if missing(one) else "yes")


def test_json_has_them_with_the_reason():
    done = subprocess.run([*TORPOR, "check", "--json"], capture_output=True, text=True, check=False)
    told = {one["name"]: one for one in json.loads(done.stdout)["criu_features"]}
    assert list(told) == [one.name for one in CRIU_FEATURES]
    assert all(bool(one["cause"]) is not one["supported"] for one in told.values())
