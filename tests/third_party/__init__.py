"""Real servers and clients that nobody here wrote. A package, so that its `conftest` is not taken for the other one."""
