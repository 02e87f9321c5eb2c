"""The asynchronous client, and several requests at once."""

import asyncio
import json

import jsonschema
from conftest import text_of


def test_whole_and_streamed(async_client, asked, chat):
    async def both():
        async with async_client() as client:
            whole = await client.chat.completions.create(**asked())
            streamed = [c async for c in await client.chat.completions.create(**asked(), stream=True)]
            return whole.choices[0].message.content, text_of(streamed)

    assert set(asyncio.run(both())) == {chat().choices[0].message.content}


def test_texts_do_not_depend_on_company(async_client, asked, chat):
    # Different lengths, prompts and seeds in one batch.
    requests = [
        asked(seed=i, max_completion_tokens=8 + 4 * i, messages=[{"role": "user", "content": f"Count from {i}."}])
        for i in range(6)
    ]
    solo = [chat(**request).choices[0].message.content for request in requests]

    async def together():
        async with async_client() as client:

            async def one(request, stream):
                if not stream:
                    return (await client.chat.completions.create(**request)).choices[0].message.content
                return text_of([c async for c in await client.chat.completions.create(**request, stream=True)])

            return await asyncio.gather(*(one(r, i % 2 == 0) for i, r in enumerate(requests)))

    assert asyncio.run(together()) == solo


def test_the_reader_of_streams_and_a_form(async_client, asked):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}

    async def read():
        async with async_client() as client:
            async with client.chat.completions.stream(**asked(response_format=form)) as stream:
                async for _ in stream:
                    pass
                return await stream.get_final_completion()

    content = asyncio.run(read()).choices[0].message.content
    jsonschema.validate(json.loads(content), schema)


def test_the_other_apis(async_client, model):
    async def all_of_them():
        async with async_client() as client:
            fields = {"model": model, "temperature": 0}
            completion = await client.completions.create(**fields, prompt="The river", max_tokens=8)
            response = await client.responses.create(**fields, input="Hi", max_output_tokens=16)
            models = [m.id async for m in client.models.list()]
            return completion.choices[0].text, response.output_text, models

    text, output, models = asyncio.run(all_of_them())
    assert text and output and model in models
