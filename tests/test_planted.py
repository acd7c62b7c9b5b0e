"""The tests see mistakes: every one of tests/planted.py, planted in a copy, fails those named."""

import ast
import re
from collections import Counter

import planted
import pytest
from planted import MISTAKES, ROOT, SEEN

TITLES = [mistake.title for mistake in MISTAKES]


@pytest.mark.parametrize("mistake", MISTAKES, ids=TITLES)
def test_the_list_is_of_todays_code(mistake):
    """Its text stands once in its file, what takes its place is Python, its tests exist."""
    text = (ROOT / mistake.file).read_text(encoding="utf-8")
    assert text.count(mistake.text) == 1 and mistake.text != mistake.wrong
    ast.parse(text.replace(mistake.text, mistake.wrong))
    for test in mistake.selection:
        file, _, name = test.partition("::")
        assert re.search(rf"\b{re.escape(name.partition('[')[0])}\b", (ROOT / file).read_text())


def test_mistakes_are_many_and_everywhere():
    packages = Counter(mistake.file.partition("/")[0] for mistake in MISTAKES)
    assert min(packages[name] for name in ("attention", "backbones", "analysis")) >= 20
    assert sum(packages.values()) >= 100
    assert len({mistake.file for mistake in MISTAKES}) >= 50
    assert len(set(TITLES)) == len(TITLES)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    if not (ROOT / ".git").exists():
        pytest.skip("no repository that says which files are its own")
    return planted.copy_of_tree(tmp_path_factory.mktemp("tree"))


@pytest.mark.slow
def test_without_a_mistake_they_pass(copy):
    done = planted.tested(copy, list(dict.fromkeys(t for m in MISTAKES for t in m.selection)))
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES, ids=TITLES)
def test_a_planted_mistake_is_seen(mistake, copy):
    done = planted.planted(copy, mistake)
    assert done.returncode == SEEN, f"ended with {done.returncode}\n{done.stdout[-3000:]}"
