"""An agent written by hand, for the pictures: it asks, runs a tool, meets a full model and takes another.

opentelemetry-instrument python planner.py USER          # from beginning to end
opentelemetry-instrument python planner.py USER stuck    # stays in the middle of an answer, for whoever kills it
"""

import json
import sys

from openai import OpenAI, RateLimitError

from otel_llm import chain, llm_context, step, tool

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
client = OpenAI(max_retries=0)


@tool
def weather(city: str) -> str:
    return f"21 °C in {city}"


@chain("trip-planner", agent=True)
def plan(wish: str) -> str | None:
    messages = [{"role": "user", "content": wish}]
    with step("look around"):
        answer = client.chat.completions.create(model="gpt-4o-mini", messages=messages, tools=TOOLS).choices[0].message
        messages.append(answer)
        for call in answer.tool_calls:
            seen = weather(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": seen})
        client.chat.completions.create(model="gpt-4o-mini", messages=messages)
    with step("write"):
        try:
            full = {"x-local-behaviour": "error-429"}
            answer = client.chat.completions.create(model="gpt-4o", messages=messages, extra_headers=full)
        except RateLimitError:
            answer = client.chat.completions.create(model="gpt-4.1-mini", messages=messages)
    return answer.choices[0].message.content


@chain("report")
def report() -> None:
    slow = {"x-local-behaviour": "stream-slow"}
    words = [{"role": "user", "content": "How was the week?"}]
    stream = client.chat.completions.create(model="gpt-5-mini", messages=words, stream=True, extra_headers=slow)
    for _ in stream:
        sys.stdout.write("writing\n")
        sys.stdout.flush()


if __name__ == "__main__":
    with llm_context("travel", user_id=sys.argv[1]):
        if sys.argv[2:] == ["stuck"]:
            report()
        else:
            plan("Three warm days by the sea, please.")
