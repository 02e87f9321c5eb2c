"""Writes the golden files beside it: encodings by a plain BPE written here from its definition (Python's `regex`
cuts the words), prompts by Jinja2 set up as Hugging Face's `apply_chat_template` does it.

    pip install gguf regex jinja2
    python make.py smollm2-135m MODELS/smollm2-135m.gguf
    python make.py coder-0.5b MODELS/coder-0.5b.gguf
"""
import json
import pathlib
import sys
import unicodedata

import gguf
import jinja2
import jinja2.sandbox
import regex

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "",
    " ",
    "Hello, world!",
    "The capital of France is Paris.",
    "in 2024, 1234567 + 89 = 1234656",
    "don't DON'T we'll I'VE",
    "def fib(n):\n    if n < 2:\n        return n\n    return fib(n - 1) + fib(n - 2)\n",
    "fn main() {\n\tprintln!(\"{}\", 1 << 3);\r\n}\r\n",
    "   leading and trailing   ",
    "a\n\n\n   b\t\t c  ",
    "naïve café Zürich Straße",
    "cafe\u0301 is not NFC",
    "Привет, мир! Как дела?",
    "你好，世界。今天是2024年。",
    "こんにちは世界",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "शुभ प्रभात",
    "emoji: 😀👩‍👩‍👧‍👦🇩🇪 end",
    "zero\u200bwidth and nbsp\u00a0here",
    "½ Ⅷ ²³ ١٢٣",
    "https://example.com/a?b=c&d=%20#frag",
    "{\"key\": [1, 2.5, null, true], \"s\": \"\\u00e9\"}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "________________--------------------================!!!!!!!!!!!!",
    "x" + " " * 70 + "y",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b <|im_start|",
    "<tool_call>{\"name\": \"f\"}</tool_call>",
]
CHATS = [
    [("user", "Hi")],
    [("system", "Be brief."), ("user", "Who are you?")],
    [("user", "1+1?"), ("assistant", "2"), ("user", "  and\n\n2+2?  ")],
    [("user", "<b>&\"'</b> {{ not }} a {% template %}")],
]


def alphabet():
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in own]
    return {**{b: chr(b) for b in own}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


class Bpe:
    def __init__(self, meta):
        tokens, kinds = meta("tokens"), meta("token_type")
        self.ids = {t: i for i, t in enumerate(tokens) if kinds[i] == 1}
        self.control = {t: i for i, t in enumerate(tokens) if kinds[i] == 3}
        self.added = {t: i for i, t in enumerate(tokens) if kinds[i] == 4}
        self.ranks = {tuple(m.split(" ")): i for i, m in enumerate(meta("merges"))}
        self.pre = meta("pre")
        self.alphabet = alphabet()

    def words(self, text):
        if self.pre == "qwen2":
            yield from regex.findall(QWEN2, unicodedata.normalize("NFC", text))
            return
        assert self.pre == "smollm"
        for piece in regex.split(r"(\p{N})", text):
            yield from regex.findall(GPT2, piece)

    def merge(self, word):
        parts = [self.alphabet[b] for b in word.encode()]
        while len(parts) > 1:
            best = min(zip(parts, parts[1:]), key=lambda pair: self.ranks.get(pair, 1 << 60))
            if best not in self.ranks:
                break
            out, i = [], 0
            while i < len(parts):
                if tuple(parts[i : i + 2]) == best:
                    out.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    out.append(parts[i])
                    i += 1
            parts = out
        return [self.ids[p] for p in parts]

    def encode(self, text, allow_special):
        whole = {**self.added, **(self.control if allow_special else {})}
        pieces = [text]
        if whole:
            longest_first = sorted(whole, key=len, reverse=True)
            pieces = regex.split("(" + "|".join(map(regex.escape, longest_first)) + ")", text)
        ids = []
        for piece in pieces:
            ids += [whole[piece]] if piece in whole else [i for w in self.words(piece) for i in self.merge(w)]
        return ids


def main(name, path):
    fields = gguf.GGUFReader(path).fields
    meta = lambda key: fields[f"tokenizer.ggml.{key}"].contents()
    bpe = Bpe(meta)
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    template = env.from_string(fields["tokenizer.chat_template"].contents())
    special = {k: meta("tokens")[meta(f"{k}_token_id")] for k in ("bos", "eos")}
    golden = {
        "encodings": [
            {"text": t, "special": s, "ids": bpe.encode(t, s)} for t in TEXTS for s in (False, True)
        ],
        "prompts": [
            {
                "messages": chat,
                "prompt": template.render(
                    messages=[{"role": r, "content": c} for r, c in chat],
                    add_generation_prompt=True,
                    tools=None,
                    documents=None,
                    bos_token=special["bos"],
                    eos_token=special["eos"],
                ),
            }
            for chat in CHATS
        ],
    }
    out = json.dumps(golden, ensure_ascii=True, separators=(",", ":"))
    out = out.replace('{"text"', '\n{"text"').replace('{"messages"', '\n{"messages"')
    pathlib.Path(__file__).with_name(f"{name}.json").write_text(out + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
