"""Prompts for the model's own texts: none of HumanEval's 164 is among them.

Four kinds, mixed with a fixed seed: functions of Python's own standard library, and of the packages that are installed, as
far as their docstring; functions that are put together from a filter, a map and a reduction, with examples; the exercises of
`tasks.py`; and plain questions.

    python prompts.py --packages sympy networkx numpy torch > prompts.jsonl
"""

import argparse
import ast
import json
import random
import sys
import sysconfig
from pathlib import Path

import tasks


def library(roots):
    """Signature and docstring of the functions in these folders."""
    for path in (path for root in roots for path in sorted(root.rglob("*.py"))):
        inside = path.relative_to(next(root for root in roots if path.is_relative_to(root)))
        if "test" in str(inside) or "site-packages" in str(inside):
            continue
        try:
            source = path.read_text()
            tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError, ValueError):
            continue
        lines = source.splitlines()
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef) or len(node.body) < 2:
                continue
            doc = node.body[0]
            if not (isinstance(doc, ast.Expr) and isinstance(getattr(doc, "value", None), ast.Constant)):
                continue
            text = "\n".join(lines[node.lineno - 1 : doc.end_lineno]) + "\n"
            if isinstance(doc.value.value, str) and 100 < len(text) < 900:
                yield f"Complete this Python function:\n```python\n{text}```"


FILTERS = {
    "even": lambda x: x % 2 == 0, "odd": lambda x: x % 2 == 1, "positive": lambda x: x > 0, "negative": lambda x: x < 0,
    "small": lambda x: abs(x) < 10, "large": lambda x: abs(x) >= 10, "two-digit": lambda x: 10 <= abs(x) <= 99,
    "nonzero": lambda x: x != 0, "multiple of three": lambda x: x % 3 == 0, "perfect square": lambda x: x >= 0 and int(x**0.5) ** 2 == x,
}
MAPS = {
    "square": lambda x: x * x, "double": lambda x: 2 * x, "absolute value": abs, "last digit": lambda x: abs(x) % 10,
    "cube": lambda x: x**3, "digit sum": lambda x: sum(map(int, str(abs(x)))), "successor": lambda x: x + 1, "half": lambda x: x // 2,
}
FOLDS = {
    "sum": sum, "largest": lambda v: max(v, default=None), "smallest": lambda v: min(v, default=None), "number": len,
    "list": list, "sorted list": sorted, "reversed list": lambda v: list(v)[::-1], "set": lambda v: sorted(set(v)),
}

def composed(rng):
    """A function of a list of numbers, with examples as in a doctest."""
    f1, m, r = rng.choice(list(FILTERS)), rng.choice(list(MAPS)), rng.choice(list(FOLDS))
    name = f"{r}_{m}_of_{f1}".replace(" ", "_").replace("-", "_")

    def f(values):
        return FOLDS[r]([MAPS[m](x) for x in values if FILTERS[f1](x)])

    cases = [tasks.numbers(rng) for _ in range(2)]
    head = rng.choice([f"def {name}(numbers: list[int]):\n", f"from typing import List\n\n\ndef {name}(numbers: List[int]):\n"])
    ask = rng.choice([
        f"Return the {r} of the {m}s of all {f1} numbers.", f"Given a list of integers, keep the {f1} ones, take the {m} of each and return their {r}.",
        f"Write a function that takes a list of numbers and returns the {r} of the {m} of every {f1} number in it.",
    ])
    if rng.random() < 0.25:
        return f"Write a Python function `{name}`. {ask} For example, {name}({cases[0]!r}) is {f(cases[0])!r}."
    examples = "".join(f"    >>> {name}({c!r})\n    {f(c)!r}\n" for c in cases)
    return f'Complete this Python function:\n```python\n{head}    """ {ask}\n{examples}    """\n```'


TOPICS = """photosynthesis|the water cycle|a binary search|recursion|a hash table|the French Revolution|gravity|inflation|a linked list|evolution
how bread is baked|the solar system|a healthy breakfast|good sleep|time management|learning a language|a job interview|a city trip to Rome|volcanoes|the human heart
a database index|version control with git|unit tests|object-oriented programming|an HTTP request|a neural network|climate change|renewable energy|the immune system|democracy
quicksort|a stack and a queue|a prime number|Pythagoras' theorem|probability|a median and a mean|chess openings|gardening in spring|running a marathon|how vaccines work""".replace("\n", "|").split("|")
ASKS = [
    "Explain {} in simple terms.", "Write a short paragraph about {}.", "Give me five tips or facts about {}.", "What should a beginner know about {}?",
    "Write a short story for children that mentions {}.", "Summarise the most important points about {} as a list.",
]


def different(make, rng, count):
    return list(dict.fromkeys(make(rng) for _ in range(count + count // 4)))[:count]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", nargs="*", default=[], help="installed ones whose functions are asked for too")
    parser.add_argument("--most", type=int, default=1800, help="prompts of a kind")
    args = parser.parse_args()
    rng, paths = random.Random(7), sysconfig.get_paths()
    found = list(dict.fromkeys(library([Path(paths["stdlib"])])))
    more = [Path(paths["purelib"]) / package for package in args.packages]
    if missing := [str(path) for path in more if not path.is_dir()]:
        raise SystemExit(f"not installed: {missing[0]}")
    other = list(dict.fromkeys(library(more)))
    rng.shuffle(found)
    rng.shuffle(other)
    questions = [ask.format(topic) for ask in ASKS for topic in TOPICS]
    rng.shuffle(questions)
    kinds = [
        (found + other)[: args.most], different(composed, rng, args.most // 2), different(tasks.asked, rng, args.most), questions[: args.most],
    ]
    prompts = [prompt for kind in kinds for prompt in kind]
    rng.shuffle(prompts)
    for prompt in prompts:
        print(json.dumps({"prompt": prompt}))
    print(*map(len, kinds), file=sys.stderr)


if __name__ == "__main__":
    main()
