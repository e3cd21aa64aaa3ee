"""The NLD model: configs, checkpoint checks, layers, draft adapter and draft pathway. Imports nothing."""
