"""What a frozen app needs of otel-llm beyond the modules that PyInstaller sees imported.

The SQL of the store's schema is data. Modules are imported by names in strings (`otel_llm.support.lazy`, the commands). And what is
installed is asked at run time: `genai_prices` does not import without its metadata, and `opentelemetry-instrument`
leaves an instrumentor out where it does not find the client's. DuckDB imports pytz from C.
"""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

hiddenimports = collect_submodules("otel_llm", filter=lambda name: not name.startswith("otel_llm._pyinstaller"))
hiddenimports.append("pytz")
datas = [*collect_data_files("otel_llm"), *copy_metadata("otel-llm", recursive=True)]
for client in ("openai", "langchain-core", "langchain", "langchain-openai", "langgraph", "litellm"):
    with contextlib.suppress(PackageNotFoundError):
        datas += copy_metadata(client)
