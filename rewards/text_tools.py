"""A calculator as a tool of a language model, and a reward for who uses it well. Copy this file and change it.

policy.environment names the tool: it is called with a list of the last turns, and answers each, or None.
"""

import ast
import operator
import re

from genalign.reward import reward

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.USub: operator.neg}


def calculator(text):
    """<calc>12 * 7</calc> -> "84"; a turn without one is not answered, which ends the completion."""
    calls = [re.findall(r"<calc>(.*?)</calc>", turn, re.DOTALL) for turn in text]
    return [computed(call[-1]) if call else None for call in calls]


def computed(formula):
    try:
        return str(value(ast.parse(formula.strip(), mode="eval").body))
    except (SyntaxError, ValueError, KeyError, RecursionError):
        return "that is no formula of whole numbers"


def value(node):
    if isinstance(node, ast.Constant) and type(node.value) is int and abs(node.value) < 10**9:
        return node.value
    if isinstance(node, ast.BinOp):
        return OPERATIONS[type(node.op)](value(node.left), value(node.right))
    if isinstance(node, ast.UnaryOp):
        return OPERATIONS[type(node.op)](value(node.operand))
    raise ValueError(node)


@reward
def solved(text, answer):
    """1 where the last number in the last <answer>, or in the text, is the right one; else 0."""
    found = []
    for written, right in zip(text, answer, strict=True):
        inside = re.findall(r"<answer>(.*?)</answer>", written, re.DOTALL)
        numbers = re.findall(r"-?\d+", inside[-1] if inside else written)
        found.append(float(bool(numbers) and numbers[-1] == right))
    return found


@reward
def asks(text):
    """1 where the model asked the calculator, so that it learns to before it gains by it."""
    return [float("<calc>" in written and "</calc>" in written) for written in text]
