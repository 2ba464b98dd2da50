"""Official files of V-JEPA's rivals give what the official code made of them, other sizes too."""

import pytest

from tests.conversion.families.golden_cases import (
    CASES,
    EPSILON_TOLERANCE,
    OWN,
    SHARED,
    TOLERANCE,
    differences,
)
from tests.support import slow_but_on

IN_REPOSITORY = [case for case in CASES if (OWN / case.file).exists()]
REST = [case for case in CASES if case not in IN_REPOSITORY]


def compare(case):
    found = differences(case.model(), case.arrays(), case)
    assert found
    wrong = {
        name: value
        for name, value in found.items()
        if not value <= (EPSILON_TOLERANCE if name.startswith("epsilon") else TOLERANCE)
    }
    assert wrong == {}


@pytest.mark.parametrize("case", IN_REPOSITORY, ids=lambda case: case.name)
def test_files_of_this_repository(case):
    compare(case)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the project's shared/reference is not there")
@pytest.mark.parametrize("case", REST, ids=lambda case: case.name)
@slow_but_on("torch")
def test_files_of_the_project(case):
    compare(case)
