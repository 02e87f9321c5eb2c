"""Legacy completions: prompts in all four spellings, echo, log-probabilities, streams."""

import math

import openai
import pytest

PROMPT = "The longest river of Europe is"


@pytest.fixture(scope="module")
def complete(client, model):
    def complete(**fields):
        usual = {"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0.8, "seed": 7}
        return client.completions.create(**(usual | fields))

    return complete


def test_an_answer_has_openais_shape(complete, model):
    answer = complete()
    assert answer.object == "text_completion" and answer.model == model and answer.id.startswith("cmpl-")
    (choice,) = answer.choices
    assert choice.index == 0 and choice.text and choice.logprobs is None
    assert choice.finish_reason == "length" and answer.usage.completion_tokens == 12


def test_tokens_are_the_text(complete, http, model):
    tokens = http.post("/tokenize", json={"model": model, "prompt": PROMPT}).json()["tokens"]
    text = complete().choices[0].text
    assert complete(prompt=tokens).choices[0].text == text
    assert complete(prompt=[tokens]).choices[0].text == text
    assert complete(prompt=[PROMPT]).choices[0].text == text
    assert complete().usage.prompt_tokens == len(tokens)


def test_several_prompts(complete):
    prompts = [PROMPT, "Once upon a time", PROMPT]
    answer = complete(prompt=prompts, n=2)
    assert [c.index for c in answer.choices] == list(range(6))
    texts = [c.text for c in answer.choices]
    for i, prompt in enumerate(prompts):
        assert [c.text for c in complete(prompt=prompt, n=2).choices] == texts[2 * i : 2 * i + 2]
    streamed = [""] * 6
    for chunk in complete(prompt=prompts, n=2, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == texts


def test_echo(complete):
    text = complete().choices[0].text
    assert complete(echo=True).choices[0].text == PROMPT + text
    assert "".join(c.choices[0].text for c in complete(echo=True, stream=True)) == PROMPT + text


def test_stop(complete):
    text = complete().choices[0].text
    stop = text[7:12]
    choice = complete(stop=stop).choices[0]
    assert (choice.text, choice.finish_reason) == (text[: text.index(stop)], "stop")


def test_logprobs(complete):
    choice = complete(logprobs=3).choices[0]
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens) == choice.text
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 12
    assert logprobs.text_offset == [len("".join(logprobs.tokens[:i])) for i in range(12)]
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        # The drawn token is there beside the most likely three.
        assert 3 <= len(top) <= 4 and top[token] == logprob
        assert sum(map(math.exp, top.values())) <= 1 + 1e-4
    streamed = [c.choices[0].logprobs for c in complete(logprobs=3, stream=True) if c.choices[0].logprobs]
    assert [t for part in streamed for t in part.tokens] == logprobs.tokens
    assert [o for part in streamed for o in part.text_offset] == logprobs.text_offset


def test_usage_of_a_stream(complete):
    *_, end = complete(stream=True, stream_options={"include_usage": True})
    assert end.choices == [] and end.usage.completion_tokens == 12


def test_the_default_length(complete):
    assert complete(max_tokens=openai.omit, extra_body={"ignore_eos": True}).usage.completion_tokens == 16


def test_a_suffix_is_filled_or_refused(complete):
    fields = {"prompt": "def add(a, b):\n", "suffix": "\n    return c\n", "temperature": 0, "max_tokens": 16}
    try:
        answer = complete(**fields)
    except openai.BadRequestError as refused:
        assert refused.param == "suffix" and refused.code == "unsupported_parameter"
    else:
        # The gap is seen from both sides.
        assert "c" in answer.choices[0].text


REFUSED = {
    "no prompt": ({"prompt": None}, "prompt"),
    "empty list": ({"prompt": []}, "prompt"),
    "mixed": ({"prompt": ["a", 5]}, "prompt[1]"),
    "token out of vocabulary": ({"prompt": [1, 99_999_999]}, "prompt[1]"),
    "token of the second prompt": ({"prompt": [[1], [1, 99_999_999]]}, "prompt[1][1]"),
    "the second prompt too long": ({"prompt": ["a", "river " * 40_000]}, "prompt[1]"),
    "negative token": ({"prompt": [-1]}, "prompt[0]"),
    "too many": ({"prompt": ["a"] * 129}, "prompt"),
    "best_of": ({"best_of": 3}, "best_of"),
    "logprobs": ({"logprobs": 21}, "logprobs"),
    "echo and logprobs": ({"echo": True, "logprobs": 1}, "logprobs"),
    "response_format": ({"response_format": {"type": "json_object"}}, "response_format"),
    "messages": ({"messages": []}, "messages"),
}


@pytest.mark.parametrize(("fields", "param"), REFUSED.values(), ids=REFUSED)
def test_refusals(complete, fields, param):
    with pytest.raises(openai.BadRequestError) as refused:
        complete(extra_body=fields)
    assert refused.value.param == param, refused.value.message
