from __future__ import annotations

import pytest

from comfypod import errors
from comfypod.errors import ComfypodError, LockError, ManifestError, Problem, error_of, exit_code_table

FAMILIES: list[type[ComfypodError]] = ComfypodError.__subclasses__()
EVERY: list[type[ComfypodError]] = [ComfypodError, *FAMILIES]


def test_every_family_has_an_exit_code_a_code_and_a_meaning_of_its_own() -> None:
    for fact in ("exit_code", "code", "meaning"):
        values = [getattr(family, fact) for family in EVERY]
        assert len(set(values)) == len(values), fact
        assert all(values), fact


def test_no_family_takes_the_code_of_success_or_of_a_signal() -> None:
    taken = {family.exit_code for family in EVERY}
    assert not taken & {errors.EXIT_OK, errors.EXIT_INTERRUPTED, errors.EXIT_TERMINATED}
    assert all(0 < code < 126 for code in taken)


def test_the_table_lists_every_family_once_in_the_order_of_exit_codes() -> None:
    rows = exit_code_table()
    codes = [row[0] for row in rows]
    assert codes == sorted(set(codes))
    assert {(family.exit_code, family.code, family.meaning) for family in FAMILIES} <= set(rows)
    assert rows[0] == (0, "", "done")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_an_error_comes_back_from_its_problem(family: type[ComfypodError]) -> None:
    error = error_of(Problem(family.code, "what", "do this"))
    assert type(error) is family
    assert error.problems == (Problem(family.code, "what", "do this"),)
    assert str(error) == "what"


def test_a_problem_of_no_family_is_a_defect_of_comfypod() -> None:
    error = error_of(Problem("safe-mode", "what", "do this"))
    assert (type(error), error.exit_code, error.message, error.hint) == (ComfypodError, 1, "what", "do this")


@pytest.mark.parametrize("family", [ManifestError, LockError])
def test_problems_found_together_are_reported_together(family: type[ManifestError | LockError]) -> None:
    found = (Problem("manifest", "one"), Problem("manifest", "two", "so"))
    assert family("two problems", found=found).problems == found
    assert family("alone", "so").problems == (Problem(family.code, "alone", "so"),)
