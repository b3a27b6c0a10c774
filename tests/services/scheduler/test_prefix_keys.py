"""Equal prefixes have equal keys, however they came about, and other prefixes have others."""

from array import array

import pytest

from policies.scheduling.prefixes import KEY_BYTES
from services.scheduler.prefix_keys import Salt


def ids(tokens: range | list[int]) -> bytes:
    return array("i", tokens).tobytes()


def split(keys: bytes) -> list[bytes]:
    return [keys[start : start + KEY_BYTES] for start in range(0, len(keys), KEY_BYTES)]


@pytest.fixture
def salt() -> Salt:
    made = Salt(b"salt")
    made.follow([4])
    return made


@pytest.mark.parametrize(("length", "count"), [(1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_a_prompt_has_a_key_for_each_multiple_and_one_for_all_of_it(salt: Salt, length: int, count: int) -> None:
    _, keys = salt.begin(ids(range(length)))
    assert len(set(split(keys))) == len(keys) / KEY_BYTES == count


def test_keys_tell_prefixes_apart_and_nothing_else(salt: Salt) -> None:
    _, one = salt.begin(ids(range(12)))
    _, other = salt.begin(ids([*range(5), 99, *range(6, 12)]))
    assert [a == b for a, b in zip(split(one), split(other), strict=True)] == [True, False, False]
    _, shorter = salt.begin(ids(range(8)))
    assert split(shorter) == split(one)[:2]


@pytest.mark.parametrize("prompt", [1, 4, 6, 8, 11])
@pytest.mark.parametrize("steps", [[12], [8, 9, 12], list(range(1, 14))])
def test_output_has_the_keys_of_the_same_tokens_in_a_prompt(salt: Salt, prompt: int, steps: list[int]) -> None:
    tokens = ids(range(13))
    keys, of_prompt = salt.begin(tokens[: 4 * prompt])
    reached = [keys.reach(step, tokens[: 4 * prompt], memoryview(tokens[4 * prompt :])) for step in steps]
    _, expected = salt.begin(tokens)
    whole = split(of_prompt)[: prompt // 4]
    assert whole + split(b"".join(reached)) == split(expected)[:3]


def test_choices_go_on_by_themselves(salt: Salt) -> None:
    keys, _ = salt.begin(ids(range(4)))
    other = keys.copy()
    assert keys.reach(8, ids(range(4)), memoryview(ids([1, 2, 3, 4]))) != other.reach(
        8, ids(range(4)), memoryview(ids([1, 2, 3, 5]))
    )


def test_another_salt_or_another_grain_gives_other_keys(salt: Salt) -> None:
    _, keys = salt.begin(ids(range(4)))
    assert Salt().begin(ids(range(4)))[1] != Salt().begin(ids(range(4)))[1]
    salt.follow([4, 6])
    assert salt.key_tokens == 2
    assert split(salt.begin(ids(range(4)))[1])[-1] != split(keys)[-1]
    salt.follow([])
    assert salt.key_tokens == 2
