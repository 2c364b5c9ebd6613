from coeff_diffusion.service.line import Line


def line(**numbers: list[int]) -> Line:
    found = Line()
    for owner, own in numbers.items():
        for number in own:
            found.add(owner, number)
    return found


def test_owners_take_turns_and_each_keeps_its_order() -> None:
    found = line(ann=[1, 2, 3], bob=[4], cleo=[5, 6])
    expected = [1, 4, 5, 2, 6, 3]
    assert [*found] == expected
    assert [found.take() for _ in expected] == expected
    assert found.take() is None
    assert len(found) == 0


def test_who_comes_waits_for_one_of_each_other_at_most() -> None:
    found = line(ann=[1, 2, 3], bob=[4, 5, 6])
    assert found.take() == 1
    found.add("cleo", 7)
    assert [*found] == [4, 2, 7, 5, 3, 6]
    found.add("ann", 8)  # more of the same changes nothing for others
    assert [*found][:3] == [4, 2, 7]


def test_sooner_moves_within_what_its_owner_asked_for() -> None:
    found = line(ann=[1, 2, 3], bob=[4])
    found.sooner("ann", 3)
    assert found.of("ann") == [1, 3, 2]
    for owner, number in (("ann", 1), ("ann", 4), ("bob", 4), ("nobody", 1)):
        found.sooner(owner, number)
    assert [*found] == [1, 4, 3, 2]


def test_what_is_taken_out_leaves_nothing_behind() -> None:
    found = line(ann=[1, 2], bob=[3])
    assert not found.remove("ann", 3)
    assert found.remove("bob", 3)
    assert not found.remove("bob", 3)
    assert found.of("bob") == []
    assert [*found] == [1, 2]
    assert found.take() == 1
    assert found.remove("ann", 2)
    assert found.take() is None


def test_one_that_is_taken_out_leaves_the_others_of_its_owner() -> None:
    found = line(ann=[1, 2, 3])
    assert found.remove("ann", 2)
    assert [*found] == [1, 3]
