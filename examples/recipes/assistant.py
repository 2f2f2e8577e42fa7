"""What the assistant can do: find out what is wanted, write a recipe, plan a meal with tools. No word of HTTP here."""

from pathlib import Path

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from otel_llm import LLMProvider, llm_context

GRAMS = {"Shakshuka": {"tomatoes": 200, "eggs": 120}, "Risotto": {"rice": 80, "stock": 300}}

provider = LLMProvider.from_file(Path(__file__).with_name("llm.yaml"))


class Intent(BaseModel):
    """What the cook wants."""

    people: int = Field(ge=0, description="For how many people a meal is to be planned; 0 for a recipe alone.")


@tool
def ingredients(dish: str) -> dict[str, int]:
    """Grams of each ingredient of a dish, for one."""
    return GRAMS.get(dish, {})


@tool
def shopping_list(grams: int, people: int) -> int:
    """Grams of one ingredient to buy."""
    return grams * people


detector = provider.create_invoker("fast").with_structured_output(Intent)
writer = provider.create_invoker("normal")
planner = create_agent(
    provider.create_invoker("normal"),
    tools=[ingredients, shopping_list],
    system_prompt="You plan meals and say what to buy.",
    name="planner",
)


async def reply(question: str) -> str:
    intent = await detect(question)
    return await (plan(question) if intent.people else write(question))


@llm_context("intent")
async def detect(question: str) -> Intent:
    return await detector.ainvoke([SystemMessage("You find out what a cook wants."), HumanMessage(question)])


@llm_context("recipes")
async def write(question: str) -> str:
    messages = [SystemMessage("You write recipes."), HumanMessage(question)]
    return "".join([chunk.text async for chunk in writer.astream(messages)])


@llm_context("planner")
async def plan(question: str) -> str:
    answer = await planner.ainvoke({"messages": [HumanMessage(question)]})
    return answer["messages"][-1].text
