"""The assistant of a shop: a module that finds out what is asked, one with tools, one that writes; several users at once.

opentelemetry-instrument python examples/shop.py
otel-llm usage --by module,user
"""

import asyncio

from pydantic import BaseModel, Field

from otel_llm import LLMProvider, llm_context

ORDERS = {4711: "sent on Monday", 4712: "waiting for a saddle"}
QUESTIONS = (
    ("alice", "Where is my order 4711?"),
    ("bob", "Which tyres do I need in winter?"),
    ("carol", "Has order 4713 been sent?"),
    ("alice", "Do you repair brakes?"),
)

# In a file, this is TOML: LLMProvider.from_file("llm.toml").
provider = LLMProvider.from_dict(
    {
        "profiles": {
            "fast": {"deployments": {"mini": {"model": "gpt-4o-mini"}}},
            "normal": {
                "stream_usage": True,
                "deployments": {"main": {"model": "gpt-4o"}, "spare": {"model": "gpt-4.1", "weight": 0}},
            },
        }
    }
)


class Intent(BaseModel):
    """What a customer wants to know."""

    order: int = Field(ge=0, description="Number of the order that is asked about; 0 where none is.")


# Module: intent. A small model reads each question first.
detector = provider.create_invoker("fast").with_structured_output(Intent)


async def detect(question: str) -> Intent:
    with llm_context("intent"):
        intent: Intent = await detector.ainvoke(question)
        return intent


# Module: orders. The model asks our own code.
clerk = provider.create_invoker("fast")


async def order_status(number: int) -> str:
    """The status of an order."""
    return ORDERS[number]


async def look_up(question: str) -> str:
    with llm_context("orders"):
        answer = await clerk.ainvoke_with_tools(question, [order_status], max_steps=3)
        return str(answer.text)


# Module: advice. A larger model, read as it writes.
writer = provider.create_invoker("normal")


async def advise(question: str) -> str:
    with llm_context("advice"):
        return "".join([chunk.text async for chunk in writer.astream(question)])


async def serve(number: int, user: str, question: str) -> str:
    with llm_context(user_id=user, conversation_id=f"c-{number}"):
        intent = await detect(question)
        return await (look_up(question) if intent.order else advise(question))


async def main() -> None:
    answers = await asyncio.gather(*(serve(number, *asked) for number, asked in enumerate(QUESTIONS)))
    for (user, question), answer in zip(QUESTIONS, answers, strict=True):
        print(f"{user}: {question}\n  {answer}")


if __name__ == "__main__":
    asyncio.run(main())
