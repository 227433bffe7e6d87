"""A table of what judges answer, in [0,10] where nothing else is said, and what each is worth; None: a failed row."""

from __future__ import annotations

import pytest

from genalign.reward.base import ScoringError
from genalign.reward.judge.reading import read_marks, read_score, read_scores

TABLE = [
    ("7/10", 7.0),
    ("7,5", 7.5),
    ("8 out of 10", 8.0),
    ("80%", 8.0),
    ("Score: 7-8", None),
    ("Score: 7 or 8", None),
    ("Score: 3\nA score of 10 would need sharp edges.", 3.0),
    ("Score: 3\n(a perfect score: 10)", 3.0),
    ("Score: 7,5/10", 7.5),
    ("**Score:** 7.5/10", 7.5),
    ("**Score: 7**", 7.0),
    ("### Final Score: **8**/10", 8.0),
    ("Final score is 8.", 8.0),
    ("<think>Score: 2</think>Score: 6", 6.0),
    ("Score: 2</think>\nScore: 6", 6.0),
    ("<think>Score: 2", None),
    ('```json\n{"score": 7.5}\n```', 7.5),
    ('{"score": "7/10"}', 7.0),
    ("{'score': 7}", 7.0),
    ('{"criteria": {"score": 2}, "score": 4}', 4.0),
    ('{"score": 4, "criteria": {"score": 2}}', 4.0),
    ('{"a": {"score": 4}, "b": {"score": 2}}', None),
    ("Rating: [[7]]", 7.0),
    ("<score>7</score>", 7.0),
    ("Score: \\boxed{7}", 7.0),
    ("\\boxed{7}", 7.0),
    ("Score: −3", None),
    ("Score：7", 7.0),
    ("Score: 1,000", None),
    ("Score: N/A", None),
    ("Score: 3\nOn reflection:\nScore: N/A", None),
    ("Score (0-10): 7", 7.0),
    ("Score [0-10]: 7", 7.0),
    ("Score (7)", 7.0),
    ("| Score | 7 |", 7.0),
    ("Score:\n7", 7.0),
    ("## Score\n\n7", 7.0),
    ("Score: 7 (good colours)", 7.0),
    ("Score: 7 (could be 8)", None),
    ("Score: 7, as it fits", 7.0),
    ("Score: 7, maybe 8", None),
    ("Score: 7 - it fits", 7.0),
    ("Score: 7 - 8", None),
    ("Score: 7 to 8", None),
    ("Score: ~7", None),
    ("Score: >7", None),
    ("Score: 7+", None),
    ("Score: seven", None),
    ("Great.\n\n8/10", 8.0),
    ("Objects:\n3", None),
    ("Composition score: 2\nColour score: 4", None),
    ("Maximum score: 10\nScore: 6", 6.0),
    ("Score: 6\nMaximum score: 10", 6.0),
    ("Score: 7 points", 7.0),
    ("Score: 4 out of 5", None),
    ("Score: 7 (out of 10)", 7.0),
    ("Score: 70%", 7.0),
    ("Score: 1e1", None),
    ("Score: 7.5.1", None),
    ("Score: 7, 8", None),
    ("Score: 8/10 for colours, 3/10 for shape", None),
    ("Score: 7½", None),
    ("underscore 3", None),
    ("I see 3 cats", None),
    ("The score is 7", 7.0),
    ("My final rating: 7 stars", 7.0),
    ("So the score = 7.", 7.0),
    ("Overall, score 7", 7.0),
    ("score 7 out of 10.", 7.0),
    ("Score 4 means bad", None),
    ('{"score": 7.0, "score": 2}', None),
    ('{"score": true}', None),
    ('{"score": null}', None),
    ('{"score": [7]}', None),
    ('{"score": 7/10}', 7.0),
    ("Score: **7** out of **10**", 7.0),
    ("**8/10**", 8.0),
    ("Score: 7!", 7.0),
    ("Score: 7. It fits the 2 cats.", 7.0),
    ("Score - 7", 7.0),
    ("- Score: 7", 7.0),
    ("> Score: 7", 7.0),
    ("1. Score: 7", 7.0),
    ("Score: 07", 7.0),
    ("Score: 7 / 10.0", 7.0),
    ("Score: 7/10\n", 7.0),
    ("Score: 7\r\n", 7.0),
    ("Score: 11", None),
    ("Score: 15/10", None),
    ("Score: 7.", 7.0),
    ("I would rate this 7/10.", None),
    ('{"reason": "Score: 2 at first", "score": 4}', 4.0),
    ('Score: 9\n{"note": "x"}', 9.0),
    ("Score: 5 < 7", None),
    ("Score: 3/4", None),
    ("", None),
    ("Score:", None),
    ("**Final Score**: 7", 7.0),
    ("Score: __7__", 7.0),
    ("Score: <7>", None),
    ("<b>Score:</b> 7", None),
    ("Final verdict\n\nScore: 8/10 ⭐", None),
    ("Score: 7\n\nScore: 8", 8.0),
    ("Score: 7 (7/10)", None),
    ("Score: 7 = good", None),
    ("Score: 10", 10.0),
    ("Score: 0", 0.0),
    ("Score: 0,5", 0.5),
    ("Score: 7/ 10", 7.0),
    ("Score : 7", 7.0),
    ("**Score**\n7/10", 7.0),
    ("Score: 7 with 3 errors", None),
    ("He thinks.</thinking>Score: 6", 6.0),
    ('```\n{"final_score": 8}\n```', 8.0),
    ('{"Score": 8}', 8.0),
    ("Score: 1.000,5", None),
    ("Score: 3. On reflection, Score: 2", 2.0),
    ("score = 4/10", 4.0),
    ("Score: 5/5", None),
    ("Score: twenty, or 7", None),
    ("Score: 2024-11-07", None),
    ("Score: 7\nConfidence: 90%", 7.0),
    ("Rating: 8 stars\nConfidence: 3", 8.0),
    ("Score: 0.0", 0.0),
    ("100%", 10.0),
    ("110%", None),
    ("Score: -0.5", None),
    ("Score: 6 of 10", 6.0),
    ("The score is between 6 and 8", None),
    ("Score: 6 +/- 1", None),
    ("Score: 6 ± 1", None),
    ("Score: 6/10, 7/10", None),
    ("Score: 6\n\n**Score: 7–8**", None),
]


@pytest.mark.parametrize(("answer", "expected"), TABLE)
def test_an_answer_is_read_by_its_final_verdict_or_not_at_all(answer: str, expected: float | None) -> None:
    if expected is None:
        with pytest.raises(ScoringError):
            read_score(answer, 0, 10)
    else:
        assert read_score(answer, 0, 10) == expected


@pytest.mark.parametrize(
    ("answer", "low", "high", "expected"),
    [
        ("80%", 0, 100, 80.0),
        ("80", 0, 100, 80.0),
        ("80%", 1, 5, None),  # of 5, or of the way from 1 to 5
        ("Score: -3", -5, 5, -3.0),
        ("Score: −3", -5, 5, -3.0),
        ("Score: 1,000", 0, 1000, None),  # 1 or 1000
        ("Score: 0,75", 0, 1, 0.75),
        ("Score: .75", 0, 1, 0.75),
        ("Score: 7/10", 0, 1, None),
        ("Score: 4/5", 1, 5, 4.0),
        ("Score: 4,5 out of 5", 1, 5, 4.5),
    ],
)
def test_a_range_decides_what_a_number_means(answer: str, low: float, high: float, expected: float | None) -> None:
    if expected is None:
        with pytest.raises(ScoringError):
            read_score(answer, low, high)
    else:
        assert read_score(answer, low, high) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"scores": {"A": 1, "B": 2}}</think>{"scores": {"A": 3, "B": 4}}', [3.0, 4.0]),
        ('{"scores": {"A": 3, "B": 4}, "draft": {"scores": {"A": 1, "B": 2}}}', [3.0, 4.0]),
        ('{"scores": {"A": 3, "B": 4, "A": 5}}', None),
        ('{"scores": {"A": 3, "B": 4}} or {"scores": "none"}', None),
        ('<think>{"scores": {"A": 1, "B": 2}}', None),
    ],
)
def test_a_list_is_that_of_the_last_object_outside_of_thoughts(answer: str, expected: list[float] | None) -> None:
    if expected is None:
        with pytest.raises(ScoringError):
            read_scores(answer, ["A", "B"], 1, 5)
    else:
        assert read_scores(answer, ["A", "B"], 1, 5) == expected


UNIFIED = "Alignment Score (1-5): 2.694700002670288\nCoherence Score (1-5): 2.371500015258789\nStyle Score (1-5): 5"
RATIONAL = """# Detailed Judgement
1. Text Faithfulness:
## Justification: A score of 4 would need a red car.
## Score: [2.5]
2. Physical and Visual Quality:
## Score: 3.5
3. Text Rendering:
## Score: N/A
# Summary: plausible"""
MARKS = [  # what published judges write, as their repositories show it; how many scores, and in which range
    (UNIFIED, 3, (1, 5), [2.694700002670288, 2.371500015258789, 5.0]),
    (RATIONAL, 3, (1, 4), [2.5, 3.5, None]),
    ('{\n"reasoning" : "The "glass" wall is there.",\n"score" : [22, 18.5]\n}', 2, (0, 25), [22.0, 18.5]),
    ('<think>"score": [1, 2]</think>{"score": [3, 4]}', 2, (0, 25), [3.0, 4.0]),
    ("output score = [9, 7]", 2, (0, 10), [9.0, 7.0]),
    ("**Style Rating:** 4/5\n- Content Score: n/a", 2, (1, 5), [4.0, None]),
    ("Score: 3", 1, (1, 5), [3.0]),
    (UNIFIED, 2, (1, 5), None),
    ('{"score": [22, 26]}', 2, (0, 25), None),
    ('{"score": [7, "good"]}', 2, (0, 25), None),
    ("no idea", 2, (0, 25), None),
]


@pytest.mark.parametrize(("text", "count", "scale", "marks"), MARKS)
def test_several_scores_of_one_answer_are_read_in_order(
    text: str, count: int, scale: tuple[int, int], marks: list[float | None] | None
) -> None:
    if marks is None:
        with pytest.raises(ScoringError):
            read_marks(text, count, *scale)
    else:
        assert read_marks(text, count, *scale) == marks
