"""What can go wrong with the store, in one clear line each."""


class StoreError(Exception):
    """The store cannot be read or written. The message names the path, the cause and, where there is one, the remedy."""


class StoreNotFound(StoreError):
    """There is no store at this path yet."""


class StoreBusy(StoreError):
    """Another process holds the database; nothing is lost, and it can be tried again."""
