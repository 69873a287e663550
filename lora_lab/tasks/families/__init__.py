"""How a model learns a task, one kind of task a file: each registers itself."""
