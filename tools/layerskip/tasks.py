"""Small exercises in Python, as people put them to a model: name, arguments, what is asked, and an answer to make examples from.

None is HumanEval's, and none of its texts is used.
"""

import math

WORDS = """river stone apple Window GREEN paper Lamp orange cloud Table mountain sugar Pencil train yellow Forest level noon
Radar silver bottle Garden happy kite banana Monday engine puzzle Rabbit violin castle thunder lemon Ocean""".split()


def numbers(rng):
    return [rng.randint(-20, 40) for _ in range(rng.randint(3, 6))]


def text(rng):
    return " ".join(rng.sample(WORDS, rng.randint(2, 4)))


def word(rng):
    return rng.choice(WORDS)


def words(rng):
    return rng.sample(WORDS, rng.randint(3, 5))


def small(rng):
    return rng.randint(2, 12)


def number(rng):
    return rng.randint(10, 999)


def two(a, b):
    return lambda rng: (a(rng), b(rng))


def matrix(rng):
    width = rng.randint(2, 3)
    return [[rng.randint(0, 9) for _ in range(width)] for _ in range(rng.randint(2, 3))]


def counts(rng):
    return {name: rng.randint(1, 20) for name in rng.sample([w.lower() for w in WORDS], 3)}


def runs(values):
    found = []
    for value in values:
        if found and found[-1][0] == value:
            found[-1][1] += 1
        else:
            found.append([value, 1])
    return found


def collatz(n):
    steps = 0
    while n > 1:
        n, steps = n // 2 if n % 2 == 0 else 3 * n + 1, steps + 1
    return steps


# name, arguments with types, type of the answer, what is asked, values, answer
TASKS = [
    ("count_vowels_in", "text: str", "int", "Count the vowels in the text.", text, lambda s: sum(c in "aeiouAEIOU" for c in s)),
    ("longest_of", "words: List[str]", "str", "Return the longest word, the first one if several are as long.", words, lambda w: max(w, key=len)),
    ("initials", "text: str", "str", "Return the first letters of all words in upper case.", text, lambda s: "".join(w[0].upper() for w in s.split())),
    ("swap_ends", "values: List[int]", "List[int]", "Return a copy of the list with its first and last element exchanged.", numbers, lambda v: v[-1:] + v[1:-1] + v[:1]),
    ("word_lengths", "text: str", "List[int]", "Return the length of each word.", text, lambda s: [len(w) for w in s.split()]),
    ("capitalised_only", "words: List[str]", "List[str]", "Keep only the words that begin with a capital letter.", words, lambda w: [x for x in w if x[0].isupper()]),
    ("reverse_each_word", "text: str", "str", "Reverse every word but keep their order.", text, lambda s: " ".join(w[::-1] for w in s.split())),
    ("letter_frequency", "word: str", "Dict[str, int]", "Return how often each letter occurs, in lower case.", word, lambda s: {c: s.lower().count(c) for c in sorted(set(s.lower()))}),
    ("by_length", "words: List[str]", "List[str]", "Sort the words by length, then alphabetically.", words, lambda w: sorted(w, key=lambda x: (len(x), x))),
    ("is_heterogram", "word: str", "bool", "Check that no letter occurs twice, ignoring case.", word, lambda s: len(set(s.lower())) == len(s)),
    ("running_total", "values: List[int]", "List[int]", "Return the sums of all beginnings of the list.", numbers, lambda v: [sum(v[: i + 1]) for i in range(len(v))]),
    ("differences", "values: List[int]", "List[int]", "Return the difference of each element and the one before it.", numbers, lambda v: [b - a for a, b in zip(v, v[1:])]),
    ("second_smallest", "values: List[int]", "int", "Return the second smallest distinct value.", numbers, lambda v: sorted(set(v))[1] if len(set(v)) > 1 else None),
    ("spread", "values: List[int]", "int", "Return the difference between the largest and the smallest value.", numbers, lambda v: max(v) - min(v)),
    ("rotate_left", "values: List[int], count: int", "List[int]", "Rotate the list to the left by count places.", two(numbers, small), lambda v, n: v[n % len(v):] + v[: n % len(v)]),
    ("chunks_of", "values: List[int], size: int", "List[List[int]]", "Split the list into parts of the given size; the last may be shorter.", two(numbers, small), lambda v, n: [v[i : i + n] for i in range(0, len(v), n)]),
    ("without_duplicates", "values: List[int]", "List[int]", "Remove repeated values, keeping the first of each.", numbers, lambda v: list(dict.fromkeys(v))),
    ("index_of_max", "values: List[int]", "int", "Return the position of the largest value.", numbers, lambda v: v.index(max(v))),
    ("alternating_sum", "values: List[int]", "int", "Add the first value, subtract the second, add the third, and so on.", numbers, lambda v: sum(v[::2]) - sum(v[1::2])),
    ("count_sign_changes", "values: List[int]", "int", "Count how often neighbours have different signs.", numbers, lambda v: sum((a < 0) != (b < 0) for a, b in zip(v, v[1:]))),
    ("clamp_all", "values: List[int], low: int, high: int", "List[int]", "Limit every value to the range from low to high.", lambda r: (numbers(r), 0, 20), lambda v, a, b: [min(max(x, a), b) for x in v]),
    ("digits_of", "n: int", "List[int]", "Return the decimal digits of n from left to right.", number, lambda n: [int(c) for c in str(n)]),
    ("digit_product", "n: int", "int", "Return the product of the decimal digits of n.", number, lambda n: math.prod(int(c) for c in str(n))),
    ("divisors", "n: int", "List[int]", "Return all divisors of n in rising order.", number, lambda n: [d for d in range(1, n + 1) if n % d == 0]),
    ("is_perfect", "n: int", "bool", "Check whether n equals the sum of its proper divisors.", number, lambda n: n == sum(d for d in range(1, n) if n % d == 0)),
    ("collatz_steps", "n: int", "int", "Count the steps of the Collatz sequence from n down to 1.", small, collatz),
    ("triangular", "n: int", "int", "Return the sum of the numbers from 1 to n.", small, lambda n: n * (n + 1) // 2),
    ("powers_of_two", "n: int", "List[int]", "Return the first n powers of two.", small, lambda n: [2**i for i in range(n)]),
    ("lowest_terms", "a: int, b: int", "Tuple[int, int]", "Return the fraction a/b in lowest terms.", two(number, small), lambda a, b: (a // math.gcd(a, b), b // math.gcd(a, b))),
    ("least_common_multiple", "a: int, b: int", "int", "Return the least common multiple of two numbers.", two(small, small), math.lcm),
    ("binary_digits", "n: int", "str", "Return n in binary without a prefix.", number, lambda n: f"{n:b}"),
    ("count_ones", "n: int", "int", "Count the ones in the binary form of n.", number, lambda n: f"{n:b}".count("1")),
    ("transpose", "rows: List[List[int]]", "List[List[int]]", "Exchange rows and columns of the matrix.", matrix, lambda m: [list(c) for c in zip(*m)]),
    ("row_sums", "rows: List[List[int]]", "List[int]", "Return the sum of each row.", matrix, lambda m: [sum(r) for r in m]),
    ("column_maxima", "rows: List[List[int]]", "List[int]", "Return the largest value of each column.", matrix, lambda m: [max(c) for c in zip(*m)]),
    ("flatten", "rows: List[List[int]]", "List[int]", "Join all rows into one list.", matrix, lambda m: [x for r in m for x in r]),
    ("run_lengths", "word: str", "List[Tuple[str, int]]", "Return runs of equal letters with their lengths.", word, lambda s: [tuple(r) for r in runs(s)]),
    ("compress", "word: str", "str", "Replace runs of equal letters by the letter and the length of the run.", word, lambda s: "".join(f"{c}{n}" for c, n in runs(s))),
    ("shift_letters", "word: str, by: int", "str", "Move each letter by so many places in the alphabet, in lower case, from z back to a.", two(word, small), lambda s, n: "".join(chr((ord(c) - 97 + n) % 26 + 97) for c in s.lower())),
    ("most_stocked", "stock: Dict[str, int]", "str", "Return the name with the largest count.", counts, lambda d: max(d, key=d.get)),
    ("invert", "stock: Dict[str, int]", "Dict[int, List[str]]", "Map each count to the sorted names that have it.", counts, lambda d: {n: sorted(k for k in d if d[k] == n) for n in sorted(set(d.values()))}),
    ("total_above", "stock: Dict[str, int], least: int", "int", "Add up the counts that are at least as large as least.", two(counts, small), lambda d, n: sum(v for v in d.values() if v >= n)),
    ("sorted_names", "stock: Dict[str, int]", "List[str]", "Return the names by falling count.", counts, lambda d: sorted(d, key=d.get, reverse=True)),
    ("merge_sorted", "first: List[int], second: List[int]", "List[int]", "Merge two sorted lists into one sorted list.", lambda r: (sorted(numbers(r)), sorted(numbers(r))), lambda a, b: sorted(a + b)),
    ("common_values", "first: List[int], second: List[int]", "List[int]", "Return the sorted values that are in both lists.", two(numbers, numbers), lambda a, b: sorted(set(a) & set(b))),
    ("dot_product", "first: List[int], second: List[int]", "int", "Return the dot product of two lists of the same length.", lambda r: ([r.randint(0, 9) for _ in range(3)], [r.randint(0, 9) for _ in range(3)]), lambda a, b: sum(x * y for x, y in zip(a, b))),
    ("pairs_with_sum", "values: List[int], target: int", "List[Tuple[int, int]]", "Return all pairs of values, in order, that add up to target.", two(numbers, small), lambda v, t: [(a, b) for i, a in enumerate(v) for b in v[i + 1 :] if a + b == t]),
    ("moving_average", "values: List[int], size: int", "List[float]", "Return the averages of all windows of the given size.", lambda r: (numbers(r), 2), lambda v, n: [sum(v[i : i + n]) / n for i in range(len(v) - n + 1)]),
    ("is_sorted", "values: List[int]", "bool", "Check whether the values never fall.", numbers, lambda v: v == sorted(v)),
    ("longest_rise", "values: List[int]", "int", "Return the length of the longest part in which each value is larger than the one before.", numbers,
     lambda v: max(n + 1 for i in range(len(v)) for n in range(len(v) - i) if all(v[j] < v[j + 1] for j in range(i, i + n)))),
    ("remove_vowels_from", "word: str", "str", "Remove every vowel but the first letter.", word, lambda s: s[0] + "".join(c for c in s[1:] if c not in "aeiouAEIOU")),
    ("snake_to_camel", "name: str", "str", "Turn a name such as some_long_name into someLongName.", lambda r: "_".join(w.lower() for w in words(r)), lambda s: s.split("_")[0] + "".join(p.title() for p in s.split("_")[1:])),
    ("acronym_length", "text: str", "int", "Return the number of words in the text.", text, lambda s: len(s.split())),
    ("pad_left", "text: str, width: int", "str", "Fill the text up with dots on the left to the given width.", lambda r: (word(r), 12), lambda s, n: s.rjust(n, ".")),
    ("every_second", "text: str", "str", "Return every second character, beginning with the first.", text, lambda s: s[::2]),
    ("last_word", "text: str", "str", "Return the last word of the text.", text, lambda s: s.split()[-1]),
    ("seconds_to_clock", "seconds: int", "str", "Format a number of seconds as minutes and seconds, such as 2:05.", number, lambda n: f"{n // 60}:{n % 60:02}"),
    ("celsius", "fahrenheit: float", "float", "Convert degrees Fahrenheit to degrees Celsius, rounded to one place.", number, lambda f: round((f - 32) / 1.8, 1)),
    ("triangle_kind", "a: int, b: int, c: int", "str", "Say whether a triangle is equilateral, isosceles or scalene.", lambda r: tuple(r.randint(3, 5) for _ in range(3)), lambda a, b, c: {1: "equilateral", 2: "isosceles"}.get(len({a, b, c}), "scalene")),
    ("grade", "points: int", "str", "Return A from 90 points, B from 80, C from 70, and F below.", lambda r: r.randint(50, 100), lambda p: "A" if p >= 90 else "B" if p >= 80 else "C" if p >= 70 else "F"),
]


def asked(rng):
    """One of them, put in one of several ways."""
    name, parameters, answer, what, values, f = rng.choice(TASKS)
    cases = []
    for _ in range(rng.randint(1, 3)):
        case = values(rng)
        case = case if isinstance(case, tuple) else (case,)
        cases.append((", ".join(map(repr, case)), repr(f(*case))))
    typed = rng.random() < 0.7
    bare = ", ".join(part.split(":")[0].strip() for part in split(parameters))
    kinds = sorted({k for k in ("List", "Dict", "Tuple") if f"{k}[" in parameters + answer}) if typed else []
    head = f"from typing import {', '.join(kinds)}\n\n\n" if kinds and rng.random() < 0.6 else ""
    head += f"def {name}({parameters}) -> {answer}:\n" if typed else f"def {name}({bare}):\n"
    style = rng.randrange(5)
    if style == 0:
        return f"Write a Python function `{name}({bare})`. {what} For example, {name}({cases[0][0]}) returns {cases[0][1]}."
    if style == 1:
        body = "".join(f"    {name}({a}) == {b}\n" for a, b in cases)
        doc = f'    """\n    {what}\n    Example{"s" if len(cases) > 1 else ""}:\n{body}    """\n'
    elif style == 2:
        body = "".join(f"    * {name}({a}) ➞ {b}\n" for a, b in cases)
        doc = f"    '''\n    {what}\n\n{body}    '''\n"
    else:
        body = "".join(f"    >>> {name}({a})\n    {b}\n" for a, b in cases)
        doc = f'    """ {what}\n{body}    """\n'
    return f"Complete this Python function:\n```python\n{head}{doc}```"


def split(parameters: str):
    """At the commas that are not inside brackets."""
    depth, part, parts = 0, "", []
    for c in parameters:
        depth += (c == "[") - (c == "]")
        if c == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += c
    return [*parts, part]
