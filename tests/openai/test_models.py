"""What is served, and the paths around it."""

import pytest


def test_models(client, model):
    listed = client.models.list().data
    assert model in [m.id for m in listed]
    one = client.models.retrieve(model)
    assert one.id == model and one.object == "model" and one.created > 1_600_000_000 and one.owned_by


@pytest.mark.paceline
def test_health_and_version(http):
    assert http.get("/health").status_code == 200
    assert http.get("/version").json()["version"]


TEXTS = ["", "Hello, river!", "  two  spaces ", "Grüße 你好 🙂", "<|im_start|>user", "a\n\n\tb\u0000c"]


@pytest.mark.paceline
@pytest.mark.parametrize("text", TEXTS, ids=["empty", "plain", "spaces", "wide", "control", "odd"])
def test_tokens_come_back_as_text(http, model, text):
    body = {"model": model, "prompt": text, "add_special_tokens": False, "return_token_strs": True}
    tokenized = http.post("/tokenize", json=body).json()
    assert tokenized["count"] == len(tokenized["tokens"]) == len(tokenized["token_strs"])
    assert tokenized["max_model_len"] > 0
    back = http.post("/detokenize", json={"model": model, "tokens": tokenized["tokens"]}).json()
    assert back == {"prompt": text}


@pytest.mark.paceline
def test_a_conversations_tokens_are_those_of_the_answer(http, chat, model):
    messages = [{"role": "user", "content": "Tell me about rivers."}]
    tokenized = http.post("/tokenize", json={"model": model, "messages": messages}).json()
    assert tokenized["count"] == chat(messages=messages, max_completion_tokens=1).usage.prompt_tokens


@pytest.mark.paceline
@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [99_999_999]}, "tokens[0]"),
        ("/detokenize", {"tokens": [], "x": 1}, "x"),
    ],
)
def test_refusals(http, path, body, param):
    response = http.post(path, json=body)
    assert response.status_code == 400 and response.json()["error"]["param"] == param, response.text
