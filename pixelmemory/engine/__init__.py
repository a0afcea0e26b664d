"""The event loop's side: carries a call from its event to its result."""
