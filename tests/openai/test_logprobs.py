"""Log-probabilities of chat completions (those of legacy completions: test_completions.py)."""

import math

import pytest


def test_they_are_a_distributions(chat):
    choice = chat(logprobs=True, top_logprobs=20).choices[0]
    content = choice.logprobs.content
    assert b"".join(bytes(t.bytes) for t in content).decode() == choice.message.content
    for token in content:
        top = [t.logprob for t in token.top_logprobs]
        assert len(top) == 20 and top == sorted(top, reverse=True)
        assert sum(map(math.exp, top)) <= 1 + 1e-4
        assert len({tuple(t.bytes) for t in token.top_logprobs}) >= 19, "alternatives are different tokens"
        assert token.logprob <= top[0]
        among = [t.logprob for t in token.top_logprobs if t.bytes == token.bytes]
        assert token.logprob in among or token.logprob <= top[-1]


def test_a_greedy_answer_takes_the_first(chat):
    for token in chat(temperature=0, logprobs=True, top_logprobs=3).choices[0].logprobs.content:
        assert token.token == token.top_logprobs[0].token and token.logprob == token.top_logprobs[0].logprob


@pytest.mark.parametrize("top", [None, 0, 1, 20])
def test_as_many_alternatives_as_asked(chat, top):
    content = chat(logprobs=True, top_logprobs=top, max_completion_tokens=4).choices[0].logprobs.content
    assert len(content) == 4 and all(len(t.top_logprobs) == (top or 0) for t in content)


def test_they_are_the_models_own_whatever_draws(chat):
    def first(**fields):
        return chat(logprobs=True, top_logprobs=5, max_completion_tokens=1, **fields).choices[0].logprobs.content[0]

    usual = [(t.token, t.logprob) for t in first().top_logprobs]
    for fields in ({"temperature": 0}, {"temperature": 2}, {"top_p": 0.1}, {"presence_penalty": 2}):
        assert [(t.token, t.logprob) for t in first(**fields).top_logprobs] == usual, fields


def test_streamed_they_are_the_same(chat, chunks):
    whole = chat(logprobs=True, top_logprobs=2, n=2).choices
    streamed = chunks(logprobs=True, top_logprobs=2, n=2)
    for i, choice in enumerate(whole):
        parts = [c.logprobs.content for chunk in streamed for c in chunk.choices if c.index == i and c.logprobs]
        assert [t for part in parts for t in part] == choice.logprobs.content


def test_they_change_nothing(chat):
    assert chat(logprobs=True, top_logprobs=20).choices[0].message.content == chat().choices[0].message.content
