"""Streams: read to the end, several at once, and one that is left early.

opentelemetry-instrument python examples/streaming.py
"""

import asyncio

from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from otel_llm import llm_context


def ask(question: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": question}]


def to_the_end() -> None:
    stream = OpenAI().chat.completions.create(
        model="gpt-4o-mini",
        messages=ask("Why is the sky blue?"),
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


async def several_at_once() -> None:
    client = AsyncOpenAI()

    async def read(user: str, question: str) -> str:
        with llm_context("live-chat", user_id=user):
            text = ""
            async with await client.responses.create(model="gpt-4o-mini", input=question, stream=True) as stream:
                async for event in stream:
                    if event.type == "response.output_text.delta":
                        text += event.delta
            return f"{user}: {text}"

    for line in await asyncio.gather(read("alice", "Is it raining?"), read("bob", "What time is it?")):
        print(line)
    await client.close()


def left_early() -> None:
    # The row says `partial`; the provider never got to report the tokens, so they are NULL, not a guess.
    with OpenAI().chat.completions.create(model="gpt-4o-mini", messages=ask("Tell me all."), stream=True) as stream:
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                print("enough after:", chunk.choices[0].delta.content)
                break


def main() -> None:
    with llm_context("live-chat", user_id="alice"):
        to_the_end()
    asyncio.run(several_at_once())
    with llm_context("live-chat", user_id="carol"):
        left_early()


if __name__ == "__main__":
    main()
