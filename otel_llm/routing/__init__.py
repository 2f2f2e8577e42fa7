"""Models by the name of a profile: `LLMProvider` reads which deployments stand behind it, and asks one that works.

Neither openai nor LangChain is imported before a client or an invoker is made.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_llm.routing.deployment_state import LimitReached
from otel_llm.routing.deployments import Pool
from otel_llm.routing.profiles import Profile, ProfileError, load, parse
from otel_llm.settings import settings
from otel_llm.support import lazy

if TYPE_CHECKING:
    import openai
    from langchain_core.callbacks import Callbacks

    from otel_llm.routing.invoker import LLMInvoker
    from otel_llm.routing.tools import StepLimitReached

__all__ = ["LLMInvoker", "LLMProvider", "LimitReached", "ProfileError", "StepLimitReached"]


class LLMProvider:
    """The profiles of an app. Make one and share it: what it learns of a failing deployment holds for all its clients.

    Args:
        profiles: by their names, as `from_file` and `from_dict` read them.
        source: names them in the messages of errors.
        clock: seconds that only go forward; for tests.
        chance: draws the deployments; for tests.
    """

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        source: str = "the profiles",
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
    ) -> None:
        chance = chance or random.Random()
        self._source = source
        self._pools = {name: Pool(profile, clock, chance) for name, profile in profiles.items()}

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **options: Any) -> LLMProvider:
        """The profiles of a TOML file, or of a YAML file (`.yaml`, `.yml`; with the extra `otel-llm[yaml]`).

        Options as those of the class. Raises ProfileError, with a line for each mistake.
        """
        return cls(load(Path(path).expanduser()), str(path), **options)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], **options: Any) -> LLMProvider:
        """The same from a mapping that looks as the file does. Raises ProfileError."""
        source = "the profiles"
        return cls(parse(document, source), source, **options)

    @classmethod
    def from_env(cls) -> LLMProvider:
        """The profiles of the file that `OTEL_LLM_PROFILES` names. Raises ProfileError, also where it is not set."""
        path = settings().profiles
        if path is None:
            raise ProfileError("OTEL_LLM_PROFILES is not set; set it to the path of a TOML file with profiles")
        return cls.from_file(path)

    @property
    def profiles(self) -> tuple[str, ...]:
        """Names of the profiles."""
        return tuple(self._pools)

    def create_invoker(self, profile: str, *, streaming: bool = False, callbacks: Callbacks = None) -> LLMInvoker:
        """A LangChain runnable that calls the models of a profile.

        Args:
            profile: its name.
            streaming: have `invoke` stream behind the scenes, so that callbacks see each token.
            callbacks: LangChain's handlers, for every call of this invoker.

        Raises:
            ProfileError: there is no such profile, or the API key of a deployment is not in the environment.
        """
        from otel_llm.routing.invoker import make_invoker

        pool = self._pool(profile)
        return make_invoker(pool, self._keys(pool), streaming=streaming, callbacks=callbacks)

    def client(self, profile: str) -> openai.OpenAI:
        """An OpenAI client whose requests go to the deployments of a profile; in them, `model=` is the profile's name.

        Raises ProfileError as `create_invoker` does.
        """
        from otel_llm.routing.client import make_client

        pool = self._pool(profile)
        return make_client(pool, self._keys(pool))

    def async_client(self, profile: str) -> openai.AsyncOpenAI:
        """The same for `await`."""
        from otel_llm.routing.client import make_async_client

        pool = self._pool(profile)
        return make_async_client(pool, self._keys(pool))

    def _pool(self, profile: str) -> Pool:
        pool = self._pools.get(profile)
        if pool is None:
            raise ProfileError(f"{self._source}: there is no profile {profile!r}; there is {', '.join(self._pools)}")
        return pool

    def _keys(self, pool: Pool) -> dict[str, str]:
        # Read when the profile is used: who uses one profile need not have the keys of the others.
        keys = {one.name: os.environ.get(one.api_key_env, "") for one in pool.profile.deployments}
        missing = [
            f"{self._source}, profile {one.profile!r}, deployment {one.name!r}: {one.api_key_env} is not set; set it to the "
            "API key, or name another variable in api_key_env"
            for one in pool.profile.deployments
            if not keys[one.name]
        ]
        if missing:
            raise ProfileError(*missing)
        return keys


# These two stand on LangChain.
__getattr__ = lazy.attributes(__name__, {"LLMInvoker": "invoker", "StepLimitReached": "tools"})
