#!/usr/bin/env python3
"""Writes questions about long documents for `paceline bench compare --prompts FILE.jsonl`.

    python3 scripts/long-documents.py --tokens 8000 --questions 6 --out documents-8k.jsonl
    paceline bench compare --prompts documents-8k.jsonl --strategies none,rapid --max-tokens 24 --json out.json

The documents are the licences that every Debian system carries (/usr/share/common-licenses), one after the other
with their titles, cut to about so many tokens (4.4 characters each). Notes stand between their paragraphs, spread
evenly: "Note: the access code of the harbour office is 48213." Each question asks for one of them and for a summary behind the whole text, so
that the prompts of a file share everything but the question. `expect` is the code.
"""

import argparse
import json
import pathlib
import random

TITLES = ["GPL-3", "MPL-2.0", "LGPL-2.1", "GFDL-1.3", "Apache-2.0", "GPL-2", "MPL-1.1", "Artistic", "GPL-1", "LGPL-3"]
PLACES = ["harbour office", "north gate", "seed library", "old observatory", "tram depot", "salt mine", "boat house",
          "bell tower", "glass works", "river lock"]
CHARACTERS = 4.4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, required=True, help="about the length of the documents")
    parser.add_argument("--questions", type=int, default=6, choices=range(1, len(PLACES) + 1))
    parser.add_argument("--texts", type=pathlib.Path, default=pathlib.Path("/usr/share/common-licenses"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    dice = random.Random(args.seed)
    paragraphs = []
    for title in TITLES:
        text = (args.texts / title).read_text(encoding="utf-8", errors="replace")
        paragraphs += [f"Document: {title}"] + [" ".join(p.split()) for p in text.split("\n\n") if p.strip()]
    wanted = int(args.tokens * CHARACTERS)
    if sum(len(p) + 2 for p in paragraphs) < wanted:
        parser.error(f"--tokens {args.tokens}: the texts in {args.texts} are shorter")
    kept, length = [], 0
    for paragraph in paragraphs:
        if length >= wanted:
            break
        kept.append(paragraph)
        length += len(paragraph) + 2
    codes = [str(dice.randrange(10_000, 100_000)) for _ in range(args.questions)]
    # From the last to the first, so that places stay where they were counted.
    for nth in reversed(range(args.questions)):
        at = round((nth + 0.5) * len(kept) / args.questions)
        kept.insert(at, f"Note: the access code of the {PLACES[nth]} is {codes[nth]}.")
    document = "\n\n".join(kept)
    with args.out.open("w") as out:
        for place, code in zip(PLACES, codes):
            question = (f"What is the access code of the {place}? Say it in a full sentence, and then describe in three "
                        "sentences what the documents above are about.")
            out.write(json.dumps({"prompt": f"{document}\n\n{question}", "expect": code}) + "\n")
    print(f"{args.questions} questions, {len(document)} characters each")


if __name__ == "__main__":
    main()
