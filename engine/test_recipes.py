# SPDX-License-Identifier: Apache-2.0
"""A class that is made by its recipe and the same made as ever; test_start has the engine's own."""

import dataclasses
import inspect
import pickle
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest

from torpor.engine import recipes
from torpor.engine.options import DumpOptions
from torpor.engine.recipes import Recipes

NAME = "source_of_classes"
SOURCE = """
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    name: str
    size: int = 7
    parts: list = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived(Base):
    more: dict = field(default_factory=dict, repr=False, compare=False)
    last: float = 0.5


@dataclass(slots=True)
class Positional:
    "With a text."

    first: int
    second: tuple = (1, 2)
    made: list = field(default_factory=list)
    hidden: int = field(default=3, init=False)

    def __post_init__(self):
        self.hidden += self.first


@dataclass(frozen=True, slots=True)
class One:
    only: float


@dataclass(frozen=True, slots=True)
class Nothing:
    def method(self):
        return "called"


@dataclass(frozen=True, slots=True, eq=False)
class Identity:
    value: int


@dataclass(frozen=True, slots=True)
class OwnMethods:
    value: int

    def __repr__(self):
        return "own"

    def __hash__(self):
        return 5


@dataclass(slots=True)
class OwnInit:
    value: int

    def __init__(self, doubled):
        self.value = doubled // 2


@dataclass(frozen=True, slots=True)
class OwnEquality:
    value: int

    def __eq__(self, other):
        return True


@dataclass(order=True, slots=True)
class Ordered:
    value: int


@dataclass(frozen=True)
class NoSlots:
    value: int = 1
"""
ALIKE = ("Base", "Derived", "Positional", "One", "Nothing", "Identity", "OwnMethods", "OwnInit")
AS_EVER = ("OwnEquality", "Ordered", "NoSlots")


def executed():
    module = ModuleType(NAME)
    sys.modules[NAME] = module
    exec(compile(SOURCE, NAME, "exec"), vars(module))  # as of a file: methods are its own
    return module


@pytest.fixture(scope="module")
def ever():
    """The classes, made as ever."""
    yield executed()
    del sys.modules[NAME]


@pytest.fixture(scope="module")
def made(ever):
    """The classes, made by recipe."""
    written = recipes.written(vars(ever)[name] for name in [*ALIKE, *AS_EVER])
    assert set(written) == set(ALIKE)
    plain = dataclasses._process_class
    by_recipe = Recipes()
    try:
        by_recipe.learn(NAME, written)
        module = executed()
        assert not by_recipe._known
    finally:
        dataclasses._process_class = plain
    return module


def arguments(cls):
    """For each field that needs one."""
    wanted = [each for each in dataclasses.fields(cls)
              if each.init and each.default is each.default_factory]  # fmt: skip
    return {each.name: 4 for each in wanted}


def signature(cls):
    return [(one.name, one.kind, str(one.default)) for one in
            inspect.signature(cls.__init__).parameters.values()]  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_a_class_by_its_recipe_is_the_same(ever, made, name):
    cls, by_recipe = vars(ever)[name], vars(made)[name]
    assert signature(cls) == signature(by_recipe)
    given = {"doubled": 8} if name == "OwnInit" else arguments(cls)
    one, other = cls(**given), by_recipe(**given)
    assert repr(one) == repr(other)
    assert list(map(str, dataclasses.fields(cls))) == list(map(str, dataclasses.fields(by_recipe)))
    for what in ("__slots__", "__match_args__", "__doc__", "__qualname__", "__module__"):
        assert getattr(cls, what) == getattr(by_recipe, what) or what == "__doc__"
    assert str(cls.__dataclass_params__) == str(by_recipe.__dataclass_params__)
    assert (cls.__hash__ is None) == (by_recipe.__hash__ is None)
    assert (one == cls(**given)) == (other == by_recipe(**given))
    assert one != other
    assert other != 4


def test_defaults_that_are_made_are_made_for_each(made):
    one, other = made.Derived(name="x"), made.Derived(name="x")
    one.parts.append(1)
    assert (other.parts, other.more, other.last, other.size) == ([], {}, 0.5, 7)
    assert made.Positional(1).hidden == 4


def test_what_is_frozen_stays(made):
    one = made.Derived(name="x")
    for name in ("name", "parts", "more"):
        with pytest.raises(
            dataclasses.FrozenInstanceError, match=f"cannot assign to field '{name}'"
        ):
            setattr(one, name, 1)
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot delete field '{name}'"):
            delattr(one, name)
    with pytest.raises((AttributeError, TypeError)):
        one.no_field = 1


def test_equality_and_hash(made):
    by_recipe = made.One
    nan = float("nan")
    assert by_recipe(1.0) == by_recipe(1)
    assert by_recipe(nan) == by_recipe(nan)  # as tuples compare: the same object
    assert hash(by_recipe(2)) == hash((2,))
    assert {made.Nothing(), made.Nothing()} == {made.Nothing()}
    assert made.Derived(name="x", more={1: 2}) == made.Derived(name="x")
    assert made.Derived(name="x") != made.Derived(name="y")
    assert made.Positional(1) == made.Positional(1)
    with pytest.raises(TypeError):
        hash(made.Positional(1))
    assert hash(made.OwnMethods(1)) == 5


def test_replace_and_asdict(made):
    one = dataclasses.replace(made.Derived(name="x", size=3), size=4)
    assert dataclasses.asdict(one) == {"name": "x", "size": 4, "parts": [], "more": {}, "last": 0.5}
    assert dataclasses.is_dataclass(one)


def test_a_subclass_of_one_by_recipe(made):
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Further(made.Derived):
        own: int = 1

    assert repr(Further(name="x")).endswith(".Further(name='x', size=7, parts=[], last=0.5, own=1)")


def test_pickle(made):
    one = made.Base(name="x", parts=[1])
    assert pickle.loads(pickle.dumps(one)) == one


def test_two_classes_of_one_name_have_no_recipe(ever):
    assert recipes.written([ever.One, ever.One, ever.One]) == {}
    assert set(recipes.written([ever.One, ever.Nothing])) == {"One", "Nothing"}


def test_all_classes_of_the_engine_have_one():
    modules = [module for name, module in sys.modules.items() if name.startswith("torpor.engine")]
    classes = {value for module in modules for value in vars(module).values()
               if isinstance(value, type) and recipes.FIELDS in vars(value)
               and value.__module__ == module.__name__}  # fmt: skip
    classes = {cls for cls in classes if ".test_" not in cls.__module__}
    assert DumpOptions in classes
    lacking = {cls.__qualname__ for cls in classes if not recipes.written([cls])}
    assert lacking == set()
