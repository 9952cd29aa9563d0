# SPDX-License-Identifier: Apache-2.0
"""The Dockerfile language as far as our images use it."""

import pytest

from deploy.image import dockerfile
from deploy.image.process import BuildError

TWO_STAGES = """
# comment
FROM debian:trixie-slim AS build
RUN one && \\
    # a comment inside
    two
COPY a b /dst/
FROM scratch
COPY --from=build /x /y
ENV A=1 B="two words"
ENTRYPOINT ["/x", "-v"]
"""


def test_stages_and_continued_lines():
    build, final = dockerfile.parse(TWO_STAGES)
    assert (build.base, build.name) == ("debian:trixie-slim", "build")
    assert (final.base, final.name) == ("scratch", "1")
    assert build.instructions[0].text == "one && two"
    assert build.instructions[0].line == 4


def test_copy_env_and_entrypoint():
    build, final = dockerfile.parse(TWO_STAGES)
    copy = dockerfile.parse_copy(build.instructions[1])
    assert (copy.sources, copy.destination, copy.stage) == (("a", "b"), "/dst/", "")
    assert dockerfile.parse_copy(final.instructions[0]).stage == "build"
    assert final.instructions[1].pairs() == {"A": "1", "B": "two words"}
    assert final.instructions[2].argv() == ["/x", "-v"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RUN x", "before FROM"),
        ("FROM a\nADD x y", "ADD is not known"),
        ("FROM a\nRUN x \\", "continued"),
        ("# nothing", "without FROM"),
        ("FROM a b c", "cannot read FROM"),
    ],
)
def test_what_is_not_known_is_refused(text, said):
    with pytest.raises(BuildError, match=said):
        dockerfile.parse(text)


@pytest.mark.parametrize("text", ["COPY --chown=1 a b", "COPY a", "COPY a b c"])
def test_copy_forms_that_are_refused(text):
    stage = dockerfile.parse(f"FROM x\n{text}")[0]
    with pytest.raises(BuildError):
        dockerfile.parse_copy(stage.instructions[0])


def test_shell_form_of_entrypoint_is_refused():
    stage = dockerfile.parse("FROM x\nENTRYPOINT sh -c x")[0]
    with pytest.raises(BuildError, match="JSON"):
        stage.instructions[0].argv()


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("engine/a.py", False),
        ("engine/__pycache__/a.pyc", True),
        ("engine/blobs/x.bin", True),
        ("engine/blobs/__init__.py", False),
        ("tools/protos.py", False),
        ("tools/other.py", True),
        ("build/venv/bin/python", True),
        ("secret", True),
    ],
)
def test_ignore(path, ignored):
    rules = "*\n!engine\n# c\n!tools/protos.py\n**/__pycache__\nengine/blobs/*\n"
    rules += "!engine/blobs/__init__.py"
    assert dockerfile.Ignore(rules)(path) is ignored


def test_context_files_stay_inside(tmp_path):
    context = tmp_path / "context"
    (context / "sub").mkdir(parents=True)
    (context / "sub/kept").write_text("")
    (context / "sub/left.o").write_text("")
    (tmp_path / "outside").write_text("")
    ignored = dockerfile.Ignore("**/*.o")
    assert dockerfile.context_files(context, "sub", ignored) == [context / "sub/kept"]
    with pytest.raises(BuildError, match="outside"):
        dockerfile.context_files(context, "../outside", ignored)
    with pytest.raises(BuildError, match="nothing there"):
        dockerfile.context_files(context, "absent", ignored)
