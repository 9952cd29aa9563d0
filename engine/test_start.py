# SPDX-License-Identifier: Apache-2.0
import importlib.util
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from torpor.engine import start

ROOT = Path(__file__).resolve().parents[1]
BEGIN = """
import sys
sys.path += [{site!r}, {packages!r}]
from torpor.engine import start
assert start.use_bundle({bundle!r}) is {used}
"""
PATTERNS = """
import re
parsed = 0
def count(text, flags=0, parse=re._parser.parse):
    global parsed
    parsed += 1
    return parse(text, flags)
re._parser.parse = count
"""
LOADED = """
import json, os, torpor.engine.dump.pipeline as pipeline, dataclasses, inspect
told = {
    "loader": type(pipeline.__loader__).__name__, "file": pipeline.__file__,
    "code": pipeline.dump_trees.__code__.co_filename, "executed": "signature" in vars(inspect),
    "compiled": compiled, "low": os.path.exists("/proc/self/fd/3"),
}
told["signature"] = str(inspect.signature(pipeline.dump_trees))
print(json.dumps(told))
"""
COUNTING = """
import torpor.engine.recipes, dataclasses
compiled = 0
def count(*of, plain=torpor.engine.recipes.dataclasses._create_fn):
    global compiled
    compiled += 1
    return plain(*of)
dataclasses._create_fn = count
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A directory of packages that has this engine, and a bundle of it."""
    place = tmp_path_factory.mktemp("site")
    (place / "torpor").mkdir()
    (place / "torpor" / "engine").symlink_to(ROOT / "engine")
    packages = sysconfig.get_path("purelib")
    code = (
        f"import sys; sys.path.append({packages!r});"
        f"sys.argv = ['bundle', {str(place)!r}, {str(place / 'bundle')!r}];"
        f"import runpy; runpy.run_path({str(ROOT / 'tools' / 'bundle.py')!r}, run_name='__main__')"
    )
    subprocess.run([sys.executable, "-IS", "-c", code], check=True)
    return place


def ran(site, code, bundle="bundle", used=True):
    begin = BEGIN.format(site=str(site), packages=sysconfig.get_path("purelib"), used=used,
                         bundle=str(site / bundle))  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-IS", "-c", begin + code], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def test_modules_and_methods_come_from_the_bundle(site):
    told = ran(site, COUNTING + LOADED)
    assert told["loader"] == "Bundle"
    assert told["file"] == f"{site}/torpor/engine/dump/pipeline.py"
    assert told["code"] == "torpor/engine/dump/pipeline.py"
    assert told["compiled"] == 0
    assert not told["low"]


DESCRIBED = """
import dataclasses, importlib, inspect, json, pkgutil, re, torpor.engine
def plain(text):
    return re.sub(" at 0x[0-9a-f]+", "", text)
told = {}
for found in pkgutil.walk_packages(torpor.engine.__path__, "torpor.engine."):
    if ".test_" in found.name or found.name.endswith("__main__"):
        continue
    module = importlib.import_module(found.name)
    for cls in vars(module).values():
        if isinstance(cls, type) and "__dataclass_params__" in vars(cls):
            takes = inspect.signature(cls.__init__).parameters.values()
            told[f"{cls.__module__} {cls.__qualname__}"] = plain(str([
                [str(each) for each in dataclasses.fields(cls)], cls.__slots__, cls.__match_args__,
                [(one.name, one.kind, one.default) for one in takes], cls.__dataclass_params__,
                cls.__hash__ is None, sorted(set(vars(cls)) - {"__weakref__"}), cls.__bases__,
            ]))
print(json.dumps(told))
"""


def test_all_dataclasses_are_the_same_with_and_without_a_bundle(site):
    with_bundle = ran(site, DESCRIBED)
    assert len(with_bundle) > 200
    assert with_bundle == ran(site, DESCRIBED, bundle="no-such-file", used=False)


def test_regular_expressions_of_modules_come_from_the_bundle(site):
    code = """
import torpor.engine.dump.pipeline
found = [parsed]
from torpor.engine.dump.ways.scan import COMMON
found.append(COMMON.search("x\\nShared_Dirty:  8 kB")[0])
found.append(re.compile(r"(?P<new>n+)", re.I).search("xNN")["new"])
print(json.dumps([*found, parsed]))
"""
    assert ran(site, PATTERNS + "import json" + code) == [0, "Shared_Dirty:  8", "NN", 1]


def test_named_tuples_of_modules_come_from_the_bundle(site):
    code = """
import builtins, collections, json
texts = []
def noting(code, names, plain=builtins.eval):
    if isinstance(code, str):
        texts.append(code)
    return plain(code, names)
builtins.eval = noting
import torpor.engine.dump.pipeline
from torpor.engine.kind import Foresight
from torpor.engine.native.threads import Stand
found = [*texts]
own = collections.namedtuple("own", "x y")(1, y=2)
print(json.dumps([found, len(texts), own._asdict(), issubclass(Stand, tuple)]))
"""
    assert ran(site, code) == [[], 1, {"x": 1, "y": 2}, True]


def test_what_is_seldom_used_works_when_it_is(site):
    told = ran(site, COUNTING + LOADED)
    assert told["executed"] is False
    assert told["signature"].startswith("(trees: ")


def test_a_dataclass_that_is_not_in_the_bundle_is_as_ever(site):
    code = """
import dataclasses, json
made = dataclasses.make_dataclass("Made", [("x", int)], frozen=True, slots=True)
print(json.dumps([repr(made(3)), made(3) == made(3)]))
"""
    assert ran(site, code) == ["Made(x=3)", True]


@pytest.mark.parametrize("name", ["no-such-file", "of-another"])
def test_without_a_bundle_python_imports_as_ever(site, name):
    content = bytearray((site / "bundle").read_bytes())
    at = content.index(sys.version.encode())
    content[at : at + 1] = b"9"
    (site / "of-another").write_bytes(content)
    told = ran(site, "compiled = 0" + LOADED, bundle=name, used=False)
    assert told["loader"] == "SourceFileLoader"
    assert told["executed"] is True


@pytest.mark.parametrize(
    ("main", "status"),
    [("lambda: 0", 0), ("lambda: 7", 7), ("lambda: sys.exit(2)", 2), ("sys.exit", 0),
     ("lambda: sys.exit('no')", 1)],
)  # fmt: skip
def test_the_status_is_that_of_the_command(main, status):
    code = f"""
import sys
from types import ModuleType
from torpor.engine import start
entry = sys.modules["torpor.engine.criu.entry"] = ModuleType("entry")
entry.main = {main}
sys.stdout.write("flushed")
start.run("criu")
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "flushed")


def test_the_names_of_seldom_used_modules_are_right():
    assert {name for name in start.UNUSED if not name.startswith("google")} <= set(
        sys.stdlib_module_names
    )


def test_the_names_of_modules_that_come_together_are_right():
    for name in {*start.TOGETHER, *start.TOGETHER.values()}:
        assert importlib.util.find_spec(name) is not None, name


def test_modules_of_a_dump_are_not_looked_for_one_by_one(site):
    code = """
import importlib.util
import json
bundle = sys.meta_path[0]
looked_for = []
def find(name, *more, plain=bundle.find_spec):
    looked_for.append(name)
    return plain(name, *more)
bundle.find_spec = find
import torpor.engine.criu.dump
before = len(looked_for)
import torpor.engine.dump.pipeline
print(json.dumps([len(looked_for) - before, "torpor.engine.kinds" in looked_for]))
"""
    assert ran(site, code) == [0, False]
