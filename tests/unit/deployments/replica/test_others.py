"""What each ingress is told of the requests of others."""

from deployments.replica.others import REPEATED, Others


def test_each_is_told_of_the_others_and_only_news() -> None:
    others = Others()
    here = [("a", 0.0), ("a", 100.0), ("b", 7.0)]
    assert list(others.news("abc", here)) == [("a", 1, 7), ("b", 2, 100), ("c", 3, 107)]
    assert list(others.news("abc", here)) == []
    assert list(others.news("abc", here[1:])) == [("b", 1, 100), ("c", 2, 107)]
    assert list(others.news("abc", [])) == [("a", 0, 0), ("b", 0, 0), ("c", 0, 0)]
    assert list(others.news("abc", [])) == []


def test_who_is_alone_is_told_nothing() -> None:
    assert list(Others().news("a", [("a", 5.0)])) == []


def test_what_stays_is_told_again_and_a_new_one_hears_all() -> None:
    others = Others()
    heard = [list(others.news("ab", [("a", 5.0)])) for _ in range(2 * REPEATED)]
    assert [place for place, news in enumerate(heard) if news] == [0, REPEATED - 1, 2 * REPEATED - 1]
    assert list(others.news("abc", [("a", 5.0)])) == [("c", 1, 5)]
    list(others.news("a", [("a", 5.0)]))
    assert list(others.news("ab", [("a", 5.0)])) == [("b", 1, 5)], "its lane was closed meanwhile"
