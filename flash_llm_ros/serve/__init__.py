"""OpenAI's chat completions over HTTP, in front of a running node."""
