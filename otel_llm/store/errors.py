"""What can go wrong with the store. Each error is one clear line."""


class StoreError(Exception):
    """The store cannot be read or written. The message names the path, the cause and, where there is one, the remedy."""

    remedy = "have it readable and writable, or name another store in OTEL_LLM_STORE"
    """What to do about it; nothing is lost meanwhile, it waits in the journal."""


class StoreNotFound(StoreError):
    """There is no store at this path yet."""


class StoreBusy(StoreError):
    """Another process holds the database; nothing is lost, and it can be tried again."""

    remedy = "close the program that holds the store"


class StoreTooNew(StoreError):
    """A newer DuckDB than the one that is installed here has made the database, or brought it into its own format."""

    remedy = "upgrade DuckDB in this environment (pip install --upgrade duckdb), and leave the file where it is"
