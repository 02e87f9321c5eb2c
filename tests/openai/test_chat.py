"""Chat completions: whole answers, seeds, choices, messages."""

import pytest
from conftest import text_of


def test_an_answer_has_openais_shape(client, asked, model):
    answer = client.chat.completions.create(**asked())
    assert answer.object == "chat.completion" and answer.model == model
    assert answer.id.startswith("chatcmpl-") and answer.created > 1_600_000_000 and answer.system_fingerprint
    (choice,) = answer.choices
    assert choice.index == 0 and choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length") and choice.logprobs is None
    assert choice.message.tool_calls is None and choice.message.refusal is None


def test_usage_counts_tokens(chat, http, model, tokens_of):
    answer = chat(max_completion_tokens=12)
    usage = answer.usage
    assert answer.choices[0].finish_reason == "length" and usage.completion_tokens == 12
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details.reasoning_tokens == 0
    # The second time the prompt is there already, but for its last tokens.
    again = chat(max_completion_tokens=1)
    assert 0 < again.usage.prompt_tokens_details.cached_tokens < again.usage.prompt_tokens == usage.prompt_tokens


def test_a_seed_decides_the_text(chat):
    texts = [chat(seed=seed, temperature=1).choices[0].message.content for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    greedy = [chat(seed=seed, temperature=0).choices[0].message.content for seed in (1, 2)]
    assert greedy[0] == greedy[1]


@pytest.mark.paceline
def test_a_drawn_seed_is_returned_and_repeats_the_answer(client, asked):
    fields = asked(temperature=1)
    del fields["seed"]
    first = client.chat.completions.with_raw_response.create(**fields)
    text = first.parse().choices[0].message.content
    seed = int(first.headers["x-paceline-seed"])
    assert first.parse().paceline["seed"] == seed
    again = client.chat.completions.create(**fields, seed=seed)
    assert again.choices[0].message.content == text
    assert first.headers["x-request-id"] == first.parse().id


def test_choices_differ_and_the_first_is_the_only_one_of_a_smaller_request(chat, chunks):
    def texts(n):
        answer = chat(n=n, temperature=1)
        assert [c.index for c in answer.choices] == list(range(n))
        return [c.message.content for c in answer.choices], answer.usage

    (three, usage), (two, _), (one, one_usage) = texts(3), texts(2), texts(1)
    assert len(set(three)) == 3
    # Each choice has noise of its own, which the number of choices does not touch.
    assert three[:2] == two and two[:1] == one
    assert usage.prompt_tokens == one_usage.prompt_tokens, "the prompt counts once"
    assert usage.completion_tokens > one_usage.completion_tokens
    streamed = chunks(n=3, temperature=1)
    assert [text_of(streamed, i) for i in range(3)] == three


MESSAGES = {
    "system": [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Hi"}],
    "developer": [{"role": "developer", "content": "You are terse."}, {"role": "user", "content": "Hi"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "you"}]}],
    "turns": [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Hello Ada."},
        {"role": "user", "name": "ada", "content": "What is my name?"},
    ],
}


@pytest.mark.parametrize("messages", MESSAGES.values(), ids=MESSAGES)
def test_messages_of_all_roles_and_parts(chat, messages):
    assert chat(messages=messages, max_completion_tokens=8).choices[0].message.content


def test_a_developers_message_is_a_systems(chat):
    system, developer = (chat(messages=MESSAGES[role]) for role in ("system", "developer"))
    assert system.choices[0].message.content == developer.choices[0].message.content
    assert system.usage.prompt_tokens == developer.usage.prompt_tokens


# Filters tell where the noise is loud, penalties where a text repeats itself.
FIELDS = {
    "top_p": (1.5, {"top_p": 0.5}),
    "top_k": (1.5, {"extra_body": {"top_k": 2}}),
    "min_p": (1.5, {"extra_body": {"min_p": 0.4}}),
    "typical_p": (1.5, {"extra_body": {"typical_p": 0.3}}),
    "presence_penalty": (0, {"presence_penalty": 2}),
    "frequency_penalty": (0, {"frequency_penalty": 2}),
    "repetition_penalty": (0, {"extra_body": {"repetition_penalty": 2}}),
}


@pytest.fixture(scope="module")
def usual(chat):
    return {t: chat(temperature=t, max_completion_tokens=32).choices[0].message.content for t in (0, 1.5)}


@pytest.mark.parametrize("field", FIELDS)
def test_sampling_fields_change_the_text(chat, usual, field):
    temperature, fields = FIELDS[field]
    changed = chat(temperature=temperature, max_completion_tokens=32, **fields).choices[0].message.content
    assert changed and changed != usual[temperature]


def test_neutral_fields_change_nothing(chat):
    neutral = {"top_p": 1, "n": 1, "presence_penalty": 0, "logit_bias": {}, "stop": None, "user": "u", "store": False}
    neutral |= {"metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True, "tools": None}
    neutral["extra_body"] = {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "priority": 3, "cache_salt": "tenant"}
    assert chat(**neutral).choices[0].message.content == chat().choices[0].message.content


def test_a_logit_bias_forbids_and_forces(chat, tokens_of):
    (token,) = tokens_of("river")
    forced = chat(logit_bias={str(token): 100}, max_completion_tokens=3)
    assert forced.choices[0].message.content == "river" * 3
    word = chat(temperature=0, max_completion_tokens=1).choices[0].message.content
    (token,) = tokens_of(word)
    forbidden = chat(temperature=0, max_completion_tokens=1, logit_bias={str(token): -100})
    assert forbidden.choices[0].message.content != word


@pytest.mark.paceline
def test_limits_of_both_kinds(chat):
    long = chat(max_completion_tokens=20, extra_body={"ignore_eos": True})
    assert long.usage.completion_tokens == 20 and long.choices[0].finish_reason == "length"
    least = chat(stop=["e"], extra_body={"min_tokens": 12})
    assert least.usage.completion_tokens >= 12
