"""Writes `providers.md` from the tables in `otel_llm/conventions`.

python docs/providers.py    # needs nothing; a test says when it is to be run again
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from otel_llm.conventions.accents import ACCENTS, LANGCHAIN, OPENAI, Accent
from otel_llm.conventions.hosts import PROVIDERS, Provider

PAGE = Path(__file__).with_name("providers.md")
_STREAMS = {
    "asked": "where it is asked for",
    "always": "at its end, asked or not",
    "every chunk": "in every chunk, as far as it went",
}
_INTRODUCTION = """\
# Providers, and how they say what was used

<!-- Made by docs/providers.py from otel_llm/conventions/hosts.py and otel_llm/conventions/accents.py: change those. -->

Almost every provider speaks the OpenAI API, with an accent: usage in another place, what is cached under another name, reasoning
beside the output, a cost of its own. All accents are read everywhere, because a gateway, a relay or a server of one's own may have
any of them: what the answer shows decides, and the host only what the answer leaves open.

- **The sum is held to be true.** Where input and output are not the total, the part that stands beside is found (reasoning, what is
  read from the cache or written to it) and put into its whole: in the account `output_tokens` has the reasoning, `input_tokens`
  what is cached. Where no part explains the difference, the counts stay as they were reported and `usage_source` is `inconsistent`.
- **What is said twice counts once**, and a number counts more than a 0, which is what clients fill in for what they do not know.
- **A cost is taken over** where its unit is known to be USD: by its name (`cost_in_usd_ticks`), by what stands beside it, or as
  the provider has it. It is the span attribute `otel_llm.reported_cost_usd`.
- **What is billed beside tokens** is in attributes `otel_llm.usage.*`: `web_search_calls`, `audio_seconds`, `images` and so on.

Streams are asked for their usage [as long as a server takes the question](prices.md#streams-and-their-usage). Where a recording or
a package is named as the source, it was read; a page of documentation is where to look again.

A host that is not in the table is recorded as `openai`, as the conventions have it, with its `server_address`; or as whom LangChain
names, where the model is a class of its own for one of these. `OTEL_LLM_PRICES` prices [what has no price](prices.md).
"""


def page() -> str:
    """The whole text."""
    return "\n".join(
        (
            _INTRODUCTION,
            "## Providers, gateways, servers\n",
            *_table(
                (
                    "`provider`",
                    "hosts, by example where they are told by a pattern",
                    "accent",
                    "a stream tells its usage",
                    "bills beside tokens",
                    "where that is written",
                ),
                map(_provider, PROVIDERS),
            ),
            "\n## Accents\n",
            "Names of fields, `outer.inner` for a field in an object. `…` stands for the details of input or of output, whatever "
            "they are called: `prompt_tokens_details`, `input_tokens_details`, `input_token_details`, `prompt_token_details`; "
            "`completion_tokens_details`, `output_tokens_details`, `output_token_details`.\n",
            *_table(
                ("accent", "usage stands in", "names", "beside its whole", "where that is written"),
                map(_accent, ACCENTS),
            ),
            "",
        )
    )


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        cells = (cell.replace("|", "\\|") for cell in row)
        yield f"| {' | '.join(cells)} |"


def _provider(one: Provider) -> tuple[str, ...]:
    hosts = [f"`{host}`" for host in one.hosts] + [f"`{host}`" for host in one.at if not _is_below(host, one.hosts)]
    others = [f"not `{host}`" for host in one.not_at if one.patterns and not host.endswith(".example")]
    speaks = ", ".join(accent.name for accent in (OPENAI, *one.speaks))
    return (
        f"`{one.name}`",
        ", ".join((*hosts, *others)) or "yours",
        speaks,
        _STREAMS[one.stream],
        one.bills,
        one.source,
    )


def _is_below(host: str, domains: tuple[str, ...]) -> bool:
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)


def _accent(one: Accent) -> tuple[str, ...]:
    said: dict[str, list[str]] = {}
    for path, what in (dict(one.counts) | dict(one.units) | dict(one.money)).items():
        outer, _, inner = path.partition(".")
        shown = f"….{inner}" if outer.endswith("_details") and outer.partition("_")[0] in _WHOLES and inner else path
        names = said.setdefault(_MEANINGS.get(what, what.replace("_", " ")), [])
        if f"`{shown}`" not in names:
            names.append(f"`{shown}`")
    names = "; ".join(f"{what}: {', '.join(paths)}" for what, paths in said.items())
    name = f"{one.name} (what partner packages make of it)" if one is LANGCHAIN else one.name
    return (name, one.place, names or "as OpenAI", one.beside, one.source)


_WHOLES = ("prompt", "input", "completion", "output")
_MEANINGS = {
    "cache_write_5m": "written for 5 minutes",
    "cache_write_1h": "written for an hour",
    "cache_write": "written to the cache",
    "cache_write_apart": "written to the cache",
    "cache_read": "read from the cache",
    "cache_read_apart": "read from the cache",
    "reasoning_apart": "reasoning",
    "tool_input": "input of tools",
    "audio_cache_read": "audio read from the cache",
    "image_cache_read": "images read from the cache",
    "$cost": "cost",
    "$details": "cost of the provider behind",
    "$byok": "own key",
    "$ticks": "cost",
    "$estimate": "cost",
}

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
