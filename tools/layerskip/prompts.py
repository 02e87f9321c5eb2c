"""Prompts for the model's own texts: none of HumanEval's 164 is among them.

Three kinds, mixed with a fixed seed: functions of Python's own standard library as far as their docstring, functions
that are put together from a filter, a map and a reduction, with examples, and plain questions.

    python prompts.py > prompts.jsonl
"""

import ast
import json
import random
import sys
import sysconfig
from pathlib import Path


def library():
    """Signature and docstring of the functions of the standard library."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "test" in str(path) or "site-packages" in str(path):
            continue
        try:
            source = path.read_text()
            tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError):
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
WORDS = "river stone apple Window GREEN paper Lamp orange cloud Table mountain sugar Pencil train yellow Forest".split()
TEXTS = {
    "count_vowels": ("number of vowels in the text", lambda s: sum(c in "aeiouAEIOU" for c in s)),
    "longest_word": ("longest word of the text, the first one if there are several", lambda s: max(s.split(), key=len)),
    "initials": ("first letters of all words, in upper case", lambda s: "".join(w[0].upper() for w in s.split())),
    "swap_ends": ("text with its first and last word exchanged", lambda s: " ".join(s.split()[-1:] + s.split()[1:-1] + s.split()[:1])),
    "word_lengths": ("list of the lengths of the words", lambda s: [len(w) for w in s.split()]),
    "upper_words": ("words that begin with a capital letter", lambda s: [w for w in s.split() if w[0].isupper()]),
    "without_spaces": ("text without spaces", lambda s: s.replace(" ", "")),
    "each_reversed": ("text with every word reversed", lambda s: " ".join(w[::-1] for w in s.split())),
    "letter_counts": ("dictionary from each lower-case letter to how often it occurs", lambda s: {c: s.count(c) for c in sorted(set(s)) if c.islower()}),
    "sort_by_length": ("words sorted by their length", lambda s: sorted(s.split(), key=len)),
    "title": ("text in which each word begins with a capital", lambda s: " ".join(w.capitalize() for w in s.split())),
    "has_duplicate": ("whether a word occurs twice", lambda s: len(set(s.split())) < len(s.split())),
}


def composed(rng):
    """A function of a list of numbers or of a text, with examples as in a doctest."""
    if rng.random() < 0.25:
        name, (what, f) = rng.choice(sorted(TEXTS.items(), key=lambda t: t[0]))
        cases = [" ".join(rng.sample(WORDS, rng.randint(2, 4))) for _ in range(2)]
        head, ask = f"def {name}(text: str):\n", f"Return the {what}."
        name_ = name
    else:
        f1, m, r = rng.choice(list(FILTERS)), rng.choice(list(MAPS)), rng.choice(list(FOLDS))
        name_ = f"{r}_{m}_of_{f1}".replace(" ", "_").replace("-", "_")
        f = lambda v: FOLDS[r]([MAPS[m](x) for x in v if FILTERS[f1](x)])
        cases = [[rng.randint(-20, 40) for _ in range(rng.randint(3, 6))] for _ in range(2)]
        head = rng.choice([f"def {name_}(numbers: list[int]):\n", f"from typing import List\n\n\ndef {name_}(numbers: List[int]):\n"])
        ask = rng.choice([
            f"Return the {r} of the {m}s of all {f1} numbers.", f"Given a list of integers, keep the {f1} ones, take the {m} of each and return their {r}.",
            f"Write a function that takes a list of numbers and returns the {r} of the {m} of every {f1} number in it.",
        ])
    if rng.random() < 0.25:
        return f"Write a Python function `{name_}`. {ask} For example, {name_}({cases[0]!r}) is {f(cases[0])!r}."
    examples = "".join(f"    >>> {name_}({c!r})\n    {f(c)!r}\n" for c in cases)
    return f'Complete this Python function:\n```python\n{head}    """ {ask}\n{examples}    """\n```'


TOPICS = """photosynthesis|the water cycle|a binary search|recursion|a hash table|the French Revolution|gravity|inflation|a linked list|evolution
how bread is baked|the solar system|a healthy breakfast|good sleep|time management|learning a language|a job interview|a city trip to Rome|volcanoes|the human heart
a database index|version control with git|unit tests|object-oriented programming|an HTTP request|a neural network|climate change|renewable energy|the immune system|democracy
quicksort|a stack and a queue|a prime number|Pythagoras' theorem|probability|a median and a mean|chess openings|gardening in spring|running a marathon|how vaccines work""".replace("\n", "|").split("|")
ASKS = [
    "Explain {} in simple terms.", "Write a short paragraph about {}.", "Give me five tips or facts about {}.", "What should a beginner know about {}?",
    "Write a short story for children that mentions {}.", "Summarise the most important points about {} as a list.",
]


def main():
    rng = random.Random(7)
    found = list(dict.fromkeys(library()))
    rng.shuffle(found)
    kinds = [found[:400], list(dict.fromkeys(composed(rng) for _ in range(420)))[:400]]
    questions = [ask.format(topic) for ask in ASKS for topic in TOPICS]
    rng.shuffle(questions)
    kinds.append(questions[:120])
    prompts = [prompt for kind in kinds for prompt in kind]
    rng.shuffle(prompts)
    for prompt in prompts:
        print(json.dumps({"prompt": prompt}))
    print(*map(len, kinds), file=sys.stderr)


if __name__ == "__main__":
    main()
