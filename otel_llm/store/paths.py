"""Where the files of one store lie. (It is known further down, where a command names the store without opening it.)"""

from otel_llm.paths import StorePaths

__all__ = ["StorePaths"]
