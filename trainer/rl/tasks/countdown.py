"""Numbers to reach a target with. Free of torch.

Expressions are read, never run: only whole numbers, the four operations and parentheses have a
meaning here, in exact arithmetic.
"""

import ast
from collections import Counter
from fractions import Fraction
from random import Random

from trainer.rl.tasks.question import Question

MAX_CHARACTERS = 200
LARGEST_NUMBER = 25


class Countdown:
    """Asks `use 3 5 7 to make 26: ` and wants `3*7+5`.

    Each of the `length` numbers may be used once; targets are such that all of them together reach
    it. `format_credit` is the reward of a well-formed expression with another value.
    """

    size = None

    def __init__(self, *, seed: int, length: int = 3, format_credit: float = 0.0) -> None:
        self._seed = seed
        self._length = length
        self._format_credit = format_credit

    def question(self, index: int) -> Question:
        """See `Task`."""
        random = Random(f"countdown/{self._seed}/{index}")
        numbers = [random.randrange(1, LARGEST_NUMBER + 1) for _ in range(self._length)]
        target = numbers[0]
        for number in numbers[1:]:
            target = (target + number, abs(target - number), target * number)[random.randrange(3)]
        shown = sorted(numbers)
        return Question(
            index=index,
            text=f"use {' '.join(map(str, shown))} to make {target}: ",
            reference={"numbers": shown, "target": target},
            where=f"countdown question {index}",
        )

    def extract(self, answer: str) -> str | None:
        """The first line without spaces, and without what follows an equals sign."""
        line = answer.strip().split("\n", 1)[0].split("=", 1)[0]
        return "".join(line.split()) or None

    def score(self, question: Question, answer: str) -> float:
        """1 if the expression reaches the target with the given numbers, each at most once."""
        expression = self.extract(answer)
        tree = parse_expression(expression) if expression else None
        if tree is None:
            return 0.0
        used = Counter(n.value for n in ast.walk(tree) if isinstance(n, ast.Constant))
        if used - Counter(question.reference["numbers"]):
            return 0.0
        reached = value_of(tree) == question.reference["target"]
        return 1.0 if reached else self._format_credit


def parse_expression(text: str) -> ast.expr | None:
    """The expression, or None where it is anything but numbers, + - * / and parentheses."""
    if len(text) > MAX_CHARACTERS or set(text) - set("0123456789+-*/()"):
        return None
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp):
            known = isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div)
        else:
            known = isinstance(node, ast.Constant | ast.operator)
        if not known:
            return None
    return tree


def value_of(tree: ast.expr) -> Fraction | None:
    """The exact value; None where something is divided by zero."""
    if not isinstance(tree, ast.BinOp):
        return Fraction(tree.value) if isinstance(tree, ast.Constant) else None  # type: ignore[arg-type]
    left, right = value_of(tree.left), value_of(tree.right)
    if left is None or right is None:
        return None
    match tree.op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
    return left / right if right else None
